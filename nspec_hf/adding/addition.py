"""One addition: the weights that a few new pairs share, and the parts that put them to work.

An addition's layout is plain values (which sites, how wide, which ids), from which an empty one of the same
shape is made when it is loaded. A fresh one leaves the model's output for the new pairs as it is: the last
matrix of every branch is zero, copies and embeddings begin as the old ones.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nspec_hf.adding.branches import LowRank, NeuronBranch, NewNeurons, OwnModule, Whose
from nspec_hf.adding.config import AddConfig
from nspec_hf.adding.vocabulary import InputRows, OutputRows, OwnRows, Which
from nspec_hf.core import ConfigError, Pair, UnsupportedModelError, as_pairs
from nspec_hf.gating import Routing, TakenOver, drawn_rows
from nspec_hf.recording import Site, find_sites, linear_at


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The shape of an addition; plain values."""

    pairs: Sequence[str]
    """The new pairs."""
    neurons: Mapping[str, int] = field(default_factory=dict)
    """Feed-forward site → new neurons."""
    rank: int = 0
    """Of the low-rank changes."""
    changed: Sequence[str] = ()
    """Linears that have one."""
    copied: Sequence[str] = ()
    """Modules of which there is a copy."""
    ids: Sequence[int] = ()
    """Ids that have an embedding of the new pairs', ascending."""
    tokens: Mapping[str, int] = field(default_factory=dict)
    """Tags that the tokenizer gets → their ids."""
    vocabulary: int
    """Of the model, with earlier additions."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """Where it comes from: base, text, settings."""


class Addition(nn.Module):
    """The weights of one layout, for a base that is not changed.

    Raises:
        SiteMismatchError, UnsupportedModelError: If the model has no such places.
    """

    def __init__(self, model: PreTrainedModel, layout: Layout) -> None:
        super().__init__()
        self.layout = layout
        self.pairs: list[Pair] = as_pairs(layout.pairs)
        sites = {site.name: site for site in find_sites(model)}
        missing = [name for name in layout.neurons if name not in sites]
        names = {name for name, _ in model.named_modules()}
        missing += [name for name in (*layout.changed, *layout.copied) if name not in names]
        if missing:
            raise ConfigError(
                f"this addition is for another model: it has no {', '.join(missing[:3])}; give the base that "
                f"it was made for ({layout.about.get('base', 'not named')})"
            )
        self.sites = {name: sites[name] for name in layout.neurons}
        self.neurons, self.changes, self.copies = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        for name, width in layout.neurons.items():
            self.neurons[_key(name)] = NewNeurons(_block(model, sites[name]), width)
        for name in layout.changed:
            self.changes[_key(name)] = LowRank(linear_at(model, name), layout.rank)
        for name in layout.copied:
            self.copies[_key(name)] = copy.deepcopy(model.get_submodule(name))
        self.own_rows = self._make_rows(model) if layout.ids else None
        self.requires_grad_(True)

    def draw(
        self,
        model: PreTrainedModel,
        seed: int,
        begins_as: Mapping[int, Sequence[int]],
        earlier: Sequence["Addition"] = (),
    ) -> "Addition":
        """Give fresh weights; returns itself.

        Args:
            model: The base.
            seed: Of new neurons and low-rank changes.
            begins_as: Id that the model has no embedding for, or a poor one → ids whose mean it begins as.
                Every other id begins as it is in the model.
            earlier: Additions that brought ids which the model has no embedding for.
        """
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, site in self.sites.items():
                new, block = self.neurons_at(name), _block(model, site)
                for old, own in ((block["up"], new.up), (block.get("other"), new.other)):
                    if old is not None and own is not None:
                        weight, bias = drawn_rows(old, own.out_features, generator)
                        own.weight.copy_(weight)
                        if bias is not None:
                            own.bias.copy_(bias)
                new.down.weight.zero_()
            for change in self.changes.values():
                a = cast(LowRank, change).a.weight
                a.copy_(torch.randn(a.shape, generator=generator) / a.shape[1] ** 0.5)
            if self.own_rows is not None:
                for which, old in row_weights(model).items():
                    rows = self.own_rows.of(which)
                    for place, number in enumerate(self.own_rows.ids):
                        like = [_row(n, which, old, earlier) for n in begins_as.get(number, [number])]
                        rows[place] = torch.stack(like).mean(dim=0)
        return self

    def neurons_at(self, site: str) -> NewNeurons:
        """Return the new neurons of a site."""
        return cast(NewNeurons, self.neurons[_key(site)])

    def change_of(self, linear: str) -> LowRank:
        """Return the low-rank change of a linear."""
        return cast(LowRank, self.changes[_key(linear)])

    def parts(self, model: PreTrainedModel, routing: Routing) -> Iterator[tuple[str, TakenOver]]:
        """Yield what acts on the model, each with the dotted name of the module that it acts on."""
        whose = Whose(routing, frozenset(self.pairs))
        for name, copied in zip(self.layout.copied, self.copies.values(), strict=True):
            yield name, OwnModule(model.get_submodule(name), copied, whose, instead=True)
        for name, change in zip(self.layout.changed, self.changes.values(), strict=True):
            yield name, OwnModule(model.get_submodule(name), change, whose)
        # Last, so that the block's last linear is complete when the sum is made.
        for name, site in self.sites.items():
            yield name, NeuronBranch(model, site, self.neurons_at(name), whose)
        if self.own_rows is not None:
            which_of: dict[int, Which] = {id(weight): which for which, weight in row_weights(model).items()}
            for name, module in model.named_modules():
                if isinstance(module, nn.Embedding) and id(module.weight) in which_of:
                    yield name, InputRows(module, self.own_rows, which_of[id(module.weight)], whose)
            name, module = output_of(model)
            yield name, OutputRows(module, self.own_rows, whose)

    @property
    def size(self) -> int:
        """How many parameters there are."""
        return sum(parameter.numel() for parameter in self.parameters())

    def _make_rows(self, model: PreTrainedModel) -> OwnRows:
        weights, layout = row_weights(model), self.layout
        apart, biased = "targets" in weights, hasattr(model, "final_logits_bias")
        if max(layout.ids) >= layout.vocabulary and (apart or biased):
            fixed = "embeddings of its own on each side" if apart else "a bias of the logits"
            longer = "a row to each of them" if apart else "model.resize_token_embeddings(len(tokenizer))"
            raise UnsupportedModelError(
                f"this {type(model).__name__} has {fixed}, so it cannot get a further tag beside its "
                f"{layout.vocabulary} tokens; add the tag to its tokenizer, then {longer}, save both, and "
                "give that model"
            )
        if len({len(weight) for weight in weights.values()}) > 1:
            raise UnsupportedModelError(
                f"this {type(model).__name__} has a vocabulary for each side, whose subwords have no "
                "embeddings of new pairs"
            )
        return OwnRows(layout.ids, layout.vocabulary, weights)


def layout_for(
    model: PreTrainedModel,
    pairs: Sequence[str],
    config: AddConfig,
    width: float,
    *,
    ids: Sequence[int] = (),
    tokens: Mapping[str, int] | None = None,
    vocabulary: int | None = None,
    about: Mapping[str, Any] | None = None,
) -> Layout:
    """Return the layout that the settings ask for.

    Args:
        model: The base.
        pairs: The new pairs.
        config: The settings.
        width: The share of new neurons, where they leave it open.
        ids: Ids that get an embedding.
        tokens: Tags that the tokenizer gets → their ids.
        vocabulary: Size of the model's, with earlier additions; None: as in its embedding.
        about: Where it comes from.
    """
    sites = find_sites(model)
    neurons = {site.name: max(1, round(width * site.width)) for site in sites} if width else {}
    of_ffn = [path for site in sites for path in (site.name, site.up, site.down) if path]
    needs_attention = config.lora or "attention" in config.copies
    of_attention = [site.name for site in find_sites(model, ("attention",))] if needs_attention else []
    norms = [name for name, module in model.named_modules() if type(module).__name__.endswith("Norm")]
    kinds = {"norms": norms, "attention": of_attention, "ffn": of_ffn}
    return Layout(
        pairs=[str(pair) for pair in as_pairs(pairs)],
        neurons=neurons,
        rank=config.lora,
        changed=[*of_ffn, *of_attention] if config.lora else [],
        copied=[name for kind in dict.fromkeys(config.copies) for name in kinds[kind]],
        ids=sorted(ids),
        tokens=dict(tokens or {}),
        vocabulary=vocabulary or len(embedding_of(model)),
        about=dict(about or {}),
    )


def embedding_of(model: PreTrainedModel) -> Tensor:
    """Return the weights of the encoder's embedding, [V, D]; most models have no other."""
    return cast(nn.Embedding, model.get_encoder().get_input_embeddings()).weight


