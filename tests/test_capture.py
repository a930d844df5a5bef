from typing import Any

import pytest
import torch
from tiny import FAMILIES, N_CTX, N_LAYERS, demonstrations, sentence

import sea_lens as sl
from sea_lens.models.lens import Lens
from sea_lens.models.tokens import encode

pytestmark = pytest.mark.model
KINDS = ("neutral", "positive", "negative")


def means(covariance, layer):
    return [mean[0] for mean in covariance.means(layer)]


def oracle(model_folder, texts, points):
    """Activations of the original model: point(model, layer) names a module whose output is read, one text a run."""
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    model = AutoModelForCausalLM.from_pretrained(model_folder, attn_implementation="eager")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model_folder)
    found = []
    for text in texts:
        ids = torch.tensor([[1, *tokenizer(text, add_special_tokens=False).input_ids]])
        seen = {}
        handles = [
            module.register_forward_hook(lambda _m, _i, output, key=key, seen=seen: seen.update({key: output}))
            for key, module in points(model).items()
        ]
        with torch.no_grad():
            hidden = model(input_ids=ids, output_hidden_states=True).hidden_states
        for handle in handles:
            handle.remove()
        found.append(({key: value[0] for key, value in seen.items()}, [state[0] for state in hidden]))
    return found


@pytest.mark.parametrize("family", ["llama", "gpt2", "pythia"])
def test_mlp_out_is_what_the_original_mlp_gives_at_the_last_token(family, load_tiny, model_folders, backend):
    def points(model):
        blocks = {"llama": "model.layers", "gpt2": "transformer.h", "pythia": "gpt_neox.layers"}[family]
        return {layer: model.get_submodule(f"{blocks}.{layer}.mlp") for layer in range(N_LAYERS)}

    demos = demonstrations(5)
    covariance = sl.capture(load_tiny(family, backend), demos, progress=False, batch_size=3)
    runs = {kind: oracle(model_folders[family], [getattr(d, kind) for d in demos], points) for kind in KINDS}
    for layer in range(N_LAYERS):
        stacks = [torch.stack([seen[layer][-1] for seen, _ in runs[kind]]).double() for kind in KINDS]
        omegas = [stacks[0].T @ other / len(demos) for other in stacks[1:]]
        for found, expected in zip(covariance.omega(layer), omegas, strict=True):
            torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_are_those_of_the_original_the_last_behind_the_final_norm(
    family, load_tiny, model_folders, backend
):
    demos = demonstrations(4)
    covariance = sl.capture(load_tiny(family, backend), demos, fit_site="hidden_states", progress=False)
    runs = oracle(model_folders[family], [d.positive for d in demos], lambda model: {})
    for layer in range(N_LAYERS):
        expected = torch.stack([hidden[layer + 1][-1] for _, hidden in runs]).double().mean(0)
        torch.testing.assert_close(means(covariance, layer)[1], expected, rtol=1e-4, atol=1e-4)
    assert covariance.site == "mlp_out"
    assert covariance.provenance["fit_site"] == "hidden_states"


def test_mean_reads_every_token_but_bos_and_random_one_of_them(load_tiny, model_folders, backend):
    model = load_tiny("llama", backend)
    demo = sl.Demonstrations([sl.Demonstration("w1 w2 w3", "w1 w2 w3 w4", "w1 w2 w3 w5 w6")])
    runs = oracle(model_folders["llama"], [demo[0].positive], lambda model: {})
    states = runs[0][1][1][1:].double()
    mean = sl.capture(model, demo, site="resid_post", position="mean", progress=False)
    torch.testing.assert_close(means(mean, 0)[1], states.mean(0), rtol=1e-4, atol=1e-5)
    picked = set()
    for seed in range(20):
        random = sl.capture(model, demo, site="resid_post", position="random", seed=seed, progress=False, layers=[0])
        distances = (states - means(random, 0)[1]).abs().amax(1)
        assert distances.min() < 1e-4
        picked.add(int(distances.argmin()))
    assert picked == {0, 1, 2, 3}


def test_a_neutral_text_that_begins_no_other_is_run_by_itself(model):
    shared_prefix = sl.Demonstrations([sl.Demonstration("w1 w2", "w1 w2 w3", "w1 w2 w4")])
    alone = sl.Demonstrations([sl.Demonstration("w1 w2", "w9 w3", "w1 w2 w4")])
    for layer in range(N_LAYERS):
        torch.testing.assert_close(
            means(sl.capture(model, shared_prefix, progress=False), layer)[0],
            means(sl.capture(model, alone, progress=False), layer)[0],
            rtol=1e-5,
            atol=1e-6,
        )


