/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Everything that the programs and their users (agent, CLI, tests) both see:
 * structs of keys and values, enums, limits. Python reads this very file, so
 * it holds declarations only, and every comment beside an enum value is the
 * text that users are shown.
 *
 * Byte order: addresses (struct addr, hop[], mac[]) and fields of type __be16
 * or __be32 are in network order; all others are in host order.
 * Padding is explicit and zero, because the kernel compares keys as bytes.
 */
#ifndef PODLANE_ABI_H
#define PODLANE_ABI_H

#include <linux/types.h>
#include "config.h"

/* Names the pin folder (v1/). Raised when a map changes in a way that the
 * fields kept in reserve (zero[], version) cannot carry. */
#define ABI_VERSION 1

/* Versions of struct flow's and struct affinity's meaning, within one ABI. */
#define FLOW_VERSION	 1
#define AFFINITY_VERSION 1

/* The same of struct socket_flow. */
#define SOCKET_VERSION 1

/*
 * How long a flow may be silent, in seconds. The programs use them to tell a
 * dead flow from a live one, the agent's sweep to delete.
 */
#define LIFETIME_TCP_SYN	 60
#define LIFETIME_TCP_ESTABLISHED 21600
#define LIFETIME_TCP_CLOSING	 10
#define LIFETIME_TCP_TIME_WAIT	 60
#define LIFETIME_UDP_SINGLE	 30
#define LIFETIME_UDP_STREAM	 180
#define LIFETIME_SCTP		 180
#define LIFETIME_OTHER		 30

/* A pod name has at most 253 bytes, a namespace 63; with '/' and the end. */
#define NAME_LENGTH 320

/* One address of the family that this compile is for: 4 or 16 bytes. */
struct addr {
	__be32 word[ADDR_WORDS];
};

enum hook {
	HOOK_NONE = 0, /* no hook */
	HOOK_FROM_POD = 1, /* packet leaves a pod */
	HOOK_TO_POD = 2, /* packet enters a pod from the node's stack */
	HOOK_FROM_UPLINK = 3, /* packet enters the node from outside */
	HOOK_TO_UPLINK = 4, /* packet leaves the node for outside */
	HOOK_FROM_OVERLAY = 5, /* packet of another node, decapsulated */
	HOOK_TO_OVERLAY = 6, /* packet for another node, to be encapsulated */
	HOOK_SOCKET = 7, /* socket of the node itself connects or sends */
	HOOK_MAX = 8,
};

/*
 * Why a packet went no further. Concern functions return these negated. The
 * first block is answered (TCP RST or ICMP unreachable) where the packet may
 * be answered at all; the rest is silent. New reasons go to the end: numbers
 * are counters' places.
 */
