# SPDX-License-Identifier: Apache-2.0
"""How an engine packs a KV block, found out by asking the engine itself.

Every packing met so far places an element at a sum of one stride per index digit. For CPU
attention the digits are discovered: index numbers, spelled bit by bit, are written through the
engine's own cache-update operator, and where each lands is read back. The digits are then checked
against every single index; a packing that is no such sum is refused. On GPUs the operator
writes in the same way into a cache of the engine's strides. Nothing here trusts a table of layouts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from shadowserve.binding import (
    BLOCK_TOKENS_MAX,
    CHUNK_TOKENS,
    DIGITS_MAX,
    Axis,
    Digit,
    Dtype,
    Layout,
    Part,
    Role,
    Tensor,
)


class LayoutError(ValueError):
    """The packing cannot be described, with the reason."""


@dataclass(frozen=True)
class Packing:
    """Where one part (K or V) of a block lies, in elements from the block's start."""

    origin: int
    tokens: tuple[Digit, ...]
    dims: tuple[Digit, ...]
    head_stride: int


def mixed_radix(axis: Axis, places: Sequence[int]) -> tuple[Digit, ...]:
    """The digits of one axis, least significant first, from the place of each of its indices."""
    count, base = len(places), places[0]
    if count == 1:
        return (Digit(axis, 1, 0),)
    digits = []
    done = 1
    while done < count:
        stride = places[done] - base
        extent = 2
        while extent * done < count and places[extent * done] - base == extent * stride:
            extent += 1
        if count % (done * extent) or stride < 0:
            raise LayoutError(f"{axis.name.lower()} places are no sum of digit strides")
        digits.append(Digit(axis, extent, stride))
        done *= extent
    return tuple(digits)


def place_of(digits: Sequence[Digit], index: int) -> int:
    place = 0
    for digit in digits:
        place += (index % digit.extent) * digit.stride
        index //= digit.extent
    return place


def packing_of(place: Callable[[int, int, int], int], tokens: int, heads: int, dim: int) -> Packing:
    """The packing behind place(token, head, dim); every index is checked."""
    origin = place(0, 0, 0)
    token_digits = mixed_radix(Axis.TOKEN, [place(t, 0, 0) for t in range(tokens)])
    dim_digits = mixed_radix(Axis.DIM, [place(0, 0, d) for d in range(dim)])
    head_stride = place(0, 1, 0) - origin if heads > 1 else 0
    token_places = [place_of(token_digits, t) for t in range(tokens)]
    dim_places = [place_of(dim_digits, d) for d in range(dim)]
    for head in range(heads):
        for t, token_place in enumerate(token_places):
            for d, dim_place in enumerate(dim_places):
                expected = origin + head * head_stride + token_place + dim_place
                if place(t, head, d) != expected:
                    raise LayoutError(
                        f"token {t} head {head} dim {d} lies at element {place(t, head, d)}, "
                        f"its digits say {expected}"
                    )
    return Packing(origin, token_digits, dim_digits, head_stride)


# ---- vLLM's CPU attention ------------------------------------------------------------------------

_PROBE_HEADS = 2
_PROBE_ELEMENTS_MAX = 1 << 26


def probe_cpu_attention(
    isa: str, dtype: Any, block_tokens: int, dim: int, kv_cache_dtype: str = "auto"
) -> tuple[Packing, Packing]:
    """Packings of K and V of one block, found by writing through vLLM's own operator.

    isa: what vLLM calls "vec", "vec16", "amx" ...; dtype: the torch dtype of keys and values.
    """
    import torch
    import vllm._C  # noqa: F401  registers the operator
    from vllm import _custom_ops as ops

    quantized = kv_cache_dtype not in ("auto", "bfloat16", "float16", "float32")
    cache_dtype = torch.uint8 if quantized else dtype
    cache = torch.zeros(2, _PROBE_HEADS, 2 * block_tokens, dim, dtype=cache_dtype)
    k_half, v_half = cache.chunk(2, dim=2)
    slots = torch.arange(block_tokens) + block_tokens  # block 1: block 0 must stay untouched
    count = block_tokens * _PROBE_HEADS * dim
    numbers = torch.arange(count) + 1
    found = []
    for write_key in (True, False):
        seen = torch.zeros(cache.numel(), dtype=torch.long)
        for bit in range(count.bit_length()):
            cache.zero_()
            ones = ((numbers >> bit) & 1).view(block_tokens, _PROBE_HEADS, dim).to(dtype)
            zeros = torch.zeros_like(ones)
            key, value = (ones, zeros) if write_key else (zeros, ones)
            ops.cpu_attn_reshape_and_cache(
                key, value, k_half, v_half, slots, isa, kv_cache_dtype=kv_cache_dtype
            )
            raw = cache.flatten()
            seen += (raw != 0).long() << bit
        found.append(_packing_from_numbers(seen.view(2, -1).tolist(), block_tokens, dim))
    return found[0], found[1]


def _packing_from_numbers(blocks: list[list[int]], block_tokens: int, dim: int) -> Packing:
    """blocks[b][element] is 0 or 1 + the index written there."""
    if any(blocks[0]):
        raise LayoutError("the operator wrote outside its block")
    return _packing_of_places(blocks[1], block_tokens, _PROBE_HEADS, dim)


# ---- strided tensors -----------------------------------------------------------------------------


