/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* icmp.h asks for it for this one name, and the distribution's would bring in the C library. */
#define IFNAMSIZ 16
