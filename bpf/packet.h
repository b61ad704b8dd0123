/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Packets: reading headers and changing them.
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
#define SCTP_CSUM_OFFSET       8
#define SCTP_INIT	       1
#define SCTP_ABORT	       6
#define SCTP_SHUTDOWN_COMPLETE 14

/* RFC 9260 appendix A, bits reflected */
#define CRC32C_POLYNOMIAL 0x82f63b78ULL

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

/* Offset of the transport checksum from p->l4; negative if there is none that we keep. */
static __always_inline int packet_l4_csum_offset(const struct packet *p)
{
	if (p->fragment == FRAGMENT_LATER)
		return -1;
	switch (p->tuple.protocol) {
	case IPPROTO_TCP:
		return __builtin_offsetof(struct tcphdr, check);
	case IPPROTO_UDP:
		return __builtin_offsetof(struct udphdr, check);
	case PROTOCOL_ICMP:
		return __builtin_offsetof(struct icmphdr, checksum);
	default:
		return -1;
	}
}

/* UDP without a checksum stays without one (RFC 768); the flag is ignored for others. */
static __always_inline __u64 packet_csum_flags(const struct packet *p)
{
	return p->tuple.protocol == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
}

/*
 * The ones' complement sum of to less that of from. Before Linux 6.12 it has
 * all 32 bits, and bcc declares it as int: taken as it comes, the half of all
 * sums would be negative. Sizes are multiples of 4, so there are no errors.
 */
static __always_inline __u32 packet_csum(void *from, __u32 from_size, void *to, __u32 to_size)
{
	return bpf_csum_diff(from, from_size, to, to_size, 0);
}

/*
 * Writes a new address at l3_offset. IPv4's own checksum makes up for the
 * change in a CHECKSUM_COMPLETE sum; IPv6 has none, so there the store has to
 * say it (BPF_F_RECOMPUTE_CSUM).
 */
static __always_inline int packet_store_addr(struct __sk_buff *skb, const struct packet *p,
					     int l3_offset, struct addr *old, struct addr *new)
{
	int csum = packet_l4_csum_offset(p);
	__u64 flags = BPF_F_PSEUDO_HDR | packet_csum_flags(p);
	__u32 diff;

	if (FAMILY == 4) {
		/* ICMP has no pseudo-header over IPv4 */
		if (csum >= 0 && p->tuple.protocol != IPPROTO_ICMP &&
		    bpf_l4_csum_replace(skb, p->l4 + csum, old->word[0], new->word[0], flags | 4))
			return -DROP_WRITE;
		if (bpf_l3_csum_replace(skb, L3_OFFSET + L3_CSUM_OFFSET, old->word[0], new->word[0],
					4))
			return -DROP_WRITE;
		if (bpf_skb_store_bytes(skb, L3_OFFSET + l3_offset, new, sizeof(*new), 0))
			return -DROP_WRITE;
		return 0;
	}
	diff = packet_csum(old, sizeof(*old), new, sizeof(*new));
	if (bpf_skb_store_bytes(skb, L3_OFFSET + l3_offset, new, sizeof(*new),
				BPF_F_RECOMPUTE_CSUM))
		return -DROP_WRITE;
	if (csum >= 0 && bpf_l4_csum_replace(skb, p->l4 + csum, 0, diff, flags))
		return -DROP_WRITE;
	return 0;
}

/*
 * An SCTP port. Its sum is over all of the packet and no pseudo-header, and is
 * kept when all else is done (tail_sctp). Of a fragment it can't be:
 * how much follows is not known.
 */
static __always_inline int sctp_store_port(struct __sk_buff *skb, struct packet *p, int offset,
					   __be16 old, __be16 new)
{
	if (p->fragment != FRAGMENT_NONE)
		return -DROP_SCTP_FRAGMENT;
	p->sctp_change ^= (__u32)(old ^ new) << offset * 8;
	return bpf_skb_store_bytes(skb, p->l4 + offset, &new, sizeof(new), BPF_F_RECOMPUTE_CSUM)
		       ? -DROP_WRITE
		       : 0;
}

/*
 * Product of a polynomial and a constant one, modulo CRC32c's; bit 31 is x^0.
 * Straight code, one addition for each bit of the constant: the verifier walks
 * a loop once a turn, and both ways of each branch of it. The compiler is kept
 * from knowing that low is 0 or 1, which it would make a branch of.
 */
