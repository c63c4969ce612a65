# SPDX-License-Identifier: Apache-2.0
"""The bare mover: copies from pinned memory into what the engine exported, at a rate, by a process
of its own that decodes nothing and reads no store. What it costs the engine is what moving costs;
the daemon is measured beside it.

bare.py LIBRARY HANDLE OFFSET BYTES COPY BATCH STREAMS RATE SECONDS"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Way:
    """How it moves; the daemon's groups are batches of 1 MiB, as they come."""

    copy: int = 64 << 10
    batch: int = 1 << 20
    streams: int = 12

    @property
    def name(self) -> str:
        return (
            f"copies of {self.copy >> 10} KiB, {self.batch >> 20} MiB a batch,"
            f" {self.streams} streams"
        )


class _Asked(ctypes.Structure):
    _fields_ = [
        ("to_bytes", ctypes.c_uint64),
        ("copy_bytes", ctypes.c_uint64),
        ("batch_bytes", ctypes.c_uint64),
        ("streams_count", ctypes.c_uint32),
        ("rate", ctypes.c_double),
        ("seconds", ctypes.c_double),
    ]


class _Got(ctypes.Structure):
    _fields_ = [("bytes_a_second", ctypes.c_double), ("call_seconds", ctypes.c_double)]


class Bare:
    """The process, moving from now on for so many seconds."""

    def __init__(
        self,
        library: Path,
        memory: tuple[bytes, int, int],
        way: Way,
        rate: float,
        seconds: float,
    ) -> None:
        handle, offset, size = memory
        numbers = [offset, size, way.copy, way.batch, way.streams, rate * 1e9, seconds]
        command = [sys.executable, __file__, str(library), handle.hex(), *map(str, numbers)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        if self.process.stdout.readline().strip() != "running":
            raise RuntimeError("the bare mover did not start")

    def stop(self) -> dict[str, Any]:
        out, _ = self.process.communicate(timeout=60)
        report: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
        return report


def main() -> None:
    path, handle, offset, size, copy, batch, streams, rate, seconds = sys.argv[1:]
    library = ctypes.CDLL(path)
    raw = (ctypes.c_uint8 * 64).from_buffer_copy(bytes.fromhex(handle))
    if error := library.mover_open(raw, ctypes.c_uint64(int(offset))):
        raise OSError(f"the engine's memory cannot be opened: CUDA error {error}")
    asked = _Asked(int(size), int(copy), int(batch), int(streams), float(rate), float(seconds))
    got = _Got()
    print("running", flush=True)
    if error := library.mover_move(ctypes.byref(asked), ctypes.byref(got)):
        raise OSError(f"the mover: CUDA error {error}")
    report = {"got_gb_s": got.bytes_a_second / 1e9, "call_us": 1e6 * got.call_seconds}
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
