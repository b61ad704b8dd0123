# SPDX-License-Identifier: Apache-2.0
"""Says what is wrong with what became of a packet, by RFCs and by who is who in `world`.

Judges bytes: which may change, sums, hops, addresses on links; `book` judges which
translation it is, `answers` what is sent back. Not derived from the programs: it knows none
of their maps, and what it does not know it calls wrong.
"""

from __future__ import annotations

from dataplane.model.net import Family
from tests.program import world
from tests.program.fuzz import answers
from tests.program.fuzz.book import Book
from tests.program.fuzz.place import Place
from tests.program.fuzz.sight import (
    END,
    FIRST,
    HOPS,
    ICMP_OF,
    LATER,
    SCTP,
    SRC,
    SUM_AT,
    TCP,
    UDP,
    V4_SUM,
    WHOLE,
    Quote,
    Sight,
    Tuple,
    back,
    ends,
    header_remainder,
    is_echo,
    look,
    quote_of,
    remainder,
    transport_remainder,
    tuple_of,
)  # fmt: skip
from tests.program.fuzz.stage import Case
from tests.program.quick import ABI, Seen
from tests.program.result import TC_REDIRECT, TC_VERDICTS

PASS, DROP, POD, TUNNEL, NATIVE, WORLD, ANSWER = range(1, 8)
FORWARDED = frozenset({POD, TUNNEL, NATIVE, WORLD})
_TC = dict.fromkeys((*FORWARDED, ANSWER), TC_REDIRECT) | {
    PASS: TC_VERDICTS["PASS"],
    DROP: TC_VERDICTS["DROP"],
}
_NAMES = {kind: {int(v): v.name for v in ABI.enum(kind)} for kind in ("action", "drop", "hook")}
HOOKS = {name.removeprefix("HOOK_").lower(): number for number, name in _NAMES["hook"].items()}
_OUR_TUNNEL = world.addresses(Family.V4)["there"], world.VNI
_ARP, _V4, _V6 = b"\x08\x06", b"\x08\x00", b"\x86\xdd"


def name_of(kind: str, number: int) -> str:
    """An enum's value in words, without its prefix."""
    return _NAMES[kind].get(number, f"{number}?").removeprefix(f"{kind.upper()}_")


