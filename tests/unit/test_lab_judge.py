# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace
from ipaddress import ip_address
from json import dumps

import pytest

from dataplane.lab.judge import Drops, Observed, Reply, judge
from dataplane.lab.question import Answerer, Outcome, Row, Source, SourceKind
from dataplane.model.names import ServiceName
from dataplane.model.net import Family, Protocol

CLIENT = "10.244.1.9"
WEB = ("shop/web-0", "shop/web-1")
NAME = ServiceName("shop", "web", "http", Protocol.TCP, Family.V4)


def answerer(pod: str, node: str, last: int) -> Answerer:
    return Answerer(pod, node, ip_address(f"10.244.1.{last}"), 80, frozenset({ip_address(CLIENT)}))


ROW = Row(
    namespace="shop",
    name="web",
    port=80,
    protocol=Protocol.TCP,
    family=Family.V4,
    type="ClusterIP",
    source=Source(SourceKind.POD, "node-1", "shop/asker"),
    address=ip_address("10.96.0.1"),
    number=80,
    entry="node-1",
    outcome=Outcome.ANSWERED,
    answerers=(answerer(WEB[0], "node-1", 2), answerer(WEB[1], "node-2", 3)),
    requests=32,
    counted=NAME,
)


def reply(pod: str, client: str = CLIENT, port: int = 80) -> Reply:
    return Reply("ok", dumps({"pod": pod, "client": client, "port": port}))


GOOD = [reply(WEB[number % 2]) for number in range(32)]


def test_all_answered_by_all_and_counted_is_fine() -> None:
    verdict = judge(ROW, Observed(GOOD, flows=32))
    assert verdict.ok
    row = verdict.as_json()
    assert row["by"] == {WEB[0]: 16, WEB[1]: 16}
    assert (row["requests"], row["answered"], row["clientAddress"]) == (32, 32, CLIENT)
    assert row["from"] == {"kind": "pod", "node": "node-1", "name": "shop/asker"}
    assert row["why"] == ""


def only(words: str, seen: Observed) -> None:
    verdict = judge(ROW, seen)
    assert not verdict.ok
    assert any(words in why for why in verdict.why), verdict.why


def test_a_request_without_answer_is_named() -> None:
    only("1 of 32 requests got no answer", Observed([*GOOD[1:], Reply("timeout", "no answer")], 32))


def test_a_backend_that_never_answered_is_named() -> None:
    only("shop/web-1 never answered", Observed([reply(WEB[0])] * 32, flows=32))


def test_a_backend_whose_requests_were_lost_is_named() -> None:
    lost = [Reply("timeout", "no answer")] * 17
    only("shop/web-1 never answered", Observed([*[reply(WEB[0])] * 15, *lost], flows=32))


def test_another_pod_is_named() -> None:
    only(
        "4 of 32 requests were answered by shop/stranger",
        Observed([*GOOD[4:], *[reply("shop/stranger")] * 4], flows=32),
    )


def test_an_answer_that_is_no_stand_ins_is_shown() -> None:
    only("no stand-in's: 'hello'", Observed([*GOOD[1:], Reply("ok", "hello")], flows=32))


def test_the_wrong_port_is_named() -> None:
    only("reached port 81 of shop/web-0", Observed([*GOOD[1:], reply(WEB[0], port=81)], flows=32))


def test_a_client_address_against_the_contract_is_named() -> None:
    only(
        "client address 10.244.1.1, not 10.244.1.9",
        Observed([*GOOD[1:], reply(WEB[1], client="10.244.1.1")], flows=32),
    )


@pytest.mark.parametrize("counted", [0, 31, 33])
def test_counters_grow_by_exactly_the_requests(counted: int) -> None:
    only(f"node-1 counted {counted} new flows for 32 requests", Observed(GOOD, flows=counted))


def test_a_service_that_the_kernel_does_not_have_is_named() -> None:
    only("knows no Service port shop/web:http", Observed(GOOD, flows=None))


def test_an_implausible_spread_is_named() -> None:
    replies = [reply(WEB[0])] * 31 + [reply(WEB[1])]
    only("the spread is implausible: shop/web-0 answered 31 of 32", Observed(replies, flows=32))


def test_affinity_may_choose_one_backend() -> None:
    row = replace(ROW, every=False)
    assert judge(row, Observed([reply(WEB[0])] * 32, flows=32)).ok


def test_what_is_broken_at_rest_fails_a_row_that_was_answered() -> None:
    only("filter is missing", Observed(GOOD, flows=32, broken=["node-1: filter is missing"]))


def test_drops_explain_a_failure_and_are_none_themselves() -> None:
    drop = Drops("node-2", "from_overlay", "DROP_NO_POD", "no pod has it", 16)
    assert judge(ROW, Observed(GOOD, flows=32, drops=[drop])).ok
    lost = [Reply("timeout", "no answer")] * 32
    only("node-2 dropped 16 packets at from_overlay", Observed(lost, flows=32, drops=[drop]))


REFUSED = replace(ROW, outcome=Outcome.REFUSED, answerers=(), requests=2)
REFUSALS = [Reply("refused", "Connection refused")] * 2


def test_a_service_without_endpoints_must_refuse_and_count_it() -> None:
    drop = Drops("node-1", "from_pod", "DROP_NO_BACKEND", "refused", 2)
    verdict = judge(REFUSED, Observed(REFUSALS, flows=0, drops=[drop]))
    assert verdict.ok
    assert "refused, as it should be" in verdict.as_json()["why"]


SHUT_OUT = replace(REFUSED, outcome=Outcome.SHUT_OUT)
SILENCE = [Reply("timeout", "no answer")] * 2


def test_who_is_in_no_source_range_must_hear_nothing_and_be_counted() -> None:
    drop = Drops("node-1", "from_uplink", "DROP_SOURCE_RANGE", "not in the ranges", 2)
    verdict = judge(SHUT_OUT, Observed(SILENCE, flows=0, drops=[drop]))
    assert verdict.ok
    assert "in none of loadBalancerSourceRanges" in verdict.as_json()["why"]
    other = replace(drop, reason="DROP_NO_LOCAL_BACKEND")
    assert not judge(SHUT_OUT, Observed(SILENCE, flows=0, drops=[other])).ok
    answered = [reply(WEB[0])] * 2
    why = judge(SHUT_OUT, Observed(answered, flows=2)).why
    assert "2 of 2 requests were answered, and should be dropped" in why[0]


def test_a_refusal_that_nobody_counted_is_not_ours() -> None:
    assert not judge(REFUSED, Observed(REFUSALS, flows=0)).ok


def test_silence_is_no_refusal() -> None:
    verdict = judge(REFUSED, Observed([Reply("timeout", "no answer")] * 2, flows=0))
    assert "2 of 2 requests got no answer, and should be refused" in verdict.why[0]


def test_a_pods_own_counters_count_where_no_service_is_asked() -> None:
    row = replace(ROW, counted=None, answerers=(answerer(WEB[0], "node-1", 2),), requests=8)
    replies = [reply(WEB[0])] * 8
    assert judge(row, Observed(replies, pods={WEB[0]: 40})).ok
    verdict = judge(row, Observed(replies, pods={WEB[0]: 0}))
    assert "node-1 counted 0 packets into shop/web-0 for 8 requests" in verdict.why
