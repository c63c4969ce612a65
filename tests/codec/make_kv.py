# SPDX-License-Identifier: Apache-2.0
"""Write a real KV dump: what a model's DynamicCache holds after a prompt (keys after RoPE).

File: magic "SSVKVD01", seven little-endian u32 (enum ssv_dtype, layers, parts, tokens, heads, dim,
position of the first token), then the elements as [layer][part][token][head][dim]. Needs torch,
transformers and safetensors; nothing in the build calls it. Example:

    python3 tests/codec/make_kv.py models/docs-6m docs/*.md --tokens 4096 --out build/kv.bin
"""

import argparse
import pathlib
import struct
import sys

import torch
from tokenizers import Tokenizer
from transformers import DynamicCache, LlamaForCausalLM

DTYPES = {
    "bf16": (0, torch.bfloat16),
    "fp16": (1, torch.float16),
    "fp32": (2, torch.float32),
    "e4m3": (3, torch.float8_e4m3fn),
    "e5m2": (4, torch.float8_e5m2),
}


def prompt_ids(model_dir: pathlib.Path, texts: list[pathlib.Path], tokens: int) -> torch.Tensor:
    """The first `tokens` ids of the texts, one after another, each begun with the model's BOS."""
    tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    ids: list[int] = []
    for text in texts:
        ids += [0, *tokenizer.encode(text.read_text(), add_special_tokens=False).ids]
        if len(ids) >= tokens:
            return torch.tensor(ids[:tokens])[None]
    sys.exit(f"the texts give {len(ids)} tokens, {tokens} were asked for")


@torch.no_grad()
def kv_after_prompt(model_dir: pathlib.Path, ids: torch.Tensor) -> torch.Tensor:
    """KV of the prompt as [layer][part][token][head][dim]."""
    model = LlamaForCausalLM.from_pretrained(model_dir, dtype=torch.bfloat16).eval()
    cache = DynamicCache()
    model(input_ids=ids, past_key_values=cache, use_cache=True)
    layers = [torch.stack((layer.keys[0], layer.values[0])) for layer in cache.layers]
    return torch.stack(layers).transpose(2, 3).contiguous()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("texts", type=pathlib.Path, nargs="+")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--first", type=int, default=0, help="first token that is written")
    parser.add_argument("--layers", type=int, default=0, help="leading layers; 0: all")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()

    kv = kv_after_prompt(args.model, prompt_ids(args.model, args.texts, args.tokens))
    kv = kv[: args.layers or None, :, args.first :]
    code, dtype = DTYPES[args.dtype]
    layers, parts, tokens, heads, dim = kv.shape
    head = struct.pack("<8s7I", b"SSVKVD01", code, layers, parts, tokens, heads, dim, args.first)
    args.out.write_bytes(head + kv.to(dtype).contiguous().view(torch.uint8).numpy().tobytes())
    print(f"{args.out}: {tuple(kv.shape)} {args.dtype}")


if __name__ == "__main__":
    main()
