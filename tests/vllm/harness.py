# SPDX-License-Identifier: Apache-2.0
"""Real daemons and real engines for the tests.

An engine runs inside the test's process, pinned to one core; the daemon is a process of its own on
another. Engines are stepped by hand, so that a test decides what happens between two steps.
"""

import collections
import gc
import json
import os
import signal
import subprocess
import time
from pathlib import Path

from shadowserve.binding import Error, Session

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("SHADOWSERVE_BUILD", ROOT / "build" / "release"))
MODEL = ROOT / "models" / "docs-6m"
WAIT_S = 60.0
PATIENCE_S = 5.0
CORES = sorted(os.sched_getaffinity(0))
ENGINE_CORES = CORES[:1]
DAEMON_CORES = CORES[1:2] or CORES[:1]


def wait_until(condition, what, timeout_s=WAIT_S):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {timeout_s} s"
        time.sleep(0.01)


class Daemon:
    """A shadowserved on a socket and store of its own."""

    def __init__(self, folder, store=None, options=()):
        self.folder = Path(folder)
        self.socket = str(self.folder / "daemon.sock")
        self.store = store or f"file:{self.folder}/store?bytes=1073741824"
        self.options = list(options)
        self.process = None
        self.start()

    def start(self):
        command = [str(BUILD / "daemon" / "shadowserved"), "--socket", self.socket]
        command += ["--store", self.store, "--arena", "128MiB", "--workers", "1"]
        command += ["--cores", str(DAEMON_CORES[0]), "--log-level", "info", *self.options]
        with open(self.folder / "daemon.log", "ab") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                # Not the engine's core, to which this process may be pinned already.
                preexec_fn=lambda: os.sched_setaffinity(0, CORES),
            )
        wait_until(self.answers, f"{' '.join(command)}: an answer\n{self.log()}", 15.0)

    def log(self):
        path = self.folder / "daemon.log"
        return path.read_text(errors="replace")[-4000:] if path.exists() else ""

    def answers(self):
        assert self.process.poll() is None, f"the daemon exited:\n{self.log()}"
        try:
            Session.connect(self.socket, connect_timeout_ms=200).close()
        except Error:
            return False
        return True

    def stat(self):
        session = Session.connect(self.socket, connect_timeout_ms=2000)
        try:
            return json.loads(session.stat())
        finally:
            session.close()

    def pause(self):
        """Stop it dead; returns when every thread has stopped."""
        os.kill(self.process.pid, signal.SIGSTOP)
        wait_until(lambda: self._states() == {"T"}, "SIGSTOP")

    def _states(self):
        tasks = Path(f"/proc/{self.process.pid}/task").iterdir()
        return {(task / "stat").read_text().rsplit(")", 1)[1].split()[0] for task in tasks}

    def resume(self):
        if self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGCONT)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        if self.process is None or self.process.poll() is not None:
            return
        self.resume()
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the daemon did not end on SIGTERM:\n{self.log()}") from None


class Engine:
    """An in-process vLLM. extra: kv_connector_extra_config; None: no connector at all."""

    def __init__(self, extra=None, model=MODEL, cores=ENGINE_CORES, **settings):
        from shadowserve.vllm import scheduler
        from vllm import LLM

        # Tests share their machine: a lookup that is a little late must not pass for a miss.
        scheduler.LOOKUP_WAIT_S = PATIENCE_S
        os.sched_setaffinity(0, cores)
        transfer = {}
        if extra is not None:
            transfer["kv_transfer_config"] = {
                "kv_connector": "ShadowServeConnector",
                "kv_connector_module_path": "shadowserve.vllm",
                "kv_role": "kv_both",
                "kv_connector_extra_config": {"admission": "always", **extra},
            }
        defaults = {
            "dtype": "bfloat16",
            "enforce_eager": True,
            "kv_cache_memory_bytes": 200 << 20,
            "block_size": 32,
            "max_model_len": 8192,
            "max_num_batched_tokens": 2048,
            "disable_log_stats": True,
            "max_logprobs": -1,
        }
        self.llm = LLM(str(model), **{**defaults, **settings}, **transfer)
        self.engine = self.llm.llm_engine
        self.core = self.engine.engine_core.engine_core
        self.scheduler = self.core.scheduler
        self.connector = self.scheduler.connector
        self.pool = self.scheduler.kv_cache_manager.block_pool
        self.free_at_rest = self.pool.get_num_free_blocks()
        self._names = 0
        self.outputs = {}
        self.counts = count_everything()
        if extra and os.path.exists(extra.get("socket", "")):
            wait_until(self.connected, "a session with the daemon")

    def connected(self):
        """Whether both sides have a session; a worker in another process is taken on trust."""
        sides = [self.connector._scheduler]
        if self.core.vllm_config.parallel_config.tensor_parallel_size == 1:
            sides.append(worker_of(self))
        return all(side is None or side._link.session is not None for side in sides)

    # ---- requests ----

    def add(self, tokens, max_tokens=1, **sampling):
        """Add a greedy request; returns its name."""
        from vllm import SamplingParams

        self._names += 1
        name = f"request-{self._names}"
        parameters = SamplingParams(
            temperature=0, max_tokens=max_tokens, ignore_eos=True, **sampling
        )
        self.engine.add_request(name, {"prompt_token_ids": list(tokens)}, parameters)
        return name

    def step(self):
        for output in self.engine.step():
            if output.finished:
                self.outputs[output.request_id] = output

    def run(self, *names, timeout_s=WAIT_S):
        """Step until these requests have finished; returns their outputs."""
        deadline = time.monotonic() + timeout_s
        while any(name not in self.outputs for name in names):
            assert time.monotonic() < deadline, f"no answer within {timeout_s} s: {names}"
            self.step()
        return [self.outputs.pop(name) for name in names]

    def generate(self, tokens, max_tokens=1, **sampling):
        """One request alone: (cached tokens, generated tokens, output)."""
        (output,) = self.run(self.add(tokens, max_tokens, **sampling))
        return output.num_cached_tokens, list(output.outputs[0].token_ids), output

    def abort(self, name):
        self.engine.abort_request([name], internal=False)

    # ---- between requests ----

    def settle(self, timeout_s=WAIT_S):
        """Step until stores are captured and nothing is held."""
        deadline = time.monotonic() + timeout_s
        while self.scheduler.has_requests():
            assert time.monotonic() < deadline, "the engine did not come to rest"
            self.step()

    def forget(self):
        """Empty vLLM's own prefix cache, so that what is cached came from the store."""
        self.settle()
        assert self.llm.reset_prefix_cache(), "blocks are still held"

    def free_blocks(self):
        return self.pool.get_num_free_blocks()

    def assert_nothing_leaked(self):
        self.settle()
        assert self.free_blocks() == self.free_at_rest
        assert self.connector._scheduler is None or not self.connector._scheduler.pinned_blocks()
        assert not self.scheduler.requests

    def flush(self):
        """Wait until everything captured has been put."""
        self.settle()
        worker = worker_of(self)
        session = worker._link.session
        assert session is not None
        worker._flush(session, time.monotonic() + 20)

    def close(self):
        self.engine.engine_core.shutdown()
        self.llm = self.engine = self.core = self.scheduler = self.connector = self.pool = None
        gc.collect()


