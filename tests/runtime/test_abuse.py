"""Attacks on the two kinds of ports from outside: keys, sizes, slowness, names, archives.

After each of them a sandbox of the same server still answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import subprocess
import sys
import uuid
import zipfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from skiff.config import Config
from skiff.errors import ConfigError
from skiff.runtime.reading import FILE_BYTES
from skiff.sandbox.key import read_key_file

SECONDS = 60.0
SLOW_SECONDS = 60.0  # by then a client that drips is cut off
DRIP_SECONDS = 0.5
PIECE = b"x" * (1 << 16)


@pytest.fixture
async def sandbox(runtime_server: Any, debian_image: str) -> AsyncIterator[dict[str, Any]]:
    """The answer to /start of a sandbox that must still serve at the end of the test."""
    headers = {"X-API-Key": runtime_server.key}
    async with httpx.AsyncClient(
        base_url=runtime_server.url, headers=headers, timeout=SECONDS, trust_env=False
    ) as control:
        body = {"image": debian_image, "session_id": uuid.uuid4().hex, "working_dir": "/tmp"}
        started: dict[str, Any] = (await control.post("/start", json=body)).json()
        assert started["pod_status"] == "ready", started
        yield started
        async with _port(started) as port:
            done = await port.post("/skiff/run", json={"command": "true"})
            assert done.json()["exit_code"] == 0
        stopped = await control.post("/stop", json={"runtime_id": started["runtime_id"]})
        assert stopped.is_success


@pytest.fixture
async def port(sandbox: dict[str, Any]) -> AsyncIterator[httpx.AsyncClient]:
    async with _port(sandbox) as client:
        yield client


def _port(started: dict[str, Any]) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=started["url"],
        headers={"X-Session-API-Key": started["session_api_key"]},
        timeout=SECONDS,
        trust_env=False,
    )


async def _talk(
    url: str, head: bytes, piece: bytes, *, pause: float = 0, most: int = 1 << 40
) -> tuple[int, bytes]:
    """Send `head`, then `piece` again and again until the server ends the connection or `most`
    bytes have gone. (bytes sent, what the server said)"""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    said = asyncio.create_task(_hear(reader))
    sent = 0
    with contextlib.suppress(ConnectionError):
        writer.write(head)
        while not said.done() and sent < most:
            writer.write(piece)
            sent += len(piece)
            await writer.drain()
            await asyncio.sleep(pause)
    if sent < most:  # the server has ended it
        await said
    said.cancel()
    writer.close()
    return sent, said.result() if said.done() else b""


async def _hear(reader: asyncio.StreamReader) -> bytes:
    """What comes until the connection ends, in whatever way."""
    heard = bytearray()
    with contextlib.suppress(ConnectionError):
        while piece := await reader.read(1 << 16):
            heard += piece
    return bytes(heard)


def _head(method: str, path: str, *headers: str) -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", *headers, "", ""]).encode()


def _keys(runtime_server: Any, sandbox: dict[str, Any]) -> list[str]:
    session = sandbox["session_api_key"]
    return [f"X-API-Key: {runtime_server.key}", f"X-Session-API-Key: {session}"]


@pytest.mark.parametrize("what", ["control", "sandbox"])
async def test_huge_header(what: str, runtime_server: Any, sandbox: dict[str, Any]) -> None:
    url = runtime_server.url if what == "control" else sandbox["url"]
    for head in (b"GET /", b"GET /health HTTP/1.1\r\nX-Filler: ", b""):
        sent, said = await _talk(url, head, PIECE, most=64 << 20)
        assert sent < 16 << 20, "it was all taken"
        assert not said.startswith(b"HTTP/1.1 2"), said


@pytest.mark.parametrize(
    ("what", "method", "path"),
    [
        ("control", "POST", "/start"),
        ("sandbox", "POST", "/skiff/run"),
        ("sandbox", "PUT", "/skiff/file?path=/tmp/x"),
        ("sandbox", "POST", "/api/file/upload?path=/tmp/x"),
        ("sandbox", "POST", "/upload_file?destination=/tmp"),
        ("sandbox", "POST", "/execute_action"),
    ],
)
@pytest.mark.parametrize("length", ["Content-Length: 1000000000000", "Transfer-Encoding: chunked"])
async def test_endless_body(
    what: str, method: str, path: str, length: str, runtime_server: Any, sandbox: dict[str, Any]
) -> None:
    """Refused once it is larger than it may be; with a wrong key before it is read."""
    url = runtime_server.url if what == "control" else sandbox["url"]
    form = "Content-Type: multipart/form-data; boundary=b"
    kind = form if "upload" in path else "Content-Type: application/json"
    piece = PIECE if "Length" in length else b"%x\r\n%s\r\n" % (len(PIECE), PIECE)
    begin = b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
    if "Length" not in length:
        begin = b"%x\r\n%s\r\n" % (len(begin), begin)
    for keys, refusal in (
        (_keys(runtime_server, sandbox), b"413"),
        (["X-API-Key: wrong", "X-Session-API-Key: wrong"], b"401"),
    ):
        head = _head(method, path, kind, length, *keys) + (begin if kind == form else b"")
        sent, said = await _talk(url, head, piece, most=4 * FILE_BYTES)
        assert sent < (2 * FILE_BYTES if refusal == b"413" else 32 << 20)
        assert refusal in said.split(b"\r\n")[0] or said == b"", said[:200]


async def test_uploads_are_not_held_in_memory(runtime_server: Any, port: httpx.AsyncClient) -> None:
    server = psutil.Process(runtime_server.process.pid)
    before = server.memory_info().rss
    content = os.urandom(20 << 20)
    peak = 0
    uploads = [
        asyncio.create_task(
            port.post(f"/api/file/upload?path=/tmp/{number}", files={"file": ("f", content)})
        )
        for number in range(2)
    ]
    while not all(upload.done() for upload in uploads):
        peak = max(peak, server.memory_info().rss)
        await asyncio.sleep(0.02)
    assert [upload.result().json()["file_size"] for upload in uploads] == [len(content)] * 2
    assert peak - before < 16 << 20, "of 40 MiB"
    back = await port.get("/skiff/file?path=/tmp/1")
    assert back.content == content


async def test_slow_loris(runtime_server: Any, sandbox: dict[str, Any]) -> None:
    """Half a head and half a body, silent and dripping, on both ports at once."""
    keys = _keys(runtime_server, sandbox)
    body = ["Content-Type: application/json", "Content-Length: 1000"]
    attacks = []
    for url, path in ((runtime_server.url, "/start"), (sandbox["url"], "/skiff/run")):
        half_head = _head("POST", path, *keys)[:-2]
        half_body = _head("POST", path, *keys, *body) + b'{"command": "'
        attacks += [
            _talk(url, head, piece, pause=DRIP_SECONDS)
            for head, drip in ((half_head, b"X-A: b\r\n"), (half_body, b"x"))
            for piece in (b"", drip)
        ]
    async with _port(sandbox) as port:
        waiting = asyncio.gather(*attacks)
        for _ in range(20):
            done = await port.post("/skiff/run", json={"command": "true"})
            assert done.json()["exit_code"] == 0
        async with asyncio.timeout(SLOW_SECONDS):
            for _, said in await waiting:
                assert not said.startswith(b"HTTP/1.1 2"), said


async def test_many_silent_connections(runtime_server: Any, sandbox: dict[str, Any]) -> None:
    parts = urlsplit(sandbox["url"])
    open_ones = [await asyncio.open_connection(parts.hostname, parts.port) for _ in range(300)]
    async with _port(sandbox) as port:
        assert (await port.post("/skiff/run", json={"command": "true"})).is_success
    for _, writer in open_ones:
        writer.close()


async def test_paths(port: httpx.AsyncClient) -> None:
    """Every path endpoint takes absolute names of the sandbox only, and none ends as a 5xx."""
    calls: list[tuple[str, str, dict[str, Any]]] = [
        ("GET", "/skiff/file", {}),
        ("PUT", "/skiff/file", {"content": b"x"}),
        ("GET", "/api/file/download", {}),
        ("POST", "/api/file/upload", {"files": {"file": b"x"}}),
        ("GET", "/api/git/changes", {}),
        ("GET", "/api/git/diff", {}),
        ("GET", "/download_files", {}),
    ]
    bad = ["", "etc/passwd", "../etc/passwd", "/etc/\0passwd", "/" + "x" * 5000]
    odd = ["/dev/null", "/dev/stdin", "/proc/1/mem", "/dev/fd/0", "/" + "../" * 50, "//x", "/a\nb"]
    odd += ["/" + "x" * 300, "/\ufffd", "/$(touch /tmp/ran)'\"`touch /tmp/ran`"]
    for method, endpoint, content in calls:
        for path in bad:
            answer = await port.request(method, endpoint, params={"path": path}, **content)
            assert answer.status_code == 422, (endpoint, path, answer.text)
        for path in odd:
            answer = await port.request(method, endpoint, params={"path": path}, **content)
            assert answer.status_code < 500, (endpoint, path, answer.text)
    listing = await port.post("/list_files", json={"path": "/tmp"})
    assert "ran" not in listing.json()


def _zip(fill: Callable[[zipfile.ZipFile], None]) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("good", "good")
        fill(archive)
    return target.getvalue()


def _link() -> zipfile.ZipInfo:
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    return link


SLIPS: dict[str, Callable[[zipfile.ZipFile], None]] = {
    "dots": lambda archive: archive.writestr("../slipped", "x"),
    "dots inside": lambda archive: archive.writestr("a/../../slipped", "x"),
    "absolute": lambda archive: archive.writestr("/etc/slipped", "x"),
    "link": lambda archive: archive.writestr(_link(), "/etc"),
    "many": lambda archive: [archive.writestr(f"{n}", "") for n in range(10_000)] and None,
}


@pytest.mark.parametrize("slip", SLIPS)
async def test_zip_slip(slip: str, port: httpx.AsyncClient) -> None:
    """Refused before anything is written."""
    answer = await _unpack(port, _zip(SLIPS[slip]))
    assert answer.status_code == 400, answer.text
    assert (await port.post("/list_files", json={"path": "/tmp/to"})).json() == []
    assert "slipped" not in (await port.post("/list_files", json={"path": "/tmp"})).json()


async def test_zip_bombs_and_broken_zips(port: httpx.AsyncClient) -> None:
    bomb = _zip(lambda archive: archive.writestr("bomb", bytes(FILE_BYTES + 1)))
    good = _zip(lambda archive: None)
    lying = bytearray(good)
    at = lying.index(b"good") + 4
    lying[at : at + 4] = b"\xff\xff\xff\xff"  # not deflated data
    for content in (bomb, bytes(lying), good[:-30], good[10:], b"", b"PK\5\6", os.urandom(1000)):
        answer = await _unpack(port, content)
        assert answer.status_code == 400, (len(content), answer.text)
    assert (await _unpack(port, good)).is_success


async def test_tar_that_a_sandbox_forges(port: httpx.AsyncClient) -> None:
    """What calls itself tar in there may answer anything."""
    forge = r"""
        cat >/usr/local/bin/tar <<'END'
