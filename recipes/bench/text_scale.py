"""Text that memory does not hold, from end to end: read, encoded, planned, stopped, started again.

    python -m recipes.bench.text_scale --work work/lines --millions 50 --json text_scale.json
    python -m recipes.bench.text_scale --work work/lines --millions 50 --minutes 30  # again, until it is done

Made-up lines of two to four words in eight languages, a million a language, so a pair of languages is a
million sentence pairs. Pairs are encoded one after the other, and one that is on disk is not encoded again:
a run that was stopped goes on where it was. Then two processes, one after the other, start a training with
all that is there, as far as its batches. Memory is what Linux says is the most that a process had, and its
children.

`--million` makes all of it smaller.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import islice, permutations
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from nspec_hf.core import Pair, atomic_write, digest, read_json, write_json, write_result
from nspec_hf.data import (
    BatchConfig,
    CorpusConfig,
    LanguageTags,
    PairBatchSampler,
    PairCollator,
    encode_corpus,
    read_corpus,
)
from recipes.bench.clock import processor_seconds

LANGUAGES = ("en", "de", "fr", "cs", "nl", "da", "sv", "pl")
PAIRS = [Pair(*each) for each in permutations(LANGUAGES, 2)]
WORDS = 2000
BATCHES, COMPARED = BatchConfig(max_tokens=4096), 200


def write_lines_of(folder: Path, code: str, million: int) -> None:
    """Write a language's lines, where they are not there."""
    path = folder / f"train.{code}"
    if not path.is_file():
        draw, words = random.Random(code), words_of(code)
        with atomic_write(path) as file:
            for _ in range(0, million, 1000):
                lines = (" ".join(draw.choices(words, k=draw.randint(2, 4))) for _ in range(1000))
                file.write("".join(f"{line}\n" for line in lines).encode())


def words_of(code: str) -> list[str]:
    """Return the words of a language."""
    draw = random.Random(f"words of {code}")
    return ["".join(draw.choices("abcdefghijklmnop", k=draw.randint(2, 6))) for _ in range(WORDS)]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return one that knows all words and splits at spaces, with a tag a language."""
    special = ["<s>", "<pad>", "</s>", "<unk>", *(f"__{code}__" for code in LANGUAGES)]
    known = dict.fromkeys([*special, *(word for code in LANGUAGES for word in words_of(code))])
    split = Tokenizer(models.WordLevel({word: i for i, word in enumerate(known)}, unk_token="<unk>"))
    split.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=split, additional_special_tokens=special[4:], **names)


def peak_mb() -> int:
    """Return the most memory that this process and those that it started have had, in MB."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return round(sum(resource.getrusage(kind).ru_maxrss for kind in kinds) / 1000)


def encode(options: argparse.Namespace) -> dict[str, Any]:
    """Read and encode pair after pair, as far as the minutes go; return what they took, all runs together."""
    log, tags = options.work / "encoded.json", LanguageTags(make_tokenizer())
    done = read_json(log) if log.is_file() else {}
    end = time.monotonic() + 60 * options.minutes
    for pair in PAIRS[: options.millions]:
        if str(pair) not in done and time.monotonic() < end:
            began, used = time.monotonic(), processor_seconds()
            for code in (pair.source, pair.target):
                write_lines_of(options.work, code, options.million)
            made = processor_seconds() - used
            corpus = encode_corpus(read_corpus(config_of(options), [pair], "train"), tags, progress=False)
            done[str(pair)] = {
                "sentence_pairs": len(corpus),
                "seconds": round(time.monotonic() - began, 2),
                "processor_seconds": round(processor_seconds() - used - made, 2),
                "peak_mb": peak_mb(),
            }
            write_json(log, done)
            print(f"{pair}: {done[str(pair)]}", file=sys.stderr, flush=True)
    return done


