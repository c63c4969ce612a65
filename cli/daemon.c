/* SPDX-License-Identifier: Apache-2.0 */
/*
 * daemon.c - commands that ask a running daemon: ping, lookup. stat.c and trace.c have the others.
 *
 * Each opens a session of its own and closes it. lookup registers a region of one block, because a
 * daemon answers lookups of engines that have one.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/clock.h"
#include "cli.h"
#include "daemon.h"
#include "fetch_io.h"
#include "store_io.h"

#define REGION_BYTES 4096u

const char *option_socket;
uint64_t option_timeout = 2000;
static const char *option_store;

static const struct arg session_args[] = {SOCKET_ARG, TIMEOUT_ARG, ARG_END};

static const struct arg lookup_args[] = {
    SOCKET_ARG,
    {"store", "URI", "ask this store itself, without a daemon", ARG_TEXT, &option_store, 0, 0},
    TIMEOUT_ARG,
    ARG_END,
};

struct ssv *daemon_connect(const char *command, int *ret_exit)
{
	struct ssv_options options = {.struct_size = sizeof(options),
				      .connect_timeout_ms = (uint32_t)option_timeout,
				      .socket_path = option_socket};
	char error[SSV_ERROR_TEXT_MAX] = "";
	struct ssv *ssv = NULL;
	int err = ssv_connect(&options, &ssv, error);

	if (err)
		*ret_exit = cli_fail(EXIT_UNREACHABLE, "%s: %s", command,
				     error[0] ? error : strerror(-err));
	return err ? NULL : ssv;
}

static int run_ping(int argc, char **argv)
{
	uint64_t start_ns = clock_now_ns(), connect_ns, answer_ns;
	char *json = cli_alloc(STAT_BYTES_MAX);
	int exit_code = EXIT_OK, err;
	struct ssv *ssv;

	(void)argc;
	(void)argv;
	ssv = daemon_connect("ping", &exit_code);
	if (!ssv)
		goto free_json;
	connect_ns = clock_now_ns() - start_ns;
	start_ns = clock_now_ns();
	err = ssv_stat(ssv, json, STAT_BYTES_MAX, (uint32_t)option_timeout);
	answer_ns = clock_now_ns() - start_ns;
	if (err < 0) {
		exit_code = cli_fail(EXIT_UNREACHABLE, "ping: the daemon gave no answer: %s",
				     strerror(-err));
		goto close_session;
	}
	if (option_json) {
		cJSON *object = cli_object();

		cli_add_bool(object, "alive", true);
		cli_add_number(object, "connect_us", (double)connect_ns / 1e3);
		cli_add_number(object, "answer_us", (double)answer_ns / 1e3);
		exit_code = cli_print_json(object, EXIT_OK);
	} else {
		printf("alive: connected in %.0f us, answered in %.0f us\n",
		       (double)connect_ns / 1e3, (double)answer_ns / 1e3);
	}

close_session:
	ssv_close(ssv);
free_json:
	free(json);
	return exit_code;
}

/* ---- lookup --------------------------------------------------------------------------------- */

