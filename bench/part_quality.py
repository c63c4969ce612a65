# SPDX-License-Identifier: Apache-2.0
"""Part `quality`: what a smaller cache costs a model's predictions.

A prefix is computed, its KV is coded and decoded, and the tokens after it are scored through real
attention, in fp32 so that only the KV differs. The tiers go through the codec that ships, whole
containers, with the steps of the model's profile and with uniform ones; what other systems do is in
shadowserve.calibrate.references. Besides documentation: source code, recall, greedy text.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import smollm2
import texts
from part import CORES, Figure, Plot, Skip, Wrong, model_folder, table
from servers import BUILD, PROFILES, ROOT

sys.path.insert(0, str(ROOT / "python"))
os.environ.setdefault(
    "SHADOWSERVE_CODEC_LIBRARY", str(BUILD / "python" / "native" / "libshadowserve-codec.so")
)

TITLE = "size of the cache against what the model then predicts"
BUDGET_S = 900
QUICK_S = 45

TIERS = ("lossless", "high", "standard", "compact", "tiny")
LOSSY = TIERS[1:]
UNIFORM = "uniform "  # before a tier's name: without the profile's steps
REFERENCES = ("FP8", "int8", "int4", "int2", "CacheGen")
PROMISES = {"high": ("FP8", 8), "standard": ("FP8", 1), "compact": ("int4", 1), "tiny": ("int4", 4)}
PREFIX, SCORED = 3072, 1024
MODELS = {"docs-25m": 4, "docs-6m": 8, "smollm2": 3}  # sequences of each, if time allows
MODEL_S = {"docs-25m": 150, "docs-6m": 90, "smollm2": 240}  # after it only what is begun is ended
SHIFT_SEQUENCES, GENERATIONS = 2, 3
EXACT_TOKENS = 4  # of the prefix: attention sinks, verbatim in our containers
CALIBRATED_WITH = "torch"  # the text of it is not measured with


class Contenders:
    """A model, its profile if it has one, and the codec."""

    def __init__(self, folder: Path, profile: Path) -> None:
        import torch
        from shadowserve.calibrate import profile as profiles
        from shadowserve.calibrate.coding import Coder
        from shadowserve.calibrate.model import Model
        from transformers.utils import logging

        logging.set_verbosity_error()
        torch.set_num_threads(len(CORES))
        self.model = Model(folder)
        self.coder = Coder(self.model.shape)
        self.profile = profiles.read(profile) if profile.exists() else None

    def names(self) -> list[str]:
        uniform = [UNIFORM + tier for tier in LOSSY] if self.profile else []
        return [*TIERS, *uniform, *REFERENCES]

    def code(self, kv: Any, name: str, entropy: bool = True) -> tuple[Any, float, float | None]:
        """KV as it comes back, its ratio, and for others that at fixed width."""
        from shadowserve.calibrate import references

        if name in REFERENCES:
            coded = references.code(kv, name, EXACT_TOKENS, entropy)
            return coded.kv, coded.ratio, coded.packed_ratio
        steps = None
        if self.profile and name in self.profile.scales:
            steps = self.coder.steps(self.profile.weights, self.profile.scales[name])
        ours = self.coder.code(kv, name.removeprefix(UNIFORM), steps)
        return ours.kv, ours.ratio, None


def compare(reference: Any, ours: Any, targets: Any) -> dict[str, float]:
    import torch

    divergence = (reference.exp() * (reference - ours)).sum(-1).double()
    same = (reference.argmax(-1) == ours.argmax(-1)).double().mean()
    chosen = torch.arange(len(targets))
    nll = (reference[chosen, targets] - ours[chosen, targets]).double().mean()
    return {
        "kl": float(divergence.mean()),
        "kl_p99": float(divergence.quantile(0.99)),
        "top1": float(same),
        "nll_change": float(nll),
    }


def measure(
    contenders: Contenders, ids: list[int], prefix: int, names: list[str], entropy: bool = True
) -> tuple[dict[str, Any], float]:
    """Every contender on one sequence, and the reference's own negative log-likelihood."""
    import torch

    model = contenders.model
    kv = model.prefix(ids[:prefix])
    rest, targets = ids[prefix:-1], torch.tensor(ids[prefix + 1 :])
    reference = model.predict(rest, kv)
    rows: dict[str, Any] = {}
    for name in names:
        back, ratio, packed = contenders.code(kv, name, entropy)
        rows[name] = {"ratio": ratio, **compare(reference, model.predict(rest, back), targets)}
        if packed:
            rows[name]["packed_ratio"] = packed
        if name == "lossless" and not torch.equal(back.view(torch.int16), kv.view(torch.int16)):
            raise Wrong("lossless gave other bits back")
    nll = -float(reference[torch.arange(len(targets)), targets].double().mean())
    return rows, nll


