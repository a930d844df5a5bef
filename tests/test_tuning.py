import json
import warnings

import pytest
from tiny import demonstrations, sentence

import sea_lens as sl

pytestmark = pytest.mark.model

GRID = {"energies": (0.5, 0.99), "centres": (False,), "layers": ("all", "last-1"), "strengths": (0.5, 2.0)}


@pytest.fixture
def dev(tmp_path):
    path = tmp_path / "dev.jsonl"
    rows = [
        {"query": sentence(700 + i, 4), "choices": [sentence(50 + i, 1), sentence(90 + i, 1)], "gold": i % 2}
        for i in range(12)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return sl.Task.read("capability", path)


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.json"
    path.write_text(json.dumps([sentence(200 + i, 12) for i in range(4)]))
    return sl.Task.read("perplexity", path)


def test_the_rule_takes_the_best_setting_within_the_budget(model, dev, texts):
    common = {"maximise": "accuracy", "side_effects": texts, "progress": False, **GRID}
    free = sl.tune(model, demonstrations(), dev, **common)
    assert len(free.table) == 2 * 2 * 2
    assert free.table["allowed"].all()
    assert free.table["accuracy"].max() == free.table.loc[free.table["chosen"], "accuracy"].item()
    limit = float(free.table["kl"].sort_values().iloc[2])
    bound = sl.tune(model, demonstrations(), dev, **common, budget={"kl": limit})
    assert bound.table["allowed"].sum() == 3
    allowed = bound.table.loc[bound.table["allowed"]]
    chosen = allowed.loc[allowed["chosen"]]
    assert len(chosen) == 1
    assert chosen["accuracy"].item() == allowed["accuracy"].max()
    assert chosen.index[0] == allowed["accuracy"].idxmax()
    # The numbers are those of the chosen edit, measured on its own.
    with pytest.warns(UserWarning, match="12 of 12 items ask questions that the edit was chosen on"):
        again = sl.evaluate(model, dev, edit=bound.edit, **bound.options, progress=False)
    assert again.scores["accuracy"] == chosen["accuracy"].item()
    moved = sl.evaluate(model, texts, edit=bound.edit, **bound.options, progress=False)
    assert moved.scores["kl"] == chosen["kl"].item()
    assert bound.unedited == {"accuracy": sl.evaluate(model, dev, progress=False).scores["accuracy"], "kl": 0.0}
    assert "largest accuracy, kl at most" in str(bound)


def test_feature_maps_are_options_too(model, dev):
    found = sl.tune(
        model, demonstrations(), dev, maximise="accuracy", features=("identity", "tanh"), energies=(0.99,),
        centres=(False,), strengths=(1.0,), progress=False,
    )  # fmt: skip
    assert found.table["feature"].tolist() == ["identity", "tanh"]
    assert found.edit.feature.name == found.table.loc[found.table["chosen"], "feature"].item()


def test_scores_of_one_name_are_kept_apart(model, dev, tmp_path):
    rows = [
        {"query": sentence(800 + i, 3), "choices": [sentence(i, 1), sentence(9 + i, 2)], "gold": 1} for i in range(7)
    ]
    (tmp_path / "side.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    side = sl.Task.read("capability", tmp_path / "side.jsonl")
    found = sl.tune(
        model, demonstrations(), dev, maximise="accuracy", side_effects=side, progress=False,
        budget={"side_effects.accuracy": 1.0}, **GRID,
    )  # fmt: skip
    for name, task in (("accuracy", dev), ("side_effects.accuracy", side)):
        assert found.unedited[name] == sl.evaluate(model, task, progress=False).scores["accuracy"]
        with warnings.catch_warnings():
            # The dev split is what the edit was chosen on.
            warnings.simplefilter("ignore", UserWarning)
            measured = sl.evaluate(model, task, edit=found.edit, **found.options, progress=False).scores["accuracy"]
        assert found.table.loc[found.table["chosen"], name].item() == measured


def test_feature_maps_of_one_name_are_two_settings(model, dev):
    maps = [sl.FeatureMap("mine", lambda x, s=s: s * x, lambda y, s=s: y / s) for s in (1.0, 2.0)]
    grid = {"energies": (0.99,), "centres": (False,), "strengths": (1.0,)}
    found = sl.tune(model, demonstrations(), dev, maximise="accuracy", features=maps, progress=False, **grid)
    assert len(found.table) == 2


def test_what_cannot_be_tried_is_refused(model, dev, texts):
    for arguments, message in (
        ({"maximise": "mc9"}, "unknown scores"),
        ({"budget": {"kl": 1.0}}, "unknown scores"),
        ({"budget": {"kl": "much"}, "side_effects": texts}, "budget 'kl'"),
        ({"energies": ()}, "at least one value for energy"),
        ({"energies": (2.0,)}, "energy 2.0 is outside"),
        ({"layers": ("nosuch",)}, "unknown layer choice"),
        ({"layers": ("all", [99])}, r"unknown layers \[99\]"),
        ({"layers": ("all", "last-99")}, "asks for 99 layers"),
        ({"site": "nosuch"}, "unknown site 'nosuch'"),
        ({"layers": "all"}, "expected a list"),
        ({"choose": "first"}, "unknown rule 'first'"),
        ({"features": ("nosuch",)}, "nosuch"),
        ({"strengths": (float("nan"),)}, "strength"),
        ({"side_effects": texts, "budget": {"kl": -1.0}}, "no setting keeps the budget .* kl"),
    ):
        given = {"maximise": "accuracy", "progress": False, **GRID, **arguments}
        with pytest.raises(sl.InputError, match=message):
            sl.tune(model, demonstrations(), dev, **given)
