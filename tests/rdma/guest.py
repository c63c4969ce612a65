# SPDX-License-Identifier: Apache-2.0
"""Runs the tests of the rdma way in a QEMU guest that has a software RDMA device (Soft-RoCE), which
the kernels of many machines lack.

The guest is the distribution's kernel package, unpacked and not installed, and a memory file
system of busybox, the programs and the libraries that they need. It is emulated (no KVM), so it
shows that things work, not how fast. Kernel and modules are kept in build/rdma.
Nothing here needs root. Missing says what is not there. The limit grows with SSV_ROUNDS.
usage: guest.py [BUILD]: the tests of that build folder (build/release); SSV_SEED, SSV_ROUNDS
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
CACHE = ROOT / "build" / "rdma"
HERE = Path(__file__).resolve().parent

QEMU = "qemu-system-x86_64"
MODULES = ("dummy", "crc32_generic", "ib_uverbs", "rdma_rxe")
MEMORY_MB = 1536
SANITIZED_MEMORY_MB = 3072
TOOLS = ("ip", "rdma")
TESTS = ("deliver/test_rdma", "deliver/test_rdma_kill")
FETCH = ("daemon/shadowserved", "relay/shadowserve-relay", "tests/rdma/test_rdma_fetch")
LIMIT_S = 420
KILLS = ("card", "relay", "store", "link", "engine")
SANITIZED_KILLS = ("card", "link")  # those whose code is the rdma way's own
PASSED_ON = ("SSV_SEED", "SSV_ROUNDS")
BOOT_S = 60


class Missing(Exception):
    """What the guest needs is not on this machine."""


@dataclass
class Ran:
    """A program's end in the guest."""

    name: str
    status: int | None  # None: it never ended
    output: str


# ---- kernel and modules -------------------------------------------------------------------------


def kernel_package() -> str:
    """The package that linux-image-amd64 stands for."""
    if not shutil.which("apt-cache"):
        raise Missing("no Debian package manager to take a kernel from")
    shown = subprocess.run(
        ["apt-cache", "depends", "linux-image-amd64"], capture_output=True, text=True
    )
    found = re.search(r"Depends: (linux-image-\S+)", shown.stdout)
    if not found:
        raise Missing("no kernel package linux-image-amd64 (apt-get update?)")
    return found.group(1)


def module_needs(path: Path) -> list[str]:
    found = re.search(rb"\0depends=([^\0]*)\0", path.read_bytes())
    return [name for name in (found.group(1).decode().split(",") if found else []) if name]


def modules_in_order(tree: Path) -> list[Path]:
    """The modules and what they need, each after those that it needs."""
    files = {path.stem.replace("-", "_"): path for path in tree.rglob("*.ko")}
    order: list[Path] = []

    def add(name: str) -> None:
        path = files.get(name.replace("-", "_"))
        if path is None:
            raise Missing(f"the kernel package has no module {name}")
        if path in order:
            return
        for need in module_needs(path):
            add(need)
        order.append(path)

    for name in MODULES:
        add(name)
    return order


def kernel() -> Path:
    """A folder with vmlinuz and modules/, made once for each kernel package."""
    package = kernel_package()
    folder = CACHE / package
    if (folder / "vmlinuz").exists():
        return folder
    CACHE.mkdir(parents=True, exist_ok=True)
    print(f"rdma: unpacking {package} (70 MB, once)", flush=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        work = Path(name)
        got = subprocess.run(
            ["apt-get", "download", "-q", package], cwd=work, capture_output=True, text=True
        )
        packages = list(work.glob("*.deb"))
        if got.returncode or not packages:
            raise Missing(f"{package} cannot be downloaded")
        subprocess.run(["dpkg-deb", "-x", packages[0], work / "tree"], check=True)
        made = work / "made"
        (made / "modules").mkdir(parents=True)
        order = modules_in_order(work / "tree" / "lib" / "modules")
        for path in order:
            shutil.copy(path, made / "modules")
        names = "".join(f"{path.name}\n" for path in order)
        (made / "modules" / "order").write_text(names)
        shutil.copy(next((work / "tree" / "boot").glob("vmlinuz-*")), made / "vmlinuz")
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)
    return folder


# ---- the memory file system ---------------------------------------------------------------------


def libraries(program: Path) -> set[Path]:
    listed = subprocess.run(["ldd", program], capture_output=True, text=True).stdout
    return {Path(found) for found in re.findall(r"(/\S+) \(0x", listed)}


