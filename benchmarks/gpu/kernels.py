"""Kernel packs on a real GPU: starts and decoding, eager against compiled against a pack.

    WORK/venv/bin/python benchmarks/gpu/kernels.py WORK place         the folders of an image
    WORK/venv/bin/python benchmarks/gpu/kernels.py WORK engines SIZE  every mode of one engine
    WORK/venv/bin/python benchmarks/gpu/kernels.py WORK verl NAME     a pack made and proved by verl
    WORK/venv/bin/python benchmarks/gpu/kernels.py WORK run           a run of Skiff that uses it
    WORK/venv/bin/python benchmarks/gpu/kernels.py WORK report        WORK/results -> kernels.md

In the environment that `machine.py unpack` made, as root: each start has an empty folder of its own
bound to /opt/skiff/kernels, as the launcher binds one into the image. Weights are random. An engine
is vLLM alone, with the numbers of Skiff's profiles; `verl` is `skiff kernels build`: two updates
with everything compiled, two with the pack under proof. In the mode `strict` PATH has no compiler.
Not covered: other GPUs than the machine's, what a policy learns.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from machine import ROOT as CLONE
from machine import record

TABLE = CLONE / "benchmarks" / "kernels.md"
BEGIN = "<!-- measured -->\n"
QWEN = {"vocab_size": 151936, "head_dim": 128, "num_key_value_heads": 8, "dtype": "bfloat16"}
SIZES: dict[str, dict[str, Any]] = {
    "0.6B": {
        **QWEN,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": True,
    },
    "8B": {
        **QWEN,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": False,
    },
}
# In this order: a later mode uses what an earlier one has kept.
MODES = ("eager-cold", "eager", "eager-image", "compile", "pack", "strict", "foreign")
LOADED = ("pack", "strict")  # compute with what `compile` has kept
BATCHES, TOKENS, REPEATS = (1, 8, 64), 128, 3
COMPILERS = re.compile(r".*(gcc|g\+\+|clang|nvcc|ninja|cicc|ptxas).*|cc|c\+\+|c89.*|c99.*|as|ld.*")
VERL = {"one": (1, 1), "tp2": (2, 2), "dp2": (2, 1)}  # -> GPUs, tensor_parallel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument(
        "stage", choices=["place", "engines", "engine-here", "verl", "run", "report"]
    )
    parser.add_argument("name", nargs="?", default="")
    parser.add_argument("mode", nargs="?", default="")
    given = parser.parse_args()
    work = given.work.absolute()
    if given.stage == "engine-here":
        engine_here(work, given.name, given.mode)
    elif given.stage in ("engines", "verl"):
        {"engines": engines, "verl": verl}[given.stage](work, given.name)
    else:
        {"place": place, "run": run, "report": report}[given.stage](work)


def place(work: Path) -> None:
    """What the image has: the root's folder, the stub of libcuda, and its layer for this GPU."""
    begun = time.monotonic()
    for name in ("kernels", "stubs"):
        Path("/opt/skiff", name).mkdir(parents=True, exist_ok=True)
    stub = ["gcc", "-shared", "-o", "/opt/skiff/stubs/libcuda.so.1", "-Wl,-soname,libcuda.so.1"]
    subprocess.run([*stub, CLONE / "containers" / "libcuda_stub.c"], check=True)
    python = work / "venv" / "bin" / "python"
    build = [python, "-m", "skiff.kernels.architecture", "build", "--capability", "90"]
    with rooted([*build, "--vocabulary", str(QWEN["vocab_size"])], work / "place.log") as child:
        code = child.wait()
    told = (work / "place.log").read_text().strip().splitlines()
    record(work, "place", {"exit_code": code, "told": told[-1:], "seconds": since(begun)})


