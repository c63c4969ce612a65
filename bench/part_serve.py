# SPDX-License-Identifier: Apache-2.0
"""Part `serve`: a real vLLM on one core; data plane, Redis and clients on the other, behind links
of 1 to 20 Gbit/s. Time to the first token of a hit, what fetching costs those who decode beside it,
and the load that each way of serving a shared prefix can carry.

One engine lives through the part. Tiers differ by the daemon it is connected to, ways of serving by
the switches of serve_engine.py, links by the shaper's rate: all contenders meet the same engine.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import serve_report
from netns import why_not
from part import (
    CORES,
    REALTIME,
    RUNS,
    Figure,
    Plot,
    Skip,
    Wrong,
    model_folder,
    summary,
)
from serve_beside import Beside
from serve_rig import PLANE, EngineProcess, Rig, arrivals, cpu_seconds, documents

TITLE = "vLLM behind a link"
BUDGET_S = 720
QUICK_S = 28

PROMPT_TOKENS = 6000
SHARED_TOKENS = 5888  # of a document, before what is a request's own
OWN_TOKENS, ANSWER_TOKENS = 32, 16
HIT_TRIES = 3
BLOCK = 32
SLO_TTFT_S, SLO_TPOT, SLO_SHARE = 1.0, 3.0, 0.9  # TPOT: times that of an idle engine
GIVE_UP_SHARE = 0.5  # a step that meets the SLO less often ends its series
OUTSTANDING_MAX = 32
DRAIN_S = 3.0


@dataclass(frozen=True)
class Tier:
    name: str
    database: int
    tier: str
    codec: str


TIERS = {
    one.name: one
    for one in (
        Tier("lossless", 0, "lossless", "r16"),
        Tier("standard", 1, "standard", "r16"),
        Tier("compact", 2, "compact", "r16"),
        Tier("raw", 3, "lossless", "stored"),
    )
}


@dataclass(frozen=True)
class Series:
    """A staircase of loads. way: async, sync, off (recompute), or in-process: the daemon runs on
    the engine's core."""

    tier: str
    way: str
    link: float


@dataclass(frozen=True)
class Plan:
    documents: int
    runs: int
    warm_hits: int  # a daemon maps the engine's memory as it first writes it: all of it once
    links: tuple[float, ...]
    tiers: tuple[str, ...]
    gap_runs: int
    windows: int  # with fetches beside, each between two without
    window_s: float
    rates: tuple[float, ...]
    step_s: float
    recompute_rates: tuple[float, ...]
    recompute_step_s: float
    series: tuple[Series, ...]


FULL = Plan(
    documents=4,
    runs=RUNS,
    warm_hits=14,
    links=(1, 5, 10, 20),
    tiers=("lossless", "standard", "compact", "raw"),
    gap_runs=RUNS,
    windows=RUNS,
    window_s=1.0,
    rates=(1, 2, 3, 4, 5, 6, 8),
    step_s=4.0,
    recompute_rates=(0.2, 0.4),
    recompute_step_s=10.0,
    series=(
        *(Series("standard", "async", link) for link in (1, 5, 10, 20)),
        *(Series("standard", "in-process", link) for link in (5, 10, 20)),
        Series("standard", "sync", 10),
        *(Series("raw", "async", link) for link in (1, 10)),
    ),
)
QUICK = Plan(
    documents=1,
    runs=1,
    warm_hits=1,
    links=(10,),
    tiers=("standard",),
    gap_runs=1,
    windows=1,
    window_s=0.5,
    rates=(2,),
    step_s=2.0,
    recompute_rates=(),
    recompute_step_s=0.0,
    series=(Series("standard", "async", 10), Series("standard", "sync", 10)),
)


def ttft_s(done: dict[str, Any]) -> float:
    return float(done["times"][0] - done["due"])


def tpot_s(done: dict[str, Any]) -> float:
    times = done["times"]
    return float((times[-1] - times[0]) / (len(times) - 1))


