"""The layers of the CUDA trainer on a real GPU, in the environment that `machine.py unpack` made.

    WORK/venv/bin/python benchmarks/gpu/trainer.py WORK versions    each line of the lock, compared
    WORK/venv/bin/python benchmarks/gpu/trainer.py WORK generate    vLLM, compiled, random weights
    (generate-no-nvcc: the same without nvcc and ninja; generate-no-nvcc-triton: and with Triton's
    sampler in the place of FlashInfer's)
    WORK/venv/bin/python benchmarks/gpu/trainer.py WORK step-sdpa   two steps, without flash-attn
    WORK/venv/bin/python benchmarks/gpu/trainer.py WORK step-flash  the same with it
    WORK/venv/bin/python benchmarks/gpu/trainer.py WORK report      WORK/results -> trainer.md

A step is a run of Skiff: its config with hardware.platform = "cuda", its entry points, real shell
tasks in sandboxes of the Apptainer back end, vLLM and verl's FSDP2 on one GPU; the model is a tiny
Qwen3 of random weights. Where a program says nothing for SILENCE seconds, its stacks are written to
WORK/*.stacks. Not covered: several GPUs, a large model, what a policy learns.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from machine import ROOT, record
from packaging.requirements import Requirement
from skiff import events
from skiff.config import Config
from skiff.config.load import parse_config
from skiff.files import write_atomic
from skiff.launch import local, run_folder
from skiff.tasks import shell

TABLE = Path(__file__).with_suffix(".md")
SILENCE = 20.0
# The shape of a 0.6 B Qwen3: enough for real kernels, and made in seconds.
SHAPE = {
    "vocab_size": 151936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
}
PROMPTS, TOKENS = 16, 64
# Words of a log that tell how the engine started and which attention the trainer took.
TELLING = re.compile(
    r"enforce_eager=\w+|Using \S+ attention backend|FlashAttention version \d|"
    r"torch.compile took [\d.]+ s|Graph capturing finished in [\d.]+ secs|"
    r"init engine .*? took [\d.]+ s|Capturing CUDA graphs \(\w+\)(?=: 100%)|"
    r"'attn_implementation': '\w+'|Flash Attention 2"
)
# Environments of vLLM. A node or an image may have neither nvcc nor ninja.
_NO_NVCC = {
    "CUDA_HOME": "/nonexistent",
    "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
}
GENERATE: dict[str, dict[str, str]] = {
    "generate": {},
    "generate-no-nvcc": _NO_NVCC,
    "generate-no-nvcc-triton": _NO_NVCC | {"VLLM_USE_FLASHINFER_SAMPLER": "0"},
}
STEPS = {"step-sdpa": "sdpa", "step-flash": "flash_attention_2"}  # -> hardware.attention
BEGIN = "<!-- measured -->\n"


@dataclass
class Silences:
    """Watches a log: how long it stood still after which line, and what ran meanwhile."""

    log: Path
    stacks: Path
    longest: list[tuple[float, str]] = field(default_factory=list)  # seconds, the line before
    _size: int = 0
    _since: float = field(default_factory=time.monotonic)
    _dumped: bool = False

    def look(self) -> None:
        """Call it several times a second."""
        size = self.log.stat().st_size if self.log.exists() else 0
        quiet = time.monotonic() - self._since
        if size != self._size:
            if quiet > 5:
                with self.log.open("rb") as file:
                    before = file.read(self._size).decode(errors="replace")
                self.longest.append((round(quiet, 1), before.strip().rpartition("\n")[2][-160:]))
            self._size, self._since, self._dumped = size, time.monotonic(), False
        elif quiet > SILENCE and not self._dumped:
            self._dumped = True
            self._dump()

    def _dump(self) -> None:
        spy = Path(sysconfig.get_path("purelib"), "bin", "py-spy")
        with self.stacks.open("a") as out:
            for process in psutil.Process().children(recursive=True):
                out.write(f"\n## {time.time():.0f} {process.pid}\n")
                out.flush()
                command = [str(spy), "dump", "--pid", str(process.pid)]
                subprocess.run(command, stdout=out, stderr=out, timeout=60, check=False)


def main() -> None:
    stages: dict[str, Callable[[Path], None]] = {
        "versions": versions,
        "generate-here": generate_here,
        "report": report,
    }
    stages |= {name: functools.partial(step, name=name) for name in STEPS}
    stages |= {name: functools.partial(generate, name=name) for name in GENERATE}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("stage", choices=stages)
    arguments = parser.parse_args()
    stages[arguments.stage](arguments.work.absolute())


def versions(work: Path) -> None:
    """Compare what is imported here with every line of the lock."""
    import torch

    same, other, absent = [], {}, []
    for line in (ROOT / "locks" / "cuda.txt").read_text().splitlines():
        if re.match(r"[A-Za-z0-9]", line):
            wanted = Requirement(line.removesuffix("\\"))
            try:
                here = importlib.metadata.version(wanted.name)
            except importlib.metadata.PackageNotFoundError:
                absent.append(wanted.name)
                continue
            if wanted.specifier.contains(here):
                same.append(wanted.name)
            else:
                other[wanted.name] = f"{here} instead of {str(wanted.specifier)[2:]}"
    record(
        work,
        "versions",
        {
            "same": len(same),
            "other": other,
            "absent": absent,
            "gpu": torch.cuda.get_device_name(),
            "capability": ".".join(map(str, torch.cuda.get_device_capability())),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "glibc": platform.libc_ver()[1],
            "cores": os.cpu_count(),
        },
    )


def generate(work: Path, name: str) -> None:
    """Run `generate_here` as a child with caches of its own, and watch what it says."""
    log, home = work / f"{name}.log", work / "homes" / name
    home.mkdir(parents=True)
    silences = Silences(log, work / f"{name}.stacks")
    begun = time.monotonic()
    with log.open("w") as output:
        child = subprocess.Popen(
            [sys.executable, __file__, str(work), "generate-here"],
            env=os.environ | GENERATE[name] | {"HOME": str(home)},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        while child.poll() is None:
            silences.look()
            time.sleep(0.2)
    found: dict[str, object] = {"exit_code": child.returncode}
    if child.returncode == 0:
        found |= json.loads((work / "generated.json").read_text())
    else:
        found["error"] = re.findall(r"(\w+Error: .*)", log.read_text(errors="replace"))[:1]
    found["seconds_in_all"] = round(time.monotonic() - begun, 1)
    found["silences"] = silences.longest
    found["log_says"] = telling(log)
    record(work, name, found)


def generate_here(work: Path) -> None:
    """Start vLLM as it starts by default (compiled, CUDA graphs), and let it generate."""
    from transformers import Qwen3Config
    from vllm import LLM, SamplingParams
    from vllm.config import CompilationMode

    model = work / "shape"
    Qwen3Config(**SHAPE, architectures=["Qwen3ForCausalLM"]).save_pretrained(model)
    begun = time.monotonic()
    llm = LLM(
        model=str(model),
        load_format="dummy",
        skip_tokenizer_init=True,
        max_model_len=4096,
        gpu_memory_utilization=0.3,
    )
    started = time.monotonic()
    sampling = SamplingParams(max_tokens=TOKENS, ignore_eos=True, detokenize=False)
    prompts: Any = [{"prompt_token_ids": [n + 1] * (n + 8)} for n in range(PROMPTS)]
    answers = llm.generate(prompts, sampling)
    ended = time.monotonic()
    lengths = [len(answer.outputs[0].token_ids) for answer in answers]
    assert lengths == [TOKENS] * PROMPTS, lengths
    config = llm.llm_engine.vllm_config
    assert not config.model_config.enforce_eager
    found = {
        "start_seconds": round(started - begun, 1),
        "generate_seconds": round(ended - started, 1),
        "tokens": sum(lengths),
        "compilation": CompilationMode(config.compilation_config.mode).name,
        "cuda_graphs": str(config.compilation_config.cudagraph_mode),
    }
    (work / "generated.json").write_text(json.dumps(found))


def step(work: Path, name: str) -> None:
    """Two steps of a run of Skiff. Raises SkiffError when the run does not end well."""
    config = step_config(work, name)
    run_dir = run_folder.make(config)
    silences = Silences(run_dir / "logs" / "verl.01.log", work / f"{name}.stacks")
    begun = time.monotonic()
    attempt = run_folder.new_attempt(run_dir)
    try:
        local.run_attempt(config, run_dir, attempt, watch=silences.look)
    finally:
        trajectories = list(events.read(run_dir, "trajectory"))
        record(
            work,
            name,
            {
                "run": str(run_dir),
                "seconds": round(time.monotonic() - begun, 1),
                "steps": list(events.read(run_dir, "step")),
                "validation": list(events.read(run_dir, "validation")),
                "checkpoints": [event["step"] for event in events.read(run_dir, "checkpoint")],
                "trajectories": len(trajectories),
                "graded": sum(event["reward"] is not None for event in trajectories),
                "stops": sorted({event["stop"] for event in trajectories}),
                "generated_tokens": sum(event["generated_tokens"] for event in trajectories),
                "silences": silences.longest,
                "log_says": telling(silences.log),
            },
        )


def step_config(work: Path, name: str) -> Config:
    return parse_config(
        {
            "run": {"name": name, "folder": str(work / "runs")},
            "model": {"path": str(tiny_model(work)), "context_tokens": 6144},
            "tasks": {
                "train": ["shell:train"],
                "validation": ["shell:validation"],
                "train_limit": 64,
                "validation_limit": 4,
            },
            "rollout": {
                "trajectories_per_prompt": 4,
                "prompts_per_step": 4,
                "prompt_tokens": 5120,
                "response_tokens": 512,
                "max_concurrent": 16,
            },
            "agent": {"max_turns": 2, "turn_tokens": 24, "command_seconds": 10},
            "runtime": {"backend": "apptainer", "sif_folder": str(images(work))},
            "train": {
                "steps": 2,
                "learning_rate": 1e-4,
                # A random policy solves nothing, and equal rewards alone give no gradient.
                "entropy_coefficient": 0.01,
                "save_every": 2,
                "validate_first": False,
                "export": False,
            },
            "hardware": {
                "platform": "cuda",
                "micro_batch": 4,
                "gpu_memory_share": 0.3,
                "attention": STEPS[name],
            },
        }
    )


def tiny_model(work: Path) -> Path:
    """A random Qwen3 whose tokenizer knows the words of the tasks."""
    from skiff.train import tiny

    folder = work / "tiny"
    if not folder.exists():
        folder.mkdir()
        tokenizer = tiny.make_shell_tokenizer(folder)
        tiny.make_model(folder, tokenizer, layers=4, hidden=256, context_tokens=6144)
    return folder


def images(work: Path) -> Path:
    """A folder of images that holds the one of the tasks, as a root folder."""
    from skiff.image_use import file_name

    root = work / "images" / file_name(shell.IMAGE)
    if not root.exists():
        root.mkdir(parents=True)
        subprocess.run(["tar", "-C", root, "-xf", work / "sandbox.tar"], check=True)
    return root.parent


def telling(log: Path) -> list[str]:
    text = log.read_text(errors="replace") if log.exists() else ""
    return list(dict.fromkeys(TELLING.findall(text)))


def report(work: Path) -> None:
    """Write the table of trainer.md from what the stages have recorded."""
    found = {file.stem: json.loads(file.read_text()) for file in (work / "results").glob("*.json")}
    there, carried = found["versions"], found["unpack"]
    rows = [
        ("GPU", f"{there['gpu']}, capability {there['capability']}; {there['cores']} cores"),
        ("torch", f"{there['torch']}; Python {there['python']}, glibc {there['glibc']}"),
        ("the lock's packages", f"{there['same']} at its version, {len(there['other'])} at others"),
        ("absent", ", ".join(there["absent"])),
        ("carried", f"{carried['bytes'] / 2**20:.0f} MiB in {carried['parts']} parts"),
        ("left out of them", ", ".join(carried["left_out"])),
    ]
    rows += [(name, engine_words(found[name])) for name in GENERATE if name in found]
    if (built := found.get("flash-attn")) is not None:
        size, seconds = built["bytes"] / 2**20, built["seconds"]
        rows.append(("flash-attn", f"`{built['wheel']}`, {size:.0f} MiB, built in {seconds:.0f} s"))
        rows.append(("its sha256", built["sha256"]))
    rows += [(name, step_words(found[name])) for name in STEPS if name in found]
    lines = ["| what | found |", "|---|---|", *(f"| {what} | {words} |" for what, words in rows)]
    head = TABLE.read_text().partition(BEGIN)[0] if TABLE.exists() else "# On a GPU\n\n"
    write_atomic(TABLE, head + BEGIN + "\n".join(lines) + "\n")


def engine_words(found: dict[str, Any]) -> str:
    if found["exit_code"] != 0:
        return f"ended with exit code {found['exit_code']}: `{''.join(found['error'])[:100]}`"
    captured = "Graph capturing finished"
    waits = [seconds for seconds, line in found["silences"] if captured in line]
    return (
        f"{found['tokens']} tokens; compilation {found['compilation']}, CUDA graphs "
        f"{found['cuda_graphs']}; start {found['start_seconds']:.0f} s, of which silent after the "
        f"capture of graphs {sum(waits):.0f} s"
    )


def step_words(found: dict[str, Any]) -> str:
    metrics = [step["metrics"] for step in found["steps"]]
    gap = max(step["rollout_probs_diff_mean"] for step in metrics)
    gradients = ", ".join(f"{step['grad_norm']:.3f}" for step in metrics)
    return (
        f"{len(metrics)} steps in {found['seconds']:.0f} s, the last in "
        f"{found['steps'][-1]['seconds']['step']:.1f} s; {found['graded']} of "
        f"{found['trajectories']} trajectories graded, {found['generated_tokens']} tokens; "
        f"gradient norms {gradients}; engine and trainer differ by {gap:.1e} in probability; "
        f"checkpoint of step {found['checkpoints'][-1]}"
    )


if __name__ == "__main__":
    main()
