"""The jobs' scripts, against golden files: delete one and the test writes it anew. tests/slurm
submits them."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from skiff.config import Config, load_config
from skiff.config.slurm import Slurm
from skiff.errors import ConfigError, InfraError
from skiff.launch.sbatch import Shape, sbatch_text
from skiff.launch.slurm import sbatch, show_job
from skiff.launch.submit import submissions

GOLDEN = Path(__file__).parent / "golden"
CLONE = Path(__file__).parents[2]
PROFILES = CLONE / "profiles"
PYTHON = Path("/shared/skiff/.venv/bin/python")
HERE = {"runtime": {"host": "0.0.0.0"}, "hardware": {"platform": "cpu", "dtype": "float32"}}
RUN = Path("/scratch/me/runs/a-20260101-000000")
# golden file -> profile, which halves
CASES = {
    "mig-het": ("slurm-mig", Shape.HET),
    "mig-runtime": ("slurm-mig", Shape.RUNTIME),
    "8gpu-het": ("slurm-8gpu", Shape.HET),
    "8gpu-train": ("slurm-8gpu", Shape.TRAINER),
}


def text_of(config: Config, shape: Shape, run: Path = RUN, attempt: int = 1) -> str:
    assert config.slurm is not None
    return sbatch_text(config, config.slurm, run, attempt, shape, python=PYTHON)


@pytest.mark.parametrize("name", CASES)
def test_the_script_is_the_golden_one(name: str) -> None:
    profile, shape = CASES[name]
    text = text_of(load_config(PROFILES / f"{profile}.toml"), shape)
    golden = GOLDEN / f"{name}.sbatch"
    if not golden.exists():
        golden.write_text(text)
        pytest.fail(f"{golden} was written anew: read it, then run again")
    assert text == golden.read_text()


def test_every_script_is_sound_shell() -> None:
    shellcheck = shutil.which("shellcheck", path=CLONE / ".venv" / "bin")
    assert shellcheck is not None
    scripts = [*GOLDEN.glob("*.sbatch"), *(CLONE / "sbatch").glob("*.sbatch")]
    assert len(scripts) == len(CASES) + 4
    done = subprocess.run([shellcheck, *scripts], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_every_field_becomes_an_option_of_its_half(runtime_config: Callable[..., Config]) -> None:
    def half(mark: str) -> dict[str, Any]:
        words = ("partition", "account", "qos", "constraint", "exclude", "reservation")
        named = {word: f"{word}-{mark}" for word in words}
        sizes = {"cpus": 3, "memory": "5G", "time": "1-02:03:04", "gres": f"gpu:{mark}:1"}
        return {**named, **sizes, "extra": ["--exclusive", "--comment=two words"]}

    config = runtime_config(
        runtime={"host": "0.0.0.0"},
        slurm={"runtime": {**half("r"), "nodes": 2}, "trainer": half("t"), "signal_seconds": 7},
    )
    first, second = text_of(config, Shape.HET).split("#SBATCH hetjob\n")
    for part, mark in ((first, "r"), (second, "t")):
        for word in ("partition", "account", "qos", "constraint", "exclude", "reservation"):
            assert f"#SBATCH --{word}={word}-{mark}\n" in part
        for line in ("--cpus-per-task=3", "--mem=5G", "--time=1-02:03:04", f"--gres=gpu:{mark}:1"):
            assert f"#SBATCH {line}\n" in part
        assert "#SBATCH --exclusive\n#SBATCH --comment='two words'\n" in part
    assert "#SBATCH --nodes=2\n" in first
    assert "#SBATCH --nodes=1\n" in second
    assert "#SBATCH --signal=B:USR1@7\n" in first
    assert "start runtime --het-group=0 --nodes=2 --cpus-per-task=3\n" in second


def test_a_folder_may_have_any_name(runtime_config: Callable[..., Config]) -> None:
    config = runtime_config(**HERE, slurm={})
    text = text_of(config, Shape.HET, run=Path("/a b/100%/$HOME/c"))
    assert "#SBATCH --output='/a b/100%%/$HOME/c/logs/slurm.%j.log'\n" in text
    assert "--run '/a b/100%/$HOME/c' --attempt" in text
    assert "meeting='/a b/100%/$HOME/c'/rendezvous/" in text


FIELDS = ("partition", "account", "qos", "constraint", "gres", "memory", "time", "exclude")
HOSTILE = st.text(st.sampled_from("ab1:-=,'\"`$()#\\\n\r\t \x0b\x85\u2028"), max_size=8)


@given(field=st.sampled_from((*FIELDS, "reservation", "extra")), value=HOSTILE)
def test_no_value_adds_a_line_or_a_word(
    runtime_config: Callable[..., Config], field: str, value: str
) -> None:
    given_value = [f"--comment={value}"] if field == "extra" else value
    slurm = {part: {field: given_value} for part in ("runtime", "trainer")}
    try:
        config = runtime_config(**HERE, slurm=slurm)
    except ConfigError:
        return
    lines = text_of(config, Shape.HET).split("\n")
    plain = text_of(runtime_config(**HERE, slurm={}), Shape.HET).split("\n")
    added = [line for line in lines if line not in plain]
    assert len(lines) == len(plain) + 2
    assert len(set(added)) == 1
    assert shlex.split(added[0], comments=False)[1:] == [added_option(field, value)]


def added_option(field: str, value: str) -> str:
    names = {"memory": "mem", "extra": "comment"}
    return f"--{names.get(field, field)}={value}"


def test_no_secret_is_in_a_script(
    runtime_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "planted")
    config = runtime_config(**HERE, slurm={})
    assert not any("planted" in text_of(config, shape) for shape in Shape)


def test_requeueing_is_bounded_and_off_by_default(runtime_config: Callable[..., Config]) -> None:
    off = text_of(runtime_config(**HERE, slurm={}), Shape.HET)
    assert "#SBATCH --no-requeue\n" in off
    assert "scontrol requeue" not in off
    config = runtime_config(**HERE, slurm={"requeues": 3})
    on = text_of(config, Shape.HET, attempt=4)
    assert "#SBATCH --requeue\n" in on
    assert '"${SLURM_RESTART_COUNT:-0}" -lt 3 ' in on
    assert "attempt=$((4 + ${SLURM_RESTART_COUNT:-0}))" in on


def test_which_jobs_are_submitted(runtime_config: Callable[..., Config]) -> None:
    def planned(*, runtime_only: bool = False, **sections: dict[str, Any]) -> list[Any]:
        config = runtime_config(**{**HERE, "slurm": {}, **sections})
        jobs = submissions(config, RUN, 1, runtime_only=runtime_only)
        return [(job.shape, job.options({Shape.RUNTIME: "17"})) for job in jobs]

    assert planned() == [(Shape.HET, [])]
    assert planned(runtime_only=True) == [(Shape.RUNTIME, [])]
    assert planned(runtime={"url": "http://there:1"}) == [(Shape.TRAINER, [])]
    assert planned(slurm={"mode": "two-jobs"}) == [
        (Shape.RUNTIME, []),
        (Shape.TRAINER, ["--dependency=after:17", "--kill-on-invalid-dep=yes"]),
    ]


def test_a_profile_without_slurm_is_not_submitted(sandbox_config: Config) -> None:
    with pytest.raises(ConfigError, match="asks for no nodes") as caught:
        submissions(sandbox_config, RUN, 1, runtime_only=False)
    assert "--local" in caught.value.remedy


def test_a_host_without_slurm_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InfraError, match="sbatch: is not installed here"):
        sbatch(tmp_path / "a.sbatch")


def test_what_slurm_says_of_jobs_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "scontrol"
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def says(text: str, *, code: int = 0) -> None:
        program.write_text(f"#!/bin/sh\ncat <<'END' >&{1 + bool(code)}\n{text}\nEND\nexit {code}\n")
        program.chmod(0o755)

    says(
        "JobId=7 HetJobId=7 HetJobOffset=0 JobState=PENDING Reason=Resources ExitCode=0:0"
        " StartTime=2026-01-01T00:00:00 ReqNodeList=(null) NodeList=(null)\n"
        "JobId=8 HetJobId=7 HetJobOffset=1 JobState=FAILED Reason=None ExitCode=0:9"
        " StartTime=Unknown NodeList=gpu1"
    )
    first, second = show_job("7")
    assert (first.group, first.state, first.reason, first.nodes) == (0, "PENDING", "Resources", "")
    assert (first.begins, first.ended, first.exit) == ("2026-01-01T00:00:00", False, 0)
    assert (second.group, second.reason, second.begins) == (1, "", "")
    assert (second.nodes, second.ended, second.exit) == ("gpu1", True, 137)
    says("slurm_load_jobs error: Invalid job id specified", code=1)
    assert show_job("7") == []
    says("slurm_load_jobs error: Unable to contact slurm controller", code=1)
    with pytest.raises(InfraError, match=r"scontrol: .*Unable to contact"):
        show_job("7")


def test_a_section_alone_is_complete() -> None:
    assert Slurm().mode == "het"
    assert Slurm().requeues == 0
