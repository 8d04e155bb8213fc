"""The whole method on one experiment, from text to a report: what `nspec run` does.

    base, given or trained → record → select → train → translate → evaluate → paired tests → report

Each step is the recipes' own (`pipeline.py`), so a run that was stopped in whatever way goes on where it
stood. Fine-tuning with the same budget is run beside it: without that control no gain means anything.
"""

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from nspec_hf.analysis import analyze, write_report
from nspec_hf.core import ConfigError, lock_folder, program, require, require_writable, warn, warn_unused
from nspec_hf.data import PairText, read_outputs
from nspec_hf.evaluation import Comparison, SystemScores, compare, sacrebleu_metric
from nspec_hf.masks import BY_METHOD, NeuronMasks
from nspec_hf.recording import ActivationStats
from nspec_hf.systems.baseline import Baseline, FineTune
from nspec_hf.systems.display import Speaker, TrainingBar, quiet_loading
from nspec_hf.systems.experiment import ExperimentConfig
from nspec_hf.systems.masked import Masked
from nspec_hf.systems.pipeline import check_training, pretrain, run_system
from nspec_hf.systems.result import RunResult
from nspec_hf.systems.run import Run
from nspec_hf.systems.system import System
from nspec_hf.training import join_processes


def run_to_report(
    config: ExperimentConfig, system: System, seed: int | None = None, control: bool = True
) -> Path:
    """Run a system of masks and what it is compared with, or go on where a stopped run stood.

    Everything lies in `config.work`: the base, and a folder of each system with its statistics, masks,
    checkpoints, model and translations; the report and the tests are in the system's. Scores go to
    `config.results`. Prints what begins, and the tests at the end.

    Args:
        config: The experiment.
        system: What is run.
        seed: Of the continued training; None: the experiment's.
        control: Whether to fine-tune all neurons with the same budget, and to compare with that; else the
            system is compared with the base.

    Returns:
        The report.

    Raises:
        ConfigError: If the system has no masks to report on, a folder was begun with other settings, or
            several processes run this.
        FolderInUseError: If another process writes into the folder.
        CorpusError: If text cannot be read.
    """
    if not isinstance(system, Masked):
        raise ConfigError(
            f"a report shows masks, and {system.name} has none; run it with recipes/specialize.py"
        )
    alone = join_processes().num_processes == 1
    require(alone, "this is for one process; launch recipes/specialize.py with several")
    _warn_of_unread(config, system)
    speaker = Speaker()
    others: list[System] = [*([Baseline()] if config.base else []), *([FineTune()] if control else [])]
    runs = {
        each.name: Run.of(config, each.name, seed, bar=TrainingBar(each.name), tell=speaker.heading)
        for each in [*others, system]
    }
    run = runs[system.name]
    page = run.folder / "report.html"
    require_writable(page)
    # The base may take hours; what would stop a later step is found before it.
    check_training(run.budget(), run.folder, config)
    system.check(run)
    texts = config.data.read(config.data.test_split, config.data.tested_pairs())
    with lock_folder(config.work), quiet_loading():
        scores: dict[str, SystemScores | None] = {}
        if not config.base:
            speaker.heading("base is made from the text: subwords, then training on all directions")
            scores["base"] = pretrain(config, TrainingBar("base"))
        for each in [*others, system]:
            scores[each.name] = run_system(runs[each.name], each)
        reference = "finetune" if control else next(iter(scores))
        comparison = _tested(config, texts, runs, scores, reference)
        if comparison is not None:
            speaker.show(comparison.table())
            comparison.save(run.folder / "comparison.json")
        speaker.heading("report")
        _write_report(run, page, scores, comparison, reference)
    speaker.show(_ending(run, page))
    return page


def _warn_of_unread(config: ExperimentConfig, system: Masked) -> None:
    """Warn of what the file says for other recipes, or for other systems, and what nothing reads here."""
    warn_unused(dataclasses.replace(config.select, method=system.method), BY_METHOD, "select.")
    if config.base:
        warn_unused(config, dict.fromkeys(("vocabulary", "pretrain"), "not base"))
    if config.compare.rows:
        warn(f"compare.rows are for recipes/compare.py; what is run here is {system.name} and its control")


def _tested(
    config: ExperimentConfig,
    texts: Sequence[PairText],
    runs: Mapping[str, Run],
    scores: Mapping[str, SystemScores | None],
    reference: str,
) -> Comparison | None:
    """Test every system against the reference; None where there is no test text, or no metric to test by."""
    folders = {"base": Path(config.work) / "base"} | {name: run.folder for name, run in runs.items()}
    held = [set(each.pairs) for each in scores.values() if each is not None]
    tested = [text for text in texts if all(text.pair in pairs for pairs in held)]
    metrics = [
        name for name in config.metrics if tested and sacrebleu_metric(name, tested[0].pair) is not None
    ]
    if not metrics:
        return None
    outputs = {name: read_outputs(folders[name] / "outputs") for name in scores}
    return compare(
        {name: {text.pair: lines[text.pair] for text in tested} for name, lines in outputs.items()},
        {text.pair: text.targets for text in tested},
        reference,
        metrics,
        n_samples=config.compare.n_samples,
    )


def _write_report(
    run: Run,
    page: Path,
    scores: Mapping[str, SystemScores | None],
    comparison: Comparison | None,
    reference: str,
) -> None:
    data, metric = run.config.data, run.config.metrics[0]
    stats, result = run.folder / "nspec_stats.safetensors", RunResult.read(run.result_file)
    by_system: dict[str, dict[str, float]] = {
        name: {pair: own.value(pair, metric) for pair in own.pairs}
        for name, own in scores.items()
        if own is not None and own.pairs
    }
    analysis = analyze(
        NeuronMasks.from_pretrained(run.folder / "masks"),
        ActivationStats.load(stats) if stats.is_file() else None,
        by_system or None,
        data.families or None,
        comparison=comparison,
        baseline=reference if by_system else None,
        metric=metric,
        tiers=data.tiers or None,
        seconds=result.facts["extraction"]["seconds"] if result else float("nan"),
    )
    write_report(analysis, page, f"{run.config.name}: which neurons each pair uses")


def _ending(run: Run, page: Path) -> str:
    """Return what was written and what to do next."""
    model, masks = (shlex.quote(f"{run.folder}/{part}") for part in ("model", "masks"))
    command = f"{program()} translate --model {model} --masks {masks} --pair {run.pairs[0]}"
    lines = {
        f"{page}": "open it in a browser: neurons, gains, tests, the recipe of every number",
        f"{run.folder}/model, /masks, /outputs": "the model, its masks (for the Hub), its translations",
        f"{run.result_file}": "scores with signatures, costs and settings",
    }
    wide = max(map(len, lines))
    shown = [f"{path:<{wide}}  {what}" for path, what in lines.items()]
    return "\n".join([*shown, f"next: {command} < input > output"])
