/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * A packet's way through the node, the same at every hook that forwards:
 *
 *	1. The flow table knows the tuple: translate as it says.
 *	2. Otherwise, a Service's frontend: choose a backend.
 *	3. Otherwise, a plain flow.
 *	   2 and 3 write both halves of the flow before the packet goes on.
 *	4. Hand over to where the (translated) destination is.
 *
 * A TCP segment that opens nothing and belongs to no known flow is not given
 * a flow: a translated one is revived from its other half or refused, a plain
 * one is left to the node's stack, which may know it.
 */
#ifndef PODLANE_FORWARD_H
#define PODLANE_FORWARD_H

#include "nat.h"
#include "verdict.h"

static __always_inline struct node *node_get(void)
{
	__u32 zero = 0;

	return node.lookup(&zero);
}

/* Rewrites a packet as its flow says; which half was found tells the direction. */
static __always_inline int flow_translate(struct __sk_buff *skb, struct packet *p,
					  const struct flow *f)
{
	bool reply = f->flags & FLOW_REPLY;
	__u8 flags = f->flags;
	__be16 sport = reply ? f->frontend_port : f->source_port;
	__be16 dport = reply ? f->client_port : f->backend_port;
	int err;

	if (!(flags & (FLOW_NAT_SRC | FLOW_NAT_DST)))
		return 0;
	/* an echo has one identifier, which packet_rewrite_* keep in both places */
	if (packet_is_echo(p))
		sport = dport = reply ? f->client_port : f->source_port;
	/* an entry may be evicted and its memory given away meanwhile: copy, then use */
	p->other.dst = reply ? f->client : f->backend;
	if (flags & (reply ? FLOW_NAT_DST : FLOW_NAT_SRC)) {
		p->other.src = reply ? f->frontend : f->source;
		err = packet_rewrite_source(skb, p, &p->other.src, sport);
		if (err)
			return err;
	}
	if (flags & (reply ? FLOW_NAT_SRC : FLOW_NAT_DST))
		return packet_rewrite_destination(skb, p, &p->other.dst, dport);
	return 0;
}

/*
 * Rewrites an ICMP error about a packet of a translated flow, so that its
 * receiver finds the packet as it sent it. f is the half that a reply to the
 * quoted packet would find, so the error travels as that reply would. The
 * error's own source changes only if it is an end of the flow; a router on the
 * way stays who it is (RFC 5508 section 4.2), but for a backend that knows the
 * client by our address: the node that it is on takes nothing else from us.
 */
static __always_inline int flow_translate_error(struct __sk_buff *skb, struct packet *p,
						const struct flow *f)
{
	struct flow_key *sent = &p->other;
	bool reply = f->flags & FLOW_REPLY;
	int err;

	if (!(f->flags & (FLOW_NAT_SRC | FLOW_NAT_DST)))
		return 0;
	/* the quoted packet as its sender, who now gets the error, sent it */
	sent->src = reply ? f->client : f->backend;
	sent->dst = reply ? f->frontend : f->source;
	sent->sport = reply ? f->client_port : f->backend_port;
	sent->dport = reply ? f->frontend_port : f->source_port;
	if ((!reply && f->flags & FLOW_NAT_SRC) || addr_equal(&p->tuple.src, &p->inner.src)) {
		err = packet_rewrite_source(skb, p, &sent->dst, 0);
		if (err)
			return err;
	}
	err = packet_rewrite_quote(skb, p, sent);
	if (err)
		return err;
	return packet_rewrite_destination(skb, p, &sent->src, 0);
}

/* Whether the destination is the VXLAN port of this node or of a peer. */
static __always_inline bool flow_reaches_overlay(const struct flow *f, const struct node *n,
						 const struct path *path)
{
	struct peer_key key = {};

	if (f->protocol != IPPROTO_UDP || f->backend_port != n->vxlan_port)
		return false;
	if (path_kind(path) == ROUTE_NODE)
		return true;
	__builtin_memcpy(key.address, &f->backend, sizeof(struct addr));
	key.family = FAMILY;
	return peers.lookup(&key) != NULL;
}

/*
 * Whether it comes from another node to an address where no node sends encapsulated
 * packets: a pod of that node, hidden behind it, which does not know all addresses of
 * this one. The stack's VXLAN socket has them all.
 */
