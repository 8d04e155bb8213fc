"""What the benchmark times: models with random weights, batches, and the ways to run one pair's neurons.

Shape letters: B = samples, S = source tokens, T = target tokens, D = model width, F = neurons of a site,
P = pairs.

All ways of a comparison run on copies of one model: modules and a gate of their own around the
same weights. So memory, optimizer and numbers are shared and nothing but the way differs.
"""

import copy
import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import M2M100Config, M2M100ForConditionalGeneration, PreTrainedConfig, PreTrainedModel

from nspec_hf.core import Pair
from nspec_hf.gating import GateConfig, NeuronGate
from nspec_hf.masks import NeuronMasks, PackedMasks
from nspec_hf.recording import Site, find_sites

WAYS = ("dense", "mask", "slice", "released")
"""All neurons; the two modes of a gate; and what the code released with the paper does."""


def quiet_arguments(folder: str | Path, on_cpu: bool) -> dict[str, Any]:
    """Return arguments of a Trainer that is measured: it saves, reports and shows nothing."""
    silent = {"save_strategy": "no", "report_to": "none", "disable_tqdm": True}
    return {"output_dir": str(folder), "use_cpu": on_cpu, "dataloader_pin_memory": False, **silent}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A model of the M2M-100 architecture."""

    d_model: int
    d_ff: int
    layers: int
    """Of the encoder, and again of the decoder."""
    vocabulary: int

    def __str__(self) -> str:
        """Return `1024×4096, 4+4 layers, vocabulary 8000`."""
        return f"{self.d_model}×{self.d_ff}, {self.layers}+{self.layers} layers, vocabulary {self.vocabulary}"

    def step_flops(self, rows: int, source: float, target: float, density: float = 1.0) -> float:
        """Return multiplications and additions of a forward pass; a training step does three times as many.

        Biases, norms, softmax and the optimizer are left out.
        """
        d, layers = self.d_model, self.layers
        ffn = 4 * d * self.d_ff * density
        encoder = layers * (8 * d * d + 4 * source * d + ffn)
        decoder = layers * (12 * d * d + 4 * (source + target) * d + ffn) + 2 * d * self.vocabulary
        cross_keys_and_values = layers * 4 * d * d
        return rows * (source * (encoder + cross_keys_and_values) + target * decoder)

    def decoding_weights(self, new_tokens: int, density: float = 1.0) -> float:
        """Return how many weights generating reads: the encoder's once, the decoder's for every token.

        With a few sentences at a time, reading them from memory is what decoding waits for. The states of
        earlier tokens are left out.
        """
        d, layers = self.d_model, self.layers
        ffn = 2 * d * self.d_ff * density
        once = layers * (4 * d * d + ffn) + layers * 2 * d * d
        return once + new_tokens * (layers * (6 * d * d + ffn) + d * self.vocabulary)


def make_model(shape: Shape, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """Return an M2M-100 model with random weights, with the dropout that the recipes train with."""
    torch.manual_seed(1)
    config = M2M100Config(
        vocab_size=shape.vocabulary,
        d_model=shape.d_model,
        encoder_layers=shape.layers,
        decoder_layers=shape.layers,
        encoder_ffn_dim=shape.d_ff,
        decoder_ffn_dim=shape.d_ff,
        encoder_attention_heads=max(1, shape.d_model // 64),
        decoder_attention_heads=max(1, shape.d_model // 64),
        max_position_embeddings=256,
        dropout=0.1,
        attention_dropout=0.0,
        activation_dropout=0.0,
        encoder_layerdrop=0.0,
        decoder_layerdrop=0.0,
        # The fused kernel's backward pass is slow on a CPU at these lengths.
        attn_implementation="sdpa" if device.type == "cuda" else "eager",
    )
    return M2M100ForConditionalGeneration(config).to(device, dtype)


class BlockConfig(PreTrainedConfig):
    """Settings of a feed-forward block on its own."""

    model_type = "nspec_block"

    def __init__(self, d_model: int = 16, d_ff: int = 64, **rest: Any) -> None:
        self.d_model, self.d_ff = d_model, d_ff
        super().__init__(**rest)


class _Block(nn.Module):
    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.fc1, self.activation_fn, self.fc2 = nn.Linear(d_model, d_ff), nn.ReLU(), nn.Linear(d_ff, d_model)

    def forward(self, hidden_BLD: Tensor) -> Tensor:
        return self.fc2(self.activation_fn(self.fc1(hidden_BLD)))


class BlockModel(PreTrainedModel):
    """One feed-forward block as a model, so that a gate takes it: [B, L, D] → [B, L, D]."""

    config_class = BlockConfig

    def __init__(self, config: BlockConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList([_Block(config.d_model, config.d_ff)])
        self.post_init()

    def forward(self, hidden_BLD: Tensor) -> Tensor:
        """Run the block."""
        return self.layers[0](hidden_BLD)


def pairs_of(count: int) -> list[Pair]:
    """Return made-up pairs, all with names of one length."""
    return [Pair("eng_Latn", f"x{number:05d}_Latn") for number in range(count)]


def make_masks(sites: Iterable[Site], pairs: Iterable[str], density: float) -> NeuronMasks:
    """Return masks that keep each neuron with that probability.

    So the number of kept neurons differs from site to site and is no multiple of anything, as in real masks.
    """
    generator = torch.Generator().manual_seed(1)
    pairs = list(pairs)
    drawn = ((site.name, torch.rand(len(pairs), site.width, generator=generator) < density) for site in sites)
    return NeuronMasks(pairs, PackedMasks.of(drawn, len(pairs)))


def make_batch(
    shape: Shape, rows: int, source: int, target: int, device: torch.device, seed: int = 0
) -> dict[str, Tensor]:
    """Return a batch of random tokens without padding: B = rows, S = source, T = target."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, shape.vocabulary, (rows, source + target), generator=generator)
    labels = ids[:, source:].contiguous()
    decoder_input_ids = labels.roll(1, dims=1)
    decoder_input_ids[:, 0] = 2
    batch = {
        "input_ids": ids[:, :source].contiguous(),
        "attention_mask": torch.ones(rows, source, dtype=torch.long),
        "decoder_input_ids": decoder_input_ids,
        "labels": labels,
    }
    return {name: value.to(device) for name, value in batch.items()}


