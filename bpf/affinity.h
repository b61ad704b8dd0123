/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Session affinity: which backend a client's new flows to a Service port go
 * to, whichever of the port's addresses they ask for.
 *
 * A memory counts only while it names the very backend that it was made for
 * (its generation) and while that one stands in the set that the packet's
 * traffic policy chooses from; so a backend that is gone, not ready or not
 * local is left at once, and a Service made again inherits nothing. As with
 * kube-proxy, only new flows make a memory younger.
 */
#ifndef PODLANE_AFFINITY_H
#define PODLANE_AFFINITY_H

#include "conntrack.h"

/*
 * The id of the backend that this client is remembered at; 0: none. A mid-flow
 * segment asks who had its flow: how long the client opened no other does not
 * matter then, nor whether others may still choose that backend.
 */
static __always_inline __u32 affinity_find(const struct affinity_key *who,
					   const struct service *svc, bool local, bool mid_flow)
{
	struct affinity *memory = affinity.lookup(who);
	__u64 now = bpf_ktime_get_ns();
	struct backend *b;
	__u32 id;

	if (!memory)
		return 0;
	id = memory->backend_id;
	b = backends.lookup(&id);
	/* evicted meanwhile, its memory may be another client's: of this Service, that one's will do */
	if (!b || b->generation != memory->generation || b->service_id != who->service_id)
		return 0;
	if (mid_flow)
		return id;
	/* another CPU may have used it later than now */
	if (!(b->flags & (local ? BACKEND_IN_LOCAL : BACKEND_IN_CLUSTER)) ||
	    now > memory->last_used + svc->affinity_seconds * NSEC)
		return 0;
	memory->last_used = now;
	return id;
}

/* Remembers where the client was sent; a full table forgets those who came longest ago. */
static __always_inline void affinity_keep(struct recall *recall, __u32 backend_id,
					  const struct backend *b)
{
	struct affinity *memory = &recall->memory;

	__builtin_memset(memory, 0, sizeof(*memory));
	memory->generation = b->generation;
	memory->last_used = bpf_ktime_get_ns();
	memory->backend_id = backend_id;
	memory->version = AFFINITY_VERSION;
	affinity.update(&recall->who, memory);
}

#endif
