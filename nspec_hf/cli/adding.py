"""What `nspec add-pair` does: new pairs beside frozen weights, or, to compare, trained into all of them."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from nspec_hf import adding, data, evaluation, gating, serving, training
from nspec_hf.cli.pipeline import chosen_masks, directions, load, say
from nspec_hf.core import ConfigError, needs, require, require_writable

if TYPE_CHECKING:
    from transformers import PreTrainedModel


_BESIDE = "way=beside"


@needs(
    old_corpus="old_pairs",
    translate="way=replay|free",
    gate="masks",
    add__width=_BESIDE,
    add__lora=_BESIDE,
    add__copies=_BESIDE,
    add__pieces=_BESIDE,
    add__seed=_BESIDE,
)
def add_pair(
    model: str,
    pairs: str | Sequence[str],
    corpus: data.CorpusConfig,
    output: str,
    add: adding.AddConfig = adding.AddConfig(),
    train: training.TrainConfig = training.TrainConfig(),
    way: Literal["beside", "replay", "free"] = "beside",
    old_pairs: str | Sequence[str] = (),
    old_corpus: data.CorpusConfig | None = None,
    added: str | None = None,
    masks: str | None = None,
    gate: gating.GateConfig | None = None,
    train_split: str = "train",
    valid_split: str | None = "valid",
    translate: evaluation.TranslateConfig = evaluation.TranslateConfig(),
    codes: Mapping[str, str] | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Add pairs to a trained model; the outputs of all other pairs stay the same bits.

    Example: nspec add-pair --model facebook/m2m100_418M --pairs en-lb,lb-en --corpus.path data --output
    runs/lb --train.arguments '{max_steps: 2000, learning_rate: 1e-3, warmup_steps: 100}'

    What is new is left in the output's `added/`: nspec translate --model MODEL --added runs/lb/added. A
    language that the tokenizer has no tag for gets one.

    Args:
        model: Hub id or folder of the base.
        pairs: The new directions; several languages at once are several.
        corpus: Where their text lies.
        output: Folder of the run; one that was stopped goes on.
        add: What the new pairs get.
        train: The training run.
        way: `beside` frozen weights. For comparison: `free` trains everything on the new text, `replay` also
            on old text; both leave a whole model in `model/`, and say what the old pairs lost.
        old_pairs: Directions whose text says what is old; `beside` proves on it that nothing changed.
        old_corpus: Where their text lies; without it, where the new text does.
        added: Folder or Hub repository of what was added before; it stays as it is and goes into the new.
        masks: Folder or Hub repository of masks of the base's pairs, where it has some.
        gate: How they act; left out, as they did when a run trained the model.
        train_split: Text to train on.
        valid_split: Text whose loss is watched, and on which old pairs are scored; none: neither.
        translate: Decoding of old pairs, where they are scored.
        codes: Your language codes → the tokenizer's, where they differ.
        trust_remote_code: Whether code that the model's repository brings may run on this machine.
    """
    require_writable(output, is_folder=True)
    arguments = training.training_arguments(train, Path(output), evaluates=bool(valid_split))
    training.check_arguments(arguments, train.batches)
    old_names, new_names = directions(old_pairs), directions(pairs)
    require(
        way != "replay" or bool(old_names),
        "--way replay mixes old text in: give --old-pairs, and --old-corpus.path if it is elsewhere",
    )
    network, tags = load(model, codes, trust_remote_code, training=True)
    texts = data.read_corpus(corpus, new_names, train_split)
    watched = data.read_corpus(corpus, new_names, valid_split) if valid_split else []
    place = old_corpus or corpus
    old = data.read_corpus(place, old_names, train_split) if old_names else []
    if way == "beside":
        before, held = adding.load_added(added, network) if added else None, chosen_masks(masks)
        made = adding.add_pairs(
            network,
            tags,
            texts,
            add,
            train,
            output,
            validation=watched,
            old=old,
            before=before,
            masks=held,
            gate_config=gate if added else serving.as_trained(model, held, gate),
            base=model,
        )
        say(made.in_words())
        with_it = f"nspec translate --model {shlex.quote(model)} --added"
        say(f"{output}/{adding.ADDED_FOLDER}: use it with {with_it}")
        return
    if added or masks:
        raise ConfigError(f"--way {way} trains a plain model; --added and --masks are for --way beside")
    scored = data.read_corpus(place, old_names, valid_split) if old_names and valid_split else []
    first = _outputs(network, tags, scored, translate)
    tags, result = adding.retrain(
        network, tags, texts, add, train, output, validation=watched, replayed=old if way == "replay" else []
    )
    say(f"{output}/model: trained for {result.updates} updates in {result.seconds:.0f} seconds")
    if scored:
        outputs = {"base": first, "after": _outputs(network, tags, scored, translate)}
        references: dict[str, Sequence[str]] = {text.pair: text.targets for text in scored}
        say(evaluation.compare(outputs, references, "base", n_samples=1000, n_jobs=1).table())


def _outputs(
    network: "PreTrainedModel",
    tags: "data.LanguageTags",
    texts: "Sequence[data.PairText]",
    config: evaluation.TranslateConfig,
) -> dict[str, Sequence[str]]:
    translator = evaluation.Translator(network, tags, None, config)
    return {text.pair: translator.translate(list(text.sources), text.pair) for text in texts}
