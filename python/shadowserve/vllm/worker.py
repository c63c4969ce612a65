# SPDX-License-Identifier: Apache-2.0
"""The worker's side: registers KV memory, hands orders to the daemon, reports what came of them.

A completion, or the proven death of the daemon, is the only thing that ends a load or store here. A
load whose deadline and grace have passed without one is given up towards vLLM (the request computes
its KV in other blocks), but its blocks stay held until its completion does come: a daemon that was
stopped may still write. A request's name is reported to vLLM exactly once a load.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from logging import Logger
from typing import Any

from shadowserve import binding, layout, memory
from shadowserve.binding import Error, Memory, Op, Session, Tier
from shadowserve.link import Link
from shadowserve.options import Options
from shadowserve.vllm.messages import Load, Orders, Reports, Store
from shadowserve.vllm.stats import ShadowServeStats
from shadowserve.vllm.support import NotServed, Served

GRACE_S = 1.0  # after a deadline, before the daemon counts as silent
IDLE_POLL_MS = 1
SHUTDOWN_S = 5.0


@dataclass
class _Flight:
    """A load or store that the daemon holds."""

    order: Load | Store
    give_up_at: float
    given_up: bool = False
    cancelled: bool = False


@dataclass
class Results:
    """What vLLM is told after a step."""

    received: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)


@dataclass
class _Registration:
    kind: Memory
    layout: binding.Layout
    bytes: int
    fd: int
    address: int


class Worker:
    def __init__(
        self,
        served: Served,
        options: Options,
        rank: int,
        socket: Callable[[], str],
        logger: Logger,
    ) -> None:
        self._served = served
        self._options = options
        self._rank = rank
        self._socket = socket
        self._logger = logger
        self._link = Link(self._open_session, f"worker {rank}", logger)
        self._allocation: memory.SharedAllocation | None = None
        self._registration: _Registration | None = None
        self._region = 0
        self._numbers = itertools.count(1)
        self._flights: dict[int, _Flight] = {}
        self._results = Results()
        self._bad_blocks: set[int] = set()
        self._reports = Reports()
        self._idle = False
        self.stats = ShadowServeStats()

    # ---- memory ----------------------------------------------------------------------------------

    def allocation(self) -> memory.SharedAllocation:
        """The context in which vLLM allocates KV memory, so that it is shared from its birth."""
        self._allocation = memory.SharedAllocation()
        return self._allocation

    def register(self, kv_caches: Mapping[str, Any], isa: str) -> None:
        """Describe the KV memory and offer it to the daemon."""
        tensors = [kv_caches[name] for name in self._served.layer_names]
        self._registration = self._describe(tensors, isa)
        self._link.connect()

    def disable(self) -> None:
        """Refuse every order from now on; each is still reported."""
        self._link.close()

    def _describe(self, tensors: list[Any], isa: str) -> _Registration:
        shape = self._served.shapes[self._rank]
        storage = tensors[0].untyped_storage()
        if any(one.untyped_storage().data_ptr() != storage.data_ptr() for one in tensors):
            raise NotServed("KV memory in more than one allocation is not served")
        first = tensors[0]
        if any((one.shape, one.stride()) != (first.shape, first.stride()) for one in tensors):
            raise NotServed("KV tensors of different shapes are not served")
        kernel_blocks, heads, kernel_tokens, content = first.shape
        pieces = self._served.block_tokens // kernel_tokens
        if heads != shape.heads or content != shape.dim_k + shape.dim_v or not pieces:
            raise NotServed(f"KV tensors of shape {tuple(first.shape)} are not served")
        packings = self._probe(first, isa, kernel_tokens)
        size = first.element_size()
        split = [layout.split_blocks(one, pieces, first.stride(0)) for one in packings]
        made = layout.region_layout(
            shape,
            (split[0], split[1]),
            [
                layout.LayerPlace(
                    one.data_ptr() - storage.data_ptr(), first.stride(0) * size * pieces
                )
                for one in tensors
            ],
            size,
            self._served.block_tokens,
            kernel_blocks // pieces,
            self._served.identity.fingerprint,
        )
        shared = self._allocation
        if shared is not None and shared.fd >= 0 and shared.address == storage.data_ptr():
            return _Registration(Memory.MEMFD, made, shared.bytes, shared.fd, 0)
        return _Registration(Memory.ADDRESS, made, storage.nbytes(), -1, storage.data_ptr())

    def _probe(self, tensor: Any, isa: str, tokens: int) -> tuple[layout.Packing, layout.Packing]:
        shape = self._served.shapes[self._rank]
        if tensor.device.type != "cpu":
            return layout.strided_packings(
                tokens, shape.dim_k, shape.dim_v, tensor.stride(2), tensor.stride(1)
            )
        if shape.dim_k != shape.dim_v:
            raise NotServed("K and V of different head sizes are not served on CPUs")
        import torch

        compute = {
            binding.Dtype.FP16: torch.float16,
            binding.Dtype.FP32: torch.float32,
        }.get(shape.dtype, torch.bfloat16)
        return layout.probe_cpu_attention(
            isa, compute, tokens, shape.dim_k, self._served.kv_cache_dtype
        )

    def _open_session(self) -> Session:
        """Connect and register; on the thread of Link, which hands the session over when done."""
        registration = self._registration
        assert registration is not None
        session = Session.connect(
            self._socket(),
            self._served.engine_id,
            self._rank,
            len(self._served.shapes),
            connect_timeout_ms=1000,
        )
        try:
            if registration.kind == Memory.ADDRESS:
                memory.allow_attach(memory.pid_of_pidfd(session.daemon_pidfd))
            self._region = session.region_register(
                registration.kind,
                registration.layout,
                registration.bytes,
                registration.fd,
                registration.address,
            )
        except Exception:
            session.close()
            raise
        return session

    # ---- a step begins ---------------------------------------------------------------------------

    def begin(self, orders: Orders) -> None:
        """Hand this step's orders to the daemon, before anything is computed."""
        self._idle = orders.idle
        requests = [self._fetch(load) for load in orders.loads]
        requests += [self._store(store) for store in orders.stores]
        if not requests:
            return
        taken = 0
        while taken < len(requests):
            accepted = self._link.submit(requests[taken:])
            if not accepted:
                break
            taken += accepted
        for request in requests[taken:]:
            self._ended(self._flights.pop(request.user_data), 0, refused=True)

    def _fetch(self, load: Load) -> binding.Request:
        number = next(self._numbers)
        give_up_at = time.monotonic() + load.deadline_ms / 1000 + GRACE_S
        self._flights[number] = _Flight(load, give_up_at)
        return binding.Request(
            Op.FETCH,
            number,
            keys=load.keys[self._rank],
            blocks=load.blocks,
            region=self._region,
            min_tier=self._options.min_tier,
            first_token=load.first_token,
            position=load.position,
            deadline_ms=load.deadline_ms,
        )

    def _store(self, store: Store) -> binding.Request:
        number = next(self._numbers)
        self._flights[number] = _Flight(store, float("inf"))
        return binding.Request(
            Op.STORE,
            number,
            keys=store.keys[self._rank],
            blocks=store.blocks,
            region=self._region,
            tier=Tier.LOSSLESS if store.exact else self._options.tier,
            codec=self._options.codec,
            position=store.position,
        )

    # ---- a step ends -----------------------------------------------------------------------------

    def finish(self, finished_requests: set[str]) -> Results:
        """What ended since the last step. finished_requests: those that vLLM is done with; their
        loads are cancelled, and reported once nothing touches their blocks."""
        for number, flight in self._flights.items():
            order = flight.order
            if isinstance(order, Load) and order.request_id in finished_requests:
                flight.cancelled = True
                self._cancel(number)
        self._poll(IDLE_POLL_MS if self._idle and self._flights else 0)
        now = time.monotonic()
        for flight in self._flights.values():
            if now > flight.give_up_at and not flight.given_up:
                self._give_up(flight)
        results, self._results = self._results, Results()
        return results

    def _cancel(self, target: int) -> None:
        self._link.submit([binding.Request(Op.CANCEL, next(self._numbers), target=target)])

    def _poll(self, timeout_ms: int) -> None:
        for done in self._link.poll(timeout_ms):
            flight = self._flights.pop(done.user_data, None)
            if flight is None:
                continue  # a CANCEL
            if done.op == Op.FETCH:
                self.stats.count("wire_bytes", done.wire_bytes)
                self.stats.count("kv_bytes", done.kv_bytes)
                self.stats.time_load(done.elapsed_us / 1000)
            self._ended(flight, done.tokens)

    def _give_up(self, flight: _Flight) -> None:
        flight.given_up = True
        order = flight.order
        assert isinstance(order, Load)
        self.stats.count("loads_silent")
        self._logger.warning(
            "ShadowServe: the daemon did not answer in time; %s computes its KV itself, %d blocks "
            "stay held until the daemon answers or is dead",
            order.request_id,
            len(order.blocks),
        )
        self._results.received.add(order.request_id)
        self._results.failed.add(order.request_id)

    def _ended(self, flight: _Flight, tokens: int, refused: bool = False) -> None:
        """Nothing touches the blocks of this order any more."""
        order = flight.order
        if isinstance(order, Store):
            captured = tokens >= len(order.blocks) * self._served.block_tokens
            self._reports.stores[order.number] = 1
            if captured:
                self.stats.count("stores")
            else:
                self._reports.dropped.add(order.number)
            return
        self._reports.loads[order.number] = 1
        self._reports.loaded_tokens[order.number] = 0 if flight.given_up else tokens
        if flight.given_up:
            return
        self.stats.count("loads")
        self.stats.count("loaded_tokens", tokens)
        self._results.received.add(order.request_id)
        missing = order.blocks[tokens // self._served.block_tokens :]
        if missing and not flight.cancelled:
            self.stats.count("loads_short")
            self._bad_blocks.update(missing)

    def bad_blocks(self) -> set[int]:
        """Blocks that were not filled, of loads that finish() has just reported."""
        bad, self._bad_blocks = self._bad_blocks, set()
        return bad

    def reports(self) -> Reports | None:
        reports, self._reports = self._reports, Reports()
        return reports if reports else None

    def close(self) -> None:
        """Let stores reach the store, for a bounded time, then end the session."""
        deadline = time.monotonic() + SHUTDOWN_S
        session = self._link.session
        if session is not None:
            with contextlib.suppress(Error):
                self._flush(session, deadline)
                left_ms = max(1, int((deadline - time.monotonic()) * 1000))
                session.region_unregister(self._region, left_ms)
        self._link.close()
        if self._allocation is not None:
            self._allocation.close()

    def _flush(self, session: Session, deadline: float) -> None:
        left_ms = int((deadline - time.monotonic()) * 1000)
        number = next(self._numbers)
        flush = binding.Request(Op.FLUSH, number, deadline_ms=max(1, left_ms))
        if not session.submit([flush]):
            return
        while time.monotonic() < deadline:
            if any(done.user_data == number for done in session.poll(50)):
                return
