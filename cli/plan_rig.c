/* SPDX-License-Identifier: Apache-2.0 */
/* plan_rig.c - see plan_rig.h. */
#include "plan_rig.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "cli.h"
#include "made_up.h"

#define HEADS        8u
#define DIM          128u
#define BLOCK_TOKENS 64u
#define CHUNK_BLOCKS (SSV_CHUNK_TOKENS / BLOCK_TOKENS)
#define BLOCK_BYTES  ((uint64_t)BLOCK_TOKENS * HEADS * DIM * 2)
#define LANES        8u
#define DEADLINE_MS  60000u

struct plan_thread {
	struct plan_rig *rig;
	pthread_t thread;
	uint32_t index;
	int started;
};

struct plan_rig {
	struct plan_options options;
	struct plane *plane;
	uint64_t session, requests;
	uint32_t region, memory_kind;
	uint8_t *memory;
	uint64_t memory_bytes;
	int fd;
	struct ssv_key *keys;
	uint32_t *blocks;
	atomic_int stop;
	struct plan_thread threads[PLAN_STAGES];
};

/* ---- threads -------------------------------------------------------------------------------- */

static int sleep_ms(uint64_t wake_ns)
{
	const uint64_t now_ns = clock_now_ns();

	return wake_ns <= now_ns ? 0 : (int)u64_min((wake_ns - now_ns) / NS_PER_MS + 1, 100);
}

static void *work(void *context)
{
	struct plan_thread *thread = context;
	struct plane *plane = thread->rig->plane;

	/* Pairs with the release in plan_rig_close(). */
	while (!atomic_load_explicit(&thread->rig->stop, memory_order_acquire)) {
		struct pollfd fds[16];
		uint64_t wake_ns = TIME_NEVER;
		uint32_t n;

		if (plane_worker_step(plane, thread->index, clock_now_ns(), &wake_ns))
			continue;
		n = plane_worker_pollfds(plane, thread->index, fds, ARRAY_COUNT(fds));
		poll(fds, n, sleep_ms(wake_ns));
	}
	return NULL;
}

