# SPDX-License-Identifier: Apache-2.0
"""Engine host, card and store as three hosts: network namespaces joined by shaped links.

The relay runs in the first, shadowserved in the second, a real Redis in the third. The engine's
library talks to its relay by a Unix socket, which no namespace concerns. `pytest -s` prints what a
GB fetched costs in processor time on the engine's host, beside a daemon on that host itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import daemon_rig
import netns
import pytest
from daemon_rig import SANITIZED, Daemon, Engine, keys
from relay_rig import Authority, Relay, port_of
from serve_rig import cpu_seconds
from three_hosts import ThreeHosts

RATE_GBIT = 10.0
BLOCKS = 128  # of the region: half of it is stored, the other half fetched into
CHUNKS = 8
SOURCE, TARGET = list(range(64)), list(range(64, 128))
FETCHES = 4 if SANITIZED else 32


class Hosts:
    """The engine's host and the store's, each on a link of its own to the card."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self.folder, self.stack = folder, stack
        self.three = ThreeHosts(stack, folder, RATE_GBIT)
        self.engine = self.three.engine

    def daemon(self, name: str, prefix: list[str], **keys: object) -> Daemon:
        daemon = Daemon(self.folder, name, store=self.three.uri, arena="256MiB", **keys)
        daemon.prefix = prefix
        self.stack.callback(daemon.discard)
        return daemon.start()

    def card_and_relay(self) -> tuple[Daemon, Relay]:
        authority, address = Authority(self.folder), self.engine.gateway
        card = self.daemon(
            "card",
            self.three.network.plane.prefix,
            listen_tls=f"{address}:0",
            tls_names="host",
            **authority.sign("card", f"IP:{address}"),
        )
        relay = Relay(
            self.folder,
            "relay",
            f"{address}:{port_of(card)}",
            data_listen="0.0.0.0:0",
            **authority.sign("host"),
        )
        relay.prefix = self.engine.namespace.prefix
        self.stack.callback(relay.discard)
        return card, relay.start()


@pytest.fixture
def hosts(folder: Path) -> Iterator[Hosts]:
    if reason := netns.why_not():
        pytest.skip(reason)
    with ExitStack() as stack:
        yield Hosts(stack, folder)


def fetch_again_and_again(engine: Engine, what: Daemon) -> float:
    """Fetches the stored chunks; the processor time of a process, ms for each GB of KV."""
    kv_bytes = len(TARGET) * daemon_rig.region_bytes(1)
    before = cpu_seconds(what.pid)
    for _ in range(FETCHES):
        fetched = engine.do(engine.fetch(keys(1, CHUNKS), TARGET))
        assert (fetched.status, fetched.tokens) == (0, CHUNKS * 256)
    return (cpu_seconds(what.pid) - before) * 1e3 / (FETCHES * kv_bytes / 1e9)


def test_chunks_go_through_three_hosts_bit_exact(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon_rig, "LAYERS", 16)  # chunks of 2 MiB
    card, relay = hosts.card_and_relay()
    engine = Engine(relay, BLOCKS)
    engine.memory.fill(1, SOURCE)
    before = engine.memory.read(SOURCE)
    assert engine.do(engine.store(keys(1, CHUNKS), SOURCE)).status == 0
    assert engine.flush().status == 0
    assert hosts.three.redis.command("DBSIZE") == CHUNKS
    assert engine.lookup(keys(1, CHUNKS)) == CHUNKS * 256
    through = fetch_again_and_again(engine, relay)
    assert engine.memory.read(TARGET) == before
    engine.close()

    beside = hosts.daemon("in-host", hosts.engine.namespace.prefix)
    engine = Engine(beside, BLOCKS)
    in_host = fetch_again_and_again(engine, beside)
    assert engine.memory.read(TARGET) == before
    engine.close()
    print(f"\nms a GB on the engine's host: relay {through:.0f}, daemon of its own {in_host:.0f}")
    assert card.stop() == 0
