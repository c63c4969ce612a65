# SPDX-License-Identifier: Apache-2.0
"""What `meson install` lays down: a stranger's program builds against it and runs."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("SHADOWSERVE_BUILD", ROOT / "build" / "release")).resolve()

CONSUMER = """
#include <shadowserve.h>
#include <stdio.h>
#include <string.h>

int main(void)
{
	struct ssv_options options;
	struct ssv *ssv = 0;
	char error[SSV_ERROR_TEXT_MAX];
	int rc;

	memset(&options, 0, sizeof(options));
	options.struct_size = sizeof(options);
	options.socket_path = "/nowhere/at/all.sock";
	rc = ssv_connect(&options, &ssv, error);
	printf("%s %d %s\\n", ssv_version(), rc, error);
	ssv_close(ssv);
	return 0;
}
"""


def run(*command: object, **options: object) -> str:
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, **options
    )  # type: ignore[call-overload]
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return str(done.stdout)


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An install of the release build under a DESTDIR, seen through its prefix."""
    if BUILD.name in ("asan", "tsan"):
        pytest.skip("a sanitized library needs a sanitized program")
    folder = tmp_path_factory.mktemp("install")
    environment = {**os.environ, "DESTDIR": str(folder)}
    run("meson", "install", "-C", BUILD, "--no-rebuild", "--quiet", env=environment)
    headers = list(folder.rglob("include/shadowserve.h"))
    assert len(headers) == 1
    return headers[0].parents[1]


def library_folder(prefix: Path) -> Path:
    return next(prefix.rglob("libshadowserve.so.0")).parent


def test_the_layout(prefix: Path) -> None:
    folder = library_folder(prefix)
    assert (prefix / "bin" / "shadowserved").exists()
    assert (prefix / "bin" / "shadowserve").exists()
    assert (folder / "libshadowserve.a").exists()
    assert (folder / "libshadowserve.so").resolve().name == "libshadowserve.so.0.1.0"
    assert (folder / "pkgconfig" / "shadowserve.pc").exists()
    assert [p.name for p in (prefix / "include").iterdir()] == ["shadowserve.h"]


def test_the_soname_and_what_the_library_needs(prefix: Path) -> None:
    text = run("readelf", "-d", library_folder(prefix) / "libshadowserve.so")
    assert "[libshadowserve.so.0]" in text
    needed = {line.split("[")[1].rstrip("]") for line in text.splitlines() if "NEEDED" in line}
    assert {name.split(".")[0] for name in needed} <= {"libc", "libcrypto", "ld-linux-x86-64"}


def test_only_the_header_is_exported(prefix: Path) -> None:
    import re

    text = run("nm", "-D", "--defined-only", library_folder(prefix) / "libshadowserve.so")
    exported = {line.split()[2].split("@")[0] for line in text.splitlines() if " T " in line}
    header = (prefix / "include" / "shadowserve.h").read_text()
    declared = set(re.findall(r"^SSV_API [^(]*?(ssv_\w+)\(", header, re.MULTILINE))
    assert exported == declared


@pytest.mark.parametrize(
    "compiler,standard",
    [("cc", "c99"), ("cc", "c17"), ("c++", "c++17")],
)
@pytest.mark.parametrize("linking", ["shared", "static"])
def test_a_program_builds_with_pkg_config_and_runs(
    prefix: Path, tmp_path: Path, compiler: str, standard: str, linking: str
) -> None:
    if not shutil.which(compiler) or not shutil.which("pkg-config"):
        pytest.skip(f"needs {compiler} and pkg-config")
    folder = library_folder(prefix)
    source = tmp_path / ("main.cc" if "++" in compiler else "main.c")
    source.write_text(CONSUMER)
    environment = {
        **os.environ,
        "PKG_CONFIG_PATH": str(folder / "pkgconfig"),
        "PKG_CONFIG_SYSROOT_DIR": str(prefix).removesuffix("/usr/local").removesuffix("/usr"),
        "LD_LIBRARY_PATH": str(folder),
    }
    arguments = ["--cflags", "--libs"] + (["--static"] if linking == "static" else [])
    flags = run("pkg-config", *arguments, "shadowserve", env=environment).split()
    if linking == "static":
        flags = [str(folder / "libshadowserve.a") if f == "-lshadowserve" else f for f in flags]
    warnings = ["-Wall", "-Wextra", "-Wpedantic", "-Werror", f"-std={standard}"]
    run(compiler, *warnings, source, "-o", tmp_path / "main", *flags, env=environment)
    output = run(tmp_path / "main", env=environment)
    assert output.startswith("0.1.0 -107 no daemon listens at /nowhere/at/all.sock")


def test_keys_through_the_library_are_the_same_on_every_machine(prefix: Path) -> None:
    """Vectors computed here from the definition in the header, with Python's SHA-256."""
    import hashlib
    import struct

    library = ctypes.CDLL(str(library_folder(prefix) / "libshadowserve.so"))
    tokens = list(range(1000, 1000 + 600))
    packed = (ctypes.c_uint32 * len(tokens))(*tokens)
    root = bytes(range(32))
    keys = ctypes.create_string_buffer(2 * 32)
    count = library.ssv_key_chain(root, 256, packed, ctypes.c_size_t(600), None, keys, 2)
    assert count == 2
    expected, previous = b"", root
    for i in range(2):
        chunk = struct.pack("<256I", *tokens[256 * i : 256 * i + 256])
        previous = hashlib.sha256(previous + chunk + bytes(32)).digest()
        expected += previous
    assert keys.raw == expected
