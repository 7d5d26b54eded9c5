from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from jacolbert_rag import (
    CandidateConfig,
    CheckpointError,
    Document,
    IndexCorruptError,
    IndexMismatchError,
    IndexNotFoundError,
    IndexSettings,
    InvalidInputError,
    JaColBERTRetriever,
    PoolingConfig,
    SearchConfig,
    TruncationWarning,
)
from jacolbert_rag.errors import IndexWriteError
from jacolbert_rag.index.index import Damage, Index
from tests.conftest import SENTENCES, write_tiny_checkpoint
from tests.model_index import change_manifest

ALWAYS_CANDIDATES = IndexSettings(
    search=SearchConfig(exact_below=0), candidates=CandidateConfig(tokens_per_pooled=4, n_candidates=32)
)


def numbered(n: int) -> list[Document]:
    """Documents of real words in many combinations, each another text."""
    places = ["琵琶湖", "富士山", "東京", "京都", "北海道", "滋賀県", "静岡県", "山梨県"]
    things = ["湖", "火山", "首都", "人口", "山荘", "気温", "サーバー", "コーヒー", "牛丼", "経費", "本"]
    return [
        Document(
            f"d{i}", f"{places[i % 8]}の{things[i % 11]}は{i}番の{things[(i // 11) % 11]}である。", {"n": i}
        )
        for i in range(n)
    ]


@pytest.fixture(params=["exact", "candidates"])
def filled(request: pytest.FixtureRequest, tiny_model: Path) -> JaColBERTRetriever:
    settings = ALWAYS_CANDIDATES if request.param == "candidates" else None
    retriever = JaColBERTRetriever.from_pretrained(tiny_model, settings=settings)
    retriever.add(numbered(60))
    return retriever


def ids(hits) -> list[str]:
    return [hit.id for hit in hits]


def test_from_text_to_hit(retriever: JaColBERTRetriever) -> None:
    given = retriever.add(SENTENCES)
    hits = retriever.search(SENTENCES[3], k=3)
    assert hits[0].id == given[3]
    assert hits[0].text == SENTENCES[3]
    assert len(hits) == 3
    assert hits[0].score > hits[1].score > hits[2].score


def test_score_is_the_sum_over_query_tokens(retriever: JaColBERTRetriever) -> None:
    retriever.add(SENTENCES)
    query = "富士山はどこ？"
    hit = retriever.search(query, k=1)[0]
    q = retriever.encoder.queries([query]).flat
    d = retriever.encoder.documents([hit.text]).flat
    assert hit.score == pytest.approx(float((q @ d.T).max(axis=1).sum()), abs=0.05)  # stored as float16


def test_same_documents_by_candidates_and_exactly(filled: JaColBERTRetriever) -> None:
    for query in ("琵琶湖の人口", "京都のコーヒー", "富士山"):
        exact = filled.search(query, k=5, exact=True)
        found = filled.search(query, k=5)
        assert found[0].id == exact[0].id
        assert found[0].score == pytest.approx(exact[0].score, abs=1e-4)


def test_returns_min_of_k_and_live_documents(filled: JaColBERTRetriever) -> None:
    for k in (1, 7, 59, 60, 61, 10_000):
        assert len(filled.search("琵琶湖", k=k)) == min(k, 60)
    filled.delete([f"d{i}" for i in range(0, 60, 2)])
    for k in (1, 29, 30, 31):
        hits = filled.search("琵琶湖", k=k)
        assert len(hits) == min(k, 30)
        assert all(int(hit.id[1:]) % 2 for hit in hits)
    filled.delete([f"d{i}" for i in range(60)])
    assert filled.search("琵琶湖") == []
    assert len(filled) == 0


def test_empty_index(retriever: JaColBERTRetriever) -> None:
    assert retriever.search("湖") == []
    assert retriever.search_many(["湖", "山"]) == [[], []]
    assert retriever.search("湖", exact=True) == []
    assert retriever.delete(["x"]) == []


def test_search_many_equals_search(filled: JaColBERTRetriever) -> None:
    queries = [document.text for document in numbered(60)[:40]]
    for exact in (True, False):
        many = filled.search_many(queries, k=4, exact=exact)
        for query, hits in zip(queries, many, strict=True):
            single = filled.search(query, k=4, exact=exact)
            assert ids(hits) == ids(single)
            assert [h.score for h in hits] == pytest.approx([h.score for h in single], abs=1e-3)
    assert filled.search_many([]) == []


def test_grows_after_it_was_built(filled: JaColBERTRetriever) -> None:
    filled.add([Document("新", "京都の金閣寺は、足利義満が建てた。")])
    assert filled.search("京都の金閣寺は、足利義満が建てた。", k=1)[0].id == "新"
    more = [Document(f"e{d.id}", d.text + "時々説明します", d.metadata) for d in numbered(200)]
    filled.add(more)
    assert len(filled) == 261
    for document in more[::40]:
        exact = filled.search(document.text, k=1, exact=True)
        assert ids(filled.search(document.text, k=1)) == ids(exact)


def test_existing_id_is_replaced(filled: JaColBERTRetriever) -> None:
    new = Document("d5", "時々、カフェでコーヒーを飲みながら本を読む。", {"新": True})
    filled.add([new])
    assert len(filled) == 60
    assert filled.get(["d5"]) == [new]
    hits = filled.search(new.text, k=60)
    assert ids(hits).count("d5") == 1
    assert next(hit.document for hit in hits if hit.id == "d5") == new


