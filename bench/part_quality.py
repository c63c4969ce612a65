# SPDX-License-Identifier: Apache-2.0
"""Part `quality`: what a smaller cache costs a model's predictions.

A prefix is computed, its KV is coded and decoded, and the tokens after it are scored through real
attention, in fp32 so that only the KV differs. The tiers go through the codec that ships
(bench_codec, whole containers), everything else through quantisers.py.
"""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import texts
from part import CORES, Figure, Plot, Skip, Wrong, model_folder, run_json, table
from servers import BUILD, ROOT

TITLE = "size of the cache against what the model then predicts"
BUDGET_S = 300
QUICK_S = 10

TIERS = ("lossless", "high", "standard", "compact", "tiny")
PREFIX, SCORED = 3072, 1024
MODELS = {"docs-25m": 4, "docs-6m": 8}  # sequences of each
EXACT_TOKENS = 4  # of the prefix: attention sinks, verbatim in our containers


class Scorer:
    """One model: computes prefixes in bf16, scores what follows in fp32."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import LlamaForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        sys.path.insert(0, str(ROOT / "tests" / "codec"))
        torch.set_num_threads(len(CORES))
        load: Any = LlamaForCausalLM.from_pretrained
        self.model = load(folder, dtype=torch.bfloat16).eval()
        self.scorer = load(folder, dtype=torch.float32).eval()

    def prefix(self, ids: Any) -> Any:
        import make_kv

        return make_kv.kv_of(self.model, ids)

    def predict(self, ids: Any, kv: Any) -> Any:
        """Log-probabilities after each of the ids, given the KV of what stands before them."""
        import torch
        from transformers import DynamicCache

        cache = DynamicCache()
        for layer, (key, value) in enumerate(kv.transpose(2, 3)):
            cache.update(key[None].float(), value[None].float(), layer)
        with torch.no_grad():
            logits = self.scorer(input_ids=ids, past_key_values=cache, use_cache=True).logits
        return logits[0].float().log_softmax(-1)


def through_codec(kv: Any, tier: str) -> tuple[Any, float]:
    """KV as the C codec gives it back, and the ratio of the whole containers."""
    import make_kv

    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder, "a"), Path(folder, "b")
        make_kv.write_dump(before, kv, 0)
        answer = run_json(BUILD / "bench" / "bench_codec", before, "1", tier, "r16", after)
        return make_kv.read_dump(after), answer["results"][0]["ratio"]


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


def measure(scorer: Scorer, ids: Any, prefix: int) -> tuple[dict[str, Any], float]:
    """Every contender on one sequence, and the reference's own negative log-likelihood."""
    import torch
    from quantisers import QUANTISERS, code_prefix

    kv = scorer.prefix(ids[None, :prefix])
    rest, targets = ids[None, prefix:-1], ids[prefix + 1 :]
    reference = scorer.predict(rest, kv)
    rows: dict[str, Any] = {}
    for tier in TIERS:
        back, ratio = through_codec(kv, tier)
        rows[tier] = {"ratio": ratio, **compare(reference, scorer.predict(rest, back), targets)}
        if tier == "lossless" and not torch.equal(back.view(torch.int16), kv.view(torch.int16)):
            raise Wrong("lossless gave other bits back")
    for name, quantiser in QUANTISERS.items():
        back, ratio, packed = code_prefix(kv, quantiser, EXACT_TOKENS)
        result = compare(reference, scorer.predict(rest, back), targets)
        rows[name] = {"ratio": ratio, "packed_ratio": packed, **result}
    nll = -float(reference[torch.arange(len(targets)), targets].double().mean())
    return rows, nll


def sequences(folder: Path, count: int, length: int) -> list[tuple[str, Any]]:
    """`count` pieces of text in turn from the sources, none overlapping."""
    import torch

    sources = texts.read(folder)
    found: list[tuple[str, Any]] = []
    for round_ in range(count):
        for name, ids in sources.items():
            piece = ids[round_ * length : (round_ + 1) * length]
            if len(piece) == length and len(found) < count:
                found.append((name, torch.tensor([0, *piece[1:]])))
    if len(found) < count:
        raise Skip(f"{len(found)} pieces of text with {length} tokens, {count} are needed")
    return found


def run(out: Path, quick: bool) -> dict[str, Any]:
    prefix, scored = (512, 256) if quick else (PREFIX, SCORED)
    data: dict[str, Any] = {"prefix": prefix, "scored": scored, "models": {}}
    for model, count in {"docs-6m": 1}.items() if quick else MODELS.items():
        folder = model_folder(model)
        scorer, runs, nlls = Scorer(folder), [], []
        for source, ids in sequences(folder, count, prefix + scored + 1):
            try:
                rows, nll = measure(scorer, ids, prefix)
            except subprocess.CalledProcessError as error:
                raise Wrong(f"bench_codec ended with {error.returncode}") from None
            runs.append({"source": source, "rows": rows})
            nlls.append(nll)
        data["models"][model] = {"runs": runs, "nll": nlls}
    return data


# ---- what is shown ------------------------------------------------------------------------------


def mean(model: dict[str, Any], name: str, field: str) -> float:
    values = [run["rows"][name][field] for run in model["runs"]]
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


def tables(data: dict[str, Any]) -> str:
    text = [
        f"Prefix of {data['prefix']} tokens coded in chunks of 256, the next {data['scored']} "
        "scored. Tiers: the C codec, bytes of whole containers (`r16`). Others: an ideal order-0 "
        "coder with a table for 64 channels (CacheGen: or for one, if smaller), tables, scales and "
        "zero points counted; *packed* at fixed width. All keep the first 4 tokens exact. KL "
        "(nats) and top-1 are of the next token against the exact cache; ± is the standard error "
        "over sequences (one text each: this project's pages, Python's reference, torch's, "
        "licences). FP8: "
        "e4m3, a scale a head; int8, int4, int2: K per channel, V per token and head.\n"
    ]
    for model, found in data["models"].items():
        perplexity = math.exp(sum(found["nll"]) / len(found["nll"]))
        count = len(found["runs"])
        text.append(f"### {model}: {count} sequence(s), perplexity {perplexity:.2f}\n")
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
        head = ("cache", "ratio", "packed", "KL", "KL, p99", "top-1", "perplexity")
        text.append(table(head, rows))
    return "\n".join(text)


def plots(data: dict[str, Any], folder: Path) -> list[Plot]:
    import plots as style

    models = data["models"]
    drawn, axes = style.figure(8.0, 3.6, columns=max(len(models), 2))
    for axis, (model, found) in zip(axes, models.items(), strict=False):
        ours = [n for n in TIERS if mean(found, n, "kl") > 0]
        points = [(16 / mean(found, n, "ratio"), mean(found, n, "kl")) for n in ours]
        axis.plot(*zip(*points, strict=True), "o-", color=style.colour("lossless"), label="tiers")
        for name, (x, y) in zip(ours, points, strict=True):
            axis.annotate(
                name, (x, y), (-5, -10), textcoords="offset points", ha="right", fontsize=7
            )
        for name in names(found):
            if name in TIERS:
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
        "entropy coding, hollow at fixed width."
    )
    return [Plot("quality", caption)]
