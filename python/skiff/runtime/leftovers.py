"""Sandboxes that a server could not remove, because podman's service was ended before it was done:
Slurm's scancel signals all processes of a job at once.

Works on the host, when nothing of the server runs any more.
"""

from __future__ import annotations

import time
from pathlib import Path

from skiff.errors import InfraError
from skiff.podman import check_podman, end_pause_process
from skiff.runtime.podman_backend import LABEL

SECONDS = 10.0
POLL_SECONDS = 0.2


def remove_leftovers(state: Path) -> int:
    """Remove the containers of the server whose state lies in `state`; how many there were.

    Raises InfraError with podman's words.
    """
    server_id = state / "server_id"
    if not server_id.exists():
        return 0  # it never came so far
    label = f"label={LABEL}={server_id.read_text()}"
    listing = ["ps", "--all", "--quiet", "--filter", label]
    found = left = check_podman(listing).decode().split()
    deadline = time.monotonic() + SECONDS
    while left:
        try:
            check_podman(["rm", "--force", "--time=0", "--volumes", *left])
        except InfraError:  # podman 4.3 does so for a container that ends at this moment
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_SECONDS)
        left = check_podman(listing).decode().split()
    if not check_podman(["ps", "--quiet"]):
        end_pause_process()
    return len(found)
