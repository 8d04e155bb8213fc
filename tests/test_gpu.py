"""What only a GPU shows: all that runs there equals the CPU, and nothing is left behind on the host.

`NSPEC_TEST_DEVICE=cpu pytest tests/test_gpu.py` runs the file where there is none, to check the tests.
"""

import copy
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from accelerate import cpu_offload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForSeq2SeqLM

from nspec_hf.core import as_pairs
from nspec_hf.evaluation import TranslateConfig, Translator
from nspec_hf.export import ExportConfig, export_model, load_pruned
from nspec_hf.gating import GateConfig, NeuronGate, slice_mode as slicing
from nspec_hf.gating.route import Route
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import (
    OWN_WEIGHTS,
    SIDES,
    ActivationStats,
    RecordConfig,
    find_sites,
    record,
    token_losses,
)
from nspec_hf.systems.adapters import adapters as new_adapters
from nspec_hf.systems.differentiation import Differentiate
from nspec_hf.systems.parts.clones import ClonedUnits
from nspec_hf.systems.parts.subnetworks import SubnetworkAttachment, Subnetworks
from nspec_hf.systems.target_attention import target_attention
from tests.helpers import tiny_text
from tests.helpers.models import SIX_ARCHITECTURES, random_batch, tiny_m2m100
from tests.helpers.two_processes import run_in_processes
from tests.training.test_trainer import specialized

PAIRS = as_pairs(["en-de", "de-en", "en-fr"])
MODES = ("mask", "slice", "gradient")
BEAMS = {"num_beams": 3, "max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore:.*reached their longest length")]


def chosen_device():
    return os.environ.get("NSPEC_TEST_DEVICE") or ("cuda" if torch.cuda.is_available() else "")


@pytest.fixture(scope="module")
def device():
    """Return the device that the tests run on."""
    if not chosen_device():
        pytest.skip(
            "needs a CUDA device: torch.cuda.is_available() is False (NSPEC_TEST_DEVICE=cpu overrules)"
        )
    return torch.device(chosen_device())


@pytest.fixture(autouse=True)
def _exact_products_and_always_slices(monkeypatch):
    """TF32 rounds a factor to 10 bits; and tiny models have too few tokens for slicing to pay."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    monkeypatch.setattr(slicing, "_SAVED_TOKENS", 0)
    monkeypatch.setattr(slicing, "_SAVED_TOKENS_KEPT", 0)
    yield
    torch.set_float32_matmul_precision(before)


def random_masks(model, pairs=PAIRS):
    return NeuronMasks.random(find_sites(model), pairs, 0.6, seed=1)


def gated(model, masks, mode, **changes):
    return NeuronGate(
        model, masks, GateConfig(mode=mode, **({"multiple_of": 1} if mode == "slice" else {}), **changes)
    )


def to(batch, device):
    return {name: value.to(device) for name, value in batch.items()}


def plain(batch):
    return {name: value for name, value in batch.items() if name != "pair_ids"}


def one_pair(batch, index):
    return {**batch, "pair_ids": torch.full_like(batch["pair_ids"], index)}


def zeroed(model, masks, index):
    """Return a copy with the rows of fc1 and its bias at zero that a pair does not keep: the reference."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for site in masks.sites:
            linear = twin.get_submodule(site.name)
            for row, keep in enumerate(masks.keep[site.name][index].tolist()):
                if not keep:
                    linear.weight[row] = 0
                    if linear.bias is not None:
                        linear.bias[row] = 0
    return twin


def gradients(model):
    """Return gradients on the CPU by name, and forget them."""
    found = {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def step(model, batch):
    output = model(**batch)
    output.loss.backward()
    return output.logits.detach().cpu(), gradients(model)


def assert_near(found, expected, atol=1e-5):
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=atol, msg=name)


def without_silent_rows(found, masks, index):
    """Set the gradients of silent rows to zero: GELU has a slope at 0, so the reference gives them some."""
    for site in masks.sites:
        off_F = ~masks.keep[site.name][index]
        for end in ("weight", "bias"):
            if f"{site.name}.{end}" in found:
                found[f"{site.name}.{end}"][off_F] = 0
    return found


