# SPDX-License-Identifier: Apache-2.0
"""STOREs wait for the engine's stream; everything else does not."""

import errno

import pytest
from shadowserve import ordering
from shadowserve.binding import Completion, Op, Request


class FakeLink:
    """Takes requests, `room` of them."""

    def __init__(self):
        self.session = object()
        self.sent = []
        self.done = []
        self.room = 100

    def submit(self, requests):
        taken = requests[: self.room]
        self.room -= len(taken)
        self.sent += [one.user_data for one in taken]
        return len(taken)

    def poll(self, timeout_ms=0):
        done, self.done = self.done, []
        return done


class FakeMark:
    def __init__(self):
        self.state = False

    def query(self):
        if self.state is None:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return self.state


@pytest.fixture
def rig():
    marks = []

    def mark():
        marks.append(FakeMark())
        return marks[-1]

    link = FakeLink()
    return link, marks, ordering.Ordered(link, mark)


def take(way, requests):
    taken = 0
    while taken < len(requests):
        accepted = way.submit(requests[taken:])
        assert accepted
        taken += accepted


def test_a_store_waits_for_its_mark_and_a_fetch_does_not(rig):
    link, marks, way = rig
    take(way, [Request(Op.FETCH, 1), Request(Op.STORE, 2), Request(Op.STORE, 3)])
    assert (link.sent, len(marks)) == ([1], 1)
    take(way, [Request(Op.STORE, 4), Request(Op.FETCH, 5)])
    assert way.poll() == []
    assert link.sent == [1, 5]
    marks[0].state = True
    way.poll()
    assert link.sent == [1, 5, 2, 3]
    marks[1].state = True
    way.poll()
    assert link.sent == [1, 5, 2, 3, 4]


def test_a_full_queue_keeps_the_store(rig):
    link, marks, way = rig
    take(way, [Request(Op.STORE, 1), Request(Op.STORE, 2)])
    marks[0].state, link.room = True, 1
    way.poll()
    assert link.sent == [1]
    link.room = 1
    way.poll()
    assert link.sent == [1, 2]


def test_a_gpu_that_failed_ends_the_store(rig):
    link, marks, way = rig
    take(way, [Request(Op.STORE, 1)])
    marks[0].state = None
    (done,) = way.poll()
    assert (done.user_data, done.status, done.tokens) == (1, -errno.EIO, 0)
    assert link.sent == []


def test_a_gpu_that_hangs_ends_the_store(rig, monkeypatch):
    link, marks, way = rig
    take(way, [Request(Op.STORE, 1)])
    assert way.poll() == []
    monkeypatch.setattr(ordering, "HELD_MAX_S", 0.0)
    (done,) = way.poll()
    assert (done.status, link.sent) == (-errno.ETIMEDOUT, [])
    marks[0].state = True
    assert (way.poll(), link.sent) == ([], [])


def test_a_store_for_a_session_that_ended_is_not_sent_to_the_next(rig):
    link, marks, way = rig
    take(way, [Request(Op.STORE, 1)])
    link.session = object()
    marks[0].state = True
    link.done = [Completion(9, Op.FETCH, 0, 0, 0, 0, 0, 0)]
    assert [(one.user_data, one.status) for one in way.poll()] == [(9, 0), (1, -errno.ENOTCONN)]
    assert link.sent == []


def test_without_a_session_a_store_is_refused(rig):
    link, _, way = rig
    link.session = None
    assert way.submit([Request(Op.STORE, 1)]) == 0
    assert way.poll() == []
