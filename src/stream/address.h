/* SPDX-License-Identifier: Apache-2.0 */
/*
 * address.h - "host:port" and "[v6]:port" as an operator writes them, and what a connection between
 * machines needs so that its loss is noticed.
 */
#ifndef SSV_STREAM_ADDRESS_H
#define SSV_STREAM_ADDRESS_H

#include <sys/socket.h>

#include "base/base.h"

/**
 * Resolve text; the host may be empty for listening. Blocks while a name is looked up: at start
 * only. host (host_bytes, may be NULL) receives the host part. One line in error
 * (SSV_ERROR_TEXT_MAX bytes). Errors: -EINVAL.
 */
SSV_MUST_CHECK int address_resolve(const char *text, int listening,
				   struct sockaddr_storage *ret_address, char *host,
				   size_t host_bytes, char *error);
socklen_t address_bytes(const struct sockaddr_storage *address);
uint16_t address_port(const struct sockaddr_storage *address);

/* A listening socket, non-blocking. Errors: the system's. */
SSV_MUST_CHECK int address_listen(const struct sockaddr_storage *address, int backlog);
/* A non-blocking socket that connects; it may not have yet. */
SSV_MUST_CHECK int address_connect(const struct sockaddr_storage *address);

/* No delay; a peer that is not there any more is noticed after about timeout_ms. */
void connection_tune(int fd, uint32_t timeout_ms);

#endif
