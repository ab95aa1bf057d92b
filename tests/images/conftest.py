"""A podman store of the tests' own, and a registry that can be made to fail."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import random
import subprocess
import tarfile
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from skiff.podman import end_pause_process, podman_root, podman_run_dir, run_podman

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG = "application/vnd.docker.container.image.v1+json"
LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
CHUNK = 1 << 16


@pytest.fixture(scope="module")
def podman_store() -> Iterator[Path]:
    """The root of an empty podman store; SKIFF_PODMAN_ROOT points to it."""
    root = Path(tempfile.mkdtemp(prefix="skiff-store-"))
    root.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKIFF_PODMAN_ROOT", str(root))
        yield podman_root()
        run_podman(["rm", "--all", "--force", "--time=0"])
        run_podman(["image", "rm", "--all", "--force"])
        end_pause_process()
        remove = [] if os.getuid() == 0 else ["unshare", "--map-auto", "--map-root-user"]
        subprocess.run([*remove, "rm", "-rf", root, podman_run_dir()], check=True)


@dataclass
class Registry:
    """A registry of the v2 protocol, on this host and without TLS, as far as a pull needs it.

    broken     repository -> how many requests for its layers end half-way
    failing    repository -> how many requests for its manifest are answered with status 500
    pause      seconds between two pieces of a layer
    sending    set while a layer is on its way
    fetched    how often each repository's layers were asked for
    """

    url: str
    manifests: dict[str, bytes] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    broken: Counter[str] = field(default_factory=Counter)
    failing: Counter[str] = field(default_factory=Counter)
    pause: float = 0.0
    sending: threading.Event = field(default_factory=threading.Event)
    fetched: Counter[str] = field(default_factory=Counter)
    asked: Counter[str] = field(default_factory=Counter)

    def add(self, repository: str, *, kib: int = 64) -> str:
        """Make an image of one layer that holds one file of noise; return its name."""
        raw = io.BytesIO()
        noise = random.Random(repository).randbytes(kib << 10)
        with tarfile.open(fileobj=raw, mode="w") as archive:
            entry = tarfile.TarInfo("noise")
            entry.size = len(noise)
            archive.addfile(entry, io.BytesIO(noise))
        layer = gzip.compress(raw.getvalue(), 1)
        config = {
            "architecture": "amd64",
            "os": "linux",
            "created": "2024-01-01T00:00:00Z",
            "config": {"Cmd": ["/noise"]},
            "rootfs": {"type": "layers", "diff_ids": [sha256(raw.getvalue())]},
            "history": [{"created": "2024-01-01T00:00:00Z"}],
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self._keep(json.dumps(config).encode(), CONFIG),
            "layers": [self._keep(layer, LAYER)],
        }
        content = json.dumps(manifest).encode()
        self.manifests[f"{repository}:1"] = content
        self.manifests[f"{repository}:{sha256(content)}"] = content
        return f"{self.url}/{repository}:1"

    def digest(self, name: str) -> str:
        """The digest of an image's manifest."""
        return sha256(self.manifests[name.removeprefix(f"{self.url}/")])

    def _keep(self, blob: bytes, kind: str) -> dict[str, object]:
        self.blobs[sha256(blob)] = blob
        return {"mediaType": kind, "size": len(blob), "digest": sha256(blob)}


def sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@pytest.fixture
def registry() -> Iterator[Registry]:
    """A registry with no images yet."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = self.path.removeprefix("/v2/").split("/")
            if self.path == "/v2/":
                self.answer(200, b"{}", "application/json")
            elif parts[-2] == "manifests":
                self.manifest("/".join(parts[:-2]), parts[-1])
            else:
                self.blob("/".join(parts[:-2]), parts[-1])

        do_HEAD = do_GET  # noqa: N815

        def manifest(self, repository: str, reference: str) -> None:
            made.asked[repository] += 1
            content = made.manifests.get(f"{repository}:{reference}")
            if made.failing[repository] > 0:
                made.failing[repository] -= 1
                self.answer(500, b"out of order", "text/plain")
            elif content is None:
                error = {"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}
                self.answer(404, json.dumps(error).encode(), "application/json")
            else:
                self.answer(200, content, MANIFEST)

        def blob(self, repository: str, digest: str) -> None:
            content = made.blobs[digest]
            if content.startswith(b"{"):
                self.answer(200, content, CONFIG)
                return
            made.fetched[repository] += 1
            self.head(200, len(content), LAYER)
            if made.broken[repository] > 0:
                made.broken[repository] -= 1
                content = content[: len(content) // 2]
                self.close_connection = True
            made.sending.set()
            for start in range(0, len(content), CHUNK):
                self.wfile.write(content[start : start + CHUNK])
                time.sleep(made.pause)

        def answer(self, status: int, content: bytes, kind: str) -> None:
            self.head(status, len(content), kind)
            if self.command == "GET":
                self.wfile.write(content)

        def head(self, status: int, length: int, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(length))
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            return  # a puller that went away

    server = Server(("127.0.0.1", 0), Handler)
    made = Registry(f"localhost:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield made
    server.shutdown()
    thread.join()
    server.server_close()
