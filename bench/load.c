// SPDX-License-Identifier: Apache-2.0
/*
 * Load generator and its server, light enough that the path between them is
 * what is measured: blocking calls for one connection, epoll for many.
 *
 *	podlane-bench-load server --port P [--cpu N]
 *	podlane-bench-load MODE --to ADDRESS --port P [--seconds S] [--cpu N]
 *		[--span N] [--parallel N]
 *
 * MODE		what it measures
 * tcp-stream	bytes a second of one connection, counted by the receiver
 * tcp-fetch	bytes a second that the server sends over one connection
 * tcp-rr	one request and its answer at a time over one connection
 * tcp-crr	connect, request, answer, close; --parallel at a time
 * udp-rr	one request and its answer at a time over one socket
 *
 * --span N sends connection i of tcp-crr to ADDRESS + i mod N. The first byte
 * of a connection tells the server what to do with it. One line of JSON on
 * stdout; exit 1 if anything went wrong, so that no bench reports half a run.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define STREAM_BYTES	 (256 * 1024)
#define MESSAGE_BYTES	 64
#define SAMPLES_MAX	 (1 << 22)
#define EVENTS		 256
#define WARM_UP_NS	 200000000LL /* not counted: slow start, ARP, first flow */
#define PATIENCE_SECONDS 5 /* no answer for so long fails the run */

enum work {
	WORK_SINK = 'S', /* count bytes; answer their number at the end */
	WORK_REPLY = 'R', /* send without end */
	WORK_ECHO = 'E', /* answer each message */
	WORK_CLOSE = 'C', /* answer one message and close first */
};

struct options {
	union {
		struct sockaddr any;
		struct sockaddr_in v4;
		struct sockaddr_in6 v6;
	} to;
	uint16_t port;
	double seconds;
	int span;
	int parallel;
};

static char buffer[STREAM_BYTES];

static void __attribute__((noreturn)) fail(const char *what)
{
	fprintf(stderr, "podlane-bench-load: %s: %s\n", what, strerror(errno));
	exit(1);
}

static int64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void set_option(int fd, int level, int name, int value)
{
	if (setsockopt(fd, level, name, &value, sizeof(value)))
		fail("setsockopt");
}

/*
 * Without a pace: a machine's default may be BBR, which guesses a rate from round trips of some
 * 20 us here, and guesses anew in each run. Reno is in every kernel.
 */
static void set_unpaced(int fd)
{
	if (setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "reno", strlen("reno")))
		fail("setsockopt of the congestion control");
}

static void set_patience(int fd)
{
	struct timeval limit = {.tv_sec = PATIENCE_SECONDS};

	if (setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)) ||
	    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit)))
		fail("setsockopt of a time limit");
}

static void write_all(int fd, const void *data, size_t size)
{
	const char *at = data;

	while (size) {
		ssize_t n = send(fd, at, size, MSG_NOSIGNAL);

		if (n < 0)
			fail("send");
		at += n;
		size -= n;
	}
}

static void read_all(int fd, void *data, size_t size)
{
	char *at = data;

	while (size) {
		ssize_t n = recv(fd, at, size, 0);

		if (n == 0)
			errno = ECONNRESET;
		if (n <= 0)
			fail("recv");
		at += n;
		size -= n;
	}
}

/* ---- server ---- */

struct peer {
	int fd;
	char work;
	uint64_t bytes;
};

static int listen_at(int type, uint16_t port)
{
	struct sockaddr_in6 any = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
	int fd = socket(AF_INET6, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	if (fd < 0)
		fail("socket");
	set_option(fd, IPPROTO_IPV6, IPV6_V6ONLY, 0);
	set_option(fd, SOL_SOCKET, SO_REUSEADDR, 1);
	if (type == SOCK_STREAM)
		set_unpaced(fd); /* as are the connections that come of it */
	if (bind(fd, (struct sockaddr *)&any, sizeof(any)))
		fail("bind");
	if (type == SOCK_STREAM && listen(fd, 4096))
		fail("listen");
	return fd;
}

static void watch(int epoll, int fd, struct peer *peer)
{
	struct epoll_event event = {.events = EPOLLIN, .data.ptr = peer};

	if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event))
		fail("epoll_ctl");
}

