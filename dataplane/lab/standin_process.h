// SPDX-License-Identifier: Apache-2.0
/* What server and client of the stand-in share: how they die, give up root, and read a header. */
#ifndef PODLANE_STANDIN_PROCESS_H
#define PODLANE_STANDIN_PROCESS_H

#include <errno.h>
#include <grp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#define NOBODY	   65534
#define MAX_EVENTS 64
#define MAX_LINE   2048

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

/* Value of a header in a message that ends in a zero byte; NULL if absent. */
static const char *header(const char *message, const char *name)
{
	const char *line = message;
	size_t length = strlen(name);

	while ((line = strstr(line, "\r\n"))) {
		line += 2;
		if (strncasecmp(line, name, length) == 0)
			return line + length + strspn(line + length, " \t");
	}
	return NULL;
}

#endif
