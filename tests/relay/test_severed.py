# SPDX-License-Identifier: Apache-2.0
"""A relay whose data port goes away in the middle of a fetch: what the card says then.

The relay here is made of bytes: a TLS session and a listening socket, nothing behind them.
"""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from daemon_rig import (
    BLOCK_BYTES,
    BLOCK_TOKENS,
    DIM,
    HEADS,
    LAYERS,
    SOON_S,
    Daemon,
    Engine,
    keys,
    message,
    region_bytes,
)
from relay_rig import Authority, Relay, port_of
from test_tls import HELLO, receive

BLOCKS = 16


def register(port: int) -> bytes:
    """REGISTER of memory behind a data port, with the layout of make_layout()."""
    body = struct.pack("<IBB5HIII", 5, 0, 2, 0, LAYERS, LAYERS, 0, 1, BLOCK_TOKENS, BLOCKS, 4)
    body += bytes(12) + struct.pack("<QQQ", 0, region_bytes(BLOCKS), 0)
    blob = b"ssv-dt\r\n" + struct.pack("<4H", 1, 4, port, 0) + socket.inet_aton("127.0.0.1")
    blob += bytes(12) + struct.pack("<Q", 77) + b"t" * 32
    body += struct.pack("<II", len(blob), 0) + blob.ljust(512, b"\0")
    digits = ((0, BLOCK_TOKENS, HEADS * DIM), (1, HEADS, DIM), (2, DIM, 1))
    for role in (1, 2):
        part = struct.pack("<BBHHHII", role, 0, 0, HEADS, DIM, len(digits), 0)
        for axis, extent, stride in digits:
            part += struct.pack("<BBHIq", axis, 0, extent, 0, stride)
        body += part.ljust(400, b"\0")
    for tensor in range(4):
        place = tensor * BLOCKS * BLOCK_BYTES
        body += struct.pack("<HHIQQ", tensor // 2, tensor % 2, 0, place, BLOCK_BYTES)
    return message(5, 2, body)


def fetch(region: int) -> bytes:
    body = struct.pack("<BBBBIQ6I", 2, 0, 0, 0, region, 0, 1, 8, 0, 0, 0, 0)
    return message(9, 3, body + keys(1, 1) + struct.pack("<8I", *range(8)))


Ending = Callable[[socket.socket, socket.socket], None]


def close_at_once(listener: socket.socket, peer: socket.socket) -> None:
    peer.close()


def close_after_some(listener: socket.socket, peer: socket.socket) -> None:
    peer.recv(1000)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


def lie(listener: socket.socket, peer: socket.socket) -> None:
    peer.recv(1000)
    peer.sendall(struct.pack("<IIQQ", 3, 0, 1 << 40, 0))


@pytest.mark.parametrize("ending", [close_at_once, close_after_some, lie])
def test_a_lost_data_connection_ends_the_session_without_a_completion(
    authority: Authority,
    start: Callable[..., Daemon],
    ending: Ending,
) -> None:
    card = start()
    engine = Engine(card)
    engine.memory.fill(1, list(range(8)))
    assert engine.do(engine.store(keys(1, 1), list(range(8)))).status == 0
    assert engine.flush().status == 0

    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(SOON_S)
    machine = authority.sign("host")
    context = ssl.create_default_context(cafile=str(authority.certificate))
    context.load_cert_chain(machine["tls_cert"], machine["tls_key"])
    plain = socket.create_connection(("127.0.0.1", port_of(card)))
    plain.settimeout(SOON_S)
    relay = context.wrap_socket(plain, server_hostname="card")
    relay.sendall(message(1, 1, HELLO) + register(listener.getsockname()[1]))
    assert (receive(relay) or (0,))[0] == 2
    kind, body = receive(relay) or (0, b"")
    assert kind == 6, body
    relay.sendall(fetch(struct.unpack_from("<I", body)[0]))
    peer, _ = listener.accept()
    peer.settimeout(SOON_S)
    ending(listener, peer)
    kind, body = receive(relay) or (0, b"")
    assert kind == 4, (kind, body)  # CLOSE, and no COMPLETION before it
    assert b"data connection" in body
    relay.close()
    peer.close()
    listener.close()
    # The engine beside it is not disturbed.
    assert engine.do(engine.fetch(keys(1, 1), list(range(8, 16)))).tokens == 256
    engine.close()


@pytest.fixture
def start(
    folder: Path, authority: Authority, processes: list[Daemon | Relay]
) -> Callable[..., Daemon]:
    def starter() -> Daemon:
        card = Daemon(
            folder,
            "card",
            listen_tls="127.0.0.1:0",
            **authority.sign("card", "IP:127.0.0.1"),
        )
        processes.append(card)
        return card.start()

    return starter
