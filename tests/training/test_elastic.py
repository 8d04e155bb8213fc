"""Elastic training: a level drawn for every micro-batch, and a dense pass that teaches it."""

import copy
import math

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from nspec_hf.core import ConfigError, TrainingSetupError
from nspec_hf.data import BatchConfig, PairCollator
from nspec_hf.gating import NeuronGate, attachment_of
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import find_sites
from nspec_hf.training import ElasticTrainer, elastic, record_corpus, training_arguments
from nspec_hf.training.config import TrainConfig
from nspec_hf.training.elastic import divergence
from tests.helpers import tiny_text
from tests.helpers.families import tiny_llama
from tests.helpers.models import VOCABULARY, tiny_m2m100
from tests.helpers.two_processes import run_in_processes


def masks_of(model, density, seed=1):
    return NeuronMasks.random(find_sites(model), tiny_text.PAIRS, density=density, seed=seed)


def counted():
    """Return what neurons of the model fire for which pair."""
    torch.manual_seed(0)
    tokenizer = tiny_text.tokenizer()
    model = tiny_m2m100(vocab_size=len(tokenizer), dropout=0.0)
    return record_corpus(model, tokenizer, tiny_text.corpus())


@pytest.fixture
def made(tmp_path):
    """Return what makes an elastic trainer of a small model, without dropout."""
    return maker(tmp_path)


def maker(folder):
    tokenizer = tiny_text.tokenizer()

    def make(dense=None, teacher=0.5, own=None, **arguments):
        torch.manual_seed(0)
        model = tiny_m2m100(vocab_size=len(tokenizer), dropout=0.0)
        gate = NeuronGate(model, own or masks_of(model, 0.5, seed=9)).attach()
        levels = None if own else [masks_of(model, density) for density in (0.8, 0.4)]
        settings = {"learning_rate": 1e-3, "max_steps": 3, "label_smoothing_factor": 0.0, **arguments}
        return ElasticTrainer(
            model=model,
            args=training_arguments(TrainConfig(arguments=settings), folder),
            train_dataset=tiny_text.corpus(),
            data_collator=PairCollator(tokenizer, tiny_text.PAIRS, model.config.decoder_start_token_id),
            processing_class=tokenizer,
            gate=gate,
            batch_config=BatchConfig(max_tokens=60, max_length=60),
            levels=levels,
            dense=None if dense is None else masks_of(model, dense),
            teacher=None if dense is None and own is None else teacher,
        )

    return make


def test_the_divergence_is_that_of_a_plain_loop_over_tokens():
    generator = torch.Generator().manual_seed(0)
    teacher, student = torch.randn(2, 2, 3, 5, generator=generator)
    labels = torch.tensor([[1, 2, -100], [4, -100, -100]])
    total = 0.0
    for row, column in ((0, 0), (0, 1), (1, 0)):
        p, q = teacher[row, column].softmax(0).tolist(), student[row, column].softmax(0).tolist()
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert divergence(teacher, student, labels).item() == pytest.approx(total / 3, rel=1e-5)
    assert divergence(teacher, student, labels, tokens=12).item() == pytest.approx(total / 12, rel=1e-5)


def test_a_divergence_of_half_precision_is_computed_as_of_the_same_numbers_in_double():
    generator = torch.Generator().manual_seed(2)
    teacher = torch.randn(3, 40, 50, generator=generator)
    student = teacher + 0.05 * torch.randn(teacher.shape, generator=generator)  # close, as after training
    labels = torch.zeros(3, 40, dtype=torch.long)
    for dtype in (torch.bfloat16, torch.float16):
        p, q = (each.to(dtype).double().softmax(-1) for each in (teacher, student))
        wanted = (p * (p / q).log()).sum().item() / 120
        found = divergence(teacher.to(dtype), student.to(dtype), labels).item()
        assert found == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("block", [1, 5, 21, 100])
def test_a_divergence_by_blocks_has_the_value_and_the_gradient_of_the_whole(monkeypatch, block):
    monkeypatch.setattr(elastic, "tokens_of_block", lambda logits: block)
    generator = torch.Generator().manual_seed(1)
    teacher, student = torch.randn(2, 3, 7, 11, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 11, (3, 7), generator=generator)
    labels[0, 4:] = labels[2] = -100
    teacher[2], student[2] = math.inf, math.nan  # what a model says after the end
    student.requires_grad_()
    found = divergence(teacher, student, labels)
    (grads,) = torch.autograd.grad(found, student)
    seen = labels != -100
    p, q = teacher[seen].softmax(-1), student.detach()[seen].softmax(-1)
    assert found.item() == pytest.approx((p * (p / q).log()).sum().item() / 11, rel=1e-12)
    assert torch.allclose(grads[seen], (q - p) / 11, rtol=1e-9, atol=1e-15)
    assert not grads[~seen].any()


