"""Serves the page.

    python -m examples.qa_web                        # the demo's documents, at http://127.0.0.1:8000
    python -m examples.qa_web --index my_index       # those of an index that `jacolbert index` made

A language model is named by the environment; see `examples.qa_web.model`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from examples.demo import open_index
from examples.qa_web.app import EXAMPLES, make_app
from examples.qa_web.model import ChatModel, ModelError
from jacolbert_rag import JaColBERTError
from jacolbert_rag.server import allowed_hosts, is_local, serve


def main() -> None:
    """Serve until the process is told to end."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.qa_web", description="A page that answers questions from documents."
    )
    parser.add_argument("--index", type=Path, help="folder of an index; the demo's where not given")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--allow-host", action="append", default=[], help="name that a proxy calls it by")
    parser.add_argument("--allow-uploads", action="store_true", help="from other machines too")
    told = parser.parse_args()
    try:
        model = ChatModel.from_environment()
    except ModelError as error:
        parser.error(str(error))
    try:
        retriever = open_index(told.index)
        print(f"{len(retriever)} documents; {model.name if model else 'no language model'}.", flush=True)
        may_add = is_local(told.host) or told.allow_uploads
        app = make_app(
            retriever,
            model,
            hosts=allowed_hosts(told.host, told.allow_host),
            may_add=may_add,
            examples=() if told.index else EXAMPLES,
        )
        serve(app, told.host, told.port)
    except JaColBERTError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
