"""Files of people: what is read of each kind, what they are called, and how an index follows them."""

from __future__ import annotations

import gzip
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jacolbert_rag import Document, InvalidInputError, JaColBERTRetriever, sources
from jacolbert_rag.errors import OptionalDependencyError
from jacolbert_rag.sources.decode import decode
from jacolbert_rag.sources.markdown import front_matter, sections
from jacolbert_rag.sources.names import FolderNames
from jacolbert_rag.sources.pdf import unwrapped

TEXT = "①領収書は㈱山田の経理へ。〜翌月5日まで、ｶﾀｶﾅでもよい。"


# Encodings.


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp932", "euc_jis_2004"])
def test_encodings_of_japanese_files(encoding: str) -> None:
    text = TEXT.replace("㈱", "") if encoding == "euc_jis_2004" else TEXT
    text = text.replace("〜", "～") if encoding == "cp932" else text
    assert decode(text.encode(encoding)) == text


@pytest.mark.parametrize("encoding", ["euc_jp", "iso2022_jp", "shift_jis"])
@pytest.mark.parametrize("text", ["領収書は翌月の5日までに出す。", "住所録", "カタカナ", "漢字だけ"])
def test_older_encodings(encoding: str, text: str) -> None:
    assert decode(text.encode(encoding)) == text
    assert decode(f"{text}\r\n二行目\r".encode(encoding)) == f"{text}\n二行目\n"


def test_a_declared_encoding_is_tried_first() -> None:
    data = "､｡".encode("cp932")  # also EUC-JP of one kanji
    assert decode(data) != "､｡"
    assert decode(data, "Shift_JIS") == "､｡"
    assert decode("領収書".encode(), "no-such-encoding") == "領収書"
    assert decode("領収書".encode(), "ascii") == "領収書"


def test_what_a_page_declares_is_believed_where_it_can_be_so() -> None:
    page = "<meta charset={}><p>本文。</p>"
    for said in (
        "utf-16",
        "iso-8859-1",
        "windows-1252",
        "cp037",
        "unicode_escape",
        "undefined",
        "utf-8",
    ):
        data = page.format(said).encode()
        assert "本文。" in decode(data, said), said
        assert decode(b"\xef\xbb\xbf" + data, said) == data.decode(), said
    assert decode("本文".encode(), "a\0b") == "本文"
    assert decode("caf\u00e9".encode("cp1252"), "iso-8859-1") == "caf\u00e9"


@pytest.mark.parametrize("data", [b"\x89PNG\r\n\x1a\n\x00\x00", b"\xff\xfe\x00", "a日本".encode("utf-16-le")])
def test_what_is_no_text_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidInputError, match="is not text in UTF-8"):
        decode(data)


# Markdown.


def test_front_matter_is_metadata() -> None:
    text = (
        "---\n部署: 経理\ntitle: 経費規程\n改定日: 2026-04-01\n版: 3\n印: [重要, 全社]\n---\n"
        "# 精算\n月末まで。\n"
    )
    found = front_matter(text)
    assert found.values == {
        "部署": "経理", "title": "経費規程", "改定日": "2026-04-01", "版": 3, "印": ["重要", "全社"],
    }  # fmt: skip
    assert found.text == "# 精算\n月末まで。\n"
    (document,) = sources.content_of("規程/経費.md", text.encode()).documents
    assert (document.id, document.title) == ("規程/経費.md#精算", "経費規程 / 精算")
    assert document.metadata == {
        "部署": "経理", "改定日": "2026-04-01", "版": 3, "印": ["重要", "全社"], "source": "規程/経費.md",
    }  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "---\n区切り線の間の文。\n---\n本文。\n",
        "--- 部署: 経理 ---\n本文。\n",
        "本文。\n---\n部署: 経理\n---\n",
        "---\n部署: 経理\n本文が続く。\n",
        f"---\n{'長: い' * 10_000}\n---\n本文。\n",
    ],
)
def test_what_is_no_front_matter_is_text(text: str) -> None:
    assert front_matter(text) == ({}, text, "")


