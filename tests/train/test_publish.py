"""From a save of verl's to a published checkpoint, and a save that somebody asks for."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from skiff import events
from skiff.errors import InfraError
from skiff.train import checkpoint as checkpoint_module
from skiff.train import manifest
from skiff.train.checkpoint import SaveHook
from skiff.train.publish import Publisher
from skiff.train.resume import complete_steps, saved_steps
from skiff.train.save_request import VARIABLE, SaveRequest, request_file


@pytest.fixture
def save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """`save(step)`: as verl does it, with the hook at its end."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "request"))
    monkeypatch.setattr(checkpoint_module, "POLL_SECONDS", 0.01)
    config = SimpleNamespace(trainer=SimpleNamespace(save_freq=100))
    hook = SaveHook(config)

    def call(step: int) -> None:
        folder = tmp_path / "ckpt" / f"global_step_{step}"
        (folder / "actor").mkdir(parents=True)
        (folder / "actor" / "model.pt").write_text("weights")
        hook.on_save(None, step, str(folder), async_save=False)

    yield call
    (tmp_path / "request").touch()  # its thread ends
    until(lambda: config.trainer.save_freq == 1)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_was_saved_is_published_and_the_oldest_removed(
    tmp_path: Path, save: Callable[[int], None]
) -> None:
    with Publisher(tmp_path, keep=2, newest=0) as publisher:
        publisher.look()
        assert publisher.newest == 0

        def looked(step: int) -> bool:
            publisher.look()
            return publisher.newest == step

        for step in (2, 4, 6):
            save(step)
            until(functools.partial(looked, step))
        save(8)  # verl ends before the next look
        (tmp_path / "ckpt" / "global_step_10").mkdir()  # in the middle of a save
        until(functools.partial(looked, 8))
    assert complete_steps(tmp_path / "ckpt") == [6, 8]
    assert saved_steps(tmp_path / "ckpt") == [6, 8, 10]
    told = [(event["step"], event["bytes"]) for event in events.read(tmp_path, "checkpoint")]
    assert [step for step, _ in told] == [2, 4, 6, 8]
    assert all(size == len("weights") + 2 for _, size in told)


def test_one_that_was_overtaken_is_left_out(tmp_path: Path, save: Callable[[int], None]) -> None:
    for step in (2, 4, 6):
        save(step)
    with Publisher(tmp_path, keep=2, newest=0) as publisher:
        pass
    assert publisher.newest == 6
    assert saved_steps(tmp_path / "ckpt") == [6]


def test_a_full_disk_is_told(
    tmp_path: Path, save: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    save(2)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(manifest, "write_manifest", fail)
    with (
        pytest.raises(InfraError, match=r"not published: .*No space left on device"),
        Publisher(tmp_path, keep=2, newest=0),
    ):
        pass


def test_a_request_makes_verl_save_at_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = request_file(tmp_path, 3)
    assert request == tmp_path / "rendezvous" / "03" / "save"
    request.parent.mkdir(parents=True)
    monkeypatch.setenv(VARIABLE, str(request))
    monkeypatch.setattr(checkpoint_module, "POLL_SECONDS", 0.01)
    config = SimpleNamespace(trainer=SimpleNamespace(save_freq=100))
    SaveHook(config)
    assert config.trainer.save_freq == 100
    request.touch()
    until(lambda: config.trainer.save_freq == 1)


def test_a_request_is_carried_out_by_a_later_checkpoint_with_its_metrics(tmp_path: Path) -> None:
    request = SaveRequest(tmp_path / "save")
    assert not request.carried_out(logged=4, published=4)
    (tmp_path / "save").touch()
    assert not request.carried_out(logged=4, published=4)  # the step in progress is worth saving
    assert not request.carried_out(logged=5, published=4)
    assert not request.carried_out(logged=5, published=6)
    assert request.carried_out(logged=6, published=6)
