"""Training by the Trainer: the right loss however it is split, the right neurons, the right languages."""

import copy
import json
import pickle
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset
from transformers import DataCollatorForSeq2Seq, Seq2SeqTrainer, Seq2SeqTrainingArguments

from nspec_hf.core import NotFiniteError, TrainingSetupError
from nspec_hf.data import IGNORED, BatchConfig, EncodedCorpus, PairCollator
from nspec_hf.gating import MASKS_FOLDER, GateConfig, NeuronGate, attachment_of
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import token_losses
from nspec_hf.training import SpecializationCallback, SpecializationTrainer
from tests.helpers.models import tiny_m2m100, tiny_mbart
from tests.helpers.tiny_text import PAIRS, corpus, masks, model, same_weights, tokenizer
from tests.helpers.two_processes import run_in_processes

BATCHES = BatchConfig(max_tokens=64, max_length=32)
STEPS = 3


class Rows(Dataset):
    """A plain data set with mixed pairs, which the Trainer batches by itself."""

    def __init__(self, encoded, shuffled=True):
        order = (
            np.random.default_rng(0).permutation(len(encoded)).tolist() if shuffled else range(len(encoded))
        )
        self.rows = [encoded[i] for i in order]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


def arguments(folder, **changes):
    settings = {
        "output_dir": str(folder),
        "max_steps": STEPS,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "remove_unused_columns": False,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "train_sampling_strategy": "sequential",
        "seed": 5,
    }
    return Seq2SeqTrainingArguments(**{**settings, **changes})


def build(kind, network, folder, data=None, gate=None, **settings):
    """Return a trainer of the tiny model; arguments that are not the trainer's are the run's."""
    own = {
        "callbacks",
        "compute_loss_func",
        "compute_metrics",
        "eval_dataset",
        "data_collator",
    } & settings.keys()
    extra = {name: settings.pop(name) for name in own}
    if kind is SpecializationTrainer:
        extra |= {"gate": gate, "batch_config": BATCHES}
    return kind(
        model=network,
        args=arguments(folder, **settings),
        train_dataset=corpus() if data is None else data,
        processing_class=tokenizer(),
        **{"data_collator": PairCollator(tokenizer(), PAIRS), **extra},
    )


def history(trainer):
    """Return loss and gradient norm of each step."""
    trainer.train()
    return [(line["loss"], line["grad_norm"]) for line in trainer.state.log_history if "grad_norm" in line]


def specialized(folder, data=None, network=None, seed=0, **settings):
    network = network or model(seed)
    return build(
        SpecializationTrainer, network, folder, data, NeuronGate(network, masks(network)), **settings
    )


def test_four_accumulated_micro_batches_equal_one(tmp_path):
    """Rows of 3 to 9 tokens, so micro-batches of 4 rows hold different numbers of tokens."""
    data = Rows(corpus(count=12))
    whole = history(specialized(tmp_path, data, per_device_train_batch_size=16))
    parts = history(specialized(tmp_path, data, per_device_train_batch_size=4, gradient_accumulation_steps=4))
    assert len(whole) == STEPS
    np.testing.assert_allclose(parts, whole, atol=1e-4)


def test_the_plain_trainers_own_loss_is_inflated_and_ours_is_not(tmp_path):
    data = Rows(corpus(count=12))
    settings = {"per_device_train_batch_size": 4, "max_steps": 1, "max_grad_norm": 1e9}
    drop_pairs = PairCollator(tokenizer(), PAIRS)

    def without_pairs(rows):
        return {name: value for name, value in drop_pairs(rows).items() if name != "pair_ids"}

    plain = build(
        Seq2SeqTrainer,
        model(),
        tmp_path,
        data,
        data_collator=without_pairs,
        gradient_accumulation_steps=4,
        **settings,
    )
    ours = build(SpecializationTrainer, model(), tmp_path, data, gradient_accumulation_steps=4, **settings)
    whole = build(
        SpecializationTrainer, model(), tmp_path, data, **{**settings, "per_device_train_batch_size": 16}
    )
    (plain_loss, plain_norm), (own_loss, own_norm), (loss, norm) = (
        history(each)[0] for each in (plain, ours, whole)
    )
    assert (own_loss, own_norm) == pytest.approx((loss, norm), abs=1e-4)
    assert plain_loss / loss == pytest.approx(4, rel=0.05)
    assert plain_norm / norm == pytest.approx(4, rel=0.2)


def test_label_smoothing_on_m2m100_equals_the_formula(tmp_path):
    network, data = model(), Rows(corpus(count=4))
    batch = PairCollator(tokenizer(), PAIRS)([data[i] for i in range(16)])
    labels, pair_ids = batch.pop("labels"), batch.pop("pair_ids")
    gate = NeuronGate(network, masks(network))
    with gate, torch.no_grad():
        log_p = network(**batch, pair_ids=pair_ids).logits.log_softmax(-1)
    real = labels != -100
    expected = -(0.7 * log_p.gather(-1, labels.clamp(min=0)[..., None])[..., 0] + 0.3 * log_p.mean(-1))[
        real
    ].mean()
    settings = {"label_smoothing_factor": 0.3, "per_device_train_batch_size": 16, "max_steps": 1}
    plain = plain_with_callback(tmp_path, data, copy.deepcopy(network), **settings)
    own = build(SpecializationTrainer, network, tmp_path, data, gate, **settings)
    for trainer in (plain, own):
        assert history(trainer)[0][0] == pytest.approx(float(expected), abs=1e-4)


