"""Builds the random checkpoints that every encoder reads.

    python -m tests.golden.checkpoints stanford stanford_attend st_xlmr pylate_japanese pylate_modernbert

Each is written to tests/data/checkpoints/NAME, or to --out, by the library that such a checkpoint comes
from, so PyLate's need an interpreter that has PyLate, and so on; `bert_base`, which is too large to commit,
needs nothing but safetensors.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import string
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.golden.texts import VOCABULARY_TEXTS
from tests.golden.weights import bert_shapes, random_weights

if TYPE_CHECKING:
    from torch import nn

DATA = Path(__file__).parents[1] / "data"
CHECKPOINTS = DATA / "checkpoints"
VOCAB_FILE = DATA / "vocab" / "vocab.txt"

HIDDEN, LAYERS, HEADS, INTERMEDIATE, POSITIONS, DIM = 32, 2, 2, 64, 128, 16
SCALE = 0.2  # ten times what is usual, so that the tokens of so narrow a network differ
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def write_stanford(folder: Path) -> None:
    """HF_ColBERT over BertJapanese, as JaColBERT: [MASK]s are not attended to."""
    metadata = {"query_maxlen": 32, "doc_maxlen": 64, "attend_to_mask_tokens": False}
    _write_tiny_stanford(folder, japanese_vocab(), seed=1, metadata=metadata)


def write_stanford_attend(folder: Path) -> None:
    """The same with [MASK]s that are attended to, and a vocabulary without two symbols of the skiplist.

    `convert_tokens_to_ids` gives [UNK] for both, so a loader that does not look skips every unknown word.
    """
    vocab = [token for token in japanese_vocab() if token not in ("`", "~")]
    metadata = {"query_maxlen": 32, "doc_maxlen": 64, "attend_to_mask_tokens": True}
    _write_tiny_stanford(folder, vocab, seed=2, metadata=metadata)


def write_pylate_japanese(folder: Path) -> None:
    """PyLate's own folder over BertJapanese: markers are added tokens, lengths are others."""
    from pylate import models

    vocab = japanese_vocab()
    with tempfile.TemporaryDirectory() as backbone:
        shapes = _tiny_bert_shapes(len(vocab))
        weights = {
            name.removeprefix("bert."): shape for name, shape in shapes.items() if name != "linear.weight"
        }
        _write_folder(
            Path(backbone), bert_config(len(vocab)) | {"architectures": ["BertModel"]}, weights, seed=3
        )
        _write_japanese_tokenizer(Path(backbone), vocab)
        model = models.ColBERT(
            backbone, embedding_size=DIM, query_length=48, document_length=80, device="cpu", bias=False
        )
    _randomise(model, seed=3)
    _save(model, folder)


def write_pylate_modernbert(folder: Path) -> None:
    """PyLate's own folder over ModernBERT, with two projections and no query augmentation."""
    import torch
    from pylate import models
    from transformers import ModernBertConfig, ModernBertModel, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level_bpe(),
        unk_token="[UNK]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        mask_token="[MASK]",
        model_max_length=256,
    )
    config = ModernBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=48,
        max_position_embeddings=256,
        local_attention=16,  # far narrower than a text, so that a layer without its window shows
        global_attn_every_n_layers=2,
        pad_token_id=tokenizer.pad_token_id,
        cls_token_id=tokenizer.cls_token_id,
        sep_token_id=tokenizer.sep_token_id,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
    )
    with tempfile.TemporaryDirectory() as backbone:
        tokenizer.save_pretrained(backbone)
        ModernBertModel(config).save_pretrained(backbone)
        model = models.ColBERT(
            backbone,
            embedding_size=24,
            bias=True,
            query_length=192,  # above every query's length: without augmentation, no query need be cut
            document_length=96,
            do_query_expansion=False,
            device="cpu",
        )
    model[1].activation_function = torch.nn.GELU()
    model.append(models.Dense(in_features=24, out_features=DIM, bias=False))
    _randomise(model, seed=4)
    _save(model, folder)


