/* SPDX-License-Identifier: Apache-2.0 */
/*
 * stored.c - profiles in a store: under which keys they lie, and the list of those that are there.
 *
 * The list is one value, because a daemon does not know beforehand whose models will come:
 * "SSVPROF1", u32 count, u32 zero, then 16 bytes each: fingerprint (8), dtype, zero (7).
 */
#include <errno.h>
#include <openssl/sha.h>
#include <string.h>

#include "base/bytes.h"
#include "profile/profile.h"

#define HEAD_BYTES  16u
#define ENTRY_BYTES 16u

static const uint8_t magic[8] = {'S', 'S', 'V', 'P', 'R', 'O', 'F', '1'};

void profile_key(const uint8_t model[8], uint8_t dtype, struct ssv_key *ret_key)
{
	static const char prefix[] = "shadowserve profile 1";
	uint8_t name[sizeof(prefix) + 9];

	memcpy(name, prefix, sizeof(prefix));
	memcpy(name + sizeof(prefix), model, 8);
	name[sizeof(prefix) + 8] = dtype;
	SHA256(name, sizeof(name), ret_key->bytes);
}

void profile_list_key(struct ssv_key *ret_key)
{
	static const char name[] = "shadowserve profiles 1";

	SHA256((const uint8_t *)name, sizeof(name), ret_key->bytes);
}

int profile_list_read(const uint8_t *bytes, uint64_t count, struct profile_list *ret_list)
{
	struct profile_list *list = ret_list;

	list->count = 0;
	if (count < HEAD_BYTES || memcmp(bytes, magic, sizeof(magic)) || load_le32(bytes + 12) ||
	    load_le32(bytes + 8) > PROFILES_MAX ||
	    count != HEAD_BYTES + (uint64_t)load_le32(bytes + 8) * ENTRY_BYTES)
		return -EBADMSG;
	for (uint32_t i = 0; i < load_le32(bytes + 8); i++) {
		const uint8_t *in = bytes + HEAD_BYTES + (size_t)i * ENTRY_BYTES;
		struct profile_name *name = &list->names[i];

		memcpy(name->model, in, sizeof(name->model));
		name->dtype = in[8];
		if (!dtype_bytes(name->dtype))
			return -EBADMSG;
	}
	list->count = load_le32(bytes + 8);
	return 0;
}

uint64_t profile_list_write(const struct profile_list *list, uint8_t bytes[PROFILE_LIST_BYTES])
{
	memset(bytes, 0, PROFILE_LIST_BYTES);
	memcpy(bytes, magic, sizeof(magic));
	store_le32(bytes + 8, list->count);
	for (uint32_t i = 0; i < list->count; i++) {
		uint8_t *out = bytes + HEAD_BYTES + (size_t)i * ENTRY_BYTES;

		memcpy(out, list->names[i].model, sizeof(list->names[i].model));
		out[8] = list->names[i].dtype;
	}
	return HEAD_BYTES + (uint64_t)list->count * ENTRY_BYTES;
}

int profile_list_add(struct profile_list *list, const struct profile *profile)
{
	for (uint32_t i = 0; i < list->count; i++)
		if (!memcmp(list->names[i].model, profile->digest, 8) &&
		    list->names[i].dtype == profile->steps.dtype)
			return 0;
	if (list->count == PROFILES_MAX)
		return -E2BIG;
	memcpy(list->names[list->count].model, profile->digest, 8);
	list->names[list->count++].dtype = profile->steps.dtype;
	return 0;
}

int profile_is_stored_as(const struct ssv_key *key, const uint8_t *bytes, uint64_t count)
{
	char error[SSV_ERROR_TEXT_MAX];
	struct profile_list list;
	struct profile *profile;
	struct ssv_key own;

	profile_list_key(&own);
	if (!memcmp(&own, key, sizeof(own)))
		return !profile_list_read(bytes, count, &list);
	if (!count || bytes[0] != '{' || profile_parse((const char *)bytes, count, &profile, error))
		return 0;
	profile_key(profile->digest, profile->steps.dtype, &own);
	profile_free(profile);
	return !memcmp(&own, key, sizeof(own));
}
