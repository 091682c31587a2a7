"""A small tokenizer of Llama 2's kind, which puts a space before every text and takes it off again."""

from transformers import LlamaTokenizer

WORDS = ("Hello", "and", "the", "crowd", "Sure", "world")
# As Llama 2's own: a response stands between spaces.
LLAMA_2 = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} </s>{% endif %}{% endfor %}"
)


def llama_tokenizer(legacy: bool = False) -> LlamaTokenizer:
    """Bytes, letters and a few words, each with and without the space before it."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", *"abcdefghijklmnopqrstuvwxyzHSINT.,[]/"]
    merges = []
    for word in (f"{space}{word}" for word in WORDS for space in ("▁", "")):
        for end in range(1, len(word)):
            merges.append((word[:end], word[end]))
            pieces.append(word[: end + 1])
    pieces, merges = list(dict.fromkeys(pieces)), list(dict.fromkeys(merges))
    tokenizer = LlamaTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges, legacy=legacy)
    tokenizer.chat_template = LLAMA_2
    return tokenizer
