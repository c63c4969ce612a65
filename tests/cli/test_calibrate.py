# SPDX-License-Identifier: Apache-2.0
"""`shadowserve calibrate`: the program hands over to Python, exit codes and options included."""

import json
import os
import sys

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
