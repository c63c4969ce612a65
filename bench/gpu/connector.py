# SPDX-License-Identifier: Apache-2.0
"""The worker of the vLLM connector on a real GPU, without vLLM, which cannot be carried here: its
orders come from this file, its tensors, streams, events, daemon and driver are real. Four base
classes of vLLM, which hold data or nothing, are stood in for.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from engine import BLOCK, DIM, KV_HEADS, LAYERS

SPAN = 256 // BLOCK
SLEEP_CYCLES = 60_000_000  # some 30 ms


def _stand_in() -> None:
    """What the worker's modules import of vLLM; shadowserve.vllm without its connector."""

    @dataclass
    class Stats:
        data: dict[str, Any] = field(default_factory=dict)

    base = "vllm.distributed.kv_transfer.kv_connector.v1"
    parts = base.split(".")
    for i in range(len(parts)):
        sys.modules[".".join(parts[: i + 1])] = types.ModuleType(".".join(parts[: i + 1]))
    names = {"base": ("KVConnectorMetadata", "KVConnectorWorkerMetadata")}
    names["metrics"] = ("KVConnectorPromMetrics",)
    for module, classes in names.items():
        made: Any = types.ModuleType(f"{base}.{module}")
        for name in classes:
            setattr(made, name, type(name, (), {}))
        made.KVConnectorStats = Stats
        sys.modules[f"{base}.{module}"] = made
    package: Any = types.ModuleType("shadowserve.vllm")
    import shadowserve

    package.__path__ = [str(Path(shadowserve.__path__[0]) / "vllm")]
    sys.modules["shadowserve.vllm"] = package


_stand_in()

from shadowserve import binding  # noqa: E402
from shadowserve.layout import Shape  # noqa: E402
from shadowserve.options import Options  # noqa: E402
from shadowserve.ordering import Ordered  # noqa: E402
from shadowserve.staging import Staging  # noqa: E402
from shadowserve.vllm.messages import Load, Orders, Store  # noqa: E402
from shadowserve.vllm.worker import Worker  # noqa: E402