@pytest.mark.parametrize(
    ("yaml", "problem"),
    [
        ("- 一\n- 二", "names no fields"),
        ("部署: 人事\n第1条: 目的: 経費", "line 3: mapping values are not allowed here; write key: value"),
        ("日: 2026-02-31", "is not YAML"),
        ("a: &a [1]\nb: [*a, *a]", "aliases"),
        ("a: !!bool x", "is not YAML"),
        ("a: !!timestamp soon", "is not YAML"),
        ("a: !!int ''", "is not YAML"),
        ('a: "\\UFFFFFFFF"', "is not YAML"),
        (f"a: {'9' * 5_000}", "is not YAML"),
        ("\n".join(f"{' ' * n}a:" for n in range(60)), "nested too deeply"),
        ("a: !!python/object/apply:os.system [ls]", "is not YAML"),
        ("a: " + "[" * 5_000, "nested too deeply"),
    ],
)
def test_front_matter_that_cannot_be_read_is_text_and_named(yaml: str, problem: str) -> None:
    text = f"---\n{yaml}\n---\n本文。\n"
    found = front_matter(text)
    assert (found.values, found.text) == ({}, text)
    assert problem in found.problem
    assert any(problem in note for note in sources.content_of("a.md", text.encode()).notes)


def test_keys_that_the_index_says_itself() -> None:
    found = sources.content_of("a.md", "---\nsource: 社外\n部署: 総務\n---\n本文。".encode())
    assert found.documents == [Document("a.md", "本文。", {"部署": "総務", "source": "a.md"}, "a")]
    assert "'source' is left out" in found.notes[0]


def test_markdown_headings() -> None:
    code = "```sh\n# 注釈\n```\n~~~\n# x\n```\n~~~\n#タグ\n"
    assert sections(f"前\n# 表題 #\n本文\n## C#\n型\n#\n空\n{code}#### 終\n## 次\n# 後\n") == [
        ((), "前\n"),
        (("表題",), "本文\n"),
        (("表題", "C#"), f"型\n#\n空\n{code}"),
        (("表題", "C#", "終"), ""),
        (("表題", "次"), ""),
        (("後",), ""),
    ]


def test_code_that_is_no_fence_and_fences_within_fences() -> None:
    assert [each.headings for each in sections("```一行```\n# 甲\n")] == [(), ("甲",)]
    assert [each.headings for each in sections("````\n```\n# 注釈\n````\n# 甲\n")] == [(), ("甲",)]
    assert [each.headings for each in sections("~~~ 題\n```\n# 注釈\n~~~\n# 甲\n")] == [(), ("甲",)]
    # In time that grows with the length.
    long = f"# 甲{' ' * 100_000}乙 ##\n"
    assert sections(long)[1].headings == (f"甲{' ' * 100_000}乙",)
    same = sources.content_of("a.md", "# 同じ\n文。\n".encode() * 20_000).documents
    assert [same[0].id, same[1].id, same[-1].id] == ["a.md#同じ", "a.md#同じ-2", "a.md#同じ-20000"]


# HTML.

PAGE = """<!doctype html><html><head><title>休暇の案内 | 社内ポータル</title><script>悪</script></head>
<body><nav>目次</nav><header><h1>休暇の案内</h1></header>
<p>有給休暇は<b>年に10日</b>、入社から
半年で<ruby>付与<rp>(</rp><rt>ふよ</rt></ruby>する。<!-- 秘密 --></p>
<h2>申請 <small>(全社)</small></h2><ul><li>前日まで</li><li>上長へ  email で<br>出す</li></ul>
<table><tr><th>種類</th><th>日数</th></tr><tr><td>慶弔</td><td>5日</td></tr></table>
<pre>一行目
  二行目</pre><footer>©</footer></body></html>"""


def test_sections_of_html() -> None:
    documents = sources.content_of("案内.html", PAGE.encode()).documents
    assert [(each.id, each.title, each.text) for each in documents] == [
        (
            "案内.html#休暇の案内",
            "休暇の案内",
            "有給休暇は年に10日、入社から半年で付与する。",
        ),
        (
            "案内.html#休暇の案内/申請 (全社)",
            "休暇の案内 / 申請 (全社)",
            "前日まで\n上長へ email で\n出す\n種類 日数\n慶弔 5日\n一行目\n二行目",
        ),
    ]


