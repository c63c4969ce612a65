/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_plan.c - `shadowserve bench plan`: what each stage of a fetch costs here per byte of KV,
 * and which cores each should get.
 *
 * A placement is a partition of the stages: those of one part share its cores. The throughput of a
 * placement is that of its busiest core. Proposed is the placement whose busiest core is predicted
 * to be idlest, from one profiling run; --search runs every partition on the cores here and says
 * how far the proposal is from the best that was found.
 */
#include <errno.h>
#include <sched.h>
#include <string.h>

#include "base/log.h"
#include "cli.h"
#include "codec/codec.h"
#include "plan_rig.h"

#define ROUNDS_MAX     101u
#define CORES_MAX      64u
#define PARTITIONS_MAX 15u /* of four stages */

static const char *option_inflate = "cpu", *option_tier = "standard";
static uint64_t option_cores, option_search, option_layers = 8, option_chunks = 4;

static const struct arg plan_args[] = {
    {"cores", "N", "to place stages on (default: those of this process)", ARG_NUMBER, &option_cores,
     1, CORES_MAX},
    {"inflate", "NAME", "engine: cpu, dpdk, dpdk:DEVICE (default cpu)", ARG_TEXT, &option_inflate,
     0, 0},
    {"tier", "NAME", "of the made-up chunks (default standard)", ARG_TEXT, &option_tier, 0, 0},
    {"layers", "N", "of them (default 8)", ARG_NUMBER, &option_layers, 1, 128},
    {"chunks", "N", "fetched at once (default 4)", ARG_NUMBER, &option_chunks, 1, 64},
    {"search", "ROUNDS", "run every split over the cores here, so many times (default: none)",
     ARG_NUMBER, &option_search, 1, ROUNDS_MAX},
    ARG_END,
};

static const char *const stage_names[PLAN_STAGES] = {"receive", "inflate", "dequantise", "deliver"};

/* Which part each stage is in; parts are numbered in the order of their first stage. */
struct placement {
	uint32_t part[PLAN_STAGES], parts;
	uint32_t cores[PLAN_STAGES]; /* of each part */
	double load;                 /* of the busiest core, ns per byte */
};

/* ---- placements ----------------------------------------------------------------------------- */

/* The next partition with at most parts_max parts; 0: there is none. Begin with all in one. */
static int partition_next(struct placement *p, uint32_t parts_max)
{
	for (uint32_t i = PLAN_STAGES; i-- > 1;) {
		uint32_t most = 0;

		for (uint32_t k = 0; k < i; k++)
			most = (uint32_t)u64_max(most, p->part[k]);
		if (p->part[i] > most || p->part[i] + 1 >= parts_max)
			continue;
		p->part[i]++;
		memset(p->part + i + 1, 0, (PLAN_STAGES - 1 - i) * sizeof(p->part[0]));
		p->parts = 0;
		for (uint32_t k = 0; k < PLAN_STAGES; k++)
			p->parts = (uint32_t)u64_max(p->parts, p->part[k] + 1);
		return 1;
	}
	return 0;
}

static void part_loads(const struct placement *p, const double cost[PLAN_STAGES],
		       double load[PLAN_STAGES])
{
	memset(load, 0, PLAN_STAGES * sizeof(load[0]));
	for (uint32_t i = 0; i < PLAN_STAGES; i++)
		load[p->part[i]] += cost[i];
}

static uint32_t part_stages(const struct placement *p, uint32_t part)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < PLAN_STAGES; i++)
		n += p->part[i] == part;
	return n;
}

/*
 * Give each part a core, and each further core to the stage whose cores are busiest, as long as
 * that is one alone: stages that share a core have that one only. (Threads of every stage on every
 * core would be balanced best, and is what one-pass does with fewer of them.)
 */
static void cores_share(struct placement *p, const double cost[PLAN_STAGES], uint32_t cores)
{
	double load[PLAN_STAGES];

	part_loads(p, cost, load);
	for (uint32_t i = 0; i < PLAN_STAGES; i++)
		p->cores[i] = i < p->parts;
	for (uint32_t left = cores - p->parts;; left--) {
		uint32_t busiest = 0;

		for (uint32_t i = 1; i < p->parts; i++)
			if (load[i] / p->cores[i] > load[busiest] / p->cores[busiest])
				busiest = i;
		p->load = load[busiest] / p->cores[busiest];
		if (!left || part_stages(p, busiest) > 1)
			return;
		p->cores[busiest]++;
	}
}

