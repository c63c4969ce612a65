# SPDX-License-Identifier: Apache-2.0
"""A card and a relay in front of it."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

from authority import Authority
from daemon_rig import BUILD, Daemon

ROOT = Path(__file__).resolve().parents[2]
# An emulated card has its relay on this machine.
RELAY_BUILD = ROOT / "build" / "release" if BUILD.name == "aarch64-run" else BUILD


def port_of(daemon: Daemon) -> int:
    found = re.search(r"tls_port=(\d+)", daemon.greeting)
    assert found
    return int(found[1])


class Relay(Daemon):
    """A shadowserve-relay; what an engine needs of a daemon it has as well."""

    program = RELAY_BUILD / "relay" / "shadowserve-relay"

    def __init__(self, folder: Path, name: str, card: str, **keys: object) -> None:
        super().__init__(folder, name, card=card, **keys)

    def defaults(self, folder: Path) -> dict[str, str]:
        return {"data_listen": "127.0.0.1:0", "call_timeout_ms": "10000"}

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
