/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Compile-time options, one sentence each. Only what changes the shape of the
 * code stands here; everything a node may want to set is a map entry.
 */
#ifndef PODLANE_CONFIG_H
#define PODLANE_CONFIG_H

/* Address family of this compile: 4 or 6. */
#ifndef FAMILY
#define FAMILY 4
#endif

/* Words of an address: 1 or 4. */
#if FAMILY == 4
#define ADDR_WORDS 1
#else
#define ADDR_WORDS 4
#endif

/* How many masquerade ports are tried for one flow before it is dropped. */
#ifndef MASQUERADE_TRIES
#define MASQUERADE_TRIES 16
#endif

/* How many answers (resets, ICMP errors) one CPU sends to one sender in a second before it keeps silent. */
#ifndef ANSWERS_PER_SECOND
#define ANSWERS_PER_SECOND 10000
#endif

/* How many senders are told apart for that: pods, and one for all else. */
#ifndef ANSWER_SHARES
#define ANSWER_SHARES 128
#endif

/* How many IPv6 extension headers are walked before the packet is dropped. */
#ifndef EXTENSION_MAX
#define EXTENSION_MAX 6
#endif

#endif
