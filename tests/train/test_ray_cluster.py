"""Ports, commands, addresses and tokens of a Ray over several nodes. tests/slurm brings one up."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from skiff.config import Config
from skiff.errors import InfraError
from skiff.files import write_atomic
from skiff.train import ray_ports
from skiff.train.overrides import verl_environment, verl_overrides
from skiff.train.ray_cluster import node_address, ray_start, read_place, write_token
from skiff.train.ray_ports import BLOCK, HIGH, LOW, PARTS, choose_ports

Configured = Callable[..., Config]
TWO = {"platform": "cpu", "dtype": "float32", "nodes": 2}


def numbers(options: list[str]) -> dict[str, int]:
    return {name: int(value) for name, _, value in (option.partition("=") for option in options)}


def test_a_block_holds_every_port_once_below_those_of_the_kernel() -> None:
    ports = choose_ports(17, 0)
    found = numbers(ports.options(head=True))
    low, high = found.pop("--min-worker-port"), found.pop("--max-worker-port")
    named = sorted(found.values())
    assert named == list(range(ports.first, ports.first + len(PARTS)))
    assert (low, high) == (named[-1] + 1, ports.first + BLOCK - 1)
    assert LOW <= ports.first <= high < HIGH
    assert found["--port"] == ports.head


def test_a_joining_node_has_no_port_of_the_head() -> None:
    found = numbers(choose_ports(17, 1).options(head=False))
    assert not {"--port", "--ray-client-server-port"} & set(found)


def test_no_block_holds_the_port_of_rays_client_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 44 jobs one had a node that could not join: Ray keeps 10001 free there."""
    monkeypatch.setattr(ray_ports, "_free", lambda _: True)
    firsts = {choose_ports(job, 1).first for job in range((HIGH - LOW) // BLOCK)}
    assert len(firsts) == 44
    assert not any(10_001 in range(first, first + BLOCK) for first in firsts)


def test_nodes_and_jobs_on_one_machine_get_different_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray_ports, "_free", lambda _: True)
    found = {choose_ports(job, node).first for job in (100, 101) for node in range(4)}
    assert len(found) == 8


def test_a_block_with_a_taken_port_is_passed_over() -> None:
    first = choose_ports(17, 0)
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", first.first + 100))
        other = choose_ports(17, 0)
    assert other.first != first.first
    assert choose_ports(17, 0) == first


def test_a_full_machine_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_ports, "_free", lambda _: False)
    with pytest.raises(InfraError, match="no 512 ports in a row are free"):
        choose_ports(1, 0)


def test_verl_joins_a_ray_of_several_nodes(runtime_config: Configured) -> None:
    two = runtime_config(runtime={"host": "0.0.0.0"}, slurm={}, hardware=TWO)
    one = runtime_config(hardware={**TWO, "nodes": 1})
    alone = [
        word.lstrip("+") for word in verl_overrides(one, Path("/run"), "/m") if "ray_init" in word
    ]
    assert "ray_kwargs.ray_init.num_gpus=1" in alone
    assert not any("ray_init" in word for word in verl_overrides(two, Path("/run"), "/m"))
    command = ray_start(two, "10.0.0.1")
    assert {"--block", "--node-ip-address=10.0.0.1", "--num-cpus=16", "--num-gpus=1"} <= set(
        command
    )
    cuda = runtime_config(
        runtime={"host": "0.0.0.0"},
        slurm={"trainer": {"gres": "gpu:1"}},
        hardware={"nodes": 2},
    )
    assert not any("--num-" in word for word in ray_start(cuda, "10.0.0.1"))


def test_the_profile_chooses_the_network(runtime_config: Configured) -> None:
    config = runtime_config(hardware={"interface": "ib0", "fabric": "cxi"})
    environment = verl_environment(config, Path("/run"))
    names = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "FI_PROVIDER")
    assert [environment[name] for name in names] == ["ib0", "ib0", "cxi"]
    assert not set(names) & set(verl_environment(runtime_config(), Path("/run")))


def test_an_interface_has_an_address_or_is_named() -> None:
    assert node_address("lo") == "127.0.0.1"
    assert socket.inet_aton(node_address(None))
    with pytest.raises(InfraError, match=r"hardware\.interface = ib7: has no IPv4 address on"):
        node_address("ib7")


def test_each_start_has_its_token_from_the_key(tmp_path: Path) -> None:
    (tmp_path / "rendezvous").mkdir()
    write_atomic(tmp_path / "rendezvous" / "key", "the key\n", mode=0o600)
    tokens = []
    for nonce in ("a", "a", "b"):
        path = tmp_path / "token"
        write_token(path, tmp_path, nonce)
        assert path.stat().st_mode & 0o777 == 0o600
        tokens.append(path.read_text())
    assert tokens[0] == tokens[1] != tokens[2]
    assert len(tokens[0]) == 64
    assert "the key" not in tokens[0]


def test_no_cluster_is_no_place(tmp_path: Path) -> None:
    assert read_place(tmp_path / "ray.json") is None
