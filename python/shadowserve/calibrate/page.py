# SPDX-License-Identifier: Apache-2.0
"""What a calibration found, as a profile (docs/profile.md) and as a table for people."""

from __future__ import annotations

import json
from typing import Any

from shadowserve.calibrate.calibration import Result, expected_errors
from shadowserve.calibrate.measure import Bench
from shadowserve.calibrate.search import FIRST_POSITIONS, PROMISES, Damage, kept
from shadowserve.calibrate.sensitivity import VERBATIM
from shadowserve.calibrate.texts import Splits

SCHEMA = "shadowserve-profile-1"
ERROR_MARGIN = 1.5  # times its expected error, and a tensor counts as other content
NAME_BYTES_MAX = 128


def rounded(value: float) -> float:
    return float(f"{value:.5g}")


def top1(damage: Damage, length: int) -> float:
    same = damage.same_top[length]
    return sum(same) / len(same)


def _measured(damage: Damage, length: int) -> dict[str, Any]:
    tokens = damage.kl[length]
    first = sum(float(kl[:FIRST_POSITIONS].mean()) for kl in tokens) / len(tokens)
    return {
        "tokens": length,
        "kl": rounded(float(damage.means(length).mean())),
        "top1": rounded(top1(damage, length)),
        "kl_first_32": rounded(first),
    }


def _tier(result: Result, tier: str) -> dict[str, Any]:
    damage = result.test_split[tier]
    promise = kept(tier, damage, result.test_split)
    rows = []
    for length, one in promise.items():
        row = _measured(damage, length)
        rows.append({**row, "bound": rounded(one.bound), "p99": rounded(one.p99)})
    return {
        "scale": rounded(result.scales[tier]),
        "ratio": rounded(damage.ratio()),
        "error": [[rounded(x) for x in layer] for layer in expected_errors(damage).tolist()],
        "measured": rows,
    }


def _parts(bench: Bench, result: Result) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    for index, role in enumerate("KV"):
        weight = [[rounded(x) for x in layer] for layer in result.weights.head[:, index].tolist()]
        part = {"role": role, "heads": bench.model.shape.heads, "dim": bench.model.shape.dim}
        parts.append({**part, "weight": weight})
    if result.weights.factor is not None:
        rows = result.weights.factor.flatten(1)
        parts[0]["factor"] = [bytes(row.tolist()).hex() for row in rows]
    return parts


def profile(
    bench: Bench, splits: Splits, result: Result, name: str, digest: bytes, dtype: str
) -> dict[str, Any]:
    references = {}
    for reference in sorted({reference for reference, _ in PROMISES.values()}):
        damage = result.test_split[reference]
        rows = [_measured(damage, length) for length in bench.lengths]
        references[reference] = {"ratio": rounded(damage.ratio()), "measured": rows}
    counts = [len(split) for split in (splits.sensitivity, splits.scale, splits.test)]
    return {
        "schema": SCHEMA,
        "model": {
            "name": name.encode()[:NAME_BYTES_MAX].decode(errors="ignore"),
            "digest": digest.hex(),
        },
        "text": {
            "name": splits.name,
            "digest": splits.sha256,
            "documents": sum(counts),
            "splits": dict(zip(("sensitivity", "scale", "test"), counts, strict=True)),
            "scored_tokens": bench.scored,
        },
        "dtype": dtype,
        "layers": bench.model.shape.layers,
        "parts": _parts(bench, result),
        "verbatim_tokens": VERBATIM,
        "error_margin": ERROR_MARGIN,
        "tiers": {tier: _tier(result, tier) for tier in result.scales},
        "references": references,
        "tightened": {tier: rounded(factor) for tier, factor in result.tightened.items()},
    }


def written(value: Any, depth: int = 0) -> str:
    """JSON with a line for each member, and innermost arrays on one line."""
    indent = "  " * (depth + 1)
    if isinstance(value, dict) and any(isinstance(v, dict | list) for v in value.values()):
        members = [f"{indent}{json.dumps(k)}: {written(v, depth + 1)}" for k, v in value.items()]
        return "{\n" + ",\n".join(members) + "\n" + indent[2:] + "}"
    if isinstance(value, list) and any(isinstance(v, dict | list | str) for v in value):
        return (
            "[\n"
            + ",\n".join(indent + written(v, depth + 1) for v in value)
            + "\n"
            + (indent[2:] + "]")
        )
    return json.dumps(value)


def table(found: dict[str, Any]) -> str:
    """The profile's figures for a terminal; KL and top-1 of the worst length."""
    lines = [f"{'':10} {'ratio':>6} {'KL':>9} {'bound':>6} {'p99':>6} {'top-1':>6}   promise"]
    for name, reference in found["references"].items():
        worst = max(reference["measured"], key=lambda row: row["kl"])
        lines.append(
            f"{name:10} {reference['ratio']:6.2f} {worst['kl']:9.2e} {'':6} {'':6} "
            f"{worst['top1']:6.3f}"
        )
    for name, tier in found["tiers"].items():
        reference, share = PROMISES[name]
        rows = tier["measured"]
        lines.append(
            f"{name:10} {tier['ratio']:6.2f} {max(r['kl'] for r in rows):9.2e} "
            f"{max(r['bound'] for r in rows):6.2f} {max(r['p99'] for r in rows):6.2f} "
            f"{min(r['top1'] for r in rows):6.3f}   KL <= {share:g} x {reference}'s"
        )
    return "\n".join(lines)
