/* SPDX-License-Identifier: Apache-2.0 */
/*
 * profile.c - `shadowserve profile`: what a model's profile holds, whether it keeps its promises,
 * and profiles in a store.
 */
#include "profile/profile.h"

#include <errno.h>
#include <string.h>

#include "cli.h"
#include "codec/codec.h"
#include "model_digest.h"
#include "store_io.h"

#define HEX_BYTES 65

static const char *option_store, *option_model, *option_digest, *option_dtype = "bf16";
static uint64_t option_timeout = 10000;

static const struct arg show_args[] = {ARG_END};

static const struct arg check_args[] = {
    {"model", "DIR", "is it this model's? (needs Python with the package)", ARG_TEXT, &option_model,
     0, 0},
    {"digest", "HEX", "is it the model's of this digest?", ARG_TEXT, &option_digest, 0, 0},
    ARG_END,
};

#define STORE_ARGS                                                                              \
	{                                                                                       \
	    "store", "URI", "the store (default: $SHADOWSERVE_STORE)", ARG_TEXT, &option_store, \
	    0,       0},                                                                        \
	{                                                                                       \
		"timeout", "MS", "give up on an operation after this long (default 10000)",     \
		    ARG_NUMBER, &option_timeout, 1, 600000                                      \
	}

static const struct arg put_args[] = {STORE_ARGS, ARG_END};

static const struct arg get_args[] = {
    {"dtype", "NAME", "of the KV: bf16, fp16, fp32, e4m3, e5m2 (default bf16)", ARG_TEXT,
     &option_dtype, 0, 0},
    STORE_ARGS,
    ARG_END,
};

static const char *hex(const uint8_t *bytes, uint32_t count, char text[HEX_BYTES])
{
	for (uint32_t i = 0; i < count; i++)
		snprintf(text + 2 * (size_t)i, 3, "%02x", bytes[i]);
	return text;
}

static int file_read(const char *command, const char *path, struct profile **ret_profile)
{
	char error[SSV_ERROR_TEXT_MAX];
	int err = profile_read(path, ret_profile, error);

	if (err)
		return cli_fail(err == -EBADMSG || err == -E2BIG ? EXIT_FOUND_BAD : EXIT_USAGE,
				"%s: %s: %s", command, path, error);
	return 0;
}

/* ---- show --------------------------------------------------------------------------------------
 */

static cJSON *figures_json(const struct profile_figures *f, int of_tier)
{
	cJSON *object = cli_object(), *measured = cli_array();

	cli_add_number(object, "ratio", f->ratio);
	for (uint32_t i = 0; i < f->measured_count; i++) {
		const struct profile_measure *m = &f->measured[i];
		cJSON *one = cli_object();

		cli_add_number(one, "tokens", m->tokens);
		cli_add_number(one, "kl", m->kl);
		if (of_tier) {
			cli_add_number(one, "bound", m->bound);
			cli_add_number(one, "p99", m->p99);
		}
		cli_add_number(one, "top1", m->top1);
		cJSON_AddItemToArray(measured, one);
	}
	cli_add(object, "measured", measured);
	return object;
}

static cJSON *tiers_json(const struct profile *p)
{
	cJSON *tiers = cli_object();
	char why[SSV_ERROR_TEXT_MAX];

	for (uint8_t t = SSV_TIER_HIGH; t < TIERS_COUNT; t++) {
		cJSON *tier;

		if (!p->tiers[t].measured_count)
			continue;
		tier = figures_json(&p->tiers[t], 1);
		cli_add_text(tier, "promise", profile_promise(t)->words);
		cli_add_bool(tier, "keeps", profile_keeps(p, t, why));
		cli_add_text(tier, "why_not", why);
		cli_add(tiers, tier_name(t), tier);
	}
	return tiers;
}

static cJSON *profile_json(const struct profile *p)
{
	cJSON *object = cli_object(), *references = cli_object();
	char text[HEX_BYTES];

	cli_add_text(object, "name", p->name);
	cli_add_text(object, "digest", hex(p->digest, 32, text));
	cli_add_text(object, "hash", hex(p->steps.hash, 8, text));
	cli_add_text(object, "dtype", dtype_name(p->steps.dtype));
	cli_add_number(object, "layers", p->steps.layers_count);
	cli_add_number(object, "documents", p->documents);
	cli_add_text(object, "text", hex(p->text_digest, 32, text));
	cli_add(object, "tiers", tiers_json(p));
	for (uint32_t r = 0; r < PROFILE_REFERENCES; r++)
		if (p->references[r].measured_count)
			cli_add(references, profile_reference_name(r),
				figures_json(&p->references[r], 0));
	cli_add(object, "references", references);
	return object;
}

