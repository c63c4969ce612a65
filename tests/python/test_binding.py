# SPDX-License-Identifier: Apache-2.0
"""The binding against the real library: sizes, keys, errors of a missing daemon."""

import ctypes
import errno
import hashlib
import shutil
import subprocess
from array import array
from dataclasses import replace
from pathlib import Path

import pytest
from shadowserve import binding, native
from shadowserve.binding import CHUNK_TOKENS, Dtype, KeyRoot, Part, Role, Session

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", autouse=True)
def library():
    try:
        return native.library()
    except ImportError as missing:
        pytest.skip(str(missing))


def test_structs_have_the_sizes_of_the_header(tmp_path):
    compiler = shutil.which("cc")
    if not compiler:
        pytest.skip("no C compiler")
    names = ["options", "digit", "part", "tensor", "layout", "region", "request", "completion"]
    names.append("key_root")
    lines = "".join(f'printf("%zu\\n", sizeof(struct ssv_{name}));' for name in names)
    source = tmp_path / "sizes.c"
    source.write_text(f'#include <stdio.h>\n#include "shadowserve.h"\nint main(void){{{lines}}}\n')
    program = tmp_path / "sizes"
    subprocess.run(
        [compiler, "-I", str(ROOT / "include"), str(source), "-o", str(program)], check=True
    )
    sizes = [int(line) for line in subprocess.check_output([program], text=True).split()]
    mirrors = ["Options", "Digit", "Part", "Tensor", "Layout", "Region", "Request", "Completion"]
    mirrors.append("KeyRoot")
    assert sizes == [ctypes.sizeof(getattr(native, name)) for name in mirrors]


def test_version_is_the_packages():
    import shadowserve

    assert binding.version() == shadowserve.__version__


def a_root(**changes):
    parts = (Part(Role.K, 0, 2, 64), Part(Role.V, 0, 2, 64))
    root = KeyRoot(Dtype.BF16, 0, 6, 6, 0, 1, parts, bytes(32))
    return binding.key_make_root(replace(root, **changes))


def test_every_field_of_the_root_counts():
    roots = {
        a_root(),
        a_root(dtype=Dtype.FP16),
        a_root(rank=1, ranks_count=2),
        a_root(model_digest=bytes(31) + b"\1"),
        a_root(rope_digest=bytes(31) + b"\1"),
        a_root(name_space="x"),
        a_root(tenant_salt="x"),
        a_root(parts=(Part(Role.K, 0, 2, 64), Part(Role.V, 2, 2, 64))),
    }
    assert len(roots) == 8 and a_root() in roots


def test_chain_is_what_the_header_says():
    root = a_root()
    tokens = list(range(2 * CHUNK_TOKENS + 5))
    extra = bytes(32) + hashlib.sha256(b"x").digest()
    keys = binding.key_chain(root, tokens, extra)
    assert len(keys) == 64
    expected, previous = b"", root
    for index in range(2):
        chunk = array("I", tokens[index * CHUNK_TOKENS : (index + 1) * CHUNK_TOKENS]).tobytes()
        digest = extra[index * 32 : index * 32 + 32]
        previous = hashlib.sha256(previous + chunk + digest).digest()
        expected += previous
    assert keys == expected


def test_a_chain_can_be_continued():
    root, tokens = a_root(), list(range(1000, 1000 + 5 * CHUNK_TOKENS))
    whole = binding.key_chain(root, tokens)
    first = binding.key_chain(root, tokens[: 2 * CHUNK_TOKENS])
    rest = binding.key_chain(first[-32:], tokens[2 * CHUNK_TOKENS :])
    assert whole == first + rest


def test_short_sequences_have_no_key():
    assert binding.key_chain(a_root(), [1] * (CHUNK_TOKENS - 1)) == b""


def test_wrong_lengths_are_refused():
    with pytest.raises(binding.Error) as refused:
        binding.key_chain(b"short", [0] * CHUNK_TOKENS)
    assert refused.value.errno == errno.EINVAL


def test_connecting_to_nobody(tmp_path):
    with pytest.raises(binding.Error) as refused:
        Session.connect(str(tmp_path / "nobody.sock"), connect_timeout_ms=200)
    assert refused.value.errno == errno.ENOTCONN
    assert "nobody.sock" in str(refused.value)


def test_a_library_that_is_not_there_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("SHADOWSERVE_LIBRARY", str(tmp_path / "libnot.so"))
    monkeypatch.setattr(native, "_library", None)
    with pytest.raises(ImportError, match="SHADOWSERVE_LIBRARY"):
        native.library()
