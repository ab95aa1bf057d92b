"""What is looked at before a run: here, with the real podman; tests/slurm asks a real Slurm."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from skiff import cli
from skiff.config import Config
from skiff.config.load import dump_toml
from skiff.doctor import machine, places
from skiff.doctor.before import check_profile, is_fine, one_of
from skiff.doctor.check import Check, Verdict
from skiff.doctor.machine import check_trainer_node
from skiff.doctor.places import (
    check_model,
    check_places,
    check_port,
    check_shared,
    check_tasks,
)
from skiff.errors import InfraError
from skiff.sandbox.client import KEY_FILE_VARIABLE

CPU = {"platform": "cpu", "dtype": "float32"}
GPUS = (
    "0, NVIDIA A100-SXM4-40GB, 512, 40960, 7, 41, 0\n1, NVIDIA A100-SXM4-40GB, 1, 40960, 0, 40, 0"
)

Configure = Callable[..., Config]


@pytest.fixture
def config(runtime_config: Configure, tmp_path: Path) -> Configure:
    """`config(**sections)`: a profile whose model is there, for this machine."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"\0" * 100)

    def make(**sections: dict[str, Any]) -> Config:
        given = {
            "run": {"folder": str(tmp_path / "runs")},
            "model": {"path": str(model)},
            "hardware": CPU,
        }
        return runtime_config(**(given | sections))

    return make


def named(checks: list[Check], name: str) -> Check:
    [found] = [check for check in checks if check.name == name]
    return found


def test_this_machine_can_run_a_profile(config: Configure) -> None:
    checks = check_profile(config())
    assert [check for check in checks if check.verdict is Verdict.FAIL] == []
    assert named(checks, "podman").verdict is Verdict.OK
    assert named(checks, "slurm").verdict is Verdict.ABSENT
    assert is_fine(checks)


def test_a_model_without_weights(config: Configure, tmp_path: Path) -> None:
    assert "1 files of weights" in check_model(config()).what
    (tmp_path / "model" / "model.safetensors").unlink()
    assert check_model(config()).what.endswith("holds no weights")
    (tmp_path / "model" / "config.json").unlink()
    assert check_model(config()).verdict is Verdict.FAIL
    assert check_model(config(model={"path": "warm-start"}, warm_start={})).verdict is Verdict.OK


def test_tasks_that_are_not_there(config: Configure) -> None:
    assert check_tasks(config()).verdict is Verdict.OK
    found = check_tasks(config(tasks={"train": ["tasks:/gone.jsonl"]}))
    assert found.verdict is Verdict.FAIL
    assert "/gone.jsonl" in found.what


@pytest.mark.parametrize(
    ("gib", "verdict"), [(1, Verdict.FAIL), (5, Verdict.WARN), (500, Verdict.OK)]
)
def test_a_folder_without_room(
    config: Configure, monkeypatch: pytest.MonkeyPatch, gib: int, verdict: Verdict
) -> None:
    usage = SimpleNamespace(free=gib << 30)
    monkeypatch.setattr(places.shutil, "disk_usage", lambda _: usage)
    assert named(check_places(config()), "run folder").verdict is verdict


def test_images_that_are_none(config: Configure, tmp_path: Path) -> None:
    broken = tmp_path / "broken.sif"
    broken.write_bytes(b"no image")
    checks = check_places(config(images={"runtime": "/gone.sif", "trainer": str(broken)}))
    assert named(checks, "runtime image").what == "/gone.sif is no file that can be read"
    assert named(checks, "trainer image").verdict is Verdict.FAIL


def test_binds_must_be_folders(config: Configure, tmp_path: Path) -> None:
    checks = check_places(config(images={"binds": [str(tmp_path), "/gone"]}))
    found = {check.what: check.verdict for check in checks if check.name == "bind"}
    assert found == {
        f"{tmp_path} is there": Verdict.OK,
        "/gone is no folder here": Verdict.FAIL,
    }


