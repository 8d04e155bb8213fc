"""Record which neurons fire for which pair, in one pass over the text.

Feed-forward neurons are read at the input of the down projection, in eval mode: one place for plain and gated
blocks, and no dropout zero is taken for a silent neuron. Neurons of attention and of `ffn_out` are read at
the output of their linear. What is read is added up by `nspec_hf.recording.accumulator`, on the device.

Shape letters: B = samples, S = source tokens, T = target tokens.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from nspec_hf.core import (
    ConfigError,
    Pair,
    UnsupportedModelError,
    as_often,
    as_pairs,
    in_step,
    is_spread,
    pair_index,
    rank,
    real_rows,
    require,
    world_size,
)
from nspec_hf.data import IGNORED
from nspec_hf.recording.accumulator import Accumulator
from nspec_hf.recording.config import SIDES, RecordConfig
from nspec_hf.recording.cross_entropy import token_losses
from nspec_hf.recording.model import ATTACHED, check_decoder_inputs_given, eval_mode, position_limit
from nspec_hf.recording.sites import (
    Site,
    find_sites,
    linear_at,
    plain_model,
    site_activation,
    weight_fingerprint,
)
from nspec_hf.recording.stats import ActivationStats


def record(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    pairs: Iterable[str],
    config: RecordConfig | None = None,
    corpus: Mapping[str, Any] | None = None,
) -> ActivationStats:
    """Count each neuron's activations per pair, with teacher forcing and without padding.

    The model is used in eval mode and left as it was: training flags, `requires_grad`, gradients, hooks. With
    several processes each gives its own batches, all must call this, and all get the same merged statistics;
    duplicates that a loader prepared by accelerate adds to its last batch are not counted.

    Args:
        model: A Hugging Face model, plain or wrapped. With a gate attached, its pairs are recorded as gated.
        batches: Dicts with `input_ids` and `attention_mask` [B, S], `pair_ids` [B] (index into `pairs`)
            and, for encoder-decoder models, `labels` (-100 or the pad token = padding) and
            `decoder_input_ids` [B, T]. Without labels, `decoder_attention_mask` [B, T] tells the padding.
            What the model does not take is left out.
        pairs: What `pair_ids` indexes.
        config: What to count; see `RecordConfig`.
        corpus: What text this is, kept with the statistics; anything that JSON can hold.

    Returns:
        Statistics on the CPU. In decoder-only models each position of `attention_mask` counts as the
        decoder's.

    Raises:
        EmptyPairError: If there is no sentence of a pair, or no neuron fired for it; it names the pairs.
        RoutingError: If a batch has no `pair_ids`, or some that do not index the pairs.
        UnsupportedModelError: If the model's neurons cannot be found, weights are offloaded, or what it
            computes is not finite.
        ConfigError: If nothing tells a batch's padding, TE is wanted of a batch without labels, `batches` is
            one batch, a text is longer than the model's positions, nothing says what its decoder starts
            from, or source and target of a model without an encoder come apart.
        SiteMismatchError: If the mask of a batch and the model's activations differ in length.
    """
    config = config or RecordConfig()
    pairs = as_pairs(pairs)
    if isinstance(batches, Mapping):
        raise ConfigError("batches is a list or another iterable of batches, got one batch; write [batch]")
    plain = plain_model(model)
    sites = find_sites(plain, config.kinds)
    away = [name for name, parameter in plain.named_parameters() if parameter.is_meta]
    if away:
        raise UnsupportedModelError(
            f"{len(away)} weights are not in memory ({away[0]}, …): load the model without offloading to CPU "
            "or disk, under FSDP in every process (fsdp_cpu_ram_efficient_loading: false); a smaller dtype, "
            "or device_map='auto' over several GPUs, may make it fit"
        )
    base = {
        "id": getattr(plain.config, "_name_or_path", "") or type(plain).__name__,
        "revision": getattr(plain.config, "_commit_hash", None),
        "fingerprint": weight_fingerprint(plain),
    }
    stats = ActivationStats(pairs, sites, config, base, corpus)
    recorder = _Recorder(plain, sites, pairs, config)
    shown = config.progress and rank() == 0
    bar = tqdm(batches, desc="record", unit="batch", disable=None if shown else True)
    # Only a limit has to know what the other processes have seen.
    alone = config.max_sentences is None or is_spread(plain) or world_size() == 1
    with recorder.attached():
        for batch, counts in as_often(plain, bar) if alone else ((each, True) for each in in_step(bar)):
            rows = 0 if batch is None or not counts else real_rows(batches, batch)
            recorder.take(batch, rows)
            if recorder.sums.is_full():
                break
    recorder.sums.fill(stats)
    stats.merge_across_processes().refuse_empty()
    return stats


class _Recorder:
    """The hooks that read one model's neurons, and the forward passes that they read."""

    def __init__(
        self, model: PreTrainedModel, sites: list[Site], pairs: list[Pair], config: RecordConfig
    ) -> None:
        self.model, self.sites, self.config = model, sites, config
        self.two_sided = bool(getattr(model.config, "is_encoder_decoder", False))
        self.sums = Accumulator(len(pairs), self.two_sided, config.max_sentences)
        self.arguments = set(inspect.signature(type(model).forward).parameters)
        # Marian may have a vocabulary for each side.
        decoder = model.get_decoder() if self.two_sided else model
        self.vocabularies = {"encoder": _embeddings_of(model), "decoder": _embeddings_of(decoder)}
        self.limits = {side: position_limit(model, side) for side in SIDES}
        gate: Any = getattr(model, ATTACHED, None)
        numbers = None if gate is None else [pair_index(gate.pairs, pair, "gate") for pair in pairs]
        self.gate_index = None if numbers is None else torch.tensor(numbers)
        """The index among a gate's pairs of each pair; None where no gate is on the model."""
        self.read: set[str] = set()
        self.in_backward = False
        self.needs_logits = config.te

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Put the model into eval mode with hooks on it, and take all of it back, come what may."""
        with ExitStack() as undone:
            # Only gradients of activations are wanted: those of weights are neither computed nor left behind.
            for parameter in self.model.parameters() if self.config.te else ():
                undone.callback(parameter.requires_grad_, parameter.requires_grad)
                parameter.requires_grad_(False)
            for handle in self._hooks():
                undone.callback(handle.remove)
            undone.enter_context(eval_mode(self.model))
            # Hooks that come after the first compiled call would be ignored without a word.
            if any(getattr(part, "_compiled_call_impl", None) is not None for part in self.model.modules()):
                undone.enter_context(torch.compiler.set_stance("force_eager"))
            yield

    def take(self, batch: Mapping[str, Any] | None, rows: int | None) -> None:
        """Run one batch through the model; None stands for a step in which only other processes have one."""
        if batch is None:
            self.sums.stand_by()
            return
        device = next(self.model.parameters()).device
        read = self.arguments | {"labels", "pair_ids", "decoder_attention_mask"}
        with torch.inference_mode(False):
            tensors = {
                name: torch.as_tensor(value).to(device)
                for name, value in batch.items()
                if isinstance(value, Tensor) or (name in read and isinstance(value, (list, np.ndarray)))
            }
            # What was made in inference mode cannot be kept for a backward pass.
            batch = {name: each.clone() if each.is_inference() else each for name, each in tensors.items()}
            pad, ends = (getattr(self.model.config, f"{name}_token_id", None) for name in ("pad", "eos"))
            if "labels" in batch and pad not in (None, *(ends if isinstance(ends, list) else [ends])):
                # A script may pad them with what pads its text; that would count as tokens.
                batch["labels"] = batch["labels"].masked_fill(batch["labels"] == pad, IGNORED)
        self.sums.begin(batch, rows)
        self.read = set()
        inputs = self._inputs(batch)
        # Inside a caller's inference mode there would be no graph for the backward pass.
        with torch.inference_mode(False), torch.set_grad_enabled(self.config.te):
            output = self.model(**inputs)
            logits = output.logits if hasattr(output, "logits") else output[0]
            if self.config.te:
                self._backward(logits, batch)
        unread = [site.name for site in self.sites if site.name not in self.read]
        if unread:
            raise UnsupportedModelError(f"no token passed through {', '.join(unread)} in the forward pass")
        self.sums.end(logits.detach())

    def _inputs(self, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        inputs: dict[str, Any] = {name: value for name, value in batch.items() if name in self.arguments}
        # Given labels the model would compute a loss of its own; it needs them only to make decoder inputs.
        shifts_labels = self.two_sided and "decoder_input_ids" not in batch
        if not shifts_labels:
            inputs.pop("labels", None)
        elif self.model.config.model_type != "mbart":  # which starts from the last token of the labels
            require(
                getattr(self.model.config, "decoder_start_token_id", None) is not None,
                "without decoder_input_ids in the batches a config needs decoder_start_token_id; set it, or "
                "use PairCollator",
            )
        check_decoder_inputs_given(self.model, inputs)
        for name in ("input_ids", "decoder_input_ids", "labels"):
            if name in inputs:
                self._check_ids(name, inputs[name])
        self.needs_logits = self.config.te or shifts_labels
        if "use_cache" in self.arguments:
            inputs["use_cache"] = False
        if self.gate_index is not None:
            inputs["pair_ids"] = self.gate_index.to(batch["pair_ids"].device)[batch["pair_ids"]]
        return inputs

    def _check_ids(self, name: str, ids: Tensor) -> None:
        side = "encoder" if self.two_sided and name == "input_ids" else "decoder"
        limit, vocabulary = self.limits[side], self.vocabularies[side]
        require(
            limit is None or ids.shape[1] <= limit,
            f"{name} of {ids.shape[1]} tokens do not fit into the model's {limit} positions; cut long texts",
        )
        known = ids[ids != IGNORED] if name == "labels" else ids
        if ids.device.type == "cpu" and known.numel():  # on a GPU, looking would stop its queue at every step
            low, high = known.min().item(), known.max().item()
            require(
                0 <= low and high < vocabulary,
                f"{name} from {low} to {high} do not fit the model's {vocabulary} embeddings; is the "
                "tokenizer the model's own?",
            )

    def _hooks(self) -> Iterator[RemovableHandle]:
        for site in self.sites:
            linear = site.linear(self.model)
            if not site.down:
                yield linear.register_forward_hook(partial(self._read_output, site))
                continue
            on_gate = self.config.active_on == "gate" and bool(site.up)
            down = linear_at(self.model, site.down)
            yield down.register_forward_pre_hook(partial(self._read_input, site, not on_gate))
            if on_gate:
                activation = site_activation(self.model, site)
                yield linear.register_forward_hook(partial(self._read_gate, site, activation))
        head: Any = self.model.get_output_embeddings()
        if head is not None:
            yield head.register_forward_pre_hook(self._shorten)

    def _read_output(self, site: Site, _module: nn.Module, _args: tuple[Any, ...], out: Tensor) -> Tensor:
        return self._read(site, out)

    def _read_input(
        self, site: Site, counted: bool, _module: nn.Module, args: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        return (self._read(site, args[0], counted), *args[1:])

    def _read_gate(
        self, site: Site, activation: Callable[[Tensor], Tensor], _module: nn.Module, _args: Any, out: Tensor
    ) -> None:
        if not self.in_backward:
            with torch.no_grad():
                self._count(site, activation(out))

    def _shorten(self, _module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Let the output layer, the largest of all, see one position, since its result is not used.

        It is the last, which what is not finite at any other one reaches.
        """
        return args if self.needs_logits else (args[0][:, -1:], *args[1:])

    def _read(self, site: Site, hidden: Tensor, counted: bool = True) -> Tensor:
        """Count a site's activations; return what the model goes on with."""
        if self.config.te and not hidden.requires_grad:
            # All weights are frozen, so the graph that the backward pass needs begins here.
            hidden = hidden.detach().requires_grad_()
        if self.in_backward:  # gradient checkpointing runs the layer a second time
            return hidden
        values = hidden.detach()
        if counted:
            self._count(site, values)
        if self.config.av:
            self.sums.add("av", site, values.double().abs())
        if self.config.te:
            hidden.register_hook(
                lambda grad: self.sums.add("te", site, (grad.double() * values.double()).abs())
            )
        return hidden

    def _count(self, site: Site, values: Tensor) -> None:
        if site.name in self.read:
            raise UnsupportedModelError(
                f"{site.name!r} ran twice in one forward pass, so it stands for several layers"
            )
        self.read.add(site.name)
        self.sums.count(site, values, once=self.config.count == "sentences")

    def _backward(self, logits: Tensor, batch: Mapping[str, Tensor]) -> None:
        """Send back L, the sum (not the mean) of cross entropies: no token's share depends on the batch."""
        if "labels" not in batch:
            raise ConfigError("te needs labels in every batch: it is a gradient of the translation loss")
        labels = batch["labels"].to(logits.device)
        if not self.two_sided:
            logits, labels = logits[:, :-1], labels[:, 1:]
        loss = token_losses(logits, labels, self.config.label_smoothing or 0.0).sum()
        self.in_backward = True
        try:
            loss.backward()
        finally:
            self.in_backward = False


def _embeddings_of(part: Any) -> int:
    """Return how many tokens a model, or its decoder, has embeddings of."""
    embeddings = part.get_input_embeddings()
    # Under ZeRO-3 the weight itself is empty.
    return getattr(embeddings, "num_embeddings", embeddings.weight.shape[0])
