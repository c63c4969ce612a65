# SPDX-License-Identifier: Apache-2.0
"""The TLS port: who is let in, what a hostile peer can do, which mistakes are explained."""

from __future__ import annotations

import contextlib
import random
import re
import resource
import socket
import ssl
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from daemon_rig import BUILD, SOON_S, Daemon, Engine, flags, key, keys, message, wait_until
from relay_rig import Authority, Relay, Relayed, port_of
from test_life import lowest_free_descriptor

Make = Callable[..., Relayed]
HELLO = b"ssv-kv\r\n" + struct.pack("<HHIII", 1, 1, 0, 1, 0) + b"raw".ljust(64, b"\0")


@pytest.fixture
def card(folder: Path, authority: Authority, processes: list[Daemon | Relay]) -> Daemon:
    names = authority.sign("card", "IP:127.0.0.1")
    card = Daemon(folder, "card", listen_tls="127.0.0.1:0", tls_names="host, other", **names)
    processes.append(card)
    return card.start()


def connect(card: Daemon, host: str = "127.0.0.1") -> socket.socket:
    peer = socket.create_connection(("127.0.0.1", port_of(card)), source_address=(host, 0))
    peer.settimeout(SOON_S)
    return peer


def secure(card: Daemon, machine: dict[str, str] | None, authority: Authority) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=str(authority.certificate))
    if machine:
        context.load_cert_chain(machine["tls_cert"], machine["tls_key"])
    return context.wrap_socket(connect(card), server_hostname="card")


def receive(peer: socket.socket) -> tuple[int, bytes] | None:
    """(type, body), or None at the end."""

    def exactly(count: int) -> bytes | None:
        data = b""
        while len(data) < count:
            piece = peer.recv(count - len(data))
            if not piece:
                return None
            data += piece
        return data

    head = exactly(16)
    if head is None:
        return None
    total, kind, _, _ = struct.unpack("<IHHQ", head)
    body = exactly(total - 16)
    return None if body is None else (kind, body)


def is_closed(peer: socket.socket) -> bool:
    try:
        while peer.recv(4096):
            pass
    except (ConnectionError, ssl.SSLError):
        pass
    return True


def test_a_session_over_tls_is_served(card: Daemon, authority: Authority) -> None:
    peer = secure(card, authority.sign("host"), authority)
    peer.sendall(message(1, 7, HELLO) + message(11, 8, b""))
    welcome, status = receive(peer), receive(peer)
    assert welcome and welcome[0] == 2
    assert status and status[0] == 12
    assert b'"peer":"host"' in status[1].replace(b" ", b"")
    peer.close()
    Engine(card).close()  # engines of the card's machine are served beside it


def test_a_card_without_a_free_descriptor_closes_connections(
    card: Daemon, authority: Authority
) -> None:
    """It neither keeps them waiting nor wakes for them again and again."""
    limits = resource.prlimit(card.pid, resource.RLIMIT_NOFILE)
    held = lowest_free_descriptor(card)
    resource.prlimit(card.pid, resource.RLIMIT_NOFILE, (held, limits[1]))
    for _ in range(3):
        peer = connect(card)
        assert is_closed(peer)
        peer.close()
    assert card.log_text().count("Too many open files") == 3  # and not without end
    resource.prlimit(card.pid, resource.RLIMIT_NOFILE, limits)
    peer = secure(card, authority.sign("host"), authority)
    peer.sendall(message(1, 7, HELLO))
    assert receive(peer)
    peer.close()


def lookups(count: int, chunks: int) -> list[bytes]:
    head = struct.pack("<BBBBIQ6I", 1, 0, 0, 0, 0, 0, chunks, 0, 0, 0, 0, 0)
    return [message(9, 100 + i, head + keys(1, chunks)) for i in range(count)]


def completed(answers: bytes) -> int:
    """Completions in whole messages of a daemon."""
    count = at = 0
    while at + 16 <= len(answers):
        total, kind = struct.unpack_from("<IH", answers, at)
        if at + total > len(answers):
            break
        assert kind in (2, 10), answers[at : at + total]
        count += struct.unpack_from("<I", answers, at + 16)[0] if kind == 10 else 0
        at += total
    return count


@pytest.mark.parametrize("piece", [1 << 20, 16384, 1000, 61])
def test_records_may_come_together_or_in_pieces(
    card: Daemon, authority: Authority, piece: int
) -> None:
    """Everything that was sent is answered, though many records lie in one segment or one record
    in many: what TLS read ahead is not forgotten."""
    machine = authority.sign("host")
    context = ssl.create_default_context(cafile=str(authority.certificate))
    context.load_cert_chain(machine["tls_cert"], machine["tls_key"])
    coming, going = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(coming, going, server_hostname="card")
    peer = connect(card)

    def until_done(call: Callable[[], Any]) -> Any:
        while True:
            try:
                return call()
            except ssl.SSLWantReadError:
                peer.sendall(going.read())
                coming.write(peer.recv(1 << 16))

    until_done(tls.do_handshake)
    wanted = lookups(30, 40)
    for text in (message(1, 7, HELLO), *wanted):  # a record each
        tls.write(text)
    said = going.read()
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for at in range(0, len(said), piece):
        peer.sendall(said[at : at + piece])
    answers = b""
    while completed(answers) < len(wanted):
        answers += until_done(lambda: tls.read(1 << 16))
    assert completed(answers) == len(wanted)
    peer.close()


