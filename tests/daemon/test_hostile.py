# SPDX-License-Identifier: Apache-2.0
"""Clients that break the protocol or do not read: they are closed, the others never notice."""

from __future__ import annotations

import os
import random
import signal
import socket
import struct
import time
from collections.abc import Callable

import pytest
from daemon_rig import SANITIZED, Daemon, Engine, RawClient, key, message, wait_until

Start = Callable[..., Daemon]

HELLO = b"ssv-kv\r\n" + struct.pack("<HHIII", 1, 1, 0, 1, 0) + b"raw".ljust(64, b"\0")

# What is sent after a good HELLO, and a word of the reason in CLOSE.
MALFORMED = {
    "no such type": (message(99, 1, b""), "no such type"),
    "type zero": (message(0, 1, b""), "no such type"),
    "the daemon's own word": (message(2, 1, bytes(40)), "WELCOME"),
    "a second hello": (message(1, 1, HELLO), "HELLO"),
    "a length of zero": (struct.pack("<IHHQ", 0, 11, 0, 1), "STAT of 0 bytes"),
    "a length below the header": (struct.pack("<IHHQ", 8, 11, 0, 1), "STAT of 8"),
    "a length that is no multiple of 8": (struct.pack("<IHHQ", 17, 11, 0, 1), "STAT of 17"),
    "a length of 4 GiB": (struct.pack("<IHHQ", 0xFFFFFFF8, 9, 0, 1), "REQUEST of"),
    "flags": (struct.pack("<IHHQ", 16, 11, 3, 1), "flags"),
    "a body where none may be": (message(11, 1, bytes(8)), "STAT of 24"),
    "too many keys": (
        message(9, 1, struct.pack("<BBBBIQ6I", 1, 0, 0, 0, 0, 0, 4097, 0, 0, 0, 0, 0)),
        "4097 keys",
    ),
    "keys that are not there": (
        message(9, 1, struct.pack("<BBBBIQ6I", 1, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0) + bytes(32)),
        "its counts make",
    ),
    "too many parts": (message(5, 1, struct.pack("<IBB", 2, 0, 5) + bytes(58)), "5 parts"),
    "tensors that are not there": (
        message(5, 1, struct.pack("<IBB5HIII", 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9) + bytes(36)),
        "its counts make",
    ),
    "reserved bytes": (message(7, 1, struct.pack("<II", 1, 1)), "reserved"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_message_closes_its_session_with_a_reason(start: Start, name: str) -> None:
    daemon = start()
    witness = Engine(daemon)
    content, word = MALFORMED[name]
    client = RawClient(daemon)
    client.hello()
    client.socket.sendall(content)
    assert word in (client.close_reason() or "")
    assert witness.lookup(key(1)) == 0
    assert witness.stat()["daemon"]["sessions_malformed"] == 1
    assert "malformed message" in daemon.log_text()
    client.close()
    witness.close()


@pytest.mark.parametrize("kind", [5, 6])
def test_memory_of_another_machine_is_refused_on_the_unix_socket(start: Start, kind: int) -> None:
    daemon = start()
    client = RawClient(daemon)
    client.hello()
    assert client.receive() is not None  # WELCOME
    numbers = struct.pack("<IBB5HIII", kind, 0, 0, 0, 0, 0, 0, 1, 16, 1, 0)
    body = numbers + bytes(12) + struct.pack("<QQQ", 0, 4096, 0)
    client.socket.sendall(message(5, 9, body + struct.pack("<II", 4, 0) + b"blob" + bytes(508)))
    answer = client.receive()
    assert answer is not None
    assert answer[0] == 3
    assert b"relay's to offer" in answer[2]
    client.close()
    assert Engine(daemon).lookup(key(1)) == 0


@pytest.mark.parametrize("greeting", [b"GET / HTTP/1.1\r\n\r\n", bytes(64), b"\xff" * 64])
def test_another_protocol_is_closed(start: Start, greeting: bytes) -> None:
    daemon = start()
    client = RawClient(daemon)
    client.socket.sendall(greeting)
    assert client.close_reason()
    assert Engine(daemon).lookup(key(1)) == 0
    client.close()


def test_a_message_cut_anywhere_and_then_the_end_is_harmless(start: Start) -> None:
    daemon = start()
    witness = Engine(daemon)
    whole = message(1, 1, HELLO) + message(11, 2, b"") + message(7, 3, struct.pack("<II", 5, 0))
    for cut in range(len(whole)):
        client = RawClient(daemon)
        client.socket.sendall(whole[:cut])
        client.close()
    wait_until(lambda: len(witness.stat()["clients"]) == 1, "the end of them all")
    assert witness.lookup(key(1)) == 0
    witness.close()


def test_a_message_may_come_byte_by_byte(start: Start) -> None:
    client = RawClient(start())
    for byte in message(1, 1, HELLO) + message(11, 2, b""):
        client.socket.sendall(bytes([byte]))
    answers = [client.receive(), client.receive()]
    assert [answer and answer[:2] for answer in answers] == [(2, 1), (12, 2)]
    client.close()


def test_random_messages_leave_the_others_alone(start: Start) -> None:
    seed = int(os.environ.get("SSV_SEED", time.time_ns() & 0xFFFFFFFF))
    print(f"SSV_SEED={seed}")
    source = random.Random(seed)
    daemon = start(log_level="error")
    witness = Engine(daemon)
    for _ in range(100 if SANITIZED else 400):
        client = RawClient(daemon)
        if source.random() < 0.9:
            client.hello()
        try:
            for _ in range(source.randrange(1, 6)):
                client.socket.sendall(random_message(source))
        except (BrokenPipeError, ConnectionResetError):
            pass
        if source.random() < 0.5:
            client.socket.shutdown(socket.SHUT_WR)
        client.close()
        if source.random() < 0.05:
            assert witness.lookup(key(1)) == 0
    wait_until(lambda: len(witness.stat()["clients"]) == 1, "the end of them all")
    assert witness.stat()["jobs"] == 0
    assert daemon.stop() == 0


def random_message(source: random.Random) -> bytes:
    kind = source.choice([0, 1, 2, 5, 7, 9, 9, 9, 9, 11, 13])
    body = bytes(source.getrandbits(8) for _ in range(8 * source.randrange(0, 16)))
    if kind == 9 and source.random() < 0.8:  # well formed, with nonsense in it
        keys_count, blocks_count = source.randrange(0, 5), source.randrange(0, 9)
        head = struct.pack(
            "<BBBBIQ6I",
            source.randrange(0, 7),
            source.randrange(0, 7),
            source.randrange(0, 8),
            source.randrange(0, 7),
            source.randrange(0, 3),
            source.getrandbits(64),
            keys_count,
            blocks_count,
            source.randrange(0, 70),
            source.getrandbits(source.choice([5, 32])),
            source.getrandbits(source.choice([5, 32])),
            source.getrandbits(source.choice([5, 32])),
        )
        body = head + source.randbytes(32 * keys_count) + source.randbytes(4 * blocks_count)
    content = bytearray(message(kind, source.getrandbits(64), body))
    if source.random() < 0.2:
        content[source.randrange(len(content))] = source.getrandbits(8)
    return bytes(content)


def reason_of_a_client_that_never_reads(start: Start) -> str:
    daemon = start()
    witness = Engine(daemon)
    client = RawClient(daemon)
    client.hello()
    client.socket.setblocking(False)
    question = message(11, 5, b"") * 64

    def flood() -> bool:
        for _ in range(100):
            try:
                client.socket.send(question)
            except BlockingIOError:
                break
            except (BrokenPipeError, ConnectionResetError):
                return True
        return bool(witness.stat()["daemon"]["sessions_unread"])

    wait_until(flood, "the flood to fill the buffer")
    assert witness.lookup(key(1)) == 0
    client.socket.setblocking(True)
    reason = client.close_reason()
    wait_until(lambda: len(witness.stat()["clients"]) == 1, "the session's end")
    client.close()
    witness.close()
    return reason or ""


def test_a_client_that_never_reads_is_closed_and_told(start: Start) -> None:
    assert "does not read" in reason_of_a_client_that_never_reads(start)


def test_more_requests_than_allowed_is_malformed(start: Start) -> None:
    daemon = start(requests=4096)
    client = RawClient(daemon)
    client.hello()
    assert client.receive() is not None
    one = struct.pack("<BBBBIQ6I", 1, 0, 0, 0, 0, 0, 1, 0, 1, 0, 0, 0) + bytes(32)
    daemon.signal(signal.SIGSTOP)  # so that it reads them all at once, and completes none before
    client.socket.sendall(b"".join(message(9, i, one) for i in range(1025)))
    daemon.signal(signal.SIGCONT)
    assert "1024" in (client.close_reason() or "")
    client.close()


def test_more_descriptors_than_messages_is_malformed(start: Start) -> None:
    daemon = start()
    client = RawClient(daemon)
    client.hello()
    assert client.receive() is not None  # its own descriptors are open by now
    before = len(os.listdir(f"/proc/{daemon.pid}/fd"))
    for _ in range(8):
        try:
            socket.send_fds(client.socket, [message(11, 2, b"")], [0, 0, 0])
        except (BrokenPipeError, ConnectionResetError):
            break
    assert "descriptors" in (client.close_reason() or "")
    client.close()
    wait_until(
        lambda: len(os.listdir(f"/proc/{daemon.pid}/fd")) <= before - 2, "its descriptors closed"
    )
