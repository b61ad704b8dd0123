# SPDX-License-Identifier: Apache-2.0
"""The edges to the kernel: compiling, loading, maps, links, namespaces.

Must not decide what packets or tables mean; that is `dataplane.core`.
"""
