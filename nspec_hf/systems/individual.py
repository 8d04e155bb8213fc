"""Individual bilingual models: one for each direction, which shares nothing with the others."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from transformers import PreTrainedModel

from nspec_hf.core import ConfigError, Pair, claim_folder, warn
from nspec_hf.data import VocabularyConfig
from nspec_hf.recording import load_config
from nspec_hf.systems.experiment import DataConfig
from nspec_hf.systems.run import TEXT_FILE, Outputs, Run
from nspec_hf.systems.system import System
from nspec_hf.training import TrainConfig, load_weights, make_tokenizer

_LOW = "low"
_PHASES = ("pretrain", "specialize")


@dataclass(frozen=True, kw_only=True)
class Individual(System):
    """A model for each trained direction, from scratch, on that direction's text alone.

    What a multilingual model loses against these is interference, what it wins is synergy (Tan et al. 2024,
    Table 4). They have the base's vocabulary, and the base's budget and then the continuation's, with the
    schedule of each; those of low-resource pairs may be smaller, with a vocabulary of their own text, as the
    paper has them. Zero-shot directions have no model. Each lies in a folder of its own, named by its
    direction; directions that are done are not trained again.
    """

    name: ClassVar[str] = "individual"
    source: ClassVar[str] = "bilingual models, as in Tan et al. 2024, Table 4"
    from_scratch: ClassVar[bool] = True

    budget: Literal["each", "shared"] = "each"
    """`each`: every model makes as many updates as the multilingual one; on text of one direction that is
    more epochs. `shared`: all models together make as many, an equal share each. A budget in epochs instead
    of `max_steps` means epochs of the direction's own text, and both are the same."""

    shape: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the model's config in which these models differ from the base, such as fewer layers."""

    small: Mapping[str, Any] | None = None
    """The same for pairs of the tier `low` (`data.tiers`): 2 heads, d_ff 512 and dropout 0.3 in Tan et al.
    2024, A.2.2 (1,024 in their Table 8). None: `shape`."""

    small_vocabulary: int | None = None
    """Subwords of a vocabulary that each pair of that tier learns from its own text; None: the base's."""

    max_tokens: int | None = None
    """Token budget of a batch; None: the experiment's."""

    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the Trainer in both phases, where they are not the experiment's."""

    small_arguments: Mapping[str, Any] | None = None
    """The same for pairs of the tier `low`. None: `arguments`."""

    def model(self, run: Run) -> PreTrainedModel:
        """Return one of the models, untrained, of a pair that is not low-resource."""
        return run.scratch(**self.shape)

    def check(self, run: Run) -> None:
        """Refuse a share that is no update; warn of smaller models that no pair gets."""
        if _LOW not in run.config.data.tiers.values():
            names = ("small", "small_vocabulary", "small_arguments")
            if unused := [name for name in names if getattr(self, name)]:
                warn(f"settings.{', '.join(unused)}: no effect, since data.tiers has no language {_LOW!r}")
        for phase in _PHASES:
            if self._steps(run, phase) == 0:
                updates = run.budget(phase).arguments["max_steps"]
                raise ConfigError(f"{len(run.pairs)} models cannot share {updates} updates ({phase})")

    def train(self, run: Run) -> dict[str, Any]:
        """Train a model a direction, one after the other."""
        models = {str(pair): self._train(pair, run) for pair in run.pairs}
        updates, seconds, parameters = (
            sum(facts[name] for facts in models.values())
            for name in ("updates", "training_seconds", "parameters")
        )
        return {
            "updates": updates,
            "training_seconds": round(seconds, 1),
            "extra_parameters": parameters - run.base().num_parameters(),
            "extra_bytes": 0,
            "models": models,
        }

    def outputs(self, run: Run) -> Outputs:
        """Return the translations of the trained directions, each by its own model."""
        outputs: Outputs = {}
        for pair in run.pairs:
            own, shape = self._own(pair, run)
            model = own.scratch(**shape)
            load_weights(model, run.folder / pair.file_name / "model")
            outputs |= own.translate(model, None, f"{pair.file_name}/outputs", [pair])
        return outputs

    def _own(self, pair: Pair, run: Run) -> tuple[Run, Mapping[str, Any]]:
        """Return the run of a pair's model, with its budget and its own vocabulary if any, and its shape."""
        tiers, config = run.config.data.tiers, run.config
        low = _LOW in (tiers.get(pair.source), tiers.get(pair.target))
        shape = self.small if low and self.small is not None else self.shape
        arguments = self.small_arguments if low and self.small_arguments is not None else self.arguments
        if arguments or self.max_tokens is not None:
            budgets: dict[str, Any] = {}
            for phase in _PHASES:
                planned: TrainConfig = getattr(config, phase)
                tokens = self.max_tokens or planned.batches.max_tokens
                batches = dataclasses.replace(planned.batches, max_tokens=tokens)
                changed = {**planned.arguments, **arguments}
                budgets[phase] = dataclasses.replace(planned, batches=batches, arguments=changed)
            config = dataclasses.replace(config, **budgets)
        if low and self.small_vocabulary is not None:
            folder, base = run.folder / pair.file_name / "vocabulary", config.base_model
            data = dataclasses.replace(config.data, pairs=[str(pair)], zero_shot=[])
            if not (folder / "config.json").is_file():
                settings = dataclasses.replace(config.vocabulary, size=self.small_vocabulary)
                run.save(lambda: _make_vocabulary(data, settings, base, folder))
            config = dataclasses.replace(config, data=data, base=str(folder))
        return run if config is run.config else dataclasses.replace(run, config=config), shape

    def _train(self, pair: Pair, run: Run) -> dict[str, Any]:
        """Train the model of one direction, unless it is trained; return its facts, all phases together."""
        own, shape = self._own(pair, run)
        model = own.scratch(**shape)
        # Encoded once for all pairs that share the base's vocabulary.
        text: dict[str, Any] = {}
        if own.config.data is run.config.data:
            text = {"corpus": run.corpus.subset(pair), "validation": run.validation.subset(pair)}
        else:
            claim_folder(run.folder / pair.file_name, {"corpus": own.corpus.digest()}, TEXT_FILE)
        first, second = (
            own.train(model, phase=phase, folder=folder, **text, **self._arguments(run, phase)).facts()
            for phase, folder in zip(_PHASES, (f"{pair.file_name}/pretraining", pair.file_name), strict=True)
        )
        return {
            "updates": first["updates"] + second["updates"],
            "training_seconds": round(first["training_seconds"] + second["training_seconds"], 1),
            "validation_loss": second["validation_loss"],
            "parameters": model.num_parameters(),
        }

    def _steps(self, run: Run, phase: str) -> int | None:
        """Return a model's updates in a phase; None where the phase is measured in epochs."""
        planned = run.budget(phase).arguments.get("max_steps", -1)
        if planned <= 0:
            return None
        return planned if self.budget == "each" else planned // len(run.pairs)

    def _arguments(self, run: Run, phase: str) -> dict[str, Any]:
        """Return what differs between a model's training and the multilingual one's."""
        steps, planned = self._steps(run, phase), run.budget(phase).arguments
        if steps is None or self.budget == "each":
            return {}
        # The same schedule, shorter: a warm-up that stays as it is could take the whole of it.
        warmup = planned.get("warmup_steps", 0)
        # Below 1 it is a share of the run already.
        return {"max_steps": steps, **({"warmup_steps": warmup // len(run.pairs)} if warmup >= 1 else {})}


def _make_vocabulary(data: DataConfig, settings: VocabularyConfig, base: str, folder: Path) -> None:
    """Leave a tokenizer, and a config of the base's shape that goes with it, in a folder."""
    tokenizer = make_tokenizer(data.read(data.train_split), settings, folder)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    ids |= {"decoder_start_token_id": tokenizer.eos_token_id}
    ids |= dict.fromkeys(("vocab_size", "decoder_vocab_size"), len(tokenizer))
    config = load_config(base)
    config.update({name: value for name, value in ids.items() if hasattr(config, name)})
    # Last, so that it says that all the rest is there.
    config.save_pretrained(folder)
