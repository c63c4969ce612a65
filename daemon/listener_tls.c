/* SPDX-License-Identifier: Apache-2.0 */
/* listener_tls.c - certificates, binding, accepting; the handshake is the stream's. */
#include "listener_tls.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "shadowserve.h"
#include "stream/address.h"

#define BACKLOG         64
#define PEER_TIMEOUT_MS 10000 /* a relay's machine that is not there any more */

int listener_tls_open(struct listener_tls *listener, const struct config *config, char *error)
{
	const struct stream_tls_config tls = {.certificate = config->tls_cert,
					      .key = config->tls_key,
					      .authority = config->tls_ca,
					      .names = config->tls_names,
					      .server = 1};
	struct sockaddr_storage address;
	socklen_t bytes = sizeof(address);
	char text[SSV_ERROR_TEXT_MAX] = "";
	int err;

	*listener = (struct listener_tls){.fd = -1};
	if (!config->listen_tls[0])
		return 0;
	err = address_resolve(config->listen_tls, 1, &address, NULL, 0, text);
	if (err) {
		snprintf(error, SSV_ERROR_TEXT_MAX * 2, "listen_tls: %s", text);
		return err;
	}
	err = stream_tls_open(&tls, &listener->tls, error);
	if (err)
		return err;
	listener->fd = address_listen(&address, BACKLOG);
	if (listener->fd < 0 ||
	    getsockname(listener->fd, (struct sockaddr *)&address, &bytes) < 0) {
		err = listener->fd < 0 ? listener->fd : -errno;
		snprintf(error, SSV_ERROR_TEXT_MAX * 2, "listen_tls: %.200s: %s",
			 config->listen_tls, strerror(-err));
		listener_tls_close(listener);
		return err;
	}
	listener->port = address_port(&address);
	return 0;
}

void listener_tls_stop(struct listener_tls *listener)
{
	if (listener->fd >= 0)
		close(listener->fd);
	listener->fd = -1;
}

void listener_tls_close(struct listener_tls *listener)
{
	listener_tls_stop(listener);
	stream_tls_close(listener->tls);
	listener->tls = NULL;
}

int listener_tls_accept(struct listener_tls *listener, struct stream **ret_stream)
{
	int fd = accept4(listener->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (fd < 0)
		return -errno;
	connection_tune(fd, PEER_TIMEOUT_MS);
	return stream_secure(listener->tls, fd, ret_stream);
}
