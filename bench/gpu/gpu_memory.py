# SPDX-License-Identifier: Apache-2.0
"""Where NVIDIA's driver lies, for the daemon that is started beside this process."""


def driver_folder() -> str:
    """The folder of this process's libcuda.so.1."""
    with open("/proc/self/maps", encoding="utf-8") as maps:
        for line in maps:
            if "libcuda.so" in line:
                return line.split(maxsplit=5)[5].rsplit("/", 1)[0]
    return ""
