# SPDX-License-Identifier: Apache-2.0
"""The vLLM engine of part `serve`: one process, one core, one OpenMP thread, told what to do by
lines of JSON on standard input, answering with lines of JSON.

Requests name a prompt that was sent before, and when they were due: the time to the first token
counts from there, whenever this process came to read them. Token times are taken when a step of
the engine is over. The modes are switches for measurements and no part of the product:

    async   as it is
    sync    the step that schedules a hit waits until its KV is there
    off     no cache but the engine's own: everything else is computed

and `local` says whether the engine's own prefix cache may be read.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
from pathlib import Path
from typing import Any

import vllm_settings

vllm_settings.settle()

REST_S = 30.0
BLOCKING_LOAD_S = 10.0


def say(event: str, **fields: Any) -> None:
    sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stdout.flush()


def start_engine(settings: dict[str, Any]) -> Any:
    from vllm import LLM

    transfer = vllm_settings.connector(settings["socket"], deadline_ms=settings["deadline_ms"])
    return LLM(
        settings["model"],
        dtype="bfloat16",
        enforce_eager=True,
        kv_cache_memory_bytes=settings["kv_bytes"],
        block_size=32,
        max_model_len=8192,
        max_num_batched_tokens=2048,
        max_num_seqs=16,
        enable_prefix_caching=True,
        disable_log_stats=True,
        kv_transfer_config=transfer,
    )


class Modes:
    """Switches of one engine, set and unset on its objects."""

    def __init__(self, core: Any) -> None:
        from vllm.distributed.kv_transfer import get_kv_transfer_group

        self.connector = core.scheduler.connector
        self.scheduler = self.connector._scheduler
        self.worker = get_kv_transfer_group()._worker
        self.pool = core.scheduler.kv_cache_manager.block_pool
        self._matched = self.scheduler.matched_tokens
        self._begin = self.worker.begin
        self._new_request = self.scheduler.on_new_request
        self._cached_block = self.pool.get_cached_block

    def set(self, mode: str, local: bool) -> None:
        self.scheduler.matched_tokens = self._matched
        self.scheduler.on_new_request = self._new_request
        self.worker.begin = self._begin
        self.pool.get_cached_block = self._cached_block if local else lambda *unused: None
        if mode == "sync":
            self.scheduler.matched_tokens = self._matched_at_once
            self.worker.begin = self._begin_and_wait
        elif mode == "off":
            self.scheduler.on_new_request = lambda request: None

    def _matched_at_once(self, request: Any, local_tokens: int) -> tuple[int | None, bool]:
        return self._matched(request, local_tokens)[0], False

    def _begin_and_wait(self, orders: Any) -> None:
        self._begin(orders)
        names = {load.request_id for load in orders.loads}
        deadline = time.monotonic() + BLOCKING_LOAD_S
        while names and any(
            getattr(flight.order, "request_id", None) in names
            for flight in self.worker._flights.values()
        ):
            if time.monotonic() > deadline:
                raise RuntimeError("a blocking load did not end")
            self.worker._poll(50)
        self.worker._results.received -= names  # vLLM does not wait for them

    def connected(self) -> bool:
        links = (self.scheduler._link, self.worker._link)
        return all(link.session is not None for link in links)

    def failures(self) -> str:
        return " / ".join(side._link._failure for side in (self.scheduler, self.worker))

    def drop_sessions(self) -> None:
        """The daemon was ended: notice it now, and look for the next one at once. What was stored
        lately is not in the next one's store."""
        self.scheduler._recent.clear()
        for side in (self.scheduler, self.worker):
            side._poll(0)
            side._link._next_try = 0.0

    def flush(self) -> None:
        session = self.worker._link.session
        if session is not None:
            self.worker._flush(session, time.monotonic() + REST_S)


