"""The HTTP API: what it answers, whom it lets in, and what generated requests make of it."""

from __future__ import annotations

import html
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from jacolbert_rag import Document, JaColBERTRetriever
from jacolbert_rag.errors import IndexWriteError, InvalidInputError
from tests.conftest import SENTENCES

pytest.importorskip("fastapi")

import uvicorn
from fastapi.testclient import TestClient

from jacolbert_rag import server
from jacolbert_rag.searches import Searches


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> JaColBERTRetriever:
    return JaColBERTRetriever.from_pretrained(tiny_model)


@pytest.fixture
def client(engine: JaColBERTRetriever) -> Iterator[TestClient]:
    engine.delete(engine.ids())
    engine.add([Document(f"s{i}", text, {"n": i}, "題") for i, text in enumerate(SENTENCES)])
    with TestClient(server.make_app(engine, hosts=[*server.LOCAL_HOSTS, "testserver"])) as client:
        yield client


def test_search(client: TestClient) -> None:
    answer = client.post("/search", json={"query": "富士山の高さは？", "k": 3, "highlight": True})
    assert answer.status_code == 200
    hits = answer.json()["hits"]
    assert len(hits) == 3
    assert [hit["score"] for hit in hits] == sorted((hit["score"] for hit in hits), reverse=True)
    assert hits[0]["text"] == SENTENCES[int(hits[0]["id"][1:])]
    assert hits[0]["metadata"] == {"n": int(hits[0]["id"][1:])}
    for mark in hits[0]["highlight"]["marks"]:
        assert hits[0]["text"][mark["start"] : mark["end"]]
    assert answer.json()["took_ms"] > 0
    (one,) = client.post("/search", json={"query": "湖", "filter": {"n": 2}}).json()["hits"]
    assert one["id"] == "s2"


def test_add_get_delete(client: TestClient) -> None:
    given = {"documents": [{"id": "湖/1", "text": "浜名湖は静岡県にある。", "metadata": {"県": "静岡"}}]}
    assert client.post("/documents", json=given).json() == {"changed": ["湖/1"]}
    assert client.post("/documents", json=given).json() == {"changed": []}
    (found,) = client.get("/documents", params={"id": ["湖/1", "無い"]}).json()
    assert found == {"id": "湖/1", "text": "浜名湖は静岡県にある。", "title": "", "metadata": {"県": "静岡"}}
    assert client.get("/health").json()["documents"] == 11
    assert client.delete("/documents", params={"id": ["湖/1", "無い"]}).json() == {"deleted": ["湖/1"]}
    assert client.get("/health").json() == {
        "status": "ok", "documents": 10, "version": client.get("/health").json()["version"],
    }  # fmt: skip
    (id,) = client.post("/documents", json={"documents": [{"text": "名のない文書。"}]}).json()["changed"]
    assert client.get("/documents", params={"id": [id]}).json()[0]["text"] == "名のない文書。"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"query": ""}, "query"),
        ({"query": " 　"}, "text"),
        ({"query": "湖", "k": 0}, "k"),
        ({"query": "湖", "mode": "dense"}, "mode"),
        ({"query": "湖", "filter": {"$near": 1}}, "$near"),
        ({"query": "湖", "abstain": True}, "calibrat"),
        ({"query": "湖", "kk": 1}, "kk"),
    ],
)
def test_what_cannot_be_asked_is_told(client: TestClient, body: dict[str, Any], words: str) -> None:
    answer = client.post("/search", json=body)
    assert answer.status_code == 422
    assert words in answer.json()["detail"]


