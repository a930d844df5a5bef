"""Hooks that must have run, and that must be gone: what was seen to go wrong around an edit in a model, and its kin."""

import asyncio
import contextlib
import copy
import multiprocessing
import pickle
import runpy
import threading
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

import sea_lens as sl
from sea_lens.methods.adapters import Adapter, LoRA
from sea_lens.models.lens import Lens
from sea_lens.models.load import hooked_available
from sea_lens.models.sites import SITES
from sea_lens.models.weight_changes import mlp_out_weight

pytestmark = pytest.mark.model
KINDS = ("spectral", "LoRA", "DoLa", "in-context")
INTERRUPTS = runpy.run_path(str(Path(__file__).parents[1] / "timings" / "interrupts.py"))
interrupted_at, left_behind = INTERRUPTS["interrupted_at"], INTERRUPTS["left_behind"]


def adapters(model: Any) -> LoRA:
    generator = torch.Generator().manual_seed(0)
    lens, width = Lens.of(model), int(model.cfg.d_mlp)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    return LoRA({layer: Adapter(random(2, width), random(lens.d_model, 2)) for layer in range(lens.n_layers)}, (), {})


def edit_of(kind: str, model: Any) -> sl.Edit:
    if kind == "spectral":
        return tiny.fitted(model)
    if kind == "LoRA":
        return adapters(model)
    return sl.dola(model, relative_top=0) if kind == "DoLa" else sl.in_context(model, tiny.demonstrations(), shots=1)


def weights_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.data for name, parameter in model.named_parameters()}


def running_blocks(model: Any) -> Any:
    """The blocks that a model runs, as a user would reach for them."""
    inside = getattr(model, "original_model", None)
    return model.blocks if inside is None else inside.get_submodule(model.adapter.component_mapping["blocks"].name)


def test_hook_points_are_found_by_their_paths(any_model):
    lens = Lens.of(any_model)
    listed = dict(any_model.hook_dict)
    assert dict(lens.points.items()) == listed
    assert {lens.point(site, 0) for site in SITES} <= set(listed)
    assert lens.points.get("blocks.99.hook_mlp_out") is lens.points.get("blocks.0.nothing") is None


@pytest.mark.parametrize("setup", [False, True], ids=["as it is", "set up again"])
@pytest.mark.parametrize("kind", ["spectral", "LoRA", "DoLa"])
def test_blocks_that_were_replaced_by_copies_are_edited_as_those_before(model, kind, setup):
    edit, contrasts = edit_of(kind, model), tiny.contrasts()
    right = sl.effect(model, edit, contrasts)
    spliced = copy.deepcopy(model)
    sl.effect(spliced, edit, contrasts)
    blocks = running_blocks(spliced)
    for layer in range(len(blocks)):
        blocks[layer] = copy.deepcopy(blocks[layer])
    if setup and hasattr(spliced, "setup"):
        spliced.setup()
    torch.testing.assert_close(sl.effect(spliced, edit, contrasts).items, right.items, rtol=0, atol=1e-6)
    assert right.effect != 0
    # What is captured there, and why the edit works, is that of the blocks that run.
    assert sl.capture(spliced, tiny.demonstrations(), progress=False).n == 12


def test_an_edit_that_stands_in_blocks_which_are_replaced_meanwhile_is_refused(model):
    spliced, tokens = copy.deepcopy(model), tiny.tokens()
    edit = tiny.fitted(spliced)
    unedited = spliced(tokens)
    with edit.applied(spliced):
        running_blocks(spliced)[1] = copy.deepcopy(running_blocks(spliced)[1])
        with pytest.raises(sl.UnsupportedModelError, match=r"never: blocks\.1\.hook_mlp_out"):
            spliced(tokens)
    torch.testing.assert_close(spliced(tokens), unedited, rtol=0, atol=0)


