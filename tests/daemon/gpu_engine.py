# SPDX-License-Identifier: Apache-2.0
"""An engine whose KV is in GPU memory, of a stand-in driver: gpu_engine.py SOCKET

Stores two chunks from some blocks, fetches them into others, and says "ok" when every byte of the
memory is what it must be. A process of its own, because the driver is found by LD_LIBRARY_PATH.
"""

from __future__ import annotations

import ctypes
import random
import sys
import time

from shadowserve import binding as ssv
from shadowserve import gpu
from shadowserve.binding import Axis, Digit, Layout, Op, Part, Request, Role, Tensor

LAYERS, HEADS, DIM, BLOCK_TOKENS, BLOCKS = 4, 4, 64, 16, 80
LAYER_BYTES = BLOCK_TOKENS * HEADS * 2 * DIM * 2
BLOCK_BYTES = LAYERS * LAYER_BYTES
OFFSET = 4096  # of the region in its allocation
CHUNK_BLOCKS = 256 // BLOCK_TOKENS


def layout() -> Layout:
    digits = (
        Digit(Axis.TOKEN, BLOCK_TOKENS, HEADS * 2 * DIM),
        Digit(Axis.HEAD, HEADS, 2 * DIM),
        Digit(Axis.DIM, DIM, 1),
    )
    return Layout(
        dtype=ssv.Dtype.BF16,
        layer0=0,
        layers_count=LAYERS,
        layers_total=LAYERS,
        rank=0,
        ranks_count=1,
        block_tokens=BLOCK_TOKENS,
        blocks_count=BLOCKS,
        model=bytes(8),
        parts=(Part(Role.K, 0, HEADS, DIM, digits), Part(Role.V, 0, HEADS, DIM, digits)),
        tensors=tuple(
            Tensor(layer, part, layer * LAYER_BYTES + part * DIM * 2, BLOCK_BYTES)
            for layer in range(LAYERS)
            for part in range(2)
        ),
    )


def do(session: ssv.Session, request: Request) -> ssv.Completion:
    assert session.submit([request]) == 1
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for done in session.poll(timeout_ms=100):
            return done
    raise TimeoutError(request.op.name)


def main() -> None:
    driver = ctypes.CDLL("libcuda.so.1")
    pointer = ctypes.c_uint64()
    size = OFFSET + BLOCKS * BLOCK_BYTES
    assert driver.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(size)) == 0
    memory = (ctypes.c_uint8 * size).from_address(pointer.value)
    before = bytearray(random.Random(5).randbytes(size))
    memory[:] = before
    session = ssv.Session.connect(sys.argv[1], engine_id="gpu", connect_timeout_ms=20000)
    region = session.region_register(
        ssv.Memory.GPU_IPC,
        layout(),
        BLOCKS * BLOCK_BYTES,
        gpu=gpu.export(pointer.value + OFFSET, 0),
    )
    source = list(range(2, 2 + 2 * CHUNK_BLOCKS))
    target = [BLOCKS - 1 - i for i in range(2 * CHUNK_BLOCKS)]
    keys = bytes(range(64))
    stored = do(session, Request(Op.STORE, 1, keys=keys, blocks=source, region=region, tier=1))
    assert (stored.status, stored.tokens) == (0, 512), stored
    assert do(session, Request(Op.FLUSH, 2, deadline_ms=20000)).status == 0
    got = do(session, Request(Op.FETCH, 3, keys=keys, blocks=target, region=region))
    assert (got.status, got.tokens) == (0, 512), got
    for a, b in zip(source, target, strict=True):
        at, to = OFFSET + a * BLOCK_BYTES, OFFSET + b * BLOCK_BYTES
        before[to : to + BLOCK_BYTES] = before[at : at + BLOCK_BYTES]
    assert bytes(memory) == bytes(before), "some byte of the memory is wrong"
    session.region_unregister(region, 5000)
    session.close()
    driver.cuMemFree_v2(pointer)
    print("ok")


if __name__ == "__main__":
    main()
