/* SPDX-License-Identifier: Apache-2.0 */
/* sim_store.c - see sim_store.h. */
#include "sim_store.h"

#include <errno.h>
#include <string.h>

#include "base/clock.h"
#include "layouts.h"

struct sim_op {
	struct store_op *op;
	enum sim_fault fault;
	uint64_t begin_ns, end_ns;
	uint64_t bytes, flip; /* GET: of the value as told; the place that is wrong */
	uint8_t *data;        /* GET: the value as it was at the beginning; NULL: a miss */
	uint64_t data_bytes;
};

struct sim_store {
	struct store store;
	struct sim_world *world;
	uint32_t worker;
	struct sim_op ops[SIM_OPS_MAX];
	uint32_t ops_count, ops_max;
	struct store_stats stats;
};

static struct sim_store *sim_of(const struct store *store)
{
	return (struct sim_store *)(uintptr_t)store;
}

static struct sim_value *find(struct sim_world *world, const struct ssv_key *key, int empty)
{
	struct sim_value *free_value = NULL;

	for (uint32_t i = 0; i < SIM_VALUES_MAX; i++) {
		struct sim_value *value = &world->values[i];

		if (value->data && memcmp(&value->key, key, sizeof(*key)) == 0)
			return value;
		if (!value->data)
			free_value = value;
	}
	return empty ? free_value : NULL;
}

int sim_world_has(const struct sim_world *world, const struct ssv_key *key)
{
	return find((struct sim_world *)(uintptr_t)world, key, 0) != NULL;
}

void sim_world_clear(struct sim_world *world)
{
	for (uint32_t i = 0; i < SIM_VALUES_MAX; i++) {
		free(world->values[i].data);
		world->values[i].data = NULL;
	}
}

static void sim_close(struct store *store)
{
	struct sim_store *sim = sim_of(store);

	for (uint32_t i = 0; i < sim->ops_count; i++)
		free(sim->ops[i].data);
	free(sim);
}

static void sim_begin(struct sim_store *sim, struct store_op *op, uint64_t now_ns)
{
	struct sim_world *world = sim->world;
	struct sim_value *value = find(world, &op->key, 0);
	struct sim_op *sim_op = &sim->ops[sim->ops_count++];

	*sim_op = (struct sim_op){.op = op, .begin_ns = now_ns};
	if (next_random(&world->random) % 1000 < world->faults_per_mille)
		sim_op->fault =
		    (enum sim_fault)(1 + next_random(&world->random) % (SIM_FAULTS - 1));
	if (world->forced[op->kind])
		sim_op->fault = (enum sim_fault)world->forced[op->kind];
	sim_op->end_ns = now_ns + world->slow_ns + next_random(&world->random) % (2 * NS_PER_MS);
	if (next_random(&world->random) % 16 == 0)
		sim_op->end_ns += next_random(&world->random) % (20 * NS_PER_MS);
	if (sim->worker == world->slow_worker)
		sim_op->end_ns += world->slow_worker_ns;
	if (op->kind != STORE_OP_GET)
		return;
	world->gets[sim->worker == world->slow_worker]++;
	if (memcmp(&op->key, &world->stalled, sizeof(op->key)) == 0)
		sim_op->fault = SIM_STALL;
	if (!value)
		return;
	sim_op->data = malloc(value->bytes);
	if (!sim_op->data)
		return;
	memcpy(sim_op->data, value->data, value->bytes);
	sim_op->bytes = sim_op->data_bytes = value->bytes;
	sim_op->flip = UINT64_MAX;
	if (sim_op->fault == SIM_TRUNCATE)
		sim_op->bytes = next_random(&world->random) % value->bytes;
	if (sim_op->fault == SIM_LONGER)
		sim_op->bytes += 1 + next_random(&world->random) % 3000000;
	if (sim_op->fault == SIM_FLIP)
		sim_op->flip = next_random(&world->random) % (8 * value->bytes);
	world->damaged += sim_op->fault == SIM_TRUNCATE || sim_op->fault == SIM_LONGER ||
			  sim_op->fault == SIM_FLIP;
}

static uint32_t sim_submit(struct store *store, struct store_op *const *ops, uint32_t n,
			   uint64_t now_ns)
{
	struct sim_store *sim = sim_of(store);
	uint32_t i = 0;

	/* Now and then it is "full", so that the caller must come again. */
	while (i < n && sim->ops_count < sim->ops_max && next_random(&sim->world->random) % 20 != 0)
		sim_begin(sim, ops[i++], now_ns);
	return i;
}

