// SPDX-License-Identifier: Apache-2.0
/*
 * podlane-stand-in: what runs in a pod of the lab in place of its containers,
 * and the client that `podlane lab check` sends its requests with.
 *
 *   podlane-stand-in serve NAME PROTOCOL:PORT...
 *
 * Listens on every port, in both families, then goes to the background, gives
 * up root, and answers. It exits with 1, having served nothing, if a port can't
 * be had. An answer is one line of JSON:
 *
 *   {"pod":NAME,"client":ADDRESS,"clientPort":N,"server":ADDRESS,"port":N,"protocol":"TCP"}
 *
 * TCP: to an HTTP/1.x request as its response (kept alive unless asked not to),
 * to any other line of text, and to a client that says nothing and ends, as
 * that line alone. UDP: to each datagram as one datagram from the address that
 * it was sent to.
 *
 *   podlane-stand-in client FIRST-PORT [SECONDS PAUSE-MS]
 *
 * Reads jobs from stdin, a line each, until its end:
 *   ID PROTOCOL ADDRESS PORT COUNT TIMEOUT-MS
 * and makes COUNT requests for each, every one from a new source port (from
 * FIRST-PORT up, in a ring, without those in use): to the datapath each is a
 * new flow, whatever this client did before. With SECONDS, all jobs are done
 * again and again, with a pause, for that long or until SIGTERM. On stdout, a
 * line a request:
 *   ID <tab> ok|refused|timeout|error <tab> MICROSECONDS <tab> answer or error
 * and in the end: next <tab> PORT
 *
 * It must not know Services: who may answer is the caller's to judge.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define NOBODY	     65534
#define MAX_EVENTS   64
#define MAX_LINE     2048
#define MAX_CLIENTS  32
#define RING_FIRST   33000
#define RING_LAST    60999
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
static int poller;

static _Noreturn void die(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	vfprintf(stderr, format, arguments);
	va_end(arguments);
	fputc('\n', stderr);
	exit(1);
}

/* Root was needed for ports below 1024 only. */
static void give_up_root(void)
{
	if (geteuid() == 0 && (setgroups(0, NULL) || setresgid(NOBODY, NOBODY, NOBODY) ||
			       setresuid(NOBODY, NOBODY, NOBODY)))
		die("can't become user %d: %s", NOBODY, strerror(errno));
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		die("can't give up new privileges: %s", strerror(errno));
}

static void want_files(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
		limit.rlim_cur = limit.rlim_max;
		setrlimit(RLIMIT_NOFILE, &limit);
	}
}

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

/* ---- server ---- */

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

/* Value of a header in a request that ends in a zero byte; NULL if absent. */
static const char *header(const char *request, const char *name)
{
	const char *line = request;
	size_t length = strlen(name);

	while ((line = strstr(line, "\r\n"))) {
		line += 2;
		if (strncasecmp(line, name, length) == 0)
			return line + length + strspn(line + length, " \t");
	}
	return NULL;
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

/* ---- client ---- */

struct job {
	char id[32];
	bool tcp;
	struct sockaddr_storage address;
	socklen_t size;
	long count;
	long timeout_ms;
};

struct request {
	const struct job *job; /* NULL: this place is free */
	int fd;
	bool sent;
	long long started; /* microseconds */
	size_t have;
	char in[MAX_LINE];
};

static struct request requests[MAX_CLIENTS];
static int in_flight;
static int next_port;
static volatile sig_atomic_t stopped;

static void on_stop(int number)
{
	(void)number;
	stopped = 1;
}

static long long now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000LL + time.tv_nsec / 1000;
}

static void finish(struct request *request, const char *outcome, const char *text)
{
	printf("%s\t%s\t%lld\t%.*s\n", request->job->id, outcome, now() - request->started,
	       (int)strcspn(text, "\r\n"), text);
	if (request->fd >= 0)
		close(request->fd);
	request->job = NULL;
	in_flight--;
}

