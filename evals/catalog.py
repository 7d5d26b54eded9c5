"""The field's datasets: where they lie, under which licence, and how they are measured. Facts only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Place = Literal["hub", "git", "web"]


@dataclass(frozen=True)
class Source:
    """Files of a dataset at one place.

    Attributes:
        place: "hub" (huggingface.co), "git" (github.com) or "web".
        name: of the repository, OWNER/NAME; of "web", the folder's address.
        revision: a commit or a tag. "main" where no commit is known to hold these files: what it stood for is
            written down when it is downloaded. "" of the web.
        paths: files within; those of the hub may have a `*`.
    """

    place: Place
    name: str
    revision: str
    paths: tuple[str, ...]


@dataclass(frozen=True)
class Dataset:
    """A published dataset with its protocol.

    Attributes:
        name: what `--dataset` calls it.
        about: one line.
        reader: what turns its files into documents, queries and judgements; see `evals.readers`.
        files: what each part of it consists of, by the reader's names.
        split: of the queries.
        measure: that its authors report first.
        licence: of its texts.
        citation: whom to cite.
        passage: what is embedded of a document.
        n_queries: as published; None where no source says so.
        n_documents: the same.
        has_candidates: each query ranks its own candidates; else all search the whole corpus.
        base: a dataset that this one is made from.
    """

    name: str
    about: str
    reader: str
    files: Mapping[str, Source]
    split: str
    measure: str
    licence: str
    citation: str
    passage: str = "title, a space, text"
    n_queries: int | None = None
    n_documents: int | None = None
    has_candidates: bool = False
    base: str | None = None

    def differences(self, n_queries: int, n_documents: int) -> list[str]:
        """What is not as it was published."""
        counts = {"queries": (n_queries, self.n_queries), "documents": (n_documents, self.n_documents)}
        return [
            f"{found:,} {what}, and {expected:,} were published: figures differ from published ones."
            for what, (found, expected) in counts.items()
            if expected is not None and found != expected
        ]


MIRACL_QUERIES = Source(
    "hub",
    "miracl/miracl",
    "5be20db9509754dadad47689368639fcec739c00",
    ("miracl-v1.0-ja/topics/topics.miracl-v1.0-ja-dev.tsv",),
)
MIRACL_QRELS = Source(
    "hub",
    "miracl/miracl",
    "5be20db9509754dadad47689368639fcec739c00",
    ("miracl-v1.0-ja/qrels/qrels.miracl-v1.0-ja-dev.tsv",),
)
MIRACL_CITATION = "Zhang et al. MIRACL: a multilingual retrieval dataset, 18 languages. TACL 11, 2023"

HARD_NEGATIVES = "332a9acb49f5e83d5397683f79d23e588f685916"
JACWIR_FILES = {
    "rows": Source("hub", "hotchpotch/JaCWIR", "main", ("eval/*.parquet",)),
    "corpus": Source("hub", "hotchpotch/JaCWIR", "main", ("collection/*.parquet",)),
}
JACWIR_LICENCE = "for research and evaluation, not commercial"
JACWIR_CITATION = "Tateno. JaCWIR: Japanese casual web IR, 2024"

DATASETS: tuple[Dataset, ...] = (
    Dataset(
        name="jqara",
        about="quiz questions, each with 100 passages of Wikipedia",
        reader="jqara",
        files={"rows": Source("hub", "hotchpotch/JQaRA", "main", ("data/test-*.parquet",))},
        split="test",
        measure="nDCG@10",
        licence="CC BY-SA 4.0",
        citation="Tateno. JQaRA: Japanese question answering with retrieval augmentation, 2024",
        n_queries=1_667,
        has_candidates=True,
    ),
    Dataset(
        name="jacwir",
        about="questions on web pages, each with 100 titles and descriptions",
        reader="jacwir",
        files=JACWIR_FILES,
        split="eval",
        measure="MAP@10",
        licence=JACWIR_LICENCE,
        citation=JACWIR_CITATION,
        passage="title, a space, description",
        n_queries=5_000,
        n_documents=513_107,
        has_candidates=True,
    ),
    Dataset(
        name="jacwir-corpus",
        about="the same questions, searched in all titles and descriptions",
        reader="jacwir_corpus",
        files=JACWIR_FILES,
        split="eval",
        measure="nDCG@10",
        licence=JACWIR_LICENCE,
        citation=JACWIR_CITATION,
        passage="title, a space, description",
        n_queries=5_000,
        n_documents=513_107,
    ),
    Dataset(
        name="miracl-ja",
        about="questions of Wikipedia's readers, searched in all of it",
        reader="miracl",
        files={
            "queries": MIRACL_QUERIES,
            "qrels": MIRACL_QRELS,
            "corpus": Source(
                "hub",
                "miracl/miracl-corpus",
                "d921ec7e349ce0d28daf30b2da9da5ee698bef0d",
                ("miracl-corpus-v1.0-ja/docs-*.jsonl.gz",),
            ),
        },
        split="dev",
        measure="nDCG@10",
        licence="Apache 2.0; passages CC BY-SA 3.0",
        citation=MIRACL_CITATION,
        n_queries=860,
        n_documents=6_953_614,
    ),
    Dataset(
        name="miracl-ja-small",
        about="the same, searched in what BM25 finds for any of them and in the answers",
        reader="small_corpus",
        files={
            "lists": Source("web", "https://ben.clavie.eu/retrieval", "", ("miracl_ja_bm25_top1000.json",))
        },
        split="dev",
        measure="nDCG@10",
        licence="Apache 2.0; passages CC BY-SA 3.0",
        citation=MIRACL_CITATION + "; corpus of Clavié. JaColBERTv2.5. J. NLP 32(1), 2025, section 3.4",
        n_queries=860,
        n_documents=197_610,
        base="miracl-ja",
    ),
    Dataset(
        name="miracl-ja-hard",
        about="the same, searched in what BM25 and two dense models find",
        reader="beir_tables",
        files={
            part: Source(
                "hub", "mteb/MIRACLRetrievalHardNegatives", HARD_NEGATIVES, (f"ja-{part}/*.parquet",)
            )
            for part in ("queries", "qrels", "corpus")
        },
        split="dev",
        measure="nDCG@10",
        licence="CC BY-SA 4.0",
        citation=MIRACL_CITATION + "; corpus of Enevoldsen et al. MMTEB, 2025",
    ),
    Dataset(
        name="mrtydi-ja",
        about="questions of Wikipedia's readers, searched in all of it",
        reader="mrtydi",
        files={
            "queries": Source("hub", "castorini/mr-tydi", "main", ("mrtydi-v1.1-japanese/test.jsonl.gz",)),
            "corpus": Source(
                "hub", "castorini/mr-tydi-corpus", "main", ("mrtydi-v1.1-japanese/corpus.jsonl.gz",)
            ),
        },
        split="test",
        measure="MRR@10",
        licence="Apache 2.0; passages CC BY-SA 3.0",
        citation="Zhang et al. Mr. TyDi: a multi-lingual benchmark for dense retrieval. MRL 2021",
        n_queries=720,
        n_documents=7_000_027,
    ),
    Dataset(
        name="jsquad",
        about="questions on paragraphs of Wikipedia; titles stand in the text, as `title [SEP] paragraph`",
        reader="squad",
        files={
            "rows": Source("git", "yahoojapan/JGLUE", "v1.1.0", ("datasets/jsquad-v1.1/valid-v1.1.json",))
        },
        split="dev",
        measure="Recall@3",
        licence="CC BY-SA 4.0",
        citation="Kurihara, Kawahara, Shibata. JGLUE. LREC 2022",
        passage="the text, with its title",
        n_queries=4_442,
        n_documents=1_145,
    ),
    Dataset(
        name="jaquad",
        about="questions on paragraphs of Wikipedia",
        reader="squad",
        files={
            "rows": Source(
                "git",
                "SkelterLabsInc/JaQuAD",
                "23f5d72cc273c49b35e2d9efe0f51757aa1770bd",
                tuple(f"data/dev/jaquad_dev_{n:04}.json" for n in range(4)),
            )
        },
        split="dev",
        measure="nDCG@10",
        licence="CC BY-SA 3.0",
        citation="So, Byun, Kang, Cho. JaQuAD: Japanese question answering dataset, 2022",
        n_queries=3_939,
    ),
    Dataset(
        name="niilc",
        about="questions people ask, with the sentences of Wikipedia that answer them",
        reader="niilc",
        files={
            "rows": Source(
                "git",
                "mynlp/niilc-qa",
                "9830b116ceb11f55733d90c59789760c8297110c",
                ("data/NIILC-ECQA2015_dev.xml",),
            )
        },
        split="dev",
        measure="nDCG@10",
        licence="CC BY-SA 4.0",
        citation="NIILC question answering data, 2015",
    ),
    Dataset(
        name="jagovfaqs",
        about="questions to ministries, with their answers",
        reader="beir_tables",
        files={
            part: Source(
                "hub",
                "mteb/JaGovFaqsRetrieval",
                "0726b2af53c907628067871e2e7c84e0d8e099c2",
                (f"{part}/*.parquet",),
            )
            for part in ("queries", "qrels", "corpus")
        },
        split="test",
        measure="nDCG@10",
        licence="CC BY 4.0",
        citation="matsuxr. JaGovFaqs-22k, 2024; split of JMTEB",
        passage="the answer",
    ),
    Dataset(
        name="esci-ja",
        about="shoppers' searches, graded over products that have a description",
        reader="esci",
        files={"rows": Source("hub", "tasksource/esci", "main", ("data/test-*.parquet",))},
        split="test",
        measure="nDCG@10",
        licence="Apache 2.0",
        citation="Reddy et al. Shopping queries dataset: a large-scale ESCI benchmark, 2022",
        passage="title, a space, description",
        n_queries=4_206,
        n_documents=149_999,
    ),
)


def find(name: str) -> Dataset | None:
    """The dataset of that name."""
    return next((dataset for dataset in DATASETS if dataset.name == name), None)