def plain_with_callback(folder, data, network, **settings):
    specialization = SpecializationCallback(NeuronGate(network, masks(network)))
    return build(
        Seq2SeqTrainer,
        network,
        folder,
        data,
        callbacks=[specialization],
        compute_loss_func=specialization.loss,
        **settings,
    )


@pytest.mark.parametrize("kind", ["plain", "gated", "dense"])
def test_the_losses_of_pairs_of_a_second_training_are_its_own(tmp_path, kind):
    """The first training ends between two logs; nothing is learned, so both have the same losses."""
    data, settings = corpus(count=12), {"max_steps": 5, "logging_steps": 3, "learning_rate": 0.0}
    if kind == "plain":
        trainer = plain_with_callback(tmp_path, data, model(), per_device_train_batch_size=4, **settings)
    elif kind == "gated":
        trainer = specialized(tmp_path, data, **settings)
    else:
        trainer = build(SpecializationTrainer, model(), tmp_path, data, None, **settings)
    trainer.train()
    first = trainer.state.log_history[0]
    trainer.train()
    second = trainer.state.log_history[0]
    assert "loss_en-de" in first
    assert {name: value for name, value in second.items() if "loss" in name} == pytest.approx(
        {name: value for name, value in first.items() if "loss" in name}, abs=1e-6
    )


def test_four_lines_make_a_plain_trainer_do_what_ours_does(tmp_path):
    data = Rows(corpus(count=12))
    settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    plain = plain_with_callback(
        tmp_path / "plain", data, model(), save_strategy="steps", save_steps=2, **settings
    )
    own = specialized(tmp_path / "own", data, **settings)
    assert history(plain) == history(own)
    assert same_weights(plain.model, own.model)
    for trainer in (plain, own):
        lines = trainer.state.log_history[:STEPS]
        assert lines[0]["density"] == pytest.approx(masks(model()).density(), abs=1e-4)
        assert {f"loss_{pair}" for pair in PAIRS} <= set().union(*lines)
    saved = NeuronMasks.from_pretrained(tmp_path / "plain" / "checkpoint-2" / MASKS_FOLDER)
    assert saved == masks(model())


def test_the_loss_of_the_pairs_is_that_of_their_tokens(tmp_path):
    trainer = specialized(tmp_path, Rows(corpus(count=4)), per_device_train_batch_size=16, max_steps=1)
    network = copy.deepcopy(trainer.model)
    trainer.train()
    line = trainer.state.log_history[0]
    gate = attachment_of(network)
    for pair in PAIRS:
        assert line[f"loss_{pair}"] == pytest.approx(
            plain_loss(network, gate, corpus(count=4).subset(pair)), abs=1e-4
        )


def plain_loss(network, gate, encoded):
    """Mean loss a token, one sentence at a time."""
    collate, total, tokens = PairCollator(tokenizer(), PAIRS), 0.0, 0
    with gate, torch.no_grad():
        for i in range(len(encoded)):
            batch = collate([encoded[i]])
            labels = batch.pop("labels")
            total += float(token_losses(network(**batch).logits, labels).sum())
            tokens += labels.numel()
    return total / tokens


def test_a_neuron_that_no_pair_keeps_does_not_move(tmp_path):
    network = model()
    chosen = masks(network)
    name, keep_PF = next(iter(chosen.keep.items()))
    nobody = ~keep_PF.any(dim=0)
    assert nobody.any()
    before = network.get_submodule(name).weight.detach().clone()
    build(SpecializationTrainer, network, tmp_path, gate=NeuronGate(network, chosen)).train()
    moved = (network.get_submodule(name).weight != before).any(dim=1)
    assert not moved[nobody].any()
    assert moved[~nobody].float().mean() > 0.8


def test_without_a_gate_all_neurons_train_and_pairs_are_logged(tmp_path):
    trainer = build(SpecializationTrainer, model(), tmp_path)
    trainer.train()
    assert "density" not in trainer.state.log_history[0]
    assert any(f"loss_{pair}" in trainer.state.log_history[0] for pair in PAIRS)


def test_the_gate_of_a_callback_or_on_the_model_is_taken(tmp_path):
    network = model()
    gate = NeuronGate(network, masks(network))
    given = build(SpecializationTrainer, network, tmp_path, callbacks=[SpecializationCallback(gate)])
    assert given.gate is gate
    assert sum(isinstance(each, SpecializationCallback) for each in given.callback_handler.callbacks) == 1
    assert build(SpecializationTrainer, network, tmp_path).gate is gate
    with pytest.raises(TrainingSetupError, match="different gates"):
        build(
            SpecializationTrainer,
            network,
            tmp_path,
            gate=NeuronGate(network, masks(network, seed=8)),
            callbacks=[SpecializationCallback(gate)],
        )


