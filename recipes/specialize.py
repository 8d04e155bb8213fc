"""Continue a trained base with each pair's own neurons, or with a control on the same budget, and score it.

    python recipes/specialize.py recipes/configs/multi30k.yaml --system neuron_specialization
    python recipes/specialize.py recipes/configs/m2m100.yaml --system finetune --data.corpus.path DIR

load → record → select → gate → train → evaluate → save. Systems: `neuron_specialization` (Tan et al. 2024),
`finetune` (all neurons, the same budget), `random` (random masks of equal density in every site and pair),
`allocation_te` and `allocation_av` (Xie et al. 2021, over feed-forward and attention outputs, ρ per site).
A stopped run goes on where it stood. Scores and the whole recipe go to `recipes/results/NAME.SYSTEM.json`.
"""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from nspec_hf.encoded import encode_corpus
from nspec_hf.evaluation import evaluate_system
from nspec_hf.experiment import ExperimentConfig, read_settings
from nspec_hf.gate import NeuronGate
from nspec_hf.languages import LanguageTags, language_tags
from nspec_hf.masks import NeuronMasks
from nspec_hf.provenance import write_result
from nspec_hf.runs import record_corpus, train
from nspec_hf.stats import ActivationStats
from nspec_hf.translate import Translator

SYSTEMS = ("neuron_specialization", "finetune", "random", "allocation_te", "allocation_av")


def main(argv: list[str] | None = None) -> None:
    """Run the recipe."""
    config, extra = read_settings(
        ExperimentConfig,
        argv,
        description=__doc__,
        system={"choices": SYSTEMS, "default": SYSTEMS[0], "help": "What to train."},
        push={"type": str, "default": "", "help": "Hub repository that the masks are pushed to."},
    )
    folder = Path(config.work) / extra.system
    tokenizer = AutoTokenizer.from_pretrained(config.base_model)
    model = AutoModelForSeq2SeqLM.from_pretrained(config.base_model, **_dropout(config))
    tags = language_tags(tokenizer, config.data.codes)
    masks, seconds = make_masks(extra.system, model, tokenizer, tags, config, folder)
    gate = NeuronGate(model, masks, config.gate) if masks else None
    max_length = config.specialize.batches.max_length
    corpus = encode_corpus(config.data.read(config.data.train_split), tags, max_length)
    validation = encode_corpus(config.data.read(config.data.valid_split), tags, max_length)
    result = train(model, tokenizer, corpus, config.specialize, folder, validation, gate)
    if not PartialState().is_main_process:
        return
    if masks and extra.push:
        masks.push_to_hub(extra.push)
    scores = evaluate_system(
        extra.system,
        Translator(model, tokenizer, test_gate(gate, config), config.translate, codes=config.data.codes),
        config.data.read(
            config.data.test_split, [*config.data.trained_pairs(), *config.data.zero_shot_pairs()]
        ),
        folder / "outputs",
        config.metrics,
        config.data.pivot,
        config.data.tiers,
    )
    print(scores.table())
    outcome = {
        "system": extra.system,
        "updates": result.updates,
        "training_seconds": round(result.seconds, 1),
        "recording_seconds": seconds,
        "density": {site.name: float(masks.density(site=site.name)) for site in masks.sites}
        if masks
        else None,
        "masks": masks.fingerprint() if masks else None,
        "scores": json.loads(scores.to_json()),
    }
    write_result(Path(config.results) / f"{config.name}.{extra.system}.json", outcome, config)


def make_masks(
    system: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tags: LanguageTags,
    config: ExperimentConfig,
    folder: Path,
) -> tuple[NeuronMasks | None, float | None]:
    """Return the system's masks and the seconds that recording took; both are kept in `folder`."""
    if system == "finetune":
        return None, None
    settings, select = config.record, config.select
    if system.startswith("allocation"):
        score = system.removeprefix("allocation_")
        settings = dataclasses.replace(settings, kinds=("ffn", "attention", "ffn_out"), **{score: True})
        select = dataclasses.replace(select, method=score)
    stats, seconds = recorded(model, tokenizer, tags, config, settings, folder / "nspec_stats.safetensors")
    masks = NeuronMasks.from_config(stats, select)
    if system == "random":
        masks = NeuronMasks.random(like=masks, seed=select.seed)
    if PartialState().is_main_process:
        masks.save_pretrained(folder / "masks")
    return masks, seconds


def recorded(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tags: LanguageTags,
    config: ExperimentConfig,
    settings: Any,
    path: Path,
) -> tuple[ActivationStats, float | None]:
    """Return the statistics in `path`, or record the validation split; the seconds are None for what was
    there."""
    if path.is_file():
        return ActivationStats.load(path), None
    texts = config.data.read(config.data.valid_split)
    started = time.perf_counter()
    corpus = encode_corpus(texts, tags, config.specialize.batches.max_length)
    stats = record_corpus(
        model,
        tokenizer,
        corpus,
        settings,
        description={"name": config.name, "split": config.data.valid_split},
    )
    seconds = round(time.perf_counter() - started, 2)
    if PartialState().is_main_process:
        path.parent.mkdir(parents=True, exist_ok=True)
        stats.save(path)
    return stats, seconds


def test_gate(gate: NeuronGate | None, config: ExperimentConfig) -> NeuronGate | None:
    """Return the gate to translate with: that of training, with masks composed for the zero-shot pairs."""
    if gate is None:
        return None
    gate.detach()
    masks = gate.masks
    for pair in config.data.zero_shot_pairs():
        masks = masks.compose(pair, config.data.pivot)
    return NeuronGate(gate.model, masks, config.gate)


def _dropout(config: ExperimentConfig) -> dict[str, Any]:
    """Return the model settings that training needs: no layer dropout, and whatever the recipe says."""
    return {"encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0, **config.model}


if __name__ == "__main__":
    main()
