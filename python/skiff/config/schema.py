"""Every number of a run, once. What can be derived (verl's overrides, agent limits, engine
capacity) is derived from here, so a mismatch cannot be written down.

Units are in the names: `_tokens`, `_seconds`, `_mib`. Cross-checks between fields live in
`checks.py`, reading and error texts in `load.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from skiff.config.section import NotNegative, Positive, Seconds, Section, matching
from skiff.config.slurm import Slurm

Host = Annotated[str, matching(r"[A-Za-z0-9_.:-]+", "a name or an address")]
Url = Annotated[
    str,
    matching(
        r"https?://([A-Za-z0-9_.-]+|\[[0-9a-fA-F:]+\])(:[0-9]+)?(/[A-Za-z0-9_./-]*)?",
        "http://HOST:PORT",
    ),
]
Name = Annotated[str, matching(r"[A-Za-z0-9_.;:@-]+", "one word, such as 'ib0'")]
Destination = Annotated[
    str,
    matching(
        r"/.*|([A-Za-z0-9_][A-Za-z0-9_.-]*@)?[A-Za-z0-9_][A-Za-z0-9_.-]*:/.*",
        "/path, host:/path or user@host:/path",
    ),
]


class Run(Section):
    """Which run this is and where its folder lies."""

    name: Annotated[
        str,
        matching(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", "at most 64 letters, digits, '.', '_' or '-'"),
    ] = "run"
    folder: Path = Field(Path("runs"), description="run folders are made below this folder")
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    sync_to: Destination | None = Field(
        None, description="rsync copies the run folder into this folder; host:/path goes by ssh"
    )
    sync_minutes: Positive = Field(10, description="between two copies; the last is at the end")
    sync_checkpoints: bool = Field(False, description="copy these, too")


class Model(Section):
    """The policy."""

    path: str = Field(description="a Hugging Face folder; 'warm-start' = made by [warm_start]")
    context_tokens: Positive = Field(description="the model's and the engine's whole context")


class Tasks(Section):
    """What the agent works on; see `skiff tasks list`."""

    train: tuple[str, ...] = Field(description="task specs, e.g. 'shell:train'")
    validation: tuple[str, ...] = Field(
        (), description="task specs, disjoint from train; empty: every fifth task of train"
    )
    train_limit: Positive | None = None
    validation_limit: Positive | None = None
    skip_list: Path | None = Field(None, description="task ids to leave out, one a line")


class Rollout(Section):
    """How trajectories are sampled."""

    trajectories_per_prompt: Positive = Field(description="the group size n of GRPO")
    prompts_per_step: Positive
    prompt_tokens: Positive = Field(description="longest first prompt")
    response_tokens: Positive = Field(description="all turns and observations together")
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=-1)] = -1
    validation_trajectories: Positive = Field(1, description="trajectories per validation task")
    validation_temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    agent_workers: Positive = 1
    max_concurrent: Positive = Field(64, description="trajectories in flight per agent worker")


class Agent(Section):
    """One trajectory's loop and its bounds (verl itself bounds nothing)."""

    name: Literal["mini", "openhands"] = "mini"
    max_turns: Positive = 20
    turn_tokens: Positive = Field(512, description="most tokens of one generation")
    observation_chars: Positive = Field(4000, description="observations are cut in the middle")
    command_seconds: Seconds = 60
    trajectory_seconds: Seconds = Field(1200, description="deadline, grading included")
    grade_seconds: Seconds = 300


class Sandbox(Section):
    """Limits of one sandbox."""

    memory_mib: Positive = 512
    cpus: Annotated[float, Field(gt=0)] = 1.0
    pids: Positive = 128
    disk_mib: Positive = 1024
    output_bytes: Positive = Field(1 << 20, description="per command and stream")
    network: bool = False


class Runtime(Section):
    """The runtime server."""

    backend: Literal["podman", "apptainer"] = "podman"
    sif_folder: Path | None = Field(None, description="apptainer only: where image names are files")
    url: Url | None = Field(None, description="attach to a running server instead of starting one")
    host: Host = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = Field(0, description="0 = any free port")
    max_sandboxes: Positive = 64
    concurrent_starts: Positive = 4
    idle_seconds: Seconds = 600
    lifetime_seconds: Seconds = 7200
    lease_seconds: Seconds | None = Field(
        None, description="a sandbox ends when no call and no renewal comes for so long"
    )
    concurrent_builds: Positive = 1
    build_cpus: Positive = Field(1, description="all that one build may use")
    build_context_mib: Positive = Field(1024, description="most that one build may unpack to")
    registry_prefix: str = Field(
        "localhost/skiff", description="clients may make images below this and below localhost/"
    )
    start_seconds: Seconds = Field(120, description="deadline of one sandbox start")


