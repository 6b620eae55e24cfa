"""An APO-style beam search (Pryzant et al. 2023, arXiv 2305.03495), built from our parts.

Each round, every prompt of the beam is criticised on a minibatch, edited as the criticism says, and the edits are
paraphrased; a bandit (UCB1) decides on which of them further train examples are spent, and the best go on.

Departures: edits are our sentence edits, so that critic and proposer are asked in the same words as DLPO's. There is no
prompt for several rewrites at once. Bandit pulls go over one order of the train examples, so that prompts are compared
on the same ones, and what was paid for once serves again.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import count
from statistics import fmean
from typing import Any

import dspy

from dspy_dlpo.benchmarks.rivals.plans import APO_SUCCESSORS
from dspy_dlpo.core.protection import Protection
from dspy_dlpo.core.records import Candidate
from dspy_dlpo.core.settings import Settings
from dspy_dlpo.descent.backward import Backward
from dspy_dlpo.descent.choice import Choice
from dspy_dlpo.descent.examples import Examples
from dspy_dlpo.descent.requests import Requests
from dspy_dlpo.descent.sources.assembly import Sources
from dspy_dlpo.descent.sources.critic_sentences import CriticSentences
from dspy_dlpo.descent.sources.half_step import HalfStep
from dspy_dlpo.descent.sources.proposer_edits import ProposerEdits
from dspy_dlpo.descent.step import Step
from dspy_dlpo.descent.walk import Walk
from dspy_dlpo.policies import Chain, StepContext
from dspy_dlpo.runtime.asking import Asker, Question
from dspy_dlpo.runtime.budget import Budget, BudgetSpent, Limits
from dspy_dlpo.runtime.data import prepare
from dspy_dlpo.runtime.forward import Forward
from dspy_dlpo.runtime.ledger import Ledger
from dspy_dlpo.runtime.metric import Metric
from dspy_dlpo.runtime.program import Student, with_instructions

_MAX_IDLE_ROUNDS = 10
_TIMEOUT = 600.0


class Paraphrase(dspy.Signature):  # type: ignore[misc]  # DSPy is untyped.
    """Generate a variation of the instruction while keeping its meaning."""

    instruction: str = dspy.InputField()
    variation: str = dspy.OutputField(desc="the instruction in other words")


def beam_search(
    program: dspy.Module,
    trainset: list[dspy.Example],
    valset: list[dspy.Example],
    *,
    metric: Callable[..., Any],
    prompt_lm: dspy.BaseLM,
    max_metric_calls: int,
    beam: int,
    batch: int,
    seed: int,
    num_threads: int,
) -> tuple[dspy.Module, list[tuple[int, dspy.Module]]]:
    """Search until the budget is spent, its part for choosing among the last beam set aside.

    Args:
        program: The program.
        trainset: Examples for criticism and for the bandit.
        valset: Examples that choose among the prompts of the last beam.
        metric: The metric, scores from 0 to 1.
        prompt_lm: Criticises, edits and paraphrases.
        max_metric_calls: The budget. It is not exceeded.
        beam: Prompts kept from round to round.
        batch: Examples of a minibatch, and of one pull of the bandit.
        seed: Decides minibatches and the order of the examples.
        num_threads: Program runs in flight at once.

    Returns:
        The program with the chosen instructions; and for each round the metric calls made by its end and the program
        with the prompt that led then.
    """
    search = _Search(program, trainset, valset, metric, prompt_lm, max_metric_calls, batch, seed, num_threads)
    kept, bests, idle = [search.student], [], 0
    search.budget.reserve = beam * len(valset)
    with suppress(BudgetSpent):
        for number in count():
            spent = search.budget.spent.metric_calls
            try:
                pool = search.grow(kept, number)
                search.pull(pool)
            finally:  # What the budget still paid for counts.
                kept = search.leaders([*search.known.values()])[:beam] or kept
                bests.append((search.budget.spent.metric_calls, with_instructions(program, kept[0])))
            idle = 0 if search.budget.spent.metric_calls > spent else idle + 1
            if idle == _MAX_IDLE_ROUNDS:
                break
    search.budget.reserve = 0
    return with_instructions(program, search.choose(kept)), bests


class _Search:
    """The parts of a search, and what they know."""

    def __init__(
        self,
        program: dspy.Module,
        trainset: list[dspy.Example],
        valset: list[dspy.Example],
        metric: Callable[..., Any],
        prompt_lm: dspy.BaseLM,
        max_metric_calls: int,
        batch: int,
        seed: int,
        num_threads: int,
    ) -> None:
        student = Student(program)
        student.check()
        self.student = student.start
        self.known: dict[str, Candidate] = {}
        self.budget = Budget(Limits(max_metric_calls=max_metric_calls), num_threads=num_threads)
        self._data = prepare(trainset, valset, seed)
        self._batch, self._seed = batch, seed
        self._steps = count()
        self._order = list(self._data.trainset)
        random.Random(f"{seed}/apo").shuffle(self._order)
        protection = Protection((), student.protocols(), self.student.instructions)
        ledger = Ledger(None, {})
        self._forward = Forward(
            student,
            Metric(metric, (0.0, 1.0)),
            self._data,
            ledger=ledger,
            budget=self.budget,
            num_threads=num_threads,
            failure_score=0.0,
            timeout=_TIMEOUT,
        )
        self._ask = Asker(prompt_lm, ledger, self.budget, num_threads, timeout=_TIMEOUT)
        self._backward = Backward(self._ask, self._data, show_gold=True, top_score=1.0)
        settings = Settings(
            trainset=self._data.trainset,
            valset=self._data.valset,
            num_steps=None,
            batch_size=batch,
            num_candidates=APO_SUCCESSORS // 2,
            max_trial_examples=None,
            max_passing=0,
            score_range=(0.0, 1.0),
            confidence=0.95,
            seed=seed,
        )
        self._requests = Requests(protection, Chain([]))
        self._sources = Sources(
            [CriticSentences(), ProposerEdits(self._ask), HalfStep()],
            Examples(
                self._data, self.student.instructions.values(), [each.signature for each in student.all_predictors]
            ),
            student.read_back,
            protection,
            num_candidates=settings.num_candidates,
        )
        choice = Choice(self._forward, self.student, settings)
        self._walk = Walk.start(self.student, choice, self._requests.policies.init())

    def grow(self, kept: Sequence[Candidate], number: int) -> list[Candidate]:
        """Return the beam of a round with the successors of each of its prompts."""
        pool = {each.id: each for each in kept}
        for index, candidate in enumerate(kept):
            name = f"{number}/{index}"
            minibatch = random.Random(f"{self._seed}/apo/{name}").sample(
                self._order, min(self._batch, len(self._order))
            )
            rollouts = self._forward([(candidate, example) for example in minibatch])
            self.known.setdefault(candidate.id, candidate)
            step = Step(StepContext(next(self._steps), self._seed), candidate, minibatch, 1.0)
            step.rollouts = [rollout for rollout in rollouts if not rollout.lost]
            step.gradients, *_ = self._backward(candidate, step.failures, step.ctx.step)
            for gradient in step.gradients:
                request = replace(self._requests.plain(candidate, gradient.predictor), gradient=gradient)
                step.requests[gradient.predictor] = request
            edited = list(self._sources.propose(step, self._walk))
            for each in [*edited, *self._paraphrased(edited, name)]:
                pool.setdefault(each.id, each)
        return list(pool.values())

    def _paraphrased(self, edited: Sequence[Candidate], name: str) -> list[Candidate]:
        moved = [(each, predictor) for each in edited for predictor in each.edits]
        questions = [
            Question(f"paraphrase/{name}/{predictor}", Paraphrase, {"instruction": each.instructions[predictor]})
            for each, predictor in moved
        ]
        found = {each.id: each for each in edited}
        for (each, predictor), reply in zip(moved, self._ask(questions), strict=True):
            if reply and reply["variation"].strip():
                texts = {**found[each.id].instructions, predictor: reply["variation"].strip()}
                found[each.id] = replace(found[each.id], instructions=texts)
        return list(found.values())

    def pull(self, pool: Sequence[Candidate]) -> None:
        """Score every prompt on a batch, then spend as many pulls again where UCB1 expects most."""
        tried = {each.id: self._pull(each) for each in pool}
        for total in range(len(pool), 2 * len(pool)):
            open_to = [each for each in pool if len(self._scores(each)) < len(self._order)]
            if not open_to:
                return
            bound = partial(self._upper_bound, tried=tried, total=total)
            chosen = max(open_to, key=bound)
            tried[chosen.id] += self._pull(chosen)

    def _pull(self, candidate: Candidate) -> int:
        missing = [name for name in self._order if self._forward.score(candidate, name) is None]
        self._forward.pay([(candidate, name) for name in missing[: self._batch]])
        self.known.setdefault(candidate.id, candidate)
        return 1

    def _upper_bound(self, candidate: Candidate, *, tried: dict[str, int], total: int) -> float:
        return fmean(self._scores(candidate) or [0.0]) + math.sqrt(2 * math.log(total + 1) / tried[candidate.id])

    def _scores(self, candidate: Candidate) -> list[float]:
        return self._forward.known_scores(candidate, self._order)

    def leaders(self, pool: Sequence[Candidate]) -> list[Candidate]:
        """Return the prompts that have a score, the best first, ties by age."""
        return sorted(
            (each for each in pool if self._scores(each)), key=lambda candidate: -fmean(self._scores(candidate))
        )

    def choose(self, kept: Sequence[Candidate]) -> Candidate:
        """Return the best of the last beam on the validation examples."""
        names = self._data.valset
        with suppress(BudgetSpent):
            for candidate in kept:
                self._forward.pay([(candidate, name) for name in names])
        return max(kept, key=lambda candidate: fmean(self._forward.known_scores(candidate, names) or [0.0]))
