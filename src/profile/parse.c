/* SPDX-License-Identifier: Apache-2.0 */
/*
 * parse.c - a profile from JSON. Everything that docs/profile.md asks for is checked here, so that
 * an encoder need not; the text is data from outside, and may be anything.
 *
 * cJSON takes some 64 bytes for a value: values are counted before it is asked.
 */
#include <cjson/cJSON.h>
#include <errno.h>
#include <math.h>
#include <openssl/sha.h>
#include <stdarg.h>
#include <string.h>

#include "codec/codec.h"
#include "profile/profile.h"

#define SCHEMA        "shadowserve-profile-1"
#define VALUES_MAX    (256u << 10)
#define LAYERS_MAX    SSV_TENSORS_MAX
#define NUMBER_MIN    1e-12 /* of scales and weights: their product is a float */
#define NUMBER_MAX    1e12
#define ERROR_MAX     1e6
#define KL_MAX        1e6
#define MARGIN_MAX    100.0
#define LENGTH_MAX    (1u << 30)
#define DOCUMENTS_MAX (1u << 30)

/* Where reading stands: what it fills, and the line of the first mistake. */
struct parse {
	struct profile *profile;
	char *error;
	float *numbers; /* the profile's tables, handed out from the front */
	uint8_t *factors;
};

static int bad(const struct parse *p, const char *format, ...) SSV_PRINTF(2, 3);

static int bad(const struct parse *p, const char *format, ...)
{
	va_list list;

	va_start(list, format);
	vsnprintf(p->error, SSV_ERROR_TEXT_MAX, format, list);
	va_end(list);
	return -EBADMSG;
}

static const cJSON *member(const cJSON *object, const char *name)
{
	return cJSON_GetObjectItemCaseSensitive(object, name);
}

/* ---- values -----------------------------------------------------------------------------------
 */

static int number(const struct parse *p, const cJSON *item, const char *where, double least,
		  double most, double *ret_value)
{
	if (!item)
		return bad(p, "%s is missing", where);
	if (!cJSON_IsNumber(item))
		return bad(p, "%s is no number", where);
	if (!(item->valuedouble >= least && item->valuedouble <= most))
		return bad(p, "%s: %g, expected %g to %g", where, item->valuedouble, least, most);
	*ret_value = item->valuedouble;
	return 0;
}

static int whole(const struct parse *p, const cJSON *item, const char *where, uint32_t least,
		 uint32_t most, uint32_t *ret_value)
{
	double value = 0;
	int err = number(p, item, where, least, most, &value);

	if (!err && value != floor(value))
		err = bad(p, "%s: %g, expected a whole number", where, value);
	if (!err)
		*ret_value = (uint32_t)value;
	return err;
}

static int text_of(const struct parse *p, const cJSON *item, const char *where,
		   const char **ret_text)
{
	*ret_text = cJSON_GetStringValue(item);
	if (!*ret_text)
		return bad(p, item ? "%s is no string" : "%s is missing", where);
	return 0;
}

static int hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static int hex(const struct parse *p, const cJSON *item, const char *where, uint8_t *bytes,
	       uint32_t count)
{
	const char *text;
	int err = text_of(p, item, where, &text);

	if (err)
		return err;
	if (strlen(text) != 2 * (size_t)count)
		return bad(p, "%s: %zu characters, expected %u hexadecimal digits", where,
			   strlen(text), 2 * count);
	for (uint32_t i = 0; i < count; i++) {
		int high = hex_digit(text[2 * i]), low = hex_digit(text[2 * i + 1]);

		if (high < 0 || low < 0)
			return bad(p, "%s: expected hexadecimal digits, 0-9 and a-f", where);
		bytes[i] = (uint8_t)(high << 4 | low);
	}
	return 0;
}

static int array(const struct parse *p, const cJSON *item, const char *where, uint32_t count)
{
	if (!cJSON_IsArray(item))
		return bad(p, item ? "%s is no array" : "%s is missing", where);
	if ((uint32_t)cJSON_GetArraySize(item) != count)
		return bad(p, "%s: %d values, expected %u", where, cJSON_GetArraySize(item), count);
	return 0;
}

/* [rows][columns] numbers. */
static int table(const struct parse *p, const cJSON *item, const char *where, uint32_t rows,
		 uint32_t columns, double least, double most, float *out)
{
	const cJSON *row, *value;
	int err = array(p, item, where, rows);

	cJSON_ArrayForEach(row, item)
	{
		if (!err)
			err = array(p, row, where, columns);
		if (err)
			return err;
		cJSON_ArrayForEach(value, row)
		{
			double x = 0;

			err = number(p, value, where, least, most, &x);
			if (err)
				return err;
			*out++ = (float)x;
		}
	}
	return err;
}

