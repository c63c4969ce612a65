# SPDX-License-Identifier: Apache-2.0
"""libshadowserve through ctypes, one to one with include/shadowserve.h.

The header is the reference manual: names, meanings and errors here are its names, meanings and
errors. Nothing is decided in this file. Keys travel as ``bytes``, 32 a key, so that a list of
thousands is one object. A negative errno becomes ``Error``, except -EAGAIN of submit (0 accepted)
and -ENOTCONN of poll (``SessionEnded``), which are ordinary answers.
"""

from __future__ import annotations

import ctypes
import errno
import os
from array import array
from collections.abc import Sequence
from ctypes import (
    POINTER,
    byref,
    c_uint8,
    c_uint32,
    c_void_p,
)
from dataclasses import dataclass, field
from enum import IntEnum

from shadowserve import native

CHUNK_TOKENS = 256
KEY_BYTES = native.KEY_BYTES
PARTS_MAX = native.PARTS_MAX
DIGITS_MAX = native.DIGITS_MAX
KEYS_MAX = 4096
BLOCKS_MAX = 65536
RANKS_MAX = 64
BLOCK_TOKENS_MAX = 256
REQUESTS_MAX = 1024
ENGINE_ID_MAX = 64
ERROR_TEXT_MAX = 256


class Dtype(IntEnum):
    BF16 = 0
    FP16 = 1
    FP32 = 2
    E4M3 = 3
    E5M2 = 4


class Tier(IntEnum):
    DEFAULT = 0
    LOSSLESS = 1
    HIGH = 2
    STANDARD = 3
    COMPACT = 4
    TINY = 5


class Codec(IntEnum):
    DEFAULT = 0
    STORED = 1
    DEFLATE = 2
    R16 = 3
    ZSTD = 6


class Role(IntEnum):
    K = 1
    V = 2
    LATENT = 3


class Axis(IntEnum):
    TOKEN = 0
    HEAD = 1
    DIM = 2


class Memory(IntEnum):
    MEMFD = 1
    ADDRESS = 2
    GPU_IPC = 3
    GPU_FD = 4


class Op(IntEnum):
    LOOKUP = 1
    FETCH = 2
    STORE = 3
    CANCEL = 4
    FLUSH = 5


class Error(OSError):
    """A negative errno of the library, with its line of text where there is one."""


class SessionEnded(Error):
    """The session is closed and every completion has been taken."""


# ---- what callers hold ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Digit:
    axis: Axis
    extent: int
    stride: int


@dataclass(frozen=True)
class Part:
    role: Role
    head0: int
    heads: int
    dim: int
    digits: tuple[Digit, ...] = ()


@dataclass(frozen=True)
class Tensor:
    layer: int
    part: int
    offset: int
    block_stride: int


@dataclass(frozen=True)
class Layout:
    dtype: Dtype
    layer0: int
    layers_count: int
    layers_total: int
    rank: int
    ranks_count: int
    block_tokens: int
    blocks_count: int
    model: bytes
    parts: tuple[Part, ...]
    tensors: tuple[Tensor, ...]


@dataclass(frozen=True)
class GpuMemory:
    """Which GPU holds a region, and where in an exported allocation; all zero for host memory."""

    uuid: bytes = bytes(16)
    handle: bytes = bytes(64)
    offset: int = 0


@dataclass(frozen=True)
class KeyRoot:
    """What makes a chunk's bytes what they are, apart from its tokens."""

    dtype: Dtype
    layer0: int
    layers_count: int
    layers_total: int
    rank: int
    ranks_count: int
    parts: tuple[Part, ...]
    model_digest: bytes
    rope_digest: bytes = bytes(32)
    name_space: str = ""
    tenant_salt: str = ""
    chunk_tokens: int = CHUNK_TOKENS


@dataclass(frozen=True)
class Request:
    op: Op
    user_data: int
    keys: bytes = b""
    blocks: Sequence[int] = field(default_factory=tuple)
    region: int = 0
    target: int = 0
    tier: int = 0
    codec: int = 0
    min_tier: int = 0
    ranks_count: int = 0
    first_token: int = 0
    position: int = 0
    deadline_ms: int = 0


@dataclass(frozen=True)
class Completion:
    user_data: int
    op: int
    status: int
    tokens: int
    estimate_us: int
    wire_bytes: int
    kv_bytes: int
    elapsed_us: int


def _check(result: int, text: bytes = b"") -> int:
    if result >= 0:
        return result
    line = text.decode(errors="replace") or os.strerror(-result)
    raise Error(-result, line)


def version() -> str:
    answer: bytes = native.library().ssv_version()
    return answer.decode()


def default_socket() -> str:
    path = ctypes.create_string_buffer(4096)
    _check(native.library().ssv_default_socket(path, len(path)))
    return path.value.decode()