@pytest.mark.parametrize("encoding", ["cp932", "euc_jp", "utf-8"])
@pytest.mark.parametrize("is_declared", [True, False])
def test_encodings_of_html(encoding: str, is_declared: bool) -> None:
    name = {"cp932": "Shift_JIS", "euc_jp": "EUC-JP"}.get(encoding, encoding)
    head = f"<meta charset={name}>" if is_declared else ""
    data = f"{head}<title>規程</title><p>有給は10日。</p>".encode(encoding)
    (document,) = sources.content_of("a.htm", data).documents
    assert (document.title, document.text) == ("規程", "有給は10日。")


def test_the_main_part_of_a_page_is_taken() -> None:
    html = "<body><div>広告</div><main><h1>題</h1><p>本文。</p></main><aside>他</aside></body>"
    (document,) = sources.content_of("a.html", html.encode()).documents
    assert (document.title, document.text) == ("題", "本文。")


def test_a_page_in_one_form_and_a_main_part_without_text() -> None:
    form = "<h1>規程</h1><p>本文です。</p><select><option>選択</select><button>送信</button>"
    html = f"<h2> </h2><p>前書き。</p><form>{form}</form>"
    documents = sources.content_of("a.aspx.html", html.encode()).documents
    assert [document.text for document in documents] == ["前書き。", "本文です。"]
    (document,) = sources.content_of("a.html", "<main> </main><p>本文。</p>".encode()).documents
    assert document.text == "本文。"


@pytest.mark.parametrize("data", [b"<a " * 100_000, b"<a b='" * 50_000, b"<!--" * 50_000])
def test_tags_without_an_end_cost_no_time(data: bytes) -> None:
    with pytest.raises(InvalidInputError, match="tags do not end"):
        sources.content_of("a.html", data)


def test_nul_characters_make_no_headings() -> None:
    (document,) = sources.content_of("a.html", "<p>&#0;1偽の見出し</p><p>本文。</p>".encode()).documents
    assert document.id == "a.html"


# PDF.


def pdf_of(*pages: str, title: str = "") -> bytes:
    """A small PDF: a text of Latin letters a page."""
    from io import BytesIO

    from pypdf import PdfWriter
    from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

    writer = PdfWriter()
    font = DictionaryObject(
        {NameObject("/Type"): NameObject("/Font"), NameObject("/Subtype"): NameObject("/Type1"),
         NameObject("/BaseFont"): NameObject("/Helvetica")}
    )  # fmt: skip
    for text in pages:
        page = writer.add_blank_page(612, 792)
        fonts = DictionaryObject({NameObject("/F1"): writer._add_object(font)})
        page[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): fonts})
        stream = DecodedStreamObject()
        stream.set_data(f"BT /F1 24 Tf 72 720 Td ({text}) Tj ET".encode())
        page[NameObject("/Contents")] = writer._add_object(stream)
    if title:
        writer.add_metadata({"/Title": title})
    file = BytesIO()
    writer.write(file)
    return file.getvalue()


def test_pages_of_a_pdf() -> None:
    found = sources.content_of(
        "b/駐車場.PDF", pdf_of("Parking is on floor two.", "", "Ask the desk.", title="駐車の案内")
    )
    assert [(each.id, each.title, each.text, each.metadata["page"]) for each in found.documents] == [
        ("b/駐車場.PDF#p1", "駐車の案内", "Parking is on floor two.", 1),
        ("b/駐車場.PDF#p3", "駐車の案内", "Ask the desk.", 3),
    ]
    assert found.notes == ["1 of its 3 pages have no text; pictures need OCR first"]


def test_radicals_of_a_pdf_are_the_kanji_that_they_look_like(monkeypatch: pytest.MonkeyPatch) -> None:
    from pypdf import PageObject

    monkeypatch.setattr(PageObject, "extract_text", lambda self: "社⽤⾞は総務部⻑が管理する。")
    (document,) = sources.content_of("a.pdf", pdf_of("x")).documents
    assert document.text == "社用車は総務部長が管理する。"


