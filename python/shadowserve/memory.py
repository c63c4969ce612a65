# SPDX-License-Identifier: Apache-2.0
"""KV memory that the daemon may reach: shared from its birth, or attached afterwards.

SharedAllocation puts the engine's one KV allocation into a sealed memfd, without patching the
engine. Where an engine allocates in another way, allow_attach() lets the daemon's process (and no
other) read and write this one's memory.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import threading
from typing import Any

from torch.overrides import TorchFunctionMode

_PR_SET_PTRACER = 0x59616D61
_MADV_POPULATE_WRITE = 23
_STEP_BYTES = 16 << 20


class SharedAllocation(TorchFunctionMode):
    """While active, answers the one torch.zeros(n, dtype=torch.int8) with a mapping of a memfd.

    fd is -1 until that happened. The descriptor is owned by this object; the mapping lives as long
    as the tensor.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fd = -1
        self.bytes = 0
        self.address = 0
        self._closing = threading.Event()
        self._pages: threading.Thread | None = None

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        import torch

        kwargs = kwargs or {}
        wanted = (
            func is torch.zeros
            and self.fd < 0
            and kwargs.get("dtype") is torch.int8
            and torch.device(kwargs.get("device") or "cpu").type == "cpu"
            and len(args) == 1
            and isinstance(args[0], int)
            and args[0] > 0
        )
        if not wanted:
            return func(*args, **kwargs)
        tensor = torch.frombuffer(self._map(args[0]), dtype=torch.int8)
        self.address = tensor.data_ptr()
        return tensor

    def _map(self, size: int) -> mmap.mmap:
        fd = os.memfd_create("shadowserve-kv", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, size)
            # Without this seal a shrunk file would end the daemon with SIGBUS, and it refuses.
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
            mapping = mmap.mmap(fd, size)
        except OSError:
            os.close(fd)
            raise
        self.fd, self.bytes = fd, size
        self._pages = threading.Thread(
            target=self._allocate, args=(mapping, size), name="shadowserve-pages", daemon=True
        )
        self._pages.start()
        return mapping

    def _allocate(self, mapping: mmap.mmap, size: int) -> None:
        """Every page of the memory, in the background. Else the first write to each would allocate
        it, which costs more than what is written; and where that write is the daemon's, the page
        would be charged to the daemon's memory limit."""
        advise = ctypes.CDLL(None, use_errno=True).madvise
        start = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
        for offset in range(0, size, _STEP_BYTES):
            step = ctypes.c_size_t(min(_STEP_BYTES, size - offset))
            if self._closing.is_set():
                return
            if advise(ctypes.c_void_p(start + offset), step, _MADV_POPULATE_WRITE):
                return  # an old kernel, or no memory: pages come as they are written

    def close(self) -> None:
        """Close the descriptor; the tensor stays usable."""
        self._closing.set()
        if self._pages is not None:
            self._pages.join()
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


def pid_of_pidfd(pidfd: int) -> int:
    """The process behind a pidfd; -1 when it is gone."""
    with open(f"/proc/self/fdinfo/{pidfd}", encoding="ascii") as info:
        for line in info:
            if line.startswith("Pid:"):
                return int(line.split()[1])
    return -1


def allow_attach(pid: int) -> None:
    """Let that process attach to this one's memory (cross-memory attach). Where the kernel has no
    such restriction the call has no effect and is not needed."""
    if pid > 0:
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PTRACER, ctypes.c_ulong(pid), 0, 0, 0)
