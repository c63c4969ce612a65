/* SPDX-License-Identifier: Apache-2.0 */
/*
 * harness_cluster.c - a real Redis Cluster as children of the test: masters with equal shares of
 * the slots, replicas, and commands to move slots. Each node is a harness_redis.
 */
#include "harness_cluster.h"

#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define SLOTS 16384u

/* ---- commands ------------------------------------------------------------------------------- */

/* Send lines (inline commands, each ended by "\r\n") and read the last one's reply: the payload of
 * a bulk string, or the line of anything else. */
static void ask(const struct harness_redis *node, const char *lines, char *answer,
		size_t answer_bytes)
{
	int fd = harness_connect(node->port);
	size_t at = 0, left;
	const char *line;
	char c;

	answer[0] = '\0';
	if (fd < 0)
		return;
	if (send(fd, lines, strlen(lines), MSG_NOSIGNAL) < 0)
		goto close_fd;
	for (line = lines; (line = strstr(line, "\r\n")); line += 2) {
		for (at = 0; at + 1 < answer_bytes && recv(fd, &c, 1, 0) == 1 && c != '\n';)
			answer[at++] = c;
		answer[at] = '\0';
		answer[strcspn(answer, "\r")] = '\0';
		if (answer[0] != '$' || answer[1] == '-')
			continue;
		left = strtoul(answer + 1, NULL, 10) + 2;
		for (at = 0; left && recv(fd, &c, 1, 0) == 1; left--) {
			if (at + 1 < answer_bytes)
				answer[at++] = c;
		}
		answer[at] = '\0';
	}
close_fd:
	(void)close(fd);
}

void harness_cluster_command(const struct harness_cluster *cluster, uint32_t node, char *answer,
			     size_t answer_bytes, const char *format, ...)
{
	char line[512], lines[1024];
	va_list list;

	va_start(list, format);
	(void)vsnprintf(line, sizeof(line), format, list);
	va_end(list);
	(void)snprintf(lines, sizeof(lines), "%s%s%s%s\r\n", cluster->password ? "AUTH " : "",
		       cluster->password ? cluster->password : "", cluster->password ? "\r\n" : "",
		       line);
	ask(cluster->nodes[node], lines, answer, answer_bytes);
}

static void must(const struct harness_cluster *cluster, uint32_t node, const char *format, ...)
{
	char line[512], answer[256];
	va_list list;

	va_start(list, format);
	(void)vsnprintf(line, sizeof(line), format, list);
	va_end(list);
	harness_cluster_command(cluster, node, answer, sizeof(answer), "%s", line);
	if (strcmp(answer, "+OK"))
		fail_msg("node %u: %s: \"%s\"", node, line, answer);
}

void harness_cluster_set(const struct harness_cluster *cluster, const char *name, const char *value)
{
	uint32_t i;

	for (i = 0; i < cluster->count; i++) {
		if (cluster->nodes[i]->pid > 0)
			must(cluster, i, "CONFIG SET %s %s", name, value);
	}
}

/* Ask a node until its answer has every word that is expected. */
static void await(const struct harness_cluster *cluster, uint32_t node, const char *line,
		  const char *const *words)
{
	uint64_t end_ns = clock_now_ns() + HARNESS_PATIENCE;
	char answer[8192];
	size_t i;

	for (;;) {
		harness_cluster_command(cluster, node, answer, sizeof(answer), "%s", line);
		for (i = 0; words[i] && strstr(answer, words[i]); i++)
			;
		if (!words[i])
			return;
		if (clock_now_ns() > end_ns)
			fail_msg("node %u: %s: no \"%s\" in \"%s\"", node, line, words[i], answer);
		(void)usleep(10000);
	}
}

void harness_cluster_await(const struct harness_cluster *cluster, const char *line,
			   const char *word)
{
	const char *const words[] = {word, NULL};
	uint32_t i;

	for (i = 0; i < cluster->count; i++) {
		if (cluster->nodes[i]->pid > 0)
			await(cluster, i, line, words);
	}
}

/* ---- begin and end -------------------------------------------------------------------------- */

static bool start_node(struct harness_cluster *cluster, bool whole)
{
	uint32_t i = cluster->count;
	char bus[16];
	const char *const arguments[] = {
	    "--cluster-enabled",
	    "yes",
	    "--cluster-port",
	    bus,
	    "--cluster-node-timeout",
	    "1500",
	    "--cluster-require-full-coverage",
	    whole ? "yes" : "no",
	    "--cluster-replica-validity-factor",
	    "0",
	    "--cluster-allow-replica-migration",
	    "no",
	    "--repl-diskless-sync-delay",
	    "0",
	    "--repl-ping-replica-period",
	    "1",
	    NULL,
	};

	cluster->bus_ports[i] = harness_port(NULL);
	(void)snprintf(bus, sizeof(bus), "%u", cluster->bus_ports[i]);
	cluster->nodes[i] = harness_redis_start(arguments);
	if (!cluster->nodes[i])
		return false;
	harness_cluster_command(cluster, i, cluster->ids[i], sizeof(cluster->ids[i]),
				"CLUSTER MYID");
	assert_int_equal(strlen(cluster->ids[i]), 42); /* with its line end */
	cluster->ids[i][40] = '\0';
	cluster->count++;
	return true;
}