def row_weights(model: PreTrainedModel) -> dict[Which, Tensor]:
    """Return the weights that have a row a token, each once.

    The trap: where nothing is tied, M2M-100 and mBART have a further one that is never looked into, and it is
    what `get_input_embeddings` gives.
    """
    decoder = cast(nn.Embedding, model.get_decoder().get_input_embeddings()).weight
    weights = embedding_of(model), decoder, output_of(model)[1].weight
    found: dict[Which, Tensor] = {}
    for which, weight in zip(get_args(Which), weights, strict=True):
        if all(weight is not one for one in found.values()):
            found[which] = weight
    return found


def output_of(model: PreTrainedModel) -> tuple[str, Any]:
    """Return the layer that makes logits, with its name.

    Raises:
        UnsupportedModelError: If there is none.
    """
    layer = model.get_output_embeddings()
    for name, module in model.named_modules():
        if layer is not None and module is layer:
            return name, layer
    raise UnsupportedModelError(f"{type(model).__name__} does not show its output layer")


def _row(number: int, which: Which, old: Tensor, earlier: Sequence[Addition]) -> Tensor:
    """Return an id's embedding: the model's, or that of the addition which brought it."""
    if number < len(old):
        return old[number]
    own = next(one.own_rows for one in earlier if one.own_rows and number in one.own_rows.ids)
    return own.of(which)[own.ids.index(number)]


def _block(model: nn.Module, site: Site) -> dict[str, nn.Linear]:
    block = {"up": linear_at(model, site.name), "down": linear_at(model, site.down)}
    return block | ({"other": linear_at(model, site.up)} if site.up else {})


def _key(name: str) -> str:
    # PyTorch takes dots in names for levels.
    return name.replace(".", "_")