enum drop {
	DROP_NONE = 0, /* not dropped */
	DROP_NO_BACKEND = 1, /* refused: the Service has no usable endpoint */
	DROP_NO_PORT = 2, /* refused: the Service address has no such port */
	DROP_BACKEND_GONE = 3, /* refused: the flow's backend is gone from the Service */
	DROP_NO_FLOW = 4, /* refused: mid-flow segment of a flow that is not known */
	DROP_NO_LOCAL_BACKEND = 5, /* the Local traffic policy leaves no endpoint on this node */
	DROP_NO_SERVICE = 6, /* address of the Service range that no Service has */
	DROP_SPOOFED_SOURCE = 7, /* source address is not the pod's own */
	DROP_SPOOFED_MAC = 8, /* source MAC is not the pod's own */
	DROP_NOT_A_POD = 9, /* interface has the program but is no known pod */
	DROP_NOT_IP = 10, /* neither IPv4, IPv6 nor ARP for the gateway */
	DROP_VLAN = 11, /* pod sent a VLAN tag */
	DROP_TRUNCATED = 12, /* packet shorter than its headers say */
	DROP_MALFORMED = 13, /* header fields contradict each other */
	DROP_EXTENSION = 14, /* more IPv6 extension headers than are walked */
	DROP_FRAGMENT = 15, /* later fragment whose first one was not seen */
	DROP_HOP_LIMIT = 16, /* TTL or hop limit ran out */
	DROP_TOO_BIG = 17, /* larger than the next link takes */
	DROP_NO_ROUTE = 18, /* no node has a pod range with this address */
	DROP_NO_POD = 19, /* address of this node's pod range that no pod has */
	DROP_OVERLAY_VNI = 20, /* encapsulated with another network's VNI */
	DROP_OVERLAY_PEER = 21, /* encapsulated by a host that is no node of ours */
	DROP_OVERLAY_SOURCE = 22, /* inner source is not of the sending node */
	DROP_OVERLAY_KEY = 23, /* tunnel key missing or refused */
	DROP_POD_ENCAPSULATES = 24, /* to a node's VXLAN port: of a pod, or by a Service */
	DROP_PORTS_EXHAUSTED = 25, /* no free masquerade port for this destination */
	DROP_MASQUERADE_UNKNOWN = 26, /* reply to a masquerade port without a flow */
	DROP_FLOW_TABLE = 27, /* the flow table took no new entry */
	DROP_BACKEND_SET = 28, /* backend set changed while it was read */
	DROP_NO_UPLINK = 29, /* no uplink leads to the destination */
	DROP_WRITE = 30, /* kernel refused to change the packet */
	DROP_FLOW_LIMIT = 31, /* the pod has as many flows as one pod may have */
	DROP_MULTICAST = 32, /* multicast or broadcast beyond the pod's own link */
	DROP_NEIGHBOUR = 33, /* neighbour message that a pod may not send */
	DROP_CONFIG = 34, /* internal: node record missing */
	DROP_ANSWERED = 35, /* answer could not be built in this packet */
	DROP_ICMP_QUOTE = 36, /* ICMP error quotes a packet that did not go between its ends */
	DROP_MARTIAN = 37, /* address that no packet on this way may have */
	DROP_SOURCE_RANGE = 38, /* source is in none of the Service's loadBalancerSourceRanges */
	DROP_TAIL = 39, /* internal: the program that goes on with it is missing */
	DROP_DIRECT = 40, /* direct return: no endpoint of what was asked for is on this node */
	DROP_SCTP_FRAGMENT = 41, /* fragment of SCTP: its sum would change with its ports */
	DROP_MAX = 48,
};

/* Programs that others end in, by their place in `tails`. */
enum tail {
	TAIL_START = 0, /* first packet of a flow: where it goes */
	TAIL_CLAIM = 1, /* the same: its tuples, and on its way */
	TAIL_ANSWER = 2, /* packet whose sender is told why it goes no further */
	TAIL_SCTP = 3, /* SCTP whose ports were rewritten: its checksum, and on its way */
	TAIL_MAX = 4,
};

/* What a frontend is. Decides policy, masquerade and what `services` shows. */
enum frontend_kind {
	FRONTEND_ADDRESS = 1, /* whole address: any other port of it is refused */
	FRONTEND_CLUSTER_IP = 2, /* ClusterIP */
	FRONTEND_NODE_PORT = 3, /* NodePort */
	FRONTEND_LOAD_BALANCER = 4, /* LoadBalancer */
	FRONTEND_EXTERNAL_IP = 5, /* ExternalIP */
	FRONTEND_HOST_PORT = 6, /* HostPort */
};

enum service_flag {
	SERVICE_INTERNAL_LOCAL = 1, /* internalTrafficPolicy: Local */
	SERVICE_EXTERNAL_LOCAL = 2, /* externalTrafficPolicy: Local */
	SERVICE_AFFINITY = 4, /* sessionAffinity: ClientIP */
	SERVICE_SOURCE_RANGES = 8, /* loadBalancerSourceRanges given */
	SERVICE_RANGES_ODD = 16, /* which of its two lists of ranges counts */
};

/* What a backend may still be sent. Gone: no bit set. */
enum backend_flag {
	BACKEND_LISTED = 1, /* its address is in a slice of this Service port */
	BACKEND_SERVING = 2, /* it serves: UDP flows may stay */
	BACKEND_SELECTABLE = 4, /* new flows may choose it */
	BACKEND_LOCAL = 8, /* it is a pod of this node */
	BACKEND_IN_CLUSTER = 16, /* it is in the set for the Cluster policy */
	BACKEND_IN_LOCAL = 32, /* it is in the set for the Local policy */
};

