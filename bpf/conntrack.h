/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Flows: two entries each, keyed by the tuple of either direction as it
 * arrives at us, each holding the whole flow. An entry found is therefore
 * enough to rewrite a packet, and either can be put back from the other.
 */
#ifndef PODLANE_CONNTRACK_H
#define PODLANE_CONNTRACK_H

#include "packet.h"

/* How often a packet looks after the other half of its flow: about every tenth of a second. */
#define CHECK_SHIFT 20
#define CHECK_TICKS 100

static __always_inline void ct_original_key(const struct flow *f, struct flow_key *key)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->src = f->client;
	key->dst = f->frontend;
	key->sport = f->client_port;
	key->dport = f->frontend_port;
	key->protocol = f->protocol;
}

static __always_inline void ct_reply_key(const struct flow *f, struct flow_key *key)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->src = f->backend;
	key->dst = f->source;
	key->sport = f->backend_port;
	key->dport = f->source_port;
	key->protocol = f->protocol;
}

static __always_inline bool ct_is_closed(const struct flow *f)
{
	__u8 both = FLOW_FIN_CLIENT | FLOW_FIN_BACKEND;

	return f->state & FLOW_RESET || (f->state & both) == both;
}

/*
 * Whether the backend may still hold the tuple in TIME_WAIT (RFC 9293 3.6.1):
 * a SYN of another client would be refused there.
 */
static __always_inline bool ct_is_lingering(const struct flow *f)
{
	return f->state & FLOW_BACKEND_FIRST && !(f->state & FLOW_RESET);
}

/* Seconds that a flow may be silent. */
static __always_inline __u64 ct_lifetime(const struct flow *f)
{
	if (f->protocol == IPPROTO_TCP) {
		if (ct_is_closed(f))
			return ct_is_lingering(f) ? LIFETIME_TCP_TIME_WAIT : LIFETIME_TCP_CLOSING;
		return f->state & FLOW_SEEN_REPLY ? LIFETIME_TCP_ESTABLISHED : LIFETIME_TCP_SYN;
	}
	if (f->protocol == IPPROTO_UDP)
		return f->state & FLOW_SEEN_REPLY && f->state & FLOW_LASTING ? LIFETIME_UDP_STREAM
									     : LIFETIME_UDP_SINGLE;
	if (f->protocol == IPPROTO_SCTP && ct_is_closed(f))
		return LIFETIME_TCP_CLOSING;
	if (f->protocol == IPPROTO_SCTP && f->state & FLOW_SEEN_REPLY)
		return LIFETIME_SCTP;
	return LIFETIME_OTHER;
}

/* Another CPU may have seen the flow later than now. */
static __always_inline bool ct_is_dead(const struct flow *f, __u64 now)
{
	return now > f->last_seen + ct_lifetime(f) * NSEC;
}

/* Same client and frontend: two entries of one flow. */
static __always_inline bool ct_same_original(const struct flow *a, const struct flow *b)
{
	return ((a->client_port ^ b->client_port) | (a->frontend_port ^ b->frontend_port) |
		addr_difference(&a->client, &b->client) |
		addr_difference(&a->frontend, &b->frontend)) == 0;
}

/* Both halves must know that a side closed; rare, so a second lookup is paid here. */
static __always_inline void ct_set_state(struct flow *f, struct flow_key *other, __u8 bits)
{
	struct flow *half;

	f->state |= bits;
	if (f->flags & FLOW_REPLY)
		ct_original_key(f, other);
	else
		ct_reply_key(f, other);
	half = flows.lookup(other);
	if (half && ct_same_original(half, f))
		half->state |= bits;
}

/* A pod's flow that closed no longer counts against its bound. */
static __always_inline void ct_release_budget(struct flow *f, struct flow_key *key)
{
	struct flow_budget *budget;
	struct endpoint *ep;
	__u32 id;

	key->src = f->client;
	ep = endpoints.lookup(&key->src);
	if (!ep || f->flags & FLOW_VIA_STACK)
		return;
	id = ep->id;
	budget = endpoint_flows.lookup(&id);
	if (budget && budget->live)
		__sync_fetch_and_add(&budget->live, -1);
}

/*
 * Closed flows rest in the table, for their last packets. How many may is
 * bounded, so that who opens and closes flows as fast as it can pushes none
 * that rests alive out of the table: one that closes takes the place of the one
 * that did longest ago, and that one goes.
 */
