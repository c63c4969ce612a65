# SPDX-License-Identifier: Apache-2.0
"""`shadowserve calibrate MODEL`: measures how coarse the model's KV may be, writes its profile.

Answers in text, progress on stderr. Exit codes are those of the program shadowserve: 0 fine,
2 a mistake in the command line or in a file that it names, 4 anything else.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

EXIT_USAGE, EXIT_OTHER = 2, 4
DOCUMENTS, DOCUMENTS_CUDA, DOCUMENTS_MIN = 30, 60, 10
EPILOG = """\
A profile promises, on average over texts like the one it was measured with:
  lossless  bit-exact
  high      at most an eighth of the KL of an FP8 KV cache (e4m3, one scale a head)
  standard  no more than that of an FP8 KV cache
  compact   no more than int4's (K per channel, V per token, first tokens exact)
  tiny      at most four times int4's
KL is that of the next token's probabilities against the exact cache. docs/quality.md explains.

examples:
  shadowserve calibrate models/docs-6m
  shadowserve calibrate /models/Llama-3.1-8B --text our-prompts.txt --device cuda
  shadowserve calibrate MODEL --estimate       what it would take; nothing is run
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="shadowserve calibrate",
        description="Measure on MODEL how coarse its KV may be coded, and write its profile.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=Path, help="folder with config.json and *.safetensors")
    parser.add_argument(
        "--text",
        type=Path,
        help="UTF-8 text like what the model will serve; a line with a form feed ends a document "
        "(default: documentation of torch and Python)",
    )
    parser.add_argument("--out", type=Path, help="profile (default: NAME.json here)")
    parser.add_argument("--picture", type=Path, help="SVG (default: beside the profile)")
    parser.add_argument("--device", default="", help="cpu or cuda (default: cuda if there is one)")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU (default: 1)")
    parser.add_argument(
        "--documents",
        type=int,
        help=f"in all (default: {DOCUMENTS}, with cuda {DOCUMENTS_CUDA}: intervals are narrower)",
    )
    parser.add_argument("--scored", type=int, default=512, help="tokens scored after a prefix")
    parser.add_argument(
        "--lengths", help="prefix lengths, such as 1536,6144 (default: these and the maximum)"
    )
    parser.add_argument("--dtype", default="bf16", choices=("bf16", "fp16"), help="of the KV")
    parser.add_argument(
        "--weights",
        default="fp32",
        choices=("fp32", "bf16", "fp16"),
        help="what the model computes in; less than fp32 blurs what `high` is measured by",
    )
    parser.add_argument("--name", help="of the model, for people (default: its folder's)")
    parser.add_argument("--json", action="store_true", help="answer with one JSON object")
    parser.add_argument("--estimate", action="store_true", help="say what it takes, and stop")
    return parser


class Progress:
    """One line on stderr: a bar on a terminal, a line for each stage elsewhere."""

    def __init__(self, total: float) -> None:
        self.total, self.done, self.start, self.stage = total, 0.0, time.monotonic(), ""
        self.is_terminal = sys.stderr.isatty()

    def say(self, stage: str) -> None:
        self.stage = stage
        if not self.is_terminal:
            print(f"calibrate: {self._share():3.0%} {stage}", file=sys.stderr, flush=True)
        self.tick(0)

    def _share(self) -> float:
        return min(0.99, self.done / self.total)

    def tick(self, documents: float) -> None:
        self.done += documents
        if not self.is_terminal:
            return
        share, spent = self._share(), time.monotonic() - self.start
        left = f"{spent / share - spent:4.0f} s left" if share > 0.03 else ""
        bar = "#" * round(30 * share)
        print(f"\r[{bar:30}] {share:4.0%} {self.stage:20} {left} \x1b[K", end="", file=sys.stderr)
        sys.stderr.flush()

    def end(self) -> None:
        if self.is_terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _counts(documents: int) -> tuple[int, int, int]:
    """Of the splits: a fifth for sensitivities, the rest to find scales and to test them."""
    if documents < DOCUMENTS_MIN:
        raise ValueError(f"{documents} documents; at least {DOCUMENTS_MIN} are needed")
    first = documents // 5
    scale = (documents - first) // 2
    return first, scale, documents - first - scale


