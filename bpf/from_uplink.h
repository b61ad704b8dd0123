/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * from_uplink: ingress of an uplink; a packet enters the node from outside.
 *
 *	outside -> [to this node's VXLAN port?] -> stack (VXLAN device, then from_overlay)
 *	        -> [reply of a translated or masqueraded flow] -> translate -> pod, overlay
 *	        -> [NodePort, load-balancer, external address, hostPort] -> backend -> ...
 *	        -> [a pod's own address] -> pod
 *	        -> everything else -> stack
 */
#ifndef PODLANE_FROM_UPLINK_H
#define PODLANE_FROM_UPLINK_H

#include "forward.h"

/*
 * RFC 1812 5.3.7, RFC 4291 2.5.6: addresses that can't be outside; a pod of this node isn't either.
 * NodePorts on loopback are for the node itself alone.
 */
static __always_inline bool from_uplink_is_martian(struct packet *p)
{
	struct addr *src = &p->tuple.src;

	return addr_is_martian(src) || addr_is_martian(&p->tuple.dst) || addr_is_multicast(src) ||
	       (FAMILY == 6 && addr_is_link_local(src)) || endpoints.lookup(src);
}

/* RFC 8200 5: no path of IPv6 takes less */
#define IPV6_LEAST_MTU 1280

/*
 * A router's word that an encapsulated packet of ours was too big. The kernel, which gets it
 * too, would from now on drop such packets without telling the pod.
 */
static __always_inline void from_uplink_learn_mtu(struct __sk_buff *skb, const struct packet *p,
						  const struct node *n)
{
	struct path_mtu path = {};
	struct peer_key peer = {.family = 6};
	__be32 mtu;

	if (p->icmp_type != ICMPV6_PKT_TOOBIG || p->inner.protocol != IPPROTO_UDP ||
	    p->inner.sport != n->vxlan_port || !addr_equal(&p->inner.dst, &n->primary))
		return;
	__builtin_memcpy(peer.address, &p->inner.src, sizeof(struct addr));
	if (!peers.lookup(&peer) || bpf_skb_load_bytes(skb, p->l4 + 4, &mtu, sizeof(mtu)))
		return;
	path.until = bpf_ktime_get_ns() + LIFETIME_PATH_MTU * NSEC;
	path.mtu = bpf_ntohl(mtu);
	if (path.mtu >= IPV6_LEAST_MTU)
		path_mtus.update(&peer, &path);
}

static __always_inline int from_uplink_handle(struct __sk_buff *skb, struct scratch *s)
{
	struct packet *p = &s->packet;
	struct node *n = node_get();
	struct path path;
	int err;

	if (!n)
		return -DROP_CONFIG;
	err = packet_parse(skb, p);
	if (addr_is_multicast(&p->tuple.dst))
		return ACTION_PASS;
	if (FAMILY == 6 && addr_is_link_local(&p->tuple.dst))
		return ACTION_PASS;
	if (!err && from_uplink_is_martian(p))
		err = -DROP_MARTIAN;
	if (err) {
		/* the host takes its own broken packets and stray fragments itself */
		route_lookup(&p->tuple.dst, &path);
		if (path_kind(&path) == ROUTE_NODE)
			return ACTION_PASS;
		/* what a router must not forward isn't for the networks behind it either */
		return path_kind(&path) == ROUTE_STACK && err != -DROP_MARTIAN ? ACTION_PASS : err;
	}
	/*
	 * At the address where the other nodes send them, encapsulated packets come before all
	 * else, from whomever: from_overlay counts, by name, what is from no node. At another
	 * address, or without an overlay, the port may be a Service's.
	 */
	if (n->flags & (NODE_VXLAN | NODE_DIRECT) && p->tuple.protocol == IPPROTO_UDP &&
	    p->tuple.dport == n->vxlan_port && addr_equal(&p->tuple.dst, &n->primary))
		return ACTION_PASS;
	if (FAMILY == 6 && p->icmp_error)
		from_uplink_learn_mtu(skb, p, n);
	return forward(skb, HOOK_FROM_UPLINK, s);
}

int from_uplink(struct __sk_buff *skb)
{
	struct scratch *s = scratch_begin(HOOK_FROM_UPLINK);

	return s ? verdict_return(skb, s, HOOK_FROM_UPLINK, from_uplink_handle(skb, s))
		 : TC_ACT_SHOT;
}

#endif
