#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write the golden containers of this folder from the field tables of docs/container.md.

Nothing here comes from the C code: checksums, table and meta are worked out from the document, so
that test_golden.c compares two independent readings of it. The wire data is a pattern, no codec's.

    make_golden.py FOLDER          write the files
    make_golden.py --check FOLDER  exit 1 when a file differs from what would be written
"""

from __future__ import annotations

import struct
import sys
from dataclasses import dataclass
from pathlib import Path

STORED, DEFLATE, R16 = 0, 1, 2
OFFSET_I8, OFFSET_I16, DELTA, FACTOR, ORDER = 1, 2, 4, 8, 16
ELEMENT_BYTES = [2, 2, 4, 1, 1]
RAW_BITS = [8, 11, 24, 4, 3]


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


@dataclass
class Case:
    name: str
    dtype: int
    tokens: int
    layers: int
    parts: list[tuple[int, int, int, int]]  # role, head0, heads, dim
    tier: int
    codec: int
    flags: int = 0
    streams: int = 1
    verbatim: int = 0
    exceptions: int = 0
    groups_each: int = 1000
    tensors_each: int = 1


CASES = [
    Case("stored", 4, 5, 2, [(3, 0, 1, 96)], 1, STORED),
    Case(
        "r16",
        0,
        16,
        1,
        [(1, 2, 3, 80), (2, 2, 3, 80)],
        3,
        R16,
        OFFSET_I16 | DELTA | FACTOR | ORDER,
        2,
        4,
        2,
        groups_each=2,
    ),
    Case("deflate", 0, 16, 2, [(1, 0, 2, 64), (2, 0, 2, 64)], 1, DEFLATE, tensors_each=4),
    Case("high", 1, 8, 1, [(1, 0, 4, 64), (2, 0, 2, 96)], 2, R16, OFFSET_I8, 1, 0, 1),
]


def tensor_meta(case: Case, t: int, part: int, group0: int, groups: int) -> tuple[bytes, int]:
    """Meta of one tensor of an entry, and how long its raw planes are."""
    _, _, heads, dim = case.parts[part]
    first = group0 * 64
    count = min((group0 + groups) * 64, heads * dim) - first
    heads_touched = (first + count - 1) // dim - first // dim + 1
    lossless = case.tier == 1
    out = bytearray([case.flags])
    bits = [RAW_BITS[case.dtype] if lossless else (g + t) % 4 for g in range(groups)]
    if not lossless:
        for h in range(heads_touched):
            out += struct.pack("<H", 0x2C00 + 16 * h + t)
        out += bytes(bits)
    for g in range(groups):
        out += bytes([16 + g + t] + [16] * 14 + [16 - g - t])
    if lossless:
        for g in range(groups):
            out += bytes(100 + i + g for i in range(16))
    if case.flags & OFFSET_I8:
        out += bytes((c * 3 + t) & 0xFF for c in range(count))
    if case.flags & OFFSET_I16:
        out += b"".join(struct.pack("<h", c * 3 - 100) for c in range(count))
    if case.flags & DELTA:
        delta = bytearray((count + 7) // 8)
        for c in range(0, count, 3):
            delta[c // 8] |= 1 << c % 8
        out += delta
    if case.flags & FACTOR:
        out += bytes(120 + c % 16 for c in range(count))
    if case.flags & ORDER:
        out += b"".join(struct.pack("<H", count - 1 - p) for p in range(count))
    lanes = [min(64, count - 64 * g) for g in range(groups)]
    raw = sum((w * r + 7) // 8 for w, r in zip(lanes, bits, strict=True)) * case.tokens
    return bytes(out), raw


def entries(case: Case) -> list[tuple[int, int, int, int]]:
    """First tensor, group0, groups and tensors of each entry."""
    out = []
    tensors = case.layers * len(case.parts)
    for t in range(0, tensors, case.tensors_each):
        _, _, heads, dim = case.parts[t % len(case.parts)]
        groups = (heads * dim + 63) // 64
        for g in range(0, groups, case.groups_each):
            step = min(case.groups_each, groups - g)
            out.append((t, g, step, min(case.tensors_each, tensors - t)))
    return out


def channels_of(case: Case, t: int, g: int, groups: int, tensors: int) -> int:
    if tensors > 1:
        parts = [case.parts[(t + i) % len(case.parts)] for i in range(tensors)]
        return sum(heads * dim for _, _, heads, dim in parts)
    _, _, heads, dim = case.parts[t % len(case.parts)]
    return min((g + groups) * 64, heads * dim) - g * 64


def container(case: Case) -> bytes:
    count = len(case.parts)
    table_at, meta_at = 256, 256 + 48 * len(entries(case))
    metas, rows = bytearray(), []
    for index, (t, g, groups, tensors) in enumerate(entries(case)):
        channels = channels_of(case, t, g, groups, tensors)
        element = ELEMENT_BYTES[case.dtype]
        meta, raw, class_bytes, class_crc, exceptions = b"", 0, 0, 0, 0
        length = channels * case.tokens * element
        if case.codec != STORED:
            for i in range(tensors):
                part = (t + i) % count
                whole = (case.parts[part][2] * case.parts[part][3] + 63) // 64
                one, one_raw = tensor_meta(case, t + i, part, g, groups if tensors == 1 else whole)
                meta, raw = meta + one, raw + one_raw
            class_bytes = 132 * case.streams + 40 if case.codec == R16 else 50
            class_crc = 0 if case.codec == R16 else 0x01020304 + index
            exceptions = case.exceptions
            length = class_bytes + raw + exceptions * (3 + element)
            length += channels * case.verbatim * element
        wire = bytes((i * 7 + index * 31 + (i >> 8)) & 0xFF for i in range(length))
        rows.append((t, g, groups, tensors, class_bytes, raw, exceptions, class_crc, meta, wire))
    meta_total = sum(len(row[8]) for row in rows)
    body, table = bytearray(), bytearray()
    wire_at = (meta_at + meta_total + 63) // 64 * 64
    for t, g, groups, tensors, class_bytes, raw, exceptions, class_crc, meta, wire in rows:
        body += bytes(-len(body) % 64)
        table += struct.pack(
            "<IIIIIHBBHHBBHIIII",
            (wire_at + len(body)) // 64,
            len(wire),
            class_bytes,
            raw,
            exceptions,
            t // count,
            t % count,
            case.codec,
            g,
            groups,
            tensors,
            case.streams if case.codec == R16 else 1,
            0,
            meta_at + len(metas),
            len(meta),
            crc32c(wire),
            class_crc,
        )
        metas += meta
        body += wire
    front = bytes(table + metas)
    pad = bytes(wire_at - meta_at - meta_total)
    total = wire_at + len(body)
    kv_bytes = sum(heads * dim for _, _, heads, dim in case.parts) * case.layers
    kv_bytes *= case.tokens * ELEMENT_BYTES[case.dtype]
    errors = [(p + 1) / 128 if p < count else 0.0 for p in range(4)]
    header = b"SKVC" + struct.pack("<HHIIII", 1, 0, 256, total, 0, 0)
    header += bytes(range(32)) + bytes(range(100, 108)) + bytes(range(200, 208))
    header += struct.pack("<IHBB", 768, case.tokens, case.verbatim, case.tier)
    header += struct.pack("<HHHHHBB", 3, case.layers, 40, 1, 2, case.dtype, count)
    for p in range(4):
        role, head0, heads, dim = case.parts[p] if p < count else (0, 0, 0, 0)
        header += struct.pack("<BBHHH", role, 0, head0, heads, dim)
    header += struct.pack("<IIII", len(rows), table_at, meta_at, meta_total)
    header += struct.pack("<IQ4f", crc32c(front), kv_bytes, *errors)
    header += bytes(252 - len(header))
    header += struct.pack("<I", crc32c(header))
    return header + front + pad + bytes(body)


def main() -> int:
    check = sys.argv[1:2] == ["--check"]
    folder = Path(sys.argv[-1])
    wrong = 0
    for case in CASES:
        path, data = folder / f"{case.name}.skvc", container(case)
        if not check:
            path.write_bytes(data)
        elif path.read_bytes() != data:
            print(f"{path.name}: differs from docs/container.md as make_golden.py reads it")
            wrong += 1
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
