# SPDX-License-Identifier: Apache-2.0
"""KV into a decoding GPU engine: step times while it arrives, its rate, its bytes, and the time to
a hit over links; beside them the same by a kernel that decodes on the GPU. README.md says how it is
run.

Each case is measured between two runs of the engine alone, and its ratios are to their mean.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent.parent / "python")]

import gpu_memory  # noqa: E402
import netns  # noqa: E402
import torch  # noqa: E402
from engine import BLOCK, BLOCK_ELEMENTS, DIM, KV_HEADS, LAYER_ELEMENTS, LAYERS, Engine  # noqa: E402
from machine import HUGE_PAGES, cores, machine, reserve_huge_pages  # noqa: E402
from movers import CHUNK_BLOCKS, CHUNK_BYTES, Fetches, GpuDecoder, GpuDecodes  # noqa: E402
from servers import RedisCluster, Server  # noqa: E402
from shadowserve import binding, gpu  # noqa: E402

CHUNKS = 32  # 8,192 tokens
IN_FLIGHT = 32
RATES = (10.0, 20.0, 0.0)
NODES = 3  # of the Redis Cluster: one Redis sends 16 to 20 Gbit/s


class Daemon(Server):
    def __init__(
        self,
        folder: Path,
        store: str,
        places: dict[str, list[int]],
        workers: str,
        prefix: list[str],
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.socket = folder / "d.sock"
        build = Path(os.environ["SHADOWSERVE_BUILD"])
        self.command = [str(build / "daemon" / "shadowserved"), "--socket", str(self.socket)]
        self.command += ["--store", store, "--arena", "4GiB", "--captures", "4"]
        self.command += ["--huge-pages"] if reserve_huge_pages(HUGE_PAGES) >= HUGE_PAGES else []
        self.command += ["--cores", ",".join(map(str, places[workers]))]
        self.command += ["--control-core", str(places["control"][0])]
        everywhere = sorted({core for group in places.values() for core in group})
        pin = ["taskset", "-c", ",".join(map(str, everywhere))]
        super().__init__("shadowserved", [*prefix, *pin, *self.command], folder)
        self.wait_ready()

    def ready(self) -> bool:
        return self.socket.exists()


# ---- the engine's KV -----------------------------------------------------------------------------


def layout(blocks: int) -> binding.Layout:
    digits = (
        binding.Digit(binding.Axis.TOKEN, BLOCK, KV_HEADS * 2 * DIM),
        binding.Digit(binding.Axis.HEAD, KV_HEADS, 2 * DIM),
        binding.Digit(binding.Axis.DIM, DIM, 1),
    )
    parts = tuple(
        binding.Part(role, 0, KV_HEADS, DIM, digits) for role in (binding.Role.K, binding.Role.V)
    )
    tensors = tuple(
        binding.Tensor(layer, part, (layer * LAYER_ELEMENTS + part * DIM) * 2, BLOCK_ELEMENTS * 2)
        for layer in range(LAYERS)
        for part in range(2)
    )
    return binding.Layout(
        dtype=binding.Dtype.BF16,
        layer0=0,
        layers_count=LAYERS,
        layers_total=LAYERS,
        rank=0,
        ranks_count=1,
        block_tokens=BLOCK,
        blocks_count=blocks,
        model=b"gpubench",
        parts=parts,
        tensors=tensors,
    )


def fill(kv: torch.Tensor) -> None:
    """KV with the statistics of a real cache: keys have channel means, outlier channels and
    neighbouring tokens alike in half of the channels; values have token norms that vary."""
    generator = torch.Generator(device="cuda").manual_seed(7)
    blocks = kv.shape[0]
    tokens = blocks * BLOCK
    for layer in range(LAYERS):
        noise = torch.randn(2, tokens, KV_HEADS, DIM, device="cuda", generator=generator)
        spread = torch.exp(0.35 * torch.randn(KV_HEADS, DIM, device="cuda", generator=generator))
        mean = 0.6 * spread * torch.randn(KV_HEADS, DIM, device="cuda", generator=generator)
        mean[:, ::37] *= 8
        slow = torch.arange(DIM, device="cuda") % 2 == 0
        k = noise[0]
        k[1:, :, slow] = 0.7 * k[:-1, :, slow] + 0.7 * k[1:, :, slow]
        k = mean + spread * k
        gain = torch.exp(
            0.35 * torch.randn(tokens, KV_HEADS, 1, device="cuda", generator=generator)
        )
        v = 0.3 * gain * noise[1]
        kv[:, layer, :, :, 0] = k.view(blocks, BLOCK, KV_HEADS, DIM).to(kv.dtype)
        kv[:, layer, :, :, 1] = v.view(blocks, BLOCK, KV_HEADS, DIM).to(kv.dtype)


class Rig:
    """The engine, its blocks and their copy for comparison."""

    def __init__(self, batch: int, context: int) -> None:
        pages = batch * context // BLOCK
        self.engine = Engine(batch, context, pages + 2 * CHUNKS * CHUNK_BLOCKS)
        self.kv = self.engine.kv
        self.source = list(range(pages, pages + CHUNKS * CHUNK_BLOCKS))
        self.target = list(range(pages + len(self.source), pages + 2 * len(self.source)))
        fill(self.kv[self.source[0] : self.source[-1] + 1])
        torch.cuda.synchronize()
        self.before = self.kv[: self.target[0]].clone()

    def register(self, session: binding.Session) -> int:
        exported = gpu.export(self.kv.data_ptr(), 0)
        return session.region_register(
            binding.Memory.GPU_IPC,
            layout(self.kv.shape[0]),
            self.kv.numel() * 2,
            gpu=exported,
        )

    def untouched(self) -> bool:
        """Is everything but the targets as it was?"""
        return bool(
            torch.equal(self.kv[: self.target[0]].view(torch.int16), self.before.view(torch.int16))
        )

    def wrong(self) -> int:
        """Elements of the targets that differ from the source."""
        a = self.kv[self.source[0] : self.source[-1] + 1].view(torch.int16)
        b = self.kv[self.target[0] : self.target[-1] + 1].view(torch.int16)
        return int((a != b).sum())

    def relative_error(self) -> list[float]:
        a = self.kv[self.source[0] : self.source[-1] + 1]
        b = self.kv[self.target[0] : self.target[-1] + 1]
        errors = []
        for part in range(2):
            x, y = a[:, :, :, :, part].float(), b[:, :, :, :, part].float()
            errors.append(float((x - y).norm() / x.norm()))
        return errors


def chunk_keys(name: str) -> list[bytes]:
    return [hashlib.sha256(f"{name} {i}".encode()).digest() for i in range(CHUNKS)]


def call(
    session: binding.Session, request: binding.Request, seconds: float = 60
) -> binding.Completion:
    assert session.submit([request]) == 1
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for done in session.poll(timeout_ms=100):
            return done
    raise TimeoutError(f"{request.op.name} did not complete in {seconds} s")


def store_chunks(
    session: binding.Session, region: int, rig: Rig, tier: binding.Tier
) -> dict[str, Any]:
    """All source chunks, captured from the GPU; one at a time, so that none is dropped."""
    begin = time.monotonic()
    capture = []
    for i, key in enumerate(chunk_keys(tier.name)):
        done = call(
            session,
            binding.Request(
                op=binding.Op.STORE,
                user_data=i + 1,
                region=region,
                keys=key,
                blocks=rig.source[i * CHUNK_BLOCKS : (i + 1) * CHUNK_BLOCKS],
                position=256 * i,
                tier=tier,
            ),
        )
        if done.status or done.tokens != 256:
            raise RuntimeError(f"STORE of chunk {i}: status {done.status}, {done.tokens} tokens")
        capture.append(done.elapsed_us / 1e6)
        flushed = call(
            session, binding.Request(op=binding.Op.FLUSH, user_data=10000 + i, deadline_ms=60000)
        )
        assert flushed.status == 0, flushed
    return {
        "capture_gb_s_p50": CHUNK_BYTES / 1e9 / statistics.median(capture),
        "seconds": time.monotonic() - begin,
    }


def fetch_all(
    session: binding.Session, region: int, rig: Rig, tier: binding.Tier
) -> binding.Completion:
    done = call(
        session,
        binding.Request(
            op=binding.Op.FETCH,
            user_data=99,
            region=region,
            keys=b"".join(chunk_keys(tier.name)),
            blocks=rig.target,
            deadline_ms=60000,
        ),
    )
    if done.status or done.tokens != CHUNKS * 256:
        raise RuntimeError(f"FETCH: status {done.status}, {done.tokens} tokens")
    return done


# ---- interference --------------------------------------------------------------------------------


def quantiles(times: list[float]) -> dict[str, float]:
    ordered = sorted(times)
    return {
        "steps": len(ordered),
        "p50_ms": ordered[len(ordered) // 2],
        "p99_ms": ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))],
        "max_ms": ordered[-1],
        "mean_ms": statistics.fmean(ordered),
    }


def beside(rig: Rig, name: str, seconds: float, start: Callable[[], Any]) -> dict[str, Any]:
    """Decode alone, with a mover, alone; the mover's report and the ratios."""
    before = quantiles(rig.engine.decode(seconds / 2))
    mover = start()
    time.sleep(0.3)
    during = quantiles(rig.engine.decode(seconds))
    report = mover.stop()
    torch.cuda.synchronize()
    after = quantiles(rig.engine.decode(seconds / 2))
    ratio = {q: during[q] / ((before[q] + after[q]) / 2) for q in ("p50_ms", "p99_ms", "mean_ms")}
    result = {"case": name, "alone": [before, after], "during": during, "ratio": ratio, **report}
    print(
        f"{name:<42} p50 x{ratio['p50_ms']:.3f}  p99 x{ratio['p99_ms']:.3f}"
        f"  mean x{ratio['mean_ms']:.3f}  {report.get('got_gb_s', 0):6.2f} GB/s of KV",
        flush=True,
    )
    return result


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


