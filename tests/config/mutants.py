"""The shipped profiles, damaged in every way that a person or a program damages a file.

`mutants(folder, count)` is the same list at each call: one fixed seed. `folder` takes the place of
the folder that the shipped profiles name, with a model, tasks and image files in it (`furnish`).
A payload that is carried out makes the file MARK.
"""

from __future__ import annotations

import json
import random
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import BaseModel
from skiff.config import Config

PROFILES = Path(__file__).parents[2] / "profiles"
SHIPPED = ("demo", "slurm-mig", "slurm-8gpu")
SEED = 20260101
MARK = "carried-out"  # the file that a payload makes in the working folder
TASKS = 64
WEIGHTS = (1, 5, 5, 3)  # of the originals; the demo alone has no section [slurm]

SHELL = (
    f"$(touch {MARK})",
    f"`touch {MARK}`",
    f"; touch {MARK} #",
    f"'; touch {MARK}; '",
    f'"; touch {MARK}; "',
    f"a\ntouch {MARK}\n",
    f"a\n#SBATCH --wrap='touch {MARK}'",
    f"| touch {MARK}",
    f"&& touch {MARK}",
    f"a' --wrap='touch {MARK}",
    "${PATH}",
    "~root",
    "%j",
    "*",
    "\\",
    "a\\'b",
    "--wrap=id",
    "-rf",
    "#",
)
ODD = (
    "",
    " ",
    "\x00",
    "\x1b[2J\x1b[31merror: all is well",
    "\r",
    "\x7f",
    "\u202egpj.exe",
    "\u2028",
    "\ufeff",
    "\u0663",
    "\U0001f6a2",
    "nan",
    "None",
    "../../../..",
    "/",
    "/proc/self/mem",
    "/dev/null",
    "/nowhere/at/all",
    "a" * 300,
    "/" + "b" * 5000,
    "x" * 100_000,
    ":rocket:",
    "[bold]",
    "{run}",
)
NUMBERS = (0, -1, 1, 2, 3, 7, 10**6, 2**31, 2**63, 2**64, 10**30, -(10**30), 0.5, -0.0, 1e308)
SPECIAL = (float("nan"), float("inf"), -float("inf"), 5e-324)
WORDS = (
    *("gpu:999999999", "gpu:-1", "gpu::", ":", "gpu:a100:0", "0", "1-00:00:00:00", "99999-0"),
    *("UNLIMITED", "-5", "10G:10G", "512000000T", "normal,normal", "node[1-999999999]", "@"),
    *("--array=0-999", "--uid=0", "--export=NONE", "--nodes=99", "--wrap=id", "--output=/dev/null"),
)
# Sets of fields of which each is sound alone.
CONFLICTS: tuple[dict[str, Any], ...] = (
    {"rollout.prompt_tokens": 10**6},
    {"agent.turn_tokens": 10**6},
    {"rollout.trajectories_per_prompt": 1},
    {"train.mini_batch_prompts": 3},
    {"hardware.gpus_per_node": 3},
    {"hardware.nodes": 2},
    {"hardware.platform": "cpu", "hardware.dtype": "bfloat16"},
    {"hardware.tensor_parallel": 3},
    {"runtime.host": "127.0.0.1"},
    {"runtime.port": 80, "slurm.runtime.nodes": 2},
    {"runtime.max_sandboxes": 1},
    {"runtime.idle_seconds": 1},
    {"agent.trajectory_seconds": 1e9},
    {"slurm.mode": "two-jobs", "slurm.requeues": 3},
    {"slurm.runtime.time": "1", "slurm.trainer.time": "2"},
    {"slurm.trainer.gres": "gpu:5"},
    {"model.path": "warm-start"},
    {"tasks.train": [], "tasks.validation": []},
    {"tasks.train": ["shell:train", "shell:train"]},
    {"tasks.validation": ["shell:train"]},
    {"train.algorithm": "ppo"},
    {"runtime.url": "http://there:1"},
    {"slurm.trainer.extra": ["--exclusive", "--exclusive"]},
)


@dataclass(frozen=True)
class Mutant:
    """One damaged profile, and by which damage."""

    number: int
    damage: str
    content: bytes


