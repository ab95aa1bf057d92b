"""Which runtime server takes the next start, where there are several.

Each server writes `runtime-<node>.json` into one folder and removes it at its end. The folder
is read again about once a second, and so is each server's health, which names its free places.
Of two nodes taken at random the one with more free places is chosen: many clients that look at the
same figures do not all run to the same node. A node that does not answer gets no starts until it
answers again.

Not covered: moving a sandbox; it lives and dies with its node.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from skiff.errors import InfraError

PATTERN = "runtime-*.json"
FRESH_SECONDS = 1.0


def published(folder: Path) -> list[str]:
    """The urls of the servers that have published themselves in `folder`."""
    urls = []
    for path in sorted(folder.glob(PATTERN)):
        try:
            urls.append(str(json.loads(path.read_text())["url"]))
        except FileNotFoundError:
            continue  # the server has just ended
        except (ValueError, KeyError) as error:
            raise InfraError(
                f"does not say where a server is: {error!r}", where=str(path)
            ) from error
    return list(dict.fromkeys(urls))


@dataclass
class Node:
    """What is known about one server. `free` places; None: it does not answer."""

    url: str
    free: int | None = None
    begun: int = 0  # starts of ours since `free` was read

    @property
    def room(self) -> int:
        return (self.free or 0) - self.begun


class Nodes:
    """Chooses servers.

    discover  the urls of the servers there are now
    free      how many free places the server of a url has; InfraError when it does not answer
    """

    def __init__(
        self, discover: Callable[[], Sequence[str]], free: Callable[[str], Awaitable[int]]
    ) -> None:
        self._discover = discover
        self._free = free
        self._nodes: dict[str, Node] = {}
        self._looked = float("-inf")
        self._look = asyncio.Lock()

    async def urls(self) -> list[str]:
        """Every server there is, whether it answers or not."""
        await self._refresh()
        return list(self._nodes)

    async def choose(self, without: Collection[str] = ()) -> str | None:
        """The server for the next start, none of `without`; None when there is no other.

        Where none answers it is any of them: its start says what is wrong.
        """
        await self._refresh()
        others = [node for node in self._nodes.values() if node.url not in without]
        if len(others) < 2:
            return others[0].url if others else None
        answering = [node for node in others if node.free is not None] or others
        two = random.sample(answering, min(2, len(answering)))
        best = max(two, key=lambda node: node.room)
        best.begun += 1
        return best.url

    def lost(self, url: str) -> None:
        """It refuses connections: no start goes there until it answers again."""
        if (node := self._nodes.get(url)) is not None:
            node.free = None

    async def _refresh(self) -> None:
        async with self._look:
            if time.monotonic() - self._looked < FRESH_SECONDS:
                return
            urls = await asyncio.to_thread(self._discover)
            self._nodes = {url: self._nodes.get(url) or Node(url) for url in urls}
            if len(self._nodes) > 1:  # else there is nothing to choose
                await asyncio.gather(*(self._measure(node) for node in self._nodes.values()))
            self._looked = time.monotonic()

    async def _measure(self, node: Node) -> None:
        try:
            node.free = await self._free(node.url)
        except InfraError:
            node.free = None  # its sandboxes' own calls say why
        node.begun = 0