def test_a_divergence_keeps_no_float32_copies_of_the_logits_for_its_way_back(monkeypatch):
    monkeypatch.setattr(elastic, "tokens_of_block", lambda logits: 4)
    teacher, student = torch.randn(2, 2, 50, 1000).bfloat16()
    student.requires_grad_()
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        divergence(teacher, student, torch.zeros(2, 50, dtype=torch.long)).backward()
    assert sum(kept.values()) < 1.1 * 2 * student.numel() * student.element_size()


def drawn(trainer, step):
    """Draw as the docstring says: from the seed and the number of micro-batches before."""
    return np.random.default_rng((trainer.args.seed, step)).integers(len(trainer.levels))


def logits_of(model, masks, batch):
    """Return the logits of a model that has these masks; the language tag's row too."""
    attachment_of(model).replace_masks(masks)
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    return model.train()(**inputs).logits.float()


def test_gradients_are_those_of_the_dense_pass_and_of_the_level_that_learns_from_it(made):
    trainer = made(dense=0.95, teacher=0.3)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(6)])
    dense, level = copy.deepcopy(trainer.model), copy.deepcopy(trainer.model)
    seen = batch["labels"] != -100
    count = int(seen.sum())
    trainer.model.train()
    trainer.training_step(trainer.model, dict(batch), torch.tensor(count))
    # The reference: two models with the same weights, one loss that adds up three terms, one backward pass.
    p = logits_of(dense, trainer.dense, batch)[seen].softmax(-1)
    q = logits_of(level, trainer.levels[drawn(trainer, 0)], batch)[seen].softmax(-1)
    targets = batch["labels"][seen][:, None]
    text = [-probability.gather(-1, targets).log().sum() / count for probability in (p, q)]
    apart = (p.detach() * (p.detach().log() - q.log())).sum() / count
    (text[0] / 2 + (0.7 * text[1] + 0.3 * apart) / 2).backward()
    ours = {name: parameter.grad for name, parameter in trainer.model.named_parameters()}
    other = dict(level.named_parameters())
    for name, parameter in dense.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad + other[name].grad, rtol=1e-4, atol=1e-6)


def trained_weights(folder, **arguments):
    """Train two updates without momentum; return the weights."""
    plain = {"optim": "sgd", "learning_rate": 0.5, "lr_scheduler_type": "constant", "warmup_steps": 0}
    trainer = maker(folder)(dense=0.9, teacher=0.8, max_steps=2, max_grad_norm=0.0, **plain, **arguments)
    trainer.levels = trainer.levels[:1]
    trainer.train()
    return {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}


def train_in_two(index, count, folder):
    weights = trained_weights(folder)
    if index == 0:
        torch.save(weights, f"{folder}/weights.pt")


@pytest.mark.slow
def test_two_processes_learn_from_the_dense_pass_as_much_as_one(tmp_path):
    run_in_processes(train_in_two, 2, tmp_path)
    alone = trained_weights(tmp_path, gradient_accumulation_steps=2)
    for name, weight in torch.load(tmp_path / "weights.pt").items():
        torch.testing.assert_close(weight, alone[name], rtol=1e-4, atol=1e-6)


