# SPDX-License-Identifier: Apache-2.0
"""The Debian packages of `make deb`: what is in them, what they ask for, that their programs run
and their files are read. They are unpacked into a folder; nothing is installed."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build"
TRIPLES = {"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu"}
MACHINES = {"amd64": "X86-64", "arm64": "AArch64"}
UNITS = ("shadowserved", "shadowserved-smartnic", "shadowserve-relay")
PROGRAMS = ("shadowserve", "shadowserve-relay", "shadowserved")
CONFFILES = ["/etc/shadowserve/card.yaml", "/etc/shadowserve/shadowserved.yaml"]
SCRIPTS = ("postinst", "postrm", "prerm")
FILES = {
    **{path: "rw-r-----" for path in CONFFILES},
    **{f"/lib/systemd/system/{unit}.service": "rw-r--r--" for unit in UNITS},
    **{f"/usr/bin/{program}": "rwxr-xr-x" for program in PROGRAMS},
    "/usr/include/shadowserve.h": "rw-r--r--",
    "/usr/lib/TRIPLE/libshadowserve.so": "rwxrwxrwx",
    "/usr/lib/TRIPLE/libshadowserve.so.0": "rwxrwxrwx",
    "/usr/lib/TRIPLE/libshadowserve.so.VERSION": "rwxr-xr-x",
    "/usr/lib/TRIPLE/pkgconfig/shadowserve.pc": "rw-r--r--",
    "/usr/lib/sysusers.d/shadowserve.conf": "rw-r--r--",
    "/usr/share/doc/shadowserve/copyright": "rw-r--r--",
}
DEPENDS = {"libc6", "libcjson1", "libcyaml1", "libdeflate0", "libisal2", "libssl3", "libyaml-0-2"}
DEPENDS |= {"libzstd1"}
OPTIONAL = re.compile(r"libibverbs1|librte-[a-z]+\d+|zlib1g")  # zlib1g: with DPDK
LIMIT_S = 30
BUILD_LIMIT_S = 600  # no more than the end of what hangs


def version() -> str:
    found = re.search(r"^  version: '(.*)',$", (ROOT / "meson.build").read_text(), re.MULTILINE)
    assert found
    return found[1]


def said(*command: object, status: int = 0) -> str:
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, timeout=LIMIT_S
    )
    assert done.returncode == status, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


@dataclass
class Package:
    arch: str
    file: Path
    root: Path  # where it is unpacked

    def control(self) -> dict[str, str]:
        lines = said("dpkg-deb", "--field", self.file).splitlines()
        pairs = (line.split(": ", 1) for line in lines if not line.startswith(" "))
        return dict((name, value) for name, value in pairs)

    def command(self, program: str) -> list[str]:
        path = str(self.root / "usr" / "bin" / program)
        if self.arch == "amd64":
            return [path]
        return ["qemu-aarch64", "-L", str(BUILD / "aarch64-sysroot" / "root"), path]


def fitted(text: str) -> str:
    """A file for another machine, with cores that this one has."""
    core = min(os.sched_getaffinity(0))
    return re.sub(r"^(\w*cores?): [0-9-]+", rf"\1: {core}", text, flags=re.MULTILINE)


def why_not(arch: str) -> str | None:
    tools = ["dpkg-deb", "readelf"]
    if arch == "arm64":
        tools += ["aarch64-linux-gnu-gcc", "qemu-aarch64"]
    missing = [tool for tool in tools if not shutil.which(tool)]
    if missing:
        return f"no {', '.join(missing)} here"
    if arch == "arm64":
        made = subprocess.run(
            [ROOT / "packaging" / "cross" / "sysroot.sh", BUILD / "aarch64-sysroot"],
            capture_output=True,
            timeout=BUILD_LIMIT_S,
        )
        if made.returncode:
            return "no aarch64 libraries can be fetched"
    machine = said("dpkg", "--print-architecture").strip()
    return None if arch == "arm64" or machine == arch else f"this machine is {machine}"


@pytest.fixture(scope="module", params=sorted(TRIPLES))
def package(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Package]:
    arch = request.param
    if reason := why_not(arch):
        pytest.skip(reason)
    made = subprocess.run(
        [ROOT / "packaging" / "deb.sh", arch], capture_output=True, text=True, timeout=BUILD_LIMIT_S
    )
    assert made.returncode == 0, made.stdout + made.stderr
    one = Package(
        arch, BUILD / f"shadowserve_{version()}_{arch}.deb", tmp_path_factory.mktemp(arch)
    )
    said("dpkg-deb", "--extract", one.file, one.root)
    said("dpkg-deb", "--control", one.file, one.root / "DEBIAN")
    yield one


def test_the_files_are_these_and_roots(package: Package) -> None:
    wanted = {
        path.replace("TRIPLE", TRIPLES[package.arch]).replace("VERSION", version()): mode
        for path, mode in FILES.items()
    }
    found = {}
    for line in said("dpkg-deb", "--contents", package.file).splitlines():
        mode, owner, _, _, _, path = line.split(maxsplit=5)
        assert owner == "root/root", line
        if not mode.startswith("d"):
            found[path.split(" -> ")[0].removeprefix(".")] = mode[1:]
    assert found == wanted


def test_control_names_what_the_programs_link(package: Package) -> None:
    control = package.control()
    assert control["Package"] == "shadowserve"
    assert control["Version"] == version()
    assert control["Architecture"] == package.arch
    depends = {name.split()[0] for name in control["Depends"].split(",")}
    more = depends - DEPENDS
    assert depends >= DEPENDS
    assert all(OPTIONAL.fullmatch(name) for name in more), more
    linked = ""
    for program in PROGRAMS:
        elf = package.root / "usr" / "bin" / program
        assert MACHINES[package.arch] in said("readelf", "--file-header", elf)
        linked += said("readelf", "--dynamic", elf)
    assert ("libibverbs1" in depends) == ("[libibverbs.so.1]" in linked)
    assert any(n.startswith("librte-") for n in depends) == ("[librte_" in linked)
    assert "libibverbs1" not in depends or control["Recommends"] == "ibverbs-providers"
    kbytes = sum(p.lstat().st_size for p in package.root.rglob("*") if p.is_file()) / 1024
    assert kbytes / 2 < int(control["Installed-Size"]) < 2 * kbytes + 100


def test_configuration_is_kept_and_scripts_are_whole(package: Package) -> None:
    assert sorted((package.root / "DEBIAN" / "conffiles").read_text().split()) == CONFFILES
    for script in SCRIPTS:
        path = package.root / "DEBIAN" / script
        assert path.stat().st_mode & 0o777 == 0o755
        said("sh", "-n", path)


def test_every_program_says_its_version(package: Package) -> None:
    for program in PROGRAMS:
        assert said(*package.command(program), "--version") == f"{program} {version()}\n"


def test_the_files_that_come_with_it_are_read(package: Package, tmp_path: Path) -> None:
    etc = package.root / "etc" / "shadowserve"
    daemon, card = package.command("shadowserved"), tmp_path / "card.yaml"
    card.write_text(fitted((etc / "card.yaml").read_text()))
    printed = re.sub(" +", " ", said(*daemon, "--config", card, "--print-config"))
    for line in ("listen_tls: 10.0.0.2:7400", "huge_pages: yes", "tls_names: host1"):
        assert line in printed, printed
    assert "arena" in said(*daemon, "--config", etc / "shadowserved.yaml", "--print-config")
    card.write_text(card.read_text() + "\nno_such_key: 1\n")
    assert "no_such_key" in said(*daemon, "--config", card, "--print-config", status=2)


def test_the_relay_reads_the_file_of_the_documentation(package: Package, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "smartnic.md").read_text()
    found = re.search(r"```yaml\n(card: .*?)```", page, re.DOTALL)
    assert found
    (tmp_path / "relay.yaml").write_text(fitted(found[1]))
    relay = package.command("shadowserve-relay")
    printed = said(*relay, "--config", tmp_path / "relay.yaml", "--print-config")
    assert "card: 10.0.0.2:7400" in re.sub(" +", " ", printed), printed


def test_the_daemon_serves_from_the_package(package: Package, tmp_path: Path) -> None:
    command = [*package.command("shadowserved"), "--socket", str(tmp_path / "d.sock")]
    command += ["--config", str(package.root / "etc/shadowserve/shadowserved.yaml")]
    command += ["--store", f"file:{tmp_path}/store", "--arena", "64MiB", "--cores", "none"]
    daemon = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert daemon.stdout
        greeting = daemon.stdout.readline()
        assert f"version={version()}" in greeting, daemon.communicate(timeout=LIMIT_S)
        stat = package.command("shadowserve")
        assert '"stores"' in said(*stat, "stat", "--socket", tmp_path / "d.sock", "--json")
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(LIMIT_S) == 0
    finally:
        daemon.kill()
        daemon.communicate()


def test_systemd_takes_the_units(package: Package, tmp_path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("no systemd-analyze here")
    units = []
    for unit in UNITS:
        text = (package.root / f"lib/systemd/system/{unit}.service").read_text()
        started = re.findall(r"^ExecStart=(\S+)", text, re.MULTILINE)
        assert [package.root / one.lstrip("/") for one in started] == [
            package.root / "usr" / "bin" / unit.removesuffix("-smartnic")
        ]
        text = text.replace("/usr/bin/", f"{package.root}/usr/bin/")
        units.append(tmp_path / f"{unit}.service")
        units[-1].write_text(text)
    # Words of other units on this machine are not ours.
    answer = said("systemd-analyze", "verify", "--man=no", *units)
    assert not [line for line in answer.splitlines() if "shadowserve" in line], answer
