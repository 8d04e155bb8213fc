"""The whole method in minutes, on made-up language families: what `nspec demo` does.

A small world of languages with known kinship is made up and written as text. A tiny model learns all
directions out of and into the pivot; what its neurons do is recorded; each direction gets its own neurons;
and training goes on three times from the same base with the same updates, data order and schedule: with all
neurons (fine-tune), with each direction's own (neuron specialization), and with random neurons, equally many
(the control). All are compared on sentences that none has seen. `recipes/configs/demo.yaml` is the same
experiment for the recipes and `accelerate launch`.
"""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path

from transformers import (
    AutoTokenizer,
    M2M100Config,
    M2M100ForConditionalGeneration,
    PreTrainedModel,
    set_seed,
)

from nspec_hf.analysis import Analysis, analyze, draw_overlap_layers, save_figure, write_report
from nspec_hf.core import ConfigError, claim_folder, write_result, write_text
from nspec_hf.data import (
    LanguageFamilies,
    LanguageTags,
    SyntheticConfig,
    encode_corpus,
    read_outputs,
    train_vocabulary,
)
from nspec_hf.demo.display import (
    Speaker,
    TrainingBar,
    example_table,
    kinship_table,
    quiet_loading,
    scores_table,
)
from nspec_hf.demo.settings import demo_experiment
from nspec_hf.evaluation import Comparison, SystemScores, Translator, compare, evaluate_system
from nspec_hf.gating import NeuronGate
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import ActivationStats, load_model
from nspec_hf.systems import ExperimentConfig
from nspec_hf.training import TrainConfig, record_corpus, train

_RECORDED = 300  # sentences of each direction whose activations are counted


def demo(
    output: str = "demo_out",
    seed: int = 1,
    families: int = 3,
    languages: int = 3,
    sentences: int = 4000,
    updates: int = 1000,
    more_updates: int = 250,
    test_sentences: int = 200,
    trials: int = 1000,
    random_masks: bool = True,
) -> None:
    """Run the whole method on made-up language families: text → base → record → select → train → compare.

    Takes a few minutes on two processor cores and downloads nothing. Prints BLEU of every direction before
    and after, with a paired significance test, and shows that languages of one family share neurons. Run it
    again after a stop and it goes on; when it is done, open report.html in the output folder.

    Example: nspec demo --output demo_out

    Args:
        output: Folder that everything is written to.
        seed: Decides the languages, the text, the first weights and the order of the data.
        families: Number of language families besides the pivot, 2 to 15.
        languages: Number of languages in each family, 2 to 12.
        sentences: Training sentences, each in all languages.
        updates: Training steps of the base.
        more_updates: Further steps of each compared system.
        test_sentences: Unseen sentences that are translated for each direction.
        trials: Of the significance test.
        random_masks: Whether to train the control with random masks too.
    """
    if families < 2 or languages < 2:
        raise ConfigError(f"kinship needs 2 families of 2 languages, got {families} families of {languages}")
    world = LanguageFamilies(SyntheticConfig(seed=seed, families=families, languages=languages))
    config = demo_experiment(world, output, updates, more_updates)
    counts = {"train": sentences, "valid": _RECORDED, "test": test_sentences}
    claim_folder(output, {"text": world.config, "sentences": counts, "updates": [updates, more_updates]})
    with quiet_loading():
        _run(world, config, counts, trials, random_masks)


def _run(
    world: LanguageFamilies,
    config: ExperimentConfig,
    counts: Mapping[str, int],
    trials: int,
    random_masks: bool,
) -> None:
    speaker = Speaker()
    speaker.heading(f"Text of {len(world.languages)} made-up languages, {world.pivot} the pivot")
    for split, count in counts.items():
        world.write(config.data.corpus.path, split, count)
    speaker.show(example_table(world))
    bench = _Bench(config, speaker)
    speaker.heading("A base learns all directions out of and into the pivot")
    systems = {"base": bench.base()}
    speaker.heading("Which neurons does it use for which direction?")
    masks = bench.choose()
    more = config.specialize.arguments["max_steps"]
    speaker.heading(f"Training goes on from it for {more} updates, the same for every system")
    chosen: dict[str, NeuronMasks | None] = {"finetune": None, "neuron_specialization": masks}
    if random_masks:
        chosen["random"] = NeuronMasks.random(like=masks, seed=world.config.seed)
    systems |= {name: bench.system(name, own) for name, own in chosen.items()}
    speaker.heading("Results on sentences that no system has seen")
    comparison = bench.compare(list(chosen), trials)
    analysis = bench.analyze(masks, systems, comparison)
    speaker.show(scores_table(systems, comparison))
    speaker.show(kinship_table(analysis))
    output = Path(config.work)
    _write(output, analysis, comparison)
    speaker.heading("Done")
    speaker.show(_ending(output, world.pivot, world.languages[1]))


