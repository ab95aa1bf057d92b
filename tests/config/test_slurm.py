"""`[slurm]`: what may stand in a script, and what must fit the rest of the profile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from skiff.config import Config
from skiff.errors import ConfigError

Configured = Callable[..., Config]
OPEN = {"host": "0.0.0.0"}
CPU = {"platform": "cpu", "dtype": "float32"}


def half(field: str, value: Any) -> dict[str, dict[str, Any]]:
    return {"runtime": OPEN, "hardware": CPU, "slurm": {"trainer": {field: value}}}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("partition", "gpu test"),
        ("partition", "gpu\n#SBATCH --uid=0"),
        ("account", "$(id)"),
        ("qos", ""),
        ("constraint", "a'b"),
        ("gres", "gpu:`id`"),
        ("cpus", 0),
        ("memory", "64 GB"),
        ("time", "soon"),
        ("time", "1-2-3"),
        ("extra", ["exclusive"]),
        ("extra", ["--comment=a\nsrun evil"]),
        ("nodes", 2),
    ],
)
def test_what_sbatch_would_misread_is_refused(
    runtime_config: Configured, field: str, value: Any
) -> None:
    with pytest.raises(ConfigError, match=rf"slurm\.trainer\.{field}"):
        runtime_config(**half(field, value))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("partition", "gpu_test,gpu"),
        ("constraint", "[a100&ib|h100*2]"),
        ("gres", "gpu:nvidia_a100_3g.20gb:1"),
        ("memory", "64G"),
        ("memory", "512000"),
        ("exclude", "node[01-04,7]"),
        ("extra", ["--exclusive", "--mail-user=me@there", "--comment=two words"]),
    ],
)
def test_what_sites_use_is_accepted(runtime_config: Configured, field: str, value: Any) -> None:
    runtime_config(**half(field, value))


@pytest.mark.parametrize("time", ["90", "90:00", "12:00:00", "2-00", "2-00:30", "2-00:30:00"])
def test_every_form_of_a_time_limit_is_accepted(runtime_config: Configured, time: str) -> None:
    slurm = {"runtime": {"time": time}, "trainer": {"time": time}}
    runtime_config(runtime=OPEN, hardware=CPU, slurm=slurm)


def test_a_typo_is_told(runtime_config: Configured) -> None:
    with pytest.raises(ConfigError, match="did you mean 'partition'"):
        runtime_config(**half("partitoin", "gpu"))


# sections that break one rule, the words that the sentence must hold
FAULTS: dict[str, tuple[dict[str, dict[str, Any]], tuple[str, ...]]] = {
    "host": (
        {"runtime": {"host": "127.0.0.1"}, "slurm": {}},
        ("[slurm]", "runtime.host = '127.0.0.1'", "0.0.0.0"),
    ),
    "port": (
        {"runtime": {**OPEN, "port": 8000}, "slurm": {"runtime": {"nodes": 2}}},
        ("runtime.port = 8000", "slurm.runtime.nodes = 2", "runtime.port = 0"),
    ),
    "gpus": (
        {"runtime": OPEN, "slurm": {"trainer": {"gres": "nic:1,gpu:a100:4(S:0)"}}},
        ("slurm.trainer.gres", "hardware.gpus_per_node = 1", "equal"),
    ),
    "no gpus": (
        {"runtime": OPEN, "slurm": {}},
        ("hardware.platform = 'cuda'", "slurm.trainer.gres = 'gpu:1'"),
    ),
    "path": (
        {"run": {"folder": "a\\b"}, "runtime": OPEN, "slurm": {}, "hardware": CPU},
        ("[slurm]", "run.folder = 'a\\b'", "rename"),
    ),
    "extra": (
        {"runtime": OPEN, "slurm": {"trainer": {"extra": ["--nodes=2"]}}, "hardware": CPU},
        ("slurm.trainer.extra", "'--nodes=2'", "hardware.nodes"),
    ),
    "times": (
        {"runtime": OPEN, "slurm": {"runtime": {"time": "60"}, "trainer": {"time": "90"}}},
        ("slurm.runtime.time = '60'", "slurm.trainer.time = '90'", "equal"),
    ),
    "requeues": (
        {"runtime": OPEN, "slurm": {"mode": "two-jobs", "requeues": 1}},
        ("slurm.requeues = 1", "slurm.mode = 'two-jobs'", "slurm.requeues = 0"),
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_names_both_fields(runtime_config: Configured, name: str) -> None:
    sections, words = FAULTS[name]
    with pytest.raises(ConfigError) as caught:
        runtime_config(**sections)
    for word in words:
        assert word in str(caught.value)


def test_a_site_may_give_gpus_in_another_way(runtime_config: Configured) -> None:
    runtime_config(runtime=OPEN, slurm={"trainer": {"extra": ["--gpus-per-node=1"]}})


def test_for_a_server_elsewhere_no_host_is_needed(runtime_config: Configured) -> None:
    trainer = {"gres": "gpu:1"}
    runtime_config(runtime={"url": "http://there:1"}, slurm={"trainer": trainer})
