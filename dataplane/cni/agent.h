// SPDX-License-Identifier: Apache-2.0
/*
 * The way to the node's agent: the call goes over its Unix socket as one JSON object, with the pod's
 * namespace as a descriptor beside it; the answer is a result or an error. With the agent away, a
 * release is left on disk.
 */
#pragma once
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>

#include "call.h"

#define ANSWER_MAX	 (4 << 20) /* a result holds the configuration's prevResult */
#define CONNECT_SECONDS	 10
#define ADD_SECONDS	 60
#define OTHER_SECONDS	 30
#define FIRST_PAUSE_MS	 10
#define LONGEST_PAUSE_MS 320

static char answer[ANSWER_MAX];
static char request[INPUT_MAX + 6 * ENV_MAX];

static long long now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

/* A connection to the agent, or -1 with errno when `until` has passed. */
static int connect_agent(const char *path, long long until)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int pause = FIRST_PAUSE_MS + getpid() % FIRST_PAUSE_MS; /* not all at one moment */

	if (strlen(path) >= sizeof(address.sun_path))
		fail(CODE_CONFIG, "", "socket %s: its path is too long", path);
	strcpy(address.sun_path, path);
	for (;;) {
		struct timeval patience = {CONNECT_SECONDS, 0};
		int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

		if (fd < 0)
			return -1;
		setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
		if (!connect(fd, (struct sockaddr *)&address, sizeof(address)))
			return fd;
		close(fd);
		if ((errno != ENOENT && errno != ECONNREFUSED && errno != EAGAIN) ||
		    now_ms() >= until)
			return -1;
		usleep(pause * 1000);
		pause = pause < LONGEST_PAUSE_MS ? pause * 2 : LONGEST_PAUSE_MS;
	}
}

static size_t make_request(const struct call *call)
{
	static const char *const names[] = {"CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS",
					    "CNI_IFNAME", "CNI_ARGS"};
	const char *end = request + 6 * ENV_MAX;
	char *out = request;

	out += sprintf(out, "{\"env\": {");
	for (unsigned int i = 0; i < sizeof(names) / sizeof(*names); i++) {
		out += sprintf(out, "%s\"%s\": ", i ? ", " : "", names[i]);
		out = put_string(out, end, from_environment(names[i]));
	}
	out += sprintf(out, "}, \"config\": ");
	memcpy(out, call->config, call->config_length);
	out += call->config_length;
	*out++ = '}';
	return out - request;
}

/*
 * The first bytes of the request, with the pod's namespace as a descriptor beside them: its
 * path may be a mount that the agent, in a container of its own, does not see.
 */
static ssize_t send_first(int fd, size_t length, const char *netns)
{
	union {
		struct cmsghdr header;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control = {0};
	struct iovec part = {request, length};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
	int place = *netns ? open(netns, O_RDONLY | O_CLOEXEC) : -1;
	ssize_t sent;

	if (place >= 0) {
		message.msg_control = &control;
		message.msg_controllen = sizeof(control);
		control.header.cmsg_level = SOL_SOCKET;
		control.header.cmsg_type = SCM_RIGHTS;
		control.header.cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(&control.header), &place, sizeof(int));
	}
	do
		sent = sendmsg(fd, &message, MSG_NOSIGNAL);
	while (sent < 0 && errno == EINTR);
	if (place >= 0)
		close(place);
	return sent;
}

/* Sends the request and reads the answer; its length, 0 if there came none in time. */
static size_t ask(int fd, size_t length, const char *netns, long long until)
{
	ssize_t first = send_first(fd, length, netns);
	size_t sent = first > 0 ? first : 0, got = 0;

	if (!sent)
		return 0;
	while (sent < length) {
		ssize_t n = send(fd, request + sent, length - sent, MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return 0;
		sent += n;
	}
	shutdown(fd, SHUT_WR);
	for (;;) {
		struct pollfd waiting = {fd, POLLIN, 0};
		long long left = until - now_ms();
		ssize_t n;

		if (left <= 0 || got == sizeof(answer))
			return 0;
		if (poll(&waiting, 1, left) <= 0)
			continue;
		n = recv(fd, answer + got, sizeof(answer) - got, 0);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return 0;
		if (!n)
			break;
		got += n;
	}
	return is_object(answer, got) ? got : 0;
}

static void sync_folder(const char *path)
{
	int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (fd < 0 || fsync(fd))
		fail(CODE_IO, "", "folder %s: %s", path, strerror(errno));
	close(fd);
}

/* Leaves word for the agent that this interface is gone; on disk when it returns. */
static void record_release(const struct call *call, const char *state)
{
	char folder[PATH_MAX], temporary[PATH_MAX + 512], name[PATH_MAX + 512];
	int fd;

	if (*state != '/' || strlen(state) + 16 > sizeof(folder))
		fail(CODE_CONFIG, "", "stateDir %s: must be an absolute path", state);
	snprintf(folder, sizeof(folder), "%s/releases", state);
	if ((mkdir(state, 0700) && errno != EEXIST) || (mkdir(folder, 0700) && errno != EEXIST))
		fail(CODE_IO, "", "folder %s: %s", folder, strerror(errno));
	snprintf(name, sizeof(name), "%s/%s:%s", folder, call->container, call->interface);
	snprintf(temporary, sizeof(temporary), "%s/.%d", folder, getpid());
	fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (fd < 0 || fsync(fd) || close(fd) || rename(temporary, name)) {
		int reason = errno;

		unlink(temporary);
		fail(CODE_IO, "the agent is away, and the release can't be recorded", "file %s: %s",
		     name, strerror(reason));
	}
	sync_folder(folder);
	sync_folder(state);
}

__attribute__((noreturn)) static void agent_is_away(const struct call *call, const char *state,
						    const char *path, const char *why)
{
	if (!strcmp(call->command, "DEL")) {
		record_release(call, state);
		exit(0);
	}
	fail(!strcmp(call->command, "STATUS") ? CODE_UNAVAILABLE : CODE_TRY_LATER,
	     "see that `podlane agent` runs on this node", "agent at %s: %s", path, why);
}

__attribute__((noreturn)) static void pass_on(const struct call *call)
{
	static char socket_buffer[PATH_MAX], state_buffer[PATH_MAX];
	const char *path = setting(call->config, call->config_length, "socket", socket_buffer,
				   sizeof(socket_buffer), "/run/podlane/cni.sock");
	const char *state = setting(call->config, call->config_length, "stateDir", state_buffer,
				    sizeof(state_buffer), "/var/lib/podlane");
	bool add = !strcmp(call->command, "ADD");
	size_t length;
	int fd;

	fd = connect_agent(path, now_ms() + (add ? CONNECT_SECONDS * 1000 : 0));
	if (fd < 0)
		agent_is_away(call, state, path, strerror(errno));
	length = ask(fd, make_request(call), call->netns,
		     now_ms() + (add ? ADD_SECONDS : OTHER_SECONDS) * 1000);
	if (!length)
		agent_is_away(call, state, path, "gave no answer, or ended before it");
	if (find(answer, length, "code").length) {
		write_out(answer, length);
		exit(1);
	}
	if (add)
		write_out(answer, length);
	exit(0);
}
