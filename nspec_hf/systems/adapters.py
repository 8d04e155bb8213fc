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
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nspec_hf.core import ConfigError, Pair, require, warn
from nspec_hf.gating import Attachment, Routing
from nspec_hf.recording import OWN_WEIGHTS, SIDES, Site, find_sites, linear_at
from nspec_hf.systems.families import family_of, found_families, named_families
from nspec_hf.systems.parts.clones import layer_path
from nspec_hf.systems.parts.rowwise import KeyOf, OwnModules, RowwiseAttachment, RowwiseOutput
from nspec_hf.systems.parts.zero_shot import StandIns
from nspec_hf.systems.run import Run
from nspec_hf.systems.system import System


class Adapter(nn.Module):
    """x + U·ReLU(V·LayerNorm(x)), with biases: `width` is D, `bottleneck` K."""

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


def adapter_places(model: nn.Module, per_layer: int) -> list[Site]:
    """Return the modules whose output, `width` wide, goes through an adapter, layer by layer.

    Raises:
        UnsupportedModelError: If the layers have no feed-forward block or no attention of a known shape.
    """
    layers = {layer_path(site.name): site for site in find_sites(model, ("ffn",))}
    behind = {
        name: [replace(site, name=name, width=linear_at(model, site.down).out_features)]
        for name, site in layers.items()
    }
    if per_layer == 2:
        ends = (".out_proj", ".o_proj", ".o")
        outputs = [site for site in find_sites(model, ("attention",)) if site.name.endswith(ends)]
        # In forward order, so that a layer's last attention is what remains.
        last = {layer_path(site.name): site for site in outputs}
        behind = {name: [last[name], *places] for name, places in behind.items()}
    return [place for places in behind.values() for place in places]


def adapters(
    model: PreTrainedModel,
    pairs: Sequence[Pair],
    key_of: Mapping[str, KeyOf],
    bottleneck: int,
    per_layer: int,
    seed: int = 1,
) -> RowwiseAttachment:
    """Return new adapters for a model, not attached yet.

    Args:
        model: The model.
        pairs: The trained pairs, in the order that `pair_ids` index.
        key_of: Side → whose adapters a pair's rows have there, a function of the pair; a string, or None for
            no adapter. A pair that was not trained is run where those that it needs were trained with others.
        bottleneck: K.
        per_layer: 1 or 2.
        seed: Of the new weights.
    """
    trained = {side: _distinct(map(key, pairs)) for side, key in key_of.items()}
    places = {place.name: place for place in adapter_places(model, per_layer)}
    weight = next(model.parameters())
    own = OwnModules(
        {
            key: [name for name, place in places.items() if key in trained[place.side]]
            for key in _distinct(trained["encoder"] + trained["decoder"])
        },
        lambda name: Adapter(places[name].width, bottleneck).to(weight.device, weight.dtype),
        seed,
    )
    routing = Routing(list(pairs))
    parts = [
        RowwiseOutput(model.get_submodule(name), routing, key_of[place.side], own.at(name))
        for name, place in places.items()
    ]
    about = {"adapters": {"bottleneck": bottleneck, "per_layer": per_layer}, "of": trained}
    return RowwiseAttachment(model, routing, parts, places, own, partial(_all_there, key_of, trained), about)


@dataclass(frozen=True, kw_only=True)
class AdapterSystem(System):
    """Adapters in a base; whose they are is said by `keys`."""

    bottleneck: int = 128
    """K, the width inside an adapter."""

    per_layer: Literal[1, 2] = 2
    """Adapters a layer: 1 after it, 2 also after attention."""

    def check(self, run: Run) -> None:
        """Refuse shapes that are none."""
        require(self.bottleneck >= 1, f"bottleneck is a positive width, got {self.bottleneck}")
        require(
            self.per_layer in (1, 2),
            f"per_layer is 1 (after the layer) or 2 (also after attention), got {self.per_layer}",
        )

    def keys(self, model: PreTrainedModel, run: Run) -> Mapping[str, KeyOf]:
        """Return side → whose adapters a pair's rows have there; see `adapters`."""
        raise NotImplementedError

    def attach(self, model: PreTrainedModel, run: Run) -> Attachment:
        """Put the adapters on the model."""
        keys = self.keys(model, run)
        return adapters(model, run.pairs, keys, self.bottleneck, self.per_layer, run.seed).attach()

    def freeze(self, model: PreTrainedModel) -> None:
        """Freeze the base, unless it is trained from scratch too."""
        if not self.from_scratch:
            freeze_base(model)


