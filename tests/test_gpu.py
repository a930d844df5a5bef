"""What a GPU computes is what the CPU does: fits, captures, edits and analyses. Needs one; skipped elsewhere."""

from typing import Any

import pytest
import torch
from tiny import N_LAYERS, contrasts, demonstrations, fitted, tokens

import sea_lens as sl

DEVICE = "cuda"
pytestmark = [pytest.mark.model, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

# How far an effect, and the entries of a projection, may be from the CPU's in float32.
NEAR = {"float32": 1e-4, "bfloat16": 0.1, "float16": 0.02}
PROMPTS = ["w1 w2 w3", "w4 w5"]


@pytest.fixture(scope="module")
def reference(load_tiny) -> tuple[Any, sl.SpectralEdit]:
    """A model on the CPU, and the edit that is fitted in it."""
    model = load_tiny("llama", "bridge")
    return model, fitted(model)


@pytest.fixture(scope="module", params=NEAR)
def there(request, model_folders) -> tuple[Any, float]:
    """The same model on the GPU, in each dtype, and how near its numbers must be."""
    return sl.load_model(model_folders["llama"], "bridge", device=DEVICE, dtype=request.param), NEAR[request.param]


@pytest.mark.parametrize("width", [96, 640])
def test_a_fit_gives_the_subspaces_of_the_cpu(width):
    scales = torch.arange(1, width + 1).pow(-0.8)
    h, positive, negative = torch.randn(3, 400, 2, width, generator=torch.Generator().manual_seed(0)) * scales
    found = sl.fit_activations(h.to(DEVICE), positive.to(DEVICE), negative.to(DEVICE), energy=0.99)
    expected = sl.fit_activations(h, positive, negative, energy=0.99)
    assert found.ranks == expected.ranks
    # Read, plotted, pickled and saved like one of the CPU's.
    parts = [part for one in found.subspaces.values() for part in vars(one).values() if part is not None]
    assert {part.device.type for part in parts} == {"cpu"}
    for layer in range(2):
        for one, other in zip(found.projections(layer), expected.projections(layer), strict=True):
            torch.testing.assert_close(one.cpu(), other, rtol=0, atol=1e-8)


def test_effect_generation_and_contributions(there, reference):
    (model, near), (cpu, edit) = there, reference
    pairs = contrasts()
    assert sl.effect(model, edit, pairs).effect == pytest.approx(sl.effect(cpu, edit, pairs).effect, abs=near)
    for method in ("path", "only_one"):
        # In half precision the integral is as far from the effect as its rounding.
        options: Any = {"tolerance": 10.0} if method == "path" else {}
        found = sl.layer_contributions(model, edit, pairs, method, **options)
        expected = sl.layer_contributions(cpu, edit, pairs, method)
        torch.testing.assert_close(found.values.cpu(), expected.values, rtol=0, atol=near)
    for method in ("direct", "sufficiency", "gradient"):
        found = sl.head_contributions(model, edit, pairs, method).values.cpu()
        torch.testing.assert_close(found, sl.head_contributions(cpu, edit, pairs, method).values, rtol=0, atol=near)
    texts = sl.generate(model, PROMPTS, edit, max_new_tokens=4)
    assert near > 1e-3 or texts == sl.generate(cpu, PROMPTS, edit, max_new_tokens=4)


def test_a_capture_and_a_store_hold_the_same(there, reference, tmp_path):
    (model, near), (_, edit) = there, reference
    captured = fitted(model)
    for one, other in zip(captured.projections(1), edit.projections(1), strict=True):
        torch.testing.assert_close(one.cpu(), other.cpu(), rtol=0, atol=10 * near)
    covariance = sl.capture(model, demonstrations(), progress=False)
    stored = sl.capture(model, demonstrations(), store=tmp_path / "store", progress=False)
    for layer in range(N_LAYERS):
        for side in range(2):
            assert torch.equal(covariance.omega(layer)[side].cpu(), stored.omega(layer)[side].cpu())


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_an_edit(there, reference, strength):
    (model, near), (_, edit) = there, reference
    x = torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(0)).to(next(model.parameters()).dtype)
    expected = edit(x, 1, strength).float()
    for gradients in (False, True):
        with torch.set_grad_enabled(gradients):
            torch.testing.assert_close(edit(x.to(DEVICE), 1, strength).float().cpu(), expected, rtol=0, atol=near)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature")
def test_an_edit_waits_for_no_number_of_the_device(there, reference):
    (model, _), (_, edit) = there, reference
    x = torch.randn(2, 7, 32, device=DEVICE, dtype=next(model.parameters()).dtype)
    with torch.no_grad():
        edit(x, 1)
        before = torch.cuda.get_sync_debug_mode()
        try:
            torch.cuda.set_sync_debug_mode("error")
            edit(x, 1)
        finally:
            torch.cuda.set_sync_debug_mode(before)


@pytest.mark.parametrize("device_map", ["auto", DEVICE, {"": 0}])
def test_a_device_map_of_one_gpu(device_map, model_folders, reference):
    cpu, edit = reference
    model = sl.load_model(model_folders["llama"], device_map=device_map)
    assert sl.effect(model, edit, contrasts()).effect == pytest.approx(
        sl.effect(cpu, edit, contrasts()).effect, abs=1e-3
    )


@pytest.mark.parametrize("elsewhere", ["cpu", "disk"])
def test_blocks_that_are_brought_give_the_numbers_of_the_whole_model(elsewhere, model_folders, reference):
    _, edit = reference
    around: dict[str, Any] = {"model.embed_tokens": 0, "model.norm": 0, "lm_head": 0, "model.rotary_emb": 0}
    blocks: dict[str, Any] = {f"model.layers.{layer}": elsewhere if layer else 0 for layer in range(N_LAYERS)}
    whole = sl.load_model(model_folders["llama"], "bridge", device=DEVICE)
    split = sl.load_model(model_folders["llama"], device_map=around | blocks)
    ids = tokens().to(DEVICE)
    assert torch.equal(split(ids), whole(ids))
    pairs = contrasts()
    assert sl.effect(split, edit, pairs).effect == sl.effect(whole, edit, pairs).effect
    found = sl.layer_contributions(split, edit, pairs, "path").values
    assert torch.equal(found, sl.layer_contributions(whole, edit, pairs, "path").values)
    assert sl.generate(split, PROMPTS, edit, max_new_tokens=4) == sl.generate(whole, PROMPTS, edit, max_new_tokens=4)
