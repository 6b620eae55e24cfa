"""The backward pass: a critic turns failures into textual gradients, from the last predictor back to the first."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from dspy_dlpo.core.likeness import normalised
from dspy_dlpo.core.records import Call, Candidate, Point, Refusal, Rollout, TextualGradient
from dspy_dlpo.core.tokens import count_tokens
from dspy_dlpo.descent.critic import Form
from dspy_dlpo.descent.replies import as_lines, is_nothing
from dspy_dlpo.descent.screening import LEFT_OUT
from dspy_dlpo.descent.wording import call_text, fenced
from dspy_dlpo.runtime.asking import Asks, Question
from dspy_dlpo.runtime.data import Data
from dspy_dlpo.runtime.trace import in_prompt, shorten

_CALL_NUMBER = re.compile(r"\W*(?:call\s+)?(\d{1,4}+)(?:\W*[.:)\]](?!\d)\W*|\s+(?=\W?\w+\W?\s*:))", re.IGNORECASE)
_INPUT_NAME = re.compile(r"[`*\"']*(\w+)[`*\"']*\s*:[`*]*\s*")
_BULLET = re.compile(r"^\s*(?:[-*•]|\d{1,3}[.)])\s+")
_MAX_CHUNK_TOKENS = 8000
_MAX_PASSING = 3


@dataclass(frozen=True)
class Backward:
    """Carries the complaint about each failing rollout back through its calls.

    The critic sees what the predictor was told, what it got, what it gave (where an example was run several times, also
    what it gave when that was right), and the complaint from downstream; it says
    what the instruction lacks, and what should have been different in each input that another predictor made. The
    latter is the complaint for that predictor. A predictor that receives no complaint gets no gradient. The
    complaint passes unchanged through predictors that are frozen or made on the fly.

    The metric's complaint goes to the predictors whose output no other uses; what it says on single predictors goes to
    those; a reply of the wrong form is a complaint about the predictor that gave it, and about no other.

    For each predictor one critic call per chunk of failing rollouts; predictors of which none feeds another are asked
    about at the same time. A critic that is asked about one rollout at a time is shown all of a step; then half of
    them, a quarter, and so on to the worst one, while it has nothing new to say.

    Args:
        ask: The critic.
        data: The examples.
        show_gold: Whether the critic sees their labels.
        top_score: The score of a perfect rollout.
        form: How the critic is asked: about how many failing rollouts at once, and in which words. There are fewer
            where they have more than 8,000 tokens together.
        chain: False shows every predictor the metric's complaint and carries nothing back.
        max_chars: Characters of a call, and of a complaint, that the critic sees.

    References:
        The chain rule for text is TextGrad's (arXiv 2406.07496); DSPy programs, with their loops and branches, ask for
        one on the level of predictors. DLPO (arXiv 2503.13413) has one prompt, and no chain.
    """

    ask: Asks
    data: Data
    show_gold: bool
    top_score: float
    form: Form = field(default_factory=Form)
    chain: bool = True
    max_chars: int = 4000

    def __call__(
        self,
        candidate: Candidate,
        failing: Sequence[Rollout],
        step: int,
        passing: Sequence[Rollout] = (),
        num_silent: int = 0,
    ) -> tuple[tuple[TextualGradient, ...], Mapping[str, int], tuple[Refusal, ...]]:
        """Return the gradients of the predictors to blame, in the candidate's order, remarks, and what was not read.

        Args:
            candidate: The incumbent.
            failing: Its rollouts below the top score.
            step: The run's step index.
            passing: Its rollouts that reached it, for a critic that is asked about several calls at once.
            num_silent: Steps in a row in which the critic had nothing new to say about this candidate.
        """
        if not failing:
            return (), {}, ()
        remarks: Counter[str] = Counter()
        refusals: list[Refusal] = []
        worst_first = sorted(failing, key=lambda rollout: rollout.score)
        if self.form.chunk_size == 1:
            worst_first = worst_first[: max(1, len(worst_first) >> num_silent)]
        walks = [_Walk.of(rollout, self.complaint(rollout), self.chain) for rollout in worst_first]
        found: dict[str, list[Point]] = {name: [] for name in candidate.instructions}
        for predictors in rounds(walks):
            asked: list[tuple[str, Sequence[_Walk]]] = []
            for name in predictors:
                blamed = [walk for walk in walks if walk.complaints.get(name)]
                if name in candidate.instructions:
                    asked += [(name, chunk) for chunk in self._chunks(blamed, name)]
                else:
                    ended = [walk for walk in blamed if not walk.pass_on(name, walk.complaints[name])]
                    remarks["complaints that ended at a frozen predictor"] += len(ended) if self.chain else 0
            questions = [self._question(candidate, name, chunk, passing, step) for name, chunk in asked]
            for (name, chunk), reply in zip(asked, self.ask(questions), strict=True):
                if reply is not None:
                    examples = [walk.rollout.example for walk in chunk]
                    points, left_out = self.form.read(reply["requirements"], examples, remarks)
                    refusals += [Refusal(LEFT_OUT, line, name) for line in left_out]
                    passed_on = _pass_on(reply.get("input_complaint", ""), name, chunk, remarks)
                    remarks["nothing to change"] += not points and not passed_on
                    found[name] += points
            for walk in walks:
                for name in predictors:
                    walk.complaints.pop(name, None)
        remarks["complaints that came too late in a loop"] = sum(len(walk.complaints) for walk in walks)
        self._count(candidate, walks, remarks)
        gradients = []
        for name, points in found.items():
            trusted = [point for point in points if not point.is_loose] or points
            refusals += [Refusal(LEFT_OUT, point.text, name) for point in points if point not in trusted]
            if trusted:
                gradients.append(_reduce(name, trusted, len(worst_first)))
        return tuple(gradients), {remark: count for remark, count in remarks.items() if count}, tuple(refusals)

    def complaint(self, rollout: Rollout) -> str:
        """Return what was wrong with a rollout: feedback, error, and the labels if they may be shown."""
        parts = [rollout.feedback, rollout.error and f"The run failed: {rollout.error}"]
        if not any(parts):
            parts.append(f"The result scored {rollout.score:g}; the best possible score is {self.top_score:g}.")
        return "\n".join([*(part for part in parts if part), *self._labels(rollout)])

    def first_complaints(self, rollout: Rollout) -> Mapping[str, Sequence[str]]:
        """Return what the metric says of a rollout, by the predictors to which that goes first."""
        return _Walk.of(rollout, rollout.feedback, self.chain).complaints

    def _labels(self, rollout: Rollout) -> list[str]:
        labels = self.data[rollout.example].labels().items() if self.show_gold else ()
        return [f"Expected {name}: {in_prompt(value)}" for name, value in labels]

    def _chunks(self, walks: Sequence[_Walk], predictor: str) -> Iterator[Sequence[_Walk]]:
        chunk: list[_Walk] = []
        tokens = 0
        for walk in walks:
            size = sum(map(count_tokens, self._case(walk, predictor))) if self.form.chunk_size > 1 else 0
            if chunk and (len(chunk) == self.form.chunk_size or tokens + size > _MAX_CHUNK_TOKENS):
                yield chunk
                chunk, tokens = [], 0
            chunk.append(walk)
            tokens += size
        if chunk:
            yield chunk

    def _case(self, walk: _Walk, predictor: str) -> tuple[str, str]:
        """Return the calls of a predictor in a rollout, beside those of a run that went right, and the complaint."""
        calls = "\n\n".join(map(call_text, walk.calls[predictor]))
        right = [call_text(call) for call in walk.rollout.right_calls if call.predictor == predictor]
        if right:
            calls = "\n\n".join([calls, "In another run on the same example all went right:", *right])
        complaint = "\n".join(dict.fromkeys(walk.complaints[predictor]))
        return shorten(calls, self.max_chars), shorten(complaint, self.max_chars)

    def _question(
        self, candidate: Candidate, predictor: str, chunk: Sequence[_Walk], passing: Sequence[Rollout], step: int
    ) -> Question:
        calls, complaints = zip(*(self._case(walk, predictor) for walk in chunk), strict=True)
        inputs = {
            "instruction": candidate.instructions[predictor],
            "call": fenced(self.form.numbered(calls)),
            "complaint": fenced(self.form.numbered(complaints)),
        }
        if self.form.in_batches:
            right = (call for rollout in passing for call in rollout.calls if call.predictor == predictor)
            texts = [shorten(call_text(call), self.max_chars) for call in islice(right, _MAX_PASSING)]
            inputs["right"] = fenced("\n\n".join(texts) or "none yet")
        sources = list(dict.fromkeys(name for walk in chunk for name in walk.sources[predictor]))
        name = f"critic/{step}/{predictor}/{chunk[0].rollout.example}"
        return Question(name, self.form.signature(sources, len(chunk)), inputs)

    @staticmethod
    def _count(candidate: Candidate, walks: Sequence[_Walk], remarks: Counter[str]) -> None:
        remarks["rollouts without a predictor call"] = sum(not walk.calls for walk in walks)
        remarks["predictors that never ran"] = sum(
            all(name not in walk.calls for walk in walks) for name in candidate.instructions
        )
        remarks["calls left out"] = sum(walk.rollout.num_calls - len(walk.rollout.calls) for walk in walks)


@dataclass
class _Walk:
    """One failing rollout: its calls by predictor, which inputs came from which predictors, and the complaints."""

    rollout: Rollout
    names: list[str]
    calls: dict[str, list[Call]] = field(default_factory=dict)
    sources: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    complaints: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, rollout: Rollout, complaint: str, chain: bool) -> _Walk:
        names = [call.predictor or f"made on the fly: {'/'.join(call.outputs)}" for call in rollout.calls]
        walk = cls(rollout, names)
        for name, call in zip(names, rollout.calls, strict=True):
            walk.calls.setdefault(name, []).append(call)
            sources = walk.sources.setdefault(name, {})
            for input_name, makers in call.sources.items() if chain else ():
                known = sources.setdefault(input_name, [])
                known += [names[maker] for maker in makers if names[maker] not in (name, *known)]
        walk.sources = {name: {each: of for each, of in found.items() if of} for name, found in walk.sources.items()}
        walk.complaints = {name: [complaint] for name in (walk._ends() if chain else walk.calls)}
        for name, calls in walk.calls.items():
            if words := rollout.predictor_feedback.get(name):
                walk.complaints[name] = [words, *walk.complaints.get(name, ())]
            errors = [call.error for call in calls if call.error]
            if errors and name not in walk.complaints:  # The program went on without the reply.
                walk.complaints[name] = errors
        return walk

    def _ends(self) -> list[str]:
        """The predictors the metric's complaint goes to first: those that failed, else those no other one uses.

        Of a loop that no other predictor uses it is the last one to give something that the program returned.
        """
        if self.rollout.error and (failed := [name for name, calls in self.calls.items() if calls[-1].error]):
            return failed
        used = {maker for inputs in self.sources.values() for makers in inputs.values() for maker in makers}
        ends = [name for name in self.calls if name not in used]
        last_first = list(dict.fromkeys(reversed(self.names)))
        while loose := [name for name in last_first if name not in self._upstream(ends)]:
            ends += [*(name for name in loose if any(call.returned for call in self.calls[name])), *loose][:1]
        return ends

    def _upstream(self, names: Sequence[str]) -> list[str]:
        found = list(names)
        for name in found:  # It grows.
            found += [maker for makers in self.sources[name].values() for maker in makers if maker not in found]
        return found

    def pass_on(self, predictor: str, complaints: Sequence[str], input_name: str = "") -> bool:
        """Complain to the makers of an input, or of all inputs if none is named; return whether there are any."""
        inputs = self.sources[predictor]
        makers = inputs.get(input_name, []) if input_name else [maker for each in inputs.values() for maker in each]
        for maker in dict.fromkeys(makers):
            self.complaints.setdefault(maker, []).extend(complaints)
        return bool(makers)


def rounds(walks: Sequence[_Walk]) -> Iterator[list[str]]:
    """Yield the predictors from the last to the first; none of a round feeds another of it.

    Where predictors feed each other in a loop, one that somebody complains about by now comes first, else the one that
    was called last.
    """
    users: dict[str, set[str]] = {}
    last: dict[str, int] = {}
    for walk in walks:
        for name in walk.calls:
            users.setdefault(name, set())
        for name, inputs in walk.sources.items():
            for maker in (maker for makers in inputs.values() for maker in makers):
                users[maker].add(name)
        for index, name in enumerate(walk.names):
            last[name] = max(index, last.get(name, 0))
    waiting = sorted(users, key=lambda name: -last[name])
    while waiting:
        ready = [name for name in waiting if not users[name].intersection(waiting)]
        blamed = [name for name in waiting if any(name in walk.complaints for walk in walks)]
        ready = ready or [*blamed, *waiting][:1]
        yield ready
        waiting = [name for name in waiting if name not in ready]


def _pass_on(reply: str, predictor: str, chunk: Sequence[_Walk], remarks: Counter[str]) -> bool:
    """Carry what the critic says about the inputs to the predictors that made them; return whether it said anything.

    A line may begin with the call it is about, and with the input: `2 context: ...`. So do the lines after it, until
    one begins with another.
    """
    passed_on = False
    inputs = {name for walk in chunk for call in walk.calls[predictor] for name in call.inputs}
    walks, name = chunk, ""
    for line in as_lines(reply).splitlines():
        if len(chunk) > 1 and (number := _CALL_NUMBER.match(line)):
            walks = [walk for place, walk in enumerate(chunk, 1) if place == int(number[1])]
            remarks["complaint about a call that does not exist"] += not walks
            name, words = "", line[number.end() :]
        else:
            words = _BULLET.sub("", line)
        if named := _INPUT_NAME.match(words):
            if named[1] in inputs:
                name, words = named[1], words[named.end() :]
            else:  # Or only a word with a colon behind it, such as "Note:".
                remarks["complaint about an input that does not exist"] += named[1].islower()
        if is_nothing(words):
            continue
        for walk in walks:
            if walk.pass_on(predictor, [words.strip()], name):
                passed_on = True
            else:
                remarks["complaint about an input that no predictor made"] += 1
    return passed_on


def _reduce(predictor: str, points: Sequence[Point], num_failing: int) -> TextualGradient:
    merged = merge_points(points)
    blaming = {example for point in points for example in point.examples}
    return TextualGradient(predictor, merged, blame=len(blaming) / num_failing)


def merge_points(points: Sequence[Point]) -> tuple[Point, ...]:
    """Make one point of those that say the same (see `normalised`), the most frequent first.

    The first wording stays. Nothing is lost: the examples of merged points add up.
    """
    merged: dict[str, Point] = {}
    for point in points:
        known = merged.setdefault(normalised(point.text), point)
        merged[normalised(point.text)] = replace(
            known, examples=tuple(dict.fromkeys((*known.examples, *point.examples)))
        )
    return tuple(sorted(merged.values(), key=lambda point: -point.weight))
