"""What a run is expected to spend, estimated before anything is spent."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import dspy

from dspy_dlpo.core.records import Spending
from dspy_dlpo.core.settings import Settings
from dspy_dlpo.core.tokens import count_tokens
from dspy_dlpo.descent.critic import Critique
from dspy_dlpo.descent.sources.proposer_edits import ProposeEdits
from dspy_dlpo.descent.wording import numbered
from dspy_dlpo.runtime.budget import Budget, Limits, amounts
from dspy_dlpo.runtime.data import Data
from dspy_dlpo.runtime.prices import dollars
from dspy_dlpo.runtime.program import Student

_SAMPLE = 16
_FIELD_TOKENS = 100
_MARKER_TOKENS = 8
_FEEDBACK_TOKENS = 50
_GROWTH_TOKENS = 60
_CRITIC_TOKENS = 60
_PROPOSER_TOKENS = 160
_POINT_TOKENS = 20
_FAILING = 0.5
_BEYOND_FIRST_LOOK = 0.25
_ACCEPTED = 0.25
_VALIDATED = 0.5
_SECONDS_PER_LM_CALL = 1.0


@dataclass(frozen=True, repr=False)
class Estimate:
    """What a run is expected to spend if it goes on to its limits.

    Attributes:
        expected: The spending; its `cost`, in dollars, is None if a model has no known price.
        num_steps: The steps in it.
        limits: What the run cannot exceed.
        assumptions: What was assumed, in sentences.
    """

    expected: Spending
    num_steps: int
    limits: Limits
    assumptions: tuple[str, ...]

    def __repr__(self) -> str:
        return f"Estimate({self.expected!r} in {self.num_steps} steps; print it to read it)"

    def __str__(self) -> str:
        """A table of what is expected and the limits, and the assumptions."""
        return "\n".join([self._table(), *(f"* {assumption}" for assumption in self.assumptions)])

    def against(self, spent: Spending) -> str:
        """Put what a run has spent beside what was expected and the limits.

        Args:
            spent: What it has spent: `program.detailed_results.spent`.

        Returns:
            A table as text: metric calls, LM calls, tokens and dollars.
        """
        return self._table(spent)

    def _table(self, spent: Spending | None = None) -> str:
        columns = {"expected": self.expected, "spent": spent}
        lines = [["", "limit", *(name for name, column in columns.items() if column is not None)]]
        for name, said in (("metric_calls", "metric calls"), ("lm_calls", "LM calls"), ("tokens", "tokens")):
            limit = self.limits.given.get(f"max_{name}")
            values = [limit, *(getattr(column, name) for column in columns.values() if column is not None)]
            lines.append([said, *("none" if value is None else f"{value:,}" for value in values)])
        limit = self.limits.max_cost
        costs = ["none" if limit is None else dollars(limit)]
        costs += [dollars(column.cost) for column in columns.values() if column is not None]
        lines.append(["dollars", *("unknown" if cost.endswith("unknown") else cost for cost in costs)])
        return "\n".join(f"{first:13}" + "".join(f"{cell:>14}" for cell in rest) for first, *rest in lines)


def estimate_run(
    student: Student,
    data: Data,
    settings: Settings,
    budget: Budget,
    prompt_model: dspy.BaseLM,
    critic_model: dspy.BaseLM,
    chunk_size: int,
) -> Estimate:
    """Estimate the spending of a run: the size of a step times the number of steps that the limits allow.

    Prompts are formatted with DSPy's adapter for some of the examples and their tokens counted; no language model is
    called. What cannot be known before is assumed; `Estimate.assumptions` lists it.
    """
    step, fixed = _metric_calls(settings)
    pairs = [(each, each.lm or dspy.settings.lm) for each in student.all_predictors]
    unknown = budget.prices.look_up(lm.model for lm in (*student.models, prompt_model, critic_model))
    sample = [data[name] for name in _spread((*data.trainset, *data.valset))]
    writer = _Writer(budget)
    rollout = sum(
        (writer.mean(lm, [_call(predictor, example) for example in sample]) for predictor, lm in pairs),
        Spending(metric_calls=1),
    )
    failing = _FAILING * settings.batch_size
    chunk_size = min(chunk_size, math.ceil(failing))
    critic, proposer = Spending(), Spending()
    for text in student.start.instructions.values():
        critic += writer.mean(critic_model, [_critique(text, [each] * chunk_size) for each in sample])
        proposer += writer.mean(prompt_model, [_proposal(text, settings.batch_size)])

    start = _times(rollout, fixed)
    each = _times(rollout, step) + _times(critic, failing / chunk_size) + proposer
    room = [math.inf if settings.num_steps is None else float(settings.num_steps)]
    first, further = (amounts(spent, spent.seconds / budget.num_threads) for spent in (start, each))
    room += [(limit - first[name]) / further[name] for name, limit in budget.limits.given.items() if further[name]]
    num_steps = max(min(room), 0.0)
    assumptions = [
        f"The run goes on for {num_steps:.0f} steps; it ends sooner if the program becomes perfect and concise"
        + (f" or the best stays the same for {settings.patience} steps." if settings.patience else "."),
        f"A run of the program calls each predictor once, {len(pairs)} in all; the metric calls no language model.",
        f"A step makes {step:.0f} metric calls: half of the incumbent's are paid already; after its first look "
        f"a comparison needs {_BEYOND_FIRST_LOOK:.0%} of the other examples; {_ACCEPTED:.0%} of the steps are accepted "
        "and compared on the valset.",
        f"{_FAILING:.0%} of a minibatch fails and is criticised, {chunk_size} in one call.",
        f"Prompts are as long as those of {len(sample)} examples and grow by {_GROWTH_TOKENS} tokens. A field that the "
        f"examples do not show has {_FIELD_TOKENS} tokens; a reply has no hidden reasoning.",
        f"A critic's reply has {_CRITIC_TOKENS} tokens for each failure, a proposer's {_PROPOSER_TOKENS}. "
        "Nothing comes from a cache.",
    ]
    if "max_seconds" in budget.limits.given:
        assumptions.append(f"An LM call takes {_SECONDS_PER_LM_CALL:g} second; {budget.num_threads} run at once.")
    if unknown:
        assumptions.append(f"The price of {', '.join(unknown)} is unknown: give it with `prices`.")
    return Estimate(start + _times(each, num_steps), round(num_steps), budget.limits, tuple(assumptions))


def _metric_calls(settings: Settings) -> tuple[float, float]:
    """Return how many metric calls a step makes, and how many the beginning and the end of a run."""
    batch, val = settings.batch_size, len(settings.valset)
    fresh = max(len(settings.trainset) - batch, batch)
    trial = min(fresh, settings.max_trial_examples or fresh)
    comparison = 2 * max(trial - batch, 0) * _BEYOND_FIRST_LOOK
    # Half of the minibatch and half of the incumbent's side of the first look are paid already.
    tried = (1 + settings.num_candidates) / 2  # The next one only if the one before is not ahead.
    step = batch * (1 + tried) + comparison + min(val, trial) * _ACCEPTED
    return settings.num_repeats * step, settings.num_repeats * val * (2 + _VALIDATED)


def usual_metric_calls(settings: Settings) -> int:
    """Return as many metric calls as the steps of `settings` usually need, with something to spare."""
    size, val = len(settings.trainset), len(settings.valset)
    trial = min(size, settings.max_trial_examples or size)
    step = settings.batch_size * (1 + settings.num_candidates) + trial + min(val, trial)
    return settings.num_repeats * (3 * val + (settings.num_steps or 1) * step)


def check_metric_calls(limits: Limits, settings: Settings) -> None:
    """Raise if the metric calls do not suffice for one step and the choice of the result.

    Raises:
        ValueError: Says how many would.
    """
    val, step = len(settings.valset), settings.batch_size + (1 + settings.num_candidates) * settings.first_look
    step *= settings.num_repeats
    limit, least = limits.max_metric_calls, 2 * val * settings.num_repeats + step
    if limit is not None and limit < least:
        raise ValueError(
            f"`max_metric_calls` must be at least {least} here, but got max_metric_calls={limit}: the student "
            f"and the result are both scored on {val} validation examples, and a step needs {step}. Raise it, or give "
            "a smaller `valset` or `batch_size`."
        )


def _spread(names: Sequence[str]) -> Sequence[str]:
    return names[:: math.ceil(len(names) / _SAMPLE)]


class _Writer:
    """Turns prompts, and the tokens of the replies to them, into spending."""

    def __init__(self, budget: Budget) -> None:
        self._prices = budget.prices
        self._adapter = dspy.settings.adapter or dspy.ChatAdapter()

    def mean(self, lm: dspy.BaseLM, calls: Sequence[_Call]) -> Spending:
        """Return what one call costs on average over some."""
        sent = fmean(self._tokens(call) for call in calls)
        most = lm.kwargs.get("max_tokens") or math.inf
        received = fmean(min(call.reply, most) for call in calls)
        price = self._prices.of(lm.model)
        cost = None if price is None else (price[0] * sent + price[1] * received) / 1e6
        return Spending(0, 1, round(sent), round(received), _SECONDS_PER_LM_CALL, cost)

    def _tokens(self, call: _Call) -> int:
        messages = self._adapter.format(call.signature, call.demos, dict(call.inputs))
        return call.more + sum(count_tokens(str(message["content"])) for message in messages)


@dataclass(frozen=True)
class _Call:
    """A call as far as it is known: `more` tokens join the prompt, and the reply has `reply` tokens."""

    signature: type[dspy.Signature]
    demos: list[dspy.Example]
    inputs: Mapping[str, object]
    more: int
    reply: int


def _call(predictor: dspy.Predict, example: dspy.Example) -> _Call:
    signature = predictor.signature
    inputs = {name: value for name, value in example.inputs().items() if name in signature.input_fields}
    labels = example.labels()
    more = _GROWTH_TOKENS + _FIELD_TOKENS * (len(signature.input_fields) - len(inputs))
    fields = [count_tokens(str(labels[name])) if name in labels else _FIELD_TOKENS for name in signature.output_fields]
    return _Call(signature, predictor.demos, inputs, more, sum(fields) + _MARKER_TOKENS * (len(fields) + 1))


def _critique(instruction: str, examples: Sequence[dspy.Example]) -> _Call:
    calls = "\n".join(str(example.toDict()) for example in examples)
    complaints = "\n".join(str(example.labels().toDict()) for example in examples)
    inputs = {"instruction": instruction, "call": calls, "complaint": complaints}
    more = _GROWTH_TOKENS + _FEEDBACK_TOKENS * len(examples)
    return _Call(Critique, [], inputs, more, _CRITIC_TOKENS * len(examples))


def _proposal(instruction: str, num_points: int) -> _Call:
    inputs = {"instruction": numbered([instruction]), "criticism": "", "limits": ""}
    return _Call(ProposeEdits, [], inputs, _GROWTH_TOKENS + _POINT_TOKENS * num_points, _PROPOSER_TOKENS)


def _times(spent: Spending, number: float) -> Spending:
    return Spending(
        round(spent.metric_calls * number),
        round(spent.lm_calls * number),
        round(spent.input_tokens * number),
        round(spent.output_tokens * number),
        spent.seconds * number,
        None if spent.cost is None else spent.cost * number,
    )
