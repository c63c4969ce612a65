/* SPDX-License-Identifier: Apache-2.0 */
/*
 * dpdk_absent.c - stands in for the dpdk engine in a build without DPDK: it can be named, and says
 * why it cannot be opened.
 */
#include <errno.h>

#include "inflate/engines.h"

static int absent_open(const struct inflate_config *config, const char *rest,
		       struct inflate **ret_inflate, char *error)
{
	(void)config;
	(void)rest;
	(void)ret_inflate;
	return inflate_refuse(error, -ENOTSUP,
			      "inflate engine dpdk: this build has no DPDK; install it (make "
			      "setup-dpdk) and configure the build again");
}

static void absent_close(struct inflate *inflate)
{
	(void)inflate;
}

static uint32_t absent_submit(struct inflate *inflate, struct inflate_job *const *jobs, uint32_t n)
{
	(void)inflate;
	(void)jobs;
	(void)n;
	return 0;
}

static uint32_t absent_poll(struct inflate *inflate, struct inflate_job **done, uint32_t max)
{
	(void)inflate;
	(void)done;
	(void)max;
	return 0;
}

static void absent_caps(const struct inflate *inflate, struct inflate_caps *ret_caps)
{
	(void)inflate;
	*ret_caps = (struct inflate_caps){0};
}

static void absent_stats(const struct inflate *inflate, struct inflate_stats *ret_stats)
{
	(void)inflate;
	*ret_stats = (struct inflate_stats){0};
}

const struct inflate_ops inflate_dpdk = {
    .name = "dpdk",
    .open = absent_open,
    .close = absent_close,
    .submit = absent_submit,
    .poll = absent_poll,
    .caps = absent_caps,
    .stats = absent_stats,
};
