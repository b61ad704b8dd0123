/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * from_overlay: ingress of the VXLAN device; a packet of another node,
 * decapsulated by the kernel.
 *
 *	other node -> [our VNI? a node we know? inner source of that node's range, or its own?]
 *	           -> forward.h -> pod of this node
 *	           [direct return's VNI: a Service's client as it came to the other node]
 *	                        -> stack (router address: the node itself)
 *	                        -> out by the uplink that a NodePort's client came by
 */
#ifndef PODLANE_FROM_OVERLAY_H
#define PODLANE_FROM_OVERLAY_H

#include "forward.h"

static __always_inline int from_overlay_check(struct __sk_buff *skb, struct scratch *s,
					      const struct node *n)
{
	struct bpf_tunnel_key key = {};
	struct peer_key *peer = &s->peer;
	struct route *from;

	__builtin_memset(peer, 0, sizeof(*peer));
	peer->family = 4;

	/* the kernel gives a key of the asked-for family only */
	if (bpf_skb_get_tunnel_key(skb, &key, sizeof(key), 0)) {
		if (bpf_skb_get_tunnel_key(skb, &key, sizeof(key), BPF_F_TUNINFO_IPV6))
			return -DROP_OVERLAY_KEY;
		peer->family = 6;
		__builtin_memcpy(peer->address, key.remote_ipv6, sizeof(peer->address));
	} else {
		*(__be32 *)peer->address = bpf_htonl(key.remote_ipv4);
	}
	from = route_find(&s->packet.tuple.src);
	if (n->flags & NODE_DIRECT && key.tunnel_id == n->vni + 1) {
		if (!peers.lookup(peer))
			return -DROP_OVERLAY_PEER;
		s->packet.direct = 1;
		/* clients are outside: nobody speaks for a pod this way */
		return from && from->flags & ROUTE_CLUSTER ? -DROP_OVERLAY_SOURCE : 0;
	}
	if (key.tunnel_id != n->vni || !(n->flags & NODE_VXLAN))
		return -DROP_OVERLAY_VNI;
	/* a process of that node may have bound its socket to one of the node's addresses */
	if (from && from->kind != ROUTE_NATIVE && from->hop_family == peer->family) {
		__u32 *a = (__u32 *)peer->address, *b = (__u32 *)from->hop;

		if (a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3])
			return 0;
	}
	return peers.lookup(peer) ? -DROP_OVERLAY_SOURCE : -DROP_OVERLAY_PEER;
}

static __always_inline int from_overlay_handle(struct __sk_buff *skb, struct scratch *s)
{
	struct packet *p = &s->packet;
	struct node *n = node_get();
	int err;

	if (!n)
		return -DROP_CONFIG;
	err = packet_parse(skb, p);
	if (err)
		return err;
	err = from_overlay_check(skb, s, n);
	if (err)
		return err;
	/* the inner MAC is one for all nodes, none of them this device's by rights */
	if (skb->pkt_type != PACKET_HOST)
		bpf_skb_change_type(skb, PACKET_HOST);
	return forward(skb, HOOK_FROM_OVERLAY, s);
}

int from_overlay(struct __sk_buff *skb)
{
	struct scratch *s = scratch_begin(HOOK_FROM_OVERLAY);

	return s ? verdict_return(skb, s, HOOK_FROM_OVERLAY, from_overlay_handle(skb, s))
		 : TC_ACT_SHOT;
}

#endif
