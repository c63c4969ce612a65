/* SPDX-License-Identifier: Apache-2.0 */
/* frequency.h - integer fit of a group's class frequencies, and the logarithm that it uses. */
#ifndef SSV_CODEC_FREQUENCY_H
#define SSV_CODEC_FREQUENCY_H

#include <stdint.h>

/* Frequencies of 16 classes, summing to 256, for classes that occur count[i] times, each less
 * than 2^24. */
void frequency_fit(const uint32_t count[16], uint8_t frequency[16]);

/* About 65536 * log2(count), never above it by more than rounding; 0 for 0. */
uint32_t log2_count(uint32_t count);

#endif
