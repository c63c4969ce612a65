# SPDX-License-Identifier: Apache-2.0
"""The connector's worker on GPU memory of a stand-in driver: gpu_worker.py SOCKET CASE

The memory is a stand-in's, the streams are queues of functions that run late and in random turns,
as kernels would; daemon, driver calls and messages are real. Says "ok" when every element of the
memory is what it must be. A process of its own, because the driver is found by LD_LIBRARY_PATH.
"""

from __future__ import annotations

import ctypes
import logging
import os
import random
import sys
import time
from types import SimpleNamespace

import torch
from shadowserve import binding
from shadowserve.layout import Shape
from shadowserve.options import Options
from shadowserve.ordering import Ordered
from shadowserve.staging import Staging
from shadowserve.vllm import regions
from shadowserve.vllm.messages import Load, Orders, Store
from shadowserve.vllm.worker import Worker

LAYERS, HEADS, DIM, BLOCK, BLOCKS = 8, 4, 64, 16, 96
SPAN = 256 // BLOCK
DRIVER = ctypes.CDLL("libcuda.so.1")
SEED = int(os.environ.get("SSV_SEED", random.SystemRandom().randrange(1 << 32)))
RNG = random.Random(SEED)


class Mark:
    def __init__(self, streams):
        self.streams, self.done = streams, False

    def query(self):
        self.streams.work()
        return self.done


class Streams:
    """Two queues in place of two streams; something of them runs whenever a mark is asked."""

    def __init__(self):
        self.engine, self.own = [], []
        self.memory = []

    def work(self):
        queue = RNG.choice([self.engine, self.own])
        if queue and RNG.random() < 0.3 and (queue[0][1] is None or queue[0][1].done):
            work, _, mark = queue.pop(0)
            work()
            mark.done = True

    def launch(self, work):
        """As the engine does."""
        self.engine.append((work, None, Mark(self)))

    def mark(self):
        self.launch(lambda: None)
        return self.engine[-1][2]

    def run(self, work, behind=None):
        self.own.append((work, behind, Mark(self)))
        return self.own[-1][2]

    def empty(self, like, blocks):
        shape = (blocks, *like.shape[1:])
        count = like[0].numel() * blocks
        return allocate(count * like.element_size(), like.dtype).view(shape)

    def numbers(self, values):
        return torch.tensor(values, dtype=torch.int64)

    def finish(self):
        while self.engine or self.own:
            self.work()


def allocate(size, dtype):
    pointer = ctypes.c_uint64()
    assert DRIVER.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(size)) == 0
    raw = (ctypes.c_uint8 * size).from_address(pointer.value)
    raw[:] = RNG.randbytes(size)
    return torch.frombuffer(raw, dtype=dtype)


