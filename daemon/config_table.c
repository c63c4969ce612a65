/* SPDX-License-Identifier: Apache-2.0 */
/* config_table.c - what an operator can say to shadowserved: every key with its default and range.
 */
#include <assert.h>

#include "config_keys.h"
#include "plane/plane.h"

#define AT(member) offsetof(struct config, member)

const struct key_row config_keys[] = {
    {"socket", KEY_TEXT, AT(socket), NULL, 0, 0,
     "Unix socket to serve; mode 0600 [$SHADOWSERVE_SOCKET]"},
    {"listen_tls", KEY_PATH, AT(listen_tls), "", 0, 0,
     "host:port for relays of other machines, TCP with mutual TLS; empty: none"},
    {"tls_cert", KEY_PATH, AT(tls_cert), "", 0, 0, "this daemon's certificate and chain, PEM"},
    {"tls_key", KEY_PATH, AT(tls_key), "", 0, 0, "its key, PEM, without a password"},
    {"tls_ca", KEY_PATH, AT(tls_ca), "", 0, 0, "whose certificates relays must have, PEM"},
    {"tls_names", KEY_PATH, AT(tls_names), "", 0, 0,
     "names that a relay's certificate may have, with commas; empty: any of tls_ca's"},
    {"store", KEY_STORE, AT(store), NULL, 0, 0, "where chunks live, as a URI"},
    {"arena", KEY_SIZE, AT(arena), "512MiB", 16 * MIB, 1024 * GIB,
     "memory of the data path, allocated at start"},
    {"workers", KEY_COUNT, AT(workers), "0", 0, PLANE_WORKERS_MAX,
     "worker threads; 0: one for each of cores, else 1"},
    {"cores", KEY_CORES, AT(cores), "none", 0, 0, "cores that workers are pinned to"},
    {"control_core", KEY_CORE, AT(control_core), "none", 0, 0,
     "core that the control thread is pinned to"},
    {"spin_us", KEY_COUNT, AT(spin_us), "20", 0, 10000,
     "a worker with a core of its own spins so long before it sleeps, while that pays"},
    {"lanes", KEY_COUNT, AT(lanes), "8", 1, 64, "chunks fetched at once, a worker"},
    {"overlap", KEY_OVERLAP, AT(overlap), "segment", 0, 0,
     "what is decoded while more arrives; chunk and none are for measurements"},
    {"inflate", KEY_INFLATE, AT(inflate), "cpu", 0, 0,
     "who inflates deflate chunks: cpu, dpdk, dpdk:DEVICE (docs/inflate.md)"},
    {"pipeline", KEY_PIPELINE, AT(pipeline), "one-pass", 0, 0,
     "one-pass: a worker does all; stages: workers receive, threads of their own do the rest"},
    {"inflate_cores", KEY_CORES, AT(station_cores[PLANE_STATION_INFLATE]), "none", 0, 0,
     "stages: cores of the inflate threads, one each; none: one thread, not pinned"},
    {"dequantise_cores", KEY_CORES, AT(station_cores[PLANE_STATION_DEQUANTISE]), "none", 0, 0,
     "stages: likewise of those that dequantise"},
    {"deliver_cores", KEY_CORES, AT(station_cores[PLANE_STATION_DELIVER]), "none", 0, 0,
     "stages: likewise of those that deliver what was staged"},
    {"captures", KEY_COUNT, AT(captures), "16", 1, 256,
     "chunks captured and not yet put, a worker; more are dropped"},
    {"fetch_deadline_ms", KEY_COUNT, AT(fetch_deadline_ms), "2000", 1, 600000,
     "for requests that name no deadline"},
    {"store_deadline_ms", KEY_COUNT, AT(store_deadline_ms), "10000", 1, 600000, "for a put"},
    {"lookup_deadline_ms", KEY_COUNT, AT(lookup_deadline_ms), "1000", 1, 600000, "for a lookup"},
    {"drain_timeout_ms", KEY_COUNT, AT(drain_timeout_ms), "5000", 0, 600000,
     "after SIGTERM, for captured chunks to be put"},
    {"tier", KEY_AUTO_TIER, AT(tier), "auto", 0, 0,
     "of chunks stored by requests that name none; auto: standard with a profile, else lossless"},
    {"profiles", KEY_PATH, AT(profiles), "", 0, 0,
     "folder of models' profiles (*.json), read at start; store: the store has them"},
    {"codec", KEY_CODEC, AT(codec), "r16", 0, 0, "lossless back end, likewise"},
    {"trellis", KEY_YES_NO, AT(trellis), "no", 0, 0,
     "fewer bytes at equal KL, encoded slower; with r16, for readers of this version or later"},
    {"min_tier", KEY_ANY_TIER, AT(min_tier), "any", 0, 0,
     "coarsest tier read; coarser chunks are misses"},
    {"verbatim_tokens", KEY_COUNT, AT(verbatim_tokens), "4", 0, 255,
     "leading tokens of a sequence kept exact"},
    {"sessions", KEY_COUNT, AT(sessions), "64", 1, PLANE_SESSIONS_MAX, "connected processes"},
    {"regions", KEY_COUNT, AT(regions), "64", 1, PLANE_REGIONS_MAX, "registered regions"},
    {"requests", KEY_COUNT, AT(requests), "1024", 1, 65536,
     "requests in flight, all sessions together"},
    {"channels", KEY_COUNT, AT(channels), "8192", 64, SSV_CHANNELS_MAX,
     "heads x dim of the largest tensor that can be registered"},
    {"log_level", KEY_LEVEL, AT(log_level), "info", 0, 0, "lines of this level and above"},
    {"log_file", KEY_PATH, AT(log_file), "", 0, 0,
     "appended to; empty: stderr, or a file in the cache folder with --detach"},
    {"trace", KEY_YES_NO, AT(trace), "yes", 0, 0,
     "keep the last events of each worker for `shadowserve trace`"},
    {"rdma_device", KEY_PATH, AT(rdma_device), "", 0, 0,
     "device, device:port or device:port:gid index that regions of RDMA memory are reached by; "
     "empty: the first that is active"},
    {"pin_memory", KEY_YES_NO, AT(pin_memory), "no", 0, 0, "mlock the arena"},
    {"huge_pages", KEY_YES_NO, AT(huge_pages), "no", 0, 0,
     "the arena from reserved huge pages (vm.nr_hugepages); no: transparent ones where there are"},
    {"idle_exit_s", KEY_COUNT, AT(idle_exit_s), "0", 0, 86400,
     "end when there was no session for so long; 0: never"},
};
const uint32_t config_keys_count = ARRAY_COUNT(config_keys);
static_assert(ARRAY_COUNT(config_keys) <= KEYS_MAX, "key_texts holds them");

const struct config_program config_program = {
    .name = "shadowserved",
    .summary = "move KV caches between a store and the memory of LLM engines",
    .example = "shadowserved --store redis://127.0.0.1:6379 --arena 2GiB --cores 2-3",
    .exits = "0 ended as asked, 1 cannot run or left a hanging worker behind,\n"
	     "2 configuration mistake, 3 another daemon serves the socket",
    .notes = "\ntiers promise, about the KL of next-token probabilities, measured on a model by\n"
	     "`shadowserve calibrate` (docs/profile.md) and on average over texts:\n"
	     "  lossless  bit-exact\n"
	     "  high      at most an eighth of an FP8 KV cache's (e4m3, one scale a head)\n"
	     "  standard  no worse than an FP8 KV cache\n"
	     "  compact   no worse than int4 (K per channel, V per token, sink tokens exact)\n"
	     "  tiny      at most four times int4's\n",
    .detaches = 1,
};
