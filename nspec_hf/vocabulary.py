"""Train a subword vocabulary and wrap it as a tokenizer with a tag for every language.

The tokenizer is a plain `PreTrainedTokenizerFast`, saved as one `tokenizer.json`, so `AutoTokenizer` loads
it without code of ours. Tags are spelled as M2M-100 spells them (`__en__`), for any code.
"""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import sentencepiece
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import import_protobuf

from nspec_hf.errors import ConfigError
from nspec_hf.languages import TARGET_ON_SOURCE

SPECIAL = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}


@dataclass(frozen=True, kw_only=True)
class VocabularyConfig:
    """A joint subword vocabulary of all languages."""

    size: int = 32000
    """Number of subwords, special tokens included and language tags not."""

    kind: Literal["unigram", "bpe"] = "unigram"
    """`unigram` (Tan et al.) or `bpe` (Xie et al.)."""

    target_on_source: bool = False
    """Put the target's tag on the source and none on the target (Xie et al.); else both sides have one."""

    coverage: float = 0.9999
    """Share of characters that get a piece, in (0, 1]."""

    def __post_init__(self) -> None:
        """Check the values."""
        if self.kind not in ("unigram", "bpe") or self.size < 8 or not 0 < self.coverage <= 1:
            raise ConfigError(
                "a vocabulary is 'unigram' or 'bpe', of 8 pieces or more, with coverage in (0, 1]"
            )


def train_vocabulary(
    sentences: Iterable[str], languages: Sequence[str], config: VocabularyConfig
) -> PreTrainedTokenizerFast:
    """Train a joint subword vocabulary.

    Args:
        sentences: Text of all languages, each as often as it should count.
        languages: Codes that get a tag.
        config: Size and kind.
    """
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=file,
        vocab_size=config.size,
        model_type=config.kind,
        character_coverage=config.coverage,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
        bos_id=0,
        pad_id=1,
        eos_id=2,
        unk_id=3,
        bos_piece="<s>",
        pad_piece="<pad>",
        eos_piece="</s>",
        unk_piece="<unk>",
    )
    style = {"language_style": TARGET_ON_SOURCE} if config.target_on_source else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=_as_tokenizer(file.getvalue(), config.kind),
        additional_special_tokens=[f"__{code}__" for code in languages],
        clean_up_tokenization_spaces=False,
        **SPECIAL,
        **style,
    )


def _as_tokenizer(model: bytes, kind: str) -> Tokenizer:
    proto = import_protobuf().ModelProto()
    proto.ParseFromString(model)
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    if kind == "bpe":
        tokenizer = Tokenizer(_bpe(pieces))
    else:
        tokenizer = Tokenizer(models.Unigram(pieces, unk_id=proto.trainer_spec.unk_id))
    # What SentencePiece does before it splits: its table of characters, then single spaces.
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap),
            normalizers.Strip(),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    return tokenizer


def _bpe(pieces: Sequence[tuple[str, float]]) -> models.BPE:
    """Recover the merges: SentencePiece scores a BPE piece by minus its rank."""
    ids = {piece: number for number, (piece, _) in enumerate(pieces)}
    merges = []
    for piece, _ in sorted(pieces, key=lambda item: -item[1]):
        splits = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        known = [split for split in splits if split[0] in ids and split[1] in ids]
        merges += sorted(known, key=lambda split: (ids[split[0]], ids[split[1]]))
    return models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True)
