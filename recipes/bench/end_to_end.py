"""What a user sees: updates of a Trainer, `Translator`, and recording, each against the library's own way.

    only=updates_dense_vs_plain,updates_slice_vs_plain,translator_slice_vs_generate,record_vs_evaluate
    python -m recipes.bench --threads 1 --clock cpu --only $only --json end_to_end.json

Everything between the ends of two updates counts: reading and padding the batch, forward and backward pass,
the optimizer, callbacks, logging. Trainers cannot run in turns by themselves, so each has a thread and they
pass the turn on after every update; the time of an update is that of its own thread.
"""

import copy
import statistics
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from nspec_hf.core import Pair
from nspec_hf.data import (
    BatchConfig,
    EncodedCorpus,
    LanguageFamilies,
    LanguageTags,
    PairBatchSampler,
    PairCollator,
    PairText,
    SyntheticConfig,
    VocabularyConfig,
    encode_corpus,
    train_vocabulary,
)
from nspec_hf.evaluation import TranslateConfig, Translator
from nspec_hf.export import convert
from nspec_hf.gating import GateConfig, NeuronGate
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import RecordConfig, find_sites, record
from nspec_hf.training import SpecializationTrainer
from recipes.bench.clock import Measured, Rounds, ratios, time_rounds
from recipes.bench.measurements import DENSITY, Bench, Found
from recipes.bench.workload import make_masks, make_model, quiet_arguments, shared_copy

OURS = ("dense", "mask", "slice")
"""Without a gate, and with one in two modes."""
KEYS = (
    *(f"updates_{way}_vs_plain" for way in (*OURS, "lora")),
    *(f"translator_{way}_vs_generate" for way in (*OURS, "ctranslate2")),
    "record_vs_evaluate",
)


WARM = 2
"""Updates that are not timed."""
BATCHES = BatchConfig(max_tokens=1024, mixed=False)
"""One pair a batch, which slicing is fastest with, for all ways."""


class Turns:
    """Lets one thread at a time go on, each in its turn, and notes how long each had it.

    Args:
        names: Of the threads, in the order of their turns.
        now: The clock of a thread.
    """

    def __init__(self, names: Sequence[str], now: Callable[[], float]) -> None:
        self.now, self.seconds = now, {name: [] for name in names}
        self._waiting, self._changed = list(names), threading.Condition()
        self._since = 0.0

    def wait(self, name: str) -> None:
        """Return when it is this thread's turn."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting[0] == name)
        self._since = self.now()

    def end(self, name: str) -> None:
        """Note the time of this turn, and let the next thread go on."""
        self.seconds[name].append(self.now() - self._since)
        with self._changed:
            self._waiting.append(self._waiting.pop(0))
            self._changed.notify_all()

    def leave(self, name: str) -> None:
        """Take no more turns."""
        with self._changed:
            self._waiting.remove(name)
            self._changed.notify_all()


class TurnCallback(TrainerCallback):
    """Ends a trainer's turn with each of its updates."""

    def __init__(self, turns: Turns, name: str) -> None:
        self.turns, self.name = turns, name

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Let the others run."""
        self.turns.end(self.name)
        self.turns.wait(self.name)


class PlainTrainer(Seq2SeqTrainer):
    """The library's trainer with the batches of ours."""

    def get_train_dataloader(self) -> DataLoader:
        """Return the batches of the plan."""
        return _loader(self.train_dataset, self.data_collator)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Return the batches of the plan, in order of length."""
        return _loader(self.eval_dataset, self.data_collator, shuffle=False)


def end_to_end(bench: Bench) -> Found:
    """Updates, translations and recording."""
    shape, (rows, tokens, updates) = bench.plan.ends
    corpus, valid, collator, texts = made_text(rows, tokens)
    shape = replace(shape, vocabulary=max(shape.vocabulary, len(collator.tags.tokenizer)))
    model = make_model(shape, bench.device, bench.dtype)
    masks = make_masks(find_sites(model), corpus.pairs, DENSITY)
    setting = bench.setting(shape=str(shape), density=DENSITY, pairs=len(corpus.pairs))
    parts = {
        "updates": lambda: _updates(bench, model, masks, corpus, collator, updates),
        "translator": lambda: _translations(bench, model, masks, collator, texts, tokens),
        "record": lambda: _recording(bench, model, valid, collator),
    }
    for name, part in parts.items():
        keys = [key for key in KEYS if key.startswith(name) and bench.wants(key)]
        if keys and bench.due(*keys):
            for key, mine, other, more in part():
                yield key, Measured.of(ratios(mine, other), **setting, **more)


Timed = Iterator[tuple[str, Sequence[float], Sequence[float], dict[str, Any]]]
"""Key, our times, the library's times, setting."""


