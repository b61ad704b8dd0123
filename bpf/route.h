/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Routes: where a destination is, and handing a packet over to there.
 * Only maps are asked, never the kernel's FIB, so that a test run sees what a
 * node sees; the agent mirrors what matters of the FIB into `routes`.
 */
#ifndef PODLANE_ROUTE_H
#define PODLANE_ROUTE_H

#include "rewrite.h"

/* What an encapsulated packet is longer by: VXLAN, UDP, and IP around an Ethernet frame. */
#define OVERLAY_BYTES_IPV4 50
#define OVERLAY_BYTES_IPV6 70

struct path {
	struct endpoint *endpoint; /* a pod of this node, or NULL */
	struct route *route; /* NULL: the node's kernel decides */
};

static __always_inline struct route *route_find(const struct addr *address)
{
	struct route_key key = {.prefix = sizeof(struct addr) * 8, .address = *address};

	return routes.lookup(&key);
}

/* Whether this is another node's own address, which the overlay leads to as well. */
static __always_inline bool route_is_node(const struct route *r)
{
	return r && r->hop_family && r->kind != ROUTE_TUNNEL && r->kind != ROUTE_NATIVE;
}

static __always_inline void route_lookup(struct addr *address, struct path *path)
{
	path->route = NULL;
	path->endpoint = endpoints.lookup(address);
	if (!path->endpoint)
		path->route = route_find(address);
}

static __always_inline __u8 path_kind(const struct path *path)
{
	if (path->endpoint)
		return ROUTE_LOCAL;
	return path->route ? path->route->kind : ROUTE_STACK;
}

/* Whether pods' packets on this path are to be hidden behind the uplink's address. */
static __always_inline bool path_masquerades(const struct path *path)
{
	return !path->endpoint && path->route && path->route->kind == ROUTE_WORLD &&
	       path->route->flags & ROUTE_MASQUERADE;
}

/* Everything that enters a pod straight from here ends in this function. */
static __always_inline int deliver_to_pod(struct __sk_buff *skb, struct packet *p,
					  const struct node *node, struct endpoint *ep,
					  struct verdict *v)
{
	struct endpoint_counter *c;
	__u32 id = ep->id;
	int err;

	v->ifindex = ep->ifindex;
	err = packet_take_hop(skb, p);
	if (err)
		return err;
	err = packet_set_macs(skb, ep->mac, (__u8 *)node->gateway_mac);
	if (err)
		return err;
	c = endpoint_counters.lookup(&id);
	if (c) {
		c->to_packets++;
		c->to_bytes += p->length;
	}
	/* the verdict is taken over by the pod's side of the veth, whatever MAC it was sent to */
	if (skb->pkt_type != PACKET_HOST)
		bpf_skb_change_type(skb, PACKET_HOST);
	if (ep->flags & ENDPOINT_SHAPED) {
		skb->tc_index = PACKET_DONE;
		return ACTION_SHAPED;
	}
	return ACTION_POD;
}

/* The tunnel key of a packet that the overlay device is to encapsulate. */
static __always_inline int route_set_tunnel(struct __sk_buff *skb, const struct node *node,
					    const struct route *r, __u32 vni)
{
	struct bpf_tunnel_key key = {};
	__u64 flags = BPF_F_ZERO_CSUM_TX;

	key.tunnel_id = vni;
	key.tunnel_ttl = 64;
	if (r->hop_family == 6) {
		__builtin_memcpy(key.remote_ipv6, r->hop, sizeof(r->hop));
		/* RFC 6935 allows a zero checksum over IPv6; the kernel's VXLAN wants it said */
		flags |= BPF_F_TUNINFO_IPV6;
	} else {
		/* this one field is in host order */
		key.remote_ipv4 = bpf_ntohl(*(__be32 *)r->hop);
	}
	return bpf_skb_set_tunnel_key(skb, &key, sizeof(key), flags) ? -DROP_OVERLAY_KEY : 0;
}

/*
 * Bytes of IP that fit into the overlay on the way to a node. The kernel sends no
 * encapsulated packet in fragments over IPv6, and tells of one that is too big
 * only its own stack, so what routers said of the path is kept here.
 */
static __always_inline __u32 route_overlay_mtu(const struct node *n, const struct route *r)
{
	struct peer_key peer = {.family = 6};
	struct path_mtu *path;
	__u32 mtu = n->pod_mtu;

	if (!(n->flags & NODE_VXLAN))
		mtu -= r->hop_family == 6 ? OVERLAY_BYTES_IPV6 : OVERLAY_BYTES_IPV4;
	if (r->hop_family != 6)
		return mtu;
	__builtin_memcpy(peer.address, r->hop, sizeof(peer.address));
	path = path_mtus.lookup(&peer);
	if (path && path->mtu < mtu + OVERLAY_BYTES_IPV6 && bpf_ktime_get_ns() < path->until)
		mtu = path->mtu - OVERLAY_BYTES_IPV6;
	return mtu;
}

/* Bytes of IP that the path's first link takes; 0: no bound of ours. */
static __always_inline __u32 route_mtu(const struct node *n, const struct path *path, __u32 uplink)
{
	struct uplink *up;
	__u32 ifindex = uplink;

	if (uplink && uplink == n->overlay_ifindex)
		return path->route ? route_overlay_mtu(n, path->route) : n->pod_mtu;
	if (!uplink) {
		if (path->endpoint || !path->route)
			return 0;
		if (path->route->kind == ROUTE_TUNNEL)
			return route_overlay_mtu(n, path->route);
		ifindex = path->route->ifindex;
	}
	up = uplinks.lookup(&ifindex);
	return up ? up->mtu : 0;
}