static struct placement propose(const double cost[PLAN_STAGES], uint32_t cores)
{
	struct placement p = {.parts = 1}, best;

	cores_share(&p, cost, cores);
	best = p;
	while (partition_next(&p, (uint32_t)u64_min(cores, PLAN_STAGES))) {
		cores_share(&p, cost, cores);
		if (p.load < best.load)
			best = p;
	}
	return best;
}

/* ---- measuring ------------------------------------------------------------------------------ */

static uint32_t cores_here(uint32_t cores[CORES_MAX])
{
	cpu_set_t set;
	uint32_t n = 0;

	CPU_ZERO(&set);
	(void)sched_getaffinity(0, sizeof(set), &set);
	for (uint32_t i = 0; i < CPU_SETSIZE && n < CORES_MAX; i++)
		if (CPU_ISSET(i, &set))
			cores[n++] = i;
	return n;
}

static int run_placement(struct plan_rig *rig, const struct placement *p, const uint32_t *cores,
			 struct plan_run *ret_run)
{
	uint32_t core[PLAN_STAGES];

	for (uint32_t i = 0; i < PLAN_STAGES; i++)
		core[i] = cores[p->part[i]];
	return plan_rig_run(rig, core, 2, ret_run);
}

/* The busiest core of a run, as its threads' processor time says. */
static double run_load(const struct placement *p, const struct plan_run *run)
{
	double load[PLAN_STAGES], most = 0;

	part_loads(p, run->cpu_ns, load);
	for (uint32_t i = 0; i < p->parts; i++)
		most = load[i] > most ? load[i] : most;
	return most;
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

static double median(double *values, uint32_t count)
{
	qsort(values, count, sizeof(*values), compare);
	return values[count / 2];
}

/* Five runs with all stages on one core; medians. */
static int profile(struct plan_rig *rig, uint32_t core, double cost[PLAN_STAGES])
{
	enum { RUNS = 5 };
	const uint32_t one[PLAN_STAGES] = {core, core, core, core};
	double values[PLAN_STAGES][RUNS];
	struct plan_run run;
	int err = plan_rig_run(rig, one, 1, &run); /* pages are mapped */

	for (uint32_t r = 0; r < RUNS && !err; r++) {
		err = plan_rig_run(rig, one, 1, &run);
		for (uint32_t i = 0; i < PLAN_STAGES; i++)
			values[i][r] = run.cpu_ns[i];
	}
	for (uint32_t i = 0; i < PLAN_STAGES && !err; i++)
		cost[i] = median(values[i], RUNS);
	return err;
}

/* ---- searching ------------------------------------------------------------------------------ */

struct tried {
	struct placement placement;
	double loads[ROUNDS_MAX], walls[ROUNDS_MAX];
	double load, wall; /* medians */
};

struct search {
	struct tried tried[PARTITIONS_MAX];
	uint32_t count, best, proposed;
};

static int search(struct plan_rig *rig, const uint32_t *cores, uint32_t cores_count,
		  const struct placement *proposed, struct search *s)
{
	struct placement p = {.parts = 1};
	struct plan_run run;
	int err = 0;

	do
		s->tried[s->count++].placement = p;
	while (partition_next(&p, (uint32_t)u64_min(cores_count, PLAN_STAGES)));
	for (uint32_t r = 0; r < option_search && !err; r++) {
		cli_progress("searching", r, option_search);
		for (uint32_t i = 0; i < s->count && !err; i++) {
			struct tried *t = &s->tried[i];

			err = run_placement(rig, &t->placement, cores, &run);
			t->loads[r] = run_load(&t->placement, &run);
			t->walls[r] = run.wall_ns;
		}
	}
	cli_progress("searching", option_search, option_search);
	for (uint32_t i = 0; i < s->count; i++) {
		struct tried *t = &s->tried[i];

		t->load = median(t->loads, (uint32_t)option_search);
		t->wall = median(t->walls, (uint32_t)option_search);
		if (t->load < s->tried[s->best].load)
			s->best = i;
		if (!memcmp(t->placement.part, proposed->part, sizeof(proposed->part)))
			s->proposed = i;
	}
	return err;
}

/* ---- the answer ----------------------------------------------------------------------------- */

/* "receive+deliver | inflate | dequantise"; with cores: "... (2)". */
static void placement_text(const struct placement *p, int with_cores, char *text, size_t bytes)
{
	size_t n = 0;

	text[0] = 0;
	for (uint32_t part = 0; part < p->parts && n < bytes; part++) {
		int first = 1;

		n += (size_t)snprintf(text + n, bytes - n, "%s", part ? " | " : "");
		for (uint32_t i = 0; i < PLAN_STAGES && n < bytes; i++) {
			if (p->part[i] != part)
				continue;
			n += (size_t)snprintf(text + n, bytes - n, "%s%s", first ? "" : "+",
					      stage_names[i]);
			first = 0;
		}
		if (with_cores && n < bytes)
			n += (size_t)snprintf(text + n, bytes - n, " on %u", p->cores[part]);
	}
}

/*
 * Bytes that a card's DRAM moves per byte of KV, from the counted ones (docs/inflate.md). Separate
 * buffers: what is received, inflated and dequantised is each written and read once. Ours: what is
 * received as well; what is inflated only where an engine does not write into the caches; what is
 * dequantised is staged in memory that stays in them.
 */
struct dram {
	double separate, ours, ours_cached;
};

static struct dram dram_of(const struct plan_bytes *b)
{
	return (struct dram){.separate = 2 * (b->wire + b->inflated + b->decoded),
			     .ours = 2 * (b->wire + b->inflated),
			     .ours_cached = 2 * b->wire};
}

static void add_bytes(cJSON *object, const struct plan_bytes *b)
{
	const struct dram dram = dram_of(b);
	cJSON *bytes = cli_object(), *model = cli_object();

	cli_add_number(bytes, "wire", b->wire);
	cli_add_number(bytes, "inflated", b->inflated);
	cli_add_number(bytes, "dequantised", b->decoded);
	cli_add_number(bytes, "moved", b->moved);
	cli_add(object, "bytes_per_kv_byte", bytes);
	cli_add_number(object, "wire_bytes_in_use_most", b->wire_most);
	cli_add_number(object, "inflated_bytes_in_use_most", b->inflated_most);
	cli_add_number(object, "staged_bytes_in_use_most", b->staged_most);
	cli_add_number(model, "separate_buffers", dram.separate);
	cli_add_number(model, "ours_engine_writes_memory", dram.ours);
	cli_add_number(model, "ours_engine_writes_caches", dram.ours_cached);
	cli_add(object, "dram_bytes_per_kv_byte", model);
}

static void print_bytes(const struct plan_bytes *b)
{
	const struct dram dram = dram_of(b);
	char inflated[32], staged[32];

	printf(
	    "bytes per byte of KV: %.3f on the wire, %.3f inflated, %.3f dequantised; at most %s "
	    "inflated and %s staged at once\n",
	    b->wire, b->inflated, b->decoded, cli_bytes(b->inflated_most, inflated),
	    cli_bytes(b->staged_most, staged));
	printf("  DRAM of a card: %.2f with separate buffers; %.2f here (%.0f %%), %.2f when the "
	       "engine writes into caches\n",
	       dram.separate, dram.ours, 100 * dram.ours / dram.separate, dram.ours_cached);
}

static int answer_json(const double cost[PLAN_STAGES], const struct placement *p, uint32_t cores,
		       const struct search *s, const struct plan_rig *rig,
		       const struct plan_bytes *bytes)
{
	cJSON *object = cli_object(), *costs = cli_object(), *splits = cli_array();
	char text[160];

	placement_text(p, 1, text, sizeof(text));
	cli_add_text(object, "inflate", option_inflate);
	cli_add_text(object, "tier", option_tier);
	cli_add_text(object, "way", plan_rig_way(rig));
	for (uint32_t i = 0; i < PLAN_STAGES; i++)
		cli_add_number(costs, stage_names[i], cost[i]);
	cli_add(object, "ns_per_kv_byte", costs);
	add_bytes(object, bytes);
	cli_add_number(object, "cores", cores);
	cli_add_text(object, "proposal", text);
	cli_add_number(object, "predicted_ns_per_kv_byte", p->load);
	for (uint32_t i = 0; i < s->count; i++) {
		const struct tried *t = &s->tried[i];
		cJSON *split = cli_object(), *loads = cli_array();

		placement_text(&t->placement, 0, text, sizeof(text));
		cli_add_text(split, "split", text);
		cli_add_number(split, "busiest_core_ns_per_kv_byte", t->load);
		cli_add_number(split, "wall_ns_per_kv_byte", t->wall);
		for (uint32_t r = 0; r < option_search; r++)
			cJSON_AddItemToArray(loads, cJSON_CreateNumber(t->loads[r]));
		cli_add(split, "rounds", loads);
		cJSON_AddItemToArray(splits, split);
	}
	if (s->count) {
		cli_add(object, "splits", splits);
		placement_text(&s->tried[s->best].placement, 0, text, sizeof(text));
		cli_add_text(object, "best", text);
		cli_add_number(object, "proposal_against_best",
			       s->tried[s->proposed].load / s->tried[s->best].load);
	} else {
		cJSON_Delete(splits);
	}
	return cli_print_json(object, EXIT_OK);
}

static int answer(const double cost[PLAN_STAGES], const struct placement *p, uint32_t cores,
		  const struct search *s, struct plan_rig *rig)
{
	struct plan_bytes bytes;
	char text[160];
	double all = 0;

	plan_rig_bytes(rig, &bytes);
	if (option_json)
		return answer_json(cost, p, cores, s, rig, &bytes);
	for (uint32_t i = 0; i < PLAN_STAGES; i++)
		all += cost[i];
	printf("processor time per byte of KV delivered (%s, deflate, inflate by %s, way %s)\n",
	       option_tier, option_inflate, plan_rig_way(rig));
	for (uint32_t i = 0; i < PLAN_STAGES; i++)
		printf("  %-11s %7.3f ns  %5.1f %%\n", stage_names[i], cost[i],
		       100 * cost[i] / all);
	print_bytes(&bytes);
	placement_text(p, 1, text, sizeof(text));
	printf("%u core%s: %s\n  predicted: %.2f GB/s of KV, %.0f %% of all cores in use\n", cores,
	       cores == 1 ? "" : "s", text, 1 / p->load, 100 * all / (p->load * cores));
	printf("  one-pass workers on all of them: at most %.2f GB/s\n", cores / all);
	for (uint32_t i = 0; i < s->count; i++) {
		placement_text(&s->tried[i].placement, 0, text, sizeof(text));
		printf("  %-44s %6.3f ns busiest core, %6.3f ns wall%s%s\n", text, s->tried[i].load,
		       s->tried[i].wall, i == s->best ? "  best" : "",
		       i == s->proposed ? "  proposed" : "");
	}
	return EXIT_OK;
}

static int run_plan(int argc, char **argv)
{
	const struct plan_options options = {.inflate = option_inflate,
					     .tier = tier_parse(option_tier),
					     .layers = (uint32_t)option_layers,
					     .chunks = (uint32_t)option_chunks};
	uint32_t here[CORES_MAX], here_count = cores_here(here);
	const uint32_t cores = option_cores ? (uint32_t)option_cores : here_count;
	struct search *s = cli_alloc(sizeof(*s));
	char error[SSV_ERROR_TEXT_MAX] = "";
	double cost[PLAN_STAGES];
	struct placement proposed;
	struct plan_rig *rig;
	int err, exit_code;

	(void)argc;
	(void)argv;
	memset(s, 0, sizeof(*s));
	log_set_level(LOG_LEVEL_ERROR);
	if (!options.tier)
		return cli_fail(EXIT_USAGE, "bench plan: --tier %s: no such tier", option_tier);
	err = plan_rig_open(&options, &rig, error);
	if (err)
		return cli_fail(EXIT_BROKEN, "bench plan: %s", error[0] ? error : strerror(-err));
	err = profile(rig, here[here_count - 1], cost);
	if (!err && option_search) {
		/* What is searched here is proposed for here. */
		proposed = propose(cost, here_count);
		err = search(rig, here, here_count, &proposed, s);
	}
	if (err) {
		exit_code = cli_fail(EXIT_BROKEN, "bench plan: fetching: %s", strerror(-err));
	} else {
		proposed = propose(cost, cores);
		exit_code = answer(cost, &proposed, cores, s, rig);
	}
	plan_rig_close(rig);
	free(s);
	return exit_code;
}

const struct command bench_plan_command = {
    .name = "bench plan",
    .operands = "",
    .summary = "what each stage of a fetch costs here, and which cores each should get",
    .text = "Fetch made-up deflate chunks through the stages (pipeline: stages), one thread each,\n"
	    "all on one core; take each thread's processor time per byte of KV, and propose which\n"
	    "stages share cores and how many each gets. Needs no daemon.\n\n"
	    "  shadowserve bench plan\n"
	    "  shadowserve bench plan --cores 8 --inflate dpdk\n"
	    "  shadowserve bench plan --search 11     # every split over the cores here",
    .args = plan_args,
    .run = run_plan,
};
