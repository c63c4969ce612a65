/* SPDX-License-Identifier: Apache-2.0 */
/* address.c - names to addresses, sockets that listen or connect. */
#include "stream/address.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <unistd.h>

#include "shadowserve.h"

#define FAIL(error, ...) (snprintf(error, SSV_ERROR_TEXT_MAX, __VA_ARGS__), -EINVAL)

static int address_split(const char *text, char *host, size_t host_bytes, const char **ret_port)
{
	const char *colon = strrchr(text, ':');
	size_t n;

	if (!colon || !colon[1])
		return -EINVAL;
	*ret_port = colon + 1;
	n = (size_t)(colon - text);
	if (n >= 2 && text[0] == '[' && colon[-1] == ']') {
		text++;
		n -= 2;
	} else if (memchr(text, ':', n)) {
		return -EINVAL;
	}
	if (n >= host_bytes)
		return -EINVAL;
	memcpy(host, text, n);
	host[n] = 0;
	return 0;
}

int address_resolve(const char *text, int listening, struct sockaddr_storage *ret_address,
		    char *ret_host, size_t host_bytes, char *error)
{
	struct addrinfo hints = {.ai_family = AF_UNSPEC,
				 .ai_socktype = SOCK_STREAM,
				 .ai_flags = AI_NUMERICSERV | (listening ? AI_PASSIVE : 0)};
	struct addrinfo *found;
	const char *port;
	char host[256];
	int err = address_split(text, host, sizeof(host), &port);

	if (err || (!listening && (!host[0] || strcmp(port, "0") == 0)))
		return FAIL(error, "\"%.150s\": expected host:port or [address]:port", text);
	err = getaddrinfo(host[0] ? host : NULL, port, &hints, &found);
	if (err)
		return FAIL(error, "\"%.150s\": %s", text, gai_strerror(err));
	memset(ret_address, 0, sizeof(*ret_address));
	memcpy(ret_address, found->ai_addr, found->ai_addrlen);
	freeaddrinfo(found);
	if (ret_host)
		snprintf(ret_host, host_bytes, "%s", host);
	return 0;
}

socklen_t address_bytes(const struct sockaddr_storage *address)
{
	return address->ss_family == AF_INET ? sizeof(struct sockaddr_in)
					     : sizeof(struct sockaddr_in6);
}

uint16_t address_port(const struct sockaddr_storage *address)
{
	if (address->ss_family == AF_INET)
		return ntohs(((const struct sockaddr_in *)address)->sin_port);
	return ntohs(((const struct sockaddr_in6 *)address)->sin6_port);
}

static int address_socket(const struct sockaddr_storage *address)
{
	int fd =
	    socket(address->ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, IPPROTO_TCP);

	return fd < 0 ? -errno : fd;
}

int address_listen(const struct sockaddr_storage *address, int backlog)
{
	const int one = 1;
	int fd = address_socket(address), err;

	if (fd < 0)
		return fd;
	(void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(fd, (const struct sockaddr *)address, address_bytes(address)) == 0 &&
	    listen(fd, backlog) == 0)
		return fd;
	err = -errno;
	close(fd);
	return err;
}

int address_connect(const struct sockaddr_storage *address)
{
	int fd = address_socket(address), err;

	if (fd < 0)
		return fd;
	if (connect(fd, (const struct sockaddr *)address, address_bytes(address)) == 0 ||
	    errno == EINPROGRESS)
		return fd;
	err = -errno;
	close(fd);
	return err;
}

void connection_tune(int fd, uint32_t timeout_ms)
{
	const int one = 1, three = 3;
	const int seconds = timeout_ms < 4000 ? 1 : (int)(timeout_ms / 4000);
	const unsigned int ms = timeout_ms;

	(void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	(void)setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &ms, sizeof(ms));
	(void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one));
	(void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &seconds, sizeof(seconds));
	(void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &seconds, sizeof(seconds));
	(void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &three, sizeof(three));
}