def made_text(
    rows: int, tokens: int
) -> tuple[EncodedCorpus, EncodedCorpus, PairCollator, list[tuple[str, Pair]]]:
    """Return text of four directions to train on and to evaluate, its collator, and some to translate."""
    families = LanguageFamilies(SyntheticConfig(families=1, languages=2))
    others = [code for code in families.languages if code != families.pivot]
    pairs = [Pair(*each) for code in others for each in ((families.pivot, code), (code, families.pivot))]

    def said(split: str, count: int) -> dict[str, list[str]]:
        lines = families.sentences(split, 4 * count).items()
        return {code: [" ".join(each[i : i + 4]) for i in range(0, len(each), 4)] for code, each in lines}

    train, valid, test = said("train", 8 * rows), said("valid", 2 * rows), said("test", rows)
    tokenizer = train_vocabulary(
        [line for lines in train.values() for line in lines], families.languages, VocabularyConfig(size=1000)
    )
    tags = LanguageTags(tokenizer)
    corpora = [
        encode_corpus(
            [PairText(pair, text[pair.source], text[pair.target]) for pair in pairs],
            tags,
            max_length=tokens,
            progress=False,
        )
        for text in (train, valid)
    ]
    texts = [(line, pair) for pair in pairs for line in test[pair.source]]
    return corpora[0], corpora[1], PairCollator(tags, pairs), texts