def sequences(
    contenders: Contenders, sources: dict[str, Callable[[], str]], count: int, length: int
) -> list[tuple[str, list[int]]]:
    """`count` pieces of text in turn from the sources, none overlapping."""
    model, found = contenders.model, []
    cut = {
        name: model.tokenizer(make(), add_special_tokens=False) for name, make in sources.items()
    }
    for round_ in range(count):
        for name, tokens in cut.items():
            piece = tokens["input_ids"][round_ * length : (round_ + 1) * length]
            if len(piece) == length and len(found) < count:
                found.append((name, [*model.begin, *piece][:length]))
    if len(found) < count:
        raise Skip(f"{len(found)} pieces of text with {length} tokens, {count} are needed")
    return found


class Deadline:
    """Says yes once, and then for as long as there is time: a slow machine measures fewer texts."""

    def __init__(self, seconds: float) -> None:
        self.until = time.monotonic() + seconds

    def in_time(self, pieces: list[Any]) -> Iterator[Any]:
        for index, piece in enumerate(pieces):
            if index and time.monotonic() > self.until:
                return
            yield piece


def source_code() -> str:
    """The domain shift: C, when all of the calibration was English prose."""
    return "\n\n".join(file.read_text() for file in sorted((ROOT / "src").rglob("*.c")))


def shift(
    contenders: Contenders, prefix: int, scored: int, deadline: Deadline
) -> list[dict[str, Any]]:
    names, rows = [*LOSSY, "FP8", "int4"], []
    pieces = sequences(contenders, {"C": source_code}, SHIFT_SEQUENCES, prefix + scored + 1)
    for _, ids in deadline.in_time(pieces):
        rows.append({"rows": measure(contenders, ids, prefix, names, entropy=False)[0]})
    return rows


def needle(contenders: Contenders, ids: list[int], prefix: int) -> dict[str, float]:
    """Recall with each cache, and without what the needles stand in."""
    import evidence

    model = contenders.model
    hidden, needles = evidence.with_needles(model, ids[:prefix], seed=1)
    kv = model.prefix(hidden)
    found = {"exact": evidence.recall(model, kv, needles)}
    found["never said"] = evidence.recall(model, model.prefix(ids[:prefix]), needles)
    for name in [*LOSSY, "FP8", "int4", "CacheGen"]:
        back = contenders.code(kv, name, entropy=False)[0]
        found[name] = evidence.recall(model, back, needles)
    return found


def generation(
    contenders: Contenders, pieces: list[tuple[str, list[int]]], prefix: int, deadline: Deadline
) -> dict[str, list[int]]:
    """Leading greedy tokens that are those of the exact cache, a number for each piece."""
    import evidence

    model, found = contenders.model, {}
    for _, ids in deadline.in_time(pieces):
        kv, last = model.prefix(ids[:prefix]), ids[prefix]
        exact = model.generate(kv, last, evidence.GENERATED)
        for name in [*LOSSY, "FP8", "int4", "CacheGen"]:
            back = contenders.code(kv, name, entropy=False)[0]
            text = model.generate(back, last, evidence.GENERATED)
            found.setdefault(name, []).append(evidence.equal_for(text, exact))
    return found


def contenders_of(model: str) -> Contenders:
    if model != "smollm2":
        return Contenders(model_folder(model), PROFILES / f"{model}.json")
    try:
        return Contenders(smollm2.folder(), PROFILES / "smollm2-135m.json")
    except smollm2.Unavailable as failure:
        raise Skip(f"smollm2: {failure}") from None


