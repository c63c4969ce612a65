# SPDX-License-Identifier: Apache-2.0
"""The daemon on a real Redis Cluster: chunks spread, masters die, slots move; bytes stay right."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from daemon_rig import BUILD, Daemon, Engine, key, keys, wait_until
from servers import RedisCluster
from shadowserve.binding import Tier

Start = Callable[..., Daemon]

CHUNKS = 12
SOURCE = list(range(8 * CHUNKS))
TARGET = [block + 8 * CHUNKS for block in SOURCE]


@pytest.fixture
def cluster(folder: Path, request: pytest.FixtureRequest) -> Iterator[RedisCluster]:
    if not shutil.which("redis-server"):
        pytest.skip("no redis-server here")
    server = RedisCluster(folder / "c", replicas=request.param, node_timeout_ms=1500)
    yield server
    server.stop()


def filled(daemon: Daemon) -> Engine:
    """An engine whose chunks are in the store."""
    engine = Engine(daemon, blocks=16 * CHUNKS)
    engine.memory.fill(1, SOURCE)
    engine.do(engine.store(keys(0, CHUNKS), SOURCE, tier=Tier.LOSSLESS))
    assert engine.flush().status == 0
    return engine


def fetch_all(engine: Engine) -> int:
    """Tokens that a fetch of all chunks gave: a prefix of right bytes, whatever happens."""
    tokens = engine.do(engine.fetch(keys(0, CHUNKS), TARGET)).tokens
    assert tokens % 256 == 0
    blocks = tokens // 32
    assert engine.memory.read(TARGET[:blocks]) == engine.memory.read(SOURCE[:blocks])
    return tokens


def doctor(uri: str) -> dict[str, str]:
    command = [str(BUILD / "cli" / "shadowserve"), "doctor", "--json", "--store", uri]
    out = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    checks: list[dict[str, str]] = json.loads(out.stdout)["checks"]
    return next(check for check in checks if check["check"] == "store")


@pytest.mark.parametrize("cluster", [0], indirect=True)
def test_chunks_spread_and_a_lost_master_misses_alone(start: Start, cluster: RedisCluster) -> None:
    engine = filled(start(store=cluster.uri("lanes=2&backoff-max-ms=100")))
    assert min(cluster.keys()) > 0 and sum(cluster.keys()) == CHUNKS
    assert fetch_all(engine) == 256 * CHUNKS
    store = engine.stat()["store"]
    assert store["scheme"] == "redis+cluster"
    assert (store["nodes"], store["nodes_connected"]) == (3, 3)
    assert doctor(cluster.uri())["verdict"] == "fine"

    cluster.nodes[2].kill()
    wait_until(lambda: engine.stat()["store"]["nodes_connected"] == 2, "the loss to be seen")
    there = [number for number in range(CHUNKS) if engine.lookup(key(number))]
    assert len(there) == sum(cluster.nodes[i].command("DBSIZE") for i in (0, 1))
    assert 0 < len(there) < CHUNKS
    for number in there:
        assert engine.do(engine.fetch(key(number), TARGET[:8], position=256 * number)).tokens == 256
    found = doctor(cluster.uri())
    assert found["verdict"] == "problem"
    assert "1 of 3 nodes do not answer" in found["found"]
    engine.close()


@pytest.mark.parametrize("cluster", [1], indirect=True)
def test_a_replica_takes_over_in_the_middle_of_fetches(start: Start, cluster: RedisCluster) -> None:
    engine = filled(start(store=cluster.uri("lanes=2&backoff-max-ms=100")))
    for node in cluster.nodes[:3]:
        assert node.command("WAIT", 1, 5000) == 1
    fetches = [engine.fetch(keys(0, CHUNKS), TARGET) for _ in range(4)]
    engine.submit(*fetches)
    cluster.nodes[1].kill()
    engine.completions(4)
    wait_until(lambda: fetch_all(engine) == 256 * CHUNKS, "the replica to serve its values")
    engine.close()


@pytest.mark.parametrize("cluster", [0], indirect=True)
def test_slots_move_under_fetches_without_a_miss(start: Start, cluster: RedisCluster) -> None:
    engine = filled(start(store=cluster.uri("lanes=2&refresh-ms=3600000")))
    name = cluster.nodes[0].command("RANDOMKEY")
    slot = cluster.nodes[0].command("CLUSTER", "KEYSLOT", name)

    def fetch() -> None:
        assert fetch_all(engine) == 256 * CHUNKS

    for source, target in ((0, 1), (1, 2), (2, 0)):
        cluster.move_slot(slot, source, target, fetch)
        fetch()
    assert engine.stat()["store"]["redirects"] > 0
    engine.close()
