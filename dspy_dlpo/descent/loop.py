"""The algorithm: textual gradient descent, one step after another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from dspy_dlpo.core.records import Candidate
from dspy_dlpo.core.settings import Settings
from dspy_dlpo.core.steps import StepRecord, Threshold
from dspy_dlpo.descent.backward import Backward
from dspy_dlpo.descent.choice import Choice
from dspy_dlpo.descent.listeners import Listener
from dspy_dlpo.descent.requests import Requests
from dspy_dlpo.descent.rights import first_rights
from dspy_dlpo.descent.sampling import Sampler
from dspy_dlpo.descent.selectors import ComponentSelector
from dspy_dlpo.descent.sources.assembly import Sources
from dspy_dlpo.descent.sources.pruning import written_for
from dspy_dlpo.descent.step import Step
from dspy_dlpo.descent.stopping import Stopping, early_end
from dspy_dlpo.descent.trial import Race
from dspy_dlpo.descent.walk import Walk
from dspy_dlpo.policies.base import StepContext
from dspy_dlpo.policies.chain import Chain
from dspy_dlpo.runtime.budget import Budget, BudgetSpent
from dspy_dlpo.runtime.faults import FATAL, Outage, check_first_minibatch
from dspy_dlpo.runtime.forward import Forward
from dspy_dlpo.runtime.ledger import Ledger
from dspy_dlpo.runtime.reach import check_reach


@dataclass(frozen=True)
class Loop:
    """Forward, loss, backward, update, trial, accept, record: until there is a reason to stop.

    Args:
        settings: The numbers.
        forward: Runs candidates on examples.
        backward: Turns failures into gradients.
        selector: Says which predictors move in a step.
        requests: Says what the sources are asked, within the limits of the policies.
        sources: Turn gradients into candidates.
        race: Decides which candidate is accepted, if any.
        policies: The strategies, as one.
        sampler: Draws examples.
        stopping: Says when the run ends.
        budget: What may be spent.
        ledger: Where each step is kept.
        listener: Is called for each phase, new candidate and completed step.
    """

    settings: Settings
    forward: Forward
    backward: Backward
    selector: ComponentSelector
    requests: Requests
    sources: Sources
    race: Race
    policies: Chain
    sampler: Sampler
    stopping: Stopping
    budget: Budget
    ledger: Ledger
    listener: Listener

    def run(self, student: Candidate) -> Walk:
        """Walk from the student until there is a reason to stop; then choose."""
        state = self.policies.init([self.requests.plain(student, name) for name in student.instructions])
        walk = Walk.start(student, Choice(self.forward, student, self.settings), state)
        self.listener.on_phase("scoring the student")
        try:
            self.check(walk)
            walk.choice.begin()
            walk.num_metric_calls = self.budget.spent.metric_calls
            while not walk.stopped:
                self.reserve(walk)
                self.listener.on_step_end(self.step(walk))
            self.trim(walk)
        except (BudgetSpent, *FATAL) as limit:
            walk.stopped = early_end(walk, limit)
        self.budget.reserve = 0
        self.listener.on_phase("making the final choice")
        walk.gain = walk.choice.conclude()
        return walk

    def trim(self, walk: Walk) -> None:
        """Leave out what was never shown to help, in steps of its own, if that is no worse and the limits allow it."""
        self.reserve(walk)
        with suppress(BudgetSpent):
            while self.has_unproven(walk) and len(walk.history) != self.settings.num_steps:
                self.budget.check(self.settings.first_look * self.settings.num_repeats)
                record = self.step(walk, is_last=True)
                self.listener.on_step_end(record)
                if not record.accepted:
                    break

    def reserve(self, walk: Walk) -> None:
        """Keep back the rollouts of the final choice."""
        self.budget.reserve = walk.choice.unpaid * self.settings.num_repeats

    def has_unproven(self, walk: Walk) -> bool:
        """Whether the incumbent holds what a last step would leave out."""
        plain, ctx = partial(self.requests.plain, walk.incumbent), self.context(walk, is_last=True)
        return any(self.policies.propose(plain(name), walk.state, ctx) for name in walk.incumbent.instructions)

    def context(self, walk: Walk, *, is_last: bool) -> StepContext:
        """Return what the policies know about the next step."""
        return StepContext(len(walk.history), self.settings.seed, self.settings.width, is_last)

    def step(self, walk: Walk, *, is_last: bool = False) -> StepRecord:
        """Take one step of SGD, with words for numbers. If the budget ends on the way, what is paid stands."""
        say, ctx = self.listener.on_phase, self.context(walk, is_last=is_last)
        minibatch = [] if is_last else self.minibatch(walk)
        step = Step(ctx, walk.incumbent, minibatch, self.settings.score_range[1])
        walk.position += len(step.minibatch)
        say("running the minibatch")
        rollouts = self.forward([(step.incumbent, example) for example in step.minibatch])  # Forward, and the loss.
        step.rollouts = [rollout for rollout in rollouts if not rollout.lost]
        try:
            say("asking the critic")
            passing = step.successes if self.settings.max_passing else []
            num_silent = self.sources.num_silent(walk)
            said = self.backward(step.incumbent, step.failures, ctx.step, passing, num_silent)  # Backward.
            step.gradients, step.remarks, step.refusals = said
            moving = self.selector(step.gradients, ctx, walk.history)
            step.requests = {each.predictor: self.requests(step, each, walk) for each in moving}
            entrants, fresh = self.entrants(step, walk), partial(self.fresh, step, walk)  # Update.
            step.race, step.trial = self.race(step.incumbent, entrants, fresh)  # Trial.
            if step.trial and step.trial.accepted:  # Accept or refuse.
                walk.accept(step.trial.candidate, is_ahead=step.trial.gain > 0 or is_last)
        except Outage:
            raise  # Without a record: a resumed run takes the step again.
        except BudgetSpent as limit:
            step.limit = str(limit)
        return self.record(step, walk)

    def record(self, step: Step, walk: Walk) -> StepRecord:
        """Freeze what the step did, let the policies learn from it, and keep it."""
        record = step.record(
            **walk.choice.standing,
            unparsed=self.backward.ask.unparsed + self.sources.unparsed,
            lost=self.forward.lost,
            errors=self.forward.errors,
            spent=self.budget.spent,
        )
        walk.close(record, self.policies.learn(record, walk.state))
        walk.stopped = walk.stopped or self.stopping.reason(walk, step)
        self.ledger.add_step(record, walk.state)
        return record

    def entrants(self, step: Step, walk: Walk) -> Iterator[tuple[Candidate, Threshold]]:
        """Yield candidates as the race asks for them, each with what its mean gain must exceed."""
        self.listener.on_phase("looking for candidates")
        for candidate in self.sources.propose(step, walk):
            for new in walk.meet(step.candidates):
                self.listener.on_candidate(new, step.ctx.step)
            self.listener.on_phase("trying the candidates")
            yield candidate, self.threshold(step, candidate, walk)
            self.listener.on_phase("looking for candidates")

    def fresh(self, step: Step, walk: Walk) -> list[str]:
        """Return the examples on which candidates meet the incumbent."""
        return self.sampler.trial(walk.position, step.minibatch, written_for(step, walk, self.requests))

    def threshold(self, step: Step, candidate: Candidate, walk: Walk) -> Threshold:
        """Return what the mean gain of a candidate must exceed: what the policies ask, and the rights of the user."""
        asked = self.policies.threshold(candidate, step.incumbent, walk.state, step.ctx)
        return asked + first_rights(candidate, step.requests, walk.student, step.ctx.width)

    def check(self, walk: Walk) -> None:
        """Run the first minibatch; where all of it fails, end the run, and let it be tried again on resume."""
        rollouts = self.forward([(walk.student, example) for example in self.minibatch(walk)])
        try:
            check_first_minibatch(rollouts)
            check_reach(walk.student.instructions, rollouts)
        except RuntimeError:
            self.ledger.unsettle(walk.student.id)
            raise

    def minibatch(self, walk: Walk) -> list[str]:
        """Return the next minibatch of the incumbent."""
        return self.sampler.minibatch(walk.position, partial(self.forward.passes, walk.incumbent))
