"""LaSS: a sub-network for each pair, by magnitude, found by fine-tuning on the pair alone."""

import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedModel

from nspec_hf.core import Pair, require
from nspec_hf.gating import Attachment
from nspec_hf.systems.parts.subnetworks import SubnetworkAttachment, Subnetworks
from nspec_hf.systems.run import Run
from nspec_hf.systems.system import System

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
    prepared_from: ClassVar[tuple[str, ...]] = ("corpus",)

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

    def check(self, run: Run) -> None:
        """Refuse shares and updates that cannot be."""
        require(0 < self.pruned < 1, f"pruned is a share between 0 and 1, got {self.pruned}")
        require(
            self.updates is None or self.updates >= 1,
            f"updates is a positive number or None, got {self.updates}",
        )

    def prepare(self, model: PreTrainedModel, run: Run) -> Mapping[str, Any]:
        """Cut out the sub-network of each pair; pairs that are done are not fine-tuned again."""
        extracted = [self._subnetwork(pair, run) for pair in run.pairs]
        subnetworks = Subnetworks.joined([subnetwork for subnetwork, _ in extracted])
        seconds = {str(pair): about["seconds"] for pair, (_, about) in zip(run.pairs, extracted, strict=True)}
        run.save(lambda: subnetworks.save(run.folder / _FILE, {"pruned": self.pruned}))
        return {
            "seconds": round(sum(seconds.values()), 2),
            "seconds_by_pair": seconds,
            "updates_a_pair": extracted[0][1]["updates"],
            "subnetworks": subnetworks.fingerprint(),
            "density_by_pair": subnetworks.density(),
        }

    def attach(self, model: PreTrainedModel, run: Run) -> Attachment:
        """Put the sub-networks on the model."""
        return SubnetworkAttachment(model, _load(run), run.config.data.pivot).attach()

    def extra_bytes(self, run: Run) -> int:
        """Return the size of the masks: a bit for each weight and pair."""
        return _load(run).bytes

    def _subnetwork(self, pair: Pair, run: Run) -> tuple[Subnetworks, dict[str, Any]]:
        """Return the sub-network of one pair and what it cost, which are kept in the folder."""
        path = run.folder / "subnetworks" / f"{pair.file_name}.safetensors"
        folder = Path("fine_tuned") / pair.file_name
        if not run.is_there(path):
            model = run.base(dropout=self.dropout)
            text = {"corpus": run.corpus.subset(pair), "validation": run.validation.subset(pair)}
            result = run.train(model, folder=folder, **text, **self._arguments(run))
            started = time.perf_counter()
            own = Subnetworks.of(model, pair, self.pruned)
            seconds = result.seconds + time.perf_counter() - started
            about = {"updates": result.updates, "seconds": round(seconds, 2), "pruned": self.pruned}
            run.save(lambda: own.save(path, about))
        # Not needed any more, and larger than all masks.
        run.save(lambda: shutil.rmtree(run.folder / folder, ignore_errors=True))
        return Subnetworks.load(path)

    def _arguments(self, run: Run) -> dict[str, Any]:
        """Return what differs between the fine-tuning of a pair and the continuation."""
        planned = run.budget().arguments
        updates = self.updates
        if updates is None and planned.get("max_steps", -1) > 0:
            updates = math.ceil(planned["max_steps"] / len(run.pairs))
        if updates is None:
            return dict(self.arguments)
        # A short run must not be all warm-up.
        warmup = min(planned.get("warmup_steps", updates), math.ceil(updates / 10))
        return {"max_steps": updates, "warmup_steps": warmup, **self.arguments}


def _load(run: Run) -> Subnetworks:
    return Subnetworks.load(run.folder / _FILE)[0]
