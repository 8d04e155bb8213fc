"""A run: to the end in one go or in several sittings, with the same weights; and recording a corpus."""

import copy
import fcntl
import json
import shutil
import warnings
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from nspec_hf.core import ArtifactError, ConfigError, EmptyPairError, FolderInUseError, read_json
from nspec_hf.data import BatchConfig, EncodedCorpus, LanguageTags, PairCollator
from nspec_hf.evaluation import TranslateConfig, Translator
from nspec_hf.gating import MASKS_FOLDER, GateConfig, NeuronGate
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import RecordConfig, record
from nspec_hf.training import SpecializationTrainer, TrainConfig, record_corpus, train, training_arguments
from nspec_hf.training.checkpoints import RunClock, base_facts
from tests.helpers.kills import killed_at
from tests.helpers.models import SIX_ARCHITECTURES, tiny_marian
from tests.helpers.tiny_experiment import Killed
from tests.helpers.tiny_text import PAIRS, corpus, masks, model, same_weights, tokenizer

GROWING = {"learning_rate": 5.0, "lr_scheduler_type": "constant", "warmup_steps": 0}
"""The learning rate is so high that the loss grows from the first evaluation on."""


def config(steps=4, patience=None, **changes):
    arguments = {
        "max_steps": steps,
        "save_steps": 2,
        "eval_steps": 2,
        "logging_steps": 1,
        "learning_rate": 1e-2,
        "warmup_steps": 1,
        "seed": 3,
        "disable_tqdm": True,
    }
    batches = BatchConfig(max_tokens=64, max_length=32)
    return TrainConfig(arguments={**arguments, **changes}, batches=batches, patience=patience)


def run(folder, settings=None, gated=True, seed=0, gate_seed=3, text=24, dropout=0.2, **more):
    """Train the tiny model, with dropout; return it and the result."""
    network = model(seed, dropout=dropout)
    gate = NeuronGate(network, masks(network, seed=gate_seed)) if gated else None
    more = {"validation": corpus(count=4, seed=1), **more}
    return network, train(network, tokenizer(), corpus(text), settings or config(), folder, gate=gate, **more)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, *run(folder)


def test_training_on_a_cpu_keeps_the_memory_that_it_frees(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr("nspec_hf.training.run.keep_freed_memory", lambda: told.append(True))
    run(tmp_path)
    assert told


def test_a_run_leaves_a_model_its_tokenizer_and_its_log(whole):
    folder, network, result = whole
    assert result.updates == 4
    assert result.seconds > 0
    assert same_weights(network, type(network).from_pretrained(folder / "model"))
    assert (folder / "model" / "tokenizer.json").is_file()
    assert json.loads((folder / "trainer_state.json").read_text())["global_step"] == 4
    assert set(result.facts()["validation_loss"]) == {"2", "4"}
    assert NeuronMasks.from_pretrained(folder / "checkpoint-4" / MASKS_FOLDER) == masks(network)


def test_the_state_dict_is_that_of_a_plain_model(whole):
    assert whole[1].state_dict().keys() == model().state_dict().keys()


def kill(monkeypatch, method, step):
    """Let the process die in a method of the Trainer once that many updates are made."""
    plain = getattr(SpecializationTrainer, method)

    def dying(self, *args, **kwargs):
        if self.state.global_step >= step:
            raise Killed
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(SpecializationTrainer, method, dying)


def test_a_run_killed_while_it_wrote_a_checkpoint_ends_with_the_same_weights(whole, tmp_path, monkeypatch):
    kill(monkeypatch, "_save_optimizer_and_scheduler", step=4)
    with pytest.raises(Killed):
        run(tmp_path)
    monkeypatch.undo()
    # The half of checkpoint-4 is there: its model, but neither optimizer nor state.
    assert (tmp_path / "checkpoint-4" / "model.safetensors").is_file()
    with pytest.warns(UserWarning, match="checkpoint-4 is not whole"):
        network, result = run(tmp_path)
    assert same_weights(network, whole[1])
    assert result.updates == 4


def test_a_run_killed_before_its_model_was_saved_makes_no_further_update(whole, tmp_path, monkeypatch):
    kill(monkeypatch, "_finalize_training", step=4)
    with pytest.raises(Killed):
        run(tmp_path)
    monkeypatch.undo()
    network, result = run(tmp_path)
    assert same_weights(network, whole[1])
    assert result.updates == 4
    assert 0 < result.seconds < whole[2].seconds + 60
    assert same_weights(network, type(network).from_pretrained(tmp_path / "model"))


def test_a_run_that_has_ended_is_loaded_not_trained(whole, monkeypatch):
    folder, network, result = whole
    monkeypatch.setattr(SpecializationTrainer, "train", None)
    again, found = run(folder)
    assert same_weights(again, network)
    assert found.had_ended
    assert not result.had_ended
    assert (found.updates, found.seconds) == (result.updates, result.seconds)
    assert len(found.log) >= 4


def test_a_run_whose_length_was_raised_goes_on(whole, tmp_path):
    folder = tmp_path / "longer"
    shutil.copytree(whole[0], folder)
    network, result = run(folder, config(steps=6))
    assert result.updates == 6
    assert result.seconds > whole[2].seconds
    assert not same_weights(network, whole[1])
    assert same_weights(network, run(tmp_path / "at once", config(steps=6))[0])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (config(steps=3), r"checkpoint-4 has made 4 updates, and max_steps is 3; give another folder"),
        (config(steps=-1, num_train_epochs=1), r"has made 3 epochs, and num_train_epochs is 1"),
    ],
)
def test_a_run_whose_length_was_lowered_is_not_given_out_as_the_shorter_one(whole, tmp_path, settings, said):
    folder = tmp_path / "shorter"
    shutil.copytree(whole[0], folder)
    if "num_train_epochs" in settings.arguments:
        run(folder, config(steps=-1, num_train_epochs=3))
    with pytest.raises(ConfigError, match=said):
        run(folder, settings)


