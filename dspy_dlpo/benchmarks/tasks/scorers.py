"""Strict scorers: 1 for the right final answer in the right form, else 0, and words that say what is wrong."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import dspy

from dspy_dlpo.benchmarks.extras import extra
from dspy_dlpo.benchmarks.tasks.answers import (
    UNTEXT,
    Reader,
    brackets,
    latex,
    number,
    one_of,
    option,
    word_list,
    world_number,
)
from dspy_dlpo.benchmarks.tasks.equivalence import Equivalence

_MAX_CHARS = 200
_EQUIVALENCE = Equivalence()


def _equal(gold: Any, given: Any) -> str:
    return "" if gold == given else "The form is right, the value is not."


@dataclass(frozen=True)
class Scorer:
    """A DSPy metric for examples with a `question` and an `answer`.

    Attributes:
        form: What an answer must look like; completes "The answer must be ...".
        read: Gives the value of an answer, or None if its form is wrong.
        compare: `(gold, given) -> complaint` about values; empty if they are the same.
    """

    form: str
    read: Reader
    compare: Callable[[Any, Any], str] = _equal

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> dspy.Prediction:
        """Score a prediction by its `answer`.

        Raises:
            ValueError: If the example's own answer has not the form.
        """
        gold = self.read(example.answer, example.question)
        if gold is None:
            raise ValueError(f"`answer` of an example must be {self.form}, but got {example.answer!r}.")
        text = str(prediction.get("answer") or "")
        given = self.read(text, example.question)
        complaint = f"The answer must be {self.form}." if given is None else self.compare(gold, given)
        return verdict(text, complaint, example.answer)


def verdict(given: str, complaint: str, gold: str | None) -> dspy.Prediction:
    """Return the score and feedback for an answer: right if there is no complaint."""
    if not complaint:
        return dspy.Prediction(score=1.0, feedback="The answer is right.")
    shown = repr(given if len(given) <= _MAX_CHARS else f"{given[:_MAX_CHARS]}...") if given.strip() else "empty"
    right = "" if gold is None else f" The right answer is {gold!r}."
    return dspy.Prediction(score=0.0, feedback=f"The answer was {shown}. {complaint}{right}")


def _compare_words(gold: tuple[str, ...], given: tuple[str, ...]) -> str:
    missing, surplus = Counter(gold) - Counter(given), Counter(given) - Counter(gold)
    if missing or surplus:
        lists = [
            f"{what}: {', '.join(words)}" for what, words in (("missing", missing), ("too many", surplus)) if words
        ]
        return f"The words are not those of the question; {'; '.join(lists)}."
    wrong = next((pair for pair in zip(gold, given, strict=True) if pair[0] != pair[1]), None)
    return f"The order is wrong: {wrong[0]!r} must come where {wrong[1]!r} stands." if wrong else ""


def _compare_brackets(gold: str, given: str) -> str:
    if given != gold and given.endswith(gold):
        return "Only the missing brackets are asked for, not what stands in the question."
    return _equal(gold, given)


def _compare_latex(gold: str, given: str) -> str:
    """Compare two expressions; what math-verify passes over (brackets, bases, letters of words) is compared here."""
    if _bare(gold) == _bare(given):
        return ""
    wrong = "The form is right, the value is not."
    if UNTEXT.fullmatch(gold):
        words = [_bare(each).strip("()").casefold() for each in (gold, given)]
        return "" if words[0] == words[1] else wrong
    if _is_tuple(gold) != _is_tuple(given) and "," in gold and "," in given:
        return "Points and intervals have brackets, and lists of numbers have none."
    bases = [re.findall(r"_\{?(\d+)\}?$", each) for each in (gold, given)]
    if all(bases) and bases[0] != bases[1]:
        return "The base is wrong."
    extra("math_verify")
    same = _EQUIVALENCE(gold, given)
    if same is None:
        return "It could not be read as mathematics, or takes too long to compute."
    return "" if same else wrong


def _bare(text: str) -> str:
    """Return an expression without what does not change it."""
    text = UNTEXT.sub(r"\1", text).replace("\\dfrac", "\\frac")
    return re.sub(r"\\(?:left|right)(?!\w)|\\[!,;: ]|\s", "", text)


def _is_tuple(text: str) -> bool:
    text = re.sub(r"\\(?:left|right)|^\s*\w\s*\\in", "", text).strip()
    return text[:1] in ("(", "[") and text[-1:] in (")", "]")


NUMBER = Scorer("a single number in digits, such as 42, with nothing else but its unit", number)
"""Exact integers and decimals."""
WORLD_NUMBER = Scorer(NUMBER.form, world_number)
"""Integers as the languages of MGSM write them."""
OPTION = Scorer("the letter of one option in brackets, such as (A)", option)
"""Multiple choice."""
YES_NO = Scorer("Yes or No, and nothing else", one_of("Yes", "No"))
TRUE_FALSE = Scorer("True or False, and nothing else", one_of("True", "False"))
VALID = Scorer("valid or invalid, and nothing else", one_of("valid", "invalid"))
WORDS = Scorer("all the words in their order, separated by spaces, and nothing else", word_list, _compare_words)
BRACKETS = Scorer("the missing brackets, separated by spaces, and nothing else", brackets, _compare_brackets)
LATEX = Scorer(r"one exact expression in \boxed{}, such as \boxed{\frac{1}{2}}", latex, _compare_latex)
"""Mathematical expressions, by equivalence."""


@dataclass(frozen=True)
class ReasoningGymScorer:
    """The checker of a reasoning-gym data set, for examples whose `dspy_id` is the index in it.

    A checker's points for half an answer do not count.

    Attributes:
        dataset: The data set.
    """

    dataset: Any

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> dspy.Prediction:
        """Score a prediction by its `answer`."""
        entry, given = self.dataset[int(example.dspy_id)], str(prediction.get("answer") or "").strip()
        try:
            right = self.dataset.score_answer(given, entry) == 1
        except Exception:  # noqa: BLE001 - Some checkers raise whatever comes up when they read a malformed answer.
            return verdict(given, "It has not the form that the question asks for.", entry["answer"])
        return verdict(given, "" if right else "The checker of the task refused it.", entry["answer"])
