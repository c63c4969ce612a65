# SPDX-License-Identifier: Apache-2.0
"""A daemon's life: start, sharing a socket, signals, and the death of either side."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from daemon_rig import (
    PROGRAM,
    SOON_S,
    Daemon,
    Engine,
    Memory,
    RawClient,
    flags,
    key,
    keys,
    make_layout,
    wait_until,
)
from shadowserve import binding as ssv
from shadowserve.binding import Tier

Start = Callable[..., Daemon]


def run(daemon: Daemon, *extra: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PROGRAM, *flags(dict(daemon.keys)), *extra],
        capture_output=True,
        text=True,
        timeout=SOON_S,
        check=False,
    )


# ---- starting ------------------------------------------------------------------------------------


def test_the_greeting_shows_the_sums_and_no_password(start: Start) -> None:
    daemon = start(store="fault+memory:?seed=1")
    assert daemon.greeting.startswith("shadowserved version=")
    for part in (f"pid={daemon.pid}", "arena=64MiB", "allocated=", f"socket={daemon.socket}"):
        assert part in daemon.greeting
    assert stat.S_IMODE(os.stat(daemon.socket).st_mode) == 0o600
    assert daemon.stop() == 0
    assert not os.path.exists(daemon.socket)


def test_a_second_daemon_is_refused_with_the_firsts_pid(start: Start) -> None:
    first = start()
    second = run(first)
    assert second.returncode == 3
    assert f"pid {first.pid}" in second.stderr
    assert Engine(first).lookup(key(1)) == 0


def test_a_stale_socket_is_recognised(start: Start, folder: Path) -> None:
    first = start(socket=str(folder / "same.sock"))
    first.signal(signal.SIGKILL)
    first.wait()
    assert os.path.exists(first.socket)
    second = start(socket=str(folder / "same.sock"))
    assert Engine(second).lookup(key(1)) == 0


def test_a_live_socket_without_its_lock_is_not_taken(start: Start) -> None:
    first = start()
    os.unlink(first.socket + ".pid")
    second = run(first)
    assert second.returncode == 3
    assert f"pid {first.pid}" in second.stderr
    assert Engine(first).lookup(key(1)) == 0


def test_a_file_in_the_way_is_left_alone(folder: Path) -> None:
    path = folder / "precious"
    path.write_text("data")
    done = run(Daemon(folder, "d", socket=str(path)))
    assert done.returncode == 1
    assert "no socket" in done.stderr
    assert path.read_text() == "data"


def test_a_read_only_folder_is_named(small_disk: Path, folder: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    for keys_said in (
        {"socket": f"{small_disk}/s", "store": "memory:"},
        {"store": f"file:{small_disk}/store"},
        {"store": "memory:", "log_file": f"{small_disk}/log"},
    ):
        done = run(Daemon(folder, "d", **keys_said))
        assert done.returncode == 1
        assert str(small_disk) in done.stderr and "ead-only" in done.stderr


# ---- signals -------------------------------------------------------------------------------------


def test_a_client_that_speaks_while_the_daemon_ends_is_told(start: Start) -> None:
    """A question that came in the same moment is no hang-up."""
    daemon = start()
    client = RawClient(daemon)
    client.hello()
    assert client.receive() is not None
    daemon.signal(signal.SIGSTOP)  # so that it finds both at once, the signal first
    daemon.signal(signal.SIGTERM)
    client.send(11, 7, b"")
    daemon.signal(signal.SIGCONT)
    assert "shutting down" in (client.close_reason() or "")
    assert daemon.wait() == 0
    client.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_ends_with_0(start: Start, number: int) -> None:
    daemon = start()
    engine = Engine(daemon)
    engine.memory.fill(1, list(range(32)))
    stores = [engine.store(key(i), list(range(8 * i, 8 * i + 8))) for i in range(4)]
    engine.submit(*stores)
    assert {c.tokens for c in engine.completions(4).values()} == {256}  # captured, not yet put
    daemon.signal(number)
    assert daemon.wait() == 0
    with pytest.raises(ssv.SessionEnded):
        engine.session.poll(20000)
    assert "shutting down" in engine.session.close_reason
    again = start()
    assert Engine(again).lookup(keys(0, 4)) == 1024


def test_drain_is_cut_short_at_its_deadline(start: Start) -> None:
    daemon = start(
        store="fault+memory:?put-delay-ms=60000", drain_timeout_ms=100, store_deadline_ms=120000
    )
    engine = Engine(daemon)
    engine.memory.fill(1, list(range(8)))
    assert engine.do(engine.store(key(1), list(range(8)))).tokens == 256
    daemon.signal(signal.SIGTERM)
    assert daemon.wait() == 0
    assert "drain cut short" in daemon.log_text()


def test_sighup_opens_the_log_again(start: Start, folder: Path) -> None:
    daemon = start()
    moved = folder / "moved.log"
    daemon.log.rename(moved)
    daemon.signal(signal.SIGHUP)
    wait_until(daemon.log.exists, "a new log")
    wait_until(lambda: "log reopened" in daemon.log_text(), "its first line")
    Engine(daemon).close()
    wait_until(lambda: "session begins" in daemon.log_text(), "later lines")
    assert "session begins" not in moved.read_text()


def test_log_lines_have_time_level_and_event(start: Start) -> None:
    import re

    daemon = start()
    Engine(daemon).close()
    client = RawClient(daemon)
    client.hello(name=b"evil\n2026-11-23T00:00:00.000000Z error forged")
    assert "printable" in (client.close_reason() or "")
    client.close()
    assert daemon.stop() == 0
    line = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z (error|warn|info|debug) \S.*$")
    lines = daemon.log_text().splitlines()
    assert len(lines) >= 5
    assert all(line.match(text) for text in lines)
    assert not any(" error forged" in text[:60] for text in lines)


def test_a_second_signal_ends_the_wait(start: Start) -> None:
    daemon = start(
        store="fault+memory:?put-delay-ms=60000", drain_timeout_ms=50000, store_deadline_ms=120000
    )
    engine = Engine(daemon)
    engine.memory.fill(1, list(range(8)))
    assert engine.do(engine.store(key(1), list(range(8)))).tokens == 256
    daemon.signal(signal.SIGTERM)
    wait_until(lambda: "draining" in daemon.log_text(), "the first one's effect")
    daemon.signal(signal.SIGTERM)
    assert daemon.wait() == 0
    engine.close()


def test_a_log_that_nobody_reads_does_not_stop_the_daemon(start: Start) -> None:
    daemon = start(log_file="")  # stderr is a pipe of ours, never read here
    for _ in range(600):  # more than a pipe holds
        assert try_connect(daemon)
    engine = Engine(daemon)
    assert engine.lookup(key(1)) == 0
    engine.close()
    assert daemon.stop() == 0


# ---- the death of either side --------------------------------------------------------------------


def test_kill_9_of_the_daemon_completes_everything_once(start: Start) -> None:
    daemon = start(store="fault+memory:?get-delay-ms=60000")
    engine = Engine(daemon)
    fetches = [
        engine.fetch(key(i), list(range(8 * i, 8 * i + 8)), deadline_ms=100000) for i in range(8)
    ]
    engine.submit(*fetches)
    daemon.signal(signal.SIGKILL)
    done = engine.completions(8)
    assert {c.status for c in done.values()} == {-errno.ENOTCONN}
    with pytest.raises(ssv.SessionEnded):
        engine.session.poll(1000)
    assert "died" in engine.session.close_reason
    daemon.wait()


def engine_process(daemon: Daemon, fetches: int, then: Callable[[], None]) -> int:
    """A forked engine with fetches in flight; returns its pid when they are."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: never outlives the test
        try:
            engine = Engine(daemon, name="other")
            engine.submit(
                *[
                    engine.fetch(key(i), list(range(8 * i, 8 * i + 8)), deadline_ms=100000)
                    for i in range(fetches)
                ]
            )
            os.write(write_end, b"x")
            then()
        finally:
            os._exit(0)
    os.close(write_end)
    assert os.read(read_end, 1) == b"x"
    os.close(read_end)
    return pid


