/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Services: from a packet's destination to one backend.
 *
 * frontend -> service -> [the client's memory, with affinity] -> backend
 *                     -> backend set (one u64, read once) -> slot -> backend
 */
#ifndef PODLANE_SERVICE_H
#define PODLANE_SERVICE_H

#include "affinity.h"
#include "route.h"

static __always_inline __u32 flow_hash(const struct flow_key *key, __u32 seed)
{
	const __u32 *word = (const __u32 *)key;
	__u64 h = seed;

	/* multiply and fold: every bit of the tuple reaches the upper half, which chooses */
	for (int i = 0; i < sizeof(*key) / sizeof(__u32); i++) {
		h = (h ^ word[i]) * 0x9e3779b97f4a7c15ULL;
		h ^= h >> 32;
	}
	return h;
}

static __always_inline struct frontend *service_lookup(const struct packet *p)
{
	struct frontend_key key = {};

	if (!p->has_ports || packet_is_echo(p))
		return NULL;
	key.address = p->tuple.dst;
	key.port = p->tuple.dport;
	key.protocol = p->tuple.protocol;
	return frontends.lookup(&key);
}

/*
 * What a client asked another node for. A NodePort's number is the same on all
 * nodes, its address is not.
 */
static __always_inline struct frontend *service_lookup_direct(const struct packet *p,
							      const struct node *n)
{
	struct frontend *fe = service_lookup(p);
	struct frontend_key key = {};

	if (fe || !p->has_ports || packet_is_echo(p))
		return fe;
	key.address = n->primary;
	key.port = p->tuple.dport;
	key.protocol = p->tuple.protocol;
	fe = frontends.lookup(&key);
	return fe && fe->kind == FRONTEND_NODE_PORT ? fe : NULL;
}

/* Whether the address is a Service's, whatever the port. */
static __always_inline bool service_has_address(const struct addr *address)
{
	struct frontend_key key = {};

	key.address = *address;
	return frontends.lookup(&key) != NULL;
}

/* Where nodes route to each other's pods, a pod of another node is no outside sender. */
static __always_inline bool service_sender_is_pod(const struct addr *source)
{
	struct route *from = route_find(source);

	return from && from->kind == ROUTE_NATIVE;
}

/*
 * Which traffic policy binds this packet. internalTrafficPolicy Local binds
 * the ClusterIP for every sender; externalTrafficPolicy Local binds outside
 * senders only, pods and nodes take the short cut to all endpoints.
 */
static __always_inline bool service_uses_local(const struct service *svc, const struct frontend *fe,
					       const struct addr *source, bool from_uplink)
{
	if (fe->kind == FRONTEND_CLUSTER_IP)
		return svc->flags & SERVICE_INTERNAL_LOCAL;
	if (fe->kind == FRONTEND_HOST_PORT || !from_uplink)
		return false;
	return svc->flags & SERVICE_EXTERNAL_LOCAL && !service_sender_is_pod(source);
}

static __always_inline __u32 set_count(__u64 set)
{
	return set >> SET_EPOCH_BITS & ((1U << SET_COUNT_BITS) - 1);
}

/*
 * loadBalancerSourceRanges: they guard load-balancer addresses, from everybody.
 * A Service without endpoints refuses all alike, as kube-proxy's iptables do.
 * key: room for one.
 */
static __always_inline int service_check_source(const struct service *svc,
						const struct frontend *fe,
						const struct addr *source, struct source_key *key)
{
	if (fe->kind != FRONTEND_LOAD_BALANCER || !(svc->flags & SERVICE_SOURCE_RANGES))
		return 0;
	key->prefix = (sizeof(key->list) + sizeof(key->address)) * 8;
	key->list = fe->service_id << 1 | !!(svc->flags & SERVICE_RANGES_ODD);
	key->address = *source;
	if (source_ranges.lookup(key))
		return 0;
	return set_count(*(volatile __u64 *)&svc->cluster) ? -DROP_SOURCE_RANGE : -DROP_NO_BACKEND;
}

/*
 * Chooses a backend for a new flow of recall->who; without affinity the same
 * tuple chooses the same while the set is the same. 0: *backend is it and
 * *backend_id its id. mid_flow: the flow is not new, its record was lost.
 */
static __always_inline int service_select_backend(struct recall *recall, const struct service *svc,
						  bool local, bool mid_flow,
						  const struct flow_key *tuple, __u32 seed,
						  __u32 *backend_id, struct backend **backend)
{
	__u64 set = local ? *(volatile __u64 *)&svc->local : *(volatile __u64 *)&svc->cluster;
	__u32 count = set_count(set);
	__u32 base = set >> (SET_EPOCH_BITS + SET_COUNT_BITS);
	bool has_affinity = svc->flags & SERVICE_AFFINITY;
	__u32 known = 0;
	struct slot *slot;
	__u32 index;

	if (!count) {
		__u64 cluster = *(volatile __u64 *)&svc->cluster;

		if (local && set_count(cluster))
			return -DROP_NO_LOCAL_BACKEND;
		return -DROP_NO_BACKEND;
	}
	if (has_affinity)
		known = affinity_find(&recall->who, svc, local, mid_flow);
	*backend_id = known;
	if (!known) {
		index = base + (__u32)((__u64)flow_hash(tuple, seed) * count >> 32);
		slot = slots.lookup(&index);
		if (!slot || slot->epoch != (set & ((1U << SET_EPOCH_BITS) - 1)))
			return -DROP_BACKEND_SET;
		*backend_id = slot->backend_id;
	}
	*backend = backends.lookup(backend_id);
	if (!*backend || !(*backend)->flags)
		return -DROP_BACKEND_SET;
	if (has_affinity && !known && !mid_flow)
		affinity_keep(recall, *backend_id, *backend);
	return 0;
}

/*
 * Whether an established flow may still use its backend. A TCP or SCTP flow stays
 * while the backend is listed at all (unready, draining); UDP only while it
 * serves. An id that went to another backend has another generation.
 */
static __always_inline bool service_backend_holds(const struct flow *f)
{
	__u32 id = f->backend_id;
	struct backend *b;

	if (!id)
		return true;
	b = backends.lookup(&id);
	if (!b || b->generation != f->generation)
		return false;
	return b->flags & (f->protocol == IPPROTO_UDP ? BACKEND_SERVING : BACKEND_LISTED);
}

static __always_inline void service_count(const struct flow *f, const struct packet *p, bool new)
{
	__u32 service = f->service_id, backend = f->backend_id;
	struct service_counter *c;

	if (!service)
		return;
	c = service_counters.lookup(&service);
	if (c) {
		c->flows += new;
		c->packets++;
		c->bytes += p->length;
	}
	c = backend_counters.lookup(&backend);
	if (c) {
		if (new)
			__sync_fetch_and_add(&c->flows, 1);
		__sync_fetch_and_add(&c->packets, 1);
		__sync_fetch_and_add(&c->bytes, (__u64)p->length);
	}
}

#endif