# ---- recording ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", ["tokens", "sentences"])
def test_what_is_counted_on_the_device_is_what_the_cpu_counts(device, count):
    model = tiny_m2m100()
    batches, config = (
        [random_batch(seed=seed) for seed in range(3)],
        RecordConfig(count=count, progress=False),
    )
    expected = record(model, batches, PAIRS, config)
    model.to(device)
    for given in (batches, [to(batch, device) for batch in batches]):
        found = record(model, given, PAIRS, config)
        for name, counts_PF in expected.counts.items():
            assert found.counts[name].device.type == "cpu"
            assert torch.equal(found.counts[name], counts_PF)
            assert counts_PF.sum() > 0
        assert all(found.tokens(pair) == expected.tokens(pair) for pair in PAIRS)


def test_importance_on_the_device_is_that_of_the_cpu(device):
    model, batches = tiny_m2m100(), [random_batch(seed=seed) for seed in range(2)]
    config = RecordConfig(te=True, av=True, progress=False)
    expected = record(model, batches, PAIRS, config).tensors()
    found = record(model.to(device), batches, PAIRS, config).tensors()
    assert {name.split("/")[0] for name in found} >= {"te", "av"}
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-4, msg=name)


# ---- the gate ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["mask", "slice"])
@pytest.mark.parametrize("name", SIX_ARCHITECTURES)
def test_a_gate_gives_logits_and_gradients_of_a_copy_with_zeroed_rows(device, name, mode):
    model = SIX_ARCHITECTURES[name]().to(device)
    masks, batch = random_masks(model), to(random_batch(), device)
    dense = model(**plain(batch)).logits.detach().cpu()
    for index in range(2):
        expected, theirs = step(zeroed(model, masks, index), plain(batch))
        with gated(model, masks, mode):
            logits, mine = step(model, one_pair(batch, index))
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
        assert not torch.allclose(logits, dense, atol=1e-2)
        assert_near(mine, without_silent_rows(theirs, masks, index))


