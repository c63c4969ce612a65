# SPDX-License-Identifier: Apache-2.0
"""What brings KV into the engine's pages while it decodes: ShadowServe's daemon, or a kernel that
decodes on the GPU, in the engine's process or in another."""

from __future__ import annotations

import ctypes
import threading
import time
from pathlib import Path
from typing import Any

import container
import numpy as np
import torch
from engine import BLOCK, BLOCK_ELEMENTS, DIM, KV_HEADS, LAYER_ELEMENTS
from shadowserve import binding

CHUNK_BLOCKS = 256 // BLOCK
CHUNK_BYTES = CHUNK_BLOCKS * BLOCK_ELEMENTS * 2


class Pace:
    """When the next chunk is due, for a rate in GB/s of KV; 0: at once. It never catches up more
    than two chunks."""

    def __init__(self, rate: float) -> None:
        self.interval = CHUNK_BYTES / (rate * 1e9) if rate else 0.0
        self.due = time.monotonic()

    def ready(self) -> bool:
        return time.monotonic() >= self.due

    def took(self) -> None:
        self.due = max(self.due + self.interval, time.monotonic() - 2 * self.interval)


class Fetches(threading.Thread):
    """FETCH requests of one chunk each, to a place per request in flight, until stop()."""

    def __init__(
        self,
        session: binding.Session,
        region: int,
        keys: list[bytes],
        places: list[list[int]],
        rate: float,
    ) -> None:
        super().__init__(daemon=True)
        self.session, self.region, self.keys = session, region, keys
        self.free = list(range(len(places)))
        self.places = places
        self.pace = Pace(rate)
        self.stopping = threading.Event()
        self.chunks = self.failed = self.turn = 0
        self.times: list[float] = []
        self.seconds = 0.0

    def _submit(self) -> None:
        while self.free and self.pace.ready() and not self.stopping.is_set():
            place = self.free.pop()
            chunk = self.turn % len(self.keys)
            request = binding.Request(
                op=binding.Op.FETCH,
                region=self.region,
                user_data=place,
                keys=self.keys[chunk],
                position=256 * chunk,
                blocks=self.places[place],
                deadline_ms=10000,
            )
            if self.session.submit([request]) != 1:
                self.free.append(place)
                return
            self.turn += 1
            self.pace.took()

    def run(self) -> None:
        begin = time.monotonic()
        while not self.stopping.is_set() or len(self.free) < len(self.places):
            self._submit()
            for done in self.session.poll(timeout_ms=1):
                self.free.append(done.user_data)
                self.chunks += done.status == 0
                self.failed += done.status != 0
                self.times.append(done.elapsed_us / 1e6)
        self.seconds = time.monotonic() - begin

    def stop(self) -> dict[str, Any]:
        self.stopping.set()
        self.join(30)
        return {
            "got_gb_s": self.chunks * CHUNK_BYTES / 1e9 / self.seconds,
            "chunks": self.chunks,
            "failed": self.failed,
            "chunk_ms_p50": 1e3 * float(np.median(self.times)) if self.times else None,
        }


class _Job(ctypes.Structure):
    _fields_ = [
        ("host", ctypes.c_void_p),
        ("host_bytes", ctypes.c_uint64),
        ("container", ctypes.c_void_p),
        ("streams", ctypes.c_void_p),
        ("groups", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("offset", ctypes.c_void_p),
        ("delta", ctypes.c_void_p),
        ("blocks", ctypes.c_void_p),
        ("streams_count", ctypes.c_uint32),
        ("tokens", ctypes.c_uint32),
        ("block_tokens", ctypes.c_uint32),
        ("token_elements", ctypes.c_uint32),
        ("block_elements", ctypes.c_uint64),
        ("kv", ctypes.c_void_p),
    ]


class GpuDecoder:
    """One container on the GPU, its tables prepared; run() copies and decodes it once."""

    def __init__(self, library: Path, data: bytes, kv_pointer: int, blocks: list[int]) -> None:
        self.library = ctypes.CDLL(str(library))
        tables = container.read(data, KV_HEADS, DIM, LAYER_ELEMENTS)
        self.exceptions = tables.exceptions
        self.host = torch.frombuffer(bytearray(data + bytes(64)), dtype=torch.uint8).pin_memory()
        self.keep = {
            name: torch.from_numpy(array.view(np.uint8).copy()).cuda()
            for name, array in tables.arrays().items()
        }
        self.keep["container"] = torch.empty_like(self.host, device="cuda")
        self.keep["blocks"] = torch.tensor(blocks, dtype=torch.int32, device="cuda")
        self.job = _Job(
            host=self.host.data_ptr(),
            host_bytes=self.host.numel(),
            container=self.keep["container"].data_ptr(),
            streams=self.keep["streams"].data_ptr(),
            groups=self.keep["groups"].data_ptr(),
            scale=self.keep["scale"].data_ptr(),
            offset=self.keep["offset"].data_ptr(),
            delta=self.keep["delta"].data_ptr(),
            blocks=self.keep["blocks"].data_ptr(),
            streams_count=len(tables.streams),
            tokens=256,
            block_tokens=BLOCK,
            token_elements=KV_HEADS * 2 * DIM,
            block_elements=BLOCK_ELEMENTS,
            kv=kv_pointer,
        )

    def run(self, stream: torch.cuda.Stream) -> None:
        result = self.library.decode_run(
            ctypes.byref(self.job), ctypes.c_void_p(stream.cuda_stream)
        )
        if result:
            raise OSError(f"decode kernel: CUDA error {result}")


class GpuDecodes(threading.Thread):
    """The decoders in turn at a rate, four chunks in flight on streams of the lowest priority."""

    def __init__(self, decoders: list[GpuDecoder], rate: float) -> None:
        super().__init__(daemon=True)
        self.decoders, self.pace = decoders, Pace(rate)
        self.stopping = threading.Event()
        self.chunks, self.seconds = 0, 0.0

    def run(self) -> None:
        streams = [torch.cuda.Stream(priority=0) for _ in self.decoders]
        events: list[torch.cuda.Event | None] = [None] * len(streams)
        begin = time.monotonic()
        while not self.stopping.is_set():
            k = self.chunks % len(streams)
            event = events[k]
            if not self.pace.ready() or (event is not None and not event.query()):
                time.sleep(2e-5)
                continue
            self.decoders[k].run(streams[k])
            events[k] = torch.cuda.Event()
            events[k].record(streams[k])
            self.pace.took()
            self.chunks += 1
        torch.cuda.synchronize()
        self.seconds = time.monotonic() - begin

    def stop(self) -> dict[str, Any]:
        self.stopping.set()
        self.join(30)
        return {"got_gb_s": self.chunks * CHUNK_BYTES / 1e9 / self.seconds, "chunks": self.chunks}
