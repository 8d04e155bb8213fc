"""Parameter differentiation: weights on which pairs pull in opposite directions become several in training.

Shape letters: P = pairs, N = weights of a unit.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from scipy.cluster.hierarchy import cut_tree, linkage
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from nspec_hf.core import Pair, require
from nspec_hf.data import BatchConfig, PairBatchSampler, PairCollator
from nspec_hf.gating import Attachment
from nspec_hf.recording import eval_mode, token_losses
from nspec_hf.systems.parts.clones import ClonedUnits
from nspec_hf.systems.run import Run
from nspec_hf.systems.system import System, attached
from nspec_hf.training import join_processes

_ROUNDS = 20


@dataclass(frozen=True, kw_only=True)
class ParameterDifferentiation(System):
    """All pairs share all weights at first; where their gradients conflict, a unit becomes two, and so on.

    Wang & Zhang 2022, "Parameter Differentiation based Multilingual Neural Machine Translation" (AAAI 2022).
    Every so often the gradient of each pair's validation loss is taken, without dropout, for each unit (a
    linear or a norm of a layer: the paper's finest grain, operations). A unit's interference is the largest
    negative cosine between the gradients of two pairs that share it. The units with the most interference
    are copied, and the pairs that shared one are parted into two sets by average linkage of cosine distance,
    as in the authors' released code. A copy begins with the weights and the optimizer's state of what it is
    a copy of (the released code begins with a new optimizer). Embeddings are not copied. Zero-shot pairs are
    not defined in the paper: here they have the encoder of their source and the decoder of their target,
    through the pivot.
    """

    name: ClassVar[str] = "differentiation"
    source: ClassVar[str] = "Wang & Zhang 2022 (parameter differentiation)"
    prepared_from: ClassVar[tuple[str, ...]] = ("validation",)

    upper_bound: float | None = 1.0
    """Weights that may be added, as a share of the base's: 0.51, 1.0 (twice the base, Tan et al. 2024, Table
    1), 1.51; None: as many as the pairs could use."""

    start: Literal["scratch", "base"] = "scratch"
    """`scratch`, as in the paper: a model of its own, with the base's budget and then the continuation's.
    `base`: the trained base, with the continuation's."""

    every: int | None = None
    """Updates between two rounds of splitting; None takes a twentieth of the training (of `max_steps`, so
    name a number where training stops early)."""

    at_once: int | None = None
    """Splits a round; the released code makes 2. None: as many as fit into the part of `upper_bound` that
    this round makes available, which grows evenly to the whole of it over the training; the last share,
    which would come with the last update, is never used."""

    threshold: float = 0.0
    """Interference that a unit must exceed to be split, in [-1, 1): above 0 there is conflict."""

    sentences: int | None = None
    """Sentences of each pair that gradients are taken on; None: all of the validation text."""

    @property
    def from_scratch(self) -> bool:
        """Whether it has a model of its own."""
        return self.start == "scratch"

    def check(self, run: Run) -> None:
        """Refuse settings that cannot be, and several processes."""
        for name in ("upper_bound", "every", "at_once", "sentences"):
            value = getattr(self, name)
            require(value is None or value > 0, f"{name} is positive or None, got {value}")
        require(-1 <= self.threshold < 1, f"threshold is a negative cosine, in [-1, 1), got {self.threshold}")
        require(
            bool(run.config.data.valid_split),
            "differentiation takes gradients on validation text; name data.valid_split",
        )
        require(
            join_processes().num_processes == 1,
            "differentiation adds weights in training, which DDP and FSDP do not know of; run it in one "
            "process",
        )

    def attach(self, model: PreTrainedModel, run: Run) -> Attachment:
        """Put on the model what splits units; loading trained weights then makes the copies that they had."""
        return ClonedUnits(model, run.pairs, run.config.data.pivot).attach()

    def callbacks(self, model: PreTrainedModel, run: Run) -> Sequence[TrainerCallback]:
        """Return what splits units in training."""
        batches = partial(validation_batches, model, run, self.sentences)
        limit = None if self.upper_bound is None else int(self.upper_bound * _size(run.base()))
        return [Differentiate(batches, limit, self.every, self.at_once, self.threshold)]


def validation_batches(
    model: PreTrainedModel, run: Run, sentences: int | None, pair: Pair
) -> Iterator[dict[str, Tensor]]:
    """Yield the batches of a pair's validation text, of its first `sentences`."""
    collate = PairCollator(run.tags, run.validation.pairs, model.config.decoder_start_token_id)
    part, budget = run.validation.subset(pair), run.config.specialize.batches.max_tokens
    lengths, pair_ids = part.lengths[:sentences], part.pair_ids[:sentences]
    longest = int(lengths.max())
    settings = BatchConfig(max_tokens=max(budget, longest), max_length=longest)
    for rows in PairBatchSampler(lengths, pair_ids, settings, shuffle=False):
        batch = collate([part[row] for row in rows])
        yield {name: tensor.to(run.device) for name, tensor in batch.items()}


@dataclass(frozen=True)
class Conflict:
    """A copy of a unit that pairs share, and how they would part."""

    interference: float
    """Largest negative cosine between the gradients of two pairs."""
    unit: int
    number: int
    """Which copy of the unit; 0 is the model's own."""
    leaving: tuple[int, ...]
    """Indices of the pairs that would get a copy; those that stay include the first."""


Batches = Callable[[Pair], Iterable[dict[str, Tensor]]]
"""Pair → batches of text that gradients are taken on."""


