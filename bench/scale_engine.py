# SPDX-License-Identifier: Apache-2.0
"""An engine without a model, for the scale part: sessions, tiny chunks, and what they cost the
daemon in processor time, by the kernel's own account of its threads."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import mmap
import os
import sys
import time
from pathlib import Path

from part import Wrong
from servers import BUILD, ROOT, Daemon

sys.path.insert(0, str(ROOT / "python"))
os.environ.setdefault("SHADOWSERVE_LIBRARY", str(BUILD / "src" / "client" / "libshadowserve.so"))

from shadowserve import binding as ssv

DIM, ELEMENT = 16, 2
BLOCK_BYTES = ssv.CHUNK_TOKENS * DIM * ELEMENT  # K or V of a chunk: one block holds one chunk
WAIT_S = 60.0
REQUEST_KEYS = 4096  # what a request can name
CAPTURED_AT_ONCE = 8  # chunks; the daemon may drop what it cannot capture


def key(n: int) -> bytes:
    return hashlib.sha256(b"scale %d" % n).digest()


def keys(first: int, count: int) -> bytes:
    return b"".join(key(first + n) for n in range(count))


def layout(blocks: int) -> ssv.Layout:
    digits = (
        ssv.Digit(ssv.Axis.TOKEN, ssv.CHUNK_TOKENS, DIM),
        ssv.Digit(ssv.Axis.HEAD, 1, DIM),
        ssv.Digit(ssv.Axis.DIM, DIM, 1),
    )
    roles = (ssv.Role.K, ssv.Role.V)
    return ssv.Layout(
        dtype=ssv.Dtype.BF16,
        layer0=0,
        layers_count=1,
        layers_total=1,
        rank=0,
        ranks_count=1,
        block_tokens=ssv.CHUNK_TOKENS,
        blocks_count=blocks,
        model=b"scale123",
        parts=tuple(ssv.Part(role, 0, 1, DIM, digits) for role in roles),
        tensors=tuple(ssv.Tensor(0, i, i * blocks * BLOCK_BYTES, BLOCK_BYTES) for i in range(2)),
    )


class Engine:
    """One session with a region of so many blocks."""

    def __init__(self, daemon: Daemon, blocks: int) -> None:
        size = 2 * blocks * BLOCK_BYTES
        self.fd = os.memfd_create("scale", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, size)
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        self.memory = mmap.mmap(self.fd, size)
        self.session = ssv.Session.connect(str(daemon.socket), connect_timeout_ms=5000)
        where = layout(blocks)
        self.region = self.session.region_register(ssv.Memory.MEMFD, where, size, fd=self.fd)

    def close(self) -> None:
        self.session.close()
        self.memory.close()
        os.close(self.fd)

    def submit(self, request: ssv.Request) -> None:
        deadline = time.monotonic() + WAIT_S
        while not self.session.submit([request]):
            if time.monotonic() > deadline:
                raise Wrong(f"a request was not accepted within {WAIT_S:.0f} s")
            self.session.poll(10)

    def take(self, wanted: int) -> list[ssv.Completion]:
        deadline = time.monotonic() + WAIT_S
        done: list[ssv.Completion] = []
        while len(done) < wanted:
            if time.monotonic() > deadline:
                raise Wrong(f"{len(done)} of {wanted} requests were completed in {WAIT_S:.0f} s")
            done += self.session.poll(1000)
        return done

    def move(self, op: ssv.Op, chunk_keys: bytes, first: int, number: int) -> ssv.Request:
        """Chunks number `first` and on of a prompt, from or to the blocks of these numbers."""
        count = len(chunk_keys) // ssv.KEY_BYTES
        return ssv.Request(
            op=op,
            user_data=number,
            keys=chunk_keys,
            blocks=range(first, first + count),
            position=first * ssv.CHUNK_TOKENS,
            region=self.region,
            deadline_ms=int(WAIT_S * 1000) if op == ssv.Op.FETCH else 0,
        )

    def look_up(self, chunk_keys: bytes, number: int) -> ssv.Request:
        return ssv.Request(op=ssv.Op.LOOKUP, user_data=number, keys=chunk_keys)

    def store(self, chunk_keys: bytes) -> None:
        """Stores the chunks of a prompt, and waits until the store has them."""
        step, count = ssv.KEY_BYTES, len(chunk_keys) // ssv.KEY_BYTES
        for first in range(0, count, CAPTURED_AT_ONCE):
            some = chunk_keys[first * step : (first + CAPTURED_AT_ONCE) * step]
            self.submit(self.move(ssv.Op.STORE, some, first, 1))
            expect(self.take(1), len(some) // step * ssv.CHUNK_TOKENS)
            self.submit(ssv.Request(op=ssv.Op.FLUSH, user_data=2))
            self.take(1)

    def look_up_all(self, count: int) -> list[ssv.Request]:
        """A prompt of so many chunks, looked up: a request can name 4,096."""
        return [
            self.look_up(keys(first, min(REQUEST_KEYS, count - first)), first)
            for first in range(0, count, REQUEST_KEYS)
        ]

    def fetch_all(self, count: int) -> list[ssv.Request]:
        return [
            self.move(ssv.Op.FETCH, keys(first, min(REQUEST_KEYS, count - first)), first, first)
            for first in range(0, count, REQUEST_KEYS)
        ]

    def begin(self, requests: list[ssv.Request]) -> None:
        for request in requests:
            self.submit(request)

    def end(self, requests: list[ssv.Request]) -> None:
        wanted = {r.user_data: len(r.keys) // ssv.KEY_BYTES for r in requests}
        for done in self.take(len(requests)):
            expect([done], wanted[done.user_data] * ssv.CHUNK_TOKENS)

    def serve(self, requests: list[ssv.Request], rounds: int) -> None:
        for _ in range(rounds):
            self.begin(requests)
            self.end(requests)


class Engines:
    """Sessions that fetch at the same time; the first one stored what all fetch."""

    def __init__(self, daemon: Daemon, chunks: int) -> None:
        self.daemon, self.chunks = daemon, chunks
        self.all: list[Engine] = []

    def grow(self, count: int) -> None:
        while len(self.all) < count:
            self.all.append(Engine(self.daemon, self.chunks))
            if len(self.all) == 1:
                self.all[0].store(keys(0, self.chunks))

    def serve(self, requests: list[ssv.Request], rounds: int) -> None:
        for _ in range(rounds):
            for engine in self.all:
                engine.begin([dataclasses.replace(r, region=engine.region) for r in requests])
            for engine in self.all:
                engine.end(requests)

    def close(self) -> None:
        for engine in self.all:
            engine.close()


def expect(done: list[ssv.Completion], tokens: int) -> None:
    for one in done:
        if one.status or one.tokens != tokens:
            raise Wrong(f"status {one.status}, {one.tokens} tokens, expected {tokens}: {one}")


def cpu_ns(daemon: Daemon) -> int:
    tasks = Path(f"/proc/{daemon.process.pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)


def cost(
    daemon: Daemon, who: Engine | Engines, requests: list[ssv.Request], rounds: int
) -> tuple[float, float]:
    """Processor time of the daemon and wall time of some rounds, in ns."""
    before, start = cpu_ns(daemon), time.monotonic_ns()
    who.serve(requests, rounds)
    wall = time.monotonic_ns() - start
    return float(cpu_ns(daemon) - before), float(wall)