class Engine:
    """KV memory in a layout of vLLM's, its worker, and what the memory must be."""

    def __init__(self, socket, layout):
        self.memory = allocate(LAYERS * BLOCKS * HEADS * BLOCK * 2 * DIM * 2, torch.bfloat16)
        sizes = {"L": LAYERS, "B": BLOCKS, "H": HEADS, "N": BLOCK, "C": 2 * DIM}
        lies = self.memory.view([sizes[axis] for axis in layout])
        self.kv = lies.permute([layout.index(axis) for axis in "LBHNC"])
        names = tuple(f"layer {i}" for i in range(LAYERS))
        served = SimpleNamespace(
            engine_id="gpu",
            identity=SimpleNamespace(fingerprint=b"a model."),
            shapes=(Shape(binding.Dtype.BF16, LAYERS, HEADS, 0, DIM, DIM, 0, 1),),
            block_tokens=BLOCK,
            layer_names=names,
            kv_cache_dtype="auto",
        )
        self.streams = Streams()
        chunk_mib = LAYERS * HEADS * 256 * 2 * DIM * 2 >> 20
        self.worker = Worker(
            served,
            Options(gpu_staging_mib=2 * chunk_mib),
            0,
            lambda: socket,
            logging.getLogger("worker"),
            self.streams,
        )
        self.worker.register(dict(zip(names, self.kv, strict=True)), update=self.update)
        assert self.worker._link.session is not None, "not registered"
        self.number = 0
        self.salt = RNG.randbytes(16)

    @staticmethod
    def update(key, value, cache, slots):
        """As FlashAttention's operator packs a cache."""
        k, v = cache.transpose(1, 2).split(DIM, dim=-1)
        k[slots // BLOCK, slots % BLOCK] = key
        v[slots // BLOCK, slots % BLOCK] = value

    def write(self, blocks):
        """A kernel that fills blocks, enqueued now, run some time."""
        values = torch.randn(LAYERS, len(blocks), HEADS, BLOCK, 2 * DIM).to(torch.bfloat16)

        def kernel():
            self.kv[:, blocks] = values

        self.streams.launch(kernel)
        return values

    def step(self, loads=(), stores=(), finished=()):
        self.worker.begin(Orders(list(loads), list(stores)))
        results = self.worker.finish(set(finished))
        self.streams.work()
        return results, self.worker.reports()

    def until(self, ended):
        """Step until ended(results, reports)."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            results, reports = self.step()
            if ended(results, reports):
                return results, reports
            time.sleep(0.0005)
        raise TimeoutError(f"SSV_SEED={SEED}")

    def key(self, number):
        """Of this engine alone."""
        return self.salt + number.to_bytes(16, "little")

    def store(self, key, blocks, position=0):
        self.number += 1
        return Store(self.number, [key], blocks, position, exact=True)

    def load(self, keys, blocks, first_token=0, name="r"):
        self.number += 1
        return Load(self.number, name, [b"".join(keys)], blocks, first_token, 0, 30000)


def roundtrip(engine):
    """Capture behind kernels that have not run yet; fetch into other blocks, the last chunk short
    and the first from its middle."""
    blocks = RNG.sample(range(BLOCKS), BLOCKS)
    source, target = blocks[: 2 * SPAN + 4], blocks[2 * SPAN + 4 : 4 * SPAN + 4]
    for _ in range(5):
        engine.write(source)  # of no consequence: written over
    values = engine.write(source)
    lists = [source[:SPAN], source[SPAN : 2 * SPAN], source[2 * SPAN :]]
    stores = [engine.store(engine.key(i), one, 256 * i) for i, one in enumerate(lists)]
    _, seen = engine.step(stores=stores)
    missing = {store.number for store in stores} - set(seen.stores if seen else ())
    while missing:
        _, reports = engine.until(lambda _, reports: reports)
        assert not reports.dropped, reports
        missing -= set(reports.stores)
    flush(engine)
    engine.streams.finish()
    expected = engine.kv.clone()
    skip = 4
    into = target[: len(source) - skip]
    expected[:, into] = values[:, skip:]
    engine.step(loads=[engine.load([engine.key(i) for i in range(3)], into, skip * BLOCK)])
    results, reports = engine.until(lambda results, _: results.received)
    assert (results.received, results.failed) == ({"r"}, set())
    assert list(reports.loaded_tokens.values()) == [len(into) * BLOCK], reports
    same = engine.kv.view(torch.int16) == expected.view(torch.int16)
    assert bool(same.all()), f"SSV_SEED={SEED}"
    assert engine.worker.bad_blocks() == set()
    return len(source) + len(into)


def flush(engine):
    engine.worker._flush(engine.worker._link.session, time.monotonic() + 20)


def direct(socket):
    engine = Engine(socket, "BLNHC")
    assert isinstance(engine.worker._way, Ordered)
    roundtrip(engine)
    assert "staged_bytes" not in engine.worker.stats.data
    engine.worker.close()


def staged(socket):
    for layout in ("LBHNC", "LBNHC", "LHBNC"):
        engine = Engine(socket, layout)
        assert isinstance(engine.worker._way, Staging), layout
        blocks = roundtrip(engine)
        moved = blocks * LAYERS * HEADS * BLOCK * 2 * DIM * 2
        assert engine.worker.stats.data["staged_bytes"] == moved
        # A chunk that is not there ends the load; the rest is reported as not filled.
        engine.step(
            loads=[
                engine.load(
                    [engine.key(0), engine.key(99), engine.key(1)], list(range(3 * SPAN)), name="x"
                )
            ]
        )
        results, reports = engine.until(lambda results, _: results.received)
        assert list(reports.loaded_tokens.values()) == [256]
        assert engine.worker.bad_blocks() == set(range(SPAN, 3 * SPAN))
        # What the engine is done with is cancelled, and reported once.
        engine.step(loads=[engine.load([engine.key(0)] * 5, list(range(5 * SPAN)), name="y")])
        results, _ = engine.step(finished=["y"])
        while not results.received:
            results, _ = engine.step(finished=["y"])
        assert results.received == {"y"}
        engine.streams.finish()
        engine.worker.close()


def other_packing(socket):
    """An operator that packs otherwise is noticed."""

    right = Engine.update
    Engine.update = staticmethod(lambda key, value, *rest: right(value, key, *rest))
    try:
        Engine(socket, "BLNHC")
    except regions.NotServed as reason:
        assert "packs" in str(reason)
        return
    raise AssertionError("served")


if __name__ == "__main__":
    # The stand-in's memory is the host's.
    regions.KvMemory.on_gpu = True
    {"direct": direct, "staged": staged, "packing": other_packing}[sys.argv[2]](sys.argv[1])
    print("ok")
