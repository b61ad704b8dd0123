/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Packets: reading headers. rewrite.h changes them.
 *
 * packet_parse() is the only place that decides what a packet is, and all
 * reads go through bpf_skb_load_bytes(), which checks bounds and works on
 * packets whose headers are not in the linear part. Every device that has our
 * programs has Ethernet headers (the agent refuses others by name).
 */
#ifndef PODLANE_PACKET_H
#define PODLANE_PACKET_H

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <linux/icmp.h>
#include <linux/icmpv6.h>
#include "maps.h"

#define NSEC 1000000000ULL

#define L3_OFFSET ((int)sizeof(struct ethhdr))

/* tc_index of a packet that one of our programs has finished: the next hook
 * on its way lets it pass and clears the mark. Kept within the kernel; a pod
 * can't send it, since from_pod clears it first. */
#define PACKET_DONE 0x706c

#define TCP_FLAG_FIN_BYTE 0x01
#define TCP_FLAG_SYN_BYTE 0x02
#define TCP_FLAG_RST_BYTE 0x04
#define TCP_FLAG_ACK_BYTE 0x10

#define IPV4_DONT_FRAGMENT   0x4000
#define IPV4_FRAGMENT_MORE   0x2000
#define IPV4_FRAGMENT_OFFSET 0x1fff

/* RFC 9260 3.1, 3.2: ports, verification tag, checksum; then chunks, which begin with their type */
#define SCTP_HEADER_SIZE       12
#define SCTP_INIT	       1
#define SCTP_ABORT	       6
#define SCTP_SHUTDOWN_COMPLETE 14

#define ICMP_ID_OFFSET	 4
#define ICMP_HEADER_SIZE 8
#define ICMP_CSUM_OFFSET 2

#define L3_CSUM_OFFSET ((int)__builtin_offsetof(struct iphdr, check))
#define L3_SRC_OFFSET                                                \
	((int)(FAMILY == 4 ? __builtin_offsetof(struct iphdr, saddr) \
			   : __builtin_offsetof(struct ipv6hdr, saddr)))
#define L3_DST_OFFSET                                                \
	((int)(FAMILY == 4 ? __builtin_offsetof(struct iphdr, daddr) \
			   : __builtin_offsetof(struct ipv6hdr, daddr)))
#define L3_HOP_LIMIT_OFFSET                                        \
	((int)(FAMILY == 4 ? __builtin_offsetof(struct iphdr, ttl) \
			   : __builtin_offsetof(struct ipv6hdr, hop_limit)))
#define L3_HEADER_SIZE ((int)(FAMILY == 4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr)))
#define PROTOCOL_ICMP  (FAMILY == 4 ? IPPROTO_ICMP : IPPROTO_ICMPV6)
#define ECHO_REQUEST   (FAMILY == 4 ? ICMP_ECHO : ICMPV6_ECHO_REQUEST)
#define ECHO_REPLY     (FAMILY == 4 ? ICMP_ECHOREPLY : ICMPV6_ECHO_REPLY)
#define ETHERTYPE      (FAMILY == 4 ? ETH_P_IP : ETH_P_IPV6)

/* The packet in hand, with nothing known of it yet. NULL can't happen, but the verifier asks. */
static __always_inline struct scratch *scratch_get(void)
{
	__u32 zero = 0;

	return scratch.lookup(&zero);
}

/* A packet arrives at a hook: nothing is known of it. */
static __always_inline struct scratch *scratch_begin(enum hook hook)
{
	struct scratch *s = scratch_get();

	if (s) {
		__builtin_memset(&s->packet, 0, sizeof(s->packet));
		__builtin_memset(&s->verdict, 0, sizeof(s->verdict));
		s->verdict.hook = hook;
	}
	return s;
}

/* No early way out: each would be a path more for the verifier to walk. */
static __always_inline __u32 addr_difference(const struct addr *a, const struct addr *b)
{
	__u32 difference = 0;

	for (int i = 0; i < ADDR_WORDS; i++)
		difference |= a->word[i] ^ b->word[i];
	return difference;
}

static __always_inline bool addr_equal(const struct addr *a, const struct addr *b)
{
	return addr_difference(a, b) == 0;
}

static __always_inline bool addr_is_zero(const struct addr *a)
{
	__be32 any = 0;

	for (int i = 0; i < ADDR_WORDS; i++)
		any |= a->word[i];
	return any == 0;
}

/* Multicast, and IPv4's limited broadcast: never to be routed by us. */
static __always_inline bool addr_is_multicast(const struct addr *a)
{
	__u8 first = *(const __u8 *)a;

	return FAMILY == 4 ? (first & 0xf0) == 0xe0 || a->word[0] == 0xffffffff : first == 0xff;
}