def rooted(
    command: list[Any], log: Path, environment: dict[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start `command` with an empty folder of its own at /opt/skiff/kernels."""
    private = log.with_suffix(".root")
    shutil.rmtree(private, ignore_errors=True)
    private.mkdir()
    script = 'mount --bind "$1" /opt/skiff/kernels && shift && exec "$@"'
    with log.open("w") as output:
        return subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", script, "sh", private, *map(str, command)],
            env=environment or dict(os.environ),
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def since(begun: float) -> float:
    return round(time.monotonic() - begun, 1)


# Engines


def engines(work: Path, size: str) -> None:
    """Every mode of one size, one after the other, on the GPU that CUDA_VISIBLE_DEVICES names."""
    from transformers import Qwen3Config

    model = work / "models" / size
    Qwen3Config(**SIZES[size], architectures=["Qwen3ForCausalLM"]).save_pretrained(model)
    found: dict[str, Any] = {}
    for mode in MODES:
        log = work / f"engine-{size}-{mode}.log"
        begun = time.monotonic()
        environment = dict(os.environ) | ({"PATH": no_compilers(work)} if mode == "strict" else {})
        command = [sys.executable, __file__, work, "engine-here", size, mode]
        with rooted(command, log, environment) as child:
            code = child.wait()
        result = work / "results" / f"engine-{size}-{mode}.json"
        found[mode] = json.loads(result.read_text()) if code == 0 else {"error": tail(log)}
        found[mode] |= {"exit_code": code, "process_seconds": since(begun), **told(log)}
        record(work, f"engines-{size}", found)


def no_compilers(work: Path) -> str:
    """A PATH with every program of ours but compilers."""
    folder = work / f"path-{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for place in map(Path, os.environ["PATH"].split(":")):
        for program in place.iterdir() if place.is_dir() else ():
            if not COMPILERS.fullmatch(program.name) and not (folder / program.name).exists():
                (folder / program.name).symlink_to(program)
    assert shutil.which("gcc", path=str(folder)) is None
    return str(folder)


def tail(log: Path) -> str:
    return log.read_text(errors="replace")[-1500:]


def told(log: Path) -> dict[str, Any]:
    """What vLLM says of the parts of its start."""
    text = log.read_text(errors="replace")
    patterns = {
        "compile_seconds": r"torch\.compile took ([\d.]+) s",
        "capture_seconds": r"Graph capturing finished in ([\d.]+) secs",
        "load_seconds": r"Model loading took .*? ([\d.]+) seconds",
        "init_seconds": r"init engine .*? took ([\d.]+) s",
    }
    found = {name: re.findall(pattern, text) for name, pattern in patterns.items()}
    return {name: float(values[-1]) for name, values in found.items() if values}


def engine_here(work: Path, size: str, mode: str) -> None:
    """One start and its decoding, in this process; writes results/engine-SIZE-MODE.json."""
    begun = time.monotonic()
    from skiff.kernels import proof
    from skiff.kernels.gpu import first_gpu
    from skiff.kernels.manifest import here
    from skiff.kernels.packs import keep
    from skiff.kernels.start import bake, prepare
    from skiff.kernels.variables import ROOT, Mode, environment
    from skiff.train.kernels import image_digest

    gpu, packs = first_gpu(), work / "packs" / size
    eager = mode.startswith("eager")
    arguments: dict[str, Any] = {
        "enforce_eager": eager,
        "max_model_len": 8192,
        "max_num_batched_tokens": 8192,
        "max_num_seqs": 64,
    }
    facts = here(
        os.environ | environment(Mode.RUN),
        image=image_digest(),
        device=gpu.name,
        capability=gpu.capability,
        model=str(work / "models" / size),
        engine=arguments,
    )
    if mode in ("eager-cold", "compile"):
        choice = bake(facts)
    elif mode == "foreign":
        choice = prepare(facts, packs=foreign(packs, size))
    else:
        choice = prepare(facts, packs=None if mode == "eager-image" else packs)
    variables = choice.environment
    notes = work / "proofs" / size
    if mode == "strict":
        refuse = CLONE / "containers" / "refuse-compiler"
        shutil.rmtree(notes, ignore_errors=True)
        variables = proof.witnesses(notes, os.environ["PATH"], root=ROOT, refuse=refuse)
    os.environ |= variables
    proof.register()
    found: dict[str, Any] = {"line": choice.line, "placed_seconds": since(begun)}

    from vllm import LLM

    imported = time.monotonic()
    found["import_seconds"] = round(imported - begun - found["placed_seconds"], 1)
    if choice.compilation and not eager:
        arguments["compilation_config"] = choice.compilation
    llm = LLM(
        model=facts.model,
        load_format="dummy",
        skip_tokenizer_init=True,
        gpu_memory_utilization=0.5,
        **arguments,
    )
    found["start_seconds"] = since(imported)
    found["ready_seconds"] = since(begun)
    config = llm.llm_engine.vllm_config
    assert config.model_config.enforce_eager == eager
    found["mode"] = str(config.compilation_config.mode)
    found["cuda_graphs"] = str(config.compilation_config.cudagraph_mode)
    found["decode"] = decode(llm)
    found["greedy"] = greedy(llm)
    if mode in ("eager-cold", "compile"):
        packs.mkdir(parents=True, exist_ok=True)
        kept = time.monotonic()
        pack = keep(ROOT, packs / mode, facts, driver=gpu.driver)
        found["keep_seconds"] = since(kept)
        found["pack_bytes"] = pack.tree.stat().st_size
        found["pack_files"] = len(pack.manifest.files)
    if mode in ("pack", "strict", "eager"):
        seen = proof.findings(notes, ROOT, choice.files)
        found["findings"], found["findings_count"] = seen[:20], len(seen)
    (work / "results" / f"engine-{size}-{mode}.json").write_text(json.dumps(found))


def decode(llm: Any) -> dict[str, float]:
    """Tokens per second by batch size, the best of some repeats; prompts of 32 tokens."""
    from vllm import SamplingParams

    sampling = SamplingParams(max_tokens=TOKENS, ignore_eos=True, detokenize=False)
    numbers = itertools.count(1000)
    best: dict[str, float] = {}
    for batch in BATCHES:
        for _ in range(REPEATS):
            prompts = [{"prompt_token_ids": [next(numbers)] * 32} for _ in range(batch)]
            begun = time.monotonic()
            answers = llm.generate(prompts, sampling, use_tqdm=False)
            seconds = time.monotonic() - begun
            assert all(len(answer.outputs[0].token_ids) == TOKENS for answer in answers)
            speed = batch * TOKENS / seconds
            best[str(batch)] = round(max(best.get(str(batch), 0.0), speed), 1)
    return best


def greedy(llm: Any) -> list[int]:
    """The likeliest 64 tokens after a prompt: loaded code must give what fresh code gave."""
    from vllm import SamplingParams

    sampling = SamplingParams(max_tokens=64, temperature=0.0, ignore_eos=True, detokenize=False)
    [answer] = llm.generate([{"prompt_token_ids": list(range(100, 132))}], sampling, use_tqdm=False)
    return list(answer.outputs[0].token_ids)


def foreign(packs: Path, size: str) -> Path:
    """The compiled pack of `size`, as if it had been made elsewhere: by GPU, and by version."""
    folder = packs.with_name(f"{size}-foreign")
    shutil.rmtree(folder, ignore_errors=True)
    for name, field, value in (
        ("other-gpu", "device", "NVIDIA A100-SXM4-80GB"),
        ("other-version", "versions", {"vllm": "0.23.0"}),
    ):
        made = Path(shutil.copytree(packs / "compile", folder / name))
        manifest = json.loads((made / "manifest.json").read_text())
        old = manifest["facts"][field]
        manifest["facts"][field] = old | value if isinstance(value, dict) else value
        (made / "manifest.json").write_text(json.dumps(manifest))
    return folder


# verl


def profile(work: Path, name: str) -> dict[str, Any]:
    """A Skiff profile for the 0.6 B shape with random weights, saved as a model folder."""
    gpus, tensor_parallel = VERL[name]
    return {
        "run": {"name": f"kernels-{name}", "folder": str(work / "runs")},
        "model": {"path": str(random_model(work)), "context_tokens": 6144},
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
        "agent": {"max_turns": 2, "turn_tokens": 64, "command_seconds": 10},
        "runtime": {"backend": "apptainer"},
        "train": {"steps": 2, "save_every": 0, "validate_first": False, "export": False},
        "hardware": {
            "platform": "cuda",
            "gpus_per_node": gpus,
            "tensor_parallel": tensor_parallel,
            "micro_batch": 4,
            "gpu_memory_share": 0.4,
        },
        "kernels": {"packs": str(work / "packs" / f"verl-{name}")},
    }


def random_model(work: Path) -> Path:
    """28 layers of 1024 with the tokenizer of the tasks' words; a vocabulary made for the layer."""
    from skiff.train import tiny

    folder = work / "models" / "random"
    if not folder.exists():
        import torch
        from transformers import Qwen3Config, Qwen3ForCausalLM

        made = folder.with_suffix(".partial")
        made.mkdir(parents=True)
        tiny.make_shell_tokenizer(made)
        torch.manual_seed(0)
        with torch.device("cuda"):
            model = Qwen3ForCausalLM(Qwen3Config(**SIZES["0.6B"])).to(torch.bfloat16)
        model.save_pretrained(made)
        made.rename(folder)
    return folder


def shims(work: Path) -> Path:
    """Entry points that get an empty /opt/skiff/kernels, as those of an image do."""
    folder = work / "entrypoints"
    folder.mkdir(exist_ok=True)
    (folder / "runtime").unlink(missing_ok=True)
    (folder / "runtime").symlink_to(CLONE / "entrypoints" / "runtime")
    (folder / "train").write_text(
        "import os, subprocess, sys, tempfile\n"
        "own = tempfile.mkdtemp()\n"
        'script = \'mount --bind "$1" /opt/skiff/kernels && shift && exec "$@"\'\n'
        f"real = [sys.executable, {str(CLONE / 'entrypoints' / 'train')!r}, *sys.argv[1:]]\n"
        "os.execvp('unshare', ['unshare', '--mount', 'sh', '-c', script, 'sh', own, *real])\n"
    )
    return folder


def verl(work: Path, name: str) -> None:
    """`skiff kernels build`: bake, then proof; the seconds of both, and what the log says."""
    from rich.console import Console
    from skiff import events
    from skiff.config.load import parse_config
    from skiff.errors import SkiffError
    from skiff.launch.kernels import build

    config = parse_config(profile(work, name))
    begun = time.monotonic()
    found: dict[str, Any] = {"gpus": VERL[name][0], "tensor_parallel": VERL[name][1]}
    try:
        pack = build(config, Console(), entrypoints=shims(work))
        found["pack"], found["pack_bytes"] = pack.name, (pack / "tree.squashfs").stat().st_size
        found["pack_files"] = len(json.loads((pack / "manifest.json").read_text())["files"])
    except SkiffError as error:
        found["error"] = str(error)
    found["seconds"] = since(begun)
    for folder in sorted((work / "runs").glob(f"kernels-{name}-kernels-*"))[-1:]:
        found["kernels"] = [event["what"] for event in events.read(folder, "kernels")]
        found["phases"] = [
            [event["name"], event["seconds"]]
            for event in events.read(folder, "phase")
            if event["name"].startswith("kernels")
        ]
        found["steps"] = [
            {"step": event["step"], **event["seconds"]} for event in events.read(folder, "step")
        ]
    record(work, f"verl-{name}", found)


def run(work: Path) -> None:
    """`skiff run` with real sandboxes and the pack that `verl one` made."""
    from skiff import events
    from skiff.config.load import parse_config
    from skiff.launch import local, run_folder
    from trainer import images

    plain = profile(work, "one")
    plain["runtime"]["sif_folder"] = str(images(work))
    config = parse_config(plain)
    run_dir = run_folder.make(config)
    attempt = run_folder.new_attempt(run_dir)
    begun = time.monotonic()
    local.run_attempt(config, run_dir, attempt, watch=lambda: None, entrypoints=shims(work))
    trajectories = list(events.read(run_dir, "trajectory"))
    found = {
        "seconds": since(begun),
        "kernels": [event["what"] for event in events.read(run_dir, "kernels")],
        "steps": [
            {"step": event["step"], **event["seconds"]} for event in events.read(run_dir, "step")
        ],
        "trajectories": len(trajectories),
        "graded": sum(event["reward"] is not None for event in trajectories),
        "gpu_events": [event for event in events.read(run_dir) if event["kind"].startswith("gpu")][
            :5
        ],
    }
    record(work, "run", found)


def rows(found: dict[str, Any]) -> Iterator[str]:
    """The lines of the tables."""
    for size in SIZES:
        engine = found.get(f"engines-{size}", {})
        if any(engine.get(mode, {}).get("exit_code") for mode in MODES) or len(engine) < len(MODES):
            yield f"\n### {size}\n\nnot run to its end: {', '.join(engine)}"
            continue
        warm = engine["eager"]
        yield f"\n### {size}\n"
        yield "| start | s | of eager | engine alone, s | of eager | tok/s at 1 | at 8 | at 64 |"
        yield "|---|---:|---:|---:|---:|---:|---:|---:|"
        for mode in MODES:
            one = engine[mode]
            cells = [mode]
            for part in ("ready_seconds", "start_seconds"):
                cells += [f"{one[part]:.1f}", f"{one[part] / warm[part]:.2f}"]
            for batch in map(str, BATCHES):
                speed = one["decode"][batch]
                cells.append(f"{speed:,.0f} ({speed / warm['decode'][batch]:.2f})")
            yield f"| {' | '.join(cells)} |"
        same = all(engine[mode]["greedy"] == engine["compile"]["greedy"] for mode in LOADED)
        yield f"\n`strict`: {engine['strict']['findings_count']} things compiled."
        yield f"The pack's 64 greedy tokens are those of `compile`: {'yes' if same else 'no'}."
        yield f"`foreign` said: `{engine['foreign']['line']}`."
    yield "\n### verl, two steps\n"
    yield "| engine | GPUs | bake, s | proof, s | pack | said |"
    yield "|---|---:|---:|---:|---|---|"
    for name in VERL:
        if (one := found.get(f"verl-{name}")) is not None:
            seconds = [f"{seconds:.0f}" for _, seconds in one["phases"]]
            if "error" in one:
                yield f"| {name} | {one['gpus']} | | | | {one['error']} |"
                continue
            size = f"{one['pack_files']} files, {one['pack_bytes'] / 2**20:.1f} MiB"
            cells = [name, str(one["gpus"]), *seconds, size, one["kernels"][-1]]
            yield f"| {' | '.join(cells)} |"
    if one := found.get("run"):
        yield f"\n`skiff run` with sandboxes: {len(one['steps'])} steps in {one['seconds']:.0f} s;"
        yield f"{one['graded']} of {one['trajectories']} trajectories graded."
        yield f"It said: `{one['kernels'][0]}`."


def report(work: Path) -> None:
    """Write the measured part of benchmarks/kernels.md."""
    found = {file.stem: json.loads(file.read_text()) for file in (work / "results").glob("*.json")}
    text = "\n".join(rows(found)) + "\n"
    head = TABLE.read_text().partition(BEGIN)[0] if TABLE.exists() else "# Kernel packs\n\n"
    TABLE.write_text(head + BEGIN + text)
    print(text)


if __name__ == "__main__":
    main()
