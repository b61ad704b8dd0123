# SPDX-License-Identifier: Apache-2.0
"""Measurements of podlane against the kernel's own ways, in pairs.

Benches report; they are no tests, and nothing here is imported by podlane itself.
"""
