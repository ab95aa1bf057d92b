"""`Config` -> verl's Hydra overrides and environment. Pure: no import of verl, no I/O.

Everything verl needs is derived here from the one config, so that a number cannot differ between
the agent, the engine and the trainer. `skiff config show PROFILE --verl` prints the result.
"""

from __future__ import annotations

import json
from pathlib import Path

from skiff.config.schema import Config

AGENT_LOOP = "skiff"


def verl_overrides(config: Config, run_dir: Path, model: str) -> list[str]:
    """`key=value` arguments of `python -m verl.trainer.main_ppo`.

    `model` is a Hugging Face folder; `run_dir` the absolute run folder (its `data/` holds the
    parquet files, `ckpt/` the checkpoints).
    """
    sections = [
        _data(config, run_dir),
        _actor(config, model),
        _rollout(config, run_dir),
        _algorithm(config),
        _critic(config, model) if config.train.algorithm == "ppo" else {},
        _trainer(config, run_dir),
        _attention(config),
        _ray(config),
        _cpu(config) if config.hardware.platform == "cpu" else {},
    ]
    merged: dict[str, object] = {}
    for section in sections:
        merged.update(section)
    return [f"{key}={_text(value)}" for key, value in merged.items()]


def verl_environment(config: Config, run_dir: Path) -> dict[str, str]:
    """Variables of the trainer's process tree. Ray's workers inherit them (the cluster is ours)."""
    env = {
        "SKIFF_RUN": str(run_dir),
        "VERL_FILE_LOGGER_PATH": str(run_dir / "metrics" / "verl.jsonl"),
        "TENSORBOARD_DIR": str(run_dir / "metrics" / "tensorboard"),
        "WANDB_DIR": str(run_dir / "metrics"),
        "HF_HUB_OFFLINE": "1",  # models and data are folders; a compute node has no hub
        "VLLM_NO_USAGE_STATS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONHASHSEED": str(config.run.seed),
        # verl switches vLLM's compile cache off unless it is set before Ray starts.
        "VLLM_DISABLE_COMPILE_CACHE": "0",
        # Workers are started when they are needed: each idle one costs an interpreter start.
        "RAY_prestart_worker_first_driver": "0",
        "RAY_enable_worker_prestart": "0",
    }
    if config.hardware.interface is not None:
        env |= dict.fromkeys(
            ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"), config.hardware.interface
        )
    if config.hardware.fabric is not None:
        env["FI_PROVIDER"] = config.hardware.fabric
    if config.hardware.platform == "cuda":
        # FlashInfer's sampler is compiled by ninja and nvcc at the first start: a minute where they
        # are, the engine's end where they are not. verl's log-probs never take it.
        env["VLLM_USE_FLASHINFER_SAMPLER"] = "0"
    if config.hardware.platform == "cpu":
        threads = str(config.hardware.cpu_threads)
        env |= {
            "VERL_PLATFORM": "cpu",
            "VLLM_CPU_KVCACHE_SPACE": str(config.hardware.engine_cache_gib),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            # vLLM compiles a helper on its first request even with enforce_eager: 30 s here.
            "TORCHDYNAMO_DISABLE": "1",
            # With "1" vLLM's CPU platform refuses the "uni" executor below. verl's asynchronous
            # engine has a process of its own either way.
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        }
    return env


def _data(config: Config, run_dir: Path) -> dict[str, object]:
    rollout = config.rollout
    return {
        "data.train_files": str(run_dir / "data" / "train.parquet"),
        "data.val_files": str(run_dir / "data" / "validation.parquet"),
        "data.train_batch_size": rollout.prompts_per_step,
        "data.max_prompt_length": rollout.prompt_tokens,
        "data.max_response_length": rollout.response_tokens,
        "data.dataloader_num_workers": 0,
        "data.shuffle": True,
        "data.seed": config.run.seed,
        "data.validation_shuffle": False,
        "data.return_raw_chat": True,
    }


