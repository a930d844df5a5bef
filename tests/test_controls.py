from typing import Any

import pytest
import torch
from tiny import demonstrations, fitted

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


@pytest.mark.parametrize(
    ("options", "refused"),
    [({"draws": 0}, None), ({"draws": -1}, "draws"), ({"batch_size": 0}, "batch_size")],
)
def test_nothing_is_read_for_no_draws_or_for_what_is_refused(options, refused, model, monkeypatch):
    edit = fitted(model)

    def unwanted(*_: object, **__: object):
        raise AssertionError("demonstrations were read")

    monkeypatch.setattr("sea_lens.models.reading.Reading.read", unwanted)
    asked: dict[str, Any] = options
    if refused is None:
        assert sl.permuted(model, edit, demonstrations(), **asked) == []
    else:
        with pytest.raises(sl.InputError, match=refused):
            sl.permuted(model, edit, demonstrations(), **asked)
