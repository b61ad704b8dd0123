# SPDX-License-Identifier: Apache-2.0
"""Questions of `podlane explain`: what is read, and what is refused by name."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from dataplane.explain.questions import Question, batch, question
from dataplane.model.errors import BadInput
from dataplane.model.net import Protocol

GOOD = '{"from":"10.244.1.5","to":"10.96.0.1:80","protocol":"tcp"}'


def test_a_line_is_a_question() -> None:
    lines = [GOOD, "\n", '{"protocol":"SCTP","to":"[fd00::1]:9","from":"fd00::2"}\n']
    assert batch("flows", lines) == [
        Question(ip_address("10.244.1.5"), ip_address("10.96.0.1"), 80, Protocol.TCP),
        Question(ip_address("fd00::2"), ip_address("fd00::1"), 9, Protocol.SCTP),
    ]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "flows:2: is not JSON"),
        ("[" * 100_000, "flows:2: is not JSON"),
        ("[]", "flows:2: is no JSON object"),
        ('{"from":"10.0.0.1","protocol":"tcp"}', "flows:2: to: is missing"),
        ('{"from":1,"to":"10.0.0.2:1","protocol":"tcp"}', "flows:2: from: is not a text"),
        ('{"from":"a","to":"b","protocol":"tcp","port":1}', "flows:2: port: unknown key"),
        ('{"from":"10.0.0.1","to":"10.0.0.2:1","protocol":"icmp"}', "'icmp' is none of tcp"),
        ('{"from":"10.0.0.1:5","to":"10.0.0.2:1","protocol":"tcp"}', "flows:2: from: '10.0.0.1:5'"),
        ('{"from":"010.0.0.1","to":"10.0.0.2:1","protocol":"tcp"}', "is no IP address"),
        ('{"from":"10.0.0.1","to":"10.0.0.2","protocol":"tcp"}', "flows:2: to: '10.0.0.2' has no port"),
        ('{"from":"10.0.0.1","to":"10.0.0.2:","protocol":"tcp"}', "has no port"),
        ('{"from":"10.0.0.1","to":"10.0.0.2:0","protocol":"tcp"}', "0 is no port"),
        ('{"from":"10.0.0.1","to":"10.0.0.2:65536","protocol":"tcp"}', "65536 is no port"),
        ('{"from":"10.0.0.1","to":"10.0.0.2:' + "9" * 5000 + '","protocol":"tcp"}', "is no port"),
        ('{"from":"fd00::1","to":"fd00::2:80","protocol":"tcp"}', "form of its family"),
        ('{"from":"10.0.0.1","to":"[10.0.0.2]:80","protocol":"tcp"}', "form of its family"),
        ('{"from":"fe80::1%eth0","to":"[fd00::2]:80","protocol":"tcp"}', "has a zone"),
        ('{"from":"::ffff:10.0.0.1","to":"[fd00::2]:80","protocol":"tcp"}', "mapped IPv4"),
        ('{"from":"10.0.0.1","to":"[fd00::2]:80","protocol":"tcp"}', "are of two families"),
    ],
)  # fmt: skip
def test_a_bad_line_is_named_by_file_and_number(line: str, words: str) -> None:
    with pytest.raises(BadInput) as refused:
        batch("flows", [GOOD, line])
    assert words in str(refused.value)


def test_all_bad_lines_are_named_at_once_up_to_ten() -> None:
    with pytest.raises(BadInput) as refused:
        batch("flows", ["[]", GOOD, "{"])
    said = str(refused.value)
    assert "2 lines can't be asked, so none was" in said
    assert "flows:1: is no JSON object" in said
    assert "flows:3: is not JSON" in said
    with pytest.raises(BadInput, match=r"flows:10: (?s:.*)\n  and 5 more$"):
        batch("flows", ["[]"] * 15)


def test_a_line_without_a_protocol_asks_over_tcp_as_the_options_do() -> None:
    assert batch("flows", ['{"from":"10.0.0.1","to":"10.0.0.2:1"}'])[0].protocol is Protocol.TCP


def test_a_bad_option_is_named() -> None:
    with pytest.raises(BadInput, match="--to: 'web' is no IP address"):
        question("10.0.0.1", "web:80", "tcp")
