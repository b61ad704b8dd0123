# SPDX-License-Identifier: Apache-2.0
"""YAML that parses and can't be made values of, and YAML whose values are not JSON's."""

from __future__ import annotations

_LONG = "9" * 5000

# Each with the place that is to be named: all have in common that PyYAML raises what is no
# YAMLError (KeyError, AttributeError, IndexError, ValueError, OverflowError) or none at all.
NASTY = [
    ("kind: !!bool x", ":1:7"),
    ("ok: 1\na: !!timestamp x", ":2:4"),
    ("a: !!timestamp 2024-13-45", ":1:4"),
    ("a: !!timestamp 2024-01-01T00:00:00+99:99", ":1:4"),
    ("a: !!int x", ":1:4"),
    ("a: !!int ''", ":1:4"),
    ("a: [1, !!int 0b]", ":1:8"),
    ("a: !!int 1:x", ":1:4"),
    ("a: !!float ''", ":1:4"),
    ("a: !!float x", ":1:4"),
    ("a: !!float 1:x", ":1:4"),
    ("a: !!binary é", ":1:4"),
    ("a: !!binary x", ":1:4"),
    ("a: !!python/object:os.system x", ":1:4"),
    ("a: !!str [x]", ":1:4"),
    ("a: !!bool [x]", ":1:4"),
    ("a: !!map x", ":1:4"),
    ("a: !!omap [x]", ":1:12"),
    ("mtu: 0b_", ":1:6"),
    ("mtu: 0x_", ":1:6"),
    ("? [a]\n: b", ":1:3"),
    ("a: =", ":1:4"),
    ("<<: x", ":1:5"),
    ("&a {? *a : b}", ":1:1"),
    (f"a: {_LONG}", ":1:4"),
    (f"a: -0x{_LONG}", ":1:4"),
    (f"a: !!float {'1:' * 400}1", ":1:4"),
    (f"? 0x{_LONG}\n: a", ":1:3"),
]
DEEP = [
    "[" * 100_000,
    "{a: " * 100_000,
    "- " * 100_000 + "x",
    "? " * 100_000 + "x",
]
NONSENSE = [
    "!!set {kind, apiVersion}",
    "!!omap [kind: Service]",
    "!!binary aGk=",
    "&a [*a]",
    "&a {apiVersion: v1, kind: List, items: [*a]}",
    "{apiVersion: v1, kind: !!timestamp 2024-01-01}",
    "{apiVersion: v1, kind: Service, metadata: !!pairs [a: b]}",
    "{apiVersion: v1, kind: Service, metadata: {name: a, labels: {!!binary aGk=: b}}}",
    "{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {ports: [{port: .nan}]}}",
    "{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {ports: !!set {a}}}",
]
