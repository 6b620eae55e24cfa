"""The loop: one step of textual gradient descent after another."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, reduce
from itertools import count, islice, zip_longest
from operator import add
from statistics import fmean

from dspy_dlpo.core.edits import Edit
from dspy_dlpo.core.protection import Protection
from dspy_dlpo.core.records import (
    Candidate,
    Outcome,
    Rollout,
    Spending,
    StepRecord,
    TextualGradient,
    Threshold,
    Trial,
    UpdateRequest,
)
from dspy_dlpo.descent.acceptance import decide
from dspy_dlpo.descent.backward import Backward, call_text
from dspy_dlpo.descent.choice import Choice
from dspy_dlpo.descent.listeners import Listener
from dspy_dlpo.descent.origins import origins_of
from dspy_dlpo.descent.selectors import ComponentSelector
from dspy_dlpo.descent.statistics import Gain
from dspy_dlpo.descent.update import Update
from dspy_dlpo.policies import Policy, State, StepContext
from dspy_dlpo.runtime.budget import Budget, BudgetSpent
from dspy_dlpo.runtime.faults import check_first_minibatch
from dspy_dlpo.runtime.forward import Forward
from dspy_dlpo.runtime.ledger import Ledger
from dspy_dlpo.runtime.reach import check_reach

MAX_IDLE_STEPS = 10


@dataclass(frozen=True)
class Settings:
    """The numbers that steer a run; `DLPOOptimizer` documents them."""

    trainset: Sequence[str]
    valset: Sequence[str]
    num_steps: int | None
    batch_size: int
    num_candidates: int
    max_trial_examples: int | None
    max_passing: int
    score_range: tuple[float, float]
    confidence: float
    seed: int
    num_repeats: int = 1
    patience: int | None = None

    @property
    def first_look(self) -> int:
        """Examples before a comparison is looked at first."""
        return min(self.batch_size, self.max_trial_examples or self.batch_size)

    @property
    def width(self) -> float:
        """Width of the score range."""
        return self.score_range[1] - self.score_range[0]


@dataclass
class Walk:
    """Where a run stands: the incumbent walks, the best on the valset is kept apart.

    `position` counts the train examples that were gone through, over all epochs; `steps_without_gain` the steps since a
    candidate was ahead of the best on the valset.
    """

    student: Candidate
    incumbent: Candidate
    choice: Choice
    states: list[State]
    seen: dict[str, Candidate] = field(default_factory=dict)
    position: int = 0
    steps_without_gain: int = 0
    history: list[StepRecord] = field(default_factory=list)
    stopped: str = ""
    gain: Gain = field(default_factory=Gain)


class Loop:
    """Forward, loss, backward, update, accept, record: until a limit is reached.

    Args:
        forward: Runs candidates on examples.
        backward: Turns failures into gradients.
        update: Turns gradients into candidates.
        protection: Finds protected text.
        policies: The strategies.
        selector: Says which predictors move in a step.
        ledger: Where each step is kept.
        budget: What may be spent.
        settings: The numbers.
        listener: Hears of each new candidate and each completed step.
    """

    def __init__(
        self,
        forward: Forward,
        backward: Backward,
        update: Update,
        protection: Protection,
        policies: Sequence[Policy],
        selector: ComponentSelector,
        ledger: Ledger,
        budget: Budget,
        settings: Settings,
        listener: Listener,
    ) -> None:
        self.forward, self.backward, self.update, self.protection = forward, backward, update, protection
        self.policies, self.selector, self.ledger, self.budget = policies, selector, ledger, budget
        self.settings, self.listener = settings, listener
        self._order = lru_cache(maxsize=4)(self._shuffled)

    def run(self, student: Candidate) -> Walk:
        """Walk from the student until the steps, the budget or the failures run out; then choose."""
        requests = [self.request(student, TextualGradient(name, ())) for name in student.instructions]
        states = [policy.init(requests) for policy in self.policies]
        choice = Choice(
            self.forward,
            student,
            self.settings.valset,
            score_range=self.settings.score_range,
            confidence=self.settings.confidence,
            first_look=self.settings.first_look,
            max_examples=self.settings.max_trial_examples,
        )
        walk = Walk(student, student, choice, states, {student.id: student})
        try:
            self.check(student, self.minibatch(walk))
            walk.choice.begin()
            idle = 0
            while not walk.stopped:
                gains = walk.choice.num_gains
                self.budget.reserve = walk.choice.unpaid * self.settings.num_repeats
                spent = self.budget.spent.metric_calls
                record = self.step(walk)
                idle = 0 if self.budget.spent.metric_calls > spent else idle + 1
                walk.steps_without_gain = 0 if walk.choice.num_gains > gains else walk.steps_without_gain + 1
                walk.stopped = walk.stopped or self.reason_to_stop(walk, idle)
                self.ledger.add_step(record, walk.states)
                self.listener.on_step_end(record)
        except BudgetSpent as limit:
            walk.stopped = str(limit)
        self.budget.reserve = 0
        walk.gain = walk.choice.conclude()
        self.ledger.settle()
        return walk

    def check(self, student: Candidate, minibatch: Sequence[str]) -> None:
        """Run the first minibatch; where all of it fails, end the run, and let it be tried again on resume."""
        rollouts = self.forward([(student, example) for example in minibatch])
        try:
            check_first_minibatch(rollouts)
            check_reach(student.instructions, rollouts)
        except RuntimeError:
            self.ledger.unsettle(student.id)
            raise

    def step(self, walk: Walk) -> StepRecord:
        """Take one step: minibatch, gradients, candidates, trial; move the incumbent if the trial says so."""
        index = len(walk.history)
        ctx = StepContext(index, self.settings.seed, self.settings.width)
        minibatch = self.minibatch(walk)
        walk.position += len(minibatch)

        rollouts = self.forward([(walk.incumbent, example) for example in minibatch])
        rollouts = [rollout for rollout in rollouts if not rollout.lost]
        top = self.settings.score_range[1]
        loss = _mean([top - rollout.score for rollout in rollouts])
        record = StepRecord(index, walk.incumbent.id, tuple(rollout.example for rollout in rollouts), loss, top)
        try:
            record = self.propose(walk, record, rollouts, ctx)
            if record.candidates:
                race, trial = self.try_out(walk, record.candidates, minibatch, ctx)
                record = replace(record, race=race, trial=trial)
                if trial.accepted:
                    walk.incumbent = walk.seen[trial.candidate]
                    walk.choice.enter(walk.incumbent, is_ahead=trial.gain > 0)
        except BudgetSpent as limit:
            walk.stopped = str(limit)
            record = replace(record, skipped=None if record.trial else Outcome.BUDGET_SPENT)
        return self.learn(walk, record)

    def propose(self, walk: Walk, record: StepRecord, rollouts: Sequence[Rollout], ctx: StepContext) -> StepRecord:
        """Backward and update: add to the record what the failures say, what is asked for, and the candidates."""
        failing = [rollout for rollout in rollouts if rollout.score < record.top_score]
        passing = [rollout for rollout in rollouts if rollout.score >= record.top_score][: self.settings.max_passing]
        gradients, remarks = self.backward(walk.incumbent, failing, record.step) if failing else ((), {})
        moving = self.selector(gradients, ctx, walk.history)
        requests = [self.narrow(walk, gradient, ctx, passing) for gradient in moving]
        proposals = self.update(walk.incumbent, requests, record.step)
        if rollouts and not proposals.candidates:
            own = self.own_proposals(walk, ctx)
            requests = [*{request.predictor: request for request in [*(each for each, _ in own), *requests]}.values()]
            pruned = self.update.of_policies(walk.incumbent, own)
            proposals = replace(pruned, refusals=(*proposals.refusals, *pruned.refusals))
        for candidate in proposals.candidates:
            if candidate.id not in walk.seen:  # Its first parent is where it came from.
                walk.seen[candidate.id] = candidate
                self.listener.on_candidate(candidate, record.step)
        why = Outcome.NO_USABLE_EDIT if gradients else Outcome.NO_GRADIENT if failing else Outcome.PERFECT_MINIBATCH
        return replace(
            record,
            failures=tuple(replace(rollout, spent=Spending()) for rollout in failing),
            gradients=gradients,
            remarks=remarks,
            requests=tuple(requests),
            candidates=proposals.candidates,
            refusals=proposals.refusals,
            skipped=None if proposals.candidates else why if rollouts else Outcome.MINIBATCH_LOST,
        )

    def narrow(
        self, walk: Walk, gradient: TextualGradient, ctx: StepContext, passing: Sequence[Rollout] = ()
    ) -> UpdateRequest:
        """Ask for an update of one predictor, within what all policies allow, beside what went right."""
        calls = (call for rollout in passing for call in rollout.calls if call.predictor == gradient.predictor)
        request = replace(self.request(walk.incumbent, gradient), passing=tuple(map(call_text, calls)))
        for policy, state in zip(self.policies, walk.states, strict=True):
            request = policy.narrow(request, state, ctx)
        return request

    def request(self, candidate: Candidate, gradient: TextualGradient) -> UpdateRequest:
        """Return a request that only what is protected narrows."""
        sentences, frozen = self.protection.split(gradient.predictor, candidate.instructions[gradient.predictor])
        return UpdateRequest(gradient.predictor, sentences, gradient, frozen=frozen)

    def own_proposals(self, walk: Walk, ctx: StepContext) -> list[tuple[UpdateRequest, tuple[Edit, ...]]]:
        """Return the edits that policies propose themselves, each with the request that bounds them."""
        requests = [self.narrow(walk, TextualGradient(name, ()), ctx) for name in walk.incumbent.instructions]
        return [
            (request, edits)
            for request in requests
            for policy, state in zip(self.policies, walk.states, strict=True)
            for edits in policy.propose(request, state, ctx)
        ]

    def try_out(
        self, walk: Walk, candidates: Sequence[Candidate], minibatch: Sequence[str], ctx: StepContext
    ) -> tuple[tuple[float, ...], Trial]:
        """Let the candidates race on examples they were not made from; the winner goes on against the incumbent.

        The minibatch decides nothing: a candidate that quotes its examples would win there and nowhere else. Where all
        candidates only leave sentences out, they are tried first on the examples that these were written for, so that
        one that is needed there stays, whatever the others say.
        """
        most = self.settings.max_trial_examples
        pool = dict.fromkeys([*self.reasons(walk, candidates), *self.fresh(minibatch, walk.position, most)])
        if len(pool) < self.settings.first_look:  # A small trainset has no fresh ones to spare.
            pool |= dict.fromkeys(minibatch)
        examples = [*pool][:most]
        first = examples[: self.settings.first_look]
        thresholds, gains = [self.threshold(walk, candidate, ctx) for candidate in candidates], []
        for candidate, threshold in zip(candidates, thresholds, strict=True):
            gains.append(_mean(self.forward.differences(candidate, walk.incumbent, first)))
            if gains[-1] > max(threshold.level, 0.0):
                break
        leader = max(range(len(gains)), key=lambda number: gains[number] - thresholds[number].level)
        winner, threshold = candidates[leader], thresholds[leader]
        paid, accepted = decide(
            lambda more: self.forward.differences(winner, walk.incumbent, more),
            examples,
            threshold=threshold.level,
            width=self.settings.width,
            confidence=1 - (1 - self.settings.confidence) / len(gains),  # The winner was picked among several.
            first_look=self.settings.first_look,
        )
        trial = Trial(winner.id, walk.incumbent.id, tuple(paid), len(examples), threshold, accepted)
        return tuple(gains), trial

    def reasons(self, walk: Walk, candidates: Sequence[Candidate]) -> list[str]:
        """Return the examples for which the sentences were written that candidates leave out, in turn."""
        edits = [(name, edit) for each in candidates for name, all_of in each.edits.items() for edit in all_of]
        if any(edit.op != "delete" for _, edit in edits):
            return []
        examples = []
        for name, edit in edits:
            left_out = self.request(walk.incumbent, TextualGradient(name, ())).sentences[edit.at].strip()
            origins = origins_of(walk.student, walk.history, name, walk.incumbent.id)
            points = [point for each in origins if each.sentence.strip() == left_out for point in each.points[:1]]
            examples.append([example for point in points for example in point.examples])
        return [name for names in zip_longest(*examples) for name in names if name is not None]

    def threshold(self, walk: Walk, candidate: Candidate, ctx: StepContext) -> Threshold:
        """Add up what the policies ask of the mean gain."""
        states = zip(self.policies, walk.states, strict=True)
        parts = (policy.threshold(candidate, walk.incumbent, state, ctx) for policy, state in states)
        return reduce(add, parts, Threshold())

    def learn(self, walk: Walk, record: StepRecord) -> StepRecord:
        """Complete the record, keep it, and let the policies learn from it, whatever came of the step."""
        unparsed = self.backward.ask.unparsed + self.update.ask.unparsed
        best, score = walk.choice.best, walk.choice.best_score
        record = replace(
            record,
            best=best.id,
            best_score=score,
            unparsed=unparsed,
            lost=self.forward.lost,
            spent=self.budget.spent,
        )
        walk.history.append(record)
        walk.states = [policy.learn(record, state) for policy, state in zip(self.policies, walk.states, strict=True)]
        return record

    def reason_to_stop(self, walk: Walk, idle: int) -> str:
        """Return why the run is over, empty if it is not."""
        trainset, top = self.settings.trainset, self.settings.score_range[1]
        if walk.history[-1].outcome is Outcome.PERFECT_MINIBATCH and all(
            self.forward.score(walk.incumbent, example) == top for example in trainset
        ):
            return "the program is perfect on the whole trainset"
        if len(walk.history) == self.settings.num_steps:
            return f"{self.settings.num_steps} steps are done"
        if walk.steps_without_gain == self.settings.patience:
            return f"nothing better in {walk.steps_without_gain} steps"
        if idle >= max(MAX_IDLE_STEPS, -(-len(trainset) // self.settings.batch_size)):
            return f"{idle} steps in a row had nothing to try"
        try:
            self.budget.check(self.least_calls(walk))  # Else critic and proposer would be paid for nothing.
        except BudgetSpent as limit:
            return str(limit)
        return ""

    def least_calls(self, walk: Walk) -> int:
        """Return the metric calls that the next step needs to try its candidates out."""
        minibatch = self.minibatch(walk)
        first = self.fresh(minibatch, walk.position + len(minibatch), self.settings.first_look)
        examples = {*minibatch, *first}
        unpaid = sum(self.forward.score(walk.incumbent, name) is None for name in examples)
        return (unpaid + self.settings.num_candidates * len(first)) * self.settings.num_repeats

    def minibatch(self, walk: Walk) -> list[str]:
        """Return the next train examples, until `batch_size` of them are not known to be passed by the incumbent.

        Those it failed when it was tried out are paid already, so most of a minibatch costs nothing.
        """
        most = max(self.settings.batch_size, len(self.settings.trainset) - self.settings.batch_size)  # Some stay fresh.
        names: list[str] = []
        num_open = 0
        for name in self.ahead(walk.position):
            names.append(name)
            num_open += self.forward.score(walk.incumbent, name) != self.settings.score_range[1]
            if num_open == self.settings.batch_size or len(names) == most:
                break
        return names

    def fresh(self, minibatch: Sequence[str], position: int, most: int | None) -> list[str]:
        """Return the next train examples outside the minibatch, at most so many; None for all."""
        used = {*minibatch}
        return list(islice((name for name in self.ahead(position) if name not in used), most))

    def ahead(self, position: int) -> Iterator[str]:
        """Yield every train example once, from a position on; each epoch has a random order of its own.

        Minibatch and trial follow the same order, so that what an incumbent was paid for as a candidate serves again.
        """
        size, seen = len(self.settings.trainset), set[str]()
        for place in count(position):
            epoch, index = divmod(place, size)
            name = self._order(epoch)[index]
            if name not in seen:
                seen.add(name)
                yield name
            if len(seen) == size:
                return

    def _shuffled(self, epoch: int) -> list[str]:
        """Return the trainset in the order of an epoch."""
        order = list(self.settings.trainset)
        random.Random(f"{self.settings.seed}/epoch/{epoch}").shuffle(order)
        return order


def _mean(values: Sequence[float]) -> float:
    """Return the mean; 0 where every value was lost."""
    return fmean(values) if values else 0.0
