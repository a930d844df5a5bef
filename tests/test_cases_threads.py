"""Threads that measure one model: they take turns, and each gets what it would have got alone."""

import copy
import ctypes
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch

import sea_lens as sl
from sea_lens.measure.scorer import contrast_scorer
from sea_lens.models.lens import Lens
from sea_lens.models.predictions import predict, unembedding_put_off

pytestmark = pytest.mark.model
TOKENS = tiny.tokens(2, 9)
MASK = torch.ones_like(TOKENS)


def in_threads(*works: Callable[[], Any]) -> list[list[Any]]:
    """What each function gives when all run at once, four times in a thread of its own; errors are given as well."""
    begin, found = threading.Barrier(len(works)), [[] for _ in works]

    def run(place: int) -> None:
        begin.wait()
        for _ in range(4):
            try:
                found[place].append(works[place]())
            except Exception as error:
                found[place].append(error)

    threads = [threading.Thread(target=run, args=(place,), daemon=True) for place in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found


def scores(model: Any) -> list[float]:
    return contrast_scorer(model, tiny.contrasts(), batch_size=4).log_probs().tolist()


def continuations(model: Any) -> Any:
    return sl.generate(model, [tiny.sentence(7, 4), tiny.sentence(8, 6)], max_new_tokens=5)


def statistics(model: Any) -> list[float]:
    return sl.capture(model, tiny.demonstrations(4), progress=False).omega(1)[0].flatten().tolist()


def bare(model: Any) -> Any:
    with torch.no_grad():
        return model(TOKENS).tolist()


def test_threads_that_score_generate_and_capture_get_what_each_gets_alone(model):
    works = [lambda work=work: work(model) for work in (scores, continuations, statistics, bare)]
    alone = [work() for work in works]
    assert in_threads(*works) == [[expected] * 4 for expected in alone]


def test_threads_may_be_the_first_to_use_a_model(model):
    fresh = copy.deepcopy(model)
    vars(fresh).pop("_sea_lens", None)
    found = in_threads(lambda: continuations(fresh), lambda: scores(fresh), lambda: id(Lens.of(fresh)))
    assert found[0] == [continuations(model)] * 4
    assert found[1] == [scores(model)] * 4
    assert len(set(found[2])) == 1


def test_a_thread_waits_until_another_has_measured(model):
    lens, done = Lens.of(model), threading.Event()
    expected = scores(model)
    found: list[Any] = []

    def work() -> None:
        found.append(scores(model))
        done.set()

    with lens.alone():
        thread = threading.Thread(target=work)
        thread.start()
        assert not done.wait(0.3)
        bare(model)
    thread.join(60)
    assert found == [expected]


def test_threads_take_turns(model):
    lens, passes, seen = Lens.of(model), [], []
    begun = threading.Event()

    def many() -> None:
        for number in range(40):
            with torch.no_grad():
                predict(lens, TOKENS, MASK)
            passes.append(number)
            begun.set()

    def one() -> None:
        begun.wait()
        scores(model)
        seen.append(len(passes))

    in_order = [threading.Thread(target=work) for work in (many, one)]
    for thread in in_order:
        thread.start()
    for thread in in_order:
        thread.join(60)
    assert len(passes) == 40
    assert seen[0] < 40


def test_a_pass_of_the_model_alone_goes_by_what_another_thread_measures(model):
    lens, expected, seen = Lens.of(model), bare(model), []
    point = lens.point("mlp_out", 1)
    found = []
    with unembedding_put_off(lens), lens.hooks([(point, lambda x: seen.append(x) or 0 * x)], proven=False):
        thread = threading.Thread(target=lambda: found.append(bare(model)))
        thread.start()
        thread.join(60)
    assert found == [expected]
    assert seen == []


def test_an_edit_of_another_thread_is_no_measurement_and_is_refused(model):
    edit, found = tiny.fitted(model), []

    def work() -> None:
        for attempt in (scores, continuations, statistics, bare):
            with pytest.raises(sl.InputError, match="has an edit in it that thread 'MainThread' put in") as error:
                attempt(model)
            found.append(error)

    with edit.applied(model):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join(60)
    assert len(found) == 4


def test_an_edit_that_goes_in_ends_the_waiting_with_a_refusal(model):
    lens, edit, found = Lens.of(model), tiny.fitted(model), []

    def work() -> None:
        try:
            scores(model)
        except sl.InputError as error:
            found.append(str(error))

    with lens.alone():
        thread = threading.Thread(target=work)
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
        with edit.applied(model):
            thread.join(60)
    assert len(found) == 1


def test_whoever_is_interrupted_while_waiting_keeps_nobody_waiting(model):
    lens, expected, ended = Lens.of(model), scores(model), []

    def work() -> None:
        try:
            scores(model)
        except KeyboardInterrupt:
            ended.append(True)

    with lens.alone():
        thread = threading.Thread(target=work)
        thread.start()
        thread.join(0.2)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(thread.ident or 0), ctypes.py_object(KeyboardInterrupt)
        )
        thread.join(60)
    assert ended == [True]
    assert in_threads(lambda: scores(model)) == [[expected] * 4]


def test_what_a_thread_that_ended_left_keeps_nobody_waiting(model):
    lens, expected = Lens.of(model), scores(model)
    left = []
    thread = threading.Thread(target=lambda: left.append(lens.alone().keep()))
    thread.start()
    thread.join()
    assert scores(model) == expected
    left[0].remove()
    assert sl.installed(model) == []


def test_a_model_that_was_measured_can_be_pickled(model):
    scores(model)
    lens = Lens.of(model)
    if lens.backend == "bridge":
        pytest.skip("TransformerLens's bridge itself cannot be pickled")
    again = pickle.loads(pickle.dumps(lens.observer))
    with torch.no_grad():
        assert torch.equal(again.model(TOKENS), model(TOKENS))
    assert scores(again.model) == scores(model)