class Bench:
    def __init__(self, rig: Rig, plan: Plan) -> None:
        self.rig, self.plan = rig, plan
        self.engine: EngineProcess = rig.engine
        self.expected: dict[str, list[int]] = {}  # what a document is answered with
        self.missed = 0
        self.filled = {"lossless"}  # the daemon that the rig starts with

    def mode(self, mode: str, local: bool = True) -> None:
        self.engine.do("mode", mode=mode, local=local)

    def hit(self, max_tokens: int = 8) -> dict[str, Any]:
        """The first document, from the store."""
        self.engine.do("forget")
        done = self.engine.alone("doc0", max_tokens)
        for _ in range(HIT_TRIES):
            if done["cached"]:
                break
            self.missed += 1  # the lookup was late, on a machine that others use too
            self.engine.do("flush")
            self.engine.do("forget")
            done = self.engine.alone("doc0", max_tokens)
        if done["cached"] != (PROMPT_TOKENS - 1) // BLOCK * BLOCK:
            raise Wrong(f"a hit of {PROMPT_TOKENS} tokens brought {done['cached']}")
        return done

    # ---- one request alone ---------------------------------------------------------------------

    def recompute(self) -> dict[str, Any]:
        """Every document computed once, which fills the first store, and one again."""
        runs, tpot = [], []
        for number in range(max(self.plan.documents, self.plan.runs)):
            name = f"doc{number % self.plan.documents}"
            if number >= self.plan.documents:
                self.mode("off")
                self.engine.do("forget")
            done = self.engine.alone(name, 8)
            if done["cached"]:
                raise Wrong(f"{name} was to be computed, {done['cached']} tokens came from a cache")
            self.expected.setdefault(name, done["tokens"])
            runs.append(ttft_s(done))
            tpot.append(tpot_s(done))
        self.mode("async")
        self.engine.do("flush")
        return {"ttft_s": summary(runs), "tpot_s": summary(tpot)}

    def use(self, tier: Tier) -> None:
        """The daemon of a tier, its store filled: from the engine's own cache where that has it."""
        self.rig.link(None)
        self.mode("async")
        self.rig.use(tier.name, tier.database, tier.tier, tier.codec)
        if tier.name not in self.filled:
            for number in range(self.plan.documents):
                self.engine.alone(f"doc{number}", 4)
            self.engine.do("flush")
            self.filled.add(tier.name)
        for _ in range(self.plan.warm_hits):
            self.hit(1)

    def unloaded(self, tier: Tier, link: float) -> dict[str, Any]:
        """Hits of the store, each followed by one of the engine's own cache."""
        assert self.rig.daemon
        self.rig.link(link)
        self.hit()
        before = self._counters()
        hits, local = [], []
        for _ in range(self.plan.runs):
            done = self.hit()
            if tier.tier == "lossless" and done["tokens"] != self.expected["doc0"]:
                # Split elsewhere than the computed prompt was: equal with the engine's own cache.
                again = self.engine.alone("doc0", 8)
                if again["tokens"] != done["tokens"]:
                    raise Wrong(f"{tier.name}: a hit gives other tokens than the engine's cache")
                local.append(again)
            else:
                local.append(self.engine.alone("doc0", 8))
            hits.append(done)
        after = self._counters()
        count = len(hits)
        return {
            "tier": tier.name,
            "gbit": link,
            "ttft_s": summary([ttft_s(done) for done in hits]),
            "cpu_s": summary([done["cpu_s"] for done in hits]),
            "tpot_s": summary([tpot_s(done) for done in hits]),
            "local_ttft_s": summary([ttft_s(done) for done in local]),
            "local_cpu_s": summary([done["cpu_s"] for done in local]),
            "cached": hits[0]["cached"],
            **{name: (after[name] - before[name]) / count for name in after},
        }

    def _counters(self) -> dict[str, float]:
        assert self.rig.daemon
        counters = self.rig.daemon.stat()["counters"]
        return {
            "wire_bytes": counters["fetch_wire_bytes"],
            "kv_bytes": counters["fetch_kv_bytes"],
            "daemon_cpu_s": cpu_seconds(self.rig.daemon.process.pid),
            "redis_cpu_s": cpu_seconds(self.rig.redis.process.pid),
        }

    # ---- those who decode beside a fetch -------------------------------------------------------

    def gaps(self, way: str, link: float) -> dict[str, Any]:
        """One request decodes, another is a hit: the longest time between two tokens of the first
        while the second's KV is on its way, and of the step that computes the second's rest.
        `local` is the same with a hit of the engine's own cache."""
        self.rig.link(link)
        self.mode("sync" if way == "sync" else "async")
        waiting, computing, normal = [], [], []
        for _ in range(self.plan.gap_runs):
            if way == "local":
                self.engine.alone("doc0", 1)
            else:
                self.engine.do("forget")
            first = self.engine.add("beside", 220)
            time.sleep(0.8)  # the first decodes by now
            self.engine.add("doc0", 1)
            done = {}
            for _ in range(2):
                answer = self.engine.hear("done")
                done[answer["id"]] = answer
            other = next(one for name, one in done.items() if name != first)
            at, end = done[first]["times"], other["times"][0]
            pairs = list(itertools.pairwise(at))
            before = [b - a for a, b in pairs if b < other["due"]]
            during = [b - a for a, b in pairs if b > other["due"] and b < end]
            last = [b - a for a, b in pairs if b == end]
            if len(before) < 10 or not last:
                continue  # the machine was elsewhere
            normal.append(summary(before)["median"])
            computing.append(last[0])
            waiting.append(max(during, default=normal[-1]))
        self.mode("async")
        if not normal:
            return {"way": way, "gbit": link}
        return {
            "way": way,
            "gbit": link,
            "normal_s": summary(normal),
            "waiting_s": summary(waiting),
            "computing_s": summary(computing),
        }

    # ---- many requests -------------------------------------------------------------------------

    def staircase(
        self, rates: tuple[float, ...], step_s: float, tpot_limit_s: float
    ) -> list[dict[str, Any]]:
        """Open-loop arrivals at rising rates, step after step without a pause."""
        self.engine.do("settle")
        requests: dict[str, dict[str, Any]] = {}
        steps: list[dict[str, Any]] = []
        begin = time.monotonic() + 0.1
        for index, rate in enumerate(rates):
            start = begin + index * step_s
            mine = []
            for number, at in enumerate(arrivals(rate, step_s, seed=1000 + index)):
                self._collect(requests, start + at)
                seed = index * 1000 + number
                name = self.engine.add(
                    *(f"doc{seed % self.plan.documents}", ANSWER_TOKENS),
                    due=start + at,
                    head=SHARED_TOKENS,
                    own=OWN_TOKENS,
                    seed=seed,
                )
                requests[name] = {}
                mine.append((name, start + at))
            self._collect(requests, start + step_s)
            steps.append({"rate": rate, "names": mine})
            late = sum(not requests[n] and time.monotonic() - due > SLO_TTFT_S for n, due in mine)
            outstanding = sum(not done for done in requests.values())
            if late > GIVE_UP_SHARE * len(mine) or outstanding > OUTSTANDING_MAX:
                break
        self._collect(requests, time.monotonic() + DRAIN_S, until_done=True)
        self.engine.do("abort")
        return [
            serve_report.step(
                one["rate"],
                [requests[name] for name, _ in one["names"]],
                SLO_TTFT_S,
                tpot_limit_s,
            )
            for one in steps
        ]

    def _collect(self, requests: dict[str, Any], until: float, until_done: bool = False) -> None:
        """Take answers until a time."""
        while (left := until - time.monotonic()) > 0:
            if until_done and all(requests.values()):
                return
            answer = self.engine.poll(left)
            if answer and answer["event"] == "done" and answer["id"] in requests:
                requests[answer["id"]] = answer

    def load(self, series: Series, tpot_limit_s: float) -> dict[str, Any]:
        assert self.rig.daemon
        self.rig.link(series.link or None)
        recompute = series.way == "off"
        self.mode("async" if series.way == "in-process" else series.way, local=False)
        if series.way == "in-process":
            self.rig.daemon.move(CORES[0])
        processes = {
            "daemon": self.rig.daemon.process.pid,
            "redis": self.rig.redis.process.pid,
            "clients": os.getpid(),
        }
        before = {name: cpu_seconds(pid) for name, pid in processes.items()}
        engine_before = self.engine.do("cpu")["cpu_s"]
        start = time.monotonic()
        rates = self.plan.recompute_rates if recompute else self.plan.rates
        step_s = self.plan.recompute_step_s if recompute else self.plan.step_s
        steps = self.staircase(rates, step_s, tpot_limit_s)
        wall = time.monotonic() - start
        cpu = {name: cpu_seconds(pid) - before[name] for name, pid in processes.items()}
        cpu["engine"] = self.engine.do("cpu")["cpu_s"] - engine_before
        if series.way == "in-process":
            self.rig.daemon.move(PLANE)
        self.mode("async")
        self.engine.do("forget")
        return {
            "tier": "recompute" if recompute else series.tier,
            "way": series.way,
            "gbit": series.link,
            "steps": steps,
            "largest": serve_report.largest(steps, SLO_SHARE),
            "wall_s": wall,
            "cpu_s": cpu,
        }


