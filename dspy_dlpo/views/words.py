"""The figures of a run as text, the same in every view: lines, panel, command line and report."""

from __future__ import annotations

import math
from collections.abc import Iterable

from dspy_dlpo.core.records import Spending
from dspy_dlpo.core.steps import RunInfo, StepRecord
from dspy_dlpo.descent.outcome import RunResult
from dspy_dlpo.runtime.data import place
from dspy_dlpo.runtime.prices import dollars

_TOLERANCE = 1e-6
"""A score this near to the top is a perfect one."""


def score_on(score: float, number: int, total: int) -> str:
    """Return a mean score, and on how many of the validation examples it is; 0 is for a number that is not known.

    >>> score_on(0.8125, 8, 15), score_on(0.9333, 15, 15), score_on(0.5, 0, 15), score_on(math.nan, 0, 15)
    ('0.812 (8 of 15)', '0.933 (all 15)', '0.500', 'not scored')
    """
    if math.isnan(score):
        return "not scored"
    if not number:
        return f"{score:.3f}"
    return f"{score:.3f} ({f'all {total}' if number == total else f'{number} of {total}'})"


def best_of(record: StepRecord, run: RunInfo) -> str:
    """Return the best score on the valset after a step, and on how many of its examples it is."""
    return score_on(record.best_score, record.best_examples, run.num_val)


def minibatch_of(record: StepRecord) -> str:
    """Return the incumbent's score on the minibatch of a step in words."""
    return f"incumbent {record.score:.3f} on {len(record.minibatch)}" if record.minibatch else "no minibatch"


def scores_of(result: RunResult) -> tuple[str, str]:
    """Return the scores of the student and of the chosen candidate, and on how many validation examples each is."""
    before, after = (
        score_on(result.val_aggregate_scores[index], result.num_val_examples[index], result.run.num_val)
        for index in (0, result.best_idx)
    )
    return before, after


def gain_of(result: RunResult) -> str:
    """Return the gain with its interval, or why there is none."""
    if not result.gain.num_examples:
        return "not measured"
    return str(result.gain) if result.best_idx else "0, no candidate was better than the student"


def outcome_of(record: StepRecord) -> str:
    """Return what came of a step, with the gain of its trial."""
    trial = record.trial
    if trial is None:
        return record.outcome.value
    if not trial.differences:
        return f"{record.outcome.value}, all examples were lost"
    return f"{record.outcome.value}, gain {trial.gain:+.3f} on {plural(len(trial.differences), 'example')}"


def mishaps(last: StepRecord | RunResult) -> list[str]:
    """Return what went wrong by the end of a step or of a run, with counts: nothing of it ends a run."""
    counts = [
        (last.errors, "rollout", "ended in an error of the program or metric"),
        (last.lost, "rollout", "lost to failing models or the time limit"),
        (last.unparsed, "critic or proposer call", "without a usable reply"),
        (last.spent.empty_replies, "reply", "that held nothing"),
        (last.spent.cut_off_replies, "reply", "cut off at the limit of length"),
    ]
    return [f"{plural(number, thing)} {said}" for number, thing, said in counts if number]


def failing_of(result: RunResult) -> str:
    """Return which validation examples still fall short of a perfect score, before and after; empty if none does."""
    if not result.val_subscores:
        return ""
    before, after = result.val_subscores[0], result.val_subscores[result.best_idx]
    top = result.score_range[1]
    lines = [
        f"  {place(name)}: {f'{before[name]:.3f}' if name in before else 'not scored'} -> {score:.3f}"
        for name, score in sorted(after.items(), key=lambda pair: pair[1])
        if score < top - _TOLERANCE
    ]
    if not lines:
        return ""
    return "\n".join([f"Still short of {top:g} ({len(lines)} of {len(after)} scored validation examples):", *lines])


def models_of(run: RunInfo) -> str:
    """Return the language models of a run; those of critic and proposer only where they are others."""
    program, proposer, critic = (run.models.get(role, "") for role in ("program", "proposer", "critic"))
    others = {"critic": critic, "proposer": proposer}
    if critic == proposer:
        others = {"critic and proposer": critic}
    return ", ".join([program, *(f"{role} {name}" for role, name in others.items() if name not in ("", program))])


def started(run: RunInfo) -> str:
    """Return when a run began, to the minute; empty if that is not known."""
    return run.sessions[0].started[:16].replace("T", " ") if run.sessions else ""


def took(run: RunInfo) -> str:
    """Return how long a run took by the clock, over all its sessions; empty if that is not known."""
    known = [session.seconds for session in run.sessions if session.seconds is not None]
    if not known:
        return ""
    return ("at least " if len(known) < len(run.sessions) else "") + duration(sum(known))


def resumed(run: RunInfo) -> str:
    """Return what a run that was resumed had done before its last session; empty if it had not."""
    if len(run.sessions) < 2:
        return ""
    last = run.sessions[-1]
    return f"resumed with {plural(last.steps, 'step')} done and {spending(last.paid)} paid"


def ending_of(result: RunResult) -> str:
    """Return why a run ended, or what broke it off."""
    error = result.run.sessions[-1].error if result.run.sessions else ""
    return f"{result.stopped}, broken off by {error}" if error and not result.has_ended else result.stopped


def spending(spent: Spending) -> str:
    """Return what was spent.

    >>> spending(Spending(1, 20, 3000, 400, cost=None))
    '1 metric call, 20 LM calls, 3,400 tokens, cost unknown'
    """
    counts = [plural(spent.metric_calls, "metric call"), plural(spent.lm_calls, "LM call")]
    return ", ".join([*counts, plural(spent.tokens, "token"), cost(spent.cost)])


def cost(amount: float | None) -> str:
    """Return dollars; `cost unknown` where a price is not known.

    >>> cost(0.5), cost(None)
    ('$0.50', 'cost unknown')
    """
    return "cost unknown" if amount is None else dollars(amount)


def plural(number: int, thing: str) -> str:
    """Return a number of things with their name.

    >>> plural(1, "example"), plural(2000, "example"), plural(2, "reply")
    ('1 example', '2,000 examples', '2 replies')
    """
    if number != 1:
        thing = f"{thing[:-1]}ies" if thing.endswith("ly") else f"{thing}s"
    return f"{number:,} {thing}"


def duration(seconds: float) -> str:
    """Return a time in words.

    >>> duration(0.084), duration(75), duration(600), duration(7260)
    ('0.084 s', '1 min 15 s', '10 min', '2 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"
    minutes, rest = divmod(round(seconds), 60)
    parts = [(minutes // 60, "h"), (minutes % 60, "min"), (rest, "s")]
    return " ".join(f"{number} {unit}" for number, unit in parts[: 2 if minutes >= 60 else 3] if number)


def listed(words: Iterable[str]) -> str:
    """Return words in a row, without the empty ones."""
    return "; ".join(word for word in words if word)
