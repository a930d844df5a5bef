import pytest
import torch
from tiny import fitted

import sea_lens as sl

pytestmark = pytest.mark.model


def test_a_random_control_has_the_edits_ranks_and_other_directions(model):
    edit = fitted(model, rank=(3, 2), centre=True)
    control = sl.randomised(edit, 0)
    assert control.ranks == edit.ranks
    centres = control.subspaces[1].centre, edit.subspaces[1].centre
    assert centres[0] is not None
    assert centres[1] is not None
    assert torch.equal(centres[0], centres[1])
    assert not torch.allclose(control.projections(1)[0], edit.projections(1)[0])
    assert torch.equal(control.projections(1)[0], sl.randomised(edit, 0).projections(1)[0])
    assert control.provenance["control"] == "random subspaces, seed 0"
