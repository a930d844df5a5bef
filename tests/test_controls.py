import pytest
import torch
from tiny import demonstrations, fitted, tokens

import sea_lens as sl
from sea_lens.models.lens import Lens

pytestmark = pytest.mark.model


def test_a_random_control_has_the_edits_ranks_and_other_directions(model):
    edit = fitted(model, rank=(3, 2), centre=True)
    control = sl.randomised(edit, 0)
    assert control.ranks == edit.ranks
    assert torch.equal(control.subspaces[1].centre, edit.subspaces[1].centre)
    assert not torch.allclose(control.projections(1)[0], edit.projections(1)[0])
    assert torch.equal(control.projections(1)[0], sl.randomised(edit, 0).projections(1)[0])
    assert control.provenance["control"] == "random subspaces, seed 0"


@pytest.mark.parametrize("site", sl.SITES)
def test_mean_difference_adds_the_difference_of_means(site, model):
    covariance = sl.capture(model, demonstrations(), site=site, progress=False)
    steering = sl.mean_difference(covariance)
    _, positive, negative = covariance.means(1)
    units, width = covariance.units, covariance.d
    x = torch.randn(2, 3, units, width) if site == "z" else torch.randn(2, 3, width)
    difference = positive - negative if site == "z" else (positive - negative)[0]
    torch.testing.assert_close(steering(x, 1, strength=2.0), x + 2 * difference.float())
    before = Lens.of(model).forward(tokens(), torch.ones_like(tokens()))
    with steering.applied(model, layers="last-1"):
        assert not torch.equal(Lens.of(model).forward(tokens(), torch.ones_like(tokens())), before)
    assert torch.equal(Lens.of(model).forward(tokens(), torch.ones_like(tokens())), before)


def test_mean_difference_refuses_mapped_activations_and_other_combinations(model):
    with pytest.raises(sl.InputError, match="needs feature 'identity', got 'tanh'"):
        sl.mean_difference(sl.capture(model, demonstrations(), feature="tanh", progress=False))
    steering = sl.mean_difference(sl.capture(model, demonstrations(), progress=False))
    with pytest.raises(sl.InputError, match="unknown combine 'norm': expected one of add"):
        steering.install(model, combine="norm")