#define GSO_BY_FRAGS 0xffff

/* Whether the packet, or each segment of it, is larger than mtu. */
static __always_inline bool packet_exceeds(struct __sk_buff *skb, const struct packet *p, __u32 mtu)
{
	__u32 size = p->length - L3_OFFSET;

	/* SCTP's segments are whole packets, each of which its sender has fitted to the path */
	if (skb->gso_size == GSO_BY_FRAGS)
		return false;
	if (skb->gso_size)
		size = p->l4 - L3_OFFSET + p->l4_size + skb->gso_size;
	return mtu && size > mtu;
}

/*
 * Whether a packet may go this way: 0, or -DROP_x. An IPv4 packet that may be
 * fragmented goes on by the node's stack, which fragments; BPF can't.
 */
static __always_inline int route_check(struct __sk_buff *skb, struct packet *p,
				       const struct node *n, struct path *path, __u32 uplink)
{
	__u8 kind = path_kind(path);

	if (!uplink && !path->endpoint) {
		if (kind == ROUTE_LOCAL)
			return -DROP_NO_POD;
		if (kind == ROUTE_UNREACHABLE)
			return -DROP_NO_ROUTE;
		if (kind == ROUTE_SERVICE)
			return -DROP_NO_SERVICE;
		if (kind != ROUTE_TUNNEL && kind != ROUTE_NATIVE && kind != ROUTE_WORLD)
			return 0;
	}
	if (p->hop_limit <= 1)
		return -DROP_HOP_LIMIT;
	p->mtu = route_mtu(n, path, uplink);
	if (packet_exceeds(skb, p, p->mtu)) {
		if (!p->may_fragment)
			return -DROP_TOO_BIG;
		p->to_stack = 1;
	}
	return 0;
}

/* Whether a packet for there can be sent on untranslated: to a pod of another node. */
static __always_inline bool route_takes_direct(const struct path *path)
{
	const struct route *r = path->route;

	if (path->endpoint || !r)
		return false;
	return r->kind == ROUTE_TUNNEL || (r->kind == ROUTE_NATIVE && r->flags & ROUTE_HOP_IS_NODE);
}

static __always_inline int route_encapsulate(struct __sk_buff *skb, const struct node *n,
					     const struct route *r, __u32 vni)
{
	int err = route_set_tunnel(skb, n, r, vni);

	if (err)
		return err;
	err = packet_set_macs(skb, (__u8 *)n->overlay_mac, (__u8 *)n->overlay_mac);
	return err ? err : ACTION_TUNNEL;
}

/* Takes a hop off and hands the packet to where path leads, or out of the given uplink. */
static __always_inline int route_output(struct __sk_buff *skb, struct packet *p,
					const struct node *n, const struct path *path, __u32 uplink,
					struct verdict *v)
{
	struct route *r = path->route;
	int err;

	if (p->to_stack)
		return ACTION_PASS;
	if (uplink) {
		/* answers leave by the device that their question came by */
		v->ifindex = uplink;
	} else {
		if (path->endpoint)
			return deliver_to_pod(skb, p, n, path->endpoint, v);
		if (!r || r->kind == ROUTE_NODE || r->kind == ROUTE_STACK)
			return ACTION_PASS;
		v->ifindex = r->kind == ROUTE_TUNNEL ? n->overlay_ifindex : r->ifindex;
	}
	err = packet_take_hop(skb, p);
	if (err)
		return err;
	skb->tc_index = PACKET_DONE;
	if (uplink && uplink == n->overlay_ifindex) {
		if (!route_is_node(r))
			return -DROP_NO_ROUTE;
	} else if (uplink || !r || r->kind == ROUTE_WORLD) {
		return ACTION_WORLD;
	}
	v->hop_family = r->hop_family;
	__builtin_memcpy(v->hop, r->hop, sizeof(v->hop));
	if (r->kind == ROUTE_NATIVE)
		return ACTION_NATIVE;
	return route_encapsulate(skb, n, r, n->vni);
}

/* To a pod's node as it came, for direct return; in either mode through the overlay. */
static __always_inline int route_output_direct(struct __sk_buff *skb, struct packet *p,
					       const struct node *n, const struct path *path,
					       struct verdict *v)
{
	struct route *r = path->route;
	int err;

	if (!r || !route_takes_direct(path))
		return -DROP_NO_ROUTE;
	if (p->hop_limit <= 1)
		return -DROP_HOP_LIMIT;
	/* the stack, which could fragment it, would take it for its own */
	p->mtu = route_overlay_mtu(n, r);
	if (packet_exceeds(skb, p, p->mtu))
		return -DROP_TOO_BIG;
	err = packet_take_hop(skb, p);
	if (err)
		return err;
	skb->tc_index = PACKET_DONE;
	v->ifindex = n->overlay_ifindex;
	v->hop_family = r->hop_family;
	__builtin_memcpy(v->hop, r->hop, sizeof(v->hop));
	return route_encapsulate(skb, n, r, n->vni + 1);
}

#endif