def strided_packings(
    block_tokens: int, dim_k: int, dim_v: int, token_stride: int, head_stride: int
) -> tuple[Packing, Packing]:
    """K and V side by side in the content axis of a [block][head][token][content] view, whatever
    the order of head and token in memory (NHD, HND)."""

    def one(origin: int, dim: int) -> Packing:
        tokens = mixed_radix(Axis.TOKEN, [t * token_stride for t in range(block_tokens)])
        dims = mixed_radix(Axis.DIM, list(range(dim)))
        return Packing(origin, tokens, dims, head_stride)

    return one(0, dim_k), one(dim_k, dim_v)


def _integers(size: int) -> Any:
    """The integer type of that many bytes: not every type can be compared on every device."""
    import torch

    return {1: torch.int8, 2: torch.int16, 4: torch.int32}[size]


def probe_cache_update(
    update: Callable[[Any, Any, Any, Any], None], like: Any, dtype: Any, dim_k: int
) -> tuple[Packing, Packing]:
    """Packings of K and V of one block of a strided cache, found by writing through the engine's
    own operator: update(key, value, cache, slots). like: the engine's cache, [block][head][token]
    [content], whose strides, type and device the probe's cache has; dtype: of keys and values."""
    import torch

    _, heads, tokens, content = like.shape
    dims = (dim_k, content - dim_k)
    inner = zip(like.shape[1:], like.stride()[1:], strict=True)
    size = like.stride(0) + sum((n - 1) * stride for n, stride in inner) + 1
    if size > _PROBE_ELEMENTS_MAX:
        raise LayoutError(f"a block is spread over {size} elements")
    raw = torch.zeros(size, dtype=like.dtype, device=like.device)
    cache = raw.as_strided((2, *like.shape[1:]), like.stride())
    slots = torch.arange(tokens, device=like.device) + tokens  # block 1: block 0 must stay
    found = []
    for part, dim in enumerate(dims):
        count = tokens * heads * dim
        numbers = torch.arange(count, device=like.device) + 1
        seen = torch.zeros(raw.numel(), dtype=torch.long, device=like.device)
        for bit in range(count.bit_length()):
            raw.zero_()
            pair = [
                torch.zeros(tokens, heads, one, dtype=dtype, device=like.device) for one in dims
            ]
            pair[part] = ((numbers >> bit) & 1).view(tokens, heads, dim).to(dtype)
            update(pair[0], pair[1], cache, slots)
            seen += (raw.view(_integers(raw.element_size())) != 0).long() << bit
        if bool(seen[: like.stride(0)].any()):
            raise LayoutError("the operator wrote outside its block")
        found.append(_packing_of_places(seen[like.stride(0) :].tolist(), tokens, heads, dim))
    return found[0], found[1]


def _packing_of_places(block: list[int], tokens: int, heads: int, dim: int) -> Packing:
    """block[element] is 0 or 1 + the index written there."""
    where: dict[int, int] = {}
    for place, number in enumerate(block):
        if number and where.setdefault(number - 1, place) != place:
            raise LayoutError(f"index {number - 1} was written twice")
    if len(where) != tokens * heads * dim:
        raise LayoutError(f"{len(where)} of {tokens * heads * dim} indices were found")
    return packing_of(lambda t, h, d: where[(t * heads + h) * dim + d], tokens, heads, dim)


def split_blocks(packing: Packing, pieces: int, piece_stride: int) -> Packing:
    """The packing of an engine block that its kernel sees as several smaller ones."""
    if pieces == 1:
        return packing
    outer = Digit(Axis.TOKEN, pieces, piece_stride)
    return Packing(packing.origin, (*packing.tokens, outer), packing.dims, packing.head_stride)


# ---- a region's layout ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """One rank's share of the model: what keys and layouts need to know of it."""

    dtype: Dtype
    layers: int
    heads: int
    head0: int
    dim_k: int
    dim_v: int
    rank: int
    ranks_count: int

    def parts(self) -> tuple[Part, ...]:
        return (
            Part(Role.K, self.head0, self.heads, self.dim_k),
            Part(Role.V, self.head0, self.heads, self.dim_v),
        )


@dataclass(frozen=True)
class LayerPlace:
    """Where a layer's blocks lie: bytes from the region's start, bytes from block to block."""

    offset: int
    block_stride: int


def region_layout(
    shape: Shape,
    packings: tuple[Packing, Packing],
    layers: Sequence[LayerPlace],
    element_bytes: int,
    block_tokens: int,
    blocks_count: int,
    fingerprint: bytes,
) -> Layout:
    """The layout to register. layers: in the model's order."""
    if not 0 < block_tokens <= BLOCK_TOKENS_MAX or CHUNK_TOKENS % block_tokens:
        raise LayoutError(
            f"a block of {block_tokens} tokens does not divide a chunk of {CHUNK_TOKENS}"
        )
    parts = []
    for part, packing in zip(shape.parts(), packings, strict=True):
        head = Digit(Axis.HEAD, part.heads, packing.head_stride if part.heads > 1 else 0)
        digits = (*packing.tokens, *packing.dims, head)
        if len(digits) > DIGITS_MAX:
            raise LayoutError(f"{len(digits)} digits, {DIGITS_MAX} are the limit")
        parts.append(Part(part.role, part.head0, part.heads, part.dim, digits))
    tensors = tuple(
        Tensor(layer, part, place.offset + packing.origin * element_bytes, place.block_stride)
        for layer, place in enumerate(layers)
        for part, packing in enumerate(packings)
    )
    return Layout(
        dtype=shape.dtype,
        layer0=0,
        layers_count=shape.layers,
        layers_total=shape.layers,
        rank=shape.rank,
        ranks_count=shape.ranks_count,
        block_tokens=block_tokens,
        blocks_count=blocks_count,
        model=fingerprint[:8],
        parts=tuple(parts),
        tensors=tensors,
    )
