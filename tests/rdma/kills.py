# SPDX-License-Identifier: Apache-2.0
"""In the guest: each party killed at any moment, as tests/relay/test_kills.py does it over the way
tcp, here over the way rdma. Everything is on one machine, so the link is two devices: that of the
RDMA device and the loopback, over which sessions and store are reached.

usage: kills.py VICTIM; SSV_SEED, SSV_ROUNDS
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import kill_rig

CERTIFICATES = Path("/tests")


class Guest(kill_rig.Scene):
    """Parties on one machine with an RDMA device."""

    way = "rdma"
    card_timeout_ms, fetch_deadline_ms = 8000, 8000  # everything is slow here

    def cut(self, choose: random.Random) -> Callable[[], None]:
        devices = choose.choice((["rdma0"], ["lo"], ["rdma0", "lo"]))
        self._set(devices, "down")
        return lambda: self._set(devices, "up")

    def _set(self, devices: list[str], state: str) -> None:
        for device in devices:
            subprocess.run(["ip", "link", "set", device, state], check=True)


def certificate(name: str, san: str = "") -> dict[str, str]:
    """Made before the guest was (guest.py); for 127.0.0.1."""
    return {
        "tls_cert": str(CERTIFICATES / f"{name}.pem"),
        "tls_key": str(CERTIFICATES / f"{name}.key"),
        "tls_ca": str(CERTIFICATES / "ca.pem"),
    }


def main() -> int:
    victim, rounds = sys.argv[1], int(os.environ.get("SSV_ROUNDS", "2"))
    seed = int(os.environ.get("SSV_SEED", "0")) or random.SystemRandom().getrandbits(32)
    folder = Path(tempfile.mkdtemp(prefix="ssv-"))
    scene = Guest(folder, certificate)
    try:
        print(kill_rig.Kills(scene, victim, seed).run(rounds), flush=True)
    except BaseException:
        for name in ("card", "relay"):
            lines = (folder / f"{name}.log").read_text().splitlines()
            print(f"{name}:", *lines[-30:], sep="\n", flush=True)
        raise
    finally:
        scene.discard()
    print("[  PASSED  ] 1 test(s).")
    return 0


if __name__ == "__main__":
    sys.exit(main())