/* Unspecified or loopback: on no network (RFC 1122 3.2.1.3, RFC 4291 2.5). */
static __always_inline bool addr_is_martian(const struct addr *a)
{
	__u8 first = *(const __u8 *)a;

	if (FAMILY == 4)
		return first == 0 || first == 127;
	return !(a->word[0] | a->word[1 % ADDR_WORDS] | a->word[2 % ADDR_WORDS]) &&
	       bpf_ntohl(a->word[3 % ADDR_WORDS]) <= 1;
}

static __always_inline bool addr_is_link_local(const struct addr *a)
{
	const __u8 *b = (const __u8 *)a;

	return FAMILY == 4 ? b[0] == 169 && b[1] == 254 : b[0] == 0xfe && (b[1] & 0xc0) == 0x80;
}

/* A TCP segment that opens a connection. */
static __always_inline bool packet_opens(const struct packet *p)
{
	return (p->tcp_flags & (TCP_FLAG_SYN_BYTE | TCP_FLAG_ACK_BYTE | TCP_FLAG_RST_BYTE)) ==
	       TCP_FLAG_SYN_BYTE;
}

/* A TCP segment of one who was answered: all but a SYN and a reset acknowledge (RFC 9293 3.10.7.4). */
static __always_inline bool packet_goes_on(const struct packet *p)
{
	return (p->tcp_flags & (TCP_FLAG_SYN_BYTE | TCP_FLAG_ACK_BYTE | TCP_FLAG_RST_BYTE)) ==
	       TCP_FLAG_ACK_BYTE;
}

/* A TCP segment that can't be the first of its flow. */
static __always_inline bool packet_is_mid_flow(const struct packet *p)
{
	return p->tuple.protocol == IPPROTO_TCP && p->has_ports && !packet_opens(p);
}

static __always_inline bool packet_is_echo(const struct packet *p)
{
	return p->tuple.protocol == PROTOCOL_ICMP && p->has_ports;
}

static __always_inline int packet_parse_ipv4(struct __sk_buff *skb, struct packet *p)
{
	struct iphdr ip;
	__u16 frag;

	if (bpf_skb_load_bytes(skb, L3_OFFSET, &ip, sizeof(ip)))
		return -DROP_TRUNCATED;
	/* first, since whose a broken packet is decides who may drop it */
	p->tuple.src.word[0] = ip.saddr;
	p->tuple.dst.word[0] = ip.daddr;
	if (ip.version != 4 || ip.ihl < 5)
		return -DROP_MALFORMED;
	/* of a GSO packet, total length 0 means beyond 64 KiB (BIG TCP) */
	if (ip.tot_len || !skb->gso_size) {
		if (bpf_ntohs(ip.tot_len) < ip.ihl * 4)
			return -DROP_MALFORMED;
		p->end = bpf_ntohs(ip.tot_len) + L3_OFFSET;
		if (p->end > p->length)
			return -DROP_TRUNCATED;
	}
	p->tuple.protocol = ip.protocol;
	p->hop_limit = ip.ttl;
	p->l4 = L3_OFFSET + ip.ihl * 4;
	p->plain = ip.ihl == 5;
	p->fragment_id = bpf_ntohs(ip.id);
	frag = bpf_ntohs(ip.frag_off);
	p->may_fragment = !(frag & IPV4_DONT_FRAGMENT);
	if (frag & IPV4_FRAGMENT_OFFSET)
		p->fragment = FRAGMENT_LATER;
	else if (frag & IPV4_FRAGMENT_MORE)
		p->fragment = FRAGMENT_FIRST;
	return 0;
}

static __always_inline int packet_parse_ipv6(struct __sk_buff *skb, struct packet *p)
{
	struct ipv6hdr ip;
	__u32 offset = L3_OFFSET + sizeof(ip);
	__u8 next;

	if (bpf_skb_load_bytes(skb, L3_OFFSET, &ip, sizeof(ip)))
		return -DROP_TRUNCATED;
	/* first, since whose a broken packet is decides who may drop it */
	__builtin_memcpy(&p->tuple.src, &ip.saddr, sizeof(struct addr));
	__builtin_memcpy(&p->tuple.dst, &ip.daddr, sizeof(struct addr));
	if (ip.version != 6)
		return -DROP_MALFORMED;
	/* of a GSO packet, payload length 0 means beyond 64 KiB (BIG TCP) */
	if (ip.payload_len || !skb->gso_size) {
		p->end = bpf_ntohs(ip.payload_len) + sizeof(ip) + L3_OFFSET;
		if (p->end > p->length)
			return -DROP_TRUNCATED;
	}
	p->hop_limit = ip.hop_limit;
	p->plain = 1;
	next = ip.nexthdr;
	for (int i = 0; i <= EXTENSION_MAX; i++) {
		/* RFC 8200 section 4: type, length in 8-byte units beyond the first */
		__u8 ext[8];

		if (next == IPPROTO_HOPOPTS || next == IPPROTO_ROUTING || next == IPPROTO_DSTOPTS) {
			if (bpf_skb_load_bytes(skb, offset, ext, sizeof(ext)))
				return -DROP_TRUNCATED;
			offset += 8 + ext[1] * 8;
		} else if (next == IPPROTO_FRAGMENT) {
			__u16 frag;

			/* a fragment of a fragment: which of them has the ports? */
			if (p->fragment != FRAGMENT_NONE)
				return -DROP_MALFORMED;
			if (bpf_skb_load_bytes(skb, offset, ext, sizeof(ext)))
				return -DROP_TRUNCATED;
			frag = ext[2] << 8 | ext[3];
			p->fragment_id = *(__u32 *)&ext[4];
			if (frag & 0xfff8)
				p->fragment = FRAGMENT_LATER;
			else if (frag & 1)
				p->fragment = FRAGMENT_FIRST;
			offset += 8;
		} else {
			p->tuple.protocol = next;
			p->l4 = offset;
			return 0;
		}
		next = ext[0];
		p->plain = 0;
		if (p->fragment == FRAGMENT_LATER) {
			p->tuple.protocol = next;
			p->l4 = offset;
			return 0;
		}
	}
	return -DROP_EXTENSION;
}

