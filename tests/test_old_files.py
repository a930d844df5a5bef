"""Files that earlier versions wrote load for ever, and mean what they meant."""

import json
from pathlib import Path

import pytest
from tiny import BACKENDS

import sea_lens as sl

GOLDEN = Path(__file__).parent / "golden"
EFFECTS = [
    (version.name, name, expected)
    for version in sorted(GOLDEN.iterdir())
    for name, expected in json.loads((version / "effects.json").read_text()).items()
]


@pytest.fixture(scope="module", params=BACKENDS)
def beds(request):
    """The model that each version shipped: another one has other activations."""
    versions = {version for version, _, _ in EFFECTS}
    return {version: sl.testbed.load(request.param, GOLDEN / version / "testbed") for version in versions}


@pytest.mark.model
@pytest.mark.parametrize(("version", "name", "expected"), EFFECTS, ids=[f"{v}-{name}" for v, name, _ in EFFECTS])
def test_an_old_edit_has_the_effect_that_it_had(beds, version, name, expected):
    bed = beds[version]
    edit = sl.load_edit(GOLDEN / version / f"{name}.safetensors")
    found = sl.effect(bed.model, edit, bed.contrasts["test"], layers=expected["layers"])
    # On one CPU the effect is the same to the last bit; in float32 the kernels of two are some 4e-7 nats apart.
    assert found.before == pytest.approx(expected["before"], abs=2e-6)
    assert found.effect == pytest.approx(expected["effect"], abs=2e-6)


@pytest.mark.parametrize("version", sorted({version for version, _, _ in EFFECTS}))
def test_an_old_covariance_can_be_fitted(version):
    covariance = sl.CrossCovariance.load(GOLDEN / version / "covariance_z.safetensors")
    edit = sl.fit(covariance, rank=1)
    assert edit.site == covariance.site == "z"
    assert set(edit.ranks.values()) == {(1, 1)}
    assert edit.n == covariance.n > 0