def test_a_decoder_only_model_learns_from_the_dense_pass_where_its_labels_are_predicted(tmp_path):
    model = tiny_llama()
    pairs = ["en-de", "de-en"]
    dense, level = (
        NeuronMasks.random(find_sites(model), pairs, density=density, seed=3) for density in (0.9, 0.4)
    )
    trainer = ElasticTrainer(
        model=model,
        args=training_arguments(TrainConfig(arguments={"max_steps": 1}), tmp_path),
        gate=NeuronGate(model, level).attach(),
        levels=[level],
        dense=dense,
        teacher=1.0,
    )
    ids = torch.randint(3, VOCABULARY, (2, 7), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[:, :4] = -100  # a source of four tokens, a target of three
    apart = copy.deepcopy(model)
    batch = {"input_ids": ids, "labels": labels, "pair_ids": torch.tensor([0, 1])}
    trainer.args.label_smoothing_factor = trainer.compute_loss_func.label_smoothing = 0.0
    trainer.model.train()
    trainer.training_step(trainer.model, dict(batch), torch.tensor(6))
    # What is said at the places 3, 4 and 5 is what comes at 4, 5 and 6.
    p = logits_of(apart, dense, batch)[:, 3:6].softmax(-1)
    text = -p.gather(-1, ids[:, 4:, None]).log().sum() / 6
    (text / 2).backward()
    q = logits_of(apart, level, batch)[:, 3:6].softmax(-1)
    ((p.detach() * (p.detach().log() - q.log())).sum() / 6 / 2).backward()
    other = dict(apart.named_parameters())
    for name, parameter in trainer.model.named_parameters():
        torch.testing.assert_close(parameter.grad, other[name].grad, rtol=1e-4, atol=1e-6)


class StopAt(TrainerCallback):
    def __init__(self, update):
        self.update = update

    def on_step_end(self, args, state, control, **kwargs):
        control.should_save = control.should_training_stop = state.global_step == self.update


def test_a_run_that_goes_on_behind_a_shorter_last_update_draws_what_one_without_a_stop_draws(made, tmp_path):
    settings = {"max_steps": -1, "num_train_epochs": 2, "gradient_accumulation_steps": 5, "warmup_steps": 1}
    whole, stopped, resumed = (make(**settings) for make in (maker(tmp_path / "whole"), made, made))
    for trainer in (whole, stopped, resumed):
        trainer.levels = [masks_of(trainer.model, density) for density in (0.9, 0.7, 0.5, 0.3)]
    batches = len(whole.get_train_dataloader())
    assert batches % 5
    whole.train()
    stopped.add_callback(StopAt(-(-batches // 5)))
    stopped.train()
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == whole.state.global_step > stopped.state.global_step
    assert tiny_text.same_weights(resumed.model, whole.model)


def test_after_every_update_the_gate_has_its_own_masks_and_all_levels_weredrawn(made):
    trainer = made(max_steps=8)
    own, used = trainer.gate.masks, []
    plain = trainer.gate.replace_masks
    trainer.gate.replace_masks = lambda masks: (used.append(masks), plain(masks))
    trainer.train()
    assert trainer.gate.masks is own
    assert used[1::2] == [own] * 8
    assert [each in used[::2] for each in trainer.levels] == [True, True]
    assert used[::2] == [trainer.levels[drawn(trainer, step)] for step in range(8)]


def test_each_micro_batch_of_an_update_draws_a_level_of_its_own(made):
    trainer, used = made(max_steps=2, gradient_accumulation_steps=3), []
    trainer.levels = [masks_of(trainer.model, density) for density in (0.9, 0.7, 0.5, 0.3)]
    assert len(trainer.get_train_dataloader()) >= 6
    plain = trainer.gate.replace_masks
    trainer.gate.replace_masks = lambda masks: (used.append(masks), plain(masks))
    trainer.drawn = 2  # as a training leaves it that is interrupted within an update
    trainer.train()
    assert used[::2] == [trainer.levels[drawn(trainer, step)] for step in range(6)]
    assert len(set(used[:6:2])) > 1


@pytest.mark.parametrize(("teacher", "drawn_from"), [(None, [0.6, 0.9, 0.3]), (0.5, [0.6, 0.3])])
def test_the_levels_are_those_that_the_masks_keep_and_the_densest_teaches(made, teacher, drawn_from):
    stats = counted()
    own = NeuronMasks.from_coverage(stats, coverage=0.6, levels=(0.9, 0.3))
    trainer, used = made(own=own, teacher=teacher, max_steps=8), []
    plain = trainer.gate.replace_masks
    trainer.gate.replace_masks = lambda masks: (used.append(masks), plain(masks))
    trainer.train()
    alone = {level: NeuronMasks.from_coverage(stats, coverage=level) for level in (0.9, 0.6, 0.3)}
    drawn, taught = (used[1::3], used[::3]) if teacher else (used[::2], [])
    assert {each.fingerprint() for each in drawn} == {alone[level].fingerprint() for level in drawn_from}
    assert {each.fingerprint() for each in taught} == ({alone[0.9].fingerprint()} if teacher else set())
    assert trainer.gate.masks is own


@pytest.mark.parametrize("teacher", [1.5, -0.1, float("nan"), True])
def test_a_weight_out_of_range_is_refused(made, teacher):
    with pytest.raises(ConfigError, match="teacher"):
        made(dense=0.9, teacher=teacher)
    with pytest.raises(ConfigError, match="teacher"):
        TrainConfig(elastic=True, teacher=teacher)


def test_a_teacher_is_refused_under_deepspeed_which_would_make_two_updates(made):
    trainer = made(dense=0.9)
    trainer.is_deepspeed_enabled = True  # as where it is installed and configured
    before = copy.deepcopy(trainer.model)
    with pytest.raises(TrainingSetupError, match="DeepSpeed would make an update"):
        trainer.train()
    assert tiny_text.same_weights(trainer.model, before)


def test_without_levels_a_teacher_s_pupil_or_masks_it_is_refused(made):
    stats = counted()
    with pytest.raises(ConfigError, match="one coverage alone"):
        made(own=NeuronMasks.from_coverage(stats, coverage=0.6))
    with pytest.raises(ConfigError, match="needs elastic training"):
        TrainConfig(teacher=0.5)
