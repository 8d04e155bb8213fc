"""The laboratory: where do a pair's own neurons help? A grid of small worlds, minutes each on one core.

    python recipes/lab.py                                        # every cell and seed
    python recipes/lab.py --cells 's100-*' --seeds '[1]'         # a part of the grid
    python recipes/lab_diagram.py recipes/results/lab.json       # draw what there is, also while it runs

A cell is a world of made-up languages (how many, how much text, how kin, how uneven) and a model (capacity,
dropout). In each cell and seed one base is trained from scratch, and every row goes on from it with the same
budget, at the base's own rate again: fine-tuning, neuron specialization, random masks and one shared mask as
dense, the specialized masks swapped between pairs, and adapters. All of it is the code that `pretrain.py`
and `specialize.py` run. Results go into one JSON file, written whole after every row: a stopped run goes on
with the row that it was at.
"""

import dataclasses
import fnmatch
import shutil
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from transformers import TrainerCallback
from transformers.utils import logging

from nspec_hf.core import (
    MANY_TO_ONE,
    ONE_TO_MANY,
    ConfigError,
    exit_status,
    plain,
    read_json,
    require,
    write_lines,
    write_result,
)
from nspec_hf.data import (
    BatchConfig,
    CorpusConfig,
    LanguageFamilies,
    SyntheticConfig,
    VocabularyConfig,
    encode_corpus,
)
from nspec_hf.evaluation import SystemScores, TranslateConfig
from nspec_hf.systems import (
    DataConfig,
    ExperimentConfig,
    Run,
    make_system,
    pretrain,
    read_settings,
    run_system,
)
from nspec_hf.training import TrainConfig, text_loss

ROWS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "finetune": ("finetune", {}),
    "ns": ("neuron_specialization", {"coverage": 0.6}),
    "random": ("random", {"coverage": 0.6}),
    "shared": ("shared", {"coverage": 0.6}),
    "swapped": ("swapped", {"coverage": 0.6}),
    "ns_095": ("neuron_specialization", {"coverage": 0.95}),
    "pair_adapters": ("pair_adapters", {"bottleneck": 16}),
    "sampled": ("sampled", {"coverage": 0.6}),
}
"""Row → system and settings."""

_FIRST = ("finetune", "ns", "random")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One world and one model."""

    sentences: int = 400
    """Training sentences of each language with the pivot; no two languages say the same one."""

    width: int = 64
    """d_model; a feed-forward layer has four times as many neurons."""

    dropout: float = 0.1
    """In the base and in what goes on from it."""

    families: int = 2
    """Of languages, besides the pivot."""

    languages: int = 2
    """In each family."""

    changes: int = 5
    """Sound changes that make a language: the more, the less kin are sisters."""

    imbalance: int = 1
    """How many times the text of the others the first language of each family has."""

    longer: int = 1
    """How many times the usual updates the base and its continuations get."""

    @classmethod
    def of(cls, name: str) -> Self:
        """Return the cell of a name such as `s200-d64-p0.1-f3x3-x2`: a letter a field, then its value."""
        settings: dict[str, Any] = {}
        for letter, value in ((part[0], part[1:]) for part in name.split("-")):
            if letter == "f":
                settings["families"], settings["languages"] = map(int, value.split("x"))
            else:
                settings[_LETTERS[letter]] = float(value) if letter == "p" else int(value)
        return cls(**settings)


_LETTERS = {"s": "sentences", "d": "width", "p": "dropout", "c": "changes", "i": "imbalance", "x": "longer"}

GRID = """
    s100-d64-p0 s100-d64-p0.1 s100-d64-p0.3 s400-d64-p0 s400-d64-p0.1 s400-d64-p0.3 s1600-d64-p0
    s1600-d64-p0.1 s1600-d64-p0.3 s100-d64-p0-x2 s200-d64-p0 s100-d64-p0-x4 s200-d64-p0-f3x3 s400-d64-p0.1-x2
    s100-d32-p0
    s100-d64-p0.1-x2 s200-d64-p0-i4 s400-d64-p0-x2 s400-d32-p0 s100-d32-p0-x2 s200-d64-p0-c2 s200-d64-p0-x2
    s1600-d32-p0 s1600-d64-p0.1-x2
    s200-d64-p0.1-x2 s800-d64-p0 s200-d64-p0-c8 s100-d64-p0.3-x4 s200-d64-p0-f1x2 s100-d64-p0.1-x4
    s800-d64-p0.1-x2 s400-d32-p0.1-x4