def _rounds(bench: Bench) -> Rounds:
    """Return more rounds than other long work has: here a hundredth is to be told from none."""
    rounds = bench.plan.long_rounds
    return replace(rounds, least=rounds.most // 2 + 1, most=3 * rounds.most, seconds=2 * rounds.seconds)


def _loader(corpus: Any, collate: Any, shuffle: bool = True) -> DataLoader:
    sampler = PairBatchSampler(corpus.lengths, corpus.pair_ids, BATCHES, shuffle=shuffle)
    return DataLoader(corpus, batch_sampler=sampler, collate_fn=collate)


def _updates(
    bench: Bench, model: PreTrainedModel, masks: NeuronMasks, corpus: EncodedCorpus, collator: Any, count: int
) -> Timed:
    """Updates of the plain trainer and of ours, in turns; each has a model of its own."""
    there = OURS if find_spec("peft") is None else (*OURS, "lora")
    ways = [way for way in there if bench.wants(f"updates_{way}_vs_plain")]
    clock = time.thread_time if bench.watch.now is time.process_time else bench.watch.now
    turns, failed = Turns(["plain", *ways], clock), []

    def train(way: str, trainer: Seq2SeqTrainer) -> None:
        try:
            turns.wait(way)
            trainer.train()
        except Exception as error:
            failed.append(error)
        finally:
            turns.leave(way)

    with tempfile.TemporaryDirectory() as folder:
        threads = []
        for way in ("plain", *ways):  # made one by one: what accelerate knows is common to all threads
            trainer = trainer_of(way, model, masks, corpus, collator, folder, count + WARM, bench.device)
            trainer.add_callback(TurnCallback(turns, way))
            threads.append(threading.Thread(target=train, args=(way, trainer)))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if failed:
        raise failed[0]
    plain = turns.seconds["plain"][WARM:]
    more = {"plain_updates_a_second": 1 / statistics.median(plain), "tokens": f"{BATCHES.max_tokens} a batch"}
    for way in ways:
        yield f"updates_{way}_vs_plain", turns.seconds[way][WARM:], plain, more


def trainer_of(
    way: str,
    model: PreTrainedModel,
    masks: NeuronMasks,
    corpus: EncodedCorpus,
    collator: PairCollator,
    folder: str,
    updates: int,
    device: torch.device,
) -> Seq2SeqTrainer:
    """Return a trainer of a copy of the model: `plain` and `lora` are the library's, which get no pairs."""
    own: Any = copy.deepcopy(model)
    if way == "lora":
        peft = import_module("peft")
        own = peft.get_peft_model(own, peft.LoraConfig(r=16, target_modules=["q_proj", "v_proj"]))
    args = Seq2SeqTrainingArguments(
        **quiet_arguments(folder, device.type == "cpu"),
        max_steps=updates,
        per_device_eval_batch_size=8,
        logging_steps=10,
        prediction_loss_only=True,
    )
    common: dict[str, Any] = {"model": own, "args": args, "train_dataset": corpus, "eval_dataset": corpus}
    if way in ("plain", "lora"):

        def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
            return {name: value for name, value in collator(rows).items() if name != "pair_ids"}

        trainer: Seq2SeqTrainer = PlainTrainer(**common, data_collator=collate)
    else:
        gate = None if way == "dense" else NeuronGate(own, masks, GateConfig(mode=way))
        trainer = SpecializationTrainer(**common, data_collator=collator, gate=gate, batch_config=BATCHES)
    trainer.remove_callback(PrinterCallback)
    return trainer


def _translations(
    bench: Bench,
    model: PreTrainedModel,
    masks: NeuronMasks,
    collator: PairCollator,
    texts: list[tuple[str, Pair]],
    tokens: int,
) -> Timed:
    """`Translator`, and CTranslate2, against `generate` in a loop: from text to text, batches of one pair."""
    tags = collator.tags
    # Every translation has the same length, so that all do the same work.
    length = {"min_new_tokens": tokens // 4, "max_new_tokens": tokens // 4}
    beams, by_pair = 5, {pair: [line for line, own in texts if own == pair] for pair in masks.pairs}
    config = TranslateConfig(num_beams=beams, max_tokens=10**6, progress=False)
    ways = [way for way in OURS if bench.wants(f"translator_{way}_vs_generate")]
    translators = {}
    for way in ways:
        own = shared_copy(model).eval()
        gate = None if way == "dense" else NeuronGate(own, masks, GateConfig(mode=way)).attach()
        translators[way] = Translator(own, tags, gate, config)
    if find_spec("ctranslate2") and bench.wants("translator_ctranslate2_vs_generate"):
        ways = [*ways, "ctranslate2"]
        in_ctranslate2 = engine_of(model, tags, beams, tokens // 4)
    plain = shared_copy(model).eval()

    def generate(pair: Pair) -> list[str]:
        lines = sorted(by_pair[pair], key=len, reverse=True)
        ids = tags.encode_source(lines, pair)
        batch = tags.tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(plain.device)
        prompt = tags.decoder_prefix(pair, plain.config.decoder_start_token_id)
        with torch.no_grad():
            written = plain.generate(
                **batch,
                decoder_input_ids=torch.tensor([prompt] * len(lines), device=plain.device),
                num_beams=beams,
                do_sample=False,
                **length,
            )
        return tags.tokenizer.batch_decode(written, skip_special_tokens=True)

    def translate(way: str, number: int) -> None:
        pair = masks.pairs[number % len(masks.pairs)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # none of these has an end
            if way == "generate":
                generate(pair)
            elif way == "ctranslate2":
                in_ctranslate2(by_pair[pair], pair)
            else:
                translators[way].translate(by_pair[pair], pair, **length)

    works = {way: partial(translate, way) for way in ("generate", *ways)}
    times = time_rounds(works, _rounds(bench), bench.watch)
    more = {"beams": beams, "rows": len(by_pair[masks.pairs[0]]), **length}
    for way in ways:
        yield f"translator_{way}_vs_generate", times[way], times["generate"], more


def engine_of(
    model: PreTrainedModel, tags: LanguageTags, beams: int, new_tokens: int
) -> Callable[[Sequence[str], Pair], list[str]]:
    """Return what translates texts with the whole model in CTranslate2, float32, each to so many tokens."""
    start, names = model.config.decoder_start_token_id, tags.tokenizer.convert_ids_to_tokens
    with tempfile.TemporaryDirectory() as folder:
        convert(model, tags.tokenizer, Path(folder), "float32", start=start)
        engine = import_module("ctranslate2").Translator(
            folder, inter_threads=1, intra_threads=torch.get_num_threads()
        )

    def translate(texts: Sequence[str], pair: Pair) -> list[str]:
        sources = [names(ids) for ids in tags.encode_source(list(texts), pair)]
        forced = names(tags.decoder_prefix(pair, start))[1:]
        made = engine.translate_batch(
            sources,
            target_prefix=[forced] * len(sources) if forced else None,
            beam_size=beams,
            min_decoding_length=new_tokens + len(forced),
            max_decoding_length=new_tokens + len(forced),
            max_input_length=0,
        )
        ids = [tags.tokenizer.convert_tokens_to_ids(each.hypotheses[0]) for each in made]
        return tags.tokenizer.batch_decode(ids, skip_special_tokens=True)

    return translate


def _recording(bench: Bench, model: PreTrainedModel, corpus: EncodedCorpus, collator: PairCollator) -> Timed:
    """`record` over a corpus against the plain trainer's `evaluate` of it."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of("plain", model, None, corpus, collator, folder, 1, bench.device)
        works = {
            "evaluate": lambda number: trainer.evaluate(),
            "record": lambda number: record(
                model, _loader(corpus, collator, shuffle=False), corpus.pairs, RecordConfig(progress=False)
            ),
        }
        times = time_rounds(works, _rounds(bench), bench.watch)
    yield "record_vs_evaluate", times["record"], times["evaluate"], {"sentences": len(corpus)}
