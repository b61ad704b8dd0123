# SPDX-License-Identifier: Apache-2.0
"""What the real programs do with a packet of a new flow, asked on a second copy of a node.

The copy is a set of maps of its own without pins, filled with what an agent would write
and with what the question needs (a sender, next hops), and programs of the same bundle.
Nothing of the node is touched. `questions` and `story` are pure, `scene` decides rows,
`scratch` and `ask` run programs.
"""
