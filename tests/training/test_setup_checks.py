"""What would train another model than asked for is refused before the first batch, with what to do."""

import copy
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    DataCollatorForSeq2Seq,
    LlamaConfig,
    LlamaForCausalLM,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    default_data_collator,
)

from nspec_hf.core import ConfigError, NotFiniteError, TrainingSetupError
from nspec_hf.data import EncodedCorpus, PairCollator
from nspec_hf.gating import NeuronGate
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import find_sites, longest_text, position_limit
from nspec_hf.training import SpecializationCallback, SpecializationTrainer
from nspec_hf.training.setup_checks import (
    check_decoder_inputs,
    check_decoder_start,
    check_finite,
    check_lengths,
    check_precision,
    check_saving,
    check_schedule,
    freeze_unsaved,
)
from tests.helpers.families import tiny_led, tiny_t5gemma2
from tests.helpers.gated import without_ids
from tests.helpers.models import random_batch, tiny_bart, tiny_m2m100, tiny_marian, tiny_mbart, tiny_t5
from tests.helpers.tiny_text import PAIRS, corpus, model, tokenizer
from tests.helpers.tiny_tokenizers import make_tokenizer


def test_weights_that_train_in_float16_are_refused_and_frozen_ones_are_not():
    half = model().half()
    with pytest.raises(TrainingSetupError, match=r"float16 train to NaN.*dtype=torch.float32"):
        check_precision(half)
    check_precision(half.requires_grad_(False))


def test_what_is_not_saved_is_not_trained(tmp_path):
    """Marian's positions: with gradients in them, another model would be loaded than was trained."""
    network = tiny_marian().requires_grad_()
    freeze_unsaved(network)
    network(**without_ids(random_batch())).loss.backward()
    network.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors").keys()
    left_out = {name for name, _ in network.named_parameters()} - saved
    assert left_out == {f"model.{side}.embed_positions.weight" for side in ("encoder", "decoder")}
    assert {name for name, weight in network.named_parameters() if weight.grad is None} == left_out


def test_weights_that_train_in_bfloat16_are_warned_about():
    with pytest.warns(UserWarning, match=r"bfloat16 lose updates"):
        check_precision(model().bfloat16())


def test_a_generation_config_that_cannot_be_saved_is_told_before_the_training(tmp_path):
    network = model()
    network.generation_config.num_return_sequences = 3  # greedy search returns one
    with pytest.raises(ValueError, match="num_return_sequences"):
        network.save_pretrained(tmp_path)  # what the library says at the end
    with pytest.raises(TrainingSetupError, match=r"generation_config cannot be saved.*num_return_sequences"):
        check_saving(network)
    check_saving(model())


@pytest.mark.parametrize("make", [tiny_marian, tiny_bart, tiny_mbart])
def test_the_limit_of_positions_is_where_the_model_fails(make):
    network = make(max_position_embeddings=12)
    limit = position_limit(network)
    ids = torch.full((1, limit), 5)
    network(input_ids=ids, decoder_input_ids=ids[:, :2])
    with pytest.raises(IndexError):
        network(input_ids=torch.full((1, limit + 1), 5), decoder_input_ids=ids[:, :2])


def test_the_positions_of_a_picture_are_no_limit_of_text():
    network = tiny_t5gemma2()
    ids = torch.full((1, 9), 5)
    assert network(input_ids=ids, decoder_input_ids=ids).logits.isfinite().all()
    assert position_limit(network) is longest_text(network, "encoder") is None


@pytest.mark.parametrize("updates", [1, 19, 20])
def test_a_warm_up_as_long_as_the_training_is_told(tmp_path, updates):
    args = Seq2SeqTrainingArguments(output_dir=str(tmp_path), use_cpu=True, warmup_steps=20)
    with pytest.warns(UserWarning, match=rf"20 warm-up updates of {updates} in all"):
        check_schedule(args, updates)


