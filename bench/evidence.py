# SPDX-License-Identifier: Apache-2.0
"""More than an average KL: recall of something said long ago, and greedy text that goes on.

Both compare a coded cache with the exact one of the same prefix; the model is one of
shadowserve.calibrate.model, in fp32, so that only the KV differs.
"""

from __future__ import annotations

from typing import Any

import torch

NEEDLE, CUE = 8, 3  # tokens of a needle, and how many of them are asked with
NEEDLES = 6
GENERATED = 64


def vocabulary_words(model: Any) -> list[int]:
    """Tokens of a few plain letters: what this model can be asked to remember."""
    found = []
    for token in range(model.vocabulary):
        text = model.tokenizer.decode([token])
        if text.strip().isalpha() and text.isascii() and 3 <= len(text.strip()) <= 8:
            found.append(token)
    return found


def with_needles(model: Any, ids: list[int], seed: int) -> tuple[list[int], list[list[int]]]:
    """The prefix with sentences of drawn words in it, spread over its first two thirds, each said
    twice in a row so that it is worth remembering; and the sentences."""
    generator = torch.Generator().manual_seed(seed)
    words = vocabulary_words(model)
    needles = []
    prefix = list(ids)
    for index in range(NEEDLES):
        drawn = torch.randint(len(words), (NEEDLE,), generator=generator).tolist()
        needle = [words[i] for i in drawn]
        place = len(ids) * (index + 1) * 2 // (3 * (NEEDLES + 1))
        prefix[place : place + 2 * NEEDLE] = needle + needle
        needles.append(needle)
    return prefix, needles


def recall(model: Any, kv: Any, needles: list[list[int]]) -> float:
    """Share of a needle's tokens that are the most probable ones, its first few being given."""
    right = 0
    for needle in needles:
        logs = model.predict(needle[:-1], kv)
        right += int((logs[CUE - 1 :].argmax(-1) == torch.tensor(needle[CUE:])).sum())
    return right / (len(needles) * (NEEDLE - CUE))


def equal_for(ours: list[int], exact: list[int]) -> int:
    """Leading tokens that are the same."""
    pairs = zip(ours, exact, strict=True)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), len(exact))
