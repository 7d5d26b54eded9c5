"""A QA bot in LlamaIndex: a query engine of a retriever with a filter, a reranker, and a cited answer.

    python -m examples.llama_index_bot 吸い込みが弱いです --section ロボット掃除機

With --model NAME it asks any server that speaks OpenAI's protocol (Ollama, llama-server, vLLM: --base-url),
which needs `pip install llama-index-llms-openai-like`; without, the answer is the best sentences found.
"""

from __future__ import annotations

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.base.response.schema import StreamingResponse
from llama_index.core.llms import LLM, MockLLM
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.prompts import ChatPromptTemplate
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import BaseSynthesizer, CompactAndRefine
from llama_index.core.response_synthesizers.no_text import NoText
from llama_index.core.schema import BaseNode, NodeWithScore, QueryBundle

from examples import answering
from examples.answering import Passage
from examples.demo import open_index
from jacolbert_rag import JaColBERTRetriever
from jacolbert_rag.index.filters import Ids
from jacolbert_rag.llama_index import JaColBERTRerank

N_FOUND, N_READ = 20, 4


class Numbered(BaseNodePostprocessor):
    """Shows a model each node with the number that it is cited by, between marks."""

    mark: str

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        return [
            NodeWithScore(node=self._shown(n, each.node), score=each.score)
            for n, each in enumerate(nodes, start=1)
        ]

    def _shown(self, number: int, node: BaseNode) -> BaseNode:
        # Copies: what the retriever found stays as it is. Braces in a text are not the template's.
        title = str(node.metadata.get("title", "")).replace("{", "{{").replace("}", "}}")
        return node.model_copy(update={"text_template": f"{self.mark}\n[{number}] {title}\n{{content}}"})


def make_engine(retriever: JaColBERTRetriever, llm: LLM | None, section: str | None) -> RetrieverQueryEngine:
    """Full-text search finds, JaColBERT orders, and a model answers where there is one."""
    found = retriever.as_llama_index(
        k=N_FOUND,
        mode="hybrid",
        filters={"section": section} if section else None,
        abstain=retriever.threshold("hybrid") is not None,
    )
    mark = answering.new_mark()
    template = ChatPromptTemplate(
        [
            ChatMessage(role="system", content=answering.SYSTEM.format(mark=mark)),
            ChatMessage(role="user", content=f"{{context_str}}\n{mark}\n\n質問: {{query_str}}"),
        ]
    )
    if llm is None:
        synthesizer: BaseSynthesizer = NoText(llm=MockLLM())  # without one LlamaIndex would look for OpenAI's
    else:
        synthesizer = CompactAndRefine(llm=llm, text_qa_template=template, streaming=True)
    return RetrieverQueryEngine(
        found,
        response_synthesizer=synthesizer,
        node_postprocessors=[JaColBERTRerank(engine=retriever, top_n=N_READ), Numbered(mark=mark)],
    )


def passages_of(retriever: JaColBERTRetriever, question: str, nodes: list[NodeWithScore]) -> list[Passage]:
    """What the engine read, numbered, with the sentence of each that answers best."""
    if not nodes:
        return []
    read = Ids(frozenset(each.node.node_id for each in nodes))
    hits = retriever.search(question, len(nodes), mode="hybrid", filter=read, highlight=True)
    by_id = {hit.id: hit for hit in hits}
    return [answering.passage_of(n, by_id[each.node.node_id]) for n, each in enumerate(nodes, start=1)]


def main() -> None:
    """Ask the demo's documents."""
    parser = answering.make_parser(__doc__)
    parser.add_argument("--section", help="only documents of this section")
    told = parser.parse_args()

    llm = None
    if told.model:
        from llama_index.llms.openai_like import OpenAILike

        llm = OpenAILike(model=told.model, api_base=told.base_url, api_key=told.api_key, is_chat_model=True)
    retriever = open_index(told.index)
    response = make_engine(retriever, llm, told.section).query(told.question)
    passages = passages_of(retriever, told.question, response.source_nodes)

    answer = ""
    if passages and isinstance(response, StreamingResponse):
        for part in response.response_gen:
            print(part, end="", flush=True)
            answer += part
        print()
    else:
        print(answering.extracted(passages))
    print(answering.footer(answer, passages, by_model=llm is not None))


if __name__ == "__main__":
    with answering.errors_in_words("llama-index-llms-openai-like"):
        main()
