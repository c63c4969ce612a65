# SPDX-License-Identifier: Apache-2.0
"""Engine host, card and store as three hosts: network namespaces on links of one rate.

    engine host ---- card (routes between the two) ---- store: a real Redis

Whoever talks to a daemon or a relay by its Unix socket may run anywhere, for namespaces concern
the network alone. Everything ends with the stack.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from authority import Authority
from netns import Network
from servers import BUILD, Server, SocketRedis

REDIS_PORT = 6379  # of a namespace of its own


class Program(Server):
    """A shadowserved or shadowserve-relay that serves a Unix socket."""

    def __init__(
        self, name: str, program: str, folder: Path, prefix: Sequence[str], **keys: object
    ) -> None:
        self.socket = Path(str(keys.setdefault("socket", folder / f"{name}.sock")))
        self.socket.unlink(missing_ok=True)
        flags = [f"--{key.replace('_', '-')}={value}" for key, value in keys.items()]
        super().__init__(name, [*prefix, str(BUILD / program), *flags], folder)
        self.wait_ready()

    def ready(self) -> bool:
        return self.socket.exists() and self.greeting() != ""

    def greeting(self) -> str:
        """The line that says what it serves; it comes when the socket answers."""
        lines = self.log.read_text().splitlines(keepends=True)
        return next((line for line in lines if " pid=" in line and line.endswith("\n")), "")

    def port(self, name: str) -> int:
        return int(self.greeting().split(f"{name}=")[1].split()[0])

    @property
    def pid(self) -> int:
        return self.process.pid

    def stat(self) -> dict[str, Any]:
        program = str(BUILD / "cli" / "shadowserve")
        command = [program, "stat", "--json", "--socket", str(self.socket)]
        said = subprocess.run(command, capture_output=True, check=True, timeout=30).stdout
        answer: dict[str, Any] = json.loads(said)
        return answer


class ThreeHosts:
    """store_prefix: what Redis runs under besides its namespace, a core (part.pinned)."""

    def __init__(
        self, stack: ExitStack, folder: Path, gbit: float, store_prefix: Sequence[str] = ()
    ) -> None:
        self.folder, self.stack = folder, stack
        self.network = stack.enter_context(Network())
        self.engine, self.store = self.network.add(), self.network.add()
        for host in (self.engine, self.store):
            self.network.join(host)
        self.shape(gbit)
        options = ["--port", str(REDIS_PORT), "--bind", self.store.address, "--appendonly", "no"]
        prefix = [*self.store.namespace.prefix, *store_prefix]
        self.redis = SocketRedis("redis", folder, options, prefix)
        stack.callback(self.redis.stop)
        self.uri = f"redis://{self.store.address}:{REDIS_PORT}/0?lanes=4"
        self._authority: Authority | None = None

    def shape(self, gbit: float) -> None:
        """Both directions of both links."""
        for host in (self.engine, self.store):
            host.shape(gbit)
            self.network.shape(host, gbit)

    def certificate(self, name: str, san: str = "") -> dict[str, str]:
        self._authority = self._authority or Authority(self.folder)
        return self._authority.sign(name, san)

    def _run(self, name: str, program: str, where: Sequence[str], keys: dict[str, Any]) -> Program:
        made = Program(name, program, self.folder, where, **keys)
        self.stack.callback(made.stop)
        return made

    def card(self, prefix: Sequence[str] = (), **keys: object) -> Program:
        """shadowserved on the card, for relays and for who knows its socket."""
        address = self.engine.gateway
        tls = {**self.certificate("card", f"IP:{address}"), "tls_names": "host"}
        keys = {"store": self.uri, "listen_tls": f"{address}:0", **tls, **keys}
        where = [*self.network.plane.prefix, *prefix]
        return self._run("card", "daemon/shadowserved", where, keys)

    def relay(self, card: Program, prefix: Sequence[str] = (), **keys: object) -> Program:
        """shadowserve-relay on the engine's host."""
        address = f"{self.engine.gateway}:{card.port('tls_port')}"
        keys = {"card": address, **self.certificate("host"), **keys}
        where = [*self.engine.namespace.prefix, *prefix]
        return self._run("relay", "relay/shadowserve-relay", where, keys)

    def daemon(self, prefix: Sequence[str] = (), **keys: object) -> Program:
        """shadowserved on the engine's host itself."""
        where = [*self.engine.namespace.prefix, *prefix]
        return self._run("in-host", "daemon/shadowserved", where, {"store": self.uri, **keys})
