"""Continue a trained base with each pair's own neurons, or with a control on the same budget, and score it.

    python recipes/specialize.py recipes/configs/multi30k.yaml --system neuron_specialization
    python recipes/specialize.py recipes/configs/m2m100.yaml --system finetune --data.corpus.path DIR

load → record → select → gate → train → evaluate → save. Systems: `neuron_specialization` (Tan et al. 2024),
`finetune` (all neurons, the same budget), `random` (random masks of equal density in every site and pair),
`allocation_te` and `allocation_av` (Xie et al. 2021, over feed-forward and attention outputs, ρ per site).
The system decides the method of selection; `select` holds its numbers. A stopped run goes on where it
stood. Scores and the whole recipe go to `recipes/results/NAME.SYSTEM.json`.
"""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from nspec_hf.checkpoints import claim_folder, write_json
from nspec_hf.config import RecordConfig
from nspec_hf.encoded import EncodedCorpus, encode_corpus
from nspec_hf.errors import ConfigError
from nspec_hf.evaluation import evaluate_system
from nspec_hf.experiment import ExperimentConfig, read_settings
from nspec_hf.gate import NeuronGate
from nspec_hf.languages import language_tags
from nspec_hf.masks import NeuronMasks
from nspec_hf.provenance import plain, write_result
from nspec_hf.runs import join_processes, record_corpus, train
from nspec_hf.sites import find_sites, weight_fingerprint
from nspec_hf.stats import ActivationStats
from nspec_hf.translate import Translator

METHODS = {
    "neuron_specialization": "coverage",
    "finetune": None,
    "random": "coverage",
    "allocation_te": "te",
    "allocation_av": "av",
}
"""How each system's masks are selected; random masks are as dense as those that coverage selects."""


def main(argv: list[str] | None = None) -> None:
    """Run the recipe."""
    config, extra = read_settings(
        ExperimentConfig,
        argv,
        description=__doc__,
        system={"choices": tuple(METHODS), "default": "neuron_specialization", "help": "What to train."},
        push={"type": str, "default": "", "help": "Hub repository that the masks are pushed to."},
    )
    if extra.push and METHODS[extra.system] is None:
        raise ConfigError(f"--push uploads masks, and {extra.system} has none")
    config, folder, data = for_system(config, extra.system), Path(config.work) / extra.system, config.data
    state = join_processes()
    tokenizer, model = AutoTokenizer.from_pretrained(config.base_model), load_base(config).to(state.device)
    begun_with = config.begun_with("base", "record", "select", "gate") | {"system": extra.system}
    if METHODS[extra.system] is not None:
        begun_with["base_weights"] = weight_fingerprint(model, find_sites(model))
    claim_folder(folder, begun_with)
    tags, max_length = language_tags(tokenizer, data.codes), config.specialize.batches.max_length
    # Read and composed before training, so that what is missing is missed now.
    tests = data.read(data.test_split, data.tested_pairs())
    for text in tests:
        tags.check(text.pair)
    validation = encode_corpus(data.read(data.valid_split), tags, max_length)
    masks, seconds = make_masks(extra.system, model, tokenizer, validation, config, folder)
    tested_masks = masks and with_zero_shot(masks, config)
    corpus = encode_corpus(data.read(data.train_split), tags, max_length)
    gate = NeuronGate(model, masks, config.gate) if masks else None
    result = train(model, tokenizer, corpus, config.specialize, folder, validation, gate, data.codes)
    if not state.is_main_process:
        return
    # What was saved is what is scored: under FSDP, this process holds only a part of the trained model.
    model = AutoModelForSeq2SeqLM.from_pretrained(folder / "model").to(state.device)
    gate = NeuronGate(model, tested_masks, config.gate) if tested_masks else None
    translator = Translator(model, tokenizer, gate, config.translate, codes=data.codes)
    scores = evaluate_system(
        extra.system, translator, tests, folder / "outputs", config.metrics, data.pivot, data.tiers
    )
    print(scores.table())
    outcome = {"system": extra.system, "parameters": model.num_parameters(), **result.facts()}
    outcome |= {"recording_seconds": seconds, **mask_facts(masks), "scores": json.loads(scores.to_json())}
    write_result(Path(config.results) / f"{config.name}.{extra.system}.json", outcome, config)
    if masks and extra.push:
        masks.push_to_hub(extra.push)


def for_system(config: ExperimentConfig, system: str) -> ExperimentConfig:
    """Return the experiment with what a system needs recorded and selected."""
    method = METHODS[system]
    if method is None:
        return config
    record, select = config.record, dataclasses.replace(config.select, method=method)
    if method != "coverage":
        record = dataclasses.replace(record, kinds=("ffn", "attention", "ffn_out"), **{method: True})
    return dataclasses.replace(config, record=record, select=select)


def load_base(config: ExperimentConfig) -> PreTrainedModel:
    """Return the base model without layer dropout, and with whatever else the recipe says of the model."""
    settings = AutoConfig.from_pretrained(config.base_model)
    layerdrop = [name for name in ("encoder_layerdrop", "decoder_layerdrop") if hasattr(settings, name)]
    changes = {**dict.fromkeys(layerdrop, 0.0), **config.model}
    return AutoModelForSeq2SeqLM.from_pretrained(config.base_model, **changes)


def make_masks(
    system: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    corpus: EncodedCorpus,
    config: ExperimentConfig,
    folder: Path,
) -> tuple[NeuronMasks | None, float | None]:
    """Return the system's masks and the seconds that recording took; all of it is kept in `folder`."""
    if METHODS[system] is None:
        return None, None
    about = {"name": config.name, "split": config.data.valid_split}
    batches = config.specialize.batches
    stats, seconds = recorded(
        model, tokenizer, corpus, config.record, folder, batches.max_tokens, about, config.data.codes
    )
    masks = NeuronMasks.from_config(stats, config.select)
    if system == "random":
        masks = NeuronMasks.random(like=masks, seed=config.select.seed)
    if join_processes().is_main_process:
        masks.save_pretrained(folder / "masks", model=str(folder / "model"))
    return masks, seconds


def recorded(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    corpus: EncodedCorpus,
    settings: RecordConfig,
    folder: Path,
    *how: Any,
) -> tuple[ActivationStats, float]:
    """Return a corpus's statistics and the seconds that recording took; what lies in `folder` is taken."""
    path, seconds_path = folder / "nspec_stats.safetensors", folder / "recording.json"
    there = path.is_file() and seconds_path.is_file()
    join_processes().wait_for_everyone()
    if there:
        return ActivationStats.load(path), json.loads(seconds_path.read_text())["seconds"]
    started = time.perf_counter()
    stats = record_corpus(model, tokenizer, corpus, settings, *how)
    seconds = round(time.perf_counter() - started, 2)
    if join_processes().is_main_process:
        stats.save(path)
        write_json(seconds_path, {"seconds": seconds})
    return stats, seconds


def with_zero_shot(masks: NeuronMasks, config: ExperimentConfig) -> NeuronMasks:
    """Return the masks with those of the zero-shot pairs composed through the pivot."""
    for pair in config.data.zero_shot_pairs():
        masks = masks.compose(pair, config.data.pivot)
    return masks


def mask_facts(masks: NeuronMasks | None) -> dict[str, Any]:
    """Return what a results file says about masks."""
    if masks is None:
        return {"masks": None}
    return {
        "masks": masks.fingerprint(),
        "density": {site.name: masks.density(site=site.name) for site in masks.sites},
        "density_by_pair": {str(pair): masks.density(pair) for pair in masks.pairs},
        "mask_recipe": plain(masks.recipe),
    }


if __name__ == "__main__":
    main()
