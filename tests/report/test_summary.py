from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from skiff.errors import SkiffError
from skiff.report.summary import summarise, time_split, wilson


def test_figures_of_a_whole_run(run_dir: Path) -> None:
    summary = summarise(run_dir)
    assert summary.name == "small"
    assert summary.state == "finished"
    assert summary.before is not None
    assert summary.before.rate == 0.2
    assert summary.after is not None
    assert summary.after.rate == 0.8
    assert summary.improvement == pytest.approx(4.0)
    assert (summary.trajectories, summary.masked) == (8, 1)
    assert summary.trajectories_per_minute == pytest.approx(24.0)  # 8 in 20 s
    assert summary.generated_tokens_per_second == pytest.approx(20.0)  # 200 in 10 s
    assert summary.elapsed_seconds == 40
    assert summary.stops == {"finished": 7, "infra": 1}
    assert summary.time_shares == pytest.approx({"gen": 0.5, "update_actor": 0.4, "other": 0.1})


def test_largest_share_comes_first(run_dir: Path) -> None:
    assert list(summarise(run_dir).time_shares) == ["gen", "update_actor", "other"]


def test_validation_trajectories_are_not_training(run_dir: Path, emit: Callable[..., None]) -> None:
    emit("trajectory", 1060, step=2, split="validation", reward=None, stop="infra")
    summary = summarise(run_dir)
    assert (summary.trajectories, summary.masked) == (8, 1)


def test_a_run_that_has_only_begun(tmp_path: Path, emit: Callable[..., None]) -> None:
    emit("validation", 5, step=0, solved=0, graded=0, masked=4)
    summary = summarise(tmp_path)
    assert summary.state == "not finished"
    assert summary.name == tmp_path.name
    assert summary.before is not None
    assert summary.before.rate is None  # everything was masked: no rate, and not 0
    assert summary.after is None
    assert summary.improvement is None
    assert summary.trajectories_per_minute is None
    assert summary.time_shares == {}


def test_no_factor_over_a_rate_of_zero(tmp_path: Path, emit: Callable[..., None]) -> None:
    emit("validation", 1, step=0, solved=0, graded=10)
    emit("validation", 2, step=9, solved=5, graded=10)
    assert summarise(tmp_path).improvement is None


def test_failure_is_told_with_its_reason(tmp_path: Path, emit: Callable[..., None]) -> None:
    emit("finished", 1, exit_code=3, reason="runtime server gone")
    assert summarise(tmp_path).state == "failed with exit code 3: runtime server gone"


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(SkiffError, match="no such run folder"):
        summarise(tmp_path / "nowhere")


def test_broken_config_is_named(run_dir: Path) -> None:
    (run_dir / "config.toml").write_text("[run\n")
    with pytest.raises(SkiffError, match=r"config\.toml: not readable as TOML"):
        summarise(run_dir)


def test_validation_time_is_added_to_the_step() -> None:
    split = time_split({"step": 10.0, "gen": 7.0, "testing": 5.0})
    assert split == {"gen": 7.0, "testing": 5.0, "other": 3.0}


@given(
    parts=st.dictionaries(
        st.sampled_from(["gen", "ref", "testing", "update_actor"]), st.floats(0, 100)
    ),
    step=st.floats(0, 100),
)
def test_split_is_never_negative_and_covers_the_step(parts: dict[str, float], step: float) -> None:
    split = time_split({**parts, "step": step})
    assert all(value > 0 for value in split.values())
    assert sum(split.values()) >= step + parts.get("testing", 0.0) - 1e-6


def test_wilson_against_published_values() -> None:
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
