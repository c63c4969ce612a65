/* SPDX-License-Identifier: Apache-2.0 */
/*
 * certificates.c - the files of TLS, read at start. Each mistake is told apart here, because
 * OpenSSL's own words for it come late and say little.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <openssl/err.h>
#include <openssl/x509v3.h>
#include <string.h>
#include <unistd.h>

#include "stream/inside.h"

#define FAIL(error, ...) (snprintf(error, STREAM_FAULT_BYTES * 2, __VA_ARGS__), -EINVAL)

static const char *reason(void)
{
	const unsigned long error = ERR_peek_last_error();
	const char *text = error ? ERR_reason_error_string(error) : NULL;

	return text ? text : "not readable as PEM";
}

static int no_password(char *text, int room, int writing, void *context)
{
	(void)text;
	(void)room;
	(void)writing;
	(void)context;
	return 0;
}

static int file_check(const char *key, const char *path, char *error)
{
	if (!path || !path[0])
		return FAIL(error, "%s: not set, expected a PEM file", key);
	if (access(path, R_OK) < 0)
		return FAIL(error, "%s: %.200s: %s", key, path, strerror(errno));
	return 0;
}

/* The own certificate must be one that the other side, which has the same authority, will take. */
static int own_check(SSL_CTX *context, const struct stream_tls_config *config, char *error)
{
	X509_STORE_CTX *check = X509_STORE_CTX_new();
	STACK_OF(X509) *chain = NULL;
	int err = 0;

	if (!check)
		return -ENOMEM;
	SSL_CTX_get0_chain_certs(context, &chain);
	if (!X509_STORE_CTX_init(check, SSL_CTX_get_cert_store(context),
				 SSL_CTX_get0_certificate(context), chain))
		err = -ENOMEM;
	else if (X509_STORE_CTX_set_default(check, config->server ? "ssl_server" : "ssl_client") !=
		 1)
		err = -ENOMEM;
	else if (X509_verify_cert(check) != 1)
		err = FAIL(error, "tls_cert: %.150s does not hold against tls_ca %.150s: %s",
			   config->certificate, config->authority,
			   X509_verify_cert_error_string(X509_STORE_CTX_get_error(check)));
	X509_STORE_CTX_free(check);
	return err;
}

static int files_load(SSL_CTX *context, const struct stream_tls_config *config, char *error)
{
	int err = file_check("tls_cert", config->certificate, error);

	if (!err)
		err = file_check("tls_key", config->key, error);
	if (!err)
		err = file_check("tls_ca", config->authority, error);
	if (err)
		return err;
	ERR_clear_error();
	if (SSL_CTX_use_certificate_chain_file(context, config->certificate) != 1)
		return FAIL(error, "tls_cert: %.200s: %s", config->certificate, reason());
	if (SSL_CTX_use_PrivateKey_file(context, config->key, SSL_FILETYPE_PEM) != 1 ||
	    SSL_CTX_check_private_key(context) != 1)
		return FAIL(error,
			    "tls_key: %.150s: %s; expected the key of tls_cert %.150s, "
			    "without a password",
			    config->key, reason(), config->certificate);
	if (SSL_CTX_load_verify_locations(context, config->authority, NULL) != 1)
		return FAIL(error, "tls_ca: %.200s: %s", config->authority, reason());
	return own_check(context, config, error);
}

static int name_expect(SSL_CTX *context, const char *name, char *error)
{
	X509_VERIFY_PARAM *param = SSL_CTX_get0_param(context);
	uint8_t address[16];
	int is_address =
	    inet_pton(AF_INET, name, address) == 1 || inet_pton(AF_INET6, name, address) == 1;

	X509_VERIFY_PARAM_set_hostflags(param, X509_CHECK_FLAG_NO_WILDCARDS);
	if (name[0] && (is_address ? X509_VERIFY_PARAM_set1_ip_asc(param, name)
				   : X509_VERIFY_PARAM_set1_host(param, name, 0)) == 1)
		return 0;
	return FAIL(error, "\"%.100s\" is no name that a certificate could have", name);
}

static int context_make(struct stream_tls *tls, const struct stream_tls_config *config, char *error)
{
	int err;

	tls->context = SSL_CTX_new(config->server ? TLS_server_method() : TLS_client_method());
	if (!tls->context)
		return -ENOMEM;
	if (SSL_CTX_set_min_proto_version(tls->context, TLS1_3_VERSION) != 1)
		return FAIL(error, "TLS 1.3 is not available");
	SSL_CTX_set_default_passwd_cb(tls->context, no_password);
	SSL_CTX_set_verify(tls->context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
	SSL_CTX_set_num_tickets(tls->context, 0);
	SSL_CTX_set_session_cache_mode(tls->context, SSL_SESS_CACHE_OFF);
	SSL_CTX_set_options(tls->context, SSL_OP_IGNORE_UNEXPECTED_EOF); /* CLOSE says it */
	SSL_CTX_set_mode(tls->context, SSL_MODE_RELEASE_BUFFERS);
	err = files_load(tls->context, config, error);
	if (!err && !config->server)
		err = name_expect(tls->context, config->names, error);
	return err;
}

int stream_tls_open(const struct stream_tls_config *config, struct stream_tls **ret_tls,
		    char *error)
{
	struct stream_tls *tls = calloc(1, sizeof(*tls));
	int err;

	error[0] = 0;
	if (!tls)
		return -ENOMEM;
	if (strlen(config->names) >= sizeof(tls->names)) {
		free(tls);
		return FAIL(error, "tls_names: longer than %zu bytes", sizeof(tls->names) - 1);
	}
	strcpy(tls->names, config->names);
	tls->server = config->server;
	err = context_make(tls, config, error);
	ERR_clear_error();
	if (err) {
		if (!error[0])
			snprintf(error, STREAM_FAULT_BYTES * 2, "TLS: %s", strerror(-err));
		stream_tls_close(tls);
		return err;
	}
	*ret_tls = tls;
	return 0;
}

void stream_tls_close(struct stream_tls *tls)
{
	if (!tls)
		return;
	SSL_CTX_free(tls->context);
	free(tls);
}
