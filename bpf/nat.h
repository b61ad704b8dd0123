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

/*
 * Whether a socket of the node would get the replies of this flow. Each kind
 * of socket is let go by itself, which halves what the verifier has to follow.
 */
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
	if (f->protocol == IPPROTO_TCP) {
		sk = bpf_skc_lookup_tcp(skb, &tuple, size, BPF_F_CURRENT_NETNS, 0);
		if (!sk)
			return false;
		bpf_sk_release(sk);
		return true;
	}
	if (f->protocol == IPPROTO_UDP) {
		sk = bpf_sk_lookup_udp(skb, &tuple, size, BPF_F_CURRENT_NETNS, 0);
		if (!sk)
			return false;
		bpf_sk_release(sk);
		return true;
	}
	return false;
}

static __always_inline void nat_count_exhausted(const struct flow *f)
{
	struct exhausted_key key = {};
	struct counter one = {.packets = 1}, *c;

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
#define HURRY_FROM (MASQUERADE_TRIES - MASQUERADE_TRIES / 4)

/* One port of the tuple's order into the draft, and into key; an echo has one at both ends. */
static __always_inline void nat_set_port(struct flow_draft *draft, struct flow_key *key,
					 __be16 port)
{
	struct flow *f = &draft->flow;

	f->source_port = port;
	/* volatile: else the search below would end in reading it again, and fall into its head */
	if (*(volatile __u8 *)&f->protocol == PROTOCOL_ICMP)
		f->backend_port = port;
	key->sport = f->backend_port;
	key->dport = port;
}

/*
 * Looks for a source port in the order that the original tuple fixes: the one
 * under which this flow's reply half stands, else the first two that are free.
 * revive is then REVIVE_ONLY if that half goes on; if the flow opens anew, or
 * has closed, the half knows of an end that was another's, and is claimed anew.
 * The loop only looks into the flow table, so that the verifier's walk of it
 * stays short; draft->port[] has what it found, 0 for none.
 */
static __always_inline void nat_find_ports(struct flow_draft *draft, struct flow_key *key,
					   const struct node *n, __u32 hash, __u64 now)
{
	__u32 range = (__u32)n->masquerade_max - n->masquerade_min + 1;
	struct flow *f = &draft->flow, *taken;

	ct_reply_key(f, key);
	if (!range)
		return;
#pragma clang loop unroll(disable)
	for (int i = 0; i < MASQUERADE_TRIES;) {
		bool hurry = i >= HURRY_FROM;

		nat_set_port(draft, key, bpf_htons(n->masquerade_min + (hash + i) % range));
		/* Linux 6.1 refuses a loop whose end falls into its head, so the test comes last */
		i++;
		asm volatile("" : "+r"(i));
		taken = flows.lookup(key);
		if (taken && ct_same_original(taken, f)) {
			draft->port[0] = f->source_port;
			if (draft->revive == REVIVE_FIRST && !ct_is_closed(taken))
				draft->revive = REVIVE_ONLY;
			return;
		}
		if (draft->revive != REVIVE_ONLY && !draft->port[1] &&
		    (!taken || ct_gives_up(taken, now, hurry)))
			draft->port[draft->port[0] != 0] = f->source_port;
		if (draft->port[1] && draft->revive == REVIVE_NO)
			return;
	}
}

/*
 * The first found port that no socket of the node has. Sockets get ports of
 * this range only by asking for one, so two candidates are enough.
 */
static __always_inline bool nat_take_port(struct __sk_buff *skb, struct flow_draft *draft,
					  struct flow_key *key)
{
	bool ours = draft->revive == REVIVE_ONLY || !draft->masquerade;

	if (!draft->port[0])
		return false;
	nat_set_port(draft, key, draft->port[0]);
	if (ours || !nat_socket_has(skb, &draft->flow))
		return true;
	nat_set_port(draft, key, draft->port[1]);
	return draft->port[1] && !nat_socket_has(skb, &draft->flow);
}

/*
 * Gives a flow a source port under which no other flow to the same backend is
 * known, and claims the reply tuple. Its source address is set by the caller.
 * A flow that is not masqueraded keeps its own port unless another flow has it,
 * be it in TIME_WAIT: the backend tells a new connection from an old segment by
 * the client's timestamps (RFC 6191), and those that a client sends to one
 * frontend don't go on from those that it sent to another. A mid-flow packet
 * (REVIVE_ONLY) claims nothing: the port is found under which its flow's reply
 * half still stands, or -DROP_NO_FLOW.
 */
static __always_inline int nat_claim_source(struct __sk_buff *skb, struct flow_draft *draft,
					    struct packet *p, const struct node *n, __u64 now)
{
	struct flow_key *key = &p->other;
	struct flow *f = &draft->flow, *half;
	int err;

	if (!draft->masquerade || !p->has_ports) {
		if (draft->revive == REVIVE_ONLY) {
			ct_reply_key(f, key);
			half = flows.lookup(key);
			if (half && ct_same_original(half, f))
				return 0;
		} else {
			/* without ports there is no other to take */
			err = ct_claim_reply(f, key, now, !p->has_ports);
			if (err <= 0)
				return err;
		}
	}
	if (p->has_ports)
		nat_find_ports(draft, key, n, flow_hash(&p->tuple, n->hash_seed), now);
	if (draft->revive == REVIVE_ONLY && !draft->port[0])
		return -DROP_NO_FLOW;
	if (!nat_take_port(skb, draft, key)) {
		nat_count_exhausted(f);
		return -DROP_PORTS_EXHAUSTED;
	}
	f->flags |= FLOW_NAT_SRC;
	if (draft->revive == REVIVE_ONLY)
		return 0;
	/* taken in the meantime by another CPU: the packet's sender tries again */
	return ct_claim_reply(f, key, now, true) ? -DROP_FLOW_TABLE : 0;
}

#endif
