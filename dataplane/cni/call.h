// SPDX-License-Identifier: Apache-2.0
/*
 * One call of the plugin: environment and configuration read and checked (CNI specification 1.1.0,
 * sections 1 and 2), and the ways to end it.
 */
#pragma once
#include <errno.h>
#include <limits.h>
#include <net/if.h>
#include <stdarg.h>
#include <stdlib.h>
#include <unistd.h>

#include "json.h"

#define INPUT_MAX   (1 << 20)
#define DISCARD_MAX (64 << 20) /* a writer that has more than this may get EPIPE */
#define ENV_MAX	    (1 << 16)
#define ID_MAX	    200 /* it becomes a file's name with the interface's */

enum code {
	CODE_VERSION = 1,
	CODE_ENVIRONMENT = 4,
	CODE_IO = 5,
	CODE_DECODE = 6,
	CODE_CONFIG = 7,
	CODE_TRY_LATER = 11,
	CODE_UNAVAILABLE = 50,
	CODE_POD_BROKEN = 101,
};

static const char *const VERSIONS[] = {"0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"};
#define VERSION_COUNT ((int)(sizeof(VERSIONS) / sizeof(*VERSIONS)))
#define FIRST_CHECK   2 /* 0.4.0 */
#define FIRST_MODERN  3 /* 1.0.0: no "version" beside an address */
#define FIRST_STATUS  4 /* 1.1.0: STATUS and GC */

struct call {
	const char *command, *container, *netns, *interface;
	const char *config;
	size_t config_length;
	int version; /* place in VERSIONS */
};

static char input[INPUT_MAX + 1];
static const char *version = "1.1.0"; /* of answers; the configuration's once it is read */

/* ---- how a call ends ---- */

static void write_out(const char *text, size_t length)
{
	while (length) {
		ssize_t n = write(STDOUT_FILENO, text, length);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			exit(1);
		text += n;
		length -= n;
	}
}

__attribute__((format(printf, 3, 4), noreturn)) static void
fail(enum code code, const char *details, const char *format, ...)
{
	static char words[PATH_MAX + 512], text[6 * sizeof(words) + 512];
	const char *end = text + sizeof(text) - 4;
	char *out = text;
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(words, sizeof(words), format, arguments);
	va_end(arguments);
	out += sprintf(out, "{\"cniVersion\": \"%s\", \"code\": %d, \"msg\": ", version, code);
	out = put_string(out, end, words);
	out += sprintf(out, ", \"details\": ");
	out = put_string(out, end, details);
	out += sprintf(out, "}\n");
	write_out(text, out - text);
	exit(1);
}

/* ---- what was asked ---- */

/* A string of the configuration; `fallback` if it is not there. */
static const char *setting(const char *config, size_t length, const char *key, char *buffer,
			   size_t size, const char *fallback)
{
	struct span value = find(config, length, key);

	if (!value.length)
		return fallback;
	if (*value.at != '"')
		fail(CODE_CONFIG, "", "network configuration: %s: must be a text", key);
	if (memchr(value.at, '\\', value.length) || value.length - 2 >= size)
		fail(CODE_CONFIG, "", "network configuration: %s: too long, or has an escape", key);
	memcpy(buffer, value.at + 1, value.length - 2);
	buffer[value.length - 2] = 0;
	return buffer;
}

static const char *from_environment(const char *name)
{
	const char *value = getenv(name);
	const unsigned char *p;
	size_t left;

	if (!value)
		return "";
	left = strlen(value);
	if (left > ENV_MAX / 8)
		fail(CODE_ENVIRONMENT, "", "%s: longer than %d bytes", name, ENV_MAX / 8);
	for (p = (const unsigned char *)value; left;) {
		size_t n = utf8_length(p, left);

		if (!n)
			fail(CODE_ENVIRONMENT, "", "%s: is not UTF-8 text", name);
		p += n;
		left -= n;
	}
	return value;
}

static bool is_id(const char *text)
{
	static const char first[] =
		"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
	size_t length = strlen(text);

	if (!length || length > ID_MAX || !strchr(first, *text))
		return false;
	for (; *text; text++)
		if (!strchr(first, *text) && !strchr("_.-", *text))
			return false;
	return true;
}

static bool is_interface(const char *text)
{
	size_t length = strlen(text);

	if (!length || length >= IFNAMSIZ || !strcmp(text, ".") || !strcmp(text, ".."))
		return false;
	for (; *text; text++)
		if (strchr("/: \t\n\v\f\r", *text))
			return false;
	return true;
}