def estimate(model: Any, lengths: list[int], scored: int, counts: tuple[int, int, int]) -> str:
    """Memory and time, from the model's size and what this device multiplies in a second."""
    sensitivity, scale, test = counts
    shape, width = model.shape, 2 if model.kv_dtype.itemsize == 2 else 4
    kv = lengths[-1] * shape.token_elements * width
    logits = len(lengths) * scored * model.vocabulary * 4
    held = max(scale, test) * (kv + logits)
    prefix = model.forward_flops(lengths[-1])
    score = sum(model.forward_flops(scored, length) for length in lengths)
    evaluations = 9 * scale + 7 * test + 24
    flops = sum(counts) * prefix + sensitivity * 4 * score + evaluations * score
    seconds = flops / model.flops_per_second() * 1.6  # attention is slower than products
    weights = model.parameters * model.module.dtype.itemsize
    attention = (
        4 * scored * lengths[-1] * int(model.module.config.get_text_config().num_attention_heads)
    )
    device = weights + 3 * kv * model.module.dtype.itemsize / width + 2 * attention + 2 * logits
    where = "on the GPU" if model.device != "cpu" else "of memory for the model"
    return (
        f"{sum(counts)} documents of {lengths[-1] + scored} tokens: about {device / 2**30:.1f} GiB "
        f"{where}, {held / 2**30:.1f} GiB of host memory for caches, "
        f"{max(1, round(seconds / 60))} min"
    )


def _run(options: argparse.Namespace) -> None:
    import torch

    from shadowserve import model as identity
    from shadowserve.calibrate import measure, page, picture, texts
    from shadowserve.calibrate.calibration import Calibration, work
    from shadowserve.calibrate.model import Model

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    counts = _counts(options.documents or (DOCUMENTS if device == "cpu" else DOCUMENTS_CUDA))
    model = Model(options.model, device, options.weights, options.dtype)
    lengths = measure.lengths_of(model, options.scored)
    if options.lengths:
        lengths = sorted(int(word) for word in options.lengths.split(","))
    print(f"calibrate: {estimate(model, lengths, options.scored, counts)}", file=sys.stderr)
    if options.estimate:
        return
    name = options.name or options.model.resolve().name
    names = {"bf16": "torch.bfloat16", "fp16": "torch.float16"}
    digest = identity.identify(options.model, names[options.dtype]).digest
    bench = measure.Bench(model, lengths, options.scored)
    splits = texts.read(options.text, model.tokenizer, model.begin, bench.document_tokens, counts)
    progress = Progress(work(splits, lengths))
    result = Calibration(bench, splits, progress.say, progress.tick).run()
    progress.end()
    for tier, why in result.left_out.items():
        print(f"calibrate: {tier} is left out: {why}", file=sys.stderr)
    found = page.profile(bench, splits, result, name, digest, options.dtype)
    out = options.out or Path(f"{name}.json")
    out.write_text(page.written(found) + "\n")
    drawn = options.picture or out.with_suffix(".svg")
    drawn.write_text(picture.draw(result, name))
    spent = time.monotonic() - progress.start
    if options.json:
        answer = {"profile": str(out), "picture": str(drawn), "seconds": round(spent)}
        print(json.dumps({**answer, "tiers": found["tiers"], "references": found["references"]}))
        return
    print(page.table(found))
    print(f"\n{out} and {drawn}, {spent:.0f} s on {device}")


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as failure:
        return _fail(options, f"{failure}; pip install 'shadowserve[calibrate]'", EXIT_OTHER)
    if not (options.model / "config.json").is_file():
        return _fail(options, f"no config.json in {options.model}", EXIT_USAGE)
    try:
        _run(options)
    except (ValueError, OSError) as failure:
        return _fail(options, str(failure), EXIT_USAGE)
    return 0


def _fail(options: argparse.Namespace, text: str, code: int) -> int:
    print(f"shadowserve: calibrate: {text}", file=sys.stderr)
    if options.json:
        print(json.dumps({"error": f"calibrate: {text}", "exit": code}))
    return code


if __name__ == "__main__":
    sys.exit(main())
