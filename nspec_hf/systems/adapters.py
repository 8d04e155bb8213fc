"""Adapters: small layers of a pair's own, or of a language family's, put into a base.

Shape letters: R = rows, L = tokens, D = model width, K = width of the bottleneck.

An adapter is x + U·ReLU(V·LayerNorm(x)) (Bapna & Firat, EMNLP 2019, "Simple, Scalable Adaptation for Neural
Machine Translation"): 2·D·K weights, K + D biases, 2·D of the norm. U starts at zero, so that a new adapter
changes nothing. Where they stand:

- After the layer, on its output, as in that paper.
- With `per_layer` 2 also after attention: on what the layer's last attention puts out, before it is added to
  what goes around it. In a decoder layer that is the attention to the encoder; the self-attention has none.
  Only so do 6 + 6 layers hold the 24 adapters of a direction that Tan et al. (2024) count: 3.2 M parameters
  of width 512, 6.4 M of width 1,024.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nspec_hf.core import ConfigError, Pair, warn
from nspec_hf.gating import OWN_WEIGHTS, Attachment, Routing
from nspec_hf.recording import find_sites, linear_at
from nspec_hf.systems.families import Families, found_families, named_families
from nspec_hf.systems.parts.clones import layer_path
from nspec_hf.systems.parts.rowwise import Key, KeyOf, Keys, OwnModules, RowwiseAttachment, RowwiseOutput
from nspec_hf.systems.parts.zero_shot import StandIns
from nspec_hf.systems.run import Run
from nspec_hf.systems.system import System


class Adapter(nn.Module):
    """x + U·ReLU(V·LayerNorm(x)), with biases.

    Args:
        width: D.
        bottleneck: K.
    """

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.down = nn.Linear(width, bottleneck)
        self.up = nn.Linear(bottleneck, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return what is put in the place of x, [R, L, D]."""
        return x + self.up(torch.relu(self.down(self.norm(x))))


@dataclass(frozen=True)
class Place:
    """A module whose output goes through an adapter."""

    name: str
    """Its dotted path."""
    side: str
    """`encoder` or `decoder`."""
    width: int
    """D of its output."""


def adapter_places(model: nn.Module, per_layer: int) -> list[Place]:
    """Return where adapters stand, layer by layer; see the head of this file.

    Raises:
        UnsupportedModelError: If the layers have no feed-forward block or no attention of a known shape.
    """
    layers = {layer_path(site.name): site for site in find_sites(model, ("ffn",))}
    behind = {
        name: [Place(name, site.side, linear_at(model, site.down).out_features)]
        for name, site in layers.items()
    }
    if per_layer == 2:
        ends = (".out_proj", ".o_proj", ".o")
        outputs = [site for site in find_sites(model, ("attention",)) if site.name.endswith(ends)]
        # In forward order, so that a layer's last attention is what remains.
        last = {layer_path(site.name): Place(site.name, site.side, site.width) for site in outputs}
        behind = {name: [last[name], *places] for name, places in behind.items()}
    return [place for places in behind.values() for place in places]


class Adapters:
    """Makes attachments of adapters for one shape.

    Args:
        pairs: The trained pairs, in the order that `pair_ids` index.
        encoder_key: Pair → whose adapters its rows have in the encoder; a string, or None for no adapter.
        decoder_key: The same in the decoder.
        bottleneck: K.
        per_layer: 1 or 2.
        seed: Of new adapters.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        encoder_key: KeyOf,
        decoder_key: KeyOf,
        bottleneck: int,
        per_layer: int,
        seed: int = 1,
    ) -> None:
        self.pairs = list(pairs)
        self._key_of = {"encoder": encoder_key, "decoder": decoder_key}
        self._trained = {side: _distinct(map(key, self.pairs)) for side, key in self._key_of.items()}
        self._bottleneck, self._per_layer, self._seed = bottleneck, per_layer, seed

    def on(self, model: PreTrainedModel) -> RowwiseAttachment:
        """Return new adapters for a model, not attached yet."""
        places = {place.name: place for place in adapter_places(model, self._per_layer)}
        weight = next(model.parameters())
        own = OwnModules(
            {
                key: [name for name, place in places.items() if key in self._trained[place.side]]
                for key in _distinct(self._trained["encoder"] + self._trained["decoder"])
            },
            lambda name: Adapter(places[name].width, self._bottleneck).to(weight.device, weight.dtype),
            self._seed,
        )
        routing = Routing(self.pairs)
        keys = {side: Keys(routing, key_of) for side, key_of in self._key_of.items()}
        parts = [
            RowwiseOutput(model.get_submodule(name), keys[place.side], partial(_through, own.at(name)))
            for name, place in places.items()
        ]
        return RowwiseAttachment(model, routing, parts, places, own, self.knows, self.description)

    def knows(self, pair: Pair) -> bool:
        """Return whether all adapters that a pair needs are trained with other pairs."""
        return all(key_of(pair) in self._trained[side] for side, key_of in self._key_of.items())

    @property
    def description(self) -> dict[str, Any]:
        """Plain values that tell these adapters from others."""
        shape = {"bottleneck": self._bottleneck, "per_layer": self._per_layer}
        return {"adapters": shape, "of": {side: list(keys) for side, keys in self._trained.items()}}


@dataclass(frozen=True, kw_only=True)
class PairAdapters(System):
    """Language-pair adapters (Bapna & Firat 2019), as compared with by Tan et al. 2024 and Xie et al. 2021.

    The settings of Tan et al. are the defaults; `per_layer` 1 alone gives those of Xie et al. (12.74 M for
    eight directions of width 512) and, with `frozen`, those of Bapna & Firat. Not in the papers: a pair that
    was not trained has the encoder adapters of source → pivot and the decoder adapters of pivot → target.
    """

    name: ClassVar[str] = "pair_adapters"
    source: ClassVar[str] = "Bapna & Firat 2019, language-pair adapters"

    bottleneck: int = 128
    """K, the width inside an adapter."""

    per_layer: Literal[1, 2] = 2
    """Adapters a layer: 1 after it, 2 also after attention."""

    frozen: bool | None = None
    """Whether only adapters are trained, in the frozen base; else adapters and model are trained together
    from scratch. None: frozen for two a layer (Tan et al.), from scratch for one (Xie et al.)."""

    @property
    def from_scratch(self) -> bool:
        """Whether model and adapters are trained together from the beginning."""
        return not (self.per_layer == 2 if self.frozen is None else self.frozen)

    def check(self, run: Run) -> None:
        """Refuse shapes that are none."""
        _check_shape(self.bottleneck, self.per_layer)

    def attach(self, model: PreTrainedModel, run: Run) -> Attachment:
        """Put each pair's adapters on the model."""
        whose = partial(_of_pair, StandIns.of(run.pairs, run.config.data.pivot))
        shape = (self.bottleneck, self.per_layer, run.seed)
        adapters = Adapters(run.pairs, partial(whose, "encoder"), partial(whose, "decoder"), *shape)
        return adapters.on(model).attach()

    def freeze(self, model: PreTrainedModel) -> None:
        """Freeze the base, unless it is trained from scratch too."""
        if not self.from_scratch:
            freeze_base(model)