class Judge:
    """One, from the moment that all tables are fresh: it remembers flows."""

    def __init__(self, roomy: bool) -> None:
        self._places = {family: Place(family) for family in Family}
        self._books = {f: Book(place, roomy) for f, place in self._places.items()}
        self._first: dict[tuple[bytes, bytes, bytes, int], tuple[int, int]] = {}

    def wrong(self, case: Case, given: bytes, seen: Seen) -> str:
        """One sentence; "" if all is as it may be."""
        why = self._wrong_verdict(case, seen)
        if why:
            return why
        if case.program == "from_pod_l2":
            return self._wrong_beyond_ip(case, given, seen)
        family = case.family
        sight = look(given, family, bool(case.gso_size))
        if sight is not None and not sight.wrong:
            self._remember(case, given, sight)
        if seen.action in (DROP, ANSWER) and sight is not None and not sight.wrong:
            self._try(given, sight, family)
        if seen.action == DROP:
            return ""
        if sight is None:
            return (
                "" if seen.action == PASS and seen.frame == given else "a packet without addresses"
            )
        if seen.action == ANSWER:
            return answers.wrong(case, given, sight, seen, self._places[family])
        if len(seen.frame) != len(given):
            return f"{len(seen.frame)} bytes of {len(given)}"
        why = self._wrong_source(case, given, sight, seen)
        if why:
            return why
        if seen.action == PASS and seen.frame == given:
            return self._wrong_pass(case, given, sight)
        return self._wrong_change(case, given, sight, seen)

    # ---- verdict ----
    def _wrong_verdict(self, case: Case, seen: Seen) -> str:
        if seen.action not in _TC:
            return f"action {seen.action}"
        if seen.retval != _TC[seen.action]:
            return f"tc verdict {seen.retval:#x} with {name_of('action', seen.action)}"
        if seen.hook != HOOKS[case.hook]:
            return f"verdict of hook {name_of('hook', seen.hook)}"
        if seen.reason and seen.reason not in _NAMES["drop"]:
            return f"drop reason {seen.reason} has no name"
        if seen.action == DROP:
            return "" if seen.reason else "dropped without a reason"
        if seen.action != ANSWER:
            return f"reason {name_of('drop', seen.reason)}, but not dropped" if seen.reason else ""
        return "" if seen.ifindex == case.device else f"answered on device {seen.ifindex}"

    def _wrong_beyond_ip(self, case: Case, given: bytes, seen: Seen) -> str:
        kind = given[12:14]
        if seen.action == DROP:
            return "IP is not its business" if kind in (_V4, _V6) and not case.setup else ""
        if seen.action == PASS:
            if kind not in (_V4, _V6):
                return "passed what is not IP"
            return "" if seen.frame == given else "changed what it passed"
        if seen.action != ANSWER or kind != _ARP:
            return f"{name_of('action', seen.action)} of what is not IP"
        return answers.wrong_arp(case, given, seen, self._places[Family.V4])

    # ---- addresses ----
    def _wrong_source(self, case: Case, given: bytes, sight: Sight, seen: Seen) -> str:
        place = self._places[case.family]
        forwarded = seen.action in FORWARDED
        if forwarded and place.is_no_source(sight.src):
            return "forwarded from an address that none has"
        if case.hook == "from_pod":
            if sight.src == place.pods.get(case.device):
                own = given[6:12] == world.mac_of(case.device)
                if own or (not forwarded and place.is_on_link(sight.dst)):
                    return ""
                return "another MAC"
            if forwarded or case.family is Family.V4:
                return "spoofed source"
            if not (place.is_on_link(sight.src) and place.is_on_link(sight.dst)):
                return "spoofed source, not on the link"
        elif case.hook == "from_overlay":
            if case.setup is None or case.setup.tunnel != _OUR_TUNNEL:
                return "a tunnel that is none of ours"
            if sight.src not in place.there and sight.src != place.names["there"]:
                return "inner source of another range"
        elif case.hook == "from_uplink" and forwarded and sight.src in place.pods.values():
            return "a pod's source from outside"
        return ""

    def _wrong_pass(self, case: Case, given: bytes, sight: Sight) -> str:
        """Unchanged to the stack, or out."""
        place = self._places[case.family]
        known = not sight.wrong and self._knows(given, sight, case.family)
        if case.hook == "to_overlay":
            done = case.setup is not None and case.setup.tc_index is not None
            return "" if done or given[:12] == world.OVERLAY_MAC * 2 else "passed without its MACs"
        if case.hook == "from_pod" and sight.dst in place.services and not known:
            return "a Service's address left to the stack"
        if case.hook != "to_uplink" or case.setup or sight.src not in place.pods.values():
            return ""
        if not place.hides(sight.dst):
            return ""
        return "" if known else "leaves under a pod's address"

    # ---- bytes ----
    def _wrong_change(self, case: Case, given: bytes, sight: Sight, seen: Seen) -> str:
        family, out = case.family, seen.frame
        place = self._places[family]
        if case.hook == "to_overlay":
            mac = world.OVERLAY_MAC
            return "" if out == mac + mac + given[12:] else "more than MACs changed"
        if sight.wrong:
            return f"changed or forwarded, though {sight.wrong} is wrong"
        after = look(out, family, bool(case.gso_size))
        assert after is not None
        forwarded = seen.action in FORWARDED
        if forwarded and after.hops != sight.hops - 1:
            return f"hops {sight.hops} to {after.hops}"
        if forwarded and after.hops < 1:
            return "forwarded without hops left"
        allowed = self._fields(given, sight, family)
        if forwarded:
            allowed.append(slice(HOPS[family], HOPS[family] + 1))
            why = self._wrong_target(case, given, sight, after, seen)
            if why:
                return why
        quote = quote_of(given, sight, family)
        if quote:
            allowed += _quoted_fields(quote, family)
        meant = bytearray(given)
        meant[0:12] = out[0:12]
        for field in allowed:
            meant[field] = out[field]
        if not forwarded:
            meant[0:12] = given[0:12]
        if meant != out:
            places = [i for i, (a, b) in enumerate(zip(meant, out, strict=True)) if a != b]
            return f"bytes {places} changed"
        why = _wrong_sums(given, out, sight, after, quote, family)
        return why or self._wrong_way(case, given, sight, seen, after, quote, place)

    def _fields(self, given: bytes, sight: Sight, family: Family) -> list[slice]:
        """What a translation may rewrite, MACs and hops apart."""
        fields = [slice(SRC[family], END[family])]
        if family is Family.V4:
            fields.append(V4_SUM)
        if sight.part == LATER:
            return fields
        l4, protocol = sight.l4, sight.protocol
        whole_sctp = protocol == SCTP and sight.part == WHOLE
        if protocol in (TCP, UDP) or whole_sctp:
            fields.append(slice(l4, l4 + 4))
        elif is_echo(given, sight, family):
            fields.append(slice(l4 + 4, l4 + 6))
        if protocol in (TCP, UDP, ICMP_OF[family]):
            at = l4 + SUM_AT[protocol]
            fields.append(slice(at, at + 2))
        elif whole_sctp and any(given[l4 + 8 : l4 + 12]):
            fields.append(slice(l4 + 8, l4 + 12))
        return fields

    def _wrong_target(
        self, case: Case, given: bytes, sight: Sight, after: Sight, seen: Seen
    ) -> str:
        place, macs = self._places[case.family], seen.frame[:12]
        if case.hook not in ("from_pod", "from_uplink", "from_overlay"):
            return "this hook forwards nothing"
        if seen.action == POD:
            if place.pods.get(seen.ifindex) != after.dst:
                return "into another pod"
            if macs != world.mac_of(seen.ifindex) + world.GATEWAY_MAC:
                return "MACs are not the pod's and the gateway's"
            return ""
        if seen.action == TUNNEL:
            # The other node's own process, which is answered the way that it came.
            node = after.dst == place.names["there"] and case.hook == "from_pod"
            if not (after.dst in place.there or node) or seen.ifindex != world.OVERLAY:
                return "through the tunnel, where it has no business"
            return "" if macs == world.OVERLAY_MAC * 2 else "MACs are not the overlay's"
        if seen.action == NATIVE:
            return "by next hop, on a node with an overlay"
        if macs != given[:12]:
            return "MACs changed before the neighbour is known"
        inside = after.dst in place.cluster or after.dst in place.services or after.dst in place.own
        if inside and not self._knows(given, sight, case.family):
            return "out, though its destination is inside"
        if place.is_on_link(after.dst) and not self._knows(given, sight, case.family):
            return "out, though its destination is of the link only"
        return "" if seen.ifindex in (world.UPLINK, world.UPLINK2) else f"out by {seen.ifindex}"

    # ---- flows ----
    def _remember(self, case: Case, given: bytes, sight: Sight) -> None:
        """What a packet says to whoever sees it, even if it goes no further."""
        family = case.family
        done = case.setup is not None and case.setup.tc_index is not None
        if done or case.hook == "to_overlay":  # there only the destination is looked at
            return
        way = self._way(given, sight, family)
        if way and (case.hook == "to_pod" or sight.dst in self._places[family].pods.values()):
            self._books[family].passed(way)
        if way is None or sight.part == LATER:
            return
        if ends(given, sight):
            self._books[family].end(way)
        if sight.part == FIRST:
            self._first[sight.src, sight.dst, sight.id, sight.protocol] = way[2], way[4]

    def _try(self, given: bytes, sight: Sight, family: Family) -> None:
        """A packet that goes no further may have left a flow, translated as it would have been."""
        way = self._way(given, sight, family)
        if way is not None:
            self._books[family].tried(way)

    def _way(self, frame: bytes, sight: Sight, family: Family) -> Tuple | None:
        """The packet's tuple; a later fragment's is that of its first, None if none was seen."""
        if sight.part != LATER:
            return tuple_of(frame, sight, family)
        ports = self._first.get((sight.src, sight.dst, sight.id, sight.protocol))
        return ports and (sight.protocol, sight.src, ports[0], sight.dst, ports[1])

    def _knows(self, frame: bytes, sight: Sight, family: Family) -> bool:
        """Whether the packet, or the one that it quotes, is of a flow that was seen."""
        book, quote = self._books[family], quote_of(frame, sight, family)
        return book.knows(self._way(frame, sight, family)) or (
            quote is not None and book.knows(back(quote.way))
        )

    def _wrong_way(
        self, case: Case, given: bytes, sight: Sight, seen: Seen, after: Sight,
        quote: Quote | None, place: Place,
    ) -> str:  # fmt: skip
        family, book = case.family, self._books[case.family]
        if quote and seen.frame[quote.l3 :] != given[quote.l3 :]:
            return self._wrong_error(sight, seen, after, quote, family)
        if quote and (sight.src, sight.dst) == (after.src, after.dst):
            return ""
        way = self._way(given, sight, family)
        if way is None:
            return "a later fragment whose first one was not seen"
        if sight.part == LATER:
            known = book.wrong_fragment(way, after.src, after.dst)
            return f"later fragment: {known}" if known else ""
        out = tuple_of(seen.frame, after, family)
        services = case.hook in ("from_pod", "from_uplink") and not is_echo(given, sight, family)
        hides = case.hook in ("from_pod", "from_uplink", "to_uplink")
        replies = book.knows(way)
        why = book.wrong(way, out, services, hides)
        if why:
            return f"{_told(way)} leaves as {_told(out)}: {why}"
        if seen.action in FORWARDED and after.dst in place.services and not replies:
            return "forwarded to a Service's address"
        leaks = seen.action == WORLD and after.src in place.pods.values() and not replies
        if leaks and place.hides(after.dst):
            return "leaves under a pod's address"
        return ""

    def _wrong_error(
        self, sight: Sight, seen: Seen, after: Sight, quote: Quote, family: Family
    ) -> str:
        shown = quote_of(seen.frame, after, family)
        if shown is None:
            return "its quote can't be read any more"
        why = self._books[family].wrong_quote(quote.way, shown.way)
        if why:
            return f"quote of {_told(quote.way)} is shown as {_told(shown.way)}: {why}"
        if after.dst != shown.way[1]:
            return "goes to another than its quote's sender"
        if after.src not in (sight.src, shown.way[3]):
            return "from a source that is no end of the flow"
        return ""


def _quoted_fields(quote: Quote, family: Family) -> list[slice]:
    shift = quote.l3 - 14
    fields = [slice(SRC[family] + shift, END[family] + shift), quote.ports]
    if family is Family.V4:
        fields.append(slice(V4_SUM.start + shift, V4_SUM.stop + shift))
    return fields


def _wrong_sums(
    given: bytes, out: bytes, sight: Sight, after: Sight, quote: Quote | None, family: Family
) -> str:
    """A sum that was right stays right, one that was wrong stays as wrong as it was."""
    if family is Family.V4 and header_remainder(given, sight) != header_remainder(out, after):
        return "IPv4 header's checksum"
    before, now = (transport_remainder(f, s, family) for f, s in ((given, sight), (out, after)))
    if before != now:
        return f"checksum of protocol {sight.protocol}"
    if quote and family is Family.V4:
        part = slice(quote.l3, quote.l3 + (given[quote.l3] & 15) * 4)
        if remainder(given[part]) != remainder(out[part]):
            return "quoted header's checksum"
    return ""


def _told(way: Tuple) -> str:
    protocol, src, sport, dst, dport = way
    return f"{protocol} {src.hex()}:{sport} > {dst.hex()}:{dport}"
