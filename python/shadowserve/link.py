# SPDX-License-Identifier: Apache-2.0
"""A session that comes back.

Link holds one Session with a daemon. When the session has ended, attempts to make another run on a
thread of their own, further and further apart, so that the engine never waits for a daemon that is
away. Everything else is called by the engine's thread alone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from logging import Logger

from shadowserve.binding import Completion, Error, Request, Session, SessionEnded

BACKOFF_FIRST_S = 0.5
BACKOFF_MAX_S = 30.0


class Link:
    """open_session: connects, and registers what must be registered; may block, may raise."""

    def __init__(self, open_session: Callable[[], Session], name: str, logger: Logger) -> None:
        self._open_session = open_session
        self._name = name
        self._logger = logger
        self._session: Session | None = None
        self._thread: threading.Thread | None = None
        self._made: Session | None = None  # by the thread; taken once it has ended
        self._failure = ""
        self._backoff = BACKOFF_FIRST_S
        self._next_try = 0.0
        self._warned = False
        self._ended = False

    @property
    def session(self) -> Session | None:
        """The open session, or None. Never blocks; starts an attempt when one is due."""
        if self._session is None and not self._ended:
            self._advance()
        return self._session

    def connect(self) -> bool:
        """The first attempt, on this thread."""
        self._attempt()
        self._take()
        return self._session is not None

    def submit(self, requests: list[Request]) -> int:
        """How many were accepted; 0 without a session."""
        session = self.session
        if session is None or not requests:
            return 0
        try:
            return session.submit(requests)
        except SessionEnded:
            return 0  # poll() hands out what is in flight, then ends the session
        except Error as failure:
            self._logger.warning("ShadowServe %s: refused a request: %s", self._name, failure)
            return 0

    def poll(self, timeout_ms: int = 0) -> list[Completion]:
        """Completions. Those of a session that ended come first; then it is given up."""
        session = self.session
        if session is None:
            return []
        done: list[Completion] = []
        try:
            while True:
                batch = session.poll(timeout_ms if not done else 0)
                done += batch
                if not batch:
                    return done
        except SessionEnded as end:
            self._lose(str(end))
            return done
        except Error as failure:
            # The session stands, and with it the completions that are still to come.
            self._logger.warning("ShadowServe %s: polling failed: %s", self._name, failure)
            return done

    def close(self) -> None:
        """End the session for good."""
        self._ended = True
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(timeout=2.0)
        for session in (self._session, self._made):
            if session is not None:
                session.close()
        self._session = self._made = None

    def _lose(self, reason: str) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()
        self._warn(reason)
        self._next_try = time.monotonic() + self._backoff

    def _warn(self, reason: str) -> None:
        if not self._warned:
            self._warned = True
            self._logger.warning(
                "ShadowServe %s: no daemon, the engine runs on without cache: %s",
                self._name,
                reason,
            )

    def _advance(self) -> None:
        if self._thread is not None:
            if self._thread.is_alive():
                return
            self._thread = None
            self._take()
            return
        if time.monotonic() >= self._next_try:
            self._thread = threading.Thread(
                target=self._attempt, name="shadowserve-connect", daemon=True
            )
            self._thread.start()

    def _attempt(self) -> None:
        try:
            self._made = self._open_session()
        except Exception as failure:  # whatever it is, the engine runs on
            self._failure = f"{type(failure).__name__}: {failure}"

    def _take(self) -> None:
        if self._made is None:
            self._warn(self._failure)
            self._next_try = time.monotonic() + self._backoff
            self._backoff = min(self._backoff * 2, BACKOFF_MAX_S)
            return
        self._session, self._made = self._made, None
        if self._warned:
            self._logger.warning("ShadowServe %s: a daemon is there again", self._name)
        self._warned = False
        self._backoff = BACKOFF_FIRST_S