class Engine:
    def __init__(self, settings: dict[str, Any]) -> None:
        self.llm = start_engine(settings)
        self.engine = self.llm.llm_engine
        self.core = self.engine.engine_core.engine_core
        self.modes = Modes(self.core)
        self.prompts: dict[str, list[int]] = {}
        self.running: dict[str, dict[str, Any]] = {}

    # ---- requests --------------------------------------------------------------------------------

    def add(self, order: dict[str, Any]) -> None:
        from vllm import SamplingParams

        name = order["id"]
        tokens = self.prompts[order["prompt"]]
        if "head" in order:  # what is shared, then what nobody else has
            tail = [(order["seed"] * 7919 + k * 31) % 8000 + 10 for k in range(order["own"])]
            tokens = tokens[: order["head"]] + tail
        sampling = SamplingParams(temperature=0, max_tokens=order["max_tokens"], ignore_eos=True)
        self.running[name] = {"due": order["due"], "times": [], "cpu": time.process_time()}
        self.engine.add_request(name, {"prompt_token_ids": tokens}, sampling)

    def step(self) -> None:
        outputs = self.engine.step()
        now = time.monotonic()
        for output in outputs:
            entry = self.running[output.request_id]
            count = len(output.outputs[0].token_ids)
            if count and not entry["times"]:
                entry["cpu"] = time.process_time() - entry["cpu"]
            entry["times"] += [now] * (count - len(entry["times"]))
            if output.finished:
                self._finish(output)

    def _finish(self, output: Any) -> None:
        self._say_done(output.request_id, self.running.pop(output.request_id), output)

    def _say_done(self, name: str, entry: dict[str, Any], output: Any) -> None:
        say(
            "done" if output else "aborted",
            id=name,
            due=entry["due"],
            times=[round(at, 6) for at in entry["times"]],
            cpu_s=round(entry["cpu"], 6),
            cached=output.num_cached_tokens if output else 0,
            tokens=list(output.outputs[0].token_ids) if output else [],
        )

    def abort(self) -> None:
        """Ends what runs; says what each had."""
        names, entries = list(self.running), list(self.running.values())
        self.running.clear()
        self.engine.abort_request(names, internal=False)
        for name, entry in zip(names, entries, strict=True):
            self._say_done(name, entry, None)

    # ---- at rest ---------------------------------------------------------------------------------

    def settle(self) -> None:
        deadline = time.monotonic() + REST_S
        while self.core.scheduler.has_requests():
            if time.monotonic() > deadline:
                raise RuntimeError("the engine did not come to rest")
            self.engine.step()
            time.sleep(0.001)

    def forget(self) -> None:
        """Empties the engine's own prefix cache."""
        deadline = time.monotonic() + REST_S
        self.settle()
        while not self.llm.reset_prefix_cache():
            if time.monotonic() > deadline:
                raise RuntimeError("vLLM's prefix cache did not empty")
            self.engine.step()
            time.sleep(0.005)

    def connect(self) -> None:
        deadline = time.monotonic() + REST_S
        while not self.modes.connected():
            if time.monotonic() > deadline:
                raise RuntimeError(f"no session with the daemon: {self.modes.failures()}")
            time.sleep(0.01)

    def obey(self, order: dict[str, Any]) -> bool:
        """False: the end."""
        what = order["do"]
        if what == "add":
            self.add(order)
            return True
        if what == "prompts":
            self.prompts = json.loads(Path(order["file"]).read_text())
        elif what == "mode":
            self.modes.set(order["mode"], order["local"])
        elif what == "abort":
            self.abort()
        elif what == "lost":
            self.modes.drop_sessions()
        elif what in ("settle", "forget", "connect"):
            getattr(self, what)()
        elif what == "flush":
            self.settle()
            self.modes.flush()
        elif what != "cpu":
            return False
        say("ok", do=what, cpu_s=time.process_time())
        return True

    def serve(self) -> None:
        """Obeys and steps until the end of standard input."""
        rest = b""
        os.set_blocking(0, False)
        while True:
            idle = not self.core.scheduler.has_requests()
            if select.select([0], [], [], 0.2 if idle else 0)[0]:
                got = os.read(0, 1 << 16)
                if not got:
                    return
                *lines, rest = (rest + got).split(b"\n")
                if not all(self.obey(json.loads(line)) for line in lines):
                    return
            if not idle or self.running:
                self.step()


def main() -> int:
    settings = json.loads(sys.stdin.readline())
    os.sched_setaffinity(0, settings["cores"])
    engine = Engine(settings)
    say("ready")
    engine.serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())
