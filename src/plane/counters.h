/* SPDX-License-Identifier: Apache-2.0 */
/*
 * counters.h - everything that the plane counts, by name: of a worker, of its store handle, of
 * control. To add one is one line here; `stat` shows it by itself.
 */
#ifndef SSV_PLANE_COUNTERS_H
#define SSV_PLANE_COUNTERS_H

/* Counters of a worker: X(symbol, name in stat). */
#define WORKER_COUNTERS(X)                            \
	X(FETCHES, "fetches")                         \
	X(FETCH_HITS, "fetch_hits")                   \
	X(FETCH_MISSES, "fetch_misses")               \
	X(FETCH_FAULTS, "fetch_faults")               \
	X(FETCH_ERRORS, "fetch_errors")               \
	X(FETCH_TIMEOUTS, "fetch_timeouts")           \
	X(FETCH_CANCELS, "fetch_cancels")             \
	X(FETCH_RETRIES, "fetch_retries")             \
	X(FETCH_RETURNS, "fetch_returns")             \
	X(FETCH_WIRE_BYTES, "fetch_wire_bytes")       \
	X(FETCH_KV_BYTES, "fetch_kv_bytes")           \
	X(HEALS, "heals")                             \
	X(INFLATES, "inflates")                       \
	X(INFLATES_AGAIN, "inflates_again")           \
	X(LOOKUP_KEYS, "lookup_keys")                 \
	X(LOOKUP_ERRORS, "lookup_errors")             \
	X(STORES, "stores")                           \
	X(STORES_PRESENT, "stores_present")           \
	X(STORES_CAPTURED, "stores_captured")         \
	X(STORES_DROPPED, "stores_dropped")           \
	X(STORES_FAILED, "stores_failed")             \
	X(PUTS, "puts")                               \
	X(PUT_ERRORS, "put_errors")                   \
	X(PUT_WIRE_BYTES, "put_wire_bytes")           \
	X(PUT_KV_BYTES, "put_kv_bytes")               \
	X(FINER_TENSORS, "finer_tensors")             \
	X(STEPS, "steps")                             \
	X(IDLE_STEPS, "idle_steps")                   \
	X(SPINS_PAID, "spins_paid")                   \
	X(SPINS_IN_VAIN, "spins_in_vain")             \
	X(ALLOCATIONS, "allocations")                 \
	X(WIRE_SLOTS_HIGH, "wire_slots_high")         \
	X(CAPTURE_SLOTS_HIGH, "capture_slots_high")   \
	X(PUT_SLOTS_HIGH, "put_slots_high")           \
	X(STAGE_SLOTS_HIGH, "stage_slots_high")       \
	X(INFLATED_SLOTS_HIGH, "inflated_slots_high") \
	X(WIRE_SLOTS_FREE, "wire_slots_free")         \
	X(CAPTURE_SLOTS_FREE, "capture_slots_free")   \
	X(PUT_SLOTS_FREE, "put_slots_free")           \
	X(STAGE_SLOTS_FREE, "stage_slots_free")       \
	X(INFLATED_SLOTS_FREE, "inflated_slots_free") \
	X(LANES_BUSY, "lanes_busy")                   \
	X(CAPTURES_BUSY, "captures_busy")

enum worker_counter {
#define WORKER_COUNTER_ENUM(symbol, name) COUNTER_##symbol,
	WORKER_COUNTERS(WORKER_COUNTER_ENUM)
#undef WORKER_COUNTER_ENUM
	    COUNTERS_COUNT
};

/* The fields of struct store_stats that are shown. */
#define STORE_COUNTERS(X) \
	X(gets)           \
	X(hits)           \
	X(puts)           \
	X(exists)         \
	X(deletes)        \
	X(errors)         \
	X(timeouts)       \
	X(reconnects)     \
	X(evictions)      \
	X(bytes_in)       \
	X(bytes_out)      \
	X(bytes_used)     \
	X(bytes_limit)    \
	X(connected)      \
	X(redirects)      \
	X(nodes)          \
	X(nodes_connected)

enum store_counter {
#define STORE_COUNTER_ENUM(field) STORE_COUNTER_##field,
	STORE_COUNTERS(STORE_COUNTER_ENUM)
#undef STORE_COUNTER_ENUM
	    STORE_COUNTERS_COUNT
};

/* Control's own counters: X(symbol, name in stat). */
#define PLANE_COUNTERS(X)                  \
	X(LOOKUPS, "lookups")              \
	X(LOOKUPS_CUT, "lookups_cut")      \
	X(FETCHES, "fetch_requests")       \
	X(FETCHES_FULL, "fetch_complete")  \
	X(FETCHES_SHORT, "fetch_short")    \
	X(FETCH_TOKENS, "fetch_tokens")    \
	X(STORES, "store_requests")        \
	X(STORES_DROPPED, "store_dropped") \
	X(STORE_TOKENS, "store_tokens")    \
	X(CANCELS, "cancels")              \
	X(FLUSHES, "flushes")              \
	X(DEADLINES, "deadlines")          \
	X(REFUSED, "refused")              \
	X(STORES_FINER, "stores_finer")    \
	X(REGIONS_REFUSED, "regions_refused")

enum plane_counter {
#define PLANE_COUNTER_ENUM(symbol, name) PLANE_##symbol,
	PLANE_COUNTERS(PLANE_COUNTER_ENUM)
#undef PLANE_COUNTER_ENUM
	    PLANE_COUNTERS_COUNT
};

#endif
