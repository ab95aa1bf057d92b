"""Planted secrets are found nowhere but in their own files, and where verl needs them.

The halves are the real ones up to verl, which a small program stands for. While they run, every
process's arguments and environment are looked at, and what Slurm keeps of the job.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from skiff import cli
from skiff.config.secrets import NAMES, without_secrets
from skiff.launch.submit import job_ids
from skiff.sandbox import RuntimeClient, SandboxSpec

from .runs import Run, until

Profile = dict[str, dict[str, Any]]
LOOK_SECONDS = 0.05
# Stands for the interpreter that would run verl: notes which secrets it has, and waits until the
# test has looked around.
STAND_IN = """#!{python}
import os, pathlib, time
folder = pathlib.Path({folder!r})
(folder / "part").write_text("\\n".join(os.environ[name] for name in {names}))
(folder / "part").rename(folder / "seen")
while not (folder / "looked").exists():
    time.sleep(0.1)
"""
# Python imports it at its start.
SITE = """
import sys
if sys.orig_argv[1].endswith("entrypoints/train"):
    sys.executable = {program!r}
"""


@dataclass
class Lookout:
    """Looks at all processes of this machine until it is told to end."""

    secrets: list[bytes]
    allowed: Path  # the program that may have them in its environment
    leaks: set[str] = field(default_factory=set)
    looks: int = 0
    done: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        while not self.done.wait(LOOK_SECONDS):
            for pid in psutil.pids():
                self.look(Path("/proc", str(pid)))
            self.looks += 1

    def look(self, process: Path) -> None:
        try:
            words = (process / "cmdline").read_bytes()
            environment = (process / "environ").read_bytes()
        except OSError:  # it has ended
            return
        if not words:  # it is becoming another program, or has ended
            return
        for secret in self.secrets:
            if secret in words:
                self.leaks.add(f"arguments: {words!r}")
            if secret in environment and str(self.allowed).encode() not in words:
                self.leaks.add(f"environment of {words!r}")


@pytest.fixture
def verl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the trainer starts in the place of its interpreter."""
    folder = tmp_path / "verl"
    folder.mkdir()
    program = folder / "python"
    text = STAND_IN.format(python=sys.executable, folder=str(folder), names=NAMES)
    program.write_text(text)
    program.chmod(0o755)
    (folder / "sitecustomize.py").write_text(SITE.format(program=str(program)))
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return program


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Secrets in the environment and in the private file that is named to Skiff."""
    made = {name: f"planted-{secrets.token_hex(16)}" for name in NAMES}
    file = tmp_path / "private"
    file.touch(mode=0o600)
    file.write_text("".join(f"{name}={value}\n" for name, value in made.items()))
    monkeypatch.setenv("SKIFF_SECRETS", str(file))
    for name, value in made.items():
        monkeypatch.setenv(name, value)
    return made


@pytest.fixture
def lookout(planted: dict[str, str], verl: Path) -> Iterator[Lookout]:
    found = Lookout([value.encode() for value in planted.values()], verl)
    thread = threading.Thread(target=found.run)
    thread.start()
    yield found
    found.done.set()
    thread.join()


def holders(folder: Path, secret: str) -> list[Path]:
    """The files below `folder` with the secret in them."""
    found = []
    for path in folder.rglob("*"):
        # munge's lock is readable by nobody, and Slurm removes files while we look.
        if path.is_file() and os.access(path, os.R_OK):
            with contextlib.suppress(FileNotFoundError):
                found += [path] if secret.encode() in path.read_bytes() else []
    return found


def told_by_slurm(job_id: str) -> list[bytes]:
    """All that Slurm tells a user of a job."""
    calls = (["show", "job", "-dd", job_id], ["write", "batch_script", job_id, "-"])
    environment = without_secrets(os.environ)
    return [subprocess.check_output(["scontrol", *words], env=environment) for words in calls]


async def test_a_submitted_run_shows_none(
    submit_run: Callable[..., Run],
    profile: Profile,
    planted: dict[str, str],
    verl: Path,
    lookout: Lookout,
    debian_image: str,
) -> None:
    profile["train"] = {"export": False}
    profile["logging"] = {"wandb": True}
    run = submit_run(profile)
    key_file = run.folder / "rendezvous" / "key"
    found = [*planted.values(), key_file.read_text().strip()]
    lookout.secrets = [secret.encode() for secret in found]

    async with RuntimeClient.from_folder(run.published().parent, key_file) as client:
        sandbox = await client.start(SandboxSpec.from_config(run.config, image=debian_image))
        shown = (await sandbox.run("env; cat /proc/*/environ", timeout=30)).stdout
    assert not any(secret.encode() in shown for secret in found)

    until((verl.parent / "seen").exists)
    assert (verl.parent / "seen").read_text().split() == list(planted.values())
    [job_id] = job_ids(run.folder).values()
    for text in told_by_slurm(job_id):
        assert not any(secret.encode() in text for secret in found)
    slurm = Path(os.environ["SLURM_CONF"]).parent
    for secret in found:  # the job's script and environment are there as long as it runs
        assert holders(slurm, secret) == []
    (verl.parent / "looked").touch()
    assert {job.state for job in run.ended().values()} == {"COMPLETED"}

    for secret in found:
        assert set(holders(run.folder, secret)) <= {key_file}
        assert holders(slurm, secret) == []
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    assert lookout.looks > 10
    assert lookout.leaks == set()


def test_a_run_on_this_machine_shows_none(
    write: Callable[[Profile], Path],
    profile: Profile,
    planted: dict[str, str],
    verl: Path,
    lookout: Lookout,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (verl.parent / "looked").touch()
    profile["train"] = {"export": False}
    del profile["slurm"]
    code = cli.main(["run", str(write(profile))])
    printed = "".join(capfd.readouterr())
    assert code == 0, printed
    assert (verl.parent / "seen").read_text().split() == list(planted.values())
    [run] = (tmp_path / "runs").iterdir()
    key_file = run / "rendezvous" / "key"
    found = [*planted.values(), key_file.read_text().strip()]
    for secret in found:
        assert secret not in printed
        assert set(holders(run, secret)) <= {key_file}
    assert {leak for leak in lookout.leaks if "entrypoints/train" not in leak} == set()