def places(rig: Rig, count: int) -> list[list[int]]:
    return [rig.target[i * CHUNK_BLOCKS : (i + 1) * CHUNK_BLOCKS] for i in range(count)]


def fetch_cases(
    rig: Rig, session: binding.Session, region: int, seconds: float
) -> Iterator[dict[str, Any]]:
    for tier in (binding.Tier.STANDARD, binding.Tier.LOSSLESS):
        for rate in RATES:

            def start(tier: binding.Tier = tier, rate: float = rate) -> Fetches:
                mover = Fetches(
                    session, region, chunk_keys(tier.name), places(rig, IN_FLIGHT), rate
                )
                mover.start()
                return mover

            asked = f"{rate:g} GB/s" if rate else "no limit"
            yield beside(rig, f"shadowserve {tier.name.lower()} {asked}", seconds, start)


def gpu_cases(rig: Rig, folder: Path, library: Path, seconds: float) -> Iterator[dict[str, Any]]:
    """Decoding on the GPU: the containers of the standard tier out of the store's folder."""
    files = [folder / key.hex()[:2] / key.hex() for key in chunk_keys("STANDARD")[:4]]
    decoders = [
        GpuDecoder(library, path.read_bytes(), rig.kv.data_ptr(), blocks)
        for path, blocks in zip(files, places(rig, 4), strict=True)
    ]
    yield gpu_check(rig, decoders)
    exported = gpu.export(rig.kv.data_ptr(), 0)
    arguments: list[str] = []
    for path, blocks in zip(files, places(rig, 4), strict=True):
        arguments += [str(path), json.dumps(blocks)]
    for rate in RATES:
        asked = f"{rate:g} GB/s" if rate else "no limit"

        def inside(rate: float = rate) -> GpuDecodes:
            mover = GpuDecodes(decoders, rate)
            mover.start()
            return mover

        def outside(rate: float = rate) -> OtherProcess:
            head = [sys.executable, str(HERE / "other_process.py"), str(library)]
            middle = [exported.handle.hex(), str(exported.offset), str(rate), str(seconds + 1)]
            return OtherProcess([*head, *middle, *arguments])

        yield beside(rig, f"GPU decode, engine's process {asked}", seconds, inside)
        yield beside(rig, f"GPU decode, another process {asked}", seconds, outside)