def test_a_shorter_warm_up_is_not_told(tmp_path, recwarn):
    args = {"output_dir": str(tmp_path), "use_cpu": True}
    check_schedule(Seq2SeqTrainingArguments(**args, warmup_steps=20), 21)
    check_schedule(Seq2SeqTrainingArguments(**args), 1)
    assert not recwarn.list


@pytest.mark.parametrize("make", [tiny_m2m100, tiny_t5])
def test_positions_that_are_computed_have_no_limit(make):
    network = make()
    assert position_limit(network) is None
    ids = torch.full((1, 100), 5)
    assert network(input_ids=ids, decoder_input_ids=ids).logits.isfinite().all()


def test_a_model_is_made_for_what_its_tables_hold_and_its_config_says():
    assert longest_text(tiny_m2m100(max_position_embeddings=30)) == 30
    assert longest_text(tiny_t5()) is None
    network = tiny_marian(max_position_embeddings=12)
    assert longest_text(network) == 12
    network.config.max_position_embeddings = 20  # as where a config was edited
    assert longest_text(network) == 12
    del network.config.max_position_embeddings
    assert longest_text(network, "encoder") == 12


def test_text_longer_than_the_positions_is_refused_with_the_limit():
    longest = int(corpus().lengths.max())
    check_lengths(tiny_marian(max_position_embeddings=longest), corpus())
    with pytest.raises(TrainingSetupError, match=rf"has {longest} tokens, but the model has 5 positions.*=5"):
        check_lengths(tiny_marian(max_position_embeddings=5), corpus())


def test_each_side_of_the_text_is_held_to_the_positions_of_its_own_side():
    text = EncodedCorpus(["en-de"])
    text.add("en-de", [[5] * 60], [[5] * 30])
    check_lengths(tiny_led(), text)  # 64 and 32
    for source, target, found in ((65, 3, "65 tokens.* 64"), (3, 33, "33 tokens.* 32")):
        text = EncodedCorpus(["en-de"])
        text.add("en-de", [[5] * source], [[5] * target])
        with pytest.raises(TrainingSetupError, match=found):
            check_lengths(tiny_led(), text)


def test_a_model_that_could_be_trained_but_not_translate_is_refused():
    network = model()
    collator = PairCollator(tokenizer(), PAIRS)
    check_decoder_start(network, collator)
    network.config.decoder_start_token_id = network.generation_config.decoder_start_token_id = None
    with pytest.raises(TrainingSetupError, match=r"says no decoder_start_token_id.*most likely 2"):
        check_decoder_start(network, collator)


def test_a_family_that_begins_with_the_target_s_tag_needs_no_start(tmp_path):
    mbart = PairCollator(make_tokenizer(tmp_path, "mbart"), ["en_XX-de_DE"])
    network = tiny_mbart()
    network.config.decoder_start_token_id = network.generation_config.decoder_start_token_id = None
    check_decoder_start(network, mbart)


def test_m2m100_with_a_collator_of_the_library_is_refused_before_the_first_batch(tmp_path):
    """It has no method that makes decoder inputs from labels; its forward would stop with another error."""
    network = model()
    collator = DataCollatorForSeq2Seq(tokenizer(), model=network)
    with pytest.raises(TrainingSetupError, match=r"no decoder_input_ids.*use PairCollator"):
        check_decoder_inputs(network, collator)
    check_decoder_inputs(tiny_mbart(), DataCollatorForSeq2Seq(tokenizer(), model=tiny_mbart()))


def llama(seed=0):
    torch.manual_seed(seed)
    shape = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    return LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=2, num_key_value_heads=2)).eval()


