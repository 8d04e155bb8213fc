"""The whole method in minutes, on made-up language families: what `nspec demo` does.

A small world of languages with known kinship is made up and written as text. A tiny model learns all
directions out of and into the pivot; what its neurons do is recorded; each direction gets its own neurons;
and training goes on three times from the same base with the same updates, data order and schedule: with all
neurons (fine-tune), with each direction's own (neuron specialization), and with random neurons, equally many
(the control). All are compared on sentences that none has seen. `nspec_hf/demo/demo.yaml` is the same
experiment for the recipes and `accelerate launch`.
"""

import os
import shlex
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from nspec_hf.analysis import analyze, draw_overlap_layers, save_figure, write_report
from nspec_hf.core import MANY_TO_ONE, ONE_TO_MANY, ConfigError, claim_folder, lock_folder, program
from nspec_hf.data import CorpusConfig, LanguageFamilies, SyntheticConfig, read_outputs
from nspec_hf.demo.display import example_table, scores_table
from nspec_hf.evaluation import Comparison, SystemScores, compare
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import ActivationStats
from nspec_hf.systems import (
    DataConfig,
    ExperimentConfig,
    NeuronSpecialization,
    Run,
    RunResult,
    Speaker,
    TrainingBar,
    make_system,
    pretrain,
    quiet_loading,
    read_settings,
    run_system,
)
from nspec_hf.training import TrainConfig

_FILE = Path(__file__).with_name("demo.yaml")