def test_kill_9_of_an_engine_frees_what_it_held(start: Start) -> None:
    daemon = start(store="fault+memory:?get-delay-ms=60000")
    witness = Engine(daemon)
    pid = engine_process(daemon, 4, signal.pause)
    assert len(witness.stat()["clients"]) == 2
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    wait_until(lambda: len(witness.stat()["clients"]) == 1, "the session's end")
    state = witness.stat()
    assert len(state["regions"]) == 1 and state["jobs"] == 0
    assert "session ends engine=other" in daemon.log_text()
    witness.close()


def test_an_engine_that_dies_while_a_child_holds_its_socket_is_noticed(start: Start) -> None:
    daemon = start()
    witness = Engine(daemon)

    def leave_a_child() -> None:
        if os.fork() == 0:
            time.sleep(SOON_S)
            os._exit(0)

    pid = engine_process(daemon, 0, leave_a_child)
    os.waitpid(pid, 0)
    wait_until(lambda: len(witness.stat()["clients"]) == 1, "the session's end")
    witness.close()


def test_a_stopped_engine_does_not_hold_up_the_daemon(start: Start) -> None:
    daemon = start()
    writer = Engine(daemon)
    writer.memory.fill(1, list(range(8)))
    writer.do(writer.store(key(0), list(range(8))))
    writer.flush()
    pid = engine_process(daemon, 1, lambda: os.kill(os.getpid(), signal.SIGSTOP))
    os.waitpid(pid, os.WUNTRACED)
    for _ in range(20):
        assert writer.do(writer.fetch(key(0), list(range(8, 16)))).tokens == 256
    os.kill(pid, signal.SIGCONT)
    os.waitpid(pid, 0)
    writer.close()