static __always_inline __u64 crc32c_multiply(__u64 a, __u32 constant)
{
	__u64 product = 0, low;

#pragma unroll
	for (int i = 0; i < 32; i++) {
		if (constant >> (31 - i) & 1)
			product ^= a;
		low = a & 1;
		asm("" : "+r"(low));
		a = a >> 1 ^ low * CRC32C_POLYNOMIAL;
	}
	return product;
}

/*
 * x^8 to the power 2^k, modulo CRC32c's polynomial: what 2^k more bytes do to a
 * CRC. All is read from the map again at each step, so that the verifier knows
 * nothing of it on either path, and follows but one.
 */
#define CRC32C_STEP(k, power)                                                             \
	do {                                                                              \
		volatile __u32 *change = &p->sctp_change;                                 \
		if ((*(volatile __u32 *)&p->end - *(volatile __u32 *)&p->l4) & 1U << (k)) \
			*change = crc32c_multiply(*change, power);                        \
	} while (0)

/*
 * Keeps an SCTP packet's checksum true for the ports that were rewritten.
 * CRC32c is linear: the bits that changed, shifted through all bytes from them
 * to the packet's end, change the sum by themselves. A sum of zero is one that
 * a device or the stack has yet to make (one true sum in 2^32 is zero, too).
 */
static __always_inline int sctp_keep_sum(struct __sk_buff *skb, struct packet *p)
{
	__u32 sum;

	_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
		       "the sum, and a CRC's bits, stand in little-endian order");
	if (!p->sctp_change)
		return 0;
	if (bpf_skb_load_bytes(skb, p->l4 + SCTP_CSUM_OFFSET, &sum, sizeof(sum)))
		return -DROP_WRITE;
	if (!sum)
		return 0;
	CRC32C_STEP(0, 0x00800000);
	CRC32C_STEP(1, 0x00008000);
	CRC32C_STEP(2, 0x82f63b78);
	CRC32C_STEP(3, 0x6ea2d55c);
	CRC32C_STEP(4, 0x18b8ea18);
	CRC32C_STEP(5, 0x510ac59a);
	CRC32C_STEP(6, 0xb82be955);
	CRC32C_STEP(7, 0xb8fdb1e7);
	CRC32C_STEP(8, 0x88e56f72);
	CRC32C_STEP(9, 0x74c360a4);
	CRC32C_STEP(10, 0xe4172b16);
	CRC32C_STEP(11, 0x0d65762a);
	CRC32C_STEP(12, 0x35d73a62);
	CRC32C_STEP(13, 0x28461564);
	CRC32C_STEP(14, 0xbf455269);
	CRC32C_STEP(15, 0xe2ea32dc);
	sum ^= *(volatile __u32 *)&p->sctp_change;
	return bpf_skb_store_bytes(skb, p->l4 + SCTP_CSUM_OFFSET, &sum, sizeof(sum),
				   BPF_F_RECOMPUTE_CSUM)
		       ? -DROP_WRITE
		       : 0;
}

static __always_inline int packet_store_port(struct __sk_buff *skb, struct packet *p, int offset,
					     __be16 old, __be16 new)
{
	int csum = packet_l4_csum_offset(p);

	if (p->fragment == FRAGMENT_LATER)
		return 0;
	if (p->tuple.protocol == IPPROTO_SCTP)
		return sctp_store_port(skb, p, offset, old, new);
	if (csum < 0)
		return -DROP_WRITE;
	if (bpf_l4_csum_replace(skb, p->l4 + csum, old, new, packet_csum_flags(p) | 2))
		return -DROP_WRITE;
	if (bpf_skb_store_bytes(skb, p->l4 + offset, &new, sizeof(new), 0))
		return -DROP_WRITE;
	return 0;
}

/* Rewrites the source, and p with it; the identifier of an echo is its port. */
static __always_inline int packet_rewrite_source(struct __sk_buff *skb, struct packet *p,
						 struct addr *addr, __be16 port)
{
	int err;

	if (!addr_equal(&p->tuple.src, addr)) {
		err = packet_store_addr(skb, p, L3_SRC_OFFSET, &p->tuple.src, addr);
		if (err)
			return err;
		p->tuple.src = *addr;
	}
	if (p->has_ports && p->tuple.sport != port) {
		err = packet_store_port(skb, p, packet_is_echo(p) ? ICMP_ID_OFFSET : 0,
					p->tuple.sport, port);
		if (err)
			return err;
		p->tuple.sport = port;
		if (packet_is_echo(p))
			p->tuple.dport = port;
	}
	return 0;
}

static __always_inline int packet_rewrite_destination(struct __sk_buff *skb, struct packet *p,
						      struct addr *addr, __be16 port)
{
	int err;

