"""Candidates that add what the metric says of most failing examples in the same words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from dspy_dlpo.core.edits import Edit
from dspy_dlpo.core.likeness import WORD, normalised, shares_run
from dspy_dlpo.core.records import Rollout, TextualGradient
from dspy_dlpo.core.sentences import split
from dspy_dlpo.core.steps import StepRecord
from dspy_dlpo.descent.requests import Requests
from dspy_dlpo.descent.sources.base import Change, Proposal, Source, combined
from dspy_dlpo.descent.step import Step
from dspy_dlpo.descent.walk import Walk
from dspy_dlpo.descent.wording import call_text, has_marks

_LEAST_EXAMPLES = 3
_QUOTE = 4 * WORD
_LEAST_SHARE = 0.75
_REASON = "the metric says so of {} of {} failing examples"


class SharedFeedback(Source):
    """Adds sentences of the metric's feedback that most failing examples of the step share word for word.

    What a metric says of one example is about that example. What it says of three in four, three at least, in the same
    words is often a rule that the instruction lacks, such as "The answer must be a single number.", and no model can
    lose it on the way. It asks no model, so it costs nothing but the trial. Feedback is not written as an instruction:
    a candidate runs beside those of the models, must be better on the trial, and better than theirs; once one was not,
    the metric's words are left to the critic.

    Four words in a row of a call are a quote, and anybody may have written them: such a sentence is left out, and so is
    a complaint with marks that a prompt is made of.

    Args:
        requests: Writes requests.
        complaints: What the metric says of a rollout, by the predictors that it is about.
    """

    beside = True

    def __init__(self, requests: Requests, complaints: Callable[[Rollout], Mapping[str, Sequence[str]]]) -> None:
        self._requests = requests
        self._complaints = complaints

    def propose(self, step: Step, walk: Walk, so_far: Sequence[Proposal]) -> Iterable[Proposal]:
        """Propose the sentences for the predictors that move, or for all if none does."""
        if self._failed(walk.history):
            return []
        changes = []
        for name in step.requests or step.incumbent.instructions:
            request = step.requests.get(name) or self._requests(step, TextualGradient(name, ()), walk)
            said = [each for rollout in step.failures if (each := self._said(rollout, name))]
            edits = [
                Edit("add", len(request.sentences) - 1, text, _REASON.format(number, len(said)), must_help=True)
                for text, number in shared(said)
            ]
            changes.append(Change(request, tuple(edits)))
        return combined(changes)

    def _said(self, rollout: Rollout, predictor: str) -> dict[str, str]:
        """Return the sentences that the metric says of a predictor in a rollout, by their normalised form."""
        complaints = [text for text in self._complaints(rollout).get(predictor, ()) if not has_marks(text)]
        sentences = [each.strip() for text in complaints for each in split(text)]
        calls = "\n".join(map(call_text, rollout.calls))
        return {normalised(each): each for each in sentences if not shares_run(each, calls, _QUOTE)}

    def _failed(self, history: Sequence[StepRecord]) -> bool:
        """Whether a candidate of this source ran and was not accepted."""
        for record in history:
            moved_to = record.trial.candidate if record.trial and record.accepted else ""
            ran = record.candidates[: len(record.race)]
            if any(each.source == self.name and each.id != moved_to for each in ran):
                return True
        return False


def shared(said: Sequence[Mapping[str, str]]) -> list[tuple[str, int]]:
    """Return the values of the keys that most of the mappings have, each as it was first, with the number of those.

    >>> shared([{"write digits": "Write digits."}, {"write digits": "Write digits."}, {"too long": "Too long."}] * 2)
    []
    >>> shared([{"write digits": "Write digits."}] * 3 + [{"too long": "Too long."}])
    [('Write digits.', 3)]
    """
    first = {key: text for each in reversed(said) for key, text in each.items()}
    counts = Counter(key for each in said for key in each)
    least = max(_LEAST_EXAMPLES, _LEAST_SHARE * len(said))
    return [(first[key], number) for key, number in counts.items() if number >= least]
