/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Answers: a packet that can't go on is turned into the TCP reset or the ICMP
 * error that says so, and goes back the way it came.
 *
 * An answer inherits the packet's checksum state. If that is CHECKSUM_PARTIAL,
 * a device on the way may complete a checksum at the place where the old
 * packet had it, so that place must hold the pseudo-header sum. The state can
 * be seen only by asking the kernel to cut the packet inside that place, which
 * it refuses.
 */
#ifndef PODLANE_ICMP_H
#define PODLANE_ICMP_H

#include "rewrite.h"

#define ANSWER_HOP_LIMIT 64
#define ANSWER_L4	 (L3_OFFSET + L3_HEADER_SIZE)

/* RFC 792, RFC 4443: what is quoted of the refused packet, up to its ports */
#define ICMP_QUOTE_SIZE	     (L3_HEADER_SIZE + 8)
#define FRAGMENT_HEADER_SIZE 8

#define UNREACHABLE_TYPE (FAMILY == 4 ? ICMP_DEST_UNREACH : ICMPV6_DEST_UNREACH)
#define UNREACHABLE_CODE (FAMILY == 4 ? ICMP_PORT_UNREACH : ICMPV6_PORT_UNREACH)
#define TOO_BIG_TYPE	 (FAMILY == 4 ? ICMP_DEST_UNREACH : ICMPV6_PKT_TOOBIG)
#define TOO_BIG_CODE	 (FAMILY == 4 ? ICMP_FRAG_NEEDED : 0)
#define HOP_LIMIT_TYPE	 (FAMILY == 4 ? ICMP_TIME_EXCEEDED : ICMPV6_TIME_EXCEED)
#define HOP_LIMIT_CODE	 (FAMILY == 4 ? ICMP_EXC_TTL : ICMPV6_EXC_HOPLIMIT)

