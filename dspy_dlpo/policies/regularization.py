"""TRegu: regularization."""

from __future__ import annotations

from collections.abc import Sequence

from dspy_dlpo.core.edits import Edit
from dspy_dlpo.core.likeness import normalised
from dspy_dlpo.core.records import Candidate, UpdateRequest
from dspy_dlpo.core.steps import StepRecord, Threshold
from dspy_dlpo.core.tokens import count_tokens
from dspy_dlpo.policies.base import Policy, State, StepContext

_PRUNED = "its removal does not lower the score"
_TIE = 1e-9


class TextualRegularization(Policy):
    """Keep instructions short: a price per token, a hard limit, a request to simplify, and pruning.

    The price is part of the objective: a candidate must gain `price` for each token that it adds to an instruction or
    as a demo, and may lose as much for each it removes. Where a step brings no candidate, sentences that the run has
    added are left out and tried like any other candidate: first all those together that came with no gain and of which
    none was shown since to be needed, then one after another. If the score does not drop, they are removed. Where
    there are such sentences at the end of a run, and the budget and `num_steps` allow it, last steps leave them out, as
    many together as the other policies allow. The student's own sentences stay.

    Args:
        price: What a token costs, as a share of the score range, at least 0. At 0.0001 and scores in [0, 1] a sentence
            of 20 tokens must gain 0.002, which keeps out rules that few examples need.
        max_tokens: Most tokens of one instruction, held in code; None for no limit.
        growth: The proposer is asked to simplify once an instruction is this many times as long as the student's; None
            for never.
        prune: Whether sentences are left out and tried.

    Raises:
        ValueError: At construction if an argument is out of its range; when `compile` begins, if an instruction of the
            student, or its protected text alone, is longer than `max_tokens`.

    Example:
        >>> from dspy_dlpo.core.records import TextualGradient
        >>> request = UpdateRequest("self", ("Answer the question.",), TextualGradient("self", ()))
        >>> TextualRegularization(max_tokens=200).narrow(request, {}, StepContext(step=0, seed=0)).max_tokens
        200

    References:
        Peng et al., DLPO, arXiv 2503.13413. The authors' code asks for simplification only when its memory holds 16
        duplicates. Tokens are counted with litellm.
    """

    def __init__(
        self, price: float = 0.0, max_tokens: int | None = None, growth: float | None = None, prune: bool = True
    ) -> None:
        for name, value, low in (("price", price, 0), ("max_tokens", max_tokens, 1), ("growth", growth, 1)):
            if value is not None and not value >= low:
                raise ValueError(f"`{name}` must be at least {low}, but got {name}={value}.")
        self.price = price
        self.max_tokens = max_tokens
        self.growth = growth
        self.prune = prune

    def init(self, requests: Sequence[UpdateRequest] = ()) -> State:
        """Note the lengths of the student's instructions.

        Raises:
            ValueError: If an instruction, or its protected text alone, is longer than `max_tokens`.
        """
        if self.max_tokens is not None:
            for request in requests:
                _check_limit(request, self.max_tokens)
        counted = requests if self.growth is not None else ()
        lengths = {request.predictor: count_tokens("".join(request.sentences)) for request in counted}
        return {"lengths": lengths, "added": [], "unproven": [], "needed": []}

    def narrow(self, request: UpdateRequest, state: State, ctx: StepContext) -> UpdateRequest:
        """Set the limit, and ask the proposer to simplify an instruction that has grown."""
        wish: tuple[str, ...] = ()
        if self.growth is not None:
            length = count_tokens("".join(request.sentences))
            if length > self.growth * max(state["lengths"].get(request.predictor, length), 1):
                wish = ("The instruction has grown long: prefer to replace or delete sentences, and be brief.",)
        return request.narrowed(max_tokens=self.max_tokens, directives=wish)

    def threshold(self, candidate: Candidate, incumbent: Candidate, state: State, ctx: StepContext) -> Threshold:
        """Charge for the tokens added; a sentence may be removed at an equal score."""
        tie = -_TIE * ctx.width if _prunes(candidate) else 0.0
        if not self.price:
            return Threshold(tie)
        added = _num_tokens(candidate) - _num_tokens(incumbent)
        return Threshold(self.price * ctx.width * added + tie, {"price": self.price, "added_tokens": added})

    def propose(self, request: UpdateRequest, state: State, ctx: StepContext) -> Sequence[tuple[Edit, ...]]:
        """Propose to remove what came with no gain, and then, but for the last step, one added sentence at a time.

        What was found to be needed since the last other change stays.
        """
        if not self.prune:
            return ()
        keys = {
            index: _key(request.predictor, sentence)
            for index, sentence in enumerate(request.sentences)
            if index not in request.frozen
        }
        alone = [index for index, key in keys.items() if key in state["added"] and key not in state["needed"]]
        group = [index for index in alone if keys[index] in state["unproven"]]
        if ctx.is_last:
            return (tuple(Edit("delete", index, reason=_PRUNED) for index in group),) if group else ()
        places = [*([group] if len(group) > 1 else []), *([index] for index in alone)]
        return tuple(tuple(Edit("delete", index, reason=_PRUNED) for index in each) for each in places)

    def learn(self, record: StepRecord, state: State) -> State:
        """Remember which sentences were added, and which of them were found to be needed since the last change."""
        trial = record.trial
        if trial is None or not trial.differences:
            return state
        winner = next(each for each in record.candidates if each.id == trial.candidate)
        if trial.accepted and not _prunes(winner):
            new = [_key(name, edit.text) for name, edits in winner.edits.items() for edit in edits if edit.op == "add"]
            unproven = [*state["unproven"], *new] if trial.gain <= 0 else state["unproven"]
            return {**state, "added": [*state["added"], *new], "unproven": unproven, "needed": []}
        missed = [] if trial.accepted else [winner]
        missed += [each for each, gain in zip(record.candidates, record.race, strict=False) if gain < 0]
        sentences = {request.predictor: request.sentences for request in record.requests}
        needed = [
            _key(name, sentences[name][edits[0].at])
            for each in missed
            for name, edits in each.edits.items()
            if _prunes(each) and len(edits) == 1  # Of a group that is missed, nobody knows which one is.
        ]
        unproven = [key for key in state["unproven"] if key not in needed]
        return {**state, "unproven": unproven, "needed": [*state["needed"], *needed]}


def _num_tokens(candidate: Candidate) -> int:
    """Return the length of what a run has tuned: the instructions, and the demos that it has added."""
    demos = (text for each in candidate.demos.values() for demo in each for text in map(str, demo.fields.values()))
    return sum(map(count_tokens, [*candidate.instructions.values(), *demos]))


def _prunes(candidate: Candidate) -> bool:
    return any(edit.reason == _PRUNED for edits in candidate.edits.values() for edit in edits)


def _key(predictor: str, sentence: str) -> list[str]:
    """Return a sentence without the mark of an item that it gets in a list, and the full stop at its end."""
    return [predictor, normalised(sentence)]


def _check_limit(request: UpdateRequest, max_tokens: int) -> None:
    protected = "".join(request.sentences[index] for index in sorted(request.frozen))
    for what, text in (("protected text", protected), ("instruction", "".join(request.sentences))):
        if (tokens := count_tokens(text)) > max_tokens:
            raise ValueError(
                f"`max_tokens` must be at least {tokens}, the length of the {what} of {request.predictor}, "
                f"but got max_tokens={max_tokens}."
            )