enum route_kind {
	ROUTE_STACK = 1, /* the node's kernel decides */
	ROUTE_NODE = 2, /* an address of this node */
	ROUTE_LOCAL = 3, /* this node's pod range */
	ROUTE_TUNNEL = 4, /* another node's pod range, through the overlay */
	ROUTE_NATIVE = 5, /* another node's pod range, by next hop */
	ROUTE_WORLD = 6, /* outside, through an uplink */
	ROUTE_SERVICE = 7, /* a Service address range */
	ROUTE_UNREACHABLE = 8, /* a cluster range that no node has */
};

enum route_flag {
	ROUTE_MASQUERADE = 1, /* pods are hidden behind the uplink's address */
	ROUTE_CLUSTER = 2, /* sources in it count as inside the cluster */
	ROUTE_HOP_IS_NODE = 4, /* NATIVE: the next hop is the other node itself */
};

enum node_flag {
	NODE_VXLAN = 1, /* mode: vxlan */
	NODE_MASQUERADE_ALL = 2, /* masqueradeAll */
	NODE_DIRECT = 4, /* loadBalancerMode: dsr */
};

enum endpoint_flag {
	ENDPOINT_SHAPED = 1, /* packets into the pod go by the shaper of its host veth */
};

enum flow_flag {
	FLOW_REPLY = 1, /* this entry is keyed by the reply's tuple */
	FLOW_NAT_DST = 2, /* destination translated: frontend to backend */
	FLOW_NAT_SRC = 4, /* source translated: client to source */
	FLOW_VIA_STACK = 8, /* first packet came through the node's stack */
	FLOW_TO_NODE = 16, /* client is the node itself */
	FLOW_DIRECT = 32, /* sent on as it came; the backend's node translates and answers */
};

/* Bits, one a direction, so that both halves can be merged by OR. */
enum flow_state {
	FLOW_SEEN_REPLY = 1, /* answered; TCP: and the client went on, so it is established */
	FLOW_FIN_CLIENT = 2, /* client closed its side */
	FLOW_FIN_BACKEND = 4, /* backend closed its side */
	FLOW_RESET = 8, /* reset by one side */
	FLOW_BACKEND_FIRST = 16, /* backend closed first, so it holds the tuple in TIME_WAIT */
	FLOW_LASTING = 32, /* UDP: used for longer than one question and its answer take */
	FLOW_SYN_ANSWERED = 64, /* TCP: answered; half open until FLOW_SEEN_REPLY is set, too */
};

/* ---- the node: one record a family; read by every program ---- */
struct node {
	struct addr router; /* source of node-to-pod traffic, NodePort SNAT, hairpin */
	struct addr gateway; /* link-local next hop of every pod */
	__u32 flags; /* enum node_flag */
	__u32 overlay_ifindex;
	__u32 vni; /* of packets between pods; direct return's is the next one */
	__u32 hash_seed;
	__u16 masquerade_min; /* masquerade ports and echo ids, inclusive */
	__u16 masquerade_max;
	__be16 vxlan_port;
	__u16 pod_mtu;
	__u32 flows_per_pod; /* new flows beyond this many live ones are dropped; 0: no bound */
	__u8 overlay_mac[6]; /* inner MAC of both ends, equal on all nodes */
	__u8 gateway_mac[6]; /* MAC of every host veth: the gateway as pods see it */
	__u64 netns_cookie; /* of the node's network namespace; 0: not known, no socket is the node's */
	struct addr primary; /* the address that others know the node by; zero: none */
	__u32 closed_flows; /* that may rest in the flow table: places in the map; 0: no bound */
	__u32 zero[4 - ADDR_WORDS / 4]; /* for later; to a multiple of 8 */
};

struct uplink {
	struct addr address; /* masquerade source; zero: none of this family */
	__u32 mtu;
	__u8 mac[6];
	__u8 zero[2];
};

/* ---- pods of this node ---- */
struct endpoint {
	__u32 ifindex; /* host veth */
	__u32 id; /* place in endpoint_counters, key in names */
	__u32 identity; /* for policy; zero until there is one */
	__u32 flags; /* enum endpoint_flag */
	__u8 mac[6]; /* pod side */
	__u8 zero[2];
};

