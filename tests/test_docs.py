"""The method's text and the code that cites it agree."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
METHOD = (ROOT / "docs" / "method.md").read_text()
NUMBERS = re.findall(r"^##+ (\d+(?:\.\d+)?) ", METHOD, flags=re.MULTILINE)
SOURCES = sorted(
    path
    for folder in ("sea_lens", "analyses", "timings", "tests", "notebooks")
    for path in (ROOT / folder).rglob("*.py")
)
TEXTS = [*SOURCES, *ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
CITATION = re.compile(r"docs/method\.md((?:[\s,]+(?:and\s+)?\d+(?:\.\d+)?)*)")


def test_the_sections_are_numbered_without_a_gap():
    wanted: list[str] = []
    main = part = 0
    for number in NUMBERS:
        if "." not in number:
            main, part = main + 1, 0
            wanted.append(str(main))
        else:
            part += 1
            wanted.append(f"{main}.{part}")
    assert wanted == NUMBERS
    assert len(NUMBERS) > 30


def test_every_cited_section_exists():
    cited = {
        (path.relative_to(ROOT), number)
        for path in SOURCES
        for numbers in CITATION.findall(path.read_text())
        for number in re.findall(r"\d+(?:\.\d+)?", numbers)
    }
    assert [(str(path), number) for path, number in sorted(cited) if number not in NUMBERS] == []
    assert len({number for _, number in cited}) > 15


def test_sections_that_refer_to_each_other_exist():
    within = re.findall(r"(?:section|sections|\()\s?(\d+(?:\.\d+)?)(?=[\s,;.)])", METHOD)
    assert [number for number in within if "." in number and number not in NUMBERS] == []
    assert len(within) > 20


def test_every_test_that_the_method_names_is_there():
    named = []
    for line in METHOD.splitlines():
        if line.startswith("*Checked:*"):
            for path, names in re.findall(r"`(tests/\w+\.py)`((?:,? (?:and )?`\w+`)*)", line):
                named += [(path, name) for name in re.findall(r"`(\w+)`", names)]
    missing = [(path, name) for path, name in named if f"def {name}(" not in (ROOT / path).read_text()]
    assert missing == []
    assert len(named) > 50


def test_every_module_that_the_method_names_is_there():
    named = set(re.findall(r"`((?:sea_lens|tests|analyses|timings)/[\w/]*(?:\.py)?)`", METHOD))
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []
    assert len(named) > 20


def test_nothing_cites_a_text_that_is_not_here():
    missing = []
    for path in TEXTS:
        named = set(re.findall(r"\b((?:[\w-]+/)*[A-Za-z][\w-]*\.md)\b", path.read_text()))
        places = (ROOT, path.parent, ROOT / "docs", ROOT / "sea_lens" / "testbed")
        # Commands write report.md.
        missing += [
            (str(path.relative_to(ROOT)), name)
            for name in sorted(named)
            if Path(name).name != "report.md" and not any((place / name).is_file() for place in places)
        ]
    assert missing == []