def gpu_check(rig: Rig, decoders: list[GpuDecoder]) -> dict[str, Any]:
    """Does the kernel give what the daemon gave? All but exceptions and verbatim tokens must."""
    blocks = [block for place in places(rig, 4) for block in place]
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
    for copy_kib in (16, 32, 64, 256, 2048):
        rates = [
            probe.probe_run(to, len(rig.target) * BLOCK_ELEMENTS * 2, copy_kib << 10, seconds / 5)
            for _ in range(5)
        ]
        print(f"probe, copies of {copy_kib} KiB: {statistics.median(rates):.1f} GB/s", flush=True)
        yield {"case": f"probe {copy_kib} KiB", "gb_s": rates, "median": statistics.median(rates)}


# ---- links ---------------------------------------------------------------------------------------


def receive_on(network: netns.Network, host: netns.Host, cores: list[int]) -> None:
    """Receive packet steering of the plane's end; its /sys is that of its namespace."""
    mask = sum(1 << core for core in cores)
    rps = f"/sys/class/net/{host.peer}/queues/rx-0/rps_cpus"
    script = f"mount -t sysfs none /sys && echo {mask:x} > {rps}"
    network.plane.run("unshare", "--mount", "sh", "-c", script)


@contextmanager
def redis_behind_a_link(
    folder: Path, place: dict[str, list[int]]
) -> Iterator[tuple[netns.Network, netns.Host, str]]:
    """A cluster on one host, so behind one link. Packets are received on the workers' cores, as
    they would be by a network card."""
    with netns.Network() as network:
        host = network.add()
        network.join(host)
        receive_on(network, host, place["workers beside redis"])
        pin = ["taskset", "-c", ",".join(map(str, place["redis"]))]
        prefixes = [[*host.namespace.prefix, *pin]] * NODES
        cluster = RedisCluster(folder / "redis", [host.address] * NODES, prefixes, maxmemory="8gb")
        try:
            yield network, host, cluster.uri("lanes=2")
        finally:
            cluster.stop()


