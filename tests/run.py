# SPDX-License-Identifier: Apache-2.0
"""Runs every test of the project and adds up the results.

Suites, in order: c (release build), sanitizers (ASan+UBSan: all C tests; TSan: those with
threads; both: the daemon's tests), arm64 (all C tests and the daemon, built for aarch64 and run
under qemu-user, with engines of this machine), static (layering, lengths, linter, types), python
(package, programs, daemon), rdma (the rdma way in a guest with a software RDMA device, then the
same with both sanitizer builds) and vllm (the real engine).
The last line is "N passed, N failed, N skipped"; skips and failures are named above it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from pathlib import Path

from rdma import guest

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"
SUITES = ("c", "sanitizers", "arm64", "static", "python", "rdma", "vllm")
TSAN_SUITES = ("base", "plane", "client", "store", "deliver")
# Instrumented code makes GCC warn of things that the release build shows to be false.
DEBUG = ["-Doptimization=1", "-Ddebug=true", "-Db_lundef=false", "-Dwerror=false"]
SANITIZED = {
    "asan": [*DEBUG, "-Db_sanitize=address,undefined"],
    "tsan": [*DEBUG, "-Db_sanitize=thread"],
}
# Left alone UBSan prints and goes on, and nobody reads it.
UBSAN_OPTIONS = "halt_on_error=1:print_stacktrace=1"
FEW_SEEDS = "40"  # of the simulation, where it is slow
ARM64_DAEMON = ["tests/daemon/test_life.py", "tests/daemon/test_stores.py"]
ARM64_DAEMON += ["tests/daemon/test_hostile.py", "tests/relay/test_relay.py"]
PYTEST_FOLDERS = {
    "static": ["tests/static"],
    "python": [
        "tests/client",
        "tests/daemon",
        "tests/relay",
        "tests/cli",
        "tests/python",
        "tests/bench",
        "tests/packaging",
    ],
    "vllm": ["tests/vllm"],
}


@dataclass
class Tally:
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    notes: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped
        self.notes += other.notes

    def line(self) -> str:
        skipped = f", {self.skipped} skipped" if self.skipped else ""
        return f"{self.passed} passed, {self.failed} failed{skipped}"


def cmocka_counts(text: str) -> tuple[int, int, int]:
    """Passed, failed and skipped single tests in the output of a cmocka program."""

    def total(word: str) -> int:
        return sum(int(n) for n in re.findall(rf"\[  {word}  \] (\d+) test\(s\)", text))

    return total("PASSED"), total("FAILED"), total("SKIPPED")


def meson_tally(folder: Path, label: str) -> Tally:
    """Reads the log that `meson test` left; a program without cmocka lines counts as one test."""
    tally = Tally()
    for line in (folder / "meson-logs" / "testlog.json").read_text().splitlines():
        test = json.loads(line)
        passed, failed, skipped = cmocka_counts(test.get("stdout", "") + test.get("stderr", ""))
        name, result = f"{label}: {test['name']}", test["result"]
        if result == "OK" or (result == "FAIL" and failed):
            tally.add(Tally(passed or int(not skipped and result == "OK"), failed, skipped))
        elif result == "SKIP":
            tally.add(Tally(skipped=1))
        else:
            tally.add(Tally(passed=passed, failed=max(failed, 1)))
        if result not in ("OK", "SKIP"):
            tally.notes.append(f"FAILED {name} ({result}), log: {folder}/meson-logs/testlog.txt")
        elif result == "SKIP" or skipped:
            text = test.get("stdout", "") + test.get("stderr", "")
            reasons = re.findall(r"^skip: (.*)$", text, re.MULTILINE) or ["see its log"]
            tally.notes.append(f"skipped {name}: {'; '.join(sorted(set(reasons)))}")
    return tally


def run_meson(
    folder: Path, options: list[str], suites: tuple[str, ...], label: str, **settings: str
) -> Tally:
    build = subprocess.run([ROOT / "packaging" / "build.sh", folder, *options], cwd=ROOT)
    if build.returncode:
        return Tally(failed=1, notes=[f"FAILED {label}: the build"])
    log = folder / "meson-logs" / "testlog.json"
    log.unlink(missing_ok=True)
    selection = [part for suite in suites for part in ("--suite", suite)]
    command = ["meson", "test", "-C", folder, "--no-rebuild", "--print-errorlogs", "--quiet"]
    # The limits in meson.build are for a quiet machine; they only end what hangs.
    command += ["--timeout-multiplier", "5"]
    env = {"UBSAN_OPTIONS": UBSAN_OPTIONS, **os.environ, **settings}
    subprocess.run([*command, *selection], cwd=ROOT, env=env)
    if not log.exists():
        return Tally(failed=1, notes=[f"FAILED {label}: no test ran"])
    return meson_tally(folder, label)


def run_pytest(suite: str, wanted: list[str], build: Path = BUILD / "release") -> Tally:
    folders = [f for f in wanted if (ROOT / f).is_file() or list((ROOT / f).glob("test_*.py"))]
    if not folders:
        return Tally(failed=1, notes=[f"FAILED {suite}: no test found"])
    report = BUILD / f"pytest-{suite}.xml"
    report.unlink(missing_ok=True)
    env = dict(os.environ)
    env["SHADOWSERVE_BUILD"] = str(build)
    env.setdefault("UBSAN_OPTIONS", UBSAN_OPTIONS)
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT / "python"), env.get("PYTHONPATH")]))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-rsf",
        "--tb=short",
        "--disable-warnings",
        f"--junitxml={report}",
    ]
    subprocess.run([*command, *folders], cwd=ROOT, env=env)
    if not report.exists():
        return Tally(failed=1, notes=[f"FAILED {suite}: pytest ended without a report"])
    tally = Tally()
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname')}.{case.get('name')}"
        if case.find("failure") is not None or case.find("error") is not None:
            tally.add(Tally(failed=1, notes=[f"FAILED {suite}: {name}"]))
        elif (skipped := case.find("skipped")) is not None:
            tally.add(Tally(skipped=1, notes=[f"skipped {name}: {skipped.get('message')}"]))
        else:
            tally.passed += 1
    return tally


def run_arm64() -> Tally:
    """Needs nothing of the machine but the cross compiler and qemu; libraries are unpacked."""
    cross = ROOT / "packaging" / "cross"
    sysroot = BUILD / "aarch64-sysroot"
    done = subprocess.run([cross / "sysroot.sh", sysroot], cwd=ROOT, stderr=subprocess.PIPE)
    if done.returncode:
        reason = (done.stderr.decode().strip().splitlines() or ["no reason given"])[-1]
        return Tally(skipped=1, notes=[f"skipped arm64: no aarch64 libraries: {reason}"])
    files = [f"--cross-file={sysroot / 'constants.ini'}", f"--cross-file={cross / 'aarch64.ini'}"]
    tally = run_meson(BUILD / "aarch64", files, (), "aarch64", SSV_SEEDS=FEW_SEEDS)
    launchers = BUILD / "aarch64-run"
    for program in ("daemon/shadowserved", "cli/shadowserve"):
        launcher = launchers / program
        launcher.parent.mkdir(parents=True, exist_ok=True)
        emulator = f"qemu-aarch64 -L '{sysroot / 'root'}' '{BUILD / 'aarch64' / program}'"
        launcher.write_text(f'#!/bin/sh\nexec {emulator} "$@"\n')
        launcher.chmod(0o755)
    tally.add(run_pytest("daemon-aarch64", ARM64_DAEMON, launchers))
    return tally


def run_rdma() -> Tally:
    tally = Tally()
    for folder, options in SANITIZED.items():
        build = subprocess.run(
            [ROOT / "packaging" / "build.sh", BUILD / folder, *options], cwd=ROOT
        )
        if build.returncode:
            return Tally(failed=1, notes=[f"FAILED rdma: the build {folder}"])
    try:
        ran = guest.run_tests(BUILD / "release")
        ran += guest.run_sanitized([BUILD / folder for folder in SANITIZED])
    except guest.Missing as missing:
        return Tally(skipped=1, notes=[f"skipped rdma: {missing}"])
    for one in ran:
        passed, failed, skipped = cmocka_counts(one.output)
        if one.status != 0:
            tally.notes.append(f"FAILED rdma: {one.name}, log: {guest.CACHE}/guest*.log")
            failed = max(failed, 1)
        tally.add(Tally(passed, failed, skipped))
    return tally


def run_suite(suite: str) -> Tally:
    if suite == "c":
        return run_meson(BUILD / "release", [], (), "release")
    if suite == "sanitizers":
        tally = run_meson(BUILD / "asan", SANITIZED["asan"], (), "asan+ubsan")
        tsan = BUILD / "tsan"
        tally.add(run_meson(tsan, SANITIZED["tsan"], TSAN_SUITES, "tsan", SSV_SEEDS=FEW_SEEDS))
        for folder in (BUILD / "asan", tsan):
            tally.add(run_pytest(f"daemon-{folder.name}", ["tests/daemon"], folder))
        tally.add(run_pytest("relay-asan", ["tests/relay"], BUILD / "asan"))
        return tally
    if suite == "arm64":
        return run_arm64()
    if suite == "rdma":
        return run_rdma()
    return run_pytest(suite, PYTEST_FOLDERS[suite])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=SUITES, action="append", help="run one suite")
    options = parser.parse_args()
    BUILD.mkdir(exist_ok=True)
    total = Tally()
    for suite in options.only or SUITES:
        start = time.monotonic()
        print(f"== {suite}", flush=True)
        tally = run_suite(suite)
        print(f"== {suite}: {tally.line()} in {time.monotonic() - start:.0f} s", flush=True)
        total.add(tally)
    for note in total.notes:
        print(note)
    print(total.line())
    return 1 if total.failed or not total.passed else 0


if __name__ == "__main__":
    sys.exit(main())