def train_some(folder, steps, network, resume=None, **settings):
    trainer = specialized(
        folder, network=network, max_steps=6, save_strategy="steps", save_steps=3, **settings
    )
    trainer.args.max_steps = steps
    trainer.train(resume_from_checkpoint=resume)
    return trainer.model


def test_an_evaluation_does_not_change_what_is_trained(tmp_path):
    evaluated = {"eval_strategy": "steps", "eval_steps": 2, "eval_dataset": corpus(count=4, seed=1)}
    ends = [train_some(tmp_path, 6, model(dropout=0.2), **settings) for settings in ({}, evaluated)]
    assert same_weights(*ends)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_resumed_run_ends_with_the_same_weights_bit_for_bit(tmp_path, accumulation):
    settings = {
        "gradient_accumulation_steps": accumulation,
        "lr_scheduler_type": "constant",
        "eval_strategy": "steps",
        "eval_steps": 2,
        "eval_dataset": corpus(count=4, seed=1),
    }
    uninterrupted = train_some(tmp_path / "a", 6, model(dropout=0.2), **settings)
    train_some(tmp_path / "b", 3, model(dropout=0.2), **settings)
    # Another start, to show that nothing is left of it.
    resumed = train_some(
        tmp_path / "b", 6, model(seed=4, dropout=0.2), resume=str(tmp_path / "b" / "checkpoint-3"), **settings
    )
    assert same_weights(uninterrupted, resumed)
    assert not same_weights(uninterrupted, train_some(tmp_path / "c", 3, model(dropout=0.2), **settings))


# Ten batches for one process and for two, in the same order; the last update of an epoch has only two.
SHARED = 22


def work(index, count, folder):
    trainer = specialized(
        folder,
        corpus(count=SHARED),
        gradient_accumulation_steps=2,
        predict_with_generate=True,
        generation_max_length=8,
        compute_metrics=first_tokens,
        eval_dataset=corpus(count=5, seed=1),
    )
    steps = history(trainer)
    line = {name: value for name, value in trainer.state.log_history[0].items() if "loss" in name}
    with open(f"{folder}/{index}.json", "w") as file:
        json.dump([steps, line, without_times(trainer.evaluate())], file)
    broken = plain_with_callback(folder, corpus(), model(encoder_layerdrop=0.1))
    with pytest.raises(TrainingSetupError, match="processes would drop different ones"):
        broken.train()
    apart = specialized(folder, average_tokens_across_devices=False)
    with pytest.raises(TrainingSetupError, match="mean of the processes' means"):
        apart.train()


def without_times(metrics):
    return {name: value for name, value in metrics.items() if "runtime" not in name and "second" not in name}


@pytest.mark.slow
def test_two_processes_equal_one_with_the_same_plan(tmp_path):
    run_in_processes(work, 2, str(tmp_path))
    alone = specialized(
        tmp_path,
        corpus(count=SHARED),
        gradient_accumulation_steps=4,
        predict_with_generate=True,
        generation_max_length=8,
        compute_metrics=first_tokens,
        eval_dataset=corpus(count=5, seed=1),
    )
    steps = history(alone)
    evaluated = without_times(alone.evaluate())
    evaluated.pop("epoch")
    for index in range(2):
        two_steps, line, two_evaluated = json.loads((tmp_path / f"{index}.json").read_text())
        np.testing.assert_allclose(two_steps, steps, atol=1e-4)
        for name, value in line.items():
            assert value == pytest.approx(alone.state.log_history[0][name], abs=1e-4)
        two_evaluated.pop("epoch")
        assert two_evaluated == pytest.approx(evaluated, abs=1e-4)


def predict_rows(folder, **settings):
    """Return predictions, labels, and what metrics were given, of rows that do not fill the last batch."""
    trainer = specialized(
        folder,
        predict_with_generate=True,
        generation_max_length=8,
        compute_metrics=lambda prediction: {"labels": prediction.label_ids.tolist()},
        **settings,
    )
    rows = Rows(corpus(3), shuffled=True).rows[:9]
    found, evaluated = trainer.predict(rows), trainer.evaluate(rows)
    padding = (IGNORED, tokenizer().pad_token_id)  # which of them, depends on the batch

    def bare(rows):
        return [[token for token in row if token not in padding] for row in rows]

    return [bare(found.predictions.tolist()), bare(found.label_ids.tolist()), bare(evaluated["eval_labels"])]


def predict_in_two(index, count, folder):
    found = predict_rows(folder, per_device_eval_batch_size=2)
    with open(f"{folder}/{index}.json", "w") as file:
        json.dump(found, file)


