"""One call from a repository or a folder to translations: model, tokenizer, masks, gate, translator.

Masks with a model that is named or lies beside them, a run, an exported model, a plain model: `layout.py`
tells which it is. The weights of a named model are compared with those that were stated.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

from transformers import PreTrainedTokenizerBase

from nspec_hf.adding import ADDED_FILE, AddedPairs, base_of, load_added
from nspec_hf.core import ArtifactError, ConfigError, ExportError, Pair, as_pairs, read_json, require, warn
from nspec_hf.data import LanguageTags, load_tokenizer
from nspec_hf.evaluation import TranslateConfig, Translator
from nspec_hf.export import REPORT_FILE, exported_masks, load_pruned
from nspec_hf.gating import Attachment, GateConfig, NeuronGate
from nspec_hf.masks import MASKS_FILE, NeuronMasks, fetch
from nspec_hf.recording import load_model, weight_fingerprint
from nspec_hf.serving.exported import ConvertedTranslator, ExportedTranslator
from nspec_hf.serving.layout import SMALL_FILES, Parts, Place, acts_as, recognized

_ROUNDING = "dtype", "quantization_config"
"""Options by which weights are others than those that were saved, which alone have the stated fingerprint."""


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """What `load` returns; `translate` is its translator's."""

    model: Any
    """The model; CTranslate2's own where it was exported for that, by pair where each has one."""
    tokenizer: PreTrainedTokenizerBase
    masks: NeuronMasks | None
    """None for a plain model and for an exported one, unless it was exported for several pairs."""
    gate: NeuronGate | None
    """On the model already; None where there are no masks, and where pairs were added to a model."""
    translator: Translator | ConvertedTranslator
    source: str
    """What was loaded, as it was asked for."""
    revision: str
    """Commit of the repository; empty for a folder."""
    base: str
    """Where the model's weights are from."""
    weights: str
    """Whether they are those that the masks go with, in words."""

    @property
    def _acting(self) -> Attachment | None:
        """What knows no pairs but those that it has neurons for; some may have been added to the masks'."""
        return None if self.masks is None else getattr(self.translator, "gate", None)

    @property
    def pairs(self) -> list[Pair] | None:
        """The pairs that have neurons of their own; None: all neurons run, for any pair of the tokenizer."""
        if self._acting is not None:
            return self._acting.pairs
        return getattr(self.translator, "pairs", None)

    @overload
    def translate(self, texts: str, pair: str, **generation: Any) -> str: ...
    @overload
    def translate(self, texts: Sequence[str], pair: str | Sequence[str], **generation: Any) -> list[str]: ...
    def translate(
        self, texts: str | Sequence[str], pair: str | Sequence[str], **generation: Any
    ) -> str | list[str]:
        """Return the translations; see `Translator.translate`. Threads may call it side by side."""
        return self.translator.translate(texts, pair, **generation)  # type: ignore[arg-type]

    def check(self, pair: str) -> None:
        """Check that a pair can be translated.

        Raises:
            UnknownPairError: If there are no neurons for it.
            UnknownLanguageError: If the tokenizer has no tag for a language.
        """
        if self._acting is not None:
            self._acting.include(pair)
        elif isinstance(self.translator, ExportedTranslator | ConvertedTranslator):
            self.translator.check(pair)
        self.translator.tags.check(pair)


