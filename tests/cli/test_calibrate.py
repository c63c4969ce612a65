# SPDX-License-Identifier: Apache-2.0
"""`shadowserve calibrate`: the program hands over to Python, exit codes and options included."""

import json
import os
import subprocess
import sys

import pytest
from cli_harness import BUILD, ROOT, run_program

PROGRAM = BUILD / "cli" / "shadowserve"
PYTHON = {"SHADOWSERVE_PYTHON": sys.executable, "PYTHONPATH": str(ROOT / "python")}


def test_help_is_that_of_the_python_program() -> None:
    answer = run_program(PROGRAM, "calibrate", "--help", env=PYTHON)
    assert answer.code == 0, answer.err
    assert "at most an eighth of the KL of an FP8 KV cache" in answer.out
    assert "--lengths" in answer.out


def test_a_missing_model_is_the_users_mistake(tmp_path) -> None:
    answer = run_program(PROGRAM, "calibrate", tmp_path, "--json", env=PYTHON)
    assert answer.code == 2
    assert json.loads(answer.out) == {
        "error": f"calibrate: no config.json in {tmp_path}",
        "exit": 2,
    }


def test_a_missing_python_is_named() -> None:
    missing = {**PYTHON, "SHADOWSERVE_PYTHON": os.devnull + "/python"}
    answer = run_program(PROGRAM, "calibrate", "x", env=missing)
    assert answer.code == 4
    assert "SHADOWSERVE_PYTHON names the Python" in answer.err


def test_the_overview_names_it() -> None:
    assert "  calibrate " in run_program(PROGRAM, "--help").out


def test_a_small_calibration_gives_a_profile_that_keeps_its_promises(tmp_path) -> None:
    pytest.importorskip("torch", reason="no torch in this Python")
    pytest.importorskip("transformers", reason="no transformers in this Python")
    out = tmp_path / "profile.json"
    library = BUILD / "python" / "native" / "libshadowserve-codec.so"
    small = ["--documents", "10", "--lengths", "256,512", "--scored", "64", "--out", str(out)]
    done = subprocess.run(
        [PROGRAM, "calibrate", ROOT / "models" / "docs-6m", *small, "--json"],
        env={**os.environ, **PYTHON, "SHADOWSERVE_CODEC_LIBRARY": str(library)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    ratios = [answer["tiers"][tier]["ratio"] for tier in ("high", "standard", "compact", "tiny")]
    assert 2 < ratios[0] < ratios[1] < ratios[2] < ratios[3]
    assert out.with_suffix(".svg").read_text().startswith("<svg ")
    check = run_program(PROGRAM, "profile", "check", out)
    assert check.code == 0, check.out + check.err