@pytest.mark.medium
def test_two_processes_predict_and_score_every_row_once(tmp_path):
    run_in_processes(predict_in_two, 2, str(tmp_path))
    alone = predict_rows(tmp_path, per_device_eval_batch_size=4)
    assert len(alone[0]) == len(alone[2]) == 9
    for index in range(2):
        assert json.loads((tmp_path / f"{index}.json").read_text()) == alone


def first_tokens(prediction):
    """Return the token that all rows begin with after the start token, and the number of rows."""
    (first,) = set(prediction.predictions[:, 1].tolist())
    return {"first": first, "rows": len(prediction.label_ids)}


def test_every_row_of_predict_with_generate_has_its_own_target_language(tmp_path):
    trainer = specialized(tmp_path, predict_with_generate=True)
    encoded = corpus(count=3, seed=2)
    order = np.random.default_rng(0).permutation(len(encoded)).tolist()
    shuffled = [encoded[i] for i in order]
    found = trainer.predict(shuffled, max_new_tokens=6, num_beams=2).predictions
    collate = trainer.data_collator
    for row, tokens in zip(shuffled, found, strict=True):
        pair = row["pair"]
        assert tokens[1] == collate.tags.tag_id(pair.target)
        batch = collate([row])
        with trainer.gate:
            alone = trainer.model.generate(
                input_ids=batch["input_ids"],
                pair_ids=batch["pair_ids"],
                decoder_input_ids=torch.tensor([[tokenizer().eos_token_id, tokens[1]]]),
                max_new_tokens=5,  # the plain Trainer's 6 count the language
                num_beams=2,
            )[0]
        assert tokens[: len(alone)].tolist() == alone.tolist()


@pytest.mark.parametrize(
    "given",
    [
        {"max_new_tokens": 5, "min_new_tokens": 5},
        {"max_new_tokens": 2},
        {"max_new_tokens": None},
        {"max_length": 6},
        {"max_length": None},
        {},
    ],
    ids=str,
)
def test_predict_with_generate_writes_as_many_tokens_as_the_plain_trainer(tmp_path, given):
    """Against the library's own Trainer with `forced_bos_token_id`, which counts as a new token."""
    ids = tokenizer()
    rows = [corpus(count=4, pairs=["en-de"])[i] for i in range(4)]
    found = []
    for kind in (Seq2SeqTrainer, SpecializationTrainer):
        collate = PairCollator(ids, ["en-de"])
        plain_one = kind is Seq2SeqTrainer

        def without_pairs(batch, collate=collate):
            return {name: each for name, each in collate(batch).items() if name != "pair_ids"}

        trainer = kind(
            model=model(),
            args=arguments(
                tmp_path,
                predict_with_generate=True,
                generation_max_length=None,
                per_device_eval_batch_size=4,
                remove_unused_columns=False,
            ),
            data_collator=without_pairs if plain_one else collate,
            processing_class=ids,
        )
        forced = {"forced_bos_token_id": collate.tags.tag_id("de")} if plain_one else {}
        found.append(trainer.predict(rows, **given, **forced).predictions.tolist())
    assert found[0] == found[1]


def test_an_evaluation_scores_each_pair_alone(tmp_path):
    trainer = specialized(
        tmp_path, predict_with_generate=True, compute_metrics=first_tokens, generation_max_length=6
    )
    encoded = corpus(count=3, seed=2)
    found = trainer.evaluate(encoded)
    tags = trainer.data_collator.tags
    for pair in PAIRS:
        assert found[f"eval_first_{pair}"] == tags.tag_id(pair.target)
        assert found[f"eval_rows_{pair}"] == 3
        expected = plain_loss(trainer.model, trainer.gate, encoded.subset(pair))
        assert found[f"eval_loss_{pair}"] == pytest.approx(expected, abs=1e-5)
    assert found["eval_rows"] == 3
    assert found["eval_loss"] == pytest.approx(plain_loss(trainer.model, trainer.gate, encoded), abs=1e-5)


def test_the_loss_of_the_text_leaves_out_the_tag_that_masks_give_away(tmp_path):
    """A dense model has to guess the language of the first label; with a pair's own neurons it is known."""
    trainer, encoded = specialized(tmp_path), corpus(count=3, seed=2)
    total, tokens, tags = 0.0, 0, trainer.data_collator.tags
    with trainer.gate, torch.no_grad():
        for i in range(len(encoded)):
            batch = trainer.data_collator([encoded[i]])
            labels = batch.pop("labels")[0]
            assert labels[0] == tags.tag_id(PAIRS[int(batch["pair_ids"][0])].target)
            log_p = trainer.model.eval()(**batch).logits[0].log_softmax(-1)
            total -= sum(log_p[place, labels[place]].item() for place in range(1, len(labels)))
            tokens += len(labels) - 1
    found = trainer.evaluate(encoded)
    assert found["eval_text_loss"] == pytest.approx(total / tokens, abs=1e-5)
    assert found["eval_text_loss"] != pytest.approx(found["eval_loss"], abs=1e-3)


