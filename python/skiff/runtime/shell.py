"""The program of a sandbox's first process: the image's own `sh`, reading functions and calls
from its stdin.

Nothing is put into the image. Each command is one line of shell, its words in single quotes, so any
bytes but NUL pass unchanged. A command gets a fresh shell (bash where the image has it), its own
session and process group, and /dev/null as stdin. Its output goes straight to the two streams of
the container; when its first process has ended, the dispatcher prints `<nonce> <exit code>` on
both. So a background job never delays an answer; what it prints later belongs to the next command,
as in a terminal. SIGKILL to every process (`kill -9 -1`) does not reach the dispatcher.

A server may die in the middle of a line. `resync` ends whatever is open, quotes included, and a
line that is not whole is never run: it must have as many words as it says, the last one being
`$skiff_shell`.

Works in dash, busybox ash and bash (their `ulimit` names processes -u or -p). A command may have
fewer processes than the sandbox, so a fork bomb leaves the dispatcher room to fork. Where the image
lacks `setsid`, a timeout ends every process of the sandbox but the first.
"""

from __future__ import annotations

from collections.abc import Sequence

WORD_BYTES = 100_000  # the kernel takes 128 KiB at most as one argument
COMMAND_BYTES = 1_000_000  # and about 2 MiB as all arguments together

SPARE_PIDS = 8  # processes that a container may have beyond those of its commands

# Signals to the first process and what they end.
TERMINATE = "SIGUSR1"  # SIGTERM to the running command's group
KILL = "SIGUSR2"  # SIGKILL to the running command's group
KILL_ALL = "SIGHUP"  # SIGKILL to every process of the sandbox but the first
PAUSE = "SIGTSTP"  # SIGSTOP to every process of the sandbox but the first
RESUME = "SIGCONT"  # SIGCONT to them

_DISPATCHER = rb"""
skiff_pid= skiff_hit= skiff_setsid= skiff_shell=sh skiff_ulimit=-p
command -v setsid >/dev/null && skiff_setsid=setsid
command -v bash >/dev/null && skiff_shell=bash
(ulimit -u) >/dev/null 2>&1 && skiff_ulimit=-u
skiff_end() {
    skiff_hit=1
    if [ -z "$skiff_pid" ]; then return; fi
    if [ -z "$skiff_setsid" ]; then kill -s "$1" -- -1
    else kill -s "$1" -- "-$skiff_pid" || kill -s "$1" "$skiff_pid"; fi 2>/dev/null
}
trap 'skiff_end TERM' USR1
trap 'skiff_end KILL' USR2
trap 'skiff_hit=1; kill -s KILL -- -1 2>/dev/null' HUP
trap 'skiff_hit=1; kill -s STOP -- -1 2>/dev/null' TSTP
trap 'skiff_hit=1; kill -s CONT -- -1 2>/dev/null' CONT
skiff_run() {
    eval "skiff_last=\${$#}"
    if [ "$#" != "$2" ] || [ "$skiff_last" != "$skiff_shell" ]; then return; fi
    skiff_nonce=$1 skiff_processes=$3 skiff_cwd=$4
    shift 4
    skiff_words= skiff_word=1
    while [ $skiff_word -lt $# ]; do
        skiff_words="$skiff_words \"\${$skiff_word}\"" skiff_word=$((skiff_word + 1))
    done
    (ulimit $skiff_ulimit "$skiff_processes"
    cd -- "$skiff_cwd" && eval "exec $skiff_setsid $skiff_words") </dev/null &
    skiff_pid=$!
    while :; do
        skiff_hit=
        wait "$skiff_pid" 2>/dev/null
        skiff_code=$?
        if [ -z "$skiff_hit" ]; then break; fi
    done
    skiff_pid=
    echo "$skiff_nonce $skiff_code"
    echo "$skiff_nonce $skiff_code" >&2
}
"""

# Internal file operations, run by `sh -c`. Their exit codes: 0 done, 1 with the reason on stderr.
NOT_FOUND = 44
# Only regular files: opening a FIFO would wait for its other end, a device would never end.
_REGULAR = 'if [ -e "$1" ] && [ ! -f "$1" ]; then echo "not a regular file" >&2; exit 1; fi; '
# `dd` moves to the offset $2; the pieces themselves are `head`'s, since a read may come short.
READ = (
    f'{_REGULAR}if [ ! -e "$1" ]; then exit {NOT_FOUND}; fi; exec <"$1" || exit 1; '
    'if [ "$2" -gt 0 ]; then dd bs=1 skip="$2" count=0 2>/dev/null || '
    '{ echo "no dd to read on with" >&2; exit 1; }; fi; exec head -c "$3"'
)
_PARENTS = 'case $1 in */*) mkdir -p -- "${1%/*}/" || exit;; esac; '
WRITE_FIRST = f'{_REGULAR}{_PARENTS}file=$1; shift; printf %b "$@" >"$file"'
WRITE_MORE = 'file=$1; shift; printf %b "$@" >>"$file"'
SET_MODE = 'chmod -- "$2" "$1"'
CHUNK_BYTES = 25_000  # of a file in one word; an escaped byte takes five
PIECE_BYTES = 12 * CHUNK_BYTES  # of a file in one line


def quote(word: bytes) -> bytes:
    """`word` in single quotes for a POSIX shell; it must not hold NUL."""
    return b"'" + word.replace(b"'", b"'\\''") + b"'"


def dispatcher(nonce: str) -> bytes:
    """The first process's program; it answers once, as if it were a command."""
    return _DISPATCHER + answer(nonce)


def answer(nonce: str) -> bytes:
    """The line that only answers, as if it were a command."""
    word = f"echo '{nonce} 0'"
    return f"{word}; {word} >&2\n".encode()


def resync() -> bytes:
    """Ends a line that was begun by another server, whether it stands in single quotes or not."""
    return b"""_'"'" #"\n"""


def command_line(nonce: str, cwd: str, command: str, *, processes: int) -> bytes:
    """The line that runs `command` in a fresh shell. `command` holds at most COMMAND_BYTES."""
    text = command.encode(errors="surrogateescape")
    words = [text]
    if len(text) > WORD_BYTES:
        words = [text[at : at + WORD_BYTES] for at in range(0, len(text), WORD_BYTES)]
        joined = b"".join(b"${%d}" % (number + 1) for number in range(len(words)))
        words = [b'eval "' + joined + b'"', b"skiff", *words]
    return _call(nonce, processes, cwd, b"$skiff_shell", words)


def script_line(nonce: str, script: str, arguments: Sequence[bytes], *, processes: int) -> bytes:
    """The line that runs one of the scripts above by `sh`, whatever other shells there are."""
    return _call(nonce, processes, "/", b"sh", [script.encode(), b"sh", *arguments])


def escape(data: bytes) -> bytes:
    """`data` for `printf %b`: backslash and NUL as octal escapes, all else as it is."""
    return data.replace(b"\\", b"\\0134").replace(b"\0", b"\\0000")


def _call(nonce: str, processes: int, cwd: str, program: bytes, words: Sequence[bytes]) -> bytes:
    """`program` is one word of shell; it is called with -c and `words`."""
    folder = quote(cwd.encode(errors="surrogateescape"))
    number = 4 + 2 + len(words) + 1
    head = b"skiff_run %s %d %d %s %s -c " % (nonce.encode(), number, processes, folder, program)
    return head + b" ".join(quote(word) for word in words) + b" $skiff_shell\n"
