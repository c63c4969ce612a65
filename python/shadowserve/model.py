# SPDX-License-Identifier: Apache-2.0
"""Who a model is, by content.

The identity is a SHA-256 over what makes KV bytes what they are: the configuration, quantisation
settings, and for every weight tensor its name, type, shape and sampled bytes. Names, paths and
tokenizers are no part of it, so two copies of a model agree and two models that share a path do
not. What cannot be keyed this way is refused (NotKeyable), never guessed. Reads are bounded.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

VERSION = b"shadowserve model identity 1"
SAMPLES = 3  # start, middle and end of a tensor
SAMPLE_BYTES_MIN = 256
SAMPLE_BYTES_MAX = 4096
SAMPLED_BYTES_MAX = 64 << 20  # all tensors together
HEADER_BYTES_MAX = 128 << 20
CONFIG_BYTES_MAX = 16 << 20
CODE_BYTES_MAX = 64 << 20
ADAPTER_BYTES_MAX = 8 << 30

# Fields of config.json that do not reach the KV.
_IRRELEVANT = frozenset(
    {
        "_name_or_path",
        "_commit_hash",
        "bos_token_id",
        "dtype",
        "eos_token_id",
        "id2label",
        "initializer_range",
        "label2id",
        "pad_token_id",
        "task_specific_params",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)
_ROPE_FIELDS = ("rope_parameters", "rope_scaling", "rope_theta", "max_position_embeddings")


class NotKeyable(ValueError):
    """The model or request has no identity by content; the text is one sentence for a user."""


@dataclass(frozen=True)
class Identity:
    digest: bytes
    rope_digest: bytes

    @property
    def fingerprint(self) -> bytes:
        return self.digest[:8]


@dataclass(frozen=True)
class _Weight:
    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def canonical(value: Any) -> bytes:
    """JSON with one spelling."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str).encode()


def identify(
    directory: Path,
    compute_dtype: str,
    overrides: Mapping[str, Any] | None = None,
    positions: Mapping[str, Any] | None = None,
    with_code: bool = False,
) -> Identity:
    """Identity of the model in a directory.

    compute_dtype: what the engine computes in; overrides: configuration that replaces that of the
    files; positions: positional settings that are not in the files; with_code: whether Python code
    of the model may run.
    """
    config = _read_config(directory)
    config.update(overrides or {})
    relevant = {name: value for name, value in config.items() if name not in _IRRELEVANT}
    hasher = hashlib.sha256(VERSION)
    _add(hasher, b"compute", compute_dtype.encode())
    _add(hasher, b"config", canonical(relevant))
    with _keyable(directory):
        _add_weights(hasher, _weights(directory))
        if with_code:
            _add_code(hasher, directory, config)
    rope = {name: config.get(name) for name in _ROPE_FIELDS}
    rope_hasher = hashlib.sha256(canonical([rope, dict(positions or {})]))
    return Identity(hasher.digest(), rope_hasher.digest())


def recorded_quantization(directory: Path) -> str:
    """The quantisation method that the model's own files record, "" for none."""
    config = _read_config(directory)
    record = config.get("quantization_config") or config.get("compression_config") or {}
    method = record.get("quant_method", "") if isinstance(record, dict) else ""
    return str(method)


def adapter_digest(directory: Path) -> bytes:
    """Digest of a LoRA adapter: every byte of its configuration and weights."""
    files = sorted(
        path
        for path in directory.iterdir()
        if path.suffix in (".safetensors", ".bin", ".pt") or path.name == "adapter_config.json"
    )
    if not any(path.suffix != ".json" for path in files):
        raise NotKeyable(f"no adapter weights in {directory}")
    if sum(path.stat().st_size for path in files) > ADAPTER_BYTES_MAX:
        raise NotKeyable(f"the adapter in {directory} is larger than {ADAPTER_BYTES_MAX} bytes")
    hasher = hashlib.sha256(b"shadowserve adapter 1")
    for path in files:
        with path.open("rb") as file:
            _add(hasher, path.name.encode(), hashlib.file_digest(file, "sha256").digest())
    return hasher.digest()


def adapter_stamp(directory: Path) -> tuple[tuple[str, int, int, int], ...]:
    """Changes when a file of the adapter does."""
    return tuple(
        (entry.name, entry.stat().st_size, entry.stat().st_mtime_ns, entry.stat().st_ino)
        for entry in sorted(os.scandir(directory), key=lambda entry: entry.name)
    )


# ---- parts ---------------------------------------------------------------------------------------


@contextmanager
def _keyable(directory: Path) -> Iterator[None]:
    """Files that are damaged or may not be read cost the cache, never the engine's start."""
    try:
        yield
    except NotKeyable:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as failure:
        text = f"{type(failure).__name__}: {failure}"
        raise NotKeyable(f"the files in {directory} cannot be read: {text}") from failure


def _add(hasher: Any, label: bytes, value: bytes) -> None:
    hasher.update(struct.pack("<IQ", len(label), len(value)) + label + value)


