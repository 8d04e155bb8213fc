"""What `nspec record`, `select`, `train`, `translate` and `inspect` do, one function a command.

Each is one step of the pipeline on files: statistics, masks, models and text. A function's arguments are the
command's, and the string under a field of a configuration class is that setting's help.
"""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from nspec_hf.core import ArtifactError, ConfigError, NspecError, Pair, Table, as_pairs
from nspec_hf.data import CorpusConfig, LanguageTags, encode_corpus, read_corpus
from nspec_hf.evaluation import TranslateConfig, Translator
from nspec_hf.gating import GateConfig, NeuronGate
from nspec_hf.masks import NeuronMasks, SelectConfig
from nspec_hf.recording import ActivationStats, RecordConfig, find_sites, load_config, load_model
from nspec_hf.training import TrainConfig, record_corpus, train as train_run


def record(
    model: str,
    pairs: str | Sequence[str],
    corpus: CorpusConfig,
    output: str = "nspec_stats.safetensors",
    split: str = "valid",
    record: RecordConfig = RecordConfig(),
    codes: Mapping[str, str] | None = None,
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
        max_tokens: Token budget of a batch.
        max_length: Longest sentence in tokens.
    """
    network, tokenizer = _load(model)
    texts = read_corpus(corpus, _directions(pairs), split)
    encoded = encode_corpus(texts, LanguageTags(tokenizer, codes), max_length)
    about = {"path": corpus.path or corpus.dataset, "split": split}
    stats = record_corpus(network, tokenizer, encoded, record, max_tokens, about)
    stats.save(output)
    _say(
        f"{output}: {len(stats.pairs)} pairs at {len(stats.sites)} sites; next: nspec select --stats {output}"
    )


def select(
    stats: str = "nspec_stats.safetensors", output: str = "masks", select: SelectConfig = SelectConfig()
) -> None:
    """Choose each pair's neurons from recorded statistics; takes no time, so try several coverages.

    Example: nspec select --stats nspec_stats.safetensors --select.coverage 0.9 --output masks-90

    Args:
        stats: What `nspec record` wrote.
        output: Folder of the masks.
        select: The rule.
    """
    masks = NeuronMasks.from_config(ActivationStats.load(stats), select)
    masks.save_pretrained(output)
    _say(_density_table(masks))
    _say(f"{output}: {masks!r}; next: nspec train --masks {output}")


def train(
    model: str,
    corpus: CorpusConfig,
    output: str,
    masks: str | None = None,
    pairs: str | Sequence[str] | None = None,
    train: TrainConfig = TrainConfig(),
    gate: GateConfig = GateConfig(),
    train_split: str = "train",
    valid_split: str | None = "valid",
    codes: Mapping[str, str] | None = None,
) -> None:
    """Continue training, each pair with its own neurons. A run that was stopped goes on.

    Example: nspec train --model facebook/m2m100_418M --masks masks --corpus.path data --output runs/mine
    --train.arguments '{max_steps: 5000, learning_rate: 5e-5, warmup_steps: 200}'

    Args:
        model: Hub id or folder of the model that was recorded.
        corpus: Where the text lies.
        output: Folder of the run; the trained model is left in its `model/`.
        masks: Folder or Hub repository of masks; without masks all neurons train for all `pairs`.
        pairs: The directions, where there are no masks to name them.
        train: The training run.
        gate: How masks act.
        train_split: Text to train on.
        valid_split: Text whose loss is watched; none: it is not.
        codes: Your language codes → the tokenizer's, where they differ.
    """
    if (masks is None) == (pairs is None):
        raise ConfigError(
            "give masks, whose pairs are then trained, or pairs, to train them with all neurons"
        )
    network, tokenizer = _load(model, training=True)
    chosen = NeuronMasks.from_pretrained(masks) if masks else None
    directions = chosen.pairs if chosen else _directions(pairs or ())
    tags = LanguageTags(tokenizer, codes)
    length = train.batches.max_length
    text = encode_corpus(read_corpus(corpus, directions, train_split), tags, length)
    validation = (
        encode_corpus(read_corpus(corpus, directions, valid_split), tags, length) if valid_split else None
    )
    neuron_gate = NeuronGate(network, chosen, gate) if chosen else None
    result = train_run(network, tokenizer, text, train, output, validation, neuron_gate)
    _say(f"{output}/model: trained for {result.updates} updates in {result.seconds:.0f} seconds")


def translate(
    model: str,
    pair: str,
    masks: str | None = None,
    input: str = "-",
    output: str = "-",
    translate: TranslateConfig = TranslateConfig(),
    gate: GateConfig = GateConfig(),
    codes: Mapping[str, str] | None = None,
) -> None:
    """Translate text, one sentence a line.

    Example: echo 'A dog runs.' | nspec translate --model runs/mine/model --masks masks --pair en-de

    Args:
        model: Hub id or folder.
        pair: The direction.
        masks: Folder or Hub repository of masks; without masks all neurons are used.
        input: A file, or - for standard input.
        output: A file, or - for standard output.
        translate: Decoding.
        gate: How masks act; `--gate.zero_shot compose` takes pairs that have none of their own.
        codes: Your language codes → the tokenizer's, where they differ.
    """
    network, tokenizer = _load(model)
    chosen = NeuronMasks.from_pretrained(masks) if masks else None
    translator = Translator(network, tokenizer, chosen, translate, gate if chosen else None, codes)
    text = sys.stdin.read() if input == "-" else Path(input).read_text(encoding="utf-8")
    lines = "".join(f"{line}\n" for line in translator.translate(text.splitlines(), pair))
    if output == "-":
        sys.stdout.write(lines)
    else:
        Path(output).write_text(lines, encoding="utf-8")


def inspect(path: str, kinds: Sequence[str] = ("ffn",)) -> None:
    """Show what masks, statistics or a model hold.

    Example: nspec inspect --path masks

    Args:
        path: Folder or repository of masks, a statistics file, or a model.
        kinds: For a model: which sites to list.
    """
    if path.endswith(".safetensors") and _is_stats(path):
        _say(_stats_table(ActivationStats.load(path)))
        return
    try:
        masks = NeuronMasks.from_pretrained(path)
    except (ArtifactError, OSError) as error:
        try:
            network = AutoModelForSeq2SeqLM.from_config(load_config(path))
        except (NspecError, ValueError):
            raise ArtifactError(f"{path} holds neither masks, statistics nor a model: {error}") from error
        _say(_sites_table(network, tuple(kinds)))
        return
    _say(_density_table(masks))
    facts = {**dataclasses.asdict(masks.recipe), "fingerprint": masks.fingerprint()}
    _say("\n".join(f"{name}: {value}" for name, value in facts.items() if value))


def _directions(pairs: str | Sequence[str]) -> list[Pair]:
    return as_pairs(pairs.split(",") if isinstance(pairs, str) else pairs)


def _load(model: str, training: bool = False) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model and its tokenizer; for training without layer dropout, where it has that setting.

    Raises:
        ArtifactError: If there is no such model.
    """
    return load_model(model, for_training=training), AutoTokenizer.from_pretrained(model)


def _is_stats(path: str) -> bool:
    try:
        ActivationStats.load(path)
    except ArtifactError:
        return False
    return True


def _density_table(masks: NeuronMasks) -> Table:
    """Return the share of neurons kept: a line a pair, a column a site."""
    rows = tuple(
        (
            str(pair),
            *(float(masks.density(pair, site.name)) for site in masks.sites),
            float(masks.density(pair)),
        )
        for pair in masks.pairs
    )
    columns = ("pair", *(f"{site.side[:3]} {site.layer}" for site in masks.sites), "all")
    return Table(title="Share of neurons kept", columns=columns, rows=rows, digits=3)


def _stats_table(stats: ActivationStats) -> Table:
    rows = tuple((str(pair), stats.sentences(pair), stats.tokens(pair)) for pair in stats.pairs)
    about = f"{len(stats.sites)} sites of kinds {', '.join(stats.config.kinds)}, counting {stats.count}"
    return Table(title="Recorded", columns=("pair", "sentences", "tokens"), rows=rows, notes=(about,))


def _sites_table(model: PreTrainedModel, kinds: tuple[str, ...]) -> Table:
    rows = tuple(
        (site.name, site.side, site.layer, site.kind, site.width) for site in find_sites(model, kinds)
    )
    return Table(title=type(model).__name__, columns=("site", "side", "layer", "kind", "neurons"), rows=rows)


def _say(what: object) -> None:
    Console(stderr=False, highlight=False, markup=False, soft_wrap=True).print(str(what))
