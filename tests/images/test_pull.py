"""`skiff images pull` with the real podman: what is tried again, what is left behind, who pulls."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from skiff import cli
from skiff.image_use import file_name, mark_used
from skiff.images import prune
from skiff.images.podman_store import PodmanStore
from skiff.images.pull import Puller
from skiff.images.store import find
from skiff.podman import check_podman, podman_root

pytestmark = pytest.mark.usefixtures("podman_store")
MIB = 1 << 20


def puller(**settings: Any) -> Puller:
    return Puller(PodmanStore(verify_tls=False), pause_seconds=0.01, **settings)


def held() -> set[str]:
    return {name for image in PodmanStore().images() for name in image.names}


def leftovers() -> list[str]:
    """Half downloads, and locks."""
    folders = (podman_root() / "tmp", podman_root() / "locks", podman_root() / "locks" / "waiting")
    return [path.name for folder in folders for path in folder.iterdir() if path.name != "waiting"]


def test_what_is_absent_is_pulled(registry: Any) -> None:
    names = [registry.add(f"set/{number}") for number in range(3)]
    check_podman(["pull", "--quiet", "--tls-verify=false", names[0]])
    done = []
    outcomes = puller().pull([*names, names[1]], done.append)
    assert {outcome.name: outcome.pulled for outcome in outcomes} == {
        names[0]: False,
        names[1]: True,
        names[2]: True,
    }
    assert done == outcomes
    assert set(names) <= held()
    assert registry.fetched == {f"set/{number}": 1 for number in range(3)}
    assert not any(outcome.pulled for outcome in puller().pull(names))
    assert leftovers() == []


def test_a_missing_image_is_not_tried_again(registry: Any) -> None:
    good = registry.add("good")
    bad, outcome = sorted(
        puller().pull([f"{registry.url}/none:1", good]), key=lambda outcome: outcome.error == ""
    )
    assert "manifest unknown" in bad.error
    assert registry.asked["none"] == 1
    assert outcome.pulled
    assert leftovers() == []


def test_a_failure_that_may_pass_is_tried_again(registry: Any) -> None:
    name = registry.add("shaky")
    registry.failing["shaky"] = 2
    assert puller().pull([name])[0].pulled
    assert registry.asked["shaky"] == 3
    other = registry.add("worse")
    registry.failing["worse"] = 9
    assert "500" in puller(attempts=2).pull([other])[0].error
    assert registry.asked["worse"] == 2


def test_a_broken_download_leaves_nothing_and_can_be_repeated(registry: Any) -> None:
    name = registry.add("torn", kib=2048)
    registry.broken["torn"] = 99
    failed = puller(attempts=1).pull([name])[0]
    assert failed.error
    assert name not in held()
    assert leftovers() == []
    registry.broken["torn"] = 0
    assert puller().pull([name])[0].pulled
    assert name in held()


def start_pull(*arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "skiff.cli", "images", "pull", "--plain-http", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def test_a_killed_pull_leaves_no_image_and_can_be_repeated(registry: Any) -> None:
    name = registry.add("killed", kib=4096)
    registry.pause = 0.2
    with start_pull("--image", name) as process:
        assert registry.sending.wait(30)
        podman = children(process.pid)
        assert podman
        process.kill()
    deadline = time.monotonic() + 20
    while any(map(runs, podman)):
        assert time.monotonic() < deadline, "podman outlives the pull"
        time.sleep(0.05)
    assert name not in held()
    registry.pause = 0.0
    assert puller().pull([name])[0].pulled
    assert leftovers() == []


def runs(pid: int) -> bool:
    """It has not ended. As a subreaper, this process may keep a dead one as a zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def test_an_interrupted_pull_ends_at_once(registry: Any) -> None:
    names = [registry.add(f"long/{number}", kib=8192) for number in range(3)]
    registry.pause = 0.5
    with start_pull(*(word for name in names for word in ("--image", name))) as process:
        assert registry.sending.wait(30)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    assert held().isdisjoint(names)
    assert leftovers() == []


def test_two_pullers_pull_once(registry: Any) -> None:
    name = registry.add("shared", kib=512)
    registry.pause = 0.1
    with start_pull("--image", name) as one, start_pull("--image", name) as other:
        told = b"".join(process.communicate()[0] for process in (one, other))
        assert (one.returncode, other.returncode) == (0, 0), told
    assert b"1 pulled, 0 were there" in told
    assert b"0 pulled, 1 were there" in told
    assert registry.fetched["shared"] == 1


