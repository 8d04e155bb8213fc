"""What `nspec translate` does: lines of one pair, or the test text of many pairs at once."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from nspec_hf import adding, data, evaluation, gating, masks as masks_room, serving
from nspec_hf.cli.pipeline import chosen_masks, directions, load, say
from nspec_hf.core import (
    as_line,
    needs,
    program,
    read_lines,
    require,
    require_writable,
    write_lines,
)


@needs(split="corpus", gate="masks or added")
def translate(
    model: str,
    pair: str | Sequence[str] | None = None,
    masks: str | None = None,
    input: str | None = None,
    output: str | None = None,
    corpus: data.CorpusConfig | None = None,
    split: str = "test",
    translate: evaluation.TranslateConfig = evaluation.TranslateConfig(),
    gate: gating.GateConfig | None = None,
    coverage: float | None = None,
    codes: Mapping[str, str] | None = None,
    trust_remote_code: bool = False,
    added: str | None = None,
) -> None:
    """Translate text, one sentence a line, UTF-8; or, with a corpus, all pairs of it into a folder.

    Example: echo 'A dog runs.' | nspec translate --model runs/mine/model --masks masks --pair en-de
    Example: nspec translate --model runs/mine/model --masks masks --corpus.path data --output outputs/mine

    The folder gets a file a pair, en-de.txt …, as `nspec evaluate` and `nspec compare` read it. What lies
    there, made by the same model, masks and settings, is not translated again.

    Args:
        model: Hub id or folder.
        pair: The direction; of a corpus one, several (`en-de,de-en`), or, left out, all that have masks.
        masks: Folder or Hub repository of masks; without masks all neurons are used.
        input: A file, packed (.gz, .xz, .bz2) or plain; left out or -: standard input.
        output: A file, or - for standard output; with a corpus a folder, `outputs/NAME` if left out.
        corpus: Where the text of many pairs lies: --corpus.path DIR with DIR/test.en, DIR/test.de …
        split: Which text of the corpus.
        translate: Decoding.
        gate: How masks act; `--gate.zero_shot compose` takes pairs that have none of their own. Left out,
            they act as they did when a run trained the model, or when pairs were added to it.
        coverage: Of masks that keep several levels (what was added may hold such masks), the one to run:
            lower is faster.
        codes: Your language codes → the tokenizer's, where they differ.
        trust_remote_code: Whether code that the model's repository brings may run on this machine.
        added: Folder or Hub repository of what `nspec add-pair` added to the model; it holds masks of the old
            pairs, where there are some.
    """
    require(not (added and masks), "what was added holds the masks of the old pairs: give --added alone")
    require(
        coverage is None or bool(masks or added),
        "coverage chooses among the levels of masks; give --masks, or --added that holds some",
    )

    def translator(held: "masks_room.NeuronMasks | None") -> "evaluation.Translator":
        how = gate if added else serving.as_trained(model, held, gate)
        network, tags = load(model, codes, trust_remote_code)
        if added is None:
            level = coverage if held else None
            return evaluation.Translator(network, tags, held, translate, how if held else None, level)
        beside = adding.load_added(added, network, gate_config=gate, coverage=coverage)
        tags = data.LanguageTags(beside.extend(tags.tokenizer), codes)
        return evaluation.Translator(network, tags, beside, translate)

    named = directions(pair) if pair else []
    if corpus is None:
        require(len(named) == 1, "give --pair en-de for lines of text, or --corpus.path DIR for many pairs")
        output, input = output or "-", input or "-"
        if output != "-":
            require_writable(output)
        lines = read_lines(sys.stdin.buffer if input == "-" else Path(input))
        translations = [as_line(line) for line in translator(chosen_masks(masks)).translate(lines, named[0])]
        write_lines(sys.stdout.buffer if output == "-" else output, translations)
        return
    require(input is None, "give the text as --input FILE or as --corpus.path DIR, and not both")
    output = output or f"outputs/{_name(model)}"
    require(output != "-", "translations of a corpus go into a folder; give --output DIR")
    require_writable(output, is_folder=True)
    chosen = chosen_masks(masks)
    pairs = named or (chosen.pairs if chosen else [])
    require(bool(pairs), "without masks, name the pairs: --pair en-de,de-en")
    texts = data.read_corpus(corpus, pairs, split)
    outputs = evaluation.translate_test_set(translator(chosen), texts, Path(output))
    kind, place = ("path", corpus.path) if corpus.path else ("dataset", corpus.dataset)
    say(
        f"{output}: {sum(map(len, outputs.values())):,} sentences of {len(outputs)} directions; next: "
        f"{program()} evaluate --hypotheses {shlex.quote(output)} --corpus.{kind} {shlex.quote(str(place))} "
        f"--split {split}"
    )


def _name(model: str) -> str:
    """Return what a model's translations are called: `mine` for `runs/mine/model`."""
    parts = [part for part in Path(model).parts if part not in ("model", "/", ".", "..")]
    require(bool(parts), "give --output DIR; this model's path gives no name")
    return parts[-1]