/* ---- routes: longest prefix first ---- */
struct route_key {
	__u32 prefix; /* length in bits */
	struct addr address;
};

struct route {
	__u8 kind; /* enum route_kind */
	__u8 hop_family; /* 4 or 6; family of hop[] */
	__u16 flags; /* enum route_flag */
	__u32 ifindex; /* NATIVE, WORLD: uplink */
	__u8 hop[16]; /* TUNNEL, a node's own address: the tunnel's end; NATIVE: next hop; IPv4 in the first 4 */
};

/* A node that may send us encapsulated packets; IPv4 in the first 4 bytes. */
struct peer_key {
	__u8 address[16];
	__u8 family; /* 4 or 6 */
	__u8 zero[3];
};

struct peer {
	__u32 node_id; /* key in names */
};

/* RFC 8201 4: not less than five minutes, better ten */
#define LIFETIME_PATH_MTU 600

/* Bytes of IPv6 that a path between nodes takes, as a router on it said. */
struct path_mtu {
	__u64 until; /* CLOCK_MONOTONIC, ns */
	__u32 mtu;
	__u32 zero;
};

/* ---- Services ---- */
struct frontend_key {
	struct addr address;
	__be16 port; /* 0 with protocol 0: the whole address */
	__u8 protocol; /* IPPROTO_* */
	__u8 zero;
};

struct frontend {
	__u32 service_id;
	__u8 kind; /* enum frontend_kind */
	__u8 zero[3];
};

/*
 * Who may ask a Service's load-balancer addresses. A Service has two lists, of
 * which its record names the one that counts, so that they change by one write:
 * list is the service id << 1, plus 1 with SERVICE_RANGES_ODD.
 */
struct source_key {
	__u32 prefix; /* length in bits, those of list included */
	__u32 list;
	struct addr address;
};

struct source {
	__u32 service_id;
};

/*
 * A backend set is one u64, so that a packet that reads it once sees all of
 * the old set or all of the new: base << 36 | count << 16 | epoch. Its slots
 * are base .. base + count - 1 and carry the same epoch.
 */
#define SET_EPOCH_BITS 16
#define SET_COUNT_BITS 20
#define SET_BASE_BITS  28

struct service {
	__u64 cluster; /* set for the Cluster policy, after topology */
	__u64 local; /* set for the Local policy */
	__u32 flags; /* enum service_flag */
	__u32 affinity_seconds;
};

struct slot {
	__u32 backend_id;
	__u16 epoch;
	__u16 zero;
};

struct backend {
	__u64 generation; /* changes when, and only when, the backend is gone or its id reused */
	struct addr address;
	__u32 service_id;
	__be16 port;
	__u8 protocol;
	__u8 flags; /* enum backend_flag; 0: gone */
	__u32 zero[(ADDR_WORDS + 4) / 4]; /* to a multiple of 8: one word (IPv4) or two */
};

/* ---- session affinity: one memory a client and Service port, over all of its addresses ---- */
struct affinity_key {
	struct addr client;
	__u32 service_id;
};

struct affinity {
	__u64 generation; /* of the backend when it was chosen */
	__u64 last_used; /* ns, CLOCK_MONOTONIC; the client's last new flow */
	__u32 backend_id;
	__u8 version; /* AFFINITY_VERSION */
	__u8 zero[11];
};

/* ---- flows ---- */
struct flow_key {
	struct addr src;
	struct addr dst;
	__be16 sport; /* ICMP echo: the identifier, in both */
	__be16 dport;
	__u8 protocol;
	__u8 zero[3];
};

/*
 * A flow is two entries, original and reply key, each holding the whole flow:
 * original client:client_port -> frontend:frontend_port, as rewritten
 * source:source_port -> backend:backend_port.
 */