def test_half_a_surrogate_pair(client: TestClient) -> None:
    body = '{"documents": [{"id": "半", "text": "絵文字\\ud83d。"}]}'
    answer = client.post("/documents", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (200, 422)
    body = '{"query": "\\ud83d"}'
    answer = client.post("/search", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (200, 422)
    assert answer.json()


def test_bodies_that_are_refused(client: TestClient) -> None:
    headers = {"Content-Type": "application/json"}
    for body, status in [("{", 400), ("[1]", 422), ('{"query": "湖", "k": NaN}', 422), ("", 422)]:
        assert client.post("/search", content=body, headers=headers).status_code == status
    big = "x" * (server.MAX_BYTES + 1)
    answer = client.post("/documents", content=big, headers=headers)
    assert answer.status_code == 413
    assert "16,777,216 bytes" in answer.json()["detail"]

    def parts() -> Iterator[bytes]:
        for _ in range(server.MAX_BYTES // 2**20 + 2):
            yield b"x" * 2**20

    assert client.post("/documents", content=parts(), headers=headers).status_code == 413


def test_a_token(engine: JaColBERTRetriever) -> None:
    client = TestClient(server.make_app(engine, token="token"))
    assert client.get("/health").status_code == 200
    asked: dict[str, Any] = {"json": {"query": "湖"}}
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic token"}):
        answer = client.post("/search", headers=headers, **asked)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
    assert client.post("/search", headers={"Authorization": "Bearer token"}, **asked).status_code == 200
    assert client.delete("/documents", params={"id": "s0"}).status_code == 401
    with pytest.raises(InvalidInputError, match="beyond ASCII"):
        server.make_app(engine, token="秘密")
    server.check_host("127.0.0.1", None)
    server.check_host("::1", None)
    server.check_host("0.0.0.0", "token")
    for host in ("0.0.0.0", "192.168.0.3", "example.test"):
        with pytest.raises(InvalidInputError, match="can be called from other machines"):
            server.check_host(host, "")


def test_pages_of_the_web_are_not_let_in(client: TestClient) -> None:
    assert client.get("/health", headers={"Host": "evil.test"}).status_code == 400
    assert client.get("/health", headers={"Host": "127.0.0.1:8000"}).status_code == 200


def test_bodies_of_other_kinds_and_deep_filters(client: TestClient) -> None:
    """A page of another site may send text without being asked; only what says that it is JSON is read."""
    body = '{"documents": [{"text": "文。"}]}'
    for headers in ({}, {"Content-Type": "text/plain"}, {"Content-Type": "text/json"}):
        answer = client.post("/documents", content=body, headers=headers)
        assert answer.status_code == 415
        assert "Content-Type: application/json" in answer.json()["detail"]
    deep: dict[str, Any] = {"n": 1}
    for _ in range(900):
        deep = {"$not": deep}
    for _ in range(2):
        assert client.post("/search", json={"query": "湖", "filter": deep}).status_code in (200, 422)


def test_writers_wait_for_no_searches(engine: JaColBERTRetriever, monkeypatch: pytest.MonkeyPatch) -> None:
    free = threading.Event()

    def slow(documents: Any, *, split: bool) -> list[str]:
        free.wait(30)
        return []

    monkeypatch.setattr(engine, "upsert", slow)
    client = TestClient(server.make_app(engine))
    given: dict[str, Any] = {"json": {"documents": [{"text": "文。"}]}}
    with ThreadPoolExecutor(server.MAX_WRITERS + 1) as pool:
        asked = [pool.submit(client.post, "/documents", **given) for _ in range(server.MAX_WRITERS + 1)]
        end = time.monotonic() + 30
        while not any(each.done() for each in asked) and time.monotonic() < end:
            time.sleep(0.01)
        assert client.post("/search", json={"query": "湖"}).status_code == 200
        free.set()
        assert sorted(each.result().status_code for each in asked) == [200] * server.MAX_WRITERS + [503]


def test_an_address_that_is_taken_and_names_of_a_proxy(engine: JaColBERTRetriever) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InvalidInputError, match="cannot be served at"):
            server.run(engine, host="127.0.0.1", port=taken.getsockname()[1])
    assert server.allowed_hosts("0.0.0.0", ()) is None
    assert server.allowed_hosts("0.0.0.0", ["検索.test"]) == [*server.LOCAL_HOSTS, "0.0.0.0", "検索.test"]
    assert "127.0.0.2" in (server.allowed_hosts("127.0.0.2", ()) or [])


def test_answers_do_not_wait_to_be_acknowledged() -> None:
    """asyncio looks at the protocol that a socket was made with; see `asyncio.base_events._set_nodelay`."""
    with server.listening("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.proto == socket.IPPROTO_TCP


def test_read_only_and_full_disks(engine: JaColBERTRetriever, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = TestClient(server.make_app(engine, read_only=True))
    assert reader.post("/documents", json={"documents": [{"text": "文。"}]}).status_code == 405
    assert reader.post("/search", json={"query": "湖"}).status_code == 200

    def full(*args: Any, **kwargs: Any) -> None:
        raise IndexWriteError("no room is left")

    monkeypatch.setattr(engine, "upsert", full)
    answer = TestClient(server.make_app(engine)).post("/documents", json={"documents": [{"text": "文。"}]})
    assert (answer.status_code, answer.json()) == (503, {"detail": "no room is left"})


def test_its_description_is_whole(client: TestClient) -> None:
    described = client.get("/openapi.json").json()
    assert set(described["paths"]) == {"/health", "/search", "/documents"}
    text = json.dumps(described, ensure_ascii=False)
    assert "経費の精算はいつまで？" in text
    page = client.get("/docs").text
    assert "POST /search" in page
    assert "経費の精算はいつまで？" in page
    assert set(re.findall("https?://[a-z]*", page)) == {"http://testserver"}
    assert client.get("/", follow_redirects=False).headers["location"] == "docs"
    # What it shows works as it is.
    body = html.unescape(re.search("<textarea[^>]*>([^<]*)", page)[1])
    assert client.post("/search", json=json.loads(body)).json()["hits"]
    assert f"-d '{body}'" in html.unescape(page)


def test_answers_are_in_characters(client: TestClient) -> None:
    answer = client.post("/search", json={"query": "富士山", "k": 1}).content
    assert "山".encode() in answer


def test_searches_go_together_and_fail_alone(engine: JaColBERTRetriever, monkeypatch: Any) -> None:
    engine.add([Document(f"s{i}", text) for i, text in enumerate(SENTENCES)])
    alone = [[hit.id for hit in engine.search(text, 2, mode="hybrid")] for text in SENTENCES[:5]]
    searches = Searches(engine, max_batch=4)
    free, batches = threading.Event(), []
    search_many = engine.search_many

    def watched(queries: list[str], *args: Any, **kwargs: Any) -> Any:
        batches.append(len(queries))
        free.wait(30)
        return search_many(queries, *args, **kwargs)

    monkeypatch.setattr(engine, "search_many", watched)
    first = searches.submit("先頭", 1, mode="hybrid")
    while not batches:
        time.sleep(0.001)
    asked = [searches.submit(text, 2, mode="hybrid") for text in SENTENCES[:5]]
    odd = [searches.submit(SENTENCES[0], 3, mode="bm25"), searches.submit(" ", 2, mode="hybrid")]
    gone = searches.submit("去る", 2, mode="hybrid")
    assert gone.cancel()
    free.set()
    assert len(first.result(30)) == 1
    assert [[hit.id for hit in found.result(30)] for found in asked] == alone
    assert odd[0].result(30)[0].text == SENTENCES[0]
    with pytest.raises(InvalidInputError, match="no text"):
        odd[1].result(30)
    # Four of the five go together; the fifth with the blank one, which fails, so each is done again alone.
    assert batches == [1, 4, 2, 1, 1, 1]


def test_large_searches_keep_nobody_waiting(engine: JaColBERTRetriever, monkeypatch: Any) -> None:
    engine.add([Document(f"s{i}", text) for i, text in enumerate(SENTENCES)])
    free, search_many = threading.Event(), engine.search_many

    def watched(queries: list[str], k: int, **kwargs: Any) -> Any:
        if k > 20:
            free.wait(30)
        return search_many(queries, k, **kwargs)

    monkeypatch.setattr(engine, "search_many", watched)
    searches = Searches(engine)
    large = searches.submit("富士山", 21, mode="hybrid", highlight=True)
    assert searches.submit("富士山", 20, mode="hybrid", highlight=True).result(30)
    assert not large.done()
    free.set()
    assert large.result(30)
    odd: Any = {1: 1, "a": 2}
    with pytest.raises(TypeError):
        searches.submit("富士山", 1, mode="hybrid", filter=odd)


@pytest.mark.web
def test_the_api_is_tried_on_its_page(browser: Any, engine: JaColBERTRetriever) -> None:
    engine.add([Document("規程-12", "経費の領収書は翌月5日までに出す。")])
    with running(server.make_app(engine, token="秘密でない".encode().hex())) as address:
        page = browser.new_page()
        page.goto(address)
        assert page.url == f"{address}/docs"
        form = page.locator("form[data-path='/search']")
        form.get_by_role("button").click()
        form.get_by_text("401").wait_for()
        page.get_by_label("Token").fill("秘密でない".encode().hex())
        form.get_by_role("button").click()
        form.get_by_text("経費の領収書は翌月5日までに出す。").wait_for()
        one = page.locator("form[data-method=GET][data-path='/documents']")
        one.get_by_label("id").fill("規程-12")
        one.get_by_role("button").click()
        one.get_by_text("経費の領収書").wait_for()
        page.close()


@pytest.mark.web
@pytest.mark.filterwarnings("ignore::jacolbert_rag.errors.TruncationWarning")
def test_generated_requests(engine: JaColBERTRetriever, tmp_path: Path) -> None:
    """schemathesis against the API's own description: nothing that it thinks of breaks the server."""
    engine.add([Document(f"s{i}", text) for i, text in enumerate(SENTENCES)])
    command = [
        str(Path(sys.executable).with_name("schemathesis")), "run", "--max-examples", "60", "--seed", "1",
        "--generation-database", "none", "--checks",
        "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance",
        "--no-color",
    ]  # fmt: skip
    with running(server.make_app(engine)) as address:
        done = subprocess.run(
            [*command, f"{address}/openapi.json"], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-6_000:]
        assert httpx.get(f"{address}/health").status_code == 200


@pytest.mark.web
def test_fifty_clients_at_once(engine: JaColBERTRetriever) -> None:
    """For as many seconds as SECONDS says; a minute by hand."""
    engine.add([Document(f"s{i}", text) for i, text in enumerate(SENTENCES)])
    end = time.monotonic() + float(os.environ.get("SECONDS", "5"))
    took: list[float] = []

    def ask(n: int, address: str) -> None:
        with httpx.Client(base_url=address, timeout=60) as client:
            while time.monotonic() < end:
                start = time.perf_counter()
                answer = client.post("/search", json={"query": SENTENCES[n % len(SENTENCES)], "k": 3})
                took.append(time.perf_counter() - start)
                assert answer.status_code == 200, answer.text
                assert len(answer.json()["hits"]) == 3

    with running(server.make_app(engine)) as address, ThreadPoolExecutor(50) as pool:
        for done in [pool.submit(ask, n, address) for n in range(50)]:
            done.result()
    assert len(took) > 50
    p50, p95 = (1_000 * float(value) for value in np.percentile(took, [50, 95]))
    print(f"{len(took):,} requests of 50 clients: p50 {p50:.0f} ms, p95 {p95:.0f} ms")


@contextmanager
def running(app: Any) -> Iterator[str]:
    """An application served by a thread; yields its address."""
    process = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=process.run, daemon=True)
    thread.start()
    while not process.started:
        time.sleep(0.01)
    port = process.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.should_exit = True
        thread.join(10)
