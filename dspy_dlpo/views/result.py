"""What `compile` leaves behind on the program it returns."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, overload

import dspy

from dspy_dlpo.core.plain import jsonable
from dspy_dlpo.core.records import Spending
from dspy_dlpo.descent.origins import provenance
from dspy_dlpo.descent.outcome import RunResult
from dspy_dlpo.descent.statistics import Gain
from dspy_dlpo.descent.walk import Walk
from dspy_dlpo.runtime.budget import Budget
from dspy_dlpo.runtime.data import Data, as_examples
from dspy_dlpo.runtime.forward import Forward
from dspy_dlpo.runtime.ledger import Ledger
from dspy_dlpo.runtime.metric import Metric
from dspy_dlpo.runtime.program import Student, with_instructions
from dspy_dlpo.views.explain import Explanation
from dspy_dlpo.views.plots import plot_scores, steps_table
from dspy_dlpo.views.report import save_report
from dspy_dlpo.views.words import gain_of, plural, scores_of, spending

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """Student and optimised program on the same examples.

    Attributes:
        before: Mean score of the student.
        after: Mean score of the optimised program.
        gain: Its gain, with the interval.
        num_failed: Runs in which the program or the metric raised; they score `failure_score`.
        num_lost: Examples left out since a language model could not be reached, or did not answer in time.
        spent: What the evaluation cost.
    """

    before: float
    after: float
    gain: Gain
    num_failed: int
    num_lost: int
    spent: Spending


@dataclass(frozen=True, repr=False)
class DLPOResult(RunResult):
    """The course of a run: `program.detailed_results`. The attributes are those of `RunResult`.

    It stays behind when it is pickled, and so when a program is saved whole: what is saved then loads with DSPy alone,
    and holds no training examples. Keep it with `to_dict`, or read it again from the run's folder with `load_result`.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> DLPOResult:
        return self

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()

    def __repr__(self) -> str:
        before, after = scores_of(self)
        parts = [f"valset {before} -> {after}, gain {gain_of(self)}", plural(len(self.history), "step")]
        return f"DLPOResult({self.run.program_name}: {'; '.join([*parts, spending(self.spent), self.stopped])})"

    def evaluate(
        self,
        program: dspy.Module,
        testset: Sequence[dspy.Example],
        *,
        metric: Callable[..., Any],
        num_threads: int | None = None,
        timeout: float | None = 600.0,
    ) -> Evaluation:
        """Score student and optimised program on examples that took no part in the run.

        A warning is logged unless the whole interval of the gain is above zero. The interval allows for no choice, for
        the testset made none. (If you evaluate several runs on it and keep the best, it did.)

        Args:
            program: The program, before or after optimisation: it is copied, and gets the parameters of each.
            testset: Examples with inputs.
            metric: The metric, in any of the forms that the optimiser takes.
            num_threads: Rollouts in flight at once. Default: DSPy's setting.
            timeout: Seconds after which a run is given up; None for no limit.

        Returns:
            Both mean scores and the gain, on the metric's scale. The gain is exactly 0 if the student was chosen.

        Raises:
            TypeError: If an example or the metric is of the wrong kind.
            ValueError: If there are no examples, one has no inputs, or the metric gives a score that is none.
            dspy.LMError: If a language model fails in a way that no retry can mend.
            RuntimeError: If no example was scored for both.
        """
        testset = as_examples("testset", testset)
        names = tuple(f"test:{index}" for index in range(len(testset)))
        budget = Budget(None)
        ledger = Ledger(None, {})
        try:
            forward = Forward(
                Student(self._without_demos(program)),
                Metric(metric, self.score_range),
                Data(testset, (), names, (), "given"),
                ledger=ledger,
                budget=budget,
                num_threads=num_threads or dspy.settings.num_threads,
                failure_score=self.failure_score,
                timeout=timeout,
            )
            student, best = self.candidates[0], self.candidates[self.best_idx]
            rollouts = forward([(candidate, name) for name in names for candidate in (student, best)])
        finally:
            ledger.close()
        pairs = [pair for pair in zip(rollouts[::2], rollouts[1::2], strict=True) if not any(run.lost for run in pair)]
        if not pairs:
            raise RuntimeError(
                f"No example of the testset was scored for both. The first error was: {rollouts[0].error}"
            )
        before, after = ([pair[side].score for pair in pairs] for side in (0, 1))
        gain = Gain(num_examples=len(pairs))
        if self.best_idx:
            gain = Gain.between(before, after, score_range=self.score_range)
            warn_unless_sure(gain, "testset")
        failed = {(run.candidate, run.example) for pair in pairs for run in pair if run.error}
        num_lost = len(testset) - len(pairs)
        return Evaluation(fmean(before), fmean(after), gain, len(failed), num_lost, budget.spent)

    def _without_demos(self, program: dspy.Module) -> dspy.Module:
        """Return a copy of a program that has the student's demos alone: those of a candidate stand behind them."""
        program = program.deepcopy()
        for name, predictor in program.named_predictors():
            state = self.run.program.get(name, self.run.program)
            predictor.demos = predictor.demos[: len(state.get("demos", predictor.demos))]
        return program

    def explain(self, predictor: str | None = None) -> Explanation:
        """Return, for each sentence of the chosen instructions, what brought it; print it to read it.

        Args:
            predictor: Path of a predictor. Default: all of them.

        Returns:
            The origins of the sentences, by predictor.

        Raises:
            ValueError: If the run has no such predictor.
        """
        names = [*self.best_candidate] if predictor is None else [predictor]
        return Explanation({name: provenance(self, name) for name in names})

    def to_pandas(self) -> pandas.DataFrame:
        """Return a table of one row a step, and a last row for what the run returned.

        Returns:
            A `DataFrame`; scores and gains are on the metric's scale; `seconds`, calls, tokens and `cost` (in dollars)
            are what the run had spent by the end of the step. The last row has the outcome `final choice`.

        Raises:
            ImportError: If pandas is not installed.
        """
        return steps_table(self)

    def plot(self, ax: Axes | None = None, *, x: str = "step") -> Axes:
        """Draw the scores of incumbent and best, and which candidates were accepted.

        Args:
            ax: Where to draw. Default: a new figure.
            x: What the x-axis counts: `"step"`, from 1, or what was spent by the end of the step: `"metric_calls"`,
                `"lm_calls"`, `"tokens"`, `"seconds"` or `"cost"` (in dollars).

        Returns:
            The axes, to be changed or saved.

        Raises:
            ImportError: If matplotlib is not installed.
            ValueError: If `x` is none of these, or a cost is not known.
        """
        return plot_scores(self, ax, x)

    def save_report(self, path: str | Path) -> Path:
        """Write the run as one HTML page that needs no network.

        It holds instructions, inputs and outputs of failing examples, the metric's feedback and the settings: mind that
        before you share it.

        Args:
            path: The file; what is there is overwritten, folders are made.

        Returns:
            The file.
        """
        return save_report(self, path)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as dicts and lists.

        Returns:
            The attributes by name, ready for `json.dumps`. A score that is not known is NaN.
        """
        return dict(jsonable(self))


def result_of(walk: Walk, forward: Forward, valset: Sequence[str], **settings: Any) -> DLPOResult:
    """Return the result of a walk, and log a warning if its gain may be chance.

    Args:
        walk: The walk, with its choice made.
        forward: Has the scores.
        valset: Names of the validation examples.
        settings: The other attributes of `DLPOResult`.
    """
    subscores = (
        (candidate, {name: score for name in valset for score in forward.known_scores(candidate, [name])})
        for candidate in walk.seen.values()
    )
    scores = {candidate: found for candidate, found in subscores if found or candidate is walk.student}
    result = DLPOResult(
        candidates=tuple(scores),
        # A limit may have ended the run before the student had its first score.
        val_aggregate_scores=tuple(fmean(each.values()) if each else math.nan for each in scores.values()),
        num_val_examples=tuple(len(each) for each in scores.values()),
        val_subscores=tuple(scores.values()),
        best_idx=[candidate.id for candidate in scores].index(walk.choice.best.id),
        gain=walk.gain,
        history=tuple(walk.history),
        stopped=walk.stopped,
        lost=forward.lost,
        errors=forward.errors,
        **settings,
    )
    if lost := forward.lost - (walk.history[-1].lost if walk.history else 0):
        logger.warning(
            "%d rollouts of the final choice were lost, which was made without them. With a `log_dir`, the same call "
            "tries them again.",
            lost,
        )
    if result.best_idx:
        warn_unless_sure(result.gain, "valset")
    return result


def warn_unless_sure(gain: Gain, where: str) -> None:
    """Log a warning if the interval of a gain is not above zero.

    The log, and not `warnings.warn`: a run that was paid for must not end in an exception where warnings are errors.
    """
    if not gain.is_sure:
        logger.warning(
            "No sure gain on the %s: %s. More examples would tell: a larger `valset`, or a testset for "
            "`detailed_results.evaluate`.",
            where,
            gain,
        )


class CandidatePrograms(Sequence[dict[str, Any]]):
    """`program.candidate_programs`: dicts with `score`, `program` and `instructions`; the one chosen is first.

    The others follow by score. A candidate that lost early was scored on part of the valset only.

    Each program is built when its entry is asked for. A list of modules hung on a program would turn up among its
    predictors; this sequence does not.
    """

    def __init__(self, student: dspy.Module, result: DLPOResult) -> None:
        self._student = student
        scored = zip(result.candidates, result.val_aggregate_scores, strict=True)
        best = result.candidates[result.best_idx]
        self._ranking = sorted(scored, key=lambda pair: (pair[0] is not best, -pair[1]))

    def __len__(self) -> int:
        return len(self._ranking)

    def __deepcopy__(self, memo: dict[int, Any]) -> CandidatePrograms:
        return self

    def __reduce__(self) -> tuple[type[list[Any]], tuple[()]]:
        """Stay behind when the program is pickled; see `DLPOResult`."""
        return list, ()

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        candidate, score = self._ranking[index]
        program = with_instructions(self._student, candidate)
        return {"score": score, "program": program, "instructions": dict(candidate.instructions)}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))