def test_a_digest_is_held_to(registry: Any) -> None:
    name = registry.add("pinned")
    repository = name.removesuffix(":1")
    pinned = f"{repository}@{registry.digest(name)}"
    wrong = f"{repository}@sha256:{'0' * 64}"
    registry.manifests[f"pinned:sha256:{'0' * 64}"] = registry.manifests["pinned:1"]  # it lies
    first, second = sorted(puller().pull([pinned, wrong]), key=lambda outcome: outcome.error)
    assert (first.name, first.pulled) == (pinned, True)
    assert second.name == wrong
    assert "does not match provided manifest digest" in second.error
    image = find(PodmanStore(), pinned)
    assert image is not None
    assert image.digest == registry.digest(name)
    assert find(PodmanStore(), wrong) is None
    assert puller().pull([f"{repository}:1@{registry.digest(name)}"])[0].pulled is False


def set_age(name: str, seconds: float) -> None:
    mark_used(podman_root(), name)
    mark = podman_root() / "last-use" / file_name(name)
    os.utime(mark, (time.time() - seconds,) * 2)


def test_the_least_recently_used_makes_room(registry: Any) -> None:
    old, newer, used = (registry.add(f"room/{name}", kib=1024) for name in ("a", "b", "c"))
    assert all(outcome.pulled for outcome in puller().pull([used, old, newer]))
    for age, name in ((300, used), (200, old), (100, newer)):
        set_age(name, age)
    check_podman(["create", "--name=user", used, "/noise"])
    wanted = registry.add("room/d", kib=1024)
    limit = PodmanStore().used_bytes() + MIB // 2
    assert puller(max_bytes=limit).pull([wanted])[0].pulled
    assert PodmanStore().used_bytes() > limit  # the size of an image is not known beforehand
    final = registry.add("room/e", kib=64)
    assert puller(max_bytes=limit).pull([final, newer])[0].error == ""
    assert old not in held()
    assert {used, newer, wanted, final} <= held()
    check_podman(["rm", "user"])


def test_room_is_made_while_others_look_and_pull(registry: Any) -> None:
    names = [registry.add(f"busy/{number}", kib=512) for number in range(12)]
    assert all(outcome.pulled for outcome in puller().pull(names[:6]))
    end = threading.Event()

    def look() -> int:
        looks = 0
        while not end.is_set():
            PodmanStore().images()
            looks += 1
        return looks

    before, limit = held(), PodmanStore().used_bytes() - MIB
    with ThreadPoolExecutor(2) as pool:
        watching = [pool.submit(look) for _ in range(2)]
        outcomes = puller(concurrency=6, max_bytes=limit).pull(names[6:])
        end.set()
        assert all(future.result() for future in watching)
    assert [outcome.error for outcome in outcomes] == [""] * 6
    assert set(names[6:]) <= held()
    assert not before <= held()


def test_the_limit_ends_a_pull_half_way(registry: Any) -> None:
    small, large, last = (registry.add(f"full/{kib}", kib=kib) for kib in (1024, 8192, 64))
    registry.pause = 0.02
    for image in PodmanStore().images():
        PodmanStore().remove(image)
    limit = PodmanStore().used_bytes() + 5 * MIB
    outcomes = puller(concurrency=1, max_bytes=limit).pull([small, large, last])
    assert [outcome.pulled for outcome in outcomes] == [True, False, True]
    assert "the disk limit of 0.0 GiB is reached" in outcomes[1].error
    assert held() == {small, last}
    assert PodmanStore().used_bytes() <= limit
    assert leftovers() == []


def test_the_disk_is_never_filled(registry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prune, "MIN_FREE_BYTES", 1 << 60)
    name = registry.add("disk")
    assert "disk limit is reached" in puller().pull([name])[0].error
    assert registry.asked["disk"] == 0


def test_an_image_built_here_cannot_be_pulled() -> None:
    outcome = puller().pull(["localhost/skiff/nothing:1"])[0]
    assert "was not built on this machine" in outcome.error


def test_the_command_line_takes_task_specs(
    registry: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = registry.add("tasks/one")
    grade = {"kind": "script", "script": "true"}
    row = {"id": "t:1", "source": "t", "image": image, "prompt": "p", "grade": grade}
    lines = [json.dumps(row | {"id": f"t:{number}"}) for number in range(3)]
    (tmp_path / "tasks.jsonl").write_text("\n".join(lines))
    spec = f"tasks:{tmp_path}/tasks.jsonl"
    assert cli.main(["images", "pull", "--plain-http", spec]) == 0
    assert "1 pulled, 0 were there, 0 could not be had" in capsys.readouterr().out
    assert cli.main(["images", "pull", spec, "--image", f"{registry.url}/none:1"]) == 3
    assert "0 pulled, 1 were there, 1 could not be had" in capsys.readouterr().out