def test_a_stopped_daemon_completes_once_when_it_goes_on(start: Start) -> None:
    daemon = start()
    engine = Engine(daemon)
    engine.memory.fill(1, list(range(8)))
    engine.do(engine.store(key(0), list(range(8)), tier=Tier.LOSSLESS))
    engine.flush()
    daemon.signal(signal.SIGSTOP)
    wait_until(lambda: "T (stopped)" in Path(f"/proc/{daemon.pid}/status").read_text(), "the stop")
    fetch = engine.fetch(key(0), list(range(8, 16)), deadline_ms=50)
    engine.submit(fetch)
    assert engine.session.poll(200) == []  # past its deadline: the library has no clock for it
    assert engine.session.in_flight == 1 and engine.session.is_open
    with pytest.raises(ssv.Error):
        engine.session.region_unregister(engine.region, 50)
    daemon.signal(signal.SIGCONT)
    done = engine.completions(1)
    assert list(done) == [fetch.user_data]
    assert done[fetch.user_data].status in (0, -errno.ETIMEDOUT, -errno.ECANCELED)
    engine.session.region_unregister(engine.region, 20000)
    assert engine.session.poll(50) == []
    engine.close()


def test_a_daemon_stopped_in_the_middle_of_a_fetch_completes_once(
    start: Start, folder: Path
) -> None:
    daemon = start(store=f"fault+file:{folder}/store?get-delay-ms=2000")
    engine = Engine(daemon)
    engine.memory.fill(1, list(range(8)))
    engine.do(engine.store(key(0), list(range(8)), tier=Tier.LOSSLESS))
    engine.flush()
    fetch = engine.fetch(key(0), list(range(8, 16)), deadline_ms=60000)
    engine.submit(fetch)
    assert engine.stat()["jobs"] == 1  # a worker has it
    daemon.signal(signal.SIGSTOP)
    assert engine.session.poll(400) == []
    daemon.signal(signal.SIGCONT)
    done = engine.completions(1)[fetch.user_data]
    assert (done.status, done.tokens) == (0, 256)
    assert engine.memory.read(list(range(8, 16))) == engine.memory.read(list(range(8)))
    assert engine.session.poll(50) == []
    engine.close()


def test_a_registration_that_came_too_late_is_taken_back(start: Start) -> None:
    daemon = start()
    session = ssv.Session.connect(daemon.socket)
    memory = Memory(16)
    daemon.signal(signal.SIGSTOP)
    with pytest.raises(ssv.Error) as failure:
        session.region_register(ssv.Memory.MEMFD, make_layout(16), memory.bytes, fd=memory.fd)
    assert failure.value.errno == errno.ETIMEDOUT
    daemon.signal(signal.SIGCONT)

    def taken_back() -> bool:
        session.poll(10)
        state = json.loads(session.stat())
        return not state["regions"] and "region registered" in daemon.log_text()

    wait_until(taken_back, "the region's removal")
    session.close()
    memory.close()


# ---- detached ------------------------------------------------------------------------------------


