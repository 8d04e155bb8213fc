"""What `nspec record`, `select`, `train`, `inspect` and `export` do, one function a command.

Each is one step of the pipeline on files: statistics, masks, models and text. A function's arguments are the
command's, and the string under a field of a configuration class is that setting's help. Rooms are imported
whole, so that what needs torch is loaded when a command runs and not for its help.
"""

import contextlib
import dataclasses
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nspec_hf import (
    analysis,
    data,
    export as exporting,
    gating,
    masks as masks_room,
    recording,
    serving,
    training,
)
from nspec_hf.core import (
    ArtifactError,
    ConfigError,
    NspecError,
    Pair,
    Table,
    as_pairs,
    listed,
    needs,
    program,
    require,
    require_count,
    require_new,
    require_writable,
    warn,
    warn_unused,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def record(
    model: str,
    pairs: str | Sequence[str],
    corpus: data.CorpusConfig,
    output: str = "nspec_stats.safetensors",
    split: str = "valid",
    record: recording.RecordConfig = recording.RecordConfig(),
    codes: Mapping[str, str] | None = None,
    trust_remote_code: bool = False,
    max_tokens: int = 4096,
    max_length: int = 256,
) -> None:
    """Count which neurons a trained model uses for which pair.

    Example: nspec record --model facebook/m2m100_418M --pairs en-de,de-en --corpus.path data --split valid

    Args:
        model: Hub id or folder of a trained model.
        pairs: The directions: `en-de,de-en`.
        corpus: Where the text lies.
        output: File that the statistics are written to.
        split: Which text to count on; about a thousand sentences a pair are enough.
        record: What to count.
        codes: Your language codes → the tokenizer's, where they differ.
        trust_remote_code: Whether code that the model's repository brings may run on this machine.
        max_tokens: Token budget of a batch.
        max_length: Longest sentence in tokens.
    """
    require_count("max_tokens", max_tokens)
    require_count("max_length", max_length)
    require_writable(output)
    network, tags = load(model, codes, trust_remote_code)
    encoded = data.encode_corpus(data.read_corpus(corpus, directions(pairs), split), tags, max_length)
    about = {"path": corpus.path or corpus.dataset, "split": split}
    stats = training.record_corpus(network, tags, encoded, record, max_tokens, about)
    stats.save(output)
    counted = f"{len(stats.pairs)} pairs at {len(stats.sites)} sites"
    say(f"{output}: {counted}; next: {program()} select --stats {shlex.quote(output)}")


def select(
    stats: str = "nspec_stats.safetensors",
    output: str = "masks",
    coverage: masks_room.Coverage | None = None,
    select: masks_room.SelectConfig = masks_room.SelectConfig(),
    levels: Sequence[float] = (),
) -> None:
    """Choose each pair's neurons from recorded statistics; takes no time, so try several coverages.

    Example: nspec select --stats nspec_stats.safetensors --coverage 0.9 --output masks-90

    Args:
        stats: What `nspec record` wrote.
        output: Folder of the masks.
        coverage: Share of a layer's activations that the kept neurons cover, in (0, 1]; lower keeps fewer. Or
            `paper` (0.95), `sparse` (0.6).
        select: The rule.
        levels: Further coverages that the folder keeps, `1.0,0.8`: for `nspec translate --coverage`.
    """
    if coverage is not None:
        require(select.method == "coverage", f"method {select.method} has no coverage")
        select = dataclasses.replace(select, coverage=coverage)
    require_writable(output, is_folder=True)
    warn_unused(select, masks_room.BY_METHOD, "--select.")
    masks = masks_room.NeuronMasks.from_config(recording.ActivationStats.load(stats), select, levels)
    masks.save_pretrained(output)
    say(_density_table(masks))
    say(f"{output}: {masks!r}; next: {program()} train --masks {shlex.quote(output)}")


@needs(gate="masks")
def train(
    model: str,
    corpus: data.CorpusConfig,
    output: str,
    masks: str | None = None,
    pairs: str | Sequence[str] | None = None,
    max_steps: int | None = None,
    learning_rate: float | None = None,
    batch_tokens: int | None = None,
    seed: int | None = None,
    train: training.TrainConfig = training.TrainConfig(),
    gate: gating.GateConfig = gating.GateConfig(),
    train_split: str = "train",
    valid_split: str | None = "valid",
    codes: Mapping[str, str] | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Continue training, each pair with its own neurons. A run that was stopped goes on.

    Example: nspec train --model facebook/m2m100_418M --masks masks --corpus.path data --output runs/mine
    --max_steps 5000 --learning_rate 5e-5 --train.warmup_steps 200

    Args:
        model: Hub id or folder of the model that was recorded.
        corpus: Where the text lies.
        output: Folder of the run; the trained model is left in its `model/`.
        masks: Folder or Hub repository of masks; without masks all neurons train for all `pairs`.
        pairs: The directions, where there are no masks to name them.
        max_steps: Updates.
        learning_rate: The highest learning rate.
        batch_tokens: Token budget of a batch.
        seed: Of the order of the text, and of dropout.
        train: The training run; any argument of the Trainer by its name, `--train.warmup_steps 200`.
        gate: How masks act.
        train_split: Text to train on.
        valid_split: Text whose loss is watched; none: it is not.
        codes: Your language codes → the tokenizer's, where they differ.
        trust_remote_code: Whether code that the model's repository brings may run on this machine.
    """
    require_writable(output, is_folder=True)
    require(
        (masks is None) != (pairs is None),
        "give masks, whose pairs are then trained, or pairs, to train them with all neurons",
    )
    chosen = chosen_masks(masks)
    require(
        not train.elastic or bool(chosen and chosen.levels),
        "train.elastic needs masks of several coverages: nspec select --coverage 0.6 --levels '[1.0, 0.8]'",
    )
    trained = chosen.pairs if chosen else directions(pairs or ())
    train = train.changed(max_steps, learning_rate, batch_tokens, seed)
    arguments = training.training_arguments(train, Path(output), bool(valid_split), trained)
    training.check_arguments(arguments, train.batches)  # before any work
    network, tags = load(model, codes, trust_remote_code, training=True)
    longest = train.batches.max_length or train.batches.max_tokens
    texts = data.encode_corpus(data.read_corpus(corpus, trained, train_split), tags, longest)
    valid_texts = None
    if valid_split:
        valid_texts = data.encode_corpus(data.read_corpus(corpus, trained, valid_split), tags, longest)
    neuron_gate = gating.NeuronGate(network, chosen, gate) if chosen else None
    result = training.train(network, tags, texts, train, output, valid_texts, neuron_gate)
    done = "had ended already, after" if result.had_ended else "trained for"
    say(f"{output}/model: {done} {result.updates} updates in {result.seconds:.0f} seconds")


def inspect(path: str, kinds: Sequence[str] = ("ffn",)) -> None:
    """Show what masks, statistics or a model hold.

    Example: nspec inspect --path masks

    Args:
        path: Folder or repository of masks, a statistics file, or a model.
        kinds: For a model: which sites to list.
    """
    if path.endswith(".safetensors"):
        with contextlib.suppress(ArtifactError):
            _only_for_models(kinds)
            return say(_stats_table(recording.ActivationStats.load(path)))
    try:
        masks = masks_room.NeuronMasks.from_pretrained(path)
    except (ArtifactError, OSError) as error:
        try:
            network = recording.empty_model(path)
        except NspecError:
            raise ArtifactError(f"{path} holds neither masks, statistics nor a model: {error}") from error
        return say(_sites_table(network, tuple(kinds)))
    _only_for_models(kinds)
    facts = {**dataclasses.asdict(masks.recipe), "fingerprint": masks.fingerprint()}
    facts["levels"] = ", ".join(
        f"coverage {level:g} keeps {masks.at(level).density():.0%}" for level in masks.levels
    )
    say(_density_table(masks))
    for name, value in facts.items():
        if value:
            say(f"{name}: {value}")


@needs(
    split="corpus",
    count_split="trim_vocabulary",
    export__min_count="trim_vocabulary",
    export__silence="masks",
    export__group="masks",
)
def export(
    model: str,
    pairs: str | Sequence[str],
    output: str,
    masks: str | None = None,
    trim_vocabulary: bool = False,
    export: exporting.ExportConfig = exporting.ExportConfig(),
    corpus: data.CorpusConfig | None = None,
    split: str = "test",
    count_split: str = "train",
    coverage: float | None = None,
    codes: Mapping[str, str] | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Write a model that has only the neurons of one pair, or of several together, and only their subwords.

    Example: nspec export --model runs/mine/model --masks masks --pairs en-de,de-en --output small
    --trim-vocabulary --corpus.path data --export.format ctranslate2 --export.quantization int8_float32

    Args:
        model: Hub id or folder of the trained model.
        pairs: The pair, or pairs with commas between them.
        output: Folder that is written; must not hold anything yet.
        masks: Folder or Hub repository of masks; without masks all neurons stay.
        trim_vocabulary: Whether to leave the subwords out that text of these pairs does not need.
        export: Form, and what it must prove.
        corpus: Where text lies to count subwords and to prove it on; without it, sentences are made up.
        split: Which text to prove it on.
        count_split: Which text to count subwords on.
        coverage: Of masks that keep several levels, the one to export.
        codes: Your language codes → the tokenizer's, where they differ.
        trust_remote_code: Whether code that the model's repository brings may run on this machine.
    """
    if trim_vocabulary and corpus is None:
        raise ConfigError("trimming counts subwords on text of the pairs; give --corpus.path FOLDER")
    require_new(output)
    chosen = chosen_masks(masks, coverage)
    serving.as_trained(model, chosen_masks(masks), gating.GateConfig(silence=export.silence))
    wanted, texts, counted = directions(pairs), [], None
    if corpus is not None:
        texts = data.read_corpus(corpus, wanted, split)
        counted = data.read_corpus(corpus, wanted, count_split) if trim_vocabulary else None
    network, tags = load(model, codes, trust_remote_code, paged=True)
    made = exporting.export_model(
        network,
        tags.tokenizer,
        chosen,
        wanted,
        output,
        export,
        codes=codes,
        counted=counted,
        held_out=texts,
        release=True,
    )
    say(made)


def chosen_masks(masks: str | None, coverage: float | None = None) -> "masks_room.NeuronMasks | None":
    """Return the masks of a folder or Hub repository, at one of their levels; None where there are none."""
    if masks is None:
        require(coverage is None, "coverage chooses among the levels of masks; give --masks")
        return None
    chosen = masks_room.NeuronMasks.from_pretrained(masks)
    return chosen if coverage is None else chosen.at(coverage)


def _only_for_models(kinds: Sequence[str]) -> None:
    if tuple(kinds) != ("ffn",):
        warn("--kinds has no effect here: statistics and masks are shown with the sites that they hold")


def directions(pairs: str | Sequence[str]) -> list[Pair]:
    """Return pairs that were given with commas between them, or as a list."""
    return as_pairs(listed(pairs) if isinstance(pairs, str) else pairs)


def load(
    model: str,
    codes: Mapping[str, str] | None = None,
    trust_remote_code: bool = False,
    training: bool = False,
    paged: bool = False,
) -> "tuple[PreTrainedModel, data.LanguageTags]":
    """Load a model, and its tokenizer as one that knows how languages are spelled.

    A model for `training` has no layer dropout; the weights of a `paged` one leave memory till they are used.

    Raises:
        ArtifactError: If there is no such model.
    """
    network = recording.load_model(model, for_training=training, trust_remote_code=trust_remote_code)
    if paged:
        exporting.page_out(*network.parameters())
    tokenizer = data.load_tokenizer(model, trust_remote_code=trust_remote_code)
    return network, data.LanguageTags(tokenizer, codes)


def _density_table(masks: "masks_room.NeuronMasks") -> Table:
    """Return the share of neurons kept: a line a pair, a column a site."""
    names = [site.name for site in masks.sites]
    rows = tuple(
        (str(pair), *(float(masks.density(pair, name)) for name in (*names, None))) for pair in masks.pairs
    )
    sites = [site.side[:3] + analysis.site_label(site).removeprefix(site.side) for site in masks.sites]
    return Table(title="Share of neurons kept", columns=("pair", *sites, "all"), rows=rows, digits=3)


def _stats_table(stats: "recording.ActivationStats") -> Table:
    rows = tuple((str(pair), stats.sentences(pair), stats.tokens(pair)) for pair in stats.pairs)
    about = (
        f"{len(stats.sites)} sites of kinds {', '.join(stats.config.kinds)}, counting {stats.config.count}"
    )
    return Table(title="Recorded", columns=("pair", "sentences", "tokens"), rows=rows, notes=(about,))


def _sites_table(model: "PreTrainedModel", kinds: tuple[str, ...]) -> Table:
    rows = tuple(
        (site.name, site.side, site.layer, site.kind, site.width)
        for site in recording.find_sites(model, kinds)
    )
    return Table(title=type(model).__name__, columns=("site", "side", "layer", "kind", "neurons"), rows=rows)


def say(what: object) -> None:
    """Print what a command has to say."""
    sys.stdout.write(f"{what}\n")
