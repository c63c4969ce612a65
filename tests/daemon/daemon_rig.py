# SPDX-License-Identifier: Apache-2.0
"""A daemon process, and an engine without a model: sessions, memory and keys made up."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from shadowserve import binding as ssv
from shadowserve.binding import Axis, Completion, Digit, Layout, Op, Part, Request, Role, Tensor

BUILD = Path(os.environ["SHADOWSERVE_BUILD"])
PROGRAM = BUILD / "daemon" / "shadowserved"
SANITIZED = BUILD.name in ("asan", "tsan")
SOON_S = 30.0  # bounds a failure

LAYERS, HEADS, DIM, BLOCK_TOKENS, ELEMENT = 2, 2, 64, 32, 2
BLOCK_BYTES = BLOCK_TOKENS * HEADS * DIM * ELEMENT
CHUNK_BLOCKS = 256 // BLOCK_TOKENS


@contextmanager
def short_folder() -> Iterator[Path]:
    path = tempfile.mkdtemp(prefix="ssv-")
    try:
        yield Path(path)
    finally:
        os.chmod(path, 0o700)
        shutil.rmtree(path, ignore_errors=True)


def wait_until(condition: Any, what: str) -> Any:
    deadline = time.monotonic() + SOON_S
    while time.monotonic() < deadline:
        answer = condition()
        if answer:
            return answer
        time.sleep(0.01)
    raise AssertionError(f"not within {SOON_S:.0f} s: {what}")


def flags(keys: dict[str, object]) -> list[str]:
    return [f"--{key}={value}".replace("_", "-", key.count("_")) for key, value in keys.items()]


class Daemon:
    program = PROGRAM

    def __init__(self, folder: Path, name: str, **keys: object) -> None:
        self.socket = str(keys.pop("socket", folder / f"{name}.sock"))
        self.log = folder / f"{name}.log"
        self.prefix: list[str] = []  # what the program runs under: a namespace
        self.keys = {
            **self.defaults(folder),
            "log_level": "debug",
            "log_file": str(self.log),
            "socket": self.socket,
        }
        self.keys.update({key: str(value) for key, value in keys.items()})
        self.process: subprocess.Popen[str] | None = None

    def defaults(self, folder: Path) -> dict[str, str]:
        return {"store": f"file:{folder}/store", "arena": "64MiB", "lanes": "4", "captures": "8"}

    def start(self) -> Self:
        self.process = subprocess.Popen(
            [*self.prefix, self.program, *flags(dict(self.keys))],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout
        self.greeting = self.process.stdout.readline()
        if not self.greeting:
            _, errors = self.process.communicate(timeout=SOON_S)
            raise AssertionError(f"exit {self.process.returncode}: {errors}")
        return self

    @property
    def pid(self) -> int:
        assert self.process
        return self.process.pid

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self) -> int:
        assert self.process
        _, errors = self.process.communicate(timeout=SOON_S)
        assert not any(words in errors for words in ("Sanitizer", "runtime error:")), errors
        return int(self.process.returncode)

    def stop(self) -> int:
        self.signal(signal.SIGTERM)
        return self.wait()

    def discard(self) -> None:
        """End what a test left running; a sanitizer's report fails the test."""
        if self.process is None or self.process.returncode is not None:
            return
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        try:
            self.wait()
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError("the daemon did not end on SIGTERM") from None

    def log_text(self) -> str:
        return self.log.read_text()

    def rss_bytes(self) -> int:
        pages = Path(f"/proc/{self.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")


def key(number: int) -> bytes:
    return struct.pack("<Q", number) + bytes(24)


def keys(first: int, count: int) -> bytes:
    return b"".join(key(first + i) for i in range(count))


def make_layout(blocks: int, **changes: Any) -> Layout:
    digits = (
        Digit(Axis.TOKEN, BLOCK_TOKENS, HEADS * DIM),
        Digit(Axis.HEAD, HEADS, DIM),
        Digit(Axis.DIM, DIM, 1),
    )
    fields: dict[str, Any] = {
        "dtype": ssv.Dtype.BF16,
        "layer0": 0,
        "layers_count": LAYERS,
        "layers_total": LAYERS,
        "rank": 0,
        "ranks_count": 1,
        "block_tokens": BLOCK_TOKENS,
        "blocks_count": blocks,
        "model": bytes(8),
        "parts": (Part(Role.K, 0, HEADS, DIM, digits), Part(Role.V, 0, HEADS, DIM, digits)),
        "tensors": tuple(
            Tensor(layer, part, (layer * 2 + part) * blocks * BLOCK_BYTES, BLOCK_BYTES)
            for layer in range(LAYERS)
            for part in range(2)
        ),
    }
    fields.update(changes)
    return Layout(**fields)


def region_bytes(blocks: int) -> int:
    return LAYERS * 2 * blocks * BLOCK_BYTES


