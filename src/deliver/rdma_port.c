/* SPDX-License-Identifier: Apache-2.0 */
/* rdma_port.c - finds and opens a port, and takes queue pairs through their states. */
#include "deliver/rdma_port.h"

#include <errno.h>
#include <string.h>
#include <sys/random.h>

/* 4.096 us x 2^14 = 67 ms without an acknowledgement, 6 times more: a dead peer shows in half a
 * second to two; a congested switch does not end a lane. Not 7: as a number of retries when the
 * peer is not ready it means without end, and the software device takes it so for both. */
#define ACK_TIMEOUT     14
#define RETRIES         6
#define NOT_READY_TIMER 16 /* 2.56 ms before such a retry */
#define HOPS_MAX        64
#define SERVICE         0

int rdma_refuse(char *error, const char *what, int err)
{
	snprintf(error, SSV_ERROR_TEXT_MAX, "RDMA: %s: %s", what, strerror(err));
	return -err;
}

/* ---- finding a port ------------------------------------------------------------------------- */

/* "device:port:gid", taken apart; port 0 and gid -1: to be found. */
struct choice {
	char device[IBV_SYSFS_NAME_MAX];
	uint32_t port;
	int gid_index;
};

static int choice_parse(const char *text, struct choice *ret_choice, char *error)
{
	struct choice choice = {.gid_index = -1};
	const size_t name = text ? strcspn(text, ":") : 0;
	char end = 0;

	if (name >= sizeof(choice.device))
		goto refuse;
	if (name)
		memcpy(choice.device, text, name);
	if (name && text[name]) {
		unsigned int port = 0, gid = 0;
		int fields = sscanf(text + name, ":%3u:%4u%c", &port, &gid, &end);

		if ((fields != 1 && fields != 2) || port < 1 || port > UINT8_MAX)
			goto refuse;
		if (fields == 1 && strchr(text + name + 1, ':'))
			goto refuse;
		choice.port = port;
		choice.gid_index = fields == 2 ? (int)gid : -1;
	} else if (text && *text && !name) {
		goto refuse;
	}
	*ret_choice = choice;
	return 0;

refuse:
	snprintf(error, SSV_ERROR_TEXT_MAX,
		 "RDMA device \"%.64s\": expected \"name\", \"name:port\" or \"name:port:gid "
		 "index\" (ibv_devinfo -v shows them)",
		 text);
	return -EINVAL;
}

/* RoCE v2 before v1, routable before link-local, IPv4 before IPv6: what a data centre uses. */
static int gid_rank(const struct ibv_gid_entry *entry)
{
	static const uint8_t ipv4[12] = {[10] = 0xff, [11] = 0xff};
	const uint8_t *raw = entry->gid.raw;

	if (entry->gid_type != IBV_GID_TYPE_ROCE_V2)
		return 1;
	if (memcmp(raw, ipv4, sizeof(ipv4)) == 0)
		return 4;
	return raw[0] == 0xfe && (raw[1] & 0xc0) == 0x80 ? 2 : 3;
}

static int gid_find(struct rdma_port *port, int wanted, int table, char *error)
{
	struct ibv_gid_entry entry;
	int best = 0;

	for (int i = wanted < 0 ? 0 : wanted; i < (wanted < 0 ? table : wanted + 1); i++) {
		memset(&entry, 0, sizeof(entry));
		if (ibv_query_gid_ex(port->context, port->number, (uint32_t)i, &entry, 0) ||
		    gid_rank(&entry) <= best)
			continue;
		best = gid_rank(&entry);
		port->gid_index = i;
		memcpy(port->gid, entry.gid.raw, sizeof(port->gid));
	}
	if (best)
		return 0;
	snprintf(error, SSV_ERROR_TEXT_MAX, "RDMA device %s port %u: no address (gid index %d)",
		 ibv_get_device_name(port->context->device), port->number, wanted);
	return -ENODEV;
}