@dataclass(frozen=True, kw_only=True)
class FamilyAdapters(System):
    """Language-family adapters: related languages share adapters in a frozen base.

    Chronopoulou et al. 2023, "Language-Family Adapters for Low-Resource Multilingual Neural Machine
    Translation" (LoResMT). Families are those of `data.families`, and where there are none, those that the
    overlap of the base's specialized neurons shows (`families.py`). English, or whatever the pivot is,
    belongs to none: a pair with it has the adapters of the other language's family on both sides, as in the
    paper. A pair that was not trained has the encoder adapters of its source's family and the decoder
    adapters of its target's.
    """

    name: ClassVar[str] = "family_adapters"
    source: ClassVar[str] = "Chronopoulou et al. 2023, language-family adapters"
    extracts: ClassVar[bool] = True

    bottleneck: int = 512
    """K, the width inside an adapter."""

    per_layer: Literal[1, 2] = 1
    """Adapters a layer: 1 after it, 2 also after attention."""

    families: int | None = None
    """How many families the overlap tree is cut into, where `data.families` is empty; None cuts it where the
    distances of its joins jump most."""

    def check(self, run: Run) -> None:
        """Refuse shapes that are none, and families that leave a language out."""
        _check_shape(self.bottleneck, self.per_layer)
        data = run.config.data
        if data.families:
            named_families(data.families, run.pairs, data.pivot)
            if self.families is not None:
                warn("settings.families has no effect with data.families, which names them; leave one out")

    def prepare(self, model: PreTrainedModel, run: Run) -> Mapping[str, Any]:
        """Find the families, and keep them in the folder."""
        data = run.config.data
        if data.families:
            families = named_families(data.families, run.pairs, data.pivot)
        else:
            families = found_families(model, run, self.families)
        return {"families": families, "families_from": "data" if data.families else "overlap tree"}

    def attach(self, model: PreTrainedModel, run: Run) -> Attachment:
        """Put each family's adapters on the model."""
        data = run.config.data
        named = self.extraction(model, run)["families"]
        if data.families and named != named_families(data.families, run.pairs, data.pivot):
            raise ConfigError(
                f"{run.folder} was begun with other families ({named}) than data.families names now; give "
                "another folder (--work), or delete this one to begin anew"
            )
        families = Families(named, data.pivot)
        shape = (self.bottleneck, self.per_layer, run.seed)
        return Adapters(run.pairs, families.of_encoder, families.of_decoder, *shape).on(model).attach()

    def freeze(self, model: PreTrainedModel) -> None:
        """Freeze the base."""
        freeze_base(model)


def freeze_base(model: nn.Module) -> None:
    """Switch the gradients of all weights off but those of an attachment."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.startswith(f"{OWN_WEIGHTS}.")


def _check_shape(bottleneck: int, per_layer: int) -> None:
    if bottleneck < 1:
        raise ConfigError(f"bottleneck is a positive width, got {bottleneck}")
    if per_layer not in (1, 2):
        raise ConfigError(f"per_layer is 1 (after the layer) or 2 (also after attention), got {per_layer}")


# Not closures, whose modules would not be copied with their model.


def _through(adapters: Mapping[Key, nn.Module], rows: Tensor, key: Key) -> Tensor:
    return adapters[key](rows)


def _of_pair(stand_ins: StandIns, side: str, pair: Pair) -> str | None:
    """Return whose adapters a pair has: its own, or those of the pair that stands in for it."""
    return str(stand_ins.trained[stand_ins.at(pair, side)]) if stand_ins.knows(pair) else None


def _distinct(keys: Iterable[Key]) -> list[str]:
    return [str(key) for key in dict.fromkeys(keys) if key is not None]
