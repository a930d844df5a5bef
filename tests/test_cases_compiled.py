"""An edit as a module that a compiler can trace whole, with the numbers of the edit itself."""

import json
import subprocess
import sys

import pytest
import torch

import sea_lens as sl

# In a process of its own: a compiler cannot trace the checks of shapes and types that the tests put into the package.
COMPILED = """
import json
import torch
import sea_lens as sl

torch.set_num_threads(1)


def activations(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def edit(site="mlp_out", **options):
    generator = torch.Generator().manual_seed(0)
    shape = (30, 2, 4, 4) if site == "z" else (30, 2, 16)
    texts = [torch.randn(shape, generator=generator) for _ in range(3)]
    return sl.fit_activations(*texts, rank=(2, 2), site=site, **options)


x = activations(2, 3, 16)
cases = {
    "norm": ("aot_eager", edit(), x, 1.5, None),
    "average": ("eager", edit(), x, 1.5, "average"),
    "heads": ("eager", edit("z"), activations(2, 3, 4, 4), 1.0, "reverse"),
    "a feature map about a centre": ("aot_eager", edit(feature="tanh", centre=True), x, 1.5, None),
    "half precision": ("eager", edit(), x.bfloat16(), 1.5, "positive_only"),
    "a strength for each token": ("eager", edit(), x, torch.linspace(-1, 2, 3), "negative_only"),
    "ends of the number range": ("eager", edit(), x * torch.tensor([0.0, 1e-38, 1e37])[:, None], 3.0, None),
}
means = sl.CrossCovariance.empty((0, 1), 1, 16, site="mlp_out", feature=sl.FEATURE_MAPS["identity"])
means = means.updated(*(activations(30, 2, 1, 16).roll(i, 0) * (1 + i) + i * activations(16).roll(i) for i in range(3)))
steering = {
    "ablation": (sl.directional_ablation(means), "affine"),
    "generalised eigenvectors": (sl.generalised_eigen(means, rank=2), "oblique"),
    "rotation": (sl.angular_steering(means, 130), "adaptive"),
}
cases |= {name: ("aot_eager", one, x, 1.5, combine) for name, (one, combine) in steering.items()}
if torch.cuda.is_available():
    for name, (backend, one, x, strength, combine) in list(cases.items()):
        cases[f"{name}, on a GPU"] = backend, one, x.cuda(), strength, combine
found = {}
for name, (backend, one, x, strength, combine) in cases.items():
    torch.compiler.reset()
    module = torch.compile(one.module(1, strength=strength, combine=combine), fullgraph=True, backend=backend)
    with torch.no_grad():
        # Compiled first, so that nothing has been prepared for it.
        values = [module(x), one(x, 1, strength, combine)]
    slopes = []
    for function in (module, lambda y: one(y, 1, strength, combine)):
        start = x.clone().requires_grad_()
        (function(start) / x.abs().max()).square().sum().backward()
        slopes.append(start.grad)
    off = [float(((a - b).abs().max() / b.abs().max())) for a, b in (values, slopes)]
    found[name] = off + [all(bool(torch.isfinite(a).all()) for a in values + slopes)]
# As blocks that are compiled one by one: a compiler makes few graphs of one function.
torch.compiler.reset()
deep = sl.fit_activations(*activations(3, 30, 12, 16), energy=0.9)
with torch.no_grad():
    apart = [
        float((torch.compile(deep.module(layer), fullgraph=True, backend="eager")(x) - deep(x, layer)).abs().max())
        for layer in deep.layers
    ]
print(json.dumps({"cases": found, "layers": apart}))
"""


@pytest.fixture(scope="module")
def compiled():
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", COMPILED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_a_compiled_edit_gives_the_numbers_and_the_gradients_of_the_edit(compiled):
    assert len(compiled["cases"]) == 10 * (1 + torch.cuda.is_available())
    for name, (off, slopes_off, finite) in compiled["cases"].items():
        limit = 1e-2 if "half" in name else 1e-6
        assert off <= limit, name
        assert slopes_off <= limit, name
        assert finite, name


def test_modules_of_many_layers_share_their_graphs(compiled):
    assert len(compiled["layers"]) == 12
    assert max(compiled["layers"]) < 1e-5


def test_a_module_is_the_edit_of_one_layer_and_refuses_what_that_refuses():
    generator = torch.Generator().manual_seed(0)
    neutral, positive, negative = (torch.randn(30, 2, 16, generator=generator) for _ in range(3))
    edit = sl.fit_activations(neutral, positive, negative, rank=(2, 2))
    x = torch.randn(3, 16, generator=generator)
    assert torch.equal(edit.module(1, 2.0, "average")(x), edit(x, 1, 2.0, "average"))
    assert list(edit.module(1).parameters()) == []
    with pytest.raises(sl.InputError, match="no edit for layer 2"):
        edit.module(2)
    with pytest.raises(sl.InputError, match="unknown combine"):
        edit.module(0, combine="sum")
    with pytest.raises(sl.MismatchError, match="for activations of shape"):
        edit.module(0)(torch.zeros(2, 17))
    with pytest.raises(sl.InputError, match="floating-point"):
        edit.module(0)(torch.zeros(2, 16, dtype=torch.int64))
