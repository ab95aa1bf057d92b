"""Checks between fields: each names both fields, their values and what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from skiff.config import Config
from skiff.errors import ConfigError

CPU = {"platform": "cpu", "dtype": "float32"}

# sections that break one rule, the words that the sentence must hold
FAULTS: dict[str, tuple[dict[str, dict[str, Any]], tuple[str, ...]]] = {
    "context": (
        {
            "rollout": {"prompt_tokens": 500, "response_tokens": 600},
            "model": {"context_tokens": 1024},
        },
        (
            "rollout.prompt_tokens (500) + rollout.response_tokens (600) = 1100",
            "model.context_tokens (1024)",
            "lower",
        ),
    ),
    "turn": (
        {"agent": {"turn_tokens": 5000}},
        (
            "agent.turn_tokens (5000)",
            "rollout.response_tokens (4096)",
            "lower agent.turn_tokens",
        ),
    ),
    "mini-batch": (
        {"rollout": {"prompts_per_step": 8}, "train": {"mini_batch_prompts": 3}},
        ("rollout.prompts_per_step (8)", "train.mini_batch_prompts (3)", "divisor"),
    ),
    "ranks": (
        {"hardware": {"gpus_per_node": 3}},
        (
            "train.mini_batch_prompts x rollout.trajectories_per_prompt (1 x 2 = 2)",
            "hardware.nodes x hardware.gpus_per_node (3)",
            "change one",
        ),
    ),
    "micro-batch": (
        {"hardware": {"micro_batch": 4}},
        ("hardware.micro_batch (4)", "the 2 trajectories", "divisor"),
    ),
    "group": (
        {"rollout": {"trajectories_per_prompt": 1}},
        ("train.algorithm = 'grpo'", "rollout.trajectories_per_prompt >= 2", "'ppo'"),
    ),
    "tensor-parallel": (
        {"hardware": {"gpus_per_node": 2, "tensor_parallel": 4}},
        ("hardware.gpus_per_node (2)", "hardware.tensor_parallel (4)", "span"),
    ),
    "sandboxes": (
        {"rollout": {"agent_workers": 2, "max_concurrent": 40}},
        (
            "rollout.agent_workers x rollout.max_concurrent (80)",
            "runtime.max_sandboxes (64)",
            "lower the first or raise the last",
        ),
    ),
    "cpu-dtype": (
        {"hardware": {"platform": "cpu"}},
        ("hardware.platform = 'cpu'", "hardware.dtype = 'bfloat16'", "set hardware.dtype"),
    ),
    "cpu-attention": (
        {"hardware": {**CPU, "attention": "flash_attention_2"}},
        ("hardware.platform = 'cpu'", "hardware.attention = 'flash_attention_2'", "use 'sdpa'"),
    ),
    "critic-attention": (
        {"train": {"algorithm": "ppo"}},
        ("train.algorithm = 'ppo'", "hardware.attention = 'sdpa'", "flash_attention_2"),
    ),
    "nodes": (
        {"hardware": {**CPU, "nodes": 2}},
        ("hardware.nodes = 2", "without [slurm]", "set hardware.nodes = 1"),
    ),
    "warm-start": (
        {"model": {"path": "warm-start"}},
        ("model.path = 'warm-start'", "[warm_start]", "add one"),
    ),
    "lifetime": (
        {"agent": {"trajectory_seconds": 9000}},
        ("agent.trajectory_seconds (9000)", "runtime.lifetime_seconds (7200)", "raise the second"),
    ),
    "command": (
        {
            "agent": {"command_seconds": 50, "trajectory_seconds": 40, "grade_seconds": 1},
            "runtime": {"start_seconds": 1},
        },
        ("agent.command_seconds (50)", "agent.trajectory_seconds (40)", "lower the first"),
    ),
    "grade": (
        {"agent": {"grade_seconds": 500}},
        (
            "agent.grade_seconds (500) + runtime.start_seconds (120)",
            "half of agent.trajectory_seconds (1200)",
            "raise the last or lower the others",
        ),
    ),
    "binds": (
        {"images": {"binds": ["/scratch", "/opt"]}},
        ("images.binds holds '/opt'", "hide /opt/python of the images", "below it"),
    ),
    "idle": (
        {"runtime": {"idle_seconds": 60}},
        ("runtime.idle_seconds (60)", "agent.command_seconds (60)", "raise it"),
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_one_sentence_with_both_fields_and_the_remedy(
    runtime_config: Callable[..., Config], name: str
) -> None:
    sections, words = FAULTS[name]
    with pytest.raises(ConfigError) as caught:
        runtime_config(**sections)
    (sentence,) = str(caught.value).splitlines()
    for word in words:
        assert word in sentence


def test_faults_of_several_fields_come_together(runtime_config: Callable[..., Config]) -> None:
    names = ("group", "turn", "idle")
    with pytest.raises(ConfigError) as caught:
        runtime_config(**{key: value for name in names for key, value in FAULTS[name][0].items()})
    assert len(str(caught.value).splitlines()) == len(names)


def test_the_limits_themselves_are_allowed(runtime_config: Callable[..., Config]) -> None:
    config = runtime_config(
        model={"context_tokens": 1024},
        rollout={
            "prompt_tokens": 512,
            "response_tokens": 512,
            "prompts_per_step": 4,
            "max_concurrent": 64,
        },
        agent={"turn_tokens": 512, "grade_seconds": 480, "trajectory_seconds": 1200},
        train={"mini_batch_prompts": 2},
        hardware={"gpus_per_node": 2, "tensor_parallel": 2, "micro_batch": 2},
        runtime={"lifetime_seconds": 1200},
    )
    assert config.hardware.micro_batch == 2


def test_a_foreign_server_has_its_own_limit(runtime_config: Callable[..., Config]) -> None:
    config = runtime_config(rollout={"max_concurrent": 1000}, runtime={"url": "http://elsewhere:1"})
    assert config.rollout.max_concurrent == 1000


def test_ppo_needs_no_group(runtime_config: Callable[..., Config]) -> None:
    config = runtime_config(
        rollout={"trajectories_per_prompt": 1}, train={"algorithm": "ppo"}, hardware=CPU
    )
    assert config.rollout.trajectories_per_prompt == 1
