"""What each process of `processes.py` does: all of a run, from recording to a resumed training."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed.fsdp import fully_shard
from transformers import (
    M2M100Config,
    M2M100ForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Seq2SeqTrainingArguments,
)

from nspec_hf.core import Pair
from nspec_hf.data import (
    BatchConfig,
    EncodedCorpus,
    LanguageFamilies,
    LanguageTags,
    PairBatchSampler,
    PairCollator,
    PairText,
    SyntheticConfig,
    VocabularyConfig,
    encode_corpus,
    train_vocabulary,
)
from nspec_hf.evaluation import TranslateConfig, Translator
from nspec_hf.gating import GateConfig, NeuronGate
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import record
from nspec_hf.training import SpecializationTrainer, TokenLoss
from recipes.bench.workload import quiet_arguments

WAYS = ("ddp", "fsdp2", "fully_shard", "zero3")
MICRO_BATCHES = 6
"""Of an update: one process accumulates six, two three each, three two each."""
STEPS = 4
BATCHES = BatchConfig(max_tokens=160, max_length=64, mixed=False)
ZERO3 = {
    "zero_optimization": {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True},
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
}


@dataclass(frozen=True)
class World:
    """Text, tokenizer and masks: made once, before there are several processes."""

    tokenizer: PreTrainedTokenizerBase
    train: EncodedCorpus
    valid: EncodedCorpus
    texts: list[str]
    """Sentences to translate …"""
    pairs: list[Pair]
    """… and the pair of each."""
    masks: NeuronMasks

    def batches(self, rank: int, count: int) -> list[dict[str, Tensor]]:
        """Return a process's batches of the training text, padded."""
        collate = PairCollator(self.tokenizer, self.train.pairs)
        sampler = PairBatchSampler(self.train.lengths, self.train.pair_ids, BATCHES, rank, count)
        return [collate([self.train[row] for row in rows]) for rows in sampler]


def make_world(seed: int = 1) -> World:
    """Return the text and the masks of a base with random weights."""
    families = LanguageFamilies(SyntheticConfig(seed=seed, families=1, languages=2))
    pivot = families.pivot
    others = [code for code in families.languages if code != pivot]
    pairs = [Pair(*each) for code in others for each in ((pivot, code), (code, pivot))]

    def text(split: str, count: int) -> list[PairText]:
        said = families.sentences(split, count)
        return [PairText(pair, said[pair.source], said[pair.target]) for pair in pairs]

    tokenizer = train_vocabulary(
        [line for each in text("train", 200) for line in each.sources],
        families.languages,
        VocabularyConfig(size=200),
    )
    tags = LanguageTags(tokenizer)
    # As many sentences as make batches that can be dealt out evenly without halving one.
    train = next(
        corpus
        for corpus in (
            encode_corpus(text("train", count), tags, progress=False) for count in range(60, 20, -1)
        )
        if not len(plan(corpus, 0, 1)) % MICRO_BATCHES
    )
    stats = record(make_model(tokenizer), batches_of(tokenizer, train, 0, 1), pairs)
    test = text("test", 5)
    return World(
        tokenizer,
        train,
        valid=encode_corpus(text("valid", 7), tags, progress=False),
        texts=[line for each in test for line in each.sources],
        pairs=[each.pair for each in test for _ in each.sources],
        masks=NeuronMasks.from_coverage(stats, 0.8),
    )


def plan(corpus: EncodedCorpus, rank: int, count: int) -> PairBatchSampler:
    """Return one process's part of the plan that the Trainer follows."""
    return PairBatchSampler(corpus.lengths, corpus.pair_ids, BATCHES, rank, count)


def batches_of(
    tokenizer: PreTrainedTokenizerBase, corpus: EncodedCorpus, rank: int, count: int
) -> list[dict[str, Tensor]]:
    """Return a process's padded batches."""
    collate = PairCollator(tokenizer, corpus.pairs)
    return [collate([corpus[row] for row in rows]) for rows in plan(corpus, rank, count)]


