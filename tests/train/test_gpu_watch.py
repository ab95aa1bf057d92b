"""GPUs as a made nvidia-smi tells of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from skiff import events
from skiff.errors import InfraError
from skiff.gpus import Gpu, read_driver, read_gpus
from skiff.train.gpu_watch import IDLE_SECONDS, Alerts, watch_gpus

Smi = Callable[[str], Path]


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Smi:
    """`nvidia_smi(body)`: a program of this shell script."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=":")

    def make(body: str) -> Path:
        program = folder / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{body}\n")
        program.chmod(0o755)
        return program

    return make


def gpu(
    index: int = 0,
    *,
    used: float | None = 10.0,
    busy: float | None = 50.0,
    celsius: float | None = 40.0,
    ecc: float | None = 0.0,
) -> Gpu:
    return Gpu(index, "A100", used, 100.0, busy, celsius, ecc)


def test_what_a_gpu_tells(nvidia_smi: Smi) -> None:
    nvidia_smi('echo "0, NVIDIA H100 80GB HBM3, 71250, 81559, 98, 63, 0"')
    assert read_gpus() == [Gpu(0, "NVIDIA H100 80GB HBM3", 71250, 81559, 98, 63, 0)]


def test_what_a_mig_slice_does_not_tell(nvidia_smi: Smi) -> None:
    nvidia_smi('echo "0, NVIDIA A100, [Insufficient Permissions], 40960, [N/A], 41, [N/A]"')
    assert read_gpus() == [Gpu(0, "NVIDIA A100", None, 40960, None, 41, None)]


def test_words_of_nvidia_smi_reach_the_error(nvidia_smi: Smi, tmp_path: Path) -> None:
    program = nvidia_smi('echo "NVIDIA-SMI has failed because it could not talk"; exit 9')
    with pytest.raises(InfraError, match="could not talk"):
        read_gpus()
    nvidia_smi("echo odd")
    with pytest.raises(InfraError, match="is not understood"):
        read_gpus()
    with pytest.raises(InfraError, match="names no driver"):
        read_driver()
    program.unlink()


def test_no_nvidia_smi(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InfraError, match="is not here"):
        read_gpus()


def test_the_driver_and_its_cuda(nvidia_smi: Smi) -> None:
    nvidia_smi('echo "| NVIDIA-SMI 535.1   Driver Version: 535.183.01   CUDA Version: 12.2  |"')
    driver = read_driver()
    assert (driver.version, driver.cuda) == ("535.183.01", (12, 2))


def test_idle_is_said_once_until_a_gpu_works_again() -> None:
    alerts = Alerts(0.0)
    idle = [gpu(0, busy=0.0), gpu(1, busy=0.0)]
    assert alerts.look(idle, IDLE_SECONDS - 1) == []
    assert alerts.look(idle, IDLE_SECONDS + 1) == ["GPUs 0, 1: idle for 15 minutes"]
    assert alerts.look(idle, IDLE_SECONDS + 60) == []
    assert alerts.look([gpu(busy=90.0), gpu(1, busy=0.0)], IDLE_SECONDS + 90) == []
    assert alerts.look(idle, 2 * IDLE_SECONDS + 91) == ["GPUs 0, 1: idle for 15 minutes"]


def test_a_gpu_that_does_not_tell_is_not_idle() -> None:
    assert Alerts(0.0).look([gpu(busy=None)], 10 * IDLE_SECONDS) == []


def test_memory_heat_and_errors() -> None:
    alerts = Alerts(0.0)
    assert alerts.look([gpu(used=95.0), gpu(1, celsius=89.0)], 1) == []
    assert alerts.look([gpu(used=97.0), gpu(1, celsius=91.0)], 2) == [
        "GPU 0 has used 97 % of its memory",
        "GPU 1 is at 91 °C",
    ]
    assert alerts.look([gpu(used=97.0), gpu(1, ecc=2.0)], 3) == [
        "GPU 1 counts 2 uncorrected memory errors"
    ]
    assert alerts.look([gpu(used=97.0), gpu(1, ecc=2.0)], 4) == []


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_samples_are_events(nvidia_smi: Smi, tmp_path: Path) -> None:
    nvidia_smi('echo "0, A100, 97, 100, 98, 63, 0"; echo "1, A100, 5, 100, [N/A], 30, 0"')
    with watch_gpus(tmp_path, every=0.01):
        until(lambda: len(list(events.read(tmp_path, "gpu"))) > 2)
    first = next(events.read(tmp_path, "gpu"))
    assert first["used_mib"] == [97, 5]
    assert first["busy"] == [98, None]
    assert [event["what"] for event in events.read(tmp_path, "alert")] == [
        "GPU 0 has used 97 % of its memory"
    ]


def test_a_gpu_that_hangs_up_is_said_once_and_looked_at_again(
    nvidia_smi: Smi, tmp_path: Path
) -> None:
    count = tmp_path / "count"
    program = nvidia_smi(f'echo x >>"{count}"; echo "GPU is lost"; exit 15')
    with watch_gpus(tmp_path, every=0.01):
        until(lambda: count.exists() and len(count.read_text()) > 6)
        part = program.with_suffix(".part")
        part.write_text('#!/bin/sh\necho "0, A100, 9, 100, 98, 63, 0"\n')
        part.chmod(0o755)
        part.rename(program)
        until(lambda: list(events.read(tmp_path, "gpu")))
    assert [event["what"] for event in events.read(tmp_path, "alert")] == [
        "the GPUs cannot be watched: GPU is lost"
    ]