static __always_inline bool flow_feigns_overlay(const struct flow *f, const struct node *n,
						const struct path *path)
{
	struct peer_key key = {};

	if (f->protocol != IPPROTO_UDP || f->backend_port != n->vxlan_port ||
	    !(n->flags & (NODE_VXLAN | NODE_DIRECT)) || path_kind(path) != ROUTE_NODE)
		return false;
	__builtin_memcpy(key.address, &f->client, sizeof(struct addr));
	key.family = FAMILY;
	return peers.lookup(&key) != NULL;
}

/* A destination that no Service and no pod of this node has. 0: go on with a flow. */
static __always_inline int flow_check_plain(struct __sk_buff *skb, enum hook hook,
					    const struct packet *p, const struct node *n,
					    struct flow *f, const struct path *path)
{
	__u8 kind = path_kind(path);

	/* a ClusterIP is none of these, and no pod's; whether its range is known or not */
	if ((hook == HOOK_FROM_POD || hook == HOOK_FROM_UPLINK) && kind != ROUTE_NODE &&
	    kind != ROUTE_LOCAL && kind != ROUTE_TUNNEL && kind != ROUTE_NATIVE &&
	    service_has_address(&p->tuple.dst))
		return -DROP_NO_PORT;
	if (hook == HOOK_FROM_POD) {
		if (kind == ROUTE_SERVICE)
			return -DROP_NO_SERVICE;
		if (kind == ROUTE_LOCAL && !path->endpoint)
			return -DROP_NO_POD;
		if (kind == ROUTE_UNREACHABLE)
			return -DROP_NO_ROUTE;
	} else if (hook == HOOK_FROM_OVERLAY) {
		if (!path->endpoint && kind != ROUTE_NODE)
			return -DROP_NO_POD;
	}
	/*
	 * Given to the host, its reset would kill a flow whose entry was evicted. Nodes and pods
	 * reply to the router's address, which hides clients from them.
	 */
	if (kind == ROUTE_NODE && p->has_ports && !packet_is_echo(p) &&
	    (hook == HOOK_FROM_UPLINK || addr_equal(&p->tuple.dst, &n->router)) &&
	    bpf_ntohs(p->tuple.dport) >= n->masquerade_min &&
	    bpf_ntohs(p->tuple.dport) <= n->masquerade_max) {
		f->backend = p->tuple.src;
		f->backend_port = p->tuple.sport;
		f->source = p->tuple.dst;
		f->source_port = p->tuple.dport;
		if (!nat_socket_has(skb, f))
			return -DROP_MASQUERADE_UNKNOWN;
	}
	if (hook == HOOK_FROM_UPLINK) {
		/* the stack would send it on to where its default route leads */
		if (kind == ROUTE_SERVICE)
			return -DROP_NO_SERVICE;
		if (!path->endpoint)
			return ACTION_PASS;
	}
	if (kind == ROUTE_NODE || kind == ROUTE_STACK)
		return ACTION_PASS;
	return 0;
}

/*
 * Whether the source of a new flow is to be rewritten to an address of this
 * node: kube-proxy's rules (docs/decisions/0010), and pods' flows to the world.
 */
static __always_inline bool flow_needs_masquerade(enum hook hook, bool direct, const struct node *n,
						  const struct flow *f, const struct frontend *fe,
						  const struct service *svc,
						  const struct path *path)
{
	struct route *from;

	if ((hook == HOOK_FROM_POD || hook == HOOK_TO_UPLINK) && path_masquerades(path))
		return true;
	if (!fe || !svc)
		return false;
	/* a pod that reaches itself would see its own address as the client's */
	if (addr_equal(&f->client, &f->backend))
		return true;
	/* the one who has the pod sees its replies, and answers with what the client asked for */
	if (direct || (fe->kind != FRONTEND_CLUSTER_IP && hook == HOOK_FROM_UPLINK &&
		       n->flags & NODE_DIRECT && path->endpoint))
		return false;
	/* its own stack's replies to an address of its own would never pass us; to others they do */
	if (path_kind(path) == ROUTE_NODE || fe->kind == FRONTEND_HOST_PORT)
		return false;
	if (fe->kind == FRONTEND_CLUSTER_IP) {
		if (hook == HOOK_FROM_POD || n->flags & NODE_MASQUERADE_ALL)
			return n->flags & NODE_MASQUERADE_ALL;
		from = route_find(&f->client);
		return !from || !(from->flags & ROUTE_CLUSTER);
	}
	if (!(svc->flags & SERVICE_EXTERNAL_LOCAL))
		return true;
	/* the short cut from another node's pod: elsewhere nobody would translate its replies */
	return hook == HOOK_FROM_UPLINK && !path->endpoint;
}

