import json
import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
from skiff import cli
from skiff.errors import SkiffError
from skiff.report import write_report
from skiff.report.html import (
    fullest,
    grouped,
    mean_busy,
    over_time,
    samples,
    shorten,
    with_mean,
)
from skiff.report.records import read_records
from skiff.report.summary import summarise


def test_report_holds_the_figures(run_dir: Path) -> None:
    path = write_report(run_dir)
    assert path == run_dir / "report.html"
    page = path.read_text()
    assert f"<title>small · Skiff {version('skiff')}</title>" in page
    assert "20 % → 80 %" in page
    assert "4× over 2 steps" in page
    assert "GRPO · mini agent · tasks shell:train · seed 7" in page
    assert "run.seed</span> = 7" in page
    for title in ("Validation solve rate", "Reward", "Stop reasons", "Entropy of the policy"):
        assert f"<h3>{title}</h3>" in page
    assert "no data yet" not in page


def test_report_is_self_contained(run_dir: Path) -> None:
    page = write_report(run_dir).read_text()
    assert not re.search(r"https?:|<script|<link|<img|<iframe|\bsrc=|@import|url\(", page)


def test_text_of_agents_cannot_become_markup(run_dir: Path) -> None:
    page = write_report(run_dir).read_text()
    assert "&lt;b&gt;run.sh&lt;/b&gt;" in page
    assert "<b>run.sh</b>" not in page


def test_empty_run_folder(tmp_path: Path) -> None:
    page = write_report(tmp_path).read_text()
    assert page.count("no data yet") == 6
    assert "none stored" in page
    assert "config.toml is missing" in page


def test_empty_metric_lists_are_no_plot(tmp_path: Path, emit: Callable[..., None]) -> None:
    """Regression: plotting an empty list of metrics must not fail."""
    emit("step", 1, step=1, metrics={"entropy": [], "grad_norm": []}, seconds={})
    page = write_report(tmp_path).read_text()
    assert "Entropy of the policy" not in page


def test_all_trajectories_masked(tmp_path: Path, emit: Callable[..., None]) -> None:
    for index in range(4):
        emit("trajectory", index + 1, step=1, stop="infra", reward=None)
    page = write_report(tmp_path).read_text()
    assert page.count("<h3>Reward</h3>") == 1
    assert "infra" in page


def test_gpus_are_drawn_as_far_as_they_tell(tmp_path: Path, emit: Callable[..., None]) -> None:
    for minute in range(600):
        busy = [None, 80.0, 40.0] if minute % 2 else [None, None, None]
        emit(
            "gpu",
            60.0 * minute,
            node="gpu1",
            used_mib=[None, 50, 90],
            total_mib=[100, 100, 100],
            busy=busy,
        )
    emit("alert", 36000, what="GPU <2> is hot")
    page = write_report(tmp_path).read_text()
    assert "<h3>GPUs</h3>" in page
    assert "GPU &lt;2&gt; is hot" in page
    told = read_records(tmp_path).gpus
    assert over_time(told, fullest)[0] == (0.0, 0.9)
    assert over_time(told, mean_busy)[0] == (0.0, pytest.approx(0.6))
    assert len(over_time(told, fullest)) == 200


def test_gpus_that_tell_nothing_are_an_empty_plot(
    tmp_path: Path, emit: Callable[..., None]
) -> None:
    emit("gpu", 1, used_mib=[None], total_mib=[None], busy=[None])
    assert "<h3>GPUs</h3>" in write_report(tmp_path).read_text()


def test_report_replaces_the_one_before(run_dir: Path, emit: Callable[..., None]) -> None:
    write_report(run_dir)
    emit("error", 1060, what="engine gone")
    assert "engine gone" in write_report(run_dir).read_text()
    assert [path.name for path in run_dir.glob("*report*")] == ["report.html"]


def test_samples_show_each_outcome_of_the_first_and_the_last_step(run_dir: Path) -> None:
    chosen = [sample.reason for sample in samples(summarise(run_dir))]
    assert chosen == [
        "step 1, solved",
        "step 1, not solved",
        "step 2, solved",
        "step 2, not solved",
        "step 2, masked",
    ]


def test_deleted_trajectory_files_are_no_error(run_dir: Path) -> None:
    for file in run_dir.glob("trajectories/*/*.json"):
        file.unlink()
    assert samples(summarise(run_dir)) == []


def test_a_report_of_a_run_that_is_being_written(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line that is half there is left out now, and counts when it is whole."""
    lines = (run_dir / "events.jsonl").read_text().splitlines()
    whole = "\n".join(lines[:-1]) + "\n"
    for end in (0, 1, 20, len(lines[-1]) - 1):
        (run_dir / "events.jsonl").write_text(whole + lines[-1][:end])
        assert cli.main(["report", str(run_dir)]) == 0
        assert "small: not finished" in capsys.readouterr().out
        assert 'class="state open"' in (run_dir / "report.html").read_text()
    (run_dir / "events.jsonl").write_text(whole + lines[-1] + "\n")
    assert cli.main(["report", str(run_dir)]) == 0
    assert "small: finished" in capsys.readouterr().out


def test_a_report_without_any_step(run_dir: Path, emit: Callable[..., None]) -> None:
    """Killed while starting: settings and phases are all there is."""
    (run_dir / "events.jsonl").unlink()
    emit("phase_begin", 1, name="runtime")
    emit("phase", 2, name="runtime", seconds=1.0)
    emit("finished", 3, exit_code=3, reason="no node")
    page = write_report(run_dir).read_text()
    assert "failed with exit code 3: no node" in page


def test_broken_trajectory_file_is_named(run_dir: Path) -> None:
    broken = run_dir / "trajectories/step_000001/task-2.json"
    broken.write_text(json.dumps({"turns": "none"}))
    with pytest.raises(SkiffError, match=r"task-2\.json: is no stored trajectory: turns"):
        write_report(run_dir)


def test_many_steps_are_grouped_into_few_columns() -> None:
    columns = grouped({step: {"gen": float(step)} for step in range(1, 601)})
    assert len(columns) == 60
    assert columns[0].label == "1–10"
    assert columns[0].parts == {"gen": 5.5}


def test_running_mean_keeps_the_points() -> None:
    points = [(float(x), float(x % 2)) for x in range(20)]
    each, mean = with_mean("reward", points, colour=0)
    assert each.points == points
    assert mean.points[0] == (0.0, 0.0)
    assert mean.points[-1] == (19.0, pytest.approx(0.6))


def test_long_text_is_cut_in_the_middle() -> None:
    text = shorten("a" * 50 + "b" * 50, limit=20)
    assert text == "a" * 10 + "\n… 80 characters left out …\n" + "b" * 10
