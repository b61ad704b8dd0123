// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * podlane's datapath: one translation unit, compiled once for IPv4 and once
 * for IPv6. Each hook is one program; its packet path is drawn at the head of
 * its file.
 */
#include "from_pod.h"
#include "to_pod.h"
#include "from_uplink.h"
#include "to_uplink.h"
#include "from_overlay.h"
#include "to_overlay.h"
#include "socket.h"
#include "tails.h"
