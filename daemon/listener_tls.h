/* SPDX-License-Identifier: Apache-2.0 */
/*
 * listener_tls.h - the daemon's port for relays of other machines: TCP with mutual TLS.
 *
 * Who connects has proven nothing yet: the session that takes the stream gives the handshake as
 * much time as HELLO, and the server bounds how many are under way.
 */
#ifndef SSV_DAEMON_LISTENER_TLS_H
#define SSV_DAEMON_LISTENER_TLS_H

#include "config.h"
#include "stream/stream.h"

struct listener_tls {
	struct stream_tls *tls;
	int fd; /* -1: closed, or none is configured */
	uint16_t port;
};

/* Read the certificates and bind, if config->listen_tls is set; a mistake in error
 * (SSV_ERROR_TEXT_MAX * 2). */
SSV_MUST_CHECK int listener_tls_open(struct listener_tls *listener, const struct config *config,
				     char *error);
void listener_tls_stop(struct listener_tls *listener);  /* accept nobody any more */
void listener_tls_close(struct listener_tls *listener); /* its streams are destroyed */

/* Next connection, as a stream that waits for its handshake; -EAGAIN: none. */
SSV_MUST_CHECK int listener_tls_accept(struct listener_tls *listener, struct stream **ret_stream);

#endif
