# SPDX-License-Identifier: Apache-2.0
"""CNI: the protocol (pure), the node-local server, the store of given-out addresses.

Must not touch the kernel; the agent wires pods.
"""
