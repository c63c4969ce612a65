# SPDX-License-Identifier: Apache-2.0
"""Whether fetching is faster than computing.

The rate of prefill is measured from the engine's own steps, as a moving average; the time of a
fetch is the daemon's estimate. While either is unknown a hit is fetched. The estimate comes from
fetches, so a hit is fetched now and then though it is expected to be slower: else a store that was
slow once would never be asked again. Times come in from outside.
"""

from __future__ import annotations

from collections import deque

STEP_TOKENS_MIN = 64  # steps of fewer prefill tokens say nothing about prefill
WEIGHT = 0.3  # of a new measurement
STEPS_MAX = 64
PROBE_AFTER_S = 10.0  # without a fetch, since the first hit that was declined


class PrefillRate:
    """Tokens a second, from pairs of (a step was scheduled, its result came back)."""

    def __init__(self) -> None:
        self.tokens_per_s = 0.0
        self._steps: deque[tuple[float, int]] = deque(maxlen=STEPS_MAX)
        self._last_end = 0.0

    def scheduled(self, now: float, tokens: int) -> None:
        self._steps.append((now, tokens))

    def finished(self, now: float) -> None:
        if not self._steps:
            return
        start, tokens = self._steps.popleft()
        elapsed = now - max(start, self._last_end)  # steps may overlap
        self._last_end = now
        if tokens < STEP_TOKENS_MIN or elapsed <= 0:
            return
        rate = tokens / elapsed
        known = self.tokens_per_s
        self.tokens_per_s = known + WEIGHT * (rate - known) if known else rate

    def seconds(self, tokens: int) -> float:
        """Expected time of computing these tokens; 0: nothing was measured yet."""
        return tokens / self.tokens_per_s if self.tokens_per_s else 0.0


class Admission:
    """Decides on hits; `rate` is fed by the engine's steps."""

    def __init__(self) -> None:
        self.rate = PrefillRate()
        self._declining_since: float | None = None

    def admits(self, now: float, tokens: int, estimate_us: float) -> bool:
        """Asking again changes nothing: a probe is over only when it is fetched."""
        compute_s = self.rate.seconds(tokens)
        if not compute_s or not estimate_us or estimate_us < compute_s * 1e6:
            return True
        if self._declining_since is None:
            self._declining_since = now
        return now - self._declining_since >= PROBE_AFTER_S

    def fetched(self) -> None:
        """A hit is being fetched: the estimate will be new."""
        self._declining_since = None
