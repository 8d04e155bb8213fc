"""Bring results of an older layout into the small one: no detail by sentence, no places of a machine.

    python recipes/shrink_results.py recipes/results/*.json

Results of runs (`NAME.ROW.sSEED.json`, `NAME.base.json`) get their scores by metric, signature and direction;
tables of `compare.py` and tests of `nspec compare` keep what `compare.py --tables-only` needs: differences,
p-values and verdicts. Other files, and those that are small already, stay as they are.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nspec_hf.core import exit_status, read_json, write_json
from nspec_hf.evaluation import Comparison, SystemScores
from nspec_hf.systems import signed_scores, without_places

DROPPED = ("mask_recipe", "density_by_pair")
"""What a run's masks say themselves."""


def main(argv: Sequence[str] | None = None) -> None:
    """Convert the files that are named."""
    for path in map(Path, sys.argv[1:] if argv is None else argv):
        content = read_json(path)
        if not isinstance(content, dict):
            continue
        if "scores" in (content.get("scores") or {}):
            write_json(path, small_result(content))
        elif "rows" in content and "recipe" in content:
            write_json(path, {**content, "recipe": small_recipe(content["recipe"])})
        elif "blocks" in content and "rows" in content:
            write_json(path, small_comparison(content))
        elif "baseline_name" in content:
            write_json(path, small_tests(content))


def small_result(content: dict[str, Any]) -> dict[str, Any]:
    """Return a run's result without the scores' details."""
    scores = SystemScores.from_dict(content.pop("scores"))
    recipe = content.pop("recipe", {})
    for part in (content, content.get("extraction", {})):
        for name in DROPPED:
            part.pop(name, None)
    signed = {"scores": signed_scores(scores), "decoding": dict(scores.generation)}
    return {**content, **signed, "recipe": small_recipe(recipe)}


def small_recipe(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe without the places of a machine and the plan of a comparison."""
    config = recipe.get("config", {})
    return {**recipe, "config": without_places(config)} if "corpus" in config.get("data", {}) else recipe


def small_comparison(content: dict[str, Any]) -> dict[str, Any]:
    """Return the paired tests of a comparison of systems, which had every number of its tables."""
    rows = {row["name"]: row for row in content["rows"]}
    tests: dict[str, Any] = {}
    for name, row in rows.items():
        for against in row["against"].values():
            other = rows[against["reference"]]
            planned = [*map(str, other["seeds"]), *other["missing"]]
            run = [str(seed) for seed in other["seeds"]]
            matched = [
                (seed, int(planned[0]) if len(planned) == 1 else seed)
                for seed in row["seeds"]
                if len(planned) == 1 or str(seed) in run
            ]
            for place, (seed, theirs) in enumerate(matched):
                test = {
                    metric: {
                        pair: [
                            against["pairs"][metric][pair]["values"][place],
                            against["p_values"][metric][pair][place],
                            verdicts[place],
                        ]
                        for pair, verdicts in by_pair.items()
                    }
                    for metric, by_pair in against["verdicts"].items()
                }
                tests[f"{name} s{seed} against {against['reference']} s{theirs}"] = test
    seeds = {name: row["seeds"] for name, row in rows.items()}
    return {"name": content["name"], "seeds": seeds, "n_samples": content["n_samples"], "tests": tests}


def small_tests(content: dict[str, Any]) -> dict[str, Any]:
    """Return the tests that `nspec compare` wrote, by systems, metric and direction."""
    comparison = Comparison.from_dict(content)
    tests: dict[str, Any] = {}
    for row in comparison.rows:
        by_metric = tests.setdefault(f"{row.system_name} against {comparison.baseline_name}", {})
        values = [row.delta, row.p_value, row.verdict, row.verdict_holm]
        by_metric.setdefault(f"{row.metric} {row.signature}", {})[str(row.pair)] = values
    columns = ["difference", "p", "verdict", "verdict after Holm's correction"]
    return {"test": comparison.test, "n_samples": comparison.n_samples, "columns": columns, "tests": tests}


if __name__ == "__main__":
    sys.exit(exit_status("shrink_results.py", main))