def worker_of(engine):
    """The worker's side of an in-process engine's connector."""
    from vllm.distributed.kv_transfer import get_kv_transfer_group

    return get_kv_transfer_group()._worker


def prompt(seed, count):
    """Tokens that no other seed shares."""
    return [(seed * 7919 + index * 31) % 7000 + 10 for index in range(count)]


def fixed_text(count):
    """Tokens of real text that never changes, begun as the model's training documents were."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    tokens = [0, *tokenizer.encode((ROOT / "LICENSE").read_text()).ids]
    assert len(tokens) >= count, f"the text has {len(tokens)} tokens, {count} are needed"
    return tokens[:count]


def chunks_end(count):
    """How much of a prompt that was stored before can come from the store: whole chunks, whole
    blocks, not the last token, and a tail that is small beside them."""
    whole = count // 256 * 256
    tail = (count - 1 - whole) // 32 * 32
    if tail > 0 and tail * 8 <= whole:
        return whole + tail
    return min(whole, count - 1) // 32 * 32


def count_everything():
    """A counter of what the connector counts from now on; vLLM takes its statistics each step."""
    from shadowserve.vllm.stats import ShadowServeStats

    counts = collections.Counter()
    original = _ORIGINAL.setdefault("count", ShadowServeStats.count)

    def count(self, name, amount=1):
        counts[name] += amount
        original(self, name, amount)

    ShadowServeStats.count = count
    return counts


_ORIGINAL = {}


class Spy:
    """Sees an engine's orders to its daemon, and the bytes of the blocks they name."""

    def __init__(self, engine):
        import mmap

        self.worker = worker_of(engine)
        registration = self.worker._registration
        self.layout = registration.layout
        self.memory = mmap.mmap(registration.fd, registration.bytes)
        self.loads = []
        self.stores = []
        self.stored = {}  # key of a chunk: bytes of its blocks
        # Called with the order, around its submission.
        self.before_load = self.after_load = self.before_store = None
        self._begin = self.worker.begin
        self.worker.begin = self._watch

    def _watch(self, orders):
        self.loads += orders.loads
        self.stores += orders.stores
        for store in orders.stores:
            self.stored[store.keys[0]] = self.blocks(store.blocks)
            if self.before_store:
                self.before_store(store)
        for load in orders.loads if self.before_load else ():
            self.before_load(load)
        self._begin(orders)
        for load in orders.loads if self.after_load else ():
            self.after_load(load)

    def blocks(self, numbers):
        """The bytes of each block, all layers."""
        starts = sorted({tensor.offset for tensor in self.layout.tensors})
        firsts = starts[:: len(self.layout.parts)]
        assert len(firsts) == self.layout.layers_count
        size = self.layout.tensors[0].block_stride
        return [
            b"".join(self.memory[at + n * size : at + (n + 1) * size] for at in firsts)
            for n in numbers
        ]

    def assert_loaded(self, load, stored):
        """Every block of a load holds what was stored under its key."""
        per_chunk = 256 // self.layout.block_tokens
        keys = [load.keys[0][at : at + 32] for at in range(0, len(load.keys[0]), 32)]
        expected = [block for key in keys for block in stored[key]]
        first = load.first_token // self.layout.block_tokens
        assert (len(keys) - 1) * per_chunk < len(expected) <= len(keys) * per_chunk
        assert self.blocks(load.blocks) == expected[first : first + len(load.blocks)]

    def close(self):
        self.worker.begin = self._begin
        self.memory.close()
