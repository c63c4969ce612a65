/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_cluster_map.c - slots of keys, maps and redirections of a Redis Cluster, as text: good ones
 * in both protocol versions and cut anywhere, and every way to lie that we could think of.
 */
#include "harness.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <string.h>

#include "store/cluster_map.h"

static struct cluster_map map;
static struct redis_address from;
static struct cluster_host known_hosts[1];
static const struct cluster_hosts known = {known_hosts, 1};

static struct redis_address address_of(const char *host, uint32_t port)
{
	struct redis_address address;
	const struct cluster_hosts none = {NULL, 0};

	assert_int_equal(cluster_address(host, port, NULL, &none, &address), 0);
	return address;
}

static int setup(void **state)
{
	(void)state;
	from = address_of("10.0.0.9", 7000);
	known_hosts[0].address = address_of("10.0.0.77", 1);
	(void)snprintf(known_hosts[0].host, sizeof(known_hosts[0].host), "seed.example");
	return 0;
}

/* Feed a reply in pieces; 1, 0 (not at its end) or -EPROTO. Payload that is left to the caller is
 * given as the lane gives it: without a depth. */
static int read_map(const char *text, size_t piece, uint32_t members_max)
{
	size_t bytes = strlen(text), at = 0, used;
	struct cluster_map_reader reader;
	struct resp_reader resp;
	struct resp_item item;
	int got = 0;

	resp_init(&resp, MIB);
	cluster_map_begin(&reader, &map, members_max, &from, &known);
	while (at < bytes && !got) {
		size_t n = bytes - at < piece ? bytes - at : piece;
		int more = resp_read(&resp, text + at, n, &used, &item);

		if (more < 0)
			return more;
		at += used;
		if (more && item.type == RESP_PAYLOAD)
			item.depth = 0;
		if (more)
			got = cluster_map_item(&reader, &item);
	}
	return got;
}

static void assert_owner(uint32_t slot, const char *name)
{
	if (!name) {
		assert_int_equal(map.owner[slot], CLUSTER_NO_NODE);
		return;
	}
	assert_true(map.owner[slot] < map.members_count);
	assert_string_equal(map.members[map.owner[slot]].name, name);
}

static void slots_are_crc16(void **state)
{
	static const char prefix[] = "ssv:";
	struct ssv_key key = harness_key(5);
	char text[80];
	size_t at = 4, i;

	(void)state;
	assert_int_equal(cluster_crc16(0, "123456789", 9), 0x31c3);
	assert_int_equal(cluster_crc16(0, "foo", 3) % CLUSTER_SLOTS, 12182);
	(void)snprintf(text, sizeof(text), "%s", prefix);
	for (i = 0; i < sizeof(key.bytes); i++)
		at += (size_t)snprintf(text + at, 3, "%02x", key.bytes[i]);
	assert_int_equal(cluster_slot(cluster_crc16(0, prefix, 4), &key),
			 cluster_crc16(0, text, at) % CLUSTER_SLOTS);
}

#define NODE(ip, port) "*4\r\n$8\r\n" ip "\r\n:" port "\r\n$2\r\nid\r\n*0\r\n"

static const char two_masters[] =
    "*3\r\n"
    "*4\r\n:0\r\n:8191\r\n" NODE("10.0.0.1", "7000") NODE("10.0.0.2", "7000") /* with a replica */
    "*3\r\n:8192\r\n:8192\r\n" NODE("10.0.0.3", "7001") "*3\r\n:9000\r\n:16383\r\n" NODE("10.0.0.1",
											 "7000");

