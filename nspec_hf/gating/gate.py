"""NeuronGate: lets each row of a batch run with the neurons of its own language pair.

A gate touches a model in three places, all of them counted by `status()` and given back exactly by
`detach()`: the `forward` of every gated linear (what happens there is the mode, see `MODES`), hooks on the
modules that are called from outside, which take `pair_ids` out of the batch, and `generate`, which would
refuse the argument. It adds no parameter, no buffer and no key: state dict, config and `save_pretrained`
stay those of the plain model.
"""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

from torch import nn

from nspec_hf.core import (
    ArtifactError,
    ConfigError,
    Pair,
    TrainingSetupError,
    UnknownPairError,
    in_short,
    languages_of,
    pair_or_both,
    pivot_of,
)
from nspec_hf.gating.attachment import Attachment
from nspec_hf.gating.config import (
    MADE_BY_FILE,
    GateConfig,
    GateMode,
    facts_of_training,
    stated_config,
)
from nspec_hf.gating.entry_points import TakenOver
from nspec_hf.gating.mask_mode import GatedSite
from nspec_hf.gating.routing import Routing
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import find_sites, plain_model, weight_fingerprint

MODES: dict[str, type[GatedSite]] = {
    mode: import_module(f"nspec_hf.gating.{mode}_mode").SITE for mode in get_args(GateMode)
}
"""What each mode does at a site: `SITE` of the file with its name. `GateMode` is the list of the modes."""

MASKS_FOLDER = "nspec_masks"
"""Where a checkpoint keeps its masks."""


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
            "pairs": f"{len(self.pairs)}: {in_short(self.pairs)}",
            "density": f"{self.density:.3f}",
            "route": self.route,
            "weights": self.weights,
            **({"slices": self.slices} if self.slices else {}),
        }
        return "\n".join(f"{name:<9} {text}" for name, text in lines.items())


