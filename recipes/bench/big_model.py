"""What memory does a big model take: recorded, and trained for one update?

    python -m recipes.bench.big_model --shape m2m100-418m --dtype bfloat16 --json big_model.json
    python -m recipes.bench.big_model --shape nllb-3.3b --dtype bfloat16 --only record

The model has the shape of the published one and random weights, made in memory, so nothing is downloaded.
Sentences are made up and short: memory is measured, not quality. Peaks are those of the process as Linux
counts them, beside what the weights alone take; on a GPU also those of its own memory.
"""

import argparse
import gc
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import (
    M2M100Config,
    M2M100ForConditionalGeneration,
    PreTrainedModel,
    Seq2SeqTrainingArguments,
)

from nspec_hf.core import Pair, write_result
from nspec_hf.gating import GateConfig, NeuronGate
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import RecordConfig, find_sites, record
from nspec_hf.training import SpecializationTrainer
from recipes.bench.growth import measured, memory_kb
from recipes.bench.workload import quiet_arguments

SHAPES = {
    "tiny": {"d_model": 64, "ffn": 256, "layers": 2, "heads": 4, "vocabulary": 2_000},
    "m2m100-418m": {"d_model": 1024, "ffn": 4096, "layers": 12, "heads": 16, "vocabulary": 128_112},
    "m2m100-1.2b": {"d_model": 1024, "ffn": 8192, "layers": 24, "heads": 16, "vocabulary": 128_112},
    "nllb-3.3b": {"d_model": 2048, "ffn": 8192, "layers": 24, "heads": 16, "vocabulary": 256_206},
}
PAIRS = (Pair("en-de"), Pair("de-en"))