def demo_experiment(
    world: LanguageFamilies, output: str | Path, updates: int = 1000, more_updates: int = 250
) -> ExperimentConfig:
    """Return the demo as an experiment: `demo.yaml` with the languages, places and budgets of a run."""
    config, _ = read_settings(ExperimentConfig, [str(_FILE)])
    seed, decay = world.config.seed, config.pretrain.arguments["lr_scheduler_kwargs"]

    def budget(planned: TrainConfig, updates: int, **more: Any) -> TrainConfig:
        more["warmup_steps"] = min(planned.arguments["warmup_steps"], max(1, updates // 10))
        planned = planned.changed(max_steps=updates, seed=seed)
        return replace(planned, arguments={**planned.arguments, **more})

    return replace(
        config,
        work=str(output),
        results=str(Path(output) / "scores"),
        data=DataConfig(
            corpus=CorpusConfig(path=str(Path(output) / "data")),
            languages=world.languages,
            pivot=world.pivot,
            zero_shot=_unseen(world),
            families={code: world.family_of(code) for code in world.languages if code != world.pivot},
        ),
        pretrain=budget(
            config.pretrain, updates, lr_scheduler_kwargs={**decay, "num_decay_steps": updates // 5}
        ),
        specialize=budget(config.specialize, more_updates),
    )


def _unseen(world: LanguageFamilies) -> list[str]:
    """Return a few directions that are tested without training: in each family, and into the next one."""
    firsts = world.languages[1 :: world.config.languages]
    seconds = world.languages[2 :: world.config.languages]
    nexts = [*firsts[1:], firsts[0]]
    within = [f"{one}-{other}" for one, other in zip(firsts, seconds, strict=True)]
    return [*within, *(f"{one}-{other}" for one, other in zip(firsts, nexts, strict=True))]


def tour(
    output: str,
    synthetic: SyntheticConfig,
    sentences: Mapping[str, int],
    *,
    updates: int,
    more_updates: int,
    trials: int,
    random_masks: bool,
) -> None:
    """Run the whole method in a folder, or go on where a stopped run stood.

    Args:
        output: Folder that everything is written to.
        synthetic: The languages.
        sentences: Split (`train`, `valid`, `test`) → how many sentences, each in all languages; `valid` is
            what activations are counted on.
        updates: Training steps of the base.
        more_updates: Further steps of each compared system.
        trials: Of the significance test.
        random_masks: Whether to train the control with random masks too.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        # So small a model has nothing to share out: threads wait for each other, long where a core is busy.
        torch.set_num_threads(1)
    world = LanguageFamilies(synthetic)
    config, speaker = demo_experiment(world, output, updates, more_updates), Speaker()
    with lock_folder(output), quiet_loading(), warnings.catch_warnings():
        claim_folder(
            output, {"text": world.config, "sentences": sentences, "updates": [updates, more_updates]}
        )
        # So small a model gets lost in directions that it was not trained for; the table says how much.
        warnings.filterwarnings("ignore", message=".*reached their longest length")
        speaker.heading(f"Text of {len(world.languages)} made-up languages, {world.pivot} the pivot")
        for split, count in sentences.items():
            world.write(config.data.corpus.path, split, count)
        speaker.show(example_table(world))
        names = ["finetune", "neuron_specialization", *(["random"] if random_masks else [])]
        runs = {name: Run.of(config, name, world.config.seed, bar=TrainingBar(name)) for name in names}
        speaker.heading("A base learns all directions out of and into the pivot")
        base_result = Path(config.results) / f"{config.name}.base.json"
        scores = {"base": _said(speaker, "base", pretrain(config, TrainingBar("base")), base_result)}
        speaker.heading("Which neurons does it use for which direction?")
        specialized = runs["neuron_specialization"]
        NeuronSpecialization().extraction(specialized.base(), specialized)
        masks = NeuronMasks.from_pretrained(specialized.folder / "masks")
        speaker.show(
            f"{sentences['valid']} sentences of each of {len(masks.pairs)} directions; the most active "
            f"neurons that make {config.select.coverage:.0%} of its activations are kept: "
            f"{masks.density():.0%}"
        )
        speaker.heading(f"Training goes on from it for {more_updates} updates, the same for every system")
        for name, run in runs.items():
            scores[name] = _said(speaker, name, run_system(run, make_system(name)), run.result_file)
        speaker.heading("Results on sentences that no system has seen")
        comparison = _compare(runs, trials)
        analysis = analyze(
            masks,
            ActivationStats.load(specialized.folder / "nspec_stats.safetensors"),
            {name: {pair: own.value(pair, "bleu") for pair in own.pairs} for name, own in scores.items()},
            config.data.families,
            comparison=comparison,
            baseline="finetune",
            pivot=world.pivot,
        )
        speaker.show(scores_table(scores, comparison))
        speaker.show(analysis.agreement_table())
        comparison.save(Path(output) / "scores" / "comparison.json")
        save_figure(draw_overlap_layers(analysis.progression, analysis.families), output, "overlap")
        write_report(analysis, Path(output) / "report.html", "Neurons of made-up language families")
        speaker.heading("Done")
        speaker.show(_ending(Path(output), specialized.folder, world.pivot, world.languages[1]))


def _said(speaker: Speaker, name: str, scores: SystemScores | None, path: Path) -> SystemScores:
    """Say in a line what a system's training came to; return its scores."""
    result = RunResult.read(path)
    if scores is None or result is None:
        raise ConfigError("the demo is for one process; launch nspec_hf/demo/demo.yaml with several")
    trained = [scores.value(pair, "bleu") for pair in scores.select(ONE_TO_MANY) + scores.select(MANY_TO_ONE)]
    updates, seconds = result.facts["updates"], result.facts["training_seconds"]
    speaker.show(
        f"{name}: {updates} updates in {seconds:.0f} s, mean BLEU {sum(trained) / len(trained):.1f} on "
        f"{len(trained)} trained directions"
    )
    return scores


def _compare(runs: Mapping[str, Run], trials: int) -> Comparison:
    """Test every system against fine-tuning on the trained directions.

    By bootstrap: few translations differ, and sacreBLEU's approximate randomization counts only trials that
    exceed the real difference, so that a single changed sentence would be significant.
    """
    run = runs["finetune"]
    outputs = {name: read_outputs(run.folder / "outputs") for name, run in runs.items()}
    return compare(
        {name: {pair: lines[pair] for pair in run.pairs} for name, lines in outputs.items()},
        {text.pair: text.targets for text in run.tests},
        "finetune",
        ("bleu",),
        "bs",
        n_samples=trials,
    )


def _ending(output: Path, specialized: Path, pivot: str, language: str) -> str:
    """Return what was written and what to do next."""
    kib = (specialized / "masks" / "nspec_masks.safetensors").stat().st_size / 1024
    files = {
        "report.html": "open it in a browser: every layer, pair and number, in one page",
        "overlap.png, .svg": "overlap of neurons, layer by layer; the frames are families",
        f"{specialized.relative_to(output)}/": f"model, statistics, and masks ({kib:.0f} KiB) for the Hub",
        "scores/": "BLEU with signatures and recipe, and the significance test, as JSON",
        "data/": "the text, one file a language",
        "base/, finetune/ …": "models, checkpoints and translations",
    }
    model, masks, stats = (
        shlex.quote(f"{specialized}/{part}") for part in ("model", "masks", "nspec_stats.safetensors")
    )
    commands = (
        f"inspect --path {masks}",
        f"translate --model {model} --masks {masks} --pair {pivot}-{language} "
        f"< {shlex.quote(f'{output}/data/test.{pivot}')}",
        f"select --stats {stats} --select.coverage 0.8 --output masks-80",
        "--help",
    )
    lines = [f"  {name:<27}{what}" for name, what in files.items()]
    return "\n".join(
        [f"{output}:", *lines, "next, for instance:", *(f"  {program()} {command}" for command in commands)]
    )
