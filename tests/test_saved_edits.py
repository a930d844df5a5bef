"""Files of edits: what is written comes back, and what no method ever writes is refused."""

from dataclasses import replace

import pytest
import torch

import sea_lens as sl
from sea_lens._support.storage import read_tensors, write_tensors
from sea_lens.edits.saved import SavedEdit
from sea_lens.methods.ablated_direction import Ablated
from sea_lens.methods.adapters import Adapter
from sea_lens.methods.concept_erasure import Eraser
from sea_lens.methods.plane_rotation import Plane

PROVENANCE = {"model": {"n_layers": 2}}
LAYERS, HEADS, WIDTH = 2, 3, 4


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# The last head of the last layer tells best, and it alone is steered.
STEERED = torch.tensor([[0.0], [0.0], [1.0]], dtype=torch.float64)
ACCURACIES = torch.linspace(0.5, 1, LAYERS * HEADS, dtype=torch.float64).reshape(LAYERS, HEADS)


def eraser():
    left, right, centre = (random(1, WIDTH, seed=i) for i in range(3))
    return Eraser(left / (left * right).sum(), right, centre)


def axes(units):
    return torch.linalg.qr(random(units, WIDTH, 2))[0]


def statistics():
    empty = sl.CrossCovariance.empty((0, 1), 1, WIDTH, site="mlp_out", feature=sl.FEATURE_MAPS["identity"])
    neutral, positive, negative = (random(9, LAYERS, 1, WIDTH, seed=i) for i in range(3))
    return empty.updated(neutral, positive, negative)


def spectral(site="mlp_out", centre=False):
    shape = (9, LAYERS, HEADS, WIDTH) if site == "z" else (9, LAYERS, WIDTH)
    neutral, positive, negative = (random(*shape, seed=i) for i in range(3))
    found = sl.fit_activations(neutral, positive, negative, rank=(2, 1), site=site, centre=centre)
    return replace(found, provenance=PROVENANCE)


EDITS = {
    "spectral": spectral,
    "spectral of heads": lambda: spectral("z"),
    "spectral, centred": lambda: spectral(centre=True),
    "mean difference": lambda: sl.MeanDifference(
        "mlp_out", {0: random(1, WIDTH), 1: random(1, WIDTH)}, {0: 1.0, 1: 2.0}, PROVENANCE
    ),
    "given vectors": lambda: sl.GivenVectors("resid_post", {0: random(1, WIDTH)}, None, PROVENANCE),
    "spectral, of projections": lambda: replace(spectral(), n=None, signatures=None),
    "ITI": lambda: sl.ITI("z", {1: STEERED * random(HEADS, WIDTH)}, None, PROVENANCE, ((1, 2),), ACCURACIES),
    "LEACE": lambda: sl.LEACE("mlp_out", {0: eraser()}, PROVENANCE),
    "LoRA": lambda: sl.LoRA({0: Adapter(random(2, 5).float(), random(WIDTH, 2).float())}, (0.5,), PROVENANCE),
    "ablation": lambda: sl.DirectionalAblation("z", {1: Ablated(axes(HEADS)[..., 0], random(HEADS))}, PROVENANCE),
    "generalised eigenvectors": lambda: replace(sl.generalised_eigen(statistics(), rank=1), provenance=PROVENANCE),
    "angular steering": lambda: sl.AngularSteering("mlp_out", {0: Plane(*axes(1).unbind(-1))}, 150.0, PROVENANCE),
}


@pytest.fixture(params=list(EDITS))
def edit(request):
    return EDITS[request.param]()


def rewritten(path, change):
    """The file with its tensors and header changed in place."""
    kind = sl.load_edit(path).kind  # type: ignore[attr-defined]
    tensors, header = read_tensors(path, kind=kind)
    change(tensors, header)
    write_tensors(path, tensors, kind=kind, header=header)