def _read_config(directory: Path) -> dict[str, Any]:
    path = directory / "config.json"
    if not path.is_file():
        raise NotKeyable(f"no config.json in {directory}")
    if path.stat().st_size > CONFIG_BYTES_MAX:
        raise NotKeyable(f"{path} is larger than {CONFIG_BYTES_MAX} bytes")
    try:
        config = json.loads(path.read_bytes())
    except OSError as failure:
        raise NotKeyable(f"{path} cannot be read: {failure}") from failure
    except ValueError as failure:
        raise NotKeyable(f"{path} is no JSON: {failure}") from failure
    if not isinstance(config, dict):
        raise NotKeyable(f"{path} is no JSON object")
    return config


def _add_code(hasher: Any, directory: Path, config: Mapping[str, Any]) -> None:
    """Every Python file of the model: which of them another one imports is not looked into."""
    for reference in _references(config):
        repository, _, name = reference.rpartition("--")
        if repository or not (directory / f"{name.split('.')[0]}.py").is_file():
            raise NotKeyable(f"the code of {reference} is not in {directory}")
    files = sorted(directory.rglob("*.py"))
    if sum(path.stat().st_size for path in files) > CODE_BYTES_MAX:
        raise NotKeyable(f"the code in {directory} is larger than {CODE_BYTES_MAX} bytes")
    for path in files:
        _add(hasher, b"code " + str(path.relative_to(directory)).encode(), path.read_bytes())


def _references(config: Any) -> Iterable[str]:
    """The classes that a configuration and its parts name in auto_map."""
    if not isinstance(config, dict):
        return
    for name, value in config.items():
        if name == "auto_map" and isinstance(value, dict):
            for one in value.values():
                entries = one if isinstance(one, list) else [one]
                yield from (entry for entry in entries if isinstance(entry, str))
        else:
            yield from _references(value)


def _weight_files(directory: Path) -> list[Path]:
    index = directory / "model.safetensors.index.json"
    if index.is_file() and index.stat().st_size <= HEADER_BYTES_MAX:
        named = json.loads(index.read_bytes()).get("weight_map", {}).values()
        return [directory / name for name in sorted(set(named))]
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise NotKeyable(
            f"no *.safetensors in {directory}: weights in other formats have no identity by content"
        )
    return files


def _weights(directory: Path) -> list[_Weight]:
    found: dict[str, _Weight] = {}
    for path in _weight_files(directory):
        if not path.is_file():
            raise NotKeyable(f"{path} is missing")
        for weight in _read_header(path):
            if weight.name in found:
                raise NotKeyable(f"tensor {weight.name} is in two files of {directory}")
            found[weight.name] = weight
    return [found[name] for name in sorted(found)]


def _read_header(path: Path) -> Iterable[_Weight]:
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else HEADER_BYTES_MAX + 1
        if length > min(HEADER_BYTES_MAX, size):
            raise NotKeyable(f"{path} has no safetensors header")
        try:
            header = json.loads(file.read(length))
        except ValueError as failure:
            raise NotKeyable(f"{path} has no safetensors header: {failure}") from failure
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        start, end = (8 + length + int(offset) for offset in entry["data_offsets"])
        if not 8 + length <= start <= end <= size:
            raise NotKeyable(f"tensor {name} lies outside {path}")
        yield _Weight(path, name, entry["dtype"], tuple(entry["shape"]), start, end)


def _add_weights(hasher: Any, weights: list[_Weight]) -> None:
    share = SAMPLED_BYTES_MAX // max(1, len(weights) * SAMPLES)
    sample = max(SAMPLE_BYTES_MIN, min(SAMPLE_BYTES_MAX, share))
    opened: dict[Path, BinaryIO] = {}
    try:
        for weight in weights:
            if weight.file not in opened:
                opened[weight.file] = weight.file.open("rb")
            about = canonical([weight.name, weight.dtype, weight.shape])
            _add(hasher, about, _sampled(opened[weight.file], weight, sample))
    finally:
        for file in opened.values():
            file.close()


def _sampled(file: BinaryIO, weight: _Weight, sample: int) -> bytes:
    size = weight.end - weight.start
    if size <= SAMPLES * sample:
        file.seek(weight.start)
        return file.read(size)
    pieces = []
    for index in range(SAMPLES):
        file.seek(weight.start + index * (size - sample) // (SAMPLES - 1))
        pieces.append(file.read(sample))
    return b"".join(pieces)


def main(arguments: list[str]) -> int:
    """`python -m shadowserve.model FOLDER [DTYPE]`: the digest that an engine registers."""
    if not 1 <= len(arguments) <= 2:
        print("usage: python -m shadowserve.model FOLDER [bfloat16]", file=sys.stderr)
        return 2
    dtype = arguments[1] if len(arguments) > 1 else "bfloat16"
    try:
        print(identify(Path(arguments[0]), f"torch.{dtype}").digest.hex())
    except NotKeyable as failure:
        print(f"shadowserve.model: {failure}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