/* Bytes arrive evenly between begin and end; those that did never change again. */
static void sim_receive(struct sim_op *sim_op, uint64_t now_ns)
{
	struct store_op *op = sim_op->op;
	uint64_t span = sim_op->end_ns - sim_op->begin_ns + 1, upto;

	if (!sim_op->data || sim_op->fault == SIM_STALL || sim_op->fault == SIM_MISS)
		return;
	op->value_bytes = sim_op->bytes;
	if (sim_op->bytes > op->capacity)
		return;
	upto = now_ns >= sim_op->end_ns ? sim_op->bytes
					: sim_op->bytes * (now_ns - sim_op->begin_ns) / span;
	for (uint64_t i = op->received; i < upto; i++) {
		op->data[i] = i < sim_op->data_bytes ? sim_op->data[i] : 0x5a;
		if (sim_op->flip / 8 == i)
			op->data[i] ^= (uint8_t)(1u << sim_op->flip % 8);
	}
	if (upto > op->received)
		op->received = upto;
}

static int sim_get_status(const struct sim_op *sim_op)
{
	const struct store_op *op = sim_op->op;

	if (sim_op->fault == SIM_MISS || !sim_op->data)
		return -ENOENT;
	return op->value_bytes > op->capacity ? -EMSGSIZE : 0;
}

static int sim_put(struct sim_world *world, const struct store_op *op)
{
	struct sim_value *value = find(world, &op->key, 1);
	uint8_t *data = malloc(op->value_bytes);

	if (!value || !data) {
		free(data);
		return -ENOSPC;
	}
	memcpy(data, op->data, op->value_bytes);
	free(value->data);
	*value = (struct sim_value){op->key, data, op->value_bytes};
	return 0;
}

static int sim_end(struct sim_store *sim, const struct sim_op *sim_op)
{
	struct sim_value *value = find(sim->world, &sim_op->op->key, 0);

	if (sim_op->fault == SIM_ERROR)
		return next_random(&sim->world->random) % 2 ? -ENOTCONN : -EPROTO;
	switch (sim_op->op->kind) {
	case STORE_OP_GET:
		return sim_get_status(sim_op);
	case STORE_OP_PUT:
		return sim_put(sim->world, sim_op->op);
	case STORE_OP_EXISTS:
		sim_op->op->value_bytes = value ? value->bytes : 0;
		return value && sim_op->fault != SIM_MISS ? 0 : -ENOENT;
	default:
		if (value) {
			free(value->data);
			value->data = NULL;
			sim->world->deleted++;
		}
		return 0;
	}
}

static uint32_t sim_poll(struct store *store, struct store_op **done, uint32_t max, uint64_t now_ns)
{
	struct sim_store *sim = sim_of(store);
	uint32_t n = 0;

	for (uint32_t i = 0; i < sim->ops_count && n < max;) {
		struct sim_op *sim_op = &sim->ops[i];
		int late = sim_op->op->deadline_ns <= now_ns;

		if (sim_op->op->kind == STORE_OP_GET)
			sim_receive(sim_op, now_ns);
		/* A late or cancelled operation is handed back soon, not at once. */
		if (late && next_random(&sim->world->random) % 4 == 0) {
			sim_op->op->status = -ETIMEDOUT;
		} else if (!late && sim_op->fault != SIM_STALL && now_ns >= sim_op->end_ns) {
			sim_op->op->status = sim_end(sim, sim_op);
		} else {
			i++;
			continue;
		}
		done[n++] = sim_op->op;
		free(sim_op->data);
		*sim_op = sim->ops[--sim->ops_count];
	}
	return n;
}

static uint64_t sim_next_ns(const struct store *store)
{
	const struct sim_store *sim = sim_of(store);
	uint64_t next_ns = TIME_NEVER;

	for (uint32_t i = 0; i < sim->ops_count; i++) {
		const struct sim_op *sim_op = &sim->ops[i];
		uint64_t ns = sim_op->fault == SIM_STALL ? TIME_NEVER : sim_op->end_ns;

		next_ns = u64_min(next_ns, u64_min(ns, sim_op->op->deadline_ns));
	}
	return next_ns;
}

static uint32_t sim_pollfds(const struct store *store, void *pollfds, uint32_t max)
{
	(void)store;
	(void)pollfds;
	(void)max;
	return 0;
}

static void sim_stats(const struct store *store, struct store_stats *ret_stats)
{
	*ret_stats = sim_of(store)->stats;
}

static int sim_list(struct store *store,
		    int (*visit)(void *context, const struct ssv_key *key, uint64_t bytes),
		    void *context)
{
	(void)store;
	(void)visit;
	(void)context;
	return -ENOTSUP;
}

static const struct store_ops sim_ops = {
    .scheme = "sim",
    .close = sim_close,
    .submit = sim_submit,
    .poll = sim_poll,
    .next_ns = sim_next_ns,
    .pollfds = sim_pollfds,
    .stats = sim_stats,
    .list = sim_list,
};

int sim_store_open(void *context, uint32_t worker, const struct store_config *config,
		   struct store **ret_store, char *error)
{
	struct sim_store *sim = calloc(1, sizeof(*sim));

	(void)error;
	if (!sim)
		return -ENOMEM;
	sim->store.ops = &sim_ops;
	sim->world = context;
	sim->worker = worker;
	sim->ops_max = (uint32_t)u64_min(config->ops_max, SIM_OPS_MAX);
	*ret_store = &sim->store;
	return 0;
}
