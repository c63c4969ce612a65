# SPDX-License-Identifier: Apache-2.0
"""vLLM, the data plane and the store on three hosts: network namespaces joined by shaped links.

vLLM (a process of its own) and shadowserve-relay run in the first, shadowserved in the second, a
real Redis in the third. What one prompt stored is served to it again, and the text is that of the
KV which the engine computed.
"""

import json
import shutil
from contextlib import ExitStack

import netns
import pytest
from harness import MODEL, chunks_end, prompt
from serve_rig import PLANE, EngineProcess, cpu_seconds
from three_hosts import ThreeHosts

GBIT = 10.0
TOKENS = prompt(1, 3000)
END = chunks_end(len(TOKENS))
CHUNKS = -(-END // 256)
ANSWERS = 32


@pytest.fixture
def hosts(tmp_path):
    if reason := netns.why_not():
        pytest.skip(reason)
    if not shutil.which("redis-server"):
        pytest.skip("no redis-server")
    with ExitStack() as stack:
        yield ThreeHosts(stack, tmp_path, GBIT)


def test_a_prompt_is_served_through_three_hosts(hosts, tmp_path):
    card = hosts.card(arena="256MiB", cores=PLANE, tier="lossless")
    relay = hosts.relay(card, receive_core=PLANE)
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps({"whole": TOKENS, "head": TOKENS[:END]}))
    engine = EngineProcess(tmp_path, MODEL, relay.socket, hosts.engine.namespace.prefix)
    hosts.stack.callback(engine.stop)
    engine.do("prompts", file=str(prompts))
    engine.do("connect")

    assert engine.alone("head", 1)["cached"] == 0
    engine.do("flush")
    assert hosts.redis.command("DBSIZE") == CHUNKS
    computed = engine.alone("whole", ANSWERS)
    assert computed["cached"] == END  # its own: computed here, and split where a hit is

    engine.do("forget")
    before, used = card.stat()["counters"], cpu_seconds(relay.pid)
    served = engine.alone("whole", ANSWERS)
    after, used = relay.stat()["counters"], cpu_seconds(relay.pid) - used
    assert served["cached"] == END
    assert served["tokens"] == computed["tokens"]
    assert after["fetch_hits"] - before["fetch_hits"] == CHUNKS
    brought = after["fetch_kv_bytes"] - before["fetch_kv_bytes"]
    print(f"\n{brought / 1e6:.1f} MB of KV; the relay took {used * 1e3:.1f} ms for them")
