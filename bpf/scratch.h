/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What a program knows of the packet in hand, one a CPU. It lies in a map and
 * not on the stack for two reasons: the stack has 512 bytes, and the verifier
 * follows every known value on the stack through every path, which costs it
 * millions of steps, while what is read from a map is unknown alike on all.
 *
 * A program runs to its end on its CPU with bottom halves off, so no other
 * packet comes in between.
 */
#ifndef PODLANE_SCRATCH_H
#define PODLANE_SCRATCH_H

#include "abi.h"

enum fragment_state {
	FRAGMENT_NONE = 0,
	FRAGMENT_FIRST = 1,
	FRAGMENT_LATER = 2,
};

/* One packet as parsed; tuple and hop_limit follow what is rewritten. */
struct packet {
	struct flow_key tuple;
	__u32 length; /* bytes of the whole frame */
	__u32 end; /* where the IP packet ends: a short frame may be padded beyond */
	__u32 fragment_id;
	__u32 l4; /* offset of the transport header */
	__u8 tcp_flags; /* of SCTP, what its first chunk means, in TCP's words */
	__u8 hop_limit;
	__u8 fragment; /* enum fragment_state */
	__u8 icmp_type;
	__u8 has_ports; /* ports (or an echo id) are in the tuple */
	__u8 plain; /* no IPv4 options, no IPv6 extension headers */
	__u8 may_fragment; /* IPv4 without DF */
	__u8 to_stack; /* larger than the next link takes, and may be fragmented there */
	__u8 direct; /* another node's client, for direct return */
	__u8 icmp_error; /* an ICMP error, and what it quotes is in inner */
	__be32 sctp_change; /* bits of an SCTP packet's ports that were rewritten */
	__u32 mtu; /* of the link that the packet is too big for */
	__u32 l4_size; /* bytes of the transport header */
	__u32 endpoint_id; /* the sending pod; 0: none */
	__u32 inner_l3; /* offsets of the quoted packet */
	__u32 inner_l4;
	struct flow_key inner; /* tuple of a reply to the quoted packet */
	struct flow_key other; /* room for the key of the flow's other half */
	struct fragment_key whole; /* room for the key of the packet that this is a fragment of */
};

/* Whether a new flow may be an old one whose original half was evicted. */
enum revive {
	REVIVE_NO = 0, /* it opens a connection */
	REVIVE_ONLY = 1, /* it is mid-flow: find the source port that it had, or refuse */
	REVIVE_FIRST = 2, /* nothing tells: look for the port that it had, then take another */
};

struct answer_budget {
	__u64 second; /* CLOCK_MONOTONIC */
	__u32 sent;
	__u32 zero;
};

/* Who asks a Service with session affinity, and room to remember it by. */
struct recall {
	struct affinity_key who;
	struct affinity memory;
};

/* A flow while it is made, and how its source port is to be chosen. */
struct flow_draft {
	struct flow flow;
	__u8 masquerade; /* source is an address of this node: ports come from its range */
	__u8 revive; /* enum revive */
	__u8 plain; /* no Service */
	__u8 zero;
	__be16 port[2]; /* source ports that were found; 0: none */
	struct recall recall;
};

/* Sums alike for both families: RFC 793 3.1 and RFC 8200 8.1, in 32-bit words. */
struct pseudo_header {
	struct addr src;
	struct addr dst;
	__be32 length;
	__be32 protocol;
};

/* Room for an answer that is built from nothing. */
struct answer {
	struct addr source;
	struct pseudo_header pseudo;
	__u8 header[40]; /* IP */
	__u8 body[64]; /* ICMP, with what it quotes; TCP */
};

struct scratch {
	struct packet packet;
	struct peer_key peer; /* who encapsulated it */
	struct answer answer;
	struct flow_draft draft;
	struct flow_key closed; /* a flow that makes room for another */
	struct verdict verdict;
};

#endif