/* Reads the start of the transport header, which must lie within what the IP header counts. */
static __always_inline int packet_load_l4(struct __sk_buff *skb, const struct packet *p, __u8 *head,
					  __u32 length)
{
	if (p->l4 + length > p->end || bpf_skb_load_bytes(skb, p->l4, head, length))
		return -DROP_TRUNCATED;
	return 0;
}

static __always_inline bool icmp_type_is_error(__u8 type)
{
	if (FAMILY == 4)
		return type == ICMP_DEST_UNREACH || type == ICMP_SOURCE_QUENCH ||
		       type == ICMP_TIME_EXCEEDED || type == ICMP_PARAMETERPROB;
	/* RFC 4443 2.1: errors have the high bit clear */
	return type >= ICMPV6_DEST_UNREACH && type <= ICMPV6_PARAMPROB;
}

/*
 * Reads what an ICMP error quotes. A quote that can't be read (cut short, a
 * later fragment, extension headers but for a first fragment's) leaves
 * icmp_error 0, and the packet is handled by its outer addresses alone.
 */
static __always_inline int packet_parse_quote(struct __sk_buff *skb, struct packet *p)
{
	__u8 head[sizeof(struct ipv6hdr)];
	struct flow_key *inner = &p->inner;
	__u8 size = FAMILY == 4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);

	p->inner_l3 = p->l4 + ICMP_HEADER_SIZE;
	if (bpf_skb_load_bytes(skb, p->inner_l3, head, size))
		return 0;
	if (FAMILY == 4) {
		if (head[0] >> 4 != 4 || (head[0] & 0xf) < 5)
			return 0;
		if (((head[6] << 8 | head[7]) & IPV4_FRAGMENT_OFFSET) != 0)
			return 0;
		inner->protocol = head[__builtin_offsetof(struct iphdr, protocol)];
		p->inner_l4 = p->inner_l3 + (head[0] & 0xf) * 4;
	} else {
		if (head[0] >> 4 != 6)
			return 0;
		inner->protocol = head[__builtin_offsetof(struct ipv6hdr, nexthdr)];
		p->inner_l4 = p->inner_l3 + sizeof(struct ipv6hdr);
	}
	__builtin_memcpy(&inner->dst, head + L3_SRC_OFFSET, sizeof(struct addr));
	__builtin_memcpy(&inner->src, head + L3_DST_OFFSET, sizeof(struct addr));
	if (p->inner_l4 + 8 > p->end || bpf_skb_load_bytes(skb, p->inner_l4, head, 8))
		return 0;
	/* routers do not fragment IPv6: a large datagram learns its path's MTU by this quote alone */
	if (FAMILY == 6 && inner->protocol == IPPROTO_FRAGMENT) {
		if (head[2] || head[3] & 0xf8)
			return 0;
		inner->protocol = head[0];
		p->inner_l4 += 8;
		if (p->inner_l4 + 8 > p->end || bpf_skb_load_bytes(skb, p->inner_l4, head, 8))
			return 0;
	}
	switch (inner->protocol) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
	case IPPROTO_SCTP:
		inner->dport = *(__be16 *)&head[0];
		inner->sport = *(__be16 *)&head[2];
		break;
	case PROTOCOL_ICMP:
		if (head[0] != ECHO_REQUEST && head[0] != ECHO_REPLY)
			return 0;
		inner->sport = inner->dport = *(__be16 *)&head[ICMP_ID_OFFSET];
		break;
	default:
		return 0;
	}
	/* told to another than who sent the packet, it would be delivered by the flow of a third */
	if (!addr_equal(&inner->dst, &p->tuple.dst))
		return -DROP_ICMP_QUOTE;
	p->icmp_error = 1;
	return 0;
}

