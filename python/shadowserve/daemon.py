# SPDX-License-Identifier: Apache-2.0
"""Find a daemon, or start one that the user's engines share.

A named socket is only ever connected to. With none named, one daemon a user and store is started
on first need, under a lock, detached, not pinned; it ends by itself when no engine has used it for
a while. No process is ever ended from here.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shadowserve.binding import Error, Session, default_socket
from shadowserve.options import Options

IDLE_EXIT_S = 60
START_TIMEOUT_S = 15.0
LOCK_TIMEOUT_S = 20.0
PING_TIMEOUT_MS = 500
STORE_BYTES_MIN = 256 << 20
STORE_BYTES_MAX = 64 << 30
STORE_SHARE = 0.25  # of what is free on the disk

# Runs the daemon on every core that this process may use at all: a child would inherit the pinning
# of the engine that happened to start it.
_UNPINNED = (
    "import os,sys\n"
    "try: os.sched_setaffinity(0, range(os.cpu_count() or 1))\n"
    "except OSError: pass\n"
    "os.execv(sys.argv[1], sys.argv[1:])\n"
)


class DaemonError(RuntimeError):
    """No daemon, and why; one line."""


def find_or_start(options: Options) -> str:
    """The socket of a daemon. Named: returned as it is, running or not. Else: one that answers."""
    named = options.socket or os.environ.get("SHADOWSERVE_SOCKET", "")
    if named:
        return named
    socket = _private_socket(options.store, options.profiles)
    if answers(socket):
        return socket
    with _locked(socket + ".lock"):
        if not answers(socket):
            _start(options, socket)
    return socket


def answers(socket: str) -> bool:
    """Whether a daemon of this protocol version answers there."""
    try:
        Session.connect(socket, connect_timeout_ms=PING_TIMEOUT_MS).close()
    except Error:
        return False
    return True


def cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(root) / "shadowserve"


def default_store() -> str:
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    free = int(shutil.disk_usage(folder).free * STORE_SHARE)
    limit = max(STORE_BYTES_MIN, min(STORE_BYTES_MAX, free))
    return f"file:{folder}/chunks?bytes={limit}"


def default_profiles() -> str:
    """The user's folder of profiles, if there is one."""
    root = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    folder = Path(root) / "shadowserve" / "profiles"
    return str(folder) if folder.is_dir() else ""


def find_daemon(named: str = "") -> str:
    """The path of shadowserved: the named one, this package's, or that of $PATH."""
    if named:
        if not os.access(named, os.X_OK):
            raise DaemonError(f"daemon: {named} is no program")
        return named
    inside = Path(__file__).resolve().parent / "native" / "shadowserved"
    if os.access(inside, os.X_OK):
        return str(inside)
    found = shutil.which("shadowserved")
    if not found:
        raise DaemonError(
            f"shadowserved was not found: neither {inside} nor $PATH has it; "
            "name one with the option 'daemon', or a running one with 'socket'"
        )
    return found


def _private_socket(store: str, profiles: str = "") -> str:
    """The user's default socket; daemons of other stores or profiles have a socket each."""
    socket = default_socket()
    if not store and not profiles:
        return socket
    name = store + ("\0" + profiles if profiles else "")
    stem = socket[: -len(".sock")] if socket.endswith(".sock") else socket
    return f"{stem}-{hashlib.sha256(name.encode()).hexdigest()[:12]}.sock"


@contextmanager
def _locked(path: str) -> Iterator[None]:
    Path(path).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise DaemonError(f"another process holds {path} for too long") from None
                time.sleep(0.05)
        yield
    finally:
        os.close(fd)


def _start(options: Options, socket: str) -> None:
    program = find_daemon(options.daemon)
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    log = folder / "shadowserved.log"
    arguments = ["--socket", socket, "--store", options.store or default_store()]
    profiles = options.profiles or default_profiles()
    if profiles:
        known = profiles == "store"
        arguments += ["--profiles", profiles if known else str(Path(profiles).absolute())]
    arguments += ["--detach", "--idle-exit-s", str(IDLE_EXIT_S), "--log-file", str(log)]
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    command = [sys.executable, "-I", "-S", "-c", _UNPINNED, program, *arguments]
    with log.open("ab") as output:
        started_at = output.tell()
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                timeout=START_TIMEOUT_S,
                check=False,
                cwd="/",
            )
        except (OSError, subprocess.TimeoutExpired) as failure:
            raise DaemonError(f"{program} did not start: {failure}") from failure
    if done.returncode:
        raise DaemonError(f"{program} exited with {done.returncode}: {_last_line(log, started_at)}")
    deadline = time.monotonic() + START_TIMEOUT_S
    while not answers(socket):
        if time.monotonic() > deadline:
            raise DaemonError(f"{program} was started but does not answer on {socket}, see {log}")
        time.sleep(0.05)


def _last_line(log: Path, start: int) -> str:
    with log.open("rb") as file:
        file.seek(start)
        lines = file.read(65536).decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"no message, see {log}"
