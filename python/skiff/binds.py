"""Where things of the host lie inside the images: the one table of those paths.

What a trainer only reads, model and task files, lies at the same path for every user and site. So
compiled kernels, whose keys hold the model's path, are found by everyone, and a site's folder
cannot hide one of the image's. The launcher says in BOUND what of the profile lies where, and
`bound` is asked where such a path is opened.

The run folder and the packs are at RUN and PACKS, and at their own paths as well: logs, events,
W&B and the other half of a run name checkpoints and packs by words that hold outside, too.

Not covered: `images.binds`, which are at their own paths only.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

MODEL = Path("/skiff/model")
DATA = Path("/skiff/data")  # DATA/N/NAME: each file or folder of tasks, and the skip list
RUN = Path("/skiff/run")  # checkpoints are in RUN/ckpt
PACKS = Path("/skiff/packs")
SCRATCH = Path("/tmp")  # on a disk of the node

BOUND = "SKIFF_BOUND"  # JSON: path in the profile -> path inside
# The images' own: a folder that is bound over one of them, or over what holds it, hides it.
OWN = (
    *("/bin", "/dev", "/etc", "/lib", "/lib64", "/opt/python", "/opt/skiff", "/proc", "/sbin"),
    *("/skiff", "/sys", "/tmp", "/usr/bin", "/usr/lib", "/usr/local/lib/skiff-apptainer"),
)


def bound(path: Path) -> Path:
    """Where a path of the profile lies for this process: elsewhere only inside an image."""
    inside: dict[str, str] = json.loads(os.environ.get(BOUND, "{}"))
    return Path(inside.get(str(path), path))


def hides(path: Path) -> str | None:
    """The first folder of the images that `path`, bound to itself, would hide."""
    return next((own for own in OWN if Path(own).is_relative_to(path)), None)
