import pytest

import sea_lens as sl

ONE = sl.Demonstration("w1", "w1 w2", "w1 w3")


def test_demonstrations_are_an_immutable_sequence():
    demos = sl.Demonstrations([ONE, sl.Demonstration("a", "a b", "a c")])
    assert len(demos) == 2
    assert demos[0] == ONE
    assert list(demos[1:]) == [demos[1]]
    assert isinstance(demos[:1], sl.Demonstrations)
    assert demos == sl.Demonstrations(list(demos))
    assert demos.digest != demos[:1].digest


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "no demonstrations"),
        ([ONE, sl.Demonstration("", "a", "b")], "demonstration 1: neutral is empty"),
        ([sl.Demonstration("a", " \n", "b")], "demonstration 0: positive is"),
        ([sl.Demonstration("a", "b", "b")], "demonstration 0: positive and negative are the same text 'b'"),
        ([("a", "b", "c")], "demonstration 0: expected a Demonstration, got tuple"),
    ],
)
def test_what_cannot_be_used_is_refused(items, message):
    with pytest.raises(sl.DemonstrationError, match=message):
        sl.Demonstrations(items)


def test_contrasts_are_checked_as_well():
    with pytest.raises(sl.DemonstrationError, match="contrast 0: target and foil are the same text ' x'"):
        sl.Contrasts([sl.Contrast("p", " x", " x")])
    with pytest.raises(sl.DemonstrationError, match="no contrasts"):
        sl.Contrasts([])


def test_json_lines_go_out_and_come_back(tmp_path):
    odd = sl.Demonstration("line\u2028separator", "line\u2028separator \u00e9", "tab\t\n x")
    demos = sl.Demonstrations([ONE, odd])
    demos.to_jsonl(tmp_path / "d.jsonl")
    assert sl.Demonstrations.from_jsonl(tmp_path / "d.jsonl") == demos
    assert len(sl.Demonstrations.from_jsonl(tmp_path / "d.jsonl", limit=1)) == 1


@pytest.mark.parametrize("change", [lambda t: "\ufeff" + t, lambda t: t.replace("\n", "\r\n"), lambda t: t + "\n\n"])
def test_a_byte_order_mark_and_other_line_ends_do_no_harm(change, tmp_path):
    sl.Demonstrations([ONE, ONE]).to_jsonl(tmp_path / "d.jsonl")
    text = (tmp_path / "d.jsonl").read_text(encoding="utf-8")
    (tmp_path / "d.jsonl").write_bytes(change(text).encode())
    assert len(sl.Demonstrations.from_jsonl(tmp_path / "d.jsonl")) == 2


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "d.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(sl.FileError, match="not a UTF-8 text file"):
        sl.Demonstrations.from_jsonl(tmp_path / "d.jsonl")
