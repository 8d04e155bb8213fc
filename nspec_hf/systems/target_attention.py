"""Target-specific attention: every attention module has its own q, k, v and out for each target language.

Shape letter: D = model width.
"""

from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import ClassVar

from torch import nn
from transformers import PreTrainedModel

from nspec_hf.core import Pair
from nspec_hf.gating import Attachment, Routing
from nspec_hf.recording import find_sites, linear_at
from nspec_hf.systems.parts.rowwise import OwnModules, RowwiseAttachment, RowwisePart
from nspec_hf.systems.run import Run
from nspec_hf.systems.system import System


@dataclass(frozen=True, kw_only=True)
class TargetAttention(System):
    """Attention of the target language's own, in encoder and decoder, trained from scratch.

    Blackwood, Ballesteros & Ward 2018, "Multilingual Neural Machine Translation with Task-Specific Attention"
    (COLING); "+TS" of Xie et al. 2021, Table 1. The first target language has the model's own projections,
    each further one a set beside them. So T targets add T − 1 times 4·(D² + D) parameters a module: with
    the 18 modules of 6 + 6 layers and D = 512, 56.73 M for four targets, which is the number of Xie et al.;
    with English as a fifth target it is 75.64 M. A pair that was not trained has the attention of its target,
    where that is a target of trained pairs.
    """

    name: ClassVar[str] = "target_attention"
    source: ClassVar[str] = "Blackwood et al. 2018, target-specific attention"
    from_scratch: ClassVar[bool] = True

    def attach(self, model: PreTrainedModel, run: Run) -> Attachment:
        """Put each target's projections on the model."""
        return target_attention(model, run.pairs, run.seed).attach()


def target_attention(model: PreTrainedModel, pairs: list[Pair], seed: int = 1) -> RowwiseAttachment:
    """Return new attention projections for each target language but the first, not attached yet.

    Args:
        model: The model; the new projections are initialized as its own were.
        pairs: The trained pairs, in the order that `pair_ids` index.
        seed: Of the new weights.

    Raises:
        UnsupportedModelError: If its attention has not four linears.
    """
    targets = list(dict.fromkeys(pair.target for pair in pairs))
    names = [site.name for site in find_sites(model, ("attention",))]

    def fresh(name: str) -> nn.Module:
        like = linear_at(model, name)
        new = nn.Linear(like.in_features, like.out_features, like.bias is not None)
        model._init_weights(new)
        return new.to(like.weight.device, like.weight.dtype)

    own = OwnModules({target: names for target in targets[1:]}, fresh, seed)
    routing, key_of = Routing(pairs), attrgetter("target")
    parts = [RowwisePart(model.get_submodule(name), routing, key_of, own.at(name)) for name in names]
    knows, about = partial(_is_target, frozenset(targets)), {"attention_of_targets": targets}
    return RowwiseAttachment(model, routing, parts, names, own, knows, about)


def _is_target(trained: frozenset[str], pair: Pair) -> bool:
    return pair.target in trained
