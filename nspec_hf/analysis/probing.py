"""What only the model can answer: what erased neurons cost, what masks do untrained, how stable they are.

Masks and statistics say which neurons a pair uses; the functions here translate or record to see what follows
from it. `scorer` turns a model and a test set into a function of masks, which `erasure_effect` (Xie et al.,
ACL 2021, Fig. 5) and `masked_gains` (the k of Tan et al., EMNLP 2024, Fig. 5, and the ρ of Xie et al., Table
3, without training) call; `recordings` counts on more and more text and on several samples of it, which
`stability` compares.
"""

import copy
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nspec_hf.analysis.gain_tables import SettingGains, setting_gains
from nspec_hf.core import ConfigError, Pair
from nspec_hf.data import EncodedCorpus, PairText
from nspec_hf.evaluation import TranslateConfig, Translator, score
from nspec_hf.gating import GateConfig
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import ActivationStats, RecordConfig
from nspec_hf.training import record_corpus

Scorer = Callable[[NeuronMasks | None], dict[Pair, float]]
"""Masks, or None for all neurons → the score of each pair."""


def scorer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[PairText],
    metric: str = "bleu",
    config: TranslateConfig | None = None,
    codes: Mapping[str, str] | None = None,
) -> Scorer:
    """Return a function that translates with given masks and scores each pair.

    Args:
        model: The model; it is left as it was.
        tokenizer: Its tokenizer.
        texts: Sources and references.
        metric: See `scores.py`.
        config: Decoding.
        codes: Your language codes → the tokenizer's, where they differ.
    """
    sources = [sentence for text in texts for sentence in text.sources]
    pairs = [text.pair for text in texts for _ in text.sources]

    def scores(masks: NeuronMasks | None) -> dict[Pair, float]:
        how = None if masks is None else GateConfig(zero_shot="compose")
        translated = iter(Translator(model, tokenizer, masks, config, how, codes).translate(sources, pairs))
        outputs = {text.pair: [next(translated) for _ in text.sources] for text in texts}
        return {text.pair: score(outputs[text.pair], text.targets, metric, text.pair).value for text in texts}

    return scores


def masked_gains(
    score: Scorer,
    stats: ActivationStats,
    coverages: Sequence[float] = (),
    generals: Sequence[float] = (),
    threshold: float = 0.7,
    pivot: str = "en",
) -> list[SettingGains]:
    """Return what masks of several settings do to the scores of a model that was not trained with them.

    Args:
        score: A function of `scorer`.
        stats: What masks are selected from.
        coverages: Values of k (Tan et al., Eq. 1).
        generals: Values of ρ (Xie et al., Eq. 9), with importance by TE where it was recorded, else by AV.
        threshold: Xie et al.'s k.
        pivot: The language that trained pairs share.

    Returns:
        Gains over all neurons, one result a setting.

    Raises:
        ConfigError: If `generals` are given and the statistics hold no importance.
    """
    dense = score(None)
    found = []
    if coverages:
        scores = {k: score(NeuronMasks.from_coverage(stats, k)) for k in coverages}
        found.append(setting_gains("coverage k, without training", scores, dense, pivot=pivot))
    if generals:
        measure = next((name for name in ("te", "av") if name in stats.sums), None)
        if measure is None:
            raise ConfigError("shares of general neurons need importance; record with RecordConfig(te=True)")
        scores = {
            general: score(NeuronMasks.from_importance(stats, measure, general, threshold))
            for general in generals
        }
        found.append(
            setting_gains("share ρ of general neurons, without training", scores, dense, pivot=pivot)
        )
    return found


def recordings(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    corpus: EncodedCorpus,
    sizes: Sequence[int] = (100, 200, 500),
    seeds: Sequence[int] = (1, 2, 3),
    config: RecordConfig | None = None,
    codes: Mapping[str, str] | None = None,
) -> dict[str, ActivationStats]:
    """Record the first sentences of every pair, more and more of them, and random samples.

    No sentence is recorded twice for the growing part: the counts of more text contain those of less.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        corpus: Encoded text.
        sizes: Numbers of sentences a pair; those that the pair with the least text lacks are left out.
        seeds: Of random samples, each of the smallest size.
        config: What to count.
        codes: Your language codes → the tokenizer's, where they differ.

    Returns:
        Name → statistics: `100`, `200` …, `all`, then `100, seed 1` ….

    Raises:
        ConfigError: If the text is no longer than the smallest size.
    """
    rows_P = [np.flatnonzero(corpus.pair_ids == number) for number in range(len(corpus.pairs))]
    fewest = min(map(len, rows_P))
    growing = sorted({size for size in sizes if size < fewest})
    if not growing:
        raise ConfigError(
            f"stability needs sizes below the {fewest} sentences that each pair has, got {list(sizes)}"
        )

    def counted(chosen_P: Sequence[np.ndarray]) -> ActivationStats:
        return record_corpus(model, tokenizer, _part(corpus, chosen_P), config, codes=codes)

    found: dict[str, ActivationStats] = {}
    so_far: ActivationStats | None = None
    for start, end in zip([0, *growing], [*growing, None], strict=True):
        more = counted([rows[start:end] for rows in rows_P])
        so_far = more if so_far is None else copy.deepcopy(so_far).merge(more)
        found["all" if end is None else str(end)] = so_far
    for seed in seeds:
        draw = np.random.default_rng(seed)
        sample_P = [np.sort(draw.choice(rows, growing[0], replace=False)) for rows in rows_P]
        found[f"{growing[0]}, seed {seed}"] = counted(sample_P)
    return found


def _part(corpus: EncodedCorpus, rows_P: Sequence[np.ndarray]) -> EncodedCorpus:
    part = EncodedCorpus(corpus.pairs)
    for pair, rows in zip(corpus.pairs, rows_P, strict=True):
        chosen = [corpus[int(row)] for row in rows]
        part.add(pair, [row["input_ids"] for row in chosen], [row["labels"] for row in chosen])
    return part
