/* SPDX-License-Identifier: Apache-2.0 */
/*
 * main.c - shadowserve-relay: configuration, certificates, way, socket, loop, in that order.
 *
 * Exit status: 0 ended as asked, 1 cannot run, 2 configuration mistake, 3 another daemon or relay
 * serves the socket.
 */
#include <errno.h>
#include <sched.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/events.h"
#include "base/log.h"
#include "config.h"
#include "relay.h"
#include "shadowserve.h"
#include "stream/address.h"

#define EXIT_CANNOT_RUN 1
#define EXIT_MISTAKE    2
#define EXIT_SERVED     3
#define TEXT_BYTES      CONFIG_ERROR_MAX

static int failed(int status, const char *text)
{
	log_error("cannot run reason=\"%s\"", text);
	fprintf(stderr, "shadowserve-relay: %s\n", text);
	return status;
}

/* The card's address and both sides' certificates. */
static int card_open(const struct config *config, struct pair_world *world, char *error)
{
	char host[256] = "", text[SSV_ERROR_TEXT_MAX] = "";
	struct stream_tls_config tls = {.certificate = config->tls_cert,
					.key = config->tls_key,
					.authority = config->tls_ca,
					.names = config->card_name};
	int err;

	if (!config->card[0]) {
		snprintf(error, TEXT_BYTES, "card: not set, expected host:port");
		return -EINVAL;
	}
	err = address_resolve(config->card, 0, &world->card, host, sizeof(host), text);
	if (err) {
		snprintf(error, TEXT_BYTES, "card: %s", text);
		return err;
	}
	if (!tls.names[0])
		tls.names = host;
	return stream_tls_open(&tls, &world->tls, error);
}

static int core_pin(int32_t core)
{
	cpu_set_t set;

	if (core < 0)
		return 0;
	CPU_ZERO(&set);
	CPU_SET((size_t)core, &set);
	return sched_setaffinity(0, sizeof(set), &set) < 0 ? -errno : 0;
}

static int serve(const struct config *config, struct pair_world *world, struct listener *listener,
		 const char *way_text, char *error)
{
	int err = core_pin(config->control_core); /* the way's thread has its own */

	if (err) {
		snprintf(error, TEXT_BYTES, "control_core %d: %s", config->control_core,
			 strerror(-err));
		return err;
	}
	err = listener_listen(listener, error);
	if (err)
		return err;
	log_info("serving version=%s pid=%d socket=%s card=%s way=%s %s", ssv_version(),
		 (int)getpid(), config->socket, config->card, world->way.ops->name, way_text);
	printf("shadowserve-relay version=%s pid=%d socket=%s card=%s way=%s %s\n", ssv_version(),
	       (int)getpid(), config->socket, config->card, world->way.ops->name, way_text);
	fflush(stdout);
	return relay_run(config, world, listener, error);
}

static int run(const struct config *config, struct listener *listener)
{
	static struct ssv_tensor tensors[SSV_TENSORS_MAX];
	struct pair_world world = {.card_text = config->card,
				   .call_ns = config->call_timeout_ms * NS_PER_MS,
				   .card_ns = config->card_timeout_ms * NS_PER_MS,
				   .tensors = tensors};
	char error[TEXT_BYTES] = "", way_text[SSV_ERROR_TEXT_MAX] = "";
	int err = card_open(config, &world, error);

	if (!err)
		err = way_open(config, &world.way, &world.here, way_text, error);
	if (!err) {
		err = serve(config, &world, listener, way_text, error);
		world.way.ops->close(world.way.way);
	}
	stream_tls_close(world.tls);
	if (err)
		return failed(err == -EINVAL ? EXIT_MISTAKE : EXIT_CANNOT_RUN,
			      error[0] ? error : strerror(-err));
	log_info("ended pid=%d", (int)getpid());
	return 0;
}

int main(int argc, char **argv)
{
	static struct config config;
	static struct arguments arguments;
	char error[TEXT_BYTES] = "";
	struct listener listener;
	pid_t owner;
	int err = config_read(argc, argv, &config, &arguments, error);

	if (arguments.help || arguments.version) {
		if (arguments.help)
			config_help(stdout);
		else
			printf("shadowserve-relay %s\n", ssv_version());
		return 0;
	}
	if (!err && arguments.print_config)
		return config_print(&config, stdout) ? EXIT_CANNOT_RUN : 0;
	if (err) {
		fprintf(stderr, "shadowserve-relay: %s\n", error);
		return EXIT_MISTAKE;
	}
	log_set_level(config.log_level);
	if (config.log_file[0] && log_open(config.log_file)) {
		fprintf(stderr, "shadowserve-relay: log_file: %s: cannot be opened\n",
			config.log_file);
		return EXIT_CANNOT_RUN;
	}
	signals_block();
	err = listener_open(&listener, config.socket, &owner, error);
	if (err)
		return failed(err == -EADDRINUSE ? EXIT_SERVED : EXIT_CANNOT_RUN, error);
	err = run(&config, &listener);
	listener_close(&listener);
	return err;
}
