# SPDX-License-Identifier: Apache-2.0
"""Card, relay, store, link and engine, one of which ends at any moment of an engine's life.

Whatever ends: of the engine's memory no byte changes but in blocks that a fetch was granted
(margins and gaps of the region, other blocks and what lies behind the region are canaries), none at
all once the session is over; the other parties live, and the next engine is served. Moments are
uniform over a life that was measured before. A seed repeats a run's choices, not its races.

test_kills.py runs it over the way tcp, tests/rdma/kills.py over the way rdma.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from daemon_rig import (
    BLOCK_BYTES,
    LAYERS,
    Daemon,
    Engine,
    Memory,
    free_port,
    key,
    keys,
    make_layout,
    wait_until,
)
from relay_rig import Relay, port_of
from shadowserve import binding as ssv
from shadowserve.binding import Tensor

VICTIMS = ("card", "relay", "store", "link", "engine")
CHUNKS, BLOCKS, SOURCES = 8, 256, 16
TENSORS = LAYERS * 2
MARGIN, GAP = 64 << 10, 1 << 10
CANARY = 0xC5
SETTLE_S = 0.02

Content = dict[int, bytes]
Sign = Callable[..., dict[str, str]]


class GuardedMemory(Memory):
    """A margin before the first tensor, gaps behind blocks, a margin behind the region."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self.bytes = MARGIN + TENSORS * blocks * (BLOCK_BYTES + GAP)
        self.fd = os.memfd_create("guarded", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, self.bytes + MARGIN)
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        self.map = mmap.mmap(self.fd, self.bytes + MARGIN)
        self.paint()

    def _at(self, tensor: int, block: int) -> int:
        return MARGIN + (tensor * self.blocks + block) * (BLOCK_BYTES + GAP)

    def layout(self) -> Any:
        places = tuple(
            Tensor(t // 2, t % 2, self._at(t, 0), BLOCK_BYTES + GAP) for t in range(TENSORS)
        )
        return make_layout(self.blocks, tensors=places)

    def paint(self) -> None:
        self.map[:] = bytes([CANARY]) * len(self.map)

    def is_painted(self) -> bool:
        return self.map[:] == bytes([CANARY]) * len(self.map)

    def put(self, content: bytes, blocks: list[int]) -> None:
        pieces = [content[i : i + BLOCK_BYTES] for i in range(0, len(content), BLOCK_BYTES)]
        for tensor in range(TENSORS):
            for block in blocks:
                self.write(tensor, block, pieces.pop(0))

    def fill(self, seed: int, blocks: list[int]) -> None:
        """As the other memory's, quicker."""
        source = random.Random(seed)
        words = bytearray(BLOCK_BYTES)
        for tensor in range(TENSORS):
            for block in blocks:
                words[0::2] = source.randbytes(BLOCK_BYTES // 2)
                words[1::2] = b"\x3f" * (BLOCK_BYTES // 2)
                self.write(tensor, block, bytes(words))

    def changed_outside(self, before: bytes, granted: list[int]) -> str | None:
        """Where it differs from what it was, other than in these blocks."""
        at = 0
        for tensor in range(TENSORS):
            for block in sorted(granted):
                place = self._at(tensor, block)
                if self.map[at:place] != before[at:place]:
                    return f"between byte {at} and {place}"
                at = place + BLOCK_BYTES
        return None if self.map[at:] == before[at:] else f"behind byte {at}"


class GuardedEngine(Engine):
    """An engine of a socket whose memory is made beforehand."""

    def __init__(self, path: str, memory: GuardedMemory, name: str = "engine") -> None:
        self.memory, self.last = memory, 0
        self.layout = memory.layout()
        self.session = ssv.Session.connect(path, engine_id=name, connect_timeout_ms=20000)
        try:
            self.region = self.session.region_register(
                ssv.Memory.MEMFD, self.layout, memory.bytes, fd=memory.fd
            )
        except BaseException:
            self.session.close()
            raise


@dataclass
class Plan:
    """What an engine does in its life: the chunks it fetches, and those it stores."""

    fetches: list[tuple[int, list[int]]]
    stores: list[tuple[int, list[int]]]

    def granted(self) -> list[int]:
        return [block for _, blocks in self.fetches for block in blocks]


@dataclass
class Story:
    """How it went: each fetch's status, or what ended it before."""

    phase: str = "connect"
    error: str = ""
    statuses: dict[int, tuple[int, int]] = field(default_factory=dict)


def live(path: str, memory: GuardedMemory, plan: Plan, story: Story) -> None:
    """A whole life, up to its end or to the first refusal."""
    engine = None
    try:
        engine = GuardedEngine(path, memory)
        story.phase = "submit"
        count = 0
        for number, blocks in plan.fetches:
            engine.submit(engine.fetch(key(number), blocks, position=256 * (number - 1)))
            count += 1
        for number, blocks in plan.stores:
            engine.submit(engine.store(key(number), blocks))
            count += 1
        story.phase = "wait"
        try:
            done = engine.completions(count)
        except AssertionError as failure:
            raise AssertionError(f"{failure}; {engine.stat()}") from None
        story.statuses = {n: (one.status, one.tokens) for n, one in done.items()}
        story.phase = "unregister"
        engine.session.region_unregister(engine.region, 20000)
        story.phase = "end"
    except ssv.Error as error:
        story.error = f"{story.phase}: {error}"
    finally:
        if engine:
            engine.session.close()


# ---- the parties ---------------------------------------------------------------------------------


class Store:
    """A Redis that keeps what it has acknowledged."""

    def __init__(self, folder: Path, address: str, prefix: Sequence[str]) -> None:
        self.folder, self.address, self.prefix = folder, address, prefix
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        options = ["--port", str(self.port), "--bind", self.address, "--dir", str(self.folder)]
        options += ["--save", "", "--appendonly", "yes", "--appendfsync", "no"]
        options += ["--protected-mode", "no"]
        self.process = subprocess.Popen(
            [*self.prefix, "redis-server", *options],
            stdout=(self.folder / "redis.log").open("ab"),
            stderr=subprocess.STDOUT,
        )


class Scene:
    """The parties on one machine; the link is what a subclass says."""

    way = "tcp"
    card_address = store_address = "127.0.0.1"
    card_timeout_ms, fetch_deadline_ms = 400, 1000  # what a cut link costs

    def __init__(self, folder: Path, sign: Sign, **card_keys: object) -> None:
        self.folder = folder
        self.store = Store(folder, self.store_address, self.prefix("store"))
        self.store.start()
        self.keys: dict[str, dict[str, object]] = {
            "card": {
                "store": f"redis://{self.store_address}:{self.store.port}",
                "workers": 2,
                "arena": "128MiB",
                "fetch_deadline_ms": self.fetch_deadline_ms,
                "listen_tls": f"{self.card_address}:0",
                **sign("card", f"IP:{self.card_address}"),
                **card_keys,
            },
            "relay": {
                **sign("host"),
                "way": self.way,
                "card_timeout_ms": self.card_timeout_ms,
                "data_listen": "0.0.0.0:0",
            },
        }
        self.card = wait_until(self._card_try, "the card, once the store answers")
        self.keys["card"]["listen_tls"] = f"{self.card_address}:{port_of(self.card)}"
        self.relay = self._relay_make().start()

    def prefix(self, host: str) -> list[str]:
        """What a party runs under: a namespace."""
        return []

    def _card_make(self) -> Daemon:
        card = Daemon(self.folder, "card", **self.keys["card"])
        card.prefix = self.prefix("card")
        return card

    def _card_try(self) -> Daemon | None:
        try:
            return self._card_make().start()
        except AssertionError:
            return None

    def _relay_make(self) -> Relay:
        card = str(self.keys["card"]["listen_tls"])
        relay = Relay(self.folder, "relay", card, **self.keys["relay"])
        relay.prefix = self.prefix("engine")
        return relay

    def processes(self) -> dict[str, subprocess.Popen[Any]]:
        found = {
            "card": self.card.process,
            "relay": self.relay.process,
            "store": self.store.process,
        }
        return {name: process for name, process in found.items() if process}

    def strike(self, victim: str, choose: random.Random) -> Callable[[], None]:
        """Ends a party; what is returned brings it back."""
        if victim == "link":
            return self.cut(choose)
        process = self.processes()[victim]
        assert process.poll() is None, f"{victim} ended by itself with {process.returncode}"
        process.kill()
        process.wait()
        return {"card": self._card_again, "relay": self._relay_again, "store": self.store.start}[
            victim
        ]

    def cut(self, choose: random.Random) -> Callable[[], None]:
        raise NotImplementedError

    def _card_again(self) -> None:
        self.card = self._card_make().start()

    def _relay_again(self) -> None:
        self.relay = self._relay_make().start()

    def discard(self) -> None:
        self.relay.discard()
        self.card.discard()
        if self.store.process:
            self.store.process.kill()
            self.store.process.wait()


# ---- a round -------------------------------------------------------------------------------------


class Kills:
    """Rounds of one victim, and what came of them."""

    def __init__(self, scene: Scene, victim: str, seed: int) -> None:
        self.scene, self.victim, self.seed = scene, victim, seed
        self.choose = random.Random(seed)
        self.content: Content = {}
        self.stored = 1000
        self.tally: Counter[str] = Counter()
        self.memory = GuardedMemory(BLOCKS)
        self.witness: GuardedEngine | None = None
        self.witness_memory = GuardedMemory(8)
        self.heals: list[Callable[[], None]] = []
        self._fill_store()
        self.life_s = min(self._undisturbed() for _ in range(3))

    def _fill_store(self) -> None:
        engine = GuardedEngine(self.scene.relay.socket, self.memory, name="source")
        for number in range(1, CHUNKS + 1):
            blocks = list(range(8 * number, 8 * number + 8))
            engine.memory.fill(number, blocks)
            self.content[number] = engine.memory.read(blocks)
            stored = engine.do(engine.store(key(number), blocks, position=256 * (number - 1)))
            assert stored.status == 0
        assert engine.flush().status == 0
        assert engine.lookup(keys(1, CHUNKS)) == CHUNKS * 256
        engine.session.close()

    def _plan(self) -> Plan:
        """Paints memory, and puts what is to be stored into it."""
        places = list(range(SOURCES // 8, BLOCKS // 8))
        self.choose.shuffle(places)
        fetched = places[: self.choose.randrange(1, len(places) - 2)]
        plan = Plan([], [])
        for place in fetched:
            blocks = list(range(8 * place, 8 * place + 8))
            plan.fetches.append((self.choose.randrange(1, CHUNKS + 1), blocks))
        self.memory.paint()
        for place in range(self.choose.randrange(SOURCES // 8 + 1)):
            blocks = list(range(8 * place, 8 * place + 8))
            self.memory.put(self.content[1 + self.stored % CHUNKS], blocks)
            plan.stores.append((self.stored, blocks))
            self.stored += 1
        return plan

    def _undisturbed(self) -> float:
        plan, story, begin = self._plan(), Story(), time.monotonic()
        live(self.scene.relay.socket, self.memory, plan, story)
        assert story.phase == "end", story
        assert {status for status, _ in story.statuses.values()} == {0}, story
        self._fetched(plan, story)
        return time.monotonic() - begin

    def _fetched(self, plan: Plan, story: Story) -> None:
        """What is said to be there is there."""
        for i, (number, blocks) in enumerate(plan.fetches):
            status, tokens = story.statuses.get(i + 1, (-1, 0))
            if status == 0 and tokens == 256:
                assert self.memory.read(blocks) == self.content[number], f"fetch {i}"
            self.tally["fetches" if status == 0 else "fetches cut short"] += 1

    def _life(self, plan: Plan) -> Story:
        """A life in which the victim ends; store and link come back while it lasts."""
        story, failures = Story(), []

        def run() -> None:
            try:
                live(self.scene.relay.socket, self.memory, plan, story)
            except BaseException as failure:
                failures.append(failure)

        # In this thread processes are started: they may end with the thread that did.
        engine = threading.Thread(target=run)
        moment, back_s = self.choose.random() * self.life_s, self.choose.random()
        engine.start()
        time.sleep(moment)
        heal = self.scene.strike(self.victim, self.choose)
        if self.victim in ("store", "link"):
            engine.join(back_s)
            heal()
        else:
            self.heals = [heal]
        engine.join()
        if failures:
            raise failures[0]
        return story

    def _life_of_a_victim(self, plan: Plan) -> Story:
        """The engine itself is killed: it is a process, which shares its memory with this one."""
        pid = os.fork()
        if pid == 0:
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
            try:
                live(self.scene.relay.socket, self.memory, plan, Story())
            finally:
                os._exit(0)
        time.sleep(self.choose.random() * self.life_s)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        maps = Path(f"/proc/{self.scene.relay.pid}/maps")
        wait_until(lambda: maps.read_text().count("memfd:guarded") == 1, "the relay unmaps")
        witness = self.witness
        assert witness
        wait_until(lambda: len(witness.stat()["clients"]) == 1, "the card forgets the engine")
        assert len(witness.stat()["regions"]) == 1
        return Story("killed")

    def _next_is_served(self) -> None:
        """By whoever is there now; each chunk is what it was."""

        def served() -> bool:
            memory = GuardedMemory(CHUNKS * 8)
            try:
                engine = GuardedEngine(self.scene.relay.socket, memory, name="next")
            except ssv.Error as error:
                self.tally[f"next refused: {type(error).__name__}"] += 1
                memory.close()
                return False
            try:
                blocks = list(range(CHUNKS * 8))
                done = engine.do(engine.fetch(keys(1, CHUNKS), blocks))
                if done.tokens != CHUNKS * 256:
                    return False
                for number in range(1, CHUNKS + 1):
                    chunk = blocks[8 * (number - 1) : 8 * number]
                    assert memory.read(chunk) == self.content[number]
                return True
            finally:
                engine.close()

        wait_until(served, "the next engine is served")

    def _witness_lives(self, may_have_lost: bool) -> None:
        """An engine that asks for nothing keeps its session, unless what ended was its session's;
        its memory is nobody's."""
        if self.witness and may_have_lost:
            self.witness.session.close()
            self.witness = None
        if self.witness is None:
            self.witness = GuardedEngine(self.scene.relay.socket, self.witness_memory, "witness")
        assert self.witness.lookup(keys(1, CHUNKS)) == CHUNKS * 256
        assert self.witness_memory.is_painted()

    def round(self) -> None:
        self._witness_lives(False)
        others = {n: p.pid for n, p in self.scene.processes().items() if n != self.victim}
        plan = self._plan()
        before = self.memory.map[:]
        story = self._life_of_a_victim(plan) if self.victim == "engine" else self._life(plan)
        wrong = self.memory.changed_outside(before, plan.granted())
        assert not wrong, f"written {wrong}; {story}"
        self._fetched(plan, story)
        self.tally["ended in " + story.phase] += 1
        self.memory.paint()  # the session is over, memory is the engine's own
        while self.heals:
            self.heals.pop()()
        self._next_is_served()
        time.sleep(SETTLE_S)
        assert self.memory.is_painted(), f"written after the end; {story}"
        for name, process in self.scene.processes().items():
            assert process.poll() is None, f"{name} ended with {process.returncode}"
            assert name == self.victim or process.pid == others[name]
        self._witness_lives(self.victim in ("card", "relay", "link"))

    def run(self, rounds: int) -> str:
        for number in range(rounds):
            try:
                self.round()
            except BaseException:
                print(f"round {number} of {self.victim}, SSV_SEED={self.seed}", flush=True)
                raise
            if (number + 1) % 20 == 0 and number + 1 < rounds:
                print(self._outcome(number + 1), flush=True)
        self._stored_chunks_are_whole()
        if self.witness:
            self.witness.session.close()
        return self._outcome(rounds)

    def _outcome(self, rounds: int) -> str:
        found = ", ".join(f"{n} {what}" for what, n in sorted(self.tally.items()))
        life = f"life {self.life_s * 1e3:.0f} ms"
        return f"{self.victim}: {rounds} kills, SSV_SEED={self.seed}, {life}: {found}"

    def _stored_chunks_are_whole(self) -> None:
        """Of what engines stored when something ended: there and right, or not there."""
        memory = GuardedMemory(8)
        engine = GuardedEngine(self.scene.relay.socket, memory, name="reader")
        for number in range(1000, self.stored):
            if not engine.lookup(key(number)):
                self.tally["stores lost"] += 1
                continue
            memory.paint()
            done = engine.do(engine.fetch(key(number), list(range(8))))
            assert done.tokens == 256
            assert memory.read(list(range(8))) == self.content[1 + number % CHUNKS]
            self.tally["stores kept"] += 1
        engine.close()
