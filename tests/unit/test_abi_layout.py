# SPDX-License-Identifier: Apache-2.0
"""bpf/abi.h as Python sees it: sizes, words, and what it refuses."""

from __future__ import annotations

import enum

import pytest

from dataplane.abi import header
from dataplane.abi.layout import Abi, abi
from dataplane.model import constants
from dataplane.model.errors import Contradiction
from dataplane.model.net import Family


def _abi(text: str, family: Family = Family.V4) -> Abi:
    return Abi(family, header.parse(text), "")


@pytest.mark.parametrize("family", list(Family))
def test_every_struct_is_laid_out_without_padding(family: Family) -> None:
    layouts = abi(family)
    for name in layouts.structs:
        struct = layouts.struct(name)
        assert struct.size == sum(field.size for field in struct.fields)


def test_an_address_has_the_length_of_its_family() -> None:
    assert [abi(family).struct("addr").size for family in Family] == [4, 16]


def test_an_array_expression_of_c_follows_the_family() -> None:
    text = "struct a { __u32 zero[(ADDR_WORDS + 4) / 4]; };"
    assert [_abi(text, family).struct("a").size for family in Family] == [4, 8]


def test_implicit_padding_is_refused_by_name() -> None:
    with pytest.raises(Contradiction, match="struct hole: has implicit padding"):
        _abi("struct hole { __u8 a; __u32 b; };").struct("hole")


def test_a_type_that_is_not_known_is_refused_by_name() -> None:
    with pytest.raises(Contradiction, match="struct odd: a: type float"):
        _abi("struct odd { float a; };")


def test_every_value_that_users_see_has_words() -> None:
    layouts = abi(Family.V4)
    for name in layouts.enums:
        for member in layouts.enum(name):
            assert layouts.text(name, member), member


def test_words_over_two_lines_are_one_line() -> None:
    layouts = _abi("enum e {\n\tA_X = 1, /* one\n\t\t  * two */\n\tA_MAX = 2,\n};")
    assert layouts.text("e", 1) == "one two"


def test_the_end_mark_is_a_constant_and_no_member() -> None:
    layouts = abi(Family.V4)
    assert "DROP_MAX" not in layouts.enum("drop").__members__
    assert layouts.constant("DROP_MAX") > max(layouts.enum("drop"))


@pytest.mark.parametrize(
    ("ours", "theirs"),
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
def test_numbers_of_pure_code_are_those_of_the_header(
    ours: type[enum.IntEnum], theirs: str
) -> None:
    declared = abi(Family.V4).enum(theirs)
    prefix = theirs.partition("_")[0].upper() + "_"
    assert {f"{prefix}{one.name}": int(one) for one in ours} == {
        one.name: int(one) for one in declared
    }


def test_maps_are_read_with_scope_and_types() -> None:
    flows, peers = abi(Family.V6).maps["flows"], abi(Family.V6).maps["peers"]
    assert (flows.per_family, flows.key, flows.value) == (True, "struct flow_key", "struct flow")
    assert not peers.per_family
