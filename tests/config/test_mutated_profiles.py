"""1,000 damaged profiles: `skiff launch` says in one error what is wrong and submits nothing, or
the profile is sound and so is the job's script. sbatch is replaced by a program that notes its
calls; tests/slurm submits some to a real Slurm."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from skiff import cli

from .mutants import MARK, Mutant, furnish, mutants

COUNT = 1000
SECONDS = 20
# Notes its arguments, and who called it; sbatch prints the job's id.
PROGRAM = """#!/bin/sh
printf '%s\\0' "$@" >> {folder}/$(basename "$0")
if [ "$(basename "$0")" = sbatch ]; then echo 42; fi
"""
KNOWN = {
    *("job-name", "output", "open-mode", "signal", "requeue", "no-requeue", "nodes"),
    *("ntasks-per-node", "partition", "account", "qos", "constraint", "gres", "cpus-per-task"),
    *("mem", "time", "exclude", "reservation", "exclusive", "comment"),
}


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    """`calls(program)`: the words that Slurm's program was called with since it was last asked."""
    programs, noted = tmp_path / "bin", tmp_path / "calls"
    programs.mkdir()
    noted.mkdir()
    for name in ("sbatch", "srun", "scontrol", "scancel"):
        (programs / name).write_text(PROGRAM.format(folder=noted))
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")

    def words(program: str) -> list[str]:
        file = noted / program
        found = file.read_text().split("\0")[:-1] if file.exists() else []
        file.unlink(missing_ok=True)
        return found

    return words


def test_each_is_one_error_or_a_sound_script(
    calls: Callable[[str], list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "shared"
    furnish(folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(cli, "_parser", functools.cache(cli._parser))  # a third of the time
    before = set(folder.rglob("*"))
    outcomes: Counter[str] = Counter()
    for mutant in mutants(folder, COUNT):
        profile = folder / "profile.toml"
        profile.write_bytes(mutant.content)
        code = cli.main(["launch", str(profile)])
        printed = capsys.readouterr()
        profile.unlink()
        if code == 0:
            outcomes["sound"] += 1
            check_script(Path(calls("sbatch")[-1]), calls, mutant)
        else:
            outcomes["error"] += 1
            assert code == 2, (mutant, printed.err)
            check_error(printed.err, mutant)
            assert printed.out == "", mutant
            assert calls("sbatch") == [], mutant
        new = {path for path in folder.rglob("*") if path not in before}
        assert MARK not in {path.name for path in new}, mutant
        assert (code == 0) == any(path.name == "config.toml" for path in new), mutant
        for path in sorted(folder.iterdir()):
            if path in new:
                shutil.rmtree(path)
    assert outcomes["sound"] > 50
    assert outcomes["error"] > 500


def check_error(text: str, mutant: Mutant) -> None:
    """One error that names a place, and which a terminal shows as it is."""
    first, *more = text.splitlines()
    assert first.startswith("error: "), (mutant, text)
    assert all(line.startswith("  ") for line in more), (mutant, text)
    assert ": " in text.removeprefix("error: "), (mutant, text)
    assert text.replace("\n", "").isprintable(), (mutant, text)
    assert len(text) < 10_000, (mutant, text)


def check_script(script: Path, calls: Callable[[str], list[str]], mutant: Mutant) -> None:
    """Slurm reads options of the table alone, and bash starts what it should and nothing else."""
    options = [line for line in script.read_text().splitlines() if line.startswith("#SBATCH ")]
    names = {line.removeprefix("#SBATCH --").partition("=")[0] for line in options}
    assert names - {"#SBATCH hetjob"} <= KNOWN, (mutant, options)
    run = script.parents[2]
    done = subprocess.run(
        ["bash", str(script)],
        env={"PATH": os.environ["PATH"], "SLURM_JOB_ID": "42"},
        cwd=run,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, (mutant, done)
    words = calls("srun")
    runs = {words[place + 1] for place, word in enumerate(words) if word == "--run"}
    assert runs == {str(run)}, (mutant, words)
