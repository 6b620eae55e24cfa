"""The optimisers that are compared, each behind one function of the same form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import dspy
from dspy.teleprompt import COPRO, GEPA, SIMBA, MIPROv2
from dspy.utils.callback import BaseCallback

from dspy_dlpo.benchmarks.job import CountedMetric, Job, Outcome, Rival
from dspy_dlpo.benchmarks.rivals import plans
from dspy_dlpo.benchmarks.rivals.beam import beam_search
from dspy_dlpo.benchmarks.rivals.plans import BudgetTooSmall
from dspy_dlpo.benchmarks.rivals.textgrad import textgrad
from dspy_dlpo.core.records import Candidate
from dspy_dlpo.optimizer.teleprompter import DLPOOptimizer
from dspy_dlpo.policies import (
    PRESETS,
    Policy,
    TextualContrastiveLearning,
    TextualDropout,
    TextualLearningRate,
    TextualLearningRateDecay,
    TextualMomentum,
    TextualRegularization,
    TextualSimulatedAnnealing,
)
from dspy_dlpo.runtime.program import with_instructions

STRATEGIES: dict[str, type[Policy]] = {
    "TLR": TextualLearningRate,
    "TDO": TextualDropout,
    "TSA": TextualSimulatedAnnealing,
    "TLRD": TextualLearningRateDecay,
    "TMnt": TextualMomentum,
    "TCL": TextualContrastiveLearning,
    "TRegu": TextualRegularization,
}
"""The paper's short names."""


class _Evaluations(BaseCallback):  # type: ignore[misc]  # DSPy is untyped.
    """Keeps the best program of those evaluated on a whole set with `dspy.Evaluate`, as they follow one another."""

    def __init__(self, metric: CountedMetric, num_examples: int) -> None:
        self.bests: list[tuple[int, dspy.Module]] = []
        self._metric, self._num_examples = metric, num_examples
        self._running: dict[str, dspy.Module] = {}
        self._best = -1.0

    def on_evaluate_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        if len(inputs.get("devset") or instance.devset) == self._num_examples:
            self._running[call_id] = inputs["program"]

    def on_evaluate_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        program = self._running.pop(call_id, None)
        if program is not None and outputs is not None and outputs.score > self._best:
            self._best = outputs.score
            self.bests.append((self._metric.calls, program.deepcopy()))  # COPRO goes on with the same object.


def none(job: Job) -> Outcome:
    """No optimisation."""
    return Outcome(job.program)


def human(job: Job) -> Outcome:
    """The instruction that a person wrote."""
    return Outcome(with_instructions(job.program, Candidate(job.task.human)))


def dlpo(job: Job, policies: str | Sequence[Policy] = "default", max_demos: int = 0) -> Outcome:
    """Ours, with a preset or a list of policies, and perhaps with demos; all else at its defaults."""
    num_examples = plans.valset_share(job.max_metric_calls, len(job.task.valset))
    optimizer = DLPOOptimizer(
        metric=job.metric,
        prompt_model=job.prompt_lm,
        policies=policies,
        max_demos=max_demos,
        max_metric_calls=job.max_metric_calls,
        seed=job.seed,
        num_threads=job.num_threads,
        verbose=False,
    )
    valset = list(job.task.valset)[:num_examples]
    try:
        program = optimizer.compile(job.program, trainset=list(job.task.trainset), valset=valset)
    except ValueError as problem:
        if str(problem).startswith("`max_metric_calls`"):
            raise BudgetTooSmall(str(problem)) from problem
        raise
    result = program.detailed_results
    known = {each.id: each for record in result.history for each in record.candidates}
    known |= {each.id: each for each in result.candidates}
    bests = [
        (record.spent.metric_calls, with_instructions(job.program, known[record.best])) for record in result.history
    ]
    refused = Counter[str]()
    for refusal in (each for record in result.history for each in record.refusals):
        refused[refusal.rule] += refusal.times
    accepted = Counter(
        known[record.trial.candidate].source for record in result.history if record.trial and record.trial.accepted
    )
    counts = {"refused": dict(refused), "accepted": dict(accepted)}
    return Outcome(program, bests, {"num_val_examples": num_examples, **counts})