class _Bench:
    """The experiment at work: text, tokenizer and what each step needs of the steps before.

    It is the pipeline as one would write it for a single process; the recipes do the same for several.
    """

    def __init__(self, config: ExperimentConfig, speaker: Speaker) -> None:
        data, self.work = config.data, Path(config.work)
        self.config, self.speaker = config, speaker
        texts = {split: data.read(split) for split in (data.train_split, data.valid_split)}
        self.tests = data.read(data.test_split, [*data.trained_pairs(), *data.zero_shot_pairs()])
        folder = self.work / "base" / "tokenizer"
        if not (folder / "tokenizer.json").is_file():
            # Each language once, though the pivot is part of every direction.
            sides = {text.pair.source: text.sources for text in texts[data.train_split]}
            sentences = (sentence for side in sides.values() for sentence in side)
            train_vocabulary(sentences, data.languages, config.vocabulary).save_pretrained(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        tags = LanguageTags(self.tokenizer)
        length = config.pretrain.batches.max_length
        self.corpora = {split: encode_corpus(text, tags, length) for split, text in texts.items()}

    @property
    def stats_file(self) -> Path:
        return self.work / "nspec_stats.safetensors"

    def base(self) -> SystemScores:
        """Train the base from scratch."""
        ids, config = self.tokenizer, self.config
        set_seed(config.pretrain.arguments["seed"])
        settings = M2M100Config(
            vocab_size=len(ids),
            pad_token_id=ids.pad_token_id,
            bos_token_id=ids.bos_token_id,
            eos_token_id=ids.eos_token_id,
            decoder_start_token_id=ids.eos_token_id,
            **config.model,
        )
        return self._train("base", M2M100ForConditionalGeneration(settings), config.pretrain, None)

    def choose(self) -> NeuronMasks:
        """Count which neurons the base uses on the validation text, and keep the most active of each pair."""
        if self.stats_file.is_file():
            stats = ActivationStats.load(self.stats_file)
        else:
            about = {"name": self.config.name, "split": self.config.data.valid_split}
            corpus = self.corpora[self.config.data.valid_split]
            stats = record_corpus(
                self._load_base(), self.tokenizer, corpus, self.config.record, description=about
            )
            stats.save(self.stats_file)
        masks = NeuronMasks.from_config(stats, self.config.select)
        masks.save_pretrained(self.work / "masks")
        self.speaker.show(
            f"{_RECORDED} sentences of each of {len(masks.pairs)} directions; the most active neurons "
            f"that make {self.config.select.coverage:.0%} of its activations are kept: {masks.density():.0%}"
        )
        return masks

    def system(self, name: str, masks: NeuronMasks | None) -> SystemScores:
        """Go on from the base, with masks or with all neurons."""
        return self._train(name, self._load_base(), self.config.specialize, masks)

    def compare(self, names: list[str], trials: int) -> Comparison:
        """Test every system against fine-tuning on the trained directions.

        By bootstrap: few translations differ, and sacreBLEU's approximate randomization counts only trials
        that exceed the real difference, so that a single changed sentence would be significant.
        """
        trained = self.config.data.trained_pairs()
        outputs = {name: read_outputs(self.work / name / "outputs") for name in names}
        return compare(
            {name: {pair: lines[pair] for pair in trained} for name, lines in outputs.items()},
            {text.pair: text.targets for text in self.tests},
            "finetune",
            ("bleu",),
            "bs",
            n_samples=trials,
        )

    def analyze(
        self, masks: NeuronMasks, systems: Mapping[str, SystemScores], comparison: Comparison
    ) -> Analysis:
        """Look at the masks and scores from all sides."""
        return analyze(
            masks,
            ActivationStats.load(self.stats_file),
            {
                name: {pair: scores.value(pair, "bleu") for pair in scores.pairs}
                for name, scores in systems.items()
            },
            self.config.data.families,
            comparison=comparison,
            baseline="finetune",
            pivot=self.config.data.pivot,
        )

    def _load_base(self) -> PreTrainedModel:
        return load_model(self.config.base_model, self.config.model, for_training=True)

    def _train(
        self,
        name: str,
        model: M2M100ForConditionalGeneration,
        run: TrainConfig,
        masks: NeuronMasks | None,
    ) -> SystemScores:
        """Train, translate and score one system; write its scores."""
        config, folder = self.config, self.work / name
        corpus = self.corpora[config.data.train_split]
        gate = NeuronGate(model, masks, config.gate) if masks else None
        validation = self.corpora[config.data.valid_split]
        bar = TrainingBar(name)
        result = train(
            model,
            self.tokenizer,
            corpus,
            run,
            folder,
            validation,
            gate,
            callbacks=[bar],
            shows_progress=False,
        )
        if gate is not None:
            gate.detach()
            # Directions that were not trained have the encoder neurons of one and the decoder's of another.
            for pair in config.data.zero_shot_pairs():
                masks = masks.compose(pair, config.data.pivot)
            gate = NeuronGate(model, masks, config.gate)
        translator = Translator(model, self.tokenizer, gate, config.translate)
        with warnings.catch_warnings():
            # So small a model gets lost in directions that it was not trained for; the table says how much.
            warnings.filterwarnings("ignore", message=".*reached their longest length")
            scores = evaluate_system(
                name, translator, self.tests, folder / "outputs", config.metrics, config.data.pivot
            )
        outcome = {"system": name, "parameters": model.num_parameters(), **result.facts()}
        outcome |= {"density": masks and masks.density(), "masks": masks and masks.fingerprint()}
        write_result(
            Path(config.results) / f"{name}.json", {**outcome, "scores": json.loads(scores.to_json())}, config
        )
        trained = [scores.value(pair, "bleu") for pair in config.data.trained_pairs()]
        self.speaker.show(
            f"{name}: {result.updates} updates in {result.seconds:.0f} s, mean BLEU "
            f"{sum(trained) / len(trained):.1f} on {len(trained)} trained directions"
        )
        return scores


def _write(output: Path, analysis: Analysis, comparison: Comparison) -> None:
    write_text(output / "scores" / "comparison.json", comparison.to_json() + "\n")
    save_figure(draw_overlap_layers(analysis.progression, analysis.families), output, "overlap")
    write_report(analysis, output / "report.html", "Neurons of made-up language families")


def _ending(output: Path, pivot: str, language: str) -> str:
    """Return what was written and what to do next."""
    kib = (output / "masks" / "nspec_masks.safetensors").stat().st_size / 1024
    system = output / "neuron_specialization"
    files = {
        "report.html": "open it in a browser: every layer, pair and number, in one page",
        "overlap.png, .svg": "overlap of neurons, layer by layer; the frames are families",
        "masks/": f"each direction's neurons, {kib:.0f} KiB, as they would be pushed to the Hub",
        "scores/": "BLEU with signatures and recipe, and the significance test, as JSON",
        "data/": "the text, one file a language",
        "base/, finetune/ …": "models, checkpoints and translations",
    }
    commands = (
        f"nspec inspect --path {output}/masks",
        f"head -3 {output}/data/test.{pivot} | nspec translate --model {system}/model "
        f"--masks {output}/masks --pair {pivot}-{language}",
        f"nspec select --stats {output}/nspec_stats.safetensors --select.coverage 0.8 --output masks-80",
        "nspec --help",
    )
    lines = [f"  {name:<20}{what}" for name, what in files.items()]
    return "\n".join([f"{output}:", *lines, "next, for instance:", *(f"  {line}" for line in commands)])
