"""Profiles: reading, overriding, error texts, and the way into a run folder and back."""

from __future__ import annotations

import string
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from skiff.config import Config, load_config, load_run_config
from skiff.config.load import dump_toml, parse_config, parse_override, write_config
from skiff.errors import ConfigError

PROFILES = sorted((Path(__file__).parents[2] / "profiles").glob("*.toml"))
SMALL = """
[model]
path = "some/model"
context_tokens = 1024
[tasks]
train = ["shell:train"]
[rollout]
trajectories_per_prompt = 4
prompts_per_step = 2
prompt_tokens = 256
response_tokens = 512
[train]
steps = 3
"""


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    return path


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_shipped_profiles_are_valid(path: Path) -> None:
    assert load_config(path).train.steps > 0


def test_the_demo_is_shipped() -> None:
    assert "demo" in [path.stem for path in PROFILES]


def test_a_missing_profile_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.toml: no such profile"):
        load_config(tmp_path / "gone.toml")


def test_a_folder_is_no_profile(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[run", "Expected ']'"),
        (b"[run]\nname = '\xff'", "no UTF-8 in line 2"),
        (b"x = " + b"[" * 5000, "nested too deeply"),
        (b"x = " + b"9" * 5000, "4300 digits"),
    ],
)
def test_bad_toml_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"bad\.toml: not valid TOML: .*{words}"):
        load_config(path)