@pytest.mark.parametrize("mode", ["mask", "slice"])
def test_rows_of_a_mixed_batch_are_those_of_their_pairs_copies(device, mode):
    model = tiny_m2m100().to(device)
    masks, batch = random_masks(model), to(random_batch(rows=5), device)
    # The pairs lie on the device, on the host, or are names: the result is the same.
    ids = batch["pair_ids"].tolist()
    with torch.no_grad(), gated(model, masks, mode):
        found = [
            model(**{**batch, "pair_ids": each}).logits
            for each in (batch["pair_ids"], torch.tensor(ids), [PAIRS[index] for index in ids])
        ]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    for row, index in enumerate(ids):
        alone = {name: value[row : row + 1] for name, value in plain(batch).items()}
        with torch.no_grad():
            expected = zeroed(model, masks, index)(**alone).logits
        torch.testing.assert_close(found[0][row : row + 1], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", ["mask", "slice"])
def test_under_bf16_autocast_a_gate_is_as_near_to_the_copy_as_bf16_is(device, mode):
    """bf16 keeps 8 bits: each of some ten roundings may be off by 2⁻⁹, and slices sum in another order."""
    model = tiny_m2m100().to(device)
    masks, batch = random_masks(model), to(random_batch(), device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        expected, _ = step(zeroed(model, masks, 1), plain(batch))
        dense = model(**plain(batch)).logits.detach().cpu()
        with gated(model, masks, mode):
            logits, mine = step(model, one_pair(batch, 1))
    torch.testing.assert_close(logits, expected, rtol=2**-5, atol=2**-4)
    assert not torch.allclose(logits, dense, rtol=2**-5, atol=2**-4)
    for site in masks.sites:
        off_F = ~masks.keep[site.name][1]
        assert not mine[f"{site.name}.weight"][off_F].any()
        assert mine[f"{site.name}.weight"].dtype == torch.float32


def test_slices_follow_an_optimizer_a_loaded_state_and_the_model_from_place_to_place(device):
    model, batch = tiny_m2m100(), random_batch()
    masks, other = random_masks(model), tiny_m2m100(seed=5).state_dict()

    def check():
        here = next(model.parameters()).device
        with torch.no_grad():
            for index in (0, 1, 0):
                expected = zeroed_plain(model, masks, index)(**to(plain(batch), here)).logits
                found = model(**to(one_pair(batch, index), here)).logits
                torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        return found.cpu()

    with gated(model, masks, "slice"):
        seen = [check()]
        model.to(device)
        seen.append(check())
        for fused in (False, True):
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=fused)
            model(**to(one_pair(batch, 0), device)).loss.backward()
            optimizer.step()
            model.zero_grad()
            seen.append(check())
        model.cpu()
        seen.append(check())
        model.load_state_dict(other)
        seen.append(check())
        model.to(device).load_state_dict(other)
        seen.append(check())
    torch.testing.assert_close(seen[1], seen[0], rtol=0, atol=1e-5)
    assert not torch.allclose(seen[2], seen[1], atol=1e-3)
    assert not torch.allclose(seen[3], seen[2], atol=1e-3)
    assert not torch.allclose(seen[5], seen[4], atol=1e-3)


def zeroed_plain(model, masks, index):
    """As `zeroed`, of a model that has a gate on it."""
    twin = tiny_m2m100().to(next(model.parameters()).device)
    twin.load_state_dict(model.state_dict())
    return zeroed(twin, masks, index)


def test_sizes_of_slices_are_rounded_as_suits_where_the_model_is_when_it_runs(device):
    """A gate is made before a Trainer moves the model; 64 rows at a time suit a GPU and 8 a CPU."""
    model = tiny_m2m100(encoder_ffn_dim=200, decoder_ffn_dim=200)
    masks, batch = random_masks(model), random_batch()
    gate, widths = NeuronGate(model, masks, GateConfig(mode="slice")), set()
    down = model.get_submodule(find_sites(model)[0].down)
    down.register_forward_pre_hook(lambda _, args: widths.add(args[0].shape[-1]))
    wanted = 128 if device.type == "cuda" else 120
    for moved_first in (True, False):
        model.to(device if moved_first else "cpu")
        with gate, torch.no_grad():
            gate.use("en-de")
            model.to(device)
            model(**to(plain(batch), device))
    assert widths == {wanted}


def test_in_mode_gradient_the_forward_is_dense_and_rows_that_are_not_kept_get_exactly_zero(device):
    model = tiny_m2m100().to(device)
    masks, batch = random_masks(model), to(random_batch(), device)
    dense, whole = step(model, plain(batch))
    with gated(model, masks, "gradient"):
        logits, mine = step(model, one_pair(batch, 1))
    torch.testing.assert_close(logits, dense, rtol=0, atol=1e-6)
    assert_near(mine, without_silent_rows(copy.deepcopy(whole), masks, 1))
    for site in masks.sites:
        off_F = ~masks.keep[site.name][1]
        assert off_F.any()
        assert not mine[f"{site.name}.weight"][off_F].any()
        assert not mine[f"{site.name}.bias"][off_F].any()
        assert whole[f"{site.name}.weight"][off_F].any()


@pytest.mark.parametrize("name", SIX_ARCHITECTURES)
def test_beams_of_mixed_pairs_are_token_identical_between_masks_and_slices(device, name):
    model = SIX_ARCHITECTURES[name]().to(device)
    masks, batch = random_masks(model), to(random_batch(rows=5), device)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    found = {}
    for mode in ("mask", "slice"):
        with gated(model, masks, mode):
            found[mode] = model.generate(**inputs, pair_ids=batch["pair_ids"], **BEAMS)
    assert torch.equal(found["mask"], found["slice"])
    assert not torch.equal(found["mask"], model.generate(**inputs, **BEAMS))
    for row, index in enumerate(batch["pair_ids"].tolist()):
        alone = {name: value[row : row + 1] for name, value in inputs.items()}
        own = zeroed(model, masks, index).generate(**alone, **BEAMS)
        assert torch.equal(found["mask"][row : row + 1], own)


@pytest.mark.parametrize("mode", MODES)
def test_a_gate_from_before_the_move_does_what_one_from_after_it_does(device, mode):
    model, batch = tiny_m2m100(), to(random_batch(), device)
    masks, twin = random_masks(model), copy.deepcopy(model)
    early = gated(model, masks, mode).attach()
    early.use("de-en")
    model.to(device)
    twin.to(device)
    late = gated(twin, masks, mode).attach()
    late.use("de-en")
    (one, mine), (other, theirs) = step(model, plain(batch)), step(twin, plain(batch))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    assert_near(mine, theirs)


class HostMasks(TorchDispatchMode):
    """Counts the operations that are given masks of the host and return something on the device."""

    def __init__(self, device):
        super().__init__()
        self.device, self.found = device, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
        masks = [each for each in tensors if each.dtype in (torch.bool, torch.uint8)]
        if (
            any(each.device.type == "cpu" for each in masks)
            and isinstance(out, torch.Tensor)
            and out.device.type != "cpu"
        ):
            self.found.append(func.name())
        return out


@pytest.mark.parametrize("mode", ["mask", "slice"])
def test_four_threads_that_train_with_layers_run_again_get_the_gradients_of_their_pairs(device, mode):
    """On a GPU one thread of PyTorch's, which has called no model, runs all their backward passes."""
    model = tiny_m2m100().double().to(device).train()
    masks = random_masks(model)
    batches = [to(one_pair(random_batch(seed=number), number % 3), device) for number in range(4)]

    def found(network, batch):
        weights = {name: p for name, p in network.named_parameters() if "lm_head" not in name}
        grads = torch.autograd.grad(network(**batch).loss, list(weights.values()))
        return dict(zip(weights, grads, strict=True))

    expected = []
    for number, batch in enumerate(batches):
        copied = without_silent_rows(found(zeroed(model, masks, number % 3), plain(batch)), masks, number % 3)
        expected.append(copied)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    with gated(model, masks, mode), ThreadPoolExecutor(4) as pool:
        for _ in range(10):
            for mine, right in zip(pool.map(lambda b: found(model, b), batches), expected, strict=True):
                assert_near(mine, right)


@pytest.mark.parametrize("mode", ["mask", "slice"])
def test_four_threads_of_requests_get_what_each_gets_alone(device, mode):
    model, sources = tiny_m2m100().to(device), random_batch(rows=3)["input_ids"].to(device)
    masks = random_masks(model)
    expected = [zeroed(model, masks, index).generate(sources, **BEAMS) for index in range(3)]
    with gated(model, masks, mode) as gate, ThreadPoolExecutor(4) as pool:

        def ask(number):
            index = number % 3
            if number % 2:
                gate.use(PAIRS[index])
                return torch.equal(model.generate(sources, **BEAMS), expected[index])
            return torch.equal(model.generate(sources, pair_ids=[index] * 3, **BEAMS), expected[index])

        assert all(pool.map(ask, range(60)))


@pytest.mark.parametrize("mode", MODES)
def test_masks_are_taken_to_the_device_once(device, mode):
    model, batch = tiny_m2m100(), to(random_batch(), device)
    gate = gated(model, random_masks(model), mode).attach()
    model.to(device)
    first, second = HostMasks(device), HostMasks(device)
    with first:
        step(model, batch)
    places = [site.placed.bits_UB.data_ptr() for site in gate._sites]
    with second:
        step(model, batch)
        model.eval()
        with torch.no_grad():
            model(**one_pair(batch, 1))
    assert second.found == []
    # Where the device is not the host, the first pass shows that the count can fail.
    assert device.type == "cpu" or len(first.found) >= len(gate._sites)
    assert places == [site.placed.bits_UB.data_ptr() for site in gate._sites]
    assert all(site.placed.bits_UB.device.type == device.type for site in gate._sites)


def test_weights_that_lie_on_the_host_until_their_layer_runs_are_gated_too(device):
    model, batch = tiny_m2m100(), to(random_batch(), device)
    masks = random_masks(model)
    with torch.no_grad():
        expected = zeroed(model, masks, 1).to(device)(**plain(batch)).logits
        cpu_offload(model, execution_device=device)
        assert model.get_submodule(find_sites(model)[0].name).weight.is_meta
        with gated(model, masks, "mask") as gate:
            torch.testing.assert_close(model(**one_pair(batch, 1)).logits, expected, rtol=0, atol=1e-5)
            gate.use("de-en")
            torch.testing.assert_close(model(**plain(batch)).logits, expected, rtol=0, atol=1e-5)


def test_rows_of_pairs_are_found_for_every_device_that_asks(device):
    """A model may lie on several devices."""
    route = Route(torch.tensor([1, 0, 1]), None, "pair_ids")
    for where in (device, torch.device("cpu"), device):
        found = route.entries_of_pairs(torch.zeros(6, 2, device=where))
        assert {pair: rows.tolist() for pair, rows in found.items()} == {0: [2, 3], 1: [0, 1, 4, 5]}
        assert all(rows.device.type == where.type for rows in found.values())


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["mask", "slice"])
def test_a_compiled_model_gives_what_the_eager_one_gives(device, mode):
    model = tiny_m2m100(encoder_layers=1, decoder_layers=1)
    masks, batch = random_masks(model), to(random_batch(), device)
    torch._dynamo.reset()
    try:
        with torch.no_grad(), gated(model, masks, mode) as gate:
            # After the gate was attached, so that the masks are still on the host.
            backend = "aot_eager" if device.type == "cpu" else "inductor"
            compiled = torch.compile(model.to(device), backend=backend)
            for pair in PAIRS:
                gate.use(pair)
                torch.testing.assert_close(
                    compiled(**plain(batch)).logits, model(**plain(batch)).logits, rtol=0, atol=1e-5
                )
            mixed = compiled(**batch).logits
            torch.testing.assert_close(mixed, model(**batch).logits, rtol=0, atol=1e-5)
    finally:
        torch._dynamo.reset()


