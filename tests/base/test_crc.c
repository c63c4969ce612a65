/* SPDX-License-Identifier: Apache-2.0 */
/* test_crc.c - published vectors of both checksums, and that they continue over any split. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "base/base.h"
#include "base/crc.h"

static void published_vectors(void **state)
{
	static const uint8_t digits[] = "123456789";
	uint8_t bytes[32];

	(void)state;
	assert_int_equal(crc32c(0, digits, 9), 0xe3069283u);
	assert_int_equal(crc32_iso(0, digits, 9), 0xcbf43926u);
	assert_int_equal(crc32c(0, digits, 0), 0);
	assert_int_equal(crc32_iso(0, digits, 0), 0);
	/* RFC 3720, appendix B.4 */
	memset(bytes, 0, sizeof(bytes));
	assert_int_equal(crc32c(0, bytes, sizeof(bytes)), 0x8a9136aau);
	memset(bytes, 0xff, sizeof(bytes));
	assert_int_equal(crc32c(0, bytes, sizeof(bytes)), 0x62a8ab43u);
	for (uint8_t i = 0; i < sizeof(bytes); i++)
		bytes[i] = i;
	assert_int_equal(crc32c(0, bytes, sizeof(bytes)), 0x46dd794eu);
	for (uint8_t i = 0; i < sizeof(bytes); i++)
		bytes[i] = (uint8_t)(31 - i);
	assert_int_equal(crc32c(0, bytes, sizeof(bytes)), 0x113fdb5cu);
}

static void every_split_gives_the_same(void **state)
{
	uint8_t bytes[700];
	uint32_t whole_c, whole_iso;

	(void)state;
	for (uint32_t i = 0; i < sizeof(bytes); i++)
		bytes[i] = (uint8_t)(i * 197 + i / 251);
	whole_c = crc32c(0, bytes, sizeof(bytes));
	whole_iso = crc32_iso(0, bytes, sizeof(bytes));
	for (uint32_t split = 0; split <= sizeof(bytes); split++) {
		uint32_t rest = (uint32_t)sizeof(bytes) - split;

		assert_int_equal(crc32c(crc32c(0, bytes, split), bytes + split, rest), whole_c);
		assert_int_equal(crc32_iso(crc32_iso(0, bytes, split), bytes + split, rest),
				 whole_iso);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(published_vectors),
	    cmocka_unit_test(every_split_gives_the_same),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