def test_outputs_come_to_the_metric_in_the_order_of_the_corpus(tmp_path):
    seen = []
    trainer = specialized(
        tmp_path,
        predict_with_generate=True,
        generation_max_length=4,
        compute_metrics=lambda prediction: seen.append(prediction.label_ids) or {},
    )
    encoded = corpus(count=6, seed=2)
    trainer.evaluate(encoded)
    for pair, label_ids in zip(PAIRS, seen, strict=True):
        part = encoded.subset(pair)
        # The library pads labels to the longest length of generation, with the padding token.
        labels = [[token for token in row if token not in (-100, 1)] for row in label_ids.tolist()]
        assert labels == [part[i]["labels"] for i in range(len(part))]


@pytest.mark.parametrize("wrap", [lambda encoded: encoded, Rows])
def test_a_dict_of_evaluation_sets_keeps_the_generation_settings(tmp_path, wrap):
    sets = {"a": wrap(corpus(count=2, seed=1)), "b": wrap(corpus(count=2, seed=2))}
    trainer = specialized(
        tmp_path,
        predict_with_generate=True,
        compute_metrics=lambda prediction: {"width": int((prediction.predictions != 1).sum(1).max())},
        eval_dataset=sets,
    )
    found = trainer.evaluate(max_new_tokens=3)
    # The start token and three more, the language among them.
    assert found["eval_a_width"] <= 4
    assert found["eval_b_width"] <= 4
    assert found["eval_a_loss"] != found["eval_b_loss"]