def verbs_driver() -> tuple[Path, Path]:
    """The library's driver of the software device, and the file that names it."""
    settings = Path("/etc/libibverbs.d/rxe.driver")
    drivers = list(Path("/usr/lib").glob("*/libibverbs/librxe-*.so"))
    if not settings.exists() or not drivers:
        raise Missing("no driver of Soft-RoCE for libibverbs (package ibverbs-providers)")
    return settings, drivers[0]


def tool(name: str) -> Path:
    path = shutil.which(name, path=os.environ.get("PATH", "") + ":/sbin:/usr/sbin:/bin")
    if not path:
        raise Missing(f"no program {name} on this machine (packaging/setup_optional.sh rdma)")
    return Path(path).resolve()


def tree_make(tree: Path, programs: dict[str, str], files: dict[str, Path]) -> None:
    """programs: name to command line. files: path in the guest to a file of this machine."""
    settings, driver = verbs_driver()
    wanted = dict(files)
    wanted["/bin/busybox"] = tool("busybox")
    wanted[str(settings)] = settings
    wanted[str(driver)] = driver
    for name in TOOLS:
        wanted[f"/sbin/{name}"] = tool(name)
    linked = [source for source in wanted.values() if source.suffix != ".py"]
    needed = {library for source in linked for library in libraries(source)}
    wanted.update({str(library): library for library in needed})
    for place in ("proc", "sys", "dev", "etc", "bin", "sbin"):
        (tree / place).mkdir(parents=True, exist_ok=True)
    for name, source in wanted.items():
        target = tree / name.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
    shutil.copytree(kernel() / "modules", tree / "modules")
    shutil.copy(HERE / "init.sh", tree / "init")
    (tree / "init").chmod(0o755)
    lines = "".join(f"{name} {command}\n" for name, command in programs.items())
    (tree / "programs").write_text(lines)


def image_make(target: Path, tree: Path) -> None:
    names = "\0".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*")))
    command = ["cpio", "--null", "--create", "--format=newc", "--owner=0:0", "--quiet"]
    with target.open("wb") as out:
        subprocess.run(
            [tool(command[0]), *command[1:]], cwd=tree, input=names.encode(), stdout=out, check=True
        )


# ---- the guest ----------------------------------------------------------------------------------


def results(output: str, programs: dict[str, str]) -> list[Ran]:
    ran = []
    for name in programs:
        begins, ended = f"^guest: begins {re.escape(name)}", f"^guest: ended {re.escape(name)}"
        pattern = rf"{begins}\r?\n(.*?)(?:{ended} (\d+)|\Z)"
        found = re.search(pattern, output, re.DOTALL | re.MULTILINE)
        status = int(found.group(2)) if found and found.group(2) else None
        ran.append(Ran(name, status, found.group(1).replace("\r", "") if found else ""))
    return ran


def run(
    programs: dict[str, str], files: dict[str, Path], limit_s: int, memory_mb: int, log: str
) -> list[Ran]:
    """Runs the programs one after another; all that the guest says is kept in the log."""
    if platform.machine() != "x86_64":
        raise Missing(f"the guest is for x86_64, this machine is {platform.machine()}")
    qemu, vmlinuz = tool(QEMU), kernel() / "vmlinuz"
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        image = Path(name) / "image.cpio"
        tree_make(Path(name) / "tree", programs, files)
        image_make(image, Path(name) / "tree")
        command = [qemu, "-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max"]
        command += ["-m", str(memory_mb), "-smp", "2", "-nographic", "-no-reboot", "-nic", "none"]
        command += ["-kernel", vmlinuz, "-initrd", image]
        command += ["-append", "console=ttyS0 quiet panic=-1 mitigations=off"]
        guest = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        try:
            said, _ = guest.communicate(timeout=BOOT_S + limit_s)
        except subprocess.TimeoutExpired:
            guest.kill()
            said, _ = guest.communicate()
    output = said.decode(errors="replace")
    (CACHE / log).write_text(output)
    return results(output, programs)


def certificates(folder: Path) -> dict[str, Path]:
    """Of an authority, a card and a host; made anew when they are a month old."""
    folder.mkdir(parents=True, exist_ok=True)
    names = ("ca.pem", "card.pem", "card.key", "host.pem", "host.key")
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "60"]

    def openssl(*arguments: str) -> None:
        subprocess.run([tool("openssl"), *arguments], cwd=folder, check=True, capture_output=True)

    made = folder / "host.pem"
    if not made.exists() or time.time() - made.stat().st_mtime > 30 * 86400:
        openssl("req", "-x509", *curve, "-subj", "/CN=ca", "-keyout", "ca.key", "-out", "ca.pem")
        for name in ("card", "host"):
            (folder / f"{name}.ext").write_text(f"subjectAltName=DNS:{name},IP:127.0.0.1\n")
            request = ["-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr"]
            openssl("req", *curve[:-2], *request)
            openssl(
                *("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key"),
                *("-CAcreateserial", "-days", "60", "-extfile", f"{name}.ext"),
                *("-out", f"{name}.pem"),
            )
    return {f"/tests/{name}": folder / name for name in names}


