# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.abi.layout import abi
from dataplane.core.plan import PEERS, Delete, Grace, Key, Plan, Row, Upsert, diff
from dataplane.model import constants
from dataplane.model.names import ServiceName
from dataplane.model.net import Family, Protocol
from dataplane.model.rows import PeerRow

tables = st.dictionaries(
    st.integers(1, 5).map(lambda i: ip_address(f"192.0.2.{i}")),
    st.builds(PeerRow, st.integers(1, 3)),
)


@given(tables, tables)
def test_difference_makes_actual_what_is_desired(
    desired: dict[Key, Row], actual: dict[Key, Row]
) -> None:
    steps = diff(PEERS, desired, actual)
    for step in steps:
        if isinstance(step, Upsert):
            assert all(actual.get(key) != row for key, row in step.rows)
            actual.update(step.rows)
        elif isinstance(step, Delete):
            for key in step.keys:
                del actual[key]
    assert actual == desired
    assert not diff(PEERS, desired, actual)


def test_empty_plan_is_false_and_counts_nothing() -> None:
    assert not Plan()
    plan = Plan((Grace(), Upsert(PEERS, [(ip_address("192.0.2.1"), PeerRow(1))])))
    assert plan.entries == 1


@pytest.mark.parametrize(
    ("ours", "enum"),
    [
        (constants.FrontendKind, "frontend_kind"),
        (constants.ServiceFlag, "service_flag"),
        (constants.BackendFlag, "backend_flag"),
        (constants.RouteKind, "route_kind"),
        (constants.RouteFlag, "route_flag"),
        (constants.NodeFlag, "node_flag"),
        (constants.EndpointFlag, "endpoint_flag"),
        (constants.NameKind, "name_kind"),
    ],
)
def test_numbers_of_the_model_are_those_of_abi_h(ours: type[constants.NameKind], enum: str) -> None:
    prefix = enum.removesuffix("_kind").removesuffix("_flag").upper()
    theirs = {member.name: int(member) for member in abi(Family.V4).enum(enum)}
    assert {f"{prefix}_{member.name}": int(member) for member in ours} == theirs


@given(
    st.builds(
        ServiceName,
        st.from_regex("[a-z0-9-]+", fullmatch=True),
        st.from_regex("[a-z0-9-]+", fullmatch=True),
        st.from_regex("[a-z0-9-]+", fullmatch=True),
        st.sampled_from(Protocol),
        st.sampled_from(Family),
    )
)
def test_service_name_is_read_back_from_its_text(name: ServiceName) -> None:
    assert ServiceName.parse(name.text) == name


@pytest.mark.parametrize("text", ["", "a/b", "a/b:c", "a/b:c/TCP", "a/b:c/XXX/4", "a/b:c/TCP/5"])
def test_other_text_is_no_service_name(text: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        ServiceName.parse(text)
