"""Training questions: folders that do not fit together, and a run that was killed between its two folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import SENTENCES
from training import pairs
from training.options import TrainingError


def write_beir(folder: Path, qrels: list[tuple[str, str, int]] | None = None) -> Path:
    """Ten questions; each passage is an article of its own."""
    (folder / "qrels").mkdir(parents=True)
    corpus = [{"_id": f"p{i}", "title": f"題{i}", "text": text} for i, text in enumerate(SENTENCES)]
    queries = [{"_id": f"q{i}", "text": f"{text[:6]}とは?"} for i, text in enumerate(SENTENCES)]
    for name, rows in (("corpus", corpus), ("queries", queries)):
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    qrels = qrels or [(f"q{i}", f"p{i}", 1) for i in range(len(SENTENCES))]
    judged = "".join(f"{query}\t{document}\t{score}\n" for query, document, score in qrels)
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("last", ["held", "train"])
def test_a_run_goes_on_after_a_kill_between_its_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    data, out = write_beir(tmp_path / "d"), tmp_path / "o"
    settings: dict[str, Any] = {"beir": [data], "held": 0.5}
    pairs.main(out=tmp_path / "unbroken", **settings)
    real = Path.rename

    def killed(self: Path, target: Path) -> Path:
        if target == out / last:
            raise KeyboardInterrupt
        return real(self, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        pairs.main(out=out, **settings)
    monkeypatch.undo()
    assert not (out / "train").exists()
    pairs.main(out=out, **settings)
    for name in ("train", "held"):
        assert contents(out / name) == contents(tmp_path / "unbroken" / name) != {}
    assert not list(out.glob(".*.new"))


def test_tuples_are_questions_with_their_answers(tmp_path: Path) -> None:
    data = write_beir(tmp_path / "d", [("q0", "p0", 1), ("q0", "p1", 2), ("q0", "p2", 0), ("q3", "p3", 1)])
    pairs.main(beir=[data], out=tmp_path / "o", held=0.0)
    lines = (tmp_path / "o" / "train" / pairs.TUPLES_FILE).read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {"query_id": "d:q0", "document_ids": ["d:p0", "d:p1"], "n_positives": 2, "source": "d"},
        {"query_id": "d:q3", "document_ids": ["d:p3"], "n_positives": 1, "source": "d"},
    ]
    with pytest.raises(TrainingError, match="begun with other settings: held 0.0 -> 0.5"):
        pairs.main(beir=[data], out=tmp_path / "o", held=0.5)


def test_questions_on_neighbouring_passages_make_a_source(tmp_path: Path) -> None:
    data = write_beir(tmp_path / "d")
    pairs.main(beir=[data], out=tmp_path / "o", held=0.0, together=4)
    lines = (tmp_path / "o" / "train" / pairs.TUPLES_FILE).read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["source"] for row in rows] == [f"d/{i // 4}" for i in range(len(SENTENCES))]
    assert [row["query_id"] for row in rows] == [f"d:q{i}" for i in range(len(SENTENCES))]


def test_rows_of_no_text_are_named(tmp_path: Path) -> None:
    for n, judged in enumerate([("q99", "p1", 1), ("q1", "p99", 1)]):
        data = write_beir(tmp_path / f"d{n}", [("q0", "p0", 1), judged])
        with pytest.raises(
            TrainingError, match=f"names query '{judged[0]}' and passage '{judged[1]}', and one"
        ):
            pairs.main(beir=[data], out=tmp_path / f"o{n}")


def test_a_run_that_could_not_begin_holds_to_no_settings(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="corpus.jsonl is missing"):
        pairs.main(beir=[tmp_path / "typo"], out=tmp_path / "o")
    pairs.main(beir=[write_beir(tmp_path / "d")], out=tmp_path / "o")
    assert (tmp_path / "o" / "train").is_dir()


def test_sources_of_one_name_are_refused(tmp_path: Path) -> None:
    # Their ids begin with the source's name, so that passages would replace one another.
    a, b = write_beir(tmp_path / "a" / "jsquad"), write_beir(tmp_path / "b" / "jsquad")
    with pytest.raises(TrainingError, match="Several sources are called jsquad. Rename all but one"):
        pairs.main(beir=[a, b], out=tmp_path / "o")
    (tmp_path / "weak").mkdir()
    row = {"id": "1", "query": "京都 地理", "text": "京都は盆地にある。"}
    (tmp_path / "weak" / "jsquad.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n")
    with pytest.raises(TrainingError, match="Several sources are called jsquad"):
        pairs.main(beir=[a], weak=[tmp_path / "weak"], out=tmp_path / "o")
    (tmp_path / "weak" / "jsquad.jsonl").rename(tmp_path / "weak" / "wiki.jsonl")
    pairs.main(beir=[a], weak=[tmp_path / "weak"], out=tmp_path / "o")
    lines = (tmp_path / "o" / "train" / "queries.jsonl").read_text(encoding="utf-8").splitlines()
    assert {json.loads(line)["metadata"]["source"] for line in lines} == {"jsquad", "wiki"}
