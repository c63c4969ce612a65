# SPDX-License-Identifier: Apache-2.0
"""What the lossy tier costs: next-token probabilities after a hit against those after computing.

One request of one token for each position, with logprobs over the whole vocabulary. Every one is
asserted to have been a hit of the store: prompt_logprobs, which would be simpler, switches prefix
reads off in vLLM and would compare a thing with itself. The text is one that nobody edits: another
text of this length moves the agreement by +-0.01 and the divergence by a third.
"""

import math

import pytest
from harness import Daemon, Engine, Spy, chunks_end, fixed_text

POSITIONS = [512 + 9 * index for index in range(256)]
KL_MAX = {"lossless": 1e-12, "standard": 3e-3}
TOP1_MIN = {"lossless": 1.0, "standard": 0.96}


def distribution(engine, tokens):
    """(cached tokens, log probabilities by token)."""
    cached, _, output = engine.generate(tokens, logprobs=-1)
    (logprobs,) = output.outputs[0].logprobs
    values = {token: entry.logprob for token, entry in logprobs.items()}
    assert len(values) > 8000, "not the whole vocabulary"
    return cached, values


def divergence(reference, other):
    return sum(math.exp(p) * (p - other[token]) for token, p in reference.items())


@pytest.mark.parametrize("tier", ["standard"])
def test_probabilities_after_a_hit(tmp_path, tier, record_property):
    text = fixed_text(POSITIONS[-1])
    daemon = Daemon(tmp_path)
    engine = Engine({"socket": daemon.socket, "tier": tier})
    spy = Spy(engine)
    try:
        computed = [distribution(engine, text[:position])[1] for position in POSITIONS]
        assert not spy.loads, "the reference must be computed"
        engine.flush()
        divergences, same_top = [], 0
        for position, reference in zip(POSITIONS, computed, strict=True):
            engine.forget()
            cached, fetched = distribution(engine, text[:position])
            assert cached == chunks_end(position) > 0
            divergences.append(divergence(reference, fetched))
            same_top += max(reference, key=reference.get) == max(fetched, key=fetched.get)
        assert len(spy.loads) == len(POSITIONS)
        mean, worst = sum(divergences) / len(divergences), max(divergences)
        agreement = same_top / len(POSITIONS)
        print(
            f"\n{tier}: mean KL {mean:.3e} (largest {worst:.3e}), top-1 agreement {agreement:.4f}"
        )
        record_property("mean_kl", mean)
        record_property("top1_agreement", agreement)
        assert mean < KL_MAX[tier]
        assert agreement > TOP1_MIN[tier]
        engine.assert_nothing_leaked()
    finally:
        spy.close()
        engine.close()
        daemon.stop()
