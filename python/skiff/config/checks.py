"""Checks between fields. Each sentence names both fields and the remedy."""

from __future__ import annotations

from collections.abc import Iterator

from skiff.binds import hides
from skiff.config.schema import Config

_FIELD = "the section has a field of its own for it"
_SCRIPT = "the job's script needs its own"
TAKEN = {  # an option of sbatch -> why it is none of slurm.*.extra
    **dict.fromkeys(("partition", "account", "qos", "constraint", "gres"), _FIELD),
    **dict.fromkeys(("cpus-per-task", "mem", "time", "exclude", "reservation"), _FIELD),
    **dict.fromkeys(("output", "error", "open-mode", "signal", "requeue", "no-requeue"), _SCRIPT),
    **dict.fromkeys(("ntasks", "ntasks-per-node", "input", "chdir"), _SCRIPT),
    **dict.fromkeys(("array", "wrap", "test-only", "wait", "export", "export-file"), _SCRIPT),
    "nodes": "slurm.runtime.nodes and hardware.nodes say it",
}


def check(config: Config) -> list[str]:
    """All faults of a config whose single fields are valid; empty when there are none."""
    return [
        *_lengths(config),
        *_batches(config),
        *_hardware(config),
        *_times(config),
        *_binds(config),
        *_slurm(config),
    ]


def _lengths(config: Config) -> Iterator[str]:
    rollout, agent, model = config.rollout, config.agent, config.model
    whole = rollout.prompt_tokens + rollout.response_tokens
    if whole > model.context_tokens:
        yield (
            f"rollout.prompt_tokens ({rollout.prompt_tokens}) + rollout.response_tokens "
            f"({rollout.response_tokens}) = {whole} exceeds model.context_tokens "
            f"({model.context_tokens}): lower one of the first two, or raise model.context_tokens"
            " if the model allows it"
        )
    if agent.turn_tokens > rollout.response_tokens:
        yield (
            f"agent.turn_tokens ({agent.turn_tokens}) exceeds rollout.response_tokens "
            f"({rollout.response_tokens}): one turn cannot be longer than all turns together;"
            " lower agent.turn_tokens"
        )


