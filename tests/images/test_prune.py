"""Which images go, and in which order."""

from __future__ import annotations

import time
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from skiff.images.prune import candidates, prune
from skiff.images.store import StoredImage


class MemoryStore:
    """What pruning needs of a store; `busy` images refuse to go."""

    def __init__(self, images: list[StoredImage], busy: frozenset[str] = frozenset()) -> None:
        self.held = images
        self.busy = busy

    def images(self) -> list[StoredImage]:
        return list(self.held)

    def used_bytes(self) -> int:
        return sum(image.size_bytes for image in self.held)

    def remove(self, image: StoredImage) -> bool:
        if image.id in self.busy:
            return False
        self.held.remove(image)
        return True


def image(name: str, *, used: float = 0, size: int = 10, sandboxes: int | None = 0) -> StoredImage:
    return StoredImage(
        id=name,
        names=(name,),
        pinned=(),
        digest="sha256:0",
        size_bytes=size,
        created=0,
        used=used,
        sandboxes=sandboxes,
    )


IMAGES = st.lists(
    st.builds(
        image,
        st.sampled_from(["docker.io/a/{}:1", "localhost/a/{}:1"]),
        used=st.integers(0, 100),
        size=st.integers(1, 100),
        sandboxes=st.sampled_from([0, 0, 1, None]),
    ),
    max_size=8,
).map(
    lambda images: [
        replace(one, id=str(number), names=(one.names[0].format(number),))
        for number, one in enumerate(images)
    ]
)


@given(IMAGES, st.integers(0, 400), st.sets(st.integers(0, 7).map(lambda n: f"a/{n}:1")))
def test_the_limit_is_met_or_nothing_more_may_go(
    images: list[StoredImage], limit: int, keep: set[str]
) -> None:
    store = MemoryStore(list(images))
    removed = prune(store, max_bytes=limit, keep=keep)
    rest = candidates(store.images(), keep=keep)
    assert store.used_bytes() <= limit or rest == []
    for gone in removed:
        assert gone.sandboxes == 0
        assert not gone.local
        assert not any(gone.is_called(name) for name in keep)
        assert all(gone.used <= other.used for other in rest)
    if removed:
        assert store.used_bytes() + removed[-1].size_bytes > limit  # not one too many


@given(IMAGES, st.integers(0, 400))
def test_a_dry_run_tells_the_truth(images: list[StoredImage], limit: int) -> None:
    store = MemoryStore(list(images))
    told = prune(store, max_bytes=limit, dry_run=True)
    assert store.images() == images
    assert prune(store, max_bytes=limit) == told


def test_age() -> None:
    now = time.time()
    store = MemoryStore([image(f"docker.io/a/{age}:1", used=now - age) for age in (10, 300, 200)])
    removed = prune(store, older_than=100)
    assert [gone.id for gone in removed] == ["docker.io/a/300:1", "docker.io/a/200:1"]


def test_what_was_built_here_goes_only_when_asked() -> None:
    nameless = replace(image("none"), names=())
    images = [image("localhost/a:1"), nameless, image("docker.io/a/b:1")]
    assert candidates(images) == [images[2]]
    assert candidates(images, local=True) == images


def test_an_image_that_is_just_being_taken_into_use_is_passed_over() -> None:
    store = MemoryStore([image("a", used=1), image("b", used=2)], busy=frozenset("a"))
    assert [gone.id for gone in prune(store, max_bytes=10)] == ["b"]


def test_a_short_name_means_what_podman_would_run() -> None:
    stored = replace(image("docker.io/user/name:1"), pinned=("docker.io/user/name@sha256:1",))
    for name in ("user/name:1", "docker.io/user/name:1", "name:1", "user/name@sha256:1"):
        assert stored.is_called(name), name
    for name in ("user/name", "name", "er/name:1", "quay.io/user/name:1", "name@sha256:2"):
        assert not stored.is_called(name), name
