"""Asking critic and proposer: in parallel, once more if the reply cannot be parsed, each reply kept in the ledger."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import dspy
from dspy.utils.exceptions import AdapterParseError

from dspy_dlpo.core.plain import well_formed
from dspy_dlpo.core.records import Spending
from dspy_dlpo.core.sentences import split
from dspy_dlpo.runtime.budget import Budget
from dspy_dlpo.runtime.faults import FATAL, GOES_ON, Outage, is_outside, retries_of, short, unbroken
from dspy_dlpo.runtime.ledger import Ledger
from dspy_dlpo.runtime.metering import metered
from dspy_dlpo.runtime.secrets import redacted, secrets_of
from dspy_dlpo.runtime.threads import run_in_threads

Fields = Mapping[str, str]
_Answer = tuple[dict[str, Any], Spending, Exception | None]
_OUTAGES = 3  # Rounds in a row in which nothing was reached.
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Question:
    """One request: a signature, its inputs, and a name that sets it apart from equal requests of other steps."""

    name: str
    signature: type[dspy.Signature]
    inputs: Fields

    @property
    def role(self) -> str:
        """Who is asked: critic or proposer."""
        return self.name.partition("/")[0]

    @property
    def key(self) -> str:
        """A hash of name, wording and inputs."""
        content = json.dumps([self.name, self.signature.instructions, dict(self.inputs)], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:24]


class Asks(Protocol):
    """What puts questions to a language model: `Asker`, or replies that are known beforehand.

    Attributes:
        unparsed: Questions that remained without a reply.
    """

    unparsed: int

    def __call__(self, questions: Sequence[Question]) -> Sequence[Fields | None]:
        """Return the output fields of each reply, None where there is none."""


class Asker:
    """Puts questions to one language model.

    A reply that cannot be parsed is asked for once more, at temperature 1; then it counts as no reply. One that the
    limit of length has cut off loses its last line, or its last sentence, which is half a thought.

    A failed call (a dropped connection, one that hangs, one that is refused for its content or its length) counts as no
    reply; a resumed run asks again, unless later steps built on the failure. The step goes on with what else it has.
    What no retry can mend, such as a wrong key, is raised.

    Args:
        lm: The language model. A copy of it is asked, so that its history stays as it is.
        ledger: Where every reply is kept before it is used.
        budget: What is charged for it.
        num_threads: Requests in flight at once.
        module: Answers in place of `dspy.Predict(signature)`: a callable that takes the signature's inputs and returns
            something that has its outputs.
        timeout: Seconds after which a question is abandoned; None for never.

    Attributes:
        unparsed: Questions that remained without a reply.
    """

    def __init__(
        self,
        lm: dspy.BaseLM,
        ledger: Ledger,
        budget: Budget,
        num_threads: int,
        module: Callable[..., Any] | None = None,
        timeout: float | None = None,
    ) -> None:
        self._lm = lm
        self._module = module
        self._ledger = ledger
        self._budget = budget
        self._num_threads = num_threads
        self._timeout = timeout
        self._outages: list[Question] = []  # What was asked in the last rounds, of which none was reached.
        self._rounds = 0
        self._told: set[str] = set()
        self.unparsed = 0

    def __call__(self, questions: Sequence[Question]) -> list[Fields | None]:
        """Return the output fields of each reply, None where there is none.

        Raises:
            BudgetSpent: If the budget ends on the way.
            dspy.LMError: If the model fails in a way that no retry can mend.
            Outage: If it cannot be reached for any question in three calls in a row, or the critic, without whom there
                is nothing to propose, answers none.
        """
        replies: list[dict[str, Any] | None] = [None] * len(questions)
        missing = []
        for index, question in enumerate(questions):
            if found := self._ledger.reply(question.key):
                replies[index], spent = found
                self._budget.charge(spent)
            else:
                missing.append(index)
        failures: list[Exception] = []
        abandoned: list[str] = []

        def keep(number: int, answer: _Answer | None) -> None:
            if answer is None:
                abandoned.append(f"no answer in {self._timeout} seconds")
            reply, spent, failure = answer or ({"fields": None}, Spending(seconds=self._timeout or 0.0), None)
            if failure is not None:
                failures.append(failure)
            failed = answer is None or failure is not None
            self._ledger.add_reply(questions[missing[number]].key, reply, spent, failed=failed)
            self._budget.charge(spent)
            replies[missing[number]] = reply

        asks = [partial(self._ask, questions[index]) for index in missing]
        run_in_threads(asks, keep, num_threads=self._num_threads, timeout=self._timeout)
        problems = [self._words(failure) for failure in failures] + abandoned
        if problems:
            self._tell(questions[0].role, problems[-1], len(problems), len(questions))
        is_critic = bool(questions) and questions[0].role == "critic"
        unreached = len(abandoned) + sum(is_critic or is_outside(failure) for failure in failures)
        if questions:
            is_down = unreached == len(questions)
            self._rounds = self._rounds + 1 if is_down else 0
            self._outages = [*self._outages, *questions] if is_down else []
        if self._rounds >= _OUTAGES:
            self._ledger.unsettle_replies(question.key for question in self._outages)  # Whatever was made of them.
            raise Outage(
                f"{questions[0].role.capitalize()} could not be reached in {_OUTAGES} rounds in a row. The last error "
                f"was: {problems[-1]}. {GOES_ON}"
            )
        fields = [reply.get("fields") if reply else None for reply in replies]
        self.unparsed += sum(field is None for field in fields)
        return fields

    def _words(self, failure: Exception) -> str:
        return short(redacted(f"{type(failure).__name__}: {failure}", secrets_of([self._lm])))

    def _tell(self, role: str, problem: str, num_failed: int, num_asked: int) -> None:
        """Log the first failure of each kind."""
        kind = problem.partition(":")[0]
        if kind not in self._told:
            self._told.add(kind)
            _logger.warning(
                "%d of %d calls of the %s failed, the first with this kind of error: %s. The run goes on without them.",
                num_failed,
                num_asked,
                role,
                problem,
            )

    def _ask(self, question: Question) -> _Answer:
        self._budget.check()
        fields: Fields | None = None
        failure: Exception | None = None
        module = self._module or dspy.Predict(question.signature)
        with metered(self._budget.prices, trace=[]) as meter:
            for attempt in range(2):
                try:
                    with dspy.context(lm=self._lm.copy(**self._config(question, attempt))):
                        reply = unbroken(partial(module, **question.inputs), retries_of(self._lm))
                except AdapterParseError:
                    continue
                except FATAL:
                    raise
                except Exception as error:  # A user's critic raises anything, and so does a parser of DSPy's.
                    failure = error
                    _logger.debug("%s: %s", question.name, self._words(error), exc_info=error)
                    break
                fields = _fields(reply, question)
                break
        if fields and self._module is None and meter.spent.cut_off_replies:
            last = list(fields)[-1]
            fields = {**fields, last: without_end(fields[last])}
        return {"fields": fields}, meter.spent, failure

    def _config(self, question: Question, attempt: int) -> dict[str, Any]:
        """Ask the cache for an answer of its own for each question, where the model's temperature allows it."""
        if attempt == 0 and not self._lm.kwargs.get("temperature"):
            return {}
        rollout_id = int(question.key[:8], 16) + attempt
        return {"rollout_id": rollout_id, "temperature": 1.0} if attempt else {"rollout_id": rollout_id}


def without_end(text: str) -> str:
    """Return a text that was cut off without its last line, or without its last sentence if it has one line only."""
    *lines, last = text.rstrip().splitlines() or [""]
    return "\n".join(lines) if lines else "".join(split(last)[:-1])


def _fields(reply: Any, question: Question) -> dict[str, str]:
    """Return the output fields of a reply; those it may leave out are empty then."""
    given = reply if isinstance(reply, Mapping) else dict(getattr(reply, "items", dict)())
    names = list(question.signature.output_fields)
    fields = {name: _as_text(given.get(name)) for name in names}
    if names[0] not in given or not all(isinstance(value, str) for value in fields.values()):
        raise TypeError(
            f"`{question.role}` must return a mapping or dspy.Prediction that has `{names[0]}` as a "
            f"string, but got {reply!r}."
        )
    return {name: well_formed(value) for name, value in fields.items()}


def _as_text(value: Any) -> Any:
    """Return the value of a field as text: a typed field may hold a list, which the readers of replies know."""
    if isinstance(value, list | tuple):
        return json.dumps(list(value), ensure_ascii=False, default=str)
    return value or ""
