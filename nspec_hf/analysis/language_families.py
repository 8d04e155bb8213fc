"""Does the overlap of neurons follow the families of languages? A tree, and a test.

Shape letters: L = languages, S = sites, N = relabelings, F = families.

The tree is that of Tan et al. (EMNLP 2024), Fig. 7: scipy's complete linkage of the distances 1 − IoU,
leaves in optimal order. The test asks whether languages of one family overlap more than languages of two:
mean IoU within minus mean IoU across families, against the same difference after the family names were
dealt out anew.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.cluster.hierarchy import cophenet, leaves_list, linkage, to_tree
from scipy.spatial.distance import squareform

from nspec_hf.analysis.mask_overlap import Progression
from nspec_hf.analysis.result import Result, axes
from nspec_hf.core import ConfigError, main_language
from nspec_hf.recording import Site

_MEMBERS = {
    "Germanic": "af da de en fo is lb nl nn nb no sv yi fy "
    "afr dan deu eng fao fry isl lim ltz nld nno nob nor swe ydd",
    "Romance": "ca es fr gl it oc pt ro ast cat fra fur glg ita lij lmo oci por ron scn spa srd vec",
    "Slavic": "be bg bs cs hr mk pl ru sk sl sr uk bel bos bul ces hrv mkd pol rus slk slv srp szl ukr",
    "Baltic": "lt lv lav lit ltg lvs",
    "Celtic": "br cy ga gd bre cym gla gle",
    "Indo-Aryan": "bn gu hi mr ne or pa sd si ur as "
    "asm awa ben bho guj hin hne kas mag mai mar nep npi ori ory pan san sin snd urd",
    "Iranian": "fa ku ps tg ckb fas kmr kur pbt pes prs pus tgk",
    "Afro-Asiatic": "am ar ha he mt ti so acm acq aeb ajp amh apc ara arb ars ary arz gaz hau heb kab mlt "
    "som taq tir tzm",
    "Dravidian": "kn ml ta te kan mal tam tel",
    "Turkic": "az ba kk ky tr tt uz azb aze azj bak crh kaz kir tat tuk tur uig uzb uzn",
    "Uralic": "et fi hu est fin hun",
    "Austronesian": "ceb id ilo jv mg ms su tl ace ban bjn bug fij ind jav min mlg mri msa pag plt smo sun "
    "tgl war zsm",
    "Sino-Tibetan": "my zh bod cmn dzo kac lus mni mya yue zho",
    "Niger-Congo": "ff ig lg ln ns rw sn ss sw tn wo xh yo zu aka bam bem cjk dyu ewe fon ful fuv ibo kam "
    "kbp kik kin kmb kon lin lua lug mos nso nya run sag sna sot ssw swa swh tsn tso tum twi umb wol xho yor "
    "zul",
    "Nilo-Saharan": "dik knc luo nus",
    "Austroasiatic": "km vi khm sat vie",
    "Tai-Kadai": "lo th lao shn tha",
    "Japonic": "ja jpn",
    "Koreanic": "ko kor",
    "Constructed": "eo epo",
}
FAMILIES: dict[str, str] = {code: family for family, codes in _MEMBERS.items() for code in codes.split()}
"""Family of each language by its code of two or three letters; Indo-European by branch, as in Tan et al.,
Table 7."""

_AT_ONCE = 2**20  # couples of relabeled languages that are compared at a time

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#999999")
"""Okabe and Ito's colours, the ones that are easiest to tell apart first."""


def known_families(languages: Iterable[str]) -> dict[str, str]:
    """Return the families of those languages that `FAMILIES` has, however a tokenizer spells them.

    What follows the language in a code is its script or region: `deu_Latn`, `de_DE` and `de-AT` are German.
    """
    spoken = {code: main_language(code) for code in languages}
    return {code: FAMILIES[language] for code, language in spoken.items() if language in FAMILIES}


def family_colours(families: Mapping[str, str]) -> dict[str, str]:
    """Return family → colour, large families first; more than eight families share colours."""
    sizes = Counter(families.values())
    ordered = sorted(sizes, key=lambda name: (-sizes[name], name))
    return {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(ordered)}