static void accept_all(int epoll, int listener)
{
	int fd;

	while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
		struct peer *peer = calloc(1, sizeof(*peer));

		if (!peer)
			fail("calloc");
		peer->fd = fd;
		set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
		watch(epoll, fd, peer);
	}
}

static void answer_datagrams(int fd)
{
	struct sockaddr_in6 from;
	socklen_t length = sizeof(from);
	ssize_t n;

	while ((n = recvfrom(fd, buffer, sizeof(buffer), 0, (struct sockaddr *)&from, &length)) >=
	       0)
		sendto(fd, buffer, n, 0, (struct sockaddr *)&from, length);
}

/* Asks to be called whenever there is room; an error is seen by the recv() that follows it. */
static void start_replies(int epoll, struct peer *peer)
{
	struct epoll_event event = {.events = EPOLLIN | EPOLLOUT, .data.ptr = peer};

	if (epoll_ctl(epoll, EPOLL_CTL_MOD, peer->fd, &event))
		fail("epoll_ctl");
}

/* Answers are a few bytes on a connection with room for them: never short. */
static void serve(int epoll, struct peer *peer)
{
	ssize_t n = recv(peer->fd, buffer, sizeof(buffer), 0);

	if (n < 0 && errno == EAGAIN) {
		if (peer->work == WORK_REPLY)
			send(peer->fd, buffer, sizeof(buffer), MSG_NOSIGNAL);
		return;
	}
	if (n > 0 && !peer->work) {
		peer->work = buffer[0];
		if (peer->work == WORK_REPLY)
			start_replies(epoll, peer);
	}
	if (n > 0)
		peer->bytes += n;
	if (n > 0 && peer->work != WORK_SINK && peer->work != WORK_REPLY)
		send(peer->fd, buffer, n, MSG_NOSIGNAL);
	if (n == 0 && peer->work == WORK_SINK)
		send(peer->fd, &peer->bytes, sizeof(peer->bytes), MSG_NOSIGNAL);
	if (n <= 0 || peer->work == WORK_CLOSE) {
		close(peer->fd);
		free(peer);
	}
}

static void __attribute__((noreturn)) run_server(uint16_t port)
{
	struct peer tcp = {.fd = listen_at(SOCK_STREAM, port)};
	struct peer udp = {.fd = listen_at(SOCK_DGRAM, port)};
	struct epoll_event events[EVENTS];
	int epoll = epoll_create1(EPOLL_CLOEXEC);

	if (epoll < 0)
		fail("epoll_create1");
	watch(epoll, tcp.fd, &tcp);
	watch(epoll, udp.fd, &udp);
	puts("{\"listening\":true}");
	fflush(stdout);
	for (;;) {
		int n = epoll_wait(epoll, events, EVENTS, -1);

		for (int i = 0; i < n; i++) {
			struct peer *peer = events[i].data.ptr;

			if (peer == &tcp)
				accept_all(epoll, tcp.fd);
			else if (peer == &udp)
				answer_datagrams(udp.fd);
			else
				serve(epoll, peer);
		}
	}
}

/* ---- clients ---- */

static socklen_t address_size(const struct options *o)
{
	return o->to.any.sa_family == AF_INET ? sizeof(o->to.v4) : sizeof(o->to.v6);
}

static int connect_to(const struct options *o, int type)
{
	int fd = socket(o->to.any.sa_family, type | SOCK_CLOEXEC, 0);

	if (fd < 0)
		fail("socket");
	set_patience(fd);
	if (type == SOCK_STREAM) {
		set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
		set_unpaced(fd);
	}
	if (connect(fd, &o->to.any, address_size(o)))
		fail("connect");
	return fd;
}

/* Two connections, the first to warm up, so that every byte counted was timed. */
static double stream_once(const struct options *o, int64_t for_ns)
{
	int fd = connect_to(o, SOCK_STREAM);
	int64_t start = now_ns();
	uint64_t received;

	memset(buffer, WORK_SINK, sizeof(buffer));
	while (now_ns() - start < for_ns)
		write_all(fd, buffer, sizeof(buffer));
	if (shutdown(fd, SHUT_WR))
		fail("shutdown");
	read_all(fd, &received, sizeof(received));
	close(fd);
	return received * 8.0 / (now_ns() - start);
}