def python_files(build: Path) -> tuple[dict[str, Path], str]:
    """What kills.py needs to run in the guest, and the command that runs it there: the interpreter
    and what it imports, programs in a build folder, Redis."""
    folders = [ROOT / place for place in ("tests/rdma", "tests/relay", "tests/daemon", "python")]
    folders.append(ROOT / "bench")
    library = "src/client/libshadowserve.so"
    interpreter = Path(sys.executable).resolve()
    loaded = "import sys, kills, encodings.idna, encodings.latin_1\n"
    loaded += "print(*(m.__file__ for m in sys.modules.values() if getattr(m, '__file__', 0)))"
    there = Path("/build") / build.name
    path = os.pathsep.join(str(folder) for folder in folders)
    found = subprocess.run(
        [interpreter, "-S", "-c", loaded],
        env={**os.environ, "SHADOWSERVE_BUILD": str(build), "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    files = {name: Path(name) for name in found.stdout.split()}
    for name in FETCH[:2]:
        files[str(there / name)] = build / name
    # An interpreter that is not instrumented loads no library that is.
    files[str(there / library)] = ROOT / "build" / "release" / library
    files[str(interpreter)] = interpreter
    files["/bin/redis-server"] = tool("redis-server")
    settings = f"PYTHONPATH={path} SHADOWSERVE_BUILD={there} SHADOWSERVE_LIBRARY={there / library}"
    return files, f"{settings} {interpreter} -S {folders[0] / 'kills.py'}"


def settings() -> str:
    return "".join(f"{name}={os.environ[name]} " for name in PASSED_ON if name in os.environ)


def of_build(
    build: Path, label: str, tests: Sequence[str], kills: Sequence[str]
) -> tuple[dict[str, str], dict[str, Path]]:
    """Programs and files: C tests that need a device, without label a whole fetch, and the death of
    parties."""
    folder = Path("/tests") / build.name
    files = {str(folder / Path(name).name): build / name for name in FETCH}
    programs = {}
    for test in tests:
        place = folder / Path(test).name
        files[str(place)] = build / "tests" / test
        programs[label + place.name] = f"{settings()}{place}"
    if not label:  # a gigabyte, compared by instrumented code: a minute
        programs["test_rdma_fetch"] = f"sh /tests/fetch.sh {folder}"
    needed, command = python_files(build)
    files.update(needed)
    programs.update(
        {f"{label}kills-{victim}": f"{settings()}{command} {victim}" for victim in kills}
    )
    files.update(certificates(CACHE / "certificates"))
    files["/tests/fetch.sh"] = HERE / "fetch.sh"
    return programs, files


def limit_s() -> int:
    return LIMIT_S * max(1, int(os.environ.get("SSV_ROUNDS", "10")) // 10)


def run_tests(build: Path, tests: Sequence[str] = TESTS, kills: Sequence[str] = KILLS) -> list[Ran]:
    return run(*of_build(build, "", tests, kills), limit_s(), MEMORY_MB, "guest.log")


def run_sanitized(builds: Sequence[Path], kills: Sequence[str] = SANITIZED_KILLS) -> list[Ran]:
    """C tests and deaths with instrumented builds, in one guest; a report of a sanitizer fails."""
    programs: dict[str, str] = {}
    files: dict[str, Path] = {}
    for build in builds:
        more, needed = of_build(build, f"{build.name}-", TESTS, kills)
        programs.update(more)
        files.update(needed)
    return run(programs, files, 2 * limit_s(), SANITIZED_MEMORY_MB, "guest-sanitized.log")


def main() -> int:
    build = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "release"
    try:
        ran = run_tests(build)
    except Missing as missing:
        print(f"skipped: {missing}")
        return 0
    for one in ran:
        print(one.output)
        print(f"{one.name}: " + ("passed" if one.status == 0 else f"FAILED ({one.status})"))
    return 0 if all(one.status == 0 for one in ran) else 1


if __name__ == "__main__":
    sys.exit(main())