def test_adapters_in_blocks_which_are_replaced_meanwhile_are_refused(model):
    spliced, tokens = copy.deepcopy(model), tiny.tokens()
    unedited = spliced(tokens)
    with adapters(spliced).applied(spliced):
        running_blocks(spliced)[2] = copy.deepcopy(running_blocks(spliced)[2])
        with pytest.raises(sl.UnsupportedModelError, match=r"never: blocks\.2\.hook_mlp_out"):
            spliced(tokens)
    torch.testing.assert_close(spliced(tokens), unedited, rtol=0, atol=0)


def test_layers_that_were_cut_off_are_refused_by_name(load_tiny):
    if not hooked_available():
        pytest.skip("this TransformerLens has the bridge alone")
    pruned = copy.deepcopy(load_tiny("llama", "hooked"))
    edit = tiny.fitted(pruned)
    pruned.blocks = pruned.blocks[:2]
    with pytest.raises(sl.UnsupportedModelError, match=r"hook point 'blocks\.2\.hook_mlp_out'"):
        sl.effect(pruned, edit, tiny.contrasts())


def test_a_block_that_runs_twice_in_a_pass_is_refused(model):
    looped, tokens = copy.deepcopy(model), tiny.tokens()
    edit = tiny.fitted(looped)
    block = running_blocks(looped)[1]
    # What reads a cache cannot run twice in a bridge.
    block = block if Lens.of(model).backend == "hooked" else block.mlp
    inner = block.forward

    def twice(*args: Any, **kwargs: Any) -> Any:
        inner(*args, **kwargs)
        return inner(*args, **kwargs)

    vars(block)["forward"] = twice
    with edit.applied(looped), pytest.raises(sl.UnsupportedModelError, match=r"2 times: blocks\.1\.hook_mlp_out"):
        looped(tokens)


def test_a_compiled_model_is_refused(model):
    compiled = torch.compile(model, backend="eager")
    with pytest.raises(sl.UnsupportedModelError, match="is compiled"):
        sl.effect(compiled, tiny.fitted(model), tiny.contrasts())


def test_a_forward_that_was_compiled_in_place_is_refused(load_tiny):
    if not hooked_available():
        pytest.skip("TransformerLens's bridge cannot be compiled")
    model = copy.deepcopy(load_tiny("llama", "hooked"))
    # One block is compiled faster than three.
    model.blocks, model.cfg.n_layers = model.blocks[:1], 1
    edit = tiny.fitted(model)
    model.forward = torch.compile(model.forward, backend="eager")
    with pytest.raises(sl.UnsupportedModelError, match="compiled"):
        sl.effect(model, edit, tiny.contrasts(), layers=0)
    assert not sl.installed(model)


def test_a_subclass_is_what_its_parent_is(model):
    parent = type(model)
    child = copy.deepcopy(model)
    child.__class__ = type("MyModel", (parent,), {})
    edit = tiny.fitted(model)
    assert Lens.of(child).backend == Lens.of(model).backend == edit.provenance["model"]["backend"]
    right = sl.effect(model, edit, tiny.contrasts())
    torch.testing.assert_close(sl.effect(child, edit, tiny.contrasts()).items, right.items, rtol=0, atol=0)
    assert sl.generate(child, "w1 w2", edit, max_new_tokens=4) == sl.generate(model, "w1 w2", edit, max_new_tokens=4)


def test_passes_that_stop_early_or_begin_late_are_passes(model):
    tokens, edit = tiny.tokens(), tiny.fitted(model)
    with edit.applied(model):
        model.run_with_cache(tokens)
        stopped = model(tokens, stop_at_layer=2)
        with contextlib.suppress(NotImplementedError):
            model(stopped, start_at_layer=2)
        model(tokens, stop_at_layer=-1)
        model.generate(tokens, max_new_tokens=2, verbose=False)
    assert not sl.installed(model)