static __always_inline void ct_rest(struct flow *f, struct scratch *s)
{
	struct flow_key *place, *key = &s->closed, *other = &s->packet.other;
	__u32 zero = 0, index;
	struct node *n = node.lookup(&zero);
	__u64 *count = closed_count.lookup(&zero);
	struct flow *old, *half;

	if (!n || !n->closed_flows || !count)
		return;
	__sync_fetch_and_add(count, 1);
	index = *count % n->closed_flows;
	place = closed_flows.lookup(&index);
	if (!place)
		return;
	/* two CPUs may have come to one place: a torn tuple is no flow's, and one is left to the sweep */
	*key = *place;
	ct_original_key(f, place);
	old = flows.lookup(key);
	if (!old || ct_same_original(old, f) || !ct_is_closed(old))
		return;
	ct_reply_key(old, other);
	half = flows.lookup(other);
	if (half && ct_same_original(half, old))
		flows.delete(other);
	flows.delete(key);
}

/*
 * Sees that the other half of f stands, and puts it back if the kernel evicted
 * it. Looking it up also keeps it from being the next to be evicted. If
 * another flow has taken its tuple, this one can't go on.
 */
static __always_inline int ct_keep_other(struct flow *f, struct scratch *s)
{
	struct flow_key *key = &s->packet.other;
	struct flow *half, *copy = &s->draft.flow;

	if (f->flags & FLOW_REPLY)
		ct_original_key(f, key);
	else
		ct_reply_key(f, key);
	half = flows.lookup(key);
	if (!half) {
		*copy = *f;
		/* evicted itself meanwhile, its memory may be another flow's */
		if (flows.lookup(&s->packet.tuple) != f)
			return 0;
		copy->flags ^= FLOW_REPLY;
		copy->packets = 0;
		copy->bytes = 0;
		/* refused if another CPU was faster, or a new flow has it: seen next time */
		flows.insert(key, copy);
		return 0;
	}
	if (!ct_same_original(half, f))
		return -DROP_NO_FLOW;
	/* used in one direction only, a flow is alive as a whole, and its other tuple is not free */
	if (f->last_seen > half->last_seen + NSEC)
		half->last_seen = f->last_seen;
	half->state |= f->state;
	return 0;
}

/*
 * Accounts a packet to its flow. Two CPUs may carry one flow, so counts are
 * close, not exact; service counters are exact.
 */
static __always_inline int ct_touch(struct flow *f, struct scratch *s)
{
	struct packet *p = &s->packet;
	bool reply = f->flags & FLOW_REPLY;
	__u64 now = bpf_ktime_get_ns();
	__u32 tick = now >> CHECK_SHIFT;
	__u8 bits = 0;

	f->last_seen = now;
	f->packets++;
	f->bytes += p->length;
	/* who opens flows and ignores the answers must not have them kept as established ones are */
	if (reply)
		bits |= f->protocol == IPPROTO_TCP ? FLOW_SYN_ANSWERED : FLOW_SEEN_REPLY;
	else if (packet_goes_on(p) && f->state & FLOW_SYN_ANSWERED)
		bits |= FLOW_SEEN_REPLY;
	if (p->tcp_flags & TCP_FLAG_FIN_BYTE) {
		bits |= reply ? FLOW_FIN_BACKEND : FLOW_FIN_CLIENT;
		if (reply && !(f->state & FLOW_FIN_CLIENT))
			bits |= FLOW_BACKEND_FIRST;
	}
	if (p->tcp_flags & TCP_FLAG_RST_BYTE)
		bits |= FLOW_RESET;
	/* the replies go past us: whoever goes on was answered, who closes will get the other's end */
	if (f->flags & FLOW_DIRECT && !packet_opens(p)) {
		bits |= FLOW_SEEN_REPLY;
		if (bits & FLOW_FIN_CLIENT)
			bits |= FLOW_FIN_BACKEND;
	}
	if ((f->state & bits) != bits) {
		bool closed = ct_is_closed(f);

		ct_set_state(f, &p->other, bits);
		if (!closed && ct_is_closed(f)) {
			ct_release_budget(f, &p->other);
			ct_rest(f, s);
		}
	}
	if (tick - f->checked < CHECK_TICKS)
		return 0;
	f->checked = tick;
	if (f->protocol == IPPROTO_UDP)
		f->state |= FLOW_LASTING;
	/* it has no other half */
	if (f->flags & FLOW_DIRECT)
		return 0;
	return ct_keep_other(f, s);
}