def test_nothing_is_evaluated_densely_before_training(tmp_path):
    network, encoded = model(), corpus(count=3)
    gate = NeuronGate(network, masks(network))
    expected = plain_loss(network, gate, encoded)
    trainer = build(SpecializationTrainer, network, tmp_path, gate=gate)
    assert trainer.evaluate(encoded)["eval_loss"] == pytest.approx(expected, abs=1e-5)
    rows = {"per_device_eval_batch_size": 12}
    assert build(SpecializationTrainer, network, tmp_path, gate=gate, **rows).evaluate(Rows(encoded))[
        "eval_loss"
    ] == pytest.approx(expected, abs=1e-4)
    plain = plain_with_callback(tmp_path, Rows(encoded), model(), **rows)
    assert plain.evaluate(Rows(encoded))["eval_loss"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("kind", [Seq2SeqTrainer, SpecializationTrainer])
@pytest.mark.parametrize("way", ["evaluate", "predict"])
def test_a_callback_that_is_added_later_lets_nothing_be_evaluated_densely(kind, way, tmp_path):
    network, encoded = model(), corpus(count=3)
    gate = NeuronGate(network, masks(network))
    expected, dense = plain_loss(network, gate, encoded), plain_loss(network, nullcontext(), encoded)
    assert abs(expected - dense) > 1e-3
    trainer = build(kind, network, tmp_path, per_device_eval_batch_size=12)
    callback = SpecializationCallback(gate)
    trainer.add_callback(callback)
    with pytest.raises(TrainingSetupError, match="runs with all neurons"):
        getattr(trainer, way)(Rows(encoded))
    if kind is Seq2SeqTrainer:
        gate.attach()
        found = getattr(trainer, way)(Rows(encoded))
        metrics = found if way == "evaluate" else found.metrics
        assert metrics["eval_loss" if way == "evaluate" else "test_loss"] == pytest.approx(expected, abs=1e-4)
        # The user's word: what was on the model when training began may be taken off.
        callback.attach(network)
        gate.detach()
        assert trainer.evaluate(Rows(encoded))["eval_loss"] == pytest.approx(dense, abs=1e-4)


def test_a_callback_that_is_added_later_for_another_model_is_refused_in_an_evaluation(tmp_path):
    other, network = model(), model()
    gate = NeuronGate(other, masks(other)).attach()
    trainer = build(Seq2SeqTrainer, network, tmp_path)
    trainer.add_callback(SpecializationCallback(gate))
    with pytest.raises(TrainingSetupError, match="another model object"):
        trainer.evaluate(Rows(corpus(count=3)))


def test_our_trainer_keeps_the_columns_of_pairs(tmp_path):
    datasets = pytest.importorskip("datasets")
    encoded = corpus(count=6)
    data = datasets.Dataset.from_list([encoded[i] for i in range(len(encoded))])
    trainer = specialized(tmp_path, data, remove_unused_columns=True)
    trainer.train()
    assert {f"loss_{pair}" for pair in PAIRS} & trainer.state.log_history[0].keys()


def test_a_batch_size_that_is_not_used_is_warned_about(tmp_path):
    with pytest.warns(UserWarning, match="per_device_train_batch_size is not used"):
        specialized(tmp_path, per_device_train_batch_size=3).get_train_dataloader()


def refused(trainer, match):
    before = copy.deepcopy(trainer.model.state_dict())
    with pytest.raises(TrainingSetupError, match=match):
        trainer.train()
    after = trainer.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_plain_trainer_that_strips_the_pairs_is_refused(tmp_path):
    data = Rows(corpus(count=4))
    trainer = plain_with_callback(tmp_path, data, model(), remove_unused_columns=True)
    refused(trainer, "remove_unused_columns=False")
    trainer = plain_with_callback(tmp_path, data, model(), remove_unused_columns=True)
    callback = next(c for c in trainer.callback_handler.callbacks if isinstance(c, SpecializationCallback))
    callback.gate.use("en-de")
    callback.on_train_begin(trainer.args, trainer.state, trainer.control)


def test_an_inflated_loss_is_refused_before_the_first_update(tmp_path):
    network = model()
    callback = SpecializationCallback(NeuronGate(network, masks(network)))
    settings = {"callbacks": [callback], "per_device_train_batch_size": 4}
    trainer = build(
        Seq2SeqTrainer, network, tmp_path, Rows(corpus(count=4)), gradient_accumulation_steps=2, **settings
    )
    refused(trainer, "2 times too large here. Pass compute_loss_func=callback.loss")
    trainer = build(Seq2SeqTrainer, network, tmp_path, Rows(corpus(count=4)), **settings)
    with pytest.warns(UserWarning, match="loss of single pairs is not logged"):
        trainer.train()


def test_a_loss_of_ones_own_is_left_alone_under_our_trainer(tmp_path):
    def own(outputs, labels, num_items_in_batch=None):
        return token_losses(outputs["logits"], labels).sum() / num_items_in_batch

    network = model()
    gate = NeuronGate(network, masks(network))
    trainer = build(
        SpecializationTrainer,
        network,
        tmp_path,
        gate=gate,
        compute_loss_func=own,
        gradient_accumulation_steps=2,
    )
    trainer.train()
    assert trainer.compute_loss_func is own


def test_a_collator_or_corpus_that_numbers_pairs_otherwise_is_refused(tmp_path):
    turned = PairCollator(tokenizer(), PAIRS[::-1])
    refused(
        plain_with_callback(tmp_path, Rows(corpus(count=4)), model(), data_collator=turned),
        "the collator numbers its pairs fr-en, en-fr, de-en, en-de",
    )
    refused(specialized(tmp_path, data_collator=turned), "wrong pairs")
    refused(specialized(tmp_path, corpus(pairs=PAIRS[:2])), "the collator numbers its pairs")
    trainer = specialized(tmp_path)
    with pytest.raises(TrainingSetupError, match="wrong pairs"):
        trainer.evaluate(corpus(pairs=PAIRS[:2]))


def test_a_collator_with_another_decoder_start_is_refused(tmp_path):
    other = PairCollator(tokenizer(), PAIRS, decoder_start_token_id=tokenizer().bos_token_id)
    message = "begin with token 0, but model.config says decoder_start_token_id=2"
    data = Rows(corpus(count=4))
    refused(plain_with_callback(tmp_path, data, model(), data_collator=other), message)
    refused(specialized(tmp_path, data_collator=other), message)
    refused(build(SpecializationTrainer, model(), tmp_path, data_collator=other), message)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_collator_that_makes_mbart_read_the_source_as_its_target_is_refused(tmp_path, smoothing):
    """Its forward takes `input_ids` for the decoder's, shifted, where it gets neither those nor labels."""
    ids = tokenizer()
    network = tiny_mbart(vocab_size=len(ids))
    rows = [corpus(count=4)[i] for i in range(16)]
    data = [
        {"pair_ids": PAIRS.index(row["pair"]), "input_ids": row["labels"], "labels": row["labels"]}
        for row in rows
    ]
    trainer = plain_with_callback(
        tmp_path, data, network, data_collator=DataCollatorForSeq2Seq(ids), label_smoothing_factor=smoothing
    )
    before = copy.deepcopy(network.state_dict())
    refused(trainer, "DataCollatorForSeq2Seq have no decoder_input_ids")
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    network = tiny_mbart(vocab_size=len(ids))
    whole = DataCollatorForSeq2Seq(ids, model=network)
    plain_with_callback(
        tmp_path, data, network, data_collator=whole, label_smoothing_factor=smoothing
    ).train()


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copied_callback_asks_its_own_gate_for_the_pairs(duplicate):
    network = model()
    callback = SpecializationCallback(NeuronGate(network, masks(network)))
    twin = duplicate(callback)
    rows, data = [0, 3], corpus(count=4)
    batch = PairCollator(tokenizer(), PAIRS)([data[0], data[12]])
    with twin.gate, torch.no_grad():
        twin.gate.model(**batch)
    assert twin.loss.pair_ids().tolist() == rows
    assert callback.loss.pair_ids() is None


def test_layer_dropout_is_warned_about(tmp_path):
    with pytest.warns(UserWarning, match="decoder_layerdrop drop whole layers"):
        specialized(tmp_path, network=model(decoder_layerdrop=0.2), max_steps=1).train()


def test_one_target_language_for_all_rows_is_refused(tmp_path):
    data = Rows(corpus(count=4))
    settings = {"predict_with_generate": True, "eval_dataset": data}
    trainer = plain_with_callback(tmp_path, data, model(), eval_strategy="steps", eval_steps=1, **settings)
    refused(trainer, "several: de, en, fr. Use SpecializationTrainer")
    with pytest.warns(UserWarning, match="one target language at a time"):
        plain_with_callback(tmp_path, data, model(), max_steps=1, **settings).train()


def test_a_gate_of_another_model_is_refused(tmp_path):
    other = model()
    with pytest.raises(TrainingSetupError, match="another model object"):
        build(
            Seq2SeqTrainer,
            model(),
            tmp_path,
            callbacks=[SpecializationCallback(NeuronGate(other, masks(other)))],
        )


def test_resuming_with_other_or_unreadable_masks_is_refused(tmp_path):
    train_some(tmp_path, 3, model())
    checkpoint = tmp_path / "checkpoint-3"
    network = model()
    other = build(
        SpecializationTrainer,
        network,
        tmp_path,
        gate=NeuronGate(network, masks(network, seed=9)),
        save_strategy="steps",
    )
    with pytest.raises(TrainingSetupError, match=r"trained with other masks \(.*NeuronMasks.from_pretrained"):
        other.train(resume_from_checkpoint=str(checkpoint))
    file = checkpoint / MASKS_FOLDER / "nspec_masks.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(TrainingSetupError, match="cannot be read"):
        specialized(tmp_path).train(resume_from_checkpoint=str(checkpoint))


def test_resuming_from_a_checkpoint_of_another_folder_is_checked_too(tmp_path):
    train_some(tmp_path / "a", 3, model())
    network = model()
    other = build(
        SpecializationTrainer, network, tmp_path / "b", gate=NeuronGate(network, masks(network, seed=9))
    )
    with pytest.raises(TrainingSetupError, match="trained with other masks"):
        other.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))


