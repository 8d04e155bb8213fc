"""The few tables that tell what came out of the demo."""

from collections.abc import Mapping

from nspec_hf.core import MANY_TO_ONE, ONE_TO_MANY, ZERO_SHOT, Cell, Table
from nspec_hf.data import LanguageFamilies
from nspec_hf.evaluation import Comparison, SystemScores, notes_of

NAMES = {
    "base": "base",
    "finetune": "fine-tune",
    "neuron_specialization": "neuron spec.",
    "random": "random masks",
}
"""System → heading of its column."""

_MEANS = {
    "mean out of the pivot": ONE_TO_MANY,
    "mean into the pivot": MANY_TO_ONE,
    "mean of zero-shot": ZERO_SHOT,
}


def example_table(world: LanguageFamilies) -> Table:
    """Return the first test sentence in the pivot and in two languages of each family."""
    meaning = world.meanings("test", 1)[0]
    shown = [world.pivot]
    for first in range(1, len(world.languages), world.config.languages):
        shown += world.languages[first : first + 2]
    rows = tuple((code, world.family_of(code), world.language(code).say(meaning)) for code in shown)
    note = "words of one family have one root, which each language has changed by its own sound laws"
    columns = ("language", "family", "sentence")
    return Table(title="The first test sentence", columns=columns, rows=rows, notes=(note,))


def scores_table(systems: Mapping[str, SystemScores], comparison: Comparison) -> Table:
    """Return BLEU of every trained direction and system, averages, and what the significance test says.

    Args:
        systems: What each scored; `finetune` and `neuron_specialization` among them.
        comparison: Of the systems against `finetune`, on the trained directions.
    """
    tested = {row.pair: row for row in comparison.rows if row.system_name == "neuron_specialization"}
    columns = ("direction", *(NAMES[name] for name in systems), "gain", "p", "verdict")
    rows: list[tuple[Cell, ...]] = []
    for pair, row in tested.items():
        values = {name: scores.value(pair, "bleu") for name, scores in systems.items()}
        rows.append((str(pair), *values.values(), _gain(values), f"{row.p_value:.3f}", row.verdict))
    some = next(iter(systems.values()))
    for label, group in _MEANS.items():
        pairs = some.select(group)
        values = {name: scores.average("bleu", group) for name, scores in systems.items()}
        if pairs:
            rows.append((f"{label} ({len(pairs)})", *values.values(), _gain(values), "", ""))
    counts = comparison.counts("bleu", "neuron_specialization")
    return Table(
        title="BLEU on unseen sentences; gain = neuron specialization − fine-tune",
        columns=columns,
        rows=tuple(rows),
        notes=(
            f"neuron specialization against fine-tune, {len(tested)} directions: "
            f"{', '.join(f'{number} {verdict}' for verdict, number in counts.items())} at p < "
            f"{comparison.alpha} (paired bootstrap, {comparison.n_samples} trials)",
            "one seed and a tiny model: it shows how the method runs, not how much it gains",
            *notes_of([some], ["bleu"])[:1],
        ),
        digits=1,
    )


def _gain(values: Mapping[str, float | None]) -> float | None:
    specialized, control = values["neuron_specialization"], values["finetune"]
    return None if specialized is None or control is None else specialized - control