def furnish(folder: Path) -> None:
    """Make what the shipped profiles name below their folder."""
    for name in ("Qwen3-14B", "Qwen2.5-Coder-0.5B-Instruct"):
        model = folder / "models" / name
        model.mkdir(parents=True)
        (model / "config.json").write_text("{}")
    for name in ("data", "sif"):
        (folder / name).mkdir()
    for name in ("runtime", "trainer"):
        (folder / "sif" / f"skiff-{name}-VERSION.sif").touch()
    row = {"repo": "a/b", "problem_statement": "Repair it.", "patch": "", "eval_script": "true"}
    lines = [json.dumps({**row, "instance_id": f"a__b-{number}"}) for number in range(TASKS)]
    (folder / "data" / "SWE-Gym-Subset.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "data" / "broken.parquet").write_bytes(b"PAR1 and no more")


def originals(folder: Path) -> dict[str, str]:
    """The shipped profiles with `folder` for the one that is to be edited, and the demo with the
    section [slurm] that it has not."""
    texts = {name: (PROFILES / f"{name}.toml").read_text() for name in SHIPPED}
    for name, text in texts.items():
        texts[name] = text.replace("/scratch/me", str(folder)).replace(".parquet", ".jsonl")
    runs = f'[run]\nfolder = "{folder}/runs"'
    texts["demo"] = texts["demo"].replace("[run]", runs, 1)
    on_slurm = texts["demo"].replace("[runtime]", '[runtime]\nhost = "0.0.0.0"', 1)
    half = '[slurm.runtime]\npartition = "cpu"\n[slurm.trainer]\npartition = "gpu"\n'
    return {**texts, "demo-slurm": f"{on_slurm}\n{half}"}


def mutants(folder: Path, count: int) -> Iterator[Mutant]:
    """`count` damaged profiles; a few are by chance still sound."""
    texts = originals(folder)
    chance = random.Random(SEED)
    damages: list[Callable[[random.Random, str], bytes]] = [*_TREE, *_TEXT]
    number = 0
    while number < count:
        damage = damages[number % len(damages)]
        text = texts[chance.choices(list(texts), weights=WEIGHTS)[0]]
        content = damage(chance, text)
        if _stays_in(folder, content):
            yield Mutant(number, damage.__name__.removeprefix("_"), content)
            number += 1


def _stays_in(folder: Path, content: bytes) -> bool:
    """No run folder is made outside of `folder`, which is the working folder."""
    try:
        place = tomllib.loads(content.decode())["run"]["folder"]
        return Path(folder, place).resolve().is_relative_to(folder)
    except (ValueError, RecursionError, KeyError, TypeError, OSError):
        return True  # it has none, or one that cannot be made


def fields(model: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    """The dotted names of all that a profile may set."""
    found: list[str] = []
    for name, field in model.model_fields.items():
        options = getattr(field.annotation, "__args__", (field.annotation,))
        inner = [one for one in options if isinstance(one, type) and issubclass(one, BaseModel)]
        found += fields(inner[0], f"{prefix}{name}.") if inner else [f"{prefix}{name}"]
    return found


def _put(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *sections, key = dotted.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
    tree[key] = value


def _leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in tree.items():
        inner = _leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else None
        found |= {f"{prefix}{name}": value} if inner is None else inner
    return found


def _pop(tree: dict[str, Any], dotted: str) -> Any:
    *sections, key = dotted.split(".")
    for section in sections:
        tree = tree[section]
    return tree.pop(key)


def _on_tree(
    change: Callable[[random.Random, dict[str, Any]], None],
) -> Callable[[random.Random, str], bytes]:
    def damage(chance: random.Random, text: str) -> bytes:
        tree = tomllib.loads(text)
        change(chance, tree)
        return tomli_w.dumps(tree).encode()

    damage.__name__ = change.__name__
    return damage


def _some_text(chance: random.Random, tree: dict[str, Any]) -> tuple[str, str, bool]:
    """A field that holds text or may, what it holds, and whether in a list."""
    names = {"run.name", "model.path", "tasks.skip_list", "runtime.sif_folder", "runtime.url"}
    names |= {"images.runtime", "images.trainer", "images.binds", "logging.project"}
    names |= {"run.folder", "tasks.train", "tasks.validation", "runtime.host"}
    names |= {name for name in fields() if name.startswith("slurm.")}
    if "slurm" not in tree:
        names = {name for name in names if not name.startswith("slurm.")}
    name = chance.choice(sorted(names))
    old = _leaves(tree).get(name)
    listed = name in ("tasks.train", "tasks.validation", "images.binds") or name.endswith("extra")
    return name, str(old[0] if isinstance(old, list) and old else old or "a"), listed


def _set_text(chance: random.Random, tree: dict[str, Any], payload: str) -> None:
    name, old, listed = _some_text(chance, tree)
    value = chance.choice([payload, old + payload, payload + old, f"--comment={payload}"])
    _put(tree, name, [value] if listed else value)


def _shell_words(chance: random.Random, tree: dict[str, Any]) -> None:
    _set_text(chance, tree, chance.choice(SHELL))


def _odd_text(chance: random.Random, tree: dict[str, Any]) -> None:
    _set_text(chance, tree, chance.choice(ODD))


def _shell_everywhere(chance: random.Random, tree: dict[str, Any]) -> None:
    payload = chance.choice(SHELL)
    for name, value in _leaves(tree).items():
        if isinstance(value, str):
            _put(tree, name, value + payload)


def _shell_in_a_path(chance: random.Random, tree: dict[str, Any]) -> None:
    """A folder may have any name."""
    folder = tree.get("run", {}).get("folder", "runs")
    tree.setdefault("run", {})["folder"] = f"{folder}/{chance.choice(SHELL)}"


def _slurm_words(chance: random.Random, tree: dict[str, Any]) -> None:
    names = [name for name in fields() if name.startswith("slurm.")]
    name = chance.choice(names)
    word = chance.choice(WORDS)
    _put(tree, name, [word] if name.endswith("extra") else word)


def _drop(chance: random.Random, tree: dict[str, Any]) -> None:
    _pop(tree, chance.choice([*tree, *_leaves(tree)]))


def _rename(chance: random.Random, tree: dict[str, Any]) -> None:
    name = chance.choice([*tree, *_leaves(tree)])
    place = chance.randrange(len(name) + 1)
    letter = chance.choice(["", "x", " ", "\n", "\x1b[31m", "'", "\u00e9"])
    _put(tree, name[:place].replace(".", "_") + letter + name[place + 1 :], _pop(tree, name))


def _wrong_type(chance: random.Random, tree: dict[str, Any]) -> None:
    odd = [True, "a", 1, 1.5, [], {}, [[]], [1], ["a", {}], {"a": {"b": 1}}, ["x"] * 1000]
    _put(tree, chance.choice(sorted(_leaves(tree))), chance.choice(odd))


def _section_of_another_type(chance: random.Random, tree: dict[str, Any]) -> None:
    tree[chance.choice(sorted(tree))] = chance.choice([1, "a", [], [{}], True])


def _number(chance: random.Random, tree: dict[str, Any]) -> None:
    _put(tree, chance.choice(fields()), chance.choice([*NUMBERS, *SPECIAL]))


def _numbers(chance: random.Random, tree: dict[str, Any]) -> None:
    for name, value in _leaves(tree).items():
        if isinstance(value, int) and chance.random() < 0.3:
            _put(tree, name, chance.choice(NUMBERS))


def _conflict(chance: random.Random, tree: dict[str, Any]) -> None:
    for name, value in chance.choice(CONFLICTS).items():
        _put(tree, name, value)


def _absent_file(chance: random.Random, tree: dict[str, Any]) -> None:
    value: Any
    name, value = chance.choice(
        [
            ("model.path", "/nowhere"),
            ("images.runtime", "/nowhere.sif"),
            ("images.trainer", "."),
            ("tasks.train", ["r2e:/nowhere.jsonl"]),
            ("tasks.train", ["swegym:data/broken.parquet"]),
            ("tasks.train", ["tasks:/etc"]),
            ("tasks.validation", ["synthetic:nothing"]),
            ("tasks.train", ["synthetic:/etc/**"]),
            ("tasks.train", ["synthetic:../[" + "a" * 300]),
            ("tasks.train", ["r2e:" + "a" * 300]),
            ("tasks.train", ["tasks:" + "a" * 300]),
            ("model.path", "a" * 300),
            ("images.runtime", "a" * 300),
            ("tasks.skip_list", "a" * 300),
            ("run.folder", "a" * 300),
            ("tasks.validation", ["shell:trian"]),
            ("tasks.train", ["swebench:"]),
            ("tasks.skip_list", "/nowhere"),
            ("tasks.skip_list", "/etc"),
            ("run.folder", "sif/skiff-runtime-VERSION.sif/runs"),
        ]
    )
    _put(tree, name, value)


def _line_twice(chance: random.Random, text: str) -> bytes:
    lines = text.splitlines()
    lines.insert(place := chance.randrange(len(lines)), lines[place])
    return "\n".join(lines).encode()


def _cut(chance: random.Random, text: str) -> bytes:
    return text.encode()[: chance.randrange(len(text))]


def _other_byte(chance: random.Random, text: str) -> bytes:
    raw = bytearray(text.encode())
    raw[chance.randrange(len(raw))] = chance.randrange(256)
    return bytes(raw)


def _bad_utf8(chance: random.Random, text: str) -> bytes:
    raw, place = text.encode(), chance.randrange(len(text))
    odd = chance.choice([b"\xff", b"\xc3", b"\xed\xa0\x80", b"\x00", b"\xff\xfe", b"\xf8\x88"])
    return raw[:place] + odd + raw[place:]


def _no_toml(chance: random.Random, text: str) -> bytes:
    whole = [b"", b"\xef\xbb\xbf" + text.encode(), text.encode("utf-16"), bytes(range(256))]
    whole += [json.dumps(tomllib.loads(text)).encode(), text.replace("=", ":").encode()]
    whole += [b"x = " + b"[" * 5000, b"x = " + b"{a=" * 5000, b"[" + b"a." * 5000 + b"a]"]
    whole += [b"x = " + b"9" * 5000, b"x = 2026-99-99", b"\x7fELF" + bytes(1000)]
    return chance.choice(whole)


_TREE = [
    _on_tree(change)
    for change in (
        *(_shell_words, _odd_text, _shell_everywhere, _shell_in_a_path, _slurm_words),
        *(_drop, _rename, _wrong_type, _section_of_another_type, _number, _numbers),
        *(_conflict, _absent_file),
    )
]
_TEXT: list[Callable[[random.Random, str], bytes]] = [
    _line_twice,
    _cut,
    _other_byte,
    _bad_utf8,
    _no_toml,
]