static void a_map_is_read_however_it_is_cut(void **state)
{
	size_t piece;

	(void)state;
	for (piece = 1; piece < sizeof(two_masters); piece++) {
		assert_int_equal(read_map(two_masters, piece, 8), 1);
		assert_int_equal(map.members_count, 2);
		assert_int_equal(map.slots_placed, 8192 + 1 + 7384);
		assert_int_equal(map.slots_homeless, 0);
		assert_owner(0, "10.0.0.1:7000");
		assert_owner(8191, "10.0.0.1:7000");
		assert_owner(8192, "10.0.0.3:7001");
		assert_owner(8193, NULL);
		assert_owner(8999, NULL);
		assert_owner(16383, "10.0.0.1:7000");
	}
}

static void endpoints_of_every_kind(void **state)
{
	static const char text[] =
	    "*7\r\n"
	    /* none: that of the node that was asked */
	    "*3\r\n:0\r\n:0\r\n*4\r\n$-1\r\n:7005\r\n$2\r\nid\r\n%0\r\n"
	    "*3\r\n:1\r\n:1\r\n*3\r\n$0\r\n\r\n:7006\r\n$2\r\nid\r\n"
	    "*3\r\n:2\r\n:2\r\n*4\r\n$8\r\na.domain\r\n:7000\r\n$2\r\nid\r\n"
	    "%1\r\n$2\r\nip\r\n$8\r\n10.0.0.4\r\n"
	    "*3\r\n:3\r\n:3\r\n*4\r\n$1\r\n?\r\n:7000\r\n$2\r\nid\r\n"
	    "*4\r\n$8\r\nhostname\r\n$1\r\nx\r\n$2\r\nip\r\n$8\r\n10.0.0.5\r\n"
	    "*3\r\n:4\r\n:4\r\n*2\r\n$11\r\n2001:db8::7\r\n:7000\r\n"
	    /* a name that was a seed, and one that nobody knows */
	    "*3\r\n:5\r\n:5\r\n*2\r\n$12\r\nseed.example\r\n:7008\r\n"
	    "*3\r\n:6\r\n:9\r\n*2\r\n$9\r\nno.domain\r\n:7000\r\n";

	(void)state;
	assert_int_equal(read_map(text, 7, 8), 1);
	assert_owner(0, "10.0.0.9:7005");
	assert_owner(1, "10.0.0.9:7006");
	assert_owner(2, "a.domain:7000");
	assert_owner(3, "10.0.0.5:7000");
	assert_owner(4, "2001:db8::7:7000");
	assert_owner(5, "seed.example:7008");
	assert_owner(6, NULL);
	assert_int_equal(map.slots_homeless, 4);
	assert_int_equal(map.members[map.owner[4]].address.address.ss_family, AF_INET6);
	assert_int_equal(
	    ntohl(((struct sockaddr_in *)(void *)&map.members[2].address.address)->sin_addr.s_addr),
	    0x0a000004);
	assert_int_equal(
	    ntohs(((struct sockaddr_in *)(void *)&map.members[5].address.address)->sin_port), 7008);
}

static void nodes_beyond_the_limit_have_no_slots(void **state)
{
	(void)state;
	assert_int_equal(read_map(two_masters, 1000, 1), 1);
	assert_int_equal(map.members_count, 1);
	assert_owner(8192, NULL);
	assert_int_equal(map.slots_homeless, 1);
	assert_owner(16383, "10.0.0.1:7000");
}

static void a_map_without_slots_is_empty(void **state)
{
	(void)state;
	assert_int_equal(read_map("*0\r\n", 10, 8), 1);
	assert_int_equal(map.slots_placed, 0);
}

static void a_port_of_zero_has_no_address(void **state)
{
	(void)state;
	assert_int_equal(read_map("*1\r\n*3\r\n:0\r\n:9\r\n" NODE("10.0.0.1", "0"), 100, 8), 1);
	assert_int_equal(map.slots_placed, 0);
	assert_int_equal(map.slots_homeless, 10);
}