static int port_check(struct rdma_port *port, const struct choice *choice, char *error)
{
	const char *name = ibv_get_device_name(port->context->device);
	struct ibv_device_attr device;
	struct ibv_port_attr attr;

	if (ibv_query_device(port->context, &device) ||
	    ibv_query_port(port->context, port->number, &attr)) {
		snprintf(error, SSV_ERROR_TEXT_MAX, "RDMA device %s has no port %u", name,
			 port->number);
		return -ENODEV;
	}
	if (attr.state != IBV_PORT_ACTIVE) {
		snprintf(error, SSV_ERROR_TEXT_MAX, "RDMA device %s port %u is %s, expected active",
			 name, port->number, ibv_port_state_str(attr.state));
		return -ENODEV;
	}
	port->link =
	    attr.link_layer == IBV_LINK_LAYER_ETHERNET ? RDMA_LINK_ETHERNET : RDMA_LINK_INFINIBAND;
	port->mtu = (uint8_t)attr.active_mtu;
	port->lid = attr.lid;
	port->message_max = attr.max_msg_sz;
	port->depth_max = (uint32_t)device.max_qp_wr;
	port->asks = (uint8_t)u64_min((uint64_t)device.max_qp_init_rd_atom, RDMA_READS_MAX);
	port->reads = (uint8_t)u64_min((uint64_t)device.max_qp_rd_atom, RDMA_READS_MAX);
	return gid_find(port, choice->gid_index, attr.gid_tbl_len, error);
}

/* The chosen port of an opened device, or its first that is active. */
static int port_find(struct rdma_port *port, const struct choice *choice, char *error)
{
	struct ibv_device_attr device;
	int err = -ENODEV;

	port->number = (uint8_t)choice->port;
	if (choice->port)
		return port_check(port, choice, error);
	if (ibv_query_device(port->context, &device))
		return rdma_refuse(error, "the device cannot be asked", EIO);
	for (uint32_t i = 1; i <= device.phys_port_cnt && err; i++) {
		port->number = (uint8_t)i;
		err = port_check(port, choice, error);
	}
	return err;
}

static int port_open_device(struct ibv_device *device, const struct choice *choice,
			    struct rdma_port *port, char *error)
{
	int err;

	memset(port, 0, sizeof(*port));
	port->context = ibv_open_device(device);
	if (!port->context) {
		snprintf(error, SSV_ERROR_TEXT_MAX, "RDMA device %s cannot be opened: %s",
			 ibv_get_device_name(device), strerror(errno));
		return errno == EACCES || errno == EPERM ? -EPERM : -EIO;
	}
	err = port_find(port, choice, error);
	if (err)
		goto close;
	port->pd = ibv_alloc_pd(port->context);
	if (!port->pd) {
		err = rdma_refuse(error, "no protection domain", errno);
		goto close;
	}
	return 0;

close:
	(void)ibv_close_device(port->context);
	return err;
}

int rdma_port_open(const char *text, struct rdma_port *ret_port, char *error)
{
	struct ibv_device **devices;
	struct choice choice;
	int count = 0, err = choice_parse(text, &choice, error);

	if (err)
		return err;
	devices = ibv_get_device_list(&count);
	if (!devices || count == 0) {
		if (devices)
			ibv_free_device_list(devices);
		snprintf(error, SSV_ERROR_TEXT_MAX,
			 "no RDMA device on this machine (ibv_devices lists them)");
		return -ENODEV;
	}
	err = -ENODEV;
	snprintf(error, SSV_ERROR_TEXT_MAX, "RDMA device \"%s\" is none of the %d here",
		 choice.device, count);
	for (int i = 0; i < count && err; i++) {
		if (!choice.device[0] ||
		    strcmp(choice.device, ibv_get_device_name(devices[i])) == 0)
			err = port_open_device(devices[i], &choice, ret_port, error);
	}
	ibv_free_device_list(devices);
	return err;
}

void rdma_port_close(struct rdma_port *port)
{
	(void)ibv_dealloc_pd(port->pd);
	(void)ibv_close_device(port->context);
}

void rdma_port_describe(const struct rdma_port *port, struct rdma_words *words)
{
	words->link = port->link;
	words->mtu = port->mtu;
	words->lid = port->lid;
	memcpy(words->gid, port->gid, sizeof(words->gid));
}

/* ---- queue pairs ---------------------------------------------------------------------------- */

int rdma_pair_create(const struct rdma_port *port, uint32_t depth, uint32_t *inline_bytes,
		     struct ibv_cq **ret_cq, struct ibv_qp **ret_qp, char *error)
{
	struct ibv_qp_init_attr init = {
	    .cap = {.max_send_wr = depth,
		    .max_recv_wr = 1,
		    .max_send_sge = 1,
		    .max_recv_sge = 1,
		    .max_inline_data = *inline_bytes},
	    .qp_type = IBV_QPT_RC,
	};
	struct ibv_cq *cq = ibv_create_cq(port->context, (int)depth + 1, NULL, NULL, 0);
	struct ibv_qp *qp;

