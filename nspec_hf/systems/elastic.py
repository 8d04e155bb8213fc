"""One model for many coverages: a dial between quality and speed, in one checkpoint."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from transformers import PreTrainedModel

from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import ActivationStats
from nspec_hf.systems.masked import NeuronSpecialization
from nspec_hf.systems.run import Run
from nspec_hf.training import ElasticTrainer, SpecializationTrainer


@dataclass(frozen=True, kw_only=True)
class ElasticMasks(NeuronSpecialization):
    """Neuron specialization at a coverage drawn for every micro-batch; it is scored at `coverage`."""

    name: ClassVar[str] = "elastic"
    source: ClassVar[str] = "beyond the papers: one model, many coverages; see `training/elastic.py`"

    levels: Sequence[float] = (1.0, 0.8, 0.6, 0.4)
    """The coverages to draw from; one that is named twice is drawn twice as often. At 1 all neurons run that
    fired at all."""

    teacher: float | None = None
    """Run each micro-batch densely too, and let the drawn level learn from that with this weight, in [0, 1]:
    about twice the work of an update. None: no teacher."""

    def masks(self, model: PreTrainedModel, run: Run) -> NeuronMasks:
        """Return the masks of `coverage`, with all levels beside them for `Translator(…, coverage=…)`."""
        stats = run.recorded(model, self.record(run))
        masks = self.select(stats, run)
        levels = {level: self.at(level, stats, run).keep for level in self.levels}
        return NeuronMasks(masks.pairs, masks.keep, recipe=masks.recipe, levels=levels)

    def at(self, coverage: float, stats: ActivationStats, run: Run) -> NeuronMasks:
        """Return the masks of one coverage, on both sides, as of all levels of masks."""
        both = dataclasses.replace(self.selection(run), coverage=coverage, coverage_decoder=None)
        return NeuronMasks.from_config(stats, both)

    def trainer(self, model: PreTrainedModel, run: Run) -> Callable[..., SpecializationTrainer]:
        """Return what trains at all levels."""
        stats = run.recorded(model, self.record(run))
        levels = [self.at(level, stats, run) for level in self.levels]
        return partial(ElasticTrainer, levels=levels, dense=self.at(1.0, stats, run), teacher=self.teacher)
