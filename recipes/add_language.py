"""Add a language to a trained base in many ways, and measure what it and the old pairs come to.

    python recipes/pretrain.py recipes/configs/multi30k_add/base.yaml --data.corpus.path DIR
    python recipes/add_language.py recipes/configs/multi30k_add/czech.yaml --data.corpus.path DIR --lines 500

A row is one way. What has been measured is in `recipes/results/NAME.LINES.ROW.sSEED.json` and is not done
again. `--search true` chooses among the rows that the file lists under `searched` for each way, by the loss
of the validation text, runs what it chose with every seed, and tests it. With `--tokenizer`, only the
tokenizer of all languages is made, before `pretrain.py`; with `--figure`, what has been measured is drawn:
BLEU against parameters that were added.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from nspec_hf.adding import AddConfig, add_pairs, retrain
from nspec_hf.core import Pair, exit_status, plain, read_json, read_lines, require, warn, write_result
from nspec_hf.data import LanguageTags, PairText, VocabularyConfig, load_tokenizer
from nspec_hf.evaluation import (
    Comparison,
    TranslateConfig,
    Translator,
    compare,
    score_system,
    translate_test_set,
)
from nspec_hf.recording import load_model
from nspec_hf.systems import DataConfig, read_settings, without_places
from nspec_hf.training import TrainConfig, make_tokenizer

UNSEEN = "zz"
"""A code that no tokenizer has a tag for, in place of the new language's own."""


