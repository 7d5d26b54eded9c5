"""Published datasets from a hub to figures: a server with the hub's answers, and no other hub known."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from tests.test_prepare import jacwir, jqara, miracl

ROOT = Path(__file__).parents[1]
COMMIT = "0123456789abcdef0123456789abcdef01234567"  # what "main" stands for here


class Hub:
    """What a folder OWNER/NAME/file holds, as huggingface.co answers for it.

    Attributes:
        folder: of the repositories.
        asked: method and path of every request.
        cut: names of files that end after half of their bytes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[tuple[str, str]] = []
        self.cut: set[str] = set()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.answer(self)

            do_HEAD = do_GET

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(request.path).path)
        self.asked.append((request.command, path))
        if found := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/(revision|tree)/([^/]+)", path):
            folder = self.folder / found[1]
            files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
            names = [file.relative_to(folder).as_posix() for file in files]
            commit = COMMIT if found[3] == "main" else found[3]
            if found[2] == "revision":
                siblings = [{"rfilename": name} for name in names]
                answer: Any = {"id": found[1], "sha": commit, "siblings": siblings}
            else:
                answer = [
                    {"type": "file", "path": name, "size": file.stat().st_size, "oid": _oid(file)}
                    for name, file in zip(names, files, strict=True)
                ]
            heads = {} if files else {"X-Error-Code": "RepoNotFound"}
            self._send(request, 200 if files else 404, json.dumps(answer).encode(), "application/json", heads)
        elif found := re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            file = self.folder / found[1] / found[3]
            if not file.is_file():
                self._send(request, 404, b"", "text/plain", {"X-Error-Code": "EntryNotFound"})
                return
            heads = {"ETag": f'"{_oid(file)}"', "X-Repo-Commit": found[2].replace("main", COMMIT)}
            self._send(request, 200, file.read_bytes(), "application/octet-stream", heads, file.name)
        else:
            self._send(request, 404, b"", "text/plain", {})

    def _send(
        self,
        request: BaseHTTPRequestHandler,
        status: int,
        body: bytes,
        kind: str,
        heads: dict[str, str],
        name: str = "",
    ) -> None:
        request.send_response(status)
        for key, value in {"Content-Type": kind, "Content-Length": str(len(body)), **heads}.items():
            request.send_header(key, value)
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body[: len(body) // 2] if name in self.cut else body)


def _oid(file: Path) -> str:
    return hashlib.sha1(file.read_bytes(), usedforsecurity=False).hexdigest()


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("hub")
    for write in (jqara, jacwir, miracl):
        write(folder)
    served = Hub(folder)
    yield served
    served.close()


def call(module: str, home: Path, hub: Hub, *args: object) -> subprocess.CompletedProcess[str]:
    """Run a command whose hub, caches and home are these."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "XDG_"))}
    own = {"HF_ENDPOINT": hub.address, "HF_HOME": str(home / "hf"), "XDG_CACHE_HOME": str(home / "cache")}
    command = [sys.executable, "-m", module, *map(str, args)]
    return subprocess.run(command, cwd=ROOT, env={**kept, **own}, capture_output=True, text=True, check=False)


def test_datasets_of_the_hub_are_measured_and_then_need_no_network(
    hub: Hub, tiny_model: Path, tmp_path: Path
) -> None:
    names = ("jqara", "jacwir", "miracl-ja")
    datasets = [each for name in names for each in ("--dataset", name)]
    args = [*datasets, "--jobs", 2, "--system", "bm25"]
    reranked = ["--system", "rerank", "--model", tiny_model]
    done = call("evals.run", tmp_path, hub, *args, *reranked, "--json", tmp_path / "first.json")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "first.json").read_text(encoding="utf-8"))
    assert [(row["dataset"], row["split"], row["system"]) for row in rows] == [
        (name, split, system)
        for name, split in zip(names, ("test", "eval", "dev"), strict=True)
        for system in ("bm25", "rerank")
    ]
    found = {(row["dataset"], row["system"]): row for row in rows}
    assert [found[name, "bm25"]["n_documents"] for name in names] == [3, 3, 5]
    assert ["|candidates|" in found[name, "bm25"]["signature"] for name in names] == [True, True, False]
    assert found["jqara", "bm25"]["measures"]["Recall@10"] == 1
    about = (
        tmp_path / "cache" / "jacolbert_rag" / "datasets" / "beir" / "jqara" / "dataset.json"
    ).read_text()
    assert json.loads(about)["revisions"] == {"hotchpotch/JQaRA": COMMIT}
    asked = [path for method, path in hub.asked if method == "GET" and "/resolve/" in path]
    assert len(asked) == len(set(asked))  # each file came once
    assert not any("topics.miracl-v1.0-ja-train" in path for path in asked)

    before = len(hub.asked)
    again = call("evals.run", tmp_path, hub, *args, "--offline", "--json", tmp_path / "second.json")
    assert again.returncode == 0, again.stderr
    assert len(hub.asked) == before
    second = json.loads((tmp_path / "second.json").read_text(encoding="utf-8"))
    for key in ("measures", "signature"):
        assert [row[key] for row in second] == [row[key] for row in rows if row["system"] == "bm25"]


def test_what_the_hub_lacks_or_breaks_is_named(hub: Hub, tmp_path: Path) -> None:
    hub.cut = {"test-00000-of-00001.parquet"}
    try:
        done = call("evals.prepare", tmp_path, hub, "jqara", "esci-ja")
    finally:
        hub.cut = set()
    assert done.returncode == 2
    said = " ".join(done.stderr.split())
    assert "jqara: hotchpotch/JQaRA at main of the hub cannot be had" in said
    assert re.search(r"esci-ja: tasksource/esci at \w+ of the hub cannot be had", said)
    assert "Traceback" not in said
    assert not (tmp_path / "cache" / "jacolbert_rag" / "datasets" / "beir").exists()