static void print_figures(const char *name, const struct profile_figures *f, int of_tier)
{
	for (uint32_t i = 0; i < f->measured_count; i++) {
		const struct profile_measure *m = &f->measured[i];

		if (i)
			printf("%-9s %6s", "", "");
		else
			printf("%-9s %6.2f", name, f->ratio);
		printf("  %6u  %9.3g  %.4f", m->tokens, m->kl, m->top1);
		if (of_tier)
			printf("  %5.3f  %5.3f", m->bound, m->p99);
		putchar('\n');
	}
}

static void print_profile(const struct profile *p)
{
	char text[HEX_BYTES];

	printf("model     %s\n", p->name);
	printf("digest    %s\n", hex(p->digest, 32, text));
	printf("profile   %s\n", hex(p->steps.hash, 8, text));
	printf("KV        %s, %u layers", dtype_name(p->steps.dtype), p->steps.layers_count);
	for (uint32_t i = 0; i < p->steps.parts_count; i++) {
		const struct profile_part *part = &p->steps.parts[i];

		printf(", %s of %u heads of %u%s",
		       part->role == SSV_ROLE_K   ? "K"
		       : part->role == SSV_ROLE_V ? "V"
						  : "latent",
		       part->heads, part->dim, part->factor ? " with a factor a channel" : "");
	}
	printf("\ntext      %u documents\n\n", p->documents);
	puts("           ratio  prefix         KL   top-1  bound    p99");
	for (uint8_t t = SSV_TIER_HIGH; t < TIERS_COUNT; t++)
		print_figures(tier_name(t), &p->tiers[t], 1);
	for (uint32_t r = 0; r < PROFILE_REFERENCES; r++)
		print_figures(profile_reference_name(r), &p->references[r], 0);
	puts(
	    "\nKL of next-token probabilities against the exact cache. bound and p99: of what the\n"
	    "tier promises; kept while bound is at most 1 and p99 at most 1.25 at every prefix.");
}

/* The tiers and whether each is kept; returns how many are not. */
static uint32_t print_promises(const struct profile *p)
{
	char why[SSV_ERROR_TEXT_MAX];
	uint32_t broken = 0;

	for (uint8_t t = SSV_TIER_HIGH; t < TIERS_COUNT; t++) {
		if (!p->tiers[t].measured_count)
			continue;
		if (profile_keeps(p, t, why)) {
			printf("%-9s keeps its promise: %s\n", tier_name(t),
			       profile_promise(t)->words);
			continue;
		}
		broken++;
		printf("%-9s BREAKS its promise (%s): %s\n", tier_name(t),
		       profile_promise(t)->words, why);
	}
	return broken;
}

static int run_show(int argc, char **argv)
{
	struct profile *profile;
	int err = file_read("profile show", argv[0], &profile);

	(void)argc;
	if (err)
		return err;
	if (option_json)
		err = cli_print_json(profile_json(profile), EXIT_OK);
	else
		print_profile(profile);
	profile_free(profile);
	return err;
}

/* ---- check -------------------------------------------------------------------------------------
 */

/* 1: the digest that was asked for is another's. */
static int is_another(const struct profile *profile, int *ret_exit)
{
	char wanted[HEX_BYTES], own[HEX_BYTES];

	if (option_model) {
		*ret_exit =
		    model_digest("profile check", option_model, profile->steps.dtype, wanted);
		if (*ret_exit)
			return 1;
	} else if (option_digest && strlen(option_digest) == HEX_BYTES - 1) {
		memcpy(wanted, option_digest, HEX_BYTES);
	} else if (option_digest) {
		*ret_exit = cli_fail(EXIT_USAGE,
				     "profile check: --digest \"%s\": expected 64 "
				     "hexadecimal digits",
				     option_digest);
		return 1;
	} else {
		return 0;
	}
	if (!strcmp(wanted, hex(profile->digest, 32, own)))
		return 0;
	*ret_exit = cli_fail(EXIT_FOUND_BAD,
			     "profile check: it is another model's: the profile is "
			     "of %.16s, the model is %.16s",
			     own, wanted);
	return 1;
}

