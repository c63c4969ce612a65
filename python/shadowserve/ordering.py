# SPDX-License-Identifier: Apache-2.0
"""Requests on GPU memory, in order with the engine's kernels.

The daemon's copies run beside the engine's stream, in no order with it but the one made here. Both
directions are ordered by this process seeing an event, so no event crosses a process.

Out (STORE). A kernel may still be writing the blocks when the engine's thread orders a capture: it
runs ahead of the GPU. A STORE is therefore held until a mark, recorded on the engine's stream when
it was ordered, has been reached. The scheduler orders captures of confirmed tokens only, so the
kernels that wrote them were enqueued before the mark. The mark is asked, never waited for.

In (FETCH). The completion leaves the daemon after its copies have been performed in the GPU's
memory (src/deliver/cuda.c). vLLM schedules the request in a step after that, so every kernel that
reads the blocks is enqueued later and finds the bytes. Kernels enqueued earlier do not touch the
blocks: vLLM returns a block to its pool only after the last step that uses it was processed
(`defer_block_free`, with one step at a time no step is out), and it is given to nobody else before
the completion. So a FETCH goes at once.
"""

from __future__ import annotations

import errno
import itertools
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from shadowserve.binding import Completion, Op, Request, Session
from shadowserve.link import Link

HELD_MAX_S = 10.0  # a GPU that takes longer has failed: the chunk is not stored


class Mark(Protocol):
    """A place in a stream of the GPU, as torch.cuda.Event is."""

    def query(self) -> bool:
        """Has everything before it ended? Never waits; RuntimeError: the GPU has failed."""
        ...


def reached(mark: Mark) -> bool | None:
    """None: it will never be."""
    try:
        return mark.query()
    except RuntimeError:
        return None


def ended(request: Request, status: int) -> Completion:
    """The completion of a request that never reached the daemon."""
    return Completion(request.user_data, request.op, status, 0, 0, 0, 0, 0)


@dataclass
class _Held:
    request: Request
    mark: Mark
    session: Session  # its region is of this one
    since: float


class Ordered:
    """A Link's submit and poll, with STOREs held back. Of the engine's thread."""

    def __init__(self, link: Link, mark: Callable[[], Mark]) -> None:
        """mark: records one on the engine's stream."""
        self._link = link
        self._mark = mark
        self._held: deque[_Held] = deque()
        self._ended: list[Completion] = []

    def submit(self, requests: list[Request]) -> int:
        """Like Link.submit: so many were taken, from the front; call again for the rest."""
        direct = list(itertools.takewhile(lambda one: one.op != Op.STORE, requests))
        if direct:
            return self._link.submit(direct)
        session = self._link.session
        if session is None:
            return 0
        stores = list(itertools.takewhile(lambda one: one.op == Op.STORE, requests))
        try:
            mark = self._mark()
        except RuntimeError:
            return 0
        now = time.monotonic()
        self._held.extend(_Held(store, mark, session, now) for store in stores)
        self._release()
        return len(stores)

    def poll(self, timeout_ms: int = 0) -> list[Completion]:
        self._release()
        done = self._link.poll(0 if self._ended else timeout_ms)
        self._release()
        done += self._ended
        self._ended = []
        return done

    def settle(self, deadline: float) -> None:
        """Hand on what is held, until then at most."""
        while self._held and time.monotonic() < deadline:
            self._release()
            time.sleep(0.001)

    def _release(self) -> None:
        """Hand on the STOREs whose mark was reached; marks of one stream are reached in order."""
        while self._held:
            first = self._held[0]
            if first.session is not self._link.session:
                self._end(-errno.ENOTCONN)
                continue
            state = reached(first.mark)
            if state is None:
                self._end(-errno.EIO)
            elif not state:
                if time.monotonic() - first.since < HELD_MAX_S:
                    return
                self._end(-errno.ETIMEDOUT)
            elif self._link.submit([first.request]):
                self._held.popleft()
            else:
                return  # its queue is full

    def _end(self, status: int) -> None:
        self._ended.append(ended(self._held.popleft().request, status))
