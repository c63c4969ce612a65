# SPDX-License-Identifier: Apache-2.0
"""KV that was written in one packing is read back in another.

Source and target are filled by vLLM's own cache-update operator, or by plain indexing for strided
layouts; between them lie a real daemon and a lossless chunk in its store. Both ways into a region
are used: shared memory, and attaching to this process.
"""

import fcntl
import functools
import itertools
import mmap
import os
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("vllm")

from shadowserve import daemon, layout, memory  # noqa: E402
from shadowserve.binding import (  # noqa: E402
    CHUNK_TOKENS,
    Codec,
    Dtype,
    Memory,
    Op,
    Request,
    Session,
    Tier,
)
from shadowserve.options import Options  # noqa: E402

BUILD = Path(
    os.environ.get("SHADOWSERVE_BUILD", Path(__file__).resolve().parents[2] / "build" / "release")
)
LAYERS, HEADS, DIM, BLOCK, BLOCKS = 3, 2, 64, 32, 20
SHAPE = layout.Shape(Dtype.BF16, LAYERS, HEADS, 0, DIM, DIM, 0, 1)
TENSOR = BLOCKS * HEADS * 2 * BLOCK * DIM  # elements of a layer
PACKINGS = ("vec", "vec16", "amx", "NHD", "HND")


@pytest.fixture(scope="module")
def socket(tmp_path_factory):
    program = BUILD / "daemon" / "shadowserved"
    if not program.exists():
        pytest.skip(f"{program} is not built")
    place = tmp_path_factory.mktemp("region")
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_RUNTIME_DIR", str(place))
    patch.setenv("XDG_CACHE_HOME", str(place / "cache"))
    patch.delenv("SHADOWSERVE_SOCKET", raising=False)
    patch.setattr(daemon, "IDLE_EXIT_S", 1)
    yield daemon.find_or_start(Options(daemon=str(program), store=f"file:{place}/store"))
    patch.undo()


@functools.cache
def packings_of(packing):
    if packing == "NHD":
        return layout.strided_packings(BLOCK, DIM, DIM, HEADS * 2 * DIM, 2 * DIM)
    if packing == "HND":
        return layout.strided_packings(BLOCK, DIM, DIM, 2 * DIM, BLOCK * 2 * DIM)
    return layout.probe_cpu_attention(packing, torch.bfloat16, BLOCK, DIM)


def fill(layer, packing, key, value, block):
    """Write one block's K and V ([token][head][dim]) as an engine of that packing would."""
    from vllm import _custom_ops as ops

    if packing == "NHD":
        layer.view(BLOCKS, BLOCK, HEADS, 2 * DIM)[block] = torch.cat([key, value], dim=2)
    elif packing == "HND":
        both = torch.cat([key, value], dim=2).permute(1, 0, 2)
        layer.view(BLOCKS, HEADS, BLOCK, 2 * DIM)[block] = both
    else:
        k_half, v_half = layer.view(BLOCKS, HEADS, 2 * BLOCK, DIM).chunk(2, dim=2)
        slots = torch.arange(BLOCK) + block * BLOCK
        ops.cpu_attn_reshape_and_cache(key, value, k_half, v_half, slots, packing)


class Engine:
    """KV memory in one packing, registered with the daemon."""

    def __init__(self, socket, packing, kind):
        self.packing = packing
        size = LAYERS * TENSOR * 2
        self.fd = os.memfd_create("kv", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, size)
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        self.kv = torch.frombuffer(mmap.mmap(self.fd, size), dtype=torch.bfloat16)
        self.kv = self.kv.view(LAYERS, TENSOR)
        self.session = Session.connect(socket, f"{packing}-{kind.name}")
        stride = TENSOR // BLOCKS * 2
        places = [layout.LayerPlace(index * TENSOR * 2, stride) for index in range(LAYERS)]
        made = layout.region_layout(
            SHAPE, packings_of(packing), places, 2, BLOCK, BLOCKS, b"a model."
        )
        address = 0
        if kind == Memory.ADDRESS:
            memory.allow_attach(memory.pid_of_pidfd(self.session.daemon_pidfd))
            address = self.kv.data_ptr()
        fd = self.fd if kind == Memory.MEMFD else -1
        self.region = self.session.region_register(kind, made, size, fd, address)

    def write(self, values, blocks):
        """values: [layer][K or V][token][head][dim]"""
        for index, pair in enumerate(values):
            for piece, block in enumerate(blocks):
                tokens = slice(piece * BLOCK, (piece + 1) * BLOCK)
                fill(self.kv[index], self.packing, pair[0][tokens], pair[1][tokens], block)

    def ask(self, op, **fields):
        assert self.session.submit([Request(op, 1, **fields)]) == 1
        (done,) = self.session.poll(10_000)
        return done

    def close(self):
        self.session.close()
        os.close(self.fd)


def random_kv(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(LAYERS, 2, CHUNK_TOKENS, HEADS, DIM, generator=generator).bfloat16()


PAIRS = [(*pair, Memory.MEMFD) for pair in itertools.product(PACKINGS, repeat=2)]
PAIRS += [(one, PACKINGS[index - 1], Memory.ADDRESS) for index, one in enumerate(PACKINGS)]


@pytest.mark.parametrize(("source", "target", "kind"), PAIRS, ids=str)
def test_from_any_packing_into_any(socket, source, target, kind):
    seed = PACKINGS.index(source) * 8 + PACKINGS.index(target)
    values, key = random_kv(seed), bytes([seed, kind]) + os.urandom(30)
    writer, reader = Engine(socket, source, kind), Engine(socket, target, kind)
    try:
        from_blocks, into_blocks = [3, 0, 7, 1, 19, 5, 6, 2], [11, 2, 3, 18, 5, 1, 0, 9]
        writer.write(values, from_blocks)
        stored = writer.ask(
            Op.STORE,
            keys=key,
            blocks=from_blocks,
            region=writer.region,
            tier=Tier.LOSSLESS,
            codec=Codec.R16,
        )
        assert (stored.status, stored.tokens) == (0, CHUNK_TOKENS)
        assert writer.ask(Op.FLUSH, deadline_ms=5000).status == 0
        first = 2  # begin in the middle of the chunk: two blocks are the engine's own
        fetched = reader.ask(
            Op.FETCH,
            keys=key,
            blocks=into_blocks[first:],
            region=reader.region,
            first_token=first * BLOCK,
        )
        assert (fetched.status, fetched.tokens) == (0, CHUNK_TOKENS - first * BLOCK)
        expected = torch.zeros_like(reader.kv)
        for index in range(LAYERS):
            for piece in range(first, len(into_blocks)):
                tokens = slice(piece * BLOCK, (piece + 1) * BLOCK)
                pair = values[index]
                fill(expected[index], target, pair[0][tokens], pair[1][tokens], into_blocks[piece])
        assert torch.equal(reader.kv.view(torch.int16), expected.view(torch.int16))
    finally:
        writer.close()
        reader.close()