""".split()
"""The cells in their order; the first 24 span text, dropout, capacity, languages and length of training."""


@dataclass(frozen=True, kw_only=True)
class LabConfig:
    """What the laboratory runs."""

    work: str = "work/lab"
    """Folder for text, bases and runs; a cell's is removed when the last of all rows is done."""

    results: str = "recipes/results/lab.json"
    """The file of the results."""

    cells: str = "*"
    """Which cells of the grid, by name, with `*` and `?`."""

    rows: Sequence[str] = tuple(ROWS)
    """Which rows."""

    seeds: Sequence[int] = (1, 2)
    """Seeds of world, base and rows."""

    base_updates: int = 500
    """Of the base."""

    updates: int = 200
    """Of each row."""

    rate: float = 5e-3
    """Learning rate of the base, and once more of the rows."""

    max_tokens: int = 400
    """Of a batch."""

    held_out: int = 50
    """Sentences of the validation text and of the test text, each."""

    def __post_init__(self) -> None:
        """Check the rows."""
        if unknown := [row for row in self.rows if row not in ROWS]:
            raise ConfigError(f"there is no row {', '.join(unknown)}; rows: {', '.join(ROWS)}")


def experiment(lab: LabConfig, cell: Cell, seed: int, folder: Path) -> ExperimentConfig:
    """Write a cell's text and return it as an experiment."""
    languages = {name: getattr(cell, name) for name in ("families", "languages", "changes")}
    world = LanguageFamilies(SyntheticConfig(seed=seed, **languages, **_WORDS))
    write_world(world, cell, folder / "text", lab.held_out)
    common = {"learning_rate": lab.rate, "warmup_steps": 100, "label_smoothing_factor": 0.1, "seed": seed}
    common |= {"weight_decay": 0.01, "adam_epsilon": 1e-8, "save_total_limit": 1, "logging_steps": 1000}

    def budget(updates: int) -> TrainConfig:
        # A rate that falls before the plateau of the first hundreds of updates would hold the loss on it.
        decay = {"num_decay_steps": max(1, updates // 3), "decay_type": "linear"}
        schedule = {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": decay}
        steps = {"max_steps": updates, "eval_steps": max(1, updates // 2), "save_steps": updates}
        batches = BatchConfig(max_tokens=lab.max_tokens, max_length=64, seed=seed)
        return TrainConfig(arguments={**common, **schedule, **steps}, batches=batches)

    layers = {f"{side}_{what}": value for side in ("encoder", "decoder") for what, value in _SHAPE.items()}
    widths = {"d_model": cell.width, "encoder_ffn_dim": 4 * cell.width, "decoder_ffn_dim": 4 * cell.width}
    quiet = {"attention_dropout": 0.0, "activation_dropout": 0.0, "attn_implementation": "eager"}
    return ExperimentConfig(
        name="lab",
        work=str(folder),
        results=str(folder / "results"),
        data=DataConfig(
            corpus=CorpusConfig(path=str(folder / "text")),
            languages=world.languages,
            pivot=world.pivot,
            zero_shot=[],
        ),
        vocabulary=VocabularyConfig(size=800),
        # With the usual 0.02 so small a model stays on the plateau.
        model={"init_std": cell.width**-0.5, "dropout": cell.dropout, "max_position_embeddings": 128}
        | {**layers, **widths, **quiet},
        pretrain=budget(lab.base_updates * cell.longer),
        specialize=budget(lab.updates * cell.longer),
        translate=TranslateConfig(
            num_beams=1, length_ratio=1.0, length_extra=15, max_tokens=8000, progress=False
        ),
    )


_WORDS = {"nouns": 12, "verbs": 10, "adjectives": 4}
_SHAPE = {"layers": 1, "attention_heads": 4, "layerdrop": 0.0}


def write_world(world: LanguageFamilies, cell: Cell, folder: Path, held_out: int) -> None:
    """Write the text, two files a pair: each language has training sentences of its own with the pivot."""
    for split in ("valid", "test"):
        world.write(folder, split, held_out)
    others = [code for code in world.languages if code != world.pivot]
    counts = [
        cell.sentences * (1 if place % cell.languages else cell.imbalance) for place in range(len(others))
    ]
    texts, start = world.sentences("train", sum(counts)), 0
    for code, count in zip(others, counts, strict=True):
        for side in (world.pivot, code):
            write_lines(folder / f"train.{world.pivot}-{code}.{side}", texts[side][start : start + count])
        start += count


def run_cell(lab: LabConfig, name: str, seed: int, rows: Sequence[str], known: dict[str, Any]) -> None:
    """Train a cell's base, if it is missing, and these rows; keep each as it ends."""
    cell, folder = Cell.of(name), Path(lab.work) / name / f"s{seed}"
    line = known.setdefault(f"{name}.s{seed}", {"cell": dataclasses.asdict(cell), "seed": seed, "rows": {}})
    config = experiment(lab, cell, seed, folder)
    base = pretrain(config, TrainerCallback())
    if base is None:
        raise ConfigError("the laboratory is for one process")
    if "base" not in line:
        line["base"] = base_line(Run.of(config, "base", seed), base, cell)
    for row in rows:
        run = Run.of(config, row, seed, bar=TrainerCallback())
        scores = run_system(run, make_system(*ROWS[row]))
        line["rows"][row] = row_line(read_json(run.result_file), scores)
        write_result(lab.results, {"cells": known}, settings_of(lab))
    if not set(ROWS) - set(line["rows"]):  # a row that was not asked for may be asked for next
        shutil.rmtree(folder)


def base_line(run: Run, scores: SystemScores, cell: Cell) -> dict[str, Any]:
    """Return what there is to say of a base: its losses on both texts, and its scores."""
    data, model, sample = run.config.data, run.base(), min(cell.sentences, 200)
    texts = replace(data, corpus=replace(data.corpus, max_lines=sample)).read(data.train_split)
    seen = encode_corpus(texts, run.tags, 64)
    return {
        "parameters": model.num_parameters(),
        "target_tokens": int(run.corpus.lengths[:, 1].sum()),
        "train_loss": round(text_loss(model, run.tags, seen, run.budget(), run.folder), 4),
        "text_loss": round(run.loss(model), 4),
        **means(scores),
    }


def row_line(result: Mapping[str, Any], scores: SystemScores | None) -> dict[str, Any]:
    """Return what there is to say of a row: neurons kept, the course of its text loss, its scores."""
    course = {update: round(loss, 4) for update, loss in result["validation_loss"].items()}
    density = result.get("extraction", {}).get("density", {})
    return {
        "kept": round(sum(density.values()) / len(density), 3) if density else 1.0,
        "text_loss": course[max(course, key=int)],
        "course": course,
        "seconds": result["training_seconds"],
        **(means(scores) if scores else {}),
    }


def means(scores: SystemScores) -> dict[str, float]:
    """Return BLEU and chrF++, the means over all directions; BLEU also out of and into the pivot."""

    def mean(metric: str, group: str = "") -> float:
        pairs = scores.select(group) if group else scores.pairs
        return round(sum(scores.value(pair, metric) for pair in pairs) / len(pairs), 3)

    sides = {"bleu_out": mean("bleu", ONE_TO_MANY), "bleu_in": mean("bleu", MANY_TO_ONE)}
    return {"bleu": mean("bleu"), "chrf++": mean("chrf++"), **sides}


def settings_of(lab: LabConfig) -> dict[str, Any]:
    """Return the settings that a file of results was made with."""
    settings = dataclasses.asdict(replace(lab, work="", results="", cells="*", rows=tuple(ROWS)))
    return plain(settings | {"rows": {row: [*what] for row, what in ROWS.items()}})


def kept(lab: LabConfig) -> dict[str, Any]:
    """Return the results that there are; those of other settings are refused, but for new rows and seeds."""
    path, now = Path(lab.results), settings_of(lab)
    content = read_json(path) if path.is_file() else {"cells": {}, "recipe": {"config": now}}
    then = now | content["recipe"]["config"] | {"seeds": now["seeds"]}
    then["rows"] = now["rows"] | then["rows"]
    other = [f"{name} (then {then[name]})" for name in now if then[name] != now[name]]
    require(not other, f"{path} was made with other {', '.join(other)}; name another file with --results")
    return content["cells"]


def plan(lab: LabConfig, known: Mapping[str, Any]) -> list[tuple[str, int, list[str]]]:
    """Return what is missing, in the order in which it runs: cell, seed, rows.

    The first 24 cells before the others; of each part the rows that the picture needs before the other
    controls, and of these one seed of all cells before the next.
    """
    names = [name for name in GRID if fnmatch.fnmatch(name, lab.cells)]
    stages = [[row for row in lab.rows if (row in _FIRST) == first] for first in (True, False)]
    wanted = [
        (name, seed, [row for row in rows if row not in known.get(f"{name}.s{seed}", {}).get("rows", {})])
        for part in (names[:24], names[24:])
        for rows in stages
        for seed in lab.seeds
        for name in part
    ]
    return [one for one in wanted if one[2]]


def report(line: Mapping[str, Any]) -> str:
    """Return a cell's numbers in a line."""
    gap = line["base"]["text_loss"] - line["base"]["train_loss"]
    bleu = "  ".join(f"{row} {own['bleu']:.2f}" for row, own in line["rows"].items())
    return f"gap {gap:.2f}, BLEU: base {line['base']['bleu']:.2f}  {bleu}"


def read_options(argv: Sequence[str] | None) -> LabConfig:
    """Read the command line."""
    return read_settings(LabConfig, argv, description=__doc__ or "")[0]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the recipe."""
    lab, started = read_options(argv), time.monotonic()
    known = kept(lab)
    missing = plan(lab, known)
    runs, done = sum(len(rows) for _, _, rows in missing), 0
    logging.disable_progress_bar()
    # Bases that cannot translate yet run on to the longest length.
    warnings.filterwarnings("ignore", message=".*reached their longest length")
    for name, seed, rows in missing:
        run_cell(lab, name, seed, rows, known)
        done, minutes = done + len(rows), (time.monotonic() - started) / 60
        progress = f"{done}/{runs} rows, {minutes:.0f} min, {minutes / done * (runs - done):.0f} min to go"
        print(f"[{progress}] {name}.s{seed}: {report(known[f'{name}.s{seed}'])}", flush=True)


if __name__ == "__main__":
    sys.exit(exit_status("lab.py", main))
