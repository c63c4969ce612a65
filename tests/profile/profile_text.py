# SPDX-License-Identifier: Apache-2.0
"""Profiles for tests: of a small made-up model, with figures that keep promises or break them."""

from __future__ import annotations

import json
from typing import Any

FINGERPRINT = bytes(range(0xA0, 0xA8))
DIGEST = FINGERPRINT + bytes(24)
SHARES = {
    "high": ("FP8", 1 / 8),
    "standard": ("FP8", 1.0),
    "compact": ("int4", 1.0),
    "tiny": ("int4", 4.0),
}
REFERENCE_KL = {"FP8": 1e-3, "int4": 4e-3}


def tier(name: str, scale: float, layers: int, bound: float) -> dict[str, Any]:
    reference, share = SHARES[name]
    figures = {
        "tokens": 1536,
        "kl": REFERENCE_KL[reference] * share * bound * 0.9,
        "bound": bound,
        "p99": bound,
        "top1": 0.98,
    }
    return {"scale": scale, "ratio": 5, "error": [[0, 0]] * layers, "measured": [figures]}


def make_profile(
    digest: bytes = DIGEST,
    layers: int = 2,
    heads: int = 2,
    dim: int = 64,
    dtype: str = "bf16",
    weight: float = 1.0,
    bounds: dict[str, float] | None = None,
) -> dict[str, Any]:
    """Tiers with bounds above 1 break their promise; weight: of every head."""
    bounds = bounds or {"high": 0.9, "standard": 0.9, "compact": 0.9, "tiny": 0.9}
    scales = {"high": 0.01, "standard": 0.05, "compact": 0.1, "tiny": 0.2}
    parts = [
        {"role": role, "heads": heads, "dim": dim, "weight": [[weight] * heads] * layers}
        for role in ("K", "V")
    ]
    references = {
        name: {"ratio": 2, "measured": [{"tokens": 1536, "kl": kl, "top1": 0.97}]}
        for name, kl in REFERENCE_KL.items()
    }
    return {
        "schema": "shadowserve-profile-1",
        "model": {"name": "made-up", "digest": digest.hex()},
        "text": {"digest": "00" * 32, "documents": 20},
        "dtype": dtype,
        "layers": layers,
        "verbatim_tokens": 4,
        "error_margin": 1.5,
        "parts": parts,
        "tiers": {name: tier(name, scales[name], layers, bounds[name]) for name in bounds},
        "references": references,
    }


def profile_bytes(**changes: Any) -> bytes:
    return json.dumps(make_profile(**changes)).encode()