static void run_stream(const struct options *o)
{
	stream_once(o, WARM_UP_NS);
	printf("{\"gbit_per_second\":%.4f}\n", stream_once(o, (int64_t)(o->seconds * 1e9)));
}

static void run_fetch(const struct options *o)
{
	char work = WORK_REPLY;
	int fd = connect_to(o, SOCK_STREAM);
	int64_t start = now_ns() + WARM_UP_NS, begun = 0, at = 0;
	int64_t end = start + (int64_t)(o->seconds * 1e9);
	uint64_t received = 0;

	write_all(fd, &work, sizeof(work));
	while (at < end) {
		ssize_t n = recv(fd, buffer, sizeof(buffer), 0);

		if (n == 0)
			errno = ECONNRESET;
		if (n <= 0)
			fail("recv");
		at = now_ns();
		if (begun)
			received += n;
		else if (at >= start)
			begun = at;
	}
	close(fd);
	printf("{\"gbit_per_second\":%.4f}\n", received * 8.0 / (at - begun));
}

static int by_value(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return x < y ? -1 : x > y;
}

static void run_requests(const struct options *o, int type)
{
	uint32_t *samples = malloc(SAMPLES_MAX * sizeof(*samples));
	char message[MESSAGE_BYTES];
	int fd = connect_to(o, type);
	int64_t start = now_ns() + WARM_UP_NS, before = now_ns();
	int64_t end = start + (int64_t)(o->seconds * 1e9);
	size_t n = 0;

	if (!samples)
		fail("malloc");
	memset(message, WORK_ECHO, sizeof(message));
	while (before < end && n < SAMPLES_MAX) {
		int64_t after;

		write_all(fd, message, sizeof(message));
		read_all(fd, message, sizeof(message));
		after = now_ns();
		if (before >= start)
			samples[n++] = (uint32_t)(after - before);
		before = after;
	}
	close(fd);
	if (!n) {
		errno = ENODATA;
		fail("no request fell into the time");
	}
	qsort(samples, n, sizeof(*samples), by_value);
	printf("{\"per_second\":%.1f,\"p50_us\":%.3f,\"p99_us\":%.3f}\n",
	       n * 1e9 / (before - start), samples[n / 2] / 1e3, samples[n - 1 - n / 100] / 1e3);
	free(samples);
}

/* The address `offset` after the first; only its last 32 bits count. */
static void step_address(struct options *o, const struct options *first, int offset)
{
	uint32_t *last = o->to.any.sa_family == AF_INET ? &o->to.v4.sin_addr.s_addr
							: &o->to.v6.sin6_addr.s6_addr32[3];

	*o = *first;
	*last = htonl(ntohl(*last) + offset);
}

static void open_next(int epoll, const struct options *first, int offset)
{
	struct options o;
	struct epoll_event event = {.events = EPOLLOUT};
	int fd = socket(first->to.any.sa_family, SOCK_STREAM | SOCK_NONBLOCK, 0);

	if (fd < 0)
		fail("socket");
	o = *first;
	step_address(&o, first, offset);
	if (connect(fd, &o.to.any, address_size(&o)) && errno != EINPROGRESS)
		fail("connect");
	event.data.fd = fd;
	if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event))
		fail("epoll_ctl");
}

/* True when the connection is over: the server closes first. */
static bool advance(int epoll, const struct epoll_event *event)
{
	struct epoll_event next = {.events = EPOLLIN, .data = event->data};
	int fd = event->data.fd, error = 0;
	socklen_t length = sizeof(error);
	char message[MESSAGE_BYTES];
	ssize_t n;

	if (event->events & EPOLLERR) {
		getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length);
		errno = error;
		fail("connection");
	}
	if (event->events & EPOLLOUT) {
		memset(message, WORK_CLOSE, sizeof(message));
		write_all(fd, message, sizeof(message));
		if (epoll_ctl(epoll, EPOLL_CTL_MOD, fd, &next))
			fail("epoll_ctl");
		return false;
	}
	while ((n = recv(fd, message, sizeof(message), 0)) > 0)
		;
	if (n < 0 && errno == EAGAIN)
		return false;
	if (n < 0)
		fail("recv");
	close(fd);
	return true;
}