static void lies_are_refused(void **state)
{
	static const char *const lies[] = {
	    "+OK\r\n",
	    ":1\r\n",
	    "$2\r\nok\r\n",
	    "$-1\r\n",
	    "*1\r\n:1\r\n",
	    "*1\r\n*0\r\n",
	    "*1\r\n*2\r\n:0\r\n:1\r\n",
	    "*1\r\n*3\r\n:0\r\n:16384\r\n" NODE("10.0.0.1", "7000"),
	    "*1\r\n*3\r\n:-1\r\n:5\r\n" NODE("10.0.0.1", "7000"),
	    "*1\r\n*3\r\n:6\r\n:5\r\n" NODE("10.0.0.1", "7000"),
	    "*1\r\n*3\r\n:4294967296\r\n:4294967297\r\n" NODE("10.0.0.1", "7000"),
	    "*1\r\n*3\r\n$1\r\n0\r\n:5\r\n" NODE("10.0.0.1", "7000"),
	    "*1\r\n*3\r\n:0\r\n:5\r\n:7\r\n",
	    "*1\r\n*3\r\n:0\r\n:5\r\n*1\r\n$8\r\n10.0.0.1\r\n",
	    "*1\r\n*3\r\n:0\r\n:5\r\n" NODE("10.0.0.1", "65536"),
	    "*1\r\n*3\r\n:0\r\n:5\r\n" NODE("10.0.0.1", "-1"),
	    "*1\r\n*3\r\n:0\r\n:5\r\n*2\r\n$8\r\n10.0.0.1\r\n$4\r\n7000\r\n",
	    "*1\r\n*3\r\n:0\r\n:5\r\n*2\r\n:1\r\n:7000\r\n",
	    "*1\r\n*3\r\n*1\r\n:0\r\n:5\r\n" NODE("10.0.0.1", "7000"),
	    /* a slot with two owners */
	    "*2\r\n*3\r\n:0\r\n:5\r\n" NODE("10.0.0.1",
					    "7000") "*3\r\n:5\r\n:9\r\n" NODE("10.0.0.2", "7000"),
	};
	size_t i;

	(void)state;
	for (i = 0; i < ARRAY_COUNT(lies); i++) {
		if (read_map(lies[i], 1000, 8) != -EPROTO)
			fail_msg("taken: %s", lies[i]);
		if (read_map(lies[i], 1, 8) != -EPROTO)
			fail_msg("taken byte by byte: %s", lies[i]);
	}
}

static void long_names_are_nobodys(void **state)
{
	char text[600], name[200];

	(void)state;
	memset(name, 'n', sizeof(name));
	(void)snprintf(text, sizeof(text),
		       "*2\r\n*3\r\n:0\r\n:5\r\n*2\r\n$200\r\n%.200s\r\n:7000\r\n"
		       "*3\r\n:6\r\n:7\r\n*2\r\n$8\r\n10.0.0.1\r\n:7000\r\n",
		       name);
	assert_int_equal(read_map(text, 3, 8), 1);
	assert_owner(0, NULL);
	assert_owner(6, "10.0.0.1:7000");
}

static void names_with_other_characters_are_nobodys(void **state)
{
	(void)state;
	assert_int_equal(
	    read_map("*1\r\n*3\r\n:0\r\n:5\r\n*2\r\n$9\r\na\nlevel=x\r\n:7000\r\n", 3, 8), 1);
	assert_int_equal(map.slots_homeless, 6);
}

static void mutated_maps_stay_in_bounds(void **state)
{
	uint64_t random = harness_seed(61);
	char text[sizeof(two_masters)];
	uint32_t round, i, taken = 0;

	(void)state;
	for (round = 0; round < 100000; round++) {
		uint64_t changes = 1 + harness_random(&random) % 4;

		memcpy(text, two_masters, sizeof(text));
		while (changes--)
			text[harness_random(&random) % (sizeof(text) - 1)] =
			    "0123456789*:$%\r\n-x"[harness_random(&random) % 18];
		if (read_map(text, 1 + harness_random(&random) % 64, 2) != 1)
			continue;
		taken++;
		assert_true(map.members_count <= 2);
		assert_true(map.slots_placed <= CLUSTER_SLOTS);
		for (i = 0; i < CLUSTER_SLOTS; i += 97)
			assert_true(map.owner[i] == CLUSTER_NO_NODE ||
				    map.owner[i] < map.members_count);
	}
	assert_true(taken > 0); /* a digit of an address changes nothing else */
}

