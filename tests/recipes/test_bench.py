"""The benchmark: paired rounds, the ways that it compares, and a tiny run of it all. Nothing is timed."""

import dataclasses
import json
import threading

import pytest
import torch
from matplotlib import rc_context
from torch.nn import functional

from nspec_hf.core import ConfigError
from nspec_hf.gating import NeuronGate
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import find_sites, record
from recipes.bench import (
    __main__ as bench,
    clock,
    end_to_end,
    figure as drawing,
    growth_figure,
    masks as mask_files,
    measurements,
    trained_model,
    workload,
)
from tests.helpers import tiny_text
from tests.helpers.models import random_batch, tiny_m2m100

KEYS = {
    "record_vs_forward",
    "record_released_vs_ours",
    "block_train_slice_vs_dense",
    "train_slice_vs_dense",
    "train_mask_vs_dense",
    "train_released_vs_dense",
    "decode_slice_vs_dense",
    "decode_mask_vs_dense",
    "decode_released_vs_dense",
    "ct2_pruned_vs_dense",
    "updates_dense_vs_plain",
    "updates_mask_vs_plain",
    "updates_slice_vs_plain",
    "updates_lora_vs_plain",
    "translator_dense_vs_generate",
    "translator_slice_vs_generate",
    "translator_ctranslate2_vs_generate",
    "record_vs_evaluate",
    "best_multiple_of",
    "switch_ms",
    "mask_bytes_60_pairs",
    "growth_pairs.batch_seconds.12",
    "growth_sites.load_ms.2",
    "growth_plan.seconds.1000",
    "growth_text.first_start_us.60",
}
THREADS = str(torch.get_num_threads())  # a run sets the number for the whole process
SHAPE = workload.Shape(d_model=16, d_ff=64, layers=1, vocabulary=64)


class FakeClock:
    """A clock that only moves when work is done, and a log of the work."""

    def __init__(self):
        self.time, self.log = 0.0, []

    def now(self):
        return self.time

    def work(self, name, durations):
        """Return work that takes durations[number of its run]."""
        durations = iter(durations)

        def run(number):
            self.log.append((name, number))
            self.time += next(durations)

        return run


def runner_and_batch(way):
    model = tiny_m2m100()
    masks = NeuronMasks.random(sites=find_sites(model), pairs=["en-de", "en-fr"], density=0.5, seed=3)
    batch = random_batch(pairs=2)
    del batch["pair_ids"]
    return workload.Runner(model, way, masks), model, masks, batch


def test_a_ratio_is_made_of_two_times_of_one_round():
    # The machine becomes ten times slower after the first round; each round's ratio does not see it.
    fake = FakeClock()
    works = {"dense": fake.work("dense", [9, 1, 10, 10]), "slice": fake.work("slice", [9, 0.5, 6, 7])}
    rounds = clock.Rounds(least=3, most=3, warm=1)
    times = clock.time_rounds(works, rounds, clock.Stopwatch(now=fake.now))
    found = clock.Measured.of(clock.ratios(times["slice"], times["dense"]), shape="x")
    assert times == {"dense": [1, 10, 10], "slice": [0.5, 6, 7]}
    assert found.as_json() == {"median": 0.6, "min": 0.5, "max": 0.7, "setting": {"shape": "x", "rounds": 3}}


def test_ways_take_turns_in_alternating_order_with_the_number_of_their_round():
    fake = FakeClock()
    works = {name: fake.work(name, [1] * 9) for name in "ab"}
    clock.time_rounds(works, clock.Rounds(least=2, most=2, warm=1), clock.Stopwatch(now=fake.now))
    assert fake.log == [("a", 0), ("b", 0), ("a", 0), ("b", 0), ("b", 1), ("a", 1)]


@pytest.mark.parametrize(("seconds", "expected"), [(0, 2), (7, 4), (1000, 5)])
def test_rounds_end_with_the_time_but_not_before_the_least(seconds, expected):
    fake = FakeClock()
    rounds = clock.Rounds(least=2, most=5, seconds=seconds, warm=0)
    works = {"a": fake.work("a", [1] * 9), "b": fake.work("b", [1] * 9)}
    times = clock.time_rounds(works, rounds, clock.Stopwatch(now=fake.now))
    assert len(times["a"]) == len(times["b"]) == expected


def test_ratios_of_unequal_rounds_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        clock.ratios([1.0, 2.0], [1.0])


