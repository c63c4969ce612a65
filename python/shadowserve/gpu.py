# SPDX-License-Identifier: Apache-2.0
"""Exporting GPU memory for registration: the driver's IPC handle of the allocation, the GPU's UUID,
and the region's place in the allocation. NVIDIA's driver API through ctypes; nothing is allocated.
"""

from __future__ import annotations

import ctypes

from shadowserve.binding import GpuMemory


class GpuError(OSError):
    """The driver refused; the text holds its call and its number."""


def _driver() -> ctypes.CDLL:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise GpuError(f"NVIDIA's driver was not found: {error}") from error


def _check(result: int, call: str) -> None:
    if result:
        raise GpuError(f"{call}: CUDA error {result}")


def export(pointer: int, device: int) -> GpuMemory:
    """pointer: device memory of cudaMalloc (not of a growing segment). device: its ordinal here."""
    driver = _driver()
    handle = (ctypes.c_uint8 * 64)()
    uuid = (ctypes.c_uint8 * 16)()
    base, size = ctypes.c_uint64(), ctypes.c_size_t()
    at = ctypes.c_uint64(pointer)
    _check(
        driver.cuMemGetAddressRange_v2(ctypes.byref(base), ctypes.byref(size), at),
        "cuMemGetAddressRange",
    )
    _check(driver.cuIpcGetMemHandle(handle, base), "cuIpcGetMemHandle")
    _check(driver.cuDeviceGetUuid_v2(uuid, ctypes.c_int(device)), "cuDeviceGetUuid")
    return GpuMemory(bytes(uuid), bytes(handle), pointer - base.value)