def link_cases(rig: Rig, folder: Path, place: dict[str, list[int]]) -> Iterator[dict[str, Any]]:
    """TTFT of a hit of 8,192 tokens: FETCH of all chunks, and one step."""
    with redis_behind_a_link(folder, place) as (network, host, uri):
        daemon = Daemon(folder / "link", uri, place, "workers beside redis", network.plane.prefix)
        session = binding.Session.connect(str(daemon.socket), "gpu-bench", 0, 1)
        try:
            region = rig.register(session)
            store_chunks(session, region, rig, binding.Tier.STANDARD)
            store_chunks(session, region, rig, binding.Tier.LOSSLESS)
            for rate in (5.0, 10.0, 20.0, 40.0, None):
                host.shape(rate)
                for tier in (binding.Tier.STANDARD, binding.Tier.LOSSLESS):
                    yield link_case(rig, session, region, rate, tier)
            yield {"case": "stat of the link's daemon", "stat": json.loads(session.stat())}
        finally:
            session.close()
            daemon.stop()


def link_case(
    rig: Rig, session: binding.Session, region: int, rate: float | None, tier: binding.Tier
) -> dict[str, Any]:
    times, wire = [], 0
    step = quantiles(rig.engine.decode(0.5))["p50_ms"]
    for _ in range(6):
        begin = time.monotonic()
        done = fetch_all(session, region, rig, tier)
        times.append(1e3 * (time.monotonic() - begin))
        wire = done.wire_bytes
    times = times[1:]
    wire_ms = 8e3 * wire / (rate * 1e9) if rate else None
    median = statistics.median(times)
    ratio = (median + step) / (1.15 * wire_ms + step) if wire_ms else None
    name = f"hit {tier.name.lower()} {f'{rate:g} Gbit/s' if rate else 'unshaped'}"
    print(
        f"{name:<34} fetch {median:7.1f} ms, wire {wire_ms or 0:7.1f} ms, step {step:.2f} ms"
        f"  {f'TTFT / goal {ratio:.3f}' if ratio else ''}",
        flush=True,
    )
    return {
        "case": name,
        "fetch_ms": times,
        "fetch_ms_median": median,
        "wire_bytes": wire,
        "wire_ms": wire_ms,
        "step_ms": step,
        "ttft_over_goal": ratio,
    }


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
        yield beside(rig, "connector, staging, lossless", seconds, staged.mover)
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
        yield beside(rig, "registered, idle", args.seconds, Idle)
        yield from fetch_cases(rig, session, region, args.seconds)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    parser.add_argument("--work", type=Path, default=Path("/dev/shm/shadowserve-gpu"))
    parser.add_argument(
        "--library", required=True, help="libgpubench.so: probe.cu and decode_r16.cu"
    )
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--only", default="probe,memory,connector,link,prefill")
    parser.add_argument("--no-decode", dest="decode", action="store_false")
    args = parser.parse_args()
    shutil.rmtree(args.work, ignore_errors=True)
    args.work.mkdir(parents=True)
    # A file store in memory, of huge pages: page by page a read gives 3.5 GB/s of a core.
    tmpfs = ["mount", "-t", "tmpfs", "-o", "huge=always,size=8g", "tmpfs", str(args.work)]
    mounted = subprocess.run(tmpfs, check=False).returncode == 0
    place = cores()
    os.sched_setaffinity(0, place["engine"])
    rig = Rig(args.batch, args.context)
    os.environ["LD_LIBRARY_PATH"] = (
        f"{os.environ.get('LD_LIBRARY_PATH', '')}:{gpu_memory.driver_folder()}"
    )
    report: dict[str, Any] = {
        "huge_tmpfs": mounted,
        "machine": {**machine(), "places": place, "huge_pages": reserve_huge_pages(HUGE_PAGES)},
        "batch": args.batch,
        "context": args.context,
        "results": [],
    }
    parts: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
        "probe": lambda: probe_cases(rig, Path(args.library), args.seconds),
        "memory": lambda: memory_cases(rig, args.work, place, args),
        "connector": lambda: connector_cases(rig, args.work, place, args.seconds),
        "link": lambda: link_cases(rig, args.work, place),
        "prefill": lambda: iter([{"case": "prefill 8192", "ms": rig.engine.prefill(8192)}]),
    }
    failed = False
    args.out.mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        if name not in args.only.split(","):
            continue
        try:
            report["results"].extend(part())
        except Exception as error:  # a part that fails must not lose the others' results
            failed = True
            report["results"].append({"case": name, "error": repr(error)})
            print(f"{name}: {error!r}", flush=True)
        (args.out / f"gpu-batch{args.batch}.json").write_text(json.dumps(report, indent=1))
    shutil.rmtree(args.work, ignore_errors=True)
    if mounted:
        subprocess.run(["umount", "--lazy", str(args.work)], check=False)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
