/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The distribution's types and the names that the kernel has beside them. */
#ifndef PODLANE_SHIM_TYPES_H
#define PODLANE_SHIM_TYPES_H

#include_next <linux/types.h>

typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef __s8 s8;
typedef __s16 s16;
typedef __s32 s32;
typedef __s64 s64;
typedef unsigned long size_t;
typedef unsigned long uintptr_t;
typedef _Bool bool;

#define NULL ((void *)0)
#define true 1
#define false 0

#endif
