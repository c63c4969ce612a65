# SPDX-License-Identifier: Apache-2.0
"""Puts the built programs into the Python package (everything else is in pyproject.toml).

libshadowserve.so, libshadowserve-codec.so, shadowserved and shadowserve come from a Meson build:
the one that $SHADOWSERVE_BUILD names, else build/package, which is made when it is missing. They
land in shadowserve/native, where the package looks for them first.
"""

import os
import shutil
import subprocess
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
PROGRAMS = {
    "libshadowserve.so.0": "src/client/libshadowserve.so.0",
    "libshadowserve-codec.so": "python/native/libshadowserve-codec.so",
    "shadowserved": "daemon/shadowserved",
    "shadowserve-relay": "relay/shadowserve-relay",
    "shadowserve": "cli/shadowserve",
}


def native_build() -> Path:
    named = os.environ.get("SHADOWSERVE_BUILD")
    if named:
        return Path(named).resolve()
    folder = ROOT / "build" / "package"
    # pip points Python at its own build environment, in which a Meson of the system is not found.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if not (folder / "build.ninja").exists():
        options = ["--buildtype=release", "-Dtests=false", "-Ddpdk=disabled"]
        command = ["meson", "setup", str(folder), str(ROOT), *options]
        subprocess.run(command, check=True, env=environment)
    subprocess.run(["ninja", "-C", str(folder)], check=True, env=environment)
    return folder


class BuildWithPrograms(build_py):
    def run(self) -> None:
        super().run()
        folder = native_build()
        target = Path(self.build_lib) / "shadowserve" / "native"
        target.mkdir(parents=True, exist_ok=True)
        for name, built in PROGRAMS.items():
            source = folder / built
            if not source.exists():
                raise SystemExit(f"{source} is missing: build {folder} first (ninja -C {folder})")
            shutil.copy2(source.resolve(), target / name)


class PlatformWheel(bdist_wheel):
    """One wheel for every Python, for this machine's kind alone."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.root_is_pure = False

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


class WithPrograms(Distribution):
    def has_ext_modules(self) -> bool:
        return True


setup(
    distclass=WithPrograms,
    cmdclass={"build_py": BuildWithPrograms, "bdist_wheel": PlatformWheel},
)