@pytest.mark.parametrize("way", ["mask", "slice", "released"])
def test_every_way_silences_what_the_pair_does_not_keep(way):
    runner, model, masks, batch = runner_and_batch(way)
    with torch.no_grad():
        found = runner.model(**runner.inputs(1, batch)).logits
        dense = model(**batch).logits
        for site in find_sites(model):
            linear = model.get_submodule(site.name)
            off = ~masks["en-fr"][site.name]
            linear.weight[off] = 0
            if way != "released":  # whose silenced neurons still emit σ(b1)
                linear.bias[off] = 0
        expected = model(**batch).logits
    assert not torch.allclose(dense, expected, atol=1e-3)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_the_dense_way_is_the_plain_model():
    runner, model, _, batch = runner_and_batch("dense")
    assert torch.equal(runner.model(**runner.inputs(1, batch)).logits, model(**batch).logits)


def test_a_shared_copy_has_modules_of_its_own_around_the_same_weights():
    model = tiny_m2m100()
    other = workload.shared_copy(model)
    assert all(mine is theirs for mine, theirs in zip(model.parameters(), other.parameters(), strict=True))
    assert not {id(module) for module in model.modules()} & {id(module) for module in other.modules()}


@pytest.mark.parametrize("way", workload.WAYS)
def test_a_training_step_changes_the_shared_weights_and_leaves_no_gradient(way):
    runner, model, masks, batch = runner_and_batch(way)
    fc1 = model.model.encoder.layers[0].fc1.weight
    before = fc1.detach().clone()
    runner.train_step(torch.optim.SGD(model.parameters(), lr=1.0), batch, pair=0)
    changed = (fc1 != before).any(dim=1)
    assert changed.any()
    assert all(parameter.grad is None for parameter in model.parameters())
    if way != "dense":
        assert not changed[~masks["en-de"]["model.encoder.layers.0.fc1"]].any()


@pytest.mark.parametrize("beams", [1, 5])
def test_decoding_generates_exactly_so_many_tokens(beams):
    runner, _, _, batch = runner_and_batch("slice")
    assert runner.decode(batch, 0, beams, new_tokens=7).shape == (len(batch["input_ids"]), 1 + 7)


def test_the_released_way_to_record_counts_padding_too_and_ours_does_not():
    model, batch = tiny_m2m100(), random_batch(pairs=1)
    released = workload.ReleasedRecorder(workload.shared_copy(model))
    released.run({name: value for name, value in batch.items() if name != "pair_ids"})
    stats = record(model, [batch], ["en-de"])
    name = "model.encoder.layers.0.fc1"
    padding = (batch["attention_mask"] == 0).sum()
    more = released.counts[name] - stats["en-de"][name]
    assert padding > 0
    assert more.any()
    assert ((more >= 0) & (more <= padding)).all()


def test_a_block_model_is_a_block_with_one_site():
    model = workload.BlockModel(workload.BlockConfig(d_model=8, d_ff=24))
    (site,) = find_sites(model)
    assert (site.name, site.width, site.down) == ("layers.0.fc1", 24, "layers.0.fc2")
    x = torch.randn(2, 3, 8)
    block = model.layers[0]
    expected = functional.linear(
        functional.linear(x, block.fc1.weight, block.fc1.bias).relu(), block.fc2.weight, block.fc2.bias
    )
    torch.testing.assert_close(model(x), expected)


def test_operations_are_those_of_the_linears_and_attentions_of_a_model():
    # Counted by torch on the real forward pass.
    from torch.utils.flop_counter import FlopCounterMode

    rows, source, target = 2, 6, 5
    model = workload.make_model(SHAPE, torch.device("cpu"), torch.float32).eval()
    batch = workload.make_batch(SHAPE, rows, source, target, torch.device("cpu"))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**batch, use_cache=False)
    assert SHAPE.step_flops(rows, source, target) == counter.get_total_flops()


