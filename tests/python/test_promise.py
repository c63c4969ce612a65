# SPDX-License-Identifier: Apache-2.0
"""The promise of every tier, held by the profile that ships for docs-6m, on text of its own.

Python's language reference, which calibration never sees, goes through the model: a prefix is coded
by the C codec with the profile's steps, and the tokens after it are predicted from what comes back.
The promise is on average over texts, so it is the mean that is compared, at a short and a long
prefix; that a broken promise would be seen is a test of its own.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("SHADOWSERVE_BUILD", ROOT / "build" / "release"))
MODEL = ROOT / "models" / "docs-6m"
PROFILE = ROOT / "models" / "profiles" / "docs-6m.json"
LENGTHS, SCORED, DOCUMENTS = [1536, 4096], 512, 6

torch = pytest.importorskip("torch", reason="no torch in this Python")
pytest.importorskip("transformers", reason="no transformers in this Python")


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    """Everything measured once: the bench, samples, references, weights, the profile."""
    from pydoc_data import topics

    from shadowserve.calibrate.measure import Bench
    from shadowserve.calibrate.model import Model
    from shadowserve.calibrate.profile import read
    from shadowserve.calibrate.texts import read as read_texts

    os.environ.setdefault(
        "SHADOWSERVE_CODEC_LIBRARY", str(BUILD / "python/native/libshadowserve-codec.so")
    )
    text = tmp_path_factory.mktemp("text") / "reference.txt"
    text.write_text("\n\n".join(topics.topics[name] for name in sorted(topics.topics)))
    torch.set_num_threads(1)
    model = Model(MODEL)
    bench = Bench(model, LENGTHS, SCORED)
    splits = read_texts(
        text, model.tokenizer, model.begin, bench.document_tokens, (1, DOCUMENTS, 1)
    )
    samples = bench.prepare(splits.scale, lambda count: None)
    references = {name: bench.reference(samples, name) for name in ("FP8", "int4")}
    return bench, samples, references, read(PROFILE)


def measured(held_out, tier, factor=1.0):
    from shadowserve.calibrate.search import kept

    bench, samples, references, profile = held_out
    steps = bench.coder.steps(profile.weights, profile.scales[tier] * factor)
    damage = bench.tier(samples, tier, steps)
    return damage, kept(tier, damage, references)


@pytest.mark.parametrize("tier", ["high", "standard", "compact", "tiny"])
def test_a_tier_keeps_its_promise_on_text_it_never_saw(held_out, tier, record_property):
    damage, promise = measured(held_out, tier)
    for length, one in promise.items():
        print(f"\n{tier} {length}: KL x{one.ratio:.2f} of what is allowed, p99 x{one.p99:.2f}")
        record_property(f"kl_share_{length}", one.ratio)
    assert max(one.ratio for one in promise.values()) <= 1
    assert max(one.p99 for one in promise.values()) <= 1.25
    written = json.loads((PROFILE).read_text())["tiers"][tier]["ratio"]
    assert damage.ratio() == pytest.approx(written, rel=0.05)


@pytest.mark.parametrize("tier", ["high", "compact"])
def test_steps_twice_as_coarse_would_be_seen(held_out, tier):
    _, promise = measured(held_out, tier, 2.0)
    assert max(one.ratio for one in promise.values()) > 1


def test_lossless_gives_every_bit_back(held_out):
    bench, samples, _, _ = held_out
    kv = samples[0].kv
    back = bench.coder.code(kv, "lossless").kv
    assert torch.equal(back.view(torch.int16), kv.view(torch.int16))


def test_the_profile_is_of_this_model():
    from shadowserve.model import identify

    written = json.loads((PROFILE).read_text())
    assert written["model"]["digest"] == identify(MODEL, "torch.bfloat16").digest.hex()
