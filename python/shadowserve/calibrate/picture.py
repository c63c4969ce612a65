# SPDX-License-Identifier: Apache-2.0
"""The picture of a calibration: bits an element against the KL they cost, as an SVG that needs
nothing to be drawn with. The same figures give the same file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from shadowserve.calibrate.calibration import Result
from shadowserve.calibrate.search import Damage

WIDTH, HEIGHT = 720, 440
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 44, 52
OURS, UNIFORM, OTHERS, GRID = "#1b6ca8", "#adb5bd", "#e76f51", "#e9ecef"

Point = tuple[float, float]  # bits an element, KL


def _point(damage: Damage) -> Point:
    """KL: geometric mean over lengths."""
    logs = [math.log(float(damage.means(length).mean())) for length in damage.kl]
    return 16 / damage.ratio(), math.exp(sum(logs) / len(logs))


class _Axes:
    def __init__(self, points: Sequence[Point]) -> None:
        bits = [b for b, _ in points]
        logs = [math.log10(kl) for _, kl in points]
        self.x0, self.x1 = 0.0, math.ceil(max(bits))
        self.y0, self.y1 = math.floor(min(logs)), math.ceil(max(logs))

    def x(self, bits: float) -> float:
        return LEFT + (bits - self.x0) / (self.x1 - self.x0) * (WIDTH - LEFT - RIGHT)

    def y(self, kl: float) -> float:
        share = (math.log10(kl) - self.y0) / max(1, self.y1 - self.y0)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    def at(self, point: Point) -> tuple[str, str]:
        return f"{self.x(point[0]):.1f}", f"{self.y(point[1]):.1f}"


def _text(x: float, y: float, words: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {more}>{escape(words)}</text>'


def _frame(axes: _Axes, title: str) -> list[str]:
    right, low = WIDTH - RIGHT, HEIGHT - BOTTOM
    lines = [_text(LEFT, 22, title, 'font-size="14" font-weight="bold"')]
    for power in range(axes.y0, axes.y1 + 1):
        y = axes.y(10.0**power)
        lines.append(f'<line x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="{GRID}"/>')
        lines.append(_text(LEFT - 6, y + 4, f"1e{power}", 'text-anchor="end"'))
    for bits in range(int(axes.x0), int(axes.x1) + 1):
        x = axes.x(bits)
        lines.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{low}" stroke="{GRID}"/>')
        lines.append(_text(x, low + 16, str(bits), 'text-anchor="middle"'))
    middle = (LEFT + right) / 2
    lines.append(
        _text(
            middle,
            HEIGHT - 14,
            "bits an element, everything counted (bf16: 16)",
            'text-anchor="middle"',
        )
    )
    turned = f'text-anchor="middle" transform="rotate(-90 16 {HEIGHT / 2:.0f})"'
    lines.append(_text(16, HEIGHT / 2, "KL of the next token, nats", turned))
    return lines


def _curve(axes: _Axes, points: Sequence[Point], colour: str, dashed: bool) -> list[str]:
    way = " ".join(",".join(axes.at(point)) for point in points)
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    line = f'<polyline points="{way}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>'
    return [line]


def _mark(axes: _Axes, point: Point, name: str, colour: str, left: bool) -> list[str]:
    x, y = axes.at(point)
    anchor = 'text-anchor="end"' if left else ""
    shift = -7 if left else 7
    return [
        f'<circle cx="{x}" cy="{y}" r="4" fill="{colour}"/>',
        _text(float(x) + shift, float(y) + (12 if left else -5), name, anchor),
    ]


def draw(result: Result, name: str) -> str:
    calibrated = sorted(_point(damage) for _, damage in result.curve)
    uniform = {tier: _point(damage) for tier, damage in result.uniform.items()}
    others = {other: _point(damage) for other, damage in result.others.items()}
    tiers = {tier: _point(result.test_split[tier]) for tier in result.scales}
    axes = _Axes([*calibrated, *uniform.values(), *others.values(), *tiers.values()])
    lines = _frame(axes, f"{name}: size of the KV cache against what it costs")
    lines += _curve(axes, calibrated, OURS, dashed=False)
    lines += _curve(axes, sorted(uniform.values()), UNIFORM, dashed=True)
    for tier, point in tiers.items():
        lines += _mark(axes, point, tier, OURS, left=True)
    for other, point in others.items():
        lines += _mark(axes, point, other, OTHERS, left=False)
    x, y = axes.at(max(uniform.values()))
    lines.append(_text(float(x) + 6, float(y) + 4, "uniform steps", f'fill="{UNIFORM}"'))
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="11">'
    )
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *lines, "</svg>\n"])