def test_a_pass_tells_what_it_reads(model):
    lens, seen = Lens.of(model), []
    tokens = tiny.tokens()

    def look(x: torch.Tensor) -> None:
        current = lens.current_pass
        assert current is not None
        # HookedTransformer.generate hands on embeddings.
        seen.append((None if current.tokens is None else tuple(current.tokens.shape), current.read_before))

    with lens.hooks([("blocks.0.hook_mlp_out", look)]):
        model(tokens)
        model.generate(tokens, max_new_tokens=3, verbose=False, do_sample=False, stop_at_eos=False)
    generated = [((2, 9), 0), ((2, 1), 9), ((2, 1), 10)]
    if lens.backend == "hooked":
        generated = [(None, read_before) for _, read_before in generated]
    assert seen == [((2, 9), 0), *generated]
    with sl.in_context(model, tiny.demonstrations(), shots=1).applied(model):
        n = lens.prefix_length
        with lens.hooks([("blocks.0.hook_mlp_out", look)]):
            model(tokens)
    assert n > 0
    assert seen[-1] == ((2, 9 + n), 0)
    assert lens.current_pass is None


def test_a_second_edit_is_warned_of_and_everything_can_be_listed_and_taken_out(model):
    edit, weights, tokens = tiny.fitted(model), weights_of(model), tiny.tokens()
    others = [edit_of(kind, model) for kind in KINDS[1:]]
    unedited = model(tokens)
    handle = edit.install(model, "last-2", strength=0.5, combine="average")
    with pytest.warns(sl.SeaLensWarning, match=r"SpectralEdit at 'mlp_out' in layers 1-2, strength 0.5.*remove_all"):
        edit.install(model)
    handle.remove()
    (entry,) = sl.installed(model)
    assert (entry.edit, entry.layers, entry.strength, entry.combine) == (edit, (0, 1, 2), 1.0, "norm")
    assert repr(entry) == "SpectralEdit at 'mlp_out' in layers 0-2, strength 1, combine 'norm'"
    with pytest.warns(sl.SeaLensWarning, match="edited already"):
        sl.effect(model, edit, tiny.contrasts())
    with pytest.warns(sl.SeaLensWarning, match="captured while"):
        sl.capture(model, tiny.demonstrations(), progress=False)
    with pytest.warns(sl.SeaLensWarning, match="edited already"):
        sl.layer_contributions(model, edit, tiny.contrasts(), method="leave_one_out")
    for other in others:
        with pytest.warns(sl.SeaLensWarning, match="edited already"):
            other.install(model)
    assert [type(one.edit).__name__ for one in sl.installed(model)] == ["SpectralEdit", "LoRA", "DoLa", "InContext"]
    kept = []
    model.hook_dict["blocks.0.hook_mlp_out"].add_hook(lambda x, hook: kept.append(1))
    assert len(sl.remove_all(model)) == 4
    assert sl.installed(model) == sl.remove_all(model) == []
    model(tokens)
    assert kept == [1]
    model.reset_hooks()
    assert left_behind(model, weights) == []
    torch.testing.assert_close(model(tokens), unedited, rtol=0, atol=0)


def test_what_the_library_puts_on_top_of_another_by_itself_is_not_warned_of(model):
    edit = tiny.fitted(model)
    where = edit.check(model)
    # Warnings are errors in these tests.
    with edit.put(model, where), edit.put(model, where):
        model(tiny.tokens())
    control = sl.randomised(edit, seed=0)
    sl.layer_contributions(model, edit, tiny.contrasts(), method="leave_one_out", control=[control])


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_that_is_made_under_an_edit_is_an_unedited_model_of_its_own(model, kind):
    edit, tokens = edit_of(kind, model), tiny.tokens()
    unedited = model(tokens)
    with edit.applied(model):
        edited = model(tokens)
        copied = copy.deepcopy(model)
        again = copy.deepcopy(copied)
        block = copy.deepcopy(running_blocks(model)[1])
    assert not torch.equal(edited, unedited)
    assert Lens.of(copied).model is copied
    for one in (copied, again):
        assert left_behind(one, weights_of(one)) == []
        torch.testing.assert_close(one(tokens), unedited, rtol=0, atol=0)
        with edit.applied(one):
            torch.testing.assert_close(one(tokens), edited, rtol=0, atol=0)
            torch.testing.assert_close(model(tokens), unedited, rtol=0, atol=0)
    # A part that was copied alone is not edited where it is put.
    running_blocks(copied)[1] = block
    torch.testing.assert_close(copied(tokens), unedited, rtol=0, atol=0)


