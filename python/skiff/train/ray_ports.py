"""Ray's ports on one node, from one table: Ray itself would take random ones, which two jobs on a
node, or a client's connection, may have by then.

A node of a job gets a block of BLOCK ports below those that the kernel hands out. Where its block
begins follows from the job's number and the node's; one of which a port is taken is passed over.
"""

from __future__ import annotations

import contextlib
import socket
from dataclasses import dataclass

from skiff.errors import InfraError

# Linux hands out the ports from 32768 on. Ray counts 10001 as taken, its client server's, also on a
# node that joins, where it starts none.
LOW, HIGH = 10_240, 32_768
BLOCK = 512
NODES = 7  # blocks from one job's first to the next job's
# ray start's options, each with its place in the block.
PARTS = (
    "port",  # of the cluster's head alone
    "node-manager-port",
    "object-manager-port",
    "runtime-env-agent-port",
    "dashboard-agent-grpc-port",
    "dashboard-agent-listen-port",
    "metrics-export-port",
    "ray-client-server-port",  # of the head alone
)
HEAD_ONLY = frozenset({"port", "ray-client-server-port"})


@dataclass(frozen=True)
class RayPorts:
    """The block that begins at `first`."""

    first: int

    @property
    def head(self) -> int:
        """Where other nodes find the cluster."""
        return self.first + PARTS.index("port")

    def options(self, *, head: bool) -> list[str]:
        """Arguments of `ray start`."""
        named = [
            f"--{name}={self.first + place}"
            for place, name in enumerate(PARTS)
            if head or name not in HEAD_ONLY
        ]
        low, high = self.first + len(PARTS), self.first + BLOCK - 1
        return [*named, f"--min-worker-port={low}", f"--max-worker-port={high}"]


def choose_ports(job: int, node: int) -> RayPorts:
    """A free block for node number `node` of job number `job`. Raises InfraError."""
    count = (HIGH - LOW) // BLOCK
    for turn in range(count):
        ports = RayPorts(LOW + (job * NODES + node + turn) % count * BLOCK)
        if _free(ports):
            return ports
    raise InfraError(
        f"no {BLOCK} ports in a row are free between {LOW} and {HIGH}",
        where=socket.gethostname(),
        remedy="look at `ss -ltn`: another job's processes may be left on the node",
    )


def _free(ports: RayPorts) -> bool:
    with contextlib.ExitStack() as held:
        for number in range(ports.first, ports.first + BLOCK):
            one = held.enter_context(socket.socket())
            try:
                one.bind(("0.0.0.0", number))
            except OSError:
                return False
    return True
