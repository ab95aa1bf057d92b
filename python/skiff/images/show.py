"""Images as a table, and as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, datetime

from rich.table import Table

from skiff.images.prune import GIB
from skiff.images.store import StoredImage


def images_table(images: Iterable[StoredImage], *, store: str) -> Table:
    """One row per image, the last used first."""
    columns = ("image", "size", "digest", "created", "last used", "store", "sandboxes")
    table = Table(*columns, box=None, header_style="bold")
    for image in sorted(images, key=lambda image: -image.used):
        table.add_row(
            "\n".join(image.names) or "(none)",
            f"{image.size_bytes / GIB:.2f} GiB",
            image.digest.removeprefix("sha256:")[:12],
            _day(image.created),
            _day(image.used),
            store,
            "in use" if image.sandboxes is None else str(image.sandboxes),
        )
    return table


def images_json(images: Iterable[StoredImage], *, store: str) -> str:
    """A list of objects with the fields of `StoredImage`, and `store`."""
    return json.dumps([asdict(image) | {"store": store} for image in images], indent=2)


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