# ---- training, translating, exporting ----------------------------------------------------------------------


def test_after_two_bf16_steps_an_evaluation_gives_the_loss_of_each_sentence_alone(
    device, tmp_path, monkeypatch
):
    # With more than one the Trainer takes DataParallel, which a gate refuses.
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(device.type == "cuda"))
    trainer = specialized(
        tmp_path,
        network=tiny_text.model(),
        max_steps=2,
        bf16=True,
        use_cpu=device.type == "cpu",
        dataloader_pin_memory=device.type != "cpu",
        eval_dataset=tiny_text.corpus(8, seed=4),
    )
    before = {name: value.cpu().clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    assert trainer.state.global_step == 2
    found = trainer.evaluate()
    after = trainer.model.state_dict()
    assert next(iter(after.values())).device.type == device.type
    assert all(torch.isfinite(value).all() for value in after.values())
    assert any(not torch.equal(value.cpu(), before[name]) for name, value in after.items())
    total = tokens = 0
    corpus, gate = tiny_text.corpus(8, seed=4), trainer.gate
    with torch.no_grad(), gate:
        for index in range(len(corpus)):
            batch = to(trainer.data_collator([corpus[index]]), device)
            labels = batch.pop("labels")
            with torch.autocast(device.type, dtype=torch.bfloat16):
                logits = trainer.model(**batch).logits
            total += float(token_losses(logits, labels).sum())
            tokens += int((labels != -100).sum())
    # Padding changes the order of sums, and so the last of bf16's 8 bits.
    assert found["eval_loss"] == pytest.approx(total / tokens, rel=2e-2)


@pytest.mark.parametrize("mode", ["mask", "slice"])
def test_translations_on_the_device_are_those_of_the_cpu(device, mode):
    network, said = tiny_text.model(), tiny_text.texts(3, seed=2)
    sources = [(text.sources[i], text.pair) for i in range(3) for text in said]
    config = TranslateConfig(num_beams=3, max_tokens=150, length_extra=4, progress=False)

    def translated():
        chosen = tiny_text.masks(network)
        translator = Translator(network, tiny_text.tokenizer(), chosen, config, GateConfig(mode=mode))
        return translator.translate([each for each, _ in sources], [pair for _, pair in sources])

    expected = translated()
    network.to(device)
    assert translated() == expected


@pytest.mark.parametrize("form", ["zeroed", "pruned"])
def test_a_model_on_the_device_is_exported_and_loads_anywhere(device, tmp_path, form):
    network, batch = tiny_text.model().to(device), plain(random_batch())
    chosen = tiny_text.masks(network)
    pair = tiny_text.PAIRS[1]
    export_model(network, tiny_text.tokenizer(), chosen, [pair], tmp_path / form, ExportConfig(format=form))
    load = load_pruned if form == "pruned" else AutoModelForSeq2SeqLM.from_pretrained
    loaded = load(tmp_path / form)
    with torch.no_grad():
        expected = zeroed(network, chosen, 1)(**to(batch, device)).logits
        for where in ("cpu", device):
            found = loaded.to(where).eval()(**to(batch, where)).logits
            torch.testing.assert_close(found.cpu(), expected.cpu(), rtol=0, atol=1e-5)
    assert next(network.parameters()).device.type == device.type


# ---- the compared systems ----------------------------------------------------------------------------------


def own_pair(pair):
    return str(pair)


def adapters(model):
    attachment = new_adapters(model, PAIRS, dict.fromkeys(SIDES, own_pair), 5, 2)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():  # no adapter is to be the identity
        for parameter in attachment.own.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter.device) * 0.3)
    return attachment