def config_of(options: argparse.Namespace) -> CorpusConfig:
    """Return where the text is and where it goes."""
    return CorpusConfig(path=str(options.work), store=str(options.work / "store"), num_proc=options.num_proc)


def start(options: argparse.Namespace) -> dict[str, Any]:
    """Start as a training does, with what is encoded; return its batches, by digest, and what it cost."""
    began, used = time.monotonic(), processor_seconds()
    pairs, tags = list(read_json(options.work / "encoded.json")), LanguageTags(make_tokenizer())
    corpus = encode_corpus(read_corpus(config_of(options), pairs, "train"), tags, progress=False)
    found = processor_seconds()
    sampler = PairBatchSampler(corpus.lengths, corpus.pair_ids, BATCHES)
    collate = PairCollator(tags, corpus.pairs)
    batches = (collate([corpus[row] for row in rows]) for rows in sampler)
    digests = [digest(*(batch[name].numpy() for name in sorted(batch))) for batch in islice(batches, 1)]
    seconds, planned = time.monotonic() - began, processor_seconds()
    digests += [digest(*(batch[name].numpy() for name in sorted(batch))) for batch in _next(batches)]
    return {
        "sentence_pairs": len(corpus),
        "batches": len(sampler),
        "digest_of_batches": digest(*digests),
        "digest_of_plan": digest(iter(sampler.plan(0))),
        "to_first_batch": {"seconds": round(seconds, 1), "processor_seconds": round(planned - used, 1)},
        "of_these_reading": {"processor_seconds": round(found - used, 1)},
        "peak_mb": peak_mb(),
    }


def _next(batches: Iterator[Any]) -> Iterator[Any]:
    return islice(batches, COMPARED - 1)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; return the exit status, 1 where a second start has other batches."""
    options = read_options(argv)
    options.work.mkdir(parents=True, exist_ok=True)
    if options.start:
        print(json.dumps(start(options)))
        return 0
    done = encode(options)
    if not done:
        print("text_scale: no pair was encoded in these minutes", file=sys.stderr)
        return 1
    sums = {
        name: sum(each[name] for each in done.values()) for name in ("sentence_pairs", "processor_seconds")
    }
    found: dict[str, Any] = {
        "encoded": {
            **{name: round(value) for name, value in sums.items()},
            "us_a_pair": round(1e6 * sums["processor_seconds"] / max(sums["sentence_pairs"], 1), 1),
            "peak_mb": max((each["peak_mb"] for each in done.values()), default=0),
            "disk_mb": round(sum(file.stat().st_size for file in options.work.rglob("*.arrow")) / 1e6),
            "complete": len(done) >= options.millions,
        }
    }
    again = [sys.executable, "-m", "recipes.bench.text_scale", "--start", *(argv or sys.argv[1:])]
    for name in ("first_start", "second_start"):
        ran = subprocess.run(again, check=True, capture_output=True, text=True)
        found[name] = json.loads(ran.stdout.splitlines()[-1])
    starts = [found["first_start"], found["second_start"]]
    same = all(starts[0][name] == starts[1][name] for name in ("digest_of_batches", "digest_of_plan"))
    found["same_batches"] = same
    print(json.dumps(found, indent=1))
    if options.json:
        config = {**vars(options), "work": options.work.name, "json": None}
        write_result(options.json, found, config)
    return 0 if same else 1


def read_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for the text; delete it afterwards")
    parser.add_argument("--millions", type=int, default=50, help="of sentence pairs; default: %(default)s")
    parser.add_argument("--million", type=int, default=1_000_000, help="lines that a million has, thousands")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no pair after so many")
    parser.add_argument("--num-proc", type=int, default=1, help="processes that encode")
    parser.add_argument("--json", help="file for the results, with versions and hardware")
    parser.add_argument("--start", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if not 0 < options.millions <= len(PAIRS):
        parser.error(f"--millions is at most {len(PAIRS)}, as many as there are pairs of languages")
    return options


if __name__ == "__main__":
    sys.exit(main())
