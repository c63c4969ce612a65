# SPDX-License-Identifier: Apache-2.0
"""Tables for decode_r16.cu from a container (docs/container.md): where its streams and raw bits
lie, steps, offsets and delta bits. Trusting: it reads what our own encoder wrote a moment ago."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numpy as np

LANES = 64


@dataclass
class Tables:
    streams: list[tuple[int, int, int]] = field(default_factory=list)
    groups: list[bytes] = field(default_factory=list)
    scale: list[np.ndarray] = field(default_factory=list)
    offset: list[np.ndarray] = field(default_factory=list)
    delta: list[np.ndarray] = field(default_factory=list)
    exceptions: int = 0

    def arrays(self) -> dict[str, np.ndarray]:
        return {
            "streams": np.array(self.streams, dtype=np.uint32).reshape(-1),
            "groups": np.frombuffer(b"".join(self.groups), dtype=np.uint8).copy(),
            "scale": np.concatenate(self.scale).astype(np.float32),
            "offset": np.concatenate(self.offset).astype(np.int16),
            "delta": np.concatenate(self.delta).astype(np.int16),
        }


def _meta(data: bytes, at: int, heads: int, groups: int, channels: int) -> tuple[np.ndarray, ...]:
    flags = data[at]
    if flags & ~7:
        raise ValueError(f"meta flags {flags}: step factors and channel orders are not read here")
    at += 1
    steps = np.frombuffer(data, np.float16, heads, at).astype(np.float32)
    at += 2 * heads
    bits = np.frombuffer(data, np.uint8, groups, at)
    at += groups
    frequency = np.frombuffer(data, np.uint8, 16 * groups, at).reshape(groups, 16)
    at += 16 * groups
    offset = np.zeros(channels, np.int16)
    if flags & 3:
        kind = np.int8 if flags & 1 else np.int16
        offset = np.frombuffer(data, kind, channels, at).astype(np.int16)
        at += offset.size * (1 if flags & 1 else 2)
    delta = np.zeros(channels, np.int16)
    if flags & 4:
        packed = np.frombuffer(data, np.uint8, (channels + 7) // 8, at)
        delta = np.unpackbits(packed, bitorder="little")[:channels].astype(np.int16)
    return steps, bits, frequency, offset, delta


def place_of(channel: int, part: int, dim: int) -> int:
    return (channel // dim * 2 + part) * dim + channel % dim


def read(data: bytes, heads: int, dim: int, layer_elements: int) -> Tables:
    """layer_elements: of a layer in a block of the engine, [token][head][part][dim]."""
    tables = Tables()
    channels = heads * dim
    (tokens,) = struct.unpack_from("<H", data, 76)
    (count,) = struct.unpack_from("<I", data, 124)
    for i in range(count):
        at = 256 + 48 * i
        offset, _, class_len, _, exceptions = struct.unpack_from("<5I", data, at)
        layer, part, codec, group0, groups = struct.unpack_from("<HBBHH", data, at + 20)
        streams = data[at + 29]
        (meta_at,) = struct.unpack_from("<I", data, at + 32)
        if codec != 2 or group0:
            raise ValueError(
                f"entry {i}: codec {codec}, group {group0}: r16, whole tensors expected"
            )
        wire = offset * 64
        first = len(tables.groups)
        lengths = struct.unpack_from(f"<{streams}I", data, wire)
        begin = wire + 4 * streams
        for k in range(streams):
            group, end = k * groups // streams, (k + 1) * groups // streams
            tables.streams.append((begin, first + group, end - group))
            begin += lengths[k]
        steps, bits, frequency, offsets, delta = _meta(data, meta_at, heads, groups, channels)
        raw = wire + class_len
        for g in range(groups):
            tables.groups.append(
                frequency[g].tobytes()
                + struct.pack(
                    "<4I",
                    raw,
                    bits[g],
                    layer * layer_elements + place_of(g * LANES, part, dim),
                    (2 * layer + part) * channels + g * LANES,
                )
            )
            raw += tokens * LANES * int(bits[g]) // 8
        tables.scale.append(np.repeat(steps, dim))
        tables.offset.append(offsets)
        tables.delta.append(delta)
        tables.exceptions += exceptions
    return tables