@pytest.fixture
def encoded(filled: JaColBERTRetriever, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The passages that `filled` encodes from here on."""
    passages: list[str] = []
    original = filled.encoder.documents_with_cuts
    monkeypatch.setattr(
        filled.encoder,
        "documents_with_cuts",
        lambda texts, **kw: (passages.extend(texts), original(texts, **kw))[1],
    )
    return passages


def test_upsert_leaves_unchanged_documents_alone(filled: JaColBERTRetriever, encoded: list[str]) -> None:
    documents = numbered(61)
    documents[3] = Document("d3", "時々、カフェで本を読む。", {"n": "変更"})
    assert filled.upsert(documents) == ["d3", "d60"]
    assert encoded == [documents[3].text, documents[60].text]
    assert filled.get(["d3"])[0].metadata == {"n": "変更"}
    assert filled.upsert(documents) == []
    # JSON has no tuples and only string keys: what comes back differs, but is not taken for a change.
    odd = Document("odd", "琵琶湖", {"範囲": (1, 2), 3: "x"})  # type: ignore[dict-item]
    assert filled.upsert([odd]) == ["odd"]
    assert filled.upsert([odd]) == []
    assert filled.get(["odd"])[0].metadata == {"範囲": [1, 2], "3": "x"}


def test_upsert_of_other_metadata_encodes_nothing(filled: JaColBERTRetriever, encoded: list[str]) -> None:
    before = {hit.id: hit.score for hit in filled.search("琵琶湖の人口", k=60)}
    documents = [Document(d.id, d.text, {"版": 2}) for d in numbered(60)]
    assert filled.upsert(documents) == [d.id for d in documents]
    assert encoded == []
    assert filled.get([d.id for d in documents]) == documents
    after = {hit.id: hit.score for hit in filled.search("琵琶湖の人口", k=60)}
    assert after == pytest.approx(before, abs=1e-5)
    # Title and text are read as one, so moving words from one to the other changes nothing that is read.
    filled.upsert([Document("題", "人口は多い。", title="東京")])
    assert filled.upsert([Document("題", "東京 人口は多い。")]) == ["題"]
    assert encoded == ["東京 人口は多い。"]


def test_text_given_twice_is_stored_once(retriever: JaColBERTRetriever) -> None:
    given = retriever.add(["琵琶湖", "富士山", "琵琶湖"])
    assert given[0] == given[2] != given[1]
    assert len(retriever) == 2
    assert retriever.add(["琵琶湖"]) == given[:1]
    assert len(retriever) == 2


def test_membership_and_iteration(filled: JaColBERTRetriever) -> None:
    assert "d7" in filled
    assert "d700" not in filled
    assert 7 not in filled
    assert list(filled) == numbered(60)
    assert filled.get(["d9", "なし", "d2"]) == [numbered(60)[9], numbered(60)[2]]


def test_title_is_read_before_the_text(retriever: JaColBERTRetriever) -> None:
    retriever.add(
        [
            Document("a", "標高3,776メートルの火山だ。", title="富士山"),
            Document("b", "標高3,776メートルの火山だ。"),
        ]
    )
    hits = retriever.search("富士山", k=2)
    assert ids(hits) == ["a", "b"]
    assert hits[0].text == "標高3,776メートルの火山だ。"


def test_rerank_orders_what_it_is_given(retriever: JaColBERTRetriever) -> None:
    given = [Document(str(i), text, {"i": i}) for i, text in enumerate(SENTENCES)]
    hits = retriever.rerank(SENTENCES[6], given)
    assert len(hits) == len(given)
    assert hits[0].document is given[6]
    assert ids(retriever.rerank(SENTENCES[6], given, k=2)) == ids(hits)[:2]
    assert [h.text for h in retriever.rerank("湖", ["富士山", "富士山"])] == ["富士山", "富士山"]
    assert retriever.rerank("湖", []) == []
    # Other retrievers hand on blank pages: they come last instead of stopping the chain.
    blank = retriever.rerank("湖", ["", "富士山", "\u3000"])
    assert [h.text for h in blank] == ["富士山", "", "\u3000"]
    assert [h.score for h in blank[1:]] == [-32.0, -32.0]
    assert len(retriever) == 0


# Bad input: each is refused with words to act on, and loses nothing.


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        (["琵琶湖", ""], "has no text: '' is empty.*Leave such documents out"),
        (["琵琶湖", Document("空", "\u3000\n")], "document '空' has no text"),
        ([Document("a", "\0\x07")], "document 'a' has no text"),
        ([Document("d1", "上書き"), Document("a", "x"), Document("a", "y")], "'a' is there twice"),
        (["琵琶湖", None], "document 1 is a NoneType; expected a str or a jacolbert_rag.Document"),
        ("琵琶湖", "documents is one str; expected a list"),
        ([Document("a", "湖", {"x": {1, 2}})], "metadata of document 'a' is not JSON"),
    ],
)
def test_bad_documents_lose_nothing(filled: JaColBERTRetriever, documents, message: str) -> None:
    for method in (filled.add, filled.upsert):
        with pytest.raises(InvalidInputError, match=message):
            method(documents)
    assert list(filled) == numbered(60)


@pytest.mark.parametrize("k", [0, -1, 1.5, True, None, "3"])
def test_bad_k_is_refused(filled: JaColBERTRetriever, k) -> None:
    with pytest.raises(InvalidInputError, match="expected a whole number of hits, at least 1"):
        filled.search("湖", k=k)
    if k is not None:
        with pytest.raises(InvalidInputError, match="at least 1"):
            filled.rerank("湖", ["山"], k=k)


@pytest.mark.parametrize("query", ["", "   ", "\0", "\ud800", "\u3000"])
def test_query_without_text_is_refused(filled: JaColBERTRetriever, query: str) -> None:
    with pytest.raises(InvalidInputError, match="query 0 has no text"):
        filled.search(query)


def test_one_string_for_a_list_is_refused(filled: JaColBERTRetriever) -> None:
    with pytest.raises(InvalidInputError, match="expected a list"):
        filled.search_many("湖")
    with pytest.raises(InvalidInputError, match="expected a list of ids"):
        filled.delete("d1")
    assert len(filled) == 60


def test_query_of_3000_characters(filled: JaColBERTRetriever) -> None:
    with pytest.warns(TruncationWarning, match="query 0 .* is longer than the"):
        assert len(filled.search("富士山の高さは何メートルですか。" * 200, k=3)) == 3


def test_document_of_one_megabyte_is_stored_whole_and_warned_of(retriever: JaColBERTRetriever) -> None:
    text = "琵琶湖は滋賀県にある。" * 33_000
    with pytest.warns(TruncationWarning, match="1 of 1 documents are longer"):
        retriever.add([Document("大", text)])
    assert retriever.get(["大"])[0].text == text
    assert retriever.search("琵琶湖", k=1)[0].id == "大"


@pytest.mark.parametrize(
    "text",
    ["東\0京\x07タワー", "前\ud800後ろ", "[SEP]富士山[MASK]", "[unused0][CLS]琵琶湖[PAD]", "㍿½カ゛𠮷"],
)
def test_odd_text_is_stored_and_found(retriever: JaColBERTRetriever, text: str) -> None:
    retriever.add([Document("odd", text), *numbered(20)])
    assert retriever.get(["odd"])[0].text == text
    found = {hit.id: hit.text for hit in retriever.search(text, k=21)}
    assert len(found) == 21
    assert found["odd"] == text


# On disk.


def test_saved_index_gives_the_same_hits(filled: JaColBERTRetriever, tmp_path: Path) -> None:
    queries = ["琵琶湖の人口", "京都", "サーバー"]
    before = filled.search_many(queries, k=7)
    assert filled.path is None
    filled.save(tmp_path / "索引")
    assert filled.path == tmp_path / "索引"
    assert filled.search_many(queries, k=7) == before
    loaded = JaColBERTRetriever.load(tmp_path / "索引")
    assert loaded.search_many(queries, k=7) == before
    assert list(loaded) == list(filled)


def test_saved_index_is_live(filled: JaColBERTRetriever, tmp_path: Path) -> None:
    filled.save(tmp_path / "i")
    filled.add([Document("新", "大阪城")])
    filled.delete(["d0"])
    again = JaColBERTRetriever.load(tmp_path / "i")
    assert len(again) == 60
    assert again.search("大阪城", k=1)[0].id == "新"
    assert "d0" not in again


def test_save_to_a_second_folder_copies(filled: JaColBERTRetriever, tmp_path: Path) -> None:
    filled.save(tmp_path / "a")
    filled.save(tmp_path / "b")
    assert filled.path == tmp_path / "a"
    filled.add([Document("新", "大阪城")])
    assert len(JaColBERTRetriever.load(tmp_path / "a")) == 61
    assert len(JaColBERTRetriever.load(tmp_path / "b")) == 60
    with pytest.raises(InvalidInputError, match="b holds an index of 60 documents already"):
        filled.save(tmp_path / "b")
    assert len(JaColBERTRetriever.load(tmp_path / "b")) == 60
    filled.save(tmp_path / "b", overwrite=True)
    assert len(JaColBERTRetriever.load(tmp_path / "b")) == 61
    filled.save(tmp_path / "a")  # where it is live


def test_save_leaves_what_it_cannot_look_into(filled: JaColBERTRetriever, tmp_path: Path) -> None:
    former = Path(__file__).parent / "data" / "indexes" / "format-1"
    shutil.copytree(former, tmp_path / "old")
    before = {path.name: path.read_bytes() for path in (tmp_path / "old").rglob("*") if path.is_file()}
    with pytest.raises(InvalidInputError, match="holds an index already"):
        filled.save(tmp_path / "old")
    assert {p.name: p.read_bytes() for p in (tmp_path / "old").rglob("*") if p.is_file()} == before
    filled.save(tmp_path / "a")
    filled.copy_to(tmp_path / "damaged")
    (tmp_path / "damaged" / "index.sqlite").write_bytes(b"SQLite format 3\x00" + b"x" * 5_000)
    with pytest.raises(InvalidInputError, match="overwrite=True"):
        filled.save(tmp_path / "damaged")


def test_save_over_an_index_without_documents(
    filled: JaColBERTRetriever, tiny_model: Path, tmp_path: Path
) -> None:
    JaColBERTRetriever.from_pretrained(tiny_model).save(tmp_path / "i")
    filled.save(tmp_path / "i")
    assert len(JaColBERTRetriever.load(tmp_path / "i")) == 60


def test_from_pretrained_over_an_index(filled: JaColBERTRetriever, tiny_model: Path, tmp_path: Path) -> None:
    filled.save(tmp_path / "i")
    assert len(JaColBERTRetriever.from_pretrained(tiny_model, index=tmp_path / "i")) == 60
    with pytest.raises(IndexNotFoundError):
        JaColBERTRetriever.from_pretrained(tiny_model, index=tmp_path / "nowhere")


def test_index_of_another_model_is_refused(filled: JaColBERTRetriever, tmp_path: Path) -> None:
    filled.save(tmp_path / "i")
    other = write_tiny_checkpoint(tmp_path / "other", seed=5)
    for open_index in (
        lambda: JaColBERTRetriever.from_pretrained(other, index=tmp_path / "i"),
        lambda: JaColBERTRetriever.load(tmp_path / "i", model=other),
    ):
        with pytest.raises(
            IndexMismatchError, match="was built with the model .*Load that model, or build the index anew"
        ):
            open_index()
    assert len(JaColBERTRetriever.load(tmp_path / "i")) == 60


def test_index_in_the_working_directory(
    filled: JaColBERTRetriever, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled.save(tmp_path / "i")
    monkeypatch.chdir(tmp_path / "i")
    assert len(JaColBERTRetriever.load(".")) == 60
    monkeypatch.chdir(tmp_path)
    with pytest.raises(IndexNotFoundError):
        JaColBERTRetriever.load(".")


def test_index_where_a_model_belongs(filled: JaColBERTRetriever, tmp_path: Path) -> None:
    filled.save(tmp_path / "i")
    with pytest.raises(CheckpointError, match="It is an index and no model: open it with"):
        JaColBERTRetriever.from_pretrained(tmp_path / "i")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"encoder": "dot"}, "encoder is 'dot'; expected a dict"),
        ({"settings": {"search": {}}}, "expected an IndexSettings"),
        ({"settings": SearchConfig(exact_below=0)}, "expected an IndexSettings"),
    ],
)
def test_settings_of_another_type_are_refused(
    tiny_model: Path, arguments: dict[str, object], words: str
) -> None:
    with pytest.raises(InvalidInputError, match=words):
        JaColBERTRetriever.from_pretrained(tiny_model, **arguments)


def test_index_read_by_other_settings_is_refused_and_says_which(
    filled: JaColBERTRetriever, tiny_model: Path, tmp_path: Path
) -> None:
    filled.save(tmp_path / "i")
    asked = {"encoder": {"attend_to_mask_tokens": True, "skiplist": ["!"]}, "document_length": 40}
    with pytest.raises(IndexMismatchError) as caught:
        JaColBERTRetriever.from_pretrained(tiny_model, index=tmp_path / "i", **asked)
    said = str(caught.value)
    assert "document_length 64 and not 40" in said
    assert "attend_to_mask_tokens False and not True" in said
    assert "skiplist" in said
    assert "query_length" not in said
    assert "JaColBERTRetriever.load" in said


def test_index_of_a_version_that_read_text_otherwise_is_refused_and_says_so(
    filled: JaColBERTRetriever, tmp_path: Path
) -> None:
    filled.save(tmp_path / "i")
    change_manifest(tmp_path / "i", fingerprint="0" * 32, library="0.0.1")
    with pytest.raises(IndexMismatchError, match=r"fingerprint 00000000.*made by version 0\.0\.1"):
        JaColBERTRetriever.load(tmp_path / "i")


def test_model_that_has_moved(filled: JaColBERTRetriever, tiny_model: Path, tmp_path: Path) -> None:
    filled.save(tmp_path / "i")
    change_manifest(tmp_path / "i", model="/former/place")
    with pytest.raises(CheckpointError, match="'/former/place' is no folder"):
        JaColBERTRetriever.load(tmp_path / "i")
    assert len(JaColBERTRetriever.load(tmp_path / "i", model=tiny_model)) == 60


def test_missing_file_of_an_index(filled: JaColBERTRetriever, tmp_path: Path) -> None:
    filled.save(tmp_path / "i")
    victim = next((tmp_path / "i" / "files").glob("*.offsets.npy"))
    victim.unlink()
    with pytest.raises(IndexCorruptError, match=victim.name):
        JaColBERTRetriever.load(tmp_path / "i")


@pytest.mark.parametrize("suffix", [".graph", ".lists.npy"])
def test_lost_candidates_are_made_again(
    tiny_model: Path, tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    retriever = JaColBERTRetriever.from_pretrained(tiny_model, settings=ALWAYS_CANDIDATES)
    retriever.add(numbered(60))
    retriever.save(tmp_path / "i")
    expected = retriever.search("琵琶湖", k=3)
    for path in (tmp_path / "i" / "files").glob(f"*{suffix}"):
        path.unlink()
    loaded = JaColBERTRetriever.load(tmp_path / "i")
    assert "rebuild()" in caplog.text
    assert loaded.search("琵琶湖", k=3) == expected
    assert list((tmp_path / "i" / "files").glob(f"*{suffix}"))
    assert loaded.verify() == []


def test_open_is_load(filled: JaColBERTRetriever, tmp_path: Path) -> None:
    filled.save(tmp_path / "i")
    opened = JaColBERTRetriever.open(tmp_path / "i", query_length="fixed(16)")
    assert len(opened) == 60
    assert opened.encoder.checkpoint.config.query_length == "fixed(16)"


def test_compact_verify_rebuild(tiny_model: Path, tmp_path: Path) -> None:
    retriever = JaColBERTRetriever.from_pretrained(tiny_model, settings=ALWAYS_CANDIDATES)
    retriever.add(numbered(60))
    retriever.save(tmp_path / "i")
    retriever.delete([f"d{i}" for i in range(40)])
    expected = retriever.search("琵琶湖", k=20)
    before = sum(path.stat().st_size for path in (tmp_path / "i" / "files").iterdir())
    retriever.compact()
    retriever.rebuild()
    assert sum(path.stat().st_size for path in (tmp_path / "i" / "files").iterdir()) < before / 2
    assert retriever.verify() == []
    assert retriever.search("琵琶湖", k=20) == expected
    victim = next((tmp_path / "i" / "files").glob("*.tokens.npy"))
    data = bytearray(victim.read_bytes())
    data[-5] ^= 1
    victim.write_bytes(data)
    (damage,) = retriever.verify()
    assert victim.name in damage.what


def test_pooling_is_kept_by_the_index(tiny_model: Path, tmp_path: Path) -> None:
    settings = IndexSettings(pooling=PoolingConfig(factor=2))
    retriever = JaColBERTRetriever.from_pretrained(tiny_model, settings=settings)
    retriever.add(numbered(10))
    with retriever._index.reading() as view:
        pooled = view.snapshot.n_tokens
    whole = len(retriever.encoder.documents([d.text for d in numbered(10)]).flat)
    assert pooled < 0.65 * whole
    retriever.save(tmp_path / "i")
    assert JaColBERTRetriever.load(tmp_path / "i").settings == settings
    with pytest.raises(IndexMismatchError, match="they cannot change"):
        JaColBERTRetriever.load(tmp_path / "i", settings=IndexSettings())


def test_verify_while_another_thread_saves(filled: JaColBERTRetriever, tmp_path: Path) -> None:
    unsaved = filled._index

    def between(index: Index) -> list[Damage]:
        if index is unsaved:
            filled.save(tmp_path / "index")
        return index.verify()

    assert filled._ask(between) == []
    assert filled.path == tmp_path / "index"


def test_deleting_nothing_writes_nothing(
    filled: JaColBERTRetriever, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled.save(tmp_path / "index")
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and access(path, mode))
    retriever = JaColBERTRetriever.open(tmp_path / "index")
    assert retriever.delete([]) == retriever.delete(["ない"]) == []
    with pytest.raises(IndexWriteError, match="may only be read"):
        retriever.delete(retriever.ids()[:1])


def test_save_under_another_spelling_of_its_own_folder(
    filled: JaColBERTRetriever, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x").mkdir()
    filled.save(tmp_path / "i")
    filled.save(tmp_path / "x" / ".." / "i")
    filled.add([Document("新", "大阪城")])
    monkeypatch.chdir(tmp_path)
    relative = JaColBERTRetriever.load("i")
    monkeypatch.chdir("/")
    relative.add([Document("二", "名古屋城")])
    assert {"新", "二"} <= {d.id for d in JaColBERTRetriever.load(tmp_path / "i")}


def test_two_retrievers_over_one_folder(filled: JaColBERTRetriever, tmp_path: Path) -> None:
    filled.save(tmp_path / "i")
    other = JaColBERTRetriever.load(tmp_path / "i")
    text = "京都の金閣寺は、足利義満が建てた。"
    other.add([Document("他", text)])
    assert "他" in ids(filled.search(text, k=61))
    filled.delete(["他", "d3"])
    filled.add([Document("此", text)])
    for retriever in (filled, other):
        assert len(retriever) == 60
        found = ids(retriever.search(text, k=61))
        assert "此" in found
        assert not {"他", "d3"} & set(found)


def test_interrupted_add_leaves_what_it_stored_searchable(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jacolbert_rag.retriever.ADD_DOCUMENTS", 10)
    retriever = JaColBERTRetriever.from_pretrained(tiny_model, settings=ALWAYS_CANDIDATES)
    retriever.add(numbered(40))
    original = retriever.encoder.documents_with_cuts
    calls: list[int] = []

    def failing(texts, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(texts, **kwargs)

    monkeypatch.setattr(retriever.encoder, "documents_with_cuts", failing)
    more = [Document(f"m{d.id}", d.text + "時々説明", {}) for d in numbered(20)]
    with pytest.raises(KeyboardInterrupt):
        retriever.add(more)
    assert len(retriever) == 50
    for document in more[:10]:
        assert ids(retriever.search(document.text, k=3)) == ids(
            retriever.search(document.text, k=3, exact=True)
        )


def test_documents_that_are_not_listed_yet_are_found(filled: JaColBERTRetriever) -> None:
    query = "時々、カフェでコーヒーを飲みながら本を読む。"
    document = Document("新", query)
    filled._index.append([document], filled.encoder.documents([query]), listed=False)
    assert "新" in ids(filled.search(query, k=61))
    assert len(filled.search(query, k=61)) == 61


def test_corpus_that_only_changes_does_not_grow_its_lists(tiny_model: Path) -> None:
    retriever = JaColBERTRetriever.from_pretrained(tiny_model, settings=ALWAYS_CANDIDATES)
    for i in range(8):
        retriever.add([Document(d.id, d.text + str(i), d.metadata) for d in numbered(30)])
    with retriever._index.reading() as view:
        assert view.snapshot.pooled is not None
        assert view.snapshot.n_tokens < 3 * len(
            retriever.encoder.documents([d.text for d in numbered(30)]).flat
        )
    assert len(retriever.search("琵琶湖", k=100)) == 30


def test_query_rule_and_revision_are_remembered(tiny_model: Path, tmp_path: Path) -> None:
    retriever = JaColBERTRetriever.from_pretrained(tiny_model, query_length="fixed(16)")
    retriever.add(SENTENCES)
    retriever.save(tmp_path / "i")
    loaded = JaColBERTRetriever.load(tmp_path / "i")
    assert loaded.search("琵琶湖", k=3) == retriever.search("琵琶湖", k=3)
    assert loaded.encoder.checkpoint.config.query_length == "fixed(16)"
    other = JaColBERTRetriever.load(tmp_path / "i", query_length="paper")
    assert other.encoder.checkpoint.config.query_length == "paper"
    manifest = json.loads((tmp_path / "i" / "manifest.json").read_text())
    assert manifest["revision"] is None
    assert Path(manifest["model"]).is_absolute()


def test_index_may_change_while_it_is_iterated(filled: JaColBERTRetriever, monkeypatch) -> None:
    monkeypatch.setattr("jacolbert_rag.retriever.ADD_DOCUMENTS", 20)
    seen = []
    for document in filled:
        if not seen:
            filled.delete(["d3", "d50"])
            filled.add([Document("後", "後から加えた。"), Document("d51", "別の文書。")])
            filled.compact()  # which numbers rows anew
        seen.append(document)
    assert [d.id for d in seen] == [f"d{i}" for i in range(60) if i != 50]  # d3 was read before
    assert seen[50].text == "別の文書。"
    assert {d.id for d in filled} == {f"d{i}" for i in range(60) if i not in (3, 50)} | {"後"}


def test_long_documents_of_a_large_add_are_counted_once(retriever: JaColBERTRetriever, monkeypatch) -> None:
    monkeypatch.setattr("jacolbert_rag.retriever.ADD_DOCUMENTS", 3)
    long = [Document(f"l{i}", f"{i}番の琵琶湖。" * 60) for i in range(7)]
    with pytest.warns(TruncationWarning, match="7 of 8 documents are longer") as seen:
        retriever.add([*long, Document("s", "短い")])
    assert len(seen) == 1
    retriever.add([Document("空白", "短い" + " " * 200_000)])  # would raise: the warning is an error in tests


def test_settings_of_a_newer_version_are_refused(filled: JaColBERTRetriever, tmp_path: Path) -> None:
    filled.save(tmp_path / "i")
    manifest = json.loads((tmp_path / "i" / "manifest.json").read_text())
    change_manifest(tmp_path / "i", candidates=manifest["candidates"] | {"未来": 1})
    with pytest.raises(IndexMismatchError, match="are not those of this version.*未来"):
        JaColBERTRetriever.load(tmp_path / "i")


def test_temporary_index_goes_with_its_retriever(tiny_model: Path) -> None:
    retriever = JaColBERTRetriever.from_pretrained(tiny_model)
    retriever.add(["琵琶湖"])
    folder = retriever._index.folder
    assert folder.is_dir()
    retriever.close()
    assert not folder.exists()


def test_threads_search_while_one_adds(filled: JaColBERTRetriever) -> None:
    errors: list[BaseException] = []
    stop = threading.Event()

    def search() -> None:
        while not stop.is_set():
            try:
                assert len(filled.search("琵琶湖の人口", k=5)) == 5
            except BaseException as error:
                errors.append(error)
                return

    threads = [threading.Thread(target=search) for _ in range(4)]
    for thread in threads:
        thread.start()
    for i in range(15):
        filled.add([Document(f"t{i}", f"{i}番目の湖")])
        filled.delete([f"t{i - 1}"])
    stop.set()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(filled) == 61


def test_ties_go_to_the_document_that_was_added_first(retriever: JaColBERTRetriever) -> None:
    retriever.add([Document(key, "琵琶湖は広い。") for key in "zyxwv"])
    assert ids(retriever.search("琵琶湖", k=3)) == ["z", "y", "x"]
    scores = {hit.score for hit in retriever.search("琵琶湖", k=5)}
    assert len(scores) == 1


def test_scores_are_plain_floats(filled: JaColBERTRetriever) -> None:
    assert all(type(hit.score) is float and np.isfinite(hit.score) for hit in filled.search("湖", k=60))


# Long documents, split.

HANDBOOK = "\n\n".join(
    f"第{i + 1}章 {place}\n{place}の規程は{i + 1}番である。" + "".join(SENTENCES[i:] + SENTENCES[:i])
    for i, place in enumerate(["琵琶湖", "富士山", "東京", "京都", "北海道", "滋賀県", "静岡県", "山梨県"])
)


def test_long_documents_are_stored_as_chunks(retriever: JaColBERTRetriever) -> None:
    long = Document("手引", HANDBOOK, {"部署": "総務"}, title="規程集")
    given = retriever.add([Document("短", "東京は首都だ。"), long, SENTENCES[0]], split=True)  # no warning
    assert given[0] == "短"
    assert given[-1] == Document.from_text(SENTENCES[0]).id
    assert len(given) == len(set(given)) == len(retriever) > 10
    chunks = retriever.get(given[1:-1])
    for chunk in chunks:
        place = chunk.metadata["chunk"]
        assert chunk.text == HANDBOOK[place["start"] : place["end"]]
        assert (chunk.title, chunk.metadata["部署"], place["document_id"]) == ("規程集", "総務", "手引")
        assert chunk.id.startswith("手引#")
    assert retriever.search("北海道の規程は5番である。", k=1)[0].metadata["chunk"]["document_id"] == "手引"
    assert retriever.ids("手引#") == sorted(given[1:-1])
    twice = retriever.add([HANDBOOK, HANDBOOK], split=True)
    assert twice[: len(twice) // 2] == twice[len(twice) // 2 :]
    assert sorted(set(twice)) == retriever.ids(Document.from_text(HANDBOOK).id)


@pytest.mark.parametrize("method", ["add", "upsert"])
def test_chunks_of_former_versions_go(retriever: JaColBERTRetriever, method: str) -> None:
    store = getattr(retriever, method)
    bystanders = [
        Document("手引#0123456789ab", "山荘の人口である。"),  # named like a chunk, but none
        Document("手引#2", "火山の気温である。"),
        Document("手引2", HANDBOOK[::-1]),
    ]
    others = store(bystanders, split=True)
    with pytest.warns(TruncationWarning):
        store([Document("手引", HANDBOOK)])
    first = store([Document("手引", HANDBOOK)], split=True)
    assert "手引" not in retriever  # the whole of before
    assert len(retriever) == len(others) + len(first)
    store([Document("手引", HANDBOOK[: len(HANDBOOK) // 2])], split=True)
    remaining = [id for id in retriever.ids("手引#") if id not in others]
    assert 0 < len(remaining) < len(first)
    ends = [d.metadata["chunk"]["end"] for d in retriever.get(remaining)]
    assert max(ends) <= len(HANDBOOK) // 2
    assert store([Document("手引", "短くなった。")], split=True) == ["手引"]
    assert len(retriever) == len(others) + 1
    assert [d.text for d in retriever.get(["手引"])] == ["短くなった。"]


@pytest.mark.parametrize("where", ["start", "middle", "end"])
def test_only_chunks_around_an_edit_are_encoded(
    filled: JaColBERTRetriever, encoded: list[str], where: str
) -> None:
    n = len(filled.add([Document("手引", HANDBOOK)], split=True))
    encoded.clear()
    at = {"start": 0, "middle": HANDBOOK.index("京都"), "end": len(HANDBOOK)}[where]
    edited = HANDBOOK[:at] + "この文は新しい。" + HANDBOOK[at:]
    changed = filled.upsert([Document("手引", edited)], split=True)
    assert 0 < len(encoded) <= 4 < n / 3
    chunks = sorted(filled.get(filled.ids("手引#")), key=lambda d: d.metadata["chunk"]["start"])
    assert len(chunks) == len(filled) - 60
    assert set(changed) <= {chunk.id for chunk in chunks}
    for chunk in chunks:  # those that were not encoded know their new place
        assert chunk.text == edited[chunk.metadata["chunk"]["start"] : chunk.metadata["chunk"]["end"]]
    assert "".join("".join(c.text.split()) for c in chunks) == "".join(edited.split())
    assert filled.upsert([Document("手引", edited)], split=True) == []


def test_chunks_are_deleted_with_their_document(retriever: JaColBERTRetriever) -> None:
    given = retriever.add(
        [Document("手引", HANDBOOK), Document("手引#2", HANDBOOK), Document("短", "湖。")], split=True
    )
    first = [id for id in given if id.startswith("手引#") and not id.startswith("手引#2#")]
    assert set(retriever.delete(["手引", "短"])) == {*first, "短"}
    assert retriever.ids() == sorted(id for id in given if id.startswith("手引#2#"))
    assert len(retriever.delete(["手引#2"])) == len(given) - len(first) - 1
    assert len(retriever) == 0


@pytest.mark.parametrize("method", ["add", "upsert"])
def test_document_that_was_split_is_replaced_without_splitting_too(
    retriever: JaColBERTRetriever, method: str
) -> None:
    retriever.add([Document("手引", HANDBOOK)], split=True)
    getattr(retriever, method)([Document("手引", "琵琶湖は広い。")])
    assert retriever.ids() == ["手引"]
    retriever.upsert([Document("手引", HANDBOOK)], split=True)
    assert len(retriever) > 3
    assert "手引" not in retriever


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([Document("a", HANDBOOK, {"chunk": 1})], "metadata of document 'a' has a 'chunk' already.*Rename"),
        (["湖", Document("a", "")], "document 'a' has no text"),
    ],
)
def test_what_cannot_be_split_loses_nothing(filled: JaColBERTRetriever, documents, message: str) -> None:
    for method in (filled.add, filled.upsert):
        with pytest.raises(InvalidInputError, match=message):
            method(documents, split=True)
    assert list(filled) == numbered(60)


def test_split_across_processes_of_one_index(filled: JaColBERTRetriever, tmp_path: Path) -> None:
    filled.save(tmp_path / "i")
    filled.add([Document("手引", HANDBOOK)], split=True)
    other = JaColBERTRetriever.load(tmp_path / "i")
    assert other.ids("手引") == filled.ids("手引") != []
    other.add([Document("手引", "短くなった。")], split=True)
    assert filled.ids("手引") == ["手引"]


def test_document_changes_with_all_its_chunks_in_one_moment(
    retriever: JaColBERTRetriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jacolbert_rag.retriever.ADD_DOCUMENTS", 3)  # fewer than a document has chunks
    first = [
        Document(f"d{i}", "".join(f"{i}番の{j}回目の会議は琵琶湖で開く。" for j in range(30)))
        for i in range(4)
    ]
    retriever.add(first, split=True)
    second = [Document(d.id, d.text.replace("琵琶湖", "富士山")) for d in first]
    seen = []
    former = retriever._index.append

    def watched(*args: object, **kwargs: object) -> None:
        former(*args, **kwargs)  # type: ignore[arg-type]
        texts: dict[str, set[bool]] = {}
        for chunk in retriever:
            texts.setdefault(chunk.id.partition("#")[0], set()).add("富士山" in chunk.text)
        seen.append(texts)

    monkeypatch.setattr(retriever._index, "append", watched)
    retriever.upsert(second, split=True)
    assert len(seen) >= 2
    assert all(len(states) == 1 for texts in seen for states in texts.values())
    assert {state for states in seen[-1].values() for state in states} == {True}


def test_metadata_alone_leaves_the_token_embeddings(filled: JaColBERTRetriever) -> None:
    query, before = "琵琶湖", filled.search("琵琶湖", 60)
    named = [Document(d.id, d.text, {"課": "総務"}, d.title) for d in filled]
    assert filled.upsert(named) == [d.id for d in named]
    after = filled.search(query, 60)
    assert [(hit.id, hit.score) for hit in after] == [(hit.id, hit.score) for hit in before]
    assert all(hit.metadata == {"課": "総務"} for hit in after)


def test_searches_go_on_while_an_index_is_saved(filled: JaColBERTRetriever, tmp_path: Path) -> None:
    stop, errors, n_found = threading.Event(), [], []

    def ask() -> None:
        try:
            while not stop.is_set():
                n_found.append(len(filled.search("琵琶湖", 5)))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    filled.save(tmp_path / "i")
    stop.set()
    for thread in threads:
        thread.join()
    assert errors == []
    assert set(n_found) == {5}
    assert filled.path == tmp_path / "i"


def test_search_that_begins_while_an_index_moves(
    filled: JaColBERTRetriever, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    former = filled._index
    real = former.read

    def overtaken(work):
        monkeypatch.setattr(former, "read", real)
        filled.save(tmp_path / "i")
        return former.read(work)

    monkeypatch.setattr(former, "read", overtaken)
    assert len(filled.search("琵琶湖", 5)) == 5
    assert filled._index is not former


def test_home_folder_and_relative_names(
    filled: JaColBERTRetriever, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    filled.save("~/i")
    assert len(JaColBERTRetriever.load("~/i")) == 60
    monkeypatch.chdir(tmp_path / "i")
    assert len(JaColBERTRetriever.load(".")) == 60


def test_candidates_that_cannot_be_written_keep_nobody_from_searching(
    filled: JaColBERTRetriever,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(self: Index, *, anew: bool = False) -> None:
        raise IndexWriteError("No space left on device.")

    filled.save(tmp_path / "i")
    monkeypatch.setattr(Index, "update_candidates", full)
    filled.add(["冬の琵琶湖は静かだ。"])
    assert "冬の琵琶湖は静かだ。" in {hit.text for hit in filled.search("琵琶湖", 61)}
    assert "No space left" in caplog.text
    assert len(JaColBERTRetriever.load(tmp_path / "i").search("琵琶湖", 5)) == 5


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_process_leaves_an_unsaved_index(filled: JaColBERTRetriever) -> None:
    child = os.fork()
    if not child:
        filled._cleanup()  # as the end of its interpreter would
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert len(filled.search("琵琶湖", 5)) == 5


# Several writers.


def two_of_one_index(folder: Path, tiny_model: Path) -> list[JaColBERTRetriever]:
    JaColBERTRetriever.from_pretrained(tiny_model).save(folder)
    return [JaColBERTRetriever.open(folder) for _ in range(2)]


def test_tokens_of_a_text_that_another_process_has_replaced_are_not_kept(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, theirs = two_of_one_index(tmp_path / "i", tiny_model)
    lake, mountain = "琵琶湖は日本最大の湖である。", "富士山は標高3,776メートルの火山だ。"
    mine.add([Document("x", lake), Document("y", mountain)])
    real = mine._index.amend

    def overtaken(**changes):
        monkeypatch.setattr(mine._index, "amend", real)
        theirs.add([Document("x", mountain)])
        return real(**changes)

    monkeypatch.setattr(mine._index, "amend", overtaken)
    assert mine.upsert([Document("x", lake, {"課": "総務"}), Document("y", mountain)]) == ["x"]
    assert mine.get(["x"]) == [Document("x", lake, {"課": "総務"})]
    (hit,) = [hit for hit in theirs.search(lake, k=2, exact=True) if hit.id == "x"]
    assert hit.score == pytest.approx(mine.rerank(lake, [lake])[0].score, rel=1e-3)


def test_chunks_that_another_process_has_just_stored_are_replaced_too(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, theirs = two_of_one_index(tmp_path / "i", tiny_model)
    long = Document("d", "".join(f"第{i}条に人口と気温を定める。" for i in range(200)))
    real = mine._index.append

    def overtaken(*given, **more):
        monkeypatch.setattr(mine._index, "append", real)
        assert len(theirs.add([long], split=True)) > 5
        real(*given, **more)

    monkeypatch.setattr(mine._index, "append", overtaken)
    assert mine.add([Document("d", "短い文書にした。")]) == ["d"]
    assert mine.ids() == theirs.ids() == ["d"]


# What is unsaved, what is closed.


def test_unsaved_index_is_whole(filled: JaColBERTRetriever) -> None:
    assert filled.verify() == []
    filled.rebuild()
    filled.compact()
    assert filled.verify() == []
    assert len(filled.search("琵琶湖", k=60)) == 60


@pytest.mark.parametrize("is_saved", [True, False], ids=["saved", "unsaved"])
def test_every_method_of_a_closed_retriever_says_so(
    filled: JaColBERTRetriever, tmp_path: Path, *, is_saved: bool
) -> None:
    if is_saved:
        filled.save(tmp_path / "i")
    filled.close()
    for call in (
        lambda: filled.add(["本"]),
        lambda: filled.upsert(["本"]),
        lambda: filled.delete(["d1"]),
        lambda: filled.search("本"),
        lambda: filled.get(["d1"]),
        lambda: filled.save(tmp_path / "i"),
        lambda: filled.save(tmp_path / "another"),
        lambda: len(filled),
        lambda: list(filled),
        filled.ids,
        filled.compact,
        filled.rebuild,
        filled.refresh,
        filled.verify,
    ):
        with pytest.raises(InvalidInputError, match="was closed"):
            call()
    assert not (tmp_path / "another").exists()
    filled.close()
