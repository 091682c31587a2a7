"""Tiny encoders with random weights, saved as pretrained ones are."""

from functools import partial
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModel,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ModernBertConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
)

from midcourse.testing import randomise

WORDS = ["the", "ferry", "was", "late", "and", "we", "loved", "it", "no", ".", ",", "fine", "poor", *map(str, range(9))]
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
}
CONFIGS = {
    "bert": partial(BertConfig, **SIZES),
    "roberta": partial(RobertaConfig, type_vocab_size=1, **SIZES),
    "deberta": partial(DebertaV2Config, **SIZES),
    "modernbert": partial(ModernBertConfig, **SIZES, cls_token_id=2, sep_token_id=3, bos_token_id=2, eos_token_id=3),
    "distilbert": partial(DistilBertConfig, dim=32, hidden_dim=48, n_layers=2, n_heads=4, max_position_embeddings=40),
}


def word_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """As BERT has, with segments; as RoBERTa has for "roberta", with two separators and none."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    backend = Tokenizer(models.WordPiece({w: i for i, w in enumerate([*specials, *WORDS])}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    pair = "[CLS] $A [SEP] [SEP] $B [SEP]" if kind == "roberta" else "[CLS] $A [SEP] $B:1 [SEP]:1"
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair=pair, special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    inputs = ["input_ids", *(["token_type_ids"] if kind in ("bert", "deberta") else []), "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=38, model_input_names=inputs, **names)


def encoder_folder(folder: Path, kind: str = "bert") -> Path:
    """A tiny encoder of random weights without a head, saved as any pretrained one."""
    tokenizer = word_tokenizer(kind)
    model = AutoModel.from_config(CONFIGS[kind](vocab_size=len(tokenizer)))
    randomise(model, 5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
