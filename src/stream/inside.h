/* SPDX-License-Identifier: Apache-2.0 */
/* inside.h - what stream.c and secure.c share: the stream itself. */
#ifndef SSV_STREAM_INSIDE_H
#define SSV_STREAM_INSIDE_H

#include <openssl/ssl.h>

#include "stream/stream.h"

struct stream_tls {
	SSL_CTX *context;
	char names[STREAM_FAULT_BYTES * 2];
	int server;
};

struct stream {
	int fd;
	struct stream_tls *tls; /* NULL: plain */
	SSL *ssl;
	BIO *out; /* encrypted bytes that the socket did not take yet; the SSL's */
	int greeted;
	int holds; /* the last receive ended for want of room: more is inside */
	char peer[128];
	char fault[STREAM_FAULT_BYTES];
};

ssize_t secure_receive(struct stream *stream, void *bytes, size_t room);
ssize_t secure_send(struct stream *stream, const void *bytes, size_t count);
SSV_MUST_CHECK int secure_flush(struct stream *stream);

#endif
