# SPDX-License-Identifier: Apache-2.0
"""The agent: one process a node that joins sources, core, kernel and CNI.

Wiring only. Must not decide what tables hold (core) or how the kernel is told (kernel).
"""