# ---- keys ----------------------------------------------------------------------------------------


def key_make_root(root: KeyRoot) -> bytes:
    if len(root.parts) > PARTS_MAX:
        raise Error(errno.EINVAL, f"{len(root.parts)} parts, {PARTS_MAX} are the limit")
    raw = native.KeyRoot(
        struct_size=ctypes.sizeof(native.KeyRoot),
        dtype=root.dtype,
        parts_count=len(root.parts),
        layer0=root.layer0,
        layers_count=root.layers_count,
        layers_total=root.layers_total,
        rank=root.rank,
        ranks_count=root.ranks_count,
        chunk_tokens=root.chunk_tokens,
        name_space=root.name_space.encode(),
        tenant_salt=root.tenant_salt.encode(),
        model_digest=(c_uint8 * 32).from_buffer_copy(root.model_digest),
        rope_digest=(c_uint8 * 32).from_buffer_copy(root.rope_digest),
    )
    for index, part in enumerate(root.parts):
        raw.parts[index] = native.RootPart(
            role=part.role, head0=part.head0, heads=part.heads, dim=part.dim
        )
    key = native.Key()
    _check(native.library().ssv_key_make_root(byref(raw), byref(key)))
    return bytes(key.bytes)


def key_chain(
    previous: bytes,
    tokens: Sequence[int],
    extra: bytes | None = None,
    chunk_tokens: int = CHUNK_TOKENS,
) -> bytes:
    """Keys of the full chunks of tokens, 32 bytes each. extra: 32 bytes a chunk, or None."""
    count = len(tokens) // chunk_tokens
    if len(previous) != KEY_BYTES or (extra is not None and len(extra) != count * KEY_BYTES):
        raise Error(errno.EINVAL, "a key or an extra digest does not have 32 bytes")
    if not count:
        return b""
    packed = array("I", tokens[: count * chunk_tokens])
    address, _ = packed.buffer_info()
    keys = ctypes.create_string_buffer(count * KEY_BYTES)
    made = native.library().ssv_key_chain(
        previous, chunk_tokens, address, count * chunk_tokens, extra, keys, count
    )
    return keys.raw[: _check(made) * KEY_BYTES]


# ---- sessions ------------------------------------------------------------------------------------

_POLL_BATCH = 64


class Session:
    """One session with a daemon. One thread at a time; close() ends it."""

    def __init__(self, handle: int) -> None:
        self._handle: int | None = handle
        self._completions = (native.Completion * _POLL_BATCH)()

    @classmethod
    def connect(
        cls,
        socket_path: str | None = None,
        engine_id: str | None = None,
        rank: int = 0,
        ranks_count: int = 1,
        connect_timeout_ms: int = 0,
    ) -> Session:
        options = native.Options(
            struct_size=ctypes.sizeof(native.Options),
            connect_timeout_ms=connect_timeout_ms,
            socket_path=socket_path.encode() if socket_path else None,
            engine_id=engine_id.encode() if engine_id else None,
            rank=rank,
            ranks_count=ranks_count,
        )
        handle = c_void_p()
        text = ctypes.create_string_buffer(ERROR_TEXT_MAX)
        _check(native.library().ssv_connect(byref(options), byref(handle), text), text.value)
        assert handle.value is not None
        return cls(handle.value)

    def close(self) -> None:
        """End the session at once; a second call does nothing."""
        handle, self._handle = self._handle, None
        if handle is not None:
            native.library().ssv_close(handle)

    def _open(self) -> int:
        if self._handle is None:
            raise SessionEnded(errno.ENOTCONN, "the session was closed")
        return self._handle

    @property
    def fd(self) -> int:
        return int(native.library().ssv_fd(self._open()))

    @property
    def daemon_pidfd(self) -> int:
        return int(native.library().ssv_daemon_pidfd(self._open()))

    @property
    def is_open(self) -> bool:
        return self._handle is not None and bool(native.library().ssv_is_open(self._handle))

    @property
    def in_flight(self) -> int:
        return 0 if self._handle is None else int(native.library().ssv_in_flight(self._handle))

    @property
    def close_reason(self) -> str:
        if self._handle is None:
            return "closed by the caller"
        reason: bytes = native.library().ssv_close_reason(self._handle)
        return reason.decode(errors="replace")

    def region_register(
        self,
        memory: Memory,
        layout: Layout,
        size: int,
        fd: int = -1,
        address: int = 0,
        gpu: GpuMemory | None = None,
    ) -> int:
        """Register KV memory; returns the region's number. Blocks up to 5 s."""
        gpu = gpu or GpuMemory()
        region = native.Region(
            struct_size=ctypes.sizeof(native.Region),
            memory=memory,
            fd=fd,
            address=address,
            bytes=size,
            gpu_uuid=(ctypes.c_uint8 * 16)(*gpu.uuid),
            gpu_handle=(ctypes.c_uint8 * 64)(*gpu.handle),
            gpu_offset=gpu.offset,
        )
        raw = _raw_layout(layout)
        number = c_uint32()
        text = ctypes.create_string_buffer(ERROR_TEXT_MAX)
        _check(
            native.library().ssv_region_register(
                self._open(), byref(region), byref(raw), byref(number), text
            ),
            text.value,
        )
        return number.value

    def region_unregister(self, region: int, timeout_ms: int) -> None:
        _check(native.library().ssv_region_unregister(self._open(), region, timeout_ms))

    def submit(self, requests: Sequence[Request]) -> int:
        """Submit a batch, in order; returns how many were accepted, 0 when the queue is full."""
        batch = (native.Request * len(requests))()
        held = [_fill_request(raw, request) for raw, request in zip(batch, requests, strict=True)]
        accepted: int = native.library().ssv_submit(self._open(), batch, len(requests))
        del held
        if accepted == -errno.EAGAIN:
            return 0
        if accepted == -errno.ENOTCONN:
            raise SessionEnded(errno.ENOTCONN, self.close_reason or "no daemon")
        return _check(accepted)

    def poll(self, timeout_ms: int = 0) -> list[Completion]:
        """Take what has completed, at most 64. SessionEnded: closed, and everything was taken."""
        count: int = native.library().ssv_poll(
            self._open(), self._completions, _POLL_BATCH, timeout_ms
        )
        if count == -errno.ENOTCONN:
            raise SessionEnded(errno.ENOTCONN, self.close_reason or "no daemon")
        return [
            Completion(
                done.user_data,
                done.op,
                done.status,
                done.tokens,
                done.estimate_us,
                done.wire_bytes,
                done.kv_bytes,
                done.elapsed_us,
            )
            for done in self._completions[: _check(count)]
        ]

    def stat(self, timeout_ms: int = 1000, size: int = 1 << 20) -> str:
        """The daemon's state as JSON text."""
        text = ctypes.create_string_buffer(size)
        length = _check(native.library().ssv_stat(self._open(), text, size, timeout_ms))
        return text.raw[:length].decode()


