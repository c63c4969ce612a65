# SPDX-License-Identifier: Apache-2.0
"""A hit through a real Redis: the store that engines on several machines share."""

import shutil
import socket
import subprocess

import pytest
from harness import Daemon, Engine, chunks_end, prompt, wait_until

TOKENS = prompt(1, 2000)


@pytest.fixture
def redis(tmp_path):
    """A Redis of its own on a free port; yields the store URI."""
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if not program:
        pytest.skip("no redis-server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir"]
    with open(tmp_path / "redis.log", "wb") as log:
        process = subprocess.Popen([*command, str(tmp_path)], stdout=log, stderr=log)

    def answers():
        assert process.poll() is None, (tmp_path / "redis.log").read_text()
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", port)) == 0

    wait_until(answers, "an answer of redis", 15.0)
    yield f"redis://127.0.0.1:{port}"
    process.terminate()
    process.wait(20)


def test_hit_through_redis(tmp_path, redis):
    daemon = Daemon(tmp_path, store=redis)
    try:
        end = chunks_end(len(TOKENS))
        engine = Engine({"socket": daemon.socket, "tier": "lossless"})
        engine.generate(TOKENS[:end])
        cached, text, _ = engine.generate(TOKENS, 32)
        assert cached == end
        engine.flush()
        engine.forget()
        assert engine.generate(TOKENS, 32)[:2] == (end, text)
        engine.assert_nothing_leaked()
        engine.close()
    finally:
        daemon.stop()