static __always_inline __u16 csum_fold(__u64 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

/* Of the answer: from s->answer.source to the packet's source. */
static __always_inline __u64 csum_pseudo(struct scratch *s, __u32 length, __u8 protocol)
{
	struct pseudo_header *h = &s->answer.pseudo;

	h->src = s->answer.source;
	h->dst = s->packet.tuple.src;
	h->length = bpf_htonl(length);
	h->protocol = bpf_htonl(protocol);
	return packet_csum(0, 0, h, sizeof(*h));
}

/* Of IPv6, where only its sender can make it smaller. */
static __always_inline bool packet_is_first_fragment(const struct packet *p)
{
	return FAMILY == 6 && p->fragment == FRAGMENT_FIRST &&
	       p->l4 == ANSWER_L4 + FRAGMENT_HEADER_SIZE;
}

/* RFC 1122 3.2.2, RFC 4443 2.4(e), RFC 9293 3.10.7: what must not be answered. */
static __always_inline bool packet_may_be_answered(const struct packet *p)
{
	if (p->fragment == FRAGMENT_LATER || p->tcp_flags & TCP_FLAG_RST_BYTE)
		return false;
	if (!p->plain && !packet_is_first_fragment(p))
		return false;
	/* of ICMP only echoes: whatever else it is may be an error */
	if (p->tuple.protocol == PROTOCOL_ICMP && p->icmp_type != ECHO_REQUEST)
		return false;
	return !addr_is_multicast(&p->tuple.src) && !addr_is_multicast(&p->tuple.dst) &&
	       !addr_is_zero(&p->tuple.src);
}

static __always_inline int answer_write_ipv4(struct __sk_buff *skb, struct scratch *s, __u16 length,
					     __u8 protocol)
{
	struct iphdr *ip = (void *)s->answer.header;

	__builtin_memset(ip, 0, sizeof(*ip));
	ip->version = 4;
	ip->ihl = sizeof(*ip) / 4;
	ip->tot_len = bpf_htons(sizeof(*ip) + length);
	ip->frag_off = bpf_htons(0x4000); /* don't fragment */
	ip->ttl = ANSWER_HOP_LIMIT;
	ip->protocol = protocol;
	ip->saddr = s->answer.source.word[0];
	ip->daddr = s->packet.tuple.src.word[0];
	ip->check = ~csum_fold(packet_csum(0, 0, ip, sizeof(*ip)));
	return bpf_skb_store_bytes(skb, L3_OFFSET, ip, sizeof(*ip), 0);
}

static __always_inline int answer_write_ipv6(struct __sk_buff *skb, struct scratch *s, __u16 length,
					     __u8 protocol, __u8 hop_limit)
{
	struct ipv6hdr *ip = (void *)s->answer.header;

	__builtin_memset(ip, 0, sizeof(*ip));
	ip->version = 6;
	ip->payload_len = bpf_htons(length);
	ip->nexthdr = protocol;
	ip->hop_limit = hop_limit;
	__builtin_memcpy(&ip->saddr, &s->answer.source, sizeof(struct addr));
	__builtin_memcpy(&ip->daddr, &s->packet.tuple.src, sizeof(struct addr));
	return bpf_skb_store_bytes(skb, L3_OFFSET, ip, sizeof(*ip), 0);
}

/*
 * Makes room for length bytes of transport, swaps MACs and writes the IP
 * header. probe is where a partial checksum would be cut. Gives 1 if the
 * checksum is partial, 0 if not, or -DROP_ANSWERED.
 */
static __always_inline int answer_begin(struct __sk_buff *skb, struct scratch *s, __u16 length,
					__u8 protocol, __u32 probe)
{
	int partial = bpf_skb_change_tail(skb, probe, 0) ? 1 : 0;
	__u8 macs[2 * ETH_ALEN];

	if (bpf_skb_change_tail(skb, ANSWER_L4 + length, 0))
		return -DROP_ANSWERED;
	if (bpf_skb_load_bytes(skb, 0, macs, sizeof(macs)) ||
	    packet_set_macs(skb, macs + ETH_ALEN, macs))
		return -DROP_ANSWERED;
	if (FAMILY == 4 ? answer_write_ipv4(skb, s, length, protocol)
			: answer_write_ipv6(skb, s, length, protocol, ANSWER_HOP_LIMIT))
		return -DROP_ANSWERED;
	return partial;
}

/* RFC 9293 3.10.7.1: an acknowledged segment is reset at what it acknowledges. */
static __always_inline int answer_with_reset(struct __sk_buff *skb, struct scratch *s)
{
	struct tcphdr *tcp = (void *)s->answer.body;
	__u32 payload;
	__be32 ack;
	__be16 port;
	__u64 sum;
	int partial;

	if (bpf_skb_load_bytes(skb, ANSWER_L4, tcp, sizeof(*tcp)))
		return -DROP_ANSWERED;
	port = tcp->source;
	tcp->source = tcp->dest;
	tcp->dest = port;
	payload = s->packet.end - ANSWER_L4 - tcp->doff * 4;
	ack = bpf_htonl(bpf_ntohl(tcp->seq) + payload + tcp->syn + tcp->fin);
	if (tcp->ack) {
		tcp->seq = tcp->ack_seq;
		tcp->ack_seq = 0;
		s->answer.body[13] = TCP_FLAG_RST_BYTE;
	} else {
		tcp->seq = 0;
		tcp->ack_seq = ack;
		s->answer.body[13] = TCP_FLAG_RST_BYTE | TCP_FLAG_ACK_BYTE;
	}
	s->answer.body[12] = sizeof(*tcp) / 4 << 4;
	tcp->window = 0;
	tcp->check = 0;
	tcp->urg_ptr = 0;
	/* the checksum stands at 16 and 17 */
	partial = answer_begin(skb, s, sizeof(*tcp), IPPROTO_TCP, ANSWER_L4 + 16);
	if (partial < 0)
		return partial;
	sum = csum_pseudo(s, sizeof(*tcp), IPPROTO_TCP);
	if (partial)
		tcp->check = csum_fold(sum);
	else
		tcp->check = ~csum_fold(sum + packet_csum(0, 0, tcp, sizeof(*tcp)));
	if (bpf_skb_store_bytes(skb, ANSWER_L4, tcp, sizeof(*tcp), 0))
		return -DROP_ANSWERED;
	return ACTION_ANSWER;
}

/* An ICMP error that quotes the packet; rest is the second word of its header. */
static __always_inline int answer_with_error(struct __sk_buff *skb, struct scratch *s, __u8 type,
					     __u8 code, __be32 rest)
{
	__u32 quote = ICMP_QUOTE_SIZE;
	__u8 *body = s->answer.body;
	__u64 pseudo = 0;
	__u16 length;
	int partial;

	_Static_assert(sizeof(s->answer.body) >=
			       ICMP_HEADER_SIZE + ICMP_QUOTE_SIZE + FRAGMENT_HEADER_SIZE,
		       "an answer's body holds an ICMP header and its quote");
	if (packet_is_first_fragment(&s->packet))
		quote += FRAGMENT_HEADER_SIZE;
	length = ICMP_HEADER_SIZE + quote;
	if (bpf_skb_load_bytes(skb, L3_OFFSET, body + ICMP_HEADER_SIZE, quote))
		return -DROP_ANSWERED;
	body[0] = type;
	body[1] = code;
	*(__u16 *)&body[2] = 0;
	*(__be32 *)&body[4] = rest;
	/* UDP's checksum stands at 6 and 7, TCP's further on */
	partial = answer_begin(skb, s, length, PROTOCOL_ICMP, ANSWER_L4 + 6);
	if (partial < 0)
		return partial;
	if (FAMILY == 6)
		pseudo = csum_pseudo(s, length, PROTOCOL_ICMP);
	*(__u16 *)&body[2] = ~csum_fold(pseudo + packet_csum(0, 0, body, length));
	/*
	 * What a device adds to a place that holds the pseudo-header sum keeps
	 * the message's own checksum true. Only an unused word can hold it; an
	 * MTU is left alone, and is right where no device completes checksums:
	 * straight into the pod that sent the packet.
	 */
	if (partial && !rest && s->packet.tuple.protocol == IPPROTO_UDP)
		*(__u16 *)&body[6] = csum_fold(pseudo);
	if (bpf_skb_store_bytes(skb, ANSWER_L4, body, length, 0))
		return -DROP_ANSWERED;
	return ACTION_ANSWER;
}

/*
 * A bound a CPU and second, so that answers are no amplifier and no load; a
 * sender, so that what one pod asks for leaves the others' connections their ends.
 */
static __always_inline bool answer_is_due(const struct packet *p)
{
	__u64 second = bpf_ktime_get_ns() / NSEC;
	struct answer_budget *budget;
	__u32 share = p->endpoint_id % ANSWER_SHARES;

	budget = answer_budget.lookup(&share);
	if (!budget)
		return false;
	if (budget->second != second) {
		budget->second = second;
		budget->sent = 0;
	}
	return budget->sent++ < ANSWERS_PER_SECOND;
}

static __always_inline bool answer_refuses(__u32 reason)
{
	return reason >= DROP_NO_BACKEND && reason <= DROP_NO_FLOW;
}

/* Whether there is an answer to a packet dropped for this reason. */
static __always_inline bool answer_is_known(__u32 reason)
{
	return answer_refuses(reason) || reason == DROP_HOP_LIMIT || reason == DROP_TOO_BIG;
}

/* The answer to a packet dropped for a reason that has one. router: our own address. */
static __always_inline int answer_drop(struct __sk_buff *skb, struct scratch *s, __u32 reason,
				       const struct addr *router)
{
	if (!packet_may_be_answered(&s->packet) || !answer_is_due(&s->packet))
		return -DROP_ANSWERED;
	if (!answer_refuses(reason)) {
		s->answer.source = *router;
		if (addr_is_zero(router))
			return -DROP_ANSWERED;
		if (reason == DROP_HOP_LIMIT)
			return answer_with_error(skb, s, HOP_LIMIT_TYPE, HOP_LIMIT_CODE, 0);
		return answer_with_error(skb, s, TOO_BIG_TYPE, TOO_BIG_CODE,
					 bpf_htonl(s->packet.mtu));
	}
	s->answer.source = s->packet.tuple.dst;
	if (s->packet.tuple.protocol == IPPROTO_TCP && s->packet.fragment == FRAGMENT_NONE)
		return answer_with_reset(skb, s);
	if (s->packet.tuple.protocol == IPPROTO_UDP || s->packet.tuple.protocol == IPPROTO_SCTP)
		return answer_with_error(skb, s, UNREACHABLE_TYPE, UNREACHABLE_CODE, 0);
	return -DROP_ANSWERED;
}

#endif