class Memory:
    """A sealed memfd with room for some blocks, mapped here too."""

    def __init__(self, blocks: int, seal: bool = True) -> None:
        import fcntl
        import mmap

        self.blocks = blocks
        self.bytes = region_bytes(blocks)
        self.fd = os.memfd_create("kv", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, self.bytes)
        if seal:
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        self.map = mmap.mmap(self.fd, self.bytes)

    def fill(self, seed: int, blocks: list[int]) -> None:
        """Plausible KV: bf16 of small numbers, different for every block and tensor."""
        import random

        source = random.Random(seed)
        for tensor in range(LAYERS * 2):
            for block in blocks:
                words = [0x3F00 | source.getrandbits(8) for _ in range(BLOCK_BYTES // 2)]
                self.write(tensor, block, struct.pack(f"<{len(words)}H", *words))

    def _at(self, tensor: int, block: int) -> int:
        return (tensor * self.blocks + block) * BLOCK_BYTES

    def write(self, tensor: int, block: int, content: bytes) -> None:
        at = self._at(tensor, block)
        self.map[at : at + BLOCK_BYTES] = content

    def read(self, blocks: list[int]) -> bytes:
        return b"".join(
            self.map[self._at(t, b) : self._at(t, b) + BLOCK_BYTES]
            for t in range(LAYERS * 2)
            for b in blocks
        )

    def close(self) -> None:
        self.map.close()
        os.close(self.fd)


class Engine:
    """A session with one region."""

    def __init__(
        self, daemon: Daemon, blocks: int = 64, name: str = "engine", **changes: Any
    ) -> None:
        self.session = ssv.Session.connect(daemon.socket, engine_id=name, connect_timeout_ms=20000)
        self.memory = Memory(blocks)
        self.layout = make_layout(blocks, **changes)
        self.region = self.session.region_register(
            ssv.Memory.MEMFD, self.layout, self.memory.bytes, fd=self.memory.fd
        )
        self.last = 0

    def request(self, op: Op, **fields: Any) -> Request:
        self.last += 1
        return Request(op, self.last, **fields)

    def store(self, keys: bytes, blocks: list[int], **fields: Any) -> Request:
        return self.request(Op.STORE, keys=keys, blocks=blocks, region=self.region, **fields)

    def fetch(self, keys: bytes, blocks: list[int], **fields: Any) -> Request:
        return self.request(Op.FETCH, keys=keys, blocks=blocks, region=self.region, **fields)

    def submit(self, *requests: Request) -> None:
        assert self.session.submit(requests) == len(requests)

    def completions(self, count: int) -> dict[int, Completion]:
        done: dict[int, Completion] = {}
        deadline = time.monotonic() + SOON_S
        while len(done) < count:
            assert time.monotonic() < deadline, f"{len(done)} of {count} completions"
            for completion in self.session.poll(100):
                assert completion.user_data not in done, "two completions of one request"
                done[completion.user_data] = completion
        return done

    def do(self, request: Request) -> Completion:
        self.submit(request)
        return self.completions(1)[request.user_data]

    def flush(self) -> Completion:
        return self.do(self.request(Op.FLUSH))

    def lookup(self, keys: bytes, **fields: Any) -> int:
        tokens: int = self.do(self.request(Op.LOOKUP, keys=keys, **fields)).tokens
        return tokens

    def stat(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.session.stat(timeout_ms=20000))
        return answer

    def close(self) -> None:
        self.session.close()
        self.memory.close()


class RawClient:
    """Speaks bytes: what a broken or hostile client would send."""

    def __init__(self, daemon: Daemon) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(daemon.socket)  # waits while the daemon's queue is full
        self.socket.settimeout(SOON_S)

    def hello(self, first: int = 1, last: int = 1, name: bytes = b"raw") -> None:
        body = b"ssv-kv\r\n" + struct.pack("<HHIII", first, last, 0, 1, 0) + name.ljust(64, b"\0")
        self.send(1, 1, body)

    def send(self, kind: int, number: int, body: bytes) -> None:
        self.socket.sendall(message(kind, number, body))

    def receive(self) -> tuple[int, int, bytes] | None:
        """(type, id, body), or None at the end of the stream."""
        head = self._exactly(16)
        if head is None:
            return None
        total, kind, _, number = struct.unpack("<IHHQ", head)
        body = self._exactly(total - 16)
        return None if body is None else (kind, number, body)

    def close_reason(self) -> str | None:
        """Reads to the end; the text of CLOSE, if there was one."""
        reason = None
        try:
            while answer := self.receive():
                if answer[0] == 4:
                    reason = answer[2][8:].rstrip(b"\0").decode()
        except ConnectionResetError:
            pass
        return reason

    def _exactly(self, count: int) -> bytes | None:
        data = b""
        while len(data) < count:
            piece = self.socket.recv(count - len(data))
            if not piece:
                return None
            data += piece
        return data

    def close(self) -> None:
        self.socket.close()


def message(kind: int, number: int, body: bytes) -> bytes:
    body += bytes(-len(body) % 8)
    return struct.pack("<IHHQ", 16 + len(body), kind, 0, number) + body


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Redis:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        options += ["--save", "", "--appendonly", "yes", "--appendfsync", "always"]
        self.process = subprocess.Popen(
            ["redis-server", *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_until(self._answers, "redis-server to answer")

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as link:
                link.sendall(b"PING\r\n")
                return link.recv(16).startswith(b"+PONG")
        except OSError:
            return False

    def stop(self, number: int = signal.SIGKILL) -> None:
        if self.process:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(number)
            self.process.wait(SOON_S)
            self.process = None
