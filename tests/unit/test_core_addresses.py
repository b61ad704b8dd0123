# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.core.addresses import capacity, next_free, router_address
from dataplane.model.errors import RangeFull
from dataplane.model.net import Family, IPAddress, IPNetwork


def nets(text: str) -> tuple[IPNetwork, ...]:
    return tuple(map(ip_network, text.split()))


def test_first_pod_gets_the_address_after_the_router() -> None:
    assert next_free(nets("10.244.1.0/24"), ()) == ip_address("10.244.1.2")
    assert router_address(nets("fd00::/64 10.244.1.0/24"), Family.V4) == ip_address("10.244.1.1")
    assert router_address(nets("10.244.1.0/24"), Family.V6) is None


def test_freed_address_rests_until_the_walk_comes_round() -> None:
    ranges = nets("10.244.1.0/29")
    assert next_free(ranges, (), ip_address("10.244.1.4")) == ip_address("10.244.1.5")
    assert next_free(ranges, (), ip_address("10.244.1.6")) == ip_address("10.244.1.2")


def test_walk_goes_on_into_the_next_range_and_back() -> None:
    ranges = nets("10.244.1.0/30 10.244.9.0/30")
    assert next_free(ranges, (), ip_address("10.244.1.2")) == ip_address("10.244.9.1")
    assert next_free(ranges, (), ip_address("10.244.9.2")) == ip_address("10.244.1.2")


def test_large_ipv6_range_is_not_walked_to_its_end() -> None:
    assert next_free(nets("fd00::/64"), {ip_address("fd00::2")}) == ip_address("fd00::3")


@pytest.mark.parametrize("text", ["10.244.1.0/30", "10.244.1.0/31", "10.244.1.0/32", ""])
def test_more_pods_than_addresses_names_range_and_count(text: str) -> None:
    ranges = nets(text)
    used = {ip_address("10.244.1.2")}
    with pytest.raises(RangeFull) as caught:
        next_free(ranges, used)
    assert (text or "none") in str(caught.value)
    assert f"all {capacity(ranges)} addresses" in str(caught.value)


@given(
    st.sampled_from(["10.0.0.0/28", "10.0.0.0/29 10.0.1.0/29", "fd00::/125 fd01::/126"]),
    st.integers(0, 40),
)
def test_every_address_is_given_once_and_none_that_is_kept_out(text: str, skip: int) -> None:
    ranges = nets(text)
    used: set[IPAddress] = set()
    last: IPAddress | None = ranges[0].network_address + skip % ranges[0].num_addresses
    for _ in range(capacity(ranges)):
        last = next_free(ranges, used, last)
        assert last not in used
        used.add(last)
    kept_out = {ranges[0].network_address + 1}
    kept_out |= {edge for r in ranges for edge in (r.network_address, r.broadcast_address)}
    assert used == {a for r in ranges for a in r} - kept_out
    with pytest.raises(RangeFull):
        next_free(ranges, used, last)
