/* SPDX-License-Identifier: Apache-2.0 */
/*
 * frequency.c - fits a group's 16 frequencies to its class counts, in integers alone, so that every
 * machine writes the same bytes.
 *
 * Frequencies sum to 256; a class that occurs has 1..255, the others 0 (but one of them gets 1 when
 * a single class occurs, since 256 does not fit a byte).
 */
#include "codec/frequency.h"

#include "base/base.h"

#define TOTAL     256u
#define SWAPS_MAX 64u
#define CLASSES   16u

/* round(65536 * log2(k)), k = 0..256 (entry 0 is not used). */
static const uint32_t log2_q16[TOTAL + 1] = {
    0,      0,      65536,  103872, 131072, 152170, 169408, 183983, 196608, 207744, 217706, 226717,
    234944, 242512, 249519, 256042, 262144, 267876, 273280, 278392, 283242, 287855, 292253, 296456,
    300480, 304340, 308048, 311616, 315055, 318373, 321578, 324678, 327680, 330589, 333412, 336153,
    338816, 341407, 343928, 346384, 348778, 351113, 353391, 355616, 357789, 359914, 361992, 364026,
    366016, 367966, 369876, 371748, 373584, 375385, 377152, 378887, 380591, 382264, 383909, 385525,
    387114, 388677, 390214, 391727, 393216, 394682, 396125, 397547, 398948, 400328, 401689, 403030,
    404352, 405656, 406943, 408212, 409464, 410700, 411920, 413125, 414314, 415488, 416649, 417795,
    418927, 420046, 421152, 422245, 423325, 424394, 425450, 426495, 427528, 428550, 429562, 430562,
    431552, 432532, 433502, 434462, 435412, 436353, 437284, 438206, 439120, 440025, 440921, 441809,
    442688, 443560, 444423, 445279, 446127, 446967, 447800, 448626, 449445, 450256, 451061, 451859,
    452650, 453435, 454213, 454985, 455750, 456510, 457263, 458010, 458752, 459488, 460218, 460942,
    461661, 462375, 463083, 463786, 464484, 465177, 465864, 466547, 467225, 467898, 468566, 469229,
    469888, 470543, 471192, 471838, 472479, 473115, 473748, 474376, 475000, 475620, 476236, 476848,
    477456, 478060, 478661, 479257, 479850, 480439, 481024, 481606, 482185, 482759, 483331, 483898,
    484463, 485024, 485582, 486136, 486688, 487236, 487781, 488323, 488861, 489397, 489930, 490459,
    490986, 491510, 492031, 492549, 493064, 493577, 494086, 494593, 495098, 495599, 496098, 496594,
    497088, 497579, 498068, 498554, 499038, 499519, 499998, 500474, 500948, 501419, 501889, 502355,
    502820, 503282, 503742, 504200, 504656, 505109, 505561, 506010, 506457, 506902, 507345, 507786,
    508224, 508661, 509096, 509528, 509959, 510388, 510815, 511240, 511663, 512084, 512503, 512921,
    513336, 513750, 514162, 514572, 514981, 515387, 515792, 516195, 516597, 516997, 517395, 517791,
    518186, 518579, 518971, 519361, 519749, 520136, 520521, 520904, 521286, 521667, 522046, 522423,
    522799, 523173, 523546, 523918, 524288,
};

uint32_t log2_count(uint32_t count)
{
	uint32_t shift = count > TOTAL ? 32 - 9 - (uint32_t)__builtin_clz(count) : 0;

	/* the least shift that leads into the table */
	shift += count >> shift > TOTAL;
	return (shift << 16) + log2_q16[count >> shift];
}

/*
 * What one more, or one less, of each frequency is worth: its gain and, below it in CHOICE_BITS,
 * what makes the first of equal classes win. NO_GROWTH and NO_SHRINKING where it is not possible.
 */
#define CHOICE_BITS  4u
#define NO_GROWTH    0
#define NO_SHRINKING UINT64_MAX

struct choices {
	uint64_t grow[CLASSES], shrink[CLASSES];
};

