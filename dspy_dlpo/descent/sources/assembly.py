"""From what the sources propose to candidates that keep every limit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from dspy_dlpo.core.edits import apply
from dspy_dlpo.core.likeness import normalised
from dspy_dlpo.core.protection import Protection
from dspy_dlpo.core.records import Candidate, Refusal
from dspy_dlpo.descent.examples import Examples
from dspy_dlpo.descent.screening import bounded, screen, up_to, within_limits
from dspy_dlpo.descent.sources.bandit import in_order
from dspy_dlpo.descent.sources.base import Change, Proposal, Source
from dspy_dlpo.descent.step import Step
from dspy_dlpo.descent.walk import Walk


class Sources:
    """Asks one source after another, and makes candidates of what they propose.

    A candidate is the incumbent with the proposed edits that keep every rule and limit. So no candidate breaks a cap,
    a frozen sentence or a user's limit, whatever a model wrote.

    Args:
        sources: The sources, the one to be tried first at the beginning.
        examples: What no edit may copy.
        read_back: What an instruction is after DSPy has stored it (it dedents and expands tabs), by predictor.
        protection: Finds protected text.
        num_candidates: Most candidates per step, those not counted that run beside them.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        examples: Examples,
        read_back: Callable[[str, str], str],
        protection: Protection,
        *,
        num_candidates: int,
    ) -> None:
        self._sources = sources
        self._examples = examples
        self._read_back = read_back
        self._protection = protection
        self._num_candidates = num_candidates

    @property
    def unparsed(self) -> int:
        """Replies so far that could not be used."""
        return sum(ask.unparsed for ask in {source.ask for source in self._sources} if ask is not None)

    def num_silent(self, walk: Walk) -> int:
        """Return in how many of the last steps of this incumbent nothing new came of what the critic said."""
        readers = {source.name for source in self._sources if source.reads_gradients}
        number = 0
        for record in reversed(walk.history):
            if record.accepted or any(candidate.source in readers for candidate in record.candidates):
                break
            number += bool(record.failures)
        return number

    def propose(self, step: Step, walk: Walk) -> Iterator[Candidate]:
        """Yield candidates: different ones, none of which was tried before; there may be none.

        A source is asked only once the candidates of those before it were taken, so one that is not needed costs
        nothing. What was found, and what was refused, is in the step before a candidate is yielded.

        Args:
            step: Has the requests of the predictors that move.
            walk: Where the run stands.

        Raises:
            BudgetSpent: If the budget ends on the way.
        """
        found: dict[str, Candidate] = {}
        refusals = list(step.refusals)
        taken: list[Proposal] = []
        tried = {*walk.tried, step.incumbent.id}
        places = 0
        for source in in_order(self._sources, walk.history):
            is_out = source.stage < 2 if step.ctx.is_last else source.stage == 2 and found
            room = self._num_candidates - (0 if source.beside else places)
            if is_out or not room:
                continue
            own: list[Candidate] = []
            for changes in self._screened(source.propose(step, walk, taken), refusals):
                if not changes or any(_sense(changes) == _sense(other) for other in taken):
                    continue
                taken.append(changes)
                candidate = self._candidate(step.incumbent, changes, source.name, refusals)
                if candidate.id not in tried and candidate.id not in found:
                    found[candidate.id] = candidate
                    own.append(candidate)
                    step.requests |= {
                        change.request.predictor: step.requests.get(change.request.predictor, change.request)
                        for change in changes
                    }
                if len(own) == room:
                    break
            places += 0 if source.beside else len(own)
            step.candidates, step.refusals = tuple(found.values()), bounded(refusals)
            yield from own

    def _screened(self, proposals: Iterable[Proposal], refusals: list[Refusal]) -> Iterator[Proposal]:
        """Yield what keeps the rules one by one; where some edits must help and others need not, first those others."""
        for proposal in proposals:
            changes = []
            for change in proposal:
                kept, refused = screen(change.edits, change.request, self._examples)
                refusals += refused
                changes.append(replace(change, edits=tuple(kept)))
            doubted = [edit for change in changes for edit in change.edits if edit.must_help]
            if doubted and len(doubted) < sum(len(change.edits) for change in changes):
                safe = [tuple(edit for edit in change.edits if not edit.must_help) for change in changes]
                yield _cut(replace(change, edits=edits) for change, edits in zip(changes, safe, strict=True))
            yield _cut(changes)

    def _candidate(self, incumbent: Candidate, changes: Proposal, source: str, refusals: list[Refusal]) -> Candidate:
        """Return the incumbent with those edits that keep the limits together, and with the proposed demos."""
        instructions, edits, demos = dict(incumbent.instructions), {}, dict(incumbent.demos)
        for change in changes:
            name, sentences = change.request.predictor, change.request.sentences
            kept, refused = within_limits(change.edits, change.request, partial(self._stored, name))
            refusals += refused
            if kept:
                instructions[name] = self._stored(name, apply(sentences, kept))[0]
                edits[name] = tuple(kept)
            if change.demos is not None:
                demos[name] = change.demos
        return Candidate(instructions, incumbent.id, edits, demos, source)

    def _stored(self, predictor: str, text: str) -> tuple[str, Sequence[str]]:
        """Return an instruction as DSPy reads it back, and its sentences."""
        text = self._read_back(predictor, text) if text.strip() else ""  # DSPy would put in a text of its own.
        return text, self._protection.split(predictor, text)[0]


def _cut(changes: Iterable[Change]) -> Proposal:
    """Return the changes with as many edits as the cap allows, without those that are empty."""
    fitting = (replace(each, edits=tuple(up_to(each.edits, each.request.max_edits))) for each in changes)
    return [change for change in fitting if not change.is_empty]


def _sense(changes: Proposal) -> frozenset[tuple[str | int, ...]]:
    """Return what a proposal does, whatever its reasons."""
    edits = ((each.request.predictor, edit) for each in changes for edit in each.edits)
    demos = ((each.request.predictor, *(demo.example for demo in each.demos or ())) for each in changes)
    return frozenset([*((name, edit.op, edit.at, normalised(edit.text)) for name, edit in edits), *demos])
