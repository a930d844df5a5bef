import sys
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss
from tiny import contrasts, demonstrations, sentence, tokens

import sea_lens as sl
from sea_lens.methods.concept_erasure import _eraser
from sea_lens.methods.probed_heads import probe
from sea_lens.models.lens import Lens
from sea_lens.models.sites import Site
from sea_lens.models.tokens import encode

pytestmark = pytest.mark.model


def logits(model, ids):
    return Lens.of(model).forward(ids, torch.ones_like(ids)).detach()


def read(model, site, layer, kind, n=12):
    """Last-token activations of one kind of text, one text after the other: (n, units, d), float64."""
    lens, seen = Lens.of(model), []
    for demonstration in demonstrations(n):
        ids = torch.tensor([encode(lens, getattr(demonstration, kind))])
        _, cache = model.run_with_cache(ids)
        seen.append(Site.of(site).to_units(cache[Site.of(site).point(lens, layer)])[0, -1].detach().double())
    return torch.stack(seen)


def steered(model):
    """One edit of each method that changes activations."""
    return [
        sl.mean_difference(sl.capture(model, demonstrations(), progress=False)),
        sl.iti(model, demonstrations(), heads=3, progress=False),
        sl.leace(model, demonstrations(), shrinkage=False, progress=False),
    ]


def test_methods_are_applied_and_removed_like_any_edit(any_model):
    ids = tokens(2, 9)
    before = logits(any_model, ids)
    for edit in steered(any_model):
        with edit.applied(any_model, strength=4.0):
            assert not torch.equal(logits(any_model, ids), before)
        with edit.applied(any_model, strength=0.0):
            assert torch.equal(logits(any_model, ids), before)
        assert torch.equal(logits(any_model, ids), before)


def test_decoding_with_a_cache_is_decoding_without(any_model):
    for edit in steered(any_model):
        # Without a cache nobody but the caller knows where the prompt ends.
        with sl.prompt_lengths(any_model, 6), edit.applied(any_model, strength=4.0):
            generated = any_model.generate(
                tokens(1, 6), max_new_tokens=4, do_sample=False, stop_at_eos=False, return_type="tokens", verbose=False
            )
            expected = tokens(1, 6)
            for _ in range(4):
                expected = torch.cat([expected, logits(any_model, expected)[:, -1:].argmax(-1)], 1)
        assert torch.equal(generated, expected)


def test_every_method_can_be_measured(model):
    for edit in steered(model):
        effect = sl.effect(model, edit, contrasts(), strength=2.0).effect
        for method in ("path", "shapley"):
            found = sl.layer_contributions(model, edit, contrasts(), method, strength=2.0)
            assert found.total == pytest.approx(effect, rel=2e-3, abs=1e-5)


def test_methods_are_saved_and_loaded(model, tmp_path):
    for edit in steered(model):
        path = tmp_path / f"{type(edit).__name__}.safetensors"
        edit.save(path)
        loaded = sl.load_edit(path)
        assert type(loaded) is type(edit)
        assert isinstance(loaded, (sl.MeanDifference, sl.ITI, sl.LEACE))
        assert (loaded.site, loaded.layers, loaded.provenance) == (edit.site, edit.layers, edit.provenance)
        assert loaded.signature == edit.signature
        with edit.applied(model, strength=3.0):
            expected = logits(model, tokens())
        with loaded.applied(model, strength=3.0):
            assert torch.equal(logits(model, tokens()), expected)
        with pytest.raises(sl.FileError, match="expected a sea_lens spectral edit"):
            sl.SpectralEdit.load(path)
    loaded = sl.ITI.load(tmp_path / "ITI.safetensors")
    found = sl.iti(model, demonstrations(), heads=3, progress=False)
    assert loaded.heads == found.heads
    assert loaded.accuracies is not None
    assert found.accuracies is not None
    assert torch.equal(loaded.accuracies, found.accuracies)


def test_methods_refuse_another_model(model, load_tiny, backend):
    other = load_tiny("gemma", backend)
    with pytest.raises(sl.MismatchError, match="'z'"):
        sl.iti(model, demonstrations(), heads=1, progress=False).install(other)
    leace = sl.leace(model, demonstrations(), shrinkage=False, progress=False)
    deeper = sl.LEACE(leace.site, leace.erasers, {"model": {"n_layers": 4}})
    with pytest.raises(sl.MismatchError, match="a model of 4 layers"):
        deeper.install(model)


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


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("separable", [False, True])
def test_a_probe_is_the_optimum_of_penalised_logistic_regression(scale, separable):
    generator = torch.Generator().manual_seed(1)
    x = (torch.randn(20, 40 if separable else 5, generator=generator, dtype=torch.float64) * scale + 3).numpy()
    labels = np.arange(20) % 2.0
    fitted = probe(x, labels)
    residual = fitted.predict_proba(x)[:, 1] - labels
    # The gradient of Σ loss + ‖weight‖²/2 vanishes, the bias being free.
    assert np.abs(residual @ x + fitted.coef_[0]).max() < 1e-5
    assert abs(residual.sum()) < 1e-6
    assert not separable or scale < 1 or fitted.score(x, labels) == 1


