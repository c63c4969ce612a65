# SPDX-License-Identifier: Apache-2.0
"""Admission: fetch what is unknown or faster, decline what is slower, but not for good."""

import pytest

pytest.importorskip("vllm")

from shadowserve.vllm.admission import Admission, PrefillRate


def measured(tokens, seconds, steps=1):
    rate, now = PrefillRate(), 100.0
    for _ in range(steps):
        rate.scheduled(now, tokens)
        now += seconds
        rate.finished(now)
    return rate


def admission(tokens, seconds):
    admission = Admission()
    admission.rate = measured(tokens, seconds)
    return admission


def test_nothing_measured_means_fetch():
    assert Admission().admits(0.0, 1000, 10_000_000)
    assert admission(1000, 1.0).admits(0.0, 1000, 0)


def test_the_faster_one_wins():
    one = admission(1000, 1.0)
    assert one.rate.tokens_per_s == pytest.approx(1000)
    assert one.admits(0.0, 500, 400_000)
    assert not one.admits(0.0, 500, 600_000)


def test_a_store_that_recovered_is_fetched_from_again():
    one, estimate_us = admission(1000, 1.0), 600_000
    assert not one.admits(100.0, 500, estimate_us)
    assert not one.admits(109.9, 500, estimate_us)
    assert one.admits(110.0, 500, estimate_us), "a probe"
    assert one.admits(110.1, 500, estimate_us), "it waits for blocks, and is asked about again"
    one.fetched()
    estimate_us = 100_000  # measured anew
    assert one.admits(110.2, 500, estimate_us)


def test_a_store_that_stays_slow_is_probed_at_intervals():
    one, probes = admission(1000, 1.0), []
    for now in range(100):
        if one.admits(float(now), 500, 600_000):
            probes.append(now)
            one.fetched()
    assert probes == [10, 21, 32, 43, 54, 65, 76, 87, 98]


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