	if (!cq)
		return rdma_refuse(error, "no completion queue", errno);
	init.send_cq = cq;
	init.recv_cq = cq;
	qp = ibv_create_qp(port->pd, &init);
	if (!qp && init.cap.max_inline_data) {
		/* A device may do without; it is a saving, not a need. */
		init.cap.max_inline_data = 0;
		qp = ibv_create_qp(port->pd, &init);
	}
	if (!qp) {
		int err = rdma_refuse(error, "no queue pair", errno);

		(void)ibv_destroy_cq(cq);
		return err;
	}
	*inline_bytes = (uint32_t)u64_min(*inline_bytes, init.cap.max_inline_data);
	*ret_cq = cq;
	*ret_qp = qp;
	return 0;
}

void rdma_pair_destroy(struct ibv_cq *cq, struct ibv_qp *qp)
{
	if (qp)
		(void)ibv_destroy_qp(qp);
	if (cq)
		(void)ibv_destroy_cq(cq);
}

int rdma_pair_init(const struct rdma_port *port, struct ibv_qp *qp, unsigned int access,
		   char *error)
{
	struct ibv_qp_attr attr = {
	    .qp_state = IBV_QPS_INIT,
	    .port_num = port->number,
	    .qp_access_flags = access,
	};
	int err = ibv_modify_qp(
	    qp, &attr, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS);

	return err ? rdma_refuse(error, "a queue pair cannot be set up", err) : 0;
}

int rdma_pair_receive(const struct rdma_port *port, struct ibv_qp *qp,
		      const struct rdma_words *peer, uint32_t lane, uint8_t reads, char *error)
{
	struct ibv_qp_attr attr = {
	    .qp_state = IBV_QPS_RTR,
	    .path_mtu = (enum ibv_mtu)u64_min(port->mtu, peer->mtu),
	    .dest_qp_num = peer->lanes[lane].qp,
	    .rq_psn = peer->lanes[lane].psn,
	    .max_dest_rd_atomic = reads,
	    .min_rnr_timer = NOT_READY_TIMER,
	    .ah_attr = {.dlid = peer->lid, .port_num = port->number, .sl = SERVICE},
	};
	int err;

	if (peer->link != port->link) {
		snprintf(error, SSV_ERROR_TEXT_MAX,
			 "RDMA: one side's port is Ethernet, the other's InfiniBand");
		return -EINVAL;
	}
	if (port->link == RDMA_LINK_ETHERNET) {
		attr.ah_attr.is_global = 1;
		attr.ah_attr.grh.hop_limit = HOPS_MAX;
		attr.ah_attr.grh.sgid_index = (uint8_t)port->gid_index;
		memcpy(attr.ah_attr.grh.dgid.raw, peer->gid, sizeof(peer->gid));
	}
	err = ibv_modify_qp(qp, &attr,
			    IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN |
				IBV_QP_RQ_PSN | IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER);
	return err ? rdma_refuse(error, "no way to the peer's port (its gid, or the route?)", err)
		   : 0;
}

int rdma_pair_send(struct ibv_qp *qp, uint32_t psn, uint8_t reads, char *error)
{
	struct ibv_qp_attr attr = {
	    .qp_state = IBV_QPS_RTS,
	    .timeout = ACK_TIMEOUT,
	    .retry_cnt = RETRIES,
	    .rnr_retry = RETRIES,
	    .sq_psn = psn,
	    .max_rd_atomic = reads,
	};
	int err = ibv_modify_qp(qp, &attr,
				IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT |
				    IBV_QP_RNR_RETRY | IBV_QP_SQ_PSN | IBV_QP_MAX_QP_RD_ATOMIC);

	return err ? rdma_refuse(error, "a queue pair cannot send", err) : 0;
}

int rdma_pair_stop(struct ibv_qp *qp)
{
	struct ibv_qp_attr attr = {.qp_state = IBV_QPS_ERR};

	return -ibv_modify_qp(qp, &attr, IBV_QP_STATE);
}

uint32_t rdma_psn(void)
{
	uint32_t psn = 0;

	if (getrandom(&psn, sizeof(psn), 0) != (ssize_t)sizeof(psn))
		return 0; /* a number like any other: it protects little (docs/rdma.md) */
	return psn & 0xffffff;
}
