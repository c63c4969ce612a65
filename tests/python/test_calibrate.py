# SPDX-License-Identifier: Apache-2.0
"""Parts of calibration that need no model: bounds, the search, weights, texts, other quantisers."""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch", reason="no torch in this Python")

from shadowserve.calibrate import page, references, search, sensitivity, texts  # noqa: E402


class Letters:
    """A tokenizer with a token for each character."""

    def __call__(self, text, add_special_tokens):
        return {"input_ids": [ord(c) for c in text]}


def test_bound_lies_above_the_ratio_and_is_wider_where_documents_differ():
    theirs = torch.ones(20, dtype=torch.float64)
    alike = theirs * 0.5
    apart = torch.tensor([0.1, 0.9] * 10, dtype=torch.float64)
    assert search.bound_of(alike, theirs) == pytest.approx(0.5)
    assert 0.55 < search.bound_of(apart, theirs) < 0.75


@pytest.mark.parametrize("slope", [1.2, 2.0, 3.0])
@pytest.mark.parametrize("place", [0.006, 0.7, 9.0])
def test_the_scale_found_is_the_coarsest_that_holds(slope, place):
    def found(scale):
        return (scale / place) ** slope

    points = {scale: found(scale) for scale in search.GRID}
    for _ in range(search.GRID_MORE):
        if (more := search.bracket(points)) is not None:
            points[more] = found(more)
    assert search.bracket(points) is None
    assert search.crossing(points) == pytest.approx(place, rel=1e-6)


def test_no_scale_is_an_error():
    with pytest.raises(ValueError, match="no step keeps the promise"):
        search.crossing({0.1: 2.0, 0.2: 3.0})
    assert search.crossing({0.1: 0.2, 0.2: 0.4}) == pytest.approx(0.2)


def damage_of(kl_of_documents):
    found = search.Damage()
    for kl in kl_of_documents:
        found.kl.setdefault(256, []).append(torch.full((64,), kl, dtype=torch.float64))
        found.same_top.setdefault(256, []).append(1.0)
        found.ratios.append(4.0)
    return found


def test_a_kind_of_text_that_is_worse_than_the_others_counts():
    theirs = {"FP8": damage_of([1e-3] * 6)}
    ours = damage_of([0.3e-3, 0.3e-3, 0.3e-3, 0.3e-3, 0.6e-3, 0.6e-3])
    kinds = [0, 0, 1, 1, 2, 2]
    assert search.unlike("standard", ours, theirs, kinds) == pytest.approx(1.5)
    assert search.unlike("standard", damage_of([1e-4] * 6), theirs, kinds) == 1
    assert search.used("standard", ours, theirs, kinds) >= 0.6 / search.MARGIN - 1e-9
    assert ours.of([4, 5]).means(256).tolist() == pytest.approx([0.6e-3, 0.6e-3])


def test_a_promise_is_judged_by_its_worst_length():
    theirs, ours = search.Damage(), search.Damage()
    for _ in range(8):
        for length, factor in ((256, 0.5), (512, 2.0)):
            theirs.kl.setdefault(length, []).append(torch.full((64,), 1e-3, dtype=torch.float64))
            mine = torch.full((64,), factor * 1e-3, dtype=torch.float64)
            ours.kl.setdefault(length, []).append(mine)
    found = search.kept("standard", ours, {"FP8": theirs, "int4": theirs})
    assert found[256].worst < 1 < found[512].worst
    assert search.worst(found) == pytest.approx(2.0)
    assert search.worst(search.kept("high", ours, {"FP8": theirs})) == pytest.approx(16.0)
    assert search.worst(search.kept("tiny", ours, {"int4": theirs})) < 1


def test_a_head_that_matters_more_gets_finer_steps():
    fisher = torch.ones(2, 2, 2, 16)
    fisher[1, 0, 1] = 16.0
    fisher[0, 1, 0] = 1e9
    found = sensitivity.Sensitivity(fisher, torch.ones(2, 2, 2))
    weights = sensitivity.weights(found, by_channel=False)
    usual = float(weights.head[0, 0, 0])
    assert float(weights.head[1, 0, 1]) == pytest.approx(usual / 4, rel=1e-4)
    assert float(weights.head.log().mean()) == pytest.approx(0, abs=1.0)
    assert float(weights.head[0, 1, 0]) == pytest.approx(1 / sensitivity.CLIP)


def test_channels_that_matter_less_get_coarser_factors():
    fisher = torch.ones(1, 2, 1, 4)
    fisher[0, 0, 0] = torch.tensor([16.0, 1.0, 1.0, 1 / 16])
    found = sensitivity.Sensitivity(fisher, torch.ones(1, 2, 1))
    factor = sensitivity.weights(found, by_channel=True).factor
    assert factor[0, 0].tolist() == [112, 128, 128, 144]  # 2 octaves each way


def test_a_text_is_dealt_into_splits_that_share_nothing(tmp_path):
    file = tmp_path / "text"
    file.write_text("".join(chr(33 + i % 90) for i in range(1000)) + "\n\f\n" + "x" * 500)
    found = texts.read(file, Letters(), [1], 101, (2, 5, 5))
    assert [len(s) for s in (found.sensitivity, found.scale, found.test)] == [2, 5, 5]
    assert len(found.kinds) == 5 and set(found.kinds) == {0, 1, 2}
    documents = [*found.sensitivity, *found.scale, *found.test]
    assert all(len(document) == 101 and document[0] == 1 for document in documents)
    again = texts.read(file, Letters(), [1], 101, (2, 5, 5))
    assert again == found
    with pytest.raises(texts.TooLittleText, match="--documents"):
        texts.read(file, Letters(), [1], 101, (2, 50, 5))


def test_other_quantisers_err_as_they_should():
    generator = torch.Generator().manual_seed(0)
    kv = torch.randn(2, 2, 512, 2, 64, generator=generator).to(torch.bfloat16)
    coded = {name: references.code(kv, name, 4, entropy=True) for name in references.REFERENCES}
    errors = {
        n: float((c.kv.float() - kv.float()).norm() / kv.float().norm()) for n, c in coded.items()
    }
    assert errors["int8"] < errors["FP8"] < errors["int4"] < errors["int2"]
    assert torch.equal(coded["int4"].kv[:, :, :4], kv[:, :, :4])
    assert not torch.equal(coded["FP8"].kv[:, :, :4], kv[:, :, :4])
    assert coded["FP8"].packed_ratio == pytest.approx(2, rel=1e-3)
    assert 3.5 < coded["int4"].packed_ratio < 3.9


def test_a_written_profile_is_json_again():
    value = {"a": 1, "b": [[1, 2], [3.5]], "c": {"d": ["x", "y"], "e": {}}, "f": []}
    assert json.loads(page.written(value)) == value


def test_scales_are_chosen_with_a_margin():
    ours, theirs = damage_of([0.95e-3] * 4), {"FP8": damage_of([1e-3] * 4)}
    assert search.worst(search.kept("standard", ours, theirs)) <= 1
    assert search.used("standard", ours, theirs, [0] * 4) > 1