@pytest.mark.parametrize("kind", [1, 2, 3, 4])
def test_memory_of_this_machine_cannot_be_registered_over_tls(
    card: Daemon, authority: Authority, kind: int
) -> None:
    peer = secure(card, authority.sign("host"), authority)
    peer.sendall(message(1, 7, HELLO))
    assert receive(peer)
    numbers = struct.pack("<IBB5HIII", kind, 0, 0, 0, 0, 0, 0, 1, 16, 1, 0)
    gpu = bytes(88) if kind > 2 else b""
    body = numbers + bytes(12) + struct.pack("<QQQ", 4096 if kind == 2 else 0, 4096, 0) + gpu
    peer.sendall(message(5, 9, body))
    answer = receive(peer)
    assert answer
    if kind in (1, 4):  # a descriptor must come with it, and none can
        assert answer[0] == 4
        assert b"descriptor" in answer[1]
    else:
        assert answer[0] == 3
        assert b"another machine" in answer[1]
    peer.close()


def refused(card: Daemon, peer: Callable[[], ssl.SSLSocket]) -> None:
    """TLS 1.3: a client whose certificate is not taken learns it at its first read."""
    try:
        stream = peer()
        stream.sendall(message(1, 7, HELLO))
        assert receive(stream) is None
    except (ssl.SSLError, ConnectionError):
        pass
    wait_until(lambda: "session ends engine= " in card.log_text(), "the refusal is logged")


def test_a_client_without_a_certificate_is_refused(card: Daemon, authority: Authority) -> None:
    refused(card, lambda: secure(card, None, authority))
    assert "peer did not return a certificate" in card.log_text()


def test_a_certificate_of_another_authority_is_refused(
    card: Daemon, authority: Authority, folder: Path
) -> None:
    (folder / "other").mkdir()
    stranger = Authority(folder / "other", "stranger").sign("host")
    refused(card, lambda: secure(card, stranger, authority))
    assert "certificate" in card.log_text()


def test_a_name_that_is_not_allowed_is_refused(card: Daemon, authority: Authority) -> None:
    refused(card, lambda: secure(card, authority.sign("somebody"), authority))
    assert 'a certificate of "somebody"' in card.log_text().replace("\\", "")


def test_old_tls_is_refused(card: Daemon, authority: Authority) -> None:
    context = ssl.create_default_context(cafile=str(authority.certificate))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((ssl.SSLError, ConnectionError)):
        context.wrap_socket(connect(card), server_hostname="card")


def test_garbage_and_silence_on_the_tls_port_disturb_nobody(
    card: Daemon, authority: Authority
) -> None:
    witness = Engine(card)
    source = random.Random(5)
    for _ in range(50):
        peer = connect(card)
        with contextlib.suppress(OSError):  # it may have been closed already
            peer.sendall(source.randbytes(source.randrange(1, 3000)))
            peer.shutdown(socket.SHUT_WR)
        assert is_closed(peer)
        peer.close()
    silent = [connect(card) for _ in range(40)]  # more than may be greeted at once
    assert witness.lookup(key(1)) == 0
    Engine(card, name="second").close()  # a new engine of this machine still gets in
    for peer in silent:
        assert is_closed(peer)
        peer.close()
    secure(card, authority.sign("host"), authority).close()
    witness.close()


@pytest.mark.parametrize("hosts", [1, 30])
def test_silent_hosts_keep_no_relay_out(card: Daemon, authority: Authority, hosts: int) -> None:
    machine = authority.sign("host")
    silent = [connect(card, f"127.0.0.{2 + i % hosts}") for i in range(40)]
    for _ in range(3):  # one after another, each while strangers have all the places
        relay = secure(card, machine, authority)
        relay.sendall(message(1, 7, HELLO))
        answer = receive(relay)
        assert answer and answer[0] == 2
        relay.close()
        silent.append(connect(card, "127.0.0.2"))
    Engine(card).close()
    for peer in silent:
        peer.close()


def test_one_host_does_not_push_out_a_relay_that_greets(card: Daemon, authority: Authority) -> None:
    """Nobody else's connection, though older, makes room for one host's many."""
    machine = authority.sign("host")
    context = ssl.create_default_context(cafile=str(authority.certificate))
    context.load_cert_chain(machine["tls_cert"], machine["tls_key"])
    early = connect(card)
    silent = [connect(card, "127.0.0.2") for _ in range(40)]
    relay = context.wrap_socket(early, server_hostname="card")
    relay.sendall(message(1, 7, HELLO))
    answer = receive(relay)
    assert answer and answer[0] == 2
    for peer in (relay, *silent):
        peer.close()


