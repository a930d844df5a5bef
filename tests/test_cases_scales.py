"""Models that scale or cap their logits, or scale what a block adds: what reads activations out knows of it."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import VOCABULARY

import sea_lens as sl
from sea_lens.models.lens import Lens
from sea_lens.models.readout import EarlyExit
from sea_lens.models.tokens import encode

sys.path.insert(0, str(Path(__file__).parents[1] / "analyses"))
from zoo_models import CASES, Case

pytestmark = pytest.mark.model
ODD = ["gemma2 cap 5", "granite multipliers", "cohere", "cohere logit_scale 0.5"]
BY_NAME = {case.name: case for case in CASES}
TOKENS = torch.randint(4, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(TOKENS)
# Every text ends in another letter, since the first MLP of a parallel block sees nothing else of it.
DEMONSTRATIONS = sl.Demonstrations(
    sl.Demonstration(prompt := f"ab{chr(97 + i)}", f"{prompt} yes{chr(72 + i)}", f"{prompt} no{chr(107 - i)}")
    for i in range(12)
)
CONTRASTS = sl.Contrasts(sl.Contrast(f"ab{i} c{chr(97 + i)}", chr(97 + i), chr(109 + i)) for i in range(4))


@pytest.fixture(scope="module")
def load_odd(tmp_path_factory):
    """load_odd(name, backend, dtype=...) gives one and the same model of the zoo, or skips where it cannot be had."""
    loaded: dict[Any, Any] = {}

    def load(name: str, backend: str, dtype: torch.dtype = torch.float32):
        key = name, backend, dtype
        if key not in loaded:
            folder = BY_NAME[name].write(tmp_path_factory.mktemp("model"))
            try:
                loaded[key] = sl.load_model(folder, backend, dtype=dtype)
            except sl.UnsupportedModelError:
                pytest.skip("this backend cannot make the model")
        return loaded[key]

    return load


@pytest.fixture(params=ODD)
def odd_model(request, backend, load_odd):
    return load_odd(request.param, backend)


def fit(model: Any, site: str) -> sl.SpectralEdit:
    return sl.fit(sl.capture(model, DEMONSTRATIONS, site=site, progress=False), rank=(3, 2))


def cap_of(model: Any) -> float | None:
    config = getattr(getattr(model, "original_model", None), "config", None)
    cap = getattr(config, "final_logit_softcapping", None) or getattr(model.cfg, "output_logits_soft_cap", None)
    return float(cap) if cap and cap > 0 else None


def early_logits(lens: Lens, layer: int) -> torch.Tensor:
    """What the model itself says where its last layer gives what an earlier one gave."""
    seen: list[torch.Tensor] = []
    points = [lens.point("resid_post", layer), lens.point("resid_post", lens.n_layers - 1)]
    with torch.no_grad(), lens.hooks([(points[0], lambda x: seen.append(x)), (points[1], lambda x: seen[0])]):
        return lens.forward(TOKENS, MASK).float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ODD)
def test_the_last_layer_read_out_early_gives_the_models_logits(name, dtype, backend, load_odd):
    lens = Lens.of(load_odd(name, backend, dtype))
    seen: list[torch.Tensor] = []
    with torch.no_grad(), lens.hooks([(lens.point("resid_post", lens.n_layers - 1), lambda x: seen.append(x))]):
        logits = lens.forward(TOKENS, MASK).float()
        found = EarlyExit.of(lens)(seen[0])
    limit = 1e-5 if dtype == torch.float32 else 2.0**-6
    assert (found - logits).abs().max() <= limit * logits.abs().max()


def test_dola_contrasts_with_what_the_model_says_of_an_earlier_layer(odd_model):
    lens = Lens.of(odd_model)
    with torch.no_grad():
        plain, early = lens.forward(TOKENS, MASK), early_logits(lens, 0)
        with sl.dola(odd_model, [0], relative_top=0).applied(odd_model, strength=0.7):
            found = lens.forward(TOKENS, MASK)
    torch.testing.assert_close(found, plain.log_softmax(-1) - 0.7 * early.log_softmax(-1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("site", ["mlp_out", "z"])
def test_direct_contributions_sum_to_the_change_of_the_models_logit_difference(site, odd_model):
    lens, edit, cap = Lens.of(odd_model), fit(odd_model, site), cap_of(odd_model)

    def differences() -> torch.Tensor:
        found = []
        for item in CONTRASTS:
            ids = torch.tensor([encode(lens, item.prompt)])
            target, foil = (encode(lens, item.prompt + text)[ids.shape[1]] for text in (item.target, item.foil))
            with torch.no_grad():
                logits = lens.forward(ids, torch.ones_like(ids))[0, -1].double().cpu()
            if cap is not None:
                logits = cap * torch.atanh(logits / cap)
            found.append(logits[target] - logits[foil])
        return torch.stack(found)

    before = differences()
    with edit.applied(odd_model):
        after = differences()
    found = sl.head_contributions(odd_model, edit, CONTRASTS)
    assert found.effect == pytest.approx((after - before).mean().item(), rel=1e-3, abs=1e-5)
    torch.testing.assert_close(found.item_effects, after - before, rtol=1e-3, atol=1e-5)
    assert found.total == pytest.approx(found.effect, rel=1e-4)
    assert (after - before).abs().max() > 1e-3


def test_what_a_direction_does_to_logits_is_in_the_models_units(tmp_path, backend):
    changes = []
    for scaling in (1.0, 4.0):
        case = Case("granite", "", {**BY_NAME["granite"].options, "logits_scaling": scaling})
        try:
            model = sl.load_model(case.write(tmp_path / str(scaling)), backend)
        except sl.UnsupportedModelError:
            pytest.skip("this backend cannot make the model")
        found = sl.direction_contributions(model, fit(model, "mlp_out"), CONTRASTS, describe=2)
        changes.append({key: description.raises for key, description in found.descriptions.items()})
    one, four = changes
    assert one.keys() == four.keys()
    for key, raised in one.items():
        assert [token for token, _ in raised] == [token for token, _ in four[key]]
        assert [change for _, change in four[key]] == pytest.approx([change / 4 for _, change in raised], rel=1e-4)


def test_gradients_come_to_what_a_block_that_scales_adds(backend, load_odd):
    model = load_odd("granite multipliers", backend)
    edit, little = fit(model, "mlp_out"), 0.01
    estimated = sl.mediation(model, edit, CONTRASTS, exact=0, strength=little)
    exact = sl.mediation(model, edit, CONTRASTS, "exact", strength=little)
    assert (estimated.values - exact.values).abs().max() < 0.03 * exact.values.abs().max()
    first, same = (
        sl.recovery(model, edit, CONTRASTS, ranking, strength=little, sizes=[1], draws=0).nodes[0]
        for ranking in ("gradient", "sufficiency")
    )
    assert first == same == (1, "mlp")
    assert not any(point.fwd_hooks or point.bwd_hooks for point in Lens.of(model).points.values())


def test_what_heads_write_is_what_their_block_adds(odd_model):
    lens = Lens.of(odd_model)
    names = [lens.point(kind, 1) for kind in ("z", "attn_out")]
    if lens.norm_behind("attn_out", 1) is not None:
        pytest.skip("a norm stands behind attention")
    with torch.no_grad():
        seen = lens.read(TOKENS, MASK, names)
        written = torch.einsum("...hd,hdm->...m", seen[names[0]], lens.attention_weight(1))
    torch.testing.assert_close(written, seen[names[1]], rtol=1e-4, atol=1e-5)
