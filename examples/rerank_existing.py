"""A search that you have already, with JaColBERT behind it: it orders what the other one finds.

    python -m examples.rerank_existing 子どもが熱を出したときに使える休暇は年に何日ありますか？

Theirs is BM25 over character bigrams here (`pip install bm25s`); any LangChain retriever may be in its place.
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from typing import Any

import bm25s
from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnableLambda

from examples.demo import read_demo
from jacolbert_rag.langchain import JaColBERTReranker

N_FOUND, N_KEPT = 50, 3


class TheirSearch(BaseRetriever):
    """BM25 over pairs of characters, of another library."""

    documents: list[Document]
    index: Any = None

    def model_post_init(self, context: Any) -> None:
        """Index the documents."""
        self.index = bm25s.BM25()
        texts = [f"{each.metadata['title']} {each.page_content}" for each in self.documents]
        self.index.index([bigrams(text) for text in texts], show_progress=False)

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun
    ) -> list[Document]:
        k = min(N_FOUND, len(self.documents))
        rows, _ = self.index.retrieve([bigrams(query)], k=k, show_progress=False)
        return [self.documents[row] for row in rows[0]]


def bigrams(text: str) -> list[str]:
    """Neighbouring characters."""
    return [a + b for a, b in pairwise(text)]


def reranked(theirs: BaseRetriever, reranker: JaColBERTReranker) -> Runnable[str, list[Document]]:
    """Their search, and the reranker behind it, as one step of a chain."""
    return RunnableLambda(lambda query: list(reranker.compress_documents(theirs.invoke(query), query)))


def main() -> None:
    """Ask the demo's documents, before and after."""
    parser = argparse.ArgumentParser(description="Ask the demo's documents.")
    parser.add_argument("question")
    question = parser.parse_args().question
    documents = [Document(each.text, id=each.id, metadata={"title": each.title}) for each in read_demo()]
    theirs = TheirSearch(documents=documents)
    ours = reranked(theirs, JaColBERTReranker.from_pretrained(top_n=N_KEPT))
    for name, found in (("theirs", theirs.invoke(question)[:N_KEPT]), ("reranked", ours.invoke(question))):
        print(f"{name}:")
        for document in found:
            print(f"  {document.metadata['title']}: {document.page_content[:40]}…")


if __name__ == "__main__":
    main()
