"""The dispatcher, run by each shell that an image may call `sh`."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from skiff.runtime import shell

SHELLS = [["dash"], ["busybox", "sh"], ["bash"], ["bash", "--posix"]]
ANY_BYTES_BUT_NUL = st.binary(max_size=200).map(lambda data: data.replace(b"\0", b"\1"))

few_examples = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(params=SHELLS, ids=" ".join)
def sh(request: pytest.FixtureRequest) -> list[str]:
    found: list[str] = request.param
    return found


def run(sh: list[str], *lines: bytes) -> tuple[bytes, bytes]:
    done = subprocess.run(
        sh, input=shell.dispatcher("R") + b"".join(lines), capture_output=True, check=True
    )
    assert done.stdout.startswith(b"R 0\n")
    assert done.stderr.startswith(b"R 0\n")
    return done.stdout.removeprefix(b"R 0\n"), done.stderr.removeprefix(b"R 0\n")


def command(text: str, cwd: str = "/") -> bytes:
    return shell.command_line("N", cwd, text, processes=4096)


def test_streams_exit_code_and_folder(sh: list[str]) -> None:
    out, err = run(sh, command("pwd; echo problem >&2; exit 7", cwd="/usr"))
    assert (out, err) == (b"/usr\nN 7\n", b"problem\nN 7\n")


def test_commands_are_separate_shells_without_input(sh: list[str]) -> None:
    out, _ = run(sh, command("x=1; cd /usr; cat"), command('echo "[$x]$PWD"'))
    assert out == b"N 0\n[]/\nN 0\n"


def test_missing_folder_fails_the_command(sh: list[str]) -> None:
    out, err = run(sh, command("echo ran", cwd="/no/such"))
    assert b"ran" not in out
    assert b"/no/such" in err
    assert not out.endswith(b"N 0\n")


def test_quotes_and_newlines_pass(sh: list[str]) -> None:
    out, _ = run(sh, command("printf '%s\\n' \"it's\" 'a\nb' \\\\ '$HOME'"))
    assert out == b"it's\na\nb\n\\\n$HOME\nN 0\n"


def test_command_longer_than_one_argument(sh: list[str]) -> None:
    text = "echo '" + "x" * (shell.COMMAND_BYTES - 20) + "' | wc -c"
    out, _ = run(sh, command(text))
    assert out == b"%d\nN 0\n" % (shell.COMMAND_BYTES - 19)


def test_background_job_does_not_hold_the_answer(sh: list[str]) -> None:
    process = subprocess.Popen(sh, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(shell.dispatcher("R") + command("sleep 1000 & echo $!"))
    process.stdin.flush()
    lines = [process.stdout.readline() for _ in range(3)]
    process.stdin.close()
    process.wait()
    subprocess.run(["kill", lines[1].decode().strip()], check=True)  # fails if it is gone
    process.stdout.close()
    assert lines[2] == b"N 0\n"


@pytest.mark.parametrize(
    ("number", "text", "code"),
    [
        (signal.SIGUSR1, "sleep 1000 & sleep 1000; echo survived", 128 + signal.SIGTERM),
        (signal.SIGUSR2, "trap '' TERM; sleep 1000; echo survived", 128 + signal.SIGKILL),
    ],
    ids=["terminate", "kill"],
)
def test_signal_ends_the_group(sh: list[str], number: int, text: str, code: int) -> None:
    process = subprocess.Popen(sh, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(shell.dispatcher("R") + command(f"echo $$; {text}"))
    process.stdin.flush()
    process.stdout.readline()
    group = int(process.stdout.readline())
    process.send_signal(number)
    assert process.stdout.readline() == f"N {code}\n".encode()
    assert not _members(group)
    process.stdin.write(command("echo next"))
    process.stdin.close()
    assert process.stdout.read() == b"next\nN 0\n"
    process.stdout.close()
    process.wait()


def _members(group: int) -> list[str]:
    """Living processes of a group; one that was just killed may take a moment to go."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        stats = [_stat(path) for path in Path("/proc").glob("[0-9]*/stat")]
        found = [" ".join(stat) for stat in stats if stat[2:3] == [str(group)] and stat[0] != "Z"]
        if not found:
            return []
        time.sleep(0.02)
    return found


def _stat(path: Path) -> list[str]:
    try:
        return path.read_text().rpartition(") ")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


@few_examples
@given(word=ANY_BYTES_BUT_NUL)
def test_any_bytes_pass_as_argument(sh: list[str], word: bytes) -> None:
    out, _ = run(sh, shell.script_line("N", 'printf %s "$1"', [word], processes=4096))
    assert out == word + b"N 0\n"


@few_examples
@given(data=st.binary(max_size=300))
def test_any_bytes_pass_as_file(sh: list[str], tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "new folder" / "a 'file'"
    target = str(path).encode()
    first = shell.script_line("N", shell.WRITE_FIRST, [target, shell.escape(data)], processes=4096)
    more = shell.script_line("N", shell.WRITE_MORE, [target, shell.escape(data)], processes=4096)
    run(sh, first, more)
    assert path.read_bytes() == data + data


@pytest.mark.parametrize(
    "kept", [3, 20, 40, 60, 70, -18, -16, -12, -5, -1], ids=lambda kept: f"kept-{kept}"
)
def test_line_that_a_killed_server_left_is_never_run(
    sh: list[str], tmp_path: Path, kept: int
) -> None:
    line = command(f"touch '{tmp_path}/ran' 'it'\\''s' \"$x\"; echo ran")
    out, _ = run(sh, line[:kept], shell.resync(), shell.dispatcher("S"), command("echo next"))
    assert out == b"S 0\nnext\nN 0\n"
    assert not list(tmp_path.iterdir())


def test_every_cut_of_a_line(sh: list[str]) -> None:
    line = command("echo 'it'\\''s' ran")
    cuts = [line[:kept] + shell.resync() for kept in range(len(line))]
    assert run(sh, *cuts, command("echo next"))[0] == b"next\nN 0\n"
    assert run(sh, line)[0] == b"it's ran\nN 0\n"
