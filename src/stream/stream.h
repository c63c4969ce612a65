/* SPDX-License-Identifier: Apache-2.0 */
/*
 * stream.h - how the bytes of a session travel: a plain socket of this machine, which carries
 * descriptors too, or TLS 1.3 between machines, where each side proves its name by a certificate.
 *
 * A stream never blocks. TLS's handshake happens inside receive and flush; until it is over there
 * is nothing to receive. A stream belongs to one thread; a stream_tls is only read once it is open.
 */
#ifndef SSV_STREAM_H
#define SSV_STREAM_H

#include <sys/types.h>

#include "base/base.h"

#define STREAM_FDS         4          /* descriptors received at once */
#define STREAM_KEPT_BYTES  (64 * KIB) /* sent into TLS and not yet taken by the socket, at most */
#define STREAM_FAULT_BYTES 256

struct stream;
struct stream_tls; /* this machine's certificate and whom it trusts */

struct stream_fds {
	int fds[STREAM_FDS]; /* the receiver's to close */
	uint32_t count;
	int overflow; /* there were more; they are closed */
};

struct stream_tls_config {
	const char *certificate, *key, *authority; /* files, PEM */
	/* Server: comma separated names that a client's certificate may have; "": any of the
	 * authority's. Client: the name or address that the server's must have. */
	const char *names;
	int server;
};

/**
 * Read the files and see that they fit together. A mistake names file, value and what was expected
 * in error (STREAM_FAULT_BYTES * 2). Errors: -EINVAL; -ENOMEM.
 */
SSV_MUST_CHECK int stream_tls_open(const struct stream_tls_config *config,
				   struct stream_tls **ret_tls, char *error);
void stream_tls_close(struct stream_tls *tls); /* takes NULL; its streams are destroyed */

/* Around a connected (TLS client: perhaps still connecting) non-blocking socket, which becomes the
 * stream's, also on failure. Errors: -ENOMEM. */
SSV_MUST_CHECK int stream_plain(int fd, struct stream **ret_stream);
SSV_MUST_CHECK int stream_secure(struct stream_tls *tls, int fd, struct stream **ret_stream);
void stream_destroy(struct stream *stream); /* takes NULL */

/**
 * Receive up to room bytes; fds may be NULL, and is filled by plain streams alone.
 * Returns bytes; 0: the peer ended it; -EAGAIN; -EPROTO: TLS failed (stream_fault() says why); or
 * the socket's error.
 */
ssize_t stream_receive(struct stream *stream, void *bytes, size_t room, struct stream_fds *fds);

/* Bytes taken, perhaps kept inside until the socket takes them; -EAGAIN; or an error. */
ssize_t stream_send(struct stream *stream, const void *bytes, size_t count);
/* Push out what is kept inside, the handshake too. 0, also when some is left; or an error. */
SSV_MUST_CHECK int stream_flush(struct stream *stream);

int stream_fd(const struct stream *stream);
int stream_is_remote(const struct stream *stream);  /* TLS: a peer of another machine */
int stream_is_greeted(const struct stream *stream); /* the handshake is over; plain: 1 */
int stream_wants_out(const struct stream *stream);  /* bytes are kept inside */
/* Received bytes are kept inside, which no event of the descriptor will announce. */
int stream_holds(const struct stream *stream);
const char *stream_peer(const struct stream *stream);  /* the certificate's name, or "" */
const char *stream_fault(const struct stream *stream); /* why TLS failed, or "" */

#endif
