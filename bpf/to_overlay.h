/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * to_overlay: egress of the VXLAN device; a packet of the node's own stack for
 * another node's pod gets its tunnel key. Other hooks set it themselves.
 */
#ifndef PODLANE_TO_OVERLAY_H
#define PODLANE_TO_OVERLAY_H

#include "forward.h"

static __always_inline int to_overlay_handle(struct __sk_buff *skb, struct scratch *s)
{
	struct packet *p = &s->packet;
	struct node *n = node_get();
	struct route *to;
	int err;

	if (skb->tc_index == PACKET_DONE) {
		skb->tc_index = 0;
		return ACTION_PASS;
	}
	if (!n)
		return -DROP_CONFIG;
	p->length = skb->len;
	/* only the addresses are needed: later fragments and broken packets are the far side's */
	if (bpf_skb_load_bytes(skb, L3_OFFSET + L3_DST_OFFSET, &p->tuple.dst, sizeof(struct addr)))
		return -DROP_TRUNCATED;
	if (addr_is_multicast(&p->tuple.dst))
		return -DROP_MULTICAST;
	to = route_find(&p->tuple.dst);
	if (!to || to->kind != ROUTE_TUNNEL)
		return -DROP_NO_ROUTE;
	s->verdict.hop_family = to->hop_family;
	__builtin_memcpy(s->verdict.hop, to->hop, sizeof(s->verdict.hop));
	err = route_set_tunnel(skb, n, to, n->vni);
	if (err)
		return err;
	return packet_set_macs(skb, n->overlay_mac, n->overlay_mac) ? -DROP_WRITE : ACTION_PASS;
}

int to_overlay(struct __sk_buff *skb)
{
	struct scratch *s = scratch_begin(HOOK_TO_OVERLAY);

	return s ? verdict_return(skb, s, HOOK_TO_OVERLAY, to_overlay_handle(skb, s)) : TC_ACT_SHOT;
}

#endif