static void fail(struct request *request, int error)
{
	bool refused = error == ECONNREFUSED || error == ECONNRESET;

	finish(request, refused ? "refused" : "error", strerror(error));
}

/* A new source port: the next in the ring that nobody here has. */
static int bind_next(int fd, int family)
{
	struct sockaddr_in6 six = {.sin6_family = AF_INET6};
	struct sockaddr_in four = {.sin_family = AF_INET};
	int tries, failed, port;

	for (tries = 0; tries <= RING_LAST - RING_FIRST; tries++) {
		port = next_port;
		next_port = port >= RING_LAST ? RING_FIRST : port + 1;
		four.sin_port = six.sin6_port = htons(port);
		failed = family == AF_INET ? bind(fd, (struct sockaddr *)&four, sizeof(four))
					   : bind(fd, (struct sockaddr *)&six, sizeof(six));
		if (!failed)
			return 0;
		if (errno != EADDRINUSE)
			return -1;
	}
	return -1;
}

static void start(struct request *request, const struct job *job)
{
	int type = (job->tcp ? SOCK_STREAM : SOCK_DGRAM) | SOCK_NONBLOCK | SOCK_CLOEXEC;
	struct epoll_event event = {.events = EPOLLOUT, .data.ptr = request};
	int on = 1;

	memset(request, 0, offsetof(struct request, in));
	request->job = job;
	request->started = now();
	in_flight++;
	request->fd = socket(job->address.ss_family, type, 0);
	if (request->fd < 0) {
		fail(request, errno);
		return;
	}
	if (job->tcp) /* past our own TIME_WAIT; not for UDP, where it would share a port */
		setsockopt(request->fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (bind_next(request->fd, job->address.ss_family) ||
	    (connect(request->fd, (const struct sockaddr *)&job->address, job->size) &&
	     errno != EINPROGRESS) ||
	    epoll_ctl(poller, EPOLL_CTL_ADD, request->fd, &event))
		fail(request, errno);
}

static void ask(struct request *request)
{
	static const char http[] = "GET / HTTP/1.1\r\nHost: podlane\r\n\r\n";
	struct epoll_event event = {.events = EPOLLIN, .data.ptr = request};
	int error = 0;
	socklen_t size = sizeof(error);

	getsockopt(request->fd, SOL_SOCKET, SO_ERROR, &error, &size);
	if (error) {
		fail(request, error);
		return;
	}
	request->sent = true;
	if (send(request->fd, http, sizeof(http) - 1, MSG_NOSIGNAL) < 0)
		fail(request, errno);
	else
		epoll_ctl(poller, EPOLL_CTL_MOD, request->fd, &event);
}

/*
 * UDP: one datagram is the answer. TCP: a response of the length that it says.
 * The client ends a connection, so that the time in which its ports must rest
 * (TIME_WAIT) is spent here, where no port is used twice, and not at a server
 * that sees all clients as one address.
 */
static void hear(struct request *request)
{
	ssize_t got = recv(request->fd, request->in + request->have,
			   sizeof(request->in) - 1 - request->have, 0);
	const char *body, *length;

	if (got < 0) {
		if (errno != EAGAIN && errno != EINTR)
			fail(request, errno);
		return;
	}
	request->have += got;
	request->in[request->have] = 0;
	body = strstr(request->in, "\r\n\r\n");
	length = header(request->in, "Content-Length:");
	if (request->job->tcp && got > 0 && request->have < sizeof(request->in) - 1 &&
	    !(body && length && strlen(body + 4) >= strtoul(length, NULL, 10)))
		return;
	body = body ? body + 4 : request->in;
	if (*body)
		finish(request, "ok", body);
	else
		finish(request, "error", "the connection ended without an answer");
}

static void expire(void)
{
	long long time = now();
	int i;

	for (i = 0; i < MAX_CLIENTS; i++) {
		struct request *request = &requests[i];

		if (request->job && time - request->started > request->job->timeout_ms * 1000)
			finish(request, "timeout",
			       request->sent && request->job->tcp ? "connected, then no answer"
								  : "no answer");
	}
}

static void wait_for_answers(void)
{
	struct epoll_event events[MAX_EVENTS];
	int i, ready = epoll_wait(poller, events, MAX_EVENTS, 20);

	for (i = 0; i < ready; i++) {
		struct request *request = events[i].data.ptr;

		if (!request->job)
			continue;
		if (request->sent)
			hear(request);
		else
			ask(request);
	}
	expire();
}

static void run_job(const struct job *job)
{
	long left = job->count;
	int i;

	while (left > 0 && !stopped) {
		for (i = 0; i < MAX_CLIENTS && left > 0; i++) {
			if (!requests[i].job) {
				start(&requests[i], job);
				left--;
			}
		}
		wait_for_answers();
	}
}

static struct job *read_jobs(size_t *count)
{
	char line[256], id[32], protocol[4], address[INET6_ADDRSTRLEN];
	struct job *jobs = NULL, *job;
	long requests_wanted, timeout_ms;
	int port;

	*count = 0;
	while (fgets(line, sizeof(line), stdin)) {
		struct sockaddr_in6 *six;
		struct sockaddr_in *four;

		if (sscanf(line, "%31s %3[a-z] %45s %d %ld %ld", id, protocol, address, &port,
			   &requests_wanted, &timeout_ms) != 6)
			die("'%.*s' is no job", (int)strcspn(line, "\n"), line);
		jobs = realloc(jobs, (*count + 1) * sizeof(*jobs));
		if (!jobs)
			die("out of memory");
		job = &jobs[(*count)++];
		memset(job, 0, sizeof(*job));
		memcpy(job->id, id, sizeof(id));
		job->tcp = strcmp(protocol, "tcp") == 0;
		job->count = requests_wanted;
		job->timeout_ms = timeout_ms;
		six = (void *)&job->address;
		four = (void *)&job->address;
		if (inet_pton(AF_INET, address, &four->sin_addr) == 1) {
			four->sin_family = AF_INET;
			four->sin_port = htons(port);
			job->size = sizeof(*four);
		} else if (inet_pton(AF_INET6, address, &six->sin6_addr) == 1) {
			six->sin6_family = AF_INET6;
			six->sin6_port = htons(port);
			job->size = sizeof(*six);
		} else {
			die("'%s' is no address", address);
		}
	}
	return jobs;
}

static int client(int first_port, long seconds, long pause_ms)
{
	struct sigaction stop = {.sa_handler = on_stop};
	long long end, next;
	struct job *jobs;
	size_t count, i;

	sigaction(SIGTERM, &stop, NULL);
	sigaction(SIGINT, &stop, NULL);
	next_port = first_port < RING_FIRST || first_port > RING_LAST ? RING_FIRST : first_port;
	poller = epoll_create1(EPOLL_CLOEXEC);
	give_up_root();
	jobs = read_jobs(&count);
	end = now() + seconds * 1000000LL;
	do {
		for (i = 0; i < count && !stopped; i++)
			run_job(&jobs[i]);
		next = now() + pause_ms * 1000;
		while (seconds && !stopped && now() < next)
			wait_for_answers();
		fflush(stdout);
	} while (count && seconds && !stopped && now() < end);
	while (in_flight)
		wait_for_answers();
	printf("next\t%d\n", next_port);
	free(jobs);
	return fflush(stdout) ? 1 : 0;
}

int main(int argc, char **argv)
{
	want_files();
	if (argc >= 3 && strcmp(argv[1], "serve") == 0) {
		own_name = argv[2];
		serve(argc - 3, argv + 3);
	}
	if (argc == 3 && strcmp(argv[1], "client") == 0)
		return client(atoi(argv[2]), 0, 0);
	if (argc == 5 && strcmp(argv[1], "client") == 0)
		return client(atoi(argv[2]), atol(argv[3]), atol(argv[4]));
	die("usage: podlane-stand-in serve NAME PROTOCOL:PORT...\n"
	    "       podlane-stand-in client FIRST-PORT [SECONDS PAUSE-MS]");
}
