// SPDX-License-Identifier: Apache-2.0
/* The client of the stand-in: so many requests at once, each from a source port of its own. */
#ifndef PODLANE_STANDIN_CLIENT_H
#define PODLANE_STANDIN_CLIENT_H

#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>

#include "standin_process.h"

#define MAX_CLIENTS 32
#define RING_FIRST  33000
#define RING_LAST   60999

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

#endif