def say(text: str) -> None:
    print(f"serve: {text}", file=sys.stderr, flush=True)


def measure(bench: Bench, plan: Plan) -> dict[str, Any]:
    data: dict[str, Any] = {
        "prompt_tokens": PROMPT_TOKENS,
        "load": {"shared": SHARED_TOKENS, "own": OWN_TOKENS, "answer": ANSWER_TOKENS},
        "documents": plan.documents,
        "realtime": bool(REALTIME),
    }
    bench.engine.alone("beside", 4)  # what runs for the first time is slow
    data["recompute"] = bench.recompute()
    say(f"recompute {data['recompute']['ttft_s']['median']:.2f} s")
    limit = SLO_TPOT * data["recompute"]["tpot_s"]["median"]
    data["slo"] = {"ttft_s": SLO_TTFT_S, "tpot_s": limit, "share": SLO_SHARE}
    data["unloaded"], data["gaps"], data["loads"] = [], [], []
    for name in plan.tiers:
        tier = TIERS[name]
        bench.use(tier)
        for link in plan.links:
            row = bench.unloaded(tier, link)
            data["unloaded"].append(row)
            say(f"{name} at {link} Gbit/s: TTFT {1e3 * row['ttft_s']['median']:.0f} ms")
        if name == "standard":
            for way in ("local", "async", "sync"):
                data["gaps"].append(bench.gaps(way, plan.links[0]))
            beside = Beside(bench.rig, bench.engine, plan.windows, plan.window_s)
            data["beside"] = beside.measure(plan.links)
            say("gaps and interference measured")
            if plan.recompute_rates:
                data["loads"].append(bench.load(Series(name, "off", 0), limit))
        for series in plan.series:
            if series.tier == name:
                answer = bench.load(series, limit)
                data["loads"].append(answer)
                say(f"{name} {series.way} at {series.link} Gbit/s: {answer['largest']:.1f} req/s")
    data["late_lookups"] = bench.missed
    return data


def run(out: Path, quick: bool) -> dict[str, Any]:
    if len(CORES) < 2:
        raise Skip("needs two cores: one is the engine's")
    if reason := why_not():
        raise Skip(f"needs network namespaces: {reason}")
    try:
        import vllm  # noqa: F401
    except ImportError as failure:
        raise Skip(f"needs vLLM: {failure}") from failure
    model = model_folder("docs-25m")
    plan = QUICK if quick else FULL
    prompts = documents(model, plan.documents + 1, PROMPT_TOKENS)
    rest = prompts.pop(f"doc{plan.documents}")
    prompts["beside"], prompts["beside2"] = rest[:1000], rest[1000:2000]
    with Rig(out, model, prompts) as rig:
        return measure(Bench(rig, plan), plan)


def figures(data: dict[str, Any]) -> list[Figure]:
    return serve_report.figures(data)


def tables(data: dict[str, Any]) -> str:
    return serve_report.tables(data)


def plots(data: dict[str, Any], folder: Path) -> list[Plot]:
    import serve_plot

    return serve_plot.draw(data, folder)
