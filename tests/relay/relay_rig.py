# SPDX-License-Identifier: Apache-2.0
"""A card and a relay in front of it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

from authority import Authority
from daemon_rig import BUILD, SOON_S, Daemon, flags

ROOT = Path(__file__).resolve().parents[2]
# An emulated card has its relay on this machine.
RELAY_BUILD = ROOT / "build" / "release" if BUILD.name == "aarch64-run" else BUILD
PROGRAM = RELAY_BUILD / "relay" / "shadowserve-relay"


def port_of(daemon: Daemon) -> int:
    found = re.search(r"tls_port=(\d+)", daemon.greeting)
    assert found
    return int(found[1])


class Relay(Daemon):
    """A shadowserve-relay; what an engine needs of a daemon it has as well."""

    def __init__(self, folder: Path, name: str, card: str, **keys: object) -> None:
        self.socket = str(keys.pop("socket", folder / f"{name}.sock"))
        self.prefix: list[str] = []
        self.log = folder / f"{name}.log"
        self.keys = {
            "card": card,
            "log_level": "debug",
            "log_file": str(self.log),
            "socket": self.socket,
            "data_listen": "127.0.0.1:0",
            "call_timeout_ms": "10000",
        }
        self.keys.update({key: str(value) for key, value in keys.items()})
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> Relay:
        self.process = subprocess.Popen(
            [*self.prefix, PROGRAM, *flags(dict(self.keys))],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout
        self.greeting = self.process.stdout.readline()
        if not self.greeting:
            _, errors = self.process.communicate(timeout=SOON_S)
            raise AssertionError(f"exit {self.process.returncode}: {errors}")
        return self

    @property
    def data_port(self) -> int:
        found = re.search(r"data_port=(\d+)", self.greeting)
        assert found
        return int(found[1])


class Relayed:
    """A card and a relay in front of it: to an engine one daemon."""

    def __init__(self, folder: Path, authority: Authority, **keys: object) -> None:
        relay_keys = {k: keys.pop(k) for k in ("card_timeout_ms", "call_timeout_ms") if k in keys}
        self.folder, self.authority = folder, authority
        self.card_keys = {**authority.sign("card", "IP:127.0.0.1"), **keys}
        self.relay_keys = {**authority.sign("host"), **relay_keys}
        self.card = Daemon(folder, "card", listen_tls="127.0.0.1:0", **self.card_keys).start()
        self.relay = Relay(folder, "relay", self.card_address, **self.relay_keys).start()

    @property
    def card_address(self) -> str:
        return f"127.0.0.1:{port_of(self.card)}"

    @property
    def socket(self) -> str:
        return self.relay.socket

    def card_again(self) -> None:
        """The card at its old address, after its death."""
        keys = {**self.card_keys, "listen_tls": self.card_address}
        self.card = Daemon(self.folder, "card", **keys).start()

    def relay_again(self) -> None:
        self.relay = Relay(self.folder, "relay", self.card_address, **self.relay_keys).start()

    def kill(self, which: Daemon) -> None:
        os.kill(which.pid, signal.SIGKILL)
        assert which.process
        which.process.wait()

    def discard(self) -> None:
        for process in (self.relay, self.card):
            process.discard()