static void join(struct harness_cluster *cluster)
{
	char known[40];
	uint32_t i;

	for (i = 1; i < cluster->count; i++)
		must(cluster, 0, "CLUSTER MEET 127.0.0.1 %u %u", cluster->nodes[i]->port,
		     cluster->bus_ports[i]);
	(void)snprintf(known, sizeof(known), "cluster_known_nodes:%u\r", cluster->count);
	harness_cluster_await(cluster, "CLUSTER INFO", known);
}

struct harness_cluster *harness_cluster_start(uint32_t masters, uint32_t replicas, bool whole)
{
	static const char *const is_linked[] = {"master_link_status:up", NULL};
	struct harness_cluster *cluster = calloc(1, sizeof(*cluster));
	uint32_t i;

	assert_non_null(cluster);
	assert_true(masters + replicas <= HARNESS_NODES_MAX);
	cluster->masters = masters;
	for (i = 0; i < masters + replicas; i++) {
		if (!start_node(cluster, whole)) {
			free(cluster);
			return NULL;
		}
	}
	for (i = 0; i < masters; i++) {
		must(cluster, i, "CLUSTER SET-CONFIG-EPOCH %u", i + 1);
		must(cluster, i, "CLUSTER ADDSLOTSRANGE %u %u", i * SLOTS / masters,
		     (i + 1) * SLOTS / masters - 1);
	}
	join(cluster);
	for (i = masters; i < cluster->count; i++)
		must(cluster, i, "CLUSTER REPLICATE %s", cluster->ids[(i - masters) % masters]);
	for (i = masters; i < cluster->count; i++)
		await(cluster, i, "INFO replication", is_linked);
	harness_cluster_await(cluster, "CLUSTER INFO", "cluster_state:ok");
	harness_cluster_await(cluster, "CLUSTER INFO", "cluster_slots_ok:16384");
	return cluster;
}

void harness_cluster_stop(struct harness_cluster *cluster)
{
	uint32_t i;

	if (!cluster)
		return;
	for (i = 0; i < cluster->count; i++)
		harness_redis_stop(cluster->nodes[i]);
	free(cluster);
}

uint32_t harness_cluster_join(struct harness_cluster *cluster, bool whole)
{
	assert_true(cluster->count < HARNESS_NODES_MAX);
	assert_true(start_node(cluster, whole));
	join(cluster);
	harness_cluster_await(cluster, "CLUSTER INFO", "cluster_state:ok");
	return cluster->count - 1;
}

/* ---- slots ---------------------------------------------------------------------------------- */

void harness_cluster_uri(const struct harness_cluster *cluster, const char *options, char *uri,
			 size_t uri_bytes)
{
	(void)snprintf(uri, uri_bytes, "redis+cluster://127.0.0.1:%u%s", cluster->nodes[0]->port,
		       options);
}

void harness_cluster_begin_move(const struct harness_cluster *cluster, uint32_t slot, uint32_t from,
				uint32_t to)
{
	must(cluster, to, "CLUSTER SETSLOT %u IMPORTING %s", slot, cluster->ids[from]);
	must(cluster, from, "CLUSTER SETSLOT %u MIGRATING %s", slot, cluster->ids[to]);
}

bool harness_cluster_move_key(const struct harness_cluster *cluster, uint32_t slot, uint32_t from,
			      uint32_t to)
{
	char lines[256], answer[256];
	int fd = harness_connect(cluster->nodes[from]->port);
	size_t at = 0;
	char *key;

	assert_true(fd >= 0);
	(void)snprintf(lines, sizeof(lines), "CLUSTER GETKEYSINSLOT %u 1\r\n", slot);
	assert_true(send(fd, lines, strlen(lines), MSG_NOSIGNAL) > 0);
	/* "*0\r\n", or "*1\r\n$68\r\nssv:...\r\n" */
	while (at + 1 < sizeof(answer) && recv(fd, answer + at, 1, 0) == 1) {
		answer[++at] = '\0';
		if (!strcmp(answer, "*0\r\n") || (strstr(answer, "ssv:") && answer[at - 1] == '\n'))
			break;
	}
	(void)close(fd);
	key = strstr(answer, "ssv:");
	if (!key)
		return false;
	key[strcspn(key, "\r")] = '\0';
	must(cluster, from, "MIGRATE 127.0.0.1 %u %s 0 5000 REPLACE", cluster->nodes[to]->port,
	     key);
	return true;
}

void harness_cluster_end_move(const struct harness_cluster *cluster, uint32_t slot, uint32_t from,
			      uint32_t to)
{
	uint32_t i;

	must(cluster, to, "CLUSTER SETSLOT %u NODE %s", slot, cluster->ids[to]);
	must(cluster, from, "CLUSTER SETSLOT %u NODE %s", slot, cluster->ids[to]);
	for (i = 0; i < cluster->masters; i++) {
		if (i != to && i != from && cluster->nodes[i]->pid > 0)
			must(cluster, i, "CLUSTER SETSLOT %u NODE %s", slot, cluster->ids[to]);
	}
}
