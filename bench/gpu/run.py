# SPDX-License-Identifier: Apache-2.0
"""KV into a decoding GPU engine: step times while it arrives, its rate, its bytes, and the time to
a hit over links; beside them the same by a kernel that decodes on the GPU. README.md says how it is
run.

Each case is measured between two runs of the engine alone, and its ratios are to their mean.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent.parent / "python")]

import gpu_memory  # noqa: E402
import link  # noqa: E402
import torch  # noqa: E402
from bare import Bare, Way  # noqa: E402
from engine import BLOCK_ELEMENTS, DIM, KV_HEADS, LAYERS  # noqa: E402
from machine import HUGE_PAGES, cores, machine, reserve_huge_pages  # noqa: E402
from movers import CHUNK_BYTES, Fetches, GpuDecoder, GpuDecodes  # noqa: E402
from rig import CHUNKS, IN_FLIGHT, Daemon, Rig, chunk_keys, fetch_all, store_chunks  # noqa: E402
from shadowserve import binding, gpu  # noqa: E402

RATES = (20.0, 10.0, 0.0)


# ---- interference --------------------------------------------------------------------------------


class Idle:
    def stop(self) -> dict[str, Any]:
        return {}


class OtherProcess:
    def __init__(self, command: list[str]) -> None:
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        if self.process.stdout.readline().strip() != "running":
            raise RuntimeError("the other process did not start")

    def stop(self) -> dict[str, Any]:
        out, _ = self.process.communicate(timeout=120)
        report: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
        return report


def fetches(
    rig: Rig, session: binding.Session, region: int, tier: binding.Tier, rate: float
) -> Fetches:
    mover = Fetches(session, region, chunk_keys(tier.name), rig.places(IN_FLIGHT), rate)
    mover.start()
    return mover


def asked(rate: float) -> str:
    return f"{rate:g} GB/s" if rate else "no limit"


def rate_cases(
    rig: Rig, session: binding.Session, region: int, args: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """The bare mover and the daemon at one rate, in turns, so that they meet the same machine."""
    for rate in RATES:
        for _ in range(args.rounds if rate else 2):
            if rate:  # with no limit, sixteen copies a call are not all that engines can do
                yield bare_case(rig, args, Way(), rate)
            else:
                yield bare_case(rig, args, Way(batch=16 << 20, streams=1), rate)
            for tier in (binding.Tier.STANDARD, binding.Tier.LOSSLESS):
                start = partial(fetches, rig, session, region, tier, rate)
                name = f"shadowserve {tier.name.lower()} {asked(rate)}"
                yield rig.steps.beside(name, args.seconds, start)


def bare_case(
    rig: Rig, args: argparse.Namespace, way: Way, rate: float, ahead: bool = True
) -> dict[str, Any]:
    def start() -> Bare:
        seconds = 0.35 + args.seconds
        return Bare(Path(args.library), rig.exported_targets(), way, rate, seconds)

    name = f"bare, {way.name}, {asked(rate)}" + ("" if ahead else ", launched late")
    return rig.steps.beside(name, args.seconds, start, ahead)


def way_cases(
    rig: Rig, session: binding.Session, region: int, args: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """20 GB/s by other ways of moving: what matters to the engine, and what does not."""
    ways = (
        Way(streams=1),
        Way(copy=2 << 20, batch=2 << 20),
        Way(batch=32 << 20, streams=1),
        Way(copy=256 << 10),
    )
    for way in ways:
        for _ in range(2):
            yield bare_case(rig, args, way, 20)
    yield bare_case(rig, args, Way(), 20, ahead=False)
    start = partial(fetches, rig, session, region, binding.Tier.STANDARD, 20)
    name = "shadowserve standard 20 GB/s, launched late"
    yield rig.steps.beside(name, args.seconds, start, ahead=False)


def spent(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Where the workers' time went between two stats: seconds and times, by stage, and bytes."""
    stages = {
        name: {key: times[key] - before["stages"][name][key] for key in ("count", "sum_us")}
        for name, times in after["stages"].items()
    }
    return {
        "stages": {name: times for name, times in stages.items() if times["count"]},
        "bytes_moved": after["bytes"]["moved"] - before["bytes"]["moved"],
        "bytes_received": after["bytes"]["received"] - before["bytes"]["received"],
        "steps": after["steps"] - before["steps"],
        "idle_steps": after["idle_steps"] - before["idle_steps"],
    }


