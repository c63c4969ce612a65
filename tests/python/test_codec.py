# SPDX-License-Identifier: Apache-2.0
"""The codec by ctypes: chunks to containers and back, with a profile's steps given as arrays."""

from __future__ import annotations

import ctypes
import random
import struct

import pytest
from shadowserve.codec import FACTOR_ONE, Codec, CodecError, Part, Shape, Steps

SHAPE = Shape("bf16", 3, 256, (Part("K", 2, 64), Part("V", 2, 64)))
HEADS = 3 * 2


def elements_of(shape: Shape) -> ctypes.Array[ctypes.c_uint16]:
    numbers = random.Random(1)
    count = shape.kv_bytes // 2
    out = (ctypes.c_uint16 * count)()
    for i in range(count):
        out[i] = struct.unpack("<I", struct.pack("<f", numbers.gauss(0, 1)))[0] >> 16
    return out


@pytest.fixture(scope="module")
def elements() -> ctypes.Array[ctypes.c_uint16]:
    return elements_of(SHAPE)


def values(elements: ctypes.Array[ctypes.c_uint16]) -> list[float]:
    words = (word << 16 for word in elements)
    return [struct.unpack("<f", struct.pack("<I", word))[0] for word in words]


def test_lossless_is_exact(elements: ctypes.Array[ctypes.c_uint16]) -> None:
    out = (ctypes.c_uint16 * len(elements))()
    with Codec() as codec:
        encoded = codec.encode(SHAPE, ctypes.addressof(elements), "lossless")
        codec.decode(encoded.container, ctypes.addressof(out), SHAPE.kv_bytes)
    assert bytes(out) == bytes(elements)
    assert encoded.errors == [[0.0, 0.0]] * 3
    assert len(encoded.container) < SHAPE.kv_bytes


def test_steps_are_scale_times_weight(elements: ctypes.Array[ctypes.c_uint16]) -> None:
    weights = [[1.0, 0.25] * 3, [0.5, 1.0] * 3]
    steps = Steps(0.5, weights, profile_hash=bytes(range(8)))
    out = (ctypes.c_uint16 * len(elements))()
    with Codec() as codec:
        encoded = codec.encode(SHAPE, ctypes.addressof(elements), "standard", steps)
        count, errors = codec.round_trip(
            SHAPE, ctypes.addressof(elements), ctypes.addressof(out), "standard", steps
        )
    assert encoded.container[64:72] == bytes(range(8))
    assert (count, errors) == (len(encoded.container), encoded.errors)
    before, after = values(elements), values(out)
    off = [abs(a - b) for a, b in zip(before, after, strict=True)]
    tensor = 256 * 128
    for layer in range(3):
        for part in range(2):
            first = (layer * 2 + part) * tensor
            for head in range(2):
                half_step = 0.25 * weights[part][head]
                own = [
                    off[first + token * 128 + head * 64 + channel]
                    for token in range(256)
                    for channel in range(64)
                ]
                most = half_step * (1, 1.375)[part]  # V: shaped, 3/8 of the last error more
                assert 0.9 * most < max(own) < 1.1 * most


def test_factors_change_the_step_of_a_channel(elements: ctypes.Array[ctypes.c_uint16]) -> None:
    weights = [[0.5] * HEADS, [0.5] * HEADS]
    finer = bytes([FACTOR_ONE - 16] * 64 + [FACTOR_ONE] * 64) * 3
    at = ctypes.addressof(elements)
    with Codec() as codec:
        plain = codec.encode(SHAPE, at, "standard", Steps(1.0, weights))
        with_factors = codec.encode(SHAPE, at, "standard", Steps(1.0, weights, (finer, None)))
    for (k, v), (finer_k, same_v) in zip(plain.errors, with_factors.errors, strict=True):
        # half of the channels with a quarter of the step
        assert finer_k == pytest.approx(k * ((1 + 1 / 16) / 2) ** 0.5, rel=0.05)
        assert same_v == v
    assert len(with_factors.container) > len(plain.container)


def test_a_chunk_unlike_the_expected_one_is_coded_finer(
    elements: ctypes.Array[ctypes.c_uint16],
) -> None:
    weights, at = [[1.0] * HEADS, [1.0] * HEADS], ctypes.addressof(elements)
    with Codec() as codec:
        usual = codec.encode(SHAPE, at, "compact", Steps(1.0, weights)).errors
        expected = [error for row in usual for error in row]
        expected[3] /= 3
        finer = codec.encode(SHAPE, at, "compact", Steps(1.0, weights, expected=expected)).errors
    assert finer[1][1] < usual[1][1] / 2
    assert [row for i, row in enumerate(finer) if i != 1] == [usual[0], usual[2]]


def test_what_does_not_fit_is_refused(elements: ctypes.Array[ctypes.c_uint16]) -> None:
    with Codec() as codec:
        with pytest.raises(CodecError, match="5 weights where the shape has 6"):
            codec.encode(SHAPE, ctypes.addressof(elements), "tiny", Steps(1.0, [[1.0] * 5] * 2))
        encoded = codec.encode(SHAPE, ctypes.addressof(elements), "tiny")
        damaged = bytearray(encoded.container)
        damaged[-1] ^= 1
        out = (ctypes.c_uint16 * len(elements))()
        with pytest.raises(CodecError, match="segment checksum"):
            codec.decode(bytes(damaged), ctypes.addressof(out), SHAPE.kv_bytes)
        with pytest.raises(CodecError, match="decoding"):
            codec.decode(encoded.container, ctypes.addressof(out), SHAPE.kv_bytes - 2)
