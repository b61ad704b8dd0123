/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Packets: changing addresses, ports, hop limits and MAC addresses, with all
 * checksums, outside and in what an ICMP error quotes. struct packet is changed
 * along, so that it goes on saying what the packet is.
 */
#ifndef PODLANE_REWRITE_H
#define PODLANE_REWRITE_H

#include "sctp.h"

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
