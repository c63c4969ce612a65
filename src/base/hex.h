/* SPDX-License-Identifier: Apache-2.0 */
/*
 * hex.h - what a hexadecimal digit is worth, whichever its case. Formats that allow one spelling
 * alone, such as profiles, look for themselves.
 */
#ifndef SSV_HEX_H
#define SSV_HEX_H

/* 0 to 15, or -1: it is none. */
static inline int hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return -1;
}

#endif