@dataclass(frozen=True, kw_only=True)
class LanguageTree(Result):
    """A tree of languages from their overlap at one site (Tan et al., Fig. 7)."""

    languages: tuple[str, ...]
    """In the order of the distance matrix that was clustered."""

    distance: np.ndarray = field(metadata=axes(language="languages", other_language="languages"))
    """1 − IoU, float64 [L, L], zero on the diagonal."""

    linkage: np.ndarray
    """scipy's linkage matrix, float64 [L − 1, 4]: the two joined clusters, their distance, the size."""

    left_out: tuple[str, ...] = ()
    """Languages whose overlap with another is undefined, since both keep no neuron."""

    @property
    def leaves(self) -> list[str]:
        """The languages from left to right, similar ones side by side."""
        return [self.languages[i] for i in leaves_list(self.linkage)]

    @property
    def cophenetic(self) -> float:
        """Correlation of the tree's distances with the true ones: how much of the matrix the tree tells."""
        return _correlation(np.asarray(cophenet(self.linkage)), squareform(self.distance, checks=False))

    def to_text(self) -> str:
        """Return the tree drawn with lines, one language a row, closer languages joined further right."""
        return "\n".join(_draw(to_tree(self.linkage), self.languages))


def language_tree(languages: Sequence[str], iou_LL: np.ndarray) -> LanguageTree:
    """Cluster languages by complete linkage of 1 − IoU with optimal leaf order.

    Args:
        languages: Names of the rows.
        iou_LL: Symmetric overlaps, shape [L, L]; the diagonal is ignored. Languages with undefined overlaps
            are left out, the one with the most first, until none is left.

    Raises:
        ConfigError: If fewer than two languages remain.
    """
    kept = _defined(iou_LL)
    if len(kept) < 2:
        raise ConfigError(
            f"a tree needs two languages with defined overlap, got {len(kept)} of {len(languages)}"
        )
    distance_LL = 1.0 - iou_LL[np.ix_(kept, kept)]
    np.fill_diagonal(distance_LL, 0.0)
    joined = linkage(squareform(distance_LL, checks=False), method="complete", optimal_ordering=True)
    left_out = tuple(code for i, code in enumerate(languages) if i not in kept)
    names = tuple(languages[i] for i in kept)
    return LanguageTree(languages=names, distance=distance_LL, linkage=joined, left_out=left_out)


@dataclass(frozen=True, kw_only=True)
class FamilyAgreement(Result):
    """How far the overlap at each site follows the families of languages. NaN where it cannot be said."""

    sites: tuple[Site, ...]
    within: np.ndarray = field(metadata=axes(site="sites"))
    """Mean IoU of two languages of one family."""
    across: np.ndarray = field(metadata=axes(site="sites"))
    """Mean IoU of two languages of different families."""
    p_value: np.ndarray = field(metadata=axes(site="sites"))
    """One-sided: share of relabelings whose difference within − across is at least the one found."""
    relabelings: np.ndarray = field(metadata=axes(site="sites"))
    """How many relabelings were looked at."""
    exact: np.ndarray = field(metadata=axes(site="sites"))
    """Whether these were all there are; otherwise they were drawn, and p = (1 + hits) / (1 + drawn)."""
    tree_correlation: np.ndarray = field(metadata=axes(site="sites"))
    """Correlation of the tree's cophenetic distances with the families (0 same, 1 different)."""
    cophenetic: np.ndarray = field(metadata=axes(site="sites"))
    """Cophenetic correlation of the tree with the distances that it was made from."""
    families: Mapping[str, str]
    """Family of each language that took part."""
    seed: int


def family_agreement(result: Progression, families: Mapping[str, str], seed: int = 1) -> FamilyAgreement:
    """Compare the overlap within and across families at every site, with a permutation test.

    Args:
        result: Overlap of languages; drop the pivot first, since every pair shares it.
        families: Language → family; languages without one are left out.
        seed: Of the draws of `permutation_test`; the same draws serve all sites.
    """
    named = result.without([code for code in result.languages if code not in families])
    rows = [_agreement_at(named, number, families, seed) for number in range(len(named.sites))]
    return FamilyAgreement(
        sites=named.sites,
        families={code: families[code] for code in named.languages},
        seed=seed,
        **{name: np.array([row[name] for row in rows]) for name in FamilyAgreement.array_axes()},
    )