def _actor(config: Config, model: str) -> dict[str, object]:
    train, hardware = config.train, config.hardware
    actor = "actor_rollout_ref.actor"
    overrides: dict[str, object] = {
        "actor_rollout_ref.model.path": model,
        "actor_rollout_ref.model.enable_gradient_checkpointing": hardware.platform == "cuda",
        f"{actor}.strategy": "fsdp2",
        f"{actor}.optim.lr": train.learning_rate,
        f"{actor}.optim.clip_grad": train.gradient_clip,
        f"{actor}.optim.weight_decay": 0.0,
        f"{actor}.optim.betas": [0.9, train.adam_beta2],
        f"{actor}.ppo_mini_batch_size": train.mini_batch_prompts or config.rollout.prompts_per_step,
        f"{actor}.ppo_micro_batch_size_per_gpu": hardware.micro_batch,
        f"{actor}.ppo_epochs": train.update_epochs,
        f"{actor}.clip_ratio": train.clip_ratio,
        f"{actor}.clip_ratio_low": train.clip_ratio,
        f"{actor}.clip_ratio_high": train.clip_ratio,
        f"{actor}.entropy_coeff": train.entropy_coefficient,
        f"{actor}.use_kl_loss": train.kl_coefficient > 0,
        f"{actor}.kl_loss_coef": train.kl_coefficient,
        f"{actor}.fsdp_config.seed": config.run.seed,
        f"{actor}.data_loader_seed": config.run.seed,
        f"{actor}.fsdp_config.param_offload": hardware.offload,
        f"{actor}.fsdp_config.optimizer_offload": hardware.offload,
        f"{actor}.checkpoint.save_contents": ["model", "optimizer", "extra"],
    }
    if train.kl_coefficient > 0:
        ref = "actor_rollout_ref.ref"
        overrides |= {
            f"{ref}.strategy": "fsdp2",
            f"{ref}.log_prob_micro_batch_size_per_gpu": hardware.micro_batch,
        }
    return overrides


def _rollout(config: Config, run_dir: Path) -> dict[str, object]:
    rollout, hardware = config.rollout, config.hardware
    key = "actor_rollout_ref.rollout"
    return {
        f"{key}.name": "vllm",
        f"{key}.n": rollout.trajectories_per_prompt,
        f"{key}.temperature": rollout.temperature,
        f"{key}.top_p": rollout.top_p,
        f"{key}.top_k": rollout.top_k,
        f"{key}.val_kwargs.n": rollout.validation_trajectories,
        f"{key}.val_kwargs.temperature": rollout.validation_temperature,
        f"{key}.val_kwargs.top_p": rollout.top_p,
        f"{key}.val_kwargs.top_k": rollout.top_k,
        f"{key}.val_kwargs.do_sample": rollout.validation_temperature > 0,
        f"{key}.dtype": hardware.dtype,
        f"{key}.seed": config.run.seed,
        f"{key}.gpu_memory_utilization": hardware.gpu_memory_share,
        f"{key}.tensor_model_parallel_size": hardware.tensor_parallel,
        f"{key}.max_model_len": config.model.context_tokens,
        f"{key}.max_num_seqs": hardware.engine_sequences,
        f"{key}.max_num_batched_tokens": max(2048, config.model.context_tokens),
        f"{key}.log_prob_micro_batch_size_per_gpu": hardware.micro_batch,
        f"{key}.load_format": "auto",
        f"{key}.enforce_eager": False,
        f"{key}.calculate_log_probs": True,
        f"{key}.agent.num_workers": rollout.agent_workers,
        f"{key}.agent.default_agent_loop": AGENT_LOOP,
        f"{key}.agent.agent_loop_config_path": str(run_dir / "data" / "agent_loop.yaml"),
    }


def _algorithm(config: Config) -> dict[str, object]:
    return {
        "algorithm.adv_estimator": "grpo" if config.train.algorithm == "grpo" else "gae",
        "algorithm.use_kl_in_reward": False,
        "reward.num_workers": 0,  # the agent loop grades; verl would import itself once more
    }


def _critic(config: Config, model: str) -> dict[str, object]:
    hardware = config.hardware
    return {
        "critic.model.path": model,
        "critic.strategy": "fsdp2",
        "critic.optim.lr": config.train.critic_learning_rate,
        "critic.ppo_mini_batch_size": config.train.mini_batch_prompts
        or config.rollout.prompts_per_step,
        "critic.ppo_micro_batch_size_per_gpu": hardware.micro_batch,
        "critic.model.enable_gradient_checkpointing": hardware.platform == "cuda",
        "critic.fsdp.param_offload": hardware.offload,
        "critic.fsdp.optimizer_offload": hardware.offload,
    }


