/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Every map: who writes it, who reads it, how long an entry lives. Sizes here
 * are only what a compile makes for itself; the loader makes each map at the
 * size that the node's config gives (mapSizes), under this name.
 *
 * FAMILY_MAP: one a family, pinned as NAME_4 and NAME_6.
 * SHARED_MAP: one a node, pinned as NAME; both families' programs use it.
 */
#ifndef PODLANE_MAPS_H
#define PODLANE_MAPS_H

#include "scratch.h"

#define FAMILY_MAP(type, key, value, name, size, flags) \
	BPF_F_TABLE(type, key, value, name, size, flags)
#define SHARED_MAP(type, key, value, name, size, flags) \
	BPF_F_TABLE(type, key, value, name, size, flags)

/* Agent writes at start and on change of the node; programs read; lives as long as the node. */
FAMILY_MAP("array", __u32, struct node, node, 1, 0);

/* By ifindex. Agent writes; from_uplink, to_uplink and masquerade read; lives as long as the device. */
FAMILY_MAP("hash", __u32, struct uplink, uplinks, 16, BPF_F_NO_PREALLOC);

/* By address: pods of this node. Agent writes with the pod's wiring; all hooks read. */
FAMILY_MAP("hash", struct addr, struct endpoint, endpoints, 1024, BPF_F_NO_PREALLOC);

/* Agent writes from Nodes, config and the kernel's routes; all hooks read. */
FAMILY_MAP("lpm_trie", struct route_key, struct route, routes, 1024, BPF_F_NO_PREALLOC);

/* By tunnel source. Agent writes from Nodes; from_overlay reads. */
SHARED_MAP("hash", struct peer_key, struct peer, peers, 1024, BPF_F_NO_PREALLOC);

/*
 * By the tunnel's other end, over IPv6 alone: routers on the way fragment IPv4. from_uplink writes
 * what a router says, all that encapsulate read; the kernel evicts, and what is still true is said again.
 */
SHARED_MAP("lru_hash", struct peer_key, struct path_mtu, path_mtus, 1024, 0);

/* Agent writes; from_pod, from_uplink read. An entry is written after the service that it points to. */
FAMILY_MAP("hash", struct frontend_key, struct frontend, frontends, 1024, BPF_F_NO_PREALLOC);

/* By list and source: longest prefix first. Agent writes a list that does not count; from_pod, from_uplink read. */
FAMILY_MAP("lpm_trie", struct source_key, struct source, source_ranges, 1024, BPF_F_NO_PREALLOC);

/* By service id. Agent writes, slots first; mapped into it, so that a set changes by one store. */
SHARED_MAP("array", __u32, struct service, services, 1024, BPF_F_MMAPABLE);

/* By place. Agent writes places that no set covers; a freed range rests before reuse. */
SHARED_MAP("array", __u32, struct slot, slots, 1024, 0);

/* By backend id. Agent writes; read on every packet of a Service flow for its generation. */
FAMILY_MAP("array", __u32, struct backend, backends, 1024, 0);

/* Programs write, only for Services with session affinity; the kernel evicts who came longest ago. */
FAMILY_MAP("lru_hash", struct affinity_key, struct affinity, affinity, 1024, 0);

/* Programs write both halves of a flow; the agent's sweep deletes both; the kernel may evict either. */
FAMILY_MAP("lru_hash", struct flow_key, struct flow, flows, 1024, 0);

/* A ring of closed flows, by their original tuples. Programs write, over the one that closed longest ago. */
FAMILY_MAP("array", __u32, struct flow_key, closed_flows, 1024, 0);

/* Flows that have closed: the ring's head. Programs only. */
FAMILY_MAP("array", __u32, __u64, closed_count, 1, 0);

/* By socket cookie: connected sockets of the node. Programs write, and delete at the socket's end. */
FAMILY_MAP("lru_hash", __u64, struct socket_flow, sockets, 1024, 0);

/* What sockets that are not connected send to, both sides. Programs write; the kernel evicts. */
FAMILY_MAP("lru_hash", struct socket_key, struct socket_flow, datagrams, 1024, 0);

/* Programs write at a first fragment, read at later ones; the kernel evicts. */
FAMILY_MAP("lru_hash", struct fragment_key, struct fragment, fragments, 1024, 0);

/* By hook * DROP_MAX + reason. Programs add; nobody clears. */
FAMILY_MAP("percpu_array", __u32, struct counter, drops, HOOK_MAX *DROP_MAX, 0);

/* By endpoint id. Programs add, the agent's sweep writes what is true. */
SHARED_MAP("array", __u32, struct flow_budget, endpoint_flows, 1024, 0);

/* Agent writes after each sweep; read where a pod has used up its budget. */
SHARED_MAP("array", __u32, struct sweep, sweep, 1, 0);

/* By destination: masquerade ports that were all taken. Programs add; the kernel evicts. */
FAMILY_MAP("lru_hash", struct exhausted_key, struct counter, exhausted, 1024, 0);

/* Answers of this CPU in the running second, by endpoint id modulo its size; 0: to whom is no pod here. Programs only. */
FAMILY_MAP("percpu_array", __u32, struct answer_budget, answer_budget, ANSWER_SHARES, 0);

/* By service id. Programs add; the agent clears when it gives the id to a new Service. */
SHARED_MAP("percpu_array", __u32, struct service_counter, service_counters, 1024, 0);

/* By backend id; one a node rather than one a CPU, since there are many. Programs add atomically. */
FAMILY_MAP("array", __u32, struct service_counter, backend_counters, 1024, 0);

/* By endpoint id. Programs add; the agent clears when it gives the id to a new pod. */
SHARED_MAP("percpu_array", __u32, struct endpoint_counter, endpoint_counters, 1024, 0);

/* Agent writes; CLI reads, also when the agent is dead. */
SHARED_MAP("hash", struct name_key, struct name, names, 1024, BPF_F_NO_PREALLOC);

/* The packet in hand. Programs only. */
FAMILY_MAP("percpu_array", __u32, struct scratch, scratch, 1, 0);

/*
 * By enum tail. The loader makes and fills one with each generation of
 * programs, before any of them is attached; it lives as long as they do.
 */
FAMILY_MAP("prog", __u32, __u32, tails, TAIL_MAX, 0);

/* What the last packet of this CPU came to. Programs write; test runs read. */
SHARED_MAP("percpu_array", __u32, struct verdict, verdicts, 1, 0);

#endif