def make_big_model(shape: str, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """Return a model of that shape; weights are drawn once, in their own type, with no second copy."""
    torch.manual_seed(1)
    size = SHAPES[shape]
    config = M2M100Config(
        vocab_size=size["vocabulary"],
        d_model=size["d_model"],
        encoder_layers=size["layers"],
        decoder_layers=size["layers"],
        encoder_ffn_dim=size["ffn"],
        decoder_ffn_dim=size["ffn"],
        encoder_attention_heads=size["heads"],
        decoder_attention_heads=size["heads"],
        encoder_layerdrop=0.0,
        decoder_layerdrop=0.0,
    )
    with torch.device("meta"):
        model = M2M100ForConditionalGeneration(config)
    model = model.to(dtype).to_empty(device=device)
    model.tie_weights()
    with torch.no_grad():
        for weight in model.parameters():
            weight.uniform_(-0.05, 0.05)
        for name, module in model.named_modules():
            if hasattr(module, "make_weights"):  # tables of positions, which are computed
                module.make_weights(*module.weights.shape, module.padding_idx)
            elif name.endswith("norm"):
                module.weight.fill_(1.0)
    return model.eval()


class Sentences(Dataset):
    """Made-up sentences of equal length, two directions in turns."""

    def __init__(self, count: int, tokens: int, vocabulary: int) -> None:
        draw = torch.Generator().manual_seed(1)
        self.ids = torch.randint(4, vocabulary, (2, count, tokens), generator=draw)

    def __len__(self) -> int:
        """Return how many there are."""
        return self.ids.shape[1]

    def __getitem__(self, row: int) -> dict[str, Any]:
        """Return one sentence and its translation."""
        return {"source": self.ids[0, row], "labels": self.ids[1, row], "pair_ids": row % len(PAIRS)}


def collate(rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Return a batch; no sentence needs padding."""
    source, labels = (torch.stack([row[name] for row in rows]) for name in ("source", "labels"))
    return {
        "input_ids": source,
        "attention_mask": torch.ones_like(source),
        "labels": labels,
        "decoder_input_ids": torch.cat([torch.full_like(labels[:, :1], 2), labels[:, :-1]], dim=1),
        "pair_ids": torch.tensor([row["pair_ids"] for row in rows]),
    }


def train_once(
    model: PreTrainedModel, masks: NeuronMasks, rows: Sentences, options: argparse.Namespace
) -> float:
    """Make one update in mode `slice`; return the loss."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = SpecializationTrainer(
            model=model,
            args=Seq2SeqTrainingArguments(
                **quiet_arguments(folder, options.device == "cpu"),
                max_steps=1,
                per_device_train_batch_size=options.rows,
                learning_rate=1e-4,
                activation_checkpointing=options.activation_checkpointing,
                optim=options.optim,
                logging_steps=1,
            ),
            train_dataset=rows,
            data_collator=collate,
            gate=NeuronGate(model, masks, GateConfig(mode=options.mode)),
        )
        loss = trainer.train().training_loss
        states = [value for state in trainer.optimizer.state.values() for value in state.values()]
        kinds = {str(value.dtype) for value in states if torch.is_tensor(value) and value.dim()}
        print(f"optimizer's states: {', '.join(sorted(kinds)) or 'none'}", file=sys.stderr)
        return loss


def read_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="m2m100-418m", help="default: %(default)s")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="of the weights")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--sentences", type=int, default=200, help="to record; default: %(default)s")
    parser.add_argument("--tokens", type=int, default=8, help="of a sentence; default: %(default)s")
    parser.add_argument("--rows", type=int, default=8, help="of a batch; default: %(default)s")
    parser.add_argument("--mode", choices=("mask", "slice"), default="slice", help="of the gate in training")
    parser.add_argument("--optim", default="adamw_torch", help="the Trainer's argument")
    parser.add_argument("--activation-checkpointing", action="store_true", help="the Trainer's argument")
    parser.add_argument("--only", choices=("record", "train"), help="default: both")
    parser.add_argument("--json", help="file for the results, with versions and hardware")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; return the exit status."""
    options = read_options(argv)
    device, found = torch.device(options.device), {}
    if device.type == "cuda" and not torch.cuda.is_available():
        print("big_model: there is no CUDA device here, so nothing is measured", file=sys.stderr)
        return 2

    def stage(name: str, work: Callable[[], Any]) -> Any:
        gc.collect()
        result, seconds, peak = measured(work)
        found[name] = {"peak_mb_on_top": round(peak), "process_peak_mb": round(memory_kb("VmHWM") / 1000)}
        found[name]["seconds"] = round(seconds, 1)
        if device.type == "cuda":
            found[name]["gpu_peak_mb"] = round(torch.cuda.max_memory_allocated(device) / 1e6)
            torch.cuda.reset_peak_memory_stats(device)
        print(f"{name}: {found[name]}", file=sys.stderr, flush=True)
        return result

    model = stage("made", lambda: make_big_model(options.shape, getattr(torch, options.dtype), device))
    weights = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    found["weights_mb"] = round(weights / 1e6)
    rows = Sentences(options.sentences, options.tokens, SHAPES[options.shape]["vocabulary"])
    masks = NeuronMasks.random(find_sites(model), PAIRS, density=0.75, seed=1)
    if options.only != "train":
        starts = range(0, len(rows), options.rows)
        batches = (
            collate([rows[row] for row in range(start, min(start + options.rows, len(rows)))])
            for start in starts
        )
        stats = stage("recorded", lambda: record(model, batches, PAIRS, RecordConfig(progress=False)))
        found["recorded"]["of_weights"] = round(1 + 1e6 * found["recorded"]["peak_mb_on_top"] / weights, 3)
        masks = NeuronMasks.from_coverage(stats, 0.95)
        _keep(found, options)
    if options.only != "record":
        loss = stage("trained", lambda: train_once(model, masks, rows, options))
        found["trained"]["loss"] = round(loss, 4)
        _keep(found, options)
    print(found)
    return 0


def _keep(found: dict[str, Any], options: argparse.Namespace) -> None:
    """Write what there is, so that a run that is stopped has what it found."""
    if options.json:
        write_result(options.json, found, {**vars(options), "json": None})


if __name__ == "__main__":
    sys.exit(main())
