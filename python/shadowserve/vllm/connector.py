# SPDX-License-Identifier: Apache-2.0
"""ShadowServeConnector: vLLM's calls, handed to the side that answers them.

vLLM makes two instances, one in its scheduler and one in each worker. Neither decides anything
here. An engine that cannot be served is told so in one sentence, and both sides then do nothing:
the engine runs on without cache.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorTransferResults,
    KVConnectorWorkerMetadata,
    SupportsHMA,
)
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import (
    KVConnectorPromMetrics,
    KVConnectorStats,
)
from vllm.logger import init_logger
from vllm.platforms import current_platform

from shadowserve.daemon import find_or_start
from shadowserve.layout import LayoutError
from shadowserve.options import parse_options
from shadowserve.vllm.messages import Orders, Reports
from shadowserve.vllm.regions import CacheUpdate
from shadowserve.vllm.scheduler import Scheduler
from shadowserve.vllm.stats import ShadowServePromMetrics, ShadowServeStats
from shadowserve.vllm.support import NotServed, served
from shadowserve.vllm.worker import Worker

logger = init_logger("vllm.shadowserve")


class ShadowServeConnector(KVConnectorBase_V1, SupportsHMA):
    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        # A failed load is computed, never an error of the request. vLLM reads this right after.
        vllm_config.kv_transfer_config.kv_load_failure_policy = "recompute"
        options = parse_options(vllm_config.kv_transfer_config.kv_connector_extra_config)
        self._scheduler: Scheduler | None = None
        self._worker: Worker | None = None
        try:
            _check_platform()
            what = served(vllm_config, kv_cache_config)
        except (NotServed, ImportError) as reason:
            if role == KVConnectorRole.SCHEDULER:
                logger.warning("ShadowServe: %s; the engine runs on without cache.", reason)
            return

        def socket() -> str:
            return find_or_start(options)

        if role == KVConnectorRole.SCHEDULER:
            self._scheduler = Scheduler(what, options, socket, logger)
            self._scheduler.connect()
        else:
            self._worker = Worker(what, options, _tensor_parallel_rank(), socket, logger)

    @property
    def requires_kv_delivery(self) -> bool:
        return False  # a cache: what is not stored is a later miss

    @classmethod
    def get_required_kvcache_layout(cls, vllm_config: Any) -> str | None:
        # On GPUs, every block one run over all layers, so that copy engines can bring it. A backend
        # that cannot do so keeps its own, and KV goes through staging. CPU attention has a layout
        # of its own.
        return None if current_platform.is_cpu() else "BLNHC"

    # ---- workers ---------------------------------------------------------------------------------

    def get_mem_pool_context(self) -> AbstractContextManager[Any] | None:
        # On GPUs it would take the place of the pool of vLLM's sleep mode.
        return self._worker.allocation() if self._worker and current_platform.is_cpu() else None

    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:
        if self._worker is None:
            return
        try:
            if current_platform.is_cpu():
                self._worker.register(kv_caches, isa=_attention_isa(self._vllm_config, kv_caches))
            else:
                self._worker.register(kv_caches, update=_cache_update(self._vllm_config, kv_caches))
        except (NotServed, LayoutError) as reason:
            logger.warning("ShadowServe: %s; the engine runs on without cache.", reason)
            self._worker.disable()

    def handle_preemptions(self, kv_connector_metadata: KVConnectorMetadata) -> None:
        # The first call of a step: what is ordered here runs while the step computes.
        if self._worker is not None:
            assert isinstance(kv_connector_metadata, Orders)
            self._worker.begin(kv_connector_metadata)

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        pass

    def wait_for_layer_load(self, layer_name: str) -> None:
        pass

    def save_kv_layer(
        self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any
    ) -> None:
        pass

    def wait_for_save(self) -> None:
        pass

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        if self._worker is None:
            return KVConnectorTransferResults()
        results = self._worker.finish(finished_req_ids)
        return KVConnectorTransferResults(
            finished_recving=results.received, failed_recving=results.failed
        )

    def get_block_ids_with_load_errors(self) -> set[int]:
        return self._worker.bad_blocks() if self._worker else set()

    def build_connector_worker_meta(self) -> KVConnectorWorkerMetadata | None:
        return self._worker.reports() if self._worker else None

    # ---- scheduler -------------------------------------------------------------------------------

    def bind_gpu_block_pool(self, gpu_block_pool: Any) -> None:
        if self._scheduler is not None:
            self._scheduler.bind_pool(gpu_block_pool)

    def on_new_request(self, request: Any) -> None:
        if self._scheduler is not None:
            self._scheduler.on_new_request(request)

    def get_num_new_matched_tokens(
        self, request: Any, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        if self._scheduler is None:
            return 0, False
        return self._scheduler.matched_tokens(request, num_computed_tokens)

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        if self._scheduler is not None:
            self._scheduler.allocated(request, blocks, num_external_tokens)

    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        return self._scheduler.orders(scheduler_output) if self._scheduler else Orders()

    def update_connector_output(self, connector_output: Any) -> None:
        if self._scheduler is not None:
            reports = connector_output.kv_connector_worker_meta
            assert reports is None or isinstance(reports, Reports)
            self._scheduler.reported(reports)

    def request_finished(
        self, request: Any, block_ids: list[int]
    ) -> tuple[bool, dict[str, Any] | None]:
        if self._scheduler is not None:
            self._scheduler.finished(request, block_ids)
        return False, None

    def request_finished_all_groups(
        self, request: Any, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        return self.request_finished(request, block_ids[0] if block_ids else [])

    def has_pending_push_work(self) -> bool:
        return self._scheduler is not None and self._scheduler.has_pending_work()

    def reset_cache(self) -> bool:
        if self._scheduler is not None:
            self._scheduler.reset()
        return True

    # ---- both ------------------------------------------------------------------------------------

    def get_kv_connector_stats(self) -> KVConnectorStats | None:
        side = self._scheduler or self._worker
        return side.stats.take() if side else None

    @classmethod
    def build_kv_connector_stats(
        cls, data: dict[str, Any] | None = None
    ) -> KVConnectorStats | None:
        return ShadowServeStats(data=data or {})

    @classmethod
    def build_prom_metrics(
        cls,
        vllm_config: Any,
        metric_types: Any,
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> KVConnectorPromMetrics | None:
        return ShadowServePromMetrics(vllm_config, metric_types, labelnames, per_engine_labelvalues)

    def shutdown(self) -> None:
        worker, self._worker = self._worker, None
        scheduler, self._scheduler = self._scheduler, None
        if worker is not None:
            worker.close()
        if scheduler is not None:
            scheduler.close()


def _check_platform() -> None:
    if not (current_platform.is_cpu() or current_platform.is_cuda()):
        raise NotServed(
            f"KV memory of the platform {current_platform.device_type!r} is not served: "
            f"CPUs and NVIDIA GPUs are"
        )


def _tensor_parallel_rank() -> int:
    from vllm.distributed.parallel_state import get_tensor_model_parallel_rank

    return int(get_tensor_model_parallel_rank())


def _attention_isa(vllm_config: Any, kv_caches: dict[str, Any]) -> str:
    """The instruction set that CPU attention packs blocks for; the layers know it."""
    layers = vllm_config.compilation_config.static_forward_context
    found = {getattr(layers.get(name), "isa", "") for name in kv_caches}
    if len(found) != 1 or not (isa := str(found.pop())):
        raise NotServed("CPU attention layers that pack blocks in different ways are not served")
    return isa


def _cache_update(vllm_config: Any, kv_caches: dict[str, Any]) -> CacheUpdate | None:
    """The operator by which attention layers of a GPU write their cache; None: they have none."""
    layers = vllm_config.compilation_config.static_forward_context
    kinds = {type(getattr(layers.get(name), "impl", None)) for name in kv_caches}
    if len(kinds) != 1:
        raise NotServed("attention layers of different backends are not served")
    layer = layers[next(iter(kv_caches))]
    write = getattr(layer.impl, "do_kv_cache_update", None)
    if write is None:
        return None

    def update(key: Any, value: Any, cache: Any, slots: Any) -> None:
        write(layer, key, value, cache, slots)

    return update
