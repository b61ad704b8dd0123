/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The one way out of a hook: turns what the hook decided into a tc verdict,
 * counts drops by reason, answers what is refused, and leaves the decision
 * where a test run can read it.
 */
#ifndef PODLANE_VERDICT_H
#define PODLANE_VERDICT_H

#include <linux/pkt_cls.h>
#include "icmp.h"

/* bcc 0.26 declares this helper without the length of hop */
static long (*redirect_neigh)(__u32 ifindex, struct bpf_redir_neigh *hop, int length,
			      __u64 flags) = (void *)BPF_FUNC_redirect_neigh;

static __always_inline void verdict_count(const struct packet *p, enum hook hook, __u32 reason)
{
	__u32 index = hook * DROP_MAX + reason;
	struct counter *c = drops.lookup(&index);

	if (c) {
		c->packets++;
		c->bytes += p->length;
	}
}

/* Refused actively, where the packet may be answered at all. */
static __always_inline bool verdict_is_refusal(__u32 reason)
{
	return reason >= DROP_NO_BACKEND && reason <= DROP_NO_FLOW;
}

static __always_inline int verdict_redirect(struct __sk_buff *skb, const struct verdict *v)
{
	struct bpf_redir_neigh hop = {};

	switch (v->action) {
	case ACTION_POD:
		return bpf_redirect_peer(v->ifindex, 0);
	case ACTION_TUNNEL:
		return bpf_redirect(v->ifindex, 0);
	case ACTION_NATIVE:
		if (v->hop_family == 4) {
			hop.nh_family = 2; /* AF_INET */
			hop.ipv4_nh = *(__be32 *)v->hop;
		} else {
			hop.nh_family = 10; /* AF_INET6 */
			__builtin_memcpy(hop.ipv6_nh, v->hop, sizeof(v->hop));
		}
		return redirect_neigh(v->ifindex, &hop, sizeof(hop), 0);
	case ACTION_WORLD:
		/* the kernel's own route by this device gives the next hop */
		return redirect_neigh(v->ifindex, 0, 0, 0);
	case ACTION_ANSWER:
		skb->tc_index = PACKET_DONE;
		return bpf_redirect(v->ifindex, 0);
	case ACTION_PASS:
		/* not TC_ACT_OK: others' filters still run */
		return TC_ACT_UNSPEC;
	default:
		return TC_ACT_SHOT;
	}
}

/* result: an enum action, or a negated enum drop. */
static __always_inline int verdict_return(struct __sk_buff *skb, struct scratch *s, enum hook hook,
					  int result)
{
	const struct packet *p = &s->packet;
	struct verdict *v = &s->verdict;
	struct verdict *last;
	__u32 zero = 0;

	v->hook = hook;
	if (result < 0) {
		v->reason = -result;
		verdict_count(p, hook, v->reason);
		result = ACTION_DROP;
		if ((hook == HOOK_FROM_POD || hook == HOOK_FROM_UPLINK) &&
		    verdict_is_refusal(v->reason)) {
			result = answer_refused(skb, s);
			if (result < 0)
				result = ACTION_DROP;
		}
	}
	v->action = result;
	if (result == ACTION_ANSWER)
		v->ifindex = skb->ifindex;
	last = verdicts.lookup(&zero);
	if (last)
		*last = *v;
	return verdict_redirect(skb, v);
}

#endif