def _raw_layout(layout: Layout) -> native.Layout:
    if len(layout.parts) > PARTS_MAX:
        raise Error(errno.E2BIG, f"{len(layout.parts)} parts, {PARTS_MAX} are the limit")
    tensors = (native.Tensor * len(layout.tensors))()
    for raw_tensor, tensor in zip(tensors, layout.tensors, strict=True):
        raw_tensor.layer, raw_tensor.part = tensor.layer, tensor.part
        raw_tensor.offset, raw_tensor.block_stride = tensor.offset, tensor.block_stride
    raw = native.Layout(
        struct_size=ctypes.sizeof(native.Layout),
        dtype=layout.dtype,
        parts_count=len(layout.parts),
        layer0=layout.layer0,
        layers_count=layout.layers_count,
        layers_total=layout.layers_total,
        rank=layout.rank,
        ranks_count=layout.ranks_count,
        block_tokens=layout.block_tokens,
        blocks_count=layout.blocks_count,
        tensors_count=len(layout.tensors),
        model=(c_uint8 * 8).from_buffer_copy(layout.model),
        tensors=tensors,
    )
    for index, part in enumerate(layout.parts):
        _fill_part(raw.parts[index], part)
    return raw


def _fill_part(raw: native.Part, part: Part) -> None:
    if len(part.digits) > DIGITS_MAX:
        raise Error(errno.E2BIG, f"{len(part.digits)} digits, {DIGITS_MAX} are the limit")
    raw.role, raw.head0, raw.heads, raw.dim = part.role, part.head0, part.heads, part.dim
    raw.digits_count = len(part.digits)
    for index, digit in enumerate(part.digits):
        raw.digits[index] = native.Digit(axis=digit.axis, extent=digit.extent, stride=digit.stride)


def _fill_request(raw: native.Request, request: Request) -> object:
    """Fill raw; returns what must live until the call is over."""
    blocks = array("I", request.blocks)
    raw.op, raw.tier, raw.codec = request.op, request.tier, request.codec
    raw.min_tier, raw.region = request.min_tier, request.region
    raw.user_data, raw.target = request.user_data, request.target
    raw.keys = request.keys or None
    raw.keys_count = len(request.keys) // KEY_BYTES
    if blocks:
        raw.blocks = ctypes.cast(blocks.buffer_info()[0], POINTER(c_uint32))
    raw.blocks_count = len(blocks)
    raw.ranks_count, raw.first_token = request.ranks_count, request.first_token
    raw.position, raw.deadline_ms = request.position, request.deadline_ms
    return blocks, request.keys
