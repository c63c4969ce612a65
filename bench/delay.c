/* SPDX-License-Identifier: Apache-2.0 */
/*
 * delay.c - bench_delay: a device whose packets reach the other namespace MS milliseconds later.
 *
 *	bench_delay DEVICE MS /proc/PID/ns/net DEVICE2
 *
 * Makes a TUN device DEVICE in the namespace it is started in and DEVICE2 in the other, and carries
 * every packet from the first to the second after the delay. Routed over it in one direction (the
 * plane's requests and acknowledgements), it gives a shaped link a round trip, for which kernels
 * without netem have no means. Prints a line when both devices are there; runs until it is killed.
 *
 * Bound: QUEUE packets on the way; more are dropped, as any link's would be.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/clock.h"

#define QUEUE        16384u
#define PACKET_BYTES 9216u

struct packet {
	uint64_t due_ns;
	uint32_t bytes;
	uint8_t data[PACKET_BYTES];
};

static void die(const char *what)
{
	fprintf(stderr, "bench_delay: %s: %s\n", what, strerror(errno));
	exit(2);
}

static int open_tun(const char *name)
{
	struct ifreq request = {.ifr_flags = IFF_TUN | IFF_NO_PI};
	int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);

	snprintf(request.ifr_name, sizeof(request.ifr_name), "%s", name);
	if (fd < 0 || ioctl(fd, TUNSETIFF, &request))
		die(name);
	return fd;
}

static void enter(const char *namespace)
{
	int fd = open(namespace, O_RDONLY | O_CLOEXEC);

	if (fd < 0 || setns(fd, CLONE_NEWNET))
		die(namespace);
	close(fd);
}

/* What has come, into the queue; head and tail run freely. */
static void take(int fd, struct packet *queue, uint32_t head, uint32_t *tail, uint64_t delay_ns)
{
	static struct packet refused;

	for (;;) {
		struct packet *packet = *tail - head < QUEUE ? &queue[*tail % QUEUE] : &refused;
		ssize_t n = read(fd, packet->data, sizeof(packet->data));

		if (n <= 0)
			return;
		packet->bytes = (uint32_t)n;
		packet->due_ns = clock_now_ns() + delay_ns;
		if (packet != &refused)
			(*tail)++;
	}
}

int main(int argc, char **argv)
{
	uint32_t head = 0, tail = 0;
	struct packet *queue;
	uint64_t delay_ns;
	int from, to;

	if (argc != 5) {
		fprintf(stderr, "usage: bench_delay DEVICE MS NAMESPACE DEVICE2\n");
		return 2;
	}
	delay_ns = strtoull(argv[2], NULL, 10) * NS_PER_MS;
	queue = calloc(QUEUE, sizeof(*queue));
	if (!queue)
		die("queue");
	from = open_tun(argv[1]);
	enter(argv[3]);
	to = open_tun(argv[4]);
	puts("ready");
	fflush(stdout);
	for (;;) {
		uint64_t now_ns = clock_now_ns();
		struct pollfd fd = {.fd = from, .events = POLLIN};
		struct timespec wait = {.tv_sec = 1};

		while (head != tail && queue[head % QUEUE].due_ns <= now_ns) {
			/* A packet that the kernel refuses is lost, as on any link. */
			(void)!write(to, queue[head % QUEUE].data, queue[head % QUEUE].bytes);
			head++;
		}
		if (head != tail)
			wait = (struct timespec){
			    .tv_nsec = (long)(queue[head % QUEUE].due_ns - now_ns) % 1000000000L};
		(void)!ppoll(&fd, 1, &wait, NULL);
		take(from, queue, head, &tail, delay_ns);
	}
}
