/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * to_pod: egress of a pod's host veth; a packet that came through the node's
 * stack enters a pod. (What other hooks redirect to the pod does not pass here.)
 *
 *	stack -> [reply of a translated flow?] -> translate -> pod
 *	         [first of a flow not the node's own?] -> remember that this flow
 *	         goes through the stack, so that its replies do too
 */
#ifndef PODLANE_TO_POD_H
#define PODLANE_TO_POD_H

#include "forward.h"

static __always_inline int to_pod_remember(struct packet *p, struct flow_draft *draft)
{
	struct flow *f = &draft->flow;
	struct route *from = route_find(&p->tuple.src);

	/* replies to the node's own addresses go to the stack anyway */
	if ((from && from->kind == ROUTE_NODE) || packet_is_mid_flow(p))
		return 0;
	ct_draft(draft, p, bpf_ktime_get_ns());
	f->flags = FLOW_VIA_STACK;
	/* the stack has chosen its tuple, whoever had it: there is no other to take */
	if (ct_claim_reply(f, &p->other, f->last_seen, true))
		return -DROP_FLOW_TABLE;
	return ct_write_original(f, &p->other, p->length);
}

static __always_inline int to_pod_handle(struct __sk_buff *skb, struct scratch *s)
{
	struct packet *p = &s->packet;
	struct endpoint_counter *c;
	struct endpoint *ep;
	struct flow *f;
	__u32 id;
	int err;

	if (skb->tc_index == PACKET_DONE) {
		skb->tc_index = 0;
		return ACTION_PASS;
	}
	err = packet_parse(skb, p);
	if (err == -DROP_FRAGMENT)
		return ACTION_PASS;
	if (err)
		return err;
	f = p->icmp_error ? NULL : flows.lookup(&p->tuple);
	if (p->icmp_error) {
		f = ct_copy(&p->inner, &s->draft.flow);
		err = f ? flow_translate_error(skb, p, f) : 0;
		if (err)
			return err;
	} else if (f) {
		/* that another flow took the other half's tuple is for the hook that forwards to say */
		ct_touch(f, s);
		service_count(f, p, false);
		s->verdict.service_id = f->service_id;
		s->verdict.flow_flags = f->flags;
		if (f->flags & FLOW_REPLY) {
			err = flow_translate(skb, p, f);
			if (err)
				return err;
		}
	} else {
		/* a full table costs the bypass, not the packet */
		to_pod_remember(p, &s->draft);
	}
	ep = endpoints.lookup(&p->tuple.dst);
	if (ep) {
		id = ep->id;
		c = endpoint_counters.lookup(&id);
		if (c) {
			c->to_packets++;
			c->to_bytes += p->length;
		}
	}
	return ACTION_PASS;
}

int to_pod(struct __sk_buff *skb)
{
	struct scratch *s = scratch_begin(HOOK_TO_POD);

	return s ? verdict_return(skb, s, HOOK_TO_POD, to_pod_handle(skb, s)) : TC_ACT_SHOT;
}

#endif
