"""Tokenizers of every kind, trained on a few lines: what one word becomes behind different prompts differs among them.

`TOKENIZERS` maps a name to a function that trains one. All know `<image>` and `<|turn|>` as special tokens.
"""

from __future__ import annotations

import functools
import json
import re
from typing import Any, ClassVar

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from transformers.tokenization_python import PreTrainedTokenizer

LINES = [
    "What colour is the circle? It is red.", "the colour is red and the other is blue\n", "colour:\nred",
    '3 of 12 are red (A) or (B) "red" Red Blue', "answer: 3\nanswer: 12", "how many circles? 3 blue 12 red",
    "über große Äpfel sind rot", "is it red? yes. no, blue! reddish\tred", "这是红色 红色",
] * 30  # fmt: skip
SPECIAL = ["<unk>", "<s>", "</s>", "<image>", "<|turn|>"]


def _wrapped(core: Tokenizer) -> Any:
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", core.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>",
        extra_special_tokens={"image_token": "<image>", "turn_token": "<|turn|>"}, padding_side="left",
    )  # fmt: skip


def _trained(core: Tokenizer, trainer: Any) -> Any:
    core.train_from_iterator(LINES, trainer)
    return _wrapped(core)


def _byte_level(*before: Any, prefix: bool = False) -> Any:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [*before, pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=not before)]
    )
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return _trained(
        core,
        trainers.BpeTrainer(vocab_size=600, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False),
    )


def byte_level() -> Any:
    """As GPT-2's: a space belongs to the word behind it."""
    return _byte_level()


def single_digits() -> Any:
    """As Qwen's: each digit is a token without a space, and a newline belongs to the punctuation before it."""
    pattern = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    return _byte_level(pre_tokenizers.Split(Regex(pattern), "isolated"))


def prefixed() -> Any:
    """A byte-level one that puts a space before each text."""
    return _byte_level(prefix=True)


def _sentencepiece(core: Tokenizer, *strip: Any) -> Any:
    """A SentencePiece BPE: pieces are trained word by word, spaces are written as ▁, and what is left becomes bytes."""
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.Metaspace()
    special = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    words.train_from_iterator(
        [line.replace("\n", " ") for line in LINES],
        trainers.BpeTrainer(vocab_size=700, special_tokens=special, show_progress=False),
    )
    trained = json.loads(words.to_str())["model"]
    # These come first, so that "red" is a piece beside "▁red".
    merges = dict.fromkeys([("r", "e"), ("re", "d"), ("▁", "red"), *map(tuple, trained["merges"])])
    vocabulary = dict(trained["vocab"])
    for piece in ("re", "red", "▁red"):
        vocabulary.setdefault(piece, len(vocabulary))
    core.model = models.BPE(vocabulary, list(merges), unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    core.add_special_tokens(SPECIAL)
    return _wrapped(core)


def llama_legacy() -> Any:
    """As Llama 2's: a space before each text, also behind a special token."""
    core = Tokenizer(models.BPE())
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return _sentencepiece(core, decoders.Strip(" ", 1, 0))


def llama() -> Any:
    """As Llama 2's without `legacy`: a space before the first text alone."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return _sentencepiece(core, decoders.Strip(" ", 1, 0))


def gemma() -> Any:
    """As Gemma's: no space is put anywhere."""
    core = Tokenizer(models.BPE())
    core.normalizer = normalizers.Replace(" ", "▁")
    return _sentencepiece(core)


def unigram() -> Any:
    core = Tokenizer(models.Unigram())
    core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return _trained(
        core, trainers.UnigramTrainer(vocab_size=200, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    )


def word_pieces() -> Any:
    """As BERT's: lower case, spaces are lost."""
    core = Tokenizer(models.WordPiece(unk_token="<unk>"))
    core.normalizer, core.decoder = normalizers.BertNormalizer(lowercase=True), decoders.WordPiece()
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return _trained(core, trainers.WordPieceTrainer(vocab_size=400, special_tokens=SPECIAL, show_progress=False))


def whole_words() -> Any:
    """What stands between spaces, and no decoder."""
    core = Tokenizer(models.WordLevel(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _trained(core, trainers.WordLevelTrainer(vocab_size=400, special_tokens=SPECIAL, show_progress=False))


class PlainPython(PreTrainedTokenizer):
    """Words and punctuation, in plain Python: a tokenizer without offsets."""

    vocab_files_names: ClassVar[dict[str, str]] = {}

    def __init__(self, **options: Any):
        words = sorted({word for line in LINES for word in self._tokenize(line)})
        self.ids = {word: index for index, word in enumerate([*SPECIAL[:3], *words])}
        self.words = {index: word for word, index in self.ids.items()}
        super().__init__(unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>", **options)

    @property
    def vocab_size(self) -> int:
        return len(self.ids)

    def get_vocab(self) -> dict[str, int]:
        return {**self.ids, **self.added_tokens_encoder}

    def _tokenize(self, text: str, **options: Any) -> list[str]:
        return re.findall(r"\w+|[^\w\s]", text)

    def _convert_token_to_id(self, token: str) -> int:
        return self.ids.get(token, 0)

    def _convert_id_to_token(self, index: int) -> str | None:
        return self.words.get(index)

    def build_inputs_with_special_tokens(self, ids: list[int], pair: list[int] | None = None) -> list[int]:
        return [self.ids["<s>"], *ids]


def plain_python() -> Any:
    return PlainPython(extra_special_tokens={"image_token": "<image>", "turn_token": "<|turn|>"})


TOKENIZERS = {
    build.__name__: functools.cache(build)
    for build in (
        byte_level, single_digits, prefixed, llama_legacy, llama, gemma, unigram, word_pieces, whole_words, plain_python,
    )
}  # fmt: skip
