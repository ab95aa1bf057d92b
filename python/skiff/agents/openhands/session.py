"""The bridge from the SDK's thread to the trajectory on the event loop.

The SDK's model and tools are plain data and find their session by a key. A failure that is not the
agent's is kept here and refused to the model: the SDK would show it as an observation.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from itertools import takewhile
from typing import Any
from uuid import uuid4

from skiff.agents.episode import Episode
from skiff.agents.openhands.editor import Editor
from skiff.agents.tokens import Message
from skiff.errors import InfraError

_SESSIONS: dict[str, Session] = {}


class SessionEndedError(Exception):
    """The trajectory is over (deadline, cancelled); the thread has to end."""


class Session:
    """One conversation. `call` is for the SDK's thread, everything else for the event loop."""

    def __init__(self, episode: Episode) -> None:
        self.episode = episode
        self.editor = Editor(episode)
        self.failure: Exception | None = None
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._ended = False
        self._call: Future[Any] | None = None
        self._task: asyncio.Task[Any] | None = None
        self._history: list[Message] = []  # of the SDK, as of the last call

    def call[T](self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` on the event loop and wait for it.

        Its first exception is kept as `failure` and raised by this and every later call.
        """
        with self._lock:
            if self._ended or self.failure:
                work.close()
                raise self.failure or SessionEndedError
            call = asyncio.run_coroutine_threadsafe(self._keep_failure(work), self._loop)
            self._call = call
        return call.result()

    async def end(self) -> None:
        """Cancel the call in flight, wait until it is gone, and refuse further ones."""
        with self._lock:
            self._ended = True
        if self._call is not None:
            self._call.cancel()
        if self._task is not None and not self._task.done():
            await asyncio.wait([self._task])

    async def answer(self, history: Sequence[Message]) -> str:
        """The policy's answer to the SDK's `history`, of which only what is new becomes tokens.

        The SDK writes the policy's own messages anew (or leaves out malformed ones): they are not
        read back, the ids that the engine returned stay.
        """
        new = news(self._history, history)
        if self._history:
            turn = self.episode.turn
            turn.observation = turn.observation or "\n".join(m["content"] for m in new)
            self.episode.buffer.observe(new)
        else:
            self.episode.begin(new)
        self._history = list(history)
        return await self.episode.generate()

    async def _keep_failure[T](self, work: Coroutine[Any, Any, T]) -> T:
        self._task = asyncio.current_task()
        try:
            return await work
        except Exception as error:
            self.failure = error
            raise


def news(before: Sequence[Message], after: Sequence[Message]) -> list[Message]:
    """What the SDK added to its history `before`, without the policy's own messages.

    The SDK joins consecutive user messages, so the last one may have grown. Raises InfraError for
    any other change of what was said: the trained tokens would not be those of the history.
    """
    same = sum(
        1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(before, after, strict=False))
    )
    new = list(after[same:])
    if same < len(before):
        old = before[same]
        grown = same == len(before) - 1 and new and new[0]["content"].startswith(old["content"])
        if not grown:
            raise InfraError(f"the OpenHands SDK rewrote message {same} of its history")
        rest = new[0]["content"].removeprefix(old["content"]).lstrip("\n")
        new[0] = {"role": old["role"], "content": rest}
    new = [message for message in new if message["role"] != "assistant"]
    if not new:
        raise InfraError("the OpenHands SDK asked again without an observation")
    return new


@contextmanager
def open_session(episode: Episode) -> Iterator[tuple[str, Session]]:
    """Register a session under a fresh key while the block runs."""
    key = uuid4().hex
    session = _SESSIONS[key] = Session(episode)
    try:
        yield key, session
    finally:
        del _SESSIONS[key]


def find_session(key: str) -> Session:
    """The open session of this name."""
    return _SESSIONS[key]
