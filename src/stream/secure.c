/* SPDX-License-Identifier: Apache-2.0 */
/*
 * secure.c - one TLS connection: handshake, names, records.
 *
 * TLS writes into memory and the memory goes to the socket as it takes it. So a call of SSL_write
 * never has to be repeated with the same bytes, and the caller's buffer is its own again at once.
 */
#include <errno.h>
#include <openssl/err.h>
#include <openssl/x509v3.h>
#include <string.h>
#include <sys/socket.h>

#include "stream/inside.h"

#define FLOW_BYTES 4096u /* who sent so much at once is probably sending still */

int stream_secure(struct stream_tls *tls, int fd, struct stream **ret_stream)
{
	struct stream *stream;
	BIO *in;
	int err = stream_plain(fd, &stream);

	if (err)
		return err;
	stream->tls = tls;
	stream->greeted = 0;
	stream->ssl = SSL_new(tls->context);
	in = BIO_new_socket(fd, BIO_NOCLOSE);
	stream->out = BIO_new(BIO_s_mem());
	if (!stream->ssl || !in || !stream->out) {
		BIO_free(in);
		BIO_free(stream->out);
		stream_destroy(stream);
		return -ENOMEM;
	}
	SSL_set_bio(stream->ssl, in, stream->out);
	if (tls->server) {
		SSL_set_accept_state(stream->ssl);
	} else {
		SSL_set_connect_state(stream->ssl);
		SSL_set_tlsext_host_name(stream->ssl, tls->names);
	}
	*ret_stream = stream;
	return 0;
}

/* ---- the socket ----------------------------------------------------------------------------- */

int secure_flush(struct stream *stream)
{
	char *bytes;
	long pending;

	while ((pending = BIO_get_mem_data(stream->out, &bytes)) > 0) {
		char taken[16384];
		ssize_t n = send(stream->fd, bytes, (size_t)pending, MSG_NOSIGNAL | MSG_DONTWAIT);

		if (n < 0 && (errno == EAGAIN || errno == EINTR || errno == ENOTCONN))
			return 0; /* full, or not connected yet */
		if (n < 0)
			return -errno;
		while (n > 0) {
			int part =
			    BIO_read(stream->out, taken, (int)u64_min((uint64_t)n, sizeof(taken)));

			ssv_assert(part > 0);
			n -= part;
		}
	}
	return 0;
}

/* ---- the handshake -------------------------------------------------------------------------- */

static void peer_name(struct stream *stream, X509 *certificate)
{
	X509_NAME_get_text_by_NID(X509_get_subject_name(certificate), NID_commonName, stream->peer,
				  (int)sizeof(stream->peer));
	for (char *c = stream->peer; *c; c++) {
		if (*c < 0x20 || *c > 0x7e || *c == '"' || *c == '\\')
			*c = '?';
	}
}

/* Is one of the names that are allowed the certificate's? */
static int name_is_allowed(const struct stream_tls *tls, X509 *certificate)
{
	const char *name = tls->names;

	if (!*name)
		return 1;
	while (*name) {
		size_t n = strcspn(name, ",");

		while (n && *name == ' ') {
			name++;
			n--;
		}
		if (n &&
		    X509_check_host(certificate, name, n, X509_CHECK_FLAG_NO_WILDCARDS, NULL) == 1)
			return 1;
		name += n;
		name += *name == ',';
	}
	return 0;
}

static int greeted(struct stream *stream)
{
	X509 *certificate = SSL_get0_peer_certificate(stream->ssl);

	if (!certificate) {
		snprintf(stream->fault, sizeof(stream->fault), "TLS: no certificate came");
		return -EPROTO;
	}
	peer_name(stream, certificate);
	if (stream->tls->server && !name_is_allowed(stream->tls, certificate)) {
		snprintf(stream->fault, sizeof(stream->fault),
			 "TLS: a certificate of \"%.100s\", expected one of \"%.100s\"",
			 stream->peer, stream->tls->names);
		return -EPROTO;
	}
	stream->greeted = 1;
	/* From now on whole records come with one call. Not within the handshake: what it reads
	 * ahead while sending would never be announced. */
	SSL_set_read_ahead(stream->ssl, 1);
	return 0;
}