def load(
    repo_or_folder: str | os.PathLike,
    revision: str | None = None,
    *,
    subfolder: str = "",
    base: str | os.PathLike | None = None,
    base_revision: str | None = None,
    translate: TranslateConfig | None = None,
    gate: GateConfig | None = None,
    coverage: float | None = None,
    codes: Mapping[str, str] | None = None,
    trust_remote_code: bool = False,
    download: Mapping[str, Any] | None = None,
    **options: Any,
) -> LoadedModel:
    """Load all that it takes to translate, from a repository of the Hub or a folder.

        nspec_hf.load("me/my-masks").translate(["A dog runs."], "en-de")

    Args:
        repo_or_folder: Masks, a run's folder, what was added to a model, an exported model, or a plain one.
        revision: Of the repository: a branch, tag or commit.
        subfolder: Folder inside it, where it holds several sets of masks.
        base: Hub id or folder of the model, in the place of the one that is named.
        base_revision: Its revision.
        translate: Decoding.
        gate: How the masks act, in the place of how they did in training.
        coverage: Of masks that keep several levels, the one to run: see `Translator`. None: the masks as they
            are.
        codes: Your language codes → the tokenizer's, where they differ.
        trust_remote_code: Whether code in the model's repository may run.
        download: For `huggingface_hub`: `token`, `cache_dir`, `local_files_only` …
        options: More for `load_model`: `device`, `dtype` … CTranslate2's models take none.

    Raises:
        FileNotFoundError: If it is neither a folder nor a repository.
        ArtifactError: If it holds none of these, a file is damaged, or the model is not named or not there.
        SiteMismatchError: If the masks are for another model.
        UnsupportedModelError: If the model was trained with more than masks (adapters …).
        ConfigError: If `base` is given for an exported model, `gate` for one without masks beside it, an
            option for one of CTranslate2, a revision of a base that is not given, or a coverage that the
            masks do not hold or no masks are there for.

    Warns:
        UserWarning: If the model's weights, masks or gate are others than what they were published or
            trained with.
    """
    download = dict(download or {})
    if base_revision is not None and base is None:
        raise ConfigError("base_revision goes with base=; the model that masks name has its own")
    here = fetch(repo_or_folder, (*SMALL_FILES, ADDED_FILE), revision, subfolder, download)
    place, commit = Place(str(here if subfolder else repo_or_folder), download), ""
    if not Path(repo_or_folder).is_dir():
        commit = here.parents[len(Path(subfolder).parts) - 1].name if subfolder else here.name
        place = Place(str(repo_or_folder), download, commit, subfolder)
    about = {"source": str(repo_or_folder), "revision": commit}
    if (here / REPORT_FILE).is_file():
        if base is not None or (gate is not None and not (here / MASKS_FILE).is_file()):
            raise ConfigError(
                f"{repo_or_folder} is an exported model, its masks baked in; give no base or gate"
            )
        folder = here if not commit else fetch(place.name, None, commit, subfolder, download)
        return _exported(folder, translate, gate, coverage, codes, about, options)
    given = None if base is None else Place(str(base), download, base_revision or "")
    is_added = (here / ADDED_FILE).is_file()
    parts = Parts(given or Place(base_of(here), download)) if is_added else recognized(here, place, given)
    if coverage is not None and not is_added:
        require(parts.masks is not None, f"{parts.place} has no masks whose coverage could be chosen")
        parts = replace(parts, masks=parts.masks and parts.masks.at(coverage))
    hub = {"trust_remote_code": trust_remote_code, **parts.place.hub}
    model, tokenizer = load_model(parts.place.name, **hub, **options), load_tokenizer(parts.place.name, **hub)
    own, exact = None, {name: value for name, value in options.items() if name not in _ROUNDING}
    saved = model
    if (is_added or parts.fingerprint) and exact != options:
        saved = load_model(parts.place.name, **hub, **exact)
    if is_added:  # `load_added` refuses another base
        acting: Any = _moved(load_added(here, saved, gate_config=gate, coverage=coverage), model).attach()
        parts, tokenizer = replace(parts, masks=acting.masks), acting.extend(tokenizer)
        weights = f"as stated, with {', '.join(pair for one in acting.additions for pair in one.pairs)} added"
    else:
        if parts.masks is not None:
            own = NeuronGate(model, parts.masks, acts_as(parts.place, parts.gate, gate)).attach()
        else:
            require(gate is None, f"{repo_or_folder} holds no masks that a gate could apply")
        acting = own
        weights = _compared(saved, parts)
    tags = LanguageTags(tokenizer, codes)
    return LoadedModel(
        model=model,
        tokenizer=tags.tokenizer,
        masks=parts.masks,
        gate=own,
        translator=Translator(model, tags, acting, translate),
        base=str(parts.place),
        weights=weights,
        **about,
    )


def _moved(added: AddedPairs, model: Any) -> AddedPairs:
    """Return what was added, for a model that was loaded from the same base in another type."""
    if model is added.model:
        return added
    additions = [one.to(dtype=model.dtype) for one in added.additions]
    return AddedPairs(model, additions, added.masks, added.gate_config)


def _compared(model: Any, parts: Parts) -> str:
    """Say whether a model's weights are those that its masks go with, and warn where they are not."""
    if not parts.fingerprint:
        return "nothing says which weights the masks go with" if parts.masks else "all neurons run"
    now = weight_fingerprint(model)
    if now == parts.fingerprint:
        return f"as stated ({now})"
    warn(
        f"the weights of {parts.place} ({now}) are not those that the masks go with ({parts.fingerprint}): "
        "the model was trained or replaced since; give base= (and base_revision=) of the one that was "
        "trained with them"
    )
    return f"others ({now}) than stated ({parts.fingerprint})"


def _exported(
    folder: Path,
    translate: TranslateConfig | None,
    gate: GateConfig | None,
    coverage: float | None,
    codes: Mapping[str, str] | None,
    about: Mapping[str, str],
    options: Mapping[str, Any],
) -> LoadedModel:
    report = read_json(folder / REPORT_FILE, ArtifactError)
    named = report.get("pairs") if isinstance(report, dict) else None
    if not isinstance(named, list) or not named or not all(isinstance(pair, str) for pair in named):
        raise ExportError(f"the report of the export in {folder} names no pairs; export it again")
    pairs = as_pairs(named)
    config = report.get("config", {})
    form = config.get("format")
    tags = LanguageTags(load_tokenizer(folder), codes)
    masks, attached = exported_masks(folder, coverage), None
    if form == "ctranslate2":
        if given := sorted(name for name, value in options.items() if value is not None):
            raise ConfigError(f"{folder} is a model of CTranslate2, which takes no {', '.join(given)}")
        known = report.get("positions")  # not in older ones
        positions = known if isinstance(known, int) else None
        translator: Any = ConvertedTranslator(folder, tags, pairs, translate, positions=positions)
        models = {pair: decoder.translator for pair, decoder in translator.decoders.items()}
        model: Any = models if len(set(models.values())) > 1 else models[pairs[0]]
    else:
        model = (load_pruned if form == "pruned" else load_model)(folder, **options)
        if masks is not None:  # several pairs, each with its own neurons
            gate = gate or GateConfig(silence=config.get("silence", "neuron"))
            attached = NeuronGate(model, masks, gate).attach()
            translator = Translator(model, tags, attached, translate)
        else:
            translator = ExportedTranslator(model, tags, pairs, translate)
    return LoadedModel(
        model=model,
        tokenizer=tags.tokenizer,
        masks=masks,
        gate=attached,
        translator=translator,
        base=str(folder),
        weights=f"exported as {form} from masks {report.get('masks')}",
        **about,
    )
