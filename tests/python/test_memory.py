# SPDX-License-Identifier: Apache-2.0
"""The allocation hook: one allocation, shared and sealed, everything else untouched."""

import fcntl
import mmap
import os

import pytest

torch = pytest.importorskip("torch")

from shadowserve import memory  # noqa: E402


def test_one_allocation_is_shared_and_sealed():
    hook = memory.SharedAllocation()
    with hook:
        other = torch.zeros(4, dtype=torch.float32)
        kv = torch.zeros(8192, dtype=torch.int8, device=torch.device("cpu"))
        second = torch.zeros(8192, dtype=torch.int8)
    assert other.tolist() == [0.0] * 4 and second.data_ptr() != hook.address
    assert hook.bytes == 8192 and kv.data_ptr() == hook.address
    kv[17] = 5
    with mmap.mmap(hook.fd, 8192) as seen:
        assert seen[17] == 5
        seen[18] = 6
    assert int(kv[18]) == 6
    assert fcntl.fcntl(hook.fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
    with pytest.raises(PermissionError):
        os.ftruncate(hook.fd, 4096)
    hook.close()
    kv[19] = 7  # the mapping outlives the descriptor
    assert kv.view(torch.uint8)[19] == 7


def test_pid_of_a_pidfd():
    pidfd = os.pidfd_open(os.getpid())
    try:
        assert memory.pid_of_pidfd(pidfd) == os.getpid()
    finally:
        os.close(pidfd)
