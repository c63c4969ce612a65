/* SPDX-License-Identifier: Apache-2.0 */
/* dpdk_limits.h - the numbers that both files of the dpdk engine build on. */
#ifndef SSV_INFLATE_DPDK_LIMITS_H
#define SSV_INFLATE_DPDK_LIMITS_H

#define DPDK_WINDOW_BITS      15u
#define DPDK_SEGMENT_BYTES    65408u     /* of an mbuf: its lengths have 16 bits; whole lines */
#define DPDK_RECORD_BYTES_MAX (2u << 20) /* of BlueField-3; the format needs no more */

#endif
