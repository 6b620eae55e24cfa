"""TRegu: regularization."""

from __future__ import annotations

from collections.abc import Sequence

from dspy_dlpo.policies.base import Policy, State, StepContext
from dspy_dlpo.records import Candidate, StepRecord, Threshold, UpdateRequest
from dspy_dlpo.sentences import Edit
from dspy_dlpo.tokens import count_tokens

_PRUNED = "its removal does not lower the score"


class TextualRegularization(Policy):
    """Keep instructions short: a price per token, a hard limit, a wish to simplify, and pruning.

    The price is part of the objective: a candidate must gain `price` for each token it adds, and may lose as much for
    each it removes. After `patience` steps without an accepted candidate, single sentences, and pairs of neighbours,
    are left out one after another and tried like any other candidate; with a price above 0, one whose removal does not
    lower the score goes.

    Args:
        price: What a token costs, as a share of the score range, at least 0. At 0.0001 and scores in [0, 1] a sentence
            of 20 tokens must gain 0.002.
        max_tokens: Most tokens of one instruction, held in code; None for no limit.
        growth: The proposer is asked to simplify once an instruction is this many times as long as the student's.
        patience: Steps without an accepted candidate after which pruning begins; None for no pruning.

    Raises:
        ValueError: At construction if an argument is out of its range; when `compile` begins, if an instruction of the
            student, or its protected text alone, is longer than `max_tokens`.

    References:
        Peng et al., DLPO, arXiv 2503.13413. The authors' code asks for simplification only when its memory holds 16
        duplicates. Tokens are counted with litellm.
    """

    def __init__(
        self, price: float = 1e-4, max_tokens: int | None = None, growth: float = 2.0, patience: int | None = 2
    ) -> None:
        for name, value, low in (("price", price, 0), ("max_tokens", max_tokens, 1), ("growth", growth, 1)):
            if value is not None and not value >= low:
                raise ValueError(f"`{name}` must be at least {low}, but got {name}={value}.")
        if patience is not None and patience < 1:
            raise ValueError(f"`patience` must be at least 1, but got patience={patience}. Use None for no pruning.")
        self.price = price
        self.max_tokens = max_tokens
        self.growth = growth
        self.patience = patience

    def init(self, requests: Sequence[UpdateRequest] = ()) -> State:
        """Note the lengths of the student's instructions.

        Raises:
            ValueError: If an instruction, or its protected text alone, is longer than `max_tokens`.
        """
        for request in requests:
            protected = count_tokens("".join(request.sentences[index] for index in sorted(request.frozen)))
            length = count_tokens("".join(request.sentences))
            for what, tokens in (("protected text", protected), ("instruction", length)):
                if self.max_tokens is not None and tokens > self.max_tokens:
                    raise ValueError(
                        f"`max_tokens` must be at least {tokens}, the length of the {what} of {request.predictor}, "
                        f"but got max_tokens={self.max_tokens}."
                    )
        lengths = {request.predictor: count_tokens("".join(request.sentences)) for request in requests}
        return {"lengths": lengths, "refused": 0, "needed": []}

    def narrow(self, request: UpdateRequest, state: State, ctx: StepContext) -> UpdateRequest:
        """Set the limit, and ask to simplify what has grown."""
        length = count_tokens("".join(request.sentences))
        grown = length > self.growth * max(state.get("lengths", {}).get(request.predictor, length), 1)
        wish = ["The instruction has grown long: prefer to replace or delete sentences, and be brief."] if grown else []
        return request.narrowed(max_tokens=self.max_tokens, directives=wish)

    def threshold(self, candidate: Candidate, incumbent: Candidate, state: State, ctx: StepContext) -> Threshold:
        """Charge for the tokens added."""
        added = sum(
            count_tokens(text) - count_tokens(incumbent.instructions[name])
            for name, text in candidate.instructions.items()
            if text != incumbent.instructions[name]
        )
        return Threshold(self.price * ctx.width * added, {"price": self.price, "added_tokens": added})

    def propose(self, request: UpdateRequest, state: State, ctx: StepContext) -> Sequence[tuple[Edit, ...]]:
        """On a plateau, propose to leave out the next sentence that has not been tried, and the next two."""
        untried = [
            index
            for index, sentence in enumerate(request.sentences)
            if index not in request.frozen and sentence.strip() not in state.get("needed", ())
        ]
        if self.patience is None or state.get("refused", 0) < self.patience or len(request.sentences) < 2:
            return ()
        groups = [untried[:size] for size in (1, 2) if size <= len(untried)]
        return [tuple(Edit("delete", index, reason=_PRUNED) for index in group) for group in groups]

    def learn(self, record: StepRecord, state: State) -> State:
        """Count the steps since the last acceptance, and note the sentences that could not be spared."""
        if record.accepted:
            return {**state, "refused": 0, "needed": []}
        sentences = {request.predictor: request.sentences for request in record.requests}
        needed = [
            sentences[predictor][edits[0].at].strip()
            for candidate in record.candidates
            for predictor, edits in candidate.edits.items()
            if len(edits) == 1 and edits[0].reason == _PRUNED
        ]
        return {**state, "refused": state.get("refused", 0) + 1, "needed": [*state.get("needed", ()), *needed]}