@dataclass(frozen=True, kw_only=True)
class Adding:
    """The settings of the recipe."""

    data: DataConfig
    """Text and pairs of the new language."""
    old_pairs: Sequence[str]
    """What the base was trained on."""
    rows: Mapping[str, Mapping[str, Any]]
    """Name → `way` (beside, free, replay, joint), `add` (fields of AddConfig), `arguments`, `dropout`,
    `unseen`, `updates`. `joint` trains all pairs together from the start."""
    searched: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Name of a way → as many rows for each, of which `--search` chooses one."""
    seeds: Sequence[int] = (1, 2)
    """Seeds of the rows that `--search` chose."""
    name: str = "adding"
    """What results are called."""
    base: str = ""
    """Hub id or folder of the base; empty: what `pretrain.py` left in `work/base/model`."""
    work: str = "work"
    """Folder of `pretrain.py`, and of the runs."""
    results: str = "recipes/results"
    """Folder of the JSON files."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """The run of every row, but for its own `arguments`."""
    translate: TranslateConfig = field(default_factory=TranslateConfig)
    """Decoding."""


def measure(config: Adding, row: str, lines: int, seed: int, updates: int, sentences: int) -> dict[str, Any]:
    """Train and score one row."""
    settings, data = config.rows[row], config.data
    base = config.base or str(Path(config.work) / "base" / "model")
    model = load_model(base, {"dropout": settings.get("dropout", 0.1)}, for_training=True)
    tags = LanguageTags(load_tokenizer(base))
    unseen = bool(settings.get("unseen"))
    new = [as_unseen(text, unseen) for text in cut(data.read(data.train_split), lines)]
    watched = [as_unseen(text, unseen) for text in cut(data.read(data.valid_split), 300)]
    tests = [as_unseen(text, unseen) for text in cut(data.read(data.test_split), sentences)]
    old = cut(data.read(data.train_split, config.old_pairs), 4000)
    old_tests = cut(data.read(data.test_split, config.old_pairs), sentences // 2)
    own = {"max_steps": updates_of(settings, updates), "seed": seed, **settings.get("arguments", {})}
    run = replace(
        config.train,
        arguments={**config.train.arguments, **own},
        batches=replace(config.train.batches, seed=seed),
    )
    add = AddConfig(**{"seed": seed, **settings.get("add", {})})
    place, way = Path(config.work) / f"{lines}" / f"{row}.s{seed}", settings.get("way", "beside")
    found: dict[str, Any] = {"row": row, "way": way, "lines": lines, "seed": seed} | {
        "settings": dict(settings),
        "max_steps": own["max_steps"],
        "sentences": sentences,
    }
    whole, gate = model.num_parameters(), None
    if way == "beside":
        made = add_pairs(model, tags, new, add, run, place, validation=watched, old=old, base=base)
        gate, tags, trained = made.added, made.tags, made.result
        found |= {"trained": made.added.additions[-1].size, "share": made.added.additions[-1].size / whole}
        found |= {"width": made.added.additions[-1].layout.about["width"], "words": made.words.in_words()}
        if made.untouched is not None:
            found["identical"] = [made.untouched.identical, made.untouched.sentences]
    else:
        replayed = old if way == "replay" else ()
        if way == "joint":
            model, replayed = type(model)(model.config), data.read(data.train_split, config.old_pairs)
        tags, trained = retrain(model, tags, new, add, run, place, validation=watched, replayed=replayed)
        found |= {"trained": whole, "share": 1.0}
    translator = Translator(model, tags, gate.attach() if gate else None, config.translate)
    outputs = translate_test_set(translator, tests, place / "outputs")
    found |= {"new": scores_of(outputs, tests), **trained.facts()}
    if way != "beside":
        untrained = Translator(load_model(base), tags, None, config.translate)
        first = translate_test_set(untrained, old_tests, Path(config.work) / "old_outputs")
        after = translate_test_set(translator, old_tests, place / "old_outputs")
        comparison = compare(
            {"base": {**first}, "after": {**after}},
            {text.pair: text.targets for text in old_tests},
            "base",
            ["bleu"],
            n_samples=500,
            n_jobs=1,
        )
        found |= {"old": scores_of(after, old_tests), "old_before": scores_of(first, old_tests)}
        found["old_verdicts"] = comparison.counts("bleu")
    return found


def as_unseen(text: PairText, unseen: bool) -> PairText:
    """Return a text whose language other than English has a code that is not known."""
    codes = [code if code == "en" or not unseen else UNSEEN for code in (text.pair.source, text.pair.target)]
    return replace(text, pair=Pair(*codes))


def cut(texts: Sequence[PairText], lines: int) -> list[PairText]:
    """Return the first lines of each text."""
    return [replace(text, sources=text.sources[:lines], targets=text.targets[:lines]) for text in texts]


def scores_of(
    outputs: Mapping[Pair, Sequence[str]], texts: Sequence[PairText]
) -> dict[str, dict[str, float]]:
    """Return metric → pair → score, with the mean."""
    scores = score_system("row", {**outputs}, {text.pair: text.targets for text in texts})
    values = {
        metric: {str(pair): scores.value(pair, metric) for pair in scores.pairs} for metric in scores.metrics
    }
    return {metric: {**of, "mean": sum(of.values()) / len(of)} for metric, of in values.items()}


def updates_of(settings: Mapping[str, Any], updates: int) -> int:
    """Return how many updates a row is to make, where all others make `updates`."""
    return settings.get("arguments", {}).get("max_steps", settings.get("updates", updates))


def row_of(config: Adding, row: str, lines: int, seed: int, updates: int, sentences: int) -> dict[str, Any]:
    """Return what a row came to, which is measured where it has not been.

    Warns:
        UserWarning: If it has been measured with other settings, updates or sentences.
    """
    path = Path(config.results) / f"{config.name}.{lines}.{row}.s{seed}.json"
    if not path.is_file():
        found = measure(config, row, lines, seed, updates, sentences)
        write_result(path, found, without_places(plain(config)))
        mean = {metric: round(of["mean"], 2) for metric, of in found["new"].items()}
        old = f", old pairs {found['old']['bleu']['mean']:.2f}" if "old" in found else ""
        print(f"{lines} lines, {row}, seed {seed}: {mean}{old}", flush=True)
    found, settings = read_json(path), config.rows[row]
    asked = {"settings": settings, "max_steps": updates_of(settings, updates), "sentences": sentences}
    other = [
        name
        for name, value in asked.items()
        if name in found and written_out(found[name]) != written_out(value)
    ]
    if other:
        warn(f"{path} was measured with other {', '.join(other)}, and stands; delete it to measure anew")
    return found


def written_out(value: Any) -> Any:
    """Return the settings of a row with those of the addition that it leaves out; anything else as it is."""
    return {**value, "add": AddConfig(**value.get("add", {}))} if isinstance(value, Mapping) else value


def search(config: Adding, lines: int, updates: int, sentences: int) -> dict[str, Any]:
    """Choose a row for each way by the loss of the validation text, run it with every seed, test it.

    The test is a paired bootstrap against the best fine-tuning (`free`) of the same seed.
    """
    losses: dict[str, dict[str, float]] = {}
    for way, rows in config.searched.items():
        run = {row: row_of(config, row, lines, config.seeds[0], updates, sentences) for row in rows}
        losses[way] = {row: last_loss(each) for row, each in run.items()}
    chosen = {way: min(each, key=lambda row: each[row]) for way, each in losses.items()}
    scores: dict[str, Any] = {way: {} for way in chosen}
    tests = {}
    for seed in config.seeds:
        for way, row in chosen.items():
            each = row_of(config, row, lines, seed, updates, sentences)
            scores[way][f"s{seed}"] = {metric: of["mean"] for metric, of in each["new"].items()}
        tested = compare_rows(config, lines, seed, chosen["free"], sentences, list(chosen.values()), "bs")
        tests[f"s{seed}"] = tested.to_dict()
        print(tested.table(), flush=True)
    found = {"lines": lines, "losses": losses, "chosen": chosen, "scores": scores, "tests": tests}
    path = Path(config.results) / f"{config.name}.{lines}.search.json"
    write_result(path, found, without_places(plain(config)))
    return found


def compare_rows(
    config: Adding,
    lines: int,
    seed: int,
    baseline: str,
    sentences: int,
    rows: Sequence[str] = (),
    test: Literal["ar", "bs"] = "ar",
) -> Comparison:
    """Test every row of the same code that was measured against one of them; the result is kept."""
    unseen = bool(config.rows[baseline].get("unseen"))
    texts = [as_unseen(text, unseen) for text in cut(config.data.read(config.data.test_split), sentences)]
    folder, systems = Path(config.work) / f"{lines}", {}
    for row in rows or config.rows:
        files = {text.pair: folder / f"{row}.s{seed}" / "outputs" / f"{text.pair}.txt" for text in texts}
        if all(file.is_file() for file in files.values()):
            systems[row] = {pair: read_lines(file) for pair, file in files.items()}
    references: dict[str, Sequence[str]] = {text.pair: text.targets for text in texts}
    tested = compare(systems, references, baseline, test=test, n_samples=1000, n_jobs=1)
    path = Path(config.results) / f"{config.name}.{lines}.against_{baseline}.s{seed}.json"
    write_result(path, tested.to_dict(), without_places(plain(config)))
    return tested


def draw(config: Adding) -> Path:
    """Draw BLEU against what was added, a curve for each amount of text; return the file.

    Of rows that add the same, the one of the lowest loss on the validation text is drawn, and of fine-tuning
    too: the mean of its seeds, and a bar from the lowest to the highest. Named and joined are those that no
    smaller addition has a lower loss than.
    """
    import matplotlib.pyplot as plt

    found = [read_json(path) for path in sorted(Path(config.results).glob(f"{config.name}.*.s?.json"))]
    found = [one for one in found if "way" in one and not one["settings"].get("unseen")]
    figure, axes = plt.subplots(figsize=(8, 5))
    for lines in sorted({one["lines"] for one in found}):
        those = [one for one in found if one["lines"] == lines]
        labels = sorted({added(one) for one in those if one["way"] == "beside"})
        points = sorted((*chosen([one for one in those if added(one) == label]), label) for label in labels)
        losses = [point[4] for point in points]
        best = [each for number, each in enumerate(points) if each[4] <= min(losses[: number + 1])]
        x, low, mean, high, _, names = zip(*best, strict=True)
        off = [
            [m - at for m, at in zip(mean, low, strict=True)],
            [at - m for m, at in zip(mean, high, strict=True)],
        ]
        (drawn, *_) = axes.errorbar(
            x, mean, off, fmt="o-", capsize=3, label=f"{lines:,} sentences, old pairs untouched"
        )
        for share, _, bleu, *_ in (each for each in points if each not in best):
            axes.plot(share, bleu, ".", color=drawn.get_color(), alpha=0.4)
        for at, after, y, name in zip(x, [*x[1:], math.inf], mean, names, strict=True):
            if after - at < 2:  # its name would lie on the next one's
                continue
            axes.annotate(name, (at, y), fontsize=7, textcoords="offset points", xytext=(4, -9))
        free = [one for one in those if one["way"] == "free"]
        if free:
            tuned = chosen(free)[2]
            tried = len({one["row"] for one in free})
            label = f"{lines:,}, fine-tuning, best setting of {tried} (old pairs lost)"
            axes.axhline(tuned, color=drawn.get_color(), linestyle="--", label=label)
    axes.set(
        xlim=(0, 1.25 * axes.get_xlim()[1]),
        xlabel="parameters added, % of the model",
        ylabel="BLEU, mean of the new pairs",
    )
    axes.legend(fontsize=7)
    path = Path(config.results) / f"{config.name}.frontier.png"
    figure.savefig(path, dpi=120, bbox_inches="tight")
    return path


def chosen(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float, float, float, float]:
    """Return of the row that validation text chooses: share added, in %, lowest, mean, highest BLEU; loss."""
    first = [one for one in rows if one["seed"] == min(each["seed"] for each in rows)]
    best = min(first, key=last_loss)
    bleu = [one["new"]["bleu"]["mean"] for one in rows if one["row"] == best["row"]]
    return 100 * best["share"], min(bleu), sum(bleu) / len(bleu), max(bleu), last_loss(best)


def last_loss(found: Mapping[str, Any]) -> float:
    """Return the loss of the validation text when a row's training ended, in nats a token."""
    return list(found["validation_loss"].values())[-1]


