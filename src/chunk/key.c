/* SPDX-License-Identifier: Apache-2.0 */
/*
 * key.c - the key chain of shadowserve.h: SHA-256 over canonical bytes, the same on every machine.
 *
 * Encoding: docs/container.md, "Keys" (normative). Depends on libcrypto alone, so that the shared
 * library can take it without the rest. Holds no state and draws no randomness.
 */
#include <errno.h>
#include <openssl/evp.h>
#include <string.h>

#include "base/bytes.h"
#include "shadowserve.h"

#define ROOT_FIXED_BYTES 120u
#define DIGEST_BYTES     32u
#define TOKENS_STEP      256u

/* The last byte is the version of this encoding. */
static const uint8_t root_magic[8] = {'S', 'S', 'V', 'K', 'E', 'Y', 0, 1};

static void root_fixed(const struct ssv_key_root *root, uint8_t fixed[ROOT_FIXED_BYTES])
{
	uint32_t chunk_tokens = root->chunk_tokens ? root->chunk_tokens : SSV_CHUNK_TOKENS;

	memcpy(fixed, root_magic, sizeof(root_magic));
	store_le32(fixed + 8, chunk_tokens);
	fixed[12] = root->dtype;
	fixed[13] = root->parts_count;
	store_le16(fixed + 14, root->layer0);
	store_le16(fixed + 16, root->layers_count);
	store_le16(fixed + 18, root->layers_total);
	store_le16(fixed + 20, root->rank);
	store_le16(fixed + 22, root->ranks_count);
	for (uint32_t p = 0; p < SSV_PARTS_MAX; p++) {
		uint8_t *part = fixed + 24 + 8 * p;

		part[0] = root->parts[p].role;
		part[1] = 0;
		store_le16(part + 2, root->parts[p].head0);
		store_le16(part + 4, root->parts[p].heads);
		store_le16(part + 6, root->parts[p].dim);
	}
	memcpy(fixed + 56, root->model_digest, DIGEST_BYTES);
	memcpy(fixed + 88, root->rope_digest, DIGEST_BYTES);
}

static int root_is_sound(const struct ssv_key_root *root)
{
	if (root->struct_size != sizeof(*root) || root->dtype > SSV_DTYPE_E5M2 ||
	    root->parts_count > SSV_PARTS_MAX)
		return 0;
	for (uint32_t p = 0; p < SSV_PARTS_MAX; p++) {
		if (root->parts[p].reserved)
			return 0;
	}
	return 1;
}

/* A text enters with its length before it, so that no two pairs of texts meet in one encoding. */
static int digest_text(EVP_MD_CTX *digest, const char *text)
{
	size_t bytes = text ? strlen(text) : 0;
	uint8_t length[4];

	if (bytes > UINT32_MAX)
		return 0;
	store_le32(length, (uint32_t)bytes);
	return EVP_DigestUpdate(digest, length, sizeof(length)) &&
	       EVP_DigestUpdate(digest, text ? text : "", bytes);
}

SSV_API int ssv_key_make_root(const struct ssv_key_root *root, struct ssv_key *ret_key)
{
	uint8_t fixed[ROOT_FIXED_BYTES];
	struct ssv_key key;
	EVP_MD_CTX *digest;
	int ok;

	if (!root || !ret_key || !root_is_sound(root))
		return -EINVAL;
	digest = EVP_MD_CTX_new();
	if (!digest)
		return -ENOMEM;
	root_fixed(root, fixed);
	ok = EVP_DigestInit_ex(digest, EVP_sha256(), NULL) &&
	     EVP_DigestUpdate(digest, fixed, sizeof(fixed)) &&
	     digest_text(digest, root->name_space) && digest_text(digest, root->tenant_salt) &&
	     EVP_DigestFinal_ex(digest, key.bytes, NULL);
	EVP_MD_CTX_free(digest);
	if (!ok)
		return -EINVAL;
	*ret_key = key;
	return 0;
}

static int digest_tokens(EVP_MD_CTX *digest, const uint32_t *tokens, size_t count)
{
	uint8_t bytes[TOKENS_STEP * 4];

	while (count) {
		size_t step = count < TOKENS_STEP ? count : TOKENS_STEP;

		for (size_t i = 0; i < step; i++)
			store_le32(bytes + 4 * i, tokens[i]);
		if (!EVP_DigestUpdate(digest, bytes, 4 * step))
			return 0;
		tokens += step;
		count -= step;
	}
	return 1;
}

SSV_API int ssv_key_chain(const struct ssv_key *previous, uint32_t chunk_tokens,
			  const uint32_t *tokens, size_t tokens_count, const struct ssv_key *extra,
			  struct ssv_key *ret_keys, size_t keys_max)
{
	static const struct ssv_key nothing;
	struct ssv_key key;
	EVP_MD_CTX *digest;
	size_t count;
	int ok = 1;

	if (!previous || (!tokens && tokens_count) || (!ret_keys && keys_max))
		return -EINVAL;
	if (!chunk_tokens)
		chunk_tokens = SSV_CHUNK_TOKENS;
	count = tokens_count / chunk_tokens;
	if (count > keys_max)
		count = keys_max;
	if (count > INT32_MAX)
		return -EINVAL;
	digest = EVP_MD_CTX_new();
	if (!digest)
		return -ENOMEM;
	key = *previous;
	for (size_t i = 0; i < count && ok; i++) {
		ok = EVP_DigestInit_ex(digest, EVP_sha256(), NULL) &&
		     EVP_DigestUpdate(digest, key.bytes, sizeof(key.bytes)) &&
		     digest_tokens(digest, tokens + i * chunk_tokens, chunk_tokens) &&
		     EVP_DigestUpdate(digest, extra ? extra[i].bytes : nothing.bytes,
				      DIGEST_BYTES) &&
		     EVP_DigestFinal_ex(digest, key.bytes, NULL);
		ret_keys[i] = key;
	}
	EVP_MD_CTX_free(digest);
	return ok ? (int)count : -EINVAL;
}
