# SPDX-License-Identifier: Apache-2.0
"""The staging way: KV whose blocks lie in short pieces all over the GPU's memory.

Copies below 32 KiB are made by kernels of the driver, which the engine would feel, so the daemon
refuses such layouts. Here the daemon sees a small region of the engine's own instead, whose blocks
are one run over all layers. A chunk is fetched into it, and one kernel of this process spreads it
over the engine's blocks; a chunk to be stored is gathered first. The daemon knows nothing of it.

Order. The gathering kernel runs behind a mark of the engine's stream, so behind the kernels that
wrote the blocks, and the STORE is sent when it has ended. The spreading kernel is enqueued after
the FETCH's completion, and the load is reported after it has ended, so whatever the engine enqueues
for the request comes later. A span of the region has one piece in it at a time.
"""

from __future__ import annotations

import errno
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from shadowserve.binding import CHUNK_TOKENS, KEY_BYTES, Completion, Op, Request, Session
from shadowserve.link import Link
from shadowserve.ordering import Mark, ended, reached

ORDERS_MAX = 4096


class Copies(Protocol):
    """Kernels between the engine's blocks and staging blocks that follow one another."""

    def spread(self, first: int, blocks: list[int]) -> Mark:
        """Staging blocks from `first` on into these blocks of the engine."""
        ...

    def gather(self, blocks: list[int], first: int) -> Mark:
        """The other way, behind what the engine's stream holds by now."""
        ...


@dataclass
class _Order:
    """A request of the engine: a piece a chunk."""

    request: Request
    session: Session
    since: float
    pieces: list[_Piece] = field(default_factory=list)
    left: int = 0
    stopped: bool = False  # what is not sent yet is not needed
    status: int = 0
    wire_bytes: int = 0
    kv_bytes: int = 0


@dataclass
class _Piece:
    order: _Order
    request: Request  # to the daemon, but for its number and blocks
    blocks: list[int]  # the engine's
    span: int = -1
    number: int = 0  # of the request under way
    mark: Mark | None = None  # of the kernel under way
    tokens: int = 0


