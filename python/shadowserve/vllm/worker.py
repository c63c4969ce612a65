# SPDX-License-Identifier: Apache-2.0
"""The worker's side: registers KV memory, hands orders to the daemon, reports what came of them.

A completion, or the proven death of the daemon, is the only thing that ends a load or store here. A
load whose deadline and grace have passed without one is given up towards vLLM (the request computes
its KV in other blocks), but its blocks stay held until its completion does come: a daemon that was
stopped may still write. A request's name is reported to vLLM exactly once a load.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from logging import Logger
from typing import Any

from shadowserve import binding, gpu, memory
from shadowserve.binding import Error, Memory, Op, Session, Tier
from shadowserve.link import Link
from shadowserve.options import Options
from shadowserve.ordering import Ordered
from shadowserve.staging import Staging
from shadowserve.vllm.messages import Load, Orders, Reports, Store
from shadowserve.vllm.regions import CacheUpdate, KvMemory, Registration
from shadowserve.vllm.stats import ShadowServeStats
from shadowserve.vllm.support import Served

GRACE_S = 1.0  # after a deadline, before the daemon counts as silent
IDLE_POLL_MS, IDLE_POLL_MAX_MS = 1, 5
IDLE_POLL_SHARE = 0.25  # of the wait so far: empty steps cost the engine's host more than messages
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


class Worker:
    def __init__(
        self,
        served: Served,
        options: Options,
        rank: int,
        socket: Callable[[], str],
        logger: Logger,
        streams: Any = None,
    ) -> None:
        """streams: in place of those of the GPU that the KV memory is on, see gpu.Streams."""
        self._served = served
        self._options = options
        self._rank = rank
        self._socket = socket
        self._logger = logger
        self._link = Link(self._open_session, f"worker {rank}", logger)
        self._allocation: memory.SharedAllocation | None = None
        self._way: Link | Ordered | Staging = self._link
        self._memory: KvMemory | None = None
        self._streams = streams
        self._registration: Registration | None = None
        self._region = 0
        self._numbers = itertools.count(1)
        self._flights: dict[int, _Flight] = {}
        self._results = Results()
        self._bad_blocks: set[int] = set()
        self._reports = Reports()
        self._idle = False
        self._idle_since: float | None = None
        self.stats = ShadowServeStats()

    # ---- memory ----------------------------------------------------------------------------------

    def allocation(self) -> memory.SharedAllocation:
        """The context in which vLLM allocates KV memory on CPUs, so that it is shared from its
        birth."""
        self._allocation = memory.SharedAllocation()
        return self._allocation

    def register(
        self, kv_caches: Mapping[str, Any], isa: str = "", update: CacheUpdate | None = None
    ) -> None:
        """Describe the KV memory and offer it to the daemon. isa: of CPU attention; update: the
        operator by which a GPU backend writes its cache."""
        tensors = [kv_caches[name] for name in self._served.layer_names]
        self._memory = KvMemory(self._served, self._rank, tensors)
        self._registration = self._memory.registration(isa, update, self._allocation)
        if self._memory.on_gpu:
            self._streams = self._streams or gpu.Streams(tensors[0].device)
            self._way = Ordered(self._link, self._streams.mark)
        self._link.connect()

    def disable(self) -> None:
        """Refuse every order from now on; each is still reported."""
        self._link.close()

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
            self._region = self._offer(session, registration)
        except Exception:
            session.close()
            raise
        return session

    def _offer(self, session: Session, registration: Registration) -> int:
        """Register; where the daemon refuses GPU memory for its short runs, staging instead."""
        try:
            return _register(session, registration)
        except Error as refusal:
            if registration.kind != Memory.GPU_IPC or refusal.errno != errno.ENOTSUP:
                raise
            if isinstance(self._way, Staging):
                raise
            reason = refusal
        assert self._memory is not None
        staged, copies, chunks = self._memory.staged(
            self._options.gpu_staging_mib << 20, self._streams
        )
        region = _register(session, staged)
        self._registration = staged
        block_bytes = staged.bytes // staged.layout.blocks_count
        self._way = Staging(
            self._link,
            copies,
            chunks,
            self._served.block_tokens,
            lambda blocks: self.stats.count("staged_bytes", blocks * block_bytes),
        )
        self._logger.info(
            "ShadowServe: KV goes through %d MiB of staging on the GPU: %s",
            staged.bytes >> 20,
            reason,
        )
        return region

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
            accepted = self._way.submit(requests[taken:])
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
            tier=Tier.LOSSLESS if store.exact else self._options.stored_tier,
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
        self._poll(self._patience_ms())
        now = time.monotonic()
        for flight in self._flights.values():
            if now > flight.give_up_at and not flight.given_up:
                self._give_up(flight)
        results, self._results = self._results, Results()
        return results

    def _patience_ms(self) -> int:
        """How long a step that computes nothing waits for a completion, which ends it at once. A
        request that arrives meanwhile is late by so much."""
        now = time.monotonic()
        if not self._idle or not self._flights:
            self._idle_since = None
            return 0
        if self._idle_since is None:
            self._idle_since = now
        waited_ms = (now - self._idle_since) * 1e3
        return max(IDLE_POLL_MS, min(IDLE_POLL_MAX_MS, int(waited_ms * IDLE_POLL_SHARE)))

    def _cancel(self, target: int) -> None:
        self._way.submit([binding.Request(Op.CANCEL, next(self._numbers), target=target)])

    def _poll(self, timeout_ms: int) -> None:
        for done in self._way.poll(timeout_ms):
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
                if not isinstance(self._way, Link):
                    self._way.settle(deadline)
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


def _register(session: Session, registration: Registration) -> int:
    return session.region_register(
        registration.kind,
        registration.layout,
        registration.bytes,
        registration.fd,
        registration.address,
        registration.gpu,
    )
