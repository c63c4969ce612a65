# SPDX-License-Identifier: Apache-2.0
"""What other systems do to KV, for the quality part: each returns the KV that they would give back
and the bits that they would store.

Works on [tokens][head][dim] floats of one tensor, a chunk of 256 tokens at a time. A size is what
an ideal order-0 coder needs, never less than the entropy of the symbols under tables of that chunk,
plus the tables (8 bits a symbol that occurs) and scales and zero points of 16 bits. That flatters
these methods a little: a real coder needs more. `packed` is the same at fixed width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

CHUNK = 256
GROUP = 64  # channels that share a table, as in our containers
META_BITS, TABLE_BITS = 16, 8
SYMBOLS_MAX = 1024


@dataclass
class Coded:
    values: torch.Tensor
    bits: float  # entropy coded
    packed_bits: float


Quantiser = Callable[[torch.Tensor, str, float], Coded]  # tensor, "k" or "v", depth 0..1


def entropy_bits(symbols: torch.Tensor, group: int) -> float:
    """Order-0 bits of integer symbols [tokens][channels], a table for `group` channels each."""
    symbols = (symbols - symbols.amin()).long()
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


def bf16(values: torch.Tensor) -> torch.Tensor:
    return values.to(torch.bfloat16).float()


def integers(bits: int) -> Quantiser:
    """Between minimum and maximum: K per channel of a chunk, V per token and head."""

    def code(x: torch.Tensor, kind: str, depth: float) -> Coded:
        axis = 0 if kind == "k" else 2
        low, high = x.amin(axis, keepdim=True), x.amax(axis, keepdim=True)
        scale = ((high - low) / (2**bits - 1)).clamp_min(1e-8)
        symbols = torch.round((x - low) / scale)
        meta = 2 * META_BITS * low.numel()
        size = entropy_bits(symbols.flatten(1), GROUP)
        return Coded(bf16(symbols * scale + low), size + meta, bits * x.numel() + meta)

    return code


def fp8(x: torch.Tensor, kind: str, depth: float) -> Coded:
    """e4m3 with one scale a head."""
    scale = (x.abs().amax((0, 2), keepdim=True) / 448).clamp_min(1e-12)
    coded = (x / scale).to(torch.float8_e4m3fn)
    meta = META_BITS * scale.numel()
    size = entropy_bits(coded.view(torch.uint8).flatten(1), GROUP)
    return Coded(bf16(coded.float() * scale), size + meta, 8 * x.numel() + meta)


def cachegen(x: torch.Tensor, kind: str, depth: float) -> Coded:
    """CacheGen's bins as deployed: the largest magnitude of a token over all its channels, 32 bins
    for keys of the first 10 of 32 layers and values of the first 2, else 16; tables of a channel or
    of 64, whichever is smaller (one a channel costs much in a chunk of 256 tokens)."""
    bins = 32 if depth < (10 / 32 if kind == "k" else 2 / 32) else 16
    top = x.flatten(1).abs().amax(1)[:, None, None].clamp_min(1e-8)
    scale = top / (bins // 2 - 1)
    symbols = torch.round(x / scale)
    meta = META_BITS * scale.numel()
    size = min(entropy_bits(symbols.flatten(1), group) for group in (1, GROUP))
    width = bins.bit_length() - 1
    return Coded(bf16(symbols * scale), size + meta, width * x.numel() + meta)


QUANTISERS: dict[str, Quantiser] = {
    "FP8": fp8,
    "int8": integers(8),
    "int4": integers(4),
    "int2": integers(2),
    "CacheGen": cachegen,
}


def code_prefix(
    kv: torch.Tensor, quantiser: Quantiser, exact: int
) -> tuple[torch.Tensor, float, float]:
    """A prefix as [layer][part][token][head][dim], its first `exact` tokens kept as they are (like
    our containers'): the KV given back, its ratio entropy coded, and packed."""
    layers, parts, tokens = kv.shape[:3]
    back, bits, packed = kv.clone(), 0.0, 0.0
    for layer in range(layers):
        for part in range(parts):
            for first in range(0, tokens, CHUNK):
                begin = max(first, exact)
                x = kv[layer, part, begin : first + CHUNK].float()
                coded = quantiser(x, "kv"[part], layer / layers)
                back[layer, part, begin : first + CHUNK] = coded.values.to(kv.dtype)
                bits += coded.bits
                packed += coded.packed_bits
    kept = 16.0 * kv[:, :, :exact].numel()
    whole = 16.0 * kv.numel()
    return back, whole / (bits + kept), whole / (packed + kept)
