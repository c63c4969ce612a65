# SPDX-License-Identifier: Apache-2.0
"""The whole path through a running daemon: store, look up, fetch; and what it refuses."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections.abc import Callable
from dataclasses import replace

import pytest
from daemon_rig import (
    BLOCK_BYTES,
    CHUNK_BLOCKS,
    Daemon,
    Engine,
    Memory,
    RawClient,
    key,
    keys,
    make_layout,
    region_bytes,
    wait_until,
)
from shadowserve import binding as ssv
from shadowserve.binding import Op, Tier

Start = Callable[..., Daemon]


def test_what_was_stored_comes_back_into_other_blocks(start: Start) -> None:
    engine = Engine(start())
    source, target = list(range(16)), list(range(63, 47, -1))
    engine.memory.fill(1, source)
    untouched = engine.memory.read([20])
    done = engine.do(engine.store(keys(1, 2), source, tier=Tier.LOSSLESS))
    assert (done.status, done.tokens) == (0, 512)
    assert engine.flush().status == 0
    assert engine.lookup(keys(1, 3)) == 512
    done = engine.do(engine.fetch(keys(1, 2), target))
    assert (done.status, done.tokens) == (0, 512)
    assert engine.memory.read(target) == engine.memory.read(source)
    assert engine.memory.read([20]) == untouched
    assert done.kv_bytes == 2 * region_bytes(CHUNK_BLOCKS) and 0 < done.wire_bytes < done.kv_bytes
    engine.close()


def test_a_fetch_may_begin_and_end_inside_a_chunk(start: Start) -> None:
    engine = Engine(start())
    source = list(range(16))
    engine.memory.fill(2, source)
    engine.do(engine.store(keys(1, 2), source, tier=Tier.LOSSLESS))
    engine.flush()
    target = list(range(40, 51))
    done = engine.do(engine.fetch(keys(1, 2), target, first_token=3 * 32))
    assert (done.status, done.tokens) == (0, 11 * 32)
    assert engine.memory.read(target) == engine.memory.read(source[3:14])
    engine.close()


def test_a_miss_shortens_the_prefix(start: Start) -> None:
    engine = Engine(start())
    engine.memory.fill(3, list(range(8)))
    engine.do(engine.store(key(7), list(range(8))))
    engine.flush()
    assert engine.lookup(key(7) + key(8)) == 256
    done = engine.do(engine.fetch(key(7) + key(8), list(range(16, 32))))
    assert (done.status, done.tokens) == (-errno.ENOENT, 256)
    assert engine.do(engine.fetch(key(9), list(range(16, 24)))).status == -errno.ENOENT
    engine.close()


def test_two_engines_share_the_store_and_not_their_memory(start: Start) -> None:
    daemon = start()
    one, two = Engine(daemon, name="one"), Engine(daemon, name="two")
    one.memory.fill(4, list(range(8)))
    one.do(one.store(key(1), list(range(8)), tier=Tier.LOSSLESS))
    one.flush()
    before = one.memory.read(list(range(64)))
    fetches = [two.fetch(key(1), list(range(8 * i, 8 * i + 8))) for i in range(8)]
    two.submit(*fetches)
    assert {c.tokens for c in two.completions(8).values()} == {256}
    for i in range(8):
        assert two.memory.read(list(range(8 * i, 8 * i + 8))) == one.memory.read(list(range(8)))
    assert one.memory.read(list(range(64))) == before
    engines = {s["engine"]: s for s in one.stat()["clients"]}
    assert engines["two"]["requests"] == 8 and engines["one"]["regions"] == 1
    one.close()
    two.close()


def test_memory_by_address_works_like_a_memfd(start: Start) -> None:
    daemon = start()
    session = ssv.Session.connect(daemon.socket)
    size = region_bytes(16)
    buffer = ctypes.create_string_buffer(size)
    content = bytes((i * 7) & 0x3F for i in range(size))
    ctypes.memmove(buffer, content, size)
    prctl = ctypes.CDLL(None).prctl
    prctl(0x59616D61, ctypes.c_ulong(daemon.pid), 0, 0, 0)  # PR_SET_PTRACER
    region = session.region_register(
        ssv.Memory.ADDRESS, make_layout(16), size, address=ctypes.addressof(buffer)
    )
    blocks = list(range(16))
    store = ssv.Request(Op.STORE, 1, keys(1, 2), blocks, region, tier=Tier.LOSSLESS)
    flush = ssv.Request(Op.FLUSH, 2)
    assert session.submit([store, flush]) == 2
    done: dict[int, ssv.Completion] = {}
    while len(done) < 2:
        done.update({c.user_data: c for c in session.poll(1000)})
    assert done[1].tokens == 512
    ctypes.memset(buffer, 0, size)
    assert session.submit([ssv.Request(Op.FETCH, 3, keys(1, 2), blocks, region)]) == 1
    fetched = wait_until(lambda: session.poll(100), "the fetch")
    assert (fetched[0].status, fetched[0].tokens) == (0, 512)
    assert buffer.raw == content
    session.close()


def test_unregister_returns_when_nothing_touches_the_region(start: Start) -> None:
    daemon = start(store="fault+memory:?get-delay-ms=300")
    engine = Engine(daemon)
    engine.submit(engine.fetch(key(1), list(range(8))))
    engine.session.region_unregister(engine.region, 20000)
    done = engine.completions(1)[engine.last]
    assert done.status in (-errno.ECANCELED, -errno.ENOENT)
    with pytest.raises(ssv.Error) as refused:
        engine.submit(engine.fetch(key(1), list(range(8))))
    assert refused.value.errno == errno.ENOENT
    assert engine.stat()["regions"] == []
    engine.close()


def test_cancel_completes_its_target_first(start: Start) -> None:
    engine = Engine(start(store="fault+memory:?get-delay-ms=2000"))
    fetch = engine.fetch(key(1), list(range(8)), deadline_ms=20000)
    cancel = engine.request(Op.CANCEL, target=fetch.user_data)
    engine.submit(fetch, cancel)
    done = list(engine.completions(2).values())
    assert [c.user_data for c in done] == [fetch.user_data, cancel.user_data]
    assert done[0].status == -errno.ECANCELED and done[1].status == 0
    engine.close()


# ---- regions that are refused --------------------------------------------------------------------


def refused(daemon: Daemon, layout: ssv.Layout, memory: Memory, size: int = 0) -> ssv.Error:
    session = ssv.Session.connect(daemon.socket)
    with pytest.raises(ssv.Error) as failure:
        session.region_register(ssv.Memory.MEMFD, layout, size or memory.bytes, fd=memory.fd)
    # The session lives on, and so does the daemon.
    session.stat()
    session.close()
    return failure.value


def test_a_memfd_that_could_shrink_is_refused(start: Start) -> None:
    memory = Memory(16, seal=False)
    failure = refused(start(), make_layout(16), memory)
    assert failure.errno == errno.EPERM
    assert "seal" in str(failure).lower()
    memory.close()


def test_a_region_smaller_than_its_layout_is_refused_with_numbers(start: Start) -> None:
    memory = Memory(16)
    failure = refused(start(), make_layout(17), memory)
    assert failure.errno == errno.ERANGE
    assert any(str(n) in str(failure) for n in (memory.bytes, region_bytes(17)))
    memory.close()


def test_a_memfd_shorter_than_offered_is_refused_with_numbers(start: Start) -> None:
    memory = Memory(16)
    failure = refused(start(), make_layout(17), memory, size=region_bytes(17))
    assert failure.errno in (errno.ERANGE, errno.EINVAL)
    assert str(memory.bytes) in str(failure)
    memory.close()


def test_overlapping_tensors_are_refused_with_numbers(start: Start) -> None:
    memory = Memory(16)
    layout = make_layout(16)
    first = layout.tensors[0]
    tensors = (first, replace(layout.tensors[1], offset=BLOCK_BYTES), *layout.tensors[2:])
    failure = refused(start(), replace(layout, tensors=tensors), memory)
    assert failure.errno == errno.EINVAL
    assert any(character.isdigit() for character in str(failure))
    memory.close()


def test_misaligned_tensors_are_refused_with_numbers(start: Start) -> None:
    memory = Memory(16)
    layout = make_layout(15)
    tensors = tuple(replace(t, offset=t.offset + 1) for t in layout.tensors)
    failure = refused(start(), replace(layout, tensors=tensors), memory)
    assert failure.errno == errno.EINVAL
    assert any(character.isdigit() for character in str(failure))
    memory.close()


def test_a_shape_too_big_for_the_arena_is_refused_with_numbers(start: Start) -> None:
    daemon = start(channels="64")
    failure = refused(daemon, make_layout(16), Memory(16))
    assert failure.errno in (errno.ENOSPC, errno.E2BIG)
    assert "128" in str(failure) and "64" in str(failure)


def test_a_descriptor_that_is_no_memfd_is_refused(start: Start, folder: object) -> None:
    memory = Memory(16)
    read_end, write_end = os.pipe()
    os.close(memory.fd)
    memory.fd = read_end
    assert refused(start(), make_layout(16), memory).errno in (errno.EPERM, errno.EINVAL)
    os.close(write_end)
    fcntl.fcntl(read_end, fcntl.F_GETFD)  # still ours


def test_a_memfd_region_without_a_descriptor_ends_the_session(start: Start) -> None:
    import struct

    client = RawClient(start())
    client.hello()
    assert client.receive() is not None
    client.send(5, 2, struct.pack("<I", 1) + bytes(60))
    assert "descriptor" in (client.close_reason() or "")
    client.close()
