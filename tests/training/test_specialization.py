"""Four lines in a script of one's own: the masks, losses and outputs of the long way, for every family."""

import copy
import io
import json
import pickle
import warnings
from unittest.mock import MagicMock

import pytest
import torch
from accelerate import Accelerator
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset
from transformers import AutoModelForSeq2SeqLM, DataCollatorForSeq2Seq, GenerationConfig, Seq2SeqTrainer

import nspec_hf
from nspec_hf import Specialization
from nspec_hf.core import ConfigError, CorpusError, RoutingError, TrainingSetupError, UnknownPairError
from nspec_hf.data import LanguageTags, PairCollator
from nspec_hf.gating import MASKS_FOLDER, NeuronGate, attachment_of
from nspec_hf.masks import NeuronMasks, SelectConfig
from nspec_hf.recording import record
from nspec_hf.training import SpecializationTrainer
from tests.helpers.pages import README, blocks
from tests.helpers.scripts import FAMILIES, LOOP, TRAINER, diffs, long_way, patched, plain, run, write_family
from tests.helpers.tiny_text import PAIRS, corpus, masks, model, same_weights, tokenizer
from tests.helpers.two_processes import run_in_processes
from tests.training.test_trainer import arguments

STEPS = ["--max_steps", "2", "--logging_steps", "1", "--learning_rate", "0.01", "--report_to", "none"]
COMMON = [*STEPS, "--use_cpu", "--disable_tqdm", "true", "--seed", "3", "--dataloader_pin_memory", "false"]
COMMON += ["--max_length", "24"]
GENERATES = ["--predict_with_generate", "--generation_max_length", "12"]
EVALUATES = ["--eval_strategy", "steps", "--eval_steps", "1", "--save_strategy", "steps", "--save_steps", "1"]


def log_of(trainer):
    """Return the numbers of a trainer's log that are no times."""
    lines = trainer.state.log_history
    return [
        {name: value for name, value in line.items() if "runtime" not in name and "second" not in name}
        for line in lines
    ]


def saved_masks(folder):
    return NeuronMasks.from_pretrained(folder / MASKS_FOLDER)


def added(diff):
    lines = [line for line in diff.splitlines() if not line.startswith(("+++", "---"))]
    assert not [line for line in lines if line.startswith("-")]
    return [line for line in lines if line.startswith("+")]


def test_the_guide_adds_four_lines_to_each_script_and_one_more_for_several_pairs_and_changes_none():
    of_trainer, of_loop, of_column = diffs()
    assert len(added(of_trainer)) == len(added(of_loop)) == 4
    assert len(added(of_column)) == 1
    (of_readme,) = blocks(README, "diff")
    shown = [line.split("  #")[0].replace(" ", "") for line in added(of_readme)]
    assert shown == [line.replace(" ", "") for line in added(of_trainer)]
    for name in (TRAINER, LOOP):
        assert "nspec" not in plain(name)


