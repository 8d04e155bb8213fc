"""System: one of the compared methods, as a small class; a new one is one file beside this one.

    class MyMethod(System):
        '''What it does, and from which paper.'''
        name: ClassVar = "my_method"
        strength: float = 0.5                       # its settings, each with a string under it

        def prepare(self, model, run):              # what is extracted before training; timed
        def attach(self, model, run):               # put on what makes each row run as its pair does
        def freeze(self, model):                    # what is not trained

and one line in `registry.py`. All systems are trained, translate, are scored and reported by the same code
(`pipeline.py`), on the same text in the same order.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from torch import nn
from transformers import PreTrainedModel, TrainerCallback

from nspec_hf.core import TrainingSetupError, plain, require
from nspec_hf.gating import Attachment, attachment_of
from nspec_hf.systems.run import Outputs, Run
from nspec_hf.training import SpecializationTrainer, load_weights

_Attached = TypeVar("_Attached", bound=Attachment)


def attached(model: nn.Module, kind: type[_Attached]) -> _Attached:
    """Return what a system put on its model.

    Raises:
        TrainingSetupError: If something else, or nothing, is on it.
    """
    attachment = attachment_of(model)
    if not isinstance(attachment, kind):
        raise TrainingSetupError(f"the model has no {kind.__name__} on it, but {type(attachment).__name__}")
    return attachment


@dataclass(frozen=True, kw_only=True)
class System:
    """One of the compared methods; its fields are its settings. This one goes on training the whole base.

    A system says what differs (`prepare`, `attach`, `freeze` …); `train` and `outputs` are only for those
    that are more than one training of one model.
    """

    name: ClassVar[str] = ""
    """What plans and tables call it; empty: it is only a base class of others."""

    source: ClassVar[str] = ""
    """The paper, or what it is."""

    extracts: ClassVar[bool] = False
    """Whether something is taken from the base before training, whose time is reported."""

    prepared_from: ClassVar[tuple[str, ...]] = ()
    """Text, `corpus` or `validation`, that decides more than the training; a run's folder keeps to it."""

    trains: ClassVar[bool] = True
    """Whether weights are trained here."""

    from_scratch: ClassVar[bool] = False
    """Whether it has a model of its own, trained with the base's budget and then the continuation's."""

    continued_dropout: float | None = None
    """Dropout of the continued training behind embeddings and sublayers, in [0, 1): the config's `dropout`,
    and not that of attention or activations; None keeps the base's."""

    def __post_init__(self) -> None:
        """Refuse a dropout of the continued training where that is not a training of the base."""
        if self.continued_dropout is not None:
            require(
                self.trains and not self.from_scratch,
                f"continued_dropout is for systems that go on from the base, and {self.name} does not",
            )
            require(0 <= self.continued_dropout < 1, "continued_dropout lies in [0, 1)")

    def check(self, run: Run) -> None:
        """Refuse what cannot work, before anything is run.

        Raises:
            ConfigError: If the settings do not go with the experiment.
        """

    def model(self, run: Run) -> PreTrainedModel:
        """Return the model as it is before training, with nothing on it."""
        return run.scratch() if self.from_scratch else self.base(run)

    def base(self, run: Run) -> PreTrainedModel:
        """Return a fresh copy of the trained base, with the dropout of the continued training."""
        return run.base(dropout=self.continued_dropout)

    def prepare(self, model: PreTrainedModel, run: Run) -> Mapping[str, Any]:
        """Extract what is needed from the model into the folder; return facts for the results.

        Called once a run; its time is the extraction time of the efficiency table.
        """
        return {}

    def extraction(self, model: PreTrainedModel, run: Run) -> dict[str, Any]:
        """Return what `prepare` returned in this folder, and its `seconds`; it is called if it was not."""
        return run.once("extraction", lambda: self.prepare(model, run))

    def attach(self, model: PreTrainedModel, run: Run) -> Attachment | None:
        """Put onto the model what makes each row run as its pair does, from what `prepare` left.

        Called before training, and again before translating, when the trained weights are loaded after it.
        """
        return None

    def freeze(self, model: PreTrainedModel) -> None:
        """Switch gradients off where nothing is to be trained."""

    def callbacks(self, model: PreTrainedModel, run: Run) -> Sequence[TrainerCallback]:
        """Return callbacks that training needs."""
        return ()

    def trainer(self, model: PreTrainedModel, run: Run) -> Callable[..., SpecializationTrainer]:
        """Return what makes the Trainer of the continued training."""
        return SpecializationTrainer

    def extra_bytes(self, run: Run) -> int:
        """Return what is kept besides parameters (masks …), in bytes."""
        return 0

    def train(self, run: Run) -> dict[str, Any]:
        """Prepare and train; leave the model in `folder/model`, and return facts for the results."""
        model = self.model(run)
        facts: dict[str, Any] = {"extraction": self.extraction(model, run)} if self.extracts else {}
        attachment = self.attach(model, run)
        self.freeze(model)
        callbacks = self.callbacks(model, run)
        if self.from_scratch:
            facts["pretraining"] = run.train(
                model, attachment, "pretrain", "pretraining", callbacks=callbacks
            ).facts()
        trainer = self.trainer(model, run)
        facts |= run.train(model, attachment, callbacks=callbacks, make_trainer=trainer).facts()
        facts["extra_parameters"] = model.num_parameters() - run.base().num_parameters()
        facts["extra_bytes"] = self.extra_bytes(run)
        if attachment is not None:
            facts["attachment"] = plain(attachment.facts())
        return facts

    def outputs(self, run: Run) -> Outputs:
        """Return the translations of all tests that the trained system can translate."""
        model = self.model(run)
        attachment = self.attach(model, run)
        load_weights(model, run.folder / "model")
        return run.translate(model, attachment, "outputs")