def copro(job: Job) -> Outcome:
    """DSPy's COPRO. It has one set of examples, drawn here from train and validation examples together."""
    pool = job.pool
    plan = plans.copro(job.max_metric_calls, len(job.program.predictors()), len(pool))
    optimizer = COPRO(prompt_model=job.prompt_lm, metric=job.metric.number, **plan.settings)
    watch = _Evaluations(job.metric, plan.num_examples)
    with dspy.context(callbacks=[watch]):
        program = optimizer.compile(
            job.program,
            trainset=pool[: plan.num_examples],
            eval_kwargs={"num_threads": job.num_threads, "display_progress": False},
        )
    return Outcome(program, watch.bests, vars(plan))


class _Budgeted(MIPROv2):  # type: ignore[misc]  # DSPy is untyped.
    """MIPROv2 that plans its trials when it is known what bootstrapping has taken, which depends on the answers."""

    def __init__(self, job: Job, plan: plans.Plan, **settings: Any) -> None:
        super().__init__(metric=job.metric.number, prompt_model=job.prompt_lm, task_model=job.lm, **settings)
        self._job, self._plan = job, plan

    def _bootstrap_fewshot_examples(self, program: Any, trainset: list[Any], *args: Any, **options: Any) -> Any:
        """Show each set so many train examples that all of them together cannot take more than half of the budget."""
        most = max(1, self._job.max_metric_calls // 2 // self._plan.settings["num_candidates"])
        return super()._bootstrap_fewshot_examples(program, trainset[:most], *args, **options)

    def _optimize_prompt_parameters(
        self, program: Any, instructions: Any, demos: Any, evaluate: Any, valset: Any, num_trials: int, *rest: Any
    ) -> Any:
        left = self._job.max_metric_calls - self._job.metric.calls
        num_trials = max(1, plans.mipro_trials(left, len(valset)))
        return super()._optimize_prompt_parameters(program, instructions, demos, evaluate, valset, num_trials, *rest)


def mipro(job: Job, demos: bool = True) -> Outcome:
    """DSPy's MIPROv2, with or without demos."""
    num_examples = len(job.task.valset)
    plan = plans.mipro(job.max_metric_calls, len(job.program.predictors()), num_examples, demos)
    settings: dict[str, Any] = {} if demos else {"max_bootstrapped_demos": 0, "max_labeled_demos": 0}
    optimizer = _Budgeted(job, plan, auto=None, num_threads=job.num_threads, **plan.settings, **settings)
    watch = _Evaluations(job.metric, plan.num_examples)
    with dspy.context(callbacks=[watch]):
        program = optimizer.compile(
            job.program,
            trainset=list(job.task.trainset),
            valset=list(job.task.valset)[: plan.num_examples],
            num_trials=1,  # Planned after bootstrapping.
            minibatch=plans.is_minibatched(plan.num_examples),
            seed=job.seed + 1,  # It takes a seed of 0 for none.
        )
    return Outcome(program, watch.bests, vars(plan))


def simba(job: Job) -> Outcome:
    """DSPy's SIMBA. It knows only one set of examples, and no best before it has scored its winners in the end."""
    pool = job.pool
    plan = plans.simba(job.max_metric_calls, len(pool))
    optimizer = SIMBA(metric=job.metric, prompt_model=job.prompt_lm, num_threads=job.num_threads, **plan.settings)
    program = optimizer.compile(job.program, trainset=pool[: plan.num_examples], seed=job.seed)
    return Outcome(program, (), vars(plan))


def gepa(job: Job) -> Outcome:
    """dspy.GEPA. It stops after the iteration in which the budget is reached, which may exceed it."""
    num_examples = plans.valset_share(job.max_metric_calls, len(job.task.valset))
    optimizer = GEPA(
        metric=job.metric.by_predictor,
        max_metric_calls=job.max_metric_calls,
        reflection_lm=job.prompt_lm,
        num_threads=job.num_threads,
        track_stats=True,
        seed=job.seed,
    )
    least = 2 * (num_examples + optimizer.reflection_minibatch_size)
    if job.max_metric_calls < least:
        raise BudgetTooSmall(
            f"`max_metric_calls` must be at least {least} for gepa here, but got {job.max_metric_calls}."
        )
    valset = list(job.task.valset)[:num_examples]
    program = optimizer.compile(job.program, trainset=list(job.task.trainset), valset=valset)
    result, bests, best = program.detailed_results, [], -1.0
    for calls, score, each in zip(
        result.discovery_eval_counts, result.val_aggregate_scores, result.candidates, strict=True
    ):
        if score > best:
            best = score
            bests.append((calls + num_examples, each))  # Discovered, then scored.
    return Outcome(program, bests, {"num_val_examples": num_examples})


def apo(job: Job) -> Outcome:
    """An APO-style beam; see `dspy_dlpo.benchmarks.rivals.beam`."""
    plan = plans.apo(job.max_metric_calls, len(job.task.valset))
    program, bests = beam_search(
        job.program,
        list(job.task.trainset),
        list(job.task.valset)[: plan.num_examples],
        metric=job.metric,
        prompt_lm=job.prompt_lm,
        max_metric_calls=job.max_metric_calls,
        beam=plan.settings["beam"],
        batch=plan.settings["batch"],
        seed=job.seed,
        num_threads=job.num_threads,
    )
    return Outcome(program, bests, vars(plan))


def textual_gradients(job: Job) -> Outcome:
    """TextGrad, from its own package."""
    plan = plans.textgrad(job.max_metric_calls, len(job.task.valset))
    program, bests = textgrad(
        job.program,
        list(job.task.trainset),
        list(job.task.valset)[: plan.num_examples],
        metric=job.metric,
        prompt_lm=job.prompt_lm,
        num_steps=plan.settings["num_steps"],
        seed=job.seed,
        num_threads=job.num_threads,
        calls=lambda: job.metric.calls,
    )
    return Outcome(program, bests, vars(plan))


OPTIMIZERS: dict[str, Rival] = {
    "dlpo": dlpo,
    "dlpo+demos": partial(dlpo, max_demos=4),  # As many as MIPROv2 has by default.
    "copro": copro,
    "mipro": mipro,
    "mipro0": partial(mipro, demos=False),
    "simba": simba,
    "gepa": gepa,
    "textgrad": textual_gradients,
    "apo": apo,
    "human": human,
    "none": none,
}
"""The optimisers by name; see `rival_named` for more names of ours."""


def rival_named(name: str) -> Rival:
    """Return the optimiser of a name.

    Args:
        name: One of `OPTIMIZERS`, or ours with other policies: `dlpo:PRESET`; `dlpo:TLR+TSA`, the paper's strategies by
            their short names, with the settings of the preset `"paper"`; or `dlpo:paper-TDO`, all but that one.

    Raises:
        ValueError: If there is none of that name.
    """
    kind, _, policies = name.partition(":")
    if name in OPTIMIZERS:
        return OPTIMIZERS[name]
    if kind == "dlpo" and policies in PRESETS:
        return partial(dlpo, policies=policies)
    dropped = policies.removeprefix("paper-").split("+") if policies.startswith("paper-") else None
    chosen = dropped or policies.split("+")
    if kind != "dlpo" or not {*chosen} <= {*STRATEGIES}:
        raise ValueError(
            f"`optimizers` must be among {sorted(OPTIMIZERS)}, but got {name!r}. Ours with other policies is "
            f"'dlpo:PRESET' with one of {sorted(PRESETS)}, 'dlpo:TLR+TSA' or 'dlpo:paper-TDO' with {[*STRATEGIES]}."
        )
    return partial(_paper, chosen=tuple(chosen), is_without=bool(dropped))


def _paper(job: Job, chosen: Sequence[str], is_without: bool) -> Outcome:
    """Run ours with some of the paper's strategies; they are made here, since not every policy can be pickled."""
    classes = [STRATEGIES[short] for short in chosen]
    return dlpo(job, [each for each in PRESETS["paper"]() if (type(each) in classes) != is_without])


def ablation() -> list[str]:
    """Return the optimisers of the ablation: no strategy, each alone, all, and all but one."""
    return [
        "dlpo:none",
        *(f"dlpo:{short}" for short in STRATEGIES),
        "dlpo:paper",
        *(f"dlpo:paper-{short}" for short in STRATEGIES),
    ]
