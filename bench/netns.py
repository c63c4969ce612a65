# SPDX-License-Identifier: Apache-2.0
"""Network namespaces joined by shaped veth pairs: a network of any rate inside one machine.

A namespace here has no name: it lives as long as a process that holds it, and that process dies
with ours, also when ours is killed. So nothing is left behind and nothing has to be swept up.

    host end  10.213.N.1 (Redis) ---- tbf on what the host end sends ---- 10.213.N.2  plane

Frames are jumbo frames. Congestion control is reno: the one that every kernel lets a namespace
choose, and without drops no different from another. A veth pair hands a packet over on the core
that sends it, so the host's core does the kernel's work of both ends but the receiver's copy.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Sequence

MTU = 9000
TOOLS = ("ip", "tc", "nsenter", "setpriv", "sysctl", "unshare")
DIES_WITH_US = ["setpriv", "--pdeathsig", "KILL"]  # that is: with the thread that starts it
MIN_BURST = 256 << 10  # four GSO packets: a burst below one makes tbf cut them up
QUEUE_BYTES = 64 << 20  # more than the windows of all connections: nothing is dropped


def why_not() -> str | None:
    """Why namespaces cannot be made here, or None."""
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    if missing:
        return f"{', '.join(missing)} not installed (Debian: iproute2, util-linux, procps)"
    if os.geteuid() != 0:
        return "network namespaces need root"
    try:
        with Network() as network:
            network.join(network.add())
    except (OSError, subprocess.SubprocessError) as error:
        output = getattr(error, "output", None)
        return f"network namespaces are refused here: {output or error}".strip()
    return None


def burst_bytes(rate_gbit: float) -> int:
    """What a bucket holds: a millisecond, which the kernel's timers keep up with easily."""
    return max(MIN_BURST, int(rate_gbit * 1e9 / 8 / 1000))


class Namespace:
    """A network namespace, held open by a sleeping process. prefix runs a command inside."""

    def __init__(self) -> None:
        command = [*DIES_WITH_US, "unshare", "--net", "sh", "-c", "echo; exec sleep infinity"]
        self.holder = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert self.holder.stdout
        told = self.holder.stdout.readline().decode().strip()
        if told:
            self.close()
            raise OSError(told)
        net = f"--net=/proc/{self.holder.pid}/ns/net"
        self.prefix = [*DIES_WITH_US, "nsenter", net, "--"]

    def run(self, *command: str | int) -> str:
        """Runs a command inside; its output. CalledProcessError carries what it complained of."""
        return subprocess.run(
            [*self.prefix, *map(str, command)],
            check=True,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=20,
        ).stdout

    def close(self) -> None:
        self.holder.kill()
        self.holder.wait()
        if self.holder.stdout:
            self.holder.stdout.close()


class Host:
    """A namespace with one veth end, whose other end is the plane's."""

    def __init__(self, number: int) -> None:
        self.namespace = Namespace()
        self.number = number
        self.device, self.peer = f"h{number}", f"p{number}"
        self.address, self.gateway = f"10.213.{number}.1", f"10.213.{number}.2"

    def shape(self, rate_gbit: float | None) -> None:
        """Limits what this host sends; None: as fast as the machine is."""
        with contextlib.suppress(subprocess.CalledProcessError):
            self.namespace.run("tc", "qdisc", "del", "dev", self.device, "root")
        if rate_gbit is None:
            return
        self.namespace.run(
            *("tc", "qdisc", "add", "dev", self.device, "root", "tbf"),
            *("rate", f"{int(rate_gbit * 1e9)}bit", "burst", burst_bytes(rate_gbit)),
            *("limit", QUEUE_BYTES),
        )

    def dropped(self) -> int:
        """Packets that the shaper dropped since it was set."""
        text = self.namespace.run("tc", "-s", "qdisc", "show", "dev", self.device)
        return int(text.split("dropped ")[1].split(",")[0]) if "dropped " in text else 0


class Network:
    """One namespace for the plane and one for each host, as a star that routes between hosts."""

    def __init__(self) -> None:
        self.plane = Namespace()
        self.hosts: list[Host] = []
        try:
            self.plane.run("ip", "link", "set", "lo", "up")
            self.plane.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
            self._tune(self.plane)
        except BaseException:
            self.close()
            raise

    def _tune(self, namespace: Namespace) -> None:
        namespace.run("sysctl", "-qw", "net.ipv4.tcp_congestion_control=reno")

    def add(self) -> Host:
        host = Host(len(self.hosts) + 1)
        self.hosts.append(host)
        return host

    def join(self, host: Host) -> None:
        """Connects a host to the plane, unshaped."""
        inside = host.namespace
        inside.run(
            *("ip", "link", "add", host.device, "mtu", MTU, "type", "veth"),
            *("peer", "name", host.peer, "mtu", MTU, "netns", self.plane.holder.pid),
        )
        inside.run("ip", "link", "set", "lo", "up")
        for namespace, device, address in (
            (inside, host.device, host.address),
            (self.plane, host.peer, host.gateway),
        ):
            namespace.run("ip", "address", "add", f"{address}/24", "dev", device)
            namespace.run("ip", "link", "set", device, "up")
        inside.run("ip", "route", "add", "default", "via", host.gateway)
        self._tune(inside)

    def shape(self, host: Host, rate_gbit: float) -> None:
        """Limits what the plane sends to a host."""
        self.plane.run(
            *("tc", "qdisc", "replace", "dev", host.peer, "root", "tbf"),
            *("rate", f"{int(rate_gbit * 1e9)}bit", "burst", burst_bytes(rate_gbit)),
            *("limit", QUEUE_BYTES),
        )

    def delay(self, host: Host, milliseconds: int, program: Sequence[str]) -> subprocess.Popen[str]:
        """A round trip so long between host and plane, until the process returned is killed.

        program is bench_delay and what it runs under: it carries what the plane sends.
        """
        there = f"/proc/{host.namespace.holder.pid}/ns/net"
        names = (f"dp{host.number}", f"dh{host.number}")
        command = [*self.plane.prefix, *program, names[0], str(milliseconds), there, names[1]]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout
        if not process.stdout.readline():
            process.wait(10)
            raise OSError("bench_delay ended: is there a /dev/net/tun?")
        for namespace, device in ((self.plane, names[0]), (host.namespace, names[1])):
            namespace.run("ip", "link", "set", device, "mtu", MTU, "up")
            # Packets go one way here and come back the other.
            for name in ("all", device, host.device if namespace is not self.plane else host.peer):
                namespace.run("sysctl", "-qw", f"net.ipv4.conf.{name}.rp_filter=0")
        route = (f"{host.address}/32", "dev", names[0], "src", host.gateway)
        self.plane.run("ip", "route", "replace", *route)
        return process

    def close(self) -> None:
        for host in self.hosts:
            host.namespace.close()
        self.plane.close()

    def __enter__(self) -> Network:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()
