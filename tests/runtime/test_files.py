"""Files into and out of real containers."""

from __future__ import annotations

from typing import Any

import pytest

SECONDS = 30.0


@pytest.mark.parametrize("image", ["debian", "busybox"])
@pytest.mark.parametrize("size", [0, 1, 30_000, 3_000_000])
async def test_round_trip(image: str, size: int, images: Any, opened: Any) -> None:
    data = bytes(range(256)) * (size // 256) + bytes(range(size % 256))
    async with opened(images[image]) as sandbox:
        path = "/new/deep folder/it's $x.bin"
        await sandbox.write(path, b"older and longer" * 4)
        await sandbox.write(path, data, mode=0o750)
        assert await sandbox.read(path) == data
        done = await sandbox.run('stat -c "%a %s" "/new/deep folder/"*', timeout=SECONDS)
        assert done.text == f"750 {size}\n"


async def test_missing_file(images: Any, opened: Any) -> None:
    async with opened(images["busybox"]) as sandbox:
        with pytest.raises(FileNotFoundError) as caught:
            await sandbox.read("/no/such")
        assert caught.value.filename == "/no/such"


async def test_what_cannot_be_read_or_written(images: Any, opened: Any) -> None:
    async with opened(images["plain"]) as sandbox:  # whose user is not root
        with pytest.raises(OSError, match="not a regular file"):
            await sandbox.read("/etc")
        with pytest.raises(OSError, match="denied"):
            await sandbox.write("/etc/new", b"")
        with pytest.raises(OSError, match="absolute"):
            await sandbox.write("relative", b"")
        await sandbox.write("/home/agent/mine", b"ok")
        assert await sandbox.read("/home/agent/mine") == b"ok"


async def test_links_and_dots_stay_inside(images: Any, opened: Any) -> None:
    async with opened(images["busybox"]) as sandbox:
        await sandbox.run("ln -s ../../../../../../etc/marker /tmp/link", timeout=SECONDS)
        await sandbox.write("/tmp/link", b"inside")
        assert await sandbox.read("/tmp/../../../../etc/marker") == b"inside"


@pytest.mark.parametrize("image", ["debian", "busybox"])
async def test_only_regular_files_move(image: str, images: Any, opened: Any) -> None:
    """A FIFO would hold the server until its other end opens, a device without end."""
    async with opened(images[image]) as sandbox:
        make = "mkfifo /tmp/pipe; ln -s /dev/zero /tmp/link; mkdir /tmp/folder"
        assert (await sandbox.run(make, timeout=SECONDS)).exit_code == 0
        for path in ("/tmp/pipe", "/tmp/link", "/dev/zero", "/dev/tty", "/tmp/folder", "/"):
            with pytest.raises(OSError, match="not a regular file"):
                await sandbox.read(path)
            with pytest.raises(OSError, match="not a regular file"):
                await sandbox.write(path, b"content")
        assert (await sandbox.run("echo on", timeout=SECONDS)).text == "on\n"


async def test_file_that_grows_without_end(images: Any, opened: Any) -> None:
    async with opened(images["busybox"]) as sandbox:
        await sandbox.run("truncate -s 70000000 /tmp/large", timeout=SECONDS)
        with pytest.raises(OSError, match="larger than"):
            await sandbox.read("/tmp/large")
        assert (await sandbox.run("echo on", timeout=SECONDS)).text == "on\n"
