"""The output of one command on one stream: kept up to a cap, ended by a nonce."""

from __future__ import annotations


class CappedOutput:
    """Keeps the first and the last half of `cap` bytes; a marker says how many are missing.

    Both ends matter: the first error stands at the top, a test summary at the bottom.
    """

    def __init__(self, cap: int) -> None:
        self._half = max(cap // 2, 1)
        self._head = bytearray()
        self._tail = bytearray()
        self.dropped = 0

    def add(self, data: bytes) -> None:
        room = self._half - len(self._head)
        self._head += data[:room]
        self._tail += data[room:] if room > 0 else data
        if len(self._tail) > 2 * self._half:  # trim seldom: each trim moves the tail
            self._trim()

    def content(self) -> bytes:
        self._trim()
        marker = b"\n[... %d bytes left out ...]\n" % self.dropped if self.dropped else b""
        return bytes(self._head) + marker + bytes(self._tail)

    def _trim(self) -> None:
        excess = len(self._tail) - self._half
        if excess > 0:
            del self._tail[:excess]
            self.dropped += excess


class Capture:
    """Collects a stream until the line `<nonce> <exit code>` has arrived.

    `exit_code` is None before that. What follows the line is not part of the output.
    """

    def __init__(self, nonce: str, cap: int) -> None:
        self._mark = nonce.encode() + b" "
        self._pending = b""
        self._output = CappedOutput(cap)
        self.exit_code: int | None = None

    def feed(self, data: bytes) -> None:
        self._pending += data
        at = self._pending.find(self._mark)
        if at >= 0:
            end = self._pending.find(b"\n", at)
            if end >= 0:
                self._output.add(self._pending[:at])
                self.exit_code = int(self._pending[at + len(self._mark) : end])
                self._pending = b""
            return
        keep = len(self._mark) - 1  # the mark may have come only in part
        if len(self._pending) > keep:
            self._output.add(self._pending[:-keep])
            self._pending = self._pending[-keep:]

    @property
    def dropped(self) -> int:
        """Bytes left out so far."""
        return self._output.dropped

    def content(self) -> bytes:
        """The output; of a stream whose mark never came, all that has arrived."""
        if self.exit_code is None:
            self._output.add(self._pending)
            self._pending = b""
        return self._output.content()
