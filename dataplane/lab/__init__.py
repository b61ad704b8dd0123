# SPDX-License-Identifier: Apache-2.0
"""Several nodes on one machine from plain manifests, in namespaces of their own.

Must not change the machine's own network: no link, address, route, setting, filter or
rule outside the lab's namespaces.
"""