def test_a_checkpoint_made_without_our_callbacks_is_gone_on_from(tmp_path):
    run(tmp_path, config(steps=2))
    for path in (tmp_path / "finished.json", tmp_path / "checkpoint-2" / "trainer_state.json"):
        content = json.loads(path.read_text())
        content.get("stateful_callbacks", {}).pop(RunClock.__name__, None)
        path.unlink() if path.name == "finished.json" else path.write_text(json.dumps(content))
    assert run(tmp_path, config(steps=4, patience=5))[1].updates == 4


def test_early_stopping_keeps_the_best_and_counts_on_after_a_stop(tmp_path, monkeypatch):
    settings = config(steps=20, patience=2, **GROWING)
    network, result = run(tmp_path / "a", settings)
    losses = result.facts()["validation_loss"]
    best = min(losses, key=losses.get)
    assert result.updates < 20
    assert result.updates == int(best) + 4
    checkpoint = type(network).from_pretrained(tmp_path / "a" / f"checkpoint-{best}")
    assert same_weights(network, checkpoint)
    kill(monkeypatch, "log", step=result.updates - 1)
    with pytest.raises(Killed):
        run(tmp_path / "b", settings)
    monkeypatch.undo()
    again, resumed = run(tmp_path / "b", settings)
    assert resumed.updates == result.updates
    assert same_weights(again, network)


def test_a_run_killed_after_its_patience_ended_makes_no_further_update(tmp_path, monkeypatch):
    settings = config(steps=20, patience=2, **GROWING)
    network, result = run(tmp_path / "a", settings)
    kill(monkeypatch, "_finalize_training", step=result.updates)
    with pytest.raises(Killed):
        run(tmp_path / "b", settings)
    monkeypatch.undo()
    again, resumed = run(tmp_path / "b", settings)
    assert resumed.updates == result.updates < 20
    assert same_weights(again, network)
    assert run(tmp_path / "b", settings)[1].had_ended


def test_a_run_whose_patience_was_raised_waits_as_long_as_one_that_had_it_at_once(tmp_path):
    network, result = run(tmp_path / "at once", config(steps=20, patience=4, **GROWING))
    assert run(tmp_path / "raised", config(steps=20, patience=2, **GROWING))[1].updates < result.updates
    again, raised = run(tmp_path / "raised", config(steps=20, patience=4, **GROWING))
    assert raised.updates == result.updates < 20
    assert raised.facts()["validation_loss"] == result.facts()["validation_loss"]
    assert same_weights(again, network)


