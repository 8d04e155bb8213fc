"""NeuronGate: lets each row of a batch run with the neurons of its own language pair.

A gate touches a model in three places, all of them counted by `status()` and given back exactly by
`detach()`: the `forward` of every gated linear (what happens there is the mode, see `MODES`), hooks on the
modules that are called from outside, which take `pair_ids` out of the batch, and `generate`, which would
refuse the argument. It adds no parameter, no buffer and no key: state dict, config and `save_pretrained`
stay those of the plain model.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from nspec_hf.config import GateConfig
from nspec_hf.doors import Door, RoutedGenerate, called_from_outside
from nspec_hf.errors import ConfigError, UnknownPairError
from nspec_hf.gradient import GradientSite
from nspec_hf.languages import LanguageTags, language_tags
from nspec_hf.masks import NeuronMasks
from nspec_hf.pairs import Pair
from nspec_hf.routing import Route, Routing, TokenReader
from nspec_hf.silence import GatedSite, MaskedSite
from nspec_hf.sites import find_sites, plain_model, weight_fingerprint
from nspec_hf.slicing import SlicedSite

MODES: dict[str, type[GatedSite]] = {
    "mask": MaskedSite,
    "slice": SlicedSite,
    "gradient": GradientSite,
}
"""What each mode does at a site."""


@dataclass(frozen=True, kw_only=True)
class GateStatus:
    """What a gate is doing; `print(gate.status())` shows it as a table."""

    attached: bool
    mode: str
    silence: str
    in_place: int
    """Replaced forwards, hooks and `generate` that are in place now."""
    expected: int
    """How many of them `attach` has put there."""
    gated_sites: int
    dense_sites: int
    """Sites of the same kinds that the masks do not hold."""
    pairs: tuple[Pair, ...]
    density: float
    """Share of neurons kept, over all pairs and gated sites."""
    route: str
    """Which pair the next rows belong to, and which the last ones belonged to."""
    weights: str
    """Whether the model has the weights that the masks were counted on."""
    slices: str = ""
    """Mode `slice`: pairs and memory in its cache, and the sites that it cannot slice."""

    def __str__(self) -> str:
        """Return one line a fact."""
        lines = {
            "gate": "attached" if self.attached else "not attached",
            "mode": f"{self.mode}, silence {self.silence}",
            "in place": f"{self.in_place} of {self.expected} (forwards, hooks, generate)",
            "sites": f"{self.gated_sites} gated, {self.dense_sites} dense",
            "pairs": f"{len(self.pairs)}: {', '.join(self.pairs)}",
            "density": f"{self.density:.3f}",
            "route": self.route,
            "weights": self.weights,
            **({"slices": self.slices} if self.slices else {}),
        }
        return "\n".join(f"{name:<9} {text}" for name, text in lines.items())


class NeuronGate:
    """Applies masks to a model.

        gate = NeuronGate(model, masks)
        with gate:
            model(**batch, pair_ids=pair_ids)        # index into masks.pairs, one a row
            model.generate(**batch, pair_ids=pair_ids)
            gate.use("en-de")                        # for all calls without pair_ids

    Trap: under gradient checkpointing the backward pass runs layers again, so it must happen before
    `detach`; the gate raises otherwise.

    Args:
        model: A Hugging Face model; wrappers of DDP, `torch.compile` and PEFT are looked through.
        masks: Which neurons each pair keeps.
        config: Mode, meaning of silence, zero-shot pairs.

    Raises:
        SiteMismatchError: If the masks name other sites than the model has, or other widths.
        UnsupportedModelError: If the model's neurons cannot be found.
        ConfigError: If the mode is not there.
    """

    def __init__(self, model: nn.Module, masks: NeuronMasks, config: GateConfig | None = None) -> None:
        """Check that masks and model fit; the model is not touched before `attach`."""
        self.model = plain_model(model)
        self.masks = masks
        self.config = config or GateConfig()
        if self.config.mode not in MODES:
            raise ConfigError(f"mode {self.config.mode!r} is not there; modes are: {', '.join(MODES)}")
        found = find_sites(self.model, {site.kind for site in masks.sites})
        masks.check_model(found)
        sites = [site for site in found if site.name in masks.keep]
        self._dense_sites = len(found) - len(sites)
        self._routing = Routing(masks.pairs)
        action = MODES[self.config.mode]
        self._sites = action.at_all(self.model, sites, masks.keep, self._routing, self.config)
        self._doors = [
            Door(module, self._routing, self, outermost=module is self.model)
            for module in called_from_outside(self.model, sites)
        ]
        self._generate: RoutedGenerate | None = None
        self._entered: list[bool] = []
        self.attached = False
        """Whether the gate is on the model."""

    def attach(self) -> "NeuronGate":
        """Put the gate on the model; a gate that is on it already stays.

        Raises:
            ConfigError: If another gate is on the model.
            UnsupportedModelError: If the mode cannot act on a layer; then nothing is changed.
        """
        if self.attached:
            return self
        other = attached_gate(self.model)
        if other is not None:
            raise ConfigError(
                f"this {type(self.model).__name__} has a gate already, for {', '.join(other.masks.pairs)}; "
                "take it off first: attached_gate(model).detach()"
            )
        try:
            for door in self._doors:
                door.open()
            for site in self._sites:
                site.attach()
            if callable(getattr(self.model, "generate", None)):
                self._generate = RoutedGenerate(self.model, self._routing)
        except BaseException:
            self.detach()
            raise
        self.attached = True
        return self

    def detach(self) -> None:
        """Take the gate off; the model is what it was before `attach`."""
        for door in self._doors:
            door.close()
        # In reverse: a down projection may be taken over for two sites, and the last one goes first.
        for site in reversed(self._sites):
            site.detach()
        if self._generate is not None:
            self._generate.give_back()
            self._generate = None
        self.attached = False

    def __enter__(self) -> "NeuronGate":
        """Attach, unless it is attached already."""
        self._entered.append(not self.attached)
        return self.attach()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Detach, if this `with` attached it."""
        if self._entered.pop():
            self.detach()

    def use(self, pair: str | None) -> None:
        """Take one pair for all calls that bring no `pair_ids`; None takes that back.

        Raises:
            UnknownPairError: If the pair has no mask and is not to be composed.
        """
        if pair is None:
            self._routing.choose(None)
            return
        index = self.pair_id(pair)
        device = self._sites[0].keep_PF.device
        self._routing.choose(Route(torch.tensor([index], device=device), index, f"gate.use({str(pair)!r})"))

    def read_languages(
        self, tokenizer: PreTrainedTokenizerBase | LanguageTags, codes: Mapping[str, str] | None = None
    ) -> None:
        """Read each row's pair from its language tokens, where neither `pair_ids` nor `use` tells it.

        Args:
            tokenizer: The model's tokenizer.
            codes: Languages of the masks' pairs → codes of the tokenizer, where they differ.

        Raises:
            ConfigError: If its family does not show both languages (Marian, MADLAD, T5 …).
            UnknownLanguageError: If it has no tag for a language of the masks.
        """
        tags = tokenizer if isinstance(tokenizer, LanguageTags) else language_tags(tokenizer, codes)
        self._routing.reader = TokenReader(tags, self.masks.pairs, self.pair_id)

    @property
    def last_rows(self) -> Tensor | None:
        """Pair index of each row of the last forward pass, [B], or [1] where all share one; None before."""
        return None if self._routing.last is None else self._routing.last.rows

    @property
    def routes_itself(self) -> bool:
        """Whether the gate knows pairs without `pair_ids`: from `use` or from language tokens."""
        return self._routing.chosen is not None or self._routing.reader is not None

    def status(self) -> GateStatus:
        """Return what the gate is doing; reads all gated weights, so not for every step."""
        in_place = [there for part in (*self._doors, *self._sites) for there in part.in_place]
        if self._generate is not None:
            in_place.append(self._generate.in_place)
        return GateStatus(
            attached=self.attached,
            mode=self.config.mode,
            silence=self.config.silence,
            in_place=sum(in_place),
            expected=len(in_place),
            gated_sites=len(self._sites),
            dense_sites=self._dense_sites,
            pairs=tuple(self.masks.pairs),
            density=float(self.masks.density()),
            route=self._routing.in_words(),
            weights=self._compare_weights(),
            slices=next((site.facts for site in self._sites if site.facts), ""),
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> "NeuronGate":
        """Copy the gate with its model: a copied model has a gate of its own. The masks are shared."""
        twin = memo[id(self)] = type(self).__new__(type(self))
        memo[id(self.masks)] = self.masks
        for name, value in vars(self).items():
            setattr(twin, name, copy.deepcopy(value, memo))
        return twin

    def pair_id(self, pair: str) -> int:
        """Return the index of a pair, composing its masks where that is wanted."""
        if pair not in self.masks and self.config.zero_shot == "compose":
            self.masks = self.masks.compose(pair, pivot=self.config.pivot)
            self._routing.pairs = self.masks.pairs
            for site in self._sites:
                site.take_masks(self.masks.keep[site.site.name])
        try:
            return self.masks.index(pair)
        except UnknownPairError as error:
            hint = f"; GateConfig(zero_shot='compose') composes its masks through {self.config.pivot!r}"
            raise UnknownPairError(f"{error}{hint}") from None

    def _compare_weights(self) -> str:
        counted = self.masks.recipe.weight_fingerprint
        if not counted:
            return "the masks do not say which weights they were counted on"
        now = weight_fingerprint(self.model, find_sites(self.model))
        if now == counted:
            return f"as counted ({counted})"
        return f"changed since the masks were counted ({counted}, now {now}), as training does"


def attached_gate(model: nn.Module) -> NeuronGate | None:
    """Return the gate that is on a model, or None; a deep copy of a gated model has a gate of its own."""
    for hook in plain_model(model)._forward_pre_hooks.values():
        door = getattr(hook, "__self__", None)
        if isinstance(door, Door):
            return door.holder
    return None