static __always_inline int flow_set_source(struct flow *f, const struct node *n,
					   const struct path *path)
{
	struct uplink *up;
	__u32 ifindex;

	f->source = n->router;
	if (path_kind(path) == ROUTE_WORLD && path->route) {
		ifindex = path->route->ifindex;
		up = uplinks.lookup(&ifindex);
		if (!up)
			return -DROP_NO_UPLINK;
		f->source = up->address;
	}
	if (addr_is_zero(&f->source))
		return -DROP_NO_UPLINK;
	f->flags |= FLOW_NAT_SRC;
	return 0;
}

/* Frontends that clients outside ask for, and that every node answers for. */
static __always_inline bool flow_takes_direct(const struct frontend *fe)
{
	return fe && (fe->kind == FRONTEND_NODE_PORT || fe->kind == FRONTEND_LOAD_BALANCER ||
		      fe->kind == FRONTEND_EXTERNAL_IP);
}

/* Whether the backend's node is to get the packet as it came, and to answer by itself. */
static __always_inline bool flow_goes_direct(enum hook hook, const struct node *n,
					     const struct flow *f, const struct frontend *fe,
					     const struct path *path)
{
	struct route *from;

	if (hook != HOOK_FROM_UPLINK || !(n->flags & NODE_DIRECT) || !flow_takes_direct(fe) ||
	    !route_takes_direct(path))
		return false;
	/* a pod's node would know nothing of such an answer */
	from = route_find(&f->client);
	return !from || !(from->flags & ROUTE_CLUSTER);
}

/*
 * A bound a pod, so that none can push the others' flows out of the table. It is
 * the agent's sweep that counts flows which fell silent off again; while there
 * is no agent, a pod isn't held to what it has opened since.
 */
static __always_inline bool flow_limit_reached(const struct packet *p, const struct node *n)
{
	__u32 id = p->endpoint_id, zero = 0;
	struct flow_budget *budget = endpoint_flows.lookup(&id);
	struct sweep *last;

	if (!budget || !n->flows_per_pod)
		return false;
	/* Signed: two flows that close at once may take it below zero until the next sweep. */
	if ((__s32)budget->live >= (__s32)n->flows_per_pod) {
		last = sweep.lookup(&zero);
		return last && bpf_ktime_get_ns() < last->until;
	}
	__sync_fetch_and_add(&budget->live, 1);
	return false;
}

/*
 * The first packet of a flow. 0: the draft says where it goes and how its
 * source is chosen; ACTION_PASS: not ours; else -DROP_x.
 */
