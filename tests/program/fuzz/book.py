# SPDX-License-Identifier: Apache-2.0
"""The translations that were seen, and which new ones are lawful.

A flow's later packets must be rewritten as its first, its replies the other way round, and
what an ICMP error quotes likewise. Knows tuples, no bytes and no maps.
"""

from __future__ import annotations

from tests.program import world
from tests.program.fuzz.place import Place
from tests.program.fuzz.sight import ICMP, ICMPV6, SCTP, TCP, UDP, Address, Tuple, back

ANY_PORT = -1


class Book:
    """Of one family. `roomy`: the flow table never evicts, so nothing may change by itself."""

    def __init__(self, place: Place, roomy: bool) -> None:
        self._place, self._roomy = place, roomy
        self._known: dict[Tuple, Tuple] = {}  # a tuple as it arrives, and as it leaves
        self._passed: set[Tuple] = set()  # through the stack, untranslated
        self._ending: set[Tuple] = set()
        self._tried: set[tuple[int, Address, int]] = set()

    def end(self, way: Tuple) -> None:
        """A FIN or a reset was seen, so the tuple may be used anew."""
        self._ending.add(way)

    def tried(self, way: Tuple) -> None:
        """A packet went no further, but what it left may translate replies to its sender."""
        self._tried |= {way[:3], (*way[:2], ANY_PORT)}

    def knows(self, way: Tuple | None) -> bool:
        return way in self._known or way in self._passed

    def passed(self, way: Tuple) -> None:
        """A packet went through the stack: so may its flow's, and its replies."""
        self._passed |= {way, back(way)}

    def wrong(self, way: Tuple, out: Tuple, services: bool, hides: bool) -> str:
        """Why `way` may not leave as `out`; "" if it may, and then it is remembered.

        services: this hook translates frontends; hides: it may rewrite source addresses; a
        port may change at each, if another flow has it.
        """
        known = self._known.get(way)
        if known == out or (way == out and way in self._passed):
            if known and not self._roomy:  # the reply's half may have been another's meanwhile
                self._known[back(out)] = back(way)
            return ""
        # an echo of identifier 0 and ICMP without one have the same tuple
        if known is not None and way[0] in (ICMP, ICMPV6) and way[2] == 0:
            if (out[1], out[3]) == (known[1], known[3]):
                return ""
        elif known is not None and self._roomy and not self._ended(way, known):
            return f"a flow that left as {known}"
        why = self._wrong_anew(way, out, services, hides)
        if why:
            return why
        taken = self._known.get(back(out))
        if taken is not None and out[2] and taken != back(way) and self._roomy:
            owner = back(taken)
            if not self._ended(owner, out):
                return f"its reply tuple is that of {owner}"
        self._known[way] = out
        self._known[back(out)] = back(way)
        return ""

    def _ended(self, way: Tuple, out: Tuple) -> bool:
        ending = self._ending
        return way in ending or out in ending or back(way) in ending or back(out) in ending

    def _wrong_anew(self, way: Tuple, out: Tuple, services: bool, hides: bool) -> str:
        protocol, src, sport, dst, dport = way
        _, new_src, new_sport, new_dst, new_dport = out
        if (protocol, new_dst, new_dport) in self._tried:
            shown = self._place.frontends.get((protocol, new_src, new_sport), frozenset())
            if (src, sport) in shown or (new_src == src and dst in self._place.own):
                return ""
        ports = protocol in (TCP, UDP, SCTP)
        backends = self._place.frontends.get((protocol, dst, dport)) if services else None
        if backends is not None:
            if (new_dst, new_dport) not in backends:
                return "no backend of the Service"
        elif new_dst != dst or (ports and new_dport != dport):
            return "another destination, and no Service's"
        hidden = new_src != src
        if hidden and not hides:
            return "another source"
        if hidden and new_src not in self._place.own:
            return "a source that is not the node's"
        chosen = new_sport != sport or (hidden and sport)
        if chosen and not world.MASQUERADE_MIN <= new_sport <= world.MASQUERADE_MAX:
            return "a source port outside of the node's range"
        return ""

    def wrong_fragment(self, way: Tuple, src: Address, dst: Address) -> str:
        """Why a later fragment of a packet of `way` may not go from src to dst.

        Its first fragment may have been dropped, or have found the flow table otherwise.
        """
        known = self._known.get(way)
        # without its first fragment it may have opened a flow itself
        self.tried(way)
        if known is None:
            return self._wrong_fragment_anew(way, src, dst)
        if (known[1], known[3]) == (src, dst) or not self._roomy:
            return ""
        return f"of a flow that left as {known}"

    def _wrong_fragment_anew(self, way: Tuple, src: Address, dst: Address) -> str:
        backends = self._place.frontends.get((way[0], way[3], way[4]))
        if (way[0], dst, ANY_PORT) in self._tried and way[3] in self._place.own:
            return ""
        if backends is not None and dst not in {b[0] for b in backends}:
            return "no backend of the Service"
        if backends is None and dst != way[3]:
            return "another destination, and no Service's"
        if src != way[1] and src not in self._place.own:
            return "a source that is not the node's"
        return ""

    def wrong_quote(self, quoted: Tuple, shown: Tuple) -> str:
        """Why an ICMP error about `quoted` may not be shown as about `shown`."""
        known = self._known.get(back(quoted))
        if known == back(shown):
            return ""
        if known is None:
            sent = shown[:3] in self._tried or back(quoted)[:3] in self._tried
            return "" if sent else "no flow is known that sent it"
        if self._ended(back(quoted), known) or not self._roomy:
            return ""
        return f"its sender sent {back(known)}"