/* Bits (q16) saved by frequency f + 1 instead of f, for a class that occurs count times. */
static uint64_t gain(uint32_t count, uint32_t f)
{
	return (uint64_t)count * (log2_q16[f + 1] - log2_q16[f]);
}

static void choices_set(struct choices *choices, uint32_t i, uint32_t count, uint32_t f)
{
	int grows = f && f < TOTAL - 1, shrinks = f >= 2;

	choices->grow[i] = grows ? (gain(count, f) << CHOICE_BITS) + CLASSES - i : NO_GROWTH;
	choices->shrink[i] = shrinks ? (gain(count, f - 1) << CHOICE_BITS) + i : NO_SHRINKING;
}

/* Four maxima side by side: one after the other would wait for each comparison. */
static uint64_t best_to_grow(const struct choices *choices)
{
	uint64_t best[4] = {NO_GROWTH, NO_GROWTH, NO_GROWTH, NO_GROWTH};

	for (uint32_t i = 0; i < CLASSES; i += 4)
		for (uint32_t k = 0; k < 4; k++)
			best[k] = u64_max(best[k], choices->grow[i + k]);
	return u64_max(u64_max(best[0], best[1]), u64_max(best[2], best[3]));
}

static uint64_t best_to_shrink(const struct choices *choices)
{
	uint64_t best[4] = {NO_SHRINKING, NO_SHRINKING, NO_SHRINKING, NO_SHRINKING};

	for (uint32_t i = 0; i < CLASSES; i += 4)
		for (uint32_t k = 0; k < 4; k++)
			best[k] = u64_min(best[k], choices->shrink[i + k]);
	return u64_min(u64_min(best[0], best[1]), u64_min(best[2], best[3]));
}

static uint32_t class_of_growth(uint64_t best)
{
	return CLASSES - 1 - (uint32_t)((best - 1) % CLASSES);
}

/* Proportional, at least 1; returns their sum. */
static uint32_t first_guess(const uint32_t count[CLASSES], uint32_t f[CLASSES])
{
	uint32_t total = 0, present = 0, sum = 0;

	for (uint32_t i = 0; i < CLASSES; i++) {
		total += count[i];
		present += count[i] != 0;
	}
	for (uint32_t i = 0; i < CLASSES; i++) {
		f[i] = count[i] ? count[i] * TOTAL / total : 0;
		if (count[i] && !f[i])
			f[i] = 1;
		if (f[i] == TOTAL)
			f[i] = TOTAL - 1;
	}
	if (!present)
		f[0] = TOTAL - 1;
	if (present <= 1)
		f[f[0] ? 1 : 0] = 1;
	for (uint32_t i = 0; i < CLASSES; i++)
		sum += f[i];
	return sum;
}

void frequency_fit(const uint32_t count[CLASSES], uint8_t frequency[CLASSES])
{
	uint32_t f[CLASSES], sum = first_guess(count, f);
	struct choices choices;

	for (uint32_t i = 0; i < CLASSES; i++)
		choices_set(&choices, i, count[i], f[i]);
	for (uint32_t i; sum < TOTAL; sum++) {
		i = class_of_growth(best_to_grow(&choices));
		choices_set(&choices, i, count[i], ++f[i]);
	}
	for (uint32_t i; sum > TOTAL; sum--) {
		i = (uint32_t)best_to_shrink(&choices) % CLASSES;
		choices_set(&choices, i, count[i], --f[i]);
	}
	for (uint32_t swap = 0; swap < SWAPS_MAX; swap++) {
		uint64_t growth = best_to_grow(&choices), loss = best_to_shrink(&choices);
		uint32_t up = class_of_growth(growth), down = (uint32_t)loss % CLASSES;

		if (growth == NO_GROWTH || loss == NO_SHRINKING || up == down ||
		    (growth - 1) >> CHOICE_BITS <= loss >> CHOICE_BITS)
			break;
		choices_set(&choices, up, count[up], ++f[up]);
		choices_set(&choices, down, count[down], --f[down]);
	}
	for (uint32_t i = 0; i < CLASSES; i++)
		frequency[i] = (uint8_t)f[i];
}
