"""From text to scores: train a base from scratch, and any compared system from it.

What recipes, commands and the demo do is one code path, this one. A stopped run goes on where it stood, and
several processes may run it together. All that made the numbers is written down beside them.
"""

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from nspec_hf.core import claim_folder, lock_folder, read_json, require_writable, warn, write_json
from nspec_hf.data import LanguageTags, encode_corpus
from nspec_hf.evaluation import SystemScores, seconds_kept
from nspec_hf.recording import load_model, weight_fingerprint
from nspec_hf.systems.experiment import ExperimentConfig
from nspec_hf.systems.result import write_scores
from nspec_hf.systems.run import TEXT_FILE, Run
from nspec_hf.systems.system import System
from nspec_hf.training import (
    TrainConfig,
    check_arguments,
    check_model_settings,
    join_processes,
    make_model,
    make_tokenizer,
    train,
    training_arguments,
)


def pretrain(config: ExperimentConfig, bar: TrainerCallback | None = None) -> SystemScores | None:
    """Train the multilingual base from scratch, or go on where a stopped run stood, and write its result.

    Model and tokenizer are left in `work/base/model`, translations of the tests in `work/base/outputs`,
    scores and recipe in `results/NAME.base.json`.

    Args:
        config: The experiment.
        bar: Shows training in the place of the Trainer's own bar or printed log.

    Returns:
        Its scores on the main process, None on the others and where there is no test text.

    Raises:
        ConfigError: If the folder holds a base with other settings.
        FolderInUseError: If another process writes into the folder.
        CorpusError: If text cannot be read.
    """
    folder, state = Path(config.work) / "base", join_processes()
    result = Path(config.results) / f"{config.name}.base.json"
    # Nothing is written before all settings and text are found right.
    check_training(config.pretrain, folder, config)
    check_model_settings(config.model)
    texts, validation = config.data.read(config.data.train_split), config.data.read(config.data.valid_split)
    with _one_writer(folder, result):
        claim_folder(folder, config.begun_with("vocabulary", "model"))
        with state.main_process_first():
            tokenizer = make_tokenizer(texts, config.vocabulary, folder / "tokenizer")
        tags, longest = LanguageTags(tokenizer, config.data.codes), config.pretrain.batches.max_length or 256
        config.data.read_tests(tags)  # before training, so that a file that is missing is missed now
        corpus = encode_corpus(texts, tags, longest)
        # The tokenizer is there before the first checkpoint, which keeps the training to its text.
        claim_folder(folder, {"corpus": corpus.digest()}, TEXT_FILE)
        trained = train(
            make_model(tokenizer, config.model, int(config.pretrain.arguments.get("seed", 42))),
            tags,
            corpus,
            config.pretrain,
            folder,
            encode_corpus(validation, tags, longest),
            callbacks=[bar] if bar else [],
            shows_progress=bar is None,
        )
        if not state.is_main_process:
            return None
        # What was saved is what is scored: under FSDP, this process holds only a part of the trained model.
        model = load_model(folder / "model", device=state.device)
        run = Run(config=dataclasses.replace(config, base=""), folder=folder, row="base")
        scores = run.score(run.translate(model, None, "outputs"))
        facts = {
            "system": "base",
            "parameters": model.num_parameters(),
            "target_tokens_an_epoch": int(corpus.lengths[:, 1].sum()),
            **trained.facts(),
        }
        write_scores(result, facts, scores, config)
    return scores


def check_training(budget: TrainConfig, folder: Path, config: ExperimentConfig) -> None:
    """Refuse arguments of the Trainer that it would refuse, or not follow, only after the work before it.

    Warns of settings of languages that no direction has.
    """
    for name, others in config.data.unread().items():
        warn(f"data.{name} has no effect for {', '.join(others)}, which no direction has; check its spelling")
    evaluates, pairs = bool(config.data.valid_split), config.data.trained_pairs()
    check_arguments(training_arguments(budget, folder, evaluates, pairs), budget.batches)


@contextmanager
def _one_writer(folder: Path, result: Path) -> Iterator[None]:
    """Hold the folder of a run, and see that its result can be written, before any work.

    Raises:
        FolderInUseError: If another process writes into the folder.
        OSError: If the result could not be written.
    """
    if not join_processes().is_main_process:
        yield
        return
    require_writable(result)
    with lock_folder(folder):
        yield


@contextmanager
def claimed(run: Run, system: System) -> Iterator[str]:
    """Hold the run's folder for this system, and give the fingerprint of the base's weights.

    A folder of other settings, of another base, or whose masks come from other text, is refused.

    Raises:
        ConfigError: If the folder holds one, or the system cannot work, or an argument of its training
            cannot be used.
        FolderInUseError: If another process writes into the folder.
    """
    check_training(run.budget(), run.folder, run.config)
    with _one_writer(run.folder, run.result_file):
        base, begun_with = run.base(), run.config.begun_with("base", "record", "select", "gate")
        begun_with |= {"system": system.name, "settings": dataclasses.asdict(system), "seed": run.seed}
        weights = weight_fingerprint(base)
        claim_folder(run.folder, begun_with | {"base_weights": weights})
        system.check(run)
        texts = {name: getattr(run, name).digest() for name in system.prepared_from}
        if texts:
            claim_folder(run.folder, texts, TEXT_FILE)
        yield weights


def run_system(run: Run, system: System) -> SystemScores | None:
    """Train, translate and score a system, or go on where a stopped run stood, and write its result.

    Returns:
        Its scores on the main process, None on the others and where there is no test text.

    Raises:
        ConfigError: If the folder holds a run with other settings, or the system cannot work.
        FolderInUseError: If another process writes into the folder.
    """
    with claimed(run, system) as weights:
        # Read before training, so that a file that is missing is missed now.
        tests = run.tests
        facts = system.train(run)
        if not join_processes().is_main_process:
            return None
        started, before = time.perf_counter(), seconds_kept(run.folder)
        outputs = system.outputs(run)
        # Noted once: what is translated already costs nothing. Not by `run.once`, which waits for the others.
        noted = run.folder / "decoding.json"
        if not noted.is_file():
            # What an earlier sitting translated, and this one took over.
            earlier = sum(dict(before.items() & seconds_kept(run.folder).items()).values())
            write_json(noted, {"seconds": round(earlier + time.perf_counter() - started, 1)})
        facts["decoding_seconds"] = read_json(noted)["seconds"]
        scores = run.score(outputs) if tests else None
        about: dict[str, Any] = {"name": run.row, "system": system.name, "source": system.source}
        about |= {"settings": dataclasses.asdict(system), "seed": run.seed, "base_weights": weights}
        config = dataclasses.replace(run.config, specialize=run.budget())
        write_scores(run.result_file, {**about, **facts}, scores, config)
    return scores
