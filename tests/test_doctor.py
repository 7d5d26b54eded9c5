from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from jacolbert_rag import doctor
from jacolbert_rag.cli import app
from jacolbert_rag.encode import checkpoint
from tests.conftest import tiny_vocab


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["doctor", *arguments])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    speed = doctor._speed
    monkeypatch.setattr(doctor, "_speed", lambda encoder, seconds: speed(encoder, 0.05))


def examine(name: str | Path | None = None, **options: object) -> doctor.Report:
    return doctor.examine(checkpoint.load(name), device="cpu", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bundled_model_is_healthy(dtype: str) -> None:
    report = examine(dtype=dtype)
    assert report.is_healthy, [check for check in report.checks if not check.passed]
    assert report.warnings == []
    assert report.tokens["query_marker"] == {"token": "[unused0]", "id": 5}
    assert len(report.tokens["skipped_ids"]) == 32
    sources = {s.name: s.source for s in report.settings}
    assert sources["document_length"] == "artifact.metadata"
    assert sources["query_length"] == "default"
    assert report.compute["dtype"] == dtype
    assert all(rate > 0 for rate in report.speed.values())
    names = {check.name for check in report.checks}
    assert ("bfloat16 against float32" in names) == (dtype == "bfloat16")
    json.dumps(report.to_json())


def test_checkpoint_without_metadata_is_told_of(tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (folder / "artifact.metadata").unlink()
    report = examine(folder, dtype="float32")
    assert report.is_healthy
    assert any("document_length, query_marker, document_marker" in w for w in report.warnings)
    assert {s.source for s in report.settings} == {"weights", "default"}


def test_untrained_weights_and_a_strange_vocabulary_are_told_of(tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    vocab = [t if t != "`" else "余白" for t in tiny_vocab()]
    (folder / "vocab.txt").write_text("\n".join(vocab) + "\n", encoding="utf-8")
    with pytest.warns(UserWarning, match="skiplist"):
        report = examine(folder, dtype="float32")
    assert report.tokens["skiplist_not_in_vocabulary"] == ["`"]
    assert any("skip_unknown" in w for w in report.warnings)
    assert any("unknown to the vocabulary" in w for w in report.warnings)


def test_network_that_attends_to_what_it_should_not_fails(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A kernel that drops the mask, as a varlen one would.
    from jacolbert_rag.encode.model import ColBERT

    forward = ColBERT.forward

    def without_mask(self: ColBERT, ids: torch.Tensor, attended: torch.Tensor | None = None) -> torch.Tensor:
        return forward(self, ids, None)

    monkeypatch.setattr(ColBERT, "forward", without_mask)
    report = examine(tiny_model, dtype="float32")
    assert not report.is_healthy
    failed = {check.name for check in report.checks if not check.passed}
    assert failed >= {"[MASK]s are not attended to", "a text does not depend on its batch"}
    assert sum("failed" in warning for warning in report.warnings) == len(failed)


def test_command_prints_what_was_found(tiny_model: Path) -> None:
    code, out, _ = run(str(tiny_model), "--dtype", "float32", "--query-length", "jqara")
    assert code == 0
    for words in ("HF_ColBERT", "'[unused0]' = 5", "artifact.metadata", "caller", "documents/s", "Self-test"):
        assert words in out


def test_command_prints_json(tiny_model: Path) -> None:
    code, out, _ = run(str(tiny_model), "--json", "--dtype", "float32")
    assert code == 0
    report = json.loads(out)
    assert report["healthy"] is True
    assert report["checkpoint"]["format"] == "HF_ColBERT"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["/nowhere"], "is no folder"),
        (["--dtype", "int8"], "expected auto, float32"),
        (["--query-length", "x"], "expected 'paper'"),
    ],
)
def test_command_names_what_is_wrong(arguments: list[str], words: str) -> None:
    code, _, err = run(*arguments)
    assert code == 2
    assert words in err.replace("\n", " ")
