# SPDX-License-Identifier: Apache-2.0
"""What fetches without pause on one core cost requests that decode on the other (figure 9).

Windows with fetches lie between windows without: a step takes longer the longer its text is, so
each window is compared with the mean of its two neighbours. Beside the daemon's fetches, in the
same way: a bare loop that receives values from the same Redis over the same link and looks at
nothing, which is what the link, the kernel and Redis cost by themselves on a machine whose cores
share their cache and memory.
"""

from __future__ import annotations

import itertools
import signal
import subprocess
import time
from collections.abc import Sequence
from typing import Any

from host_redis import PORT
from netns import DIES_WITH_US
from part import Wrong, pinned
from serve_report import percentiles
from serve_rig import PLANE, EngineProcess, Rig
from servers import BUILD

ENDLESS_TOKENS = 6500
SETTLE_S = 0.1  # after a client was stopped or goes on
STORING_S = 20.0  # the most that made-up chunks may take
LOOP_VALUES, LOOP_VALUE_BYTES = 16, 2 << 20


class Beside:
    """Two requests decode while clients of the other core run and stand still by turns."""

    def __init__(self, rig: Rig, engine: EngineProcess, windows: int, window_s: float) -> None:
        self.rig, self.engine = rig, engine
        self.windows, self.window_s = windows, window_s

    def measure(self, links: Sequence[float]) -> list[dict[str, Any]]:
        """A row a link of the daemon's fetches; then the bare loop's, on the last link."""
        assert self.rig.daemon
        fetch = [*DIES_WITH_US, *pinned(PLANE), str(BUILD / "cli" / "shadowserve")]
        fetch += ["bench", "fetch", "--json", "--socket", str(self.rig.daemon.socket)]
        fetch += ["--tier", "standard", "--batch", "8", "--made-up", "32", "--count", "1000000"]
        self.rig.link(None)
        with subprocess.Popen(fetch, stdout=subprocess.DEVNULL) as client:
            try:
                self._await_fetches(client)  # it stores what it fetches first
                rows = [self._row("fetches", link, client) for link in links]
            finally:
                client.kill()
        if not all(bytes_ for row in rows for bytes_ in row["kv_bytes"]):
            raise Wrong(f"a window beside fetches had none: {[row['kv_bytes'] for row in rows]}")
        return [*rows, self._bare_loop(links[-1])]

    def _bare_loop(self, link: float) -> dict[str, Any]:
        script = "for i = 1, %d do redis.call('SET', 'loop:' .. i, string.rep('x', %d)) end"
        redis = self.rig.redis
        redis.command("EVAL", script % (LOOP_VALUES, LOOP_VALUE_BYTES), 0)
        loop = [*self.rig.network.plane.prefix, *pinned(PLANE)]
        loop += [str(BUILD / "bench" / "bench_receive"), self.rig.host.address]
        loop += map(str, (PORT, 4, 1024, 256, 1 << 40, 1))
        pipe, quiet = subprocess.PIPE, subprocess.DEVNULL
        with subprocess.Popen(loop, stdin=pipe, stdout=quiet, text=True) as client:
            try:
                assert client.stdin
                for number in range(LOOP_VALUES):
                    client.stdin.write(f"loop:{number + 1} {LOOP_VALUE_BYTES}\n")
                client.stdin.close()
                row = self._row("bare loop", link, client)
            finally:
                client.kill()
        redis.command("DEL", *(f"loop:{number + 1}" for number in range(LOOP_VALUES)))
        return row

    def _row(self, what: str, link: float, client: subprocess.Popen[Any]) -> dict[str, Any]:
        client.send_signal(signal.SIGSTOP)
        self.rig.link(link)
        for name in ("beside", "beside2"):
            self.engine.add(name, ENDLESS_TOKENS)
        time.sleep(1.0)
        spans, kv_bytes, wire_bytes = [], [], []
        for number in range(2 * self.windows + 1):
            client.send_signal(signal.SIGCONT if number % 2 else signal.SIGSTOP)
            time.sleep(SETTLE_S)
            kv, wire, start = self._kv_bytes(), self._wire_bytes(), time.monotonic()
            time.sleep(self.window_s)
            spans.append((start, time.monotonic()))
            kv_bytes.append(self._kv_bytes() - kv)
            wire_bytes.append(self._wire_bytes() - wire)
        if client.poll() is not None:
            raise Wrong(f"the client beside decoding requests ended: {what}, {client.returncode}")
        self.engine.tell(do="abort")
        times = [self.engine.hear("aborted")["times"] for _ in range(2)]
        self.engine.hear("ok")
        gaps = [percentiles(gaps_in(times, span)) for span in spans]
        return {
            "what": what,
            "gbit": link,
            "window_s": [end - start for start, end in spans[1::2]],
            "kv_bytes": kv_bytes[1::2],
            "wire_bytes": wire_bytes[1::2],
            "with": gaps[1::2],
            "without": gaps[::2],
        }

    def _await_fetches(self, client: subprocess.Popen[Any]) -> None:
        start, before = time.monotonic(), self._kv_bytes()
        while self._kv_bytes() == before:
            if client.poll() is not None or time.monotonic() - start > STORING_S:
                raise Wrong("the client that fetches beside decoding requests does not fetch")
            time.sleep(0.1)

    def _kv_bytes(self) -> int:
        assert self.rig.daemon
        return int(self.rig.daemon.stat()["counters"]["fetch_kv_bytes"])

    def _wire_bytes(self) -> int:
        """What has come into the data plane's namespace."""
        command = [*self.rig.network.plane.prefix, "cat", "/proc/net/dev"]
        text = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=10
        ).stdout
        lines = [line.split(":") for line in text.splitlines() if ":" in line]
        return sum(int(rest.split()[0]) for name, rest in lines if name.strip() != "lo")


def gaps_in(times: Sequence[Sequence[float]], span: tuple[float, float]) -> list[float]:
    """Times between the tokens of each request that came within the span."""
    start, end = span
    return [
        b - a for one in times for a, b in itertools.pairwise([t for t in one if start <= t <= end])
    ]
