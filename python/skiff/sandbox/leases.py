"""Proof of life: while a client is open, the leases of its sandboxes are renewed.

A client that is killed renews nothing, so its sandboxes end by themselves.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import defaultdict
from dataclasses import dataclass

from skiff.errors import ConfigError, InfraError
from skiff.sandbox.wire import Wire

RENEWALS = 3  # of a lease, until it would expire

log = logging.getLogger("skiff.sandbox")


@dataclass(frozen=True)
class Lease:
    server: str
    seconds: float


class Leases:
    """The leases of one client."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._leases: dict[str, Lease] = {}
        self._heart: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    def hold(self, server: str, runtime_id: str, seconds: float) -> None:
        """Renew this lease of `seconds` from now on."""
        self._leases[runtime_id] = Lease(server, seconds)
        self._changed.set()
        if self._heart is None:
            self._heart = asyncio.create_task(self._beat())

    def drop(self, runtime_id: str) -> None:
        """Renew it no more; one that is not held is ignored."""
        self._leases.pop(runtime_id, None)

    def close(self) -> None:
        """Renew nothing any more."""
        self._leases.clear()
        if self._heart is not None:
            self._heart.cancel()

    async def _beat(self) -> None:
        renewed = time.monotonic()
        while True:
            self._changed.clear()
            shortest = min((lease.seconds for lease in self._leases.values()), default=math.inf)
            left = renewed + shortest / RENEWALS - time.monotonic()
            try:
                await asyncio.wait_for(self._changed.wait(), None if math.isinf(left) else left)
            except TimeoutError:
                renewed = time.monotonic()
                await self._renew()

    async def _renew(self) -> None:
        servers: dict[str, list[str]] = defaultdict(list)
        for runtime_id, lease in self._leases.items():
            servers[lease.server].append(runtime_id)
        await asyncio.gather(*(self._renew_at(*each) for each in servers.items()))

    async def _renew_at(self, server: str, runtime_ids: list[str]) -> None:
        body = {"runtime_ids": runtime_ids}
        try:
            answer = await self._wire.control("POST", f"{server}/lease", json=body)
        except (InfraError, ConfigError) as error:  # the sandboxes' own calls meet it, too
            log.warning("leases could not be renewed: %s", error)
            return
        for runtime_id in answer["unknown"]:
            self.drop(runtime_id)
