# SPDX-License-Identifier: Apache-2.0
"""GPU memory of this process.

export() describes it for registration: the driver's IPC handle of the allocation, the GPU's UUID,
and the region's place in the allocation. NVIDIA's driver API through ctypes; nothing is allocated.
Streams and BlockCopies are what the connector enqueues on the GPU by itself: marks on the engine's
stream, and for the staging way one copying kernel a chunk on a stream of its own.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from shadowserve.binding import GpuMemory


class GpuError(OSError):
    """The driver refused; the text holds its call and its number."""


def _driver() -> ctypes.CDLL:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise GpuError(f"NVIDIA's driver was not found: {error}") from error


def _check(result: int, call: str) -> None:
    if result:
        raise GpuError(f"{call}: CUDA error {result}")


def export(pointer: int, device: int) -> GpuMemory:
    """pointer: device memory of cudaMalloc. device: its ordinal here. GpuError for memory of other
    kinds (expandable segments, the pool of vLLM's sleep mode)."""
    driver = _driver()
    handle = (ctypes.c_uint8 * 64)()
    uuid = (ctypes.c_uint8 * 16)()
    base, size = ctypes.c_uint64(), ctypes.c_size_t()
    at = ctypes.c_uint64(pointer)
    _check(
        driver.cuMemGetAddressRange_v2(ctypes.byref(base), ctypes.byref(size), at),
        "cuMemGetAddressRange",
    )
    _check(driver.cuIpcGetMemHandle(handle, base), "cuIpcGetMemHandle")
    _check(driver.cuDeviceGetUuid_v2(uuid, ctypes.c_int(device)), "cuDeviceGetUuid")
    return GpuMemory(bytes(uuid), bytes(handle), pointer - base.value)


class Streams:
    """The engine's stream, and one of ours beside it."""

    def __init__(self, device: Any) -> None:
        import torch

        self._cuda = torch.cuda
        self._device = device
        # 0 is the lowest priority that PyTorch gives.
        self._own = torch.cuda.Stream(device, priority=0)

    def mark(self) -> Any:
        """A place in the stream that the engine's thread enqueues on now; asked by query()."""
        event = self._cuda.Event()
        event.record(self._cuda.current_stream(self._device))
        return event

    def run(self, work: Callable[[], None], behind: Any = None) -> Any:
        """Enqueue on our stream, behind a mark; returns the mark of its end. Waits for nothing."""
        with self._cuda.stream(self._own):
            if behind is not None:
                self._own.wait_event(behind)
            work()
            event = self._cuda.Event()
            event.record(self._own)
        return event

    def empty(self, like: Any, blocks: int) -> Any:
        """Memory for so many blocks, not cleared: that would be work on some thread's stream."""
        return like.new_empty((blocks, *like.shape[1:]))

    def numbers(self, values: list[int]) -> Any:
        """Block numbers on the GPU, for work of run(). From pinned memory, else it would wait."""
        import torch

        host = torch.tensor(values, dtype=torch.int64, pin_memory=True)
        return host.to(self._device, non_blocking=True)


class BlockCopies:
    """Blocks between the engine's memory and staging memory, one kernel a call. Both tensors have a
    block's number first and what a block holds behind it, in the same order."""

    def __init__(self, engine: Any, staging: Any, streams: Streams) -> None:
        import torch

        # Eight bytes an element: the kernel copies elements.
        self._engine = engine.view(torch.int64)
        self._staging = staging.view(torch.int64)
        self._streams = streams

    def spread(self, first: int, blocks: list[int]) -> Any:
        source = self._staging[first : first + len(blocks)]
        return self._streams.run(
            lambda: self._engine.index_copy_(0, self._streams.numbers(blocks), source)
        )

    def gather(self, blocks: list[int], first: int) -> Any:
        import torch

        target = self._staging[first : first + len(blocks)]
        return self._streams.run(
            lambda: torch.index_select(self._engine, 0, self._streams.numbers(blocks), out=target),
            self._streams.mark(),
        )
