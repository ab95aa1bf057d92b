"""What we derive for verl exists in verl, and its own validation accepts it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hydra
import pytest
import verl
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from skiff.config import Config, load_config
from skiff.errors import ConfigError
from skiff.train.inputs import check_attention
from skiff.train.overrides import verl_environment, verl_overrides

Configured = Callable[..., Config]
Compose = Callable[[Config], DictConfig]
RUN = Path("/runs/demo é-1")
CPU = {"platform": "cpu", "dtype": "float32"}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "grpo-cuda": {},
    "grpo-cpu": {"hardware": CPU},
    "grpo-cpu-kl": {"hardware": CPU, "train": {"kl_coefficient": 0.01}},
    "ppo-cpu": {"hardware": CPU, "train": {"algorithm": "ppo"}},
    "ppo-cuda-kl": {
        "train": {"algorithm": "ppo", "kl_coefficient": 0.01, "mini_batch_prompts": 2},
        "rollout": {"prompts_per_step": 4},
        "hardware": {
            "gpus_per_node": 2,
            "tensor_parallel": 2,
            "attention": "flash_attention_2",
        },
    },
}


@pytest.fixture(scope="module")
def compose(tiny_model: str) -> Iterator[Compose]:
    """verl's own configuration with our overrides: Hydra refuses an unknown key."""
    folder = Path(verl.__file__).parent / "trainer" / "config"
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(folder), version_base=None):
        yield lambda config: hydra.compose(
            "ppo_trainer", overrides=verl_overrides(config, RUN, tiny_model)
        )


@pytest.mark.parametrize("name", VARIANTS)
def test_verl_knows_every_key(runtime_config: Configured, compose: Compose, name: str) -> None:
    config = runtime_config(**VARIANTS[name])
    found = compose(config)
    for override in verl_overrides(config, RUN, "/models/tiny"):
        key = override.partition("=")[0].removeprefix("+")
        assert OmegaConf.select(found, key, default="absent") != "absent", key


@pytest.mark.parametrize("name", VARIANTS)
def test_verls_validation_accepts_it(
    runtime_config: Configured, compose: Compose, name: str
) -> None:
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    config = runtime_config(**VARIANTS[name])
    found = compose(config)
    assert need_critic(found) == (config.train.algorithm == "ppo")
    assert need_reference_policy(found) == (config.train.kl_coefficient > 0)
    validate_config(
        config=found,
        use_reference_policy=need_reference_policy(found),
        use_critic=need_critic(found),
    )


def paths(tree: Any, above: str = "") -> Iterator[str]:
    """The dotted keys of nested mappings, values that are missing ('???') included."""
    for name, value in tree.items():
        yield above + name
        if isinstance(value, dict):
            yield from paths(value, f"{above}{name}.")


def test_an_addition_is_marked_as_one(runtime_config: Configured, compose: Compose) -> None:
    # A "+" on a key that verl has would hide that verl renamed the one beside it.
    bare = OmegaConf.to_container(hydra.compose("ppo_trainer"))
    keys = set(paths(bare))
    for sections in VARIANTS.values():
        for override in verl_overrides(runtime_config(**sections), RUN, "/models/tiny"):
            key = override.partition("=")[0]
            assert (key.removeprefix("+") in keys) != key.startswith("+"), key


def test_each_number_comes_from_the_one_config(
    runtime_config: Configured, compose: Compose
) -> None:
    config = runtime_config(
        model={"context_tokens": 5000},
        rollout={
            "trajectories_per_prompt": 6,
            "prompts_per_step": 10,
            "prompt_tokens": 1111,
            "response_tokens": 2222,
            "temperature": 0.7,
            "validation_trajectories": 3,
            "agent_workers": 2,
            "max_concurrent": 8,
        },
        train={"steps": 17, "mini_batch_prompts": 5, "learning_rate": 3e-5, "save_every": 4},
        hardware={"gpus_per_node": 2, "micro_batch": 3, "gpu_memory_share": 0.4},
        run={"seed": 11},
    )
    found = compose(config)
    rollout = found.actor_rollout_ref.rollout
    actor = found.actor_rollout_ref.actor
    # The trajectories-per-prompt mismatch: verl's rollout.n is derived, so it cannot differ.
    assert rollout.n == 6
    assert rollout.val_kwargs.n == 3
    assert found.data.train_batch_size == 10
    assert (found.data.max_prompt_length, found.data.max_response_length) == (1111, 2222)
    assert (rollout.prompt_length, rollout.response_length) == (1111, 2222)
    assert rollout.max_model_len == 5000
    assert rollout.temperature == 0.7
    assert rollout.agent.num_workers == 2
    assert actor.ppo_mini_batch_size == 5
    assert actor.ppo_micro_batch_size_per_gpu == 3
    assert actor.optim.lr == 3e-5
    assert found.trainer.total_training_steps == 17
    assert (found.trainer.save_freq, found.trainer.test_freq) == (4, 18)
    assert found.trainer.n_gpus_per_node == 2
    assert rollout.gpu_memory_utilization == 0.4
    assert {found.data.seed, rollout.seed, actor.data_loader_seed} == {11}
    assert found.trainer.default_local_dir == str(RUN / "ckpt")


