# SPDX-License-Identifier: Apache-2.0
"""The engine with its KV, the daemon, and the two requests that every case is made of."""

from __future__ import annotations

import hashlib
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from engine import BLOCK, BLOCK_ELEMENTS, DIM, KV_HEADS, LAYER_ELEMENTS, LAYERS, Engine
from machine import HUGE_PAGES, reserve_huge_pages
from movers import CHUNK_BLOCKS, CHUNK_BYTES
from servers import Server
from shadowserve import binding, gpu
from steps import Steps

CHUNKS = 32  # 8,192 tokens
IN_FLIGHT = 48  # four a worker


class Daemon(Server):
    def __init__(
        self,
        folder: Path,
        store: str,
        places: dict[str, list[int]],
        workers: str,
        prefix: list[str],
        program: Path | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.socket = folder / "d.sock"
        build = Path(os.environ["SHADOWSERVE_BUILD"])
        program = program or build / "daemon" / "shadowserved"
        self.command = [str(program), "--socket", str(self.socket)]
        self.command += ["--store", store, "--arena", "4GiB", "--captures", "4"]
        self.command += ["--huge-pages"] if reserve_huge_pages(HUGE_PAGES) >= HUGE_PAGES else []
        self.command += ["--cores", ",".join(map(str, places[workers]))]
        self.command += ["--control-core", str(places["control"][0])]
        everywhere = sorted({core for group in places.values() for core in group})
        pin = ["taskset", "-c", ",".join(map(str, everywhere))]
        super().__init__("shadowserved", [*prefix, *pin, *self.command], folder)
        self.wait_ready()

    def ready(self) -> bool:
        return self.socket.exists()


# ---- the engine's KV -----------------------------------------------------------------------------


def layout(blocks: int) -> binding.Layout:
    digits = (
        binding.Digit(binding.Axis.TOKEN, BLOCK, KV_HEADS * 2 * DIM),
        binding.Digit(binding.Axis.HEAD, KV_HEADS, 2 * DIM),
        binding.Digit(binding.Axis.DIM, DIM, 1),
    )
    parts = tuple(
        binding.Part(role, 0, KV_HEADS, DIM, digits) for role in (binding.Role.K, binding.Role.V)
    )
    tensors = tuple(
        binding.Tensor(layer, part, (layer * LAYER_ELEMENTS + part * DIM) * 2, BLOCK_ELEMENTS * 2)
        for layer in range(LAYERS)
        for part in range(2)
    )
    return binding.Layout(
        dtype=binding.Dtype.BF16,
        layer0=0,
        layers_count=LAYERS,
        layers_total=LAYERS,
        rank=0,
        ranks_count=1,
        block_tokens=BLOCK,
        blocks_count=blocks,
        model=b"gpubench",
        parts=parts,
        tensors=tensors,
    )


def fill(kv: torch.Tensor) -> None:
    """KV with the statistics of a real cache: keys have channel means, outlier channels and
    neighbouring tokens alike in half of the channels; values have token norms that vary."""
    generator = torch.Generator(device="cuda").manual_seed(7)
    blocks = kv.shape[0]
    tokens = blocks * BLOCK
    for layer in range(LAYERS):
        noise = torch.randn(2, tokens, KV_HEADS, DIM, device="cuda", generator=generator)
        spread = torch.exp(0.35 * torch.randn(KV_HEADS, DIM, device="cuda", generator=generator))
        mean = 0.6 * spread * torch.randn(KV_HEADS, DIM, device="cuda", generator=generator)
        mean[:, ::37] *= 8
        slow = torch.arange(DIM, device="cuda") % 2 == 0
        k = noise[0]
        k[1:, :, slow] = 0.7 * k[:-1, :, slow] + 0.7 * k[1:, :, slow]
        k = mean + spread * k
        gain = torch.exp(
            0.35 * torch.randn(tokens, KV_HEADS, 1, device="cuda", generator=generator)
        )
        v = 0.3 * gain * noise[1]
        kv[:, layer, :, :, 0] = k.view(blocks, BLOCK, KV_HEADS, DIM).to(kv.dtype)
        kv[:, layer, :, :, 1] = v.view(blocks, BLOCK, KV_HEADS, DIM).to(kv.dtype)


class Rig:
    """The engine, its blocks and their copy for comparison."""

    def __init__(self, batch: int, context: int) -> None:
        pages = batch * context // BLOCK
        self.engine = Engine(batch, context, pages + (CHUNKS + IN_FLIGHT) * CHUNK_BLOCKS)
        self.kv = self.engine.kv
        self.source = list(range(pages, pages + CHUNKS * CHUNK_BLOCKS))
        self.target = list(range(pages + len(self.source), pages + 2 * len(self.source)))
        self.beyond = list(range(self.target[-1] + 1, self.kv.shape[0]))  # more to fetch into
        fill(self.kv[self.source[0] : self.source[-1] + 1])
        torch.cuda.synchronize()
        self.before = self.kv[: self.target[0]].clone()
        self.steps = Steps(self.engine)

    def register(self, session: binding.Session) -> int:
        exported = gpu.export(self.kv.data_ptr(), 0)
        return session.region_register(
            binding.Memory.GPU_IPC,
            layout(self.kv.shape[0]),
            self.kv.numel() * 2,
            gpu=exported,
        )

    def exported_targets(self) -> tuple[bytes, int, int]:
        """The targets' memory for another process: handle, offset, bytes."""
        exported = gpu.export(self.kv.data_ptr(), 0)
        block = BLOCK_ELEMENTS * 2
        return exported.handle, exported.offset + self.target[0] * block, len(self.target) * block

    def untouched(self) -> bool:
        """Is everything but the targets as it was?"""
        return bool(
            torch.equal(self.kv[: self.target[0]].view(torch.int16), self.before.view(torch.int16))
        )

    def wrong(self) -> int:
        """Elements of the targets that differ from the source."""
        a = self.kv[self.source[0] : self.source[-1] + 1].view(torch.int16)
        b = self.kv[self.target[0] : self.target[-1] + 1].view(torch.int16)
        return int((a != b).sum())

    def places(self, count: int) -> list[list[int]]:
        """Blocks for so many chunks, IN_FLIGHT at most."""
        blocks = self.target + self.beyond
        return [blocks[i * CHUNK_BLOCKS : (i + 1) * CHUNK_BLOCKS] for i in range(count)]

    def relative_error(self) -> list[float]:
        a = self.kv[self.source[0] : self.source[-1] + 1]
        b = self.kv[self.target[0] : self.target[-1] + 1]
        errors = []
        for part in range(2):
            x, y = a[:, :, :, :, part].float(), b[:, :, :, :, part].float()
            errors.append(float((x - y).norm() / x.norm()))
        return errors


def chunk_keys(name: str) -> list[bytes]:
    return [hashlib.sha256(f"{name} {i}".encode()).digest() for i in range(CHUNKS)]


def call(
    session: binding.Session, request: binding.Request, seconds: float = 60
) -> binding.Completion:
    assert session.submit([request]) == 1
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for done in session.poll(timeout_ms=100):
            return done
    raise TimeoutError(f"{request.op.name} did not complete in {seconds} s")


def store_chunks(
    session: binding.Session, region: int, rig: Rig, tier: binding.Tier
) -> dict[str, Any]:
    """All source chunks, captured from the GPU; one at a time, so that none is dropped."""
    begin = time.monotonic()
    capture = []
    for i, key in enumerate(chunk_keys(tier.name)):
        done = call(
            session,
            binding.Request(
                op=binding.Op.STORE,
                user_data=i + 1,
                region=region,
                keys=key,
                blocks=rig.source[i * CHUNK_BLOCKS : (i + 1) * CHUNK_BLOCKS],
                position=256 * i,
                tier=tier,
            ),
        )
        if done.status or done.tokens != 256:
            raise RuntimeError(f"STORE of chunk {i}: status {done.status}, {done.tokens} tokens")
        capture.append(done.elapsed_us / 1e6)
        flushed = call(
            session, binding.Request(op=binding.Op.FLUSH, user_data=10000 + i, deadline_ms=60000)
        )
        assert flushed.status == 0, flushed
    return {
        "capture_gb_s_p50": CHUNK_BYTES / 1e9 / statistics.median(capture),
        "seconds": time.monotonic() - begin,
    }


def fetch_all(
    session: binding.Session, region: int, rig: Rig, tier: binding.Tier
) -> binding.Completion:
    done = call(
        session,
        binding.Request(
            op=binding.Op.FETCH,
            user_data=99,
            region=region,
            keys=b"".join(chunk_keys(tier.name)),
            blocks=rig.target,
            deadline_ms=60000,
        ),
    )
    if done.status or done.tokens != CHUNKS * 256:
        raise RuntimeError(f"FETCH: status {done.status}, {done.tokens} tokens")
    return done
