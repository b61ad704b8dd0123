/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * socket: the node's own processes and its hostNetwork pods, at their system
 * calls. No packet of theirs is translated: the socket's partner is.
 *
 *	connect     -> [socket of the node's namespace?] -> [a Service's frontend?]
 *	               | no: as it is                       | no: as it is, or refused
 *	                                                    +-> choose a backend, remember -> connect to it
 *	sendmsg     -> the same for a datagram; whom the socket sent to before is kept while it serves
 *	recvmsg     -> [from a backend that this socket sent to as a frontend?] -> show the frontend
 *	getpeername -> [connected to a backend in a frontend's place?] -> show the frontend
 *	release     -> forget the socket
 *
 * An IPv6 socket that talks IPv4 (::ffff:a.b.c.d, RFC 4291 2.5.5.2) passes the
 * IPv6 hooks, but its Services are IPv4's: the IPv4 compile has *_mapped
 * programs for it, which sit at the IPv6 hooks. Its sendmsg needs none, since
 * the kernel takes such a datagram to the IPv4 hook.
 *
 * These run in the process's context, where a packet's program may come in
 * between: nothing here lies in per-CPU scratch, and counters grow atomically.
 */
#ifndef PODLANE_SOCKET_H
#define PODLANE_SOCKET_H

#include <linux/errno.h>
#include "forward.h"

/* what a program returns; other values are refused by the verifier */
#define SOCKET_REFUSE 0
#define SOCKET_GO_ON  1

/* bcc 0.26 does not declare it */
static int (*set_retval)(int retval) = (void *)BPF_FUNC_set_retval;

/* What is needed until a backend is chosen, and after: half of the stack is all that one may have. */
union socket_room {
	struct {
		struct recall recall;
		struct flow_key tuple;
	};
	struct source_key range;
	struct socket_flow flow;
};

static __always_inline bool socket_is_mapped(const struct bpf_sock_addr *ctx)
{
	return !ctx->user_ip6[0] && !ctx->user_ip6[1] && ctx->user_ip6[2] == bpf_htonl(0xffff);
}

/* Whom the system call names, as a frontend would be named. */
static __always_inline void socket_read(const struct bpf_sock_addr *ctx, bool mapped,
					struct frontend_key *to)
{
	if (FAMILY == 4)
		to->address.word[0] = mapped ? ctx->user_ip6[3] : ctx->user_ip4;
	else
		for (int i = 0; i < ADDR_WORDS; i++)
			to->address.word[i] = ctx->user_ip6[i];
	to->port = ctx->user_port;
	to->protocol = ctx->protocol;
}

static __always_inline void socket_write(struct bpf_sock_addr *ctx, bool mapped,
					 const struct addr *address, __be16 port)
{
	if (FAMILY == 4 && mapped)
		ctx->user_ip6[3] = address->word[0];
	else if (FAMILY == 4)
		ctx->user_ip4 = address->word[0];
	else
		for (int i = 0; i < ADDR_WORDS; i++)
			ctx->user_ip6[i] = address->word[i];
	ctx->user_port = port;
}

/* The node's record if this is a socket of the node, NULL for everybody else's. */
static __always_inline struct node *socket_node(void *ctx)
{
	struct node *n = node_get();

	return n && n->netns_cookie && bpf_get_netns_cookie(ctx) == n->netns_cookie ? n : NULL;
}

/*
 * The frontend of a partner. NULL: none, and *refusal says whether the socket
 * may have the partner as it is (0) or not (-DROP_x).
 */
static __always_inline struct frontend *socket_frontend(const struct frontend_key *to, int *refusal)
{
	struct frontend *fe;
	struct route *route;

	*refusal = 0;
	if (to->protocol != IPPROTO_TCP && to->protocol != IPPROTO_UDP)
		return NULL;
	fe = frontends.lookup(to);
	/* port 0 sends nothing: resolvers connect so to learn which address they would have */
	if (fe || !to->port)
		return fe && fe->kind != FRONTEND_ADDRESS ? fe : NULL;
	if (service_has_address(&to->address)) {
		*refusal = -DROP_NO_PORT;
		return NULL;
	}
	route = route_find(&to->address);
	if (route && route->kind == ROUTE_SERVICE)
		*refusal = -DROP_NO_SERVICE;
	return NULL;
}

/* What the socket's choice of a backend hangs on: itself and the frontend. */
static __always_inline void socket_tuple(struct flow_key *tuple, const struct frontend_key *to,
					 __u64 cookie)
{
	__builtin_memset(tuple, 0, sizeof(*tuple));
	tuple->src.word[0] = cookie;
	tuple->sport = cookie >> 32;
	tuple->dst = to->address;
	tuple->dport = to->port;
	tuple->protocol = to->protocol;
}

/* Chooses a backend. 0: room->flow is the flow to it; else -DROP_x. */
static __always_inline int socket_choose(union socket_room *room, const struct frontend_key *to,
					 const struct frontend *fe, const struct node *n,
					 __u64 cookie)
{
	__u32 service_id = fe->service_id, id = 0;
	struct service *svc = services.lookup(&service_id);
	struct socket_flow *f = &room->flow;
	struct backend *b;
	int err = 0;

	if (!svc)
		return -DROP_NO_SERVICE;
	err = service_check_source(svc, fe, &n->primary, &room->range);
	if (err)
		return err;
	socket_tuple(&room->tuple, to, cookie);
	/* all of the node's own processes are one client, whichever address they will have */
	room->recall.who.client = n->primary;
	room->recall.who.service_id = service_id;
	/* a packet that meets a set while it changes is sent again; a system call only fails */
	for (int i = 0; i < 2; i++) {
		err = service_select_backend(&room->recall, svc,
					     service_uses_local(svc, fe, &n->primary, false), false,
					     &room->tuple, n->hash_seed, &id, &b);
		if (err == -DROP_BACKEND_SET)
			continue;
		if (err)
			return err;
		__builtin_memset(f, 0, sizeof(*f));
		f->generation = b->generation;
		f->started = bpf_ktime_get_ns();
		f->frontend = to->address;
		f->backend = b->address;
		f->frontend_port = to->port;
		f->backend_port = b->port;
		f->backend_id = id;
		f->service_id = service_id;
		f->version = SOCKET_VERSION;
		f->protocol = to->protocol;
		return 0;
	}
	return -DROP_BACKEND_SET;
}

/* A datagram's partner may stay while it serves, and the frontend is still the same Service's. */
static __always_inline bool socket_holds(const struct socket_flow *f, const struct frontend *fe)
{
	__u32 id = f->backend_id;
	struct backend *b = backends.lookup(&id);

	return f->service_id == fe->service_id && b && b->generation == f->generation &&
	       b->flags & BACKEND_SERVING;
}

/* Its bytes are not known here: the node's own packets are counted where they are pods'. */
static __always_inline void socket_count(const struct socket_flow *f, bool new)
{
	__u32 service = f->service_id, backend = f->backend_id;
	struct service_counter *c;

	c = service_counters.lookup(&service);
	if (c) {
		if (new)
			__sync_fetch_and_add(&c->flows, 1);
		__sync_fetch_and_add(&c->packets, 1);
	}
	c = backend_counters.lookup(&backend);
	if (c) {
		if (new)
			__sync_fetch_and_add(&c->flows, 1);
		__sync_fetch_and_add(&c->packets, 1);
	}
}

/*
 * Refuses the system call: with ECONNREFUSED where a packet would be refused
 * actively, else with EPERM, which is what a packet filter's drop gives to a
 * datagram's sender; who connects by TCP need not wait for its time-out.
 */
static __always_inline int socket_refuse(int err)
{
	__u32 reason = -err, index = HOOK_SOCKET * DROP_MAX + reason, zero = 0;
	struct counter *c = drops.lookup(&index);
	struct verdict *v = verdicts.lookup(&zero);

	if (c)
		__sync_fetch_and_add(&c->packets, 1);
	if (v) {
		__builtin_memset(v, 0, sizeof(*v));
		v->action = ACTION_DROP;
		v->reason = reason;
		v->hook = HOOK_SOCKET;
	}
	if (reason == DROP_NO_BACKEND || reason == DROP_NO_PORT)
		set_retval(-ECONNREFUSED);
	return SOCKET_REFUSE;
}

static __always_inline int socket_connect(struct bpf_sock_addr *ctx, bool mapped)
{
	__u64 cookie = bpf_get_socket_cookie(ctx);
	struct node *n = socket_node(ctx);
	union socket_room room;
	struct frontend_key to = {};
	struct frontend *fe;
	int err;

	if (!n)
		return SOCKET_GO_ON;
	socket_read(ctx, mapped, &to);
	fe = socket_frontend(&to, &err);
	if (!fe && err)
		return socket_refuse(err);
	if (!fe) {
		/* a datagram socket may connect again, to what is nobody's frontend */
		if (sockets.lookup(&cookie))
			sockets.delete(&cookie);
		return SOCKET_GO_ON;
	}
	err = socket_choose(&room, &to, fe, n, cookie);
	if (err)
		return socket_refuse(err);
	if (sockets.update(&cookie, &room.flow))
		return socket_refuse(-DROP_FLOW_TABLE);
	socket_write(ctx, mapped, &room.flow.backend, room.flow.backend_port);
	socket_count(&room.flow, true);
	return SOCKET_GO_ON;
}

/* Both sides of a datagram's partner, the reply's first: an answer may be quicker than we are. */
static __always_inline int socket_remember(struct socket_key *key, struct socket_flow *flow)
{
	key->address = flow->backend;
	key->port = flow->backend_port;
	key->side = SOCKET_FROM_BACKEND;
	if (datagrams.update(key, flow))
		return -DROP_FLOW_TABLE;
	key->address = flow->frontend;
	key->port = flow->frontend_port;
	key->side = SOCKET_TO_FRONTEND;
	return datagrams.update(key, flow) ? -DROP_FLOW_TABLE : 0;
}

/* A socket that was closed from outside, or disconnected (AF_UNSPEC), keeps its record, but not this. */
static __always_inline bool socket_is_connected(const struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;

	return sk->state == BPF_TCP_ESTABLISHED;
}

/*
 * A datagram that names the frontend its socket is connected to goes to the
 * same backend: from no other would the kernel let the socket hear an answer.
 */
static __always_inline bool socket_send_connected(struct bpf_sock_addr *ctx, __u64 cookie,
						  const struct frontend_key *to,
						  const struct frontend *fe,
						  struct socket_flow *copy)
{
	struct socket_flow *f;

	if (!socket_is_connected(ctx))
		return false;
	f = sockets.lookup(&cookie);
	if (!f || !addr_equal(&f->frontend, &to->address) || f->frontend_port != to->port)
		return false;
	*copy = *f;
	if (sockets.lookup(&cookie) != f || !socket_holds(copy, fe))
		return false;
	socket_write(ctx, false, &copy->backend, copy->backend_port);
	socket_count(copy, false);
	return true;
}

/* Who is sent to by a backend's own address shows it: its answers are no frontend's any more. */
static __always_inline void socket_send_directly(__u64 cookie, const struct frontend_key *to)
{
	struct socket_key key = {};

	key.cookie = cookie;
	key.address = to->address;
	key.port = to->port;
	key.side = SOCKET_FROM_BACKEND;
	if (datagrams.lookup(&key))
		datagrams.delete(&key);
}

static __always_inline int socket_send(struct bpf_sock_addr *ctx)
{
	__u64 cookie = bpf_get_socket_cookie(ctx);
	struct socket_flow *known, *back;
	union socket_room room;
	struct node *n = socket_node(ctx);
	struct socket_key key = {};
	struct frontend_key to = {};
	struct frontend *fe;
	bool new;
	int err;

	if (!n)
		return SOCKET_GO_ON;
	socket_read(ctx, false, &to);
	fe = socket_frontend(&to, &err);
	if (!fe && err)
		return socket_refuse(err);
	if (!fe) {
		socket_send_directly(cookie, &to);
		return SOCKET_GO_ON;
	}
	if (socket_send_connected(ctx, cookie, &to, fe, &room.flow))
		return SOCKET_GO_ON;
	key.cookie = cookie;
	key.address = to.address;
	key.port = to.port;
	known = datagrams.lookup(&key);
	/* the kernel may give an evicted entry's memory to another socket's flow: copy, then look */
	if (known)
		room.flow = *known;
	new = !known || !socket_holds(&room.flow, fe);
	if (new) {
		err = socket_choose(&room, &to, fe, n, cookie);
		if (err)
			return socket_refuse(err);
	}
	key.address = room.flow.backend;
	key.port = room.flow.backend_port;
	key.side = SOCKET_FROM_BACKEND;
	back = datagrams.lookup(&key);
	/* evicted, or taken by another frontend with the same backend: whom was sent to last counts */
	if (new || !back || back->generation != room.flow.generation ||
	    !addr_equal(&back->frontend, &room.flow.frontend) ||
	    back->frontend_port != room.flow.frontend_port) {
		err = socket_remember(&key, &room.flow);
		if (err)
			return socket_refuse(err);
	}
	socket_write(ctx, false, &room.flow.backend, room.flow.backend_port);
	socket_count(&room.flow, new);
	return SOCKET_GO_ON;
}

/* The frontend that a connected socket asked for, into *name, if from is the backend that it got. */
static __always_inline bool socket_connected(__u64 cookie, const struct frontend_key *from,
					     struct frontend_key *name)
{
	struct socket_flow *f = sockets.lookup(&cookie);

	if (!f || !addr_equal(&f->backend, &from->address) || f->backend_port != from->port)
		return false;
	name->address = f->frontend;
	name->port = f->frontend_port;
	/* evicted meanwhile, its memory may be another socket's */
	return sockets.lookup(&cookie) == f;
}

/* Likewise of a socket that sent to it without being connected. */
static __always_inline bool socket_asked(__u64 cookie, const struct frontend_key *from,
					 struct frontend_key *name)
{
	struct socket_key key = {};
	struct socket_flow *f;

	key.cookie = cookie;
	key.address = from->address;
	key.port = from->port;
	key.side = SOCKET_FROM_BACKEND;
	f = datagrams.lookup(&key);
	if (!f)
		return false;
	name->address = f->frontend;
	name->port = f->frontend_port;
	return datagrams.lookup(&key) == f;
}

static __always_inline int socket_name(struct bpf_sock_addr *ctx, bool mapped, bool datagram)
{
	__u64 cookie = bpf_get_socket_cookie(ctx);
	struct frontend_key from = {}, name = {};

	if (!socket_node(ctx))
		return SOCKET_GO_ON;
	socket_read(ctx, mapped, &from);
	if ((!datagram || socket_is_connected(ctx)) && socket_connected(cookie, &from, &name))
		socket_write(ctx, mapped, &name.address, name.port);
	else if (datagram && socket_asked(cookie, &from, &name))
		socket_write(ctx, mapped, &name.address, name.port);
	return SOCKET_GO_ON;
}

int connect(struct bpf_sock_addr *ctx)
{
	return socket_connect(ctx, false);
}

int connect_mapped(struct bpf_sock_addr *ctx)
{
	return socket_is_mapped(ctx) ? socket_connect(ctx, true) : SOCKET_GO_ON;
}

int sendmsg(struct bpf_sock_addr *ctx)
{
	return socket_send(ctx);
}

int recvmsg(struct bpf_sock_addr *ctx)
{
	return socket_name(ctx, false, true);
}

int recvmsg_mapped(struct bpf_sock_addr *ctx)
{
	return socket_is_mapped(ctx) ? socket_name(ctx, true, true) : SOCKET_GO_ON;
}

int getpeername(struct bpf_sock_addr *ctx)
{
	return socket_name(ctx, false, false);
}

int getpeername_mapped(struct bpf_sock_addr *ctx)
{
	return socket_is_mapped(ctx) ? socket_name(ctx, true, false) : SOCKET_GO_ON;
}

/* A socket's end; a cookie that is not there costs a look. */
int release(struct bpf_sock *ctx)
{
	__u64 cookie = bpf_get_socket_cookie(ctx);

	sockets.delete(&cookie);
	return SOCKET_GO_ON;
}

#endif
