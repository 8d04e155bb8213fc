"""Load a tokenizer, whole; or train a subword vocabulary with a tag for every language.

A trained one is a plain `PreTrainedTokenizerFast`, saved as one `tokenizer.json`, so `AutoTokenizer` loads
it without code of ours. It splits text as the SentencePiece model does that it was made from. Tags are
spelled as M2M-100 spells them (`__en__`), for any code; `language_tags.py` puts them around the text.
"""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import import_protobuf

from nspec_hf.core import ArtifactError, ConfigError, UnsupportedModelError, adapters_and_base
from nspec_hf.data.config import TARGET_ON_SOURCE, VocabularyConfig
from nspec_hf.data.moses import Moses

# In the order of their ids, 0 to 3, as M2M-100 and mBART have them.
_SPECIAL = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>"}
_LONGEST_LINE = 1 << 20  # bytes; SentencePiece would leave lines over 4,192 out without a word


def load_tokenizer(
    name: str | Path, *, trust_remote_code: bool = False, **hub: Any
) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model; transformers alone gives an empty one where the vocabulary is missing.

    The name is a Hub id or a folder; `hub` may be `revision`, `token`, `cache_dir`, `local_files_only` …

    Raises:
        ArtifactError: If there is no tokenizer, its files are damaged, or it knows no subwords.
        UnsupportedModelError: If it needs code of its own and `trust_remote_code` is not given.
    """
    adapters, base = adapters_and_base(name)  # of PEFT, which need no tokenizer beside them
    name = next((folder for folder in adapters if any(Path(folder).glob("tokenizer*"))), base)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code, **hub)
    except BaseException as error:
        # The libraries below raise whatever they meet: a bare Exception, and a panic of Rust, which is none.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        if "trust_remote_code" in str(error):
            raise UnsupportedModelError(
                f"{name} brings code of its own, which is not run unless trust_remote_code=True says so"
            ) from error
        raise ArtifactError(
            f"{name} has no tokenizer that can be loaded; files are missing or damaged: {error}"
        ) from error
    if len(tokenizer.get_vocab().keys() - tokenizer.get_added_vocab().keys()) < 2:
        raise ArtifactError(
            f"the tokenizer in {name} knows no subwords, its vocabulary file is missing (tokenizer.json, "
            "sentencepiece.bpe.model …); copy all files of the tokenizer"
        )
    return tokenizer


def subword_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str], side: str) -> list[list[int]]:
    """Return the ids of each text, of one at least, with no special token around it.

    The side is `text` or `text_target`, as a call of a tokenizer names them. Unsplit, a text that quotes a
    tag, or </s>, would be read as being one.
    """
    split = getattr(tokenizer, "backend_tokenizer", None)
    if split is not None and _only_splits(type(tokenizer), side):
        # What a call does, without the objects that it makes of every text: most of a short one's time.
        # Only what differs is set, as a call does: nothing can be while another thread splits.
        if split.truncation is not None:
            split.no_truncation()
        if split.padding is not None:
            split.no_padding()
        if not split.encode_special_tokens:
            split.encode_special_tokens = True
        return [row.ids for row in split.encode_batch_fast(texts, add_special_tokens=False)]
    options: dict[str, Any] = {side: texts, "add_special_tokens": False, "split_special_tokens": True}
    return tokenizer(truncation=False, verbose=False, **options)["input_ids"]  # type: ignore[return-value]


def _only_splits(kind: type, side: str) -> bool:
    """Return whether a class of tokenizers does no more with a side's text than to give it to its backend."""
    plain, own = PreTrainedTokenizerFast, ["__call__", "_encode_plus"]
    own += ["_switch_to_target_mode"] if side == "text_target" else []
    return issubclass(kind, plain) and all(
        getattr(kind, name, None) is getattr(plain, name, None) for name in own
    )


def train_vocabulary(
    sentences: Iterable[str],
    languages: Sequence[str],
    config: VocabularyConfig,
    text: Moses | None = None,
) -> PreTrainedTokenizerFast:
    """Train a joint subword vocabulary on text of all languages, each as often as it should count.

    What prepared that `text` is kept with the tokenizer; each of the `languages` gets a tag.

    Raises:
        ConfigError: If the text does not give such a vocabulary; the message is SentencePiece's.
    """
    file = io.BytesIO()
    special: dict[str, Any] = {f"{name}_id": number for number, name in enumerate(_SPECIAL)}
    special |= {f"{name}_piece": piece for name, piece in _SPECIAL.items()}
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=file,
            vocab_size=config.size,
            model_type=config.kind,
            character_coverage=config.coverage,
            max_sentence_length=_LONGEST_LINE,
            hard_vocab_limit=False,
            num_threads=1,
            minloglevel=2,
            **special,
        )
    except RuntimeError as error:
        raise ConfigError(f"no vocabulary of {config.size} subwords comes from this text: {error}") from None
    style: dict[str, Any] = {"language_style": TARGET_ON_SOURCE} if config.target_on_source else {}
    style |= {"moses": text.casing} if text is not None and text.casing is not None else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=_as_tokenizer(file.getvalue(), config.kind),
        additional_special_tokens=[f"__{code}__" for code in languages],
        clean_up_tokenization_spaces=False,
        **{f"{name}_token": piece for name, piece in _SPECIAL.items()},
        **style,
    )


def _as_tokenizer(model: bytes, kind: str) -> Tokenizer:
    protobuf: Any = import_protobuf()
    proto = protobuf.ModelProto()
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
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A $B </s>", special_tokens=[("</s>", proto.trainer_spec.eos_id)]
    )
    return tokenizer


def _bpe(pieces: Sequence[tuple[str, float]]) -> models.BPE:
    """Recover the merges: SentencePiece joins the two neighbours whose joint piece was found first."""
    ids = {piece: number for number, (piece, _) in enumerate(pieces)}
    merges = []
    # Pieces are in the order in which they were found. All ways to join one have the same rank, but the
    # library wants an order among them; any will do.
    for piece in ids:
        halves = ((piece[:i], piece[i:]) for i in range(1, len(piece)))
        merges += [(left, right) for left, right in halves if left in ids and right in ids]
    return models.BPE(ids, merges, unk_token=_SPECIAL["unk"], fuse_unk=True)
