/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Programs that hooks end in (tail calls): what few packets need and what is
 * long. Inlined into each hook, it was most of what the verifier had to walk.
 *
 *	from_pod, from_uplink, from_overlay, to_uplink -> tail_start -> tail_claim
 *	all of these but to_uplink -> tail_answer
 *	all hooks that translate -> tail_sctp
 *
 * What the hook knows of the packet stands in scratch, the hook itself in its
 * verdict. None comes back: each ends with a tc verdict of its own.
 */
#ifndef PODLANE_TAILS_H
#define PODLANE_TAILS_H

#include "forward.h"

/* Without a flow it may not leave under the pod's address, which no one outside knows. */
static __always_inline int tail_pass(enum hook hook)
{
	return hook == HOOK_TO_UPLINK ? -DROP_NO_FLOW : ACTION_PASS;
}

static __always_inline int tail_start_handle(struct __sk_buff *skb, struct scratch *s,
					     enum hook hook)
{
	struct node *n = node_get();
	int err;

	if (!n)
		return -DROP_CONFIG;
	err = flow_start(skb, hook, &s->packet, n, &s->draft);
	if (err)
		return err == ACTION_PASS ? tail_pass(hook) : err;
	return verdict_tail(skb, TAIL_CLAIM);
}

/* The first packet of a flow, or one whose flow is lost. */
int tail_start(struct __sk_buff *skb)
{
	struct scratch *s = scratch_get();
	enum hook hook;

	if (!s)
		return TC_ACT_SHOT;
	hook = s->verdict.hook;
	return verdict_return(skb, s, hook, tail_start_handle(skb, s, hook));
}

static __always_inline int tail_claim_handle(struct __sk_buff *skb, struct scratch *s,
					     enum hook hook)
{
	struct flow *f = &s->draft.flow;
	struct packet *p = &s->packet;
	struct node *n = node_get();
	int err;

	if (!n)
		return -DROP_CONFIG;
	err = flow_claim(skb, p, n, &s->draft);
	if (err)
		return err == ACTION_PASS ? tail_pass(hook) : err;
	if (hook != HOOK_TO_UPLINK)
		return forward_known(skb, s, n, f, false);
	err = flow_translate(skb, p, f);
	return err ? err : ACTION_PASS;
}

/* The same packet, once it is known where its flow goes. */
int tail_claim(struct __sk_buff *skb)
{
	struct scratch *s = scratch_get();
	enum hook hook;

	if (!s)
		return TC_ACT_SHOT;
	hook = s->verdict.hook;
	return verdict_return(skb, s, hook, tail_claim_handle(skb, s, hook));
}

/* A packet that was dropped, and counted, for a reason that its sender is to be told. */
int tail_answer(struct __sk_buff *skb)
{
	struct scratch *s = scratch_get();
	int result;

	if (!s)
		return TC_ACT_SHOT;
	result = verdict_answer(skb, s, s->verdict.hook);
	return verdict_leave(skb, &s->verdict, result < 0 ? ACTION_DROP : result);
}

/* An SCTP packet whose ports were rewritten; all else is done, and its verdict is known. */
int tail_sctp(struct __sk_buff *skb)
{
	struct scratch *s = scratch_get();
	int err;

	if (!s)
		return TC_ACT_SHOT;
	err = sctp_keep_sum(skb, &s->packet);
	s->packet.sctp_change = 0;
	return verdict_return(skb, s, s->verdict.hook, err ? err : (int)s->verdict.action);
}

#endif
