#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compute the key vectors of test_key.c from docs/container.md alone, with hashlib.

Independent of the C code on purpose: `python3 tests/chunk/key_vectors.py` prints what test_key.c
pins, and `--check test_key.c` fails when a vector is missing there.
"""

from __future__ import annotations

import hashlib
import struct
import sys
from pathlib import Path

PARTS = [(1, 0, 8, 128), (2, 0, 8, 128)]


def root_key(
    name_space: str,
    salt: str,
    *,
    chunk_tokens: int = 256,
    rank: int = 1,
    model: bytes = bytes(range(32)),
    rope: bytes = bytes(32),
) -> bytes:
    fixed = b"SSVKEY\0\1" + struct.pack(
        "<IBBHHHHH", chunk_tokens, 0, len(PARTS), 4, 16, 32, rank, 2
    )
    for index in range(4):
        role, head0, heads, dim = PARTS[index] if index < len(PARTS) else (0, 0, 0, 0)
        fixed += struct.pack("<BBHHH", role, 0, head0, heads, dim)
    fixed += model + rope
    assert len(fixed) == 120
    texts = b"".join(struct.pack("<I", len(t.encode())) + t.encode() for t in (name_space, salt))
    return hashlib.sha256(fixed + texts).digest()


def chain(
    previous: bytes, tokens: list[int], chunk_tokens: int, extra: list[bytes] | None
) -> list[bytes]:
    keys = []
    for index in range(len(tokens) // chunk_tokens):
        part = tokens[index * chunk_tokens : (index + 1) * chunk_tokens]
        more = extra[index] if extra else bytes(32)
        previous = hashlib.sha256(previous + struct.pack(f"<{len(part)}I", *part) + more).digest()
        keys.append(previous)
    return keys


def vectors() -> dict[str, str]:
    tokens = [(i * 2654435761) % 2**32 for i in range(700)]
    extra = [bytes(32), bytes([7] * 32)]
    root = root_key("", "")
    chained = chain(root, tokens, 256, None)
    return {
        "root": root.hex(),
        "root_named": root_key("prod", "tenant-7").hex(),
        "root_split_moved": root_key("prodt", "enant-7").hex(),
        "chain_0": chained[0].hex(),
        "chain_1": chained[1].hex(),
        "chain_extra_1": chain(root, tokens, 256, extra)[1].hex(),
        "chain_16_tokens_42": chain(root, tokens, 16, None)[42].hex(),
    }


def main() -> int:
    if sys.argv[1:2] == ["--check"]:
        text = Path(sys.argv[2]).read_text()
        missing = [name for name, value in vectors().items() if value not in text]
        for name in missing:
            print(f"{sys.argv[2]}: vector {name} is not {vectors()[name]}")
        return 1 if missing else 0
    for name, value in vectors().items():
        print(f"{name} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
