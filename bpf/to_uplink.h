/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * to_uplink: egress of an uplink; a packet leaves the node for outside.
 *
 *	finished by another hook -> out
 *	reply of the node's own socket that is a Service's backend -> translate -> out
 *	pod's packet that came through the stack -> masquerade -> out
 */
#ifndef PODLANE_TO_UPLINK_H
#define PODLANE_TO_UPLINK_H

#include "forward.h"

/* A pod's packet that the stack routed, of a flow that is new or lost. */
static __always_inline int to_uplink_masquerade(struct __sk_buff *skb, struct packet *p)
{
	struct path path = {};

	route_lookup(&p->tuple.dst, &path);
	return path_masquerades(&path) ? verdict_tail(skb, TAIL_START) : ACTION_PASS;
}

static __always_inline int to_uplink_handle(struct __sk_buff *skb, struct scratch *s)
{
	struct packet *p = &s->packet;
	struct flow *f;
	int err;

	if (skb->tc_index == PACKET_DONE) {
		skb->tc_index = 0;
		return ACTION_PASS;
	}
	err = packet_parse(skb, p);
	/* the node's own packets are the node's own business */
	if (err)
		return endpoints.lookup(&p->tuple.src) ? err : ACTION_PASS;
	if (p->icmp_error) {
		f = ct_copy(&p->inner, &s->draft.flow);
		if (f) {
			err = flow_translate_error(skb, p, f);
			return err ? err : ACTION_PASS;
		}
		return endpoints.lookup(&p->tuple.src) ? -DROP_NO_FLOW : ACTION_PASS;
	}
	f = flows.lookup(&p->tuple);
	if (f) {
		err = ct_touch(f, s);
		if (err)
			return err;
		service_count(f, p, false);
		s->verdict.service_id = f->service_id;
		s->verdict.flow_flags = f->flags;
		err = flow_translate(skb, p, f);
		return err ? err : ACTION_PASS;
	}
	if (!endpoints.lookup(&p->tuple.src))
		return ACTION_PASS;
	return to_uplink_masquerade(skb, p);
}

int to_uplink(struct __sk_buff *skb)
{
	struct scratch *s = scratch_begin(HOOK_TO_UPLINK);

	return s ? verdict_return(skb, s, HOOK_TO_UPLINK, to_uplink_handle(skb, s)) : TC_ACT_SHOT;
}

#endif