def compare_cases(
    rig: Rig, folder: Path, place: dict[str, list[int]], args: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Daemons (--compare) and stores beside one another, with no limit: what bounds the rate?"""
    programs: list[Path | None] = [None]
    if args.compare:
        programs = sorted(args.compare.resolve().glob("shadowserved*"))
    every = len(place["workers"])
    file = f"file:{folder}/compared"
    rounds = [(program.name if program else "file", program, file, every) for program in programs]
    rounds += [
        ("slices of 256 KiB", programs[0], f"{file}?slice=256K", every),
        ("store of the heap", programs[0], "memory:", every),
    ]
    # Do workers slow one another down?
    rounds += [(f"workers: {n}", programs[0], file, n) for n in (8, 4, 2, 1) if n < every]
    for i, (name, program, uri, workers) in enumerate(rounds):
        cores = {**place, "workers": place["workers"][:workers]}
        daemon = Daemon(folder / f"compare{i}", uri, cores, "workers", [], program)
        session = binding.Session.connect(str(daemon.socket), "gpu-bench", 0, 1)
        try:
            region = rig.register(session)
            for tier in (binding.Tier.STANDARD, binding.Tier.LOSSLESS):
                store_chunks(session, region, rig, tier)
                start = partial(fetches, rig, session, region, tier, 0)
                case = f"{name}, {tier.name.lower()} no limit"
                before = json.loads(session.stat())["path"]
                result = rig.steps.beside(case, args.seconds, start)
                after = json.loads(session.stat())["path"]
                yield {**result, "workers": spent(before, after)}
        finally:
            session.close()
            daemon.stop()
            shutil.rmtree(folder / "compared", ignore_errors=True)


def gpu_cases(rig: Rig, folder: Path, library: Path, seconds: float) -> Iterator[dict[str, Any]]:
    """Decoding on the GPU: the containers of the standard tier out of the store's folder."""
    files = [folder / key.hex()[:2] / key.hex() for key in chunk_keys("STANDARD")[:4]]
    decoders = [
        GpuDecoder(library, path.read_bytes(), rig.kv.data_ptr(), blocks)
        for path, blocks in zip(files, rig.places(4), strict=True)
    ]
    yield gpu_check(rig, decoders)
    exported = gpu.export(rig.kv.data_ptr(), 0)
    arguments: list[str] = []
    for path, blocks in zip(files, rig.places(4), strict=True):
        arguments += [str(path), json.dumps(blocks)]
    for rate in filter(None, RATES):

        def inside(rate: float = rate) -> GpuDecodes:
            mover = GpuDecodes(decoders, rate)
            mover.start()
            return mover

        def outside(rate: float = rate) -> OtherProcess:
            head = [sys.executable, str(HERE / "other_process.py"), str(library)]
            middle = [exported.handle.hex(), str(exported.offset), str(rate), str(seconds + 1)]
            return OtherProcess([*head, *middle, *arguments])

        yield rig.steps.beside(f"GPU decode, engine's process {asked(rate)}", seconds, inside)
        yield rig.steps.beside(f"GPU decode, another process {asked(rate)}", seconds, outside)


def gpu_check(rig: Rig, decoders: list[GpuDecoder]) -> dict[str, Any]:
    """Does the kernel give what the daemon gave? All but exceptions and verbatim tokens must."""
    blocks = [block for place in rig.places(4) for block in place]
    expected = rig.kv[blocks].clone()
    rig.kv[blocks] = 0
    for decoder in decoders:
        decoder.run(torch.cuda.current_stream())
    torch.cuda.synchronize()
    differ = int((rig.kv[blocks].view(torch.int16) != expected.view(torch.int16)).sum())
    allowed = sum(decoder.exceptions for decoder in decoders)
    verbatim = 4 * 2 * LAYERS * KV_HEADS * DIM
    print(f"GPU decode kernel: {differ} elements differ, {allowed} exceptions", flush=True)
    if differ > allowed + verbatim:
        raise RuntimeError("the GPU decode kernel is wrong; it would be no fair comparison")
    return {"case": "GPU decode check", "differ": differ, "exceptions": allowed}


def probe_cases(rig: Rig, library: Path, seconds: float) -> Iterator[dict[str, Any]]:
    probe = ctypes.CDLL(str(library))
    probe.probe_run.restype = ctypes.c_double
    probe.probe_run.argtypes = [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_double]
    to = rig.kv[rig.target[0]].data_ptr()
    # Other batches and numbers of streams: what a batch's end and another stream cost.
    for way in (Way(streams=1), Way(), Way(batch=4 << 20), Way(batch=4 << 20, copy=256 << 10)):
        bare = Bare(library, rig.exported_targets(), way, 0, seconds / 2)
        report = bare.stop()
        print(f"bare, {way.name}: {report['got_gb_s']:.1f} GB/s", flush=True)
        yield {"case": f"bare alone, {way.name}", **report}
    for copy_kib in (16, 32, 64, 256, 2048):
        rates = [
            probe.probe_run(to, len(rig.target) * BLOCK_ELEMENTS * 2, copy_kib << 10, seconds / 5)
            for _ in range(5)
        ]
        print(f"probe, copies of {copy_kib} KiB: {statistics.median(rates):.1f} GB/s", flush=True)
        yield {"case": f"probe {copy_kib} KiB", "gb_s": rates, "median": statistics.median(rates)}


# ---- the connector's worker ----------------------------------------------------------------------


def connector_cases(
    rig: Rig, folder: Path, place: dict[str, list[int]], seconds: float
) -> Iterator[dict[str, Any]]:
    """The worker of the vLLM connector, on this engine's blocks and on a layout of short runs."""
    import connector

    daemon = Daemon(folder / "worker", f"file:{folder}/worker-chunks", place, "workers", [])
    try:
        yield connector.ordered(rig.engine.kv, rig.source, rig.target, str(daemon.socket))
        staged = connector.Staged(str(daemon.socket))
        yield staged.roundtrip()
        yield rig.steps.beside("connector, staging, lossless", seconds, staged.mover)
        yield staged.check()
    finally:
        daemon.stop()


# ---- all -----------------------------------------------------------------------------------------


def memory_cases(
    rig: Rig, folder: Path, place: dict[str, list[int]], args: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    store = folder / "chunks"
    daemon = Daemon(folder / "file", f"file:{store}", place, "workers", [])
    session = binding.Session.connect(str(daemon.socket), "gpu-bench", 0, 1)
    try:
        region = rig.register(session)
        for tier in (binding.Tier.STANDARD, binding.Tier.LOSSLESS):
            stored = store_chunks(session, region, rig, tier)
            done = fetch_all(session, region, rig, tier)
            wrong, errors = rig.wrong(), rig.relative_error()
            print(
                f"{tier.name.lower()}: {wrong} elements differ, relative error {errors}", flush=True
            )
            if tier == binding.Tier.LOSSLESS and wrong:
                raise RuntimeError(f"lossless: {wrong} elements are wrong")
            ratio = CHUNKS * CHUNK_BYTES / done.wire_bytes
            yield {
                "case": f"roundtrip {tier.name.lower()}",
                "wrong": wrong,
                "relative_error": errors,
                "ratio": ratio,
                **stored,
            }
        yield rig.steps.beside("registered, idle", args.seconds, Idle)
        yield from rate_cases(rig, session, region, args)
        if args.ways:
            yield from way_cases(rig, session, region, args)
        yield from rig.steps.pooled()
        fetch_all(session, region, rig, binding.Tier.STANDARD)
        if args.decode:
            yield from gpu_cases(rig, store, Path(args.library), args.seconds)
        fetch_all(session, region, rig, binding.Tier.LOSSLESS)
        if rig.wrong() or not rig.untouched():
            raise RuntimeError("bytes are wrong after the cases")
        yield {"case": "after all", "wrong": 0, "untouched": True}
        stat = json.loads(session.stat())
        yield {"case": "stat", "stat": stat}
    finally:
        session.close()
        daemon.stop()


def part_cases(
    name: str, rig: Rig, place: dict[str, list[int]], args: argparse.Namespace
) -> Generator[dict[str, Any], None, None]:
    if name == "probe":
        yield from probe_cases(rig, Path(args.library), args.seconds)
    elif name == "memory":
        yield from memory_cases(rig, args.work, place, args)
    elif name == "compare":
        yield from compare_cases(rig, args.work, place, args)
    elif name == "connector":
        yield from connector_cases(rig, args.work, place, args.seconds)
    elif name == "link":
        yield from link.link_cases(rig, args.work, place)
    elif name == "prefill":
        yield {"case": "prefill 8192", "ms": rig.engine.prefill(8192)}
    else:
        raise SystemExit(f"--only {name}: there is no such part")


def run_parts(rig: Rig, place: dict[str, list[int]], args: argparse.Namespace) -> bool:
    """Every part, each case's result kept as soon as there is one."""
    made = {**machine(), "places": place, "huge_pages": reserve_huge_pages(HUGE_PAGES)}
    report: dict[str, Any] = {"machine": made, "batch": args.batch, "context": args.context}
    results = report["results"] = []
    path = args.out / f"gpu-batch{args.batch}.json"
    args.out.mkdir(parents=True, exist_ok=True)
    failed = False
    for name in args.only.split(","):
        try:
            with closing(part_cases(name, rig, place, args)) as cases:
                for result in cases:
                    results.append(result)
                    path.write_text(json.dumps(report, indent=1))
                    if time.monotonic() > args.end:
                        raise TimeoutError("the time of --limit is over")
        except Exception as error:  # a part that fails must not lose the others' results
            failed = True
            results.append({"case": name, "error": repr(error)})
            print(f"{name}: {error!r}", flush=True)
    path.write_text(json.dumps(report, indent=1))
    return failed


def run_batches(args: argparse.Namespace) -> bool:
    """Each batch in a process of its own; those behind the first get the memory part alone."""
    failed = False
    for i, batch in enumerate(args.batches.split(",")):
        size, context = batch.split("x")
        again = ["--batch", size, "--context", context, "--batches", ""]
        if i:
            again += ["--only", "memory", "--no-ways"]
        if args.limit:
            again += ["--limit", str(args.end - time.monotonic())]
        command = [sys.executable, *sys.argv, *again]
        print(f"batch {size}, context {context}", flush=True)
        failed |= subprocess.run(command, check=False).returncode != 0
    return failed


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    parser.add_argument("--work", type=Path, default=Path("/dev/shm/shadowserve-gpu"))
    parser.add_argument(
        "--library", required=True, help="libgpubench.so: probe.cu and decode_r16.cu"
    )
    parser.add_argument("--seconds", type=float, default=4.0, help="of a case")
    parser.add_argument("--rounds", type=int, default=3, help="of each rate")
    parser.add_argument("--limit", type=float, default=0, help="seconds in all; 0: none")
    parser.add_argument("--batches", default="", help="16x4096,1x4096: batch x context, in turn")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--only", default="probe,memory,compare,connector,link,prefill")
    parser.add_argument("--compare", type=Path, help="a folder of shadowserved* to compare")
    parser.add_argument("--no-decode", dest="decode", action="store_false")
    parser.add_argument("--no-ways", dest="ways", action="store_false")
    args = parser.parse_args()
    args.end = time.monotonic() + (args.limit or 1e9)
    return args


def main() -> None:
    args = parse()
    if args.batches:
        sys.exit(1 if run_batches(args) else 0)
    shutil.rmtree(args.work, ignore_errors=True)
    args.work.mkdir(parents=True)
    # A file store in memory, of huge pages: page by page a read gives 3.5 GB/s of a core.
    tmpfs = ["mount", "-t", "tmpfs", "-o", "huge=always,size=12g", "tmpfs", str(args.work)]
    mounted = subprocess.run(tmpfs, check=False).returncode == 0
    place = cores()
    os.sched_setaffinity(0, place["engine"])
    rig = Rig(args.batch, args.context)
    os.environ["LD_LIBRARY_PATH"] = (
        f"{os.environ.get('LD_LIBRARY_PATH', '')}:{gpu_memory.driver_folder()}"
    )
    failed = run_parts(rig, place, args)
    shutil.rmtree(args.work, ignore_errors=True)
    if mounted:
        subprocess.run(["umount", "--lazy", str(args.work)], check=False)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
