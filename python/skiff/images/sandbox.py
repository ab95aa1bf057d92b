"""The sandbox base image: Debian with bash, git and python3, made by mmdebstrap.

One tar of a root file system, imported into podman's store. The image carries a digest of its
recipe as a label and is made again when the recipe changes.
"""

from __future__ import annotations

from pathlib import Path

from skiff.images.debian import Recipe, read_recipe, rootfs
from skiff.podman import import_rootfs, run_podman
from skiff.tasks.shell import IMAGE

RECIPE = Path(__file__).parents[3] / "containers" / "sandbox" / "recipe.toml"
LABEL = "skiff.recipe"
PYTHON = "3.11"  # what the recipe's suite calls python3
_CHANGES = (
    "ENV LANG=C.UTF-8",
    "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    'CMD ["/bin/bash"]',
)


def sandbox_recipe() -> Recipe:
    """The recipe as it stands in the clone."""
    return read_recipe(RECIPE, salt=repr(_CHANGES))


def sandbox_rootfs(recipe: Recipe) -> Path:
    """The tar of the image's root file system, built when absent."""
    return rootfs(recipe, "sandbox")


def ensure_sandbox_image(recipe: Recipe | None = None, *, name: str = IMAGE) -> bool:
    """Make the image unless the store holds it in the recipe's version. True when it was made.

    Takes about half a minute the first time. Raises InfraError with the failing program's words.
    """
    recipe = recipe or sandbox_recipe()
    if image_label(name, LABEL) == recipe.digest:
        return False
    import_rootfs(
        sandbox_rootfs(recipe), name, changes=[*_CHANGES, f"LABEL {LABEL}={recipe.digest}"]
    )
    return True


def image_label(name: str, label: str) -> str | None:
    """The label of an image in podman's store; None when either is absent."""
    inspect = ["image", "inspect", "--format", f'{{{{index .Labels "{label}"}}}}', name]
    done = run_podman(inspect, timeout=60)
    return done.stdout.decode().strip() or None if done.returncode == 0 else None
