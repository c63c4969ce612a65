# SPDX-License-Identifier: Apache-2.0
"""Through real attention: documents with their exact caches, and what a coded cache does to what
the model predicts after it.

A document's KV is computed once, for its longest prefix; shorter prefixes are its beginning. Every
prefix is scored by the tokens that follow it in the document, against the exact cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from shadowserve.calibrate.coding import Coder
from shadowserve.calibrate.model import Model
from shadowserve.calibrate.references import code as code_reference
from shadowserve.calibrate.search import Damage
from shadowserve.calibrate.sensitivity import CHUNK, VERBATIM
from shadowserve.codec import Steps

LENGTHS = (1536, 6144)  # and the model's maximum
LENGTH_MAX = 32768  # of prefixes, unless longer ones are asked for

Tick = Callable[[float], None]  # so many documents are done


@dataclass
class Sample:
    document: list[int]
    kv: Any
    exact: dict[int, Any]  # log-probabilities by length, on the host


def lengths_of(model: Model, scored: int) -> list[int]:
    """Whole chunks: the usual lengths as far as they fit, and what the model can hold."""
    most = min(model.max_tokens - scored - 1, LENGTH_MAX) // CHUNK * CHUNK
    if most < CHUNK:
        raise ValueError(
            f"the model holds {model.max_tokens} tokens, {CHUNK} and {scored} to score are needed"
        )
    return sorted({*(length for length in LENGTHS if length < most), most})


class Bench:
    """A model, the codec and the lengths; evaluates ways of coding on samples."""

    def __init__(self, model: Model, lengths: list[int], scored: int) -> None:
        self.model, self.lengths, self.scored = model, lengths, scored
        self.coder = Coder(model.shape)

    @property
    def document_tokens(self) -> int:
        return self.lengths[-1] + self.scored

    def prepare(self, documents: list[list[int]], tick: Tick) -> list[Sample]:
        samples = []
        for document in documents:
            kv = self.model.prefix(document[: self.lengths[-1]])
            exact = {n: self._predict(document, kv, n).cpu() for n in self.lengths}
            samples.append(Sample(document, kv, exact))
            tick(1)
        return samples

    def _predict(self, document: list[int], kv: Any, length: int) -> Any:
        return self.model.predict(document[length : length + self.scored], kv[:, :, :length])

    def _add(self, found: Damage, sample: Sample, kv: Any) -> None:
        for length in self.lengths:
            found.add(length, sample.exact[length], self._predict(sample.document, kv, length))

    def tier(
        self, samples: list[Sample], tier: str, steps: Steps | None = None, tick: Tick | None = None
    ) -> Damage:
        """A tier of the C codec; without steps, its uniform ones."""
        found = Damage()
        for sample in samples:
            coded = self.coder.code(sample.kv, tier, steps)
            found.ratios.append(coded.ratio)
            found.errors.append(coded.errors)
            self._add(found, sample, coded.kv)
            if tick:
                tick(1)
        return found

    def reference(
        self, samples: list[Sample], name: str, tick: Tick | None = None, entropy: bool = False
    ) -> Damage:
        """What another system's cache would do. Its scales are those of each prefix."""
        found = Damage()
        for sample in samples:
            for length in self.lengths:
                kv = sample.kv[:, :, :length]
                kv = kv if entropy else kv.to(self.model.device)
                coded = code_reference(kv, name, VERBATIM, entropy)
                ours = self._predict(sample.document, coded.kv, length)
                found.add(length, sample.exact[length], ours)
            found.ratios.append(coded.ratio if entropy else coded.packed_ratio)
            if tick:
                tick(1)
        return found