static void run_connections(const struct options *o)
{
	struct epoll_event events[EVENTS];
	int epoll = epoll_create1(EPOLL_CLOEXEC);
	int64_t start = now_ns() + WARM_UP_NS, at = now_ns();
	int64_t end = start + (int64_t)(o->seconds * 1e9);
	uint64_t opened = 0, done = 0;

	if (epoll < 0)
		fail("epoll_create1");
	for (int i = 0; i < o->parallel; i++)
		open_next(epoll, o, opened++ % o->span);
	while (at < end) {
		int n = epoll_wait(epoll, events, EVENTS, PATIENCE_SECONDS * 1000);

		if (n == 0)
			errno = ETIMEDOUT;
		if (n <= 0)
			fail("no connection made progress");
		for (int i = 0; i < n; i++) {
			if (!advance(epoll, &events[i]))
				continue;
			done += at >= start;
			open_next(epoll, o, opened++ % o->span);
		}
		at = now_ns();
	}
	if (!done) {
		errno = ENODATA;
		fail("no connection ended within the time");
	}
	printf("{\"per_second\":%.1f}\n", done * 1e9 / (at - start));
}

/* ---- command line ---- */

static void __attribute__((noreturn)) usage(void)
{
	fputs("usage: podlane-bench-load server --port P [--cpu N]\n"
	      "       podlane-bench-load tcp-stream|tcp-fetch|tcp-rr|tcp-crr|udp-rr --to ADDRESS "
	      "--port P\n"
	      "               [--seconds S] [--span N] [--parallel N] [--cpu N]\n",
	      stderr);
	exit(2);
}

static void pin_to_cpu(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		fail("sched_setaffinity");
}

static void parse_address(struct options *o, const char *text)
{
	if (inet_pton(AF_INET, text, &o->to.v4.sin_addr) == 1)
		o->to.any.sa_family = AF_INET;
	else if (inet_pton(AF_INET6, text, &o->to.v6.sin6_addr) == 1)
		o->to.any.sa_family = AF_INET6;
	else
		usage();
}

static struct options parse(int argc, char **argv)
{
	static const struct option names[] = {
		{"to", required_argument, NULL, 't'},
		{"port", required_argument, NULL, 'p'},
		{"seconds", required_argument, NULL, 's'},
		{"span", required_argument, NULL, 'n'},
		{"parallel", required_argument, NULL, 'j'},
		{"cpu", required_argument, NULL, 'c'},
		{},
	};
	struct options o = {.seconds = 1, .span = 1, .parallel = 32};
	int name;

	while ((name = getopt_long(argc, argv, "", names, NULL)) != -1) {
		switch (name) {
		case 't':
			parse_address(&o, optarg);
			break;
		case 'p':
			o.port = (uint16_t)atoi(optarg);
			break;
		case 's':
			o.seconds = atof(optarg);
			break;
		case 'n':
			o.span = atoi(optarg);
			break;
		case 'j':
			o.parallel = atoi(optarg);
			break;
		case 'c':
			pin_to_cpu(atoi(optarg));
			break;
		default:
			usage();
		}
	}
	if (!o.port || o.span < 1 || o.parallel < 1 || o.seconds <= 0)
		usage();
	/* The port is at the same place in both families' addresses. */
	o.to.v4.sin_port = htons(o.port);
	return o;
}

int main(int argc, char **argv)
{
	const char *mode = argc > 1 ? argv[1] : "";
	struct options o = parse(argc, argv);

	if (!strcmp(mode, "server"))
		run_server(o.port);
	if (!o.to.any.sa_family)
		usage();
	if (!strcmp(mode, "tcp-stream"))
		run_stream(&o);
	else if (!strcmp(mode, "tcp-fetch"))
		run_fetch(&o);
	else if (!strcmp(mode, "tcp-rr"))
		run_requests(&o, SOCK_STREAM);
	else if (!strcmp(mode, "tcp-crr"))
		run_connections(&o);
	else if (!strcmp(mode, "udp-rr"))
		run_requests(&o, SOCK_DGRAM);
	else
		usage();
	return 0;
}
