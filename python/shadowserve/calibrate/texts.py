# SPDX-License-Identifier: Apache-2.0
"""Documents to calibrate with: token lists of one length, cut from text, in three splits.

The default text is made of documentation strings of torch and of Python's standard library, which
are wherever calibration can run: for one version of each it is the same everywhere. A text of the
user's own is one file; a line with nothing but a form feed ends a document, and documents that are
too short are joined with those that follow. Nothing is downloaded.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import re
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DOCSTRING_MIN = 200  # characters; shorter ones say little
TORCH_FOLDERS = ("nn", "distributed", "optim", "utils", "fx", "autograd", "ao", "distributions")
KINDS = 3  # parts of a text that is one file, in which it may differ
PIECE_CHARACTERS = 1 << 16  # of text that is tokenised at once


class TooLittleText(ValueError):
    """The text is too short for what was asked; the text is one sentence for a user."""


@dataclass(frozen=True)
class Splits:
    sensitivity: list[list[int]]
    scale: list[list[int]]
    test: list[list[int]]
    kinds: list[int]  # of text, for each of scale: its source, or which third of the only one
    sha256: str  # of the text that they were cut from
    name: str


def docstrings(file: Path) -> Iterator[str]:
    try:
        tree = ast.parse(file.read_text())
    except (SyntaxError, UnicodeDecodeError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            text = ast.get_docstring(node)
            if text and len(text) >= DOCSTRING_MIN:
                yield text


def _torch_folder() -> Path:
    found = importlib.util.find_spec("torch")
    assert found and found.origin
    return Path(found.origin).parent


def _torch_reference() -> str:
    """The documentation that torch attaches to its functions, without the code around it."""
    texts = [(_torch_folder() / name).read_text() for name in ("_torch_docs.py", "_tensor_docs.py")]
    return "\n\n".join(re.findall(r'r"""(.*?)"""', "\n".join(texts), re.DOTALL))


def _of_files(files: list[Path]) -> str:
    return "\n\n".join(text for file in sorted(files) for text in docstrings(file))


def _torch_modules() -> str:
    root = _torch_folder()
    return "\n\n".join(_of_files(list((root / name).rglob("*.py"))) for name in TORCH_FOLDERS)


def _standard_library() -> str:
    return _of_files(list(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")))


DEFAULT: dict[str, Callable[[], str]] = {
    "torch reference": _torch_reference,
    "torch modules": _torch_modules,
    "Python library": _standard_library,
}


def _pieces(text: str) -> Iterator[str]:
    """The text in pieces that end at an empty line, or anywhere if one has none."""
    start = 0
    while start < len(text):
        end = text.find("\n\n", start + PIECE_CHARACTERS)
        end = len(text) if end < 0 else end + 2
        yield text[start:end]
        start = end


def _cut(texts: list[str], tokenizer: Any, begin: list[int], length: int, most: int) -> list[Any]:
    """Documents of exactly `length` tokens, at most `most` of them."""
    found: list[list[int]] = []
    tokens = list(begin)
    for text in texts:
        for piece in _pieces(text):
            tokens += tokenizer(piece, add_special_tokens=False)["input_ids"]
            while len(tokens) >= length:
                found.append(tokens[:length])
                tokens = begin + tokens[length:]
                if len(found) == most:
                    return found
    return found


def _sources(file: Path | None) -> dict[str, list[str]]:
    if not file:
        return {name: [make()] for name, make in DEFAULT.items()}
    text = file.read_text(encoding="utf-8", errors="replace")
    return {file.name: [part for part in re.split(r"(?m)^\f\s*$", text) if part.strip()]}


def read(
    file: Path | None, tokenizer: Any, begin: list[int], length: int, counts: tuple[int, int, int]
) -> Splits:
    """Documents of `length` tokens, dealt in turn from every source; counts: of each split."""
    total = sum(counts)
    sources = _sources(file)
    digest = hashlib.sha256()
    cut = []
    for texts in sources.values():
        for text in texts:
            digest.update(text.encode())
        cut.append(_cut(texts, tokenizer, begin, length, total))
    dealt = [
        (kind, source[i])
        for i in range(total)
        for kind, source in enumerate(cut)
        if i < len(source)
    ][:total]
    if len(dealt) < total:
        raise TooLittleText(
            f"the text gives {len(dealt)} documents of {length} tokens, {total} are needed: "
            "give more text, or ask for fewer documents (--documents) or shorter ones (--lengths)"
        )
    name = "documentation strings of torch and Python" if file is None else file.name
    if len(cut) == 1:
        dealt = [(place * KINDS // total, document) for place, (_, document) in enumerate(dealt)]
    splits = _deal(dealt, counts)
    sensitivity, scale, test = ([document for _, document in split] for split in splits)
    kinds = [kind for kind, _ in splits[1]]
    return Splits(sensitivity, scale, test, kinds, digest.hexdigest(), name)


def _deal(documents: list[Any], counts: tuple[int, int, int]) -> list[list[Any]]:
    """Each document to the split that lacks most of its share, so that all see every source."""
    splits: list[list[Any]] = [[], [], []]
    for document in documents:
        filled = [len(split) / count for split, count in zip(splits, counts, strict=True)]
        splits[filled.index(min(filled))].append(document)
    return splits