def test_a_copy_of_the_model_inside_a_bridge_is_unedited(load_tiny):
    model, tokens = load_tiny("llama", "bridge"), tiny.tokens()
    unedited = model(tokens)
    edit = tiny.fitted(model)
    where = edit.check(model)
    with adapters(model).applied(model), edit.put(model, where):
        inside = copy.deepcopy(model.original_model)
    torch.testing.assert_close(inside(tokens).logits, unedited, rtol=0, atol=0)


def places(action: Any, n: int = 24) -> range:
    """Lines of an action to interrupt, from the first to the last; timings/interrupts.py takes every one."""
    # What is found out of a model at its first use runs once.
    action()
    total = 10**6 + 1 - interrupted_at(action, 10**6)
    assert total > 100
    return range(0, total, max(1, total // n))


# An interrupt of a finalizer is told, and cannot be raised.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupt_at_any_line_leaves_nothing_behind(model, kind):
    edit, weights, tokens = edit_of(kind, model), weights_of(model), tiny.tokens()
    unedited = model(tokens)

    def action() -> None:
        with edit.applied(model):
            model(tokens)

    for line in places(action):
        assert interrupted_at(action, line) == 0
        assert left_behind(model, weights) == [], f"line {line}"
    torch.testing.assert_close(model(tokens), unedited, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_while_hooks_measure_leaves_nothing_behind(model):
    weights, lens = weights_of(model), Lens.of(model)
    tokens = tiny.tokens()

    def action() -> None:
        lens.read(tokens, torch.ones_like(tokens), [lens.point("z", 1)])

    for line in places(action):
        interrupted_at(action, line)
        assert left_behind(model, weights) == [], f"line {line}"


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_thread_is_refused_with_a_sentence(model, kind):
    edit, other, tokens = edit_of(kind, model), tiny.fitted(model), tiny.tokens()
    unedited, refused = model(tokens), []
    with edit.applied(model):
        edited = model(tokens)

    def work() -> None:
        attempts = (
            lambda: model(tokens),
            lambda: other.install(model),
            lambda: sl.effect(model, other, tiny.contrasts()),
        )
        for attempt in attempts:
            try:
                attempt()
            except sl.InputError as error:
                refused.append(str(error))

    with edit.applied(model):
        thread = threading.Thread(target=work, name="second")
        thread.start()
        thread.join()
        torch.testing.assert_close(model(tokens), edited, rtol=0, atol=0)
    assert len(refused) == 3
    assert all("thread 'MainThread' put in" in text and "'second'" in text for text in refused)
    torch.testing.assert_close(model(tokens), unedited, rtol=0, atol=0)


def test_threads_that_work_on_one_model_get_right_results_or_refusals(model):
    tokens, weights = tiny.tokens(), weights_of(model)
    edits = [tiny.fitted(model), adapters(model), None]
    right = []
    for edit in edits:
        with edit.applied(model) if edit is not None else contextlib.nullcontext():
            right.append(model(tokens))
    wrong: list[str] = []
    begin = threading.Barrier(len(edits))

    def work(edit: sl.Edit | None, expected: torch.Tensor) -> None:
        begin.wait()
        for _ in range(12):
            try:
                with edit.applied(model) if edit is not None else contextlib.nullcontext():
                    if not torch.equal(model(tokens), expected):
                        wrong.append(type(edit).__name__)
            except sl.InputError:
                continue

    threads = [threading.Thread(target=work, args=pair) for pair in zip(edits, right, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert left_behind(model, weights) == []


def test_models_in_threads_of_their_own_are_used_at_once(model):
    edit, tokens = tiny.fitted(model), tiny.tokens()
    copied, found = copy.deepcopy(model), []

    def work() -> None:
        with edit.applied(copied):
            found.append(copied(tokens))

    with edit.applied(model):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        torch.testing.assert_close(found[0], model(tokens), rtol=0, atol=0)


def test_what_a_thread_left_in_a_model_when_it_ended_can_be_used_and_taken_out(model):
    edit, weights = tiny.fitted(model), weights_of(model)
    thread = threading.Thread(target=lambda: edit.install(model))
    thread.start()
    thread.join()
    model(tiny.tokens())
    assert len(sl.remove_all(model)) == 1
    assert left_behind(model, weights) == []


@pytest.mark.parametrize("writing", ["load_state_dict", "in place", "functional_call", "another MLP"])
def test_adapters_whose_weights_others_write_into_are_refused_and_leave_what_was_written(model, writing):
    model, tokens = copy.deepcopy(model), tiny.tokens()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    block = running_blocks(model)[1]
    weight = written = mlp_out_weight(Lens.of(model), 1)[0]
    with adapters(model).applied(model), torch.no_grad():
        model(tokens)
        call = model
        if writing == "load_state_dict":
            model.load_state_dict(state)
        elif writing == "in place":
            weight.add_(1.0)
            written = weight.clone()
        elif writing == "another MLP":
            block.mlp = copy.deepcopy(block.mlp)
        else:
            replaced = {name: one.detach().clone() for name, one in model.named_parameters()}
            call = lambda tokens: torch.func.functional_call(model, replaced, (tokens,))  # noqa: E731
        with pytest.raises(sl.UnsupportedModelError, match=r"weight in layer \d|never: blocks"):
            call(tokens)
    assert not sl.installed(model)
    assert not Lens.of(model).changed_weights
    if writing == "in place":
        torch.testing.assert_close(weight, written, rtol=0, atol=0)
    if writing == "load_state_dict":
        for name, tensor in model.state_dict().items():
            torch.testing.assert_close(tensor, state[name], rtol=0, atol=0)


def test_a_model_may_go_to_another_dtype_under_adapters(model):
    model, tokens = copy.deepcopy(model), tiny.tokens()
    unedited = model(tokens)
    lora = adapters(model)
    with lora.applied(model):
        edited = model(tokens)
        model.to(torch.float64)
        torch.testing.assert_close(model(tokens).float(), edited, rtol=0, atol=1e-4)
    assert {one.dtype for one in model.parameters()} == {torch.float64}
    torch.testing.assert_close(model(tokens).float(), unedited, rtol=0, atol=1e-4)


def test_another_task_is_refused_while_one_awaits_under_an_edit_and_its_own_tasks_are_not(model):
    edit, other, tokens = tiny.fitted(model), tiny.fitted(model, rank=(1, 1)), tiny.tokens()
    unedited, told = model(tokens), []
    with edit.applied(model):
        edited = model(tokens)

    async def child() -> torch.Tensor:
        return model(tokens)

    async def first(done: asyncio.Event, entered: asyncio.Event) -> None:
        with edit.applied(model):
            entered.set()
            await done.wait()
            for found in (model(tokens), *await asyncio.gather(child(), child())):
                torch.testing.assert_close(found, edited, rtol=0, atol=0)

    async def second(done: asyncio.Event, entered: asyncio.Event) -> None:
        await entered.wait()
        attempts = (
            lambda: model(tokens),
            lambda: other.install(model),
            lambda: sl.effect(model, other, tiny.contrasts()),
        )
        for attempt in attempts:
            try:
                attempt()
            except sl.InputError as error:
                told.append(str(error))
        done.set()

    async def both() -> None:
        done, entered = asyncio.Event(), asyncio.Event()
        await asyncio.gather(first(done, entered), second(done, entered))

    async def later() -> torch.Tensor:
        return model(tokens)

    asyncio.run(both())
    assert len(told) == 3
    assert all("task" in text and "wants to use it meanwhile" in text for text in told)
    torch.testing.assert_close(model(tokens), unedited, rtol=0, atol=0)
    # What is installed for good is for every task.
    handle = edit.install(model)
    torch.testing.assert_close(asyncio.run(later()), edited, rtol=0, atol=0)
    handle.remove()


def test_what_stands_in_a_model_is_not_copied_and_the_model_is_pickled_without_it(load_tiny):
    backend = tiny.BACKENDS[0]
    model, tokens = load_tiny("llama", backend), tiny.tokens()
    edit, unedited = tiny.fitted(model), model(tokens)
    handle = edit.install(model)
    try:
        for copying in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(sl.InputError, match="cannot be copied or pickled"):
                copying(handle)
        if backend == "hooked":
            loaded = pickle.loads(pickle.dumps(model))
            torch.testing.assert_close(loaded(tokens), unedited, rtol=0, atol=0)
            assert left_behind(loaded, weights_of(loaded)) == []
    finally:
        handle.remove()
    assert left_behind(model, weights_of(model)) == []


def edited_activation(pair: tuple[sl.ActivationEdit, torch.Tensor]) -> torch.Tensor:
    """In another process: an edit of an activation."""
    return pair[0](pair[1], 1)


@pytest.mark.parametrize("feature", sl.FEATURE_MAPS)
@pytest.mark.parametrize("through", ["pickle", "deepcopy"])
def test_an_edit_is_the_same_once_pickled_or_copied(load_tiny, feature, through):
    edit = tiny.fitted(load_tiny("llama", "bridge"), feature=feature)
    again = pickle.loads(pickle.dumps(edit)) if through == "pickle" else copy.deepcopy(edit)
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(again(x, 1), edit(x, 1), rtol=0, atol=0)
    assert again.feature == edit.feature


@pytest.mark.parametrize("kind", ["spectral", "LoRA", "DoLa", "in-context", "mean difference", "ITI"])
def test_an_edit_of_any_method_acts_the_same_once_pickled_or_copied(model, kind):
    if kind == "ITI":
        edit: sl.Edit = sl.iti(model, tiny.demonstrations(24), heads=2, progress=False)
    elif kind == "mean difference":
        edit = sl.mean_difference(sl.capture(model, tiny.demonstrations(), progress=False))
    else:
        edit = edit_of(kind, model)
    with edit.applied(model):
        right = model(tiny.tokens())
    for again in (pickle.loads(pickle.dumps(edit)), copy.deepcopy(edit)):
        with again.applied(model):
            torch.testing.assert_close(model(tiny.tokens()), right, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_pool_of_processes_takes_an_edit(load_tiny):
    edit = tiny.fitted(load_tiny("llama", "bridge"), feature="tanh")
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        (found,) = pool.map(edited_activation, [(edit, x)])
    torch.testing.assert_close(found, edit(x, 1), rtol=0, atol=0)


def test_results_are_the_same_once_pickled_or_copied(model, tmp_path):
    edit, contrasts = tiny.fitted(model), tiny.contrasts()
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"query": "w1 w2", "choices": ["w3", "w4"], "gold": 0}\n' * 2)
    evaluation = sl.evaluate(model, "capability", rows, prompt="query", edit=edit, progress=False)
    frames = [
        sl.layer_contributions(model, edit, contrasts, method="leave_one_out"),
        sl.direction_contributions(model, edit, contrasts),
        sl.head_contributions(model, edit, contrasts, method="gradient"),
    ]
    covariance, effect = sl.capture(model, tiny.demonstrations(), progress=False), sl.effect(model, edit, contrasts)
    for again in (lambda x: pickle.loads(pickle.dumps(x)), copy.deepcopy):
        for frame in frames:
            assert again(frame).to_frame().equals(frame.to_frame())
        assert again(evaluation).scores == evaluation.scores
        assert str(again(effect)) == str(effect)
        assert again(tiny.demonstrations()).digest == tiny.demonstrations().digest
        fitted = sl.fit(again(covariance), rank=(3, 2))
        x = torch.ones(32)
        torch.testing.assert_close(fitted(x, 0), edit(x, 0), rtol=0, atol=0)