def write_st_xlmr(folder: Path) -> None:
    """sentence-transformers' own folder over XLM-RoBERTa; its prompts are markers, which are added tokens.

    The tokenizer normalises by NFKC, as XLM-RoBERTa's does, but has no class of its own.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import AddedToken, PreTrainedTokenizerFast

    backend = Tokenizer(models.Unigram(unigram_pieces(), unk_id=3))
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    ends = [(token, backend.token_to_id(token)) for token in ("<s>", "</s>")]
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=ends
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        mask_token="<mask>",
        model_max_length=POSITIONS,
    )
    markers = ("[Q] ", "[D] ")
    tokens = [AddedToken(marker, normalized=False, special=True) for marker in markers]
    tokenizer.add_tokens(tokens, special_tokens=True)
    expansion = {"strategy": "fixed", "length": 32}
    _write_xlmr(folder, tokenizer, prompts=markers, expansion=expansion, seed=5)


def write_st_xlmr_prompts(folder: Path) -> None:
    """The same with prompts of plain text, as its single-vector models have, and no query augmentation.

    The tokenizer is of XLM-RoBERTa's class, without its table of NFKC.
    """
    from transformers import XLMRobertaTokenizer

    tokenizer = XLMRobertaTokenizer(vocab=unigram_pieces(), model_max_length=POSITIONS)
    _write_xlmr(folder, tokenizer, prompts=("質問: ", "文章: "), expansion=None, seed=6)


def write_bert_base(folder: Path) -> None:
    """HF_ColBERT of BERT-base's shape: 12 layers, 768 wide, projected to 128."""
    vocab = VOCAB_FILE.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    size = {"hidden": 768, "layers": 12, "intermediate": 3072, "positions": 512}
    _write_folder(
        folder,
        bert_config(len(vocab), heads=12, **size),
        bert_shapes(vocab_size=len(vocab), dim=128, **size),
        seed=7,
        scale=0.02,  # as BERT begins; at 0.05 all tokens of a text become one over twelve layers
    )
    _write_japanese_tokenizer(folder, vocab)
    metadata = {"query_maxlen": 32, "doc_maxlen": 180, "attend_to_mask_tokens": False}
    _write_metadata(folder, metadata, dim=128)


BUILDERS: dict[str, Callable[[Path], None]] = {
    "stanford": write_stanford,
    "stanford_attend": write_stanford_attend,
    "pylate_japanese": write_pylate_japanese,
    "pylate_modernbert": write_pylate_modernbert,
    "st_xlmr": write_st_xlmr,
    "st_xlmr_prompts": write_st_xlmr_prompts,
    "bert_base": write_bert_base,
}


def japanese_vocab() -> list[str]:
    """Special tokens, ASCII punctuation, MeCab's words of some texts, and their characters as pieces."""
    import fugashi
    import unidic_lite

    tagger = fugashi.GenericTagger(f'-d "{unidic_lite.DICDIR}" -r "{unidic_lite.DICDIR}/mecabrc"')
    words = [
        word.surface for text in VOCABULARY_TEXTS for word in tagger(unicodedata.normalize("NFKC", text))
    ]
    characters = sorted({c for word in words for c in word} | set(string.ascii_lowercase + string.digits))
    tokens = [*SPECIAL, *(f"[unused{i}]" for i in range(10)), *string.punctuation]
    tokens += [*words, *characters, *("##" + c for c in characters)]
    return list(dict.fromkeys(tokens))


def byte_level_bpe() -> Any:
    """A `tokenizers` tokenizer like ModernBERT's: NFC, byte-level pieces, [CLS] and [SEP]."""
    from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = [*SPECIAL[:4], AddedToken("[MASK]", lstrip=True, special=True)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=800, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(VOCABULARY_TEXTS, trainer)
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=ends
    )
    return tokenizer


def unigram_pieces() -> list[tuple[str, float]]:
    """Pieces and their log probabilities, with XLM-RoBERTa's special tokens at their places.

    Every character, and the substrings that occur more than twice: `tokenizers`' own trainer is not used,
    since two runs of it differ.
    """
    counts: Counter[str] = Counter()
    for text in VOCABULARY_TEXTS:
        for run in unicodedata.normalize("NFKC", text).split():
            marked = "▁" + run  # as SentencePiece marks a space
            counts.update(marked[i : i + n] for n in (1, 2, 3, 4) for i in range(len(marked) - n + 1))
    kept = {piece: count for piece, count in counts.items() if len(piece) == 1 or count > 2}
    total = sum(kept.values())
    pieces = sorted(
        ((p, round(math.log(n / total), 4)) for p, n in kept.items()), key=lambda p: (-p[1], p[0])
    )
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    return [*((token, 0.0) for token in special), *pieces, ("<mask>", 0.0)]


def bert_config(
    vocab_size: int,
    *,
    hidden: int = HIDDEN,
    layers: int = LAYERS,
    heads: int = HEADS,
    intermediate: int = INTERMEDIATE,
    positions: int = POSITIONS,
) -> dict[str, Any]:
    """config.json of a Stanford ColBERT."""
    return {
        "architectures": ["HF_ColBERT"],
        "model_type": "bert",
        "vocab_size": vocab_size,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": intermediate,
        "max_position_embeddings": positions,
        "hidden_act": "gelu",
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
    }


def _tiny_bert_shapes(vocab_size: int) -> dict[str, tuple[int, ...]]:
    return bert_shapes(
        vocab_size=vocab_size,
        hidden=HIDDEN,
        layers=LAYERS,
        intermediate=INTERMEDIATE,
        positions=POSITIONS,
        dim=DIM,
    )