class NeuronGate(Attachment):
    """Applies masks to a model.

        gate = NeuronGate(model, masks)
        with gate:
            model(**batch, pair_ids=pair_ids)        # index into masks.pairs, one a row
            model.generate(**batch, pair_ids=pair_ids)
            gate.use("en-de")                        # for all calls without pair_ids

    `masks` are those that it applies now, in the order of `pair_ids`; `own_masks` those that it was given,
    without pairs that it has composed since.

    Trap: under gradient checkpointing the backward pass runs layers again, so it must happen before
    `detach`; the gate raises otherwise.

    Args:
        model: A Hugging Face model; wrappers of DDP, `torch.compile` and PEFT are looked through.
        masks: Which neurons each pair keeps.
        config: Mode, meaning of silence, zero-shot pairs. None: as in the training of the model, where the
            folder that it was loaded from says that it had these masks; else the defaults.

    Raises:
        SiteMismatchError: If the masks name other sites than the model has, or other widths.
        UnsupportedModelError: If the model's neurons cannot be found.
        ConfigError: If the mode is not there, or masks or config are something else.
    """

    def __init__(self, model: nn.Module, masks: NeuronMasks, config: GateConfig | None = None) -> None:
        """Check that masks and model fit; the model is not touched before `attach`."""
        if not isinstance(masks, NeuronMasks) or not isinstance(config, GateConfig | None):
            raise ConfigError(
                "a gate takes NeuronMasks (NeuronMasks.from_pretrained reads saved ones) and a GateConfig, "
                f"got {type(masks).__name__} and {type(config).__name__}"
            )
        plain = plain_model(model)
        self.masks = self.own_masks = masks
        self.config = config or _as_in_training(plain, masks) or GateConfig()
        model_sites = find_sites(plain, {site.kind for site in masks.sites})
        masks.check_model(model_sites)
        own = {site: masks.keep.at(site.name) for site in model_sites if site.name in masks.keep}
        self._dense_sites = len(model_sites) - len(own)
        routing = Routing(masks.pairs)
        self._sites = MODES[self.config.mode].at_all(plain, own, routing, self.config)
        super().__init__(plain, routing, self._sites, [site.name for site in own])

    @property
    def one_pair_a_batch(self) -> bool:
        """Whether it is faster on batches of one pair each."""
        return self.config.mode == "slice"

    @property
    def parts_by_site(self) -> list[tuple[str, TakenOver]]:
        """What it does inside the model, each with its site's name: for an attachment that does more."""
        return [(site.site.name, site) for site in self._sites]

    def status(self) -> GateStatus:
        """Return what the gate is doing; reads all gated weights, so not for every step."""
        in_place = self.in_place
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
            route=self.routing.in_words(),
            weights=self._compare_weights(),
            slices=next((site.facts for site in self._sites if site.facts), ""),
        )

    @property
    def composes_pairs(self) -> bool:
        """Whether the masks of other pairs are composed."""
        return self.config.zero_shot == "compose"

    def knows(self, pair: str) -> bool:
        """Return whether the pair has masks, or they can and may be composed."""
        return pair in self.masks or composes(self.masks, pair, self.config)

    def include(self, pair: str) -> int:
        """Return the index of a pair, once its masks are composed where that is wanted."""
        return self.include_all([pair])[0]

    def include_all(self, pairs: Iterable[str]) -> list[int]:
        """Return the indices of pairs; the masks of those that have none are composed together."""
        pairs = [pair_or_both(pair) for pair in pairs]  # one that is named in two ways is composed once
        with self.routing.lock:
            new = [pair for pair in dict.fromkeys(pairs) if pair not in self.masks]
            if new and self.config.zero_shot == "compose":
                self._take(self.masks.compose(new, pivot=self.config.pivot))
        try:
            return [self.masks.index(pair) for pair in pairs]
        except UnknownPairError as error:
            hint = f"; GateConfig(zero_shot='compose') composes its masks through {self.config.pivot!r}"
            raise UnknownPairError(f"{error}{hint}") from None

    def facts(self) -> dict[str, Any]:
        """Return the fingerprint of its own masks and how they act, whichever pairs were composed of them."""
        return {"masks": self.own_masks.fingerprint(), "gate": dataclasses.asdict(self.config)}

    def measures(self) -> dict[str, float]:
        """Return the share of neurons kept, over all pairs and gated sites."""
        return {"density": round(self.masks.density(), 4)}

    def save_beside(self, checkpoint: Path) -> None:
        """Put its own masks into a checkpoint."""
        self.own_masks.save_pretrained(checkpoint / MASKS_FOLDER)

    def check_beside(self, checkpoint: Path) -> None:
        """Check that a checkpoint was trained with the gate's masks; one that holds none passes.

        Raises:
            TrainingSetupError: If it was not, or its masks cannot be read.
        """
        folder, own = checkpoint / MASKS_FOLDER, self.own_masks
        if not folder.is_dir():
            return
        try:
            saved = NeuronMasks.from_pretrained(folder)
        except (ArtifactError, FileNotFoundError) as error:
            raise TrainingSetupError(
                f"the masks of {checkpoint} cannot be read: {error}. Go on from an older checkpoint, or "
                f"delete {folder} if you know that it was trained with the gate's masks"
            ) from error
        # Earlier versions saved the masks that had been composed in addition.
        if not set(own.pairs) <= set(saved.pairs) or saved.subset(own.pairs) != own:
            raise TrainingSetupError(
                f"{checkpoint} was trained with other masks ({saved.fingerprint()}) than the gate has "
                f"({own.fingerprint()}); load those with NeuronMasks.from_pretrained({str(folder)!r})"
            )

    def replace_masks(self, masks: NeuronMasks) -> None:
        """Go on with other masks for the same pairs and sites, as when they are selected anew in training.

        Zero-shot pairs that the gate has composed, and that the new masks lack, are composed of those anew.

        Raises:
            ConfigError: If pairs or sites differ.
        """
        own, count = self.own_masks.pairs, len(masks.pairs)
        if count < len(self.masks.pairs) and masks.pairs == self.masks.pairs[:count]:
            masks = masks.compose_like(self.masks)
        if masks.pairs != self.masks.pairs or set(masks.keep) != set(self.masks.keep):
            raise ConfigError("other masks must be for the same pairs and sites; make a new gate for others")
        self._take(masks)
        self.own_masks = masks if masks.pairs == own else masks.subset(own)

    def _take(self, masks: NeuronMasks) -> None:
        for site in self._sites:
            site.take_masks(masks.keep.at(site.site.name))
        self.masks, self.routing.pairs = masks, masks.pairs

    def _compare_weights(self) -> str:
        counted = self.masks.recipe.weight_fingerprint
        if not counted:
            return "the masks do not say which weights they were counted on"
        now = weight_fingerprint(self.model)
        if now == counted:
            return f"as counted ({counted})"
        return f"changed since the masks were counted ({counted}, now {now}), as training does"


def composes(masks: NeuronMasks, pair: str, config: GateConfig) -> bool:
    """Return whether a pair that masks lack is to be composed, and they hold both halves of it."""
    pair, pivot = Pair(pair), pivot_of(languages_of(masks.pairs), config.pivot)
    halves = Pair(pair.source, pivot), Pair(pivot, pair.target)
    return config.zero_shot == "compose" and all(half in masks for half in halves)


def _as_in_training(model: nn.Module, masks: NeuronMasks) -> GateConfig | None:
    """Return how masks acted in the training of a model; None where its folder says nothing of these."""
    name = str(getattr(model, "name_or_path", ""))  # empty where it was made from a config
    facts = facts_of_training(Path(name)) if name else None
    if not isinstance(facts, dict) or facts.get("masks") != masks.fingerprint():
        return None
    return stated_config(facts.get("gate"), Path(name) / MADE_BY_FILE)
