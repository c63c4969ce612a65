/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kernels.c - the tables of inner loops, and which of them this machine uses.
 *
 * A table exists if the program was built for its architecture, and is offered if the processor and
 * the operating system run it (__builtin_cpu_supports() asks for both). The choice is made once, at
 * the first use; the environment can narrow it. A level that has no code of its own for a loop has
 * the scalar one.
 */
#include "codec/kernels.h"

#include <errno.h>
#include <stdatomic.h>
#include <string.h>

#include "codec/scalar.h"
#include "codec/simd/decode.h"
#include "codec/simd/encode.h"
#include "codec/trellis.h"

#define SIMD_VARIABLE "SHADOWSERVE_SIMD"

const struct kernels kernels_scalar = {
    .name = "scalar",

    .r16_table = scalar_r16_table,
    .r16_strip = scalar_r16_strip,
    .fused = scalar_fused,
    .dequantise = scalar_dequantise,
    .join = scalar_join,
    .write = scalar_write,
    .write_end = scalar_write_end,

    .r16_encode = scalar_r16_encode,
    .spread = scalar_spread,
    .power = scalar_power,
    .quantise = scalar_quantise,
    .distance = scalar_distance,
    .count = scalar_count,
    .pack = scalar_pack,
    .measure = scalar_measure,
    .code = scalar_code,
    .trellis = scalar_trellis,
    .exponents = scalar_exponents,
    .split = scalar_split,
};

#if defined(__x86_64__)
static const struct kernels kernels_avx512 = {
    .name = "avx512",

    .r16_table = avx512_r16_table,
    .r16_strip = avx512_r16_strip,
    .fused = avx512_fused,
    .dequantise = avx512_dequantise,
    .join = avx512_join,
    .write = avx512_write,
    .write_end = avx512_write_end,

    .r16_encode = avx512_r16_encode,
    .spread = avx512_spread,
    .power = avx512_power,
    .quantise = avx512_quantise,
    .distance = avx512_distance,
    .count = avx512_count,
    .pack = avx512_pack,
    .measure = avx512_measure,
    .code = avx512_code,
    .trellis = scalar_trellis,
    .exponents = avx512_exponents,
    .split = avx512_split,
};

static const struct kernels kernels_avx2 = {
    .name = "avx2",

    .r16_table = avx2_r16_table,
    .r16_strip = avx2_r16_strip,
    .fused = scalar_fused,
    .dequantise = avx2_dequantise,
    .join = avx2_join,
    .write = avx2_write,
    .write_end = avx2_write_end,

    .r16_encode = scalar_r16_encode,
    .spread = avx2_spread,
    .power = avx2_power,
    .quantise = avx2_quantise,
    .distance = avx2_distance,
    .count = scalar_count,
    .pack = scalar_pack,
    .measure = avx2_measure,
    .code = scalar_code,
    .trellis = scalar_trellis,
    .exponents = scalar_exponents,
    .split = scalar_split,
};

/* What meson.build compiles these tables' files for. */
static int avx512_runs(void)
{
	return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
	       __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
	       __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vbmi2") &&
	       __builtin_cpu_supports("avx512vpopcntdq") && __builtin_cpu_supports("bmi") &&
	       __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt");
}

static int avx2_runs(void)
{
	return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") &&
	       __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt") &&
	       __builtin_cpu_supports("f16c");
}
#elif defined(__aarch64__)
static const struct kernels kernels_neon = {
    .name = "neon",

    .r16_table = neon_r16_table,
    .r16_strip = neon_r16_strip,
    .fused = scalar_fused,
    .dequantise = neon_dequantise,
    .join = neon_join,
    .write = neon_write,
    .write_end = neon_write_end,

    .r16_encode = scalar_r16_encode,
    .spread = neon_spread,
    .power = neon_power,
    .quantise = neon_quantise,
    .distance = neon_distance,
    .count = scalar_count,
    .pack = scalar_pack,
    .measure = neon_measure,
    .code = scalar_code,
    .trellis = scalar_trellis,
    .exponents = scalar_exponents,
    .split = scalar_split,
};
#endif

static int always_runs(void)
{
	return 1;
}

static const struct {
	const struct kernels *table;
	int (*runs)(void);
} levels[] = {
#if defined(__x86_64__)
    {&kernels_avx512, avx512_runs},
    {&kernels_avx2, avx2_runs},
#elif defined(__aarch64__)
    {&kernels_neon, always_runs}, /* every aarch64 processor has it */
#endif
    {&kernels_scalar, always_runs},
};

static const char *const level_names[] = {"avx512", "avx2", "neon", "scalar"};

/* NULL until the first use. Whoever comes first chooses; all would choose the same. */
static _Atomic(const struct kernels *) in_use;

const struct kernels *kernels_at(uint32_t index)
{
	for (uint32_t i = 0; i < ARRAY_COUNT(levels); i++)
		if (levels[i].runs() && index-- == 0)
			return levels[i].table;
	return NULL;
}

const struct kernels *kernels_find(const char *name)
{
	const struct kernels *table = NULL;

	for (uint32_t i = 0; (table = kernels_at(i)); i++)
		if (!strcmp(table->name, name))
			return table;
	return NULL;
}

void kernels_use(const struct kernels *kernels)
{
	atomic_store_explicit(&in_use, kernels, memory_order_relaxed);
}

const struct kernels *kernels_get(void)
{
	/* tables are constant: nothing else has to be visible with the pointer */
	const struct kernels *kernels = atomic_load_explicit(&in_use, memory_order_relaxed);
	const char *wanted;

	if (kernels)
		return kernels;
	wanted = getenv(SIMD_VARIABLE);
	if (wanted)
		kernels = kernels_find(wanted);
	if (!kernels)
		kernels = kernels_at(0);
	kernels_use(kernels);
	return kernels;
}

static int is_level_name(const char *name)
{
	for (uint32_t i = 0; i < ARRAY_COUNT(level_names); i++)
		if (!strcmp(level_names[i], name))
			return 1;
	return 0;
}

void kernels_list(char *text, size_t text_bytes)
{
	const struct kernels *table;
	size_t used = 0;

	text[0] = 0;
	for (uint32_t i = 0; (table = kernels_at(i)) && used < text_bytes; i++)
		used += (size_t)snprintf(text + used, text_bytes - used, "%s%s", i ? ", " : "",
					 table->name);
}

int kernels_check(char *error, size_t error_bytes)
{
	const char *wanted = getenv(SIMD_VARIABLE);
	char names[64];

	if (!wanted || kernels_find(wanted))
		return 0;
	kernels_list(names, sizeof(names));
	snprintf(error, error_bytes, "%s: \"%.32s\" %s; this machine has: %s", SIMD_VARIABLE,
		 wanted, is_level_name(wanted) ? "does not run here" : "is no SIMD level", names);
	return -EINVAL;
}
