# SPDX-License-Identifier: Apache-2.0
"""Numbers of bpf/abi.h that pure code needs: what a row's kind and flags may be.

Members are the names of abi.h without their prefix (ROUTE_TUNNEL is RouteKind.TUNNEL);
a unit test compares each with abi.h as parsed. Must not grow logic.
"""

from __future__ import annotations

import enum


class FrontendKind(enum.IntEnum):
    """enum frontend_kind."""

    ADDRESS = 1
    CLUSTER_IP = 2
    NODE_PORT = 3
    LOAD_BALANCER = 4
    EXTERNAL_IP = 5
    HOST_PORT = 6


class ServiceFlag(enum.IntFlag):
    """enum service_flag."""

    INTERNAL_LOCAL = 1
    EXTERNAL_LOCAL = 2
    AFFINITY = 4
    SOURCE_RANGES = 8
    RANGES_ODD = 16


class BackendFlag(enum.IntFlag):
    """enum backend_flag; no bit: gone."""

    LISTED = 1
    SERVING = 2
    SELECTABLE = 4
    LOCAL = 8
    IN_CLUSTER = 16
    IN_LOCAL = 32


class RouteKind(enum.IntEnum):
    """enum route_kind."""

    STACK = 1
    NODE = 2
    LOCAL = 3
    TUNNEL = 4
    NATIVE = 5
    WORLD = 6
    SERVICE = 7
    UNREACHABLE = 8


class RouteFlag(enum.IntFlag):
    """enum route_flag."""

    MASQUERADE = 1
    CLUSTER = 2
    HOP_IS_NODE = 4


class EndpointFlag(enum.IntFlag):
    """enum endpoint_flag."""

    SHAPED = 1


class NodeFlag(enum.IntFlag):
    """enum node_flag."""

    VXLAN = 1
    MASQUERADE_ALL = 2
    DIRECT = 4


class NameKind(enum.IntEnum):
    """enum name_kind."""

    SERVICE = 1
    ENDPOINT = 2
    NODE = 3
