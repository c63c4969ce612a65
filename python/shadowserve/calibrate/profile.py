# SPDX-License-Identifier: Apache-2.0
"""A profile read back, as far as measuring with it needs. The checks of a profile
are those of the program (`shadowserve profile check`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from shadowserve.calibrate.sensitivity import Weights


@dataclass(frozen=True)
class Profile:
    weights: Weights
    scales: dict[str, float]
    written: dict[str, Any]


def read(file: Path) -> Profile:
    written = json.loads(file.read_text())
    parts = {part["role"]: part for part in written["parts"]}
    head = torch.stack([torch.tensor(parts[role]["weight"]) for role in "KV"], 1)
    factor = None
    if "factor" in parts["K"]:
        rows = [list(bytes.fromhex(row)) for row in parts["K"]["factor"]]
        shape = (written["layers"], parts["K"]["heads"], parts["K"]["dim"])
        factor = torch.tensor(rows, dtype=torch.uint8).view(shape)
    scales = {tier: found["scale"] for tier, found in written["tiers"].items()}
    return Profile(Weights(head, factor), scales, written)