@pytest.mark.medium
@pytest.mark.parametrize("several", [False, True], ids=["one_pair", "two_pairs"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_trainer_s_script_with_four_lines_equals_the_long_way(family, several, tmp_path):
    pairs = FAMILIES[family][2][: 1 + several]
    argv = [*write_family(tmp_path, family, pairs).argv, *COMMON, *GENERATES, *EVALUATES]
    argv += ["--label_smoothing_factor", "0.1", "--per_device_train_batch_size", "4"]
    argv += [
        "--gradient_accumulation_steps",
        "2",
        "--load_best_model_at_end",
        "--metric_for_best_model",
        "loss",
    ]
    short, said = run(
        patched(tmp_path, TRAINER, pairs[0], several), [*argv, "--output_dir", tmp_path / "short"]
    )
    # The order in which the script finds the pairs is the alphabet's.
    long, expected = run(long_way(TRAINER, sorted(pairs)), [*argv, "--output_dir", tmp_path / "long"])
    assert saved_masks(tmp_path / "short") == saved_masks(tmp_path / "long" / "checkpoint-2")
    assert saved_masks(tmp_path / "short" / "checkpoint-1") == saved_masks(tmp_path / "short")
    assert 0 < saved_masks(tmp_path / "short").density() < 1
    for line, other in zip(log_of(short), log_of(long), strict=True):
        assert line == pytest.approx(other, abs=1e-5)
    assert "eval_chrf" in log_of(short)[1]
    assert said.predictions.tolist() == expected.predictions.tolist()
    reloaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "short")
    for name, weight in long.model.state_dict().items():
        torch.testing.assert_close(reloaded.state_dict()[name], weight, atol=1e-6, rtol=1e-5)


@pytest.mark.medium
@pytest.mark.parametrize("several", [False, True], ids=["one_pair", "two_pairs"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_loop_with_four_lines_equals_the_long_way(family, several, tmp_path):
    pairs = FAMILIES[family][2][: 1 + several]
    argv = [*write_family(tmp_path, family, pairs).argv, "--accumulation", "2", "--patience", "1"]
    source = patched(tmp_path, LOOP, pairs[0], several)
    short = run(source, [*argv, "--output_dir", tmp_path / "short"])
    long = run(long_way(LOOP, sorted(pairs)), [*argv, "--output_dir", tmp_path / "long"])
    assert saved_masks(tmp_path / "short") == attachment_of(long[0]).masks
    assert saved_masks(tmp_path / "short" / "epoch_0") == saved_masks(tmp_path / "short")
    assert short[1] == pytest.approx(long[1], abs=1e-5)
    assert short[2] == pytest.approx(long[2], abs=1e-4)
    assert short[3] == long[3]
    reloaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "short")
    assert same_weights(reloaded, short[0])


def target_tags(family, made, pairs):
    return {
        made.tokenizer.convert_tokens_to_ids(made.tokenizer.tokenize(f"__{pair[-2:]}__")) for pair in pairs
    }


@pytest.mark.medium
def test_a_forced_token_of_the_script_does_not_give_two_pairs_one_language(tmp_path):
    pairs = FAMILIES["nllb"][2]
    made = write_family(tmp_path, "nllb", pairs)
    argv = [*made.argv, *COMMON, *GENERATES, "--save_strategy", "no", "--output_dir", tmp_path / "run"]
    _, said = run(patched(tmp_path, TRAINER, "", True), [*argv, "--forced_bos_token", "deu_Latn"])
    tags = [made.tokenizer.convert_tokens_to_ids(pair.partition("-")[2]) for pair in pairs]
    assert said.predictions[:, 1].tolist() == tags * 6
    _, dense = run(plain(TRAINER), [*argv, "--forced_bos_token", "deu_Latn"])
    assert set(dense.predictions[:, 1].tolist()) == {tags[0]}


@pytest.mark.medium
def test_the_folder_that_the_script_leaves_is_loaded_with_its_masks_and_how_they_acted(tmp_path):
    pairs = FAMILIES["m2m100"][2]
    made = write_family(tmp_path, "m2m100", pairs)
    argv = [*made.argv, *COMMON, "--save_strategy", "no", "--output_dir", tmp_path / "run"]
    how = 'column="pair", gate=nspec_hf.GateConfig(silence="weights")'
    source = patched(tmp_path, TRAINER, "", True).replace('column="pair"', how)
    trainer, _ = run("import nspec_hf\n" + source, argv)
    loaded = nspec_hf.load(tmp_path / "run")
    assert loaded.gate.config.silence == "weights"
    assert loaded.masks == trainer.gate.masks
    texts = ["a small dog", "ein kleiner hund", "two men talk"], ["en-de", "de-en", "en-de"]
    translator = nspec_hf.Translator(trainer.model, made.tokenizer, trainer.gate)
    assert loaded.translate(*texts) == translator.translate(*texts)


@pytest.mark.medium
def test_the_adapters_that_a_script_leaves_are_loaded_with_its_masks(tmp_path):
    pytest.importorskip("peft")
    pairs = FAMILIES["m2m100"][2]
    made = write_family(tmp_path, "m2m100", pairs)
    argv = [*made.argv, *COMMON, "--save_strategy", "no", "--output_dir", tmp_path / "run"]
    collator = "    data_collator = DataCollatorForSeq2Seq("
    lora = "peft.LoraConfig(r=2, target_modules=['q_proj', 'fc1'], init_lora_weights=False)"
    source = patched(tmp_path, TRAINER, "", True)
    source = source.replace(collator, f"    model = peft.get_peft_model(model, {lora})\n{collator}")
    trainer, _ = run("import peft\n" + source, argv)
    assert not (tmp_path / "run" / "config.json").exists()
    loaded = nspec_hf.load(tmp_path / "run")
    assert loaded.masks == trainer.gate.masks
    ids = {"input_ids": torch.tensor([[5, 6, 7, 2]] * 2), "decoder_input_ids": torch.tensor([[2, 9, 8]] * 2)}
    with torch.no_grad():
        expected = trainer.model.eval()(**ids, pair_ids=torch.tensor([0, 1])).logits
        found = loaded.model(**ids, pair_ids=torch.tensor([0, 1])).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.medium
@pytest.mark.parametrize("again", ["same", "other"])
def test_a_script_that_goes_on_from_a_checkpoint_goes_on_with_its_masks(again, tmp_path):
    """Bit for bit; where other masks would be recorded now, as in half precision, it says so."""
    pairs = FAMILIES["m2m100"][2]
    argv = [*write_family(tmp_path, "m2m100", pairs).argv, *COMMON, *GENERATES, *EVALUATES]
    source = patched(tmp_path, TRAINER, "", True)
    run(source, [*argv, "--output_dir", tmp_path / "whole"])
    resumed = [*argv, "--resume_from_checkpoint", tmp_path / "whole" / "checkpoint-1"]
    if again == "other":
        source = source.replace('column="pair"', 'column="pair", select=nspec_hf.SelectConfig(coverage=0.5)')
        source = "import nspec_hf\n" + source
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        trainer, _ = run(source, [*resumed, "--output_dir", tmp_path / "again"])
    warned = [str(each.message) for each in seen if "was trained with other masks" in str(each.message)]
    assert len(warned) == (again == "other")
    assert saved_masks(tmp_path / "again") == saved_masks(tmp_path / "whole")
    ends = [AutoModelForSeq2SeqLM.from_pretrained(tmp_path / name) for name in ("whole", "again")]
    assert same_weights(*ends)
    assert trainer.state.global_step == 2


@pytest.mark.medium
def test_a_loop_that_loads_a_state_goes_on_with_its_masks(tmp_path):
    pairs = FAMILIES["t5"][2]
    argv = write_family(tmp_path, "t5", pairs).argv
    source = patched(tmp_path, LOOP, "", True)
    run(source, [*argv, "--output_dir", tmp_path / "whole"])
    resume = ["--resume", tmp_path / "whole" / "epoch_0"]
    other = "import nspec_hf\n" + source.replace(
        'column="pair"', 'column="pair", select=nspec_hf.SelectConfig(coverage=0.5)'
    )
    with pytest.warns(UserWarning, match="training goes on with the checkpoint's"):
        run(other, [*argv, *resume, "--output_dir", tmp_path / "again"])
    assert saved_masks(tmp_path / "again") == saved_masks(tmp_path / "whole")
    # The same where the state is loaded before anything is recorded.
    late = other.replace("    specialize.record(eval_dataloader)\n", "").replace(
        "    losses, evaluated", "    specialize.record(eval_dataloader)\n    losses, evaluated"
    )
    run(late, [*argv, *resume, "--output_dir", tmp_path / "late"])
    assert saved_masks(tmp_path / "late") == saved_masks(tmp_path / "whole")


@pytest.mark.medium
def test_early_stopping_ends_the_script_and_keeps_the_best(tmp_path):
    pairs = FAMILIES["marian"][2]
    made = write_family(tmp_path, "marian", pairs)
    argv = [*made.argv, *COMMON, *EVALUATES, "--patience", "1", "--max_steps", "9", "--learning_rate", "3.0"]
    argv += ["--load_best_model_at_end", "--metric_for_best_model", "loss", "--output_dir", tmp_path / "run"]
    trainer, _ = run(patched(tmp_path, TRAINER, "", True), argv)
    assert trainer.state.global_step < 9
    best = AutoModelForSeq2SeqLM.from_pretrained(trainer.state.best_model_checkpoint)
    assert same_weights(best, AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "run"))
    assert saved_masks(tmp_path / "run").pairs == sorted(pairs)


def in_two(index, count, folder, sources, argv):
    trainer, said = run(
        sources[0], [*argv, *COMMON, *GENERATES, "--save_strategy", "no", "--output_dir", f"{folder}/both"]
    )
    _, losses, evaluated, _ = run(sources[1], [*argv, "--output_dir", f"{folder}/loop"])
    with open(f"{folder}/{index}.json", "w") as file:
        json.dump([log_of(trainer), said.predictions.tolist(), losses, evaluated], file)


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    pairs = FAMILIES["m2m100"][2]
    argv = [str(each) for each in write_family(tmp_path, "m2m100", pairs).argv]
    sources = [patched(tmp_path, name, "", True) for name in (TRAINER, LOOP)]
    size = "--per_device_train_batch_size"
    run_in_processes(in_two, 2, str(tmp_path), sources, [*argv[:6]], seconds=600)
    alone, said = run(
        sources[0],
        [*argv, *COMMON, *GENERATES, size, "16", "--save_strategy", "no", "--output_dir", tmp_path / "one"],
    )
    for index in range(2):
        lines, predictions, losses, _ = json.loads((tmp_path / f"{index}.json").read_text())
        for line, other in zip(lines[:2], log_of(alone)[:2], strict=True):
            assert line["loss"] == pytest.approx(other["loss"], abs=1e-4)
            assert line["density"] == other["density"]
        # The library's own predict would repeat the first rows at the end, to fill the last batches.
        assert predictions == said.predictions.tolist()
        assert len(losses) == 8
    assert saved_masks(tmp_path / "both") == saved_masks(tmp_path / "one") == saved_masks(tmp_path / "loop")


# ---- in one process, on the tiny text ----------------------------------------------------------------------


def rows(count=4, pairs=PAIRS):
    encoded = corpus(count, pairs=pairs)
    return [{**encoded[i], "pair": str(encoded[i]["pair"])} for i in range(len(encoded))]


def script(folder, network=None, data=None, kind=Seq2SeqTrainer, **settings):
    network, data = network or model(), data if data is not None else rows()
    return kind(
        model=network,
        args=arguments(folder, remove_unused_columns=True, per_device_train_batch_size=4, **settings),
        train_dataset=data,
        eval_dataset=data,
        processing_class=tokenizer(),
        data_collator=DataCollatorForSeq2Seq(tokenizer(), model=network),
    )


def specialized(trainer, **settings):
    specialize = Specialization(trainer.model, tokenizer(), **{"column": "pair", **settings})
    specialize.join(trainer)
    specialize.record(trainer.get_eval_dataloader())
    return specialize


def test_masks_are_those_of_the_equation_by_hand(tmp_path):
    """Counted one sentence at a time by hooks of the test's own, chosen by the rule written out."""
    trainer = script(tmp_path)
    network = copy.deepcopy(trainer.model)
    found = specialized(trainer).gate.masks
    collate = PairCollator(tokenizer(), PAIRS)
    site = "model.decoder.layers.1.fc1"
    counts = {pair: torch.zeros(20, dtype=torch.long) for pair in PAIRS}
    fired = []
    hook = network.get_submodule("model.decoder.layers.1.fc2").register_forward_pre_hook(
        lambda module, args: fired.append((args[0] > 0).flatten(0, -2).sum(0))
    )
    for row in rows():
        batch = collate([row])
        batch.pop("pair_ids")
        with torch.no_grad():
            network(**batch)
        counts[row["pair"]] += fired.pop()
    hook.remove()
    for pair in PAIRS:
        order = sorted(range(20), key=lambda neuron: (-int(counts[pair][neuron]), neuron))
        kept, covered = [], 0
        while covered < 0.95 * int(counts[pair].sum()):
            covered += int(counts[pair][order[len(kept)]])
            kept.append(order[len(kept)])
        assert found[pair][site].nonzero()[:, 0].tolist() == sorted(kept)


def test_recording_draws_no_random_numbers_and_leaves_the_mode(tmp_path):
    trainer = script(tmp_path)
    trainer.model.train()
    before = torch.random.get_rng_state()
    specialized(trainer)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert trainer.model.training


def test_before_recording_an_evaluation_is_dense_and_training_is_refused(tmp_path):
    network = model()
    expected = script(tmp_path, copy.deepcopy(network), predict_with_generate=True).predict(rows())
    trainer = script(tmp_path, network, predict_with_generate=True)
    specialize = Specialization(network, tokenizer(), column="pair", pairs=PAIRS)
    specialize.join(trainer)
    found = trainer.predict(rows())
    assert found.metrics["test_loss"] == pytest.approx(expected.metrics["test_loss"], abs=1e-5)
    with pytest.raises(TrainingSetupError, match=r"before specialize\.record"):
        trainer.train()
    specialize.record(trainer.get_eval_dataloader())
    assert trainer.predict(rows()).metrics["test_loss"] != pytest.approx(found.metrics["test_loss"], abs=1e-3)
    trainer.train()


def test_a_class_of_the_script_stays_below_and_its_methods_are_asked(tmp_path):
    class Own(Seq2SeqTrainer):
        asked = 0

        def compute_loss(self, *args, **kwargs):
            self.asked += 1
            return super().compute_loss(*args, **kwargs)

    trainer = script(tmp_path, kind=Own)
    specialized(trainer)
    trainer.train()
    assert isinstance(trainer, SpecializationTrainer)
    assert isinstance(trainer, Own)
    assert trainer.asked == 3
    again = script(tmp_path, kind=SpecializationTrainer)
    specialized(again)
    assert type(again) is SpecializationTrainer


@pytest.mark.parametrize("normalized", [False, True], ids=["mean", "over_all_items"])
def test_a_class_with_a_loss_of_its_own_gets_what_the_plain_trainer_gives_it(normalized, tmp_path):
    """Gradients of four accumulated micro-batches are those of their mean, not four times as large."""

    class Own(Seq2SeqTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            labels = inputs.pop("labels")
            outputs = model(**inputs)
            losses = torch.nn.functional.cross_entropy(
                outputs.logits.flatten(0, 1), labels.flatten(), reduction="none"
            )
            counted = normalized and num_items_in_batch is not None
            loss = losses.sum() / (num_items_in_batch if counted else (labels != -100).sum())
            return (loss, outputs) if return_outputs else loss

    network, reference = model(), model()
    network.accepts_loss_kwargs = False
    trainer = script(tmp_path, network, kind=Own, gradient_accumulation_steps=4, max_grad_norm=1e9)
    specialized(trainer)
    NeuronGate(reference, trainer.gate.masks).attach()
    collate = trainer.data_collator
    sum(reference(**collate(rows()[start : start + 4])).loss / 4 for start in (0, 4, 8, 12)).backward()
    norm = torch.cat([each.grad.flatten() for each in reference.parameters() if each.grad is not None]).norm()
    trainer.train()
    assert log_of(trainer)[0]["grad_norm"] == pytest.approx(float(norm), rel=1e-4)
    assert trainer.evaluate()["eval_loss"] > 0


@pytest.mark.parametrize("generates", [False, True])
def test_the_loss_of_an_evaluation_is_not_smoothed_whether_it_generates_or_not(generates, tmp_path):
    settings = {"label_smoothing_factor": 0.3, "per_device_eval_batch_size": 16}
    trainer = script(tmp_path, predict_with_generate=generates, generation_max_length=4, **settings)
    collate, total, tokens = PairCollator(tokenizer(), specialized(trainer).pairs), 0.0, 0
    for row in rows():
        batch = collate([row])
        labels = batch.pop("labels")[0]
        with torch.no_grad():
            log_p = trainer.model.eval()(**batch).logits[0].log_softmax(-1)
        total -= sum(log_p[place, label].item() for place, label in enumerate(labels))
        tokens += len(labels)
    assert trainer.predict(rows()).metrics["test_loss"] == pytest.approx(total / tokens, abs=1e-5)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(total / tokens, abs=1e-5)
    assert trainer.label_smoother is not None


def test_a_loss_of_the_script_is_left_alone(tmp_path):
    trainer = script(tmp_path)
    trainer.compute_loss_func = own = lambda outputs, labels, num_items_in_batch=None: outputs[
        "logits"
    ].mean()
    specialized(trainer)
    assert trainer.compute_loss_func is own


def loader(network, data=None, collate=None):
    collate = collate or DataCollatorForSeq2Seq(tokenizer(), model=network)
    return DataLoader(data or rows(), batch_size=4, collate_fn=collate)


def prepared(network, specialize, workers=0):
    accelerator = Accelerator(cpu=True)
    specialize.join(accelerator)
    collate = DataCollatorForSeq2Seq(tokenizer(), model=network)
    return accelerator.prepare(DataLoader(rows(), 4, collate_fn=collate, num_workers=workers))


@pytest.mark.parametrize("workers", [0, 1])
def test_generate_knows_the_rows_of_a_batch_whose_ids_alone_it_gets(workers):
    network = model()
    specialize = Specialization(network, tokenizer(), column="pair")
    batches = prepared(network, specialize, workers)
    specialize.record(batches)
    tags = specialize.rows.tags
    for batch in batches:
        settings = {"attention_mask": batch["attention_mask"], "max_new_tokens": 5, "num_beams": 2}
        found = network.generate(batch["input_ids"], **settings)
        pairs = [specialize.pairs[i] for i in batch["pair_ids"].tolist()]
        assert found[:, 1].tolist() == [tags.tag_id(pair.target) for pair in pairs]
        assert found.equal(network.generate(batch.input_ids, pair_ids=batch["pair_ids"], **settings))
        ids = batch["input_ids"]
        with pytest.raises(RoutingError, match="no pair is known"):
            network.generate(ids.clone(), **settings)
        # A prompt of the caller's own stays.
        own = torch.full((len(ids), 3), 7)
        begun = network.generate(ids, decoder_input_ids=own, **settings)
        assert begun[:, -own.shape[1] - 5 :][:, :3].shape == own.shape
        assert (begun == 7).sum() >= own.numel()


def test_one_pair_needs_no_join_and_no_column():
    network = model()
    data = [{name: row[name] for name in ("input_ids", "labels")} for row in rows(pairs=PAIRS[:1])]
    batches = loader(network, data)
    specialize = Specialization(network, tokenizer(), pair="en-de")
    found = specialize.record(batches)
    other = model()
    collate = PairCollator(tokenizer(), PAIRS[:1])
    long = record(other, [collate([row]) for row in rows(pairs=PAIRS[:1])], PAIRS[:1])
    assert found == NeuronMasks.from_coverage(long)
    batch = next(iter(batches))
    with NeuronGate(other, found) as gate:
        gate.use("en-de")
        assert network(**batch).loss.equal(other(**batch).loss)
    tag = specialize.rows.tags.tag_id("de")
    assert set(network.generate(batch["input_ids"], max_new_tokens=3)[:, 1].tolist()) == {tag}


def test_generate_begins_in_the_pair_s_language_however_it_is_given_rows_and_pairs():
    network, tag = model(), tokenizer().convert_tokens_to_ids
    specialize = Specialization(network, tokenizer(), pair="en-de")
    encoded = corpus(count=5).subset("en-de")
    batch = PairCollator(tokenizer(), ["en-de"])([encoded[i] for i in range(5)])
    batch.pop("pair_ids")
    specialize.record([batch])
    known = {"attention_mask": batch["attention_mask"], "max_new_tokens": 5}
    wanted = network.generate(batch["input_ids"], **known)
    assert (wanted[:, 1] == tag("__de__")).all()
    encoder = network.get_encoder()
    for given in (
        {"inputs_embeds": encoder.embed_tokens(batch["input_ids"])},
        {"encoder_outputs": encoder(batch["input_ids"], attention_mask=batch["attention_mask"])},
        {"input_ids": batch["input_ids"], "pair_ids": ["en-de"] * 5},
        {"input_ids": batch["input_ids"], "pair_ids": [0] * 5},
    ):
        assert network.generate(**given, **known).tolist() == wanted.tolist()
    with pytest.warns(UserWarning, match=f"forced_bos_token_id={tag('__fr__')} is not followed"):
        other = network.generate(batch["input_ids"], forced_bos_token_id=tag("__fr__"), **known)
    assert other.tolist() == wanted.tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network.generate(batch["input_ids"], forced_bos_token_id=tag("__de__"), **known)


def test_generate_writes_as_many_new_tokens_as_the_script_s_own_does():
    """Against the library's `forced_bos_token_id` on a copy, with the gate and the pair alone."""
    network, pairs = model(), PAIRS[:1]
    specialize = Specialization(network, tokenizer(), pair="en-de")
    collate = PairCollator(tokenizer(), pairs)
    batch = collate([corpus(3, pairs=pairs)[i] for i in range(3)])
    ids, mask = batch["input_ids"], batch["attention_mask"]
    specialize.record([batch])
    plain_one = model()
    gate = NeuronGate(plain_one, specialize.gate.masks).attach()
    gate.use("en-de")
    tag = specialize.rows.tags.tag_id("de")
    bounds = {"max_new_tokens": 5, "min_new_tokens": 5}
    for given in (
        {},
        {"num_beams": 2, "max_new_tokens": None},
        {"min_new_tokens": 30},
        bounds,
        {"max_new_tokens": 5},
        {"max_length": 6},
        {"max_new_tokens": 2},
        {"generation_config": GenerationConfig(**bounds)},
        {"input_ids": ids, "inputs": None, **bounds},
    ):
        known = {"attention_mask": mask, **({} if "input_ids" in given else {"input_ids": ids}), **given}
        expected = plain_one.generate(**known, forced_bos_token_id=tag)
        assert network.generate(**known).tolist() == expected.tolist()
    network.config.max_position_embeddings = plain_one.config.max_position_embeddings = 9
    expected = plain_one.generate(ids, attention_mask=mask, forced_bos_token_id=tag)
    assert network.generate(ids, attention_mask=mask).tolist() == expected.tolist()
    network.generation_config.update(**bounds)
    assert network.generate(ids).shape[1] == 6
    assert network.generate(None, input_ids=ids)[:, 1].tolist() == [tag] * 3


@pytest.mark.parametrize("pair", ["en-de", None])
def test_labels_that_a_script_pads_with_the_pad_token_are_no_tokens(pair):
    network, pairs = model(), PAIRS[:1] if pair else PAIRS
    padded = DataCollatorForSeq2Seq(tokenizer(), network, label_pad_token_id=tokenizer().pad_token_id)
    specialize = Specialization(network, tokenizer(), pair=pair, column=None if pair else "pair")
    data = [{name: row[name] for name in row if pair is None or name != "pair"} for row in rows(pairs=pairs)]
    found = specialize.record(loader(network, data, specialize.collator(padded)))
    collate = PairCollator(tokenizer(), specialize.pairs)
    alone = record(model(), [collate([row]) for row in rows(pairs=pairs)], specialize.pairs)
    assert found.recipe.tokens == {each: alone.tokens(each) for each in specialize.pairs}
    assert found == NeuronMasks.from_coverage(alone)


def test_a_loop_without_accelerate_takes_the_collator():
    network = model()
    specialize = Specialization(network, tokenizer(), column="pair")
    collate = specialize.collator(DataCollatorForSeq2Seq(tokenizer(), model=network))
    assert specialize.collator(collate) is collate
    specialize.record(loader(network, collate=collate))
    batch = next(iter(loader(network, collate=collate)))
    assert network(**batch).loss.isfinite()


def test_a_collator_takes_no_model_along_to_the_workers_that_a_loader_spawns():
    specialize = Specialization(network := model(), tokenizer(), column="pair")
    collate = specialize.collator(DataCollatorForSeq2Seq(tokenizer()))
    specialize.record(loader(network, collate=collate))
    sent, models = io.BytesIO(), []

    class Looking(pickle.Pickler):
        def persistent_id(self, part):
            if isinstance(part, torch.nn.Module):
                models.append(part)

    Looking(sent).dump(collate)
    assert models == []
    there, here = pickle.loads(sent.getvalue())(rows()), collate(rows())
    assert there.keys() == here.keys()
    assert all(torch.equal(there[name], here[name]) for name in here)


def test_masks_are_saved_beside_the_model_by_the_main_process_alone(tmp_path, monkeypatch):
    network = model()
    specialize = Specialization(network, tokenizer(), column="pair")
    network.save_pretrained(tmp_path / "dense")
    assert not (tmp_path / "dense" / MASKS_FOLDER).exists()
    collate = specialize.collator(DataCollatorForSeq2Seq(tokenizer(), model=network))
    specialize.record(loader(network, collate=collate))
    network.save_pretrained(tmp_path / "other", is_main_process=False)
    assert not (tmp_path / "other" / MASKS_FOLDER).exists()
    network.save_pretrained(tmp_path / "main")
    for name in ("hf_api", "create_and_tag_model_card"):
        monkeypatch.setattr(f"transformers.modeling_utils.{name}", MagicMock())
    monkeypatch.setattr(type(network), "_upload_modified_files", MagicMock())
    with pytest.warns(UserWarning, match="what was pushed has no masks"):
        network.save_pretrained(tmp_path / "pushed", push_to_hub=True)
    assert saved_masks(tmp_path / "main") == specialize.gate.masks
    assert same_weights(AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "main"), network)


def test_detaching_gives_the_model_back(tmp_path):
    network = model()
    before = (dict(vars(network)), network.state_dict().keys(), len(network._forward_pre_hooks))
    trainer = script(tmp_path, network)
    specialize = specialized(trainer)
    copied = copy.deepcopy(network)
    assert attachment_of(copied) is not attachment_of(network)
    specialize.detach()
    now = (dict(vars(network)), network.state_dict().keys(), len(network._forward_pre_hooks))
    assert before[0].keys() == now[0].keys()
    assert before[1:] == now[1:]
    for same in (network, torch.compile(network)):
        again = Specialization(same, tokenizer(), pair="en-de")
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            again.detach()
        assert before[0].keys() == vars(network).keys() - {"_is_torch_compile"}  # the compiler's own mark


def test_detaching_gives_the_trainer_back_and_another_can_join_it(tmp_path):
    """What it predicts and learns then is what a trainer does that was never joined."""
    plain_rows = [{name: row[name] for name in ("input_ids", "labels")} for row in rows()]
    generates = {"predict_with_generate": True, "generation_max_length": 8}
    trainer, untouched = script(tmp_path, **generates), script(tmp_path, **generates)
    own = trainer.data_collator
    specialize = specialized(trainer)
    gated = trainer.predict(rows())
    specialize.detach()
    assert type(trainer) is Seq2SeqTrainer
    assert (trainer.data_collator, trainer.compute_loss_func) == (own, None)
    found, expected = trainer.predict(plain_rows), untouched.predict(plain_rows)
    assert found.metrics["test_loss"] == expected.metrics["test_loss"] != gated.metrics["test_loss"]
    assert found.predictions.tolist() == expected.predictions.tolist() != gated.predictions.tolist()
    assert attachment_of(trainer.model) is None
    again, alone = specialized(trainer, pairs=PAIRS[::-1]), script(tmp_path)
    specialized(alone, pairs=PAIRS[::-1])
    assert again.pairs == PAIRS[::-1]
    for each in (trainer, alone):
        torch.manual_seed(0)
        each.train()
    assert same_weights(trainer.model, alone.model)
    assert "loss_en-de" in log_of(trainer)[0]


def test_detaching_gives_the_accelerator_and_its_loaders_back(tmp_path):
    """Loaders of an earlier one would number their pairs by its list, and its masks would be saved."""
    network, accelerator = model(), Accelerator(cpu=True)
    first = Specialization(network, tokenizer(), column="pair", pairs=PAIRS)
    first.join(accelerator)
    own = DataCollatorForSeq2Seq(tokenizer(), model=network)
    batches = accelerator.prepare(loader(network, collate=own))
    masks_before = first.record(batches)
    kept = batches.collate_fn
    first.detach()
    assert batches.collate_fn is own
    assert "prepare_data_loader" not in vars(accelerator)
    accelerator.save_state(tmp_path / "dense")
    assert not (tmp_path / "dense" / MASKS_FOLDER).exists()
    second = Specialization(network, tokenizer(), column="pair", pairs=PAIRS[::-1])
    with pytest.raises(ConfigError, match="the pairs of another Specialization"):
        second.collator(kept)
    second.join(accelerator)
    found = second.record(accelerator.prepare(loader(network, collate=own)))
    assert found.pairs == PAIRS[::-1]
    assert found.subset(PAIRS) == masks_before


def test_what_is_not_a_set_up_is_refused_by_name(tmp_path):
    network = model()
    for settings in ({}, {"pair": "en-de", "column": "pair"}):
        with pytest.raises(ConfigError, match="say pair='en-de', or column='pair'"):
            Specialization(network, tokenizer(), **settings)
    with pytest.raises(ConfigError, match="pairs go with column="):
        Specialization(network, tokenizer(), pair="en-de", pairs=PAIRS)
    tags = LanguageTags(tokenizer(), {"zz": "de"})
    with pytest.raises(ConfigError, match="LanguageTags have codes of their own"):
        Specialization(network, tags, pair="en-zz", codes={"zz": "fr"})
    with pytest.warns(UserWarning, match=r"select\.general has no effect with select\.method coverage"):
        Specialization(network, tokenizer(), pair="en-de", select=SelectConfig(general=0.5)).detach()
    specialize = Specialization(network, tokenizer(), column="pair")
    with pytest.raises(ConfigError, match="takes a Seq2SeqTrainer or an Accelerator, got Linear"):
        specialize.join(torch.nn.Linear(1, 1))
    with pytest.raises(TrainingSetupError, match="another model object"):
        specialize.join(script(tmp_path))
    trainer = script(tmp_path, network)
    specialize.join(trainer)
    specialize.record(trainer.get_eval_dataloader())
    with pytest.raises(ConfigError, match="recorded already"):
        specialize.record(trainer.get_eval_dataloader())


def test_rows_without_a_pair_or_of_an_unknown_one_or_with_another_s_tags_are_refused_by_name(tmp_path):
    bare = [{name: row[name] for name in ("input_ids", "labels")} for row in rows()]
    trainer = script(tmp_path, data=bare)
    specialize = Specialization(trainer.model, tokenizer(), column="pair")
    specialize.join(trainer)
    with pytest.raises(ConfigError, match=r"no column 'pair' that names their pair.*input_ids, labels"):
        specialize.record(trainer.get_eval_dataloader())

    class Streamed(IterableDataset):
        def __iter__(self):
            return iter(rows())

    network = model()
    specialize = Specialization(network, tokenizer(), column="pair")
    streamed = DataLoader(Streamed(), 4)
    with pytest.raises(ConfigError, match=r"a Streamed cannot be looked through.*pairs=\['en-de'\]"):
        specialize.record(streamed)
    specialize = Specialization(model(), tokenizer(), column="pair", pairs=PAIRS[:2])
    collate = specialize.collator(DataCollatorForSeq2Seq(tokenizer()))
    with pytest.raises(UnknownPairError, match="'en-fr' is not in the data that was recorded"):
        collate(rows()[8:])
    turned = [{**row, "pair": "de-en"} for row in rows(pairs=PAIRS[:1])]
    with pytest.raises(CorpusError, match="has the tag of en, not of 'de'"):
        collate(turned)
    empty = Specialization(model(), tokenizer(), column="pair")
    with pytest.raises(ConfigError, match="pairs are not known yet"):
        empty.collator(DataCollatorForSeq2Seq(tokenizer()))(rows())


def test_a_collator_that_sorts_its_rows_is_refused_and_one_that_changes_them_is_not():
    network = model()
    plain_one = DataCollatorForSeq2Seq(tokenizer(), model=network)
    specialize = Specialization(network, tokenizer(), column="pair", pairs=PAIRS)

    def by_length(rows):
        return plain_one(sorted(rows, key=lambda row: -len(row["input_ids"])))

    def cut(rows):
        return plain_one([{**row, "input_ids": [*row["input_ids"][:2], 7]} for row in rows])

    for mixed in (rows()[2:6], rows()[6:10]):
        with pytest.raises(ConfigError, match=r"function returns rows in another order.*group_by_length"):
            specialize.collator(by_length)(mixed)
        for kept in (cut, plain_one):
            found = specialize.collator(kept)(mixed)["pair_ids"].tolist()
            assert [specialize.pairs[i] for i in found] == [row["pair"] for row in mixed]
    # Of one pair, any order will do.
    assert specialize.collator(by_length)(rows()[:4])["pair_ids"].tolist() == [0] * 4


def test_a_collator_may_read_the_pair_of_a_row_in_each_way_that_a_row_has():
    network = model()
    specialize = Specialization(network, tokenizer(), column="pair", pairs=PAIRS)
    plain_one, seen = DataCollatorForSeq2Seq(tokenizer(), model=network), []

    def reads(rows):
        for row in rows:
            seen.append((row["pair"], row.get("pair"), row.get("other", 3), len(row.pop("labels"))))
            seen[-1] += (row.pop("pair"), row.pop("pair", None), row.pop("other", 4))
        with pytest.raises(KeyError, match="other"):
            rows[0]["other"]
        with pytest.raises(KeyError, match="labels"):
            rows[0].pop("labels")
        return plain_one(rows)

    batch = specialize.collator(reads)(rows()[2:6])
    assert seen == [
        (row["pair"], row["pair"], 3, len(row["labels"]), row["pair"], None, 4) for row in rows()[2:6]
    ]
    assert batch["pair_ids"].tolist() == [PAIRS.index(row["pair"]) for row in rows()[2:6]]
    assert "pair" not in batch


def test_data_sets_by_names_are_recorded_as_the_error_says(tmp_path):
    trainer = script(tmp_path)
    trainer.eval_dataset = {"first": rows()[:8], "second": rows()[8:]}
    specialize = Specialization(trainer.model, tokenizer(), column="pair")
    specialize.join(trainer)
    with pytest.raises(ConfigError, match=r"data sets by names \(first, second\).*ConcatDataset"):
        specialize.record(trainer.get_eval_dataloader())
    whole = ConcatDataset(list(trainer.eval_dataset.values()))
    found = specialize.record(trainer.get_eval_dataloader(whole))
    assert found == specialized(script(tmp_path)).gate.masks


def test_settings_of_the_parts_are_taken(tmp_path):
    trainer = script(tmp_path)
    kept = specialized(trainer, select=SelectConfig(coverage=0.5)).gate.masks.density()
    assert kept < masks(model(), density=0.6).density()
