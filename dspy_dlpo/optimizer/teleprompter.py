"""`DLPOOptimizer`: the teleprompter."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import dspy
from dspy.teleprompt import Teleprompter

from dspy_dlpo.core.settings import Tuning
from dspy_dlpo.descent.listeners import Listener, Listeners
from dspy_dlpo.optimizer.arguments import check_arguments, failure_score_of, form_of, plan
from dspy_dlpo.optimizer.assembly import Run
from dspy_dlpo.optimizer.diagnose import Diagnosis, diagnose_run
from dspy_dlpo.optimizer.estimate import Estimate, estimate_run
from dspy_dlpo.optimizer.names import answers_other_names, refuse_unknown
from dspy_dlpo.policies import Policy
from dspy_dlpo.runtime.budget import check_prices
from dspy_dlpo.runtime.data import prepare
from dspy_dlpo.runtime.executor import Executor
from dspy_dlpo.runtime.interrupt import in_a_thread
from dspy_dlpo.runtime.metric import Metric
from dspy_dlpo.runtime.prices import Price, Prices
from dspy_dlpo.runtime.program import Student
from dspy_dlpo.views.progress import progress
from dspy_dlpo.views.result import CandidatePrograms


@answers_other_names
@dataclass(kw_only=True, eq=False)
class DLPOOptimizer(Teleprompter):  # type: ignore[misc]  # DSPy is untyped.
    """Tune the instructions of a DSPy program by textual gradient descent.

    Each predictor's instruction is a parameter, the metric is the loss, and an LLM critic is the backward pass. A
    candidate is the incumbent with single sentences added, replaced, deleted or moved; policies bound and direct the
    update and decide what is accepted. The valset alone chooses the result.

    Args:
        Metric
        metric: `(example, prediction)`, DSPy's `(example, prediction, trace)` or GEPA's five-argument form; returns a
            number, a bool, or `dspy.Prediction(score=..., feedback=...)`, higher is better. Return written feedback if
            you can: it is the critic's main evidence.
        score_range: Lowest and highest score of the metric.

        Models
        prompt_model: The LM that criticises and writes candidates. Default: `dspy.settings.lm`, then the program's own.

        Update
        policies: A preset (`"default"`, `"paper"`, `"robust"`, `"concise"`, `"none"`) or a list of policies.
        protect: Text of the instructions that must stay: strings, taken literally, and compiled patterns. So does text
            between `<keep>` and `</keep>`, and what DSPy's own modules (`ReAct`, `RLM`) wrote around theirs.
        max_demos: Most demos (worked examples) of a predictor, its own included. They are drawn from calls that went
            right and from labels, and tried as instructions are. 0 leaves the demos as they are.
        tuning: Settings that few users need; see `Tuning`.

        Budget
        auto: `"light"`, `"medium"` or `"heavy"`: 8, 20 or 50 steps and as many metric calls as they usually need.
            Not together with `num_steps` or one of the limits below. Default, if none of them is given: `"light"`.
        num_steps: Most steps. Limits combine: the first reached ends the run, and the best so far is returned. Limits
            can be overshot only by calls in flight; `max_metric_calls` never is.
        max_metric_calls: Most runs of the program on an example, all sets together.
        max_lm_calls: Most LM calls, those inside the program and the metric included.
        max_tokens: Most tokens, sent and received together.
        max_cost: Most dollars. Every model needs a price in `prices` or litellm's table then, also one that says itself
            what a call cost.
        max_seconds: Most seconds of this call of `compile`; what a run that it resumes has taken does not count.
        patience: Steps in a row in which nothing was ahead of the best on the valset, after which the run ends. It adds
            to the limits and sets none: with `patience` alone, `auto` still holds.
        prices: `{model: (dollars per million input tokens, dollars per million output tokens)}`, for models whose price
            neither they nor litellm's table tell, or to overrule them. Models of `dspy_dlpo.local` cost nothing.

        Run
        num_threads: Rollouts and critic calls in flight at once. Default: DSPy's setting.
        executor: Where rollouts run. None: in threads of this process, which is right for programs that wait for an
            API. Any executor with `submit` as in `concurrent.futures` runs them in its processes, `"ray"` or a
            `RayExecutor` on a Ray cluster; program and metric are then pickled, and `num_threads` should be at least
            the number of workers. The run is the same.
        timeout: Seconds for one run of the program with its metric, and for one critic or proposer call, retries of
            the LM included. What takes longer is abandoned and counted as lost. None for no limit.
        seed: Decides every random choice. The same seed and the same replies give the same run, whatever
            `num_threads` and `executor`.
        log_dir: Folder of the run's ledger. Every reply is saved there before it is used, so the same call with the
            same folder goes on where the run stopped. A file named `STOP` there ends the run, as does Ctrl-C, with the
            best so far; a second Ctrl-C interrupts at once.
        listeners: Called while the run goes on: see `dspy_dlpo.Listener`, `MLflowListener` and `WandbListener`.
        verbose: Whether the run is shown on standard error: live on a terminal, with a line for each step elsewhere. In
            any case each step is logged, as INFO of the logger `dspy_dlpo`.

    Raises:
        TypeError: If `metric` or a policy is of the wrong kind.
        ValueError: If another argument is out of its range.

    Example:
        >>> def exact(example, prediction, trace=None):
        ...     return prediction.answer == example.answer
        >>> optimizer = DLPOOptimizer(exact, max_metric_calls=200)
        >>> optimizer.policies
        'default'

    References:
        Peng et al., DLPO, arXiv 2503.13413; Yuksekgonul et al., TextGrad, arXiv 2406.07496. Departures from DLPO: the
        policies are held in code and not only asked for, acceptance is a paired test, the choice is made on a valset.
    """

    metric: Callable[..., Any] = field(kw_only=False)
    score_range: tuple[float, float] = (0.0, 1.0)
    prompt_model: dspy.BaseLM | None = None
    policies: str | Sequence[Policy] = "default"
    protect: Sequence[str | re.Pattern[str]] = ()
    max_demos: int = 0
    tuning: Tuning = Tuning()  # noqa: RUF009 - It is frozen.
    auto: Literal["light", "medium", "heavy"] | None = None
    num_steps: int | None = None
    max_metric_calls: int | None = None
    max_lm_calls: int | None = None
    max_tokens: int | None = None
    max_cost: float | None = None
    max_seconds: float | None = None
    patience: int | None = None
    prices: Mapping[str, Price] | None = None
    num_threads: int | None = None
    executor: Executor | Literal["ray"] | None = None
    timeout: float | None = 600.0
    seed: int = 0
    log_dir: str | Path | None = None
    listeners: Sequence[Listener] = ()
    verbose: bool = True

    def __post_init__(self) -> None:
        super().__init__()
        check_arguments(self._arguments())

    def _arguments(self) -> dict[str, Any]:
        """Return all arguments by name, those of `tuning` among them."""
        own = {name: value for name, value in vars(self).items() if name != "tuning"}
        return {**own, **(vars(self.tuning) if isinstance(self.tuning, Tuning) else {"tuning": self.tuning})}

    def compile(
        self,
        student: dspy.Module,
        trainset: Sequence[dspy.Example],
        *,
        teacher: dspy.Module | None = None,
        valset: Sequence[dspy.Example] | None = None,
        **unknown: Any,
    ) -> dspy.Module:
        """Return a copy of the program with better instructions.

        Args:
            student: The program. It, its demos and its LMs stay as they are.
            trainset: Examples with inputs, on which the walk is decided.
            teacher: Not used; DSPy's interface has it.
            valset: Examples that choose the result. Default (also if empty): a seeded part of the trainset if that
                has at least 20 examples, else the trainset itself.
            **unknown: None: what other optimisers' `compile` takes is answered with the name it has here.

        Returns:
            A new program: the best candidate on the valset, never one that is worse there than the student. It has
            `candidate_programs` and `detailed_results` (`DLPOResult`). These stay behind when it is pickled or saved,
            so that it can be loaded with DSPy alone; with `log_dir`, `load_result` reads them again.

        Raises:
            TypeError: If the program or an example is of the wrong kind.
            ValueError: If there is nothing to optimise, no LM, an example without inputs, a budget too small for the
                valset, a score that is none, or a `log_dir` of a run with other settings.
            RuntimeError: If the program fails on the whole first minibatch, if more than `max_lost_share` is lost, or
                if another process runs in `log_dir`.
            OSError: If the disk is full. As after every error, the same call with the same `log_dir` goes on.
            dspy.LMError: If a language model fails in a way that no retry can mend.
        """
        refuse_unknown(unknown, ("student", "trainset", "teacher", "valset"), "compile")
        data = prepare(trainset, valset, self.seed)
        asked, arguments = Student(student), self._arguments()
        asked.check(self.tuning.num_repeats)
        settings, budget = plan(arguments, data)
        listeners = Listeners([*progress(self.verbose), *self.listeners])
        run = Run(student, asked, data, arguments, settings, budget, listeners)
        check_prices(budget, [*asked.models, run.prompt_model, run.critic_model])
        result = run()
        student = asked.program(asked.start)
        for stale in ("candidate_programs", "detailed_results"):  # Those of an earlier compilation.
            vars(student).pop(stale, None)
        optimized = Student(student).program(result.best)
        optimized.candidate_programs = CandidatePrograms(student, result)
        optimized.detailed_results = result
        listeners.on_run_end(result, optimized)
        return optimized

    async def acompile(
        self,
        student: dspy.Module,
        trainset: Sequence[dspy.Example],
        *,
        teacher: dspy.Module | None = None,
        valset: Sequence[dspy.Example] | None = None,
    ) -> dspy.Module:
        """Do what `compile` does without blocking the event loop.

        Cancelling it lets what is in flight end and be kept; with a `log_dir`, the same call goes on from there.

        Args:
            student: As for `compile`.
            trainset: As for `compile`.
            teacher: As for `compile`.
            valset: As for `compile`.

        Returns:
            As `compile`.

        Raises:
            TypeError, ValueError, RuntimeError, OSError, dspy.LMError: As `compile`.
        """
        return await in_a_thread(partial(self.compile, student, trainset, teacher=teacher, valset=valset))

    def estimate(
        self, program: dspy.Module, *, trainset: list[dspy.Example], valset: list[dspy.Example] | None = None
    ) -> Estimate:
        """Estimate what `compile` would spend, without calling a language model.

        The prompts of some examples are counted, the limits divided by the size of a step; the estimate says what else
        it assumes. After the run, `estimate.against(program.detailed_results.spent)` puts both side by side.

        Args:
            program: The program, as `compile` would be given it.
            trainset: As for `compile`.
            valset: As for `compile`.

        Returns:
            The spending to expect, and the limits; print it to read it.

        Raises:
            TypeError: As `compile`.
            ValueError: As `compile`, for what can be seen before a run. An unknown price is no error.
        """
        data = prepare(trainset, valset, self.seed)
        student = Student(program)
        student.check()
        prompt_model = self.prompt_model or student.model
        critic_model = self.tuning.critic_model or prompt_model
        settings, budget = plan(self._arguments(), data)
        chunk_size = form_of(self._arguments(), critic_model, student).chunk_size
        return estimate_run(student, data, settings, budget, prompt_model, critic_model, chunk_size)

    def diagnose(
        self,
        program: dspy.Module,
        *,
        trainset: list[dspy.Example],
        valset: list[dspy.Example] | None = None,
        num_calls: int = 40,
    ) -> Diagnosis:
        """Measure whether optimising is likely to pay: score, noise, headroom, the smallest gain that can be detected.

        Args:
            program: The program.
            trainset: Examples with inputs. A seeded choice of them is run, about half of the calls as repeats.
            valset: As for `compile`. Nothing is run on it; its size decides what can be detected.
            num_calls: Metric calls, at least 4. Exactly so many are made.

        Returns:
            The figures; print them to read them.

        Raises:
            TypeError, dspy.LMError: As `compile`.
            ValueError: As `compile`, or if `num_calls` is too small.
            RuntimeError: If every run was lost to a failing language model or to `timeout`.
        """
        data = prepare(trainset, valset, self.seed)
        student = Student(program)
        student.check()
        return diagnose_run(
            student,
            Metric(self.metric, self.score_range),
            data,
            num_calls=num_calls,
            prices=Prices(self.prices),
            num_threads=self.num_threads or dspy.settings.num_threads,
            failure_score=failure_score_of(self._arguments()),
            timeout=self.timeout,
            seed=self.seed,
        )
