"""Paired tests between two runs of a comparison, kept beside the translations that they were made of.

A test of twelve directions takes half a minute, a plan has hundreds of them, and each new run adds some. So
what was found lies in `work/ROW/sSEED/significance/` and is taken as long as no sentence changed.
"""

import json
import warnings
from collections.abc import Mapping, Sequence

from nspec_hf.comparison.runs import Run
from nspec_hf.core import Pair, digest, write_json
from nspec_hf.data import Outputs
from nspec_hf.evaluation import Comparison, compare, sacrebleu_metric


def paired_comparison(
    run: Run,
    reference: Run,
    targets: Mapping[Pair, Sequence[str]],
    metrics: Sequence[str],
    n_samples: int = 10_000,
    n_jobs: int | None = None,
) -> Comparison | None:
    """Test a run against another one, on the directions that both translated.

    Args:
        run: The one that is better or worse.
        reference: What it is compared with.
        targets: What the tests' translations should be.
        metrics: Those that have no statistics by sentence (COMET …) are left out.
        n_samples: Trials.
        n_jobs: Processes; None takes the processors that this process may use.

    Returns:
        The comparison; None if the translations of either are not there any more, or nothing is in common.
    """
    ours, theirs = run.outputs(), reference.outputs()
    if ours is None or theirs is None:
        return None
    pairs = [pair for pair in targets if pair in ours and pair in theirs]
    names = [metric for metric in metrics if pairs and sacrebleu_metric(metric, pairs[0]) is not None]
    if not names:
        return None
    texts = [{pair: list(each[pair]) for pair in pairs} for each in (ours, theirs, targets)]
    key = {"metrics": names, "n_samples": n_samples, "text": _digest(texts)}
    path = run.folder / "significance" / f"{reference.row}.s{reference.seed}.json"
    kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if kept.get("key") == key:
        return Comparison.from_json(json.dumps(kept["comparison"]))
    with warnings.catch_warnings():
        # Verdicts that stand on few sentences are named in the tables.
        warnings.filterwarnings("ignore", message="do not trust the verdict")
        found = compare(
            {reference.name: texts[1], run.name: texts[0]},
            texts[2],
            reference.name,
            names,
            n_samples=n_samples,
            n_jobs=n_jobs,
        )
    write_json(path, {"key": key, "comparison": json.loads(found.to_json())})
    return found


def _digest(texts: Sequence[Outputs]) -> str:
    return digest(json.dumps(texts))
