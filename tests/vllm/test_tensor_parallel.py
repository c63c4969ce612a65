# SPDX-License-Identifier: Apache-2.0
"""Two tensor-parallel ranks: each stores and loads its own heads, and they agree on the hit.

The workers are processes of their own; only the scheduler is seen from here.
"""

import os

import pytest
from harness import CORES, Daemon, Engine, chunks_end, prompt, wait_until

TOKENS = prompt(1, 1500)


@pytest.mark.skipif(len(CORES) < 2, reason="two ranks need two cores")
def test_ranks_agree(tmp_path):
    daemon = Daemon(tmp_path)
    engine = None
    try:
        engine = Engine(
            {"socket": daemon.socket, "tier": "lossless"},
            tensor_parallel_size=2,
            kv_cache_memory_bytes=64 << 20,
            max_model_len=4096,
            cores=CORES,
        )
        os.sched_setaffinity(0, CORES)
        end = chunks_end(len(TOKENS))
        assert engine.generate(TOKENS[:end])[0] == 0
        cached, text, _ = engine.generate(TOKENS, 16)
        assert cached == end

        def served_from_the_store():
            engine.forget()
            return engine.generate(TOKENS, 16)[:2] == (end, text)

        wait_until(served_from_the_store, "a hit")
        stat = daemon.stat()
        assert {session["rank"] for session in stat["sessions"]} == {0, 1}
        assert len(stat["regions"]) == 2
        engine.settle()
        assert engine.free_blocks() == engine.free_at_rest
    finally:
        if engine is not None:
            engine.close()
        daemon.stop()