@pytest.mark.parametrize("site", sl.SITES)
@pytest.mark.parametrize("position", ["last", "mean", "random"])
@pytest.mark.parametrize("neutral", ["prompt", "generated"])
def test_batches_change_nothing(site, position, neutral, model):
    options = {"site": site, "position": position, "neutral": neutral, "max_new_tokens": 3, "progress": False}
    one, many = (sl.capture(model, demonstrations(7), batch_size=size, **options) for size in (1, 7))
    assert one.site == site
    assert (one.units, one.d) == ((4, 8) if site == "z" else (1, 32))
    for layer in one.layers:
        torch.testing.assert_close(one.omega(layer), many.omega(layer), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(one.means(layer), many.means(layer), rtol=1e-4, atol=1e-5)


def test_shards_of_one_set_merge_to_the_whole(model):
    demos = demonstrations(10)
    whole = sl.capture(model, demos, batch_size=1, progress=False)
    merged = sl.capture(model, demos[:4], batch_size=1, progress=False) + sl.capture(
        model, demos[4:], batch_size=1, progress=False
    )
    for layer in whole.layers:
        torch.testing.assert_close(merged.omega(layer), whole.omega(layer), rtol=0, atol=1e-12)
    assert merged.n == whole.n == 10


def test_generated_reads_the_last_token_of_the_greedy_continuation(model):
    demos = demonstrations(3)
    lens = Lens.of(model)
    generated = sl.capture(model, demos, neutral="generated", max_new_tokens=4, progress=False)
    continued = []
    for demo in demos:
        ids = encode(lens, demo.neutral)
        for _ in range(4):
            following = int(
                lens.forward(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.int64))[0, -1].argmax()
            )
            if following == lens.tokenizer.eos_token_id:
                break
            ids = [*ids, following]
        continued.append(" ".join(lens.tokenizer.convert_ids_to_tokens(ids[1:])))
    by_hand = sl.Demonstrations(
        sl.Demonstration(text, demo.positive, demo.negative) for text, demo in zip(continued, demos, strict=True)
    )
    expected = sl.capture(model, by_hand, progress=False)
    for layer in generated.layers:
        torch.testing.assert_close(generated.means(layer)[0], expected.means(layer)[0], rtol=1e-4, atol=1e-4)


def test_backends_agree_on_every_site(load_tiny):
    pytest.importorskip("transformer_lens.HookedTransformer")
    for family in FAMILIES:
        for site in sl.SITES:
            hooked, bridge = (
                sl.capture(load_tiny(family, backend), demonstrations(5), site=site, progress=False)
                for backend in ("hooked", "bridge")
            )
            for layer in hooked.layers:
                torch.testing.assert_close(
                    hooked.omega(layer), bridge.omega(layer), rtol=1e-3, atol=1e-3, msg=f"{family} {site}"
                )


def test_capture_leaves_no_hook_behind_and_calls_the_users_own(model):
    lens = Lens.of(model)
    point = model.hook_dict["blocks.1.hook_mlp_out"]
    calls = []
    point.add_hook(lambda x, hook: calls.append(x.shape))
    before = {name: list(p.fwd_hooks) for name, p in lens.points.items()}
    try:
        sl.capture(model, demonstrations(3), progress=False)
        assert calls
        assert {name: list(p.fwd_hooks) for name, p in lens.points.items()} == before
    finally:
        point.remove_hooks(including_permanent=True)


def test_non_finite_activations_name_layer_and_demonstration(model):
    broken = demonstrations(6)[4]
    bad = Lens.of(model).tokenizer.convert_tokens_to_ids(broken.positive.split()[-1])

    def poison(x, hook):
        x = x.clone()
        x[ids_seen[0] == bad] = float("nan")
        return x

    ids_seen = []
    embed = model.hook_dict["hook_embed"]
    lens = Lens.of(model)
    original = lens.forward
    lens.forward = lambda tokens, mask: (ids_seen.clear(), ids_seen.append(tokens), original(tokens, mask))[-1]
    embed.add_hook(poison)
    try:
        with pytest.raises(sl.ActivationError, match=r"activation of demonstration \d at layer 0, site 'mlp_out'"):
            sl.capture(model, demonstrations(6), progress=False)
    finally:
        del lens.forward
        embed.remove_hooks(including_permanent=True)


def test_wrong_input_is_refused_before_any_forward(model, monkeypatch):
    monkeypatch.setattr(Lens, "forward", lambda *_: pytest.fail("a forward pass was run"))
    demos = demonstrations(3)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"site": "mlp"}, "unknown site 'mlp': expected one of mlp_out, attn_out, resid_post, z"),
        ({"fit_site": "embed"}, "unknown fit_site 'embed'"),
        ({"layers": [3]}, r"unknown layers \[3\]: expected some of \[0, 1, 2\]"),
        ({"layers": "signature-1"}, "needs layer signatures"),
        ({"position": "first"}, "unknown position 'first': expected one of last, mean, random"),
        ({"neutral": "none"}, "unknown neutral 'none'"),
        ({"feature": "relu"}, "unknown feature 'relu'"),
        ({"batch_size": 0}, "batch_size 0: expected at least 1"),
    ]
    for options, message in wrong:
        with pytest.raises(sl.InputError, match=message):
            sl.capture(model, demos, progress=False, **options)
    with pytest.raises(sl.MismatchError, match="different widths"):
        sl.capture(model, demos, site="z", fit_site="mlp_out", progress=False)
    long = sl.Demonstrations([*demos, sl.Demonstration("w1", "w1 w2", "w1 " + sentence(0, N_CTX))])
    with pytest.raises(sl.DemonstrationError, match=f"demonstration 3, negative text, has {N_CTX + 2} tokens"):
        sl.capture(model, long, progress=False)