def _agreement_at(
    named: Progression, number: int, families: Mapping[str, str], seed: int
) -> dict[str, float]:
    """Return the value of each array of `FamilyAgreement` at one site."""
    kept = _defined(named.iou[number])
    labels_L = [families[named.languages[i]] for i in kept]
    iou_LL = named.iou[number][np.ix_(kept, kept)]
    upper = np.triu_indices(len(kept), k=1)
    same = np.array([labels_L[i] == labels_L[j] for i, j in zip(*upper, strict=True)], dtype=bool)
    if not same.any() or same.all():
        return dict.fromkeys(FamilyAgreement.array_axes(), math.nan) | {"relabelings": 0, "exact": True}
    couples = iou_LL[upper]
    p_value, count, exact = permutation_test(iou_LL, labels_L, seed=seed)
    tree = language_tree([named.languages[i] for i in kept], iou_LL)
    return {
        "within": couples[same].mean(),
        "across": couples[~same].mean(),
        "p_value": p_value,
        "relabelings": count,
        "exact": exact,
        "tree_correlation": _correlation(np.asarray(cophenet(tree.linkage)), (~same).astype(float)),
        "cophenetic": tree.cophenetic,
    }


def permutation_test(
    iou_LL: np.ndarray, labels: Sequence[str], *, limit: int = 10_000, seed: int = 1
) -> tuple[float, int, bool]:
    """Test whether rows with the same label overlap more than chance; one-sided.

    The number of couples within a label is the same under every relabeling, so the difference of the means
    rises and falls with the sum of IoU within labels, which is what is compared.

    Args:
        iou_LL: Defined overlaps, shape [L, L]; the diagonal is ignored.
        labels: The label of each row.
        limit: Enumerate where there are at most this many distinct relabelings, else draw this many.
        seed: Of the draws.

    Returns:
        The p-value, the number of relabelings looked at, and whether these were all there are.
    """
    upper = np.triu_indices(len(labels), k=1)
    couples = iou_LL[upper]
    codes = np.unique(labels, return_inverse=True)[1]
    # scipy.stats.permutation_test would not do: it refuses groups of one, or goes through all L! orders.
    sizes = Counter(codes.tolist())
    total = math.factorial(len(labels)) // math.prod(map(math.factorial, sizes.values()))
    exact = total <= limit
    if exact:
        dealt_NL = np.array(list(_relabelings(sizes, len(labels))))
    else:
        dealt_NL = np.random.default_rng(seed).permuted(np.tile(codes, (limit, 1)), axis=1)
    observed = float(couples[codes[upper[0]] == codes[upper[1]]].sum())
    # Some at a time: all relabelings of 200 languages are 200 million couples.
    parts = range(0, len(dealt_NL), max(1, _AT_ONCE // len(couples)))
    dealt = (dealt_NL[start : start + parts.step] for start in parts)
    within_N = np.concatenate([(each[:, upper[0]] == each[:, upper[1]]) @ couples for each in dealt])
    # Relabelings that only rename families give the same sum in another order of addition.
    hits = int((within_N >= observed - 1e-9).sum())
    return (hits / total, total, True) if exact else ((1 + hits) / (1 + limit), limit, False)


def _relabelings(left: Counter[int], length: int) -> Iterator[tuple[int, ...]]:
    """Yield every distinct order of the codes that are left, each as often as it counts."""
    if length == 0:
        yield ()
    for code in sorted(left):
        if left[code]:
            left[code] -= 1
            for rest in _relabelings(left, length - 1):
                yield (code, *rest)
            left[code] += 1


def _defined(iou_LL: np.ndarray) -> list[int]:
    kept = list(range(len(iou_LL)))
    gaps_LL = np.isnan(iou_LL) & ~np.eye(len(iou_LL), dtype=bool)
    while kept:
        gaps = gaps_LL[np.ix_(kept, kept)].sum(axis=1)
        if not gaps.any():
            break
        kept.pop(int(gaps.argmax()))
    return kept


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return math.nan
    return float(np.corrcoef(first, second)[0, 1])


def _draw(node: Any, languages: Sequence[str]) -> list[str]:
    if node.is_leaf():
        return [f" {languages[node.id]}"]
    first, *others = _draw(node.left, languages)
    upper = [f"┬─{first}", *(f"│ {line}" for line in others)]
    first, *others = _draw(node.right, languages)
    return [*upper, f"└─{first}", *(f"  {line}" for line in others)]