def _trainer(config: Config, run_dir: Path) -> dict[str, object]:
    train, logging = config.train, config.logging
    loggers = ["file"]
    loggers += ["console"] if logging.console else []
    loggers += ["tensorboard"] if logging.tensorboard else []
    loggers += ["wandb"] if logging.wandb else []
    never = train.steps + 1
    return {
        "trainer.nnodes": config.hardware.nodes,
        "trainer.n_gpus_per_node": config.hardware.gpus_per_node,
        "trainer.total_training_steps": train.steps,
        "trainer.total_epochs": 1_000_000,  # steps are the bound
        "trainer.project_name": logging.project,
        "trainer.experiment_name": config.run.name,
        "+skiff.model": config.model.path,  # for W&B: inside an image verl is told another path
        "trainer.logger": loggers,
        "trainer.val_before_train": train.validate_first,
        # verl always validates and saves at the last step when the frequency is positive
        "trainer.test_freq": train.validate_every or never,
        "trainer.save_freq": train.save_every or never,
        "trainer.default_local_dir": str(run_dir / "ckpt"),
        "trainer.resume_mode": "auto",
        "trainer.checkpoint_callback_class": "skiff.train.checkpoint.SaveHook",
        "trainer.v1.sampler.custom_sampler.path": "pkg://skiff.train.sampler",
        "trainer.v1.sampler.custom_sampler.name": "SkiffReplayBuffer",
        "transfer_queue.backend.SimpleStorage.num_data_storage_units": config.hardware.nodes,
    }


def _ray(config: Config) -> dict[str, object]:
    """Of the Ray that verl starts; that of several nodes is there before (ray_cluster.py)."""
    if config.hardware.nodes > 1:
        return {}
    settings = {"include_dashboard": False, **ray_resources(config)}
    return {  # num_cpus alone stands in verl's own configuration
        f"{'' if name == 'num_cpus' else '+'}ray_kwargs.ray_init.{name}": value
        for name, value in settings.items()
    }


def ray_resources(config: Config) -> dict[str, int]:
    """What each node of Ray has; nothing where Ray itself finds out.

    Without a GPU it is logical: verl's bundles ask for 3 CPUs and a "GPU" per rank.
    """
    if config.hardware.platform == "cuda":
        return {}
    ranks = config.hardware.gpus_per_node
    return {"num_cpus": 8 * ranks + 8, "num_gpus": ranks, "object_store_memory": 400_000_000}


def _attention(config: Config) -> dict[str, object]:
    """verl's own default asks for flash-attn, which has to be compiled per architecture."""
    attention = config.hardware.attention
    models = ["actor_rollout_ref.model"]
    if config.train.algorithm == "ppo":
        models.append("critic.model")
    overrides: dict[str, object] = {}
    for model in models:
        overrides[f"{model}.use_remove_padding"] = attention == "flash_attention_2"
        overrides[f"+{model}.override_config.attn_implementation"] = attention
    return overrides


def _cpu(config: Config) -> dict[str, object]:
    """What the stock defaults take for granted about an accelerator, undone."""
    actor = "actor_rollout_ref.actor"
    rollout = "actor_rollout_ref.rollout"
    overrides: dict[str, object] = {
        "trainer.device": "cpu",
        f"{actor}.use_torch_compile": False,
        f"{actor}.fsdp_config.use_torch_compile": False,
        f"{actor}.fsdp_config.model_dtype": "fp32",
        f"+{actor}.fsdp_config.mixed_precision.param_dtype": "fp32",
        f"{rollout}.enforce_eager": True,
        f"{rollout}.free_cache_engine": False,  # sleep mode exists on CUDA only
        f"+{rollout}.enable_sleep_mode": False,
        f"{rollout}.checkpoint_engine.update_weights_bucket_megabytes": 64,
        # One engine process instead of two: each import of vLLM costs seconds of a core.
        f"+{rollout}.engine_kwargs.vllm.distributed_executor_backend": "uni",
        "transfer_queue.backend.SimpleStorage.total_storage_size": 16384,
    }
    if config.train.kl_coefficient > 0:
        overrides["actor_rollout_ref.ref.fsdp_config.use_torch_compile"] = False
    if config.train.algorithm == "ppo":
        overrides |= {
            "critic.fsdp.use_torch_compile": False,
            "critic.fsdp.model_dtype": "fp32",
            "+critic.fsdp.mixed_precision.param_dtype": "fp32",
        }
    return overrides


def _text(value: object) -> str:
    """Hydra's grammar. Strings are quoted: a run may be named `null` or `1e3`."""
    if isinstance(value, bool | list | str):
        return json.dumps(value, ensure_ascii=False)
    return str(value)