static void redirections_are_read(void **state)
{
	static const char *const lies[] = {
	    "MOVED",
	    "MOVED ",
	    "MOVED 5",
	    "MOVED 5 ",
	    "MOVED 5 10.0.0.1",
	    "MOVED 5 10.0.0.1:",
	    "MOVED 5 10.0.0.1:0",
	    "MOVED 5 10.0.0.1:65536",
	    "MOVED 5 10.0.0.1:700000",
	    "MOVED 5 10.0.0.1:70x",
	    "MOVED 16384 10.0.0.1:7000",
	    "MOVED -1 10.0.0.1:7000",
	    "MOVED 99999999999 10.0.0.1:7000",
	    "MOVED x 10.0.0.1:7000",
	    "MOVED 5  :7000 ",
	    "MOVED 5 a b:7000",
	    "MOVED 5 a\"b:7000",
	    "MOVED 5 "
	    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa:7000",
	};
	struct cluster_redirect to;
	size_t i;

	(void)state;
	assert_int_equal(cluster_read_redirect("MOVED 16383 10.0.0.1:7000", &to), 0);
	assert_int_equal(to.slot, 16383);
	assert_int_equal(to.port, 7000);
	assert_string_equal(to.host, "10.0.0.1");
	assert_int_equal(cluster_read_redirect("ASK 0 2001:db8::7:65535", &to), 0);
	assert_int_equal(to.slot, 0);
	assert_int_equal(to.port, 65535);
	assert_string_equal(to.host, "2001:db8::7");
	assert_int_equal(cluster_read_redirect("MOVED 7 :7000", &to), 0);
	assert_string_equal(to.host, "");
	for (i = 0; i < ARRAY_COUNT(lies); i++) {
		if (cluster_read_redirect(lies[i], &to) != -EPROTO)
			fail_msg("taken: %s", lies[i]);
	}
}

static void addresses_are_compared_with_their_ports(void **state)
{
	struct redis_address a = address_of("10.0.0.1", 7000), b = address_of("::1", 7000);
	struct redis_address c = a;

	(void)state;
	assert_true(cluster_same_address(&a, &c));
	assert_true(cluster_same_address(&b, &b));
	assert_false(cluster_same_address(&a, &b));
	c = address_of("10.0.0.1", 7001);
	assert_false(cluster_same_address(&a, &c));
	c = address_of("::2", 7000);
	assert_false(cluster_same_address(&b, &c));
	assert_int_equal(cluster_address("no.name", 1, &a, &known, &c), -ENOENT);
	assert_int_equal(cluster_address("10.0.0.1", 0, &a, &known, &c), -EINVAL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(slots_are_crc16),
	    cmocka_unit_test(a_map_is_read_however_it_is_cut),
	    cmocka_unit_test(endpoints_of_every_kind),
	    cmocka_unit_test(nodes_beyond_the_limit_have_no_slots),
	    cmocka_unit_test(a_map_without_slots_is_empty),
	    cmocka_unit_test(a_port_of_zero_has_no_address),
	    cmocka_unit_test(lies_are_refused),
	    cmocka_unit_test(long_names_are_nobodys),
	    cmocka_unit_test(names_with_other_characters_are_nobodys),
	    cmocka_unit_test(mutated_maps_stay_in_bounds),
	    cmocka_unit_test(redirections_are_read),
	    cmocka_unit_test(addresses_are_compared_with_their_ports),
	};

	return cmocka_run_group_tests(tests, setup, NULL);
}
