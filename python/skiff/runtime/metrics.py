"""What an operator can watch, in Prometheus' text format: places, states, ends, durations, builds.

Counts of the present come from the server's own books at each scrape. Durations and failures are
counted by `MeasuredBackend`, which stands before the back end and passes everything on. Labels hold
states and causes only: no session, image or client is named.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from skiff.errors import InfraError
from skiff.runtime.backend import (
    Backend,
    CommandOutput,
    Container,
    ContainerRequest,
    End,
    ImageInfo,
    ImageNotFoundError,
)
from skiff.runtime.builds import Builds
from skiff.runtime.sandboxes import Sandbox, Sandboxes

START_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)  # seconds
COMMAND_BUCKETS = (0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 30, 120, 600, 3600)


class Metrics:
    """The metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.start_seconds = Histogram(
            "skiff_start_seconds",
            "From the back end's first step to a ready sandbox; without the queue.",
            registry=self.registry,
            buckets=START_BUCKETS,
        )
        self.start_failures = Counter(
            "skiff_start_failures",
            "Starts that failed: of the image's fault, or of the machinery's.",
            ["cause"],
            registry=self.registry,
        )
        self.adopted = Counter(
            "skiff_adopted", "Sandboxes taken over from an earlier server.", registry=self.registry
        )
        self.command_seconds = Histogram(
            "skiff_command_seconds",
            "Commands that ran in sandboxes, by how they ended.",
            ["end"],
            registry=self.registry,
            buckets=COMMAND_BUCKETS,
        )
        self.ended = Counter(
            "skiff_ended", "Sandboxes that have ended, by cause.", ["cause"], registry=self.registry
        )

    def watch(self, sandboxes: Sandboxes, builds: Builds) -> None:
        """Show their present counts at each scrape, and count the sandboxes that end."""
        self.registry.register(_Present(sandboxes, builds))
        sandboxes.watch(self._changed)

    def _changed(self, sandbox: Sandbox) -> None:
        if sandbox.state.ended and sandbox.cause is not None:
            self.ended.labels(sandbox.cause).inc()

    def text(self) -> bytes:
        """Prometheus' text exposition format."""
        return generate_latest(self.registry)


class _Present(Collector):
    def __init__(self, sandboxes: Sandboxes, builds: Builds) -> None:
        self._sandboxes = sandboxes
        self._builds = builds

    def collect(self) -> Iterator[Metric]:
        counts = self._sandboxes.counts()
        places = counts.pop("places")
        free = counts.pop("free")
        yield GaugeMetricFamily("skiff_places", "Sandboxes that may run at once.", places)
        yield GaugeMetricFamily("skiff_places_free", "Negative: so many starts wait.", free)
        states = GaugeMetricFamily(
            "skiff_sandboxes", "Living sandboxes; `queued` is the queue's length.", labels=["state"]
        )
        for state, number in counts.items():
            states.add_metric([state], number)
        yield states
        builds = GaugeMetricFamily(
            "skiff_builds", "Builds that can still be asked for.", labels=["state"]
        )
        for build_state, number in self._builds.counts().items():
            builds.add_metric([build_state.lower()], number)
        yield builds


class MeasuredBackend:
    """A `backend.Backend` that counts and times what another one does."""

    def __init__(self, backend: Backend, metrics: Metrics) -> None:
        self._backend = backend
        self._metrics = metrics

    async def open(self, known: Collection[str]) -> None:
        await self._backend.open(known)

    async def start(self, request: ContainerRequest) -> Container:
        began = time.monotonic()
        try:
            container = await self._backend.start(request)
        except ImageNotFoundError:
            self._metrics.start_failures.labels("image").inc()
            raise
        except InfraError:
            self._metrics.start_failures.labels("infra").inc()
            raise
        self._metrics.start_seconds.observe(time.monotonic() - began)
        return MeasuredContainer(container, self._metrics)

    async def adopt(self, request: ContainerRequest) -> Container:
        container = await self._backend.adopt(request)
        self._metrics.adopted.inc()
        return MeasuredContainer(container, self._metrics)

    async def image(self, name: str) -> ImageInfo | None:
        return await self._backend.image(name)

    async def build(self, context: Path, name: str) -> None:
        await self._backend.build(context, name)

    async def snapshot(self, container: Container, name: str) -> None:
        inner = container.inner if isinstance(container, MeasuredContainer) else container
        await self._backend.snapshot(inner, name)

    async def close(self) -> None:
        await self._backend.close()


class MeasuredContainer:
    """A `backend.Container` whose commands are timed."""

    def __init__(self, inner: Container, metrics: Metrics) -> None:
        self.inner = inner
        self._metrics = metrics

    @property
    def end(self) -> End | None:
        return self.inner.end

    async def run(
        self, command: str, *, timeout: float, cwd: str, stop: asyncio.Event
    ) -> CommandOutput:
        began = time.monotonic()
        try:
            done = await self.inner.run(command, timeout=timeout, cwd=cwd, stop=stop)
        except InfraError:
            self._metrics.command_seconds.labels("infra").observe(time.monotonic() - began)
            raise
        self._metrics.command_seconds.labels(_end(done)).observe(done.seconds)
        return done

    async def read(self, path: str, *, offset: int, length: int) -> bytes:
        return await self.inner.read(path, offset=offset, length=length)

    async def write(self, path: str, source: BinaryIO, mode: int) -> None:
        await self.inner.write(path, source, mode)

    async def pause(self) -> None:
        await self.inner.pause()

    async def resume(self) -> None:
        await self.inner.resume()

    async def remove(self) -> None:
        await self.inner.remove()


def _end(done: CommandOutput) -> str:
    if done.timed_out:
        return "timeout"
    if done.exit_code is None:
        return "stopped"
    return "ok" if done.exit_code == 0 else "failed"
