"""`DLPOOptimizer`: the teleprompter. It checks its arguments, builds the parts of a run, and starts the loop."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import dspy
from dspy.teleprompt import Teleprompter

from dspy_dlpo.core.protection import Protection
from dspy_dlpo.descent.backward import Backward
from dspy_dlpo.descent.copies import CopyGuard
from dspy_dlpo.descent.listeners import Listener, Listeners
from dspy_dlpo.descent.loop import Loop, Settings
from dspy_dlpo.descent.selectors import SELECTORS, ComponentSelector
from dspy_dlpo.descent.update import Update
from dspy_dlpo.optimizer.arguments import check_arguments, plan
from dspy_dlpo.optimizer.diagnose import Diagnosis, examine
from dspy_dlpo.optimizer.estimate import Estimate, foretell
from dspy_dlpo.policies import Policy, as_policies
from dspy_dlpo.runtime.asking import Asker
from dspy_dlpo.runtime.budget import check_prices
from dspy_dlpo.runtime.data import Data, prepare
from dspy_dlpo.runtime.fingerprint import describe, fingerprint
from dspy_dlpo.runtime.forward import Forward
from dspy_dlpo.runtime.interrupt import ended_by_ctrl_c
from dspy_dlpo.runtime.ledger import Ledger
from dspy_dlpo.runtime.metric import Metric
from dspy_dlpo.runtime.prices import Price, Prices
from dspy_dlpo.runtime.program import Student
from dspy_dlpo.views.progress import progress
from dspy_dlpo.views.result import CandidatePrograms, result_of
from dspy_dlpo.views.runs import keep_end, keep_error, keep_start


class DLPOOptimizer(Teleprompter):  # type: ignore[misc]  # DSPy is untyped.
    """Tune the instructions of a DSPy program by textual gradient descent.

    Each predictor's instruction is a parameter, the metric is the loss, and an LLM critic is the backward pass. A
    candidate is the incumbent with single sentences added, replaced, deleted or moved; policies bound and direct the
    update and decide what is accepted. The valset alone chooses the result.

    Args:
        metric: `(example, prediction)`, DSPy's `(example, prediction, trace)` or GEPA's five-argument form; returns a
            number, a bool, or `dspy.Prediction(score=..., feedback=...)`, higher is better. Feedback is what the
            critic goes by: give it when you can.
        prompt_model: The LM that writes candidates. Default: `dspy.settings.lm`, then the program's own.
        critic_model: The LM that criticises. Default: `prompt_model`.
        critic: Takes the place of the critic: any callable or `dspy.Module` that takes and returns the fields of
            `dspy_dlpo.descent.critic.CritiqueWithInput`. It is called with `critic_model` as DSPy's LM.
        proposer: Takes the place of the proposer, with the fields of `dspy_dlpo.descent.update.ProposeEditsKeeping`.
        critic_chunk_size: Failing examples shown to the critic at once. One for each call suits weak models, and is
            what has been measured; more cost fewer calls.
        chain: Whether complaints are carried back from predictor to predictor. If not, each predictor is shown what
            the metric said of the whole.
        component_selector: Which predictors move in a step: `"blame"` (the one blamed for most failing examples, and
            others in proportion), `"round_robin"`, `"all"`, or a callable as in `dspy_dlpo.descent.selectors`.
        policies: A preset (`"default"`, `"paper"`, `"robust"`, `"concise"`, `"none"`) or a list of policies.
        protect: Text of the instructions that must stay: strings, taken literally, and compiled patterns. So does text
            between `<keep>` and `</keep>`, and what DSPy's own modules (`ReAct`, `RLM`) wrote around theirs.
        auto: `"light"`, `"medium"` or `"heavy"`: 8, 20 or 50 steps and as many metric calls as they usually need.
            Not together with `num_steps` or one of the limits below. Default, if none of them is given: `"light"`.
        num_steps: Most steps. Limits combine: the first reached ends the run, and the best so far is returned. What is
            in flight by then is still paid; only `max_metric_calls` is never exceeded.
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
        batch_size: Train examples a step starts from, those not counted that the incumbent is known to pass. Default:
            8, or the whole trainset if that is smaller.
        num_candidates: Most candidates per step: from the critic's sentences and one proposer call per predictor, else
            of the policies' own.
        max_trial_examples: Most train examples on which a candidate meets the incumbent, and most validation examples
            on which a new incumbent meets the best before the end; None for all.
        max_passing: Passing examples of a minibatch that the proposer is shown, so that it does not break what works.
        score_range: Lowest and highest score of the metric.
        failure_score: Score of an example on which the program or the metric raises. Default: the lowest score.
        num_repeats: Runs of a candidate on each example, each a metric call; their mean is its score there. More than 1
            is for programs whose answers vary (a temperature above 0): it measures each example better for the price of
            fewer examples.
        timeout: Seconds for one run of the program with its metric, and for one critic or proposer call, retries of
            the LM included. What takes longer is abandoned and counted as lost. None for no limit.
        max_lost_share: Share of the latest rollouts (up to 50) that may be lost, to failing LMs or to `timeout`, before
            the run stops with an error. A lost rollout costs its example, not the comparison it was for.
        confidence: How sure a comparison must be before it stops early, in (0.5, 1).
        show_gold: Whether the critic sees the labels of failing examples. Text of labels can then end up in prompts.
            What the metric's feedback says, it sees in any case.
        num_threads: Rollouts and critic calls in flight at once. Default: DSPy's setting.
        seed: Decides every random choice. The same seed and the same replies give the same run, whatever
            `num_threads`.
        log_dir: Folder of the run's ledger. The same call with the same folder goes on where the run stopped. A file
            named `STOP` there ends the run, as does Ctrl-C, with the best so far; a second Ctrl-C interrupts at once.
        track_stats: Whether the returned program carries `detailed_results`.
        listeners: Hear of the run while it goes on: see `dspy_dlpo.descent.listeners` and `dspy_dlpo.views.trackers`.
        verbose: Whether the run is shown on standard error: live on a terminal, with a line for each step elsewhere. In
            any case each step is logged, as INFO of the logger `dspy_dlpo`.

    Raises:
        TypeError: If `metric` or a policy is of the wrong kind.
        ValueError: If another argument is out of its range.

    References:
        Peng et al., DLPO, arXiv 2503.13413; Yuksekgonul et al., TextGrad, arXiv 2406.07496. Departures from DLPO: the
        policies are held in code and not only asked for, acceptance is a paired test, the choice is made on a valset.
    """

    def __init__(
        self,
        *,
        metric: Callable[..., Any],
        prompt_model: dspy.BaseLM | None = None,
        critic_model: dspy.BaseLM | None = None,
        critic: Callable[..., Any] | None = None,
        proposer: Callable[..., Any] | None = None,
        critic_chunk_size: int = 1,
        chain: bool = True,
        component_selector: str | ComponentSelector = "blame",
        policies: str | Sequence[Policy] = "default",
        protect: Sequence[str | re.Pattern[str]] = (),
        auto: Literal["light", "medium", "heavy"] | None = None,
        num_steps: int | None = None,
        max_metric_calls: int | None = None,
        max_lm_calls: int | None = None,
        max_tokens: int | None = None,
        max_cost: float | None = None,
        max_seconds: float | None = None,
        patience: int | None = None,
        prices: Mapping[str, Price] | None = None,
        batch_size: int | None = None,
        num_candidates: int = 2,
        max_trial_examples: int | None = 8,
        max_passing: int = 1,
        score_range: tuple[float, float] = (0.0, 1.0),
        failure_score: float | None = None,
        num_repeats: int = 1,
        timeout: float | None = 600.0,
        max_lost_share: float = 0.5,
        confidence: float = 0.95,
        show_gold: bool = True,
        num_threads: int | None = None,
        seed: int = 0,
        log_dir: str | Path | None = None,
        track_stats: bool = True,
        listeners: Sequence[Listener] = (),
        verbose: bool = True,
    ) -> None:
        super().__init__()
        self.metric = metric
        self.prompt_model = prompt_model
        self.critic_model = critic_model
        self.critic = critic
        self.proposer = proposer
        self.critic_chunk_size = critic_chunk_size
        self.chain = chain
        self.component_selector = component_selector
        self.policies = policies
        self.protect = protect
        self.auto = auto
        self.num_steps = num_steps
        self.max_metric_calls = max_metric_calls
        self.max_lm_calls = max_lm_calls
        self.max_tokens = max_tokens
        self.max_cost = max_cost
        self.max_seconds = max_seconds
        self.patience = patience
        self.prices = prices
        self.batch_size = batch_size
        self.num_candidates = num_candidates
        self.max_trial_examples = max_trial_examples
        self.max_passing = max_passing
        self.score_range = score_range
        self.failure_score = failure_score
        self.num_repeats = num_repeats
        self.timeout = timeout
        self.max_lost_share = max_lost_share
        self.confidence = confidence
        self.show_gold = show_gold
        self.num_threads = num_threads
        self.seed = seed
        self.log_dir = log_dir
        self.track_stats = track_stats
        self.listeners = listeners
        self.verbose = verbose
        check_arguments(vars(self))

    def compile(
        self,
        student: dspy.Module,
        *,
        trainset: list[dspy.Example],
        teacher: dspy.Module | None = None,
        valset: list[dspy.Example] | None = None,
    ) -> dspy.Module:
        """Return a copy of the program with better instructions.

        Args:
            student: The program. It, its demos and its LMs stay as they are.
            trainset: Examples with inputs, on which the walk is decided.
            teacher: Not used; DSPy's interface has it.
            valset: Examples that choose the result. Default (also if empty): a seeded part of the trainset if that
                has at least 20 examples, else the trainset itself.

        Returns:
            A new program: the best candidate on the valset, never one that is worse there than the student. It has
            `candidate_programs` and, with `track_stats`, `detailed_results` (`DLPOResult`).

        Raises:
            TypeError: If the program or an example is of the wrong kind.
            ValueError: If there is nothing to optimise, no LM, an example without inputs, a budget too small for the
                valset, a score that is none, or a `log_dir` of a run with other settings.
            RuntimeError: If the program fails on the whole first minibatch, if more than `max_lost_share` is lost, or
                if another process runs in `log_dir`.
            OSError: If the disk is full. As after every error, the same call with the same `log_dir` goes on.
            dspy.LMError: If a language model fails in a way that no retry can mend.
        """
        data = prepare(trainset, valset, self.seed)
        asked = Student(student)
        asked.check(self.num_repeats)
        start = asked.start
        prompt_model = self.prompt_model or asked.model
        critic_model = self.critic_model or prompt_model
        settings, budget = plan(vars(self), data)
        check_prices(budget, [*asked.models, prompt_model, critic_model])
        num_threads = budget.num_threads
        protection = Protection(self.protect, asked.protocols(), start.instructions)
        resolved = {name: getattr(settings, name) for name in ("num_steps", "batch_size")}
        resolved["failure_score"] = self._failure_score
        resolved |= {"prompt_model": prompt_model, "critic_model": critic_model}
        run = describe(asked, {**vars(self), **resolved}, data)
        listeners = Listeners([*progress(self.verbose), *self.listeners])
        models = [prompt_model, critic_model]
        ledger = Ledger(self.log_dir, self._fingerprint(student, data, settings, models) if self.log_dir else {})
        try:
            budget.charge(ledger.forgotten)
            forward = Forward(
                asked,
                Metric(self.metric, self.score_range),
                data,
                ledger=ledger,
                budget=budget,
                num_threads=num_threads,
                failure_score=self._failure_score,
                num_repeats=self.num_repeats,
                timeout=self.timeout,
                max_lost_share=self.max_lost_share,
            )
            backward = Backward(
                Asker(critic_model, ledger, budget, num_threads, self.critic, self.timeout),
                data,
                show_gold=self.show_gold,
                top_score=self.score_range[1],
                chunk_size=self.critic_chunk_size,
                chain=self.chain,
            )
            update = Update(
                Asker(prompt_model, ledger, budget, num_threads, self.proposer, self.timeout),
                CopyGuard(data, start.instructions.values()),
                asked.read_back,
                protection,
                num_candidates=self.num_candidates,
                seed=self.seed,
                always_passing=self.proposer is not None,
            )
            loop = Loop(
                forward,
                backward,
                update,
                protection,
                as_policies(self.policies),
                selector if callable(selector := self.component_selector) else SELECTORS[selector],
                ledger,
                budget,
                settings,
                listeners,
            )
            run = keep_start(ledger, run)
            listeners.on_run_start(run, budget)
            with ended_by_ctrl_c(budget):
                walk = loop.run(start)
            result = result_of(
                walk,
                forward,
                data.valset,
                run=run,
                spent=budget.spent,
                log_dir=None if self.log_dir is None else str(self.log_dir),
                seed=self.seed,
                score_range=self.score_range,
                failure_score=self._failure_score,
            )
            result = keep_end(ledger, result)
        except BaseException as error:
            with suppress(OSError, ValueError):  # The ledger itself may be what failed.
                keep_error(ledger, run, error)
            listeners.on_run_error(error)
            raise
        finally:
            ledger.close()
        student = asked.program(start)
        for stale in ("candidate_programs", "detailed_results"):  # Those of an earlier compilation.
            vars(student).pop(stale, None)
        program = Student(student).program(walk.choice.best)
        program.candidate_programs = CandidatePrograms(student, result)
        if self.track_stats:
            program.detailed_results = result
        listeners.on_run_end(result, program)
        return program

    def estimate(
        self, program: dspy.Module, *, trainset: list[dspy.Example], valset: list[dspy.Example] | None = None
    ) -> Estimate:
        """Foretell what `compile` would spend, without calling a language model.

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
        critic_model = self.critic_model or prompt_model
        settings, budget = plan(vars(self), data)
        return foretell(student, data, settings, budget, prompt_model, critic_model, self.critic_chunk_size)

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
        return examine(
            student,
            Metric(self.metric, self.score_range),
            data,
            num_calls=num_calls,
            prices=Prices(self.prices),
            num_threads=self.num_threads or dspy.settings.num_threads,
            failure_score=self._failure_score,
            timeout=self.timeout,
            seed=self.seed,
        )

    @property
    def _failure_score(self) -> float:
        return self.score_range[0] if self.failure_score is None else self.failure_score

    def _fingerprint(
        self, student: dspy.Module, data: Data, settings: Settings, models: Sequence[dspy.BaseLM]
    ) -> dict[str, str]:
        arguments = ("failure_score", "show_gold", "protect", "critic_chunk_size", "chain")
        kept = {**vars(settings), **{name: getattr(self, name) for name in arguments}}
        for name in ("trainset", "valset", "num_steps", "patience", "seed"):
            del kept[name]
        return fingerprint(
            student,
            {name: getattr(self, name) for name in ("metric", "critic", "proposer", "component_selector")},
            as_policies(self.policies),
            models,
            data,
            settings=kept,
            seed=self.seed,
        )
