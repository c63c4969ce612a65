# SPDX-License-Identifier: Apache-2.0
"""Part `codec`: ratio and speed of every tier, back end and SIMD level on one core, beside general
compressors on the same KV and beside what the memory allows (bench_speed, bench/speed/main.c).

Two sets of KV: docs-25m's, captured from vLLM's paged memory by the connector (capture.py), and
made-up KV of Llama-3-8B's shape (speed/kv_made.c). All contenders of a set run in turns in one
process; destinations are 256 MiB.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import capture
import texts
from part import CORES, RUNS, Figure, Plot, Wrong, model_folder, run_json, spread, summary, table
from servers import BUILD

TITLE = "encoding and decoding, one core"
BUDGET_S = 240
QUICK_S = 20

PROGRAM = BUILD / "bench" / "bench_speed"
TIERS = ("lossless", "high", "standard", "compact", "tiny")
LAYOUTS = ("rows", "transposed")
RATIO_GOALS = {"lossless": 1.48, "high": 3.0, "standard": 4.0, "compact": 5.35}
LIBRARIES = ("isal", "isal-huffman", "libdeflate", "libdeflate-huffman", "zstd", "lz4")
FORMS = ("standard", "int8", "bf16")
PROMPT_CHUNKS = 24
SETS = {
    "made-up": "made-up KV of Llama-3-8B's shape (32 layers, 8 KV heads of 128)",
    "docs-25m": "KV of docs-25m (8 layers, 2 KV heads of 128), captured from vLLM",
}


def specs(levels: list[str], tiers: tuple[str, ...], full: bool) -> list[str]:
    """full: every back end at every level and every form; else the main ones."""
    found = ["copy", "fill", "read"]
    for level in levels:
        for tier in tiers:
            found += [f"decode:{tier}:r16:{level}:{layout}" for layout in LAYOUTS]
            found.append(f"encode:{tier}:r16:{level}")
            if full or (level == levels[0] and tier in ("lossless", "standard")):
                found += [f"decode:{tier}:{codec}:{level}:rows" for codec in ("deflate", "zstd")]
                found += [f"encode:{tier}:{codec}:{level}" for codec in ("deflate", "zstd")]
        found += [f"decode:lossless:stored:{level}:{layout}" for layout in LAYOUTS]
        found.append(f"encode:lossless:stored:{level}")
    forms = FORMS if full else ("standard", "int8")
    found += [f"unpack:{library}:{form}" for library in LIBRARIES for form in forms]
    if full:
        packers = ("isal", "libdeflate", "zstd", "lz4")
        found += [f"pack:{library}:{form}" for library in packers for form in forms]
    return found


def measure(source: list[str], wanted: list[str], runs: int) -> dict[str, Any]:
    command: list[str | Path] = [PROGRAM, "--runs", str(runs), *source, *wanted]
    try:
        answer: dict[str, Any] = run_json(*command, timeout=BUDGET_S * 3)
    except subprocess.CalledProcessError as error:
        raise Wrong(f"bench_speed ended with {error.returncode}; it says why above") from None
    rows = answer.pop("contenders")
    answer["contenders"] = {
        row["spec"]: {"wire_bytes": row["wire_bytes"], "gb_s": summary(row["gb_s"])} for row in rows
    }
    return answer


def run(out: Path, quick: bool) -> dict[str, Any]:
    levels = run_json(PROGRAM, "levels")
    tiers, runs = (("lossless", "standard"), 1) if quick else (TIERS, RUNS)
    model = model_folder("docs-6m" if quick else "docs-25m")
    chunks = 4 if quick else PROMPT_CHUNKS
    shutil.rmtree(out / "store", ignore_errors=True)
    tokens = texts.read(model)["python"][: chunks * capture.CHUNK + 1]
    store = capture.capture(model, tokens, out)
    made_up = "4,4" if quick else "32,4"
    data = {
        "levels": levels,
        "cores": CORES[-1:],
        "made-up": measure(["--made-up", made_up], specs(levels, tiers, False), runs),
        "docs-25m": measure(["--store", str(store)], specs(levels, tiers, not quick), runs),
    }
    shutil.rmtree(out / "store", ignore_errors=True)
    return data


# ---- what is shown ------------------------------------------------------------------------------


class Set:
    """The contenders of one set of KV, by spec."""

    def __init__(self, data: dict[str, Any], name: str) -> None:
        self.name, self.rows = name, data[name]["contenders"]
        self.bytes = data[name]["chunks"] * data[name]["chunk_bytes"]

    def speed(self, spec: str) -> float | None:
        row = self.rows.get(spec)
        return float(row["gb_s"]["median"]) if row else None

    def ratio(self, spec: str) -> float | None:
        row = self.rows.get(spec)
        return self.bytes / row["wire_bytes"] if row and row["wire_bytes"] else None

    def cell(self, spec: str) -> str:
        row = self.rows.get(spec)
        return f"{row['gb_s']['median']:.2f} {spread(row['gb_s'])}" if row else "-"


def goal(number: str, what: str, least: float, value: float | None, unit: str) -> Figure:
    wanted = f">= {least:g} {unit}".rstrip()
    if value is None:
        return Figure(number, what, wanted, "-", None, "no such SIMD level here")
    return Figure(number, what, wanted, f"{value:.2f} {unit}".rstrip(), value >= least)


def over(value: float | None, base: float | None, factor: float = 1.0) -> float | None:
    return value / base * factor if value is not None and base else None


def figures(data: dict[str, Any]) -> list[Figure]:
    rows = []
    for name in SETS:
        s = Set(data, name)
        top = s.speed("decode:standard:r16:avx512:rows")
        deflate = over(top, s.speed("unpack:isal:standard"))
        crossed = over(s.speed("decode:standard:r16:avx512:transposed"), top)
        encode = over(s.speed("encode:standard:r16:avx512"), 2.0)
        rows += [
            goal("1", f"decode path, `standard`, AVX-512, {name}", 12, top, "GB/s"),
            goal("1", f"the same over ISA-L's Deflate path, {name}", 8, deflate, "x"),
            goal(
                "2",
                f"decode path, `standard`, AVX2, {name}",
                5.5,
                s.speed("decode:standard:r16:avx2:rows"),
                "GB/s",
            ),
            goal(
                "2",
                f"decode path, `lossless`, AVX-512, {name}",
                12,
                s.speed("decode:lossless:r16:avx512:rows"),
                "GB/s",
            ),
            goal("3", f"vLLM CPU's transposed K over rows, {name}", 0.7, crossed, "x"),
            goal("4", f"encode, whole path, `standard`, AVX-512, {name}", 3, encode, "Gsymbols/s"),
        ]
    real, best = Set(data, "docs-25m"), data["levels"][0]
    for tier, least in RATIO_GOALS.items():
        value = real.ratio(f"decode:{tier}:r16:{best}:rows")
        rows.append(goal("5", f"ratio of whole containers, `{tier}`, docs-25m", least, value, ""))
    return rows


def decode_table(s: Set, levels: list[str]) -> str:
    head = ["tier", "ratio", *(f"{level} {layout}" for level in levels for layout in LAYOUTS)]
    rows = []
    for tier in TIERS:
        ratio = s.ratio(f"decode:{tier}:r16:{levels[0]}:rows")
        if ratio:
            cells = [s.cell(f"decode:{tier}:r16:{at}:{lay}") for at in levels for lay in LAYOUTS]
            rows.append([f"`{tier}`", f"{ratio:.3f}", *cells])
    cells = [s.cell(f"decode:lossless:stored:{at}:{lay}") for at in levels for lay in LAYOUTS]
    rows.append(["stored", "1.00", *cells])
    return table(head, rows)


def back_end_table(s: Set, levels: list[str]) -> str:
    head = ["tier", "back end", "ratio"]
    head += [f"{way} {level}" for way in ("decode", "encode") for level in levels]
    rows = []
    for tier in TIERS:
        for codec in ("r16", "deflate", "zstd"):
            ratio = s.ratio(f"decode:{tier}:{codec}:{levels[0]}:rows")
            if not ratio:
                continue
            cells = [s.cell(f"decode:{tier}:{codec}:{level}:rows") for level in levels]
            cells += [s.cell(f"encode:{tier}:{codec}:{level}") for level in levels]
            rows.append([f"`{tier}`", codec, f"{ratio:.3f}", *cells])
    return table(head, rows)


def other_table(s: Set) -> str:
    rows = []
    for form in FORMS:
        for library in LIBRARIES:
            spec = f"unpack:{library}:{form}"
            if ratio := s.ratio(spec):
                pack = s.cell(f"pack:{library}:{form}")
                rows.append([form, library, f"{ratio:.3f}", s.cell(spec), pack])
    return table(("bytes", "library", "ratio", "decode", "encode"), rows)


def tables(data: dict[str, Any]) -> str:
    levels = data["levels"]
    text = [
        "GB/s of bf16, one core, processor time. Decoding is the whole path from a container in "
        "memory to the engine's pages: opening, every checksum, entropy decoding, dequantising. "
        "*rows* are pages of [token][head][dim], *transposed* vLLM's on CPUs (K as [dim][token]). "
        "Encoding is the whole path from canonical order to a container.\n"
    ]
    for name, title in SETS.items():
        s = Set(data, name)
        text += [f"### {title}\n", "Decoding, `r16`:\n", decode_table(s, levels)]
        text += ["All back ends, rows:\n", back_end_table(s, levels)]
        text += [
            "General compressors on the same KV, without any checksum. *standard*: a byte a "
            "symbol, uniform steps of that tier; *int8*: 8 bits, K per channel, V per token and "
            "head; *bf16*: the elements. Decoding includes dequantising (vectorised), encoding "
            "quantising; `huffman` is a Deflate stream without matches. `isal` and `libdeflate` "
            "decode what libdeflate's level 6 wrote and encode at level 1.\n",
            other_table(s),
            "What the memory allows: "
            + ", ".join(
                f"{word} {s.cell(spec)}"
                for word, spec in (
                    ("memcpy", "copy"),
                    ("non-temporal stores", "fill"),
                    ("reading", "read"),
                )
            )
            + ".\n",
        ]
    return "\n".join(text)


def plots(data: dict[str, Any], folder: Path) -> list[Plot]:
    import plots as style

    shades = {"avx512": "#1b6ca8", "neon": "#1b6ca8", "avx2": "#2a9d8f", "scalar": "#adb5bd"}
    drawn, axes = style.figure(8.0, 3.4, columns=len(SETS))
    for axis, name in zip(axes, SETS, strict=True):
        s, levels = Set(data, name), data["levels"]
        for i, level in enumerate(levels):
            at = [x + (i - (len(levels) - 1) / 2) * 0.26 for x in range(len(TIERS))]
            speeds = [s.speed(f"decode:{tier}:r16:{level}:rows") or 0 for tier in TIERS]
            axis.bar(at, speeds, 0.24, label=f"r16, {level}", color=shades.get(level))
        lines = (("fill", "non-temporal stores", "-"), ("copy", "memcpy", "--"))
        for spec, label, line in (*lines, ("unpack:isal:standard", "ISA-L Deflate path", ":")):
            if value := s.speed(spec):
                axis.axhline(value, color=style.colour("limit"), linestyle=line, linewidth=1)
                axis.annotate(
                    f"{label} {value:.1f}",
                    (len(TIERS) - 0.5, value),
                    ha="right",
                    va="bottom",
                    fontsize=7,
                )
        axis.set_xticks(range(len(TIERS)), TIERS)
        axis.set_title(name)
        axis.set_ylabel("GB/s of bf16, one core")
    axes[0].legend(loc="center left")
    style.save(drawn, folder, "codec")
    caption = "Decoding to rows, whole path on one core, beside memory's limits and Deflate."
    return [Plot("codec", caption)]