def run_model(model: str, count: int, prefix: int, scored: int, quick: bool) -> dict[str, Any]:
    contenders, deadline = contenders_of(model), Deadline(MODEL_S[model])
    sources = {name: make for name, make in texts.SOURCES.items() if name != CALIBRATED_WITH}
    pieces = sequences(contenders, sources, count, prefix + scored + 1)
    runs, nlls = [], []
    for source, ids in deadline.in_time(pieces):
        rows, nll = measure(contenders, ids, prefix, contenders.names())
        runs.append({"source": source, "rows": rows})
        nlls.append(nll)
    found: dict[str, Any] = {"runs": runs, "nll": nlls}
    if contenders.profile:
        found["profile"] = contenders.profile.written
    found["shift"] = shift(contenders, prefix, scored // 2, deadline)
    found["needle"] = needle(contenders, pieces[0][1], prefix)
    if not quick:
        found["generation"] = generation(contenders, pieces[:GENERATIONS], prefix, deadline)
    return found


def run(out: Path, quick: bool) -> dict[str, Any]:
    prefix, scored = (512, 256) if quick else (PREFIX, SCORED)
    data: dict[str, Any] = {"prefix": prefix, "scored": scored, "models": {}, "skipped": {}}
    for model, count in {"docs-6m": 1}.items() if quick else MODELS.items():
        try:
            data["models"][model] = run_model(model, count, prefix, scored, quick)
        except Skip as skip:
            data["skipped"][model] = str(skip)
    if not data["models"]:
        raise Skip("; ".join(data["skipped"].values()))
    return data


# ---- what is shown ------------------------------------------------------------------------------


def mean(model: dict[str, Any], name: str, field: str, runs: str = "runs") -> float:
    values = [run["rows"][name][field] for run in model[runs]]
    return float(sum(values) / len(values))


def names(model: dict[str, Any]) -> list[str]:
    return list(model["runs"][0]["rows"])


def error_of_mean(model: dict[str, Any], name: str) -> str:
    """Standard error of the KL over sequences, in percent of it."""
    values = [run["rows"][name]["kl"] for run in model["runs"]]
    middle = sum(values) / len(values)
    if len(values) < 2 or not middle:
        return ""
    variance = sum((v - middle) ** 2 for v in values) / (len(values) - 1)
    return f" ±{100 * math.sqrt(variance / len(values)) / middle:.0f} %"


def figures(data: dict[str, Any]) -> list[Figure]:
    return []


def _sizes(found: dict[str, Any]) -> str:
    rows = []
    for name in names(found):
        packed = found["runs"][0]["rows"][name].get("packed_ratio")
        change = math.expm1(mean(found, name, "nll_change"))
        rows.append(
            (
                f"`{name}`" if name in TIERS else name,
                f"{mean(found, name, 'ratio'):.2f}",
                f"{packed:.2f}" if packed else "",
                f"{mean(found, name, 'kl'):.2e}{error_of_mean(found, name)}",
                f"{mean(found, name, 'kl_p99'):.1e}",
                f"{mean(found, name, 'top1'):.4f}",
                f"{100 * change:+.2f} %",
            )
        )
    return table(("cache", "ratio", "packed", "KL", "KL, p99", "top-1", "perplexity"), rows)


def _promises(found: dict[str, Any]) -> str:
    """What the profile says, and how its tiers fare where it did not look."""
    profile = found.get("profile")
    if not profile:
        return "No profile: the tiers above have uniform steps.\n"
    rows = []
    for tier in profile["tiers"]:
        written, (reference, part) = profile["tiers"][tier], PROMISES[tier]

        def share(runs: str, tier: str = tier, reference: str = reference, part: int = part) -> str:
            theirs = mean(found, reference, "kl", runs) / (part if tier == "high" else 1 / part)
            return f"{mean(found, tier, 'kl', runs) / theirs:.2f}"

        bounds = ", ".join(f"{row['bound']:.2f}" for row in written["measured"])
        rows.append((f"`{tier}`", f"{written['ratio']:.2f}", bounds, share("runs"), share("shift")))
    tokens = ", ".join(str(row["tokens"]) for row in written["measured"])
    head = ("tier", "ratio", f"profile: bound at {tokens} tokens", "texts above", "C source")
    return "KL as a share of what the promise allows:\n\n" + table(head, rows)


def _further(found: dict[str, Any]) -> str:
    """Recall and generation."""
    rows = []
    generated = found.get("generation", {})
    for name, share in found.get("needle", {}).items():
        equal = generated.get(name)
        text = ", ".join(map(str, equal)) if equal else ""
        rows.append((f"`{name}`" if name in TIERS else name, f"{100 * share:.0f} %", text))
    return table(("cache", "needles recalled", "greedy tokens equal, of 64"), rows) if rows else ""


def tables(data: dict[str, Any]) -> str:
    text = [
        f"Prefix of {data['prefix']} tokens coded in chunks of 256, the next {data['scored']} "
        "scored. Tiers: the C codec, bytes of whole containers (`r16`), steps of the model's "
        "profile; *uniform*: without it. Others: an ideal order-0 "
        "coder with a table for 64 channels (CacheGen: or for one, if smaller), tables, scales and "
        "zero points counted; *packed* at fixed width. All but FP8 keep the first 4 tokens exact. "
        "KL (nats) and top-1 are of the next token against the exact cache; ± is the standard "
        "error over sequences (one text each: this project's pages, Python's reference, "
        "licences; no profile saw them). FP8: e4m3, a scale a head; int8, int4, int2: K per "
        "channel, V per token and head.\n"
    ]
    for model, found in data["models"].items():
        perplexity = math.exp(sum(found["nll"]) / len(found["nll"]))
        count = len(found["runs"])
        text.append(f"### {model}: {count} sequence(s), perplexity {perplexity:.2f}\n")
        text.append(_sizes(found))
        if "shift" in found:
            text.append(_promises(found))
            text.append(_further(found))
    for model, why in data.get("skipped", {}).items():
        text.append(f"{model} was left out: {why}.\n")
    return "\n".join(text)


def plots(data: dict[str, Any], folder: Path) -> list[Plot]:
    import plots as style

    models = data["models"]
    drawn, axes = style.figure(4.2 * max(len(models), 2), 3.6, columns=max(len(models), 2))
    for axis, (model, found) in zip(axes, models.items(), strict=False):
        ours = [n for n in TIERS if mean(found, n, "kl") > 0]
        points = [(16 / mean(found, n, "ratio"), mean(found, n, "kl")) for n in ours]
        axis.plot(*zip(*points, strict=True), "o-", color=style.colour("lossless"), label="tiers")
        for name, (x, y) in zip(ours, points, strict=True):
            axis.annotate(
                name, (x, y), (-5, -10), textcoords="offset points", ha="right", fontsize=7
            )
        plain = [n for n in names(found) if n.startswith(UNIFORM)]
        if plain:
            points = [(16 / mean(found, n, "ratio"), mean(found, n, "kl")) for n in plain]
            axis.plot(*zip(*points, strict=True), ".--", color=style.colour("other"))
            axis.annotate("uniform", points[-1], (4, 0), textcoords="offset points", fontsize=7)
        for name in names(found):
            if name in TIERS or name in plain:
                continue
            x, y = 16 / mean(found, name, "ratio"), mean(found, name, "kl")
            packed = 16 / mean(found, name, "packed_ratio")
            axis.plot([x, packed], [y, y], "-", color=style.colour("other"), linewidth=1)
            axis.plot(packed, y, "s", color="white", markeredgecolor=style.colour("standard"))
            axis.plot(x, y, "s", color=style.colour("standard"))
            axis.annotate(name, (x, y), (4, 4), textcoords="offset points", fontsize=7)
        axis.set_yscale("log")
        axis.set_title(model)
        axis.set_xlabel("bits an element, all metadata counted")
        axis.set_ylabel("KL of the next token, nats")
    style.save(drawn, folder, "quality")
    caption = (
        "Size against KL, lower left is better. Squares: other quantisers, filled with ideal "
        "entropy coding, hollow at fixed width. Dashed: our tiers without a profile."
    )
    return [Plot("quality", caption)]
