# SPDX-License-Identifier: Apache-2.0
"""Counters of the connector, for vLLM's log line and its Prometheus endpoint.

Both sides count since their last report; vLLM adds the reports up. Every counter is listed once,
in COUNTERS, with its help text.
"""

from __future__ import annotations

from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.metrics import (
    KVConnectorPromMetrics,
    KVConnectorStats,
)

COUNTERS = {
    "requests": "Requests seen by the connector",
    "uncacheable": "Requests that cannot be keyed by content",
    "lookups": "Lookups answered",
    "lookups_late": "Lookups not answered in time",
    "prompt_tokens": "Prompt tokens looked up",
    "stored_hit_tokens": "Prompt tokens found in the store",
    "declined": "Hits declined because computing was expected to be faster",
    "declined_tokens": "Tokens of declined hits",
    "loads": "Loads ended, by tensor-parallel rank",
    "loads_short": "Loads that brought fewer tokens than asked for",
    "loads_silent": "Loads given up because the daemon was silent",
    "loaded_tokens": "Tokens loaded, by rank",
    "wire_bytes": "Compressed bytes received from the store",
    "kv_bytes": "Bytes of KV written into the engine's memory",
    "staged_bytes": "Bytes of KV that a kernel moved between staging memory and blocks of the GPU",
    "stores": "Chunks captured for the store, by rank",
    "stores_dropped": "Chunks not stored, because of overload or a lost block",
}
LOAD_MS_KEPT = 512
LOAD_MS_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


class ShadowServeStats(KVConnectorStats):
    """data: counters by name, and "load_ms", the times of loads."""

    data: dict[str, Any]

    def count(self, name: str, amount: int = 1) -> None:
        self.data[name] = self.data.get(name, 0) + amount

    def time_load(self, milliseconds: float) -> None:
        times = self.data.setdefault("load_ms", [])
        if len(times) < LOAD_MS_KEPT:
            times.append(milliseconds)

    def take(self) -> ShadowServeStats | None:
        """What was counted since the last call; None for nothing."""
        if self.is_empty():
            return None
        taken = ShadowServeStats(data=self.data)
        self.data = {}
        return taken

    def reset(self) -> None:
        self.data = {}

    def is_empty(self) -> bool:
        return not self.data

    def aggregate(self, other: KVConnectorStats) -> KVConnectorStats:
        for name, value in other.data.items():
            if name == "load_ms":
                for milliseconds in value:
                    self.time_load(milliseconds)
            else:
                self.count(name, value)
        return self

    def reduce(self) -> dict[str, int | float]:
        summary: dict[str, int | float] = {
            name: value for name, value in self.data.items() if name != "load_ms"
        }
        times = sorted(self.data.get("load_ms", []))
        if times:
            summary["load_ms_median"] = round(times[len(times) // 2], 2)
            summary["load_ms_max"] = round(times[-1], 2)
        if summary.get("wire_bytes"):
            summary["ratio"] = round(summary.get("kv_bytes", 0) / summary["wire_bytes"], 3)
        return summary


class ShadowServePromMetrics(KVConnectorPromMetrics):
    """vllm:shadowserve_<counter>_total, and vllm:shadowserve_load_ms as a histogram."""

    def __init__(
        self,
        vllm_config: Any,
        metric_types: Any,
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> None:
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        self._counters = {}
        for name, text in COUNTERS.items():
            family = self._counter_cls(
                name=f"vllm:shadowserve_{name}", documentation=text, labelnames=labelnames
            )
            self._counters[name] = self._by_engine(family)
        family = self._histogram_cls(
            name="vllm:shadowserve_load_ms",
            documentation="Time of a load in the daemon, milliseconds",
            buckets=LOAD_MS_BUCKETS,
            labelnames=labelnames,
        )
        self._load_ms = self._by_engine(family)

    def _by_engine(self, family: Any) -> dict[int, Any]:
        return {
            engine: family.labels(*values) for engine, values in self.per_engine_labelvalues.items()
        }

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        for name, value in transfer_stats_data.items():
            if name == "load_ms":
                for milliseconds in value:
                    self._load_ms[engine_idx].observe(milliseconds)
            elif name in self._counters:
                self._counters[name][engine_idx].inc(value)