/* What a chunk means, in TCP's words: INIT opens, ABORT and the last of a shutdown end at once. */
static __always_inline __u8 sctp_flags(__u8 chunk)
{
	if (chunk == SCTP_INIT)
		return TCP_FLAG_SYN_BYTE;
	return chunk == SCTP_ABORT || chunk == SCTP_SHUTDOWN_COMPLETE ? TCP_FLAG_RST_BYTE : 0;
}

static __always_inline int packet_parse_l4(struct __sk_buff *skb, struct packet *p)
{
	__u8 head[14];

	switch (p->tuple.protocol) {
	case IPPROTO_TCP:
		/* up to and with the flags */
		if (packet_load_l4(skb, p, head, 14))
			return -DROP_TRUNCATED;
		if ((head[12] >> 4) < 5)
			return -DROP_MALFORMED;
		if (p->l4 + (head[12] >> 4) * 4 > p->end)
			return -DROP_TRUNCATED;
		p->tcp_flags = head[13];
		p->l4_size = (head[12] >> 4) * 4;
		break;
	case IPPROTO_SCTP:
		if (packet_load_l4(skb, p, head, SCTP_HEADER_SIZE))
			return -DROP_TRUNCATED;
		p->l4_size = SCTP_HEADER_SIZE;
		if (!packet_load_l4(skb, p, head, SCTP_HEADER_SIZE + 1))
			p->tcp_flags = sctp_flags(head[SCTP_HEADER_SIZE]);
		break;
	case IPPROTO_UDP:
		if (packet_load_l4(skb, p, head, 8))
			return -DROP_TRUNCATED;
		if (!skb->gso_size) {
			__u32 length = head[4] << 8 | head[5];

			if (length < 8)
				return -DROP_MALFORMED;
			if (p->fragment == FRAGMENT_NONE && p->l4 + length > p->end)
				return -DROP_TRUNCATED;
		}
		p->l4_size = 8;
		break;
	case PROTOCOL_ICMP:
		if (packet_load_l4(skb, p, head, 8))
			return -DROP_TRUNCATED;
		p->icmp_type = head[0];
		p->l4_size = ICMP_HEADER_SIZE;
		if (icmp_type_is_error(p->icmp_type))
			return packet_parse_quote(skb, p);
		if (p->icmp_type == ECHO_REQUEST || p->icmp_type == ECHO_REPLY) {
			p->tuple.sport = *(__be16 *)&head[ICMP_ID_OFFSET];
			p->tuple.dport = p->tuple.sport;
			p->has_ports = 1;
		}
		return 0;
	default:
		return 0;
	}
	p->tuple.sport = *(__be16 *)&head[0];
	p->tuple.dport = *(__be16 *)&head[2];
	p->has_ports = 1;
	return 0;
}

/* Later fragments have the ports of their first one, if that was seen. */
static __always_inline int packet_follow_fragment(struct packet *p)
{
	p->whole.src = p->tuple.src;
	p->whole.dst = p->tuple.dst;
	p->whole.id = p->fragment_id;
	p->whole.protocol = p->tuple.protocol;
	if (p->fragment == FRAGMENT_FIRST) {
		struct fragment ports = {.sport = p->tuple.sport, .dport = p->tuple.dport};

		/* a full table evicts; a refused write only costs the later fragments */
		fragments.update(&p->whole, &ports);
	} else {
		struct fragment *seen = fragments.lookup(&p->whole);

		if (!seen)
			return -DROP_FRAGMENT;
		p->tuple.sport = seen->sport;
		p->tuple.dport = seen->dport;
		/* evicted meanwhile, and its memory another packet's */
		if (fragments.lookup(&p->whole) != seen)
			return -DROP_FRAGMENT;
		/* an ICMP error, or another protocol, has none: a port would be chosen that it can't carry */
		p->has_ports = p->tuple.sport || p->tuple.dport;
	}
	return 0;
}

/*
 * Reads a packet's headers into p, which is zero before. A packet without ports (other protocols,
 * ICMP errors) has them zero.
 */
static __always_inline int packet_parse(struct __sk_buff *skb, struct packet *p)
{
	int err;

	p->length = skb->len;
	p->end = p->length;
	err = FAMILY == 4 ? packet_parse_ipv4(skb, p) : packet_parse_ipv6(skb, p);
	if (err)
		return err;
	if (p->l4 > p->end)
		return -DROP_TRUNCATED;
	if (p->fragment != FRAGMENT_LATER) {
		err = packet_parse_l4(skb, p);
		if (err)
			return err;
	}
	if (p->fragment != FRAGMENT_NONE)
		return packet_follow_fragment(p);
	return 0;
}

#endif
