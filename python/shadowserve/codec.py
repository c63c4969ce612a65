# SPDX-License-Identifier: Apache-2.0
"""The C codec itself, for measuring: a chunk to a container and back, with the steps of a profile.

Elements lie in canonical order, [layer][part][token][channel], and are named by address, so that a
tensor of any library can be used (tensor.data_ptr()). A Codec belongs to one thread at a time.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from ctypes import (
    POINTER,
    Structure,
    c_char_p,
    c_float,
    c_int,
    c_uint8,
    c_uint16,
    c_uint32,
    c_uint64,
    c_void_p,
)
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

PARTS_MAX = 4
CHUNK_TOKENS = 256
DTYPES = {"bf16": 0, "fp16": 1, "fp32": 2, "e4m3": 3, "e5m2": 4}
ELEMENT_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4, "e4m3": 1, "e5m2": 1}
TIERS = {"lossless": 1, "high": 2, "standard": 3, "compact": 4, "tiny": 5}
BACK_ENDS = {"stored": 1, "deflate": 2, "r16": 3, "zstd": 6}
ROLES = {"K": 1, "V": 2, "latent": 3}
FACTOR_ONE = 128  # the factor byte that changes nothing: factors are about 2 ** ((b - 128) / 8)


class CodecError(RuntimeError):
    """The codec refused; the text says what."""


@dataclass(frozen=True)
class Part:
    role: str
    heads: int
    dim: int

    @property
    def channels(self) -> int:
        return self.heads * self.dim


@dataclass(frozen=True)
class Shape:
    """Of one chunk, all layers of the model."""

    dtype: str
    layers: int
    tokens: int
    parts: tuple[Part, ...]

    @property
    def kv_bytes(self) -> int:
        row = sum(part.channels for part in self.parts) * ELEMENT_BYTES[self.dtype]
        return self.layers * self.tokens * row


@dataclass(frozen=True)
class Steps:
    """Steps of a profile: scale x weight of the (layer, part, head), times a channel's factor.

    All arrays are flat. weights: for each part [layers][heads]; factors: for each part bytes
    [layers][heads x dim], or None; expected: the relative error to expect of each [layer][part]; a
    tensor beyond margin times that is coded with a finer tier's uniform steps.
    """

    scale: float
    weights: Sequence[Sequence[float]]
    factors: Sequence[bytes | None] = ()
    expected: Sequence[float] = ()
    margin: float = 1.5
    profile_hash: bytes = bytes(8)


@dataclass(frozen=True)
class Encoded:
    container: bytes
    errors: list[list[float]]  # relative L2 error of each [layer][part]


class _Part(Structure):
    _fields_ = [
        ("role", c_uint8),
        ("reserved", c_uint8),
        ("heads", c_uint16),
        ("dim", c_uint16),
        ("reserved2", c_uint16),
        ("weight", POINTER(c_float)),
        ("factor", c_char_p),
    ]


class _Job(Structure):
    _fields_ = [
        ("struct_size", c_uint32),
        ("dtype", c_uint8),
        ("parts_count", c_uint8),
        ("tier", c_uint8),
        ("codec", c_uint8),
        ("layers_count", c_uint16),
        ("tokens", c_uint16),
        ("verbatim_tokens", c_uint8),
        ("trellis", c_uint8),
        ("reserved", c_uint8 * 2),
        ("parts", _Part * PARTS_MAX),
        ("scale", c_float),
        ("error_margin", c_float),
        ("expected", POINTER(c_float)),
        ("hash", c_uint8 * 8),
    ]


class Codec:
    def __init__(self) -> None:
        self._library = _library()
        self._context = c_void_p()
        _check(self._library.codec_open(ctypes.byref(self._context)), "opening")

    def __enter__(self) -> Codec:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        failure: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._library.codec_close(self._context)
        self._context = c_void_p()

    def encode(
        self,
        shape: Shape,
        elements: int,
        tier: str,
        steps: Steps | None = None,
        codec: str = "r16",
        verbatim_tokens: int = 0,
        trellis: bool = False,
    ) -> Encoded:
        """elements: the address of shape.kv_bytes bytes. Without steps: the tier's uniform ones."""
        container, count, errors = self._encode(
            shape, elements, tier, steps, codec, verbatim_tokens, trellis
        )
        return Encoded(ctypes.string_at(container, count), errors)

    def round_trip(
        self,
        shape: Shape,
        elements: int,
        out: int,
        tier: str,
        steps: Steps | None = None,
        codec: str = "r16",
        verbatim_tokens: int = 0,
        trellis: bool = False,
    ) -> tuple[int, list[list[float]]]:
        """Encode and decode to the address `out`: the container's bytes, the errors. out may be
        elements."""
        container, count, errors = self._encode(
            shape, elements, tier, steps, codec, verbatim_tokens, trellis
        )
        self._decode(container, count, out, shape.kv_bytes)
        return count, errors

    def decode(self, container: bytes, out: int, out_bytes: int) -> None:
        """Decode a container to the address `out`, out_bytes being exactly what it holds."""
        buffer = ctypes.create_string_buffer(container, len(container))
        self._decode(ctypes.addressof(buffer), len(container), out, out_bytes)

    def _encode(
        self,
        shape: Shape,
        elements: int,
        tier: str,
        steps: Steps | None,
        codec: str,
        verbatim_tokens: int,
        trellis: bool,
    ) -> tuple[int, int, list[list[float]]]:
        tensors, parts = shape.layers * len(shape.parts), len(shape.parts)
        job = _job(shape, tier, steps, codec, verbatim_tokens, trellis)
        container, count = c_void_p(), c_uint64()
        errors = (c_float * tensors)()
        err = self._library.codec_encode(
            self._context,
            ctypes.byref(job),
            elements,
            shape.kv_bytes,
            ctypes.byref(container),
            ctypes.byref(count),
            errors,
        )
        _check(err, "encoding")
        rows = [list(errors[i : i + parts]) for i in range(0, tensors, parts)]
        return container.value or 0, count.value, rows

    def _decode(self, container: int, count: int, out: int, out_bytes: int) -> None:
        why = c_char_p()
        err = self._library.codec_decode(
            self._context, container, count, out, out_bytes, ctypes.byref(why)
        )
        _check(err, f"decoding ({(why.value or b'').decode()})" if why.value else "decoding")