class Staging:
    """A Link's submit and poll, by way of spans of the staging region, each of a chunk's blocks.
    Of the engine's thread; goes on when it is called."""

    def __init__(
        self,
        link: Link,
        copies: Copies,
        spans: int,
        block_tokens: int,
        moved: Callable[[int], None] = lambda blocks: None,
    ) -> None:
        """moved: told how many blocks a kernel has moved."""
        self._link = link
        self._copies = copies
        self._block_tokens = block_tokens
        self._span_blocks = CHUNK_TOKENS // block_tokens
        self._moved = moved
        self._free = list(range(spans))
        self._number = 1 << 32
        self._orders: dict[int, _Order] = {}
        self._waiting: deque[_Piece] = deque()  # for a span
        self._copying: list[_Piece] = []
        self._sending: deque[_Piece] = deque()
        self._out: dict[int, _Piece] = {}
        self._ended: list[Completion] = []

    def submit(self, requests: list[Request]) -> int:
        session = self._link.session
        if session is None:
            return 0
        taken = 0
        for request in requests:
            if request.op == Op.CANCEL:
                self._cancel(request.target)
            elif len(self._orders) >= ORDERS_MAX:
                break
            else:
                self._take(request, session)
            taken += 1
        self._advance()
        return taken

    def poll(self, timeout_ms: int = 0) -> list[Completion]:
        self._advance()
        for done in self._link.poll(0 if self._ended else timeout_ms):
            piece = self._out.pop(done.user_data, None)
            if piece is not None:  # else a CANCEL
                self._came(piece, done)
        self._advance()
        ends, self._ended = self._ended, []
        return ends

    def settle(self, deadline: float) -> None:
        """Hand on what is not with the daemon yet, until then at most."""
        while time.monotonic() < deadline and (self._waiting or self._copying or self._sending):
            done = self.poll(1)
            self._ended += done

    # ---- orders ----------------------------------------------------------------------------------

    def _take(self, request: Request, session: Session) -> None:
        order = _Order(request, session, time.monotonic())
        blocks, first = list(request.blocks), request.first_token
        for index in range(len(request.keys) // KEY_BYTES):
            count = (CHUNK_TOKENS - first) // self._block_tokens
            part = replace(
                request,
                keys=request.keys[index * KEY_BYTES : (index + 1) * KEY_BYTES],
                first_token=first,
                position=request.position + index * CHUNK_TOKENS,
            )
            order.pieces.append(_Piece(order, part, blocks[:count]))
            blocks, first = blocks[count:], 0
        order.left = len(order.pieces)
        self._orders[request.user_data] = order
        self._waiting.extend(order.pieces)

    def _cancel(self, target: int) -> None:
        order = self._orders.get(target)
        if order is None:
            return
        order.stopped = True
        for number, piece in self._out.items():
            if piece.order is order:
                self._number += 1
                self._link.submit([Request(Op.CANCEL, self._number, target=number)])

    def _end(self, piece: _Piece, tokens: int, status: int = 0) -> None:
        """This piece touches nothing any more."""
        order = piece.order
        piece.tokens, piece.mark = tokens, None
        if piece.span >= 0:
            self._free.append(piece.span)
        if tokens < len(piece.blocks) * self._block_tokens:
            order.stopped = True
            order.status = order.status or status
        order.left -= 1
        if order.left == 0:
            del self._orders[order.request.user_data]
            self._ended.append(self._completion(order))

    def _completion(self, order: _Order) -> Completion:
        tokens = 0
        for piece in order.pieces:
            tokens += piece.tokens
            if piece.tokens < len(piece.blocks) * self._block_tokens:
                break
        return replace(
            ended(order.request, order.status),
            tokens=tokens,
            wire_bytes=order.wire_bytes,
            kv_bytes=order.kv_bytes,
            elapsed_us=int((time.monotonic() - order.since) * 1e6),
        )

    # ---- pieces ----------------------------------------------------------------------------------

    def _advance(self) -> None:
        self._finish_copies()
        while self._waiting and (self._free or self._waiting[0].order.stopped):
            self._begin(self._waiting.popleft())
        self._send()

    def _begin(self, piece: _Piece) -> None:
        if piece.order.stopped:
            self._end(piece, 0, -errno.ECANCELED)
            return
        piece.span = self._free.pop()
        if piece.request.op == Op.FETCH:
            self._sending.append(piece)
        else:
            self._copy(piece, lambda: self._copies.gather(piece.blocks, self._first(piece)))

    def _first(self, piece: _Piece) -> int:
        return piece.span * self._span_blocks

    def _copy(self, piece: _Piece, kernel: Callable[[], Mark]) -> None:
        try:
            piece.mark = kernel()
        except RuntimeError:  # the GPU has failed, or has no memory left
            self._end(piece, 0, -errno.EIO)
            return
        self._copying.append(piece)

    def _finish_copies(self) -> None:
        copying, self._copying = self._copying, []
        for piece in copying:
            assert piece.mark is not None
            state = reached(piece.mark)
            if state is None:
                self._end(piece, 0, -errno.EIO)
            elif not state:
                self._copying.append(piece)
            elif piece.request.op == Op.FETCH:
                self._moved(piece.tokens // self._block_tokens)
                self._end(piece, piece.tokens)
            else:
                self._moved(len(piece.blocks))
                self._sending.append(piece)

    def _send(self) -> None:
        while self._sending:
            piece = self._sending[0]
            status, request = self._request(piece)
            if not status:
                if not self._link.submit([request]):
                    if self._link.session is piece.order.session:
                        return  # its queue is full
                    status = -errno.ENOTCONN
                else:
                    self._out[request.user_data] = piece
            self._sending.popleft()
            if status:
                self._end(piece, 0, status)

    def _request(self, piece: _Piece) -> tuple[int, Request]:
        """What to send, or why not."""
        order, deadline_ms = piece.order, piece.request.deadline_ms
        if order.session is not self._link.session:
            return -errno.ENOTCONN, piece.request
        if order.stopped and piece.request.op == Op.FETCH:
            return -errno.ECANCELED, piece.request
        if deadline_ms:
            deadline_ms -= int((time.monotonic() - order.since) * 1000)
            if deadline_ms <= 0:
                return -errno.ETIMEDOUT, piece.request
        self._number += 1
        blocks = range(self._first(piece), self._first(piece) + len(piece.blocks))
        sent = replace(
            piece.request, user_data=self._number, blocks=list(blocks), deadline_ms=deadline_ms
        )
        return 0, sent

    def _came(self, piece: _Piece, done: Completion) -> None:
        piece.order.wire_bytes += done.wire_bytes
        piece.order.kv_bytes += done.kv_bytes
        piece.order.status = piece.order.status or done.status
        filled = piece.blocks[: done.tokens // self._block_tokens]
        if done.op != Op.FETCH or not filled:
            self._end(piece, done.tokens, done.status)
            return
        piece.tokens = len(filled) * self._block_tokens
        self._copy(piece, lambda: self._copies.spread(self._first(piece), filled))
