"""A QA bot in LangChain: what was found goes through a chain, and the answer comes streamed, with citations.

    python -m examples.langchain_bot 在宅勤務は週に何日までできますか？

With --model NAME it asks any server that speaks OpenAI's protocol (Ollama, llama-server, vLLM: --base-url),
which needs `pip install langchain-openai`; without, the answer is the best sentences of what was found.
"""

from __future__ import annotations

from typing import Any

from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnableBranch, RunnableLambda

from examples import answering
from examples.answering import NOTHING, Passage
from examples.demo import open_index


def passages_of(documents: list[Document]) -> list[Passage]:
    """What LangChain's retriever found, numbered."""
    return [
        Passage(
            number=n,
            id=document.id or "",
            title=document.metadata.get("title", ""),
            text=document.page_content,
            best=document.metadata["jacolbert"]["highlight"]["best_sentence"],
            confidence=document.metadata["jacolbert"]["scores"]["confidence"],
        )
        for n, document in enumerate(documents, start=1)
    ]


def make_search(retriever: BaseRetriever) -> Runnable[str, list[Passage]]:
    """Question -> numbered passages."""
    return retriever | RunnableLambda(passages_of)


def make_answer(model: BaseChatModel | None) -> Runnable[dict[str, Any], str]:
    """{"question", "passages"} -> an answer, streamed by a model, or extracted where there is none."""
    if model is None:
        return RunnableLambda(lambda given: answering.extracted(given["passages"]))
    ask: Runnable[dict[str, Any], Any] = RunnableLambda(
        lambda given: answering.messages(given["question"], given["passages"])
    )
    return RunnableBranch(
        (lambda given: not given["passages"], RunnableLambda(lambda _: NOTHING)),
        ask | model | StrOutputParser(),
    )


def main() -> None:
    """Ask the demo's documents."""
    told = answering.make_parser(__doc__).parse_args()

    model = None
    if told.model:
        from langchain_openai import ChatOpenAI

        model = ChatOpenAI(model=told.model, base_url=told.base_url, api_key=told.api_key)
    engine = open_index(told.index)
    can_abstain = engine.threshold("hybrid") is not None
    retriever = engine.as_langchain(k=4, mode="hybrid", highlight=True, abstain=can_abstain)

    passages = make_search(retriever).invoke(told.question)
    answer = ""
    for part in make_answer(model).stream({"question": told.question, "passages": passages}):
        print(part, end="", flush=True)
        answer += part
    print()
    print(answering.footer(answer, passages, by_model=model is not None))


if __name__ == "__main__":
    with answering.errors_in_words("langchain-openai"):
        main()
