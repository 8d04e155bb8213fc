"""Record which neurons fire for which pair, in one pass over the text.

Shape letters: B = samples, L = tokens of a side, F = neurons of a site, P = pairs.

Feed-forward neurons are read at the input of the down projection, in eval mode: one place for plain and gated
blocks, and no dropout zero is taken for a silent neuron. The sums stay on the device; nothing is copied to the
host until the pass is over. A row that is not to be counted (a duplicate, or one over the limit) goes to row P of
the sums, which is thrown away.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm.auto import tqdm

from nspec_hf.config import RecordConfig
from nspec_hf.errors import ConfigError, RoutingError, SiteMismatchError, UnsupportedModelError
from nspec_hf.pairs import as_pairs
from nspec_hf.processes import gather, in_step, rank, real_rows, world_size
from nspec_hf.sites import Site, find_sites, plain_model, site_activation, weight_fingerprint
from nspec_hf.stats import ActivationStats

_IGNORED = -100
# A byte counts up to here before it overflows; see `_fired`.
_BYTE = 255


def record(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    pairs: Iterable[str],
    config: RecordConfig | None = None,
    corpus: Mapping[str, Any] | None = None,
) -> ActivationStats:
    """Count each neuron's activations per pair, with teacher forcing and without padding.

    The model is used in eval mode and left as it was: training flags, `requires_grad` and gradients. With several
    processes each gives its own batches, all must call this, and all get the same merged statistics; duplicates
    that a loader prepared by accelerate adds to its last batch are not counted.

    Args:
        model: A Hugging Face model, plain or wrapped, with or without a gate.
        batches: Dicts with `input_ids` [B, S], `attention_mask` [B, S], `pair_ids` [B] (index into `pairs`) and, for
            encoder-decoder models, `labels` [B, T] (-100 = padding) and `decoder_input_ids` [B, T]. Instead of labels
            a `decoder_attention_mask` may tell padding. Other entries that the model does not take are left out.
        pairs: What `pair_ids` indexes.
        config: What to count; see `RecordConfig`.
        corpus: What text this is, kept with the statistics; anything that JSON can hold.

    Returns:
        Statistics on the CPU. In decoder-only models every position of `attention_mask` counts as the decoder's.

    Raises:
        EmptyPairError: If no sentence of a pair came by; it names the pairs.
        RoutingError: If a batch has no `pair_ids`, or one outside the pairs.
        UnsupportedModelError: If the model's neurons cannot be found.
        ConfigError: If a batch lacks what tells its padding, or TE is asked for without labels.
    """
    config = config or RecordConfig()
    pairs = as_pairs(pairs)
    plain = plain_model(model)
    sites = find_sites(plain, config.kinds)
    stats = ActivationStats(pairs, sites, config, _base(plain, sites), corpus)
    counter = _Counter(plain, sites, len(pairs), config)
    with counter.attached():
        for batch in _watched(batches, config):
            counter.count(batch, real_rows(batches, batch) if batch else None)
            if counter.is_full():
                break
    counter.fill(stats)
    stats.merge_across_processes().refuse_empty()
    return stats


class _Counter:
    """The sums of one pass, and the hooks that fill them."""

    def __init__(self, model: nn.Module, sites: list[Site], pairs: int, config: RecordConfig) -> None:
        self.model, self.sites, self.pairs, self.config = model, sites, pairs, config
        self.two_sided = bool(getattr(model.config, "is_encoder_decoder", False))
        self.accepted = set(inspect.signature(type(model).forward).parameters)
        self.sums: dict[tuple[str, str], Tensor] = {}
        self.seen_P = torch.zeros(pairs, dtype=torch.int64)
        self.outside = torch.zeros((), dtype=torch.int64)
        self.rows_B: Tensor = self.seen_P
        self.masks: dict[str, Tensor] = {}
        self.read: set[tuple[str, str]] = set()
        self.in_backward = False
        self.head_wanted = config.te

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Put the model into eval mode with hooks on, and take everything back afterwards, come what may."""
        training = [(module, module.training) for module in self.model.modules()]
        frozen = [(p, p.requires_grad) for p in self.model.parameters()] if self.config.te else []
        handles = []
        try:
            self.model.eval()
            # Only gradients of activations are wanted, so those of the weights are neither computed nor left behind.
            for parameter, _ in frozen:
                parameter.requires_grad_(False)
            for site in self.sites:
                handles += self._hooks(site)
            handles += self._head_hooks()
            with _eager(self.model):
                yield
        finally:
            for handle in handles:
                handle.remove()
            for parameter, flag in frozen:
                parameter.requires_grad_(flag)
            for module, flag in training:
                module.training = flag

    def count(self, batch: Mapping[str, Tensor] | None, real_rows: int | None) -> None:
        """Run one batch through the model; `None` stands for a process that has run out of batches."""
        if batch is None:
            self._admit(self.seen_P.new_zeros(0))
            return
        device = next(self.model.parameters()).device
        batch = {name: value.to(device) for name, value in batch.items() if isinstance(value, Tensor)}
        rows_B = self._pair_rows(batch)
        if real_rows is not None:
            rows_B = torch.where(torch.arange(len(rows_B), device=device) < real_rows, rows_B, self.pairs)
        if self.config.max_sentences is not None:
            rows_B = torch.where(self._admit(rows_B), rows_B, self.pairs)
        self.rows_B, self.masks, self.read = rows_B, self._padding(batch), set()
        for side, mask_BL in self.masks.items():
            self._add("tokens", side, mask_BL.sum(1))
        self._add("sentences", "", torch.ones_like(rows_B))
        inputs = self._inputs(batch)
        with torch.set_grad_enabled(self.config.te):
            output = self.model(**inputs)
            if self.config.te:
                self._backward(output.logits, batch)
        missing = [site.name for site in self.sites if ("counts", site.name) not in self.read]
        if missing:
            raise UnsupportedModelError(f"no token passed through {', '.join(missing)} in the forward pass")

    def is_full(self) -> bool:
        """Return whether every pair has as many sentences as are wanted."""
        return self.config.max_sentences is not None and bool(
            (self.seen_P >= self.config.max_sentences).all()
        )

    def fill(self, stats: ActivationStats) -> None:
        """Copy the sums into the statistics.

        Raises:
            RoutingError: If a row's pair was out of range.
        """
        if int(self.outside):
            raise RoutingError(f"{int(self.outside)} rows have pair_ids outside 0 to {self.pairs - 1}")
        named = stats.tensors()
        for (what, where), sum_P in self.sums.items():
            named[f"{what}/{where}" if where else what].copy_(sum_P[: self.pairs])

    def _pair_rows(self, batch: Mapping[str, Tensor]) -> Tensor:
        if "pair_ids" not in batch:
            raise RoutingError(f"a batch has no pair_ids; it has {', '.join(batch)}. Use PairCollator")
        ids_B = batch["pair_ids"].long()
        outside_B = (ids_B < 0) | (ids_B >= self.pairs)
        self.outside = self.outside.to(ids_B.device) + outside_B.sum()
        if ids_B.device.type == "cpu" and int(self.outside):
            # On a GPU looking now would stop the queue at every step, so there it is looked at in the end.
            raise RoutingError(
                f"pair_ids {ids_B[outside_B].tolist()} do not index the {self.pairs} pairs that are recorded"
            )
        return torch.where(outside_B, self.pairs, ids_B)

    def _admit(self, rows_B: Tensor) -> Tensor:
        """Return which rows come before their pair's limit, in the order of one process that takes every batch."""
        mine_BP = rows_B.unsqueeze(1) == torch.arange(self.pairs, device=rows_B.device)
        here_P = mine_BP.sum(0)
        everywhere = gather(here_P)
        self.seen_P = self.seen_P.to(rows_B.device)
        before_P = self.seen_P + sum(everywhere[: rank()], torch.zeros_like(here_P))
        self.seen_P = self.seen_P + sum(everywhere)
        place_B = ((mine_BP.cumsum(0) - 1 + before_P) * mine_BP).sum(1)
        return place_B < self.config.max_sentences

    def _padding(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return where each side's tokens are, bool [B, L]; a decoder-only model has one side."""
        if "attention_mask" not in batch:
            raise ConfigError(
                f"a batch has no attention_mask, so padding cannot be left out; it has {', '.join(batch)}"
            )
        mask_BL = batch["attention_mask"].bool()
        if not self.two_sided:
            return {"decoder": mask_BL}
        if "labels" in batch:
            return {"encoder": mask_BL, "decoder": batch["labels"] != _IGNORED}
        if "decoder_attention_mask" in batch:
            return {"encoder": mask_BL, "decoder": batch["decoder_attention_mask"].bool()}
        raise ConfigError(
            "a batch has neither labels nor decoder_attention_mask, so the decoder's padding cannot be left out; it "
            f"has {', '.join(batch)}"
        )

    def _inputs(self, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        inputs: dict[str, Any] = {name: value for name, value in batch.items() if name in self.accepted}
        # With labels the model would compute a loss of its own; it needs them only to make decoder inputs.
        shifts = self.two_sided and "decoder_input_ids" not in batch
        if not shifts:
            inputs.pop("labels", None)
        self.head_wanted = self.config.te or shifts
        if "use_cache" in self.accepted:
            inputs["use_cache"] = False
        return inputs

    def _hooks(self, site: Site) -> list[Any]:
        module = self.model.get_submodule(site.down or site.name)
        by_gate = self.config.active_on == "gate" and bool(site.up)
        if not site.down:
            return [module.register_forward_hook(lambda _m, _args, out: self._take(site, out, True))]

        def read_input(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (self._take(site, args[0], not by_gate), *args[1:])

        handles = [module.register_forward_pre_hook(read_input)]
        if by_gate:
            activation = site_activation(self.model, site)
            gate = self.model.get_submodule(site.name)
            handles.append(gate.register_forward_hook(self._gate_hook(site, activation)))
        return handles

    def _gate_hook(self, site: Site, activation: Callable[[Tensor], Tensor]) -> Callable[..., None]:
        def read_gate(_module: nn.Module, _args: tuple, out: Tensor) -> None:
            if not self.in_backward:
                with torch.no_grad():
                    self._count(site, activation(out))

        return read_gate

    def _head_hooks(self) -> list[Any]:
        """Let the output layer see one position only, where nobody wants its result: it is the largest of all."""
        head = self.model.get_output_embeddings() if hasattr(self.model, "get_output_embeddings") else None
        if head is None:
            return []

        def shorten(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return args if self.head_wanted else (args[0][:, :1], *args[1:])

        return [head.register_forward_pre_hook(shorten)]

    def _take(self, site: Site, hidden: Tensor, counted: bool) -> Tensor:
        """Count one site's activations; return what the model goes on with."""
        if self.config.te and not hidden.requires_grad:
            # All weights are frozen: the graph that the backward pass needs begins here.
            hidden = hidden.detach().requires_grad_()
        if self.in_backward:  # gradient checkpointing computes it a second time
            return hidden
        values = hidden.detach()
        if counted:
            self._count(site, values)
        if self.config.av:
            self._add_sum("av", site, values.double().abs())
        if self.config.te:
            hidden.register_hook(
                lambda grad: self._add_sum("te", site, (grad.double() * values.double()).abs_())
            )
        return hidden

    def _count(self, site: Site, values: Tensor) -> None:
        if ("counts", site.name) in self.read:
            raise UnsupportedModelError(
                f"{site.name!r} ran twice in one forward pass, so it is no single layer"
            )
        self.read.add(("counts", site.name))
        values_BLF, mask_BL = self._placed(site, values)
        fired_BF = _fired(values_BLF > 0, mask_BL)
        self._add("counts", site.name, fired_BF if self.config.count == "tokens" else fired_BF.clamp_(max=1))

    def _add_sum(self, score: str, site: Site, values: Tensor) -> None:
        values_BLF, mask_BL = self._placed(site, values)
        self._add(score, site.name, values_BLF.masked_fill(~mask_BL.unsqueeze(-1), 0).sum(1))

    def _placed(self, site: Site, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return the values as [B, L, F] and the tokens among them as bool [B, L]."""
        mask_BL = self.masks[site.positions].to(values.device)
        rows, length = mask_BL.shape
        if values.shape[-1] != site.width:
            raise SiteMismatchError(
                f"{site.name!r} has {site.width} neurons but {values.shape[-1]} came by; record without a slicing gate"
            )
        if values.dim() == 3 and site.positions == "encoder" and length % values.shape[1] == 0:
            # Speech encoders shorten their input by a fixed stride (Whisper: 2).
            mask_BL = mask_BL[:, :: length // values.shape[1]]
        if values.numel() != mask_BL.numel() * site.width or (values.dim() == 3 and len(values) != rows):
            raise SiteMismatchError(
                f"{site.name!r} saw activations of shape {list(values.shape)}, but the {site.positions}'s tokens have "
                f"shape {list(mask_BL.shape)}; check attention_mask and labels"
            )
        return values.reshape(*mask_BL.shape, site.width), mask_BL

    def _add(self, what: str, where: str, rows_BF: Tensor) -> None:
        key = (what, where)
        if key not in self.sums:
            self.sums[key] = rows_BF.new_zeros(self.pairs + 1, *rows_BF.shape[1:])
        self.sums[key].index_add_(0, self.rows_B.to(rows_BF.device), rows_BF)

    def _backward(self, logits: Tensor, batch: Mapping[str, Tensor]) -> None:
        """Send back L, the sum of the target tokens' cross entropies, so that no token's share depends on the batch."""
        if "labels" not in batch:
            raise ConfigError("te needs labels in every batch: it is the gradient of the translation loss")
        labels = batch["labels"]
        if not self.two_sided:
            logits, labels = logits[:, :-1], labels[:, 1:]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        flat = labels.reshape(-1).to(logits.device)
        loss = functional.cross_entropy(logits.flatten(0, 1), flat, ignore_index=_IGNORED, reduction="sum")
        self.in_backward = True
        try:
            loss.backward()
        finally:
            self.in_backward = False


def _fired(active_BLF: Tensor, mask_BL: Tensor) -> Tensor:
    """Return how many tokens of each row fired, int64 [B, F].

    Eight booleans are added at a time: they lie in memory as bytes 0 and 1, so a view as int64 adds eight counters
    with one addition, up to 255 tokens before a byte could overflow. On a CPU this costs a fifth of a plain sum.
    """
    width = active_BLF.shape[-1]
    if width % 8:
        active_BLF = functional.pad(active_BLF, (0, -width % 8))
    bytes_BLX = active_BLF.contiguous().view(torch.int64).masked_fill_(~mask_BL.unsqueeze(-1), 0)
    parts = [part_BLX.sum(1).view(torch.uint8) for part_BLX in bytes_BLX.split(_BYTE, dim=1)]
    return sum(part_BF.long() for part_BF in parts)[:, :width]


@contextmanager
def _eager(model: nn.Module) -> Iterator[None]:
    # Hooks that come after the first compiled call would be ignored without a word.
    if any(getattr(module, "_compiled_call_impl", None) is not None for module in model.modules()):
        with torch.compiler.set_stance("force_eager"):
            yield
    else:
        yield


def _watched(
    batches: Iterable[Mapping[str, Tensor]], config: RecordConfig
) -> Iterator[Mapping[str, Tensor] | None]:
    shown = config.progress and rank() == 0
    bar = tqdm(batches, desc="record", unit="batch", disable=None if shown else True)
    # Only a limit needs to know what the other processes have seen.
    return in_step(bar) if config.max_sentences is not None and world_size() > 1 else iter(bar)


def _base(model: nn.Module, sites: list[Site]) -> dict[str, Any]:
    return {
        "id": getattr(model.config, "_name_or_path", "") or type(model).__name__,
        "revision": getattr(model.config, "_commit_hash", None),
        "fingerprint": weight_fingerprint(model, sites),
    }
