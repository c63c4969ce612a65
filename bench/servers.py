# SPDX-License-Identifier: Apache-2.0
"""Real servers that the demo and the benchmarks start and stop: a Redis and a shadowserved.

Each runs in a folder of its own, on a free port or a socket there, and is ended by its pid.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BUILD = Path(os.environ.get("SHADOWSERVE_BUILD", ROOT / "build" / "release"))
START_TIMEOUT_S = 20.0


class ServerError(RuntimeError):
    """A server did not come up; the text holds the end of its log."""


class Server:
    """A child process that is up once ready() says so."""

    def __init__(self, name: str, command: list[str], folder: Path) -> None:
        self.name, self.log = name, folder / f"{name}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)

    def ready(self) -> bool:
        raise NotImplementedError

    def wait_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self.ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise ServerError(f"{self.name} did not start:\n{self.log.read_text()[-2000:]}")
            time.sleep(0.02)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


class Redis(Server):
    def __init__(self, folder: Path, maxmemory: str = "2gb") -> None:
        program = shutil.which("redis-server")
        if not program:
            raise ServerError("redis-server is not installed: apt-get install redis-server")
        folder.mkdir(parents=True, exist_ok=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        options = f"--port {self.port} --bind 127.0.0.1 --appendonly no --dir {folder}"
        options += f" --maxmemory {maxmemory} --maxmemory-policy allkeys-lru"
        super().__init__("redis", [program, *options.split(), "--save", ""], folder)
        self.uri = f"redis://127.0.0.1:{self.port}/0"
        self.wait_ready()

    def ready(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as link:
                link.sendall(b"PING\r\n")
                return link.recv(16).startswith(b"+PONG")
        except OSError:
            return False


class Daemon(Server):
    def __init__(
        self, folder: Path, store: str, cores: list[int], tier: str, *options: str
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.socket = folder / "shadowserved.sock"
        command = [str(BUILD / "daemon" / "shadowserved"), "--socket", str(self.socket)]
        command += ["--store", store, "--tier", tier, "--workers", "1"]
        command += ["--cores", ",".join(map(str, cores[:1]))]
        super().__init__("shadowserved", [*command, *options], folder)
        self.wait_ready()

    def ready(self) -> bool:
        return self.socket.exists()

    def stat(self) -> dict[str, Any]:
        program = str(BUILD / "cli" / "shadowserve")
        out = subprocess.run(
            [program, "stat", "--json", "--socket", str(self.socket)],
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
        answer: dict[str, Any] = json.loads(out.stdout)
        return answer

    def fetched(self) -> tuple[int, int]:
        """Compressed and plain bytes fetched so far."""
        counters = self.stat()["counters"]
        return counters["fetch_wire_bytes"], counters["fetch_kv_bytes"]
