"""The tokenizer of each family as the library makes it, with a vocabulary of a few letters."""

import io
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import sentencepiece
from transformers import (
    BartTokenizer,
    M2M100Tokenizer,
    MarianTokenizer,
    MBart50Tokenizer,
    MBartTokenizer,
    NllbTokenizer,
    PLBartTokenizer,
    PreTrainedTokenizerBase,
    SeamlessM4TTokenizer,
    T5Tokenizer,
)

TEXT = ["a small dog runs in the park", "ein kleiner hund läuft im park", "two men talk", "zwei männer reden"]
_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")


@cache
def _subwords() -> tuple[bytes, list[tuple[str, float]]]:
    """Return a SentencePiece model and its pieces other than special ones."""
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT * 20),
        model_writer=file,
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    model = sentencepiece.SentencePieceProcessor(model_proto=file.getvalue())
    pieces = [(model.id_to_piece(i), model.get_score(i)) for i in range(len(model))]
    return file.getvalue(), [piece for piece in pieces if piece[0] not in _SPECIAL]


def _letters(*special: str) -> dict[str, int]:
    """Return a vocabulary of single letters, for the families that merge pairs of bytes."""
    letters = sorted({letter for line in TEXT for letter in line.replace(" ", "▁")})
    return {token: number for number, token in enumerate([*special, *letters])}


def make_tokenizers(folder: Path) -> dict[str, PreTrainedTokenizerBase]:
    """Return one tokenizer a family, for English to German where it keeps a state."""
    return {name: make() for name, make in _makers(folder).items()}


def make_tokenizer(folder: Path, name: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer of one family alone."""
    return _makers(folder)[name]()


def _makers(folder: Path) -> dict[str, Callable[[], PreTrainedTokenizerBase]]:
    model, pieces = _subwords()
    names = [name for name, _ in pieces]
    spm, vocabulary, tagged = folder / "spm.model", folder / "vocab.json", folder / "tagged.json"
    spm.write_bytes(model)
    ids = {token: number for number, token in enumerate([*_SPECIAL, *names])}
    vocabulary.write_text(json.dumps(ids))
    tagged.write_text(json.dumps({**ids, ">>fra<<": len(ids), ">>deu<<": len(ids) + 1}))
    scored = [(token, 0.0) for token in _SPECIAL] + pieces
    after_padding = [(token, 0.0) for token in ("<pad>", "</s>", "<unk>")] + pieces
    after_unknown = [
        (token, 0.0) for token in ("<unk>", "<pad>", "</s>", "<2de>", "<2fr>", "<2pt_BR>")
    ] + pieces
    here, there = {"src_lang": "en_XX", "tgt_lang": "de_DE"}, {"src_lang": "eng", "tgt_lang": "deu"}
    letters = _letters("<pad>", "<unk>", "<s>", "</s>")
    tags = ["__eng__", "__deu__"]
    return {
        "m2m100": lambda: M2M100Tokenizer(str(vocabulary), str(spm), src_lang="en", tgt_lang="de"),
        "nllb": lambda: NllbTokenizer(_letters(*_SPECIAL), [], src_lang="eng_Latn", tgt_lang="deu_Latn"),
        "mbart": lambda: MBartTokenizer(scored, **here),
        "mbart50": lambda: MBart50Tokenizer(pieces, **here),
        "seamless": lambda: SeamlessM4TTokenizer(letters, [], additional_special_tokens=tags, **there),
        "plbart": lambda: PLBartTokenizer(
            str(spm), language_codes="multi", src_lang="java", tgt_lang="en_XX"
        ),
        "marian": lambda: MarianTokenizer(str(spm), str(spm), str(tagged)),
        "marian_one_target": lambda: MarianTokenizer(str(spm), str(spm), str(vocabulary)),
        "t5": lambda: T5Tokenizer(after_padding),
        "madlad": lambda: T5Tokenizer(after_unknown, extra_ids=0),
        "bart": lambda: BartTokenizer(_letters(*_SPECIAL), []),
    }
