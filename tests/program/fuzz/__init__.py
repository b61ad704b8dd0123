# SPDX-License-Identifier: Apache-2.0
"""A packet fuzzer over the real bytecode, with a judge that knows the RFCs and not the programs."""
