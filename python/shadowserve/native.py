# SPDX-License-Identifier: Apache-2.0
"""The C side of the binding: structs of include/shadowserve.h as ctypes, and the loaded library.

Only binding.py uses this module.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import (
    POINTER,
    Structure,
    c_char_p,
    c_int,
    c_int32,
    c_int64,
    c_size_t,
    c_uint8,
    c_uint16,
    c_uint32,
    c_uint64,
    c_void_p,
)
from pathlib import Path

PARTS_MAX = 4
DIGITS_MAX = 24
KEY_BYTES = 32


class Key(Structure):
    _fields_ = [("bytes", c_uint8 * KEY_BYTES)]


class Options(Structure):
    _fields_ = [
        ("struct_size", c_uint32),
        ("connect_timeout_ms", c_uint32),
        ("socket_path", c_char_p),
        ("engine_id", c_char_p),
        ("rank", c_uint32),
        ("ranks_count", c_uint32),
        ("flags", c_uint32),
        ("reserved", c_uint32),
    ]


class Digit(Structure):
    _fields_ = [
        ("axis", c_uint8),
        ("reserved", c_uint8),
        ("extent", c_uint16),
        ("reserved2", c_uint32),
        ("stride", c_int64),
    ]


class Part(Structure):
    _fields_ = [
        ("role", c_uint8),
        ("reserved", c_uint8),
        ("head0", c_uint16),
        ("heads", c_uint16),
        ("dim", c_uint16),
        ("digits_count", c_uint32),
        ("digits", Digit * DIGITS_MAX),
    ]


class Tensor(Structure):
    _fields_ = [
        ("layer", c_uint16),
        ("part", c_uint16),
        ("reserved", c_uint32),
        ("offset", c_uint64),
        ("block_stride", c_uint64),
    ]


class Layout(Structure):
    _fields_ = [
        ("struct_size", c_uint32),
        ("dtype", c_uint8),
        ("parts_count", c_uint8),
        ("layer0", c_uint16),
        ("layers_count", c_uint16),
        ("layers_total", c_uint16),
        ("rank", c_uint16),
        ("ranks_count", c_uint16),
        ("block_tokens", c_uint32),
        ("blocks_count", c_uint32),
        ("tensors_count", c_uint32),
        ("model", c_uint8 * 8),
        ("parts", Part * PARTS_MAX),
        ("tensors", POINTER(Tensor)),
    ]


class Region(Structure):
    _fields_ = [
        ("struct_size", c_uint32),
        ("memory", c_uint32),
        ("fd", c_int32),
        ("reserved", c_uint32),
        ("address", c_uint64),
        ("bytes", c_uint64),
        ("gpu_uuid", c_uint8 * 16),
        ("gpu_handle", c_uint8 * 64),
        ("gpu_offset", c_uint64),
    ]


class Request(Structure):
    _fields_ = [
        ("op", c_uint8),
        ("tier", c_uint8),
        ("codec", c_uint8),
        ("min_tier", c_uint8),
        ("region", c_uint32),
        ("user_data", c_uint64),
        ("target", c_uint64),
        ("keys", c_char_p),
        ("blocks", POINTER(c_uint32)),
        ("keys_count", c_uint32),
        ("blocks_count", c_uint32),
        ("ranks_count", c_uint32),
        ("first_token", c_uint32),
        ("position", c_uint32),
        ("deadline_ms", c_uint32),
    ]


class Completion(Structure):
    _fields_ = [
        ("user_data", c_uint64),
        ("op", c_uint8),
        ("reserved", c_uint8 * 3),
        ("status", c_int32),
        ("tokens", c_uint32),
        ("estimate_us", c_uint32),
        ("wire_bytes", c_uint64),
        ("kv_bytes", c_uint64),
        ("elapsed_us", c_uint64),
    ]


class RootPart(Structure):
    _fields_ = [
        ("role", c_uint8),
        ("reserved", c_uint8),
        ("head0", c_uint16),
        ("heads", c_uint16),
        ("dim", c_uint16),
    ]


class KeyRoot(Structure):
    _fields_ = [
        ("struct_size", c_uint32),
        ("dtype", c_uint8),
        ("parts_count", c_uint8),
        ("layer0", c_uint16),
        ("layers_count", c_uint16),
        ("layers_total", c_uint16),
        ("rank", c_uint16),
        ("ranks_count", c_uint16),
        ("chunk_tokens", c_uint32),
        ("name_space", c_char_p),
        ("tenant_salt", c_char_p),
        ("model_digest", c_uint8 * 32),
        ("rope_digest", c_uint8 * 32),
        ("parts", RootPart * PARTS_MAX),
    ]


# ---- loading -------------------------------------------------------------------------------------

_SONAMES = ("libshadowserve.so.0", "libshadowserve.so")


def library_candidates() -> list[str]:
    """Where the library is looked for, in order: $SHADOWSERVE_LIBRARY alone when it is set; then
    inside this package, next to it, and the system's search path."""
    named = os.environ.get("SHADOWSERVE_LIBRARY")
    if named:
        return [named]
    package = Path(__file__).resolve().parent
    places = [package / "native", package, package.parent]
    return [str(place / name) for place in places for name in _SONAMES] + list(_SONAMES)


def _load() -> ctypes.CDLL:
    failures = []
    for candidate in library_candidates():
        if os.sep in candidate and not os.path.exists(candidate):
            continue
        try:
            return _declare(ctypes.CDLL(candidate))
        except (OSError, AttributeError) as failure:
            failures.append(f"{candidate}: {failure}")
    raise ImportError(
        "libshadowserve was not found: set SHADOWSERVE_LIBRARY to libshadowserve.so, "
        "or install the package with pip. Tried: " + ("; ".join(failures) or "no file exists")
    )


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    handle, u32, text = c_void_p, c_uint32, c_char_p
    signatures: dict[str, tuple[object, list[object]]] = {
        "ssv_connect": (c_int, [POINTER(Options), POINTER(handle), text]),
        "ssv_close": (None, [handle]),
        "ssv_fd": (c_int, [handle]),
        "ssv_daemon_pidfd": (c_int, [handle]),
        "ssv_is_open": (c_int, [handle]),
        "ssv_default_socket": (c_int, [text, c_size_t]),
        "ssv_region_register": (
            c_int,
            [handle, POINTER(Region), POINTER(Layout), POINTER(u32), text],
        ),
        "ssv_region_unregister": (c_int, [handle, u32, u32]),
        "ssv_submit": (c_int, [handle, POINTER(Request), u32]),
        "ssv_poll": (c_int, [handle, POINTER(Completion), u32, c_int]),
        "ssv_in_flight": (u32, [handle]),
        "ssv_close_reason": (text, [handle]),
        "ssv_stat": (c_int, [handle, text, c_size_t, u32]),
        "ssv_key_make_root": (c_int, [POINTER(KeyRoot), POINTER(Key)]),
        "ssv_key_chain": (
            c_int,
            [text, u32, c_void_p, c_size_t, text, c_void_p, c_size_t],
        ),
        "ssv_version": (text, []),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


_library: ctypes.CDLL | None = None


def library() -> ctypes.CDLL:
    """The loaded library; loads it at the first call. ImportError says where it was looked for."""
    global _library
    if _library is None:
        _library = _load()
    return _library
