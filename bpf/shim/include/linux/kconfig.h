/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* bcc includes it before everything; kernel headers would say what the kernel was built with. */
#define CONFIG_64BIT	   1
#define CONFIG_BPF_SYSCALL 1
