"""Readers of final answers: from what a model wrote to a value, or to None if it is not in the form of its task.

A reader takes one final answer, and it takes it as a whole: an answer that offers two values, hedges, or hides a value
in a sentence that says more, is not read. That is stricter than the usual scripts, some of which accept any of the last
numbers of a text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from decimal import Decimal
from itertools import pairwise

Reader = Callable[[str, str], object | None]
"""`(answer, question) -> value`, or None if the answer has another form."""

_MARKER = re.compile(r"####|\banswer\b[^.:=\d\n]{0,80}?(?:\bis\b|[:=])\s*:?", re.IGNORECASE)
UNTEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
"""LaTeX's commands for plain text; group 1 is the text."""
_WRAPPING = " \t\r\n*_`\"'“”‘’«»$"
_CURRENCY = "$€£¥₹"
_SPACES = "\u00a0\u2009\u202f'’"
# Words and signs beside a number that make it another number, or none at all.
_CHANGES = re.compile(
    r"(?i:\b(?:not|never|or|nor|about|around|approx\w*|roughly|nearly|almost|between|than|at least|at most|up to|plus|"
    r"maybe|perhaps|possibly|circa|ca|close to|twice|double|triple|minus|squared|cubed|sqrt|tenths?|hundredths?|"
    r"(?:over|under|above|below)(?=\s*[$€£]?\d)|(?:third|fifth|tenth) of|"
    r"hundreds?|thousands?|[mbtr]+illions?|bn|dozens?|lakhs?|crores?|hal(?:f|ves)|and (?:a|one))\b|n['’]t\b)|"
    r"[≈~±≠<>≤≥!√∛]|\d\s?[kKMB]\b|\d(?:st|nd|rd|th)\b|\d\s?[?+](?!\s*[\d(]|[$€£])"
)
# The same in the other languages of MGSM: not, about, or; thousand and more; and a half.
_WORLD_CHANGES = re.compile(
    r"\b(?:nicht|kein|oder|etwa|ungefähr|rund|tausend|milli(?:on|arde)(?:en)?|und ein|no es|unos|cerca de|"
    r"aproximadamente|mil|mill(?:ón|ones)|y medi[oa]|pas|ou|environ|mille|milliers?|et demie?|не|или|около|примерно|"
    r"sio|au(?=\s*-?\d)|karibu|elfu|laki|milioni|na nusu)\b|тысяч|миллион|с половиной|\d\s*[万亿億千百十萬兆]|[约約半]|"
    r"不是|ではな|"
    r"প্রায়|হাজার|লাখ|కాదు|దాదాపు|వేల|హజార్|లక్ష|ประมาณ|ไม่ใช่|พัน|หมื่น|แสน|ล้าน|ครึ่ง|हज़ार|लाख",
    re.IGNORECASE,
)
_MINUS = re.compile(
    r"^–\s?(?=[\d$€£])|–(?=[\d$€£])|(?:\b(?:minus|negative|menos|moins|минус|hasi)\s+|[负負]|マイナス|ลบ|মাইনাস|మైనస్)\s*(?=[\d$€£])",
    re.IGNORECASE,
)
_ARITHMETIC = re.compile(rf"[\d\s.,+\-*×x·÷/()%={_CURRENCY}]*")


def boxed(text: str) -> list[str]:
    r"""Return what stands in each `\boxed{...}` of a text, braces inside it included."""
    found = []
    for start in re.finditer(r"\\f?boxed\s*\{", text):
        depth = 1
        for end in range(start.end(), len(text)):
            depth += {"{": 1, "}": -1}.get(text[end], 0) if text[end - 1] != "\\" else 0
            if not depth:
                found.append(text[start.end() : end])
                break
    return found


def marked(text: str) -> str:
    r"""Return what is in the box, else what follows the last "answer is", else the whole text.

    Two boxes that differ are no final answer, and give an empty text.
    """
    if boxes := set(boxed(text)):
        return boxes.pop() if len(boxes) == 1 else ""
    ends = [marker.end() for marker in _MARKER.finditer(text)]
    return text[ends[-1] :] if ends else text


def final(text: str) -> str:
    r"""Return the marked answer without quotes, Markdown and `\text{}` around it.

    >>> final("So 9 eggs are left. The answer is **18**")
    '18'
    """
    return UNTEXT.sub(r"\1", marked(text)).strip(_WRAPPING)


def _number_pattern(separators: str, points: str, whole: str) -> re.Pattern[str]:
    grouped = rf"\d{{1,3}}(?P<sep>[{separators}])\d{{3}}(?:(?P=sep)\d{{3}})*"
    return re.compile(rf"(?P<whole>{grouped}|{whole}|(?=\.\d))(?:(?!(?P=sep))[{points}](?P<part>\d+))?")


_ENGLISH = f",{_SPACES}", _number_pattern(f",{_SPACES}", ".", r"\d+")
_WORLD = f",. {_SPACES}", _number_pattern(f",. {_SPACES}", ".,", r"\d{1,2}(?:,\d{2})+,\d{3}|\d+")


def number(answer: str, question: str = "") -> Decimal | None:
    """Read the one number of an answer: digits, as in "1,234", "-$18.50", "18 apples" or "9 * 2 = 18".

    An approximation ("about 18"), a choice ("18 or 19"), a multiple ("18 thousand"), a fraction, a calculation without
    its result and a number in words are not read.

    >>> number("She pays $1,234.50.")
    Decimal('1234.50')
    """
    return _number(answer, *_ENGLISH)