def test_no_key_is_given_twice(runtime_config: Configured) -> None:
    for sections in VARIANTS.values():
        overrides = verl_overrides(runtime_config(**sections), RUN, "/models/tiny")
        keys = [override.partition("=")[0].removeprefix("+") for override in overrides]
        assert len(keys) == len(set(keys))


@pytest.mark.parametrize(
    "key",
    [
        "rollout.n",
        "actor_rollout_ref.rollout.n",
        "train.trajectories_per_prompt",
        "agent.response_tokens",
    ],
)
def test_a_second_place_for_a_number_is_refused(key: str, tmp_path: Path) -> None:
    profile = Path(__file__).parents[2] / "profiles" / "demo.toml"
    with pytest.raises(ConfigError, match="unknown key"):
        load_config(profile, {key: 8})


@pytest.mark.parametrize("name", ["123", "null", "true", "1e3", "a.b-c"])
def test_a_name_stays_a_string(runtime_config: Configured, compose: Compose, name: str) -> None:
    found = compose(runtime_config(run={"name": name}, logging={"project": "é = [x], y"}))
    assert found.trainer.experiment_name == name
    assert found.trainer.project_name == "é = [x], y"


def test_without_validation_sampling_is_greedy(
    runtime_config: Configured, compose: Compose
) -> None:
    greedy = compose(runtime_config(rollout={"validation_temperature": 0}))
    assert greedy.actor_rollout_ref.rollout.val_kwargs.do_sample is False
    assert compose(runtime_config()).actor_rollout_ref.rollout.val_kwargs.do_sample is True


def test_our_plugins_can_be_loaded(runtime_config: Configured, compose: Compose) -> None:
    from verl.utils.import_utils import load_class_from_fqn, load_extern_object

    trainer = compose(runtime_config()).trainer
    assert load_class_from_fqn(trainer.checkpoint_callback_class).__name__ == "SaveHook"
    sampler = trainer.v1.sampler.custom_sampler
    assert load_extern_object(sampler.path, sampler.name).__name__ == "SkiffReplayBuffer"


def test_the_environment_names_the_run(runtime_config: Configured) -> None:
    cpu = verl_environment(runtime_config(hardware={**CPU, "cpu_threads": 3}), RUN)
    assert cpu["SKIFF_RUN"] == str(RUN)
    assert (cpu["VERL_PLATFORM"], cpu["OMP_NUM_THREADS"]) == ("cpu", "3")
    assert "VERL_PLATFORM" not in verl_environment(runtime_config(), RUN)
    assert all(isinstance(value, str) for value in cpu.values())
    assert not {"WANDB_API_KEY", "HF_TOKEN"} & set(cpu)
    assert os.pathsep not in cpu["SKIFF_RUN"]


@pytest.mark.parametrize("attention", ["sdpa", "flash_attention_2"])
def test_the_trainers_attention_is_the_profiles(
    runtime_config: Configured, compose: Compose, attention: str
) -> None:
    """verl's default is flash-attn and no padding; without the package neither works."""
    model = compose(runtime_config(hardware={"attention": attention})).actor_rollout_ref.model
    assert model.override_config.attn_implementation == attention
    assert model.use_remove_padding == (attention == "flash_attention_2")


def test_flash_attention_is_looked_for_before_anything_starts(runtime_config: Configured) -> None:
    with pytest.raises(ConfigError, match="is not installed here") as caught:
        check_attention(runtime_config(hardware={"attention": "flash_attention_2"}))
    assert "--flash-archs" in caught.value.remedy
    check_attention(runtime_config())


def test_no_sampler_is_compiled_at_the_start(runtime_config: Configured) -> None:
    assert verl_environment(runtime_config(), RUN)["VLLM_USE_FLASHINFER_SAMPLER"] == "0"