def _batches(config: Config) -> Iterator[str]:
    rollout, train, hardware = config.rollout, config.train, config.hardware
    mini = train.mini_batch_prompts or rollout.prompts_per_step
    if rollout.prompts_per_step % mini:
        yield (
            f"rollout.prompts_per_step ({rollout.prompts_per_step}) is not divisible by "
            f"train.mini_batch_prompts ({mini}): choose a divisor"
        )
    ranks = hardware.nodes * hardware.gpus_per_node
    mini_trajectories = mini * rollout.trajectories_per_prompt
    if mini_trajectories % ranks:
        yield (
            f"train.mini_batch_prompts x rollout.trajectories_per_prompt ({mini} x "
            f"{rollout.trajectories_per_prompt} = {mini_trajectories}) is not divisible by "
            f"hardware.nodes x hardware.gpus_per_node ({ranks}): every rank needs an equal share;"
            " change one of them"
        )
    elif (mini_trajectories // ranks) % hardware.micro_batch:
        yield (
            f"hardware.micro_batch ({hardware.micro_batch}) does not divide the "
            f"{mini_trajectories // ranks} trajectories of a rank's mini batch: choose a divisor"
        )
    if train.algorithm == "grpo" and rollout.trajectories_per_prompt < 2:
        yield (
            "train.algorithm = 'grpo' needs rollout.trajectories_per_prompt >= 2 (the group is the"
            " baseline): raise it, or use train.algorithm = 'ppo'"
        )


def _hardware(config: Config) -> Iterator[str]:
    hardware = config.hardware
    if hardware.gpus_per_node % hardware.tensor_parallel:
        yield (
            f"hardware.gpus_per_node ({hardware.gpus_per_node}) is not divisible by "
            f"hardware.tensor_parallel ({hardware.tensor_parallel}): an engine must not span nodes"
        )
    trajectories = config.rollout.agent_workers * config.rollout.max_concurrent
    if config.runtime.url is None and trajectories > config.runtime.max_sandboxes:
        yield (
            f"rollout.agent_workers x rollout.max_concurrent ({trajectories}) exceeds "
            f"runtime.max_sandboxes ({config.runtime.max_sandboxes}): trajectories would wait for a"
            " sandbox until runtime.start_seconds masks them; lower the first or raise the last"
        )
    if hardware.platform == "cpu" and hardware.dtype != "float32":
        yield (
            f"hardware.platform = 'cpu' with hardware.dtype = '{hardware.dtype}': gloo and the CPU"
            " engine are exercised in float32 only; set hardware.dtype = 'float32'"
        )
    if hardware.platform == "cpu" and hardware.attention != "sdpa":
        yield (
            f"hardware.platform = 'cpu' with hardware.attention = '{hardware.attention}':"
            " flash-attn is for GPUs; use 'sdpa'"
        )
    critic_on_gpu = hardware.platform == "cuda" and config.train.algorithm == "ppo"
    if critic_on_gpu and hardware.attention == "sdpa":
        yield (
            "train.algorithm = 'ppo' with hardware.attention = 'sdpa': verl's critic asks for"
            " flash-attn by name on GPUs; set hardware.attention = 'flash_attention_2'"
        )
    if hardware.nodes > 1 and config.slurm is None:
        yield (
            f"hardware.nodes = {hardware.nodes} without [slurm]: one machine is one node; set"
            " hardware.nodes = 1, or add [slurm]"
        )
    if config.model.path == "warm-start" and config.warm_start is None:
        yield (
            "model.path = 'warm-start' but there is no [warm_start] section: add one, or name a"
            " Hugging Face folder in model.path"
        )


def _times(config: Config) -> Iterator[str]:
    agent, runtime = config.agent, config.runtime
    if agent.trajectory_seconds > runtime.lifetime_seconds:
        yield (
            f"agent.trajectory_seconds ({agent.trajectory_seconds:g}) exceeds "
            f"runtime.lifetime_seconds ({runtime.lifetime_seconds:g}): sandboxes would be reaped"
            " under a running trajectory; raise the second"
        )
    if agent.command_seconds > agent.trajectory_seconds:
        yield (
            f"agent.command_seconds ({agent.command_seconds:g}) exceeds agent.trajectory_seconds "
            f"({agent.trajectory_seconds:g}): lower the first"
        )
    # An agent is given at least half of the time, whatever the grade needs (agents/run.py).
    if agent.grade_seconds + runtime.start_seconds > agent.trajectory_seconds / 2:
        yield (
            f"agent.grade_seconds ({agent.grade_seconds:g}) + runtime.start_seconds "
            f"({runtime.start_seconds:g}) exceed half of agent.trajectory_seconds "
            f"({agent.trajectory_seconds:g}): tests may be cut short; raise the last or lower the"
            " others"
        )
    if agent.command_seconds >= runtime.idle_seconds:
        yield (
            f"runtime.idle_seconds ({runtime.idle_seconds:g}) is not above agent.command_seconds "
            f"({agent.command_seconds:g}): a sandbox would be reaped during a command; raise it"
        )


def _binds(config: Config) -> Iterator[str]:
    for path in config.images.binds:
        if (own := hides(path)) is not None:
            yield (
                f"images.binds holds '{path}', which would hide {own} of the images: name the"
                " folders below it that are needed"
            )


def _slurm(config: Config) -> Iterator[str]:
    slurm, hardware, runtime = config.slurm, config.hardware, config.runtime
    if slurm is None:
        return
    if runtime.url is None and runtime.host in ("127.0.0.1", "localhost", "::1"):
        yield (
            f"[slurm] with runtime.host = '{runtime.host}': the trainer's node cannot reach it; set"
            " runtime.host = '0.0.0.0'"
        )
    if "\\" in str(config.run.folder):
        yield f"[slurm] with run.folder = '{config.run.folder}': sbatch misreads a \\; rename it"
    if runtime.port and slurm.runtime.nodes > 1 and runtime.url is None:
        yield (
            f"runtime.port = {runtime.port} with slurm.runtime.nodes = {slurm.runtime.nodes}: each"
            " server takes a free port of its own; set runtime.port = 0"
        )
    for name, extra in (("runtime", slurm.runtime.extra), ("trainer", slurm.trainer.extra)):
        for option in extra:
            if (word := option.partition("=")[0].removeprefix("--")) in TAKEN:
                yield f"slurm.{name}.extra holds '{option}': {TAKEN[word]}; remove it"
    gpus = _gpus(slurm.trainer.gres)
    if hardware.platform == "cuda" and gpus is not None and gpus != hardware.gpus_per_node:
        yield (
            f"slurm.trainer.gres = '{slurm.trainer.gres}' with hardware.gpus_per_node ="
            f" {hardware.gpus_per_node}: both count a node's GPUs; make them equal"
        )
    if hardware.platform == "cuda" and slurm.trainer.gres is None and not slurm.trainer.extra:
        yield (
            "hardware.platform = 'cuda' without slurm.trainer.gres: no GPU would be given; set"
            f" slurm.trainer.gres = 'gpu:{hardware.gpus_per_node}'"
        )
    times = (slurm.runtime.time, slurm.trainer.time)
    if slurm.mode == "het" and times[0] != times[1]:
        yield (
            f"slurm.mode = 'het' with slurm.runtime.time = {times[0]!r} and slurm.trainer.time ="
            f" {times[1]!r}: the first to end would end both without a warning; make them equal"
        )
    if slurm.requeues and slurm.mode == "two-jobs":
        yield (
            f"slurm.requeues = {slurm.requeues} with slurm.mode = 'two-jobs': one half would start"
            " again without the other; set slurm.mode = 'het' or slurm.requeues = 0"
        )


def _gpus(gres: str | None) -> int | None:
    """The count in 'gpu', 'gpu:2' or 'gpu:a100:2'; None when it names no GPU."""
    for one in (gres or "").split(","):
        name, *rest = one.split("(")[0].split(":")
        if name == "gpu":
            return int(rest[-1]) if rest and rest[-1].isdecimal() else 1
    return None