static int run_check(int argc, char **argv)
{
	struct profile *profile;
	uint32_t broken = 0;
	int exit_code = file_read("profile check", argv[0], &profile);

	(void)argc;
	if (exit_code)
		return exit_code;
	if (is_another(profile, &exit_code))
		goto free_profile;
	for (uint8_t t = SSV_TIER_HIGH; t < TIERS_COUNT; t++)
		broken += profile->tiers[t].measured_count && !profile_keeps(profile, t, NULL);
	exit_code = broken ? EXIT_FOUND_BAD : EXIT_OK;
	if (option_json)
		exit_code = cli_print_json(profile_json(profile), (enum exit_code)exit_code);
	else
		(void)print_promises(profile);
free_profile:
	profile_free(profile);
	return exit_code;
}

/* ---- in a store --------------------------------------------------------------------------------
 */

/* The list of profiles; empty where there is none. */
static int list_get(struct store_io *io, const char *command, struct profile_list *ret_list)
{
	struct ssv_key key;
	int err;

	ret_list->count = 0;
	profile_list_key(&key);
	err = store_io_get(io, &key);
	if (err == -ENOENT)
		return 0;
	if (err)
		return cli_fail(EXIT_UNREACHABLE, "%s: the store answers: %s", command,
				strerror(-err));
	if (profile_list_read(io->value, io->value_bytes, ret_list))
		return cli_fail(EXIT_FOUND_BAD, "%s: the store's list of profiles is damaged",
				command);
	return 0;
}

static int file_bytes(const char *path, uint8_t *bytes, uint64_t *ret_count)
{
	FILE *file = fopen(path, "rb");

	if (!file)
		return -errno;
	*ret_count = fread(bytes, 1, PROFILE_BYTES_MAX, file);
	fclose(file);
	return 0;
}

/* Its text first, so that the list never names what is not there. */
static int put(struct store_io *io, const struct profile *profile, const uint8_t *bytes,
	       uint64_t count)
{
	uint8_t list_bytes[PROFILE_LIST_BYTES];
	struct profile_list list;
	struct ssv_key key;
	int err = list_get(io, "profile put", &list);

	if (err)
		return err;
	if (profile_list_add(&list, profile))
		return cli_fail(EXIT_FOUND_BAD, "profile put: the store has %u profiles already",
				PROFILES_MAX);
	profile_key(profile->digest, profile->steps.dtype, &key);
	err = store_io_put(io, &key, bytes, count);
	if (!err) {
		profile_list_key(&key);
		err = store_io_put(io, &key, list_bytes, profile_list_write(&list, list_bytes));
	}
	if (err)
		return cli_fail(EXIT_UNREACHABLE, "profile put: the store answers: %s",
				strerror(-err));
	return 0;
}

static int run_put(int argc, char **argv)
{
	uint8_t *bytes = cli_alloc(PROFILE_BYTES_MAX);
	struct profile *profile = NULL;
	struct store_io io = {0};
	char text[HEX_BYTES];
	uint64_t count = 0;
	int err = file_read("profile put", argv[0], &profile);

	(void)argc;
	if (!err && file_bytes(argv[0], bytes, &count))
		err = cli_fail(EXIT_USAGE, "profile put: %s: %s", argv[0], strerror(errno));
	if (!err)
		err = store_io_open(&io, "profile put", option_store, (uint32_t)option_timeout);
	if (!err) {
		err = put(&io, profile, bytes, count);
		store_io_close(&io);
	}
	if (!err && option_json)
		err = cli_print_json(profile_json(profile), EXIT_OK);
	else if (!err)
		printf("%s of %s, %s\n", hex(profile->steps.hash, 8, text), profile->name,
		       dtype_name(profile->steps.dtype));
	profile_free(profile);
	free(bytes);
	return err;
}

static int print_list(struct store_io *io)
{
	struct profile_list list;
	cJSON *profiles = cli_array(), *object;
	char text[HEX_BYTES];
	int err = list_get(io, "profile get", &list);

	for (uint32_t i = 0; !err && i < list.count; i++) {
		cJSON *one = cli_object();

		cli_add_text(one, "model", hex(list.names[i].model, 8, text));
		cli_add_text(one, "dtype", dtype_name(list.names[i].dtype));
		cJSON_AddItemToArray(profiles, one);
		if (!option_json)
			printf("%s %s\n", text, dtype_name(list.names[i].dtype));
	}
	if (err || !option_json) {
		cJSON_Delete(profiles);
		return err;
	}
	object = cli_object();
	cli_add(object, "profiles", profiles);
	return cli_print_json(object, EXIT_OK);
}

