"""Numbers in written solutions, as people and models write them (docs/method.md 6.3)."""

import re
import unicodedata
from decimal import Context, Decimal

# Signs that are written for minus, and Arabic's two marks between digits, become those of the keyboard.
_SIGNS = str.maketrans(dict.fromkeys("\u2212\u2013\ufe63\uff0d", "-") | {"\u066b": ".", "\u066c": ","})
# What LaTeX writes between groups of three digits and nobody reads: {,} \, \; \: \! "\ " ~ become their plain signs.
_LATEX = [
    (re.compile(r"(?<=\d)\{([,.])\}(?=\d)"), r"\1"),
    (re.compile(r"(?<=\d)(?:\\[,;:! ]|~)(?=\d{3})"), "\u00a0"),
    (re.compile(r"(?<=\d)\\[dt]?frac\s?\{(\d+)\}\s?\{(\d+)\}"), r" \1/\2"),
    (re.compile(r"\\[dt]?frac\s?\{(\d+)\}\s?\{(\d+)\}"), r"\1/\2"),
]
# No number has more than thirteen groups, which also bounds the time that a text of nothing else takes.
# Groups of three that a space of fixed width, an apostrophe or an underscore keeps together.
_GROUPED = re.compile(
    r"(?<!\d)[1-9]\d{0,2}([\u00a0\u2007\u2008\u2009\u200a\u202f'\u2019_])\d{3}(?:\1\d{3}){0,12}(?!\d)"
)
# An ordinary space parts two numbers, unless what follows begins with 0 as no number does.
_SPACED = re.compile(r"(?<!\d)[1-9]\d{0,2}(?: 0\d\d)(?: \d{3}){0,12}(?![\d/])")
_RAISED = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
_SUPERSCRIPT = re.compile("⁻?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
# No exponent is a number of its own; that of a power of ten belongs to the number before.
_EXPONENT = re.compile(r"(?<!10)\^(?:\{-?\d+\}|-?\d+)")
_VULGAR = re.compile(r"(\d?)([\u00bc-\u00be\u2150-\u215e\u2189])")

_AMOUNT = r"""
    (?P<us>[1-9]\d{0,2}(?:,\d{3}){1,12}(?:\.\d+)?(?!\d|,\d)        # 1,234,567.89
        | [1-9]\d?(?:,\d{2}){1,12},\d{3}(?:\.\d+)?(?!\d|,\d))      # 12,34,567
    | (?P<european>[1-9]\d{0,2}(?:\.\d{3}){1,12},\d+(?!\d|[.,]\d)  # 1.234,56
        | [1-9]\d{0,2}(?:\.\d{3}){2,12}(?!\d|[.,]\d)               # 1.234.567
        | (?<!\d,)(?:\d+,(?:\d{1,2}|\d{4,})|(?:0|\d{4,}),\d{3})(?!\d|[.,]\d))   # 12,5 and 3,14159 and 0,125
    | (?P<whole>(?:(?P<mixed>\d+)[ ])?(?<![\d/]/)                            # 3/4 and 1 1/2
        (?P<top>\d+)/(?P<bottom>0*[1-9]\d*)(?!\d|[/.,]\d))
    | (?P<plain>\d+(?:\.\d+)?|(?<!\d)\.\d+)
"""
_NUMBER = re.compile(
    rf"""
    (?<!\^)(?<!\^\{{)(?<!\^-)(?<!\^\{{-)(?<!10\^\d)(?<!10\^\{{\d)(?<!10\^-\d)(?<!10\^\{{-\d)    # nor of 10 alone
    (?:(?<![\w.)\]%°-])(?P<sign>-)(?:\\?[$€£¥₹][ ]?)?)?
    (?:{_AMOUNT})
    (?:[eE](?P<power>[+-]?\d{{1,3}})(?!\w)
        | \s?(?:×|\\times|\\cdot|x|\*)\s?10\^\{{?(?P<ten>-?\d{{1,3}})(?!\d)\}}?)?
    """,
    re.VERBOSE,
)
_EXACT = Context(prec=28)


def final_number(text: str) -> Decimal | None:
    """The number after the last "####", else the last number of a text; None where there is none.

    Thousands may be set apart by commas, spaces of fixed width, apostrophes, underscores or LaTeX's signs; a minus may
    be any of Unicode's. It counts at the beginning of a number (−$5), not behind a letter or a digit (A-12, 2010-2015).
    A comma before one or two digits, or four and more, is a decimal one (12,5). Fractions (3/4, 1 1/2, ½) and powers of
    ten (1e3, 2 × 10^3) are numbers. A unit changes nothing: 50% is 50, and (12) is 12. Nothing is calculated.

    Example:
        >>> from sea_lens.evaluation.numbers import final_number
        >>> final_number("so it costs $9{,}500."), final_number("it fell to −5 degrees"), final_number("none")
        (Decimal('9500'), Decimal('-5'), None)
    """
    marked = text.rsplit("####", 1)
    found = _numbers(marked[1])[:1] if len(marked) == 2 else []
    places = found or _numbers(text)[-1:]
    return _value(places[0]) if places else None


def _numbers(text: str) -> list[re.Match[str]]:
    plain = _VULGAR.sub(_fraction, text).translate(_SIGNS)
    plain = _SUPERSCRIPT.sub(lambda match: f"^{match.group().translate(_RAISED)}", plain)
    plain = _EXPONENT.sub("^ ", plain)
    for pattern, replacement in _LATEX:
        plain = pattern.sub(replacement, plain)
    for pattern in (_GROUPED, _SPACED):
        plain = pattern.sub(lambda match: re.sub(r"\D", "", match.group()), plain)
    return list(_NUMBER.finditer(plain))


def _fraction(match: re.Match[str]) -> str:
    """½ as 1/2, and 2½ as the mixed number 2 1/2."""
    before, sign = match.groups()
    return (f"{before} " if before else "") + unicodedata.normalize("NFKC", sign).replace("\u2044", "/")


def _value(match: re.Match[str]) -> Decimal:
    if match["whole"] is not None:
        value = _EXACT.divide(Decimal(match["top"]), Decimal(match["bottom"])) + Decimal(match["mixed"] or 0)
    elif match["european"] is not None:
        value = Decimal(match["european"].replace(".", "").replace(",", "."))
    else:
        value = Decimal((match["us"] or match["plain"]).replace(",", ""))
    power = match["power"] or match["ten"]
    value = value.scaleb(int(power), Context(prec=max(28, len(value.as_tuple().digits)))) if power else value
    return value.copy_negate() if match["sign"] else value