def refuses(path, message):
    # The tests' own check of types may come first.
    with pytest.raises(sl.FileError, match=f"edit is damaged, or was not written by sea_lens.*({message}|Type-check)"):
        sl.load_edit(path)


def test_what_is_saved_comes_back(edit, tmp_path):
    edit.save(tmp_path / "one")
    again = sl.load_edit(tmp_path / "one")
    assert type(again) is type(edit)
    assert isinstance(again, SavedEdit)
    again.save(tmp_path / "two")
    assert (again.layers, again.n_layers, again.facts()) == (edit.layers, LAYERS, edit.facts())
    for name, tensor in edit.tensors().items():
        torch.testing.assert_close(again.tensors()[name], tensor, rtol=0, atol=0)


def test_an_edit_of_some_of_its_layers_comes_back(tmp_path):
    whole = spectral()
    part = replace(whole, subspaces={1: whole.subspaces[1]})
    part.save(tmp_path / "part")
    assert sl.SpectralEdit.load(tmp_path / "part").layers == (1,)


def first(tensors):
    return next(iter(tensors.values()))


COMMON = {
    "a value that is no number": (lambda t, h: first(t).view(-1)[:1].fill_(torch.nan), "holds NaN or infinite values"),
    "layers that the model has not": (lambda t, h: h["provenance"]["model"].update(n_layers=0), "of a model of 0"),
    "no provenance": (lambda t, h: h.pop("provenance"), "provenance"),
    "a provenance of another kind": (lambda t, h: h.update(provenance=["a"]), "the provenance is no object"),
    "no tensors": (lambda t, h: t.clear(), ""),
    "a tensor of another name": (lambda t, h: t.update({"layers.x": torch.zeros(2)}), ""),
    "a tensor too many": (lambda t, h: t.update({"more": torch.zeros(2)}), ""),
    "a tensor of another shape": (lambda t, h: t.update({next(iter(t)): torch.zeros(3, 3, 3, 3)}), ""),
}


@pytest.mark.parametrize("damage", list(COMMON))
def test_damage_to_a_file_of_any_method_is_refused(edit, damage, tmp_path):
    path = tmp_path / "edit"
    edit.save(path)
    change, message = COMMON[damage]
    rewritten(path, change)
    refuses(path, message)


def times(tensors, name, factor):
    tensors[name] *= factor


SPECTRAL = {
    "factors of another length": (lambda t, h: times(t, "layers.1.keep", 5.0), "columns of keep are not orthonormal"),
    "factors that are not orthogonal": (
        lambda t, h: t["layers.0.keep"][..., 1].copy_(t["layers.0.keep"][..., 0]),
        "layer 0: the columns of keep are not orthonormal",
    ),
    "a column beyond the rank": (lambda t, h: t["layers.0.keep_rank"].fill_(1), "columns of keep are not orthonormal"),
    "a negative rank": (lambda t, h: t["layers.0.drop_rank"].fill_(-7), "drop has ranks"),
    "a rank beyond the columns": (lambda t, h: t["layers.0.drop_rank"].fill_(2), "drop has ranks"),
    "ranks that are no whole numbers": (
        lambda t, h: t.update({"layers.0.drop_rank": t["layers.0.drop_rank"].double()}),
        "drop has ranks",
    ),
    "negative singular values": (lambda t, h: times(t, "layers.0.drop_values", -1), "not descending sizes"),
    "singular values in another order": (
        lambda t, h: t.update({"layers.0.keep_values": t["layers.0.keep_values"].flip(-1).contiguous()}),
        "not descending sizes",
    ),
    "a negative number of demonstrations": (lambda t, h: h.update(n=-5), "fitted to -5 demonstrations"),
    "a number of demonstrations in words": (lambda t, h: h.update(n="9"), "fitted to '9' demonstrations"),
    "an unknown site": (lambda t, h: h.update(site="mlp_in"), "unknown site 'mlp_in'"),
    "another option centre": (lambda t, h: h["options"].update(centre=not h["options"]["centre"]), "option centre"),
    "no options": (lambda t, h: h.pop("options"), "options"),
    "signatures of other layers": (lambda t, h: h.update(signatures={"0": 1.0}), "signatures of layers"),
    "a signature that is no number": (lambda t, h: h["signatures"].update({"0": "high"}), "a signature is no size"),
    "a layer of another width": (
        lambda t, h: t.update({k: v[..., :3, :1] for k, v in t.items() if k == "layers.0.keep"}),
        "",
    ),
}


