"""The table and the transcript, as a terminal shows them."""

from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console, RenderableType
from skiff.errors import SkiffError
from skiff.report import show_trajectory, summarise, summary_table
from skiff.report.text import duration, number, percent


def printed(renderable: RenderableType) -> str:
    console = Console(width=120, record=True, file=None, quiet=False, force_terminal=False)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def test_table(run_dir: Path) -> None:
    text = printed(summary_table(summarise(run_dir)))
    assert "small: finished" in text
    assert "20 % (2 of 10, 95 % interval 5.7 % to 51 %)" in text
    assert "80 % (8 of 10, 95 % interval 49 % to 94 %), 4×" in text
    assert "8 (24 a minute)" in text
    assert "1 × sandbox 3 is gone" in text
    assert "rollouts 50 %, actor update 40 %, other 10 %" in text
    assert "step 2: ckpt/global_step_2" in text


def test_table_of_an_empty_run(tmp_path: Path) -> None:
    assert "not finished" in printed(summary_table(summarise(tmp_path)))


def test_table_tells_errors_literally(tmp_path: Path, emit: Callable[..., None]) -> None:
    emit("error", 1, what="port 8000 is taken [bold]")
    assert "port 8000 is taken [bold]" in printed(summary_table(summarise(tmp_path)))


def test_transcript_from_top_to_bottom(run_dir: Path) -> None:
    text = printed(show_trajectory(run_dir / "trajectories/step_000001/task-2.json"))
    order = [
        "shell:task-2 · train · step 1 · solved (reward 1)",
        "Repair the folder.",
        "turn 1 · 12 tokens · 0.5 s",
        "I look first.",
        "exit 1",
        "FAIL: <b>run.sh</b> is not executable",
        "turn 2 ·",
        "submit",
        "new mode 100755",
        "\nok",
        "solved (reward 1)",
    ]
    places = [text.find(part) for part in order[:-1]] + [text.rfind(order[-1])]
    assert -1 not in places
    assert places == sorted(places)


def test_run_folder_shows_the_last_unless_told_otherwise(run_dir: Path) -> None:
    assert "shell:task-3 · train · step 2" in printed(show_trajectory(run_dir))
    assert "shell:task-0 · train · step 1" in printed(show_trajectory(run_dir, 0))


def test_masked_is_not_called_unsolved(run_dir: Path) -> None:
    text = printed(show_trajectory(run_dir / "trajectories/step_000002/task-2.json"))
    assert "masked (not graded)" in text
    assert "not solved" not in text


def test_run_without_stored_trajectories(tmp_path: Path) -> None:
    with pytest.raises(SkiffError, match=r"logging\.trajectories_per_step"):
        show_trajectory(tmp_path)


def test_index_out_of_range_names_the_range(run_dir: Path) -> None:
    with pytest.raises(SkiffError, match="choose 0 to 7"):
        show_trajectory(run_dir, 8)


@pytest.mark.parametrize("content", ["", "[]", '{"turns": 3}'])
def test_file_that_is_no_trajectory(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(SkiffError, match=r"a\.json: is no stored trajectory"):
        show_trajectory(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SkiffError, match=r"a\.json: cannot be read: No such file"):
        show_trajectory(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (duration(0), "0 s"),
        (duration(0.42), "0.4 s"),
        (duration(59.7), "1 min 00 s"),
        (duration(3725), "1 h 02 min"),
        (duration(None), "–"),
        (number(0.01234), "0.0123"),
        (number(1234.5), "1,234"),
        (percent(0.123), "12 %"),
        (percent(0.0123), "1.2 %"),
        (percent(0.0), "0 %"),
    ],
)
def test_figures_as_text(text: str, expected: str) -> None:
    assert text == expected
