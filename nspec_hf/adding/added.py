"""AddedPairs: new pairs in a model whose old pairs stay, bit for bit, what they were.

The base is frozen for good. Each addition (`addition.py`) is what one or several new pairs have beside it;
rows of other pairs never meet it, in one model and in one batch. A second addition after the first leaves
both the base and the first alone.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from transformers import AddedToken, PreTrainedModel, PreTrainedTokenizerBase

from nspec_hf.adding.addition import Addition, embedding_of, row_weights
from nspec_hf.core import ConfigError, UnknownLanguageError, digest
from nspec_hf.gating import (
    Attachment,
    GateConfig,
    NeuronGate,
    Routing,
    TakenOver,
    add_neurons,
    composes,
    set_aside,
)
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import find_sites, linear_at, plain_model


class AddedPairs(Attachment):
    """Runs rows of new pairs with what was added for them, and every other row with the base alone.

        added = load_added("lb-for-m2m100", model)
        Translator(model, added.extend(tokenizer), added).translate(texts, ["en-lb", "en-de"])

    Args:
        model: The base.
        additions: In the order in which they were made.
        masks: Those of the old pairs, where the base is a model with masks; then only these pairs, and the
            new ones, are known. The new pairs keep all old neurons.
        gate_config: How the masks act; with `zero_shot="compose"`, pairs that they lack are composed of those
            of the old pairs.

    Raises:
        ConfigError: If two additions, or one and the masks, hold the same pair.
        SiteMismatchError: If the masks are for another model.
    """

    def __init__(
        self,
        model: nn.Module,
        additions: Sequence[Addition],
        masks: NeuronMasks | None = None,
        gate_config: GateConfig | None = None,
    ) -> None:
        plain = plain_model(model)
        self.additions = list(additions)
        new = [pair for addition in self.additions for pair in addition.pairs]
        pairs = [*new, *(masks.pairs if masks else [])]
        twice = sorted({str(pair) for pair in pairs if pairs.count(pair) > 1})
        if twice or not self.additions:
            raise ConfigError(
                f"each pair is added once, and there is one at least; twice: {', '.join(twice)}"
            )
        self.masks, self.gate_config = masks, gate_config
        self._gate: NeuronGate | None = None
        routing, parts = Routing(pairs), list[tuple[str, TakenOver]]()
        if masks is not None:
            whole = {name: torch.ones(len(new), keep.shape[1]).bool() for name, keep in masks.keep.items()}
            keep = {name: torch.cat([whole[name], keep_PF]) for name, keep_PF in masks.keep.items()}
            self._gate = gate = NeuronGate(plain, NeuronMasks(pairs, keep, recipe=masks.recipe), gate_config)
            routing, parts = gate.routing, gate.parts_by_site
        parts += [part for addition in self.additions for part in addition.parts(plain, routing)]
        names, acting = [name for name, _ in parts], [part for _, part in parts]
        super().__init__(plain, routing, acting, names, nn.ModuleList(self.additions))

    @property
    def composes_pairs(self) -> bool:
        """Whether the masks of other pairs are composed, of those of the old pairs."""
        return self._gate is not None and self._gate.composes_pairs

    def knows(self, pair: str) -> bool:
        """Return whether rows of that pair can be run: any, by the base, unless masks say which it has."""
        if self.masks is None or super().knows(pair):
            return True
        # What was added for a new pair is no half of another one, so only old ones are composed.
        return self.gate_config is not None and composes(self.masks, pair, self.gate_config)

    def include(self, pair: str) -> int:
        """Return the index of a pair, once its masks are composed where that is wanted."""
        if self._gate is not None and pair not in self.pairs and self.knows(pair):
            self._gate.include(pair)
        return super().include(pair)

    def freeze(self) -> None:
        """Switch all gradients off but those of the last addition."""
        self.model.requires_grad_(False)
        for addition in self.additions:
            addition.requires_grad_(False)
        self.additions[-1].requires_grad_(True)

    def facts(self) -> dict[str, Any]:
        """Return the layouts, and digests of the additions that are not trained now."""
        layouts = [addition.layout for addition in self.additions]
        return {
            "added": [[str(pair) for pair in layout.pairs] for layout in layouts],
            "layouts": digest([repr(layout) for layout in layouts]),
            "frozen": digest(part for one in self.additions[:-1] for part in bits_of(one.state_dict())),
            "masks": self.masks and self.masks.fingerprint(),
        }

    def measures(self) -> dict[str, float]:
        """Return the share of parameters that was added."""
        own = sum(addition.size for addition in self.additions)
        return {"added": round(own / sum(weight.numel() for weight in self.model.parameters()), 4)}

    def extend(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
        """Return a tokenizer with the tags that the additions brought; the one that is given stays as it is.

        Raises:
            UnknownLanguageError: If it would give a tag another id than it has in the additions.
        """
        tokens = {token: number for one in self.additions for token, number in one.layout.tokens.items()}
        return with_tokens(tokenizer, tokens)

    def merged(self, number: int = -1) -> PreTrainedModel:
        """Return a plain model that runs one addition's pairs without this package; it spoils other pairs.

        New neurons are rows and columns of wider matrices, low-rank changes are added up, copies and
        embeddings take the old ones' places. `nspec export` makes a CTranslate2 model of it.

        Args:
            number: Which addition.

        Raises:
            ConfigError: If the base has masks, which a plain model knows nothing of.
        """
        if self.masks is not None:
            raise ConfigError("a base with masks cannot be merged; its neurons are silenced by pair")
        with set_aside(self.model):
            model = copy.deepcopy(self.model)
        addition = copy.deepcopy(self.additions[number]).to(next(model.parameters()).device)
        for name, copied in zip(addition.layout.copied, addition.copies.values(), strict=True):
            model.set_submodule(name, copied)
        for name in addition.layout.changed:
            change, linear = addition.change_of(name), linear_at(model, name)
            linear.weight.data += change.scale * (change.b.weight.data @ change.a.weight.data)
        _widen(model, addition)
        own = addition.own_rows
        if own is not None:  # in the place of the old ones, and behind them
            if own.whole > len(embedding_of(model)):  # an addition before may have brought the further ids
                model.resize_token_embeddings(own.whole, mean_resizing=False)
            for which, weight in row_weights(model).items():
                weight.data[own.ids] = own.of(which).data
        return model.requires_grad_(True)


def with_tokens(
    tokenizer: PreTrainedTokenizerBase, tokens: Mapping[str, int | None]
) -> PreTrainedTokenizerBase:
    """Return a copy of a tokenizer with further special tokens, by their ids; None: as it numbers them.

    The traps: M2M100Tokenizer knows its tags by tables of its own, and `add_tokens` gives a new token the id
    of the first of them; and it makes the tables anew where it is loaded, so the token must also be among the
    added ones, which are saved.

    Raises:
        UnknownLanguageError: If it gives one another id.
    """
    tokenizer = copy.deepcopy(tokenizer)
    for token in sorted(tokens, key=lambda token: tokens[token] or 0):
        number, tables = tokens[token], getattr(tokenizer, "lang_token_to_id", None)
        if tables is not None:
            code, own = token.strip("_"), cast(Any, tokenizer)
            own.lang_token_to_id[token] = own.lang_code_to_id[code] = number
            own.id_to_lang_token[number] = own.lang_code_to_token[code] = token
            own.added_tokens_decoder = {number: AddedToken(token, normalized=False, special=True)}
        tokenizer.add_tokens([token], special_tokens=True)  # one that has an id keeps it
        given = tokenizer.convert_tokens_to_ids(token)
        if number not in (None, given):
            raise UnknownLanguageError(
                f"the tokenizer gives {token} the id {given}, but in what was added it is {number}; take "
                "the tokenizer of the base that the pairs were added to, as it came with it"
            )
    return tokenizer


def _widen(model: PreTrainedModel, addition: Addition) -> None:
    """Write new neurons into wider matrices."""
    sites = [site for site in find_sites(model) if site.name in addition.sites]
    if not sites:
        return
    add_neurons(model, {site.name: site.width + addition.layout.neurons[site.name] for site in sites})
    for site in sites:
        new = addition.neurons_at(site.name)
        for path, own in ((site.name, new.up), (site.up, new.other)):
            if path and own is not None:
                linear = linear_at(model, path)
                linear.weight.data[site.width :] = own.weight.data
                if own.bias is not None:
                    linear.bias.data[site.width :] = own.bias.data
        linear_at(model, site.down).weight.data[:, site.width :] = new.down.weight.data


def bits_of(state: Mapping[str, torch.Tensor]) -> Iterator[str | np.ndarray]:
    """Yield names and all bits of weights, of whatever type, for a digest."""
    for name, weight in state.items():
        yield name
        yield weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