static __always_inline int flow_start(struct __sk_buff *skb, enum hook hook, struct packet *p,
				      const struct node *n, struct flow_draft *draft)
{
	struct flow *f = &draft->flow;
	struct path path = {};
	struct service *svc = NULL;
	struct source_key range;
	struct frontend *fe;
	struct backend *b;
	__u32 id;
	int err;

	ct_draft(draft, p, bpf_ktime_get_ns());
	if (p->tuple.protocol != IPPROTO_TCP)
		draft->revive = REVIVE_FIRST;
	else if (!packet_opens(p))
		draft->revive = REVIVE_ONLY;
	if (p->direct)
		fe = service_lookup_direct(p, n);
	else
		fe = hook == HOOK_FROM_OVERLAY || hook == HOOK_TO_UPLINK ? NULL : service_lookup(p);
	if (p->direct && !flow_takes_direct(fe))
		return -DROP_DIRECT;
	if (fe && fe->kind != FRONTEND_ADDRESS) {
		id = fe->service_id;
		svc = services.lookup(&id);
		if (!svc)
			return -DROP_NO_SERVICE;
		f->service_id = id;
		err = service_check_source(svc, fe, &p->tuple.src, &range);
		if (err)
			return err;
		draft->recall.who.client = f->client;
		draft->recall.who.service_id = id;
		err = service_select_backend(
			&draft->recall, svc,
			p->direct || service_uses_local(svc, fe, &p->tuple.src,
							hook == HOOK_FROM_UPLINK),
			draft->revive == REVIVE_ONLY, &p->tuple, n->hash_seed, &id, &b);
		if (err)
			return p->direct ? -DROP_DIRECT : err;
		f->backend_id = id;
		f->generation = b->generation;
		f->backend = b->address;
		f->backend_port = b->port;
		route_lookup(&f->backend, &path);
		if (flow_goes_direct(hook, n, f, fe, &path))
			f->flags |= FLOW_DIRECT;
		else
			f->flags |= FLOW_NAT_DST;
		if (hook == HOOK_FROM_UPLINK)
			f->ifindex = skb->ifindex;
	} else {
		fe = NULL;
		route_lookup(&f->backend, &path);
		/* the link between nodes need not let a pod's address through: the way it came */
		if (hook == HOOK_FROM_OVERLAY && route_is_node(route_find(&f->client)))
			f->ifindex = n->overlay_ifindex;
	}
	/* Before what passes to the stack: the node's own VXLAN socket is there. Of a Service,
	 * whoever asks: its client would be hidden by an address that a node believes. */
	if ((hook == HOOK_FROM_POD || fe) && flow_reaches_overlay(f, n, &path))
		return -DROP_POD_ENCAPSULATES;
	if (hook == HOOK_FROM_UPLINK && !fe && flow_feigns_overlay(f, n, &path))
		return -DROP_POD_ENCAPSULATES;
	if (!fe) {
		err = flow_check_plain(skb, hook, p, n, f, &path);
		if (err)
			return err;
		if (draft->revive == REVIVE_ONLY && !path_masquerades(&path))
			return ACTION_PASS;
	}
	draft->plain = !fe;
	if (!(f->flags & FLOW_DIRECT) &&
	    flow_needs_masquerade(hook, p->direct, n, f, fe, svc, &path)) {
		draft->masquerade = 1;
		err = flow_set_source(f, n, &path);
		if (err)
			return err;
	}
	if (hook == HOOK_FROM_POD && draft->revive != REVIVE_ONLY && flow_limit_reached(p, n))
		return -DROP_FLOW_LIMIT;
	return 0;
}

/* The same, its tuples. 0: both halves are written; ACTION_PASS: not ours; else -DROP_x. */
static __always_inline int flow_claim(struct __sk_buff *skb, struct packet *p, const struct node *n,
				      struct flow_draft *draft)
{
	struct flow *f = &draft->flow;
	int err = 0;

	/* the replies of what is sent on as it came don't pass here: there is no tuple to claim */
	if (!(f->flags & FLOW_DIRECT))
		err = nat_claim_source(skb, draft, p, n, f->last_seen);
	if (err == -DROP_NO_FLOW && draft->plain)
		return ACTION_PASS;
	if (err)
		return err;
	if (draft->revive == REVIVE_ONLY && !(f->flags & FLOW_DIRECT))
		ct_revive(f, &p->other, p);
	service_count(f, p, draft->revive != REVIVE_ONLY);
	return ct_write_original(f, &p->other, p->length);
}

/* A flow that may not go on as it is: closed and opened anew, or its backend is gone. */
static __always_inline int flow_check(const struct packet *p, struct flow *f)
{
	if (packet_opens(p) && (ct_is_closed(f) || ct_is_dead(f, bpf_ktime_get_ns())))
		return 1;
	if (f->flags & FLOW_REPLY || service_backend_holds(f))
		return 0;
	/* the node that it goes on to knows which of its backends has it */
	if (f->flags & FLOW_DIRECT && packet_is_mid_flow(p))
		return 0;
	return packet_is_mid_flow(p) ? -DROP_BACKEND_GONE : 1;
}

/*
 * Whether what a UDP flow was sent to is a Service's since, or another's: without
 * an end, it would go past that Service for as long as its client talks.
 */
