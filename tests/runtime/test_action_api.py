"""The V0 action endpoints, as plain HTTP, in real containers with and without bash."""

from __future__ import annotations

import io
import uuid
import zipfile
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

SECONDS = 60.0


@pytest.fixture(params=["debian", "busybox"])
async def port(
    request: pytest.FixtureRequest, runtime_server: Any, images: dict[str, str]
) -> AsyncIterator[httpx.AsyncClient]:
    """The port of a sandbox whose workdir is /tmp, with its key."""
    async with httpx.AsyncClient(timeout=SECONDS, trust_env=False) as client:
        control = {"X-API-Key": runtime_server.key}
        body = {
            "image": images[request.param],
            "session_id": uuid.uuid4().hex,
            "command": ["/openhands/micromamba/bin/micromamba", "run", "server"],
            "working_dir": "/tmp",
            "environment": {},
            "resource_factor": 1,
        }
        started = await client.post(f"{runtime_server.url}/start", json=body, headers=control)
        place = started.json()
        assert place["pod_status"] == "ready", place
        client.base_url = httpx.URL(place["url"])
        client.headers["X-Session-API-Key"] = place["session_api_key"]
        yield client
        stop = {"runtime_id": place["runtime_id"]}
        await client.post(f"{runtime_server.url}/stop", json=stop, headers=control)


async def act(
    port: httpx.AsyncClient, action: str, *, timeout: float = 30, **args: Any
) -> dict[str, Any]:
    body = {"id": 7, "source": "agent", "action": action, "args": args, "timeout": timeout}
    answer = await port.post("/execute_action", json={"action": body})
    assert answer.status_code == 200, answer.text
    observation: dict[str, Any] = answer.json()
    return observation


async def run(port: httpx.AsyncClient, command: str, **more: Any) -> tuple[int, str]:
    done = await act(port, "run", command=command, thought="", blocking=False, **more)
    assert done["observation"] == "run", done
    return done["extras"]["metadata"]["exit_code"], done["content"]


async def test_run(port: httpx.AsyncClient) -> None:
    done = await act(port, "run", command="echo out; echo err >&2; exit 3")
    assert (done["observation"], done["content"]) == ("run", "out\nerr")
    assert done["extras"]["command"] == "echo out; echo err >&2; exit 3"
    metadata = done["extras"]["metadata"]
    assert metadata["exit_code"] == 3
    assert (metadata["working_dir"], metadata["username"]) == ("/tmp", "root")
    assert len(metadata["hostname"]) > 0
    assert metadata["suffix"] == "\n[The command completed with exit code 3.]"
    assert set(metadata) == {
        "exit_code",
        "pid",
        "username",
        "hostname",
        "working_dir",
        "py_interpreter_path",
        "prefix",
        "suffix",
    }


async def test_folder_and_exported_variables_persist(port: httpx.AsyncClient) -> None:
    command = "mkdir \"it's a 'new' folder\"; cd it*; export TEXT='a\n\"b\" $c'; private=1"
    assert await run(port, command) == (0, "")
    done = await act(port, "run", command='pwd; echo "$TEXT"; echo "[$private]"')
    assert done["content"] == "/tmp/it's a 'new' folder\na\n\"b\" $c\n[]"
    assert done["extras"]["metadata"]["working_dir"] == "/tmp/it's a 'new' folder"
    await act(port, "write", path="here.txt", content="relative")
    assert await run(port, "cat here.txt") == (0, "relative")
    assert await run(port, "cd /; rm -r /tmp/it*; exit 5") == (5, "")
    assert await run(port, "pwd") == (0, "/")


async def test_folder_that_is_gone(port: httpx.AsyncClient) -> None:
    assert await run(port, "mkdir gone; cd gone; rmdir ../gone") == (0, "")
    code, text = await run(port, "pwd")
    assert (code, text.splitlines()[-1]) == (0, "/tmp")


async def test_broken_syntax_and_killed_shell_keep_the_state(port: httpx.AsyncClient) -> None:
    await run(port, "cd /etc")
    code, text = await run(port, "if then")
    assert code != 0
    assert "then" in text
    assert (await run(port, "cd /; kill -9 $$"))[0] == 137
    assert await run(port, "pwd") == (0, "/etc")


async def test_timeout(port: httpx.AsyncClient) -> None:
    done = await act(port, "run", command="echo begun; sleep 1000", timeout=0.5)
    assert done["content"] == "begun"
    metadata = done["extras"]["metadata"]
    assert metadata["exit_code"] == -1
    assert "timed out after 0.5 seconds" in metadata["suffix"]
    for more in ({"command": ""}, {"command": "C-c", "is_input": True}):
        answer = await act(port, "run", **more)
        assert (answer["observation"], answer["extras"]) == ("error", {"error_id": ""})
    assert await run(port, "echo on") == (0, "on")


async def test_read_and_write(port: httpx.AsyncClient) -> None:
    written = await act(port, "write", path="/tmp/new/file", content="a\nb\nc", start=0, end=-1)
    assert (written["observation"], written["extras"]) == ("write", {"path": "/tmp/new/file"})
    read = await act(port, "read", path="/tmp/new/file", start=0, end=-1)
    assert (read["observation"], read["content"]) == ("read", "a\nb\nc\n")
    assert read["extras"]["path"] == "/tmp/new/file"
    await act(port, "write", path="/tmp/new/file", content="B", start=1, end=2)
    read = await act(port, "read", path="/tmp/new/file", start=1, end=3)
    assert read["content"] == "B\nc\n"
    missing = await act(port, "read", path="/tmp/none")
    assert missing["observation"] == "error"
    assert missing["content"].startswith("File not found: /tmp/none. Your current working")
    folder = await act(port, "read", path="/tmp")
    assert "not a regular file" in folder["content"]
    await run(port, r"printf '\377' >/tmp/binary")
    assert (await act(port, "read", path="/tmp/binary"))["content"] == "ERROR_BINARY_FILE"