/*
 * f is the original half, made again for a packet of the client: it is as far as
 * the reply half at key, which must not miss that the client went on.
 */
static __always_inline void ct_revive(struct flow *f, const struct flow_key *key,
				      const struct packet *p)
{
	struct flow *half = flows.lookup(key);

	if (!half || !ct_same_original(half, f))
		return;
	if (packet_goes_on(p) && half->state & FLOW_SYN_ANSWERED)
		half->state |= FLOW_SEEN_REPLY;
	f->state = half->state;
}

/*
 * A flow as it stands, NULL if there is none. The kernel gives an evicted entry's
 * memory away at once: what is still found after it was read is whole, and its own.
 */
static __always_inline struct flow *ct_copy(const struct flow_key *key, struct flow *copy)
{
	struct flow *f = flows.lookup(key);

	if (!f)
		return NULL;
	*copy = *f;
	return flows.lookup(key) == f ? copy : NULL;
}

/* A flow as its first packet shows it, untranslated. */
static __always_inline void ct_draft(struct flow_draft *draft, const struct packet *p, __u64 now)
{
	struct flow *f = &draft->flow;

	__builtin_memset(draft, 0, sizeof(*draft));
	f->version = FLOW_VERSION;
	f->protocol = p->tuple.protocol;
	f->client = f->source = p->tuple.src;
	f->frontend = f->backend = p->tuple.dst;
	f->client_port = f->source_port = p->tuple.sport;
	f->frontend_port = f->backend_port = p->tuple.dport;
	f->last_seen = now;
	f->checked = now >> CHECK_SHIFT;
}

/*
 * Whether another flow may have this one's reply tuple: it is closed, and, if
 * the backend may hold the tuple in TIME_WAIT, the other one is in a hurry; or
 * it has been silent for longer than any flow of its protocol may be that was
 * answered, or TCP that is not established. (The rest of its state is for the
 * sweep: a turn of the search must stay short.)
 */
static __always_inline bool ct_gives_up(const struct flow *taken, __u64 now, bool hurry)
{
	bool established = taken->state & FLOW_SEEN_REPLY;
	__u64 longest = LIFETIME_UDP_STREAM;

	if (taken->protocol == IPPROTO_TCP)
		longest = established ? LIFETIME_TCP_ESTABLISHED : LIFETIME_TCP_SYN;
	if (ct_is_closed(taken))
		return hurry || !ct_is_lingering(taken);
	return now > taken->last_seen + longest * NSEC;
}

/*
 * Claims the reply tuple of f. 0: it is ours now (or was already); 1: another
 * flow has it, and is alive or, unless this one is in a hurry, its backend may
 * hold the tuple in TIME_WAIT: another source port is needed.
 *
 * What was written is looked up at once. In a full table of type LRU an entry
 * that nobody has looked up since is the first to be evicted, not the last,
 * when the CPU next needs a free one; which may be for the other half.
 */
static __always_inline int ct_claim_reply(struct flow *f, struct flow_key *key, __u64 now,
					  bool hurry)
{
	struct flow *taken;

	ct_reply_key(f, key);
	f->flags |= FLOW_REPLY;
	if (!flows.insert(key, f)) {
		flows.lookup(key);
		return 0;
	}
	taken = flows.lookup(key);
	if (taken && !ct_same_original(taken, f) && !ct_gives_up(taken, now, hurry) &&
	    !ct_is_dead(taken, now))
		return 1;
	return flows.update(key, f) ? -DROP_FLOW_TABLE : 0;
}

/* Writes the original half; the reply half is claimed before, so no reply goes astray. */
static __always_inline int ct_write_original(struct flow *f, struct flow_key *key, __u32 length)
{
	ct_original_key(f, key);
	f->flags &= ~FLOW_REPLY;
	f->packets = 1;
	f->bytes = length;
	if (flows.update(key, f))
		return -DROP_FLOW_TABLE;
	flows.lookup(key);
	return 0;
}

#endif
