"""The families of an experiment's languages: as it names them, or as the neurons of its base group them.

Shape letters: L = languages, P = pairs.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.cluster.hierarchy import fcluster
from transformers import PreTrainedModel

from nspec_hf.analysis import LanguageTree, language_tree, overlap, progression
from nspec_hf.core import Pair, languages_of, require
from nspec_hf.masks import NeuronMasks
from nspec_hf.systems.run import Run


def family_of(pair: Pair, side: str, families: Mapping[str, str], pivot: str) -> str | None:
    """Return the family whose weights a pair uses on a side; None where there is none.

    The pivot is in almost every pair, so it counts for no family: a pair with it belongs to the family of its
    other language, on both sides. Any other pair has the encoder of its source's family and the decoder of
    its target's.
    """
    own, other = (pair.source, pair.target) if side == "encoder" else (pair.target, pair.source)
    return families.get(other if own == pivot else own)


def named_families(families: Mapping[str, str], pairs: Sequence[Pair], pivot: str) -> dict[str, str]:
    """Return the families of the pairs' languages, without the pivot.

    Raises:
        ConfigError: If a language has none.
    """
    languages = [code for code in languages_of(pairs) if code != pivot]
    missing = [code for code in languages if code not in families]
    require(
        not missing,
        f"data.families names no family for {', '.join(missing)}; name one for each language but the pivot "
        f"({pivot}), or none at all, to take them from the overlap of the base's neurons",
    )
    return {code: families[code] for code in languages}


def found_families(model: PreTrainedModel, run: Run, count: int | None = None) -> dict[str, str]:
    """Return families from the overlap of the base's specialized neurons; each is named after its languages.

    Two languages are as close as their neurons overlap, the mean over the sites of both stacks (by source in
    the encoder, by target in the decoder; Tan et al. 2024, §3.2); the tree is that of `language_tree`.

    Args:
        model: The base.
        run: The experiment.
        count: How many families; None cuts the tree where the distances of its joins jump most.

    Raises:
        ConfigError: If the overlap of some languages is undefined.
    """
    masks = NeuronMasks.from_config(run.recorded(model, run.config.record), run.config.select)
    pivot = run.config.data.pivot
    course = progression(overlap(masks)).without([pivot])
    languages = [code for code in languages_of(run.pairs) if code != pivot]
    if len(languages) < 2:
        return dict.fromkeys(languages, *languages)
    rows = [course.languages.index(code) for code in languages]
    # Languages that are only sources have no overlap in the decoder, and only targets none in the encoder.
    known_SLL = np.ma.masked_invalid(course.iou[:, rows][:, :, rows])
    tree = language_tree(languages, known_SLL.mean(axis=0).filled(np.nan))
    require(
        not tree.left_out,
        f"the overlap of {', '.join(tree.left_out)} with other languages is undefined, so they have no place "
        "in the tree; name the families in data.families",
    )
    return cut_tree(tree, count)


def cut_tree(tree: LanguageTree, count: int | None = None) -> dict[str, str]:
    """Return language → family, each family named after its languages: `de+nl`.

    Args:
        tree: The tree.
        count: How many families; None: as many as there are before the join whose distance exceeds that of
            the join before it by most (for the first join, zero), so that one language is never all.

    Raises:
        ConfigError: If there are fewer languages than families, or `count` is not positive.
    """
    languages = len(tree.languages)
    if count is None:
        jumps = np.diff(tree.linkage[:, 2], prepend=0.0)
        # Before join number i there are L − i families. The first jump would leave each language alone.
        first = 1 if languages > 2 else 0
        count = languages - (first + int(jumps[first:].argmax()))
    require(1 <= count <= languages, f"{languages} languages make 1 to {languages} families, got {count}")
    labels_L = fcluster(tree.linkage, count, criterion="maxclust")
    members: dict[int, list[str]] = {}
    for code, label in zip(tree.languages, labels_L, strict=True):
        members.setdefault(int(label), []).append(code)
    return {code: "+".join(codes) for codes in members.values() for code in codes}