def test_secrets_that_others_can_read(
    config: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    secrets = tmp_path / ".env"
    secrets.write_text("WANDB_API_KEY=planted\n")
    secrets.chmod(0o644)
    found = named(check_places(config()), "secrets")
    assert (found.verdict, found.remedy) == (Verdict.FAIL, f"chmod 600 {secrets}")
    secrets.chmod(0o600)
    found = named(check_places(config()), "secrets")
    assert found.what == "found: WANDB_API_KEY"
    secrets.unlink()
    logged = config(logging={"wandb": True}, runtime={"host": "0.0.0.0"}, slurm={})
    assert named(check_places(logged), "wandb").verdict is Verdict.WARN
    monkeypatch.setenv("WANDB_API_KEY", "planted")
    found = named(check_places(logged), "secrets")
    assert found.verdict is Verdict.FAIL
    assert "is set in the environment, which Slurm would keep" in found.what


def test_the_key_of_a_server_of_another_run(
    config: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attached = config(runtime={"url": "http://node7:8000"})
    monkeypatch.delenv(KEY_FILE_VARIABLE, raising=False)
    assert named(check_places(attached), "key").verdict is Verdict.FAIL
    key = tmp_path / "key"
    monkeypatch.setenv(KEY_FILE_VARIABLE, str(key))
    assert "no such key file" in named(check_places(attached), "key").what
    key.write_text("planted")
    key.chmod(0o640)
    assert "others can read the key" in named(check_places(attached), "key").what
    key.chmod(0o600)
    found = named(check_places(attached), "key")
    assert found.verdict is Verdict.OK
    assert "planted" not in found.what


def test_a_port_that_is_taken(config: Configure) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        found = check_port(config(runtime={"port": port}))
        assert found.verdict is Verdict.FAIL
        assert f"port {port} of 127.0.0.1 cannot be had" in found.what
    assert check_port(config(runtime={"host": "203.0.113.1"})).verdict is Verdict.FAIL
    assert check_port(config()).verdict is Verdict.OK


def test_a_proxy_without_exceptions(config: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "all_proxy", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    assert named(check_places(config()), "proxy").verdict is Verdict.WARN
    monkeypatch.setenv("no_proxy", "node1,node2")
    assert named(check_places(config()), "proxy").verdict is Verdict.OK


def test_a_shared_folder_is_known_by_its_file_system(
    config: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "filesystem", lambda _: "lustre")
    assert check_shared(config()).verdict is Verdict.OK
    monkeypatch.setattr(places, "filesystem", lambda _: "ext4")
    assert check_shared(config()).verdict is Verdict.WARN


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`nvidia_smi(cuda, gpus)`: what it prints of driver and GPUs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=":")

    def make(cuda: str = "13.0", gpus: str = GPUS) -> None:
        program = folder / "nvidia-smi"
        header = f"| NVIDIA-SMI 580.65  Driver Version: 580.65.06  CUDA Version: {cuda} |"
        program.write_text(
            f'#!/bin/sh\ncase "$*" in *query*) echo "{gpus}";; *) echo "{header}";; esac\n'
        )
        program.chmod(0o755)

    return make


@pytest.mark.parametrize(
    ("cuda", "verdict"), [("12.9", Verdict.FAIL), ("13.0", Verdict.OK), ("13.2", Verdict.OK)]
)
def test_the_driver_must_serve_the_trainers_cuda(
    config: Configure, nvidia_smi: Callable[..., None], cuda: str, verdict: Verdict
) -> None:
    nvidia_smi(cuda)
    found = check_trainer_node(config(hardware={"platform": "cuda", "gpus_per_node": 2}))
    assert named(found, "GPUs").what == "2 × NVIDIA A100-SXM4-40GB"
    assert named(found, "CUDA").verdict is verdict
    assert "13.0" in named(found, "CUDA").what


def test_mig_slices_are_counted_by_what_slurm_gives(
    config: Configure, nvidia_smi: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    nvidia_smi(gpus="0, NVIDIA A100-SXM4-40GB, [N/A], 40960, [N/A], 41, [N/A]")
    cuda = config(hardware={"platform": "cuda", "gpus_per_node": 2})
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert named(check_trainer_node(cuda), "GPUs").verdict is Verdict.WARN
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-250bc972,MIG-0c757cd7")
    assert named(check_trainer_node(cuda), "GPUs").what.startswith("2 MIG slices")


def test_no_driver(config: Configure, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = check_trainer_node(config(hardware={"platform": "cuda"}))
    assert named(found, "GPUs").verdict is Verdict.FAIL


def test_a_user_without_subordinate_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    single = machine.id_map().__class__(root=1000, first=1000, count=1)
    monkeypatch.setattr(machine.os, "getuid", lambda: 1000)
    monkeypatch.setattr(machine, "id_map", lambda: single)
    assert machine._subordinate_ids().verdict is Verdict.FAIL
    monkeypatch.setenv("PATH", "/nowhere")
    assert machine._newuidmap().verdict is Verdict.FAIL


def test_a_node_without_user_namespaces_is_told_whole(
    config: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused() -> None:
        raise InfraError("this user cannot make a user namespace", remedy="sysctl")

    monkeypatch.setattr(machine, "id_map", refused)
    monkeypatch.setattr(machine.os, "getuid", lambda: 1000)
    found = machine.check_runtime_node(config())
    assert named(found, "user namespaces").verdict is Verdict.FAIL
    assert named(found, "subuid, subgid").remedy == "sysctl"
    assert named(found, "port").verdict is Verdict.OK


def test_sandboxes_of_apptainer(config: Configure, tmp_path: Path) -> None:
    def look(sifs: str) -> list[Check]:
        asked = {"backend": "apptainer", "sif_folder": sifs}
        return machine.check_runtime_node(config(runtime=asked))

    found = look("/gone")
    assert named(found, "apptainer").verdict is Verdict.OK
    assert named(found, "overlay").verdict is not Verdict.FAIL
    assert named(found, "sif_folder").verdict is Verdict.FAIL
    (tmp_path / "debian_12.sif").touch()
    assert named(look(str(tmp_path)), "sif_folder").what == f"{tmp_path}: 1 images"


def test_a_copy_needs_rsync_and_a_folder(
    config: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sync(place: str) -> Check:
        asked = {"folder": str(tmp_path), "sync_to": place}
        return named(check_trainer_node(config(run=asked)), "run.sync_to")

    assert sync(str(tmp_path)).verdict is Verdict.OK
    assert sync("storage:/runs").verdict is Verdict.OK
    assert sync("/gone").verdict is Verdict.FAIL
    monkeypatch.setenv("PATH", "/nowhere")
    assert sync(str(tmp_path)).what == "rsync is not installed"


@pytest.mark.parametrize(
    ("gres", "one"),
    [
        ("gpu:8", "gpu:1"),
        ("gpu:a100:8", "gpu:a100:1"),
        ("gpu", "gpu:1"),
        ("gpu:a100", "gpu:a100:1"),
    ],
)
def test_one_gpu_is_enough_to_look_at(gres: str, one: str) -> None:
    assert one_of(gres) == one


def test_the_command(config: Configure, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profile = tmp_path / "profile.toml"
    profile.write_text(dump_toml(config()))
    assert cli.main(["doctor", str(profile)]) == 0
    assert "run folder" in capsys.readouterr().out
    assert cli.main(["doctor", str(profile), "--json", "--set", "images.binds=['/gone']"]) == 1
    checks = json.loads(capsys.readouterr().out)
    assert [check["what"] for check in checks if check["verdict"] == "fail"] == [
        "/gone is no folder here"
    ]