def test_patience_without_validation_text_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="give validation text"):
        run(tmp_path, config(patience=2), validation=None)
    with pytest.raises(ConfigError, match="patience is a positive number"):
        TrainConfig(patience=0)


def test_empty_validation_text_is_none(tmp_path):
    _, result = run(tmp_path, config(steps=1), validation=EncodedCorpus([]))
    assert result.facts()["validation_loss"] == {}


def test_arguments_that_are_not_the_trainers_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="has no lerning_rate"):
        training_arguments(TrainConfig(arguments={"lerning_rate": 1}), tmp_path)
    with pytest.raises(ConfigError, match="output_dir is chosen by the run"):
        training_arguments(TrainConfig(arguments={"output_dir": "x"}), tmp_path)


def test_a_silent_run_has_the_papers_settings(tmp_path):
    found = training_arguments(TrainConfig(), tmp_path)
    assert (found.adam_beta1, found.adam_beta2, found.adam_epsilon) == (0.9, 0.98, 1e-9)
    assert (found.learning_rate, found.warmup_steps, found.label_smoothing_factor) == (5e-4, 4000, 0.1)
    assert found.lr_scheduler_type == "inverse_sqrt"
    assert training_arguments(TrainConfig(arguments={"adam_beta2": 0.5}), tmp_path).adam_beta2 == 0.5


def test_bf16_runs_on_a_cpu(tmp_path):
    _, result = run(tmp_path, config(steps=2, bf16=True), validation=None)
    assert result.updates == 2


def test_settings_that_another_trainer_does_not_read_are_told(tmp_path):
    class Own(SpecializationTrainer):
        pass

    settings = replace(config(steps=1), elastic=True)
    with pytest.warns(UserWarning, match="elastic and its teacher have no effect on what brings"):
        run(tmp_path, settings, make_trainer=Own)


@pytest.mark.parametrize("ended", [True, False])
def test_an_elastic_run_of_other_levels_is_refused(tmp_path, monkeypatch, ended):
    def elastic(level_seed):
        network, settings = model(), replace(config(steps=2), elastic=True)
        own, level = masks(network), masks(network, seed=level_seed)
        with_levels = NeuronMasks(own.pairs, own.keep, levels={0.4: level.keep})
        gate = NeuronGate(network, with_levels)
        return train(network, tokenizer(), corpus(24), settings, tmp_path, gate=gate)

    if not ended:
        kill(monkeypatch, "_finalize_training", step=2)
        with pytest.raises(Killed):
            elastic(level_seed=4)
        monkeypatch.undo()
    else:
        elastic(level_seed=4)
    with pytest.raises(ConfigError, match="levels"):
        elastic(level_seed=5)
    assert elastic(level_seed=4).updates == 2


def test_without_masks_a_run_trains_all_neurons(tmp_path):
    network, result = run(tmp_path, config(steps=2), gated=False)
    assert not (tmp_path / "checkpoint-2" / MASKS_FOLDER).exists()
    assert "density" not in result.log[0]
    assert network is not None


def test_recording_a_corpus_counts_each_sentence_once():
    network, encoded = model(), corpus(count=10)
    settings = RecordConfig(av=True, te=True, progress=False)
    found = record_corpus(network, tokenizer(), encoded, settings, max_tokens=64, description={"name": "x"})
    one_by_one = DataLoader(encoded, batch_size=1, collate_fn=PairCollator(tokenizer(), PAIRS))
    expected = record(network, one_by_one, PAIRS, settings)
    assert found.corpus == {"name": "x"}
    assert all(found.sentences(pair) == 10 for pair in PAIRS)
    for name, tensor in expected.tensors().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(found.tensors()[name], tensor, rtol=1e-4, atol=1e-6)
        else:
            assert torch.equal(found.tensors()[name], tensor)


def test_an_empty_corpus_is_refused():
    with pytest.raises(EmptyPairError, match="no sentence of en-de"):
        record_corpus(model(), tokenizer(), EncodedCorpus(["en-de"]))


def test_a_sentence_longer_than_the_budget_is_recorded_all_the_same():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stats = record_corpus(
            model(), tokenizer(), corpus(count=4), RecordConfig(progress=False), max_tokens=2
        )
    assert stats.sentences("en-de") == 4


