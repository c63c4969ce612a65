# SPDX-License-Identifier: Apache-2.0
"""Real servers that demo, benchmarks and tests start and stop: Redis, a cluster, a shadowserved.

Each runs in a folder of its own, on a free port or a socket there, and is ended by its pid.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

ROOT = Path(__file__).resolve().parent.parent
BUILD = Path(os.environ.get("SHADOWSERVE_BUILD", ROOT / "build" / "release"))
PROFILES = ROOT / "models" / "profiles"  # of the models here, as the daemon takes them
START_TIMEOUT_S = 20.0


class ServerError(RuntimeError):
    """A server did not come up; the text holds the end of its log."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def redis_program() -> str:
    program = shutil.which("redis-server")
    if not program:
        raise ServerError("redis-server is not installed: apt-get install redis-server")
    return program


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
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        options = f"--port {self.port} --bind 127.0.0.1 --appendonly no --dir {folder}"
        options += f" --maxmemory {maxmemory} --maxmemory-policy allkeys-lru"
        super().__init__("redis", [redis_program(), *options.split(), "--save", ""], folder)
        self.uri = f"redis://127.0.0.1:{self.port}/0"
        self.wait_ready()

    def ready(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as link:
                link.sendall(b"PING\r\n")
                return link.recv(16).startswith(b"+PONG")
        except OSError:
            return False


class SocketRedis(Server):
    """A Redis that takes commands over a Unix socket, whatever namespace it runs in. prefix: the
    command that it runs under (a namespace, a core)."""

    def __init__(
        self, name: str, folder: Path, options: Sequence[str], prefix: Sequence[str] = ()
    ) -> None:
        self.socket = folder / "redis.sock"
        command = [*prefix, redis_program(), "--unixsocket", str(self.socket)]
        command += ["--dir", str(folder), "--protected-mode", "no", "--save", "", *options]
        super().__init__(name, command, folder)
        self.wait_ready()

    def ready(self) -> bool:
        try:
            return bool(self.command("PING") == "PONG")
        except (OSError, ServerError):
            return False

    def command(self, *words: str | int) -> Any:
        """The reply as text, number, None or a list of these. ServerError: what Redis refused."""
        texts = [str(word).encode() for word in words]
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(START_TIMEOUT_S)
            link.connect(str(self.socket))
            parts = [b"$%d\r\n%s\r\n" % (len(text), text) for text in texts]
            link.sendall(b"*%d\r\n" % len(parts) + b"".join(parts))
            with link.makefile("rb") as answer:
                return self._reply(answer)

    def _reply(self, answer: BinaryIO) -> Any:
        line = answer.readline().decode().rstrip("\r\n")
        mark, text = line[:1], line[1:]
        if mark == "-" or not mark:
            raise ServerError(f"{self.name}: {text or 'no answer'}")
        if mark == "$":
            return None if text == "-1" else answer.read(int(text) + 2)[:-2].decode()
        if mark == "*":
            return [self._reply(answer) for _ in range(int(text))]
        return int(text) if mark == ":" else text


class ClusterNode(SocketRedis):
    """A Redis of a cluster."""

    def __init__(
        self, folder: Path, number: int, bind: str, prefix: Sequence[str], options: Sequence[str]
    ) -> None:
        self.folder = folder / f"node{number}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.bind, self.port, self.bus_port = bind, free_port(), free_port()
        cluster = ["--port", str(self.port), "--bind", bind]
        cluster += ["--cluster-enabled", "yes", "--cluster-port", str(self.bus_port)]
        cluster += ["--cluster-announce-ip", bind]
        cluster += ["--appendonly", "no", "--repl-diskless-sync-delay", "0"]
        super().__init__(f"redis{number}", self.folder, [*cluster, *options], prefix)
        self.id = str(self.command("CLUSTER", "MYID"))

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class RedisCluster:
    """A Redis Cluster: one master a bind, each with `replicas` replicas, slots shared equally.

    binds are the addresses that nodes listen on and announce; prefixes, one a bind, are commands
    that they run under (a namespace, a core): a shaped host each makes a shaped node each.
    """

    SLOTS = 16384

    def __init__(
        self,
        folder: Path,
        binds: Sequence[str] = ("127.0.0.1",) * 3,
        prefixes: Sequence[Sequence[str]] = (),
        replicas: int = 0,
        node_timeout_ms: int = 2000,
        maxmemory: str = "2gb",
    ) -> None:
        options = ["--cluster-node-timeout", str(node_timeout_ms), "--maxmemory", maxmemory]
        options += ["--cluster-require-full-coverage", "no", "--maxmemory-policy", "allkeys-lru"]
        options += ["--cluster-replica-validity-factor", "0"]
        places = list(zip(binds, prefixes or [()] * len(binds), strict=True))
        self.nodes: list[ClusterNode] = []
        self.masters = len(places)
        try:
            for number, (bind, prefix) in enumerate(places * (1 + replicas)):
                self.nodes.append(ClusterNode(folder, number, bind, prefix, options))
            self._join()
        except BaseException:
            self.stop()
            raise

    def _join(self) -> None:
        for number, node in enumerate(self.nodes[: self.masters]):
            first = number * self.SLOTS // self.masters
            end = (number + 1) * self.SLOTS // self.masters
            node.command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            node.command("CLUSTER", "ADDSLOTSRANGE", first, end - 1)
        for node in self.nodes[1:]:
            self.nodes[0].command("CLUSTER", "MEET", node.bind, node.port, node.bus_port)
        self._await("CLUSTER INFO", f"cluster_known_nodes:{len(self.nodes)}\r")
        for number, node in enumerate(self.nodes[self.masters :]):
            node.command("CLUSTER", "REPLICATE", self.nodes[number % self.masters].id)
        self._await("INFO replication", "master_link_status:up", self.nodes[self.masters :])
        self._await("CLUSTER INFO", "cluster_state:ok")
        self._await("CLUSTER INFO", f"cluster_slots_ok:{self.SLOTS}")

    def _await(self, command: str, text: str, nodes: Sequence[ClusterNode] | None = None) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        for node in self.nodes if nodes is None else nodes:
            while text not in node.command(*command.split()):
                if time.monotonic() > deadline:
                    raise ServerError(f"{node.name}: {command} never says {text.strip()}")
                time.sleep(0.02)

    def uri(self, options: str = "") -> str:
        hosts = ",".join(f"{node.bind}:{node.port}" for node in self.nodes)
        return f"redis+cluster://{hosts}{'?' if options else ''}{options}"

    def keys(self) -> list[int]:
        """Keys on each master."""
        return [int(node.command("DBSIZE")) for node in self.nodes[: self.masters]]

    def move_slot(
        self, slot: int, source: int, target: int, between: Callable[[], object] = lambda: None
    ) -> None:
        """Moves a slot with its keys; between() is called after each key and before the end."""
        giver, taker = self.nodes[source], self.nodes[target]
        taker.command("CLUSTER", "SETSLOT", slot, "IMPORTING", giver.id)
        giver.command("CLUSTER", "SETSLOT", slot, "MIGRATING", taker.id)
        while keys := giver.command("CLUSTER", "GETKEYSINSLOT", slot, 1):
            between()
            giver.command("MIGRATE", taker.bind, taker.port, keys[0], 0, 5000, "REPLACE")
        between()
        for node in (taker, giver):
            node.command("CLUSTER", "SETSLOT", slot, "NODE", taker.id)

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()


class Daemon(Server):
    def __init__(
        self, folder: Path, store: str, cores: list[int], tier: str, *options: str
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.socket = folder / "shadowserved.sock"
        command = [str(BUILD / "daemon" / "shadowserved"), "--socket", str(self.socket)]
        command += ["--store", store, "--tier", tier, "--workers", "1"]
        command += ["--cores", ",".join(map(str, cores[:1]))]
        command += ["--profiles", str(PROFILES)]
        super().__init__("shadowserved", [*command, *options], folder)
        self.wait_ready()

    def ready(self) -> bool:
        return self.socket.exists()

    def stat(self, *options: str) -> dict[str, Any]:
        program = str(BUILD / "cli" / "shadowserve")
        out = subprocess.run(
            [program, "stat", "--json", "--socket", str(self.socket), *options],
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
