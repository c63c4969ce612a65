# SPDX-License-Identifier: Apache-2.0
"""Each party is killed at any moment: the others stay well, and no byte is written that no fetch
was granted (kill_rig.py). SSV_SEED repeats a run, SSV_ROUNDS says how often each is killed.

Where namespaces can be made, engine host, card and store are three hosts; the link can be cut
only there.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import netns
import pytest
from daemon_rig import SANITIZED
from kill_rig import VICTIMS, Kills, Scene
from relay_rig import Authority

ROUNDS = int(os.environ.get("SSV_ROUNDS", "3" if SANITIZED else "8"))


class Hosts(Scene):
    """Three hosts; links between engine's host and card, and card and store."""

    def __init__(self, folder: Path, authority: Authority, network: netns.Network) -> None:
        self.network = network
        self.hosts = [network.add(), network.add()]
        for host in self.hosts:
            network.join(host)
        self.card_address = self.hosts[0].gateway
        self.store_address = self.hosts[1].address
        super().__init__(folder, authority.sign)

    def prefix(self, host: str) -> list[str]:
        if host == "card":
            return self.network.plane.prefix
        return self.hosts[host == "store"].namespace.prefix

    def cut(self, choose: random.Random) -> Callable[[], None]:
        """One of the two links: an end without a carrier, or packets of one direction that nobody
        takes."""
        host = choose.choice(self.hosts)
        near, far = host.namespace, self.network.plane
        kind = choose.choice(("down here", "down there", "lost there", "lost back"))
        if kind.startswith("down"):
            end, device = (near, host.device) if kind == "down here" else (far, host.peer)
            end.run("ip", "link", "set", device, "down")
            return lambda: self._up(host, end, device)
        end, device, to = (near, host.device, host.gateway)
        if kind == "lost back":
            end, device, to = (far, host.peer, host.address)
        place = ("ip", "neigh", "replace", to, "dev", device)
        end.run(*place, "lladdr", "02:00:00:00:00:99", "nud", "permanent")
        return lambda: end.run("ip", "neigh", "del", to, "dev", device) and None

    def _up(self, host: netns.Host, end: netns.Namespace, device: str) -> None:
        end.run("ip", "link", "set", device, "up")


@pytest.fixture
def scene(folder: Path, authority: Authority) -> Iterator[Scene]:
    if netns.why_not():
        one = Scene(folder, authority.sign)
        yield one
        one.discard()
        return
    with netns.Network() as network:
        one = Hosts(folder, authority, network)
        yield one
        one.discard()


@pytest.mark.parametrize("victim", VICTIMS)
def test_a_party_is_killed_at_any_moment(scene: Scene, victim: str) -> None:
    if victim == "link" and not isinstance(scene, Hosts):
        pytest.skip(f"the link cannot be cut: {netns.why_not()}")
    seed = int(os.environ.get("SSV_SEED", "0")) or random.SystemRandom().getrandbits(32)
    print(f"SSV_SEED={seed}")
    print(Kills(scene, victim, seed).run(ROUNDS))
