/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * from_pod: ingress of a pod's host veth; a packet leaves a pod.
 *
 *	pod -> [ours? source and MAC are the pod's own?] -> forward.h
 *	         | no: named drop                            |
 *	         + neighbour discovery: answered here        +-> pod of this node (redirect_peer)
 *	                                                     +-> overlay, next hop, uplink
 *	                                                     +-> node's stack
 *
 * Three filters: IPv4, IPv6, and last from_pod_l2 for every other protocol,
 * which answers ARP for the gateway and drops the rest.
 */
#ifndef PODLANE_FROM_POD_H
#define PODLANE_FROM_POD_H

#include "forward.h"

/* RFC 4861 4.3, 4.4: type, code, checksum, flags, target, then one option of 8 bytes */
#define ND_SIZE			  24
#define ND_TARGET		  8
#define ND_OPTION_TARGET_MAC	  2
#define ND_ADVERT_FLAGS		  0xe0 /* router, solicited, override */
#define ND_TYPE_ROUTER_SOLICIT	  133
#define ND_TYPE_ROUTER_ADVERT	  134
#define ND_TYPE_NEIGHBOUR_SOLICIT 135
#define ND_TYPE_NEIGHBOUR_ADVERT  136
#define ND_TYPE_REDIRECT	  137
#define MLD_TYPE_QUERY		  130
#define MLD_TYPE_REPORT		  131
#define MLD_TYPE_DONE		  132
#define MLD_TYPE_REPORT_V2	  143

#define ARP_ETHERNET 1
#define ARP_REQUEST  1
#define ARP_REPLY    2

/* RFC 826 over Ethernet and IPv4 */
struct arp_message {
	__be16 hardware;
	__be16 protocol;
	__u8 hardware_length;
	__u8 protocol_length;
	__be16 operation;
	__u8 sender_mac[6];
	__u8 sender[4];
	__u8 target_mac[6];
	__u8 target[4];
};

/* Answers a solicitation for the gateway in place; the sum is made anew. */
static __always_inline int nd_answer(struct __sk_buff *skb, struct scratch *s, const struct node *n)
{
	__u8 *body = s->answer.body;
	__u16 length = ND_SIZE + 8;
	__u8 mac[ETH_ALEN];
	__u64 sum;

	__builtin_memset(body, 0, ND_SIZE + 8);
	body[0] = ND_TYPE_NEIGHBOUR_ADVERT;
	body[4] = ND_ADVERT_FLAGS;
	__builtin_memcpy(body + ND_TARGET, &n->gateway, sizeof(struct addr));
	body[ND_SIZE] = ND_OPTION_TARGET_MAC;
	body[ND_SIZE + 1] = 1;
	__builtin_memcpy(body + ND_SIZE + 2, n->gateway_mac, ETH_ALEN);
	s->answer.source = n->gateway;
	if (bpf_skb_change_tail(skb, ANSWER_L4 + length, 0) ||
	    bpf_skb_load_bytes(skb, ETH_ALEN, mac, ETH_ALEN) ||
	    packet_set_macs(skb, mac, (__u8 *)n->gateway_mac) ||
	    answer_write_ipv6(skb, s, length, IPPROTO_ICMPV6, 255))
		return -DROP_ANSWERED;
	sum = csum_pseudo(s, length, IPPROTO_ICMPV6);
	*(__u16 *)&body[2] = ~csum_fold(sum + packet_csum(0, 0, body, ND_SIZE + 8));
	if (bpf_skb_store_bytes(skb, ANSWER_L4, body, ND_SIZE + 8, 0))
		return -DROP_ANSWERED;
	return ACTION_ANSWER;
}

/* ICMPv6 that lives on the link; 0: not such a message. */
static __always_inline int from_pod_neighbour(struct __sk_buff *skb, struct scratch *s,
					      const struct node *n)
{
	struct packet *p = &s->packet;
	struct endpoint *ep;
	struct addr target;
	bool neighbour = false;

	switch (p->icmp_type) {
	case ND_TYPE_ROUTER_SOLICIT:
	case MLD_TYPE_QUERY:
	case MLD_TYPE_REPORT:
	case MLD_TYPE_DONE:
	case MLD_TYPE_REPORT_V2:
		break;
	case ND_TYPE_ROUTER_ADVERT:
	case ND_TYPE_REDIRECT:
		return -DROP_NEIGHBOUR;
	case ND_TYPE_NEIGHBOUR_SOLICIT:
	case ND_TYPE_NEIGHBOUR_ADVERT:
		neighbour = true;
		break;
	default:
		return 0;
	}
	/* given to the stack, which would route what is not of the link */
	if (!addr_is_multicast(&p->tuple.dst) && !addr_is_link_local(&p->tuple.dst))
		return -DROP_NEIGHBOUR;
	/* who asks is believed: the node's kernel learns the asker's MAC from it */
	if (!addr_is_zero(&p->tuple.src) && !addr_is_link_local(&p->tuple.src)) {
		ep = endpoints.lookup(&p->tuple.src);
		if (!ep || ep->ifindex != skb->ifindex)
			return -DROP_NEIGHBOUR;
	}
	if (!neighbour)
		return ACTION_PASS;
	/* RFC 4861 7.1: only from a neighbour */
	if (p->hop_limit != 255)
		return -DROP_NEIGHBOUR;
	if (bpf_skb_load_bytes(skb, p->l4 + ND_TARGET, &target, sizeof(target)))
		return -DROP_TRUNCATED;
	if (p->icmp_type == ND_TYPE_NEIGHBOUR_SOLICIT) {
		/* duplicate address detection asks from the unspecified address, and needs no answer */
		if (addr_equal(&target, &n->gateway) && !addr_is_zero(&p->tuple.src))
			return nd_answer(skb, s, n);
		return ACTION_PASS;
	}
	if (addr_is_link_local(&target) && !addr_equal(&target, &n->gateway))
		return ACTION_PASS;
	ep = endpoints.lookup(&target);
	return ep && ep->ifindex == skb->ifindex ? ACTION_PASS : -DROP_NEIGHBOUR;
}

/* Source checks: address and MAC are the pod's own, on the pod's own veth. */
static __always_inline int from_pod_check_source(struct __sk_buff *skb, struct packet *p)
{
	struct endpoint *ep = endpoints.lookup(&p->tuple.src);
	struct endpoint_counter *c;
	__u8 mac[ETH_ALEN];
	__u32 id;

	if (!ep || ep->ifindex != skb->ifindex)
		return -DROP_SPOOFED_SOURCE;
	if (bpf_skb_load_bytes(skb, ETH_ALEN, mac, ETH_ALEN))
		return -DROP_TRUNCATED;
	for (int i = 0; i < ETH_ALEN; i++)
		if (mac[i] != ep->mac[i])
			return -DROP_SPOOFED_MAC;
	id = ep->id;
	p->endpoint_id = id;
	c = endpoint_counters.lookup(&id);
	if (c) {
		c->from_packets++;
		c->from_bytes += p->length;
	}
	return 0;
}

static __always_inline int from_pod_handle(struct __sk_buff *skb, struct scratch *s)
{
	struct packet *p = &s->packet;
	struct node *n = node_get();
	int err;

	skb->tc_index = 0;
	if (!n)
		return -DROP_CONFIG;
	err = packet_parse(skb, p);
	if (err)
		return err;
	if (skb->vlan_present)
		return -DROP_VLAN;
	if (FAMILY == 6 && p->tuple.protocol == IPPROTO_ICMPV6) {
		err = from_pod_neighbour(skb, s, n);
		if (err)
			return err;
	}
	/* link-local addresses stay on the link, where only the node's stack lives */
	if (FAMILY == 6 && addr_is_link_local(&p->tuple.src))
		return addr_is_multicast(&p->tuple.dst) || addr_is_link_local(&p->tuple.dst)
			       ? ACTION_PASS
			       : -DROP_SPOOFED_SOURCE;
	err = from_pod_check_source(skb, p);
	if (err)
		return err;
	if (addr_is_multicast(&p->tuple.dst))
		return -DROP_MULTICAST;
	/* IPv4's gateway only answers ARP; IPv6's is an address of the node's own link */
	if (addr_is_martian(&p->tuple.dst) ||
	    (FAMILY == 4 && addr_equal(&p->tuple.dst, &n->gateway)))
		return -DROP_MARTIAN;
	if (FAMILY == 6 && addr_is_link_local(&p->tuple.dst))
		return ACTION_PASS;
	return forward(skb, HOOK_FROM_POD, s);
}

int from_pod(struct __sk_buff *skb)
{
	struct scratch *s = scratch_begin(HOOK_FROM_POD);

	return s ? verdict_return(skb, s, HOOK_FROM_POD, from_pod_handle(skb, s)) : TC_ACT_SHOT;
}

static __always_inline int from_pod_answer_arp(struct __sk_buff *skb)
{
	struct node *n = node_get();
	struct arp_message arp;
	struct endpoint *ep;
	struct addr sender = {};
	__be32 target;

	if (!n)
		return -DROP_CONFIG;
	if (bpf_skb_load_bytes(skb, L3_OFFSET, &arp, sizeof(arp)))
		return -DROP_TRUNCATED;
	if (arp.hardware != bpf_htons(ARP_ETHERNET) || arp.protocol != bpf_htons(ETH_P_IP) ||
	    arp.hardware_length != sizeof(arp.sender_mac) ||
	    arp.protocol_length != sizeof(arp.sender))
		return -DROP_MALFORMED;
	__builtin_memcpy(&sender, arp.sender, sizeof(arp.sender));
	__builtin_memcpy(&target, arp.target, sizeof(target));
	ep = endpoints.lookup(&sender);
	if (!addr_is_zero(&sender) && (!ep || ep->ifindex != skb->ifindex))
		return -DROP_NEIGHBOUR;
	if (arp.operation != bpf_htons(ARP_REQUEST) || target != n->gateway.word[0])
		return -DROP_NOT_IP;
	arp.operation = bpf_htons(ARP_REPLY);
	__builtin_memcpy(arp.target, arp.sender, sizeof(arp.target));
	__builtin_memcpy(arp.target_mac, arp.sender_mac, sizeof(arp.target_mac));
	__builtin_memcpy(arp.sender, &target, sizeof(arp.sender));
	__builtin_memcpy(arp.sender_mac, n->gateway_mac, sizeof(arp.sender_mac));
	if (packet_set_macs(skb, arp.target_mac, arp.sender_mac) ||
	    bpf_skb_store_bytes(skb, L3_OFFSET, &arp, sizeof(arp), 0))
		return -DROP_ANSWERED;
	return ACTION_ANSWER;
}

int from_pod_l2(struct __sk_buff *skb)
{
	struct scratch *s = scratch_begin(HOOK_FROM_POD);
	int result;

	if (!s)
		return TC_ACT_SHOT;
	s->packet.length = skb->len;
	/* a tag of id 0 hides a packet from the IPv4 and IPv6 filters, but not from the stack */
	if (skb->vlan_present)
		result = -DROP_VLAN;
	/* what those filters let pass comes by here too */
	else if (skb->protocol == bpf_htons(ETH_P_IP) || skb->protocol == bpf_htons(ETH_P_IPV6))
		result = ACTION_PASS;
	else if (skb->protocol == bpf_htons(ETH_P_ARP) && FAMILY == 4)
		result = from_pod_answer_arp(skb);
	else
		result = -DROP_NOT_IP;
	return verdict_return(skb, s, HOOK_FROM_POD, result);
}

#endif