@pytest.mark.parametrize("damage", list(SPECTRAL))
@pytest.mark.parametrize("name", ["spectral", "spectral of heads", "spectral, centred"])
def test_a_spectral_edit_that_no_fit_gives_is_refused(name, damage, tmp_path):
    path = tmp_path / "edit"
    EDITS[name]().save(path)
    change, message = SPECTRAL[damage]
    rewritten(path, change)
    refuses(path, message)


OTHERS = {
    "ITI of a head that is not there": ("ITI", lambda t, h: h.update(heads=[[1, 3]]), "has heads"),
    "ITI of a layer that is not steered": ("ITI", lambda t, h: h.update(heads=[[0, 0]]), "has heads"),
    "ITI without heads": ("ITI", lambda t, h: h.pop("heads"), "heads"),
    "steering of several units": (
        "mean difference",
        lambda t, h: t.update({k: v.repeat(2, 1) for k, v in t.items()}),
        "site 'mlp_out' has one unit a layer, not 2",
    ),
    "LEACE without a direction": ("LEACE", lambda t, h: t.pop("layers.0.left"), ""),
    "LoRA of two ranks": ("LoRA", lambda t, h: t.update({"up.0": random(WIDTH, 3).float()}), "have shapes"),
    "LoRA without a side": ("LoRA", lambda t, h: t.pop("down.0"), ""),
    "ablation of a long direction": (
        "ablation",
        lambda t, h: times(t, "layers.1.direction", 2.0),
        "a direction has not length one",
    ),
    "ablation of fewer components": (
        "ablation",
        lambda t, h: t.update({"layers.1.wanted": torch.zeros(1, dtype=torch.float64)}),
        "components",
    ),
    "ablation to what no activation has": ("ablation", lambda t, h: times(t, "layers.1.wanted", 1e40), "component"),
    "generalised eigenvectors with long filters": (
        "generalised eigenvectors",
        lambda t, h: times(t, "layers.0.filters", 2.0),
        "layer 0: a filter has not length one",
    ),
    "generalised eigenvectors with other patterns": (
        "generalised eigenvectors",
        lambda t, h: times(t, "layers.0.patterns", 2.0),
        "layer 0: taking out its components is no projection",
    ),
    "generalised eigenvectors of large ratios": (
        "generalised eigenvectors",
        lambda t, h: t["layers.1.ratios"].fill_(2.0),
        "layer 1: a ratio is on the wrong side of one",
    ),
    "generalised eigenvectors without any": (
        "generalised eigenvectors",
        lambda t, h: [t[f"layers.0.{name}"].fill_(value) for name, value in (("filters", 0), ("ratios", 1))],
        "a unit has no filter",
    ),
    "a plane with axes that are not orthogonal": (
        "angular steering",
        lambda t, h: t["layers.0.second"].copy_(t["layers.0.first"]),
        "its axes are not orthonormal",
    ),
    "an angle in words": ("angular steering", lambda t, h: h.update(angle="right"), "its angle is 'right'"),
    "LoRA with a loss in words": ("LoRA", lambda t, h: h.update(losses=["low"]), "a loss is no number"),
}


@pytest.mark.parametrize("damage", list(OTHERS))
def test_an_edit_that_its_method_never_writes_is_refused(damage, tmp_path):
    name, change, message = OTHERS[damage]
    path = tmp_path / "edit"
    EDITS[name]().save(path)
    rewritten(path, change)
    refuses(path, message)
