# SPDX-License-Identifier: Apache-2.0
"""Texts for prompts: technical documentation that lies on every machine that runs the benchmark.

This project's own pages, Python's language reference (of Debian's python3), the reference of
torch (the version that packaging/setup_venv.sh pins), and Debian's common licences. Nothing is
downloaded; all but the first are the same everywhere.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from servers import ROOT

LICENCES = Path("/usr/share/common-licenses")


def project() -> str:
    files = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return "\n\n".join(file.read_text() for file in files if file.name != "benchmarks.md")


def python() -> str:
    from pydoc_data import topics

    return "\n\n".join(topics.topics[name] for name in sorted(topics.topics))


def torch() -> str:
    """The text of torch's documentation strings, without the code around them."""
    found = importlib.util.find_spec("torch")
    if not found or not found.origin:
        return ""
    source = (Path(found.origin).parent / "_torch_docs.py").read_text()
    return "\n\n".join(re.findall(r'r"""(.*?)"""', source, re.DOTALL))


def licences() -> str:
    names = ("GFDL-1.3", "MPL-2.0", "GPL-3", "LGPL-2.1")
    files = [LICENCES / name for name in names]
    return "\n\n".join(file.read_text() for file in files if file.exists())


SOURCES: dict[str, Callable[[], str]] = {
    "project": project,
    "python": python,
    "torch": torch,
    "licences": licences,
}


def read(model: Path) -> dict[str, list[int]]:
    """Token ids of each text, beginning with the model's first token."""
    from tokenizers import Tokenizer

    tokenizer: Any = Tokenizer.from_file(str(model / "tokenizer.json"))
    ids: dict[str, list[int]] = {}
    for name, source in SOURCES.items():
        if text := source():
            ids[name] = [0, *tokenizer.encode(text, add_special_tokens=False).ids]
    return ids
