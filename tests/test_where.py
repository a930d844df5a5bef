import pytest

import sea_lens as sl
from sea_lens.edits.where import choose_layers

SIGNATURE = {1: 5.0, 2: 1.0, 3: 9.0, 4: 7.0}


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("all", (1, 2, 3, 4)),
        ("first-2", (1, 2)),
        ("last-3", (2, 3, 4)),
        ("signature-2", (3, 4)),
        ([4, 2], (2, 4)),
        (range(1, 3), (1, 2)),
        (3, (3,)),
    ],
)
def test_every_way_of_choosing(choice, expected):
    assert choose_layers(choice, [3, 1, 2, 4], SIGNATURE) == expected


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("middle", "unknown layer choice 'middle'"),
        ("last-0", "asks for 0 layers, expected 1 to 4"),
        ("last-5", "asks for 5 layers"),
        ("last--1", "unknown layer choice"),
        ([7], r"unknown layers \[7\]: expected some of \[1, 2, 3, 4\]"),
        ([-1], r"unknown layers \[-1\]"),
        ([], "no layers chosen"),
        ([2, 2], "name a layer twice"),
    ],
)
def test_what_cannot_be_chosen_is_refused(choice, message):
    with pytest.raises(sl.InputError, match=message):
        choose_layers(choice, [1, 2, 3, 4], SIGNATURE)


def test_signatures_are_needed_to_choose_by_them():
    with pytest.raises(sl.InputError, match="needs layer signatures"):
        choose_layers("signature-1", [0, 1])