def make_model(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Return a tiny M2M-100, always with the same random weights."""
    torch.manual_seed(3)
    config = M2M100Config(
        vocab_size=len(tokenizer),
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=72,
        decoder_ffn_dim=64,
        max_position_embeddings=128,
        dropout=0.0,
        attention_dropout=0.0,
        encoder_layerdrop=0.0,
        decoder_layerdrop=0.0,
        init_std=0.2,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.eos_token_id,
        forced_eos_token_id=None,
    )
    return M2M100ForConditionalGeneration(config).eval()


@dataclass(frozen=True)
class Case:
    """One way with so many processes."""

    way: str
    mode: str
    count: int

    def __str__(self) -> str:
        """Return `fsdp2.slice.3`."""
        return f"{self.way}.{self.mode}.{self.count}"


def run_case(world: World, case: Case, rank: int, folder: Path) -> dict[str, Any]:
    """Do in one of the processes all that is compared; return what was found, the same in each of them."""
    hand = case.way == "fully_shard"
    found = (_by_hand if hand else _by_trainer)(world, case, rank, folder)
    return {name: value for name, value in found.items() if value is not None}


def _by_trainer(world: World, case: Case, rank: int, folder: Path) -> dict[str, Any]:
    # One update that changes nothing: from then on weights are shared out, and a backward pass lies behind.
    still = _trainer(world, case, folder / "still", learning_rate=0.0, max_steps=1)
    still.train()
    found = _looked_at(world, case, rank, still.network, still.gate)
    found["evaluation"] = _losses(still.evaluate(world.valid))
    whole = _trainer(world, case, folder / "whole", save_strategy="steps", save_steps=STEPS // 2)
    whole.train()
    found["training"] = _curve(whole)
    found["trained"] = _losses(whole.evaluate(world.valid))
    whole.save_model(str(folder / "model"))
    resumed = _trainer(world, case, folder / "whole")
    resumed.train(resume_from_checkpoint=str(folder / "whole" / f"checkpoint-{STEPS // 2}"))
    found["resumed"] = _curve(resumed)[STEPS // 2 :]
    return found


def _trainer(world: World, case: Case, folder: Path, **changes: Any) -> SpecializationTrainer:
    model = make_model(world.tokenizer)
    ways: dict[str, dict[str, Any]] = {
        "fsdp2": {"fsdp": True, "fsdp_config": {"fsdp_version": 2}},
        "zero3": {"deepspeed": ZERO3},
    }
    settings: dict[str, Any] = {
        **quiet_arguments(folder, not torch.cuda.is_available()),
        "max_steps": STEPS,
        "learning_rate": 1e-2,
        # Where a gradient is rounding alone (softmax does not see a bias of keys), Adam makes no step of it.
        "adam_epsilon": 1e-4,
        "lr_scheduler_type": "constant",
        "gradient_accumulation_steps": MICRO_BATCHES // case.count,
        "logging_steps": 1,
        "predict_with_generate": True,
        "generation_max_length": 16,
        **(ways.get(case.way, {}) if case.count > 1 else {}),
        **changes,
    }
    trainer = SpecializationTrainer(
        model=model,
        args=Seq2SeqTrainingArguments(**settings),
        train_dataset=world.train,
        data_collator=PairCollator(world.tokenizer, world.train.pairs),
        processing_class=world.tokenizer,
        compute_metrics=lambda prediction: {"tokens": int((prediction.predictions > 2).sum())},
        gate=NeuronGate(model, world.masks, GateConfig(mode=case.mode)),
        batch_config=BATCHES,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _by_hand(world: World, case: Case, rank: int, folder: Path) -> dict[str, Any]:
    if not distributed.is_initialized():
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    model = make_model(world.tokenizer)
    for module in model.modules():
        if type(module).__name__.endswith(("EncoderLayer", "DecoderLayer")):
            fully_shard(module)
    # By default the root keeps what an evaluation has gathered, and overlooks the optimizer's step.
    fully_shard(model, reshard_after_forward=True)
    gate = NeuronGate(model, world.masks, GateConfig(mode=case.mode)).attach()
    batches = batches_of(world.tokenizer, world.train, rank, case.count)
    model(**batches[0]).loss.backward()
    found = _looked_at(world, case, rank, model, gate)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    loss_of, curve = TokenLoss(), []
    steps = MICRO_BATCHES // case.count
    for step in range(STEPS):
        optimizer.zero_grad()
        mine = batches[step * steps : (step + 1) * steps]
        sums = torch.tensor([0.0, sum(int((batch["labels"] != -100).sum()) for batch in mine)])
        distributed.all_reduce(sums)
        tokens = sums[1].item()
        for batch in mine:
            labels = batch.pop("labels")
            # FSDP2 averages gradients over processes, as DDP does.
            loss = loss_of(model.train()(**batch), labels, tokens) * case.count
            loss.backward()
            sums[0] += loss.detach() / case.count
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).full_tensor()
        optimizer.step()
        distributed.all_reduce(sums)
        curve.append((sums[0].item(), norm.item()))
    return {**found, "training": curve}


def _looked_at(
    world: World, case: Case, rank: int, model: PreTrainedModel, gate: NeuronGate
) -> dict[str, Any]:
    """Record the base with its weights shared out, once dense and once gated, and translate."""
    batches = batches_of(world.tokenizer, world.train, rank, case.count)
    gate.detach()
    dense = record(model, batches, world.train.pairs)
    gate.attach()
    translator = Translator(
        model, world.tokenizer, gate, TranslateConfig(num_beams=2, progress=False, max_tokens=200)
    )
    # Unequal shares: who is through waits for none, and is not waited for.
    total = len(world.texts)
    edges = {1: [0, total], 2: [0, total // 2 + 3, total], 3: [0, total // 2, total // 2 + 1, total]}[
        case.count
    ]
    own = slice(edges[rank], edges[rank + 1])
    said = translator.translate(world.texts[own], world.pairs[own])
    shares: list[Any] = [said] * case.count
    if case.count > 1:
        distributed.all_gather_object(shares, said)
    return {
        "statistics": {name: value.tolist() for name, value in dense.tensors().items()},
        "translations": [line for share in shares for line in share],
    }


def _curve(trainer: SpecializationTrainer) -> list[tuple[float, float]]:
    """Return loss and gradient norm of each update."""
    lines = [line for line in trainer.state.log_history if "grad_norm" in line]
    return [(line["loss"], line["grad_norm"]) for line in lines]


def _losses(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return what an evaluation found, without times."""
    return {name: value for name, value in metrics.items() if "loss" in name or "tokens" in name}
