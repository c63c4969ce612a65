# SPDX-License-Identifier: Apache-2.0
"""Profiles in the daemon: found by a region's model, used by its encoder, a gate for tiers."""

from __future__ import annotations

import hashlib
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from daemon_rig import PROGRAM, SOON_S, Daemon, Engine, flags, key
from shadowserve import binding as ssv
from shadowserve.binding import Tier

sys.path.append(str(Path(__file__).resolve().parents[1] / "profile"))
from profile_text import FINGERPRINT, profile_bytes

Start = Callable[..., Daemon]
BLOCKS = list(range(8))


@pytest.fixture
def profiles(folder: Path) -> Path:
    path = folder / "profiles"
    path.mkdir()
    return path


@dataclass
class Stored:
    tier: int
    profile: bytes
    steps: list[float]  # of the first tensor's heads


def stored(daemon: Daemon) -> Stored:
    """The one chunk of the daemon's store."""
    store = Path(daemon.keys["store"].removeprefix("file:"))
    found = [f for f in store.rglob("*") if f.is_file() and f.read_bytes()[:4] == b"SKVC"]
    assert len(found) == 1
    value = found[0].read_bytes()
    meta = struct.unpack_from("<I", value, 132)[0]
    steps = list(struct.unpack_from("<2e", value, meta + 1)) if value[79] > 1 else []
    return Stored(value[79], value[64:72], steps)


def store_one(engine: Engine, tier: Tier = Tier.DEFAULT) -> None:
    engine.memory.fill(5, BLOCKS)
    assert engine.do(engine.store(key(7), BLOCKS, tier=tier)).status == 0
    assert engine.flush().status == 0


def test_a_model_with_a_profile_is_coded_with_its_steps(start: Start, profiles: Path) -> None:
    text = profile_bytes()
    (profiles / "one.json").write_bytes(text)
    (profiles / "readme.txt").write_text("no profile")
    daemon = start(profiles=profiles)
    engine = Engine(daemon, model=FINGERPRINT)
    store_one(engine)
    digest = hashlib.sha256(text).digest()[:8]
    chunk = stored(daemon)
    assert (chunk.tier, chunk.profile) == (Tier.STANDARD, digest)
    assert chunk.steps == pytest.approx([0.05, 0.05], rel=1e-3)
    region = engine.stat()["regions"][0]
    assert region["tier"] == "standard"
    assert (region["profile"], region["profile_name"]) == (digest.hex(), "made-up")
    assert region["model"] == FINGERPRINT.hex()
    assert region["tiers_allowed"] == ["lossless", "high", "standard", "compact", "tiny"]
    assert f"profile read model={FINGERPRINT.hex()}" in daemon.log_text()
    target = list(range(40, 48))
    assert engine.do(engine.fetch(key(7), target)).tokens == 256
    before, after = (
        struct.unpack(f"<{len(half) // 2}H", half)
        for half in (engine.memory.read(BLOCKS), engine.memory.read(target))
    )
    # half a step, of V 3/16 more (its errors are shaped), and bf16's rounding of values below 1:
    # in units of its last place, 2^-8
    bound = (0.5 + 3 / 16) * 0.05 * 256 + 0.5
    assert 0 < max(abs(a - b) for a, b in zip(before, after, strict=True)) <= bound
    engine.close()


def test_without_a_profile_the_default_is_lossless(start: Start, profiles: Path) -> None:
    (profiles / "one.json").write_bytes(profile_bytes(digest=bytes(range(32))))
    daemon = start(profiles=profiles)
    engine = Engine(daemon, model=FINGERPRINT)
    store_one(engine)
    assert stored(daemon) == Stored(Tier.LOSSLESS, bytes(8), [])
    stat = engine.stat()
    assert stat["regions"][0]["profile"] == "none"
    assert (stat["tier"], stat["profiles"]) == ("auto", 1)
    assert "profile=none tier=lossless" in daemon.log_text()
    engine.close()


def test_a_tier_that_is_named_has_uniform_steps_without_a_profile(start: Start) -> None:
    daemon = start(tier="standard")
    engine = Engine(daemon, model=FINGERPRINT)
    store_one(engine)
    assert stored(daemon).tier == Tier.STANDARD
    assert stored(daemon).profile == bytes(8)
    assert engine.stat()["regions"][0]["steps"] == "uniform"
    assert "tier=standard steps=uniform" in daemon.log_text()
    engine.close()


def test_a_configured_tier_that_breaks_its_promise_is_refused(start: Start, profiles: Path) -> None:
    (profiles / "one.json").write_bytes(profile_bytes(bounds={"high": 0.9, "standard": 1.1}))
    daemon = start(profiles=profiles, tier="standard")
    with pytest.raises(ssv.Error) as refusal:
        Engine(daemon, model=FINGERPRINT)
    text = str(refusal.value)
    assert "tier standard breaks its promise on made-up" in text
    assert "bound 1.100 (at most 1)" in text and "nearest allowed: high" in text
    Engine(daemon).close()  # another model is none of its business


def test_a_tier_that_a_store_names_is_the_nearest_that_keeps_its_promise(
    start: Start, profiles: Path
) -> None:
    (profiles / "one.json").write_bytes(profile_bytes(bounds={"high": 0.9, "standard": 1.1}))
    daemon = start(profiles=profiles)
    engine = Engine(daemon, model=FINGERPRINT)
    assert engine.stat()["regions"][0]["tier"] == "high"
    store_one(engine, Tier.TINY)
    assert stored(daemon).tier == Tier.HIGH
    assert engine.stat()["counters"]["stores_finer"] == 1
    assert "refused=standard,compact,tiny" in daemon.log_text()
    engine.close()