/* The smallest region there is: one layer of one head of one element, blocks of one token. */
static int register_region(struct ssv *ssv, char *error)
{
	const struct ssv_tensor tensor = {.block_stride = 2};
	struct ssv_layout layout = {
	    .struct_size = sizeof(layout),
	    .parts_count = 1,
	    .layers_count = 1,
	    .layers_total = 1,
	    .ranks_count = 1,
	    .block_tokens = 1,
	    .blocks_count = 1,
	    .tensors_count = 1,
	    .parts = {{.role = SSV_ROLE_K,
		       .heads = 1,
		       .dim = 1,
		       .digits_count = 3,
		       .digits = {{.axis = SSV_AXIS_TOKEN, .extent = 1},
				  {.axis = SSV_AXIS_HEAD, .extent = 1},
				  {.axis = SSV_AXIS_DIM, .extent = 1}}}},
	    .tensors = &tensor,
	};
	struct ssv_region region = {
	    .struct_size = sizeof(region), .memory = SSV_MEMORY_MEMFD, .bytes = REGION_BYTES};
	uint32_t region_id;
	int err;

	region.fd = memfd_create("shadowserve-lookup", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (region.fd < 0)
		return -errno;
	if (ftruncate(region.fd, REGION_BYTES) ||
	    fcntl(region.fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW))
		err = -errno;
	else
		err = ssv_region_register(ssv, &region, &layout, &region_id, error);
	close(region.fd);
	return err;
}

static int answer_lookup(uint64_t stored, uint64_t asked, uint32_t estimate_us)
{
	enum exit_code code = stored == asked ? EXIT_OK : EXIT_FOUND_BAD;

	if (option_json) {
		cJSON *object = cli_object();

		cli_add_number(object, "keys", (double)asked);
		cli_add_number(object, "stored", (double)stored);
		cli_add_number(object, "tokens", (double)(stored * SSV_CHUNK_TOKENS));
		if (estimate_us)
			cli_add_number(object, "estimate_us", estimate_us);
		return cli_print_json(object, code);
	}
	printf("%llu of %llu leading chunks are stored (%llu tokens)\n", (unsigned long long)stored,
	       (unsigned long long)asked, (unsigned long long)stored * SSV_CHUNK_TOKENS);
	if (estimate_us)
		printf("a fetch of them would take about %.1f ms\n", estimate_us / 1e3);
	return (int)code;
}

static int lookup_daemon(const struct ssv_key *keys, uint32_t count)
{
	struct ssv_request request = {
	    .op = SSV_OP_LOOKUP, .user_data = 1, .keys = keys, .keys_count = count};
	char error[SSV_ERROR_TEXT_MAX] = "";
	struct ssv_completion completion;
	int exit_code = EXIT_OK, err;
	struct ssv *ssv = daemon_connect("lookup", &exit_code);

	if (!ssv)
		return exit_code;
	err = register_region(ssv, error);
	if (!err)
		err = ssv_submit(ssv, &request, 1);
	if (err >= 0)
		err = fetch_io_wait(ssv, &completion, option_timeout + 1000);
	if (!err && completion.status != -ENOENT)
		err = completion.status;
	if (err)
		exit_code =
		    cli_fail(EXIT_UNREACHABLE, "lookup: %s", error[0] ? error : strerror(-err));
	else
		exit_code = answer_lookup(completion.tokens / SSV_CHUNK_TOKENS, count,
					  completion.estimate_us);
	ssv_close(ssv);
	return exit_code;
}

static int lookup_store(const struct ssv_key *keys, uint32_t count)
{
	struct store_io io;
	int err = store_io_open(&io, "lookup", option_store, (uint32_t)option_timeout);
	uint32_t stored = 0;

	if (err)
		return err;
	while (stored < count && !err) {
		uint64_t bytes;

		err = store_io_exists(&io, &keys[stored], &bytes);
		stored += !err;
	}
	store_io_close(&io);
	if (err && err != -ENOENT)
		return cli_fail(EXIT_UNREACHABLE, "lookup: the store answers: %s", strerror(-err));
	return answer_lookup(stored, count, 0);
}

static int run_lookup(int argc, char **argv)
{
	struct ssv_key *keys = cli_alloc((size_t)argc * sizeof(*keys));
	int exit_code = EXIT_OK;

	if (argc > (int)SSV_KEYS_MAX)
		exit_code = cli_fail(EXIT_USAGE, "lookup: %d keys; at most %d", argc, SSV_KEYS_MAX);
	for (int i = 0; i < argc && !exit_code; i++) {
		if (cli_parse_key(argv[i], &keys[i]))
			exit_code = cli_fail(EXIT_USAGE,
					     "lookup: \"%s\" is no key: expected 64 hexadecimal "
					     "digits",
					     argv[i]);
	}
	if (!exit_code)
		exit_code = option_store ? lookup_store(keys, (uint32_t)argc)
					 : lookup_daemon(keys, (uint32_t)argc);
	free(keys);
	return exit_code;
}

const struct command daemon_commands[] = {
    {.name = "ping",
     .operands = "",
     .summary = "is the daemon alive, and how fast does it answer?",
     .text = "Connect to the daemon, ask for its state, say how long both took.\n"
	     "Exit 0: alive; 3: nobody listens, or no answer in time.\n\n"
	     "  shadowserve ping\n"
	     "  shadowserve ping --socket /run/shadowserve.sock --timeout 500",
     .args = session_args,
     .run = run_ping},
    {.name = "lookup",
     .operands = "KEY...",
     .summary = "how many leading chunks of a key chain are stored?",
     .text = "Keys are 64 hexadecimal digits each, in the order of the sequence. The answer\n"
	     "counts up to the first that is missing, as a fetch would.\n"
	     "Exit 0: all are stored; 1: not all; 3: no daemon or store.\n\n"
	     "  shadowserve lookup KEY1 KEY2            through the daemon\n"
	     "  shadowserve lookup --store file:/var/cache/kv KEY1 KEY2",
     .args = lookup_args,
     .operands_min = 1,
     .operands_max = -1,
     .run = run_lookup},
    {0},
};
