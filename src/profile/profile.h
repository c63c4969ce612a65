/* SPDX-License-Identifier: Apache-2.0 */
/*
 * profile.h - a model's profile (docs/profile.md): read from JSON and checked, which promises it
 * keeps, and the profiles that a daemon has, found by a model's fingerprint.
 *
 * A profile does not change once it was read; what points into it is good until profile_free().
 * Reading allocates and is bounded by PROFILE_BYTES_MAX; it is for a control thread.
 */
#ifndef SSV_PROFILE_H
#define SSV_PROFILE_H

#include "codec/profile.h"
#include "shadowserve.h"

#define PROFILE_BYTES_MAX   (4u << 20)
#define PROFILE_LENGTHS_MAX 16u /* prefix lengths that a tier was measured at */
#define PROFILE_NAME_MAX    128u
#define PROFILE_P99_MAX     1.25 /* of what a promise allows: a token's KL in the worst percent */
#define PROFILES_MAX        64u  /* a daemon's */

enum profile_reference {
	PROFILE_FP8 = 0,  /* e4m3, one scale a head */
	PROFILE_INT4 = 1, /* K per channel, V per token */
	PROFILE_REFERENCES = 2,
};

/* At one prefix length. bound and p99: 1 is what the promise allows; of tiers only. */
struct profile_measure {
	uint32_t tokens;
	double kl, bound, p99, top1;
};

struct profile_figures {
	double ratio;
	uint32_t measured_count; /* 0: not in the profile */
	struct profile_measure measured[PROFILE_LENGTHS_MAX];
};

struct profile {
	struct encode_profile steps; /* for encoders */
	char name[PROFILE_NAME_MAX + 1];
	uint8_t digest[32]; /* of the model; its first 8 bytes are the fingerprint */
	uint8_t text_digest[32];
	uint32_t documents, verbatim_tokens;
	struct profile_figures tiers[TIERS_COUNT];
	struct profile_figures references[PROFILE_REFERENCES];
	float *numbers; /* owned, as are factors: what steps points into */
	uint8_t *factors;
};

/* What a tier promises: so much of a reference's KL. Of lossless and unknown tiers: share 0. */
struct profile_promise {
	enum profile_reference reference;
	double share;
	const char *words; /* the promise, for people */
};

const struct profile_promise *profile_promise(uint8_t tier);
const char *profile_reference_name(enum profile_reference reference);

/**
 * Read a profile.
 *
 * Ownership: *ret_profile is owned, end it with profile_free(). error: one line that names the
 *            member, its value and what was expected, in SSV_ERROR_TEXT_MAX bytes.
 * Errors:    -EBADMSG damaged; -E2BIG longer than PROFILE_BYTES_MAX; -ENOMEM.
 */
SSV_MUST_CHECK int profile_parse(const char *text, size_t bytes, struct profile **ret_profile,
				 char *error);
/* The same from a file. Errors: as above, and the file's own. */
SSV_MUST_CHECK int profile_read(const char *path, struct profile **ret_profile, char *error);
void profile_free(struct profile *profile); /* takes NULL */

/* Does it keep the tier's promise? lossless always is. why (SSV_ERROR_TEXT_MAX bytes, may be NULL)
 * says with numbers why not, or "". */
int profile_keeps(const struct profile *profile, uint8_t tier, char *why);

/* The coarsest tier that is not coarser than `tier` and whose promise is kept. */
uint8_t profile_allowed(const struct profile *profile, uint8_t tier);

/* ---- those that a daemon has ---------------------------------------------------------------- */

struct profile_set {
	struct profile *profiles[PROFILES_MAX]; /* owned */
	uint32_t count;
};

/* Take over a profile. -EEXIST: there is one of this model and type of elements; -E2BIG. */
SSV_MUST_CHECK int profile_set_add(struct profile_set *set, struct profile *profile);
/* Of a model's KV of this type; NULL: none, or no set. */
const struct profile *profile_set_find(const struct profile_set *set, const uint8_t model[8],
				       uint8_t dtype);
void profile_set_clear(struct profile_set *set);

/* ---- in a store -------------------------------------------------------------------------------
 */

/* A profile's text lies under a key of its model's fingerprint and its type; a list of those that
 * are there under a key of its own. */
struct profile_name {
	uint8_t model[8];
	uint8_t dtype;
};

struct profile_list {
	struct profile_name names[PROFILES_MAX];
	uint32_t count;
};

#define PROFILE_LIST_BYTES (16u + 16u * PROFILES_MAX)

void profile_key(const uint8_t model[8], uint8_t dtype, struct ssv_key *ret_key);
void profile_list_key(struct ssv_key *ret_key);
SSV_MUST_CHECK int profile_list_read(const uint8_t *bytes, uint64_t count,
				     struct profile_list *ret_list); /* -EBADMSG */
/* Returns how many bytes were written. */
uint64_t profile_list_write(const struct profile_list *list, uint8_t bytes[PROFILE_LIST_BYTES]);
SSV_MUST_CHECK int profile_list_add(struct profile_list *list, const struct profile *profile);

/* Is this value no chunk but a sound profile, or their list, under its own key? */
int profile_is_stored_as(const struct ssv_key *key, const uint8_t *bytes, uint64_t count);

#endif
