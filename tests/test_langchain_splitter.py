"""jacolbert_rag.langchain_splitter: LangChain's contract, exact places, ids that stay."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
from langchain_core.documents import Document
from langchain_core.indexing import InMemoryRecordManager, index
from langchain_text_splitters import TextSplitter

import jacolbert_rag.langchain
from jacolbert_rag import InvalidInputError
from jacolbert_rag import JaColBERTRetriever as Engine
from jacolbert_rag.encode.splitter import Splitter, is_chunk_of
from jacolbert_rag.langchain import JaColBERTRetriever, JaColBERTVectorStore
from jacolbert_rag.langchain_splitter import JaColBERTTextSplitter
from tests.conftest import import_error, run_python
from tests.test_splitter import GUIDE

REPEATED = "琵琶湖は広い。" * 150


@pytest.fixture
def splitter(retriever: Engine) -> JaColBERTTextSplitter:
    return JaColBERTTextSplitter.from_retriever(retriever, add_start_index=True)


def test_it_is_langchains(splitter: JaColBERTTextSplitter, retriever: Engine) -> None:
    assert isinstance(splitter, TextSplitter)
    assert jacolbert_rag.langchain.JaColBERTTextSplitter is JaColBERTTextSplitter
    assert splitter.splitter.budget == retriever.encoder.tokenizer.document_budget
    for adapter in (JaColBERTVectorStore(retriever), JaColBERTRetriever(engine=retriever)):
        assert JaColBERTTextSplitter.from_retriever(adapter).splitter == splitter.splitter
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = jacolbert_rag.langchain.Nothing


def test_chunks_are_read_whole(splitter: JaColBERTTextSplitter, retriever: Engine) -> None:
    texts = splitter.split_text(GUIDE)
    assert "".join("".join(texts).split()) == "".join(GUIDE.split())
    assert not retriever.encoder.tokenizer.documents(texts).n_cut.any()
    assert splitter.split_text(" \n") == []


@pytest.mark.parametrize("overlap", [0, 20])
@pytest.mark.parametrize("text", [GUIDE, GUIDE.replace("\n", "\r\n"), REPEATED, "\n  " + REPEATED])
def test_start_index_is_exact(retriever: Engine, text: str, overlap: int) -> None:
    splitter = JaColBERTTextSplitter.from_retriever(retriever, overlap=overlap, add_start_index=True)
    chunks = splitter.create_documents([text, text])
    assert len(chunks) > 10
    expected = [(chunk.start, chunk.text) for chunk in splitter.splitter.chunks(text)]
    assert [(d.metadata["start_index"], d.page_content) for d in chunks] == 2 * expected
    assert [d.page_content for d in chunks] == 2 * splitter.split_text(text)


def test_titles_leave_room(splitter: JaColBERTTextSplitter, retriever: Engine) -> None:
    document = Document(GUIDE, id="手引", metadata={"title": "総務部の手引　第二版　全社員向け"})
    chunks = splitter.split_documents([document])
    JaColBERTVectorStore(retriever).add_documents(chunks)  # without a TruncationWarning
    assert all(stored.passage.startswith("総務部の手引") for stored in retriever)
    assert len(chunks) > len(splitter.split_text(GUIDE))


def test_documents_keep_metadata_and_are_not_changed(splitter: JaColBERTTextSplitter) -> None:
    documents = [
        Document(GUIDE, id="手引#1", metadata={"部署": ["総務"]}),
        Document("\n短い文。", id="短", metadata={"頁": 3}),
        Document(GUIDE, metadata={"頁": 4}),
        Document(" ", id="空"),
    ]
    before = deepcopy(documents)
    chunks = splitter.split_documents(documents)
    assert documents == before
    named = [c for c in chunks if c.metadata.get("部署")]
    assert all(c.metadata == {"部署": ["総務"], "start_index": c.metadata["start_index"]} for c in named)
    assert all(c.id is not None and is_chunk_of(c.id, "手引#1") for c in named)
    assert len({c.id for c in named}) == len(named) > 10
    assert [(c.id, c.page_content, c.metadata) for c in chunks if c.metadata.get("頁") == 3] == [
        ("短", "短い文。", {"頁": 3, "start_index": 1})
    ]
    assert {c.id for c in chunks if c.metadata.get("頁") == 4} == {None}
    named[0].metadata["部署"].append("経理")
    assert documents == before
    assert list(splitter.transform_documents(documents)) == splitter.split_documents(documents)


async def test_transforms_asynchronously(splitter: JaColBERTTextSplitter) -> None:
    documents = [Document(GUIDE, id="手引")]
    assert await splitter.atransform_documents(documents) == splitter.split_documents(documents)


def test_an_edit_keeps_the_ids_of_other_chunks(splitter: JaColBERTTextSplitter) -> None:
    before = splitter.split_documents([Document(GUIDE, id="手引")])
    after = splitter.split_documents([Document("新しい文。" + GUIDE, id="手引")])
    assert len({c.id for c in after} - {c.id for c in before}) <= 4


def test_chunks_go_into_the_vector_store(splitter: JaColBERTTextSplitter, retriever: Engine) -> None:
    store = jacolbert_rag.langchain.JaColBERTVectorStore(retriever)
    records = InMemoryRecordManager("手引")
    records.create_schema()

    def fill(text: str) -> dict[str, int]:
        chunks = JaColBERTTextSplitter(splitter.splitter).split_documents(
            [Document(text, metadata={"s": "a"})]
        )
        return dict(
            index(chunks, records, store, cleanup="incremental", source_id_key="s", key_encoder="blake2b")
        )

    n = fill(GUIDE)["num_added"]
    assert n == len(retriever) > 10
    again = fill("新しい文。" + GUIDE)
    assert 0 < again["num_added"] <= 4
    assert 0 < again["num_deleted"] <= 4
    assert again["num_skipped"] >= n - 4


def test_from_pretrained(tiny_model: Path) -> None:
    splitter = JaColBERTTextSplitter.from_pretrained(tiny_model, budget=30, overlap=5, document_length=40)
    assert (splitter.splitter.budget, splitter.splitter.overlap) == (30, 5)
    assert JaColBERTTextSplitter.from_pretrained(tiny_model, document_length=40).splitter.budget == 37
    assert len(splitter.split_text(GUIDE)) > 10


def test_metadata_for_each_text_is_expected(splitter: JaColBERTTextSplitter) -> None:
    with pytest.raises(InvalidInputError, match="metadatas has 1 entries for 2 texts"):
        splitter.create_documents(["一。", "二。"], [{}])
    assert [
        d.metadata for d in JaColBERTTextSplitter(Splitter(len, 9)).create_documents(["一。"], [{"a": 1}])
    ] == [{"a": 1}]


def test_import_loads_neither_torch_nor_a_framework_that_is_not_needed() -> None:
    loaded = "[n for n in ('torch', 'transformers', 'voyager', 'llama_index', 'spacy') if n in sys.modules]"
    assert run_python(f"import sys, jacolbert_rag.langchain_splitter; print({loaded})") == "[]"
    adapter = "print('langchain_text_splitters' in sys.modules)"
    assert run_python(f"import sys, jacolbert_rag.langchain; {adapter}") == "False"


def test_without_langchain_text_splitters_the_error_names_the_extra() -> None:
    code = "import jacolbert_rag.langchain; jacolbert_rag.langchain.JaColBERTTextSplitter"
    said = import_error(code, missing="langchain_text_splitters")
    assert said.startswith("OptionalDependencyError")
    assert "pip install 'jacolbert-rag[langchain]'" in said
