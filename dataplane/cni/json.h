// SPDX-License-Identifier: Apache-2.0
/*
 * JSON of a call and its answer, without a tree and without memory of its own: a text is checked
 * whole (RFC 8259), top-level values are found in it as spans, strings are written escaped.
 */
#pragma once
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#define JSON_DEPTH 100

struct span {
	const char *at;
	size_t length;
};

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

/* ---- in ---- */

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