def _write_tiny_stanford(folder: Path, vocab: list[str], *, seed: int, metadata: dict[str, Any]) -> None:
    _write_folder(folder, bert_config(len(vocab)), _tiny_bert_shapes(len(vocab)), seed=seed)
    _write_japanese_tokenizer(folder, vocab)
    _write_metadata(folder, metadata, dim=DIM)


def _write_folder(
    folder: Path,
    config: dict[str, Any],
    shapes: dict[str, tuple[int, ...]],
    *,
    seed: int,
    scale: float = SCALE,
) -> None:
    """config.json and model.safetensors."""
    from safetensors.numpy import save

    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", config)
    weights = random_weights(shapes, seed=seed, scale=scale)
    (folder / "model.safetensors").write_bytes(save(weights, metadata={"format": "pt"}))


def _write_metadata(folder: Path, values: dict[str, Any], *, dim: int) -> None:
    _write_json(
        folder / "artifact.metadata",
        {
            "query_token_id": "[unused0]",
            "doc_token_id": "[unused1]",
            "query_token": "[Q]",
            "doc_token": "[D]",
            "dim": dim,
            "similarity": "cosine",
            "interaction": "colbert",
            "mask_punctuation": True,
            "cap_padding": 0,
            **values,
        },
    )


def _write_japanese_tokenizer(folder: Path, vocab: list[str]) -> None:
    """vocab.txt and tokenizer_config.json, as the checkpoints of the JaColBERT family have them."""
    (folder / "vocab.txt").write_text("\n".join(vocab) + "\n", encoding="utf-8")
    _write_json(
        folder / "tokenizer_config.json",
        {
            "added_tokens_decoder": {
                str(i): {
                    "content": token,
                    "lstrip": False,
                    "normalized": False,
                    "rstrip": False,
                    "single_word": False,
                    "special": True,
                }
                for i, token in enumerate(SPECIAL)
            },
            "cls_token": "[CLS]",
            "do_lower_case": False,
            "do_subword_tokenize": True,
            "do_word_tokenize": True,
            "mask_token": "[MASK]",
            "mecab_kwargs": {"mecab_dic": "unidic_lite"},
            "model_max_length": 512,
            "never_split": None,
            "pad_token": "[PAD]",
            "sep_token": "[SEP]",
            "subword_tokenizer_type": "wordpiece",
            "tokenizer_class": "BertJapaneseTokenizer",
            "unk_token": "[UNK]",
            "word_tokenizer_type": "mecab",
        },
    )


def _write_xlmr(
    folder: Path, tokenizer: Any, *, prompts: tuple[str, str], expansion: dict[str, Any] | None, seed: int
) -> None:
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.base.modules import Normalize, Transformer
    from sentence_transformers.base.modules.dense import Dense
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
    from torch import nn
    from transformers import XLMRobertaConfig, XLMRobertaModel

    config = XLMRobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=INTERMEDIATE,
        max_position_embeddings=POSITIONS + 2,  # positions start behind the padding id, 1
        type_vocab_size=1,
    )
    with tempfile.TemporaryDirectory() as backbone:
        tokenizer.save_pretrained(backbone)
        XLMRobertaModel(config, add_pooling_layer=False).save_pretrained(backbone)
        model = MultiVectorEncoder(
            modules=[
                Transformer(backbone, document_length=64, query_expansion=expansion),
                Dense(
                    HIDDEN,
                    DIM,
                    bias=False,
                    activation_function=nn.Identity(),
                    module_input_name="token_embeddings",
                ),
                MultiVectorMask(skiplist_words=list(string.punctuation)),
                Normalize(module_input_name="token_embeddings"),
            ],
            prompts=dict(zip(("query", "document"), prompts, strict=True)),
            device="cpu",
        )
    _randomise(model, seed=seed)
    _save(model, folder)


def _randomise(model: nn.Module, *, seed: int) -> None:
    """Fill every parameter, the rows of added tokens included."""
    import torch

    state = model.state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items() if tensor.dtype == torch.float32}
    weights = random_weights(shapes, seed=seed, scale=SCALE)
    model.load_state_dict(state | {name: torch.from_numpy(tensor) for name, tensor in weights.items()})


def _save(model: Any, folder: Path) -> None:
    """Save by the library's own writer, less its model card and files that nothing reads."""
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(str(folder))
    (folder / "README.md").unlink(missing_ok=True)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Write the named checkpoints."""
    parser = argparse.ArgumentParser(description="Build the checkpoints that every encoder reads.")
    parser.add_argument("names", nargs="+", choices=[*BUILDERS])
    parser.add_argument("--out", type=Path, default=CHECKPOINTS, help="the folder that holds their folders")
    args = parser.parse_args()
    for name in args.names:
        BUILDERS[name](args.out / name)


if __name__ == "__main__":
    main()
