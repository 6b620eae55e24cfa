"""`DLPOOptimizer`: the teleprompter. It checks its arguments, builds the parts of a run, and starts the loop."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import dspy
from dspy.teleprompt import Teleprompter

from dspy_dlpo.asking import Asker
from dspy_dlpo.backward import Backward
from dspy_dlpo.budget import Budget
from dspy_dlpo.copying import CopyGuard
from dspy_dlpo.data import Data, prepare
from dspy_dlpo.forward import Forward, Metric, with_instructions
from dspy_dlpo.ledger import Ledger
from dspy_dlpo.loop import Loop, Settings, Walk
from dspy_dlpo.policies import Policy, as_policies
from dspy_dlpo.protection import Protection
from dspy_dlpo.records import Candidate
from dspy_dlpo.result import CandidatePrograms, DLPOResult
from dspy_dlpo.selectors import SELECTORS, ComponentSelector
from dspy_dlpo.tracking import Progress
from dspy_dlpo.update import Update

AUTO_STEPS = {"light": 8, "medium": 20, "heavy": 50}
_BATCH_SIZE = 8


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
            `dspy_dlpo.backward.CritiqueWithInput`. It is called with `critic_model` as DSPy's LM.
        proposer: Takes the place of the proposer, with the fields of `dspy_dlpo.update.ProposeEdits`, likewise.
        critic_chunk_size: Failing examples shown to the critic at once. One for each call suits weak models, and is
            what has been measured; more cost fewer calls.
        chain: Whether complaints are carried back from predictor to predictor. If not, each predictor is shown what
            the metric said of the whole.
        component_selector: Which predictors move in a step: `"blame"` (the one blamed for most failing examples, and
            others in proportion), `"round_robin"`, `"all"`, or a callable as in `dspy_dlpo.selectors`.
        policies: A preset (`"default"`, `"paper"`, `"robust"`, `"concise"`, `"none"`) or a list of policies.
        protect: Text of the instructions that must stay: strings, taken literally, and compiled patterns. So does text
            between `<keep>` and `</keep>`, and what DSPy's own modules (`ReAct`, `RLM`) wrote around theirs.
        auto: `"light"`, `"medium"` or `"heavy"`: 8, 20 or 50 steps and as many metric calls as they usually need.
            Not together with `max_metric_calls` or `num_steps`. Default, if neither is given: `"light"`.
        max_metric_calls: Most runs of the program on an example, all sets together.
        num_steps: Most steps. Limits combine: the first reached ends the run.
        batch_size: Train examples a step starts from. Default: 8, or the whole trainset if that is smaller.
        num_candidates: Candidates per step. All come from one proposer call per predictor.
        max_trial_examples: Most train examples on which a candidate meets the incumbent; None for the whole trainset.
        max_passing: Passing examples of a minibatch that the proposer is shown, so that it does not break what works.
        score_range: Lowest and highest score of the metric.
        failure_score: Score of an example on which the program or the metric raises. Default: the lowest score.
        confidence: How sure a comparison must be before it stops early, in (0.5, 1).
        show_gold: Whether the critic sees the labels of failing examples. Text of labels can then end up in prompts.
            What the metric's feedback says, it sees in any case.
        num_threads: Rollouts and critic calls in flight at once. Default: DSPy's setting.
        seed: Decides every random choice. The same seed and the same replies give the same run, whatever
            `num_threads`.
        log_dir: Folder of the run's ledger. The same call with the same folder goes on where the run stopped.
        track_stats: Whether the returned program carries `detailed_results`.
        verbose: Whether each step is told on the terminal (standard error).

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
        max_metric_calls: int | None = None,
        num_steps: int | None = None,
        batch_size: int | None = None,
        num_candidates: int = 2,
        max_trial_examples: int | None = 32,
        max_passing: int = 1,
        score_range: tuple[float, float] = (0.0, 1.0),
        failure_score: float | None = None,
        confidence: float = 0.95,
        show_gold: bool = True,
        num_threads: int | None = None,
        seed: int = 0,
        log_dir: str | Path | None = None,
        track_stats: bool = True,
        verbose: bool = True,
    ) -> None:
        super().__init__()
        if auto is not None and (max_metric_calls is not None or num_steps is not None):
            raise ValueError("`auto` sets the limits itself. Give `auto` or limits, not both.")
        if auto is not None and auto not in AUTO_STEPS:
            raise ValueError(f"`auto` must be one of {sorted(AUTO_STEPS)}, but got auto={auto!r}.")
        for name, value, low in (
            ("max_metric_calls", max_metric_calls, 1),
            ("num_steps", num_steps, 1),
            ("batch_size", batch_size, 1),
            ("num_candidates", num_candidates, 1),
            ("max_trial_examples", max_trial_examples, 1),
            ("critic_chunk_size", critic_chunk_size, 1),
            ("max_passing", max_passing, 0),
            ("num_threads", num_threads, 1),
        ):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < low):
                raise ValueError(f"`{name}` must be an integer of at least {low}, but got {name}={value!r}.")
        numbers = isinstance(score_range, (list, tuple)) and [isinstance(each, (int, float)) for each in score_range]
        if numbers != [True, True] or not score_range[0] < score_range[1]:
            raise ValueError(f"`score_range` must be (lowest, highest), but got score_range={score_range!r}.")
        if failure_score is not None and not score_range[0] <= failure_score <= score_range[1]:
            raise ValueError(f"`failure_score` must be in {score_range=}, but got failure_score={failure_score}.")
        if not isinstance(seed, int):
            raise TypeError(f"`seed` must be an integer, but got seed={seed!r}.")
        if not 0.5 < confidence < 1:
            raise ValueError(f"`confidence` must be in (0.5, 1), but got confidence={confidence}. 0.95 is usual.")
        Metric(metric, score_range)
        as_policies(policies)
        for each in protect if not isinstance(protect, str) else [protect]:
            if isinstance(protect, str) or not isinstance(each, (str, re.Pattern)) or not each:
                raise TypeError(f"`protect` must be a list of strings and compiled patterns, but got {protect!r}.")
        for name, model in (("prompt_model", prompt_model), ("critic_model", critic_model)):
            if model is not None and not isinstance(model, dspy.BaseLM):
                raise TypeError(f"`{name}` must be a language model, but got {model!r}. Use {name}=dspy.LM(...).")
        for name, module in (("critic", critic), ("proposer", proposer)):
            if module is not None and not callable(module):
                raise TypeError(f"`{name}` must be callable, but got {module!r}. ")
        if not callable(component_selector) and component_selector not in SELECTORS:
            raise ValueError(
                f"`component_selector` must be a callable or one of {sorted(SELECTORS)}, "
                f"but got {component_selector!r}."
            )
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
        self.max_metric_calls = max_metric_calls
        self.num_steps = num_steps
        self.batch_size = batch_size
        self.num_candidates = num_candidates
        self.max_trial_examples = max_trial_examples
        self.max_passing = max_passing
        self.score_range = score_range
        self.failure_score = failure_score
        self.confidence = confidence
        self.show_gold = show_gold
        self.num_threads = num_threads
        self.seed = seed
        self.log_dir = log_dir
        self.track_stats = track_stats
        self.verbose = verbose

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
            RuntimeError: If the program fails on the whole first minibatch.
            dspy.LMError: If a language model fails in a way that no retry can mend.
        """
        predictors = _predictors(student)
        prompt_model = self._prompt_model(predictors)
        critic_model = self.critic_model or prompt_model
        data = prepare(trainset, valset, self.seed)
        settings, budget = self._limits(data)
        progress = Progress(budget.max_metric_calls, settings.num_steps) if self.verbose else None
        if progress and data.held_out != "given":
            progress.note(f"no valset given: the result is chosen on {len(data.valset)} examples, {data.held_out}")
        num_threads = self.num_threads or dspy.settings.num_threads
        start = Candidate({name: predictor.signature.instructions for name, predictor in predictors.items()})
        protection = Protection(self.protect, student, start.instructions)
        ledger = Ledger(self.log_dir, self._fingerprint(student, data, settings, [prompt_model, critic_model]))
        try:
            forward = Forward(
                student,
                Metric(self.metric, self.score_range),
                data,
                ledger=ledger,
                budget=budget,
                num_threads=num_threads,
                failure_score=self.score_range[0] if self.failure_score is None else self.failure_score,
            )
            backward = Backward(
                Asker(critic_model, ledger, budget, num_threads, self.critic),
                data,
                show_gold=self.show_gold,
                top_score=self.score_range[1],
                chunk_size=self.critic_chunk_size,
                chain=self.chain,
            )
            update = Update(
                Asker(prompt_model, ledger, budget, num_threads, self.proposer),
                CopyGuard(data, start.instructions.values()).copies,
                lambda name, text: predictors[name].signature.with_instructions(text).instructions,
                protection,
                num_candidates=self.num_candidates,
                seed=self.seed,
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
                progress or (lambda record: None),
            )
            walk = loop.run(start)
            result = self._result(walk, data, forward, budget)
        finally:
            ledger.close()
        if progress:
            progress.conclude(result)
        student = student.deepcopy()
        for stale in ("candidate_programs", "detailed_results"):  # Those of an earlier compilation.
            vars(student).pop(stale, None)
        program = with_instructions(student, walk.best)
        program.candidate_programs = CandidatePrograms(student, result)
        if self.track_stats:
            program.detailed_results = result
        return program

    def _prompt_model(self, predictors: Mapping[str, dspy.Predict]) -> dspy.BaseLM:
        without = [name for name, predictor in predictors.items() if not (predictor.lm or dspy.settings.lm)]
        of_program = next((each.lm for each in predictors.values() if each.lm), None)
        model = self.prompt_model or dspy.settings.lm or of_program
        if without or model is None:
            raise ValueError(
                f"No language model for predictor {', '.join(without)}. "
                "Call dspy.configure(lm=dspy.LM(...)) first, or set one on the program with set_lm."
            )
        return model

    def _limits(self, data: Data) -> tuple[Settings, Budget]:
        size = len(data.trainset)
        if self.batch_size is not None and self.batch_size > size:
            raise ValueError(
                f"`batch_size` must be at most {size}, the train examples, but got batch_size={self.batch_size}."
            )
        settings = Settings(
            trainset=data.trainset,
            valset=data.valset,
            num_steps=self.num_steps,
            batch_size=self.batch_size or min(_BATCH_SIZE, size),
            max_trial_examples=self.max_trial_examples,
            max_passing=self.max_passing,
            score_range=self.score_range,
            confidence=self.confidence,
            seed=self.seed,
        )
        max_metric_calls = self.max_metric_calls
        if self.num_steps is None and max_metric_calls is None:
            num_steps = AUTO_STEPS[self.auto or "light"]
            trial = min(size, self.max_trial_examples or size)
            step = settings.batch_size * (1 + self.num_candidates) + trial + len(data.valset) // 2
            settings = replace(settings, num_steps=num_steps)
            max_metric_calls = 2 * len(data.valset) + num_steps * step
        step = settings.batch_size * (2 + self.num_candidates)
        least = 2 * len(data.valset) + step
        if max_metric_calls is not None and max_metric_calls < least:
            raise ValueError(
                f"`max_metric_calls` must be at least {least} here, but got max_metric_calls={max_metric_calls}: the "
                f"student and the result are both scored on {len(data.valset)} validation examples, and a step needs "
                f"{step}. Raise it, or give a smaller `valset` or `batch_size`."
            )
        return settings, Budget(max_metric_calls)

    def _fingerprint(
        self, student: dspy.Module, data: Data, settings: Settings, models: Sequence[dspy.BaseLM]
    ) -> dict[str, str]:
        """What decides the course of a run, by name. Limits and threads are not among it, so that a run can go on."""
        adapter = dspy.settings.adapter
        lms = [dspy.settings.lm, *models, *(predictor.lm for predictor in student.predictors())]
        return {
            "settings": repr(
                (
                    replace(settings, trainset=(), valset=(), num_steps=None, seed=0),
                    self.num_candidates,
                    self.failure_score,
                    self.show_gold,
                    self.protect,
                    self.critic_chunk_size,
                    self.chain,
                )
            ),
            "policies": repr([(type(policy).__name__, _attributes(policy)) for policy in as_policies(self.policies)]),
            "critic, proposer and component_selector": repr(
                [_hash(_code(each)) for each in (self.critic, self.proposer, self.component_selector)]
            ),
            "seed": repr(self.seed),
            "metric": _hash(_source(self.metric) + repr(_attributes(self.metric))),
            "program": _hash(_code(student)),
            "models": repr([(lm.model, _harmless(lm.kwargs)) if lm else None for lm in lms]),
            "adapter": repr((type(adapter).__name__, _attributes(adapter))) if adapter else "None",
            "data": data.hash(),
            "dspy": dspy.__version__,
        }

    def _result(self, walk: Walk, data: Data, forward: Forward, budget: Budget) -> DLPOResult:
        scores = {}
        for candidate in walk.seen.values():
            if found := forward.scores(candidate, data.valset):
                scores[candidate] = found
        candidates = tuple(scores)
        return DLPOResult(
            candidates=candidates,
            val_aggregate_scores=tuple(fmean(each) for each in scores.values()),
            num_val_examples=tuple(len(each) for each in scores.values()),
            best_idx=[candidate.id for candidate in candidates].index(walk.best.id),
            history=tuple(walk.history),
            spent=budget.spent,
            stopped=walk.stopped,
            log_dir=None if self.log_dir is None else str(self.log_dir),
            seed=self.seed,
        )


