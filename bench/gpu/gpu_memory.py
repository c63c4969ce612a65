# SPDX-License-Identifier: Apache-2.0
"""Exporting a tensor's GPU memory for registration: the driver's IPC handle, the GPU's UUID and the
tensor's place in its allocation."""

from __future__ import annotations

import ctypes

from shadowserve import binding


def driver_folder() -> str:
    """Where libcuda.so.1 of this process lies."""
    with open("/proc/self/maps", encoding="utf-8") as maps:
        for line in maps:
            if "libcuda.so" in line:
                return line.split(maxsplit=5)[5].rsplit("/", 1)[0]
    return ""


def _check(result: int, what: str) -> None:
    if result:
        raise OSError(f"{what}: CUDA error {result}")


def export(pointer: int, device: int = 0) -> binding.GpuMemory:
    driver = ctypes.CDLL("libcuda.so.1")
    handle = (ctypes.c_uint8 * 64)()
    uuid = (ctypes.c_uint8 * 16)()
    base, size = ctypes.c_uint64(), ctypes.c_size_t()
    at = ctypes.c_uint64(pointer)
    _check(
        driver.cuMemGetAddressRange_v2(ctypes.byref(base), ctypes.byref(size), at),
        "cuMemGetAddressRange",
    )
    _check(driver.cuIpcGetMemHandle(handle, base), "cuIpcGetMemHandle")
    _check(driver.cuDeviceGetUuid_v2(uuid, device), "cuDeviceGetUuid")
    return binding.GpuMemory(bytes(uuid), bytes(handle), pointer - base.value)