@pytest.mark.parametrize("title", ["", "Microsoft Word - 規程.doc", "Untitled 1", "規程_final.docx", "無題"])
def test_titles_of_a_pdf_that_nobody_wrote(title: str) -> None:
    (document,) = sources.content_of("規程.pdf", pdf_of("Parking.", title=title)).documents
    assert document.title == "規程"


def test_pdfs_that_cannot_be_read() -> None:
    from io import BytesIO

    from pypdf import PdfReader, PdfWriter

    writer = PdfWriter(clone_from=PdfReader(BytesIO(pdf_of("Secret."))))
    writer.encrypt("password")
    locked = BytesIO()
    writer.write(locked)
    whole = pdf_of("Parking.")
    for data, message in [
        (b"%PDF-1.4 nothing", "is no PDF that can be read"),
        (b"", "is no PDF that can be read"),
        (whole[: len(whole) // 3], "is no PDF that can be read"),
        (pdf_of("", ""), "are pictures without text"),
        (locked.getvalue(), "asks for a password"),
    ]:
        with pytest.raises(InvalidInputError, match=message):
            sources.content_of("a.pdf", data)


def test_lines_of_a_pdf_are_joined_to_sentences() -> None:
    head, tail = "第3条 領収書\n", "\n\n一 交通費\n二 宿泊費\nこの行は長いが、文はここで終わる。\n次の段落。"
    wrapped = ["立て替えた者は、領収書を翌月の五日ま", "でに出す。遅れたときは、上長の承認を", "得る。"]
    assert unwrapped(head + "\n".join(wrapped) + tail) == head + "".join(wrapped) + tail
    assert unwrapped("") == ""
    assert unwrapped("one line of words\nand another") == "one line of words\nand another"


# Formats in general.


def test_packed_files_and_unknown_ones() -> None:
    packed = gzip.compress("# 題\n本文。".encode())
    (document,) = sources.content_of("a.md.gz", packed).documents
    assert (document.id, document.title) == ("a.md.gz#題", "題")
    assert sources.content_of("甲.txt.gz", gzip.compress("文。".encode())).documents[0].title == "甲"
    with pytest.raises(InvalidInputError, match="cannot be unpacked"):
        sources.content_of("a.md.gz", packed[:-4])
    with pytest.raises(InvalidInputError, match="of no format"):
        sources.content_of("a.docx", b"PK")
    assert sources.content_of("a.txt", b" \n").documents == []


def test_what_unpacks_to_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jacolbert_rag.sources.formats.MAX_UNPACKED", 1_000)
    with pytest.raises(InvalidInputError, match="more than 1,000 bytes"):
        sources.content_of("a.txt.gz", gzip.compress(b"a" * 1_001))


def test_a_reader_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jacolbert_rag.sources.formats.find_spec", lambda name: None)
    with pytest.raises(OptionalDependencyError, match=r"jacolbert-rag\[files\]"):
        sources.content_of("a.pdf", b"")
    assert sources.content_of("a.md", b"text").documents


def test_reading_markdown_needs_neither_reader() -> None:
    import subprocess

    code = (
        "import sys\nsys.modules['bs4'] = sys.modules['pypdf'] = None\n"
        "from jacolbert_rag import sources\nassert sources.content_of('a.md', b'text').documents\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("suffix", [".md", ".html", ".pdf", ".txt.gz"])
@given(data=st.binary(max_size=300) | st.text(max_size=300).map(lambda text: text.encode("utf-8", "replace")))
@settings(max_examples=60, deadline=None)
@example(data=b"<![foo[bar]]>")
@example(data=b"<div>" * 10_000)
@example(data=b"<p>a" * 10_000)
@example(data=b"<p>a</p>" * 10_000)
@example(data=b"---\n? [\n---\n")
def test_bytes_of_any_kind_are_read_or_refused(suffix: str, data: bytes) -> None:
    heads = {".html": b"<p>", ".pdf": b"%PDF-1.4\n", ".txt.gz": b"\x1f\x8b\x08", ".md": b"---\n"}
    for each in (data, heads[suffix] + data):
        try:
            found = sources.content_of(f"a{suffix}", each)
        except InvalidInputError:
            continue
        assert all(document.text.strip() for document in found.documents)
        assert len({document.id for document in found.documents}) == len(found.documents)


# What files are called.


def make(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"# 題\n{name}の本文。", encoding="utf-8")


def test_files_are_called_by_their_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "規程/一.md", "規程/下/二.md", "三.md")
    names = FolderNames({})
    names.add(tmp_path / "規程")
    assert names.name_of(tmp_path / "規程" / "下" / "二.md") == "規程/下/二.md"
    names.add(tmp_path / "三.md")  # its folder is named for what lies in it, not for all below
    assert names.name_of(tmp_path / "三.md") == f"{tmp_path.name}/三.md"
    assert names.name_of(tmp_path / "規程" / "一.md") == "規程/一.md"
    known = names.to_json()
    monkeypatch.chdir(tmp_path / "規程")
    for path in (Path(), Path("下"), Path("一.md"), tmp_path / "規程" / "下" / "二.md"):
        names.add(path)  # lies in a folder that has a name
    assert names.to_json() == known
    assert FolderNames.of(known) == names


def test_a_folder_that_moved_keeps_its_name_and_another_gets_a_number(tmp_path: Path) -> None:
    make(tmp_path, "甲/規程/一.md", "乙/規程/一.md")
    names = FolderNames({})
    names.add(tmp_path / "甲" / "規程")
    names.add(tmp_path / "乙" / "規程")
    assert names.name_of(tmp_path / "乙" / "規程" / "一.md") == "規程-2/一.md"
    assert "規程-2" in names.notes[0]
    (tmp_path / "甲").rename(tmp_path / "丙")
    names.add(tmp_path / "丙" / "規程")
    assert names.name_of(tmp_path / "丙" / "規程" / "一.md") == "規程/一.md"
    assert names.notes[1:] == [f"規程 is {tmp_path / '丙' / '規程'} now; it was {tmp_path / '甲' / '規程'}."]


def test_a_folder_is_moved_only_where_its_files_are(tmp_path: Path, retriever: JaColBERTRetriever) -> None:
    make(tmp_path, "甲/規程/一.md", "甲/規程/二.md", "乙/規程/二.md", "乙/規程/三.md", "乙/規程/四.md")
    sources.index_files(retriever, [tmp_path / "甲" / "規程"])
    (tmp_path / "甲").rename(tmp_path / "甲2")  # or its disk is not there
    sources.index_files(retriever, [tmp_path / "乙" / "規程"], prune=True)
    assert {document.metadata["source"] for document in retriever} == {
        "規程/一.md", "規程/二.md", "規程-2/二.md", "規程-2/三.md", "規程-2/四.md",
    }  # fmt: skip
    # Both move: each keeps its name.
    (tmp_path / "乙").rename(tmp_path / "乙2")
    assert sources.index_files(retriever, [tmp_path / "乙2" / "規程"], prune=True).n_changed == 0
    assert sources.index_files(retriever, [tmp_path / "甲2" / "規程"], prune=True).n_changed == 0
    assert len(retriever) == 5


def test_folders_within_a_folder_move_with_it(tmp_path: Path, retriever: JaColBERTRetriever) -> None:
    make(tmp_path, "手引き/規程/一.md", "手引き/二.md")
    sources.index_files(retriever, [tmp_path / "手引き" / "規程"])
    sources.index_files(retriever, [tmp_path / "手引き"])
    (tmp_path / "新").mkdir()
    (tmp_path / "手引き").rename(tmp_path / "新" / "手引き")
    done = sources.index_files(retriever, [tmp_path / "新" / "手引き"], prune=True)
    assert (done.n_changed, done.n_unchanged, done.n_deleted) == (0, 2, 0)
    assert {document.metadata["source"] for document in retriever} == {"規程/一.md", "手引き/二.md"}


def test_what_is_from_no_file_is_not_pruned(tmp_path: Path, retriever: JaColBERTRetriever) -> None:
    make(tmp_path, "規程/一.md")
    place = (tmp_path / "規程" / "報告.docx").as_posix()
    lines = '{"id": "faq-1", "text": "別の文。", "metadata": {"source": "規程/faq.xlsx"}}\n'
    (tmp_path / "faq.jsonl").write_text(lines, encoding="utf-8")
    retriever.add([Document("外", "外の文。", {"source": place})])
    for _ in range(2):
        done = sources.index_files(retriever, [tmp_path / "規程", tmp_path / "faq.jsonl"], prune=True)
        assert (done.n_deleted, done.n_gone, len(retriever)) == (0, 0, 3)
    for name in ("", " ", "/", "//"):
        with pytest.raises(InvalidInputError, match="is of no document"):
            sources.delete_named(retriever, name)
    assert sources.delete_named(retriever, "規程/") == ["規程/一.md#題"]
    assert len(retriever) == 2


def test_a_folder_that_cannot_be_listed_is_not_pruned(
    tmp_path: Path, retriever: JaColBERTRetriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "規程/一.md", "規程/下/二.md", "規程/他/三.md")
    sources.index_files(retriever, [tmp_path / "規程"])
    (tmp_path / "規程" / "他" / "三.md").unlink()
    scandir = os.scandir

    def refused(path: Any) -> Any:
        if str(path).endswith("下"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    done = sources.index_files(retriever, [tmp_path / "規程"], prune=True)
    assert "下: the folder cannot be listed" in done.problems[0]
    assert {document.metadata["source"] for document in retriever} == {"規程/一.md", "規程/下/二.md"}


def test_odd_files_leave_the_others(tmp_path: Path, retriever: JaColBERTRetriever) -> None:
    make(tmp_path, "規程/一.md", "規程/a.md#題.md")
    (tmp_path / "規程" / "a.md").write_text("# 題.md#題\n本文。", encoding="utf-8")
    (tmp_path / "規程" / "\u3000.txt").write_text("\x01\x02", encoding="utf-8")
    (tmp_path / "規程" / "か\u3099.md").write_text("一つ目。", encoding="utf-8")
    (tmp_path / "規程" / "が.md").write_text("二つ目。", encoding="utf-8")
    done = sources.index_files(retriever, [tmp_path / "規程"])
    assert len([each for each in done.problems if "another file" in each]) == 2
    assert {"規程/一.md#題", "規程/が.md"} <= set(retriever.ids())
    with pytest.raises(InvalidInputError, match="cannot be read"):
        sources.index_files(retriever, [tmp_path / ("長" * 400)])


def test_a_file_first_and_then_its_folder(tmp_path: Path) -> None:
    make(tmp_path, "規程/一.md", "規程/下/二.md")
    names = FolderNames({})
    names.add(tmp_path / "規程" / "一.md")
    names.add(tmp_path / "規程" / "下" / "二.md")
    before = {path: names.name_of(path) for path in sorted((tmp_path / "規程").rglob("*.md"))}
    assert sorted(before.values()) == ["下/二.md", "規程/一.md"]
    names.add(tmp_path / "規程")
    assert {path: names.name_of(path) for path in before} == before
    assert names.starts_within(tmp_path / "規程") == ["規程/", "下/"]


def test_links_and_what_is_no_file(tmp_path: Path, retriever: JaColBERTRetriever) -> None:
    make(tmp_path, "外/一.md", "規程/二.md", "外/下/三.md")
    (tmp_path / "規程" / "一.md").symlink_to(tmp_path / "外" / "一.md")
    (tmp_path / "規程" / "無い.md").symlink_to(tmp_path / "無い.md")
    (tmp_path / "規程" / "下").symlink_to(tmp_path / "外" / "下")
    (tmp_path / "規程" / "輪").symlink_to(tmp_path / "規程")
    (tmp_path / "近道").symlink_to(tmp_path / "規程")
    os.mkfifo(tmp_path / "規程" / "管.md")
    sources.index_files(retriever, [tmp_path / "規程"])
    assert retriever.ids() == ["規程/一.md#題", "規程/二.md#題"]
    done = sources.index_files(retriever, [tmp_path / "近道", tmp_path / "規程" / "一.md"])
    assert (done.n_changed, done.n_unchanged) == (0, 2)


def test_names_are_composed(tmp_path: Path) -> None:
    taken_apart = "か\u3099く"  # がく as macOS may store it
    make(tmp_path / taken_apart, f"{taken_apart}.md")
    names = FolderNames({})
    names.add(tmp_path / taken_apart)
    assert names.name_of(tmp_path / taken_apart / f"{taken_apart}.md") == "がく/がく.md"


# An index that follows its files.


@pytest.fixture
def retriever(tiny_model: Path) -> JaColBERTRetriever:
    return JaColBERTRetriever.from_pretrained(tiny_model)


def said(retriever: JaColBERTRetriever) -> dict[str, Any]:
    return {document.id: document.text for document in retriever}


def test_an_index_follows_a_folder(tmp_path: Path, retriever: JaColBERTRetriever) -> None:
    make(tmp_path, "規程/一.md", "規程/下/二.html", "規程/.git/三.md", "規程/.四.md", "規程/表.xlsx")
    (tmp_path / "規程" / "下" / "二.html").write_text("<p>二。</p>", encoding="utf-8")
    (tmp_path / "規程" / "五.txt").write_bytes("五の本文。".encode("cp932"))
    retriever.add([Document("別", "別の所から来た文書。", {"source": "別"}), "由来のない文書。"])
    done = sources.index_files(retriever, [tmp_path / "規程"])
    assert (done.n_changed, done.n_unchanged, done.n_deleted) == (3, 0, 0)
    assert (done.problems, done.notes, dict(done.others)) == ([], [], {".xlsx": 1})
    assert done.n_gone == 0
    assert "規程 is" not in str(sources.index_files(retriever, [tmp_path / "規程" / "一.md"]).notes)
    assert {"規程/一.md#題", "規程/下/二.html", "規程/五.txt"} < set(retriever.ids())
    assert len(retriever) == 5
    assert sources.index_files(retriever, [str(tmp_path / "規程")]).n_changed == 0
    # It moves; a file changes, one goes, one cannot be read this time.
    (tmp_path / "規程").rename(tmp_path / "仮")
    (tmp_path / "新").mkdir()
    (tmp_path / "仮").rename(tmp_path / "新" / "規程")
    (tmp_path / "新" / "規程" / "一.md").write_text("# 題\n改めた。\n# 別\n加えた。", encoding="utf-8")
    (tmp_path / "新" / "規程" / "下" / "二.html").unlink()
    (tmp_path / "新" / "規程" / "五.txt").write_bytes(b"\x00\x01")
    done = sources.index_files(retriever, [tmp_path / "新" / "規程"], prune=True)
    assert (done.n_changed, done.n_unchanged, done.n_deleted) == (2, 0, 1)
    assert "五.txt: it is not text" in done.problems[0]
    assert said(retriever)["規程/一.md#題"] == "改めた。"
    assert said(retriever)["規程/五.txt"] == "五の本文。"
    assert len(retriever) == 5
    assert not [document for document in retriever if str(tmp_path) in str(document)]


def test_readers_that_are_not_installed_leave_their_files_out(
    tmp_path: Path, retriever: JaColBERTRetriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "一.md", "二.html", "三.html")
    monkeypatch.setattr("jacolbert_rag.sources.formats.find_spec", lambda name: None)
    done = sources.index_files(retriever, [tmp_path])
    assert done.n_changed == 1
    (problem,) = done.problems
    assert problem.startswith("2 files: .html files need beautifulsoup4")


def test_an_index_in_the_folder_is_not_one_of_its_files(
    tmp_path: Path, retriever: JaColBERTRetriever
) -> None:
    make(tmp_path, "一.md")
    retriever.save(tmp_path / "index")
    (tmp_path / "index" / "readme.md").write_text("索引の説明。", encoding="utf-8")
    done = sources.index_files(retriever, [tmp_path])
    assert (done.n_changed, dict(done.others)) == (1, {})


def test_what_is_kept_with_an_index_goes_where_it_goes(tmp_path: Path, retriever: JaColBERTRetriever) -> None:
    assert retriever.extra("folders") is None
    retriever.set_extra("folders", {"規程": ["/a", True]})
    retriever.add(["本文。"])
    retriever.save(tmp_path / "i")
    retriever.compact()
    assert JaColBERTRetriever.open(tmp_path / "i").extra("folders") == {"規程": ["/a", True]}
    retriever.set_extra("folders", None)
    assert retriever.extra("folders") is None
