// SPDX-License-Identifier: Apache-2.0
/* The server of the stand-in: every port in both families, TCP and UDP, in one thread. */
#ifndef PODLANE_STANDIN_SERVER_H
#define PODLANE_STANDIN_SERVER_H

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "standin_process.h"

#define LISTEN_QUEUE 1024

/* What an epoll event is about: the first member of each struct that waits. */
enum waiter {
	LISTENER,
	DATAGRAMS,
	CONNECTION
};

struct listener {
	enum waiter waiter;
	int fd;
	int port;
};

struct connection {
	enum waiter waiter;
	int fd;
	bool answered;
	size_t skip; /* bytes of a request's body still to come */
	size_t have;
	char in[MAX_LINE];
};

static const char *own_name;

/* Text of an address; an IPv4-mapped one as the IPv4 address that it is. */
static void address_text(const struct sockaddr_storage *address, char *text, int *port)
{
	const struct sockaddr_in6 *six = (const void *)address;
	const struct sockaddr_in *four = (const void *)address;

	text[0] = 0;
	if (address->ss_family == AF_INET) {
		inet_ntop(AF_INET, &four->sin_addr, text, INET6_ADDRSTRLEN);
		*port = ntohs(four->sin_port);
	} else if (IN6_IS_ADDR_V4MAPPED(&six->sin6_addr)) {
		inet_ntop(AF_INET, &six->sin6_addr.s6_addr[12], text, INET6_ADDRSTRLEN);
		*port = ntohs(six->sin6_port);
	} else {
		inet_ntop(AF_INET6, &six->sin6_addr, text, INET6_ADDRSTRLEN);
		*port = ntohs(six->sin6_port);
	}
}

static int answer_text(char *out, size_t size, const struct sockaddr_storage *client,
		       const struct sockaddr_storage *server, int port, const char *protocol)
{
	char from[INET6_ADDRSTRLEN], to[INET6_ADDRSTRLEN];
	int from_port = 0, ignored = 0;

	address_text(client, from, &from_port);
	address_text(server, to, &ignored);
	return snprintf(out, size,
			"{\"pod\":\"%s\",\"client\":\"%s\",\"clientPort\":%d,"
			"\"server\":\"%s\",\"port\":%d,\"protocol\":\"%s\"}\n",
			own_name, from, from_port, to, port, protocol);
}

static void watch(int fd, void *waiter)
{
	struct epoll_event event = {.events = EPOLLIN, .data.ptr = waiter};

	if (epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event))
		die("can't wait for socket %d: %s", fd, strerror(errno));
}

static void listen_on(const char *protocol, int port)
{
	bool tcp = strcmp(protocol, "tcp") == 0;
	int type = (tcp ? SOCK_STREAM : SOCK_DGRAM) | SOCK_NONBLOCK | SOCK_CLOEXEC;
	struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
	struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = htons(port)};
	struct listener *listener = calloc(1, sizeof(*listener));
	bool ipv6 = true;
	int on = 1, off = 0, failed;
	int fd = socket(AF_INET6, type, 0);

	if (fd < 0) { /* a kernel without IPv6 */
		ipv6 = false;
		fd = socket(AF_INET, type, 0);
	}
	if (fd < 0 || !listener)
		die("can't open a socket for %s:%d: %s", protocol, port, strerror(errno));
	if (tcp)
		setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (ipv6)
		setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));
	/* A host with several addresses must answer from the one it was asked at. */
	setsockopt(fd, IPPROTO_IP, IP_PKTINFO, &on, sizeof(on));
	if (ipv6)
		setsockopt(fd, IPPROTO_IPV6, IPV6_RECVPKTINFO, &on, sizeof(on));
	failed = ipv6 ? bind(fd, (struct sockaddr *)&six, sizeof(six))
		      : bind(fd, (struct sockaddr *)&four, sizeof(four));
	if (failed || (tcp && listen(fd, LISTEN_QUEUE)))
		die("can't listen on %s:%d: %s", protocol, port, strerror(errno));
	listener->waiter = tcp ? LISTENER : DATAGRAMS;
	listener->fd = fd;
	listener->port = port;
	watch(fd, listener);
}

static void close_connection(struct connection *connection)
{
	close(connection->fd);
	free(connection);
}

static bool say(struct connection *connection, const char *text, size_t length)
{
	return send(connection->fd, text, length, MSG_NOSIGNAL) == (ssize_t)length;
}

/* Answers as a bare line, or as a response if the request was HTTP. False: close. */
static bool answer(struct connection *connection, bool http, bool keep)
{
	struct sockaddr_storage client, server;
	socklen_t client_size = sizeof(client), server_size = sizeof(server);
	char body[512], response[1024];
	int port = 0, length;
	char ignored[INET6_ADDRSTRLEN];

	if (getpeername(connection->fd, (struct sockaddr *)&client, &client_size) ||
	    getsockname(connection->fd, (struct sockaddr *)&server, &server_size))
		return false;
	address_text(&server, ignored, &port);
	length = answer_text(body, sizeof(body), &client, &server, port, "TCP");
	connection->answered = true;
	if (!http)
		return say(connection, body, length);
	length = snprintf(response, sizeof(response),
			  "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
			  "Content-Length: %d\r\nConnection: %s\r\n\r\n%s",
			  length, keep ? "keep-alive" : "close", body);
	return say(connection, response, length) && keep;
}

static bool wants_keep_alive(const char *request)
{
	const char *value = header(request, "Connection:");

	if (value)
		return strncasecmp(value, "close", 5) != 0;
	return strstr(request, " HTTP/1.0\r\n") == NULL;
}