class Images(Section):
    """The SIFs that the halves run in; a half without one runs from this clone."""

    runtime: Path | None = Field(None, description="made by `make build-sif`")
    trainer: Path | None = Field(None, description="made by `make build-sif`")
    binds: tuple[Path, ...] = Field((), description="further folders that both may read and write")


class Train(Section):
    """verl's trainer."""

    algorithm: Literal["grpo", "ppo"] = "grpo"
    steps: Positive
    learning_rate: Annotated[float, Field(gt=0)] = 1e-6
    critic_learning_rate: Annotated[float, Field(gt=0)] = 1e-5
    mini_batch_prompts: Positive | None = Field(None, description="default: prompts_per_step")
    update_epochs: Positive = 1
    clip_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.2
    kl_coefficient: Annotated[float, Field(ge=0)] = Field(0.0, description="0 = no reference")
    entropy_coefficient: Annotated[float, Field(ge=0)] = 0.0
    adam_beta2: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.999, description="lower: a short run forgets its first, noisy gradients sooner"
    )
    gradient_clip: Annotated[float, Field(gt=0)] = 1.0
    validate_every: NotNegative = Field(0, description="steps; 0 = only at the end")
    validate_first: bool = True
    save_every: NotNegative = Field(0, description="steps; 0 = only at the end")
    keep_checkpoints: Annotated[int, Field(ge=2)] = Field(
        2, description="the newest ones; with 1 there is none to fall back on"
    )
    on_infra_failure: Literal["mask", "stop"] = "mask"
    max_masked_share: Annotated[float, Field(ge=0, le=1)] = Field(
        0.5, description="stop when more of a step's trajectories are masked than this"
    )
    export: bool = Field(True, description="write the last policy as a Hugging Face folder")


class Hardware(Section):
    """Where the trainer runs."""

    platform: Literal["cpu", "cuda"] = "cuda"
    nodes: Positive = 1
    gpus_per_node: Positive = Field(1, description="on cpu: number of trainer ranks")
    gpu_memory_share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    interface: Name | None = Field(
        None, description="network of the trainer's nodes, e.g. 'ib0', for Ray, NCCL and gloo"
    )
    fabric: Name | None = Field(None, description="libfabric's provider, e.g. 'cxi' or 'efa'")
    tensor_parallel: Positive = 1
    micro_batch: Positive = Field(1, description="trajectories per rank and forward pass")
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    attention: Literal["sdpa", "flash_attention_2"] = Field(
        "sdpa", description="of the trainer; the second needs flash-attn, and skips padding"
    )
    offload: bool = False
    engine_cache_gib: Positive = Field(4, description="cpu only: KV cache")
    engine_sequences: Positive = Field(64, description="most sequences decoded together")
    cpu_threads: Positive = 1


class Kernels(Section):
    """Compiled kernels of GPU starts; see docs/kernels.md."""

    packs: Path | None = Field(
        None, description="a folder of packs, made by `skiff kernels build`: one that fits is used"
    )


class Logging(Section):
    """Where metrics go. wandb is offline when no key is found."""

    console: bool = True
    tensorboard: bool = True
    wandb: bool = False
    project: str = "skiff"
    trajectories_per_step: NotNegative = Field(4, description="kept in the run folder")


class WarmStart(Section):
    """Make a tiny Qwen3 and supervise it on traces of a scripted solver (demo, tests)."""

    seconds: Seconds = Field(100, description="time bound of the supervised phase")
    steps: Positive = 1200
    batch: Positive = 32
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    layers: Positive = 2
    hidden: Annotated[int, Field(gt=0, multiple_of=64)] = 128


class Config(Section):
    """One run, complete."""

    run: Run = Run()
    model: Model
    tasks: Tasks
    rollout: Rollout
    agent: Agent = Agent()
    sandbox: Sandbox = Sandbox()
    runtime: Runtime = Runtime()
    images: Images = Images()
    train: Train
    hardware: Hardware = Hardware()
    kernels: Kernels = Kernels()
    logging: Logging = Logging()
    warm_start: WarmStart | None = None
    slurm: Slurm | None = None
