# SPDX-License-Identifier: Apache-2.0
"""What part `serve` measures with: a Redis behind a shaped link, a daemon that can be exchanged and
moved to another core, and one vLLM engine that lives through all of it.

Core ENGINE is the engine's alone, core PLANE everything else's: daemon, Redis, the kernel's work
for the link, and this process, which is the clients. One database of the Redis a tier, since a
chunk's key does not tell its tier.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import vllm_settings
from host_redis import HostRedis
from netns import DIES_WITH_US, Network
from part import CORES, pinned
from servers import BUILD, PROFILES, ROOT, Server, ServerError

ENGINE, PLANE = CORES[0], CORES[-1]
ANSWER_S = 90.0
KV_BYTES = 512 << 20
DEADLINE_MS = 10000


class ServeDaemon(Server):
    def __init__(self, folder: Path, network: Network, store: str, *options: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.socket = folder / "shadowserved.sock"
        self.socket.unlink(missing_ok=True)
        program = str(BUILD / "daemon" / "shadowserved")
        command = [*network.plane.prefix, *pinned(PLANE), program, "--socket", str(self.socket)]
        command += ["--store", store, "--workers", "1", "--profiles", str(PROFILES), *options]
        super().__init__("shadowserved", command, folder)
        self.wait_ready()

    def ready(self) -> bool:
        return self.socket.exists()

    def move(self, core: int) -> None:
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            os.sched_setaffinity(int(task.name), [core])

    def stat(self) -> dict[str, Any]:
        program = str(BUILD / "cli" / "shadowserve")
        out = subprocess.run(
            [program, "stat", "--json", "--socket", str(self.socket)],
            capture_output=True,
            check=True,
            timeout=30,
        )
        answer: dict[str, Any] = json.loads(out.stdout)
        return answer


def cpu_seconds(pid: int) -> float:
    """What a process has run, to the nanosecond, its threads summed."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


class EngineProcess:
    """bench/serve_engine.py: orders to it, answers from it. prefix: what it runs under."""

    def __init__(
        self, folder: Path, model: Path, socket_path: Path, prefix: Sequence[str] = ()
    ) -> None:
        self.log = folder / "engine.log"
        script = str(ROOT / "bench" / "serve_engine.py")
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*DIES_WITH_US, *prefix, *pinned(ENGINE), sys.executable, script],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=vllm_settings.environment(),
            )
        self._rest = b""
        self._lines: list[bytes] = []
        self._number = 0
        self.tell(
            model=str(model),
            cores=[ENGINE],
            socket=str(socket_path),
            kv_bytes=KV_BYTES,
            deadline_ms=DEADLINE_MS,
        )
        self.hear("ready")

    def tell(self, **order: Any) -> None:
        assert self.process.stdin
        self.process.stdin.write((json.dumps(order) + "\n").encode())
        self.process.stdin.flush()

    def poll(self, timeout_s: float) -> dict[str, Any] | None:
        """The next answer, or None when none came in time."""
        assert self.process.stdout
        file = self.process.stdout.fileno()
        deadline = time.monotonic() + timeout_s
        while not self._lines:
            left = deadline - time.monotonic()
            if not select.select([file], [], [], max(0.0, left))[0]:
                return None
            got = os.read(file, 1 << 16)
            if not got:
                raise ServerError(f"the engine ended:\n{self.log.read_text()[-2000:]}")
            *lines, self._rest = (self._rest + got).split(b"\n")
            self._lines = [line for line in lines if line.startswith(b"{")]
        answer: dict[str, Any] = json.loads(self._lines.pop(0))
        return answer

    def hear(self, event: str) -> dict[str, Any]:
        """The next answer of a kind; others are passed over."""
        deadline = time.monotonic() + ANSWER_S
        while (left := deadline - time.monotonic()) > 0:
            answer = self.poll(left)
            if answer and answer["event"] == event:
                return answer
        self.stop()
        raise ServerError(f"no {event!r} of the engine within {ANSWER_S:.0f} s")

    def do(self, what: str, **fields: Any) -> dict[str, Any]:
        self.tell(do=what, **fields)
        return self.hear("ok")

    def add(self, prompt: str, max_tokens: int, due: float | None = None, **fields: Any) -> str:
        self._number += 1
        name = str(self._number)
        due = time.monotonic() if due is None else due
        self.tell(do="add", id=name, prompt=prompt, max_tokens=max_tokens, due=due, **fields)
        return name

    def alone(self, prompt: str, max_tokens: int = 2, **fields: Any) -> dict[str, Any]:
        """One request by itself."""
        self.add(prompt, max_tokens, **fields)
        return self.hear("done")

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                pipe.close()


def documents(model: Path, count: int, tokens: int) -> dict[str, list[int]]:
    """Prompts cut from the project's own text: docs, then sources."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    files = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    files += sorted((ROOT / "src").rglob("*.[hc]"))
    ids: list[int] = []
    for file in files:
        if len(ids) >= count * tokens:
            break
        ids += tokenizer.encode(file.read_text(), add_special_tokens=False).ids
    if len(ids) < count * tokens:
        raise ServerError(f"the documents give {len(ids)} tokens, {count * tokens} are needed")
    return {f"doc{i}": ids[i * tokens : (i + 1) * tokens] for i in range(count)}


class Rig:
    """All of it. use() exchanges the daemon under the running engine."""

    def __init__(self, out: Path, model: Path, prompts: dict[str, list[int]]) -> None:
        self.out = out
        self.daemon: ServeDaemon | None = None
        self._tier = ""
        self._stack = contextlib.ExitStack()
        os.sched_setaffinity(0, [PLANE])
        try:
            self.network = self._stack.enter_context(Network())
            self.host = self.network.add()
            self.network.join(self.host)
            self.redis = HostRedis(out, self.host, PLANE)
            self._stack.callback(self.redis.stop)
            self._stack.callback(self._stop_daemon)
            self._start("lossless", 0, "lossless", "r16")
            assert self.daemon
            self.engine: EngineProcess = EngineProcess(out, model, self.daemon.socket)
            self._stack.callback(self.engine.stop)
            file = out / "prompts.json"
            file.write_text(json.dumps(prompts))
            self.engine.do("prompts", file=str(file))
        except BaseException:
            self.close()
            raise

    def _stop_daemon(self) -> None:
        if self.daemon:
            self.daemon.stop()

    def _start(self, name: str, database: int, tier: str, codec: str) -> None:
        options = ("--tier", tier, "--codec", codec, "--arena", "1GiB")
        self.daemon = ServeDaemon(self.out, self.network, self.redis.uri(database), *options)
        self._tier = name

    def use(self, name: str, database: int, tier: str, codec: str) -> None:
        """A daemon of this tier on its database; the engine finds it by itself."""
        if name == self._tier:
            return
        assert self.daemon
        self.engine.do("settle")
        self.daemon.stop()
        self.engine.do("lost")
        self._start(name, database, tier, codec)
        self.engine.do("connect")

    def link(self, gbit: float | None) -> None:
        self.host.shape(gbit)

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()


def arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """Times of a Poisson process of this rate, from 0 to seconds."""
    source, at, times = random.Random(seed), 0.0, []
    while (at := at + source.expovariate(rate)) < seconds:
        times.append(at)
    return times
