/* SPDX-License-Identifier: Apache-2.0 */
/*
 * verify.c - `shadowserve verify`: every chunk of a store, through the data plane's own checks.
 *
 * A chunk that vanishes meanwhile (evicted, deleted) is neither sound nor damaged. A store that
 * does not answer ends the run: what was not read is not called sound.
 */
#include <errno.h>
#include <string.h>

#include "chunk_io.h"
#include "cli.h"
#include "profile/profile.h"
#include "store_io.h"

static const char *option_store;
static int option_delete, option_quick;
static uint64_t option_timeout = 10000;

static const struct arg verify_args[] = {
    {"store", "URI", "the store (default: $SHADOWSERVE_STORE)", ARG_TEXT, &option_store, 0, 0},
    {"delete", NULL, "delete damaged chunks, so that the next store heals them", ARG_FLAG,
     &option_delete, 0, 0},
    {"quick", NULL, "checksums only, do not decode", ARG_FLAG, &option_quick, 0, 0},
    {"timeout", "MS", "give up on an operation after this long (default 10000)", ARG_NUMBER,
     &option_timeout, 1, 600000},
    ARG_END,
};

struct verification {
	struct store_io store;
	struct chunk_io chunk;
	uint64_t sound, profiles, damaged, deleted, vanished, value_bytes, kv_bytes;
	uint64_t by_tier[SSV_TIER_TINY + 1];
	cJSON *findings;
};

/* Check one value; *ret_fault says what is wrong with it. */
static int check_value(struct verification *v, const struct ssv_key *key,
		       enum container_fault *ret_fault)
{
	struct container container;
	int err = chunk_io_open(&container, v->store.value, v->store.value_bytes, key, ret_fault);

	for (uint32_t i = 0; !err && option_quick && i < container.header.segments_count; i++) {
		*ret_fault = container_segment_check(&container, i);
		err = *ret_fault ? -EBADMSG : 0;
	}
	if (!err && !option_quick)
		err = chunk_io_decode(&v->chunk, &container, ret_fault);
	if (!err) {
		v->sound++;
		v->value_bytes += container.header.total_bytes;
		v->kv_bytes += container.header.out_bytes;
		v->by_tier[container.header.tier]++;
	}
	return err;
}

static int report_damage(struct verification *v, const struct ssv_key *key,
			 enum container_fault fault)
{
	char text[65];
	int err = option_delete ? store_io_delete(&v->store, key) : 0;

	v->damaged++;
	v->deleted += option_delete && !err;
	cli_key_text(key, text);
	if (option_json) {
		cJSON *finding = cli_object();

		cli_add_text(finding, "key", text);
		cli_add_text(finding, "reason", container_fault_text(fault));
		cli_add_bool(finding, "deleted", option_delete && !err);
		cJSON_AddItemToArray(v->findings, finding);
	} else {
		printf("%s %s%s\n", text, container_fault_text(fault),
		       !option_delete ? ""
		       : err          ? " (NOT deleted)"
				      : " (deleted)");
	}
	return err;
}

static int verify_key(struct verification *v, const struct ssv_key *key)
{
	enum container_fault fault = CONTAINER_FAULT_NONE;
	int err = store_io_get(&v->store, key);

	if (err == -ENOENT) {
		v->vanished++;
		return 0;
	}
	if (err)
		return err;
	if (!check_value(v, key, &fault))
		return 0;
	if (fault == CONTAINER_FAULT_MAGIC || fault == CONTAINER_FAULT_TRUNCATED) {
		if (profile_is_stored_as(key, v->store.value, v->store.value_bytes)) {
			v->profiles++;
			return 0;
		}
	}
	return report_damage(v, key, fault);
}

static int answer(struct verification *v)
{
	enum exit_code code = v->damaged ? EXIT_FOUND_BAD : EXIT_OK;
	double ratio = v->value_bytes ? (double)v->kv_bytes / (double)v->value_bytes : 0;
	char kv[32], value[32];

	if (option_json) {
		cJSON *object = cli_object(), *tiers = cli_object();

		cli_add_number(object, "sound", (double)v->sound);
		cli_add_number(object, "profiles", (double)v->profiles);
		cli_add_number(object, "damaged", (double)v->damaged);
		cli_add_number(object, "deleted", (double)v->deleted);
		cli_add_number(object, "vanished", (double)v->vanished);
		cli_add_number(object, "value_bytes", (double)v->value_bytes);
		cli_add_number(object, "kv_bytes", (double)v->kv_bytes);
		cli_add_number(object, "ratio", ratio);
		for (uint8_t t = SSV_TIER_LOSSLESS; t <= SSV_TIER_TINY; t++) {
			if (v->by_tier[t])
				cli_add_number(tiers, tier_name(t), (double)v->by_tier[t]);
		}
		cli_add(object, "sound_by_tier", tiers);
		cli_add(object, "findings", v->findings);
		v->findings = NULL;
		return cli_print_json(object, code);
	}
	printf("%llu sound, %llu damaged", (unsigned long long)v->sound,
	       (unsigned long long)v->damaged);
	if (option_delete)
		printf(" (%llu deleted)", (unsigned long long)v->deleted);
	if (v->profiles)
		printf(", %llu of profiles", (unsigned long long)v->profiles);
	if (v->vanished)
		printf(", %llu vanished meanwhile", (unsigned long long)v->vanished);
	if (v->sound)
		printf("; %s of KV in %s, ratio %.3f", cli_bytes((double)v->kv_bytes, kv),
		       cli_bytes((double)v->value_bytes, value), ratio);
	putchar('\n');
	return (int)code;
}

static int run_verify(int argc, char **argv)
{
	struct verification v = {0};
	struct ssv_key *keys = NULL;
	uint64_t count = 0, done = 0;
	int err;

	(void)argc;
	(void)argv;
	err = store_io_open(&v.store, "verify", option_store, (uint32_t)option_timeout);
	if (err)
		return err;
	chunk_io_init(&v.chunk);
	v.findings = cli_array();
	err = store_io_list(&v.store, &keys, &count);
	if (err) {
		err = cli_fail(err == -ENOTSUP ? EXIT_USAGE : EXIT_UNREACHABLE,
			       "verify: this store cannot list its keys: %s", strerror(-err));
		goto fini;
	}
	for (; done < count && !err; done++) {
		cli_progress("verifying", done, count);
		err = verify_key(&v, &keys[done]);
	}
	cli_progress("verifying", count, count);
	if (err)
		err = cli_fail(EXIT_UNREACHABLE,
			       "verify: stopped at chunk %llu of %llu, the store answers: %s",
			       (unsigned long long)done, (unsigned long long)count, strerror(-err));
	else
		err = answer(&v);
fini:
	free(keys);
	cJSON_Delete(v.findings);
	chunk_io_fini(&v.chunk);
	store_io_close(&v.store);
	return err;
}

const struct command verify_command = {
    .name = "verify",
    .operands = "",
    .summary = "read, check and decode every chunk of a store",
    .text = "Read every chunk of a store through the data plane's own checks and name each that\n"
	    "is damaged, with the reason. A fetch treats the same chunks as misses.\n"
	    "Exit 0: all sound; 1: some are damaged (also when --delete removed them); 3: the\n"
	    "store did not answer.\n\n"
	    "  shadowserve verify --store file:/var/cache/kv\n"
	    "  shadowserve verify --store redis://127.0.0.1:6379 --quick\n"
	    "  shadowserve verify --store file:/var/cache/kv --delete --json",
    .args = verify_args,
    .run = run_verify,
};
