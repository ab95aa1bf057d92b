"""What a sandbox can't do: to its host, to its neighbours, beyond its limits."""

from __future__ import annotations

from typing import Any

SECONDS = 60.0
HOG = "head -c 300000000 /dev/zero | tail"  # holds all of it, as one line


async def test_memory(images: Any, opened: Any) -> None:
    async with opened(images["busybox"], memory_mib=64) as sandbox:
        done = await sandbox.run(HOG, timeout=SECONDS)
        assert done.exit_code == 137, done
        assert (await sandbox.run("echo on", timeout=SECONDS)).text == "on\n"


async def test_fork_bomb(images: Any, opened: Any) -> None:
    async with opened(images["debian"], pids=24) as bombed, opened(images["debian"]) as neighbour:
        done = await bombed.run("bomb() { bomb | bomb & }; bomb; sleep 1", timeout=2)
        assert b"fork" in done.stderr
        assert (await neighbour.run("ls / | wc -l", timeout=SECONDS)).exit_code == 0
        assert (await bombed.run("kill -9 -1", timeout=SECONDS)).exit_code is not None
        assert (await bombed.run("echo on | cat", timeout=SECONDS)).text.endswith("on\n")


async def test_single_file(images: Any, opened: Any) -> None:
    async with opened(images["busybox"], disk_mib=8) as sandbox:
        done = await sandbox.run("head -c 100000000 /dev/zero > /big", timeout=SECONDS)
        assert done.exit_code != 0
        assert (await sandbox.run("stat -c %s /big", timeout=SECONDS)).text == f"{8 << 20}\n"


async def test_disk(images: Any, opened: Any) -> None:
    async with opened(images["busybox"], disk_mib=32) as sandbox:
        command = "for n in 1 2 3; do head -c 20m /dev/zero > /f$n; done; sleep 1000"
        done = await sandbox.run(command, timeout=SECONDS)
        assert done.exit_code == 137
        assert b"MiB of its 32 MiB of disk" in done.stderr
        assert (await sandbox.run("rm /f*; echo on", timeout=SECONDS)).text == "on\n"


async def test_no_network(images: Any, opened: Any) -> None:
    async with opened(images["busybox"]) as sandbox:
        assert (await sandbox.run("ls /sys/class/net", timeout=SECONDS)).text == "lo\n"


async def test_no_new_rights(images: Any, opened: Any) -> None:
    async with opened(images["debian"]) as sandbox:
        done = await sandbox.run("grep NoNewPrivs /proc/self/status", timeout=SECONDS)
        assert done.text.split() == ["NoNewPrivs:", "1"]
        done = await sandbox.run("mknod /dev/x b 8 0 || mount -t tmpfs none /mnt", timeout=SECONDS)
        assert done.exit_code != 0
        # Root in there is nobody special out here.
        done = await sandbox.run("cat /proc/self/uid_map", timeout=SECONDS)
        inside, outside, *_ = done.text.split()
        assert inside == "0"
        assert outside != "0"


async def test_no_host_mounts(images: Any, opened: Any) -> None:
    async with opened(images["debian"]) as sandbox:
        done = await sandbox.run("cut -d' ' -f2,3 /proc/mounts", timeout=SECONDS)
        mounts = dict(line.split(" ") for line in done.text.splitlines())
        virtual = ("proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2", "devtmpfs")
        kinds = {place: kind for place, kind in mounts.items() if kind not in virtual}
        assert kinds.pop("/") == "overlay"
        # Single files that podman makes for the container, and masked devices.
        allowed = ("/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/run/.containerenv", "/dev/")
        assert [place for place in kinds if not place.startswith(allowed)] == []
