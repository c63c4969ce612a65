# SPDX-License-Identifier: Apache-2.0
"""An engine's model finds its profile: the digest that calibration computes from a folder is the
one that the connector registers, and what the engine stores has the profile's steps."""

import sys

from harness import MODEL, ROOT, Daemon, Engine, fixed_text
from shadowserve.model import identify

sys.path.append(str(ROOT / "tests" / "profile"))
from profile_text import profile_bytes

TOKENS = 600


def test_what_an_engine_stores_has_its_models_steps(tmp_path):
    digest = identify(MODEL, "torch.bfloat16").digest
    profiles = tmp_path / "profiles"
    profiles.mkdir()
    (profiles / "docs-6m.json").write_bytes(profile_bytes(digest=digest, layers=6))
    daemon = Daemon(tmp_path, options=["--profiles", str(profiles)])
    engine = Engine({"socket": daemon.socket})
    try:
        text = fixed_text(TOKENS)
        engine.generate(text)
        engine.flush()
        region = daemon.stat()["regions"][0]
        assert (region["model"], region["tier"]) == (digest[:8].hex(), "standard")
        assert region["profile_name"] == "made-up"
        # the tail of a prompt is lossless whatever the tier: then the chunks are the others
        values = [p.read_bytes() for p in (tmp_path / "store").rglob("*") if p.is_file()]
        tiers = [(v[79], v[64:72].hex()) for v in values if v[:4] == b"SKVC"]
        assert tiers.count((3, region["profile"])) == 2
        engine.forget()
        cached, _, _ = engine.generate(text)
        assert cached >= 512
        engine.assert_nothing_leaked()
    finally:
        engine.close()
        daemon.stop()
