"""What the SDK reads from the environment while it is imported; this module comes first.

No look-up of model prices on the network, no personal settings (`SOUL.md`, profiles, plugins) in a
training prompt, no handlers on the root logger. The SDK's log lines are kept to the fatal ones:
a malformed call or a turn limit is everyday here, and stands in the trajectory.
"""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import tempfile

SCRATCH = tempfile.mkdtemp(prefix="skiff-openhands-")
atexit.register(shutil.rmtree, SCRATCH, ignore_errors=True)

os.environ["OH_PERSISTENCE_DIR"] = SCRATCH
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
os.environ["LOG_AUTO_CONFIG"] = "false"
os.environ["OPENHANDS_SUPPRESS_BANNER"] = "1"

logging.getLogger("openhands").setLevel(logging.CRITICAL)