#!/usr/bin/env python3
import io, sys, tarfile
with tarfile.open(sys.argv[2], "w") as archive:
    archive.addfile(tarfile.TarInfo("../../slipped"), io.BytesIO())
END
        chmod +x /usr/local/bin/tar; mkdir /tmp/from
    """
    assert (await port.post("/skiff/run", json={"command": forge})).json()["exit_code"] == 0
    answer = await port.get("/download_files", params={"path": "/tmp/from"})
    assert answer.status_code == 400
    assert "leads out" in answer.json()["detail"]
    garbage = "printf '#!/bin/sh\\nhead -c 5000 /dev/urandom >$2' >/usr/local/bin/tar"
    await port.post("/skiff/run", json={"command": garbage})
    answer = await port.get("/download_files", params={"path": "/tmp/from"})
    assert answer.status_code == 400


async def _unpack(port: httpx.AsyncClient, content: bytes) -> httpx.Response:
    return await port.post(
        "/upload_file",
        params={"destination": "/tmp/to", "recursive": "true"},
        files={"file": ("a.zip", content)},
    )


async def test_flood_of_output(runtime_server: Any, port: httpx.AsyncClient) -> None:
    server = psutil.Process(runtime_server.process.pid)
    before = server.memory_info().rss
    flood = {"command": "cat /dev/zero & cat /dev/zero >&2", "timeout": 3}
    done = (await port.post("/skiff/run", json=flood)).json()
    assert done["timed_out"]
    assert done["truncated"]
    assert server.memory_info().rss - before < 64 << 20


async def test_every_failure_says_whose_fault_it_is(port: httpx.AsyncClient) -> None:
    failures = [
        await port.get("/skiff/file", params={"path": "/none"}),
        await port.post("/skiff/run", json={"command": 7}),
        await port.get("/nowhere"),
        await port.put("/health"),
        await port.post("/api/file/upload", params={"path": "/x"}, content=b"no form"),
        await port.get("/skiff/file", params={"path": "/x"}, headers={"X-Session-API-Key": "no"}),
    ]
    assert [answer.status_code for answer in failures] == [404, 422, 404, 405, 422, 401]
    for answer in failures:
        assert set(answer.json()) == {"detail", "infra_error"}
        assert answer.json()["infra_error"] is None


def test_no_option_of_the_server_touches_its_key() -> None:
    """The wrapper's options are these; none lets callers in without the key."""
    entrypoint = Path(__file__).parents[2] / "entrypoints" / "runtime"
    shown = subprocess.run(
        [sys.executable, entrypoint, "--help"], capture_output=True, text=True, check=True
    )
    options = {
        word.strip("[],") for word in shown.stdout.split() if word.strip("[").startswith("--")
    }
    known = {"--help", "--config", "--rendezvous", "--key-file", "--port", "--attempt", "--job"}
    assert options == known


