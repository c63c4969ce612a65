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

HEADER = struct.Struct("<8s7I")
MAGIC = b"SSVKVD01"
DTYPES = {
    torch.bfloat16: 0,
    torch.float16: 1,
    torch.float32: 2,
    torch.float8_e4m3fn: 3,
    torch.float8_e5m2: 4,
}
NAMES = dict(zip(("bf16", "fp16", "fp32", "e4m3", "e5m2"), DTYPES, strict=True))


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
def kv_of(model: LlamaForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """KV of a prompt as [layer][part][token][head][dim]."""
    cache = DynamicCache()
    model(input_ids=ids, past_key_values=cache, use_cache=True)
    layers = [torch.stack((layer.keys[0], layer.values[0])) for layer in cache.layers]
    return torch.stack(layers).transpose(2, 3).contiguous()


def write_dump(path: pathlib.Path, kv: torch.Tensor, first: int) -> None:
    head = HEADER.pack(MAGIC, DTYPES[kv.dtype], *kv.shape, first)
    path.write_bytes(head + kv.contiguous().view(torch.uint8).numpy().tobytes())


def read_dump(path: pathlib.Path) -> torch.Tensor:
    content = path.read_bytes()
    _, code, *shape, _ = HEADER.unpack(content[: HEADER.size])
    elements = torch.frombuffer(bytearray(content[HEADER.size :]), dtype=list(DTYPES)[code])
    return elements.view(shape)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("texts", type=pathlib.Path, nargs="+")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--first", type=int, default=0, help="first token that is written")
    parser.add_argument("--layers", type=int, default=0, help="leading layers; 0: all")
    parser.add_argument("--dtype", choices=NAMES, default="bf16")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()

    model = LlamaForCausalLM.from_pretrained(args.model, dtype=torch.bfloat16).eval()
    kv = kv_of(model, prompt_ids(args.model, args.texts, args.tokens))
    kv = kv[: args.layers or None, :, args.first :].to(NAMES[args.dtype])
    write_dump(args.out, kv, args.first)
    print(f"{args.out}: {tuple(kv.shape)} {args.dtype}")


if __name__ == "__main__":
    main()