static uint64_t thread_cpu_ns(const struct plan_thread *thread)
{
	struct timespec t = {0};
	clockid_t clock;

	if (pthread_getcpuclockid(thread->thread, &clock) == 0)
		clock_gettime(clock, &t);
	return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

/* ---- requests ------------------------------------------------------------------------------- */

/* Submit one request and step control until its completion; its status, or what kept it. */
static int request(struct plan_rig *rig, struct ssv_request *r, uint32_t *ret_tokens)
{
	struct pollfd pollfd = {.fd = plane_control_fd(rig->plane), .events = POLLIN};
	const uint64_t limit_ns = clock_now_ns() + 2 * DEADLINE_MS * NS_PER_MS;
	struct plane_event event;
	int err;

	r->region = r->op == SSV_OP_FLUSH ? 0 : rig->region;
	r->user_data = ++rig->requests;
	r->deadline_ms = DEADLINE_MS;
	err = plane_submit(rig->plane, rig->session, r, clock_now_ns(), NULL);
	while (!err) {
		if (plane_poll(rig->plane, &event, 1)) {
			*ret_tokens = event.completion.tokens;
			return event.completion.status;
		}
		if (clock_now_ns() > limit_ns)
			return -ETIMEDOUT;
		if (!plane_step(rig->plane, clock_now_ns()))
			poll(&pollfd, 1, sleep_ms(plane_next_ns(rig->plane)));
	}
	return err;
}

static int store_chunks(struct plan_rig *rig, const struct chunk_shape *shape)
{
	uint8_t *elements = cli_alloc(CHUNK_BLOCKS * BLOCK_BYTES);
	uint32_t tokens;
	int err = 0;

	for (uint32_t c = 0; c < rig->options.chunks && !err; c++) {
		struct ssv_request store = {.op = SSV_OP_STORE,
					    .tier = rig->options.tier,
					    .codec = SSV_CODEC_DEFLATE,
					    .keys = &rig->keys[c],
					    .keys_count = 1,
					    .blocks = rig->blocks + (size_t)c * CHUNK_BLOCKS,
					    .blocks_count = CHUNK_BLOCKS,
					    .position = c * SSV_CHUNK_TOKENS};
		struct ssv_request flush = {.op = SSV_OP_FLUSH};
		const uint64_t tensor = rig->memory_bytes / shape_tensors(shape);

		for (uint32_t t = 0; t < shape_tensors(shape); t++) {
			made_up_tensor(shape, t, c, elements);
			memcpy(rig->memory + t * tensor + c * CHUNK_BLOCKS * BLOCK_BYTES, elements,
			       CHUNK_BLOCKS * BLOCK_BYTES);
		}
		err = request(rig, &store, &tokens);
		if (!err)
			err = request(rig, &flush, &tokens);
	}
	free(elements);
	return err;
}

/* ---- opening -------------------------------------------------------------------------------- */

static int plane_open(struct plan_rig *rig, char *error)
{
	const struct plane_config config = {
	    .store_uri = "memory:bench-plan",
	    .arena_bytes = 512 * MIB,
	    .workers_count = 1,
	    .sessions_max = 1,
	    .regions_max = 1,
	    .jobs_max = 8,
	    .lanes = LANES,
	    .captures_max = 2,
	    .channels_max = 2 * HEADS * DIM, /* staging for eight tensors */
	    .fetch_deadline_ms = DEADLINE_MS,
	    .store_deadline_ms = DEADLINE_MS,
	    .lookup_deadline_ms = DEADLINE_MS,
	    .tier = rig->options.tier,
	    .codec = SSV_CODEC_DEFLATE,
	    .pipeline = PLANE_STAGES,
	    .stations = {1, 1, 1},
	    .inflate = rig->options.inflate,
	    .clock_ns = clock_now_ns,
	    .trace_off = 1,
	};
	int err = plane_create(&config, &rig->plane, error);

	if (!err)
		err = plane_session_add(rig->plane, "bench plan", 0, 1, getpid(), &rig->session,
					error);
	return err;
}

static void layout_fill(const struct plan_rig *rig, const struct chunk_shape *shape,
			struct ssv_tensor *tensors, struct ssv_layout *layout)
{
	const uint32_t count = shape_tensors(shape);

	*layout = (struct ssv_layout){.struct_size = sizeof(*layout),
				      .dtype = shape->dtype,
				      .parts_count = 2,
				      .layers_count = shape->layers_count,
				      .layers_total = shape->layers_total,
				      .ranks_count = 1,
				      .block_tokens = BLOCK_TOKENS,
				      .blocks_count = rig->options.chunks * CHUNK_BLOCKS,
				      .tensors_count = count,
				      .tensors = tensors};
	for (uint32_t p = 0; p < 2; p++)
		layout->parts[p] = (struct ssv_part){
		    .role = shape->parts[p].role,
		    .heads = HEADS,
		    .dim = DIM,
		    .digits_count = 3,
		    .digits = {
			{.axis = SSV_AXIS_DIM, .extent = DIM, .stride = 1},
			{.axis = SSV_AXIS_HEAD, .extent = HEADS, .stride = DIM},
			{.axis = SSV_AXIS_TOKEN, .extent = BLOCK_TOKENS, .stride = HEADS * DIM}}};
	for (uint32_t t = 0; t < count; t++)
		tensors[t] = (struct ssv_tensor){.layer = (uint16_t)(t / 2),
						 .part = (uint16_t)(t % 2),
						 .offset = rig->memory_bytes / count * t,
						 .block_stride = BLOCK_BYTES};
}

/* By address, so that there is something to deliver; as a memfd where that is not allowed. */
static int region_open(struct plan_rig *rig, const struct chunk_shape *shape, char *error)
{
	struct ssv_tensor *tensors = cli_alloc(shape_tensors(shape) * sizeof(*tensors));
	struct ssv_region offer = {.struct_size = sizeof(offer), .memory = SSV_MEMORY_ADDRESS};
	struct ssv_layout layout;
	int err;

	rig->fd = memfd_create("bench-plan", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	rig->memory_bytes = BLOCK_BYTES * CHUNK_BLOCKS * rig->options.chunks * shape_tensors(shape);
	if (rig->fd < 0 || ftruncate(rig->fd, (off_t)rig->memory_bytes) ||
	    fcntl(rig->fd, F_ADD_SEALS, F_SEAL_SHRINK)) {
		free(tensors);
		return -ENOMEM;
	}
	rig->memory = mmap(NULL, rig->memory_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, rig->fd, 0);
	if (rig->memory == MAP_FAILED) {
		rig->memory = NULL;
		free(tensors);
		return -ENOMEM;
	}
	layout_fill(rig, shape, tensors, &layout);
	offer.fd = -1;
	offer.address = (uintptr_t)rig->memory;
	offer.bytes = rig->memory_bytes;
	err = plane_region_add(rig->plane, rig->session, &offer, &layout, NULL, NULL, &rig->region,
			       error);
	if (err == -EPERM || err == -ENOTSUP) {
		offer.memory = SSV_MEMORY_MEMFD;
		offer.fd = rig->fd;
		offer.address = 0;
		err = plane_region_add(rig->plane, rig->session, &offer, &layout, NULL, NULL,
				       &rig->region, error);
	}
	rig->memory_kind = offer.memory;
	free(tensors);
	return err;
}

static int threads_start(struct plan_rig *rig)
{
	int err = 0;

	for (uint32_t i = 0; i < PLAN_STAGES && !err; i++) {
		rig->threads[i].rig = rig;
		rig->threads[i].index = i;
		err = -pthread_create(&rig->threads[i].thread, NULL, work, &rig->threads[i]);
		rig->threads[i].started = !err;
	}
	return err;
}

int plan_rig_open(const struct plan_options *options, struct plan_rig **ret_rig, char *error)
{
	struct plan_rig *rig = cli_alloc(sizeof(*rig));
	struct chunk_shape shape = {.dtype = SSV_DTYPE_BF16,
				    .parts_count = 2,
				    .tokens = SSV_CHUNK_TOKENS,
				    .layers_count = (uint16_t)options->layers,
				    .layers_total = (uint16_t)options->layers,
				    .ranks_count = 1};
	int err;

	memset(rig, 0, sizeof(*rig));
	rig->options = *options;
	rig->fd = -1;
	for (uint32_t p = 0; p < 2; p++)
		shape.parts[p] = (struct chunk_part){
		    .role = p ? SSV_ROLE_V : SSV_ROLE_K, .heads = HEADS, .dim = DIM};
	rig->keys = cli_alloc(options->chunks * sizeof(*rig->keys));
	rig->blocks = cli_alloc(options->chunks * CHUNK_BLOCKS * sizeof(*rig->blocks));
	for (uint32_t i = 0; i < options->chunks; i++)
		memset(&rig->keys[i], (int)i + 1, sizeof(rig->keys[i]));
	for (uint32_t i = 0; i < options->chunks * CHUNK_BLOCKS; i++)
		rig->blocks[i] = i;
	err = plane_open(rig, error);
	if (!err)
		err = region_open(rig, &shape, error);
	if (!err)
		err = threads_start(rig);
	if (!err)
		err = store_chunks(rig, &shape);
	if (err) {
		plan_rig_close(rig);
		return err;
	}
	*ret_rig = rig;
	return 0;
}

void plan_rig_close(struct plan_rig *rig)
{
	if (!rig)
		return;
	/* Pairs with the acquire in work(); threads look at least every 100 ms. */
	atomic_store_explicit(&rig->stop, 1, memory_order_release);
	for (uint32_t i = 0; i < PLAN_STAGES; i++)
		if (rig->threads[i].started)
			pthread_join(rig->threads[i].thread, NULL);
	plane_destroy(rig->plane);
	if (rig->memory)
		munmap(rig->memory, rig->memory_bytes);
	if (rig->fd >= 0)
		close(rig->fd);
	free(rig->blocks);
	free(rig->keys);
	free(rig);
}

/* ---- runs ----------------------------------------------------------------------------------- */

int plan_rig_run(struct plan_rig *rig, const uint32_t core[PLAN_STAGES], uint32_t times,
		 struct plan_run *ret_run)
{
	const double bytes = (double)rig->memory_bytes * times;
	uint64_t before[PLAN_STAGES], begun_ns;
	uint32_t tokens;
	int err = 0;

	for (uint32_t i = 0; i < PLAN_STAGES; i++) {
		cpu_set_t set;

		CPU_ZERO(&set);
		CPU_SET(core[i], &set);
		err = -pthread_setaffinity_np(rig->threads[i].thread, sizeof(set), &set);
		if (err)
			return err;
		before[i] = thread_cpu_ns(&rig->threads[i]);
	}
	plane_stat_reset(rig->plane, clock_now_ns());
	begun_ns = clock_now_ns();
	for (uint32_t i = 0; i < times && !err; i++) {
		struct ssv_request fetch = {.op = SSV_OP_FETCH,
					    .keys = rig->keys,
					    .keys_count = rig->options.chunks,
					    .blocks = rig->blocks,
					    .blocks_count = rig->options.chunks * CHUNK_BLOCKS};

		err = request(rig, &fetch, &tokens);
		if (!err && tokens != rig->options.chunks * SSV_CHUNK_TOKENS)
			err = -EIO;
	}
	ret_run->wall_ns = (double)(clock_now_ns() - begun_ns) / bytes;
	for (uint32_t i = 0; i < PLAN_STAGES; i++)
		ret_run->cpu_ns[i] = (double)(thread_cpu_ns(&rig->threads[i]) - before[i]) / bytes;
	return err;
}

static double number_at(const cJSON *object, const char *a, const char *b)
{
	const cJSON *item = cJSON_GetObjectItem(cJSON_GetObjectItem(object, a), b);

	return item ? item->valuedouble : 0;
}

void plan_rig_bytes(struct plan_rig *rig, struct plan_bytes *ret_bytes)
{
	cJSON *state = cli_object();
	const cJSON *path, *worker;
	double delivered;

	(void)plane_stat(rig->plane, clock_now_ns(), state);
	path = cJSON_GetObjectItem(state, "path");
	worker = cJSON_GetArrayItem(cJSON_GetObjectItem(state, "workers"), 0);
	delivered = number_at(path, "bytes", "delivered");
	ret_bytes->wire = number_at(path, "bytes", "wire") / delivered;
	ret_bytes->inflated = number_at(path, "bytes", "inflated") / delivered;
	ret_bytes->decoded = number_at(path, "bytes", "decoded") / delivered;
	ret_bytes->moved = number_at(path, "bytes", "moved") / delivered;
	ret_bytes->wire_most =
	    (double)MIB * cJSON_GetObjectItem(worker, "wire_slots_high")->valuedouble;
	ret_bytes->inflated_most =
	    64.0 * KIB * cJSON_GetObjectItem(worker, "inflated_slots_high")->valuedouble;
	ret_bytes->staged_most =
	    64.0 * KIB * cJSON_GetObjectItem(worker, "stage_slots_high")->valuedouble;
	cJSON_Delete(state);
}

const char *plan_rig_way(const struct plan_rig *rig)
{
	return rig->memory_kind == SSV_MEMORY_ADDRESS ? "cma" : "memory";
}