@dataclass(frozen=True, kw_only=True)
class PairAdapters(AdapterSystem):
    """Language-pair adapters (Bapna & Firat 2019), as compared with by Tan et al. 2024 and Xie et al. 2021.

    The settings of Tan et al. are the defaults; `per_layer` 1 alone gives those of Xie et al. (12.74 M for
    eight directions of width 512) and, with `frozen`, those of Bapna & Firat. Not in the papers: a pair that
    was not trained has the encoder adapters of source → pivot and the decoder adapters of pivot → target.
    """

    name: ClassVar[str] = "pair_adapters"
    source: ClassVar[str] = "Bapna & Firat 2019, language-pair adapters"

    frozen: bool | None = None
    """Whether only adapters are trained, in the frozen base; else adapters and model are trained together
    from scratch. None: frozen for two a layer (Tan et al.), from scratch for one (Xie et al.)."""

    @property
    def from_scratch(self) -> bool:
        """Whether model and adapters are trained together from the beginning."""
        return not (self.per_layer == 2 if self.frozen is None else self.frozen)

    def keys(self, model: PreTrainedModel, run: Run) -> Mapping[str, KeyOf]:
        """Return each pair's own, or those of the pair that stands in for it."""
        whose = partial(_of_pair, StandIns(run.pairs, run.config.data.pivot))
        return {side: partial(whose, side) for side in SIDES}


@dataclass(frozen=True, kw_only=True)
class FamilyAdapters(AdapterSystem):
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

    per_layer: Literal[1, 2] = 1

    families: int | None = None
    """How many families the overlap tree is cut into, where `data.families` is empty; None cuts it where the
    distances of its joins jump most."""

    def check(self, run: Run) -> None:
        """Refuse shapes that are none, and families that leave a language out."""
        super().check(run)
        if _named(run) and self.families is not None:
            warn("settings.families has no effect with data.families, which names them; leave one out")

    def prepare(self, model: PreTrainedModel, run: Run) -> Mapping[str, Any]:
        """Find the families, and keep them in the folder."""
        named = _named(run)
        families = named or found_families(model, run, self.families)
        return {"families": families, "families_from": "data" if named else "overlap tree"}

    def keys(self, model: PreTrainedModel, run: Run) -> Mapping[str, KeyOf]:
        """Return the families of a pair's languages."""
        families, named = self.extraction(model, run)["families"], _named(run)
        if named and named != families:
            raise ConfigError(
                f"{run.folder} was begun with other families ({families}) than data.families names now; give "
                "another folder (--work), or delete this one to begin anew"
            )
        pivot = run.config.data.pivot
        return {side: partial(family_of, side=side, families=families, pivot=pivot) for side in SIDES}


def _named(run: Run) -> dict[str, str]:
    """Return the families that the experiment names; empty where it names none."""
    data = run.config.data
    return named_families(data.families, run.pairs, data.pivot) if data.families else {}


def freeze_base(model: nn.Module) -> None:
    """Switch the gradients of all weights off but those of an attachment."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.startswith(f"{OWN_WEIGHTS}.")


# Not closures, whose modules would not be copied with their model.


def _all_there(key_of: Mapping[str, KeyOf], trained: Mapping[str, Sequence[str]], pair: Pair) -> bool:
    """Return whether all adapters that a pair needs are trained with other pairs."""
    return all(key(pair) in trained[side] for side, key in key_of.items())


def _of_pair(stand_ins: StandIns, side: str, pair: Pair) -> str | None:
    """Return whose adapters a pair has: its own, or those of the pair that stands in for it."""
    return str(stand_ins.trained[stand_ins.at(pair, side)]) if stand_ins.knows(pair) else None


def _distinct(keys: Iterable[str | None]) -> list[str]:
    return [str(key) for key in dict.fromkeys(keys) if key is not None]
