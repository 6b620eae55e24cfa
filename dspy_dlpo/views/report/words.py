"""Numbers and outcomes in words, for the report."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dspy_dlpo.descent.outcome import RunResult
from dspy_dlpo.descent.statistics import Gain
from dspy_dlpo.runtime.data import place
from dspy_dlpo.views.explain import is_repeated
from dspy_dlpo.views.words import duration, mishaps, plural

NONE = "–"


@dataclass(frozen=True)
class Headline:
    """What came of a run.

    Attributes:
        verdict: One sentence.
        tone: `sure`, `unsure`, or `nothing` where there is no gain to be sure of.
        cautions: What a reader should know before believing it.
    """

    verdict: str
    tone: str
    cautions: tuple[str, ...]


def headline(result: RunResult) -> Headline:
    """Say what came of a run, and how far to believe it."""
    gain = result.gain
    tone, cautions = "nothing", []
    if not gain.num_examples:
        verdict = "The gain was not measured, since the run did not come to its end. This is how far it came."
    elif not result.best_idx:
        verdict = "No candidate was better on the validation examples, so the program was left as it was."
    elif gain.is_sure:
        tone = "sure"
        verdict = f"A real gain: on examples of this kind it is {_between(gain)}, with {_percent(gain)} confidence."
    else:
        tone = "unsure"
        verdict = f"Not sure: the gain may be chance. With {_percent(gain)} confidence it is {_between(gain)}."
        cautions.append("More examples would tell: a larger valset, or a testset for result.evaluate.")
    if result.run.held_out == "the trainset itself":
        cautions.append(
            "No valset could be held out. The choice was made on examples that the instructions were made from, so the "
            "gain looks too good."
        )
    cautions += [f"{said}." for said in mishaps(result)]
    return Headline(verdict, tone, tuple(cautions))


def _between(gain: Gain) -> str:
    return f"between {signed(gain.low)} and {signed(gain.high)}"


def _percent(gain: Gain) -> str:
    return f"{100 * gain.confidence:g} %"


def score(value: float | None) -> str:
    """Return a score with three decimals, a dash if it is not known."""
    return NONE if value is None or math.isnan(value) else f"{value:.3f}".replace("-", "−")


def signed(value: float | None) -> str:
    """Return a difference of scores with its sign, a dash if it is not known."""
    return NONE if value is None else f"{value:+.3f}".replace("-", "−")


def count(number: int | None) -> str:
    """Return a number of things, a dash if it is not known."""
    return NONE if number is None else f"{number:,}"


def plain(value: Any) -> str:
    """Return a setting or a number behind a decision: strings as they are, floats with three digits, else JSON.

    >>> plain(0.034999), plain("metric"), plain([0.0, 1.0])
    ('0.035', 'metric', '[0.0, 1.0]')
    """
    if value is None:
        return NONE
    if isinstance(value, float):
        return f"{value:.3g}".replace("-", "−")
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def shorten(text: str, limit: int = 600) -> str:
    """Return a text, or its beginning and how much is left out.

    >>> shorten("a" * 9, 4)
    'aaaa … (5 more characters)'
    """
    return text if len(text) <= limit else f"{text[:limit]} … ({len(text) - limit:,} more characters)"


def example(name: str) -> str:
    """Return the name of an example as people say it.

    >>> example("train:27")
    'train 27'
    """
    return name.replace(":", " ", 1)


FILTERS: dict[str, Callable[..., Any]] = {
    each.__name__: each
    for each in (score, signed, count, plain, plural, duration, shorten, example, place, is_repeated)
}