static int print_one(struct store_io *io, const char *model_text)
{
	char padded[HEX_BYTES], error[SSV_ERROR_TEXT_MAX];
	struct profile *profile;
	struct ssv_key key, model;
	uint8_t dtype = 0;
	int err;

	snprintf(padded, sizeof(padded), "%.16s%048d", model_text, 0);
	while (dtype_bytes(dtype) && strcmp(dtype_name(dtype), option_dtype) != 0)
		dtype++;
	if (strlen(model_text) < 16 || cli_parse_key(padded, &model) || !dtype_bytes(dtype))
		return cli_fail(EXIT_USAGE,
				"profile get: \"%s\", %s: expected a model's digest or "
				"its first 16 digits, and a --dtype",
				model_text, option_dtype);
	profile_key(model.bytes, dtype, &key);
	err = store_io_get(io, &key);
	if (err == -ENOENT)
		return cli_fail(EXIT_FOUND_BAD, "profile get: the store has none of %.16s, %s",
				model_text, option_dtype);
	if (err)
		return cli_fail(EXIT_UNREACHABLE, "profile get: the store answers: %s",
				strerror(-err));
	err = profile_parse((const char *)io->value, io->value_bytes, &profile, error);
	if (err)
		return cli_fail(EXIT_FOUND_BAD, "profile get: it is damaged: %s", error);
	profile_free(profile);
	if (fwrite(io->value, 1, io->value_bytes, stdout) != io->value_bytes || fflush(stdout))
		return cli_fail(EXIT_BROKEN, "profile get: cannot write: %s", strerror(errno));
	return 0;
}

static int run_get(int argc, char **argv)
{
	struct store_io io = {0};
	int err = store_io_open(&io, "profile get", option_store, (uint32_t)option_timeout);

	if (err)
		return err;
	err = argc ? print_one(&io, argv[0]) : print_list(&io);
	store_io_close(&io);
	return err;
}

const struct command profile_commands[] = {
    {.name = "profile show",
     .operands = "FILE",
     .summary = "what a model's profile holds: ratio and KL of each tier",
     .text = "Print a profile that `shadowserve calibrate` wrote: whose it is, and what each tier\n"
	     "costs and gives on that model, beside an FP8 and an int4 cache.\n\n"
	     "  shadowserve profile show docs-6m.json",
     .args = show_args,
     .operands_min = 1,
     .operands_max = 1,
     .run = run_show},
    {.name = "profile check",
     .operands = "FILE",
     .summary = "is a profile sound, this model's, and are its promises kept?",
     .text = "Check every member of a profile, and what its tiers promise about the KL of\n"
	     "next-token probabilities, measured on its model and on average over texts:\n\n"
	     "  lossless  bit-exact\n"
	     "  high      at most an eighth of an FP8 KV cache's (e4m3, one scale a head)\n"
	     "  standard  no worse than an FP8 KV cache\n"
	     "  compact   no worse than int4 (K per channel, V per token, sink tokens exact)\n"
	     "  tiny      at most four times int4's\n\n"
	     "Exit 1: damaged, another model's, or a tier breaks its promise; a daemon does not\n"
	     "use that tier for this model.\n\n"
	     "  shadowserve profile check docs-6m.json --model models/docs-6m",
     .args = check_args,
     .operands_min = 1,
     .operands_max = 1,
     .run = run_check},
    {.name = "profile put",
     .operands = "FILE",
     .summary = "put a profile into a store, for daemons with `profiles: store`",
     .text = "Put a profile into a store, where every daemon finds it that was started with\n"
	     "`profiles: store`. Replaces the profile of the same model and type.\n\n"
	     "  shadowserve profile put docs-6m.json --store redis://10.0.0.7:6379",
     .args = put_args,
     .operands_min = 1,
     .operands_max = 1,
     .run = run_put},
    {.name = "profile get",
     .operands = "[MODEL]",
     .summary = "a profile of a store, or the list of them",
     .text =
	 "Write the profile of a model (its digest, or the first 16 digits) to stdout; without\n"
	 "a model: list those that are there.\n\n"
	 "  shadowserve profile get --store file:/var/cache/kv\n"
	 "  shadowserve profile get 1f0c3b9a77e4d205 > profile.json",
     .args = get_args,
     .operands_max = 1,
     .run = run_get},
    {.name = NULL},
};
