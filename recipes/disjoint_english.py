"""Cut multi-way text so that no English sentence stands in two pairs.

    python recipes/disjoint_english.py data/multi30k data/multi30k_disjoint --lines 8000

Multi30k has every caption in all of its languages, so that a model sees an English sentence once a language.
Here the first language beside English gets the first lines, the second the next ones, and so on: as many rows
a pair, three times the English. Validation and test text stay as they are.
`recipes/configs/multi30k_all/disjoint.yaml` trains on it what `low_english.yaml`, or `overfit.yaml`, trains
on repeated English.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from nspec_hf.core import CorpusError, Pair, exit_status, require_count, write_lines
from nspec_hf.data import CorpusConfig, read_corpus

LANGUAGES = ("de", "fr", "cs")
EVALUATED = ("val", "test_2016_flickr", "test_2018_flickr")


def read_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    first_line, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=first_line, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="Folder of multi-way text: train.en.xz, train.de.xz …")
    parser.add_argument("output", type=Path, help="Folder that is written.")
    parser.add_argument("--lines", type=int, default=8000, help="Rows of training text a pair.")
    parser.add_argument("--languages", nargs="+", default=LANGUAGES, help="Languages beside English.")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the recipe."""
    options = read_options(argv)
    files = list(disjoint(options.source, options.languages, options.lines))
    options.output.mkdir(parents=True, exist_ok=True)
    for name, lines in files:
        write_lines(options.output / name, lines)


def disjoint(source: Path, languages: Sequence[str], count: int) -> Iterator[tuple[str, list[str]]]:
    """Return the files' names and their lines, two training files a pair and one a language and other split.

    Raises:
        ConfigError: If `count` is not a positive number.
        CorpusError: If a file is missing, or there is less text than `count` lines for each language.
    """
    require_count("lines", count)
    config, pairs = CorpusConfig(path=str(source)), [Pair("en", code) for code in languages]
    for index, text in enumerate(read_corpus(config, pairs, "train")):
        if len(text) < count * len(languages):
            raise CorpusError(
                f"{source} has {len(text)} lines of English: {len(languages)} times {count} need "
                f"{count * len(languages)}"
            )
        rows = slice(index * count, (index + 1) * count)
        yield f"train.{text.pair}.en", list(text.sources[rows])
        yield f"train.{text.pair}.{text.pair.target}", list(text.targets[rows])
    for split in EVALUATED:
        texts = read_corpus(config, pairs, split)
        yield f"{split}.en", list(texts[0].sources)
        for text in texts:
            yield f"{split}.{text.pair.target}", list(text.targets)


if __name__ == "__main__":
    sys.exit(exit_status("disjoint_english.py", main))