def _job(
    shape: Shape,
    tier: str,
    steps: Steps | None,
    codec: str,
    verbatim_tokens: int,
    trellis: bool,
) -> _Job:
    job = _Job(
        struct_size=ctypes.sizeof(_Job),
        dtype=DTYPES[shape.dtype],
        parts_count=len(shape.parts),
        tier=TIERS[tier],
        codec=BACK_ENDS[codec],
        layers_count=shape.layers,
        tokens=shape.tokens,
        verbatim_tokens=verbatim_tokens,
        trellis=trellis,
    )
    if len(shape.parts) > PARTS_MAX:
        raise CodecError(f"{len(shape.parts)} parts are more than {PARTS_MAX}")
    for index, part in enumerate(shape.parts):
        job.parts[index].role = ROLES[part.role]
        job.parts[index].heads, job.parts[index].dim = part.heads, part.dim
    if steps is not None:
        _add_steps(job, shape, steps)
    return job


def _add_steps(job: _Job, shape: Shape, steps: Steps) -> None:
    job.scale, job.error_margin = steps.scale, steps.margin
    job.hash[:] = list(steps.profile_hash)
    for index, part in enumerate(shape.parts):
        weight = steps.weights[index]
        _expect("weights", len(weight), shape.layers * part.heads)
        job.parts[index].weight = _floats(weight)
        factor = steps.factors[index] if steps.factors else None
        if factor is not None:
            _expect("factors", len(factor), shape.layers * part.channels)
            job.parts[index].factor = factor
    if steps.expected:
        _expect("errors", len(steps.expected), shape.layers * len(shape.parts))
        job.expected = _floats(steps.expected)


def _floats(values: Sequence[float]) -> ctypes.Array[c_float]:
    return (c_float * len(values))(*values)


def _expect(what: str, found: int, wanted: int) -> None:
    if found != wanted:
        raise CodecError(f"{found} {what} where the shape has {wanted}")


def _check(err: int, doing: str) -> None:
    if err:
        raise CodecError(f"{doing}: {os.strerror(-err)}")


# ---- loading -------------------------------------------------------------------------------------

_loaded: ctypes.CDLL | None = None


def library_candidates() -> list[Path]:
    """$SHADOWSERVE_CODEC_LIBRARY alone when it is set; then inside this package, and next to the
    library that $SHADOWSERVE_LIBRARY names in a build."""
    named = os.environ.get("SHADOWSERVE_CODEC_LIBRARY")
    if named:
        return [Path(named)]
    name = "libshadowserve-codec.so"
    places = [Path(__file__).resolve().parent / "native" / name]
    built = os.environ.get("SHADOWSERVE_LIBRARY")
    if built:  # BUILD/src/client/libshadowserve.so
        places.append(Path(built).resolve().parents[2] / "python" / "native" / name)
    return places


def _library() -> ctypes.CDLL:
    global _loaded
    if _loaded is None:
        tried = library_candidates()
        found = next((path for path in tried if path.is_file()), None)
        if found is None:
            raise ImportError(
                "libshadowserve-codec.so was not found: install the package with pip, or set "
                "SHADOWSERVE_CODEC_LIBRARY. Tried: " + ", ".join(map(str, tried))
            )
        _loaded = _declare(ctypes.CDLL(str(found)))
    return _loaded


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    u64 = c_uint64
    signatures: dict[str, tuple[object, list[object]]] = {
        "codec_open": (c_int, [POINTER(c_void_p)]),
        "codec_close": (None, [c_void_p]),
        "codec_encode": (
            c_int,
            [c_void_p, POINTER(_Job), c_void_p, u64, POINTER(c_void_p), POINTER(u64), c_void_p],
        ),
        "codec_decode": (c_int, [c_void_p, c_void_p, u64, c_void_p, u64, POINTER(c_char_p)]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
