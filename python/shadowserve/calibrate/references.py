# SPDX-License-Identifier: Apache-2.0
"""What other systems do to KV: the caches that they would give back, and the bits they would store.

Works on [layer][part][token][head][dim], part 0 being K and part 1 V. A size is given at fixed
width and as an ideal order-0 coder would have it: never less than the entropy of the symbols under
tables of a chunk of 256 tokens, plus the tables (8 bits a symbol that occurs) and scales and zero
points of 16 bits. That flatters these methods a little: a real coder needs more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

CHUNK = 256
GROUP = 64  # channels that share a table, as in our containers
META_BITS, TABLE_BITS = 16, 8
SYMBOLS_MAX = 1024
E4M3_MAX = 448


@dataclass(frozen=True)
class Reference:
    """A quantiser. run: tensor of one chunk, 0 for K or 1 for V, depth 0..1 to symbols, values and
    how many scales and zero points it keeps."""

    bits: Callable[[int, float], int]  # of an element at fixed width
    run: Callable[[Any, int, float], tuple[Any, Any, int]]
    sinks: bool  # leading tokens stay exact, as in our containers
    chunked: bool = True  # scales are of a chunk, not of the whole prefix
    channel_tables: bool = False  # an entropy coder may have a table for each channel


def _integers(bits: int) -> Reference:
    """Between minimum and maximum: K per channel of a chunk, V per token and head."""

    def run(x: Any, part: int, depth: float) -> tuple[Any, Any, int]:
        axis = 0 if part == 0 else 2
        low, high = x.amin(axis, keepdim=True), x.amax(axis, keepdim=True)
        scale = ((high - low) / (2**bits - 1)).clamp_min(1e-8)
        symbols = torch.round((x - low) / scale)
        return symbols, symbols * scale + low, 2 * low.numel()

    return Reference(lambda part, depth: bits, run, sinks=True)


def _fp8(x: Any, part: int, depth: float) -> tuple[Any, Any, int]:
    """e4m3 with one scale a head."""
    scale = (x.abs().amax((0, 2), keepdim=True) / E4M3_MAX).clamp_min(1e-12)
    coded = (x / scale).to(torch.float8_e4m3fn)
    return coded.view(torch.uint8), coded.float() * scale, scale.numel()


def _bins(part: int, depth: float) -> int:
    return 32 if depth < (10 / 32 if part == 0 else 2 / 32) else 16


def _cachegen(x: Any, part: int, depth: float) -> tuple[Any, Any, int]:
    """CacheGen's bins as deployed: the largest magnitude of a token over all its channels, 32 bins
    for keys of the first 10 of 32 layers and values of the first 2, else 16."""
    top = x.flatten(1).abs().amax(1)[:, None, None].clamp_min(1e-8)
    scale = top / (_bins(part, depth) // 2 - 1)
    symbols = torch.round(x / scale)
    return symbols, symbols * scale, scale.numel()


REFERENCES: dict[str, Reference] = {
    "FP8": Reference(lambda part, depth: 8, _fp8, sinks=False, chunked=False),
    "int8": _integers(8),
    "int4": _integers(4),
    "int2": _integers(2),
    "CacheGen": Reference(
        lambda part, depth: _bins(part, depth).bit_length() - 1,
        _cachegen,
        sinks=True,
        channel_tables=True,
    ),
}


@dataclass(frozen=True)
class Coded:
    kv: Any
    ratio: float  # with ideal entropy coding, 0 where it was not asked for
    packed_ratio: float


def entropy_bits(symbols: Any, group: int) -> float:
    """Order-0 bits of integer symbols [tokens][channels], a table for `group` channels each."""
    symbols = symbols.long()
    symbols = symbols - symbols.amin()
    if int(symbols.amax()) >= SYMBOLS_MAX:
        raise ValueError(f"{int(symbols.amax()) + 1} symbols, at most {SYMBOLS_MAX}")
    channels = symbols.shape[1]
    tables = -(-channels // group)
    place = torch.arange(channels) // group * SYMBOLS_MAX
    counts = torch.bincount((symbols + place).flatten(), minlength=tables * SYMBOLS_MAX)
    counts = counts.view(tables, SYMBOLS_MAX).double()
    share = counts / counts.sum(1, keepdim=True)
    bits = -(counts * torch.where(counts > 0, share.log2(), torch.zeros_like(share))).sum()
    return float(bits) + TABLE_BITS * int((counts > 0).sum())


def _coded_bits(reference: Reference, symbols: Any) -> float:
    groups = (1, GROUP) if reference.channel_tables else (GROUP,)
    total = 0.0
    for first in range(0, symbols.shape[0], CHUNK):
        chunk = symbols[first : first + CHUNK].flatten(1)
        total += min(entropy_bits(chunk, group) for group in groups)
    return total


def code(kv: Any, name: str, exact: int, entropy: bool = False) -> Coded:
    """The KV that a prefix comes back as. exact: leading tokens that are kept as they are by those
    references that do."""
    reference = REFERENCES[name]
    layers, parts, tokens = kv.shape[:3]
    kept = exact if reference.sinks else 0
    back, bits, packed = kv.clone(), 16.0 * kv[:, :, :kept].numel(), 16.0 * kv[:, :, :kept].numel()
    for layer in range(layers):
        for part in range(parts):
            depth = layer / layers
            for first in range(0, tokens, CHUNK if reference.chunked else tokens):
                begin, end = max(first, kept), first + (CHUNK if reference.chunked else tokens)
                x = kv[layer, part, begin:end].float()
                symbols, values, numbers = reference.run(x, part, depth)
                back[layer, part, begin:end] = values.to(kv.dtype)
                meta = META_BITS * numbers
                packed += reference.bits(part, depth) * x.numel() + meta
                bits += (_coded_bits(reference, symbols) if entropy else 0) + meta
    whole = 16.0 * kv.numel()
    return Coded(back, whole / bits if entropy else 0.0, whole / packed)
