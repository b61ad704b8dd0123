# SPDX-License-Identifier: Apache-2.0
"""bpf/abi.h as Python sees it, and rows to bytes and back.

Must not open files other than the headers, and knows no file descriptors.
"""
