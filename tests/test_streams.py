"""Where in the stream an edit's effect is on its way: against plain transformers, and in planted circuits."""

import matplotlib.pyplot as plt
import pytest
import torch
from plain import Plain
from tiny import N_LAYERS, contrasts, fitted, save_tiny_model

import sea_lens as sl
from sea_lens.models.lens import Lens
from sea_lens.models.tokens import encode

pytestmark = pytest.mark.model


def with_stream(plain, ids, edit, layer, place, *, into):
    """Logits of a run, edited or not, with the stream of the other behind a layer at a place."""
    edits = [(plain.mlp(at), lambda _, __, x, at=at: edit(x, at)) for at in range(N_LAYERS)]
    block = plain.blocks[layer]
    _, saved = plain.run(ids, edits if into == "unedited" else [], [("stream", block, "out")])

    def hook(_, __, out):
        x = (out[0] if isinstance(out, tuple) else out).clone()
        x[:, place] = saved["stream"][:, place]
        return (x, *out[1:]) if isinstance(out, tuple) else x

    return plain.run(ids, [*(edits if into == "edited" else []), (block, hook)])[0]


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "pythia"])
def test_streams_are_those_that_plain_transformers_exchange(family, backend, tmp_path):
    folder = save_tiny_model(family, tmp_path)
    model = sl.load_model(str(folder), backend)
    edit, (one,) = fitted(model), contrasts(1)
    lens, plain = Lens.of(model), Plain(folder)
    prompt = list(encode(lens, one.prompt))

    def contrast(logits_of):
        values = []
        for text in (one.target, one.foil):
            ids = torch.tensor([list(encode(lens, one.prompt + text))])
            log_probs = logits_of(ids).log_softmax(-1)[0]
            values.append(sum(log_probs[i - 1, ids[0, i]].item() for i in range(len(prompt), ids.shape[1])))
        return values[0] - values[1]

    edits = [(plain.mlp(at), lambda _, __, x, at=at: edit(x, at)) for at in range(N_LAYERS)]
    before, after = contrast(lambda ids: plain.run(ids)[0]), contrast(lambda ids: plain.run(ids, edits)[0])
    for method, into in (("sufficiency", "unedited"), ("necessity", "edited")):
        found = sl.stream_contributions(model, edit, [one], method)
        assert found.effect == pytest.approx(after - before, abs=1e-4)
        for layer, position in ((0, -1), (1, 0), (1, -2)):
            place = len(prompt) - 1 + position
            value = contrast(
                lambda ids, layer=layer, place=place, into=into: with_stream(plain, ids, edit, layer, place, into=into)
            )
            expected = value - before if into == "unedited" else after - value
            got = found.values[layer, found.positions.index(position)].item()
            assert got == pytest.approx(expected, abs=1e-4), (method, layer, position)


def test_behind_the_last_layer_all_of_it_stands_where_the_answer_is_predicted(model):
    edit, items = fitted(model), list(contrasts(6))
    found = sl.stream_contributions(model, edit, items)
    one_token = [i for i, item in enumerate(items) if len(item.target.split()) == len(item.foil.split()) == 1]
    assert one_token
    last = found.item_values[one_token, -1]
    at_answer = found.positions.index(0)
    torch.testing.assert_close(last[:, at_answer], found.item_effects[one_token], rtol=1e-4, atol=1e-5)
    assert last[:, :at_answer].abs().max() < 1e-5


def test_in_front_of_the_first_edited_layer_nothing_passes(model):
    edit, items = fitted(model), contrasts(4)
    found = sl.stream_contributions(model, edit, items, "necessity", layers=[1])
    assert found.values[0].abs().max() < 1e-5
    assert found.values[1].abs().max() > 1e-3


def test_the_gradient_is_the_limit_of_a_weak_edit(model):
    edit, items = fitted(model), contrasts(4)
    exact, estimated = (
        sl.stream_contributions(model, edit, items, method, strength=0.02) for method in ("sufficiency", "gradient")
    )
    scale = exact.values.abs().max()
    assert (exact.values - estimated.values).abs().max() < 0.05 * scale


def test_a_planted_subject_is_left_for_the_last_token(build, backend):
    case = build("head", backend)
    found = sl.stream_contributions(case.model, case.edit, case.contrasts)
    head_layer = case.circuit.heads[0].layer
    shares = found.values / found.effect
    answer = found.positions.index(0)
    # In front of the head that moves it the edit's change is where the edit was, behind it where the answer is.
    assert shares[head_layer - 1, :answer].sum() == pytest.approx(1, abs=0.01)
    assert shares[head_layer - 1, answer] == pytest.approx(0, abs=0.01)
    assert shares[head_layer, answer] == pytest.approx(1, abs=0.01)
    control = sl.stream_contributions(case.model, case.edit, case.contrasts, control=[case.edit])
    assert control.control_values is not None
    torch.testing.assert_close(control.control_values[0], found.values)


def test_streams_are_a_table_and_a_figure(model):
    found = sl.stream_contributions(model, fitted(model), contrasts(3), "gradient")
    assert len(found.to_frame()) == N_LAYERS * len(found.positions)
    assert "First-order" in found.plot().get_title()
    plt.close("all")


def test_an_unknown_method_of_streams_is_refused(model):
    with pytest.raises(sl.InputError, match="unknown method 'direct': expected one of sufficiency"):
        sl.stream_contributions(model, fitted(model), contrasts(2), "direct")