def added(found: Mapping[str, Any]) -> str:
    """Return what a row added to the base, in a few words; empty where it trained the base itself."""
    add = found["settings"].get("add", {})
    if found["way"] != "beside":
        return ""
    parts = [f"neurons {found['width']:.0%}"] if found["width"] else []
    parts += [f"LoRA {add['lora']}"] if add.get("lora") else []
    parts += ["copy of " + ", ".join(add["copies"])] if add.get("copies") else []
    parts += ["pieces of " + ", ".join(add["languages"])] if add.get("languages") else []
    pieces = {"all": [], "new": ["new pieces"], "none": ["no pieces"]}[add.get("pieces", "all")]
    return " + ".join([*parts, *pieces]) or "all pieces"


def read_options(argv: list[str] | None = None) -> tuple[Adding, Any]:
    """Read the settings, and what else there is on the command line."""
    return read_settings(
        Adding,
        argv,
        description=__doc__ or "",
        lines={"type": int, "default": 500, "help": "Sentences of the new language."},
        seed={"type": int, "default": 1, "help": "Seed."},
        updates={"type": int, "default": 300, "help": "Updates of every row."},
        only={"type": str, "default": "", "help": "Rows, with commas; none: all."},
        sentences={"type": int, "default": 1000, "help": "Test sentences of a new pair; half of an old one."},
        baseline={"type": str, "default": "", "help": "Only test what has been measured against this row."},
        figure={"type": bool, "default": False, "help": "Only draw what has been measured."},
        search={"type": bool, "default": False, "help": "Choose settings on the validation text, and test."},
        tokenizer={"type": bool, "default": False, "help": "Only make the tokenizer of all languages."},
    )


def main(argv: list[str] | None = None) -> None:
    """Run the recipe."""
    config, extra = read_options(argv)
    if extra.baseline:
        print(compare_rows(config, extra.lines, extra.seed, extra.baseline, extra.sentences).table())
        return
    if extra.figure:
        print(draw(config))
        return
    if extra.tokenizer:
        texts = config.data.read(config.data.train_split, [*config.old_pairs, *config.data.pairs])
        make_tokenizer(texts, VocabularyConfig(size=2000), Path(config.work) / "base" / "tokenizer")
        return
    if extra.search:
        search(config, extra.lines, extra.updates, extra.sentences)
        return
    rows = extra.only.split(",") if extra.only else list(config.rows)
    for row in rows:
        require(row in config.rows, f"there is no row {row!r}; there are: {', '.join(config.rows)}")
    for row in rows:
        row_of(config, row, extra.lines, extra.seed, extra.updates, extra.sentences)


if __name__ == "__main__":
    sys.exit(exit_status("add_language.py", main))