def update(key: Any, value: Any, cache: Any, slots: Any) -> None:
    """As FlashAttention's operator packs a cache."""
    k, v = cache.transpose(1, 2).split(DIM, dim=-1)
    k[slots // BLOCK, slots % BLOCK] = key
    v[slots // BLOCK, slots % BLOCK] = value


class Side:
    """A worker on views [block][head][token][content], one a layer, and the scheduler's part."""

    def __init__(self, name: str, views: list[Any], socket: str, staging_mib: int = 256) -> None:
        heads = views[0].shape[1]
        layers = {f"layer {i}": view for i, view in enumerate(views)}
        served: Any = types.SimpleNamespace(
            engine_id=name,
            identity=types.SimpleNamespace(fingerprint=b"a model."),
            shapes=(Shape(binding.Dtype.BF16, len(views), heads, 0, DIM, DIM, 0, 1),),
            block_tokens=BLOCK,
            layer_names=tuple(layers),
            kv_cache_dtype="auto",
        )
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        self.worker = Worker(
            served,
            Options(gpu_staging_mib=staging_mib),
            0,
            lambda: socket,
            logging.getLogger(name),
        )
        self.worker.register(layers, update=update)
        if self.worker._link.session is None:
            raise RuntimeError(f"{name}: not registered")
        self.salt, self.number = name.encode().ljust(16)[:16], 0

    def key(self, number: int) -> bytes:
        return self.salt + number.to_bytes(16, "little")

    def begin(self, loads: list[Load] | None = None, stores: list[Store] | None = None) -> None:
        # idle: polling sleeps instead of spinning, which would hold Python's lock.
        self.worker.begin(Orders(loads or [], stores or [], idle=True))

    def stores(self, blocks: list[int], first: int = 0) -> list[Store]:
        made = []
        for at in range(0, len(blocks), SPAN):
            self.number += 1
            key = self.key(first + at // SPAN)
            made.append(Store(self.number, [key], blocks[at : at + SPAN], at * BLOCK, exact=True))
        return made

    def load(self, blocks: list[int], first: int = 0) -> Load:
        self.number += 1
        count = -(-len(blocks) // SPAN)
        keys = b"".join(self.key(first + i) for i in range(count))
        return Load(self.number, f"request {self.number}", [keys], blocks, 0, 0, 20000)

    def store_all(self, blocks: list[int], first: int = 0) -> int:
        """Chunk by chunk, so that none is dropped; how many were held for the GPU at first."""
        held = 0
        for store in self.stores(blocks, first):
            self.begin(stores=[store])
            way = self.worker._way
            held += bool(way._held if isinstance(way, Ordered) else way._copying)
            deadline = time.monotonic() + 20
            while True:
                self.worker.finish(set())
                reports = self.worker.reports()
                if reports is not None and store.number in reports.stores:
                    if reports.dropped:
                        raise RuntimeError(f"store {store.number} was dropped")
                    break
                if time.monotonic() > deadline:
                    raise TimeoutError("STORE")
            self.worker._flush(self.worker._link.session, time.monotonic() + 20)
        return held

    def load_all(self, blocks: list[int], first: int = 0) -> float:
        """Milliseconds from the order to the report."""
        begin = time.monotonic()
        self.begin(loads=[self.load(blocks, first)])
        while time.monotonic() < begin + 20:
            if self.worker.finish(set()).received:
                if bad := self.worker.bad_blocks():
                    raise RuntimeError(f"{len(bad)} blocks were not filled")
                return 1e3 * (time.monotonic() - begin)
        raise TimeoutError("FETCH")


def ordered(kv: Any, source: list[int], target: list[int], socket: str) -> dict[str, Any]:
    """Blocks are written by a kernel that starts late; what is captured must be what it writes, and
    a kernel enqueued after the load's report must see what was loaded."""
    views = [
        kv.as_strided(
            (kv.shape[0], KV_HEADS, BLOCK, 2 * DIM),
            (kv.stride(0), 2 * DIM, KV_HEADS * 2 * DIM, 1),
            kv[:, layer].storage_offset(),
        )
        for layer in range(LAYERS)
    ]
    side = Side("ordered", views, socket)
    if not isinstance(side.worker._way, Ordered):
        raise RuntimeError("block-outermost memory went through staging")
    kept = kv[source[0] : source[-1] + 1].clone()
    wrong, held, rounds = 0, 0, 6
    for turn in range(rounds):
        blocks = source[:SPAN]  # one after another: a list as an index would be a copy that waits
        values = torch.randn_like(kv[blocks[0] : blocks[-1] + 1])
        kv[target[0] : target[SPAN]] = 0
        torch.cuda.synchronize()
        torch.cuda._sleep(SLEEP_CYCLES)
        kv[blocks[0] : blocks[-1] + 1] = values
        held += side.store_all(blocks, first=turn)
        side.load_all(target[:SPAN], first=turn)
        # Enqueued by the engine's thread after the report, without any synchronisation.
        seen = kv[target[0] : target[SPAN]].clone()
        wrong += int((seen.view(torch.int16) != values.view(torch.int16)).sum())
    kv[source[0] : source[-1] + 1] = kept
    torch.cuda.synchronize()
    side.worker.close()
    print(f"connector, order: {wrong} elements differ, {held} of {rounds} stores held", flush=True)
    if wrong or held != rounds:
        raise RuntimeError("the connector's order is wrong, or was not tried")
    return {"case": "connector, order", "wrong": wrong, "rounds": rounds, "held": held}


class Staged:
    """One KV head a rank (8B at TP 8) in vLLM's default layout: runs of 8 KiB."""

    BLOCKS, CHUNKS = 2048, 32

    def __init__(self, socket: str) -> None:
        shape = (LAYERS, self.BLOCKS, 1, BLOCK, 2 * DIM)
        self.kv = torch.randn(shape, device="cuda").to(torch.bfloat16)
        torch.cuda.synchronize()
        self.side = Side("staged", list(self.kv), socket, 64)
        if not isinstance(self.side.worker._way, Staging):
            raise RuntimeError("short runs did not go through staging")
        order = torch.randperm(self.BLOCKS).tolist()
        count = self.CHUNKS * SPAN
        self.source, self.target = order[:count], order[count : 2 * count]
        self.before = self.kv.clone()

    def check(self) -> dict[str, Any]:
        torch.cuda.synchronize()
        self.before[:, self.target] = self.before[:, self.source]
        same = self.kv.view(torch.int16) == self.before.view(torch.int16)
        wrong = int((~same).sum())
        print(f"connector, staging: {wrong} elements differ", flush=True)
        if wrong:
            raise RuntimeError("staging gave wrong elements")
        return {"case": "connector, staging, bytes", "wrong": wrong}

    def roundtrip(self) -> dict[str, Any]:
        self.side.store_all(self.source)
        times = [self.side.load_all(self.target) for _ in range(6)][1:]
        self.check()
        staged = self.side.worker.stats.data["staged_bytes"]
        size = self.CHUNKS * 256 * LAYERS * 2 * DIM * 2
        print(
            f"connector, staging: {size >> 20} MiB of KV in {sorted(times)[2]:.1f} ms"
            f" (lossless), {staged >> 20} MiB staged in all",
            flush=True,
        )
        return {"case": "connector, staging", "ms": times, "kv_bytes": size, "staged_bytes": staged}

    def mover(self) -> StagedLoads:
        mover = StagedLoads(self)
        mover.start()
        return mover


class StagedLoads(threading.Thread):
    """Loads of all chunks, one after another, until stop()."""

    def __init__(self, staged: Staged) -> None:
        super().__init__(daemon=True)
        self.staged, self.loads, self.seconds = staged, 0, 0.0
        self.stopping = threading.Event()

    def run(self) -> None:
        begin = time.monotonic()
        while not self.stopping.is_set():
            self.staged.side.load_all(self.staged.target)
            self.loads += 1
        self.seconds = time.monotonic() - begin

    def stop(self) -> dict[str, Any]:
        self.stopping.set()
        self.join(30)
        size = Staged.CHUNKS * 256 * LAYERS * 2 * DIM * 2
        return {"got_gb_s": self.loads * size / 1e9 / self.seconds, "loads": self.loads}