struct flow {
	struct addr client;
	struct addr frontend;
	struct addr source;
	struct addr backend;
	__be16 client_port;
	__be16 frontend_port;
	__be16 source_port;
	__be16 backend_port;
	__u64 generation; /* of the backend when it was chosen */
	__u64 last_seen; /* ns, CLOCK_MONOTONIC; this direction's last packet */
	__u64 packets; /* this direction */
	__u64 bytes;
	__u32 backend_id; /* 0: no Service */
	__u32 service_id; /* 0: no Service */
	__u32 ifindex; /* uplink that the client came by, or the overlay if it is a node itself; 0: none */
	__u32 identity; /* the client's, for policy */
	__u8 version; /* FLOW_VERSION */
	__u8 protocol;
	__u8 flags; /* enum flow_flag */
	__u8 state; /* enum flow_state */
	__u32 checked; /* ns >> 20: when the other half was last seen to stand */
	__u8 zero[8];
};

/* ---- sockets of the node itself ---- */
enum socket_side {
	SOCKET_TO_FRONTEND = 0, /* found by the frontend that the datagram is sent to */
	SOCKET_FROM_BACKEND = 1, /* found by the backend that the datagram comes from */
};

/* A partner of a socket that is not connected. Cookies are never used again. */
struct socket_key {
	__u64 cookie; /* of the socket */
	struct addr address; /* frontend or backend */
	__be16 port;
	__u8 side; /* enum socket_side */
	__u8 zero[1 + ADDR_WORDS / 4 * 4];
};

/* What a socket's partner was called before it was translated. */
struct socket_flow {
	__u64 generation; /* of the backend when it was chosen */
	__u64 started; /* ns, CLOCK_MONOTONIC */
	struct addr frontend;
	struct addr backend;
	__be16 frontend_port;
	__be16 backend_port;
	__u32 backend_id;
	__u32 service_id;
	__u8 version; /* SOCKET_VERSION */
	__u8 protocol;
	__u8 zero[10];
};

struct fragment_key {
	struct addr src;
	struct addr dst;
	__u32 id; /* IPv4: 16 bits of it */
	__u8 protocol;
	__u8 zero[3];
};

struct fragment {
	__be16 sport;
	__be16 dport;
};

/* ---- counters ---- */
struct counter {
	__u64 packets;
	__u64 bytes;
};

struct service_counter {
	__u64 flows; /* new flows */
	__u64 packets; /* both directions */
	__u64 bytes;
};

struct endpoint_counter {
	__u64 to_packets; /* into the pod */
	__u64 to_bytes;
	__u64 from_packets; /* out of the pod */
	__u64 from_bytes;
};

/* Live flows that a pod opened. Programs add one a flow; the sweep writes the true number. */
struct flow_budget {
	__u32 live;
};

/* How long what the last sweep wrote may be believed: without sweeps, budgets only grow. */
struct sweep {
	__u64 until; /* CLOCK_MONOTONIC, ns */
};

/* A destination for which no masquerade port was free. */
struct exhausted_key {
	struct addr address;
	__be16 port;
	__u8 protocol;
	__u8 zero;
};

/* ---- names: what ids mean to people; no program reads it ---- */
enum name_kind {
	NAME_SERVICE = 1, /* namespace/name:port */
	NAME_ENDPOINT = 2, /* namespace/pod */
	NAME_NODE = 3, /* node */
};

struct name_key {
	__u32 kind; /* enum name_kind */
	__u32 id;
};

struct name {
	char text[NAME_LENGTH];
};

/* ---- what the last packet on this CPU came to: test runs and explain read it ---- */
enum action {
	ACTION_PASS = 1, /* not ours: on to the next filter and the stack */
	ACTION_DROP = 2, /* dropped */
	ACTION_POD = 3, /* straight into a pod of this node */
	ACTION_TUNNEL = 4, /* to another node through the overlay */
	ACTION_NATIVE = 5, /* to another node by next hop */
	ACTION_WORLD = 6, /* out by an uplink */
	ACTION_ANSWER = 7, /* sent back: refused, or an answer to ARP or neighbour discovery */
	ACTION_SHAPED = 8, /* into a pod of this node, by the shaper of its host veth */
};

struct verdict {
	__u32 action; /* enum action */
	__u32 reason; /* enum drop */
	__u32 hook; /* enum hook */
	__u32 ifindex; /* where it goes; 0: nowhere or the stack */
	__u8 hop_family;
	__u8 zero[3];
	__u8 hop[16]; /* tunnel remote or next hop */
	__u32 service_id;
	__u32 backend_id;
	__u32 flow_flags;
};

#endif
