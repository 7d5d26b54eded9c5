"""Who may import whom, and what importing the package must not load."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "jacolbert_rag"

BASE = {"datatypes", "config", "errors"}
# Module -> what it may import of ours, besides the encode modules named for it; see CONTRIBUTING.md.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "datatypes": {"errors"},
    "config": {"errors"},
    "progress": set(),
    "encode.normalize": BASE,
    "encode.files": BASE,
    "encode.words": BASE | {"encode.normalize"},
    "encode.kanji": frozenset(),
    "encode.terms": BASE | {"encode.kanji", "encode.normalize", "encode.words"},
    "encode.fast": BASE | {"encode.files", "encode.normalize"},
    "encode.tokens": BASE | {"encode.fast", "encode.files", "encode.words"},
    "encode.workers": BASE | {"encode", "encode.checkpoint", "encode.encoder", "encode.tokens"},
    "encode.sentences": BASE,
    "encode.splitter": BASE | {"encode.sentences", "encode.tokens"},
    "encode.bert": BASE,
    "encode.model": BASE | {"encode.bert"},
    "encode.formats": BASE | {"encode.bert", "encode.files", "encode.model"},
    "encode.checkpoint": BASE | {"encode", "encode.bert", "encode.fast", "encode.files", "encode.formats",
                                 "encode.model", "encode.tokens", "encode.words"},
    "encode.encoder": BASE | {"encode.checkpoint", "encode.model", "encode.normalize", "encode.words",
                              "encode.workers", "progress"},
    "index.files": BASE,
    "index.database": BASE | {"index.files"},
    "index.pooling": BASE,
    "index.quantize": BASE | {"index.pooling"},
    "index.graph": BASE,
    "index.postings": BASE,
    "index.candidates": BASE | {"index.graph", "index.pooling", "index.postings"},
    "index.maxsim": BASE | {"index.quantize"},
    "index.filters": BASE,
    "index.columns": BASE | {"index.filters"},
    "index.lexical": BASE | {"encode.terms", "index.postings"},
    "index.fusion": BASE,
    "index.highlight": BASE | {"encode.sentences"},
    "index.snapshot": BASE | {"index.candidates", "index.database", "index.lexical", "index.maxsim",
                              "index.postings", "index.quantize"},
    "index.layout": BASE | {"index", "index.database", "index.files"},
    "index.connections": BASE | {"index", "index.database", "index.files", "index.layout"},
    "index.copying": BASE | {"index", "index.connections", "index.database", "index.files", "index.layout"},
    "index.load": BASE | {"index", "index.candidates", "index.database", "index.files", "index.graph",
                          "index.layout", "index.lexical", "index.postings", "index.quantize",
                          "index.snapshot"},
    "index.write": BASE | {"encode.terms", "index", "index.candidates", "index.database", "index.files",
                           "index.layout", "index.lexical", "index.load", "index.pooling", "index.postings",
                           "index.quantize", "index.snapshot"},
    "index.view": BASE | {"encode.terms", "index", "index.columns", "index.database", "index.filters",
                          "index.lexical", "index.snapshot", "index.write"},
    "index.search": BASE | {"index.fusion", "index.snapshot", "index.view"},
    "index.index": BASE | {"encode.terms", "index", "index.candidates", "index.connections", "index.copying",
                           "index.database", "index.files", "index.layout", "index.lexical", "index.load",
                           "index.migrate", "index.postings", "index.snapshot", "index.view", "index.write"},
    "index.migrate": BASE | {"index", "index.database", "index.files", "index.index", "index.layout"},
    "calibration": BASE | {"encode.sentences"},
    "retriever": BASE | {"calibration", "encode", "encode.checkpoint", "encode.encoder", "encode.splitter",
                         "index.fusion", "index.highlight", "index.search", "index.view",
                         "index", "index.database", "index.index", "index.layout", "index.maxsim",
                         "index.pooling",
                         "langchain", "llama_index", "progress"},
    "adapters": BASE | {"retriever"},
    "adapter_classes": {"adapters", "retriever"},
    "langchain": BASE | {"adapter_classes", "adapters", "langchain_documents", "langchain_splitter",
                         "langchain_store", "retriever"},
    "langchain_documents": BASE | {"adapters", "retriever"},
    "langchain_store": BASE | {"adapter_classes", "adapters", "langchain_documents", "retriever"},
    "langchain_splitter": BASE | {"adapters", "encode.splitter", "langchain", "langchain_documents",
                                  "langchain_store", "retriever"},
    "llama_index": BASE | {"adapter_classes", "adapters", "index.filters", "llama_index_nodes",
                           "llama_index_parser", "llama_index_store", "retriever"},
    "llama_index_nodes": BASE | {"adapters", "index.filters", "retriever"},
    "llama_index_parser": BASE | {"adapters", "encode.splitter", "llama_index", "llama_index_nodes",
                                  "llama_index_store", "retriever"},
    "llama_index_store": BASE | {"adapter_classes", "adapters", "encode.splitter", "index.filters",
                                 "index.view", "llama_index_nodes", "retriever"},
    "doctor": BASE | {"encode.checkpoint", "encode.encoder", "encode.formats", "encode.model",
                      "encode.normalize", "encode.tokens", "encode.words", "index.maxsim"},
    "index.stats": BASE | {"index.index"},
    "sources.decode": BASE,
    "sources.markdown": BASE,
    "sources.html": BASE | {"sources.decode", "sources.markdown"},
    "sources.pdf": BASE,
    "sources.json_lines": BASE,
    "sources.formats": BASE | {"encode.normalize", "sources.decode", "sources.html", "sources.markdown",
                               "sources.pdf"},
    "sources.files": BASE | {"index", "index.layout", "sources", "sources.formats", "sources.json_lines"},
    "sources.names": set(),
    "sources.read": BASE | {"encode.splitter", "index.database", "retriever", "sources.files",
                            "sources.formats", "sources.names"},
    "sources.update": BASE | {"encode.splitter", "progress", "retriever", "sources.formats", "sources.read"},
    "terminal": BASE | {"doctor", "encode.splitter", "index.stats"},
    "searches": BASE | {"retriever"},
    "server": BASE | {"retriever", "searches"},
    "cli": BASE | {"calibration", "retriever", "doctor", "encode", "encode.checkpoint", "index",
                   "index.filters", "index.index", "index.layout", "index.stats", "server",
                   "sources.json_lines", "terminal"},
}  # fmt: skip

# Third-party homes: a package may be imported by these modules only.
HOMES = {
    "voyager": {"index.graph"},
    "transformers": {"encode.model", "encode.checkpoint", "encode.fast", "doctor"},
    "huggingface_hub": {"encode.files"},
    "safetensors": {"encode.files", "encode.formats"},
    "torch": {
        "encode.bert",
        "encode.model",
        "encode.checkpoint",
        "encode.encoder",
        "encode.files",
        "encode.formats",
        "index.maxsim",
        "index.pooling",
        "index.quantize",
        "doctor",
    },
    "scipy": {"index.pooling"},
    "fugashi": {"encode.words"},
    "langchain_core": {
        "langchain",
        "langchain_documents",
        "langchain_splitter",
        "langchain_store",
    },
    "langchain_text_splitters": {"langchain_splitter"},
    "llama_index": {"llama_index", "llama_index_nodes", "llama_index_parser", "llama_index_store"},
    "typer": {"cli"},
    "yaml": {"sources.markdown"},
    "bs4": {"sources.html"},
    "pypdf": {"sources.pdf"},
    "fastapi": {"server"},
    "starlette": {"server"},
    "uvicorn": {"server"},
}


@cache
def modules() -> dict[str, ast.Module]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".")
        if not name.endswith("__init__"):
            found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def imported(tree: ast.Module) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_go_down_the_layers(module: str) -> None:
    ours = {
        m.removeprefix("jacolbert_rag.")
        for m in imported(modules()[module])
        if m.startswith("jacolbert_rag.")
    }
    used = {name for name in ours if name in modules()}
    assert used <= ALLOWED[module], f"{module} imports {used - ALLOWED[module]}"


@pytest.mark.parametrize("package", sorted(HOMES))
def test_third_parties_have_homes(package: str) -> None:
    users = {
        name
        for name, tree in modules().items()
        if any(m == package or m.startswith(package + ".") for m in imported(tree))
    }
    assert users <= HOMES[package]
    assert users


def test_library_knows_neither_training_nor_evals() -> None:
    for name, tree in modules().items():
        assert not {m.split(".")[0] for m in imported(tree)} & {"training", "evals", "examples", "tests"}, (
            name
        )


def loaded_after(code: str) -> set[str]:
    script = f"{code}\nimport sys; print(*sorted(m for m in sys.modules if '.' not in m))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(done.stdout.split())


HEAVY = {
    "torch",
    "transformers",
    "numba",
    "ranx",
    "langchain_core",
    "llama_index",
    "scipy",
    "voyager",
    "datasets",
}


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert not loaded_after("import jacolbert_rag; dir(jacolbert_rag)") & HEAVY


def test_importing_the_command_line_loads_nothing_heavy() -> None:
    assert not loaded_after("import jacolbert_rag.cli") & HEAVY


def test_tokenizing_loads_no_network() -> None:
    # Processes that only tokenise start in a moment, and hold no copy of torch.
    assert not loaded_after("import jacolbert_rag.encode.workers, jacolbert_rag.encode.tokens") & HEAVY


def test_retriever_loads_no_framework() -> None:
    loaded = loaded_after("from jacolbert_rag import JaColBERTRetriever")
    assert not loaded & {"langchain_core", "llama_index", "ranx", "numba", "datasets", "schedulefree"}


def test_searching_with_the_bundled_model_loads_no_transformers() -> None:
    # It takes longer to import than all else that a first search does.
    code = "from jacolbert_rag import JaColBERTRetriever as R; r = R.from_pretrained()"
    code += "; r.add(['湖']); r.search('湖')"
    assert not loaded_after(code) & {"transformers", "sympy", "scipy", "langchain_core", "llama_index"}


def test_package_imports_quickly() -> None:
    # The interpreter itself takes a part of this; the bound holds on a busy machine too.
    code = "import time; t = time.perf_counter(); import jacolbert_rag; print(time.perf_counter() - t)"
    times = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
        for _ in range(3)
    ]
    assert min(times) < 0.3


def test_public_names_are_all_there() -> None:
    import jacolbert_rag

    for name in jacolbert_rag.__all__:
        assert getattr(jacolbert_rag, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = jacolbert_rag.nothing
