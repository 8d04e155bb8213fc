"""LaSS: a sub-network for each pair, by magnitude, found by fine-tuning on the pair alone."""

import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedModel

from nspec_hf.core import ConfigError, Pair
from nspec_hf.gating import Attachment
from nspec_hf.systems.parts.subnetworks import SubnetworkAttachment, Subnetworks
from nspec_hf.systems.system import System, Workbench
from nspec_hf.training import join_processes

_FILE = "subnetworks.safetensors"


@dataclass(frozen=True, kw_only=True)
class LaSS(System):
    """Fine-tune the base on each pair, keep the largest weights, go on training each pair with these.

    Lin et al. 2021, "Learning Language Specific Sub-network for Multilingual Machine Translation" (ACL 2021).
    Fine-tuning makes weights that matter to the pair larger and others smaller; the smallest share of each
    attention and feed-forward matrix is then pruned for that pair (not the embeddings, norms and biases), as
    the authors' released code does it, matrix by matrix. The base itself, not the fine-tuned models, is what
    is trained further, each row with its pair's weights only. No parameter is added; what is kept is a bit
    for each weight and pair. A zero-shot pair has the encoder weights of its source and the decoder weights
    of its target, through the pivot, as the authors merge masks.
    """

    name: ClassVar[str] = "lass"
    source: ClassVar[str] = "Lin et al. 2021 (LaSS)"
    extracts: ClassVar[bool] = True

    pruned: float = 0.7
    """α: share of each matrix that a pair does not use, in (0, 1). 0.7 as in Tan et al. 2024."""

    updates: int | None = None
    """Updates of fine-tuning on each pair. None: a pair's equal share of the continuation's `max_steps`, so
    that all pairs together cost one continuation more; or, where the continuation is measured in epochs, as
    many epochs of the pair's own text. The authors fine-tune until the validation loss stops falling."""

    dropout: float | None = None
    """Dropout of the fine-tuning; the authors raise it for small corpora (0.3). None: the base's."""

    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the Trainer for the fine-tuning, where they are not the continuation's."""

    def check(self, bench: Workbench) -> None:
        """Refuse shares and updates that cannot be."""
        if not 0 < self.pruned < 1:
            raise ConfigError(f"pruned is a share between 0 and 1, got {self.pruned}")
        if self.updates is not None and self.updates < 1:
            raise ConfigError(f"updates is a positive number or None, got {self.updates}")

    def prepare(self, model: PreTrainedModel, bench: Workbench) -> Mapping[str, Any]:
        """Cut out the sub-network of each pair; pairs that are done are not fine-tuned again."""
        found = [self._subnetwork(pair, bench) for pair in bench.pairs]
        subnetworks = Subnetworks.joined([each for each, _ in found])
        seconds = {str(pair): about["seconds"] for pair, (_, about) in zip(bench.pairs, found, strict=True)}
        bench.save(lambda: subnetworks.save(bench.folder / _FILE, {"pruned": self.pruned}))
        return {
            "seconds": round(sum(seconds.values()), 2),
            "seconds_by_pair": seconds,
            "updates_a_pair": found[0][1]["updates"],
            "subnetworks": subnetworks.fingerprint(),
            "density_by_pair": subnetworks.density(),
        }

    def attach(self, model: PreTrainedModel, bench: Workbench) -> Attachment:
        """Put the sub-networks on the model."""
        return SubnetworkAttachment(model, _load(bench), bench.config.data.pivot).attach()

    def extra_bytes(self, bench: Workbench) -> int:
        """Return the size of the masks: a bit for each weight and pair."""
        return _load(bench).bytes

    def _subnetwork(self, pair: Pair, bench: Workbench) -> tuple[Subnetworks, dict[str, Any]]:
        """Return the sub-network of one pair and what it cost, which are kept in the folder."""
        path, folder = bench.folder / "subnetworks" / f"{pair}.safetensors", Path("fine_tuned") / pair
        there = path.is_file()
        join_processes().wait_for_everyone()
        if not there:
            model = bench.base() if self.dropout is None else bench.base(dropout=self.dropout)
            corpus, validation = bench.corpus.subset(pair), bench.validation.subset(pair)
            result = bench.train(
                model, folder=folder, corpus=corpus, validation=validation, **self._arguments(bench)
            )
            started = time.perf_counter()
            own = Subnetworks.of(model, pair, self.pruned)
            seconds = result.seconds + time.perf_counter() - started
            about = {"updates": result.updates, "seconds": round(seconds, 2), "pruned": self.pruned}
            bench.save(lambda: own.save(path, about))
        # Not needed any more, and larger than all masks.
        bench.save(lambda: shutil.rmtree(bench.folder / folder, ignore_errors=True))
        return Subnetworks.load(path)

    def _arguments(self, bench: Workbench) -> dict[str, Any]:
        """Return what differs between the fine-tuning of a pair and the continuation."""
        planned = bench.budget().arguments
        updates = self.updates
        if updates is None and planned.get("max_steps", -1) > 0:
            updates = math.ceil(planned["max_steps"] / len(bench.pairs))
        if updates is None:
            return dict(self.arguments)
        # A short run must not be all warm-up.
        warmup = min(planned.get("warmup_steps", updates), math.ceil(updates / 10))
        return {"max_steps": updates, "warmup_steps": warmup, **self.arguments}


def _load(bench: Workbench) -> Subnetworks:
    return Subnetworks.load(bench.folder / _FILE)[0]