def alive(pid: int) -> bool:
    try:
        return "zombie" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_detached_serves_when_it_returns_and_ends_when_idle(folder: Path) -> None:
    template = Daemon(folder, "d")
    done = run(template, "--detach", "--idle-exit-s", "1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    engine = Engine(template)
    daemon_pid = engine.stat()["daemon"]["pid"]
    descriptors = [os.readlink(f"/proc/{daemon_pid}/fd/{fd}") for fd in ("0", "1", "2")]
    assert descriptors == ["/dev/null"] * 3
    assert os.getsid(daemon_pid) != os.getsid(0)
    # It does not end while somebody is connected.
    time.sleep(1.2)
    assert engine.lookup(key(1)) == 0
    engine.close()
    wait_until(lambda: not alive(daemon_pid), "its end")
    assert not os.path.exists(template.socket)
    assert 'reason="idle"' in template.log_text()


def test_twenty_starters_get_one_daemon(folder: Path) -> None:
    template = Daemon(folder, "d", store="memory:")
    command = [PROGRAM, *flags(dict(template.keys)), "--detach", "--idle-exit-s", "1"]
    starters = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(20)]
    assert [starter.wait(60) for starter in starters] == [0] * 20
    for starter in starters:
        assert starter.stderr and starter.stderr.read() == b""
    sessions = [ssv.Session.connect(template.socket) for _ in range(5)]
    pids = {json.loads(session.stat())["daemon"]["pid"] for session in sessions}
    (pid,) = pids
    for session in sessions:
        session.close()
    wait_until(lambda: not alive(pid), "its end")


def test_detached_says_why_it_cannot(folder: Path) -> None:
    done = run(Daemon(folder, "d", store="nosuch:/x"), "--detach")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "nosuch" in done.stderr


# ---- limits --------------------------------------------------------------------------------------


def test_more_sessions_than_configured_are_refused_with_the_number(start: Start) -> None:
    daemon = start(sessions=2)
    held = [ssv.Session.connect(daemon.socket) for _ in range(2)]
    with pytest.raises(ssv.Error) as failure:
        ssv.Session.connect(daemon.socket)
    assert "2" in str(failure.value)
    held.pop().close()
    wait_until(lambda: len(held) == 1 and try_connect(daemon), "room for another")


def try_connect(daemon: Daemon) -> bool:
    try:
        ssv.Session.connect(daemon.socket).close()
    except ssv.Error:
        return False
    return True


def lowest_free_descriptor(daemon: Daemon) -> int:
    """The number that the daemon's next descriptor would have, once the probe that found it ready
    has been let go: the limit that forbids it."""
    seen: list[set[str]] = []

    def at_rest() -> bool:
        seen.append(set(os.listdir(f"/proc/{daemon.pid}/fd")))
        return len(seen) >= 20 and all(one == seen[-1] for one in seen[-20:])

    wait_until(at_rest, "the daemon's descriptors at rest")
    used = {int(name) for name in seen[-1]}
    return next(number for number in range(len(used) + 1) if number not in used)


def test_running_out_of_descriptors_refuses_and_recovers(start: Start) -> None:
    import resource

    daemon = start()
    witness = Engine(daemon)
    limits = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
    held = lowest_free_descriptor(daemon)
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (held, limits[1]))
    for _ in range(5):
        client = RawClient(daemon)
        assert client.receive() is None
        client.close()
    assert witness.lookup(key(1)) == 0
    assert daemon.log_text().count("Too many open files") == 5  # and not without end
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, limits)
    assert try_connect(daemon)
    witness.close()


def test_silent_connections_do_not_lock_others_out(start: Start) -> None:
    daemon = start(sessions=2)
    silent = [RawClient(daemon) for _ in range(40)]
    wait_until(lambda: try_connect(daemon), "a place, once the silent ones are closed")
    for client in silent:
        client.close()


def test_two_protocol_versions_apart_is_refused_with_both_ranges(start: Start) -> None:
    client = RawClient(start())
    client.hello(7, 9)
    answer = client.receive()
    assert answer is not None
    kind, number, body = answer
    assert (kind, number) == (3, 1)
    assert int.from_bytes(body[:4], "little", signed=True) == -errno.EPROTO
    assert b"7 to 9" in body and b"1 to 1" in body
    client.close()


def test_a_client_of_a_newer_version_that_speaks_ours_is_welcome(start: Start) -> None:
    client = RawClient(start())
    client.hello(1, 9)
    answer = client.receive()
    assert answer is not None and answer[0] == 2
    assert int.from_bytes(answer[2][:2], "little") == 1
    client.close()


def test_the_socket_refuses_other_users(start: Start) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs two users")
    daemon = start()
    os.chmod(os.path.dirname(daemon.socket), 0o755)
    os.chmod(daemon.socket, 0o666)  # as a careless operator might
    pid = os.fork()
    if pid == 0:
        os.setuid(65534)
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.connect(daemon.socket)
            os._exit(7 if stranger.recv(1) == b"" else 1)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 7
    assert "uid=65534" in daemon.log_text()
