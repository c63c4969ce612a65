# SPDX-License-Identifier: Apache-2.0
"""`shadowserve profile`: what it shows, what it finds wrong, and profiles in a store."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from cli_harness import BUILD, ROOT, Answer, run_program

sys.path.append(str(ROOT / "tests" / "profile"))
sys.path.append(str(ROOT / "python"))
from profile_text import DIGEST, FINGERPRINT, make_profile, profile_bytes
from shadowserve.model import identify

MODEL = ROOT / "models" / "docs-6m"


def cli(*args: object, **env: str) -> Answer:
    return run_program(BUILD / "cli" / "shadowserve", *args, env=env)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "profile.json"
    path.write_bytes(profile_bytes())
    return path


@pytest.fixture
def store(tmp_path: Path) -> str:
    (tmp_path / "store").mkdir()
    return f"file:{tmp_path}/store"


def test_show_names_every_tier_and_reference(file: Path) -> None:
    text = cli("profile", "show", file)
    assert text.code == 0
    for word in ("made-up", DIGEST.hex(), "standard", "tiny", "FP8", "int4", "1536"):
        assert word in text.out
    answer = cli("profile", "show", file, "--json").json
    assert answer["tiers"]["standard"]["keeps"] is True
    assert answer["tiers"]["tiny"]["measured"][0]["tokens"] == 1536
    assert answer["references"]["FP8"]["measured"][0]["kl"] == 1e-3


def test_check_says_which_promises_are_kept(file: Path) -> None:
    fine = cli("profile", "check", file)
    assert fine.code == 0
    assert "standard  keeps its promise: no more than an FP8 cache's KL" in fine.out
    file.write_bytes(profile_bytes(bounds={"high": 0.9, "standard": 1.2}))
    broken = cli("profile", "check", file)
    assert broken.code == 1
    assert "high      keeps" in broken.out
    assert "standard  BREAKS" in broken.out and "bound 1.200 (at most 1)" in broken.out
    assert cli("profile", "check", file, "--json").json["tiers"]["standard"]["keeps"] is False


def test_check_names_what_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_bytes(profile_bytes().replace(b'"bf16"', b'"bf61"'))
    answer = cli("profile", "check", path)
    assert answer.code == 1
    assert f'{path}: dtype: "bf61", expected bf16' in answer.err
    assert cli("profile", "check", tmp_path / "none.json").code == 2


def test_check_knows_another_models(file: Path) -> None:
    assert cli("profile", "check", file, "--digest", DIGEST.hex()).code == 0
    answer = cli("profile", "check", file, "--digest", "00" * 32)
    assert answer.code == 1
    assert "it is another model's" in answer.err
    assert cli("profile", "check", file, "--digest", "00").code == 2


def test_check_asks_python_for_a_models_digest(file: Path) -> None:
    env = {"SHADOWSERVE_PYTHON": sys.executable, "PYTHONPATH": str(ROOT / "python")}
    assert cli("profile", "check", file, "--model", MODEL, **env).code == 1
    digest = identify(MODEL, "torch.bfloat16").digest
    file.write_bytes(profile_bytes(digest=digest))
    assert cli("profile", "check", file, "--model", MODEL, **env).code == 0
    answer = cli("profile", "check", file, "--model", "/nowhere", **env)
    assert answer.code == 4
    assert "could not tell its digest" in answer.err


def test_a_store_keeps_profiles(file: Path, store: str) -> None:
    assert "has none" in cli("profile", "get", DIGEST.hex(), "--store", store).err
    assert cli("profile", "get", "--store", store).out == ""
    assert cli("profile", "put", file, "--store", store).code == 0
    other = file.with_name("other.json")
    other.write_text(json.dumps(make_profile(dtype="fp16"), indent=1))
    assert cli("profile", "put", other, "--store", store).code == 0
    assert cli("profile", "put", file, "--store", store).code == 0  # again: no second entry
    listed = cli("profile", "get", "--store", store)
    assert sorted(listed.out.splitlines()) == [f"{FINGERPRINT.hex()} {t}" for t in ("bf16", "fp16")]
    assert len(cli("profile", "get", "--store", store, "--json").json["profiles"]) == 2
    got = cli("profile", "get", FINGERPRINT.hex(), "--store", store)
    assert got.out == file.read_text()
    got = cli("profile", "get", DIGEST.hex(), "--dtype", "fp16", "--store", store)
    assert got.out == other.read_text()
    assert cli("profile", "get", "zz", "--store", store).code == 2


def test_verify_knows_profiles_from_damage(file: Path, store: str) -> None:
    assert cli("profile", "put", file, "--store", store).code == 0
    answer = cli("verify", "--store", store, "--delete", "--json")
    assert answer.code == 0
    assert (answer.json["profiles"], answer.json["damaged"]) == (2, 0)
    assert cli("profile", "get", DIGEST.hex(), "--store", store).code == 0


def test_a_damaged_profile_is_not_put(file: Path, store: str) -> None:
    file.write_bytes(b"{}")
    answer = cli("profile", "put", file, "--store", store)
    assert answer.code == 1
    assert "schema is missing" in answer.err
