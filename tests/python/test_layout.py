# SPDX-License-Identifier: Apache-2.0
"""Packings: digits found from places, and vLLM's own CPU packings probed on whatever machine."""

import os
import random

import pytest
from shadowserve import layout
from shadowserve.binding import Axis, Digit, Dtype


def place_in(digits, index):
    return layout.place_of(digits, index)


@pytest.mark.parametrize("seed", range(20))
def test_mixed_radix_finds_what_was_laid_out(seed):
    rng = random.Random(int(os.environ.get("SSV_SEED", seed)))
    extents = [rng.choice([2, 3, 4, 5, 8]) for _ in range(rng.randint(1, 4))]
    strides, span = [], 1
    order = list(range(len(extents)))
    rng.shuffle(order)
    by_digit = {}
    for index in order:
        by_digit[index] = span
        span *= extents[index]
    strides = [by_digit[index] for index in range(len(extents))]
    made = [Digit(Axis.TOKEN, e, s) for e, s in zip(extents, strides, strict=True)]
    count = 1
    for extent in extents:
        count *= extent
    places = [layout.place_of(made, i) for i in range(count)]
    found = layout.mixed_radix(Axis.TOKEN, places)
    assert [layout.place_of(found, i) for i in range(count)] == places


def test_mixed_radix_of_one_element():
    assert layout.mixed_radix(Axis.HEAD, [7]) == (Digit(Axis.HEAD, 1, 0),)


def test_a_packing_that_is_no_sum_is_refused():
    def swizzled(t, h, d):
        return t * 8 + (d ^ (t & 7))

    with pytest.raises(layout.LayoutError):
        layout.packing_of(swizzled, 8, 1, 8)


def test_strided_packings_of_both_orders():
    k, v = layout.strided_packings(16, 128, 128, token_stride=8 * 256, head_stride=256)  # NHD
    assert (k.origin, v.origin, k.head_stride) == (0, 128, 256)
    assert k.tokens == (Digit(Axis.TOKEN, 16, 2048),)
    assert v.dims == (Digit(Axis.DIM, 128, 1),)
    k, _ = layout.strided_packings(16, 128, 128, token_stride=256, head_stride=16 * 256)  # HND
    assert k.tokens == (Digit(Axis.TOKEN, 16, 256),) and k.head_stride == 4096


def test_kernel_blocks_inside_an_engine_block():
    k, _ = layout.strided_packings(16, 64, 64, token_stride=128, head_stride=16 * 128)
    whole = layout.split_blocks(k, 4, 8192)
    assert layout.place_of(whole.tokens, 17) == 8192 + 128


def test_region_layout_lists_every_tensor_once():
    shape = layout.Shape(Dtype.BF16, 3, 2, 4, 64, 64, 1, 2)
    packings = layout.strided_packings(32, 64, 64, token_stride=128, head_stride=4096)
    places = [layout.LayerPlace(i * 1000, 16384) for i in range(3)]
    made = layout.region_layout(shape, packings, places, 2, 32, 10, bytes(range(32)))
    assert [(t.layer, t.part, t.offset) for t in made.tensors] == [
        (layer, part, layer * 1000 + part * 128) for layer in range(3) for part in range(2)
    ]
    assert made.parts[0].head0 == 4 and made.model == bytes(range(8))
    for part in made.parts:
        for axis, size in ((Axis.TOKEN, 32), (Axis.HEAD, 2), (Axis.DIM, 64)):
            product = 1
            for digit in part.digits:
                product *= digit.extent if digit.axis == axis else 1
            assert product == size


def test_a_block_that_does_not_divide_a_chunk_is_refused():
    shape = layout.Shape(Dtype.BF16, 1, 2, 0, 64, 64, 0, 1)
    packings = layout.strided_packings(48, 64, 64, token_stride=128, head_stride=48 * 128)
    with pytest.raises(layout.LayoutError, match="48"):
        layout.region_layout(shape, packings, [layout.LayerPlace(0, 1)], 2, 48, 1, bytes(32))


# vLLM packs tiles ("amx") for bf16 alone. Every packing can be written on every machine.
PACKINGS = [
    (isa, dtype) for isa in ("vec", "vec16") for dtype in ("bfloat16", "float16", "float32")
] + [("amx", "bfloat16")]


@pytest.mark.parametrize("dim", [64, 96, 128])
@pytest.mark.parametrize(("isa", "dtype"), PACKINGS)
def test_probing_vllm_cpu_attention(isa, dtype, dim):
    torch = pytest.importorskip("torch")
    pytest.importorskip("vllm")
    block = 32
    k, v = layout.probe_cpu_attention(isa, getattr(torch, dtype), block, dim)
    assert k.origin == 0 and v.origin == block * dim
    assert k.head_stride == v.head_stride == 2 * block * dim
    places = {
        layout.place_of(k.tokens, t) + layout.place_of(k.dims, d)
        for t in range(block)
        for d in range(dim)
    }
    assert places == set(range(block * dim))
    if isa == "vec":
        assert k.tokens == (Digit(Axis.TOKEN, block, 1),)
        assert k.dims == (Digit(Axis.DIM, dim, block),)
        assert v.tokens == (Digit(Axis.TOKEN, block, dim),)
    if isa == "amx":
        assert len(k.dims) > 1, "tiles were expected"


@pytest.mark.parametrize("block", [64, 128])
def test_probing_larger_blocks(block):
    torch = pytest.importorskip("torch")
    pytest.importorskip("vllm")
    for isa in ("vec", "amx"):
        k, v = layout.probe_cpu_attention(isa, torch.bfloat16, block, 64)
        assert v.origin == block * 64 and k.head_stride == 2 * block * 64


@pytest.mark.parametrize("isa", ["vec", "amx"])
def test_probing_an_fp8_cache(isa):
    torch = pytest.importorskip("torch")
    pytest.importorskip("vllm")
    k, v = layout.probe_cpu_attention(isa, torch.bfloat16, 32, 64, "fp8_e4m3")
    assert (k.origin, v.origin) == (0, 32 * 64)