def test_iti_finds_the_head_that_tells(model):
    # Every z is noise, but that of one head points one way behind one word.
    lens, place, told = Lens.of(model), (1, 2), []
    word = model.W_E[encode(lens, "w1", prepend_bos=False)[0]]
    generator = torch.Generator().manual_seed(0)

    def remember(x):
        told[:] = [(x == word).all(-1)]

    def hook(layer):
        def noise(x):
            z = torch.randn(x.shape, generator=generator)
            if layer == place[0]:
                z[..., place[1], 0] += torch.where(told[0], 6.0, -6.0)
            return z

        return Site.of("z").point(lens, layer), noise

    prompts = [sentence(i, 4) for i in range(40)]
    items = [sl.Demonstration(prompt, f"{prompt} w1", f"{prompt} w2") for prompt in prompts]
    hooks = [("hook_embed", remember), *(hook(layer) for layer in range(lens.n_layers))]
    with lens.hooks(hooks):
        found = sl.iti(model, items, heads=1, validation=0.4, progress=False)
    assert found.heads == (place,)
    assert found.accuracies is not None
    assert found.accuracies[place] == 1
    assert found.layers == (1,)
    unit = found.vectors[1][2] / found.vectors[1][2].norm()
    assert unit[0] > 0.98
    # Half of the activations at 6 and half at -6, with unit noise.
    assert found.vectors[1][2].norm().item() == pytest.approx(37**0.5, rel=0.05)
    assert (found.vectors[1].norm(dim=-1) > 0).tolist() == [False, False, True, False]


def test_iti_adds_a_standard_deviation_along_the_mean_shift(model):
    lens = Lens.of(model)
    heads = lens.n_layers * lens.n_heads
    found = sl.iti(model, demonstrations(), heads=heads, progress=False)
    for layer in range(lens.n_layers):
        positive, negative = read(model, "z", layer, "positive"), read(model, "z", layer, "negative")
        shift = positive.mean(0) - negative.mean(0)
        unit = shift / shift.norm(dim=-1, keepdim=True)
        deviation = (torch.cat([positive, negative]) * unit).sum(-1).std(0, correction=0)
        torch.testing.assert_close(found.vectors[layer], deviation[:, None] * unit, rtol=1e-4, atol=1e-6)
    x = torch.randn(2, 5, lens.n_heads, lens.d_head)
    torch.testing.assert_close(found(x, 1, strength=15), x + 15 * found.vectors[1].float())


def test_itis_probe_direction_is_the_probes_weight(model):
    found = sl.iti(model, demonstrations(4), heads=12, direction="probe", progress=False)
    again = sl.iti(model, demonstrations(4), heads=12, direction="probe", progress=False)
    assert found.heads == again.heads
    assert found.accuracies is not None
    ranked = [found.accuracies[place].item() for place in found.heads]
    assert ranked == sorted(ranked, reverse=True)
    positive, negative = read(model, "z", 2, "positive", 4), read(model, "z", 2, "negative", 4)
    differences = []
    # One of the four is held out, whichever it is.
    for held_out in range(4):
        training = [at for at in range(4) if at != held_out]
        x = torch.cat([positive[training], negative[training]]).numpy()
        labels = np.array([1.0] * 3 + [0.0] * 3)
        weight = torch.from_numpy(np.concatenate([probe(x[:, head], labels).coef_ for head in range(x.shape[1])]))
        cosine = torch.nn.functional.cosine_similarity(weight, found.vectors[2], dim=-1)
        differences.append((1 - cosine).abs().max().item())
    assert min(differences) < 1e-5
    assert sorted(differences)[1] > 1e-4


def test_heads_play_for_iti(model):
    found = sl.iti(model, demonstrations(), heads=3, progress=False)
    values = sl.head_contributions(model, found, contrasts(), "path", strength=2.0)
    effect = sl.effect(model, found, contrasts(), strength=2.0).effect
    assert values.total == pytest.approx(effect, rel=2e-3, abs=1e-5)
    steered = torch.zeros(3, 4, dtype=torch.bool)
    steered[tuple(zip(*found.heads, strict=True))] = True
    assert torch.equal(values.values.abs() > 1e-6, steered)