def test_weights_read_in_decoding_are_those_of_the_linears():
    model = workload.make_model(SHAPE, torch.device("cpu"), torch.float32)
    linears = {
        name: module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    cross = {name for name in linears if "encoder_attn.k_proj" in name or "encoder_attn.v_proj" in name}
    once = sum(count for name, count in linears.items() if "encoder.layers" in name or name in cross)
    assert SHAPE.decoding_weights(7) == once + 7 * (sum(linears.values()) - once)


def test_the_size_of_a_file_of_more_pairs_follows_from_two(tmp_path):
    sites = mask_files.mask_sites(workload.Shape(d_model=16, d_ff=60, layers=2, vocabulary=64))
    small, half, whole = (
        mask_files.saved_bytes(tmp_path / str(count) / "nspec_masks.safetensors", sites, count)
        for count in (30, 60, 400)
    )
    # The header is padded to eight bytes, so a pair's share is known to a fraction of one.
    assert abs(half + (400 - 60) * (half - small) / 30 - whole) < 340 * 8 / 30 + 8


def test_the_named_sites_are_those_of_the_model():
    model = workload.make_model(SHAPE, torch.device("cpu"), torch.float32)
    assert mask_files.mask_sites(SHAPE) == find_sites(model)


def test_a_tiny_run_yields_every_key_with_its_recipe(tmp_path, capsys):
    path, figure = tmp_path / "bench.json", tmp_path / "bench.png"
    assert bench.main(["--tiny", "--threads", THREADS, "--json", str(path), "--plot", str(figure)]) == 0
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found.keys() >= KEYS | {"recipe", "runs"}
    for key in found.keys() - {"recipe", "runs"}:
        assert found[key]["min"] <= found[key]["median"] <= found[key]["max"], found[key]
        assert found[key]["setting"]["shape"]
    assert found["train_slice_vs_dense"]["setting"]["density"] == 0.75
    assert found["recipe"].keys() == {"config", "versions", "hardware"}
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert "train_released_vs_dense" in capsys.readouterr().out


def test_only_the_keys_that_are_asked_for_are_measured(tmp_path, capsys):
    path = tmp_path / "bench.json"
    asked = "decode_mask_vs_dense,train_slice_vs_dense.16x64x1.d0.5"
    assert bench.main(["--tiny", "--threads", THREADS, "--only", asked, "--json", str(path)]) == 0
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found.keys() - {"recipe", "runs"} == {
        "decode_mask_vs_dense",
        "decode_mask_vs_dense.beam5",
        "train_slice_vs_dense.16x64x1.d0.5",
    }
    assert bench.main(["--tiny", "--threads", THREADS, "--only", "decode_fast"]) == 2
    assert "decode_fast" in capsys.readouterr().err


def test_what_cannot_be_measured_is_null_with_the_reason(tmp_path, monkeypatch):
    attach = NeuronGate.attach

    def attach_unless_sliced(gate):
        if gate.config.mode == "slice":
            raise ConfigError("mode 'slice' is broken on purpose")
        return attach(gate)

    monkeypatch.setattr(NeuronGate, "attach", attach_unless_sliced)
    path = tmp_path / "bench.json"
    only = "train_slice_vs_dense,train_mask_vs_dense,switch_ms"
    assert bench.main(["--tiny", "--threads", THREADS, "--only", only, "--json", str(path)]) == 0
    found = json.loads(path.read_text(encoding="utf-8"))
    for key in ("train_slice_vs_dense", "switch_ms"):
        assert [found[key][name] for name in ("median", "min", "max")] == [None] * 3
        assert "'slice' is broken on purpose" in found[key]["reason"]
    assert found["train_mask_vs_dense"]["median"] > 0


def test_a_run_that_resumes_keeps_what_is_there_and_measures_the_rest(tmp_path):
    path = tmp_path / "bench.json"
    common = ["--tiny", "--threads", THREADS, "--json", str(path)]
    assert bench.main([*common, "--only", "switch_ms,train_slice_vs_dense,mask_bytes_60_pairs"]) == 0
    first = json.loads(path.read_text(encoding="utf-8"))
    first["switch_ms"] |= {"median": None, "reason": "was not there"}
    first["mask_bytes_60_pairs"]["median"] = -1.0
    path.write_text(json.dumps(first), encoding="utf-8")
    wanted = "switch_ms,train_slice_vs_dense,train_mask_vs_dense,mask_bytes_60_pairs"
    # Out of time: nothing is begun, nothing is lost, and nothing is said to be impossible.
    assert bench.main([*common, "--resume", "--minutes", "1e-9", "--only", wanted]) == 0
    assert json.loads(path.read_text(encoding="utf-8")) == first
    assert bench.main([*common, "--resume", "--only", wanted]) == 0
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["mask_bytes_60_pairs"]["median"] == -1.0
    assert found["train_slice_vs_dense.16x64x1.d0.5"] == first["train_slice_vs_dense.16x64x1.d0.5"]
    assert found["train_mask_vs_dense"]["median"] > 0
    assert found["switch_ms"]["median"] is not None
    assert len(found["runs"]) == 2


def test_values_of_multiple_of_are_compared_in_the_same_rounds(monkeypatch):
    seen = []
    original = measurements.time_rounds
    monkeypatch.setattr(
        measurements, "time_rounds", lambda works, *rest: seen.append(list(works)) or original(works, *rest)
    )
    plan = dataclasses.replace(bench.TINY, multiples=(1, 4))
    context = bench.Bench(plan=plan, device=torch.device("cpu"), dtype=torch.float32, watch=clock.Stopwatch())
    keys = [key for key, _ in measurements.blocks(context)]
    for work in ("train", "decode"):
        assert {f"block_{work}_slice_vs_dense.multiple_of_{number}" for number in (1, 4)} <= set(keys)
    assert seen[-2:] == [["dense", "1", "4"]] * 2


def test_processor_seconds_are_for_one_thread(tmp_path, capsys):
    with pytest.raises(SystemExit):
        bench.main(["--tiny", "--clock", "cpu", "--threads", "2"])
    assert "one thread" in capsys.readouterr().err
    path = tmp_path / "bench.json"
    arguments = ["--tiny", "--clock", "cpu", "--threads", "1", "--device", "cpu", "--json", str(path)]
    assert bench.main([*arguments, "--only", "train_mask_vs_dense"]) == 0
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["train_mask_vs_dense"]["setting"]["clock"] == "processor seconds"
    torch.set_num_threads(int(THREADS))


def test_a_measurement_that_fails_reports_null_for_the_keys_it_did_not_reach():
    def part(_bench):
        yield "first", clock.Measured.exactly(1.0)
        raise ConfigError("broken on purpose")

    context = bench.Bench(
        plan=bench.TINY, device=torch.device("cpu"), dtype=torch.float32, watch=clock.Stopwatch()
    )
    found = dict(bench.run_part(context, part, ["first", "second"]))
    assert found["first"].median == 1.0
    assert found["second"].median is None
    assert "broken on purpose" in found["second"].reason


def test_a_masked_benchmark_keeps_about_the_share_asked_for_and_never_the_same_count():
    sites = mask_files.mask_sites(workload.Shape(d_model=16, d_ff=4096, layers=2, vocabulary=64))
    masks = workload.make_masks(sites, workload.pairs_of(3), 0.75)
    kept = [int(keep_PF[pair].sum()) for keep_PF in masks.keep.values() for pair in range(3)]
    assert masks.density() == pytest.approx(0.75, abs=0.01)
    assert len(set(kept)) > 6


def test_a_trained_model_is_measured_with_its_own_masks_and_scored_with_all_and_with_few_neurons(tmp_path):
    model, tokenizer = tiny_text.model(), tiny_text.tokenizer()
    masks = tiny_text.masks(model)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    masks.save_pretrained(tmp_path / "masks")
    tiny_text.write_text(tmp_path / "data", train=20, test=4)
    path = tmp_path / "bench.json"
    folders = [str(tmp_path / name) for name in ("model", "masks", "data")]
    given = [word for pair in zip(("--base", "--masks", "--data"), folders, strict=True) for word in pair]
    only = "base_train_slice_vs_dense,base_decode_mask_vs_dense,base_bleu_dense,base_bleu_pruned"
    only += ",base_bytes_pruned_vs_dense"
    arguments = ["--tiny", "--threads", THREADS, "--only", only, "--split", "test", "--json", str(path)]
    assert bench.main([*arguments, *given]) == 0
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found.keys() - {"recipe", "runs"} == {
        "base_train_slice_vs_dense",
        "base_decode_mask_vs_dense",
        *(f"base_bleu_{which}.{pair}" for which in ("dense", "pruned") for pair in tiny_text.PAIRS),
        *(f"base_bytes_pruned_vs_dense.{pair}" for pair in tiny_text.PAIRS),
    }
    # A neuron is a row of fc1 with its bias, and a column of fc2.
    silent = sum(int((~keep_PF[0]).sum()) for keep_PF in masks.keep.values())
    every = {weight.data_ptr(): weight.numel() for weight in model.state_dict(keep_vars=True).values()}
    less = silent * (2 * model.config.d_model + 1) / sum(every.values())
    assert found["base_bytes_pruned_vs_dense.en-de"]["median"] == pytest.approx(1 - less, abs=1e-9)
    assert str(tmp_path) not in path.read_text(encoding="utf-8")
    assert found["base_train_slice_vs_dense"]["setting"]["masks"] == masks.fingerprint()
    assert 0 < found["base_train_slice_vs_dense"]["setting"]["floor"]["flops"] < 1
    assert found["base_bleu_pruned.en-de"]["setting"]["density"] == masks.density("en-de")
    assert "tok:13a" in found["base_bleu_dense.en-de"]["setting"]["signature"]


def test_a_trained_model_needs_masks_and_text(capsys):
    with pytest.raises(SystemExit):
        bench.main(["--tiny", "--base", "model"])
    assert "go together" in capsys.readouterr().err


def _measured(median, shape="16×64 block", density=0.75, **setting):
    setting = {"shape": shape, "density": density, "floor": {"bytes": density, "flops": 0.1}, **setting}
    return clock.Measured(median=median, minimum=median - 0.1, maximum=median + 0.2, setting=setting)


def test_a_curve_has_the_points_of_its_shape_by_density_and_its_line_ends_at_dense():
    found = {
        "decode_slice_vs_dense": _measured(0.9),
        "decode_slice_vs_dense.d0.5": _measured(0.6, density=0.5),
        "decode_slice_vs_dense.other": _measured(0.8, shape="other"),
        "decode_slice_vs_dense.beam5": _measured(0.1, beams=5),
        "decode_slice_vs_dense.multiple_of_8": _measured(0.1, multiple_of="as in the key"),
        "decode_mask_vs_dense": clock.Measured.missing("no time", shape="16×64 block", density=0.75),
        "block_decode_slice_vs_dense": _measured(0.2),
    }
    curves = drawing.points_of(found, "decode")
    assert curves.keys() == {("slice", "16×64 block"), ("slice", "other")}
    densities, medians, low, high = zip(*curves["slice", "16×64 block"], strict=True)
    assert (densities, medians) == ((0.5, 0.75), (0.6, 0.9))
    assert (low, high) == (pytest.approx((0.1, 0.1)), pytest.approx((0.2, 0.2)))
    assert drawing.floors_of(found, "decode")["16×64 block"] == [(0.5, 0.5), (0.75, 0.75), (1, 1)]


def test_the_figure_shows_every_way_and_writes_down_what_lies_above_its_end(tmp_path):
    found = {
        "decode_slice_vs_dense": _measured(0.9),
        "decode_slice_vs_dense.d0.5": _measured(0.6, density=0.5),
        "decode_slice_vs_dense.small": _measured(0.7, shape="8×8"),
        "decode_mask_vs_dense": _measured(1.0),
        "decode_released_vs_dense": _measured(7.25),
    }
    path = tmp_path / "bench.svg"
    with rc_context({"svg.fonttype": "none"}):
        drawing.draw(found, str(path))
    text = path.read_text(encoding="utf-8")
    for words in ("mode slice, 16×64", "mode mask, 16×64", "as released, 16×64", ">7.2<", "in theory"):
        assert words in text
    assert "8×8" not in text  # one density is no curve


def test_a_run_is_written_down_with_what_it_was_asked_for(tmp_path):
    path = tmp_path / "bench.json"
    bench.main(["--tiny", "--threads", THREADS, "--only", "mask_bytes_60_pairs", "--json", str(path)])
    (run,) = json.loads(path.read_text(encoding="utf-8"))["runs"]
    assert (run["size"], run["only"], run["threads"]) == ("tiny", "mask_bytes_60_pairs", int(THREADS))


def test_the_least_operations_of_a_trained_model_follow_the_density_of_each_side():
    model = tiny_m2m100()
    sites = find_sites(model)
    keep = {site.name: torch.ones(2, site.width, dtype=torch.bool) for site in sites}
    for site in sites:
        keep[site.name][:, ::2] = site.side == "decoder"
    config = model.config
    d, d_ff, source, target = config.d_model, config.encoder_ffn_dim, 6, 4
    shape = workload.Shape(d_model=d, d_ff=d_ff, layers=config.encoder_layers, vocabulary=config.vocab_size)
    # Half of the encoder's feed-forward operations, of its two products of 2·D·F each.
    spared = source * config.encoder_layers * 4 * d * d_ff / 2
    dense = shape.step_flops(1, source, 0) + 5 * shape.step_flops(1, 0, target)
    found = trained_model.flops_floor(model, NeuronMasks(["en-de", "de-en"], keep), source, target, beams=5)
    assert found == pytest.approx(1 - spared / dense)


def test_trainers_take_turns_and_each_is_charged_for_its_own():
    fake = FakeClock()
    turns, order = end_to_end.Turns(["one", "other"], fake.now), []

    def run(name, seconds, rounds):
        turns.wait(name)
        for _ in range(rounds):
            order.append(name)
            fake.time += seconds
            turns.end(name)
            turns.wait(name)
        turns.leave(name)

    threads = [threading.Thread(target=run, args=each) for each in (("other", 5.0, 3), ("one", 1.0, 2))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert order == ["one", "other", "one", "other", "other"]
    assert turns.seconds == {"one": [1.0, 1.0], "other": [5.0, 5.0, 5.0]}


def test_all_trainers_see_the_same_batches_and_the_library_s_gets_no_pairs(tmp_path):
    shape = workload.Shape(d_model=16, d_ff=64, layers=1, vocabulary=1000)
    corpus, _, collator, _ = end_to_end.made_text(3, 96)
    model = workload.make_model(shape, torch.device("cpu"), torch.float32)
    masks = workload.make_masks(find_sites(model), corpus.pairs, 0.5)
    seen = {}
    for way in ("plain", "dense", "slice"):
        folder = str(tmp_path / way)
        trainer = end_to_end.trainer_of(way, model, masks, corpus, collator, folder, 1, torch.device("cpu"))
        seen[way] = list(trainer.get_train_dataloader())
    assert "pair_ids" not in seen["plain"][0]
    assert len({int(pair) for batch in seen["slice"] for pair in batch["pair_ids"]}) == len(corpus.pairs)
    for way in ("dense", "slice"):
        for batch, plain in zip(seen[way], seen["plain"], strict=True):
            assert all(torch.equal(batch[name], plain[name]) for name in plain)


def test_the_fastest_multiple_is_that_of_training_and_decoding_together():
    key = "block_{}_slice_vs_dense.multiple_of_{}"
    times = {"train": {1: 0.9, 8: 0.7, 64: 0.72}, "decode": {1: 0.8, 8: 0.8, 64: 0.6}}
    found = {
        key.format(work, multiple): clock.Measured.exactly(ratio, shape="a block")
        for work, ratios in times.items()
        for multiple, ratio in ratios.items()
    }
    found["block_train_slice_vs_dense"] = clock.Measured.exactly(0.1)
    ((name, best),) = bench.best_multiple(found)
    assert (name, best.median) == ("best_multiple_of", 64)
    assert not list(bench.best_multiple({}))


def test_a_slope_is_the_exponent_of_growth_at_the_large_end():
    sizes = (10, 100, 1_000, 10_000)
    for exponent in (0.0, 0.5, 1.0, 2.0):
        grows = [(size, 7.0 if size == 10 else 3.0 * size**exponent) for size in sizes]
        assert growth_figure.slope_of(grows) == pytest.approx(exponent, abs=1e-9)
    assert growth_figure.slope_of([(10, 1.0)]) is None


def test_what_was_told_of_one_grows_with_their_number(tmp_path):
    found = {
        f"growth_text.first_start_us.{size}": clock.Measured.exactly(50.0, shape="")
        for size in (10, 100, 1_000)
    }
    found["growth_text.first_start_us.slope"] = clock.Measured.exactly(9.0, shape="")  # of an earlier run
    ((key, measured),) = growth_figure.slopes(found)
    assert (key, measured.median) == ("growth_text.first_start_us.slope", 1.0)
    path = tmp_path / "growth.png"
    growth_figure.draw_growth(found, str(path))
    assert path.read_bytes().startswith(b"\x89PNG")


def test_ctranslate2_writes_what_generate_writes_with_as_many_tokens():
    pytest.importorskip("ctranslate2")
    corpus, _, collator, texts = end_to_end.made_text(3, 96)
    tags = collator.tags
    shape = workload.Shape(d_model=16, d_ff=64, layers=1, vocabulary=len(tags.tokenizer))
    model = workload.make_model(shape, torch.device("cpu"), torch.float32).eval()
    translate = end_to_end.engine_of(model, tags, 5, 12)
    for pair in corpus.pairs:
        lines = [line for line, own in texts if own == pair]
        batch = tags.tokenizer.pad({"input_ids": tags.encode_source(lines, pair)}, return_tensors="pt")
        prompt = torch.tensor([tags.decoder_prefix(pair, model.config.decoder_start_token_id)] * len(lines))
        written = model.generate(
            **batch,
            decoder_input_ids=prompt,
            num_beams=5,
            do_sample=False,
            min_new_tokens=12,
            max_new_tokens=12,
        )
        expected = tags.tokenizer.batch_decode(written, skip_special_tokens=True)
        assert translate(lines, pair) == expected
        assert all(len(line.split()) > 1 for line in expected)
