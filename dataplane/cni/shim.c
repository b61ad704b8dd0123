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
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define INPUT_MAX	 (1 << 20)
#define DISCARD_MAX	 (64 << 20) /* a writer that has more than this may get EPIPE */
#define ANSWER_MAX	 (4 << 20) /* a result holds the configuration's prevResult */
#define ENV_MAX		 (1 << 16)
#define ID_MAX		 200 /* it becomes a file's name with the interface's */
#define JSON_DEPTH	 100
#define CONNECT_SECONDS	 10
#define ADD_SECONDS	 60
#define OTHER_SECONDS	 30
#define FIRST_PAUSE_MS	 10
#define LONGEST_PAUSE_MS 320

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

struct span {
	const char *at;
	size_t length;
};

static char input[INPUT_MAX + 1];
static char answer[ANSWER_MAX];
static char request[INPUT_MAX + 6 * ENV_MAX];
static const char *version = "1.1.0"; /* of answers; the configuration's once it is read */

/* ---- text out ---- */

static size_t utf8_length(const unsigned char *p, size_t left)
{
	size_t n = *p < 0x80   ? 1
		   : *p < 0xc2 ? 0
		   : *p < 0xe0 ? 2
		   : *p < 0xf0 ? 3
		   : *p < 0xf5 ? 4
			       : 0;

	if (!n || n > left)
		return 0;
	for (size_t i = 1; i < n; i++)
		if ((p[i] & 0xc0) != 0x80)
			return 0;
	if ((*p == 0xe0 && p[1] < 0xa0) || (*p == 0xed && p[1] > 0x9f) ||
	    (*p == 0xf0 && p[1] < 0x90) || (*p == 0xf4 && p[1] > 0x8f))
		return 0;
	return n;
}

/* Writes text as a JSON string. Bytes that are no UTF-8 become '?'. Returns the end. */
static char *put_string(char *out, const char *end, const char *text)
{
	const unsigned char *p = (const unsigned char *)text;
	size_t left = strlen(text);

	if (out < end)
		*out++ = '"';
	while (left && end - out > 8) {
		size_t n = utf8_length(p, left);

		if (!n || *p < 0x20 || *p == 0x7f || *p == '"' || *p == '\\') {
			out += sprintf(out, "\\u%04x", n ? *p : '?');
			n = 1;
		} else {
			memcpy(out, p, n);
			out += n;
		}
		p += n;
		left -= n;
	}
	if (out < end)
		*out++ = '"';
	return out;
}

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

/* ---- JSON in: the whole text is checked, top-level values are found ---- */

struct reader {
	const char *at, *end;
};

static bool read_value(struct reader *r, int depth);

static void skip_space(struct reader *r)
{
	while (r->at < r->end && memchr(" \t\r\n", *r->at, 4))
		r->at++;
}

static bool read_char(struct reader *r, char wanted)
{
	skip_space(r);
	if (r->at >= r->end || *r->at != wanted)
		return false;
	r->at++;
	return true;
}

static bool read_string(struct reader *r)
{
	if (!read_char(r, '"'))
		return false;
	while (r->at < r->end && *r->at != '"') {
		if ((unsigned char)*r->at < 0x20)
			return false;
		if (*r->at++ != '\\')
			continue;
		if (r->at >= r->end || !*r->at || !strchr("\"\\/bfnrtu", *r->at))
			return false;
		if (*r->at++ == 'u')
			for (int i = 0; i < 4; i++)
				if (r->at >= r->end || !*r->at ||
				    !strchr("0123456789abcdefABCDEF", *r->at++))
					return false;
	}
	return read_char(r, '"');
}

static bool read_digits(struct reader *r)
{
	const char *begin = r->at;

	while (r->at < r->end && *r->at >= '0' && *r->at <= '9')
		r->at++;
	return r->at > begin;
}

static bool read_number(struct reader *r)
{
	if (r->at < r->end && *r->at == '-')
		r->at++;
	if (!read_digits(r))
		return false;
	if (r->at < r->end && *r->at == '.') {
		r->at++;
		if (!read_digits(r))
			return false;
	}
	if (r->at < r->end && (*r->at == 'e' || *r->at == 'E')) {
		r->at++;
		if (r->at < r->end && (*r->at == '+' || *r->at == '-'))
			r->at++;
		return read_digits(r);
	}
	return true;
}

static bool read_word(struct reader *r, const char *word)
{
	size_t length = strlen(word);

	if ((size_t)(r->end - r->at) < length || memcmp(r->at, word, length))
		return false;
	r->at += length;
	return true;
}

static bool read_members(struct reader *r, int depth, bool named)
{
	char close = named ? '}' : ']';

	r->at++;
	if (read_char(r, close))
		return true;
	do {
		if (named && !(read_string(r) && read_char(r, ':')))
			return false;
		if (!read_value(r, depth + 1))
			return false;
	} while (read_char(r, ','));
	return read_char(r, close);
}

static bool read_value(struct reader *r, int depth)
{
	skip_space(r);
	if (r->at >= r->end || depth > JSON_DEPTH)
		return false;
	switch (*r->at) {
	case '{':
	case '[':
		return read_members(r, depth, *r->at == '{');
	case '"':
		return read_string(r);
	case 't':
		return read_word(r, "true");
	case 'f':
		return read_word(r, "false");
	case 'n':
		return read_word(r, "null");
	default:
		return read_number(r);
	}
}

static bool is_object(const char *text, size_t length)
{
	struct reader r = {text, text + length};

	skip_space(&r);
	if (r.at >= r.end || *r.at != '{' || !read_value(&r, 0))
		return false;
	skip_space(&r);
	return r.at == r.end;
}

/* The last top-level value of a key in a checked object; length 0 if there is none. */
static struct span find(const char *text, size_t length, const char *key)
{
	struct reader r = {text, text + length};
	struct span found = {NULL, 0};

	read_char(&r, '{');
	for (;;) {
		const char *name, *value;
		size_t size;

		skip_space(&r);
		name = r.at + 1;
		if (!read_string(&r))
			return found;
		size = r.at - 1 - name;
		read_char(&r, ':');
		skip_space(&r);
		value = r.at;
		read_value(&r, 1);
		if (size == strlen(key) && !memcmp(name, key, size))
			found = (struct span){value, r.at - value};
		if (!read_char(&r, ','))
			return found;
	}
}

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

/* ---- the call ---- */

struct call {
	const char *command, *container, *netns, *interface;
	const char *config;
	size_t config_length;
	int version; /* place in VERSIONS */
};

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

/* ---- the agent ---- */

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

/* ---- loopback ---- */

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
	char *out = answer, *end = answer + sizeof(answer) - 512;
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
	write_out(answer, out - answer);
	exit(0);
}

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