def test_iti_refuses_what_it_cannot_do(model):
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"heads": 13}, "heads 13: model .* has only 12"),
        ({"heads": 0}, "heads 0: expected at least 1"),
        ({"heads": 1, "direction": "mean"}, "unknown direction 'mean': expected one of mass_mean, probe"),
        ({"heads": 1, "validation": 1.0}, "validation 1 of 12 demonstrations"),
        ({"heads": 1, "validation": 0.99}, "leaves none to hold out or none to train on"),
    ]
    for options, message in wrong:
        with pytest.raises(sl.InputError, match=message):
            sl.iti(model, demonstrations(), **options)
    with pytest.raises(sl.InputError, match="of 1 demonstrations"):
        sl.iti(model, demonstrations(1), heads=1)
    with Lens.of(model).hooks([("blocks.1.attn.hook_z", lambda x: x * float("nan"))]):  # noqa: SIM117
        with pytest.raises(sl.ActivationError, match=r"positive activation of demonstration \d+ at layer 1, site 'z'"):
            sl.iti(model, demonstrations(), heads=1, progress=False)


@pytest.mark.parametrize("site", sl.SITES)
def test_leace_makes_the_class_means_equal_and_keeps_the_mean(site, model):
    edit = sl.leace(model, demonstrations(), site=site, shrinkage=False, progress=False)
    covariance = sl.capture(model, demonstrations(), site=site, progress=False)
    for layer in edit.layers:
        _, positive, negative = (x if site == "z" else x[0] for x in covariance.means(layer))
        mean = (positive + negative) / 2
        torch.testing.assert_close(edit(positive, layer), edit(negative, layer), rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(edit(mean, layer), mean)
        x = torch.randn(3, *positive.shape, dtype=torch.float64)
        once = edit(x, layer)
        torch.testing.assert_close(edit(once, layer), once)
        torch.testing.assert_close(edit(x, layer, strength=0.3), x + 0.3 * (once - x))


def test_leace_is_the_librarys_eraser(model):
    x = torch.cat([read(model, "mlp_out", 1, kind)[:, 0] for kind in ("positive", "negative")])
    labels = torch.tensor([1.0] * 12 + [0.0] * 12)
    probe = torch.randn(7, 32, dtype=torch.float64)
    for shrinkage in (True, False):
        edit = sl.leace(model, demonstrations(), layers=[1], shrinkage=shrinkage, progress=False)
        # Imported by now, in silence.
        library = sys.modules["concept_erasure"]
        reference = library.LeaceEraser.fit(x, labels, shrinkage=shrinkage, constrain_cov_trace=False)
        torch.testing.assert_close(edit(probe, 1), reference(probe), rtol=1e-4, atol=1e-5)


def test_after_leace_no_probe_learns_anything(model):
    x = torch.cat([read(model, "mlp_out", 1, kind) for kind in ("positive", "negative")])[:, 0]
    labels = np.repeat([1.0, 0.0], 12)
    edit = sl.leace(model, demonstrations(), layers=[1], shrinkage=False, progress=False)
    losses = []
    for activations in (x, edit(x, 1)):
        rows = activations.double().numpy() / activations.std().item()
        losses.append(log_loss(labels, probe(rows, labels).predict_proba(rows)))
    chance = np.log(2.0)
    assert losses[0] < 0.5 * chance
    assert losses[1] == pytest.approx(chance, abs=1e-6)


def test_leace_refuses_what_it_cannot_do(model, monkeypatch):
    with pytest.raises(sl.InputError, match="unknown site 'mlp'"):
        sl.leace(model, demonstrations(), site="mlp")
    with pytest.raises(sl.InputError, match="unknown position 'first'"):
        sl.leace(model, demonstrations(), position="first")
    with Lens.of(model).hooks([("blocks.1.hook_mlp_out", lambda x: x * float("inf"))]):  # noqa: SIM117
        with pytest.raises(sl.ActivationError, match="at layer 1, site 'mlp_out', holds NaN or infinite"):
            sl.leace(model, demonstrations(), progress=False)
    # With the library's threshold on a difference that lies below it.
    blunt = sys.modules["concept_erasure"].LeaceFitter(4, 1, dtype=torch.float64, svd_tol=10.0)
    blunt.update(torch.randn(9, 4, dtype=torch.float64), torch.arange(9.0) % 2)
    with pytest.raises(sl.ActivationError, match="layer 3: the covariance of so few texts could not be inverted"):
        _eraser([blunt], 3)
    monkeypatch.setitem(sys.modules, "concept_erasure", None)
    with pytest.raises(sl.MissingPackageError, match=r"pip install 'sea-lens\[leace\]'"):
        sl.leace(model, demonstrations())