def test_codes_reach_the_collator(tmp_path):
    mapped = {"xx": "de"}
    encoded = EncodedCorpus(["en-xx"])
    row = corpus(count=1)[0]
    encoded.add("en-xx", [row["input_ids"]] * 4, [row["labels"]] * 4)
    settings = config(steps=1)
    tags = LanguageTags(tokenizer(), mapped)
    train(model(), tags, encoded, settings, tmp_path)
    record_corpus(model(), tags, encoded, RecordConfig(progress=False))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"settings": config(learning_rate=0.5)}, r"arguments.learning_rate: 0.01 then, 0.5 now"),
        ({"seed": 7}, "base: "),
        ({"gate_seed": 8}, "gate.masks: "),
        ({"gated": False}, "gate.masks: .* then, None now"),
        ({"text": 5}, "text: "),
        ({"dropout": 0.3}, r"base_config.dropout: 0.2 then, 0.3 now"),
    ],
)
@pytest.mark.parametrize("ended", [True, False])
def test_a_folder_with_weights_that_other_settings_made_is_refused(whole, tmp_path, changes, says, ended):
    folder = tmp_path / "copy"
    shutil.copytree(whole[0], folder)
    if not ended:
        (folder / "finished.json").unlink()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=says):
        run(folder, **changes)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_other_validation_text_is_refused_where_it_chooses_the_weights(whole, tmp_path):
    best = config(load_best_model_at_end=True)
    run(tmp_path / "best", best)
    other = corpus(count=5, seed=8)
    with pytest.raises(ConfigError, match="validation: "):
        run(tmp_path / "best", best, validation=other)
    shutil.copytree(whole[0], tmp_path / "last")
    assert run(tmp_path / "last", validation=other)[1].had_ended


def test_marks_of_an_earlier_version_that_say_less_are_taken(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "copy")
    path = tmp_path / "copy" / "model" / "made_by.json"
    known = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in known.items() if k[:5] != "base_" and k != "validation"}))
    assert run(tmp_path / "copy")[1].had_ended
    with pytest.raises(ConfigError, match="base: "):
        run(tmp_path / "copy", seed=7)