@pytest.mark.parametrize("name", ["auth", "disable_auth", "key", "api_key", "insecure"])
def test_no_profile_touches_the_key(name: str, runtime_config: Callable[..., Config]) -> None:
    for value in (False, "", "none"):
        with pytest.raises(ConfigError, match=name):
            runtime_config(runtime={name: value})


@pytest.mark.parametrize(("content", "mode"), [("", 0o600), ("\n", 0o600), ("known", 0o644)])
def test_no_key_file_lets_everybody_in(content: str, mode: int, tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(content)
    path.chmod(mode)
    with pytest.raises(ConfigError):
        read_key_file(path)


async def test_no_variable_touches_the_key(
    launch_server: Callable[..., Any], sandbox_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AUTH", "DISABLE_AUTH", "RUNTIME_KEY", "RUNTIME_AUTH", "KEY"):
        for prefix in ("", "SKIFF_", "OH_", "OPENHANDS_"):
            monkeypatch.setenv(prefix + name, "" if name.endswith("KEY") else "0")
    server = launch_server(sandbox_config)
    async with httpx.AsyncClient(base_url=server.url, trust_env=False) as stranger:
        for headers in ({}, {"X-API-Key": ""}, {"X-API-Key": "0"}):
            assert (await stranger.get("/list", headers=headers)).status_code == 401
        known = {"X-API-Key": server.key}
        assert len(server.key) >= 32
        assert (await stranger.get("/list", headers=known)).is_success