def lass(model):
    parts = []
    for seed, pair in enumerate(PAIRS):
        tuned, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in tuned.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter.device))
        parts.append(Subnetworks.of(tuned, pair, 0.7))
    return SubnetworkAttachment(model, Subnetworks.joined(parts), "en")


def differentiation(model):
    attachment = ClonedUnits(model, PAIRS, "en").attach()
    device = next(model.parameters()).device

    def text(pair):
        index = PAIRS.index(pair)
        return [to({**random_batch(seed=index), "pair_ids": torch.full((4,), index)}, device)]

    model.eval()
    assert Differentiate(text, at_once=3, threshold=-0.9).split(model, None)
    # Copies equal what they were copied from; shaken, so that the pairs differ.
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in attachment.own.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter.device) * 0.3)
    return attachment


def attention(model):
    return target_attention(model, PAIRS)


SYSTEMS = {
    "adapters": adapters,
    "target attention": attention,
    "LaSS": lass,
    "differentiation": differentiation,
}


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_system_takes_the_step_on_the_device_that_it_takes_on_the_cpu(device, system):
    found = []
    for where in (torch.device("cpu"), device):
        model, batch = tiny_m2m100().to(where), to(random_batch(rows=5), where)
        dense = model(**plain(batch)).logits.detach().cpu()
        attachment = SYSTEMS[system](model).attach()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        output = model(**batch)
        assert not torch.allclose(output.logits.detach().cpu(), dense, atol=1e-2)
        output.loss.backward()
        grads = {name: p.grad.cpu().clone() for name, p in model.named_parameters() if p.grad is not None}
        optimizer.step()
        with torch.no_grad():
            after = model(**batch).logits.cpu()
        tokens = model.generate(batch["input_ids"], pair_ids=batch["pair_ids"], **BEAMS).cpu()
        found.append(({**grads, "before": output.logits.detach().cpu(), "after": after}, tokens))
        assert system == "LaSS" or any(name.startswith(OWN_WEIGHTS) for name in grads)
        attachment.detach()
        assert not any(name.startswith(OWN_WEIGHTS) for name in model.state_dict())
    assert_near(found[1][0], found[0][0], atol=1e-4)
    assert torch.equal(found[1][1], found[0][1])


# ---- two devices -------------------------------------------------------------------------------------------


def record_with_nccl(rank, count, folder):
    """Record half of the batches on a device of its own."""
    os.environ.pop("ACCELERATE_USE_CPU", None)
    torch.cuda.set_device(rank)
    torch.distributed.init_process_group("nccl", rank=rank, world_size=count)
    batches = [random_batch(seed=seed) for seed in range(4)]
    stats = record(tiny_m2m100().to("cuda"), batches[rank::count], PAIRS, RecordConfig(progress=False))
    stats.save(f"{folder}/{rank}.safetensors")


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices for NCCL")
def test_two_ranks_with_nccl_count_what_one_process_counts(tmp_path):
    run_in_processes(record_with_nccl, 2, str(tmp_path))
    batches = [random_batch(seed=seed) for seed in range(4)]
    expected = record(tiny_m2m100(), batches, PAIRS, RecordConfig(progress=False))
    for rank in range(2):
        found = ActivationStats.load(tmp_path / f"{rank}.safetensors")
        assert all(torch.equal(found.counts[name], counts) for name, counts in expected.counts.items())