/* Takes one whole request off the buffer: its length, or 0 if there is none yet. */
static size_t take_request(struct connection *connection, bool *keep_open)
{
	char *line_end = memchr(connection->in, '\n', connection->have);
	const char *length;
	char *end;
	size_t size;
	bool keep;

	if (!line_end) {
		*keep_open = connection->have < MAX_LINE - 1;
		return 0;
	}
	connection->in[connection->have] = 0;
	if (!memmem(connection->in, line_end - connection->in, " HTTP/1.", 8)) {
		*keep_open = answer(connection, false, true);
		return line_end + 1 - connection->in;
	}
	end = strstr(connection->in, "\r\n\r\n");
	if (!end) {
		*keep_open = connection->have < MAX_LINE - 1;
		return 0;
	}
	size = end + 4 - connection->in;
	end[2] = 0;
	length = header(connection->in, "Content-Length:");
	connection->skip = length ? strtoul(length, NULL, 10) : 0;
	keep = wants_keep_alive(connection->in);
	*keep_open = answer(connection, true, keep);
	return size;
}

static void serve_connection(struct connection *connection)
{
	ssize_t got = recv(connection->fd, connection->in + connection->have,
			   MAX_LINE - 1 - connection->have, 0);
	bool keep_open = true;
	size_t used;

	if (got < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (got <= 0) {
		if (got == 0 && !connection->answered)
			answer(connection, false, false);
		close_connection(connection);
		return;
	}
	connection->have += got;
	while (keep_open && connection->have > 0) {
		used = connection->skip < connection->have ? connection->skip : connection->have;
		connection->skip -= used;
		if (!used)
			used = take_request(connection, &keep_open);
		if (!used)
			break;
		connection->have -= used;
		memmove(connection->in, connection->in + used, connection->have);
	}
	if (!keep_open)
		close_connection(connection);
}

static void accept_connection(const struct listener *listener)
{
	int fd = accept4(listener->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	int on = 1, idle = 30;
	struct connection *connection;

	if (fd < 0)
		return;
	connection = calloc(1, sizeof(*connection));
	if (!connection) {
		close(fd);
		return;
	}
	/* A client that vanished must not hold memory for ever. */
	setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof(idle));
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	connection->waiter = CONNECTION;
	connection->fd = fd;
	watch(fd, connection);
}

static void serve_datagram(const struct listener *listener)
{
	union {
		char bytes[CMSG_SPACE(sizeof(struct in6_pktinfo)) +
			   CMSG_SPACE(sizeof(struct in_pktinfo))];
		struct cmsghdr align;
	} control;
	struct sockaddr_storage client, server;
	char text[512], in[MAX_LINE];
	struct iovec data = {.iov_base = in, .iov_len = sizeof(in)};
	struct msghdr message = {
		.msg_name = &client,
		.msg_namelen = sizeof(client),
		.msg_iov = &data,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};
	struct sockaddr_in6 *six = (void *)&server;
	struct sockaddr_in *four = (void *)&server;
	struct cmsghdr *part;

	memset(&server, 0, sizeof(server));
	if (recvmsg(listener->fd, &message, 0) < 0)
		return;
	for (part = CMSG_FIRSTHDR(&message); part; part = CMSG_NXTHDR(&message, part)) {
		if (part->cmsg_level == IPPROTO_IPV6 && part->cmsg_type == IPV6_PKTINFO) {
			struct in6_pktinfo *info = (void *)CMSG_DATA(part);

			six->sin6_family = AF_INET6;
			six->sin6_addr = info->ipi6_addr;
			info->ipi6_ifindex = 0;
		} else if (part->cmsg_level == IPPROTO_IP && part->cmsg_type == IP_PKTINFO) {
			struct in_pktinfo *info = (void *)CMSG_DATA(part);

			four->sin_family = AF_INET;
			four->sin_addr = info->ipi_addr;
			info->ipi_spec_dst = info->ipi_addr;
			info->ipi_ifindex = 0;
		}
	}
	data.iov_base = text;
	data.iov_len = answer_text(text, sizeof(text), &client, &server, listener->port, "UDP");
	sendmsg(listener->fd, &message, MSG_NOSIGNAL);
}

static void go_to_background(void)
{
	int null = open("/dev/null", O_RDWR);
	pid_t child = fork();

	if (child < 0)
		die("can't go to the background: %s", strerror(errno));
	if (child > 0)
		_exit(0);
	setsid();
	if (null < 0 || chdir("/") || dup2(null, 0) < 0 || dup2(null, 1) < 0 || dup2(null, 2) < 0)
		_exit(1);
	if (null > 2)
		close(null);
}

static _Noreturn void serve(int count, char **ports)
{
	struct epoll_event events[MAX_EVENTS];
	int i, ready;

	poller = epoll_create1(EPOLL_CLOEXEC);
	for (i = 0; i < count; i++) {
		char protocol[4] = "";
		int port = 0;

		if (sscanf(ports[i], "%3[a-z]:%d", protocol, &port) != 2 || port < 1 ||
		    port > 65535 || (strcmp(protocol, "tcp") && strcmp(protocol, "udp")))
			die("'%s' is no tcp:PORT or udp:PORT", ports[i]);
		listen_on(protocol, port);
	}
	give_up_root();
	go_to_background();
	for (;;) {
		ready = epoll_wait(poller, events, MAX_EVENTS, -1);
		for (i = 0; i < ready; i++) {
			enum waiter *waiter = events[i].data.ptr;

			if (*waiter == LISTENER)
				accept_connection((struct listener *)waiter);
			else if (*waiter == DATAGRAMS)
				serve_datagram((struct listener *)waiter);
			else
				serve_connection((struct connection *)waiter);
		}
	}
}

#endif