/* ---- parts ------------------------------------------------------------------------------------
 */

static int part_shape(const struct parse *p, const cJSON *item, uint32_t index)
{
	static const char *const roles[] = {"K", "V", "latent"};
	struct profile_part *part = &p->profile->steps.parts[index];
	uint32_t heads, dim;
	const char *role;
	int err = text_of(p, member(item, "role"), "parts[].role", &role);

	if (err)
		return err;
	for (uint32_t i = 0; i < ARRAY_COUNT(roles); i++)
		if (!strcmp(role, roles[i]))
			part->role = (uint8_t)(SSV_ROLE_K + i);
	if (!part->role)
		return bad(p, "parts[].role: \"%.20s\", expected K, V or latent", role);
	err = whole(p, member(item, "heads"), "parts[].heads", 1, SSV_HEADS_MAX, &heads);
	if (!err)
		err = whole(p, member(item, "dim"), "parts[].dim", 1, SSV_CHANNELS_MAX, &dim);
	if (err)
		return err;
	if (heads * dim > SSV_CHANNELS_MAX)
		return bad(p, "parts[]: %u heads of %u are more than %u channels", heads, dim,
			   SSV_CHANNELS_MAX);
	part->heads = (uint16_t)heads;
	part->dim = (uint16_t)dim;
	return 0;
}

static int part_factors(struct parse *p, const cJSON *item, struct profile_part *part)
{
	uint32_t channels = (uint32_t)part->heads * part->dim,
		 layers = p->profile->steps.layers_count;
	const cJSON *row;
	int err;

	if (!item)
		return 0;
	err = array(p, item, "parts[].factor", layers);
	part->factor = p->factors;
	cJSON_ArrayForEach(row, item)
	{
		if (!err)
			err = hex(p, row, "parts[].factor", p->factors, channels);
		p->factors += channels;
		if (err)
			break;
	}
	return err;
}

static int part_steps(struct parse *p, const cJSON *item, uint32_t index)
{
	struct profile_part *part = &p->profile->steps.parts[index];
	uint32_t layers = p->profile->steps.layers_count;
	int err = table(p, member(item, "weight"), "parts[].weight", layers, part->heads,
			NUMBER_MIN, NUMBER_MAX, p->numbers);

	part->weight = p->numbers;
	p->numbers += layers * part->heads;
	return err ? err : part_factors(p, member(item, "factor"), part);
}

/* ---- figures ----------------------------------------------------------------------------------
 */

static int measure(const struct parse *p, const cJSON *item, int of_tier, struct profile_measure *m)
{
	int err = whole(p, member(item, "tokens"), "measured[].tokens", 1, LENGTH_MAX, &m->tokens);

	if (!err)
		err = number(p, member(item, "kl"), "measured[].kl", 0, KL_MAX, &m->kl);
	if (!err)
		err = number(p, member(item, "top1"), "measured[].top1", 0, 1, &m->top1);
	if (!err && of_tier)
		err = number(p, member(item, "bound"), "measured[].bound", 0, KL_MAX, &m->bound);
	if (!err && of_tier)
		err = number(p, member(item, "p99"), "measured[].p99", 0, KL_MAX, &m->p99);
	return err;
}

static int figures(const struct parse *p, const cJSON *item, int of_tier, struct profile_figures *f)
{
	const cJSON *measured = member(item, "measured"), *one;
	uint32_t count = (uint32_t)cJSON_GetArraySize(measured);
	int err = number(p, member(item, "ratio"), "ratio", 1e-3, 1e6, &f->ratio);

	if (err)
		return err;
	if (!cJSON_IsArray(measured) || !count || count > PROFILE_LENGTHS_MAX)
		return bad(p, "measured: expected an array of 1 to %u", PROFILE_LENGTHS_MAX);
	cJSON_ArrayForEach(one, measured)
	{
		struct profile_measure *m = &f->measured[f->measured_count];

		err = measure(p, one, of_tier, m);
		if (err)
			return err;
		if (f->measured_count && m->tokens <= m[-1].tokens)
			return bad(p, "measured[].tokens: %u after %u, expected to ascend",
				   m->tokens, m[-1].tokens);
		f->measured_count++;
	}
	return 0;
}

