# SPDX-License-Identifier: Apache-2.0
"""How the benchmark's pictures look: one style, one colour for a thing in all of them.

A part draws on the axes that figure() gives and calls save(); the same data gives the same file,
byte for byte, so that a picture changes in the repository only when its data do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

matplotlib.rcParams.update(
    {
        "svg.hashsalt": "shadowserve",
        "svg.fonttype": "path",
        "font.size": 9,
        "axes.grid": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 10,
        "axes.titlelocation": "left",
        "grid.alpha": 0.3,
        "legend.frameon": False,
        "legend.fontsize": 8,
        "lines.markersize": 5,
        "figure.facecolor": "white",
    }
)

# Tiers from exact to coarse, then what they are compared with.
COLOURS = {
    "lossless": "#1b6ca8",
    "high": "#2a9d8f",
    "standard": "#e76f51",
    "compact": "#b5179e",
    "tiny": "#6d597a",
    "raw": "#8d99ae",
    "recompute": "#495057",
    "other": "#adb5bd",
    "limit": "#212529",
}


def colour(name: str) -> str:
    return COLOURS.get(name, COLOURS["other"])


def figure(width: float = 7.0, height: float = 3.6, columns: int = 1) -> tuple[Any, Any]:
    """A figure and its axes (an array of them for several columns)."""
    return pyplot.subplots(1, columns, figsize=(width, height), layout="constrained")


def save(drawn: Any, folder: Path, name: str) -> None:
    """Writes NAME.svg and NAME.png to folder and closes the figure."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn.savefig(folder / f"{name}.svg", metadata={"Date": None, "Creator": None})
    drawn.savefig(folder / f"{name}.png", dpi=150, metadata={"Software": None})
    pyplot.close(drawn)
