# SPDX-License-Identifier: Apache-2.0
"""Admission: fetch what is unknown or faster, decline what is slower."""

import pytest

pytest.importorskip("vllm")

from shadowserve.vllm.admission import PrefillRate, worth_fetching


def measured(tokens, seconds, steps=1):
    rate, now = PrefillRate(), 100.0
    for _ in range(steps):
        rate.scheduled(now, tokens)
        now += seconds
        rate.finished(now)
    return rate


def test_nothing_measured_means_fetch():
    assert worth_fetching(PrefillRate(), 1000, 10_000_000)
    assert worth_fetching(measured(1000, 1.0), 1000, 0)


def test_the_faster_one_wins():
    rate = measured(1000, 1.0)
    assert rate.tokens_per_s == pytest.approx(1000)
    assert worth_fetching(rate, 500, 400_000)
    assert not worth_fetching(rate, 500, 600_000)


def test_small_steps_say_nothing():
    assert measured(8, 1.0).tokens_per_s == 0


def test_steps_that_overlap_are_not_counted_twice():
    rate = PrefillRate()
    rate.scheduled(0.0, 1000)
    rate.scheduled(0.1, 1000)  # before the first has ended
    rate.finished(1.0)
    rate.finished(2.0)
    assert rate.tokens_per_s == pytest.approx(1000)


def test_an_idle_engine_does_not_slow_the_rate():
    rate = PrefillRate()
    rate.scheduled(0.0, 1000)
    rate.finished(1.0)
    rate.scheduled(50.0, 1000)
    rate.finished(51.0)
    assert rate.tokens_per_s == pytest.approx(1000)


def test_the_rate_follows():
    rate = measured(1000, 1.0)
    for step in range(20):
        rate.scheduled(10.0 + step, 500)
        rate.finished(11.0 + step)
    assert rate.tokens_per_s == pytest.approx(500, rel=0.01)