def test_a_greeting_cut_anywhere_is_harmless(card: Daemon, authority: Authority) -> None:
    host = authority.sign("host")
    whole = message(1, 7, HELLO) + message(11, 8, b"")
    for cut in range(0, len(whole), 9):
        peer = secure(card, host, authority)
        peer.sendall(whole[:cut])
        peer.close()
    Engine(card).close()


# ---- mistakes at start ------------------------------------------------------------------------


def start_fails(program: str, **keys_: object) -> str:
    done = subprocess.run(
        [BUILD / program, *flags(dict(keys_))], capture_output=True, text=True, timeout=SOON_S
    )
    assert done.returncode in (1, 2)
    return done.stderr


def test_each_mistake_with_certificates_is_explained(folder: Path, authority: Authority) -> None:
    good = authority.sign("card")
    (folder / "other").mkdir()
    stranger = Authority(folder / "other", "stranger").sign("card")
    expired = authority.sign("old", days=1)
    (folder / "empty.pem").write_text("nothing\n")
    base = {"listen_tls": "127.0.0.1:0", "socket": str(folder / "s"), "store": "memory:"}
    mistakes: list[tuple[dict[str, str], str]] = [
        ({"tls_cert": ""}, "tls_cert: not set"),
        ({"tls_key": str(folder / "no.key")}, "No such file"),
        ({"tls_key": str(folder / "empty.pem")}, "tls_key: "),
        ({"tls_cert": str(folder / "empty.pem")}, "tls_cert: "),
        ({"tls_ca": str(folder / "empty.pem")}, "tls_ca: "),
        ({"tls_key": expired["tls_key"]}, "key values mismatch"),
        ({"tls_ca": stranger["tls_ca"]}, "does not hold against tls_ca"),
        ({"listen_tls": "nowhere"}, "expected host:port"),
        ({"listen_tls": "192.0.2.1:1"}, "listen_tls"),
    ]
    for change, words in mistakes:
        errors = start_fails("daemon/shadowserved", **{**base, **good, **change})
        assert words in errors, (change, errors)


def test_each_mistake_of_a_relay_is_explained(folder: Path, authority: Authority) -> None:
    good = {"socket": str(folder / "s"), "card": "127.0.0.1:9", **authority.sign("host")}
    mistakes = [
        ({"card": ""}, "card: not set"),
        ({"card": "127.0.0.1"}, "expected host:port"),
        ({"tls_ca": ""}, "tls_ca: not set"),
        ({"way": "pigeon"}, 'way: "pigeon"'),
        ({"data_listen": "192.0.2.1:0"}, "data_listen"),
    ]
    for change, words in mistakes:
        errors = start_fails("relay/shadowserve-relay", **{**good, **change})
        assert words in errors, (change, errors)


# ---- the card as the relay sees it ------------------------------------------------------------


def connect_fails(relay: Relay) -> str:
    with pytest.raises(OSError) as caught:
        Engine(relay)
    return str(caught.value)


def test_a_card_that_cannot_be_reached_or_trusted_is_named(
    folder: Path, authority: Authority, processes: list[Daemon | Relay], card: Daemon
) -> None:
    host = authority.sign("host")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{probe.getsockname()[1]}"
    silent = socket.create_server(("127.0.0.1", 0))
    cases = [
        (nobody, {}, "refused"),
        (f"127.0.0.1:{silent.getsockname()[1]}", {"call_timeout_ms": 300}, "in time"),
        (f"127.0.0.1:{port_of(card)}", {"card_name": "another"}, "mismatch"),
        (f"127.0.0.1:{port_of(card)}", authority.sign("somebody"), "alert|closed|reset"),
    ]
    for i, (address, change, words) in enumerate(cases):
        relay = Relay(folder, f"r{i}", address, **{**host, **change})
        processes.append(relay.start())
        started = time.monotonic()
        reason = connect_fails(relay)
        assert re.search(words, reason), (words, reason)
        assert time.monotonic() - started < SOON_S
    silent.close()


def test_engines_behind_one_relay_are_sessions_of_their_own(relayed: Make) -> None:
    rig = relayed()
    engines = [Engine(rig, name=f"engine-{i}") for i in range(3)]
    for i, engine in enumerate(engines):
        engine.memory.fill(i, [0, 1, 2, 3, 4, 5, 6, 7])
        assert engine.do(engine.store(keys(10 * i, 1), list(range(8)))).status == 0
    assert len(engines[0].stat()["clients"]) == 3
    engines[1].close()
    for i in (0, 2):
        assert engines[i].flush().status == 0
        assert engines[i].do(engines[i].fetch(keys(10 * i, 1), list(range(8, 16)))).tokens == 256
        engines[i].close()