@pytest.mark.parametrize("way", ["callback", "gated trainer", "trainer without a gate", "loop"])
@pytest.mark.parametrize("make", [tiny_mbart, tiny_bart])
def test_a_decoder_that_would_read_the_source_is_refused(tmp_path, make, way):
    """Tokenized with padding="max_length" for both sides, which no shape of the logits tells."""
    from tests.training.test_trainer import arguments

    ids = torch.randint(3, 40, (4, 2, 6), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [{"input_ids": one, "labels": other, "pair_ids": i % 2} for i, (one, other) in enumerate(ids)]
    network = make()
    source = default_data_collator(rows)["input_ids"]
    read = list[torch.Tensor]()
    hook = network.get_decoder().register_forward_pre_hook(
        lambda _module, _args, given: read.append(given["input_ids"]), with_kwargs=True
    )
    network(input_ids=source)
    hook.remove()
    assert torch.equal(read[0][:, 1:], source[:, :-1])  # the trap
    gate = NeuronGate(network, NeuronMasks.random(find_sites(network), ["en-de", "de-en"], 0.5, seed=1))
    args = arguments(tmp_path, max_steps=1, per_device_train_batch_size=4)
    data = {"model": network, "args": args, "train_dataset": rows, "data_collator": default_data_collator}
    if way == "callback":
        callback = SpecializationCallback(gate)
        run = Seq2SeqTrainer(callbacks=[callback], compute_loss_func=callback.loss, **data).train
    elif way == "loop":
        run = partial(gate.attach().model, input_ids=source, pair_ids=torch.zeros(4, dtype=torch.long))
    else:
        run = SpecializationTrainer(gate=gate if way == "gated trainer" else None, **data).train
    with pytest.raises(ConfigError, match=r"neither decoder_input_ids nor labels.*PairCollator"):
        run()


def test_pairs_of_source_and_target_do_not_fit_a_decoder_only_model():
    with pytest.raises(TrainingSetupError, match="in a decoder-only model labels stand at the places"):
        check_decoder_inputs(llama(), PairCollator(tokenizer(), PAIRS))


def test_a_decoder_only_model_learns_the_next_token_not_the_current_one(tmp_path):
    from tests.training.test_trainer import arguments

    network, ids = llama(), torch.randint(3, 40, (4, 7), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[:, :2] = -100
    rows = [{"input_ids": one, "labels": other} for one, other in zip(ids, labels, strict=True)]
    reference = copy.deepcopy(network)(input_ids=ids, labels=labels).loss.item()
    args = arguments(tmp_path, max_steps=1, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    trainer = SpecializationTrainer(model=network, args=args, train_dataset=rows)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(reference, abs=1e-4)


@pytest.mark.parametrize("plain", [False, True], ids=["trainer", "callback"])
def test_a_gated_decoder_only_model_learns_and_is_scored_by_the_next_token_too(tmp_path, plain):
    from tests.training.test_trainer import arguments

    network, ids = llama(), torch.randint(3, 40, (4, 7), generator=torch.Generator().manual_seed(1))
    masks = NeuronMasks.random(find_sites(network), ["en-de", "de-en"], density=0.5, seed=2)
    rows = [{"input_ids": one, "labels": one, "pair_ids": i % 2} for i, one in enumerate(ids)]
    losses = []
    for number, pair in enumerate(masks.pairs):  # the library's own loss, neurons silenced by hooks
        silenced = copy.deepcopy(network)
        for site in masks.sites:
            keep_F = masks[pair][site.name]
            silenced.get_submodule(site.name).register_forward_hook(
                lambda _module, _args, z, keep_F=keep_F: z.masked_fill(~keep_F, 0)
            )
        losses.append(silenced(input_ids=ids[number::2], labels=ids[number::2]).loss.item())
    reference = sum(losses) / 2
    args = arguments(tmp_path, max_steps=1, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    data = {"args": args, "train_dataset": rows, "eval_dataset": rows, "data_collator": default_data_collator}
    gate = NeuronGate(network, masks)
    if plain:
        callback = SpecializationCallback(gate)
        more = {"callbacks": [callback], "compute_loss_func": callback.loss}
        trainer = Seq2SeqTrainer(model=network, **data, **more)
    else:
        trainer = SpecializationTrainer(model=network, gate=gate, **data)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(reference, abs=1e-4)
    trainer.train()
    (log,) = (line for line in trainer.state.log_history if "loss" in line)
    assert log["loss"] == pytest.approx(reference, abs=1e-4)
    assert [log["loss_en-de"], log["loss_de-en"]] == pytest.approx(losses, abs=1e-4)


def test_an_encoded_corpus_is_scored_by_the_next_token_too_in_a_decoder_only_model(tmp_path):
    from tests.training.test_trainer import arguments

    torch.manual_seed(0)
    encoded, pad = corpus(count=6), tokenizer().pad_token_id
    network = LlamaForCausalLM(LlamaConfig(**{**llama().config.to_dict(), "vocab_size": len(tokenizer())}))

    def joined(rows):
        both = [row["input_ids"] + row["labels"] for row in rows]
        width = max(map(len, both))
        ids = torch.tensor([one + [pad] * (width - len(one)) for one in both])
        labels = torch.tensor(
            [
                [-100] * len(row["input_ids"]) + row["labels"] + [-100] * (width - len(one))
                for row, one in zip(rows, both, strict=True)
            ]
        )
        pair_ids = torch.tensor([PAIRS.index(row["pair"]) for row in rows])
        return {
            "input_ids": ids,
            "attention_mask": (ids != pad).long(),
            "labels": labels,
            "pair_ids": pair_ids,
        }

    trainer = SpecializationTrainer(
        model=network, args=arguments(tmp_path), eval_dataset=encoded, data_collator=joined
    )
    total = count = 0.0
    for row in encoded:  # one by one, by the library's own loss
        batch = joined([row])
        loss = network.eval()(input_ids=batch["input_ids"], labels=batch["labels"]).loss.item()
        total, count = total + loss * len(row["labels"]), count + len(row["labels"])
    assert trainer.evaluate()["eval_loss"] == pytest.approx(total / count, abs=1e-5)


def test_labels_that_are_not_the_input_s_tokens_are_refused(tmp_path):
    from tests.training.test_trainer import arguments

    rows = [{"input_ids": torch.full((6,), 5), "labels": torch.full((6,), 7)}] * 4
    trainer = SpecializationTrainer(model=llama(), args=arguments(tmp_path), train_dataset=rows)
    with pytest.raises(TrainingSetupError, match="are not the tokens of its input_ids at the same places"):
        trainer.train()


@pytest.mark.parametrize("gated", [True, False])
def test_a_decoder_that_is_shown_what_it_is_to_write_is_refused(tmp_path, gated):
    from tests.training.test_trainer import arguments

    network, batch = tiny_t5(), random_batch(pairs=2)
    gate = NeuronGate(network, NeuronMasks.random(find_sites(network), ["en-de", "de-en"], 0.5, seed=1))
    batch["decoder_input_ids"] = batch["labels"].masked_fill(batch["labels"] == -100, 1)
    trainer = SpecializationTrainer(
        model=network,
        args=arguments(tmp_path, max_steps=1),
        train_dataset=[{}] * 8,
        data_collator=lambda rows: dict(batch),
        gate=gate if gated else None,
    )
    with pytest.raises(TrainingSetupError, match=r"decoder_input_ids are the labels.*one to the right"):
        trainer.train()


def test_labels_of_another_length_than_the_input_are_refused(tmp_path):
    from tests.training.test_trainer import arguments

    rows = [{"input_ids": torch.full((6,), 5), "labels": torch.full((4,), 5)}] * 4
    trainer = SpecializationTrainer(model=llama(), args=arguments(tmp_path), train_dataset=rows)
    with pytest.raises(TrainingSetupError, match=r"labels \[4, 4\] are not those of logits|labels \[8, 4\]"):
        trainer.train()


def test_weights_that_are_not_finite_are_named():
    network = model()
    check_finite(network)
    name, weight = next(iter(network.named_parameters()))
    weight.data.view(-1)[3] = float("nan")
    with pytest.raises(NotFiniteError, match=rf"made 1 weights NaN or infinite \({name}"):
        check_finite(network)
