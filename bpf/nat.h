/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Source ports: which one a translated flow is seen under.
 *
 * The order of tries is fixed by the original tuple, so a packet whose
 * original half was evicted walks the same ports and finds its reply half.
 */
#ifndef PODLANE_NAT_H
#define PODLANE_NAT_H

#include "service.h"

/* Whether a socket of the node would get the replies of this flow. */
static __always_inline bool nat_socket_has(struct __sk_buff *skb, const struct flow *f)
{
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *sk;
	int size;

	if (FAMILY == 4) {
		tuple.ipv4.saddr = f->backend.word[0];
		tuple.ipv4.daddr = f->source.word[0];
		tuple.ipv4.sport = f->backend_port;
		tuple.ipv4.dport = f->source_port;
		size = sizeof(tuple.ipv4);
	} else {
		__builtin_memcpy(tuple.ipv6.saddr, &f->backend, sizeof(struct addr));
		__builtin_memcpy(tuple.ipv6.daddr, &f->source, sizeof(struct addr));
		tuple.ipv6.sport = f->backend_port;
		tuple.ipv6.dport = f->source_port;
		size = sizeof(tuple.ipv6);
	}
	if (f->protocol == IPPROTO_TCP)
		sk = bpf_skc_lookup_tcp(skb, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	else if (f->protocol == IPPROTO_UDP)
		sk = bpf_sk_lookup_udp(skb, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	else
		return false;
	if (!sk)
		return false;
	bpf_sk_release(sk);
	return true;
}

static __always_inline void nat_count_exhausted(const struct flow *f)
{
	struct exhausted_key key = {};
	struct counter one = { .packets = 1 }, *c;

	key.address = f->backend;
	key.port = f->backend_port;
	key.protocol = f->protocol;
	c = exhausted.lookup(&key);
	if (c)
		__sync_fetch_and_add(&c->packets, 1);
	else
		exhausted.insert(&key, &one);
}

/* The last quarter of the tries takes ports that a backend may hold in TIME_WAIT. */
#define HURRY_FROM (2 * MASQUERADE_TRIES - MASQUERADE_TRIES / 4)

/* Tries the draft's source port. 0: the reply tuple is ours; 1: taken; else -DROP_x. */
static __always_inline int nat_try(struct flow_draft *draft, struct flow_key *key, __u64 now,
				   bool hurry)
{
	struct flow *half;

	if (draft->revive == REVIVE_NO)
		return ct_claim_reply(&draft->flow, key, now, hurry);
	ct_reply_key(&draft->flow, key);
	half = flows.lookup(key);
	return half && ct_same_original(half, &draft->flow) ? 0 : 1;
}

/*
 * Gives a flow a source port under which no other flow to the same backend is
 * known, and claims the reply tuple. Its source address is set by the caller;
 * a flow that is not masqueraded keeps its own port unless another flow has
 * it. With revive nothing is claimed: the port is found under which this
 * flow's reply half still stands, or -DROP_NO_FLOW.
 */
static __always_inline int nat_claim_source(struct __sk_buff *skb, struct flow_draft *draft,
					    struct packet *p, const struct node *n, __u64 now)
{
	__u32 range = (__u32)n->masquerade_max - n->masquerade_min + 1;
	__u32 hash = flow_hash(&p->tuple, n->hash_seed);
	struct flow *f = &draft->flow;
	int err = 1;

	if (!draft->masquerade || !p->has_ports) {
		/* claiming finds an old reply half by itself */
		if (draft->revive == REVIVE_FIRST)
			draft->revive = REVIVE_NO;
		err = nat_try(draft, &p->other, now, true);
		if (err <= 0)
			return err;
	}
	if (p->has_ports && range) {
		f->flags |= FLOW_NAT_SRC;
#pragma clang loop unroll(disable)
		for (int i = 0; i < 2 * MASQUERADE_TRIES; i++) {
			/* the first round looks for the port that the flow had, the second takes one */
			if (i == MASQUERADE_TRIES && draft->revive == REVIVE_FIRST)
				draft->revive = REVIVE_NO;
			if (i < MASQUERADE_TRIES == (draft->revive == REVIVE_NO))
				continue;
			f->source_port = bpf_htons(n->masquerade_min +
						   (hash + i % MASQUERADE_TRIES) % range);
			/* both ends of an echo carry the same identifier */
			if (packet_is_echo(p))
				f->backend_port = f->source_port;
			if (draft->masquerade && draft->revive == REVIVE_NO && nat_socket_has(skb, f))
				continue;
			err = nat_try(draft, &p->other, now, i >= HURRY_FROM);
			if (err <= 0)
				return err;
		}
	}
	if (draft->revive)
		return -DROP_NO_FLOW;
	nat_count_exhausted(f);
	return -DROP_PORTS_EXHAUSTED;
}

#endif