@pytest.mark.parametrize(
    ("trained", "goes_on", "fits"),
    [
        ({}, {"silence": "weights"}, False),
        ({}, {"mode": "gradient"}, False),
        ({"mode": "gradient"}, {"mode": "slice"}, False),
        ({}, {"mode": "slice", "multiple_of": 4}, True),
    ],
)
def test_a_checkpoint_goes_on_under_a_gate_that_acts_as_its_own_did(tmp_path, trained, goes_on, fits):
    def trainer(settings, steps):
        network = model()
        gate = NeuronGate(network, masks(network), GateConfig(**settings))
        saving = {"save_strategy": "steps", "save_steps": 1, "max_steps": steps}
        return build(SpecializationTrainer, network, tmp_path, gate=gate, **saving)

    trainer(trained, 1).train()
    again = trainer(goes_on, 2)
    refused = pytest.raises(TrainingSetupError, match=r"masks that act as .* these act")
    with nullcontext() if fits else refused:
        again.train(resume_from_checkpoint=True)
    assert again.state.global_step == (2 if fits else 1)


def test_a_plain_trainer_checks_the_masks_of_the_checkpoint_that_it_goes_on_from_wherever_it_lies(tmp_path):
    """The callback is not told where it lies; a folder of other masks in the run's own is not looked at."""
    data, saving = Rows(corpus(count=4)), {"save_strategy": "steps", "save_steps": 1}

    def trainer(folder, seed, steps):
        network = model()
        callback = SpecializationCallback(NeuronGate(network, masks(network, seed=seed)))
        return build(
            Seq2SeqTrainer,
            network,
            folder,
            data,
            callbacks=[callback],
            compute_loss_func=callback.loss,
            max_steps=steps,
            **saving,
        )

    trainer(tmp_path / "a", seed=3, steps=1).train()
    trainer(tmp_path / "stale", seed=9, steps=1).train()
    elsewhere = str(tmp_path / "a" / "checkpoint-1")
    refused = trainer(tmp_path / "b", seed=9, steps=2)
    with pytest.raises(TrainingSetupError, match=r"goes on from was trained with other masks"):
        refused.train(resume_from_checkpoint=elsewhere)
    right = trainer(tmp_path / "stale", seed=3, steps=2)
    right.train(resume_from_checkpoint=elsewhere)
    assert right.state.global_step == 2


def test_masks_with_composed_pairs_in_addition_are_the_same_masks(tmp_path):
    network = model()
    chosen = masks(network)
    chosen.compose("de-fr").save_pretrained(tmp_path / MASKS_FOLDER)
    NeuronGate(network, chosen).check_beside(tmp_path)


def test_an_empty_pair_has_no_metrics(tmp_path):
    encoded = EncodedCorpus(PAIRS)
    row = corpus(count=1)[0]
    encoded.add("en-de", [row["input_ids"]], [row["labels"]])
    found = specialized(tmp_path).evaluate(encoded)
    assert "eval_loss_en-de" in found
    assert "eval_loss_de-en" not in found


