"""Add pairs to a trained model, and show what became of the others.

`add_pairs` trains what is new beside the frozen base, and proves on text of other pairs that their logits
are the same bits. `retrain` is what it is compared with: everything is trained, on the new pairs' text
alone or with old text replayed, and the old pairs pay for it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from nspec_hf.adding.added import AddedPairs, bits_of
from nspec_hf.adding.addition import Addition, embedding_of, layout_for, row_weights
from nspec_hf.adding.config import AddConfig, auto_width
from nspec_hf.adding.languages import NewWords, find_words
from nspec_hf.adding.saved import save_added
from nspec_hf.core import Pair, TrainingSetupError, UnknownPairError, as_pairs, digest
from nspec_hf.data import EncodedCorpus, LanguageTags, PairCollator, PairText, encode_corpus
from nspec_hf.gating import Attachment, GateConfig, NeuronGate
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import decoder_start_token, eval_mode, longest_text
from nspec_hf.training import TrainConfig, TrainResult, train

ADDED_FOLDER = "added"
"""Where a run leaves what it added."""

_PROVED = 64  # sentences of old pairs, evenly from all
_ROWS = 16  # of them in a batch, between as many new ones


@dataclass(frozen=True, kw_only=True)
class Untouched:
    """The proof that other pairs are what they were."""

    sentences: int
    """Sentences of old pairs that were run in batches with new ones."""
    pairs: Sequence[Pair]
    """Their pairs."""
    identical: bool
    """Whether all their logits were the same bits with and without what was added."""


@dataclass(frozen=True, kw_only=True)
class AddResult:
    """What a run came to."""

    added: AddedPairs
    tags: LanguageTags
    """Of the tokenizer with the new tags."""
    words: NewWords
    result: TrainResult
    untouched: Untouched | None
    """None where there is no text of old pairs."""

    def in_words(self) -> str:
        """Return what was added and proved, a line a fact."""
        own, whole = self.added.additions[-1].size, self.added.model.num_parameters()
        lines = [
            f"{', '.join(self.added.additions[-1].pairs)}: {own:,} parameters beside {whole:,} frozen ones",
            self.words.in_words(),
            f"{self.result.updates} updates in {self.result.seconds:.0f} seconds",
        ]
        if self.untouched is not None:
            same = "the same bits as before" if self.untouched.identical else "NOT what they were"
            lines.append(
                f"{self.untouched.sentences} sentences of {', '.join(self.untouched.pairs)}, in batches with "
                f"new ones: logits {same}"
            )
        return "\n".join(lines)


def add_pairs(
    model: PreTrainedModel,
    tags: LanguageTags,
    texts: Sequence[PairText],
    config: AddConfig,
    run: TrainConfig,
    output: str | Path,
    *,
    validation: Sequence[PairText] = (),
    old: Sequence[PairText] = (),
    before: AddedPairs | None = None,
    masks: NeuronMasks | None = None,
    gate_config: GateConfig | None = None,
    base: str = "",
) -> AddResult:
    """Train new pairs beside a frozen model; `output/added` then holds what was added.

    Args:
        model: The base; its weights are the same bits afterwards.
        tags: How its tokenizer spells languages; tags that `before` brought may be missing.
        texts: Training text of the new pairs.
        config: What they get.
        run: The training run.
        output: Folder of the run; a run that was stopped goes on.
        validation: Text of the new pairs whose loss is watched.
        old: Text of old pairs, on up to 64 sentences of which it is shown that nothing changed; with
            `pieces="new"` its subwords are not new.
        before: What was added before; it is frozen too.
        masks: Of the old pairs, where the base has some and `before` does not hold them.
        gate_config: How they act; None: as `before` says, or as a gate does by itself.
        base: Hub id or folder of the base, for the card.

    Raises:
        TrainingSetupError: If weights of the base moved, or logits of old pairs differ.
        UnknownPairError: If there is text of old pairs, but no masks among those of the others.
        ConfigError, UnknownLanguageError: What `find_words` and `train` raise.
    """
    earlier = before.additions if before else []
    if before:
        tags = LanguageTags(before.extend(tags.tokenizer), tags.codes)
    embeddings = len(embedding_of(model))
    vocabulary = max([embeddings, *(one.own_rows.whole for one in earlier if one.own_rows is not None)])
    words = find_words(tags, texts, config, old=old, vocabulary=vocabulary, rows=embeddings)
    if old:  # text that could prove nothing is refused before the training
        as_pairs([text.pair for text in (*texts, *old)])
        _first_rows(old, words.tags, model, _PROVED)
    lines = max(map(len, texts))
    width = auto_width(lines) if config.width == "auto" else config.width
    about = {"base": base, "lines": {str(text.pair): len(text) for text in texts}, "width": width}
    # How its weights begin decides what comes out of a run, and is seen nowhere else in the layout.
    usual, begins = AddConfig(), {"seed": config.seed, "kin": config.kin}
    about |= {name: value for name, value in begins.items() if value != getattr(usual, name)}
    layout = layout_for(
        model,
        [text.pair for text in texts],
        config,
        width,
        ids=words.ids,
        tokens=words.tokens,
        vocabulary=vocabulary,
        about=about,
    )
    addition = Addition(model, layout).draw(model, config.seed, words.begins_as, earlier)
    if before:
        masks, gate_config = masks or before.masks, gate_config or before.gate_config
    added = AddedPairs(model, [*earlier, addition], masks, gate_config)
    unknown = [str(text.pair) for text in old if not added.knows(text.pair)]
    if unknown:
        raise UnknownPairError(
            f"old text of {', '.join(unknown)} proves nothing, since the masks of the old pairs hold none of "
            "them; leave it out"
        )
    frozen = _frozen_digest(added)
    added.attach().freeze()
    corpus = _encoded(texts, words.tags, run, added.pairs)
    watched = _encoded(validation, words.tags, run, added.pairs) if validation else None
    result = train(model, words.tags, corpus, run, output, watched, added)
    added.detach()
    if _frozen_digest(added) != frozen:
        raise TrainingSetupError("weights of the base moved in training, so old pairs are not what they were")
    untouched = prove_untouched(added, words.tags, old, texts) if old else None
    if untouched is not None and not untouched.identical:
        raise TrainingSetupError(
            "logits of old pairs differ with and without what was added; please report this"
        )
    save_added(added, Path(output) / ADDED_FOLDER)
    return AddResult(added=added, tags=words.tags, words=words, result=result, untouched=untouched)


def prove_untouched(
    added: AddedPairs,
    tags: LanguageTags,
    old: Sequence[PairText],
    new: Sequence[PairText],
) -> Untouched:
    """Compare logits of old pairs bit by bit with and without what was added last, in mixed batches.

    Args:
        added: What was added, not on the model.
        tags: Of the extended tokenizer.
        old: Text of old pairs.
        new: Text of new pairs.
    """
    held = _first_rows(old, tags, added.model, _PROVED)
    mixed_in = _first_rows(new, tags, added.model, _ROWS * len(new))
    pairs = [text.pair for text in old]
    every = [*pairs, *(text.pair for text in new)]
    collate = PairCollator(tags, every, decoder_start_token(added.model))
    alike, size, before_it = True, added.additions[-1].layout.vocabulary, _without_last(added)
    with torch.no_grad(), eval_mode(added.model):
        for start in range(0, len(held), _ROWS):
            part = held[start : start + _ROWS]
            both = [row for pair in zip(part, mixed_in, strict=False) for row in pair]
            both += part[len(mixed_in) :]
            batch = collate(both)
            is_old = torch.tensor([row["pair"] in pairs for row in both])
            known = {name: value for name, value in batch.items() if name not in ("labels", "pair_ids")}
            # New tags are in new rows alone; there any id will do.
            ids = ("input_ids", "decoder_input_ids")
            plain = known | {name: known[name].where(known[name] < size, 0) for name in ids}
            # What rows of new pairs are without them does not matter.
            names = [row["pair"] if row["pair"] in pairs else pairs[0] for row in both]
            before = _logits(added.model, plain, before_it, names)
            after = _logits(added.model, known, added, [row["pair"] for row in both])
            alike &= torch.equal(before[is_old], after[is_old][..., : before.shape[-1]])
    return Untouched(sentences=len(held), pairs=pairs, identical=alike)


def retrain(
    model: PreTrainedModel,
    tags: LanguageTags,
    texts: Sequence[PairText],
    config: AddConfig,
    run: TrainConfig,
    output: str | Path,
    *,
    validation: Sequence[PairText] = (),
    replayed: Sequence[PairText] = (),
) -> tuple[LanguageTags, TrainResult]:
    """Train all weights on new pairs, for comparison; `output/model` then holds the model.

    Args:
        model: Trained in place; made wider by new tags.
        tags: How its tokenizer spells languages.
        texts: Text of the new pairs.
        config: Which languages are new, and what their tags begin as.
        run: The training run.
        output: Folder of the run.
        validation: Text of the new pairs.
        replayed: Text of old pairs that is mixed in; the new text is repeated to be about as much.
    """
    embeddings = len(embedding_of(model))
    words = find_words(tags, texts, config, vocabulary=embeddings, rows=embeddings)
    if words.tokens and max(words.tokens.values()) >= embeddings:
        model.resize_token_embeddings(max(words.tokens.values()) + 1)
    for weight in row_weights(model).values():
        for number, ids in words.begins_as.items():
            weight.data[number] = weight.data[list(ids)].mean(dim=0)
    pairs = [text.pair for text in (*texts, *replayed)]
    corpus = _encoded(texts, words.tags, run, pairs)
    if replayed:
        more = _encoded(replayed, words.tags, run, pairs)
        times = max(1, round(int(more.lengths.sum()) / int(corpus.lengths.sum())))
        corpus = _numbered(more, pairs, into=_numbered(corpus, pairs, times))
    watched = _encoded(validation, words.tags, run, pairs) if validation else None
    return words.tags, train(model, words.tags, corpus, run, output, watched)


def _without_last(added: AddedPairs) -> Attachment | None:
    """Return what is on the model without the last addition; None for the bare model."""
    if len(added.additions) > 1:
        return AddedPairs(added.model, added.additions[:-1], added.masks, added.gate_config)
    return None if added.masks is None else NeuronGate(added.model, added.masks, added.gate_config)


def _logits(
    model: PreTrainedModel, batch: Mapping[str, torch.Tensor], on_it: Attachment | None, names: Sequence[str]
) -> torch.Tensor:
    if on_it is None:
        return model(**batch, use_cache=False).logits
    rows = torch.tensor(on_it.include_all(names))
    with on_it:
        return model(**batch, pair_ids=rows, use_cache=False).logits


def _first_rows(
    texts: Sequence[PairText], tags: LanguageTags, model: PreTrainedModel, sentences: int
) -> list[dict]:
    """Return the first sentences, evenly from all pairs, that the model has positions for."""
    longest, each = min(filter(None, (512, longest_text(model)))), -(-sentences // len(texts))
    some = [replace(text, sources=text.sources[:1000], targets=text.targets[:1000]) for text in texts]
    corpus = encode_corpus(some, tags, longest, progress=False)
    parts = [corpus.subset(pair) for pair in corpus.pairs]
    return [part[index] for part in parts for index in range(min(each, len(part)))]


def _encoded(
    texts: Sequence[PairText], tags: LanguageTags, run: TrainConfig, pairs: Sequence[Pair]
) -> EncodedCorpus:
    """Return text as token ids, with the numbers that its pairs have among others."""
    return _numbered(encode_corpus(texts, tags, run.batches.max_length or run.batches.max_tokens), pairs)


def _numbered(
    corpus: EncodedCorpus, pairs: Iterable[str], times: int = 1, into: EncodedCorpus | None = None
) -> EncodedCorpus:
    """Return the sentences of a corpus with other pairs' numbers, some times over, behind those of `into`."""
    numbered = EncodedCorpus(pairs) if into is None else into
    for pair in corpus.pairs:
        part = corpus.subset(pair)
        rows = [part[index] for index in range(len(part))] * times
        numbered.add(pair, [row["input_ids"] for row in rows], [row["labels"] for row in rows])
    return numbered


def _frozen_digest(added: AddedPairs) -> str:
    """Return a digest of every bit of the base and of earlier additions."""
    parts = [added.model.state_dict(), *(one.state_dict() for one in added.additions[:-1])]
    return digest(bit for state in parts for bit in bits_of(state))
