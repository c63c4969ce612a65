/* SPDX-License-Identifier: Apache-2.0 */
/* ways.c - the ways that a relay can be configured for. */
#include <errno.h>
#include <string.h>

#include "receiver.h"
#include "relay.h"
#include "stream/address.h"
#include "way_rdma.h"

static int is_any(const struct sockaddr_storage *address)
{
	if (address->ss_family == AF_INET)
		return ((const struct sockaddr_in *)address)->sin_addr.s_addr == INADDR_ANY;
	return IN6_IS_ADDR_UNSPECIFIED(&((const struct sockaddr_in6 *)address)->sin6_addr);
}

static int tcp_open(const struct config *config, struct relay_way *ret_way,
		    struct sockaddr_storage *ret_here, char *text, char *error)
{
	struct sockaddr_storage address;
	struct receiver *receiver;
	char why[SSV_ERROR_TEXT_MAX] = "";
	int err = address_resolve(config->data_listen, 1, &address, NULL, 0, why);

	if (!err)
		err = receiver_open(&address, config->receive_core, &receiver, why);
	if (err) {
		snprintf(error, SSV_ERROR_TEXT_MAX * 2, "data_listen: %.120s: %s",
			 config->data_listen, why);
		return err;
	}
	memset(ret_here, 0, sizeof(*ret_here));
	if (!is_any(&address))
		*ret_here = address;
	*ret_way = (struct relay_way){.ops = &relay_way_tcp, .way = receiver};
	snprintf(text, SSV_ERROR_TEXT_MAX, "data_port=%u", receiver_port(receiver));
	return 0;
}

static int rdma_open(const struct config *config, struct relay_way *ret_way,
		     struct sockaddr_storage *ret_here, char *text, char *error)
{
	struct way_rdma *way;
	int err = way_rdma_open(config->rdma_device, &way, error);

	if (err)
		return err;
	memset(ret_here, 0, sizeof(*ret_here));
	*ret_way = (struct relay_way){.ops = &relay_way_rdma, .way = way};
	snprintf(text, SSV_ERROR_TEXT_MAX, "rdma_device=%.100s",
		 config->rdma_device[0] ? config->rdma_device : "any");
	return 0;
}

int way_open(const struct config *config, struct relay_way *ret_way,
	     struct sockaddr_storage *ret_here, char *text, char *error)
{
	if (strcmp(config->way, "tcp") == 0)
		return tcp_open(config, ret_way, ret_here, text, error);
	if (strcmp(config->way, "rdma") == 0)
		return rdma_open(config, ret_way, ret_here, text, error);
	snprintf(error, SSV_ERROR_TEXT_MAX * 2, "way: \"%.100s\": expected tcp or rdma",
		 config->way);
	return -EINVAL;
}
