// SPDX-License-Identifier: Apache-2.0
/*
 * podlane-cni: what a container runtime calls. It checks the call, hands it to the node's
 * agent over a Unix socket and prints what comes back. Called as `loopback` it brings up lo
 * in the pod's namespace instead, and asks nobody.
 *
 *	stdin: network configuration (JSON): "socket", "stateDir"
 *	environment: CNI_COMMAND, CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME, CNI_ARGS
 *	stdout: CNI result, or {"cniVersion","code","msg","details"} and exit status 1
 *
 * With the agent away, ADD waits a bounded time and fails with code 11; DEL leaves a file
 * named CONTAINERID:IFNAME in <stateDir>/releases for the agent to finish, and succeeds.
 * No memory is allocated: every buffer has a size of its own. Source: CNI specification 1.1.0.
 */
#define _GNU_SOURCE
#include <signal.h>

#include "agent.h"
#include "loopback.h"

int main(int argc, char **argv)
{
	const char *name = argc > 0 ? argv[0] : "";
	struct call call = {0};

	if (strrchr(name, '/'))
		name = strrchr(name, '/') + 1;
	signal(SIGPIPE, SIG_IGN);
	read_call(&call);
	if (!strcmp(name, "loopback"))
		loopback(&call);
	pass_on(&call);
}