static __always_inline bool flow_asks_another(enum hook hook, const struct packet *p,
					      const struct flow *f)
{
	struct frontend *fe;

	/* where flow_start asks for no frontend either */
	if (hook == HOOK_FROM_OVERLAY || p->tuple.protocol != IPPROTO_UDP || f->flags & FLOW_REPLY)
		return false;
	fe = service_lookup(p);
	return fe && fe->kind != FRONTEND_ADDRESS && fe->service_id != f->service_id;
}

/* Hands a packet over: translates what is still to be translated, then sends it on its path. */
static __always_inline int forward_known(struct __sk_buff *skb, struct scratch *s,
					 const struct node *n, const struct flow *f, bool error)
{
	struct packet *p = &s->packet;
	bool reply = f->flags & FLOW_REPLY;
	__u32 uplink = reply ? f->ifindex : 0;
	struct path path;
	int err;

	s->verdict.service_id = f->service_id;
	s->verdict.backend_id = f->backend_id;
	s->verdict.flow_flags = f->flags;
	p->other.dst = reply ? f->client : f->backend;
	route_lookup(&p->other.dst, &path);
	if (f->flags & FLOW_DIRECT)
		return route_output_direct(skb, p, n, &path, &s->verdict);
	/* refused before anything is written, so that the answer quotes what was sent */
	err = route_check(skb, p, n, &path, uplink);
	if (err < 0)
		return err;
	if (error)
		err = flow_translate_error(skb, p, f);
	else
		err = flow_translate(skb, p, f);
	if (err)
		return err;
	return route_output(skb, p, n, &path, uplink, &s->verdict);
}

/* An ICMP error belongs to the flow of the packet that it quotes. 0: *found is it. */
static __always_inline int forward_error(struct __sk_buff *skb, enum hook hook, struct scratch *s,
					 const struct node *n, struct flow **found)
{
	struct packet *p = &s->packet;
	struct path path;
	int err;

	/* only who got the quoted packet, or a router on its way, may complain of it */
	if (hook == HOOK_FROM_POD && !addr_equal(&p->tuple.src, &p->inner.src))
		return -DROP_ICMP_QUOTE;
	*found = ct_copy(&p->inner, &s->draft.flow);
	if (*found)
		return (*found)->flags & FLOW_VIA_STACK ? ACTION_PASS : 0;
	ct_draft(&s->draft, p, 0);
	*found = &s->draft.flow;
	route_lookup(&p->tuple.dst, &path);
	err = flow_check_plain(skb, hook, p, n, *found, &path);
	if (err)
		return err;
	/* the world can't be told of a flow that is not known here under a pod's address */
	return path_masquerades(&path) ? -DROP_NO_FLOW : 0;
}

static __always_inline int forward_flow(struct __sk_buff *skb, enum hook hook, struct scratch *s,
					struct flow **found)
{
	struct packet *p = &s->packet;
	struct flow *f = flows.lookup(&p->tuple);
	__u32 checked;
	int err;

	if (f) {
		checked = f->checked;
		err = flow_check(p, f);
		if (!err)
			err = ct_touch(f, s);
		/* looked at as rarely as the other half, so the record must not be there for the next */
		if (!err && f->checked != checked && flow_asks_another(hook, p, f)) {
			ct_release_budget(f, &p->other);
			flows.delete(&p->tuple);
			err = 1;
		}
		/* only TCP is told here that its flow has ended; others begin anew, and who gets
		 * SCTP of an association that it does not know ends it (RFC 9260 8.4) */
		if (err < 0 && p->tuple.protocol == IPPROTO_TCP)
			return err;
		if (err)
			f = NULL;
	}
	if (!f)
		return verdict_tail(skb, TAIL_START);
	*found = f;
	service_count(f, p, false);
	return f->flags & FLOW_VIA_STACK ? ACTION_PASS : 0;
}

static __always_inline int forward(struct __sk_buff *skb, enum hook hook, struct scratch *s)
{
	struct node *n = node_get();
	struct flow *f = NULL;
	int err;

	if (!n)
		return -DROP_CONFIG;
	if (s->packet.icmp_error)
		err = forward_error(skb, hook, s, n, &f);
	else
		err = forward_flow(skb, hook, s, &f);
	if (err)
		return err;
	return f ? forward_known(skb, s, n, f, s->packet.icmp_error) : -DROP_CONFIG;
}

#endif