def test_another_number_of_processes_than_a_checkpoint_had_is_told_and_that_of_a_run_that_ended_is_not(
    whole, tmp_path
):
    shutil.copytree(whole[0], tmp_path / "copy")
    for path in tmp_path.glob("copy/*/made_by.json"):
        known = json.loads(path.read_text())
        assert known["processes"] == 1
        path.write_text(json.dumps(known | {"processes": 2}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run(tmp_path / "copy")[1].had_ended
    with pytest.warns(UserWarning, match="checkpoint-4 was made with 2 processes at work, .* 1: .* 1/2 of"):
        assert run(tmp_path / "copy", config(steps=6))[1].updates == 6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(tmp_path / "copy", config(steps=8))  # from a checkpoint of one process


def test_one_value_of_a_base_that_has_changed_is_seen_and_two_rows_that_were_swapped():
    """A tag's row of a large embedding lies between the values of which a digest is made."""
    torch.manual_seed(0)
    network = torch.nn.Embedding(3000, 8)
    known = base_facts(network)
    for change in (
        lambda weight: weight[1234, 5:6].mul_(1.5),
        lambda weight: weight.index_copy_(0, torch.tensor([7, 9]), weight[[9, 7]]),
    ):
        changed = copy.deepcopy(network)
        with torch.no_grad():
            change(changed.weight)
        assert base_facts(changed)["base_sums"] != known["base_sums"]
    for dtype in (torch.float64, torch.bfloat16):
        assert base_facts(copy.deepcopy(network).to(dtype))["base_sums"] != known["base_sums"]
    assert base_facts(copy.deepcopy(network)) == known


def test_how_long_and_how_a_run_is_watched_may_change(whole, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(whole[0], folder)
    assert run(folder, config(logging_steps=3, save_total_limit=5))[1].had_ended


def test_a_run_that_goes_on_for_longer_keeps_the_warm_up_that_it_began_with(tmp_path):
    def chosen(steps):
        settings = config(steps)
        return replace(settings, arguments={k: v for k, v in settings.arguments.items() if k[:4] != "warm"})

    with pytest.warns(UserWarning, match="warmup_steps is 1, a tenth of max_steps 12"):
        run(tmp_path / "a", chosen(12))
    network, result = run(tmp_path / "a", chosen(24))  # whose own warm-up would be 2
    assert (result.updates, result.had_ended) == (24, False)
    assert same_weights(network, run(tmp_path / "b", config(24))[0])


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"until": {}}', "null", "[" * 100_000])
@pytest.mark.parametrize("name", ["finished.json", "trainer_state.json"])
def test_damaged_marks_of_a_run_are_named(whole, tmp_path, name, content):
    for file in ("finished.json", "trainer_state.json"):
        shutil.copy(whole[0] / file, tmp_path)
    shutil.copytree(whole[0] / "model", tmp_path / "model")
    (tmp_path / name).write_text(content)
    with pytest.raises(ArtifactError, match=name):
        run(tmp_path)


def test_a_run_that_has_ended_without_its_model_says_what_to_do(whole, tmp_path):
    shutil.copy(whole[0] / "finished.json", tmp_path)
    with pytest.raises(ArtifactError, match=r"holds no weights; delete the run's finished.json"):
        run(tmp_path)


def test_two_processes_do_not_train_in_one_folder(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with open(folder / ".lock", "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(FolderInUseError, match="another process is writing into"):
            run(folder)
    assert run(folder, config(steps=1))[1].updates == 1


def test_a_copied_run_ends_with_its_own_best_checkpoint(tmp_path, monkeypatch):
    settings = config(steps=4, load_best_model_at_end=True, learning_rate=5.0, warmup_steps=0)
    kill(monkeypatch, "_finalize_training", step=4)
    with pytest.raises(Killed):
        run(tmp_path / "first", settings)
    monkeypatch.undo()
    shutil.copytree(tmp_path / "first", tmp_path / "copy")
    # The place that the state names now holds other weights.
    state = json.loads((tmp_path / "copy" / "checkpoint-4" / "trainer_state.json").read_text())
    named = tmp_path / "first" / "checkpoint-2"
    assert state["best_model_checkpoint"] == str(named)
    weights = load_file(named / "model.safetensors")
    save_file({name: weight + 1 for name, weight in weights.items()}, named / "model.safetensors")
    network, _ = run(tmp_path / "copy", settings)
    assert all(torch.equal(network.state_dict()[name], weight) for name, weight in weights.items())


def test_a_copied_run_that_goes_on_keeps_its_own_best_checkpoint(tmp_path):
    settings = {"load_best_model_at_end": True, "learning_rate": 5.0, "warmup_steps": 0}
    run(tmp_path / "first", config(steps=4, **settings))
    shutil.copytree(tmp_path / "first", tmp_path / "copy")
    weights = load_file(tmp_path / "copy" / "checkpoint-2" / "model.safetensors")
    shutil.copy(
        tmp_path / "first" / "checkpoint-4" / "model.safetensors", tmp_path / "first" / "checkpoint-2"
    )
    network, _ = run(tmp_path / "copy", config(steps=6, **settings))
    assert all(torch.equal(network.state_dict()[name], weight) for name, weight in weights.items())
    shutil.rmtree(tmp_path / "copy" / "checkpoint-2")
    with pytest.raises(ArtifactError, match="best checkpoint of the run, checkpoint-2, is not in"):
        run(tmp_path / "copy", config(steps=8, **settings))


def with_ids(make):
    ids = tokenizer()
    special = {name: getattr(ids, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    sizes = {"vocab_size": len(ids)} | ({"decoder_vocab_size": len(ids)} if make is tiny_marian else {})
    return make(**sizes, **special, decoder_start_token_id=ids.eos_token_id)


def with_lora(make):
    peft = pytest.importorskip("peft")
    torch.manual_seed(5)
    targets = (
        ["q", "v"] if make in (SIX_ARCHITECTURES["t5"], SIX_ARCHITECTURES["mt5"]) else ["q_proj", "v_proj"]
    )
    return peft.get_peft_model(with_ids(make), peft.LoraConfig(target_modules=targets, r=2))


@pytest.mark.parametrize("prepare", [with_ids, with_lora])
@pytest.mark.parametrize("family", SIX_ARCHITECTURES)
def test_run_then_run_again_gives_the_same_weights(family, prepare, tmp_path):
    make = SIX_ARCHITECTURES[family]
    trained = prepare(make)
    start = copy.deepcopy(trained)
    train(trained, tokenizer(), corpus(), config(steps=2), tmp_path)
    assert not same_weights(trained, start)
    again = prepare(make)
    assert train(again, tokenizer(), corpus(), config(steps=2), tmp_path).had_ended
    assert same_weights(trained, again)
    # Killed after its last checkpoint: the checkpoint is read by the same function.
    (tmp_path / "finished.json").unlink()
    third = prepare(make)
    assert train(third, tokenizer(), corpus(), config(steps=2), tmp_path).updates == 2
    assert same_weights(trained, third)


def test_adapters_of_another_factor_are_another_run(tmp_path):
    """Their weights have the same names and shapes."""
    peft = pytest.importorskip("peft")
    for factor in (2, 8):
        torch.manual_seed(5)
        settings = peft.LoraConfig(target_modules=["q_proj"], r=2, lora_alpha=factor)
        network = peft.get_peft_model(with_ids(SIX_ARCHITECTURES["m2m100"]), settings)
        refused = pytest.raises(ConfigError, match=r"adapters.default.lora_alpha: 2 then, 8 now")
        with refused if factor == 8 else nullcontext():
            train(network, tokenizer(), corpus(), config(steps=1), tmp_path)


def test_a_model_of_which_other_weights_are_frozen_is_another_run(tmp_path):
    for frozen in (False, True):
        network = model()
        network.get_encoder().requires_grad_(not frozen)
        with pytest.raises(ConfigError, match=r"\(frozen: ") if frozen else nullcontext():
            train(network, tokenizer(), corpus(), config(steps=1), tmp_path)


def survives(folder, number, expected):
    """Kill a training at a moment, start it again, and compare its weights; return whether it was killed."""
    was_killed = killed_at(number, folder, lambda: run(folder))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the checkpoint that was being written
        network, result = run(folder)
    assert same_weights(network, expected)
    assert result.updates == 4
    assert same_weights(network, type(network).from_pretrained(folder / "model"))
    return was_killed


class TranslatesZeroShot(TrainerCallback):
    """Translates a pair that no text trains, after every evaluation."""

    def on_evaluate(self, args, state, control, model=None, **kwargs):
        Translator(model, tokenizer(), config=TranslateConfig(num_beams=1)).translate(["eins"], "de-fr")


def test_pairs_that_were_composed_in_a_run_do_not_make_it_another_run(tmp_path):
    def sitting(steps, gate_seed=3):
        network = model(dropout=0.2)
        gate = NeuronGate(network, masks(network, seed=gate_seed), GateConfig(zero_shot="compose"))
        more = {"gate": gate, "validation": corpus(count=4, seed=1), "callbacks": [TranslatesZeroShot()]}
        return gate, train(network, tokenizer(), corpus(), config(steps), tmp_path, **more)

    own = masks(model())
    gate, _ = sitting(2)
    assert "de-fr" in gate.masks
    assert gate.own_masks == own
    for folder in ("model", "checkpoint-2"):
        assert read_json(tmp_path / folder / "made_by.json")["gate"]["masks"] == own.fingerprint()
    gate, result = sitting(4)
    assert result.updates == 4
    gate.replace_masks(masks(model(), seed=5).compose("de-fr"))
    assert gate.own_masks == masks(model(), seed=5)
    with pytest.raises(ConfigError, match=r"gate.masks"):
        sitting(6, gate_seed=4)


@pytest.mark.parametrize("number", [0, 7, 29])
def test_a_run_killed_at_any_change_of_files_ends_with_the_same_weights(whole, tmp_path, number):
    assert survives(tmp_path / "run", number, whole[1])


@pytest.mark.slow
def test_a_run_killed_at_each_change_of_files_in_turn_ends_with_the_same_weights(whole, tmp_path):
    number = 0
    while survives(tmp_path / str(number), number, whole[1]):
        number += 1
    assert number >= 40
