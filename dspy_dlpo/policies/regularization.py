"""TRegu: regularization."""

from __future__ import annotations

from collections.abc import Sequence

from dspy_dlpo.policies.base import Policy, State, StepContext
from dspy_dlpo.records import Candidate, StepRecord, Threshold, UpdateRequest
from dspy_dlpo.sentences import Edit
from dspy_dlpo.tokens import count_tokens

_PRUNED = "its removal does not lower the score"
_TIE = 1e-9


class TextualRegularization(Policy):
    """Keep instructions short: a price per token, a hard limit, a wish to simplify, and pruning.

    The price is part of the objective: a candidate must gain `price` for each token it adds, and may lose as much for
    each it removes. Where a step brings no candidate, sentences that the run has added, and pairs of neighbours, are
    left out one after another and tried like any other candidate; one whose removal does not lower the score goes. The
    student's own sentences stay.

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
        return {"student": {request.predictor: [*map(str.strip, request.sentences)] for request in requests}}

    def narrow(self, request: UpdateRequest, state: State, ctx: StepContext) -> UpdateRequest:
        """Set the limit, and ask to simplify what has grown."""
        wish: tuple[str, ...] = ()
        if self.growth is not None:
            before = count_tokens(" ".join(state["student"][request.predictor]))
            if count_tokens("".join(request.sentences)) > self.growth * max(before, 1):
                wish = ("The instruction has grown long: prefer to replace or delete sentences, and be brief.",)
        return request.narrowed(max_tokens=self.max_tokens, directives=wish)

    def threshold(self, candidate: Candidate, incumbent: Candidate, state: State, ctx: StepContext) -> Threshold:
        """Charge for the tokens added; a sentence that is left out need not be missed."""
        edits = [edit for each in candidate.edits.values() for edit in each]
        tie = -_TIE * ctx.width if edits and all(edit.reason == _PRUNED for edit in edits) else 0.0
        if not self.price:
            return Threshold(tie)
        added = sum(
            count_tokens(text) - count_tokens(incumbent.instructions[name])
            for name, text in candidate.instructions.items()
            if text != incumbent.instructions[name]
        )
        return Threshold(self.price * ctx.width * added + tie, {"price": self.price, "added_tokens": added})

    def propose(self, request: UpdateRequest, state: State, ctx: StepContext) -> Sequence[tuple[Edit, ...]]:
        """Propose to leave out the next added sentence that has not been tried, and the next two."""
        kept = {*state["student"][request.predictor], *state.get("needed", ())}
        untried = [
            index
            for index, sentence in enumerate(request.sentences)
            if index not in request.frozen and sentence.strip() not in kept
        ]
        if not self.prune or len(request.sentences) < 2:
            return ()
        groups = [untried[:size] for size in (1, 2) if size <= len(untried)]
        return [tuple(Edit("delete", index, reason=_PRUNED) for index in group) for group in groups]

    def learn(self, record: StepRecord, state: State) -> State:
        """Note the sentences that could not be spared, until something else changes."""
        if record.accepted:
            return {**state, "needed": []}
        sentences = {request.predictor: request.sentences for request in record.requests}
        needed = [
            sentences[predictor][edits[0].at].strip()
            for candidate in record.candidates
            for predictor, edits in candidate.edits.items()
            if len(edits) == 1 and edits[0].reason == _PRUNED
        ]
        return {**state, "needed": [*state.get("needed", ()), *needed]}


def _check_limit(request: UpdateRequest, max_tokens: int) -> None:
    protected = "".join(request.sentences[index] for index in sorted(request.frozen))
    for what, text in (("protected text", protected), ("instruction", "".join(request.sentences))):
        if (tokens := count_tokens(text)) > max_tokens:
            raise ValueError(
                f"`max_tokens` must be at least {tokens}, the length of the {what} of {request.predictor}, "
                f"but got max_tokens={max_tokens}."
            )
