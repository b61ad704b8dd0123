# SPDX-License-Identifier: Apache-2.0
"""The real programs and tables against the reference model: random objects, random packets.

python -m tests.program.differential [--packets N] [--seed S]
"""