def shared_copy(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy of the modules around the same weights."""
    shared = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    return copy.deepcopy(model, shared)


class Runner:
    """A copy of a model that shares its weights and that computes in one way.

    Args:
        model: Whose weights it uses.
        way: One of `WAYS`.
        masks: Which neurons each pair keeps.
        gate: Further settings of the gate.

    Raises:
        ConfigError: If the gate does not know the mode.
    """

    def __init__(self, model: PreTrainedModel, way: str, masks: NeuronMasks, **gate: Any) -> None:
        self.model, self.way, self.pairs = shared_copy(model), way, masks.pairs
        self.gate: NeuronGate | None = None
        self.released: ReleasedMasks | None = None
        if way == "released":
            self.released = ReleasedMasks(self.model, masks)
        elif way != "dense":
            self.gate = NeuronGate(self.model, masks, GateConfig(mode=way, **gate)).attach()

    def use(self, pair: int) -> None:
        """Take that pair for all rows to come."""
        if self.gate is not None:
            self.gate.use(self.pairs[pair])
        if self.released is not None:
            self.released.pair = pair

    def inputs(self, pair: int, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the batch as this way wants it, all rows of that pair."""
        self.use(pair)
        if self.gate is None:
            return dict(batch)
        return {**batch, "pair_ids": torch.full_like(batch["input_ids"][:, 0], pair)}

    def train_step(self, optimizer: torch.optim.Optimizer, batch: Mapping[str, Tensor], pair: int) -> None:
        """Run forward pass, backward pass and update of the weights."""
        self.model.train()
        self.model(**self.inputs(pair, batch), use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def train_block(self, hidden_BLD: Tensor, pair: int) -> None:
        """Run forward and backward pass of a `BlockModel`; gradients of the weights and of the input."""
        self.use(pair)
        hidden_BLD = hidden_BLD.detach().requires_grad_()
        output_BLD = self.model(hidden_BLD)
        # A gradient as dense as a real one; that of a sum would be a single number, repeated.
        output_BLD.backward(hidden_BLD.detach())
        self.model.zero_grad(set_to_none=True)

    @torch.no_grad()
    def run_block(self, hidden_BLD: Tensor, pair: int, steps: int = 32) -> None:
        """Run the forward pass of a `BlockModel` several times, as decoding does for one pair."""
        self.use(pair)
        for _ in range(steps):
            self.model(hidden_BLD)

    def decode(self, batch: Mapping[str, Tensor], pair: int, beams: int, new_tokens: int) -> Tensor:
        """Generate exactly so many tokens for every row."""
        self.model.eval()
        return self.model.generate(
            **self.inputs(pair, {name: batch[name] for name in ("input_ids", "attention_mask")}),
            num_beams=beams,
            do_sample=False,
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
        )


class ReleasedMasks:
    """The released code's way: before every step fc1's whole weight is multiplied by a mask of its shape.

    Its masks are booleans [F, D], one a layer and pair. The bias is not masked.

    Args:
        model: Its linears' forwards are replaced for good, so give a shared copy.
        masks: Which neurons each pair keeps.
    """

    def __init__(self, model: PreTrainedModel, masks: NeuronMasks) -> None:
        self.pair = 0
        for site in masks.sites:
            linear = model.get_submodule(site.name)
            keep_PF = masks.keep[site.name].to(linear.weight.device)
            keep_PFD = keep_PF[:, :, None].expand(-1, -1, linear.in_features).contiguous()
            linear.forward = functools.partial(self._forward, linear, keep_PFD)

    def _forward(self, linear: nn.Module, keep_PFD: Tensor, x: Tensor) -> Tensor:
        return functional.linear(x, linear.weight * keep_PFD[self.pair], linear.bias)


class ReleasedRecorder:
    """The released code's way to count: copy every activation to the host, and count its non-zeros there.

    Args:
        model: Gets hooks for good, so give a shared copy.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.eval()
        sites = find_sites(model)
        self.counts = {site.name: torch.zeros(site.width, dtype=torch.long) for site in sites}
        for site in sites:
            hook = functools.partial(self._count, self.counts[site.name])
            model.get_submodule(site.down).register_forward_pre_hook(hook)

    @torch.no_grad()
    def run(self, batch: Mapping[str, Tensor]) -> None:
        """Run one batch forward."""
        self.model(**batch, use_cache=False)

    def _count(self, counts_F: Tensor, _module: nn.Module, args: tuple[Tensor, ...]) -> None:
        values = args[0].detach().cpu().flatten(0, -2)
        counts_F += torch.bincount(values.nonzero()[:, 1], minlength=len(counts_F))