@dataclass(eq=False)
class Differentiate(TrainerCallback):
    """Splits units every so many updates; but for the first two, see `ParameterDifferentiation`."""

    batches: Batches
    limit: int | None = None
    """Weights that may be added; None: as many as the pairs could use."""
    every: int | None = None
    at_once: int | None = None
    threshold: float = 0.0

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Split, if it is time; not at the end, since no update would use it."""
        every = self.every or max(1, state.max_steps // _ROUNDS)
        if state.global_step % every or state.global_step >= state.max_steps:
            return
        share = 1.0 if self.at_once else min(1.0, state.global_step / every / (state.max_steps // every))
        self.split(kwargs["model"], kwargs["optimizer"], share, args.label_smoothing_factor)

    def split(
        self, model: nn.Module, optimizer: Optimizer | None, share: float = 1.0, label_smoothing: float = 0.0
    ) -> list[Conflict]:
        """Split the units with the most interference, as far as they fit; return them.

        Args:
            model: With `ClonedUnits` on it.
            optimizer: Gets the copies' weights, with the state of what they are copies of; None: there is
                none yet.
            share: Part of the limit that may be used now, in (0, 1].
            label_smoothing: Of the loss.
        """
        cloned = attached(model, ClonedUnits)
        gradients = pair_gradients(model, cloned, self.batches, label_smoothing)
        conflicting = [one for one in conflicts(cloned, gradients) if one.interference > self.threshold]
        limit = _most(cloned) if self.limit is None else self.limit
        done: list[Conflict] = []
        for conflict in conflicting:
            old = cloned.module(conflict.unit, conflict.number)
            if cloned.extra_parameters + _size(old) > share * limit:
                continue
            new = cloned.split(conflict.unit, conflict.number, conflict.leaving)
            if optimizer is not None:
                _inherit(optimizer, old, new)
            done.append(conflict)
            if self.at_once and len(done) == self.at_once:
                break
        return done


def pair_gradients(
    model: nn.Module, cloned: ClonedUnits, batches: Batches, label_smoothing: float = 0.0
) -> list[Tensor]:
    """Return each pair's gradient for each unit: float32 [P, N] a unit, of the copy that the pair uses.

    The gradient is that of the pair's summed loss, in evaluation mode: no random number is drawn. The
    gradients that the model holds are dropped.
    """
    units = range(len(cloned.clones.units))
    rows: list[list[Tensor]] = [[] for _ in units]
    try:
        with eval_mode(model):
            for index, pair in enumerate(cloned.trained):
                model.zero_grad()
                for batch in batches(pair):
                    labels_BT = batch.pop("labels")
                    token_losses(model(**batch).logits, labels_BT, label_smoothing).sum().backward()
                for unit in units:
                    parameters = cloned.module(unit, cloned.clones.numbers[unit][index]).parameters()
                    rows[unit].append(torch.cat([_gradient(weight) for weight in parameters]))
    finally:
        model.zero_grad()
    return [torch.stack(row) for row in rows]


def conflicts(cloned: ClonedUnits, gradients: Sequence[Tensor]) -> list[Conflict]:
    """Return all that could be split by what `pair_gradients` returned, the most interference first."""
    disputed = []
    for unit, gradients_PN in enumerate(gradients):
        cosines_PP = cosines(gradients_PN)
        for number, users in cloned.clones.users(unit).items():
            if len(users) > 1:
                among = cosines_PP[users][:, users]
                _, leave = part_in_two(among)
                worst = -among[~torch.eye(len(users), dtype=torch.bool)].min().item()
                disputed.append(Conflict(worst, unit, number, tuple(users[i] for i in leave)))
    return sorted(disputed, key=lambda conflict: (-conflict.interference, conflict.unit, conflict.number))


def cosines(gradients_PN: Tensor) -> Tensor:
    """Return the cosine between each two gradients, float64 [P, P]; 0 where one of them is all zeros."""
    unit_PN = nn.functional.normalize(gradients_PN.double(), dim=1, eps=1e-300)
    return unit_PN @ unit_PN.T


def part_in_two(cosines_PP: Tensor) -> tuple[list[int], list[int]]:
    """Return two sets of pairs, by agglomerative clustering: average linkage of the distance 1 − cosine.

    The first set holds the first pair.
    """
    distances_PP = (1 - cosines_PP).clamp(min=0)  # a rounded cosine may exceed 1
    distances = distances_PP[tuple(torch.triu_indices(*cosines_PP.shape, offset=1))]
    set_P = cut_tree(linkage(distances.numpy(), "average"), n_clusters=2)[:, 0]
    first, second = ((set_P == number).nonzero()[0].tolist() for number in (set_P[0], 1 - set_P[0]))
    return first, second


def _gradient(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        return torch.zeros(parameter.numel())
    return parameter.grad.detach().flatten().float().cpu()


def _inherit(optimizer: Optimizer, old: nn.Module, new: nn.Module) -> None:
    """Let the optimizer train a copy as it trains what it is a copy of."""
    for weight, clone in zip(old.parameters(), new.parameters(), strict=True):
        for group in optimizer.param_groups:
            # At the end of its group, where a Trainer that resumes puts it too.
            if any(weight is each for each in group["params"]):
                group["params"].append(clone)
        if weight in optimizer.state:
            optimizer.state[clone] = copy.deepcopy(optimizer.state[weight])


def _size(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def _most(cloned: ClonedUnits) -> int:
    """Return how many weights there would be more if no two pairs shared a unit."""
    units = sum(_size(cloned.module(unit, 0)) for unit in range(len(cloned.clones.units)))
    return units * (len(cloned.trained) - 1)