def _predictors(student: dspy.Module) -> dict[str, dspy.Predict]:
    if not isinstance(student, dspy.Module):
        raise TypeError(f"`student` must be a dspy.Module, but got {student!r}.")
    predictors = {
        name: predictor
        for name, predictor in student.named_predictors()
        if predictor is student or not getattr(predictor, "_compiled", False)
    }
    if not predictors:
        name = type(student).__name__
        raise ValueError(f"No predictor to optimise in {name}. Sub-modules marked `_compiled` are skipped.")
    return predictors


def _source(thing: Any) -> str:
    try:
        return inspect.getsource(thing)
    except (TypeError, OSError):  # Defined in C, in a notebook that is gone, or an object that is called.
        return getattr(thing, "__qualname__", type(thing).__qualname__)


def _code(thing: Any) -> str:
    """What a program, a function or another callable does, as far as its source and its settings tell."""
    if isinstance(thing, dspy.Module):
        return _source(type(thing)) + json.dumps(_without_lms(thing.dump_state()), default=repr)
    if isinstance(thing, str) or inspect.isfunction(thing):
        return _text(thing)
    return _source(thing if inspect.isroutine(thing) else type(thing)) + _text(_attributes(thing))


def _attributes(thing: Any) -> list[tuple[str, str]]:
    """The settings of a policy, an adapter or a metric object; what has no text of its own counts by its kind."""
    return [(name, _text(value)) for name, value in sorted(getattr(thing, "__dict__", {}).items())]


def _text(value: Any) -> str:
    if inspect.isfunction(value):  # Such as a schedule, whose numbers are in its closure.
        return _source(value) + "".join(_text(cell.cell_contents) for cell in value.__closure__ or ())
    if isinstance(value, (str, int, float, bool, tuple, list, dict, type(None))):
        return repr(value)
    return type(value).__qualname__


def _without_lms(state: Any) -> Any:
    if isinstance(state, Mapping):
        return {key: _without_lms(value) for key, value in state.items() if key != "lm"}
    return state


def _harmless(kwargs: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The settings of a language model without keys and addresses."""
    kept = ("temperature", "max_tokens", "max_completion_tokens", "top_p", "seed", "stop")
    return [(name, repr(kwargs[name])) for name in kept if name in kwargs]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
