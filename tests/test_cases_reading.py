"""Reading demonstrations at size: what texts share is read once, and as if texts were read one by one."""

import itertools
import tracemalloc
import warnings

import pytest
import torch
from tiny import N_CTX, N_LAYERS, demonstrations, fitted, sentence

import sea_lens as sl
from sea_lens.models.demonstration_texts import DemonstrationTexts
from sea_lens.models.lens import Lens
from sea_lens.models.reading import Reading, ReadingPlan
from sea_lens.models.text_trees import grouped
from sea_lens.models.tokens import TokenRows, encode

LAYERS = range(N_LAYERS)
SITES = ("mlp_out", "attn_out", "resid_post", "z")


def questions(n: int = 6, prompt: int = 18) -> sl.Demonstrations:
    """Demonstrations whose texts share long beginnings of several lengths, some in other ways than most do."""
    items = []
    for i in range(n):
        shared = sentence(i, prompt + i % 3)
        texts = [shared, f"{shared} {sentence(100 + i, 1 + i % 4)} w1", f"{shared} {sentence(200 + i, 1 + i % 6)} w2"]
        items.append(sl.Demonstration(*texts))
    longer = sentence(n, prompt)
    # The neutral text goes on in its own way; begins the negative text alone; shares nothing; is a positive text's all.
    items.append(sl.Demonstration(f"{longer} w9 w8", f"{longer} w1 w2", f"{longer} w3"))
    items.append(sl.Demonstration(f"{longer} w9", f"{longer} w1 w2", f"{longer} w9 w4"))
    items.append(sl.Demonstration("w5 w6 w7", f"{longer} w1 w2", f"{longer} w3"))
    items.append(sl.Demonstration(f"{longer} w1", f"{longer} w1", f"{longer} w1 w5"))
    return sl.Demonstrations(items)


def one_by_one(model, demos, position, site, seed=0):
    """Readings of each text from a pass of its own, (n, kinds, layers, …), float64."""
    lens = Lens.of(model)
    names = [lens.point(site, layer) for layer in LAYERS]
    rows = []
    for demo in demos:
        for text in (demo.neutral, demo.positive, demo.negative):
            tokens = torch.tensor([encode(lens, text)])
            with torch.no_grad():
                seen = lens.read(tokens, torch.ones_like(tokens), names)
            whole = torch.stack([seen[name][0, 1:].double() for name in names])
            rows.append(whole.mean(1) if position == "mean" else whole[:, -1])
    return torch.stack(rows).unflatten(0, (len(demos), 3))


def read(plan: ReadingPlan, numbers=None):
    """All readings of a plan in the order of the demonstrations, (n, kinds, layers, …) for each site."""
    order, found = [], []
    for indices, of_sites in plan.read_sites(numbers):
        order += indices
        found.append([torch.stack(three, dim=1) for three in of_sites])
    place = torch.tensor(order).argsort()
    return [torch.cat(parts)[place] for parts in zip(*found, strict=True)]


def tokens_run(plan: ReadingPlan) -> int:
    passes = [plan.prepared(number) for number in range(len(plan.batches))]
    return sum(rows.tokens.numel() for one in passes for rows in (one.stems, *one.others) if rows is not None)


@pytest.mark.model
@pytest.mark.parametrize("position", ["last", "mean"])
def test_what_texts_share_is_read_once_and_exactly_as_in_each_text_alone(any_model, position):
    demos, lens = questions(), Lens.of(any_model)
    plan = ReadingPlan.of([Reading(site, position=position) for site in SITES], lens, demos, LAYERS)
    whole = sum(len(encode(lens, text)) for demo in demos for text in (demo.positive, demo.negative))
    assert tokens_run(plan) < whole
    assert plan.prepared(0).stems is not None
    for site, found in zip(SITES, read(plan), strict=True):
        expected = one_by_one(any_model, demos, position, site)
        found = found if site == "z" else found.squeeze(-2)
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.model
def test_a_random_token_is_the_same_whatever_is_read_with_its_text(model):
    demos, lens = questions(), Lens.of(model)
    seeds = [Reading("resid_post", position="random", seed=seed) for seed in range(3)]
    of_seeds = []
    for reading in seeds:
        together, alone = (read(reading.plan(lens, demos, LAYERS, batch_size=size))[0] for size in (None, 1))
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
        of_seeds.append(together)
    assert not torch.equal(of_seeds[0], of_seeds[1])


