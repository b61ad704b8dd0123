/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * An SCTP packet's ports and its checksum, which no helper changes (decision 0012):
 * the port is written at once, the sum when all else is done.
 */
#ifndef PODLANE_SCTP_H
#define PODLANE_SCTP_H

#include "packet.h"

#define SCTP_CSUM_OFFSET 8

/* RFC 9260 appendix A, bits reflected */
#define CRC32C_POLYNOMIAL 0x82f63b78ULL

/*
 * An SCTP port. Its sum is over all of the packet and no pseudo-header, and is
 * kept when all else is done (tail_sctp). Of a fragment it can't be:
 * how much follows is not known.
 */
static __always_inline int sctp_store_port(struct __sk_buff *skb, struct packet *p, int offset,
					   __be16 old, __be16 new)
{
	if (p->fragment != FRAGMENT_NONE)
		return -DROP_SCTP_FRAGMENT;
	p->sctp_change ^= (__u32)(old ^ new) << offset * 8;
	return bpf_skb_store_bytes(skb, p->l4 + offset, &new, sizeof(new), BPF_F_RECOMPUTE_CSUM)
		       ? -DROP_WRITE
		       : 0;
}

/*
 * Product of a polynomial and a constant one, modulo CRC32c's; bit 31 is x^0.
 * Straight code, one addition for each bit of the constant: the verifier walks
 * a loop once a turn, and both ways of each branch of it. The compiler is kept
 * from knowing that low is 0 or 1, which it would make a branch of.
 */
static __always_inline __u64 crc32c_multiply(__u64 a, __u32 constant)
{
	__u64 product = 0, low;

#pragma unroll
	for (int i = 0; i < 32; i++) {
		if (constant >> (31 - i) & 1)
			product ^= a;
		low = a & 1;
		asm("" : "+r"(low));
		a = a >> 1 ^ low * CRC32C_POLYNOMIAL;
	}
	return product;
}

/*
 * x^8 to the power 2^k, modulo CRC32c's polynomial: what 2^k more bytes do to a
 * CRC. All is read from the map again at each step, so that the verifier knows
 * nothing of it on either path, and follows but one.
 */
#define CRC32C_STEP(k, power)                                                             \
	do {                                                                              \
		volatile __u32 *change = &p->sctp_change;                                 \
		if ((*(volatile __u32 *)&p->end - *(volatile __u32 *)&p->l4) & 1U << (k)) \
			*change = crc32c_multiply(*change, power);                        \
	} while (0)

/*
 * Keeps an SCTP packet's checksum true for the ports that were rewritten.
 * CRC32c is linear: the bits that changed, shifted through all bytes from them
 * to the packet's end, change the sum by themselves. A sum of zero is one that
 * a device or the stack has yet to make (one true sum in 2^32 is zero, too).
 */
static __always_inline int sctp_keep_sum(struct __sk_buff *skb, struct packet *p)
{
	__u32 sum;

	_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
		       "the sum, and a CRC's bits, stand in little-endian order");
	if (!p->sctp_change)
		return 0;
	if (bpf_skb_load_bytes(skb, p->l4 + SCTP_CSUM_OFFSET, &sum, sizeof(sum)))
		return -DROP_WRITE;
	if (!sum)
		return 0;
	CRC32C_STEP(0, 0x00800000);
	CRC32C_STEP(1, 0x00008000);
	CRC32C_STEP(2, 0x82f63b78);
	CRC32C_STEP(3, 0x6ea2d55c);
	CRC32C_STEP(4, 0x18b8ea18);
	CRC32C_STEP(5, 0x510ac59a);
	CRC32C_STEP(6, 0xb82be955);
	CRC32C_STEP(7, 0xb8fdb1e7);
	CRC32C_STEP(8, 0x88e56f72);
	CRC32C_STEP(9, 0x74c360a4);
	CRC32C_STEP(10, 0xe4172b16);
	CRC32C_STEP(11, 0x0d65762a);
	CRC32C_STEP(12, 0x35d73a62);
	CRC32C_STEP(13, 0x28461564);
	CRC32C_STEP(14, 0xbf455269);
	CRC32C_STEP(15, 0xe2ea32dc);
	sum ^= *(volatile __u32 *)&p->sctp_change;
	return bpf_skb_store_bytes(skb, p->l4 + SCTP_CSUM_OFFSET, &sum, sizeof(sum),
				   BPF_F_RECOMPUTE_CSUM)
		       ? -DROP_WRITE
		       : 0;
}

#endif