	if (!addr_equal(&p->tuple.dst, addr)) {
		err = packet_store_addr(skb, p, L3_DST_OFFSET, &p->tuple.dst, addr);
		if (err)
			return err;
		p->tuple.dst = *addr;
	}
	if (p->has_ports && p->tuple.dport != port) {
		err = packet_store_port(skb, p, packet_is_echo(p) ? ICMP_ID_OFFSET : 2,
					p->tuple.dport, port);
		if (err)
			return err;
		p->tuple.dport = port;
		if (packet_is_echo(p))
			p->tuple.sport = port;
	}
	return 0;
}

/*
 * Writes an address into the packet that an ICMP error quotes. Over IPv4 the
 * quoted header's own checksum makes up for the change, so ICMP's stays true.
 */
static __always_inline int packet_store_quoted_addr(struct __sk_buff *skb, const struct packet *p,
						    int offset, struct addr *old, struct addr *new)
{
	__u32 diff;

	if (addr_equal(old, new))
		return 0;
	if (FAMILY == 4) {
		if (bpf_l3_csum_replace(skb, p->inner_l3 + L3_CSUM_OFFSET, old->word[0],
					new->word[0], 4))
			return -DROP_WRITE;
	} else {
		diff = packet_csum(old, sizeof(*old), new, sizeof(*new));
		if (bpf_l4_csum_replace(skb, p->l4 + ICMP_CSUM_OFFSET, 0, diff, 0))
			return -DROP_WRITE;
	}
	return bpf_skb_store_bytes(skb, p->inner_l3 + offset, new, sizeof(*new), 0) ? -DROP_WRITE
										    : 0;
}

/* Likewise a port. The quoted transport checksum is left: nobody can check it over a cut packet. */
static __always_inline int packet_store_quoted_port(struct __sk_buff *skb, const struct packet *p,
						    int offset, __be16 old, __be16 new)
{
	if (old == new)
		return 0;
	if (bpf_l4_csum_replace(skb, p->l4 + ICMP_CSUM_OFFSET, old, new, 2))
		return -DROP_WRITE;
	return bpf_skb_store_bytes(skb, p->inner_l4 + offset, &new, sizeof(new), 0) ? -DROP_WRITE
										    : 0;
}

/* Rewrites both ends of the quoted packet: it went from src to dst, as its sender knew them. */
static __always_inline int packet_rewrite_quote(struct __sk_buff *skb, struct packet *p,
						struct flow_key *was)
{
	struct flow_key *inner = &p->inner;
	int err;

	/* inner is the tuple of the reply, so what was sent has it the other way round */
	err = packet_store_quoted_addr(skb, p, L3_SRC_OFFSET, &inner->dst, &was->src);
	if (err)
		return err;
	err = packet_store_quoted_addr(skb, p, L3_DST_OFFSET, &inner->src, &was->dst);
	if (err)
		return err;
	if (inner->protocol == PROTOCOL_ICMP)
		return packet_store_quoted_port(skb, p, ICMP_ID_OFFSET, inner->dport, was->sport);
	err = packet_store_quoted_port(skb, p, 0, inner->dport, was->sport);
	if (err)
		return err;
	return packet_store_quoted_port(skb, p, 2, inner->sport, was->dport);
}

/*
 * Takes off the hop that BPF makes in the kernel's place (RFC 1812 5.3.1,
 * RFC 8200 3). That there is one left was checked before anything was written.
 */
static __always_inline int packet_take_hop(struct __sk_buff *skb, struct packet *p)
{
	__u8 less = p->hop_limit - 1;

	if (FAMILY == 4 &&
	    bpf_l3_csum_replace(skb, L3_OFFSET + L3_CSUM_OFFSET, bpf_htons(p->hop_limit << 8),
				bpf_htons(less << 8), 2))
		return -DROP_WRITE;
	if (bpf_skb_store_bytes(skb, L3_OFFSET + L3_HOP_LIMIT_OFFSET, &less, 1,
				FAMILY == 4 ? 0 : BPF_F_RECOMPUTE_CSUM))
		return -DROP_WRITE;
	p->hop_limit = less;
	return 0;
}

static __always_inline int packet_set_macs(struct __sk_buff *skb, __u8 *dst, __u8 *src)
{
	__u8 macs[2 * ETH_ALEN];

	__builtin_memcpy(macs, dst, ETH_ALEN);
	__builtin_memcpy(macs + ETH_ALEN, src, ETH_ALEN);
	return bpf_skb_store_bytes(skb, 0, macs, sizeof(macs), 0) ? -DROP_WRITE : 0;
}

#endif
