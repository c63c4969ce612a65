# SPDX-License-Identifier: Apache-2.0
"""A Redis on a host of its own: inside a namespace behind a shaped link, pinned to one core.

It answers on a Unix socket too, so that asking it costs nothing on the link.
"""

from __future__ import annotations

from pathlib import Path

from netns import Host
from part import pinned
from servers import SocketRedis

PORT = 6379  # of a namespace of its own


class HostRedis(SocketRedis):
    def __init__(self, folder: Path, host: Host, core: int, maxmemory: str = "2gb") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.host = host
        prefix = [*host.namespace.prefix, *pinned(core)]
        options = ["--port", str(PORT), "--bind", host.address, "--maxmemory", maxmemory]
        super().__init__(f"redis-{host.number}", folder, [*options, "--appendonly", "no"], prefix)

    def uri(self, database: int = 0, options: str = "lanes=4") -> str:
        return f"redis://{self.host.address}:{PORT}/{database}?{options}"

    def value_bytes(self, key: str) -> int:
        return int(self.command("STRLEN", f"ssv:{key}"))