@pytest.mark.parametrize(
    ("section", "key", "value", "words"),
    [
        ("run", "seed", 2**32, "less than 4294967296"),
        ("model", "path", "a\x1b[2J", "cannot be printed, got 'a\\x1b[2J'"),
        ("tasks", "train", ["a\nb"], "cannot be printed"),
        ("model", "path", "a" * 5000, "is longer than 4096 characters"),
        ("runtime", "url", "file:///etc", "should be http://HOST:PORT"),
        ("runtime", "host", "a;b", "should be a name or an address"),
        ("run", "a\nb", 1, r"run.'a\nb': unknown key"),
    ],
)
def test_a_wrong_value_is_shown_as_plain_text(
    profile: Path, section: str, key: str, value: Any, words: str
) -> None:
    data = tomllib.loads(profile.read_text())
    data.setdefault(section, {})[key] = value
    with pytest.raises(ConfigError) as caught:
        parse_config(data)
    assert words in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        ("rollout.trajectories_per_promt", "did you mean 'trajectories_per_prompt'?"),
        ("warm_start.second", "did you mean 'seconds'?"),
        ("hardwear.nodes", "hardwear: unknown key; did you mean 'hardware'?"),
        ("run.qqq", "run.qqq: unknown key; known: name, folder, seed"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest(profile: Path, key: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(profile, {key: 1})
    assert sentence in str(caught.value)


def test_all_faults_are_in_one_error(profile: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(profile, {"train.steps": 0, "agent.name": "huge", "modle.path": "x"})
    assert str(caught.value).splitlines() == [
        f"{profile}: agent.name: input should be 'mini' or 'openhands', got 'huge'",
        "  train.steps: input should be greater than 0, got 0",
        "  modle: unknown key; did you mean 'model'?",
    ]


def test_a_required_field_is_named(tmp_path: Path) -> None:
    path = tmp_path / "empty.toml"
    path.write_text(SMALL.replace("steps = 3", ""))
    with pytest.raises(ConfigError, match=r"train\.steps: is required"):
        load_config(path)


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("train.steps=2", ("train.steps", 2)),
        (" train.steps =2", ("train.steps", 2)),
        ("train.export=false", ("train.export", False)),
        ("train.learning_rate=1e-3", ("train.learning_rate", 1e-3)),
        ("model.path=/models/qwen", ("model.path", "/models/qwen")),
        ("model.path='a b'", ("model.path", "a b")),
        ("model.path=a=b", ("model.path", "a=b")),
        ("model.path=", ("model.path", "")),
        ('tasks.train=["shell:train"]', ("tasks.train", ["shell:train"])),
    ],
)
def test_override_values_are_toml(override: str, value: tuple[str, Any]) -> None:
    assert parse_override(override) == value


@pytest.mark.parametrize("override", ["train.steps", "=3", ""])
def test_an_override_without_key_or_value_is_refused(override: str) -> None:
    with pytest.raises(ConfigError, match=r"--set: .* is not of the form section\.key=value"):
        parse_override(override)


def test_an_override_replaces_and_adds(profile: Path) -> None:
    config = load_config(profile, {"train.steps": 9, "agent.name": "openhands"})
    assert (config.train.steps, config.agent.name) == (9, "openhands")
    assert config.train.algorithm == "grpo"
    halves = {"runtime.host": "0.0.0.0", "slurm.trainer.gres": "gpu:1"}
    config = load_config(profile, {**halves, "slurm.trainer.partition": "gpu"})
    assert config.slurm is not None
    assert config.slurm.trainer.partition == "gpu"


def test_an_override_needs_a_section(profile: Path) -> None:
    with pytest.raises(ConfigError, match="'steps' names no section"):
        load_config(profile, {"steps": 1})
    profile.write_text("train = 3\n")
    with pytest.raises(ConfigError, match="'train' is not a section"):
        load_config(profile, {"train.steps": 1})


def test_a_config_cannot_be_changed(profile: Path) -> None:
    config = load_config(profile)
    with pytest.raises(ValueError, match="frozen"):
        config.train.steps = 4  # type: ignore[misc]


def test_the_written_config_leaves_nothing_to_default(profile: Path, tmp_path: Path) -> None:
    config = load_config(profile)
    write_config(config, tmp_path / "config.toml")
    text = (tmp_path / "config.toml").read_text()
    for section in Config.model_fields:
        value = getattr(config, section)
        if value is None:
            continue
        assert f"[{section}]" in text
        for name in type(value).model_fields:
            assert getattr(value, name) is None or f"\n{name} = " in text, (section, name)


small = st.integers(1, 4)
texts = st.text(st.characters(exclude_categories=["C", "Z"]), max_size=12)  # printable
names = st.text(string.ascii_letters + string.digits, min_size=1, max_size=8)
seconds = st.floats(0.5, 50, allow_nan=False)


@st.composite
def configs(draw: st.DrawFn) -> Config:
    """Any valid config, as far as the checks leave freedom."""
    group, prompts = draw(st.integers(2, 8)), draw(small)
    ppo = draw(st.booleans())
    cpu = draw(st.booleans())
    warm = draw(st.booleans())
    data: dict[str, dict[str, Any]] = {
        "run": {"name": draw(names), "folder": f"a/{draw(names)}", "seed": draw(small)},
        "model": {"path": "warm-start" if warm else draw(texts), "context_tokens": 512},
        "tasks": {
            "train": draw(st.lists(texts, max_size=3)),
            "validation": draw(st.lists(texts, max_size=3)),
            "train_limit": draw(st.none() | small),
            "skip_list": draw(st.none() | names),
        },
        "rollout": {
            "trajectories_per_prompt": 1 if ppo else group,
            "prompts_per_step": prompts,
            "prompt_tokens": draw(st.integers(1, 256)),
            "response_tokens": draw(st.integers(64, 256)),
            "temperature": draw(st.floats(0, 2)),
            "top_p": draw(st.floats(0, 1, exclude_min=True)),
        },
        "agent": {
            "name": draw(st.sampled_from(["mini", "openhands"])),
            "turn_tokens": draw(st.integers(1, 64)),
            "command_seconds": draw(seconds),
            "grade_seconds": draw(seconds),
        },
        "runtime": {
            "url": draw(st.none() | st.just("https://there:1")),
            "start_seconds": draw(seconds),
        },
        "sandbox": {"cpus": draw(st.floats(0.1, 8)), "network": draw(st.booleans())},
        "train": {
            "algorithm": "ppo" if ppo else "grpo",
            "steps": draw(small),
            "learning_rate": draw(st.floats(0, 1, exclude_min=True)),
            "mini_batch_prompts": draw(st.none() | st.just(prompts) | st.just(1)),
            "on_infra_failure": draw(st.sampled_from(["mask", "stop"])),
        },
        "hardware": {"platform": "cpu", "dtype": "float32"}
        if cpu
        else {"attention": "flash_attention_2"},
        "logging": {"project": draw(texts)},
    }
    if warm:
        data["warm_start"] = {"layers": draw(small)}
    return parse_config(
        {s: {k: v for k, v in fields.items() if v is not None} for s, fields in data.items()}
    )


@given(config=configs())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_run_folder_gives_the_config_back(
    config: Config, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "round-trip.toml"
    write_config(config, path)
    assert load_run_config(path) == config
    assert dump_toml(load_run_config(path)) == path.read_text()


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_numbers_are_finite(profile: Path, value: float) -> None:
    with pytest.raises(ConfigError, match=r"runtime\.idle_seconds: input should be a finite"):
        load_config(profile, {"runtime.idle_seconds": value})
