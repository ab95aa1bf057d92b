"""The table of cache variables: what each mode gets, and what must never differ between them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from skiff.kernels.variables import ROOT, TABLE, Mode, environment, key_variables, shell_lines


def test_what_is_part_of_a_key_is_the_same_in_every_mode() -> None:
    keyed = {one.name for one in TABLE if one.keyed}
    assert keyed >= {"VLLM_CONFIG_ROOT", "TRITON_DEFAULT_FP_FUSION", "VLLM_DISABLE_COMPILE_CACHE"}
    bake, run, proof = (environment(mode) for mode in Mode)
    for name in keyed:
        assert bake[name] == run[name] == proof[name]


def test_the_proof_adds_to_the_run_and_changes_nothing() -> None:
    run, proof = environment(Mode.RUN), environment(Mode.PROOF)
    assert run.items() <= proof.items()
    assert {"CC", "FLASHINFER_DISABLE_JIT", "VLLM_FORCE_AOT_LOAD"} <= proof.keys() - run.keys()


def test_no_name_stands_twice() -> None:
    assert len({one.name for one in TABLE}) == len(TABLE)


def test_every_cache_lies_below_the_root() -> None:
    folders = [value for value in environment(Mode.RUN).values() if value.startswith(str(ROOT))]
    assert len(folders) == len(set(folders)) >= 10
    moved = environment(Mode.RUN, root=Path("/elsewhere"))
    assert not [value for value in moved.values() if str(ROOT) in value]


def test_another_home_changes_the_keys_unless_the_table_is_used() -> None:
    one = key_variables({"HOME": "/home/ann"})
    other = key_variables({"HOME": "/home/bob"})
    assert one["VLLM_CONFIG_ROOT"] != other["VLLM_CONFIG_ROOT"]
    assert one["VLLM_XLA_CACHE_PATH"] != other["VLLM_XLA_CACHE_PATH"]
    table = environment(Mode.RUN)
    assert key_variables({"HOME": "/home/ann"} | table) == key_variables(
        {"HOME": "/home/bob"} | table
    )


def test_what_vllm_does_not_hash_is_no_key() -> None:
    found = key_variables(
        {"VLLM_PORT": "1", "VLLM_CACHE_ROOT": "/x", "VLLM_ATTENTION_BACKEND": "y"}
    )
    assert found["VLLM_ATTENTION_BACKEND"] == "y"
    assert not {"VLLM_PORT", "VLLM_CACHE_ROOT"} & found.keys()


@pytest.mark.parametrize("mode", Mode)
def test_a_shell_reads_the_same_values(mode: Mode) -> None:
    wanted = environment(mode)
    script = shell_lines(mode) + "env"
    told = subprocess.run(["sh", "-c", script], env={}, capture_output=True, text=True, check=True)
    found = dict(line.partition("=")[::2] for line in told.stdout.splitlines())
    assert {name: found.get(name) for name in wanted} == wanted
    assert len(re.findall(r"^# ", script, re.MULTILINE)) == len(wanted)


def test_vllm_hashes_what_the_table_pins(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason for two of the lines, asked of vLLM itself."""
    from vllm.envs import compile_factors

    def factors(home: str) -> dict[str, object]:
        monkeypatch.setenv("HOME", home)
        return compile_factors()

    for name in environment(Mode.RUN):
        monkeypatch.delenv(name, raising=False)
    one, other = factors("/home/ann"), factors("/home/bob")
    differing = {name for name in one if one[name] != other[name]}
    assert differing == {"VLLM_CONFIG_ROOT", "VLLM_XLA_CACHE_PATH"}
    for name, value in environment(Mode.RUN).items():
        monkeypatch.setenv(name, value)
    assert factors("/home/ann") == factors("/home/bob")