static size_t read_stdin(void)
{
	static char rest[1 << 16];
	size_t length = 0, over = 0;

	for (;;) {
		bool full = length == INPUT_MAX;
		ssize_t n = full ? read(STDIN_FILENO, rest, sizeof(rest))
				 : read(STDIN_FILENO, input + length, INPUT_MAX - length);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			fail(CODE_IO, "", "network configuration: %s", strerror(errno));
		if (!n)
			break;
		if (full)
			over += n;
		else
			length += n;
		if (over > DISCARD_MAX)
			break;
	}
	if (over)
		fail(CODE_DECODE, "", "network configuration: is longer than %d bytes", INPUT_MAX);
	return length;
}

static void answer_version(void)
{
	char text[256];
	int length = sprintf(text, "{\"cniVersion\": \"%s\", \"supportedVersions\": [", version);

	for (int i = 0; i < VERSION_COUNT; i++)
		length += sprintf(text + length, "%s\"%s\"", i ? ", " : "", VERSIONS[i]);
	length += sprintf(text + length, "]}\n");
	write_out(text, length);
	exit(0);
}

static void read_config(struct call *call)
{
	static char wanted[32];
	struct span value;
	bool blank;

	call->config_length = read_stdin();
	call->config = input;
	blank = strspn(input, " \t\r\n") == call->config_length;
	if (!strcmp(call->command, "VERSION") && blank)
		answer_version();
	if (!is_object(input, call->config_length))
		fail(CODE_DECODE, "", "network configuration: is %s",
		     blank ? "missing" : "not a JSON object");
	value = find(input, call->config_length, "cniVersion");
	if (value.length && *value.at != '"' && strcmp(call->command, "VERSION"))
		fail(CODE_CONFIG, "", "network configuration: cniVersion: must be a text");
	snprintf(wanted, sizeof(wanted), "%.*s", value.length > 2 ? (int)value.length - 2 : 5,
		 value.length > 2 ? value.at + 1 : VERSIONS[0]);
	for (call->version = 0; call->version < VERSION_COUNT; call->version++)
		if (!strcmp(wanted, VERSIONS[call->version]))
			break;
	if (call->version < VERSION_COUNT)
		version = VERSIONS[call->version];
	if (!strcmp(call->command, "VERSION"))
		answer_version();
	if (call->version == VERSION_COUNT)
		fail(CODE_VERSION, "0.3.0 to 1.1.0 are", "cniVersion: \"%s\" is not supported",
		     wanted);
}

static void read_call(struct call *call)
{
	static const struct {
		const char *name;
		int since;
		bool of_pod, needs_netns;
	} commands[] = {
		{"ADD", 0, true, true},
		{"DEL", 0, true, false},
		{"CHECK", FIRST_CHECK, true, true},
		{"GC", FIRST_STATUS, false, false},
		{"STATUS", FIRST_STATUS, false, false},
		{"VERSION", 0, false, false},
	};
	unsigned int i;

	call->command = from_environment("CNI_COMMAND");
	for (i = 0; i < sizeof(commands) / sizeof(*commands); i++)
		if (!strcmp(call->command, commands[i].name))
			break;
	if (i == sizeof(commands) / sizeof(*commands))
		fail(CODE_ENVIRONMENT, "ADD, DEL, CHECK, GC, STATUS and VERSION are",
		     "CNI_COMMAND: \"%s\" is no command", call->command);
	call->container = from_environment("CNI_CONTAINERID");
	call->netns = from_environment("CNI_NETNS");
	call->interface = from_environment("CNI_IFNAME");
	read_config(call);
	if (call->version < commands[i].since)
		fail(CODE_VERSION, "", "cniVersion: %s has no %s; %s has", version, call->command,
		     VERSIONS[commands[i].since]);
	if (!commands[i].of_pod)
		return;
	if (!is_id(call->container))
		fail(CODE_ENVIRONMENT, "letters, digits, '_', '.' and '-', at most 200",
		     "CNI_CONTAINERID: %s%s%s", *call->container ? "\"" : "", call->container,
		     *call->container ? "\" is no id" : "missing");
	if (!is_interface(call->interface))
		fail(CODE_ENVIRONMENT, "at most 15 bytes without '/', ':' and spaces",
		     "CNI_IFNAME: %s%s%s", *call->interface ? "\"" : "", call->interface,
		     *call->interface ? "\" is no interface name" : "missing");
	if (!*call->netns && commands[i].needs_netns)
		fail(CODE_ENVIRONMENT, "", "CNI_NETNS: missing");
}