def world_number(answer: str, question: str = "") -> Decimal | None:
    """Read a number as any language of MGSM writes it: other digits, thousands by point, comma, space or lakh.

    All answers of MGSM are integers. So a point or comma before exactly three digits is read as a thousands separator.

    >>> world_number("১,২৩,৪৫৬"), world_number("1.234 Euro"), world_number("18,50")
    (Decimal('123456'), Decimal('1234'), Decimal('18.50'))
    """
    return _number(answer, *_WORLD)


def _number(answer: str, separators: str, pattern: re.Pattern[str]) -> Decimal | None:
    text = final(answer)
    if any(unicodedata.category(sign) == "No" and not before.isalpha() for before, sign in pairwise(f" {text}")):
        return None  # "5²" and "18½" are no 5 and no 18; "18 m²" is 18.
    text = "".join(str(unicodedata.decimal(sign)) if sign.isdecimal() else sign for sign in text)
    text = re.sub(r"\\[!,]|\{(?=,\})|(?<=,)\}", "", text).replace("\\", "").replace("−", "-").replace("，", ",")
    text = _MINUS.sub("-", text)
    text = re.sub(r"\b([kcm]?m|ft|in)\^?[23]\b", r"\1", text)
    if _CHANGES.search(text) or (separators != _ENGLISH[0] and _WORLD_CHANGES.search(text)):
        return None
    left, equals, right = text.rpartition("=")
    if equals and (not re.search(r"\d", left) or _ARITHMETIC.fullmatch(left)):
        text = right
    runs = list(re.finditer(rf"(?:(?<![\w.,])\.)?\d(?:[\d.,{re.escape(separators)}]*\d)?", text))
    found = pattern.fullmatch(runs[0].group()) if len(runs) == 1 else None
    if not found:
        return None
    negative = re.search(rf"(?<![\w)])-\s?(?:[{_CURRENCY}]\s?-?)?$|[{_CURRENCY}]-$", text[: runs[0].start()])
    whole = re.sub(r"\D", "", found["whole"]) or "0"
    return Decimal(f"{'-' if negative else ''}{whole}.{found['part'] or ''}")


def option(answer: str, question: str) -> str | None:
    r"""Read the letter of one of the question's options: "(A)", "A", or a letter with the text of that very option.

    >>> option("(b) a cat", "Which?\nOptions:\n(A) a dog\n(B) a cat")
    'B'
    """
    form = r"(?:(?:option|choice)\s+)?(?:\(([a-z])\)|\[([a-z])\]|([a-z]))[.):,]?(?!\w)\s*[:-]?\s*(.*)"
    found = re.fullmatch(form, final(answer), re.IGNORECASE | re.DOTALL)
    if not found:
        return None
    letter, text = (found[1] or found[2] or found[3]).upper(), found[4]
    options = dict(re.findall(r"^\(([A-Z])\)\s*(.*)$", question, re.MULTILINE))
    fits = letter in options and _bare(text) in ("", _bare(options[letter]))
    return letter if fits else None


def _bare(text: str) -> str:
    return " ".join(text.split()).strip(f"{_WRAPPING}.:()").casefold()


def one_of(*words: str) -> Reader:
    """Return a reader of one of some words, alone, in any case."""
    known = {word.casefold(): word for word in words}
    return lambda answer, question: known.get(_bare(final(answer)).rstrip("!"))


def word_list(answer: str, question: str) -> tuple[str, ...] | None:
    r"""Read words in their order, separated by spaces, commas or lines, numbered or not.

    >>> word_list("1. ant\n2. bee", "")
    ('ant', 'bee')
    """
    text = re.sub(r"^[^:\n]*\b(?:sorted|order|list|words)\b[^:\n]*:", "", final(answer), flags=re.IGNORECASE)
    text = re.sub(r"^\s*(?:\d+[.)]|[-*•])\s+", "", text, flags=re.MULTILINE)
    if "," in text:
        text = re.sub(r",?\s+and\s+(?=\S+$)", ", ", text)
    words = [word.strip(f"{_WRAPPING}[]().").casefold() for word in re.split(r"[\s,;]+", text)]
    words = [word for word in words if word]
    return (
        tuple(words) if words and all(re.fullmatch(r"[^\W\d_]+(?:['’.-][^\W\d_]+)*", word) for word in words) else None
    )


def brackets(answer: str, question: str) -> str | None:
    """Read a sequence of brackets, with or without spaces, commas and quotes between them.

    >>> brackets("] ) }", "")
    '])}'
    """
    text = re.sub(r"[\s,`\"'“”.]", "", final(answer))
    return text if text and not text.strip("()[]{}<>") else None


def latex(answer: str, question: str) -> str | None:
    r"""Read the mathematical expression of an answer: the box, else the one formula between `$`, else the whole text.

    Not read: boxes or formulas that differ, a sentence, and an approximation.

    >>> print(latex("Thus the sum is $\\boxed{\\frac{1}{2}}$.", ""))
    \frac{1}{2}
    """
    text, vague = marked(answer), r"\\approx|\\sim\b|≈|^~|\b(?:approx\w*|about|not)\b"
    if not boxed(answer):
        formulas = re.findall(r"(?<!\\)\$\$?((?:[^$\\]|\\.)+)\$\$?|\\\((.+?)\\\)|\\\[(.+?)\\\]", text)
        if len({"".join(formula) for formula in formulas}) > 1 or re.search(vague, text):
            return None
        text = "".join(formulas[0]) if formulas else text
        if len(re.findall(r"(?<![\\\w])[^\W\d_]{2,}", UNTEXT.sub("", text))) > 2:
            return None
    text = re.sub(r"\\?\$", "", text).strip(_WRAPPING).removesuffix(".")
    return None if not text or re.search(vague, text) else text