def several(prediction, compute_result=True):
    """Metrics of all kinds that the library takes: numbers, a string, a list, a nested dict, the inputs."""
    parts = (prediction.predictions, prediction.label_ids, inputs_of(prediction))
    outputs, labels, inputs = (np.asarray(part) for part in parts)
    real = labels[(labels != -100) & (labels != 1)]
    found = {
        "sum": int(outputs[(outputs != -100) & (outputs != 1)].sum()),
        "labels": int(real.sum()),
        "sources": int(inputs[(inputs != -100) & (inputs != 1)].sum()),
        "name": "tokens",
        "first": [int(token) for token in outputs[0, :3]],
        "nested": {"rows": len(labels), "inner": {"longest": np.float32(real.max())}},
    }
    return found if compute_result else {}


def inputs_of(prediction):
    return prediction.inputs["input_ids"] if isinstance(prediction.inputs, dict) else prediction.inputs


@pytest.mark.parametrize("batchwise", [False, True])
def test_the_same_metrics_give_the_same_in_the_plain_trainer(tmp_path, batchwise):
    encoded, network = corpus(count=5, seed=2), model()
    settings = {
        "predict_with_generate": True,
        "generation_max_length": 8,
        "include_for_metrics": ["inputs", "loss"],
        "batch_eval_metrics": batchwise,
        "compute_metrics": several,
        "per_device_eval_batch_size": 5,
    }
    own = build(SpecializationTrainer, network, tmp_path, **settings)
    found = own.evaluate(encoded)
    drop_pairs = PairCollator(tokenizer(), PAIRS)

    def without_pairs(rows):
        return {name: value for name, value in drop_pairs(rows).items() if name != "pair_ids"}

    for pair in PAIRS:
        network.generation_config.forced_bos_token_id = drop_pairs.tags.tag_id(pair.target)
        plain = build(Seq2SeqTrainer, network, tmp_path, data_collator=without_pairs, **settings)
        expected = plain.evaluate(Rows(encoded.subset(pair), shuffled=False))
        for name in ("sum", "labels", "sources", "name", "first", "nested"):
            assert found[f"eval_{name}_{pair}"] == expected[f"eval_{name}"], (name, pair)
    assert found["eval_name"] == "tokens"
    assert found["eval_nested"] == {
        "rows": 5.0,
        "inner": {"longest": np.mean([found[f"eval_nested_{pair}"]["inner"]["longest"] for pair in PAIRS])},
    }
    assert found["eval_sum"] == np.mean([found[f"eval_sum_{pair}"] for pair in PAIRS])
    json.dumps(found)


def test_a_gate_is_on_the_model_from_the_making_of_the_trainer(tmp_path):
    network = model()
    batch = PairCollator(tokenizer(), PAIRS)([corpus()[i] for i in (0, 30)])
    reference = copy.deepcopy(network)
    with NeuronGate(reference, masks(reference)), torch.no_grad():
        expected = reference(**batch).logits
    build(SpecializationTrainer, network, tmp_path, gate=NeuronGate(network, masks(network)))
    with torch.no_grad():
        assert torch.equal(network(**batch).logits, expected)


def test_a_forced_first_token_does_not_follow_a_prompt_of_one_token(tmp_path):
    """As in Marian and mBART-25, whose prompt is one token: the config's token would be every row's first."""
    ids = tokenizer(target_on_source=True)
    special = {name: getattr(ids, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    network = tiny_m2m100(vocab_size=len(ids), decoder_start_token_id=ids.eos_token_id, **special)
    network.generation_config.forced_bos_token_id = forced = 5
    collate = PairCollator(ids, PAIRS)
    rows = [
        {"pair": pair, "source": "one two" if pair.source == "en" else "un", "target": "drei"}
        for pair in PAIRS
    ]
    batch = collate(rows)
    with torch.no_grad():
        logits = network(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            decoder_input_ids=torch.full((len(rows), 1), ids.eos_token_id),
        ).logits[:, -1]
    wanted = logits.argmax(-1).tolist()
    assert forced not in wanted
    trainer = SpecializationTrainer(
        model=network,
        args=arguments(tmp_path, predict_with_generate=True),
        data_collator=collate,
        processing_class=ids,
    )
    found = trainer.predict(rows, max_new_tokens=3, num_beams=1).predictions
    assert found[:, 1].tolist() == wanted


def test_a_loss_that_is_not_finite_ends_the_training_with_its_pairs(tmp_path):
    network = model()
    network.get_submodule("model.encoder.layers.0.fc1").weight.data[0, 0] = float("inf")
    with pytest.raises(NotFiniteError, match=r"loss is not finite for .*en-de"):
        build(SpecializationTrainer, network, tmp_path).train()
    with pytest.raises(NotFiniteError, match="weights NaN or infinite"):
        build(SpecializationTrainer, network, tmp_path, logging_steps=100).train()


def test_a_checkpoint_of_nan_is_not_written(tmp_path):
    network = model()
    network.get_submodule("model.decoder.layers.0.fc1").weight.data[0, 0] = float("nan")
    trainer = build(
        SpecializationTrainer, network, tmp_path, save_strategy="steps", save_steps=1, logging_steps=9
    )
    with pytest.raises(NotFiniteError, match="nothing more is saved"):
        trainer.train()
    assert not list(tmp_path.glob("checkpoint-*/*"))
