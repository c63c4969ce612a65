# SPDX-License-Identifier: Apache-2.0
"""`shadowserve bench plan`: it measures, proposes, and counts; speeds are not judged."""

from __future__ import annotations

from collections.abc import Callable

from cli_harness import Answer

Cli = Callable[..., Answer]

STAGES = {"receive", "inflate", "dequantise", "deliver"}
SMALL = ("--layers", "1", "--chunks", "1")


def stages_of(placement: str) -> list[str]:
    parts = placement.split(" | ")
    return sorted(stage for part in parts for stage in part.split(" on ")[0].split("+"))


def test_a_proposal_places_every_stage_once_and_uses_no_more_cores_than_there_are(cli: Cli) -> None:
    for cores in (1, 2, 5, 16):
        plan = cli("bench", "plan", *SMALL, "--cores", str(cores), "--json").json
        assert set(plan["ns_per_kv_byte"]) == STAGES
        assert all(cost > 0 for cost in plan["ns_per_kv_byte"].values())
        assert stages_of(plan["proposal"]) == sorted(STAGES)
        used = [int(part.split(" on ")[1]) for part in plan["proposal"].split(" | ")]
        assert 1 <= sum(used) <= cores
        for part, n in zip(plan["proposal"].split(" | "), used, strict=True):
            assert n == 1 or "+" not in part


def test_the_search_tries_every_split_over_these_cores(cli: Cli) -> None:
    plan = cli("bench", "plan", *SMALL, "--search", "2", "--json").json
    splits = [split["split"] for split in plan["splits"]]
    assert len(set(splits)) == len(splits)
    assert len(splits) in (1, 8, 14, 15)  # partitions of four stages into 1, 2, 3, 4 parts at most
    assert plan["best"] in splits
    assert plan["proposal_against_best"] >= 1


def test_bytes_are_counted_for_the_memory_of_a_card(cli: Cli) -> None:
    plan = cli("bench", "plan", *SMALL, "--json").json
    counted, dram = plan["bytes_per_kv_byte"], plan["dram_bytes_per_kv_byte"]
    assert 0 < counted["wire"] < 1 and 0 < counted["inflated"] < 1
    assert counted["dequantised"] == 1
    separate = 2 * (counted["wire"] + counted["inflated"] + counted["dequantised"])
    assert abs(dram["separate_buffers"] - separate) < 1e-9
    assert dram["ours_engine_writes_memory"] < 0.6 * separate


def test_an_engine_that_is_not_there_is_said(cli: Cli) -> None:
    answer = cli("bench", "plan", "--inflate", "gpu")
    assert answer.code == 4
    assert "expected cpu, dpdk" in answer.err
