# SPDX-License-Identifier: Apache-2.0
"""Decodes containers on the GPU from a process of its own, into memory that the engine exported:
other_process.py LIBRARY HANDLE OFFSET RATE SECONDS CONTAINER BLOCKS [CONTAINER BLOCKS ...]"""

import ctypes
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "python"))

import torch
from movers import GpuDecoder, GpuDecodes


class _Handle(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_uint8 * 64)]


def open_memory(handle: bytes) -> int:
    torch.zeros(1, device="cuda")
    driver = ctypes.CDLL("libcuda.so.1")
    pointer = ctypes.c_uint64()
    raw = _Handle((ctypes.c_uint8 * 64)(*handle))
    result = driver.cuIpcOpenMemHandle_v2(ctypes.byref(pointer), raw, 1)
    if result:
        raise OSError(f"cuIpcOpenMemHandle: CUDA error {result}")
    return pointer.value


def main() -> None:
    library, handle, offset, rate, seconds, *rest = sys.argv[1:]
    kv = open_memory(bytes.fromhex(handle)) + int(offset)
    decoders = [
        GpuDecoder(Path(library), Path(path).read_bytes(), kv, json.loads(blocks))
        for path, blocks in zip(rest[::2], rest[1::2], strict=True)
    ]
    mover = GpuDecodes(decoders, float(rate))
    mover.start()
    print("running", flush=True)
    time.sleep(float(seconds))
    print(json.dumps(mover.stop()), flush=True)


if __name__ == "__main__":
    main()
