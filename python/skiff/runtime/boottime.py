"""The clock of everything that must outlive a restart of the server: seconds since the host's boot.

It goes on while the server is down and while the host sleeps, and nobody can set it, so a jump of
the wall clock ends no sandbox and keeps none alive. After a reboot it means nothing: `boot_id`
tells one boot from another.
"""

from __future__ import annotations

import time
from pathlib import Path


def boot_time() -> float:
    """Seconds since the host's boot."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    """Which boot of the host this is."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