@pytest.mark.model
def test_several_sites_are_read_in_one_pass_as_each_by_itself(model):
    demos, lens = questions(), Lens.of(model)
    readings = [Reading("mlp_out"), Reading("z"), Reading("mlp_out", fit_site="hidden_states")]
    passes = []
    handle = model.register_forward_pre_hook(lambda *_: passes.append(1))
    try:
        together = read(ReadingPlan.of(readings, lens, demos, LAYERS))
        of_all = len(passes)
        alone = [read(reading.plan(lens, demos, LAYERS))[0] for reading in readings]
    finally:
        handle.remove()
    assert len(passes) == 4 * of_all > 0
    for found, expected in zip(together, alone, strict=True):
        assert torch.equal(found, expected)
    with pytest.raises(sl.InputError, match="differ in their sites alone"):
        ReadingPlan.of([Reading("z"), Reading("mlp_out", position="mean")], lens, demos, LAYERS)


@pytest.mark.model
def test_batches_of_a_plan_are_read_alone_bit_for_bit_as_among_all(model):
    demos, lens = questions(12), Lens.of(model)
    plan, again = (Reading("mlp_out").plan(lens, demos, LAYERS, batch_size=4, tokens_per_batch=100) for _ in range(2))
    assert plan.batches == again.batches
    assert sorted(itertools.chain(*plan.batches)) == list(range(len(demos)))
    assert len(plan.batches) > 3
    whole = {tuple(indices): three for indices, three in plan.read()}
    for numbers in ([2], [3, 0, 1]):
        parts = list(again.read(numbers))
        assert [indices for indices, _ in parts] == [plan.batches[number] for number in numbers]
        for indices, three in parts:
            assert all(torch.equal(x, y) for x, y in zip(three, whole[tuple(indices)], strict=True))


@pytest.mark.model
@pytest.mark.parametrize(("most", "tokens"), [(None, 60), (3, 200), (None, 1), (5, 10_000)])
def test_a_pass_has_at_most_so_many_tokens_and_a_batch_so_many_demonstrations(most, tokens, model):
    plan = Reading("mlp_out").plan(Lens.of(model), questions(20), LAYERS, batch_size=most, tokens_per_batch=tokens)
    for number, batch in enumerate(plan.batches):
        assert len(batch) <= (most or len(batch))
        prepared = plan.prepared(number)
        for rows in (prepared.stems, *prepared.others):
            assert rows is None or rows.tokens.numel() <= tokens or len(rows.tokens) == 1


def test_rows_are_padded_together_so_that_all_passes_cost_least():
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        lengths = sorted(torch.randint(1, 30, (7,), generator=generator).tolist(), reverse=True)
        tokens = int(torch.randint(20, 200, (1,), generator=generator))

        def cost(cuts, lengths=lengths, tokens=tokens):
            ends = [0, *cuts, len(lengths)]
            sizes = [(b - a, (b - a) * lengths[a]) for a, b in itertools.pairwise(ends)]
            if any(rows > 1 and size > tokens for rows, size in sizes):
                return float("inf")
            return sum(size for _, size in sizes) + len(sizes) * tokens / 16

        every = [cuts for k in range(7) for cuts in itertools.combinations(range(1, 7), k)]
        found = grouped(lengths, tokens)
        assert [one.start for one in found[1:]] == [one.stop for one in found[:-1]]
        assert cost([one.stop for one in found[:-1]]) == pytest.approx(min(map(cost, every)))


