/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The one way out of a hook: turns what the hook decided into a tc verdict,
 * counts drops by reason, answers what is refused, and leaves the decision
 * where a test run can read it.
 */
#ifndef PODLANE_VERDICT_H
#define PODLANE_VERDICT_H

#include <linux/pkt_cls.h>
#include <linux/if_packet.h>
#include "icmp.h"
#include "route.h"

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

/* The address that this node answers with, as the packet's sender knows it. */
static __always_inline const struct addr *verdict_router(struct __sk_buff *skb, enum hook hook)
{
	__u32 zero = 0, ifindex = skb->ifindex;
	struct uplink *up;
	struct node *n;

	if (hook == HOOK_FROM_UPLINK) {
		up = uplinks.lookup(&ifindex);
		return up ? &up->address : NULL;
	}
	n = node.lookup(&zero);
	return n ? &n->router : NULL;
}

/* An answer goes back the way its packet came: into the pod, out of the uplink, through the tunnel. */
static __always_inline int verdict_answer(struct __sk_buff *skb, struct scratch *s, enum hook hook)
{
	const struct addr *router = verdict_router(skb, hook);
	struct route *back;
	struct uplink *up;
	struct node *n;
	__u32 zero = 0, ifindex;
	int err;

	back = route_find(&s->packet.tuple.src);
	/* its client is outside, whom another node's packet came from */
	if (s->packet.direct) {
		if (!back || back->kind != ROUTE_WORLD)
			return -DROP_ANSWERED;
		ifindex = back->ifindex;
		up = uplinks.lookup(&ifindex);
		if (!up)
			return -DROP_ANSWERED;
		err = answer_drop(skb, s, s->verdict.reason, &up->address);
		if (err != ACTION_ANSWER)
			return err;
		s->verdict.ifindex = ifindex;
		skb->tc_index = PACKET_DONE;
		return ACTION_WORLD;
	}
	if (!router)
		return -DROP_ANSWERED;
	err = answer_drop(skb, s, s->verdict.reason, router);
	if (err != ACTION_ANSWER || hook != HOOK_FROM_OVERLAY)
		return err;
	n = node.lookup(&zero);
	if (!n || !back || back->kind != ROUTE_TUNNEL || route_set_tunnel(skb, n, back, n->vni))
		return -DROP_ANSWERED;
	return err;
}

/* Goes on in another program, for good; what is known of the packet stands in scratch. */
static __always_inline int verdict_tail(struct __sk_buff *skb, enum tail place)
{
	tails.call(skb, place);
	return -DROP_TAIL;
}

static __always_inline int verdict_redirect(struct __sk_buff *skb, const struct verdict *v)
{
	struct bpf_redir_neigh hop = {};

	switch (v->action) {
	case ACTION_POD:
		return bpf_redirect_peer(v->ifindex, 0);
	/* what goes straight to the peer skips the host veth's qdisc */
	case ACTION_SHAPED:
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
		/* straight into the pod no device completes a checksum that the packet left open */
		if (v->hook == HOOK_FROM_POD) {
			bpf_skb_change_type(skb, PACKET_HOST);
			return bpf_redirect_peer(v->ifindex, 0);
		}
		skb->tc_index = PACKET_DONE;
		return bpf_redirect(v->ifindex, 0);
	case ACTION_PASS:
		/* not TC_ACT_OK: others' filters still run */
		return TC_ACT_UNSPEC;
	default:
		return TC_ACT_SHOT;
	}
}

/* The packet goes where its verdict says. */
static __always_inline int verdict_leave(struct __sk_buff *skb, struct verdict *v, int action)
{
	struct verdict *last;
	__u32 zero = 0;

	v->action = action;
	if (action == ACTION_ANSWER)
		v->ifindex = skb->ifindex;
	last = verdicts.lookup(&zero);
	if (last)
		*last = *v;
	return verdict_redirect(skb, v);
}

/* result: an enum action, or a negated enum drop. */
static __always_inline int verdict_return(struct __sk_buff *skb, struct scratch *s, enum hook hook,
					  int result)
{
	struct verdict *v = &s->verdict;

	if (result >= 0 && s->packet.sctp_change) {
		v->action = result;
		result = verdict_tail(skb, TAIL_SCTP);
	}
	if (result < 0) {
		v->reason = -result;
		verdict_count(&s->packet, hook, v->reason);
		if ((hook == HOOK_FROM_POD || hook == HOOK_FROM_UPLINK ||
		     hook == HOOK_FROM_OVERLAY) &&
		    answer_is_known(v->reason))
			verdict_tail(skb, TAIL_ANSWER);
		result = ACTION_DROP;
	}
	return verdict_leave(skb, v, result);
}

#endif
