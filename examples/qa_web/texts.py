"""What the page says, in Japanese and in English."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Texts:
    """All words of the page in one language; `{}` in them are filled in."""

    code: str
    title: str
    lead: str
    other_language: str
    ask: str
    ask_hint: str
    send: str
    source: str
    all_sources: str
    examples: str
    answer: str
    passages: str
    passage: str
    extracted: str
    by_model: str
    nothing: str
    near: str
    weak: str
    confidence: str
    similarity: str
    coverage: str
    thinking: str
    uncited: str
    model_down: str
    model_cut: str
    took_search: str
    took_answer: str
    add: str
    add_hint: str
    upload: str
    uploading: str
    uploaded: str
    replaced: str
    uploads: str
    remove: str
    really_remove: str
    removed: str
    not_removed: str
    uncalibrated: str
    too_large: str
    too_long: str
    too_many: str
    not_stored: str
    over: str
    unreachable: str
    wrong_kind: str
    no_text: str
    no_file: str
    refused: str
    empty_question: str
    long_question: str
    documents: str
    skip: str


JA = Texts(
    code="ja",
    title="社内文書に聞く",
    lead="質問文のまま入力してください。文書から答えを探し、根拠を示します。",
    other_language="English",
    ask="質問",
    ask_hint="例: 在宅勤務は週に何日までできますか？",
    send="聞く",
    source="探す範囲",
    all_sources="すべての文書",
    examples="質問の例",
    answer="回答",
    passages="根拠となる資料",
    passage="資料{}",
    extracted="抽出回答（言語モデルは使っていません）",
    by_model="{} による回答。根拠の番号で原文を確かめられます。",
    nothing="該当なし。この質問に答える文書は見つかりませんでした。言葉を変えるか、探す範囲を広げてください。",
    near="近い文書（答えとは限りません）",
    weak="関連は弱い",
    confidence="確からしさ",
    similarity="意味の近さ",
    coverage="言葉の一致",
    thinking="回答を書いています…",
    uncited="この回答には根拠の番号がありません。下の資料で確かめてください。",
    model_down="言語モデルに届きませんでした（{}）。代わりに、資料から抜き出した文を示します。",
    model_cut="言語モデルの応答が途中で切れました（{}）。",
    took_search="検索 {} ミリ秒",
    took_answer="回答 {} 秒",
    add="文書を加える",
    add_hint="Markdown、テキスト、HTML、PDF。1 ファイル {} MB まで。",
    upload="加える",
    uploading="送信中",
    uploaded="{} を加えました（索引に {} 件）。",
    replaced="{} を、新しい内容に置き換えました（索引に {} 件）。",
    uploads="ここで加えた文書",
    remove="削除",
    really_remove="{} を索引から削除しますか。",
    removed="{} を削除しました。",
    not_removed="{} は、ここで加えた文書ではないか、すでに削除されています。",
    uncalibrated="文書が少ないため、答えがあるかどうか（該当なし）は判定していません。",
    too_large="{} は大きすぎます。{} MB までです。",
    too_long="{} の文字が多すぎます。{} 文字までにしてください。",
    not_stored="{} を登録できませんでした（{}）。",
    over="この回答は途中で切れたか、すでに表示されています。もう一度質問してください。",
    unreachable="サーバに届きませんでした。もう一度お試しください。",
    too_many="一度に加えられるのは {} ファイルまでです。",
    wrong_kind="{} は読めない種類のファイルです。Markdown、テキスト、HTML、PDF にしてください。",
    no_text="{} から文字を読み取れませんでした。壊れていませんか。画像だけの PDF は OCR が必要です。",
    no_file="ファイルを選んでください。",
    refused="このページ以外からの送信は受け付けません。",
    empty_question="質問を入力してください。",
    long_question="質問が長すぎます。{} 文字までにしてください。",
    documents="{} 件の文書",
    skip="本文へ移動",
)

EN = Texts(
    code="en",
    title="Ask your documents",
    lead="Ask in your own words. Answers come from the documents, with their sources.",
    other_language="日本語",
    ask="Question",
    ask_hint="such as 在宅勤務は週に何日までできますか？",
    send="Ask",
    source="Search in",
    all_sources="all documents",
    examples="Questions to try",
    answer="Answer",
    passages="Sources",
    passage="source {}",
    extracted="Sentences of the documents (no language model is used)",
    by_model="Answered by {}. Follow the numbers to the original text.",
    nothing="Nothing found: no document answers this question. Use other words, or search in all documents.",
    near="What comes near (and may be no answer)",
    weak="weak",
    confidence="confidence",
    similarity="similarity",
    coverage="coverage",
    thinking="Writing an answer…",
    uncited="This answer names no sources. Check it with the ones below.",
    model_down="The language model cannot be reached ({}). Here are sentences of the documents instead.",
    model_cut="The language model's answer was cut short ({}).",
    took_search="search {} ms",
    took_answer="answer {} s",
    add="Add documents",
    add_hint="Markdown, text, HTML, PDF; up to {} MB a file.",
    upload="Add",
    uploading="Sending",
    uploaded="{} was added (stored as {} parts).",
    replaced="{} was replaced by what it says now (stored as {} parts).",
    uploads="Added here",
    remove="Delete",
    really_remove="Delete {} from the index?",
    removed="{} was deleted.",
    not_removed="{} was not added here, or is deleted already.",
    uncalibrated="There are too few documents to tell whether any of them answers.",
    too_large="{} is too large: up to {} MB.",
    too_long="{} has too much text: up to {} characters.",
    not_stored="{} could not be stored ({}).",
    over="This answer was cut short, or was shown before. Ask again.",
    unreachable="The server cannot be reached. Try again.",
    too_many="Up to {} files at once.",
    wrong_kind="{} cannot be read: use Markdown, text, HTML or PDF.",
    no_text="{} has no text that can be read. Is it damaged? A PDF of pictures needs OCR first.",
    no_file="Choose a file.",
    refused="Only this page may send documents.",
    empty_question="Write a question.",
    long_question="The question is too long: up to {} characters.",
    documents="{} documents",
    skip="Skip to content",
)

LANGUAGES = {texts.code: texts for texts in (JA, EN)}
