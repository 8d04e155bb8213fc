"""What only the model can answer: what erased neurons cost, what masks do untrained, how stable they are.

Masks and statistics say which neurons a pair uses; the functions here translate or record to see what follows
from it. `scorer` turns a model and a test set into a function of masks, which `ablate` (Xie et al.,
ACL 2021, Fig. 5) and `masked_gains` (the k of Tan et al., EMNLP 2024, Fig. 5, and the ρ of Xie et al., Table
3, without training) call; `recordings` counts on more and more text and on several samples of it, which
`stability` compares.
"""

import copy
from collections.abc import Callable, Sequence

import numpy as np
from transformers import PreTrainedModel

from nspec_hf.analysis.gain_tables import SettingGains, setting_gains
from nspec_hf.analysis.general_specific import recorded_importance
from nspec_hf.core import ConfigError
from nspec_hf.data import EncodedCorpus, LanguageTags, PairText
from nspec_hf.evaluation import TranslateConfig, Translator, score
from nspec_hf.gating import GateConfig, Silence, set_aside
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import ActivationStats, RecordConfig
from nspec_hf.training import record_corpus

Scorer = Callable[[NeuronMasks | None], dict[str, float]]
"""Masks, or None for all neurons → the score of each pair."""


def scorer(
    model: PreTrainedModel,
    tags: LanguageTags,
    texts: Sequence[PairText],
    metric: str = "bleu",
    config: TranslateConfig | None = None,
    silence: Silence = "neuron",
) -> Scorer:
    """Return a function that translates with given masks and scores each pair; the model stays as it was.

    A gate that is on the model is off meanwhile. `silence` is that of the model's training.
    """

    def scores(masks: NeuronMasks | None) -> dict[str, float]:
        how = None if masks is None else GateConfig(silence=silence, zero_shot="compose")
        with set_aside(model):
            outputs = Translator(model, tags, masks, config, how).translate_corpus(texts)
        return {text.pair: score(outputs[text.pair], text.targets, metric, text.pair).value for text in texts}

    return scores


def masked_gains(
    score_masks: Scorer,
    stats: ActivationStats,
    coverages: Sequence[float] = (),
    generals: Sequence[float] = (),
    pivot: str = "en",
) -> list[SettingGains]:
    """Return what masks of several settings do to the scores of a model that was not trained with them.

    Args:
        score_masks: A function of `scorer`.
        stats: What masks are selected from.
        coverages: Values of k (Tan et al., Eq. 1).
        generals: Values of ρ (Xie et al., Eq. 9), with importance by TE where it was recorded, else by AV.
        pivot: The language that trained pairs share.

    Returns:
        Gains over all neurons, one result a setting.

    Raises:
        ConfigError: If `generals` are given and the statistics hold no importance.
    """
    candidates: dict[str, dict[float, NeuronMasks]] = {}
    if coverages:
        candidates["coverage k"] = {k: NeuronMasks.from_coverage(stats, k) for k in coverages}
    if generals:
        measure = recorded_importance(stats)
        if measure is None:
            raise ConfigError("shares of general neurons need importance; record with RecordConfig(te=True)")
        candidates["share ρ of general neurons"] = {
            general: NeuronMasks.from_importance(stats, measure, general) for general in generals
        }
    dense = score_masks(None)
    return [
        setting_gains(
            f"{setting}, without training",
            {value: score_masks(masks) for value, masks in by_value.items()},
            dense,
            pivot=pivot,
        )
        for setting, by_value in candidates.items()
    ]


def recordings(
    model: PreTrainedModel,
    tags: LanguageTags,
    corpus: EncodedCorpus,
    sizes: Sequence[int] = (100, 200, 500),
    seeds: Sequence[int] = (1, 2, 3),
    config: RecordConfig | None = None,
) -> dict[str, ActivationStats]:
    """Record the first sentences of every pair, more and more of them, and random samples.

    No sentence is recorded twice for the growing part: the counts of more text contain those of less.

    Args:
        model: The model.
        tags: Of its tokenizer.
        corpus: Encoded text.
        sizes: Numbers of sentences a pair; those that the pair with the least text lacks are left out.
        seeds: Of random samples, each of the smallest size.
        config: What to count.

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
        part = EncodedCorpus(corpus.pairs)
        for pair, chosen in zip(corpus.pairs, chosen_P, strict=True):
            rows = [corpus[int(row)] for row in chosen]
            part.add(pair, [row["input_ids"] for row in rows], [row["labels"] for row in rows])
        return record_corpus(model, tags, part, config)

    samples: dict[str, ActivationStats] = {}
    so_far: ActivationStats | None = None
    for start, end in zip([0, *growing], [*growing, None], strict=True):
        more = counted([rows[start:end] for rows in rows_P])
        so_far = more if so_far is None else copy.deepcopy(so_far).merge(more)
        samples["all" if end is None else str(end)] = so_far
    for seed in seeds:
        draw = np.random.default_rng(seed)
        chosen_P = [np.sort(draw.choice(rows, growing[0], replace=False)) for rows in rows_P]
        samples[f"{growing[0]}, seed {seed}"] = counted(chosen_P)
    return samples
