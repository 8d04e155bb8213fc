"""Attachment: what is put onto a model so that each row of a batch runs as its own language pair does.

The gate is one (`gate.py`: each pair's own neurons); adapters, own attention weights and the other compared
systems are others (`systems/`). All of them share what stands here: where `pair_ids` come in, the route, and
exact removal. What happens inside the layers is the business of an attachment's parts.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from nspec_hf.core import ConfigError, Pair, UnknownPairError, UnsupportedModelError, in_short
from nspec_hf.data import LanguageTags, as_tags
from nspec_hf.gating.entry_points import Home, TakenOver, entries_of
from nspec_hf.gating.route import Route, TokenReader
from nspec_hf.gating.routing import Routing
from nspec_hf.recording import ATTACHED, OWN_WEIGHTS, plain_model


class Attachment:
    """Makes each row of a batch run as its pair does, from `attach` to `detach`.

    Weights that `save_pretrained` leaves out (see `freeze_unsaved`) do not train meanwhile.

    Args:
        model: A Hugging Face model; wrappers of DDP, `torch.compile` and PEFT are looked through.
        pairs: In the order that `pair_ids` index.
        routing: The same that the parts ask for each row's pair.
        parts: What it does inside the model.
        inside: Dotted names of the modules that the parts act on; from these follows where calls enter.
        own: Weights that the model holds while it is on it, under the name `OWN_WEIGHTS`, so that optimizer,
            checkpoint and saved model have them; None where there are none.
    """

    def __init__(
        self,
        model: nn.Module,
        routing: Routing,
        parts: Sequence[TakenOver],
        inside: Iterable[str],
        own: nn.Module | None = None,
    ) -> None:
        """Remember the parts; the model is not touched before `attach`."""
        self.model = plain_model(model)
        self.own = own
        self.routing = routing
        routing.index_of = self.include_all
        # Entries first: the modules that they are on may be wrapped, the ones inside may not.
        self._parts: list[TakenOver] = [*entries_of(self.model, inside, routing, self.check_in_place), *parts]
        self._homes: list[list[Home]] = []  # of what each part has taken over, while it is on the model
        self._entered: list[bool] = []
        self._frozen: list[nn.Parameter] = []

    one_pair_a_batch = False
    """Whether it is faster on batches of one pair each."""

    @property
    def leaves_parameters_unused(self) -> bool:
        """Whether a batch may leave parameters without a gradient, which DDP must be told."""
        return self.own is not None

    @property
    def attached(self) -> bool:
        """Whether it is on the model."""
        return vars(self.model).get(ATTACHED) is self

    @property
    def pairs(self) -> list[Pair]:
        """The pairs that it knows, in the order that `pair_ids` index."""
        return list(self.routing.pairs)

    def attach(self) -> Self:
        """Put it on the model; what is on it already stays.

        Raises:
            ConfigError: If another attachment is on the model.
            UnsupportedModelError: If a part cannot act on a layer; then nothing is changed.
        """
        if self.attached:
            return self
        other = attachment_of(self.model)
        if other is not None:
            raise ConfigError(
                f"this {type(self.model).__name__} has a gate already, for {in_short(other.pairs)}; "
                "take it off first: attachment_of(model).detach()"
            )
        try:
            for part in self._parts:
                part.attach()
            paths = {id(module): path for path, module in self.model.named_modules()}
            self._homes = [
                [Home(self.model, paths[id(module)]) for module in part.modules] for part in self._parts
            ]
        except BaseException:
            self.detach()
            raise
        setattr(self.model, ATTACHED, self)
        self._frozen = freeze_unsaved(self.model)
        if self.own is not None:
            # The model may have been moved since the weights were made; "meta" is no place to be at.
            device = next(self.model.parameters()).device
            if device.type != "meta":
                self.own.to(device)
            self.model.add_module(OWN_WEIGHTS, self.own)
        return self

    def detach(self) -> None:
        """Take it off; the model is what it was before `attach`."""
        # In reverse: one module may be taken over for two parts, and the last one goes first.
        for part in reversed(self._parts):
            part.detach()
        for weight in self._frozen:
            weight.requires_grad_(True)
        self._frozen = []
        self._homes = []
        if self.attached:
            delattr(self.model, ATTACHED)
        if self.own is not None and self.model._modules.get(OWN_WEIGHTS) is self.own:
            del self.model._modules[OWN_WEIGHTS]

    def __enter__(self) -> Self:
        """Attach, unless it is attached already."""
        self._entered.append(not self.attached)
        return self.attach()

    def __exit__(self, *error: object) -> None:
        """Detach, if this `with` attached it."""
        if self._entered.pop():
            self.detach()

    def use(self, pair: str | None) -> None:
        """Take one pair for all calls that bring no `pair_ids`; None takes that back.

        Raises:
            UnknownPairError: If it does not know the pair.
        """
        if pair is None:
            self.routing.choose(None)
            return
        index = self.include(pair)
        # Weights that accelerate offloads are nowhere until their layer runs, and a route follows its rows.
        device = next(self.model.parameters()).device
        rows = torch.tensor([index], device="cpu" if device.type == "meta" else device)
        self.routing.choose(Route(rows, index, f"gate.use({str(pair)!r})"))

    def read_languages(self, tokenizer: PreTrainedTokenizerBase | LanguageTags) -> None:
        """Read each row's pair from its language tokens, where neither `pair_ids` nor `use` tells it.

        Args:
            tokenizer: The model's tokenizer, or `LanguageTags` of it where your codes differ from its own.

        Raises:
            ConfigError: If its family does not show both languages (Marian, MADLAD, T5 …).
            UnknownLanguageError: If it has no tag for a language of the pairs.
        """
        self.routing.reader = TokenReader(as_tags(tokenizer), self.pairs, self.include_all)

    @property
    def composes_pairs(self) -> bool:
        """Whether pairs that have nothing of their own are composed of others, where `knows` says so."""
        return False

    def knows(self, pair: str) -> bool:
        """Return whether rows of that pair can be run: it was trained, or all that it needs is there."""
        return pair in self.pairs

    def include(self, pair: str) -> int:
        """Return the index of a pair; one that is new, but that it knows how to run, is added as the last.

        Raises:
            UnknownPairError: If it does not know the pair.
        """
        with self.routing.lock:
            pairs = self.pairs
            if pair not in pairs and self.knows(pair):
                self.routing.pairs = pairs = [*pairs, Pair(pair)]
        if pair not in pairs:
            raise UnknownPairError(f"there is no pair {str(pair)!r}; there are: {in_short(pairs)}")
        return pairs.index(Pair(pair))

    def include_all(self, pairs: Iterable[str]) -> list[int]:
        """Return the indices of several pairs, as `include` does of one."""
        return [self.include(pair) for pair in pairs]

    @property
    def last_rows(self) -> Tensor | None:
        """Pair index of each row of the last forward pass, [B], or [1] where all share one; None before."""
        return None if self.routing.last is None else self.routing.last.rows

    @property
    def routes_itself(self) -> bool:
        """Whether it knows pairs without `pair_ids`: from `use` or from language tokens."""
        return self.routing.chosen is not None or self.routing.reader is not None

    @property
    def in_place(self) -> list[bool]:
        """For each replaced forward, hook and `generate` that `attach` put there, whether it still is."""
        parts = zip(self._parts, self._displaced(), strict=False)
        return [there and not displaced for part, displaced in parts for there in part.in_place]

    def check_in_place(self) -> None:
        """Check that the layers that it acts on are still those of the model.

        Raises:
            UnsupportedModelError: If another library has wrapped or replaced one since, as PEFT does.
        """
        displaced = dict.fromkeys(path for paths in self._displaced() for path in paths)
        if displaced:
            raise UnsupportedModelError(
                f"after the {type(self).__name__} was attached, layers were wrapped or replaced: "
                f"{', '.join(displaced)}. It does not act on the new ones; take it off, attachment_of(model)."
                "detach(), then make and attach one for the model as it is now, e.g. "
                "NeuronGate(get_peft_model(model, config), masks)"
            )

    def _displaced(self) -> list[list[str]]:
        """Return the names of what each part has lost; nothing is taken over, and lost, when it is off."""
        return [
            [*part.displaced, *(home.path for home in homes if not home.holds)]
            for part, homes in zip(self._parts, self._homes, strict=False)
        ]

    def facts(self) -> dict[str, Any]:
        """Return what tells it from others beyond the weights, as plain values: for results and caches."""
        raise NotImplementedError

    def measures(self) -> dict[str, float]:
        """Return what a training log says of it."""
        return {}

    def save_beside(self, checkpoint: Path) -> None:
        """Put into a checkpoint's folder what must be there again when training goes on."""

    def check_beside(self, checkpoint: Path) -> None:
        """Check that a checkpoint was trained with the same attachment; one that holds none passes.

        Raises:
            TrainingSetupError: If it was not.
        """

    def shape_as(self, folder: Path) -> None:
        """Take the structure that it had when a folder's weights were saved; called before they are loaded.

        For attachments whose structure changes in training; most have only one.
        """


def freeze_unsaved(model: nn.Module) -> list[nn.Parameter]:
    """Freeze what `save_pretrained` leaves out: trained, it would differ in the model that is loaded.

    These are Marian's positions, which are sines; transformers 5.24 lets gradients into them.

    Returns:
        What was not frozen before.
    """
    unsaved = getattr(model, "_keys_to_ignore_on_save", None) or ()
    weights = [
        weight for name, weight in model.named_parameters() if name in unsaved and weight.requires_grad
    ]
    for weight in weights:
        weight.requires_grad_(False)
        weight.grad = None  # an optimizer would take a step with what is left there
    return weights


def attachment_of(model: nn.Module) -> Attachment | None:
    """Return what is on a model, or None; a deep copy of a model that has one has one of its own."""
    return vars(plain_model(model)).get(ATTACHED)


@contextmanager
def set_aside(model: nn.Module) -> Iterator[None]:
    """Take what is on a model off, and put it on again in the end."""
    other = attachment_of(model)
    if other is not None:
        other.detach()
    try:
        yield
    finally:
        if other is not None:
            other.attach()
