# SPDX-License-Identifier: Apache-2.0
"""KV by way of staging: any mix of loads and stores, whatever order things end in."""

import errno
import os
import random
import time
from dataclasses import replace

import pytest
from shadowserve.binding import CHUNK_TOKENS, KEY_BYTES, Completion, Op, Request
from shadowserve.staging import Staging

BLOCK = 64
SPAN = CHUNK_TOKENS // BLOCK
SPANS = 3
SEED = int(os.environ.get("SSV_SEED", random.SystemRandom().randrange(1 << 32)))


def key(number):
    return number.to_bytes(KEY_BYTES, "little")


class Machine:
    """An engine's blocks, staging blocks, a daemon with a store, and a GPU. Nothing happens before
    work() says so, and then in any order that the streams allow."""

    def __init__(self, rng):
        self.rng = rng
        self.blocks = [("old", n) for n in range(64)]
        self.staging = [None] * (SPANS * SPAN)
        self.store = {}
        self.session = object()
        self.queue = []  # of the daemon
        self.done = []
        self.kernels = []  # of our stream, in order: [function, is it done]
        self.late = None  # engine's kernels before this call of gather have run
        self.cancels = set()
        self.broken = False

    # The link.
    def submit(self, requests):
        if self.session is None:
            return 0
        taken = requests[: self.rng.randrange(len(requests) + 1)]
        for one in taken:
            if one.op == Op.CANCEL:
                self.cancels.add(one.target)
            else:
                assert self.spans_of(one).isdisjoint(
                    set().union(*map(self.spans_of, self.queue), set())
                ), "two pieces in one span"
                self.queue.append(one)
        return len(taken)

    def spans_of(self, request):
        return {block // SPAN for block in request.blocks}

    def poll(self, timeout_ms=0):
        done, self.done = self.done, []
        return done

    # The kernels.
    def kernel(self, work):
        if self.broken:
            raise RuntimeError("CUDA error")
        entry = [work, False]
        self.kernels.append(entry)
        machine = self

        class Mark:
            def query(self):
                if machine.broken:
                    raise RuntimeError("CUDA error")
                return entry[1]

        return Mark()

    def spread(self, first, blocks):
        def work():
            for i, block in enumerate(blocks):
                self.blocks[block] = self.staging[first + i]

        return self.kernel(work)

    def gather(self, blocks, first):
        def work():
            for i, block in enumerate(blocks):
                self.staging[first + i] = self.blocks[block]

        return self.kernel(work)

    # Time.
    def work(self):
        if self.queue and self.rng.random() < 0.5:
            self.daemon(self.queue.pop(self.rng.randrange(len(self.queue))))
        if self.kernels and self.rng.random() < 0.5:
            entry = self.kernels.pop(0)
            entry[0]()
            entry[1] = True

    def daemon(self, request):
        tokens = 0
        if request.op == Op.STORE:
            self.store[request.keys] = [self.staging[b] for b in request.blocks]
            tokens = len(request.blocks) * BLOCK
        elif request.keys in self.store and request.user_data not in self.cancels:
            skip = request.first_token // BLOCK
            have = self.store[request.keys][skip : skip + len(request.blocks)]
            for block, value in zip(request.blocks, have, strict=False):
                self.staging[block] = value
            tokens = len(have) * BLOCK
        status = 0 if tokens else -errno.ENOENT
        self.done.append(Completion(request.user_data, request.op, status, tokens, 0, 1, 2, 3))

    def lose(self):
        """The daemon's process has ended: nothing writes any more."""
        self.session = None
        for request in self.queue:
            self.done.append(
                Completion(request.user_data, request.op, -errno.ENOTCONN, 0, 0, 0, 0, 0)
            )
        self.queue = []


def make(rng):
    machine = Machine(rng)
    moved = []
    way = Staging(machine, machine, SPANS, BLOCK, moved.append)
    return machine, way, moved


def run(machine, way, wanted):
    """Completions by number, each once."""
    ends = {}
    for _ in range(5000):
        for done in way.poll():
            assert done.user_data not in ends, "twice"
            ends[done.user_data] = done
        if len(ends) == wanted:
            return ends
        machine.work()
    raise AssertionError(f"{len(ends)} of {wanted} orders ended (SSV_SEED={SEED})")


def quiet(machine, way):
    """Everything is given back."""
    assert sorted(way._free) == list(range(SPANS))
    assert not (way._orders or way._waiting or way._copying or way._sending or way._out)


@pytest.mark.parametrize("turn", range(200))
def test_every_load_brings_its_prefix_and_nothing_else(turn):
    rng = random.Random(SEED + turn)
    machine, way, moved = make(rng)
    chunks = rng.randrange(1, 7)
    tail = rng.randrange(0, SPAN)
    numbers = rng.sample(range(64), 64)
    source = [numbers.pop() for _ in range(chunks * SPAN + tail)]
    whole = list(range(chunks + bool(tail)))
    values = [machine.blocks[block] for block in source]
    stores = [
        Request(
            Op.STORE, 100 + i, keys=key(i), blocks=source[i * SPAN : (i + 1) * SPAN], position=i
        )
        for i in whole
    ]
    assert way.submit(stores) == len(stores)
    ends = run(machine, way, len(stores))
    assert [ends[100 + i].tokens for i in whole] == [len(one.blocks) * BLOCK for one in stores]
    assert machine.store == {key(i): values[i * SPAN : (i + 1) * SPAN] for i in whole}, (
        f"SSV_SEED={SEED}"
    )
    missing = rng.choice([None, *whole])
    if missing is not None:
        del machine.store[key(missing)]
    skip = rng.randrange(SPAN) if chunks else 0
    target = [numbers.pop() for _ in range(min(len(values) - skip, len(numbers)))]
    count = -(-(len(target) + skip) // SPAN)
    before = list(machine.blocks)
    load = Request(
        Op.FETCH,
        7,
        keys=b"".join(key(i) for i in range(count)),
        blocks=target,
        first_token=skip * BLOCK,
    )
    assert way.submit([load]) == 1
    done = run(machine, way, 1)[7]
    expected = len(target)
    if missing is not None and missing < count:
        expected = max(0, missing * SPAN - skip)
    assert done.tokens == expected * BLOCK, f"SSV_SEED={SEED}"
    filled = target[:expected]
    assert [machine.blocks[b] for b in filled] == values[skip : skip + expected]
    others = set(range(64)) - set(target)
    assert all(machine.blocks[b] == before[b] for b in others)
    assert sum(moved) >= len(source) + expected
    quiet(machine, way)


@pytest.mark.parametrize("turn", range(60))
def test_whatever_happens_every_order_ends_and_then_nothing_is_touched(turn):
    rng = random.Random(SEED + 1000 + turn)
    machine, way, _ = make(rng)
    for i in range(8):
        machine.store[key(i)] = [("stored", i, b) for b in range(SPAN)]
    numbers = rng.sample(range(64), 64)
    loads = [
        Request(
            Op.FETCH,
            n,
            keys=b"".join(key(i) for i in range(2)),
            blocks=[numbers.pop() for _ in range(2 * SPAN)],
            deadline_ms=60000,
        )
        for n in range(1, 5)
    ]
    assert way.submit(loads) == 4
    for _ in range(rng.randrange(30)):
        machine.work()
        done = way.poll()
        way._ended += done
    event = rng.choice(["cancel", "lose", "break"])
    if event == "cancel":
        way.submit([Request(Op.CANCEL, 50, target=rng.randrange(1, 5))])
    elif event == "lose":
        machine.lose()
    else:
        machine.broken = True
    ends = run(machine, way, 4)
    before = list(machine.blocks)
    if not machine.broken:
        for _ in range(200):
            machine.work()
    assert machine.blocks == before, f"SSV_SEED={SEED}"
    for load in loads:
        filled = load.blocks[: ends[load.user_data].tokens // BLOCK]
        expected = [("stored", i, b) for i in range(2) for b in range(SPAN)][: len(filled)]
        assert [machine.blocks[b] for b in filled] == expected
    quiet(machine, way)


def test_a_deadline_counts_from_the_order(monkeypatch):
    machine, way, _ = make(random.Random(1))
    load = Request(Op.FETCH, 1, keys=key(1), blocks=[1, 2, 3, 4], deadline_ms=50)
    now = [100.0]
    monkeypatch.setattr("shadowserve.staging.time.monotonic", lambda: now[0])
    blockers = [replace(load, user_data=10 + n, deadline_ms=0) for n in range(SPANS)]
    way.submit(blockers)
    way.submit([load])
    now[0] += 0.06
    ends = run(machine, way, SPANS + 1)
    assert ends[1].status == -errno.ETIMEDOUT
    quiet(machine, way)


def test_settle_hands_on_what_can_be_and_loses_nothing():
    machine, way, _ = make(random.Random(SEED))
    stores = [
        Request(Op.STORE, n, keys=key(n), blocks=range(n * SPAN, n * SPAN + SPAN))
        for n in range(2 * SPANS)
    ]
    way.submit(stores)
    poll = machine.poll

    def poll_and_work(timeout_ms=0):
        machine.work()
        return poll(timeout_ms)

    machine.poll = poll_and_work
    way.settle(time.monotonic() + 20)
    assert not (way._waiting or way._copying or way._sending)
    assert len(run(machine, way, 2 * SPANS)) == 2 * SPANS
    assert len(machine.store) == 2 * SPANS


def test_too_many_orders_are_refused(monkeypatch):
    monkeypatch.setattr("shadowserve.staging.ORDERS_MAX", 2)
    _, way, _ = make(random.Random(1))
    loads = [Request(Op.FETCH, n, keys=key(n), blocks=[n]) for n in range(3)]
    assert way.submit(loads) == 2
