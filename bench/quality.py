# SPDX-License-Identifier: Apache-2.0
"""What a tier does to a model's predictions: KL and top-1 against the unquantised KV.

A prefix's KV is dumped, sent through bench_codec (the codec that ships), read back, and the next
tokens are scored on it. Prints one JSON line a tier. Example:

    python3 bench/quality.py models/docs-6m build/release/bench/bench_codec docs/*.md
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import torch
from transformers import DynamicCache, LlamaForCausalLM

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "tests" / "codec"))
from make_kv import kv_of, prompt_ids, read_dump, write_dump

PREFIX, SCORED = 3072, 1024


@torch.no_grad()
def continue_on(model: LlamaForCausalLM, ids: torch.Tensor, kv: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of the scored tokens, given [layer][part][token][head][dim]."""
    cache = DynamicCache()
    for layer, (key, value) in enumerate(kv.transpose(2, 3)):
        cache.update(key[None].to(model.dtype), value[None].to(model.dtype), layer)
    logits = model(input_ids=ids[:, PREFIX:], past_key_values=cache, use_cache=True).logits
    return logits.double().log_softmax(-1)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("bench", type=pathlib.Path)
    parser.add_argument("texts", type=pathlib.Path, nargs="+")
    parser.add_argument("--sequences", type=int, default=4)
    parser.add_argument("--tiers", default="lossless,high,standard,compact,tiny")
    args = parser.parse_args()

    model = LlamaForCausalLM.from_pretrained(args.model, dtype=torch.bfloat16).eval()
    # both sides are scored in fp32 arithmetic, so that only the KV differs
    scorer = LlamaForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    length = PREFIX + SCORED
    ids = prompt_ids(args.model, args.texts, args.sequences * length)
    sums = {tier: [0.0, 0.0, 0.0] for tier in args.tiers.split(",")}
    for sequence in ids.view(args.sequences, 1, length):
        kv = kv_of(model, sequence[:, :PREFIX])
        reference = continue_on(scorer, sequence, kv)
        for tier, total in sums.items():
            with tempfile.TemporaryDirectory() as folder:
                before, after = pathlib.Path(folder, "a"), pathlib.Path(folder, "b")
                write_dump(before, kv, 0)
                run = [args.bench, before, "1", tier, "r16", after]
                result = json.loads(subprocess.check_output(run))["results"][0]
                ours = continue_on(scorer, sequence, read_dump(after))
            kl = (reference.exp() * (reference - ours)).sum(-1).mean().item()
            same = (reference.argmax(-1) == ours.argmax(-1)).double().mean().item()
            for i, value in enumerate((result["ratio"], kl, same)):
                total[i] += value / args.sequences
    for tier, (ratio, kl, same) in sums.items():
        print(json.dumps({"tier": tier, "ratio": ratio, "kl": kl, "top1": same}))


if __name__ == "__main__":
    main()
