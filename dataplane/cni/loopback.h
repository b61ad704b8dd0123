// SPDX-License-Identifier: Apache-2.0
/*
 * The plugin called as `loopback`, which containerd before version 2 runs for every pod: lo in the
 * pod's namespace goes up or down. Asks no agent.
 */
#pragma once
#include <fcntl.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "call.h"

/* Brings lo in the pod's namespace up or down; whether it was up, or -1 with errno. */
static int loopback_set(const struct call *call, bool change, bool up)
{
	struct ifreq wanted = {.ifr_name = "lo"};
	int netns = open(call->netns, O_RDONLY | O_CLOEXEC), fd, was;

	if (netns < 0 || setns(netns, CLONE_NEWNET))
		return -1;
	close(netns);
	fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || ioctl(fd, SIOCGIFFLAGS, &wanted))
		return -1;
	was = !!(wanted.ifr_flags & IFF_UP);
	wanted.ifr_flags = up ? wanted.ifr_flags | IFF_UP : wanted.ifr_flags & ~IFF_UP;
	if (change && ioctl(fd, SIOCSIFFLAGS, &wanted))
		return -1;
	close(fd);
	return was;
}

__attribute__((noreturn)) static void loopback(const struct call *call)
{
	struct span previous = find(call->config, call->config_length, "prevResult");
	bool old = call->version < FIRST_MODERN;
	static char text[6 * (ENV_MAX / 8) + 512]; /* a path of the environment, escaped */
	char *out = text, *end = text + sizeof(text) - 256;
	int state;

	if (!strcmp(call->command, "DEL"))
		loopback_set(call, true, false); /* the namespace may be gone, and lo with it */
	if (strcmp(call->command, "ADD") && strcmp(call->command, "CHECK"))
		exit(0);
	state = loopback_set(call, !strcmp(call->command, "ADD"), true);
	if (state < 0)
		fail(CODE_IO, "", "lo in namespace %s: %s", call->netns, strerror(errno));
	if (!strcmp(call->command, "CHECK")) {
		if (!state)
			fail(CODE_POD_BROKEN, "", "lo in namespace %s: is down", call->netns);
		exit(0);
	}
	if (previous.length && *previous.at == '{') {
		write_out(previous.at, previous.length);
		exit(0);
	}
	out += sprintf(out,
		       "{\"cniVersion\": \"%s\", \"interfaces\": [{\"name\": \"lo\", "
		       "\"mac\": \"00:00:00:00:00:00\", \"sandbox\": ",
		       version);
	out = put_string(out, end, call->netns);
	out += sprintf(out,
		       "}], \"ips\": [{%s\"interface\": 0, \"address\": \"127.0.0.1/8\"}, "
		       "{%s\"interface\": 0, \"address\": \"::1/128\"}], \"dns\": {}}\n",
		       old ? "\"version\": \"4\", " : "", old ? "\"version\": \"6\", " : "");
	write_out(text, out - text);
	exit(0);
}
