"""A trainer of two nodes: the real halves and entry points bring up one Ray over both, on a real
Slurm. In verl's place stands a small program that asks Ray who is there."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from skiff.launch.status import status
from skiff.train import tiny
from skiff.train.ray_ports import HIGH, LOW

from .runs import Run

Profile = dict[str, dict[str, Any]]

# Runs the real entry point, but for main_ppo. Its tasks tell what workers of both nodes see.
TRAINER = """
import runpy, sys
from skiff.train import trainer

VERL = '''
import json, os, pathlib, sys, time
import ray
[address] = [word.split("=")[1] for word in sys.argv if "ray_init.address" in word]
ray.init(address=address, log_to_driver=False)

@ray.remote(num_gpus=1)
def look():
    time.sleep(1)
    names = [name for name in os.environ if name.startswith(("SLURM_", "PMI"))]
    return ray.get_runtime_context().get_node_id(), os.environ["SKIFF_RUN"], names

seen = ray.get([look.remote() for _ in range(2)])
ports = [node["NodeManagerPort"] for node in ray.nodes()]
run = pathlib.Path(os.environ["SKIFF_RUN"])
(run / "seen.json").write_text(json.dumps({"seen": seen, "ports": ports, "argv": sys.argv}))
EXIT
'''

class Child(trainer.Child):
    def __init__(self, command, environment, log):
        if "verl.trainer.main_ppo" in command:
            command = [command[0], "-c", VERL, *command[3:]]
        super().__init__(command, environment, log)

trainer.Child = Child
sys.argv[0] = ENTRYPOINT
runpy.run_path(ENTRYPOINT, run_name="__main__")
"""


@pytest.fixture
def run_two(
    profile: Profile,
    submit_run: Callable[..., Run],
    stand_in: Callable[..., None],
    tmp_path: Path,
    debian_image: str,
) -> Callable[[str], Run]:
    """`run_two(exit)`: a run with a trainer on gpu1 and gpu2 whose verl ends by `exit`."""

    def call(end: str) -> Run:
        model = tmp_path / "tiny"
        model.mkdir()
        tokenizer = tiny.make_tokenizer(model, ["a b"])
        tiny.make_model(model, tokenizer, layers=1, hidden=64, context_tokens=8192)
        entrypoint = str(Path(__file__).parents[2] / "entrypoints" / "train")
        stand_in(TRAINER.replace("ENTRYPOINT", repr(entrypoint)).replace("EXIT", end))
        profile["model"]["path"] = str(model)
        profile["hardware"]["nodes"] = 2
        profile["tasks"] = {"train_limit": 4, "validation_limit": 1}
        profile["train"] = {"steps": 1, "export": False}
        profile["slurm"]["trainer"] = {"partition": "gpus", "cpus": 2, "gres": "gpu:2"}
        return submit_run(profile)

    return call


@pytest.mark.timeout(300)
def test_two_nodes_are_one_ray(run_two: Callable[[str], Run]) -> None:
    run = run_two("")
    jobs = run.ended(seconds=180)
    log = "\n".join(path.read_text() for path in sorted((run.folder / "logs").glob("*.log")))
    assert {half: job.exit for half, job in jobs.items()} == {"runtime": 0, "train": 0}, log
    found = json.loads((run.folder / "seen.json").read_text())
    nodes, folders, names = zip(*found["seen"], strict=True)
    assert len(set(nodes)) == 2
    assert set(folders) == {str(run.folder)}
    assert names == ([], [])
    assert len(set(found["ports"])) == 2
    assert all(LOW <= port < HIGH for port in found["ports"])
    assert "trainer.nnodes=2" in found["argv"]
    assert processes_with(run.folder) == []
    assert not list((run.folder / "rendezvous" / "01").glob("ray*"))


@pytest.mark.timeout(300)
def test_a_trainer_of_two_nodes_fails_as_one(run_two: Callable[[str], Run]) -> None:
    run = run_two("raise ValueError('no such layer')")
    jobs = run.ended(seconds=180)
    assert jobs["train"].exit == 3
    assert "no such layer" in "\n".join(status(run.folder))


def processes_with(run_dir: Path) -> list[str]:
    """Living processes of the run, by their environment: the parts of Ray do not name it."""
    found = []
    for process in psutil.process_iter(["name"]):
        with contextlib.suppress(psutil.Error):  # it has ended, or is another user's
            if process.environ().get("SKIFF_RUN") == str(run_dir):
                found.append(process.info["name"])
    return found