@pytest.mark.model
def test_under_an_edit_or_a_hook_of_the_users_texts_are_read_whole(model):
    demos, lens = questions(), Lens.of(model)
    plan = Reading("resid_post").plan(lens, demos, LAYERS)
    assert plan.prepared(0).stems is not None
    with warnings.catch_warnings(), fitted(model).applied(model, positions="prompt"):
        warnings.simplefilter("ignore")
        assert plan.prepared(0).stems is None
        found = read(plan)[0].squeeze(-2)
        torch.testing.assert_close(found.double(), one_by_one(model, demos, "last", "resid_post"), rtol=1e-4, atol=1e-4)
    point = model.hook_dict["blocks.0.hook_resid_pre"]

    def by_position(x, hook):
        return x * torch.linspace(1, 2, N_CTX)[: x.shape[1], None]

    point.add_hook(by_position)
    try:
        assert plan.prepared(0).stems is None
        found = read(plan)[0].squeeze(-2)
        expected = one_by_one(model, demos, "last", "resid_post")
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
    finally:
        point.remove_hooks(including_permanent=True)


def short_of_memory(model, tokens, error):
    """Let every pass over more than so many tokens run out of memory; gives the hook."""

    def refuse(module, args):
        if args[0].numel() > tokens:
            raise error

    return model.embed.register_forward_pre_hook(refuse)


@pytest.mark.model
@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ],
)
def test_what_does_not_fit_memory_is_read_in_halves_which_is_said_once(error, model):
    demos, lens = questions(20), Lens.of(model)
    plan = Reading("mlp_out").plan(lens, demos, LAYERS, batch_size=11)
    expected = read(plan)[0]
    handle = short_of_memory(model, 60, error)
    try:
        with pytest.warns(sl.SeaLensWarning, match="memory does not suffice for 11 demonstrations") as told:
            found = read(plan)[0]
    finally:
        handle.remove()
    assert len(told) == 1
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.model
def test_where_one_text_alone_does_not_fit_memory_it_is_named(model):
    lens = Lens.of(model)
    handle = short_of_memory(model, 15, torch.cuda.OutOfMemoryError("CUDA out of memory."))
    try:
        short = Reading("mlp_out").plan(lens, demonstrations(4), LAYERS)
        with pytest.warns(sl.SeaLensWarning):
            assert len(read(short)[0]) == 4
        long = sl.Demonstrations([*demonstrations(1), sl.Demonstration("w1", "w1 w2", "w1 " + sentence(0, 20))])
        with (
            pytest.warns(sl.SeaLensWarning),
            pytest.raises(sl.DemonstrationError, match=r"demonstration 1: memory does not suffice .* 22 tokens \(CUDA"),
        ):
            read(Reading("mlp_out").plan(lens, long, LAYERS))
    finally:
        handle.remove()


@pytest.mark.model
def test_other_errors_are_not_taken_for_a_lack_of_memory(model):
    handle = short_of_memory(model, 0, RuntimeError("index out of range"))
    try:
        with pytest.raises(RuntimeError, match="index out of range"):
            read(Reading("mlp_out").plan(Lens.of(model), questions(), LAYERS))
    finally:
        handle.remove()


@pytest.mark.model
@pytest.mark.parametrize("site", [None, "hidden_states"])
def test_one_token_is_read_in_the_models_dtype_and_a_mean_in_float64(site, load_tiny, backend):
    model, demos = load_tiny("llama", backend, dtype=torch.bfloat16), questions()
    for position, dtype in (("last", torch.bfloat16), ("random", torch.bfloat16), ("mean", torch.float64)):
        for _, three in Reading("mlp_out", fit_site=site, position=position).read(Lens.of(model), demos, LAYERS):
            assert {x.dtype for x in three} == {dtype}


@pytest.mark.model
def test_texts_are_held_in_a_few_bytes_a_token(model):
    lens = Lens.of(model)

    def held(n):
        demos = sl.Demonstrations(questions(6)[i % 6] for i in range(n))
        tracemalloc.start()
        before, _ = tracemalloc.get_traced_memory()
        texts = DemonstrationTexts.of(lens, demos, position="last", seed=0, prepend_bos=True)
        after, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return after - before, len(texts.rows)

    few, many = held(50), held(550)
    assert many[1] - few[1] == 1500
    # About 66 tokens, and what says how they are read.
    assert (many[0] - few[0]) / 500 < 1500


def test_rows_of_tokens_are_what_they_were():
    rows = [[1, 2, 3], [], [2**31 - 1], [5]]
    kept = TokenRows(rows)
    assert list(kept) == rows
    assert kept[1:3] == rows[1:3]
    assert kept[-1] == rows[-1]
    with pytest.raises(IndexError):
        kept[4]
