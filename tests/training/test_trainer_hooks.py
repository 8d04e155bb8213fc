"""The library still calls what we override, and has what we reach for: fails when a release changes that."""

import inspect
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch
from accelerate import DataLoaderConfiguration
from accelerate.data_loader import DataLoaderShard, prepare_data_loader
from torch.utils.data import DataLoader
from transformers import Seq2SeqTrainer, Trainer
from transformers.trainer_callback import CallbackHandler

from nspec_hf.training import SpecializationTrainer
from nspec_hf.training.trainer_hooks import HookedTrainer, keep_ties
from tests.helpers.models import SIX_ARCHITECTURES
from tests.helpers.tiny_text import corpus, model
from tests.training.test_specialization import saved_masks, script, specialized
from tests.training.test_trainer import STEPS, build

OVERRIDDEN = [name for name in vars(HookedTrainer) if name.startswith("_") and not name.startswith("__")]


def test_every_private_name_that_we_override_is_the_library_s_or_ours_alone():
    ours = {"_metrics_of", "_show_evaluation"}
    assert ours == {name for name in OVERRIDDEN if not hasattr(Seq2SeqTrainer, name)}
    for name in {*OVERRIDDEN} - ours:
        theirs, own = (inspect.signature(getattr(kind, name)) for kind in (Seq2SeqTrainer, HookedTrainer))
        assert list(theirs.parameters) == list(own.parameters)
    assert "_internal_call" in inspect.signature(Trainer.save_model).parameters


def pushing(trainer, monkeypatch):
    """Let a trainer push to a Hub of the test's own; return what files it is given, push by push."""
    pushed = []

    class Hub:
        def upload_folder(self, folder_path, ignore_patterns=(), **_settings):
            paths = [path.relative_to(folder_path) for path in Path(folder_path).rglob("*") if path.is_file()]
            pushed.append({str(path) for path in paths if not any(map(path.match, ignore_patterns))})
            done = Future()
            done.set_result(None)
            return done

    monkeypatch.setattr("transformers.trainer.hf_api", Hub)
    trainer.args.push_to_hub, trainer.hub_model_id, trainer.push_in_progress = True, "somebody/model", None
    return pushed


def test_what_is_pushed_in_training_has_the_masks_beside_the_weights(tmp_path, monkeypatch):
    trainer = script(tmp_path, save_strategy="steps", save_steps=1)
    specialize = specialized(trainer)
    pushed = pushing(trainer, monkeypatch)
    trainer.train()
    assert len(pushed) == STEPS
    assert all({"model.safetensors", "nspec_masks/nspec_masks.safetensors"} <= files for files in pushed)
    assert saved_masks(tmp_path) == specialize.gate.masks


def test_the_library_calls_each_of_them(tmp_path, monkeypatch):
    """One training with a checkpoint, a best one, and one that goes on from it."""
    calls = []
    for name in {*OVERRIDDEN} - {"_metrics_of", "_show_evaluation"}:
        plain = getattr(HookedTrainer, name)

        def watched(self, *args, _plain=plain, _name=name, **kwargs):
            calls.append(_name)
            return _plain(self, *args, **kwargs)

        monkeypatch.setattr(HookedTrainer, name, watched)
    settings = {
        "save_strategy": "steps",
        "save_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "load_best_model_at_end": True,
        "max_steps": 2,
        "eval_dataset": corpus(4),
        "remove_unused_columns": True,
    }
    rows = [corpus(4)[i] for i in range(16)]
    build(SpecializationTrainer, model(), tmp_path, rows, **settings).train()
    again = build(SpecializationTrainer, model(), tmp_path, rows, **{**settings, "max_steps": 3})
    pushing(again, monkeypatch)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert set(calls) == {*OVERRIDDEN} - {"_metrics_of", "_show_evaluation"}


def test_a_checkpoint_s_model_is_saved_before_the_state_that_makes_it_whole(tmp_path):
    there = []
    trainer = build(
        SpecializationTrainer, model(), tmp_path, save_strategy="steps", save_steps=1, max_steps=1
    )
    trainer.into_checkpoint.append(lambda folder: there.append({path.name for path in folder.iterdir()}))
    trainer.train()
    assert "model.safetensors" in there[0]
    assert "trainer_state.json" not in there[0]
    assert (tmp_path / "checkpoint-1" / "trainer_state.json").is_file()


def test_accelerate_tells_how_many_rows_of_the_last_step_are_real():
    """What `core/distributed.py` reads of a loader: without it duplicates would be counted twice."""
    loader = prepare_data_loader(
        DataLoader(torch.arange(10), batch_size=4), num_processes=2, process_index=1, put_on_device=False
    )
    assert isinstance(loader, DataLoaderShard)
    assert loader.batch_sampler.even_batches
    for _ in loader:
        last = loader.end_of_dataloader
    assert last
    assert loader.remainder == 10 % 8
    assert DataLoaderConfiguration().even_batches


@pytest.mark.parametrize("name", ["callbacks", "train_dataloader", "eval_dataloader"])
def test_the_callback_handler_has_what_we_read_and_set(name):
    assert hasattr(CallbackHandler([], None, None, None, None), name)


def test_generation_settings_are_those_of_the_library_s_private_name(tmp_path):
    trainer = build(
        SpecializationTrainer,
        model(),
        tmp_path,
        predict_with_generate=True,
        compute_metrics=lambda prediction: {"width": prediction.predictions.shape[1]},
    )
    trainer.model.generation_config.max_length = 5
    widths = [trainer.evaluate(corpus(2), max_new_tokens=count)["eval_width"] for count in (4, 9)]
    assert widths[0] < widths[1]


@pytest.mark.parametrize("name", SIX_ARCHITECTURES)
@pytest.mark.parametrize("sharded", [True, False])
def test_accelerate_does_not_see_embeddings_that_others_share_while_it_shards(name, sharded):
    """FSDP2 would be given a group of two of the modules that have the weight, and refuses that."""
    network, seen = SIX_ARCHITECTURES[name](), []

    class Accelerator:
        is_fsdp2 = sharded

        def prepare(self, *parts):
            seen.extend([network.get_input_embeddings(), network.get_output_embeddings()])
            raise KeyError("on purpose")

    accelerator, kept = Accelerator(), [network.get_input_embeddings(), network.get_output_embeddings()]
    keep_ties(accelerator)
    with pytest.raises(KeyError, match="on purpose"):
        accelerator.prepare(network, "an optimizer")
    assert seen == ([None, None] if sharded else kept)
    assert [network.get_input_embeddings(), network.get_output_embeddings()] == kept