static void fault_tell(struct stream *stream)
{
	const long verified = SSL_get_verify_result(stream->ssl);
	const unsigned long error = ERR_peek_last_error();
	const char *reason = error ? ERR_reason_error_string(error) : NULL;

	if (verified != X509_V_OK)
		snprintf(stream->fault, sizeof(stream->fault), "TLS: the peer's certificate: %s",
			 X509_verify_cert_error_string(verified));
	else
		snprintf(stream->fault, sizeof(stream->fault), "TLS: %s",
			 reason ? reason : "the connection ended within the handshake");
	ERR_clear_error();
}

/* What a call of OpenSSL's that did not succeed means. */
static int result_of(struct stream *stream, int result)
{
	int err = errno;

	switch (SSL_get_error(stream->ssl, result)) {
	case SSL_ERROR_WANT_READ:
	case SSL_ERROR_WANT_WRITE:
		return -EAGAIN;
	case SSL_ERROR_ZERO_RETURN:
		if (!stream->greeted)
			snprintf(stream->fault, sizeof(stream->fault),
				 "it closed the connection within the handshake");
		return stream->greeted ? 0 : -ECONNRESET;
	case SSL_ERROR_SYSCALL:
		if (err && err != EAGAIN) {
			ERR_clear_error();
			if (!stream->greeted)
				snprintf(stream->fault, sizeof(stream->fault), "%s", strerror(err));
			return -err;
		}
		/* fallthrough */
	default:
		fault_tell(stream);
		return -EPROTO;
	}
}

static int greet(struct stream *stream)
{
	int result, err;

	if (stream->greeted)
		return 0;
	if (stream->fault[0])
		return -EPROTO;
	ERR_clear_error();
	errno = 0;
	result = SSL_do_handshake(stream->ssl);
	err = result == 1 ? greeted(stream) : result_of(stream, result);
	/* What it says, a refusal too, goes out whatever the result. */
	result = secure_flush(stream);
	return err ? err : result;
}

/* ---- records -------------------------------------------------------------------------------- */

/* Behind a few small messages there is seldom more, and the descriptor will say so if there is. */
static int is_worth_reading(const struct stream *stream, size_t total)
{
	return !total || total >= FLOW_BYTES || SSL_has_pending(stream->ssl);
}

ssize_t secure_receive(struct stream *stream, void *bytes, size_t room)
{
	size_t total = 0, n = 0;
	int err = greet(stream);

	if (err)
		return err;
	stream->holds = 0;
	while (total < room && is_worth_reading(stream, total)) {
		int result;

		ERR_clear_error();
		errno = 0;
		result = SSL_read_ex(stream->ssl, (uint8_t *)bytes + total, room - total, &n);
		if (result != 1) {
			err = result_of(stream, result);
			break;
		}
		total += n;
	}
	stream->holds = total == room && SSL_has_pending(stream->ssl);
	if (secure_flush(stream) && !err)
		err = -ECONNRESET;
	return total ? (ssize_t)total : err;
}

ssize_t secure_send(struct stream *stream, const void *bytes, size_t count)
{
	size_t n = 0;
	int err = greet(stream);

	if (err)
		return err;
	if (BIO_ctrl_pending(stream->out) >= STREAM_KEPT_BYTES / 2)
		err = secure_flush(stream);
	if (!err && BIO_ctrl_pending(stream->out) >= STREAM_KEPT_BYTES / 2)
		err = -EAGAIN;
	if (err)
		return err;
	ERR_clear_error();
	errno = 0;
	if (count > 16384)
		count = 16384; /* a record */
	if (SSL_write_ex(stream->ssl, bytes, count, &n) != 1)
		return result_of(stream, 0);
	err = secure_flush(stream);
	return err ? err : (ssize_t)n;
}