async def test_edit(port: httpx.AsyncClient) -> None:
    path = "/tmp/script"

    async def edit(command: str, **args: Any) -> str:
        done = await act(port, "edit", path=path, command=command, impl_source="oh_aci", **args)
        assert (done["observation"], done["extras"]["path"]) == ("edit", path)
        content: str = done["content"]
        return content

    created = await edit("create", file_text="one\ntwo\n")
    assert created == f"File created successfully at: {path}"
    assert (await edit("create", file_text="again")).startswith("ERROR:\n")
    await run(port, f"chmod 755 {path}")
    assert "     2\tTWO\n" in await edit("str_replace", old_str="two", new_str="TWO")
    assert "ERROR:" in await edit("str_replace", old_str="none", new_str="")
    assert "Multiple occurrences" in await edit("str_replace", old_str="\n", new_str="")
    assert "     1\tzero\n" in await edit("insert", insert_line=0, new_str="zero")
    assert "ERROR:" in await edit("insert", insert_line=99, new_str="far")
    assert "     3\tTWO\n" in await edit("view", view_range=[2, 3])
    assert "ERROR:" in await edit("undo_edit")
    assert await run(port, f"stat -c %a {path}; cat {path}") == (0, "755\nzero\none\nTWO")
    view = await act(port, "read", path=path, impl_source="oh_aci")
    assert "     2\tone\n" in view["content"]
    path = "/tmp"
    assert "/tmp/script\n" in await edit("view")


async def test_other_actions_are_refused_by_name(port: httpx.AsyncClient) -> None:
    for action in ("think", "run_ipython", "browse_interactive", "call_tool_mcp"):
        done = await act(port, action, thought="hm")
        assert done["observation"] == "error"
        assert done["content"] == f"{action} is not served here, only run, read, write, edit"
    assert (await act(port, "run"))["observation"] == "error"
    assert "path" in (await act(port, "read"))["content"]
    assert "NUL" in (await act(port, "read", path="/a\0b"))["content"]


async def test_list_files(port: httpx.AsyncClient) -> None:
    await run(port, "mkdir -p l/sub l/.hidden; cd l; touch b A .dot 'new\nline'; ln -s none link")
    listed = await port.post("/list_files", json={"path": "/tmp/l"})
    assert listed.json() == [".hidden/", "sub/", ".dot", "A", "b", "link", "new\nline"]
    assert (await port.post("/list_files", json={"path": "l"})).json() == listed.json()
    assert "l/" in (await port.post("/list_files", json={"path": None})).json()
    assert (await port.post("/list_files", json={"path": "/none"})).json() == []


def zipped(files: dict[str, bytes]) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return target.getvalue()


async def test_files_up_and_down(port: httpx.AsyncClient) -> None:
    params = {"destination": "/tmp/up", "recursive": "false"}
    answer = await port.post("/upload_file", params=params, files={"file": ("a/b.bin", b"\0\xff")})
    assert answer.json() == {"filename": "b.bin", "destination": "/tmp/up", "recursive": False}
    tree = {"one.txt": b"1", "deep folder/two": bytes(range(256)) * 4000, "deep folder/x/3": b""}
    archive = {"file": ("tree.zip", zipped(tree))}
    answer = await port.post("/upload_file", params=params | {"recursive": "true"}, files=archive)
    assert answer.status_code == 200, answer.text
    await run(port, "ln -s /etc/passwd /tmp/up/link; mkfifo /tmp/up/pipe")
    down = await port.get("/download_files", params={"path": "/tmp/up"})
    assert int(down.headers["Content-Length"]) == len(down.content)
    with zipfile.ZipFile(io.BytesIO(down.content)) as found:
        content = {name: found.read(name) for name in found.namelist()}
    assert content == tree | {"b.bin": b"\0\xff"}
    down = await port.get("/download_files", params={"path": "/tmp/up/one.txt"})
    with zipfile.ZipFile(io.BytesIO(down.content)) as found:
        assert found.read("one.txt") == b"1"
    assert (await port.get("/download_files", params={"path": "/none"})).status_code == 404
    assert (await port.get("/download_files", params={"path": "tmp"})).status_code == 422
    assert (await run(port, "ls -A /tmp | grep skiff-"))[1] in ("", ".skiff-shell")


async def test_what_the_client_asks_at_its_start(port: httpx.AsyncClient) -> None:
    assert (await port.get("/alive")).json() == {"status": "ok"}
    assert (await port.get("/server_info")).json()["idle_time"] >= 0
    assert (await port.get("/vscode/connection_token")).json() == {"token": None}
    updated = await port.post("/update_mcp_server", json=[])
    assert (updated.status_code, updated.json()["router_error_log"]) == (200, "")
    updated = await port.post("/update_mcp_server", json=[{"name": "x", "command": "y"}])
    assert updated.json()["router_error_log"]
