/* SPDX-License-Identifier: Apache-2.0 */
/* crowd.c - hosts as numbers, and the one that has most connections. */
#include "stream/crowd.h"

#include <netinet/in.h>
#include <string.h>

uint64_t crowd_host(const struct sockaddr_storage *address)
{
	const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)address;
	const struct sockaddr_in *v4 = (const struct sockaddr_in *)address;
	uint64_t network;
	uint32_t host;

	if (address->ss_family == AF_INET)
		return (uint64_t)v4->sin_addr.s_addr << 32 | 4;
	if (address->ss_family != AF_INET6)
		return 0;
	if (IN6_IS_ADDR_V4MAPPED(&v6->sin6_addr)) {
		memcpy(&host, &v6->sin6_addr.s6_addr[12], sizeof(host));
		return (uint64_t)host << 32 | 4;
	}
	memcpy(&network, v6->sin6_addr.s6_addr, sizeof(network));
	return network;
}

uint64_t crowd_host_of(int fd)
{
	struct sockaddr_storage address = {0};
	socklen_t bytes = sizeof(address);

	return getpeername(fd, (struct sockaddr *)&address, &bytes) < 0 ? 0 : crowd_host(&address);
}

uint32_t crowd_pays(const uint64_t *hosts, uint32_t count)
{
	uint32_t most = 0, oldest = 0;

	ssv_assert(count >= 2 && count <= CROWD_MAX);
	for (uint32_t i = 0; i < count; i++) {
		uint32_t same = 0;

		for (uint32_t k = i; k < count; k++)
			same += hosts[k] == hosts[i];
		/* The first of a host counts all of it, and is its oldest. */
		if (same > most) {
			most = same;
			oldest = i;
		}
	}
	if (most <= count / 4)
		return 0;
	return hosts[oldest] == hosts[count - 1] ? count - 1 : oldest;
}