static int tier_read(struct parse *p, const cJSON *item)
{
	struct encode_profile *steps = &p->profile->steps;
	uint8_t tier = tier_parse(item->string);
	uint32_t tensors = (uint32_t)steps->layers_count * steps->parts_count;
	double scale = 0;
	int err;

	if (!tier || tier == SSV_TIER_LOSSLESS)
		return 0; /* not named in docs/profile.md */
	if (steps->scale[tier] > 0)
		return bad(p, "tiers.%s: there are two", item->string);
	err = number(p, member(item, "scale"), "tiers.*.scale", NUMBER_MIN, NUMBER_MAX, &scale);
	if (!err)
		err = table(p, member(item, "error"), "tiers.*.error", steps->layers_count,
			    steps->parts_count, 0, ERROR_MAX, p->numbers);
	if (!err)
		err = figures(p, item, 1, &p->profile->tiers[tier]);
	if (err)
		return err;
	steps->scale[tier] = (float)scale;
	steps->error[tier] = p->numbers;
	p->numbers += tensors;
	return 0;
}

static int tiers_read(struct parse *p, const cJSON *root)
{
	const cJSON *tiers = member(root, "tiers"), *tier;
	int err = 0;

	if (!cJSON_IsObject(tiers))
		return bad(p, "tiers is no object");
	cJSON_ArrayForEach(tier, tiers)
	{
		err = tier_read(p, tier);
		if (err)
			return err;
	}
	for (uint32_t r = 0; r < PROFILE_REFERENCES; r++) {
		const char *name = profile_reference_name(r);
		const cJSON *item = member(member(root, "references"), name);

		if (item)
			err = figures(p, item, 0, &p->profile->references[r]);
		if (err)
			return err;
	}
	for (uint8_t t = SSV_TIER_HIGH; t < TIERS_COUNT; t++) {
		enum profile_reference r = profile_promise(t)->reference;

		if (p->profile->tiers[t].measured_count &&
		    !p->profile->references[r].measured_count)
			return bad(p, "references.%s is missing, which tiers.%s is measured by",
				   profile_reference_name(r), tier_name(t));
	}
	return 0;
}

/* ---- the whole --------------------------------------------------------------------------------
 */

static int dtype_read(const struct parse *p, const cJSON *item)
{
	const char *text;
	int err = text_of(p, item, "dtype", &text);

	if (err)
		return err;
	for (uint8_t i = 0; dtype_bytes(i); i++) {
		if (!strcmp(text, dtype_name(i))) {
			p->profile->steps.dtype = i;
			return 0;
		}
	}
	return bad(p, "dtype: \"%.20s\", expected bf16, fp16, fp32, e4m3 or e5m2", text);
}

static int name_read(const struct parse *p, const cJSON *item)
{
	const char *text;
	int err = text_of(p, item, "model.name", &text);

	if (err)
		return err;
	if (strlen(text) > PROFILE_NAME_MAX)
		return bad(p, "model.name: %zu bytes, expected at most %u", strlen(text),
			   PROFILE_NAME_MAX);
	for (const char *c = text; *c; c++)
		if (*c < 0x20 || *c > 0x7e || *c == '"')
			return bad(p, "model.name: expected printable ASCII without quotes");
	strcpy(p->profile->name, text);
	return 0;
}

static int head_read(const struct parse *p, const cJSON *root)
{
	const cJSON *model = member(root, "model"), *text = member(root, "text");
	struct profile *profile = p->profile;
	double margin = 0;
	int err = name_read(p, member(model, "name"));

	if (!err)
		err = hex(p, member(model, "digest"), "model.digest", profile->digest, 32);
	if (!err)
		err = hex(p, member(text, "digest"), "text.digest", profile->text_digest, 32);
	if (!err)
		err = whole(p, member(text, "documents"), "text.documents", 1, DOCUMENTS_MAX,
			    &profile->documents);
	if (!err)
		err = whole(p, member(root, "verbatim_tokens"), "verbatim_tokens", 0, UINT8_MAX,
			    &profile->verbatim_tokens);
	if (!err)
		err = dtype_read(p, member(root, "dtype"));
	if (!err)
		err =
		    number(p, member(root, "error_margin"), "error_margin", 1, MARGIN_MAX, &margin);
	profile->steps.error_margin = (float)margin;
	return err;
}

/* Layers and parts, and so how much memory the tables need. */
static int shape_read(const struct parse *p, const cJSON *root)
{
	struct encode_profile *steps = &p->profile->steps;
	const cJSON *parts = member(root, "parts"), *part;
	uint32_t layers = 0, count = (uint32_t)cJSON_GetArraySize(parts);
	int err = whole(p, member(root, "layers"), "layers", 1, LAYERS_MAX, &layers);

	if (err)
		return err;
	if (!cJSON_IsArray(parts) || !count || count > SSV_PARTS_MAX)
		return bad(p, "parts: expected an array of 1 to %u", SSV_PARTS_MAX);
	if (layers * count > SSV_TENSORS_MAX)
		return bad(p, "%u layers of %u parts are more than %u tensors", layers, count,
			   SSV_TENSORS_MAX);
	steps->layers_count = (uint16_t)layers;
	steps->parts_count = (uint8_t)count;
	count = 0;
	cJSON_ArrayForEach(part, parts)
	{
		err = part_shape(p, part, count++);
		if (err)
			return err;
	}
	return 0;
}