def test_what_is_stored_is_fine_enough_to_be_read(start: Start, profiles: Path) -> None:
    (profiles / "one.json").write_bytes(profile_bytes())
    daemon = start(profiles=profiles, min_tier="high")
    engine = Engine(daemon, model=FINGERPRINT)
    store_one(engine)
    assert stored(daemon).tier == Tier.HIGH
    engine.close()


def test_content_that_is_not_as_expected_is_coded_finer_and_counted(
    start: Start, profiles: Path
) -> None:
    text = profile_bytes().replace(b"[0, 0]", b"[0.0001, 0.5]")
    (profiles / "one.json").write_bytes(text)
    daemon = start(profiles=profiles)
    engine = Engine(daemon, model=FINGERPRINT)
    store_one(engine)
    assert engine.stat()["counters"]["finer_tensors"] == 2  # K of both layers
    engine.close()


def test_fp8_caches_are_lossless_unless_a_profile_vouches(start: Start, profiles: Path) -> None:
    fp8 = {"dtype": ssv.Dtype.E4M3, "model": FINGERPRINT}
    plain = start(tier="compact")
    engine = Engine(plain, **fp8)
    assert engine.stat()["regions"][0]["tier"] == "lossless"
    store_one(engine, Tier.HIGH)
    assert engine.stat()["counters"]["stores_finer"] == 1
    engine.close()
    (profiles / "one.json").write_bytes(profile_bytes(dtype="e4m3"))
    engine = Engine(start(profiles=profiles), **fp8)
    assert engine.stat()["regions"][0]["tier"] == "standard"
    engine.close()


def test_a_profile_that_does_not_fit_its_model_is_refused_and_said(
    start: Start, profiles: Path
) -> None:
    (profiles / "one.json").write_bytes(profile_bytes(layers=3))
    daemon = start(profiles=profiles)
    engine = Engine(daemon, model=FINGERPRINT)
    assert engine.stat()["regions"][0]["tier"] == "lossless"
    assert 'reason="its model has another number of layers"' in daemon.log_text()
    engine.close()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "it is no JSON"),
        (profile_bytes().replace(b'"layers": 2', b'"layers": 0'), "layers: 0, expected 1"),
        (profile_bytes(), "another file is of the same model and type"),
    ],
)
def test_a_damaged_profile_is_named_at_start(
    folder: Path, profiles: Path, content: bytes, words: str
) -> None:
    (profiles / "a.json").write_bytes(profile_bytes())
    (profiles / "b.json").write_bytes(content)
    keys = {"socket": folder / "d.sock", "store": "memory:", "profiles": profiles}
    done = subprocess.run(
        [PROGRAM, *flags(keys)], capture_output=True, text=True, timeout=SOON_S, check=False
    )
    assert done.returncode == 1
    assert f"{profiles / 'b.json'}: " in done.stderr and words in done.stderr


def test_a_folder_that_is_not_there_is_named_at_start(folder: Path) -> None:
    keys = {"socket": folder / "d.sock", "store": "memory:", "profiles": folder / "none"}
    done = subprocess.run(
        [PROGRAM, *flags(keys)], capture_output=True, text=True, timeout=SOON_S, check=False
    )
    assert done.returncode == 1
    assert "profiles: " in done.stderr and "No such file" in done.stderr


def cli(*args: object) -> None:
    program = PROGRAM.parents[1] / "cli" / "shadowserve"
    subprocess.run([program, *map(str, args)], check=True, timeout=SOON_S, capture_output=True)


def test_the_store_has_the_profiles_of_all_nodes(start: Start, folder: Path) -> None:
    store = f"file:{folder}/store"
    (folder / "store").mkdir()
    file = folder / "one.json"
    file.write_bytes(profile_bytes())
    cli("profile", "put", file, "--store", store)
    daemon = start(store=store, profiles="store")
    engine = Engine(daemon, model=FINGERPRINT)
    region = engine.stat()["regions"][0]
    assert (region["tier"], region["profile_name"]) == ("standard", "made-up")
    assert "from=store" in daemon.log_text()
    engine.close()


def test_a_store_without_profiles_is_served_all_the_same(start: Start, folder: Path) -> None:
    daemon = start(profiles="store")
    engine = Engine(daemon, model=FINGERPRINT)
    assert engine.stat()["regions"][0]["tier"] == "lossless"
    assert 'no profiles from=store reason="the store has none"' in daemon.log_text()
    engine.close()


def test_a_damaged_profile_in_a_store_is_passed_over(start: Start, folder: Path) -> None:
    store = folder / "store"
    store.mkdir()
    file = folder / "one.json"
    file.write_bytes(profile_bytes())
    cli("profile", "put", file, "--store", f"file:{store}")
    value = next(p for p in store.rglob("*") if p.is_file() and p.read_bytes()[:1] == b"{")
    value.write_bytes(value.read_bytes().replace(b'"bf16"', b'"bf61"'))
    daemon = start(store=f"file:{store}", profiles="store")
    engine = Engine(daemon, model=FINGERPRINT)
    assert engine.stat()["regions"][0]["profile"] == "none"
    assert f"profile refused model={FINGERPRINT.hex()}" in daemon.log_text()
    engine.close()
