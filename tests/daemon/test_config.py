# SPDX-License-Identifier: Apache-2.0
"""Configuration: what is read, what is printed, and what each mistake gets."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from daemon_rig import PROGRAM, SOON_S


def run(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    import os

    return subprocess.run(
        [PROGRAM, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=SOON_S,
        env={**os.environ, **variables},
        check=False,
    )


def printed(*arguments: object, **variables: str) -> dict[str, str]:
    done = run(*arguments, "--print-config", **variables)
    assert done.returncode == 0, done.stderr
    return dict(line.split(":", 1) for line in done.stdout.splitlines())


# A file's text, the line that is named, and words of the message.
MISTAKES = [
    ("stroe: memory:\n", 1, ["stroe", "store", "allowed", "arena"]),
    ("# one\n\narena: 64MiB\nqqqqqqqqqq: 1\n", 4, ["qqqqqqqqqq", "no such key"]),
    ("socket: /tmp/x\narena: 12XB\n", 2, ["arena", "12XB", "GiB"]),
    ("arena: 1MiB\n", 1, ["arena", "16MiB"]),
    ("arena: 99999999999999999999GiB\n", 1, ["arena", "1024GiB"]),
    ("workers: -1\n", 1, ["workers", "0 to 64"]),
    ("workers: 65\n", 1, ["workers", "0 to 64"]),
    ("workers: two\n", 1, ["workers", "two"]),
    ("cores: 9999\n", 1, ["cores", "may use"]),
    ("cores: 1-\n", 1, ["cores", "1-"]),
    ("control_core: x\n", 1, ["control_core"]),
    ("tier: best\n", 1, ["tier", "lossless", "tiny"]),
    ("tier: any\n", 1, ["tier", "auto, lossless"]),
    ("min_tier: auto\n", 1, ["min_tier", "any, lossless"]),
    ("codec: lz4\n", 1, ["codec", "deflate", "r16"]),
    ("trellis: some\n", 1, ["trellis", "yes or no"]),
    ("overlap: some\n", 1, ["overlap", "segment, chunk or none"]),
    ("log_level: loud\n", 1, ["log_level", "debug"]),
    ("pin_memory: maybe\n", 1, ["pin_memory", "yes or no"]),
    ("verbatim_tokens: 256\n", 1, ["verbatim_tokens", "255"]),
    ("socket: ''\n", 1, ["socket"]),
    ("arena: 64MiB\narena: 32MiB\n", 2, ["arena", "second time"]),
    ("lanes: 2\ncores: [1, 2]\n", 2, ["cores", "list"]),
    ("store:\n  uri: memory\n", 2, ["store", "mapping"]),
    ("arena: 64MiB\nstore: 'nul:'\n", 2, ["store", "nul", "null", "redis+unix"]),
    ("store: file:relative\n", 1, ["store", "relative", "absolute"]),
    ("store: file:/x?bytes=10Q\n", 1, ["store", "bytes=10Q", "expected"]),
    ("store: fault+memory:x?get-eror=1%\n", 1, ["store", "get-eror", "get-error"]),
    ("store: redis://me:secret@host/x\n", 1, ["store", "***", "/0 to /65535"]),
    ("arena: 64MiB\n---\nlanes: 2\n", 2, ["second document", "one"]),
    ("- arena\n", 1, ["key: value"]),
    ("just words\n", 1, ["key: value"]),
    ("arena: 'open\n", 2, ["unexpected end"]),
    ("arena: b: c\n", 1, ["mapping values"]),
]


@pytest.mark.parametrize("text,line,words", MISTAKES, ids=[m[0][:20] for m in MISTAKES])
def test_a_mistake_in_the_file_is_named(
    tmp_path: Path, text: str, line: int, words: list[str]
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    done = run("--config", file)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert f"{file}:{line}: " in done.stderr
    assert "secret" not in done.stderr
    for word in words:
        assert word in done.stderr


FLAG_MISTAKES = [
    (["--arnea", "1GiB"], ["--arnea", "--arena"]),
    (["--print-confg"], ["--print-config"]),
    (["--idle-exit", "3"], ["--idle-exit-s"]),
    (["--zzzzzzzzz"], ["no such option"]),
    (["-x"], ["no such option"]),
    (["stray"], ["stray"]),
    (["--arena"], ["--arena", "value"]),
    (["--arena", "1"], ["--arena", "16MiB"]),
    (["--tier=medium"], ["--tier", "medium", "standard"]),
    (["--store", "nul:"], ["--store", "nul:", "null"]),
    (["--store", "file:relative"], ["--store", "file:relative", "absolute"]),
    (["--store=memory:?bytes=10Q"], ["--store", "bytes=10Q"]),
    (["--config", ""], ["--config"]),
    (["--config", "/nowhere/at/all.yaml"], ["/nowhere/at/all.yaml", "No such file"]),
]


@pytest.mark.parametrize("flags,words", FLAG_MISTAKES, ids=[" ".join(m[0]) for m in FLAG_MISTAKES])
def test_a_mistake_in_the_flags_is_named(flags: list[str], words: list[str]) -> None:
    done = run(*flags)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    for word in words:
        assert word in done.stderr


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("# mine\narena: 128MiB\nlanes: 3\ntier: lossless\n")
    values = printed("--config", file, "--lanes", 5, "--pin-memory")
    assert values["arena"].strip() == "128MiB"
    assert values["lanes"].strip() == "5"
    assert values["tier"].strip() == "lossless"
    assert values["pin_memory"].strip() == "yes"
    assert values["codec"].strip() == "r16"
    assert printed()["tier"].strip() == "auto"


def test_what_is_printed_can_be_read_back(tmp_path: Path) -> None:
    flags = "--store redis://user:p%40ss@host:1/2?prefix=a#x --arena 1536MiB --cores 0 --tier high"
    flags += " --log-level debug --idle-exit-s 7 --log-file /tmp/a:b --min-tier compact"
    first = run(*flags.split(), "--print-config")
    file = tmp_path / "printed.yaml"
    file.write_text(first.stdout)
    again = run("--config", file, "--print-config")
    assert (again.returncode, again.stdout) == (0, first.stdout)


def test_the_socket_comes_from_the_environment_when_nothing_names_it() -> None:
    assert printed(SHADOWSERVE_SOCKET="/tmp/env.sock")["socket"].strip() == "/tmp/env.sock"
    named = printed("--socket", "/tmp/flag.sock", SHADOWSERVE_SOCKET="/tmp/env.sock")
    assert named["socket"].strip() == "/tmp/flag.sock"


def test_help_names_every_key_and_the_exit_statuses() -> None:
    text = run("--help")
    assert text.returncode == 0
    for name in printed():
        assert f"--{name.replace('_', '-')}" in text.stdout
    assert "exit status" in text.stdout
    assert run("--version").stdout == "shadowserved 0.1.0\n"


def test_the_shipped_example_is_valid() -> None:
    example = Path(__file__).resolve().parents[2] / "packaging" / "shadowserved.yaml"
    done = run("--config", example, "--print-config")
    assert (done.returncode, done.stderr) == (0, "")
    # Every key is in it, commented out or not.
    text = example.read_text()
    for name in printed():
        assert re.search(rf"^#?{name}:", text, re.MULTILINE), name


def test_what_cannot_run_says_why(tmp_path: Path) -> None:
    base = ["--socket", tmp_path / "s", "--arena", "64MiB"]
    for flags, words in [
        (["--store", "file:/proc/nothing"], ["/proc/nothing"]),
        (["--store", "memory:", "--lanes", "64", "--arena", "16MiB"], ["arena"]),
        (["--store", "memory:", "--socket", "/nowhere/s"], ["/nowhere/s"]),
        (["--store", "memory:", "--socket", "/" + "x" * 200], ["107"]),
        (["--store", "memory:", "--log-file", "/nowhere/log"], ["/nowhere/log"]),
    ]:
        done = run(*base, *flags)
        assert done.returncode == 1, (flags, done)
        assert done.stdout == ""
        for word in words:
            assert word in done.stderr


def test_an_unknown_simd_level_is_a_mistake() -> None:
    done = run("--store", "memory:", SHADOWSERVE_SIMD="sse9")
    assert done.returncode == 2
    assert 'SHADOWSERVE_SIMD: "sse9" is no SIMD level' in done.stderr