/* Weights of all heads and errors of all tensors in each tier; factors of all channels. */
static int tables_make(struct parse *p)
{
	const struct encode_profile *steps = &p->profile->steps;
	size_t heads = 0, channels = 0, layers = steps->layers_count;

	for (uint32_t i = 0; i < steps->parts_count; i++) {
		heads += steps->parts[i].heads;
		channels += (size_t)steps->parts[i].heads * steps->parts[i].dim;
	}
	p->profile->numbers =
	    calloc(layers * (heads + (size_t)TIERS_COUNT * steps->parts_count), sizeof(float));
	p->profile->factors = calloc(layers, channels);
	p->numbers = p->profile->numbers;
	p->factors = p->profile->factors;
	if (p->numbers && p->factors)
		return 0;
	snprintf(p->error, SSV_ERROR_TEXT_MAX, "out of memory");
	return -ENOMEM;
}

static int root_read(struct parse *p, const cJSON *root)
{
	const cJSON *part;
	const char *schema;
	uint32_t index = 0;
	int err;

	if (!cJSON_IsObject(root))
		return bad(p, "it is no JSON object");
	err = text_of(p, member(root, "schema"), "schema", &schema);
	if (!err && strcmp(schema, SCHEMA) != 0)
		err = bad(p, "schema: \"%.40s\", expected " SCHEMA, schema);
	if (!err)
		err = head_read(p, root);
	if (!err)
		err = shape_read(p, root);
	if (!err)
		err = tables_make(p);
	if (err)
		return err;
	cJSON_ArrayForEach(part, member(root, "parts"))
	{
		err = part_steps(p, part, index++);
		if (err)
			return err;
	}
	return tiers_read(p, root);
}

static void profile_hash(const char *text, size_t bytes, uint8_t hash[8])
{
	uint8_t digest[SHA256_DIGEST_LENGTH];

	SHA256((const uint8_t *)text, bytes, digest);
	memcpy(hash, digest, 8);
}

/* Could it have more values than a profile can use? */
static int is_too_much(const char *text, size_t bytes)
{
	size_t values = 0;

	for (size_t i = 0; i < bytes; i++)
		values += text[i] == ',' || text[i] == '[' || text[i] == '{';
	return values > VALUES_MAX;
}

static int is_blank(const char *text, const char *end)
{
	while (text < end && (*text == ' ' || *text == '\n' || *text == '\r' || *text == '\t'))
		text++;
	return text == end;
}

int profile_parse(const char *text, size_t bytes, struct profile **ret_profile, char *error)
{
	struct parse p = {.error = error};
	const char *end = NULL;
	cJSON *root;
	int err;

	if (bytes > PROFILE_BYTES_MAX || is_too_much(text, bytes)) {
		snprintf(error, SSV_ERROR_TEXT_MAX,
			 "%zu bytes, expected at most %u with at most %u values", bytes,
			 PROFILE_BYTES_MAX, VALUES_MAX);
		return -E2BIG;
	}
	root = cJSON_ParseWithLengthOpts(text, bytes, &end, 0);
	if (!root || !is_blank(end, text + bytes)) {
		cJSON_Delete(root);
		return bad(&p, "it is no JSON: a mistake at byte %td", end ? end - text : 0);
	}
	p.profile = calloc(1, sizeof(*p.profile));
	if (p.profile)
		err = root_read(&p, root);
	else
		err = -ENOMEM;
	cJSON_Delete(root);
	if (err) {
		profile_free(p.profile);
		return err;
	}
	profile_hash(text, bytes, p.profile->steps.hash);
	*ret_profile = p.profile;
	return 0;
}

int profile_read(const char *path, struct profile **ret_profile, char *error)
{
	FILE *file = fopen(path, "rb");
	char *text = NULL;
	size_t bytes;
	int err = 0;

	if (!file || !(text = malloc(PROFILE_BYTES_MAX + 1))) {
		err = file ? -ENOMEM : -errno;
		goto fail;
	}
	bytes = fread(text, 1, PROFILE_BYTES_MAX + 1, file);
	if (ferror(file)) {
		err = -EIO;
		goto fail;
	}
	err = profile_parse(text, bytes, ret_profile, error);
	goto free_text;
fail:
	snprintf(error, SSV_ERROR_TEXT_MAX, "%s", strerror(-err));
free_text:
	free(text);
	if (file)
		fclose(file);
	return err;
}

void profile_free(struct profile *profile)
{
	if (!profile)
		return;
	free(profile->numbers);
	free(profile->factors);
	free(profile);
}
