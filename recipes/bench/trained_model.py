"""Measurements of a trained model with its own masks: real densities, real text, BLEU and size."""

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nspec_hf.data import CorpusConfig, PairCollator, PairText, load_tokenizer, read_corpus
from nspec_hf.evaluation import TranslateConfig, Translator, score
from nspec_hf.export import pruned
from nspec_hf.gating import GateConfig
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import load_model
from recipes.bench.clock import Measured
from recipes.bench.measurements import Bench, Found
from recipes.bench.workload import Shape

KEYS = (
    *(f"base_{what}_{way}_vs_dense" for what in ("train", "decode") for way in ("mask", "slice", "released")),
    "base_bleu_dense",
    "base_bleu_pruned",
    "base_bytes_pruned_vs_dense",
)


@dataclass(frozen=True, kw_only=True)
class Base:
    """A trained model, its masks and its text."""

    model: str
    """Folder or Hub id."""
    masks: str
    """The same of its masks."""
    data: str
    """Folder of parallel text."""
    split: str = "test_2016_flickr"
    """Split that is translated and scored; `train` is trained on."""


def trained(base: Base, bench: Bench) -> Found:
    """Training and beam-5 decoding of real batches, and BLEU and size of each pair pruned.

    The dense side of BLEU is the same model with all neurons, as if it had not been trained with its masks.
    """
    model = load_model(base.model, dtype=bench.dtype, for_training=True, device=bench.device)
    tokenizer = load_tokenizer(base.model)
    masks = NeuronMasks.from_pretrained(base.masks)
    corpus = CorpusConfig(path=base.data)
    # As many pairs take turns as the masks hold; every way keeps its slices of all of them.
    bench = dataclasses.replace(bench, plan=dataclasses.replace(bench.plan, pairs=len(masks.pairs)))
    if bench.ways("base_train_{}_vs_dense") or bench.ways("base_decode_{}_vs_dense"):
        text = read_corpus(dataclasses.replace(corpus, max_lines=64), masks.pairs, "train")
        yield from _speed(bench, model, tokenizer, masks, text)
    yield from _bytes(bench, model, masks)
    if bench.wants("base_bleu_dense") or bench.wants("base_bleu_pruned"):
        yield from _bleu(bench, model, tokenizer, masks, read_corpus(corpus, masks.pairs, base.split))


def _speed(
    bench: Bench,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    masks: NeuronMasks,
    text: Sequence[PairText],
) -> Found:
    collate = PairCollator(tokenizer, masks.pairs, model.config.decoder_start_token_id)
    batches = [
        collate([{"pair": each.pair, "source": source, "target": target} for source, target in lines])
        for each in text
        for lines in [list(zip(each.sources, each.targets, strict=True))]
    ]
    batches = [
        {name: value.to(bench.device) for name, value in batch.items() if name != "pair_ids"}
        for batch in batches
    ]
    rows = sum(len(batch["labels"]) for batch in batches)
    source = sum(int(batch["attention_mask"].sum()) for batch in batches)
    target = sum(int((batch["labels"] >= 0).sum()) for batch in batches)
    setting = {
        "shape": f"{model.config.d_model}×{model.config.encoder_ffn_dim}",
        "parameters": model.num_parameters(),
        "density": masks.density(),
        "masks": masks.fingerprint(),
    }
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0, fused=True)
    yield from bench.compare(
        "base_train_{}_vs_dense",
        bench.open_ways(bench.ways("base_train_{}_vs_dense"), model, masks),
        lambda runner, pair: runner.train_step(optimizer, batches[pair], pair),
        bench.plan.long_rounds,
        {**setting, "tokens": f"{(source + target) / len(batches):.0f} a step, without padding"},
        {"flops": flops_floor(model, masks, source / rows, target / rows)},
    )
    few = [{name: batch[name][:16] for name in ("input_ids", "attention_mask")} for batch in batches]
    warm = dataclasses.replace(bench.plan.long_rounds, warm=len(masks.pairs))
    yield from bench.compare(
        "base_decode_{}_vs_dense",
        bench.open_ways(bench.ways("base_decode_{}_vs_dense"), model, masks),
        lambda runner, pair: runner.decode(few[pair], pair, 5, 32),
        warm,
        {**setting, "tokens": "16 sentences, 32 generated", "beams": 5},
        {"flops": flops_floor(model, masks, source / rows, 32, beams=5)},
    )


def flops_floor(
    model: PreTrainedModel, masks: NeuronMasks, source: float, target: float, beams: int = 1
) -> float:
    """Return what is computed with the masks' neurons over what is computed with all, counted in operations.

    Args:
        model: The model.
        masks: Its masks; each side counts with its mean density.
        source: Tokens of a sentence.
        target: Tokens of its translation.
        beams: How many translations of each are computed.
    """
    config = model.config
    shape = Shape(
        d_model=config.d_model,
        d_ff=config.encoder_ffn_dim,
        layers=config.encoder_layers,
        vocabulary=config.vocab_size,
    )
    kept = {
        side: [masks.keep[site.name].double().mean().item() for site in masks.sites if site.side == side]
        for side in ("encoder", "decoder")
    }
    # A side without masks keeps all.
    density = {side: sum(each) / len(each) if each else 1.0 for side, each in kept.items()}
    sliced, dense = (
        shape.step_flops(1, source, 0, encoder) + beams * shape.step_flops(1, 0, target, decoder)
        for encoder, decoder in ((density["encoder"], density["decoder"]), (1.0, 1.0))
    )
    return sliced / dense


def _bytes(bench: Bench, model: PreTrainedModel, masks: NeuronMasks) -> Found:
    for pair in masks.pairs:
        key = f"base_bytes_pruned_vs_dense.{pair}"
        if bench.wants(key) and bench.due(key):
            small, _ = pruned(model, masks, pair)
            share = small.get_memory_footprint(return_buffers=False) / model.get_memory_footprint(
                return_buffers=False
            )
            yield key, Measured.exactly(share, density=masks.density(pair))


def _bleu(
    bench: Bench,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    masks: NeuronMasks,
    text: Sequence[PairText],
) -> Found:
    model.eval()
    config = TranslateConfig(num_beams=5)
    ways = {
        "base_bleu_dense": Translator(model, tokenizer, config=config),
        "base_bleu_pruned": Translator(model, tokenizer, masks, config, GateConfig(mode="slice")),
    }
    for (key, translator), each in itertools.product(ways.items(), text):
        name = f"{key}.{each.pair}"
        if bench.wants(name) and bench.due(name):
            found = score(translator.translate(each.sources, each.pair), each.targets, "bleu", each.pair)
            density = masks.density(each.pair) if "pruned" in key else 1.0
            yield name, Measured.exactly(found.value, signature=found.signature, density=density, beams=5)
