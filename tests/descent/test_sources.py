from __future__ import annotations

import string
from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_dlpo.core.edits import Edit, count_edits
from dspy_dlpo.core.protection import Protection
from dspy_dlpo.core.records import Candidate, Contrast, Point, Refusal, TextualGradient, UpdateRequest
from dspy_dlpo.core.steps import StepRecord, Threshold, Trial
from dspy_dlpo.core.tokens import count_tokens
from dspy_dlpo.descent.examples import Examples
from dspy_dlpo.descent.sources.assembly import Sources
from dspy_dlpo.descent.sources.bandit import in_order
from dspy_dlpo.descent.sources.base import Change, Proposal, Source, combined
from dspy_dlpo.descent.sources.critic_sentences import CriticSentences
from dspy_dlpo.descent.sources.half_step import HalfStep
from dspy_dlpo.descent.sources.proposer_edits import ProposerEdits, limits
from dspy_dlpo.descent.step import Step
from dspy_dlpo.descent.wording import numbered
from dspy_dlpo.policies import StepContext

SENTENCES = ("Read the question. ", "Think about it. ", "Answer in one word.")


def rules_of(refusals: Sequence[Refusal]) -> dict[str, int]:
    return dict(Counter(each.rule for each in refusals for _ in range(each.times)))


def protection(text: str, *protect: str) -> Protection:
    return Protection(protect, {}, {"self": text})


def request(
    text: str = "".join(SENTENCES), points: tuple[str, ...] = (), protect: tuple[str, ...] = (), **limits: Any
) -> UpdateRequest:
    units, frozen = protection(text, *protect).split("self", text)
    gradient = TextualGradient("self", tuple(Point(point, ("train:0",)) for point in points))
    return UpdateRequest("self", units, gradient, **{"frozen": frozen, **limits})


def propose(reply: str | None, asked: UpdateRequest, num_candidates: int = 3, protect: tuple[str, ...] = ()) -> Step:
    ask: Any = Replies(reply)
    return proposed([CriticSentences(), ProposerEdits(ask), HalfStep()], asked, num_candidates, protect)


def proposed(
    sources: list[Source],
    asked: UpdateRequest,
    num_candidates: int,
    protect: tuple[str, ...] = (),
    tried: set[str] | None = None,
) -> Step:
    """Return a step after the sources were asked."""
    text = "".join(asked.sentences)
    step = Step(StepContext(0, 0), Candidate({"self": text}), (), 1.0)
    step.requests = {"self": asked}
    walk: Any = SimpleNamespace(tried=tried or set(), history=[])  # These sources learn from the step alone.
    asked_for = Sources(
        sources,
        Examples(None),
        lambda name, new: dspy.Signature("question -> answer").with_instructions(new).instructions,
        protection(text, *protect),
        num_candidates=num_candidates,
    ).propose(step, walk)
    yielded = tuple(asked_for)
    assert step.candidates == yielded
    return step


class Replies:
    """A proposer that always gives the same reply, or none."""

    unparsed = 0

    def __init__(self, reply: str | None) -> None:
        self.reply = reply

    def __call__(self, questions: list[Any]) -> list[Any]:
        return [None if self.reply is None else {"edits": self.reply}] * len(questions)


class Fixed(Source):
    """A source that proposes the same edits every time, each for a candidate of its own."""

    def __init__(self, asked: UpdateRequest, edits: list[Edit]) -> None:
        self.asked, self.edits = asked, edits

    def propose(self, step: Step, walk: Any, so_far: Sequence[Proposal]) -> list[Proposal]:
        return [[Change(self.asked, (edit,))] for edit in self.edits]


def test_reply_without_an_edit_changes_nothing() -> None:
    for reply in ("No edits are needed.", "Lies die Frage. Denk nach.", "I'm sorry, but I can't help with that."):
        assert propose(reply, request()).candidates == ()


def test_sentences_of_a_critic_that_did_not_keep_to_the_form_must_help() -> None:
    gradient = TextualGradient("self", (Point("Count the letters.", ("train:0",), is_loose=True),))
    asked = UpdateRequest("self", SENTENCES, gradient)
    for reply in (None, 'ADD "count the letters"'):
        (candidate,) = propose(reply, asked).candidates
        assert [edit.must_help for edit in candidate.edits["self"]] == [True]


def test_edits_that_must_help_are_tried_behind_a_candidate_without_them() -> None:
    asked = request(max_edits=2)
    edits = tuple(Edit("add", 2, text, must_help=text == "Say Yes.") for text in ("Be brief.", "Say Yes.", "Be kind."))
    changes = [Change(asked, edits)]

    class Mixed(Source):
        def propose(self, step: Step, walk: Any, so_far: Sequence[Proposal]) -> list[Proposal]:
            return [changes]

    without, whole = proposed([Mixed()], asked, 3).candidates
    assert [edit.text for edit in without.edits["self"]] == ["Be brief.", "Be kind."]
    assert [edit.text for edit in whole.edits["self"]] == ["Be brief.", "Say Yes."]


def test_added_text_of_three_sentences_counts_as_three_edits() -> None:
    proposals = propose('ADD "Be brief now. Be kind always. Be right, please."', request(max_edits=2), 1)
    (candidate,) = proposals.candidates
    assert candidate.instructions["self"] == "".join(SENTENCES) + "\nBe brief now.\nBe kind always."
    assert rules_of(proposals.refusals) == {"more edits than allowed": 1}


def test_first_candidate_holds_the_sentences_of_the_critic_and_the_second_those_of_the_proposer() -> None:
    first, second = propose('ADD "Be brief."', request(points=("Count the letters.",)), 2).candidates
    assert first.instructions["self"].endswith("Count the letters.")
    assert second.instructions["self"].endswith("Be brief.")


def test_reply_that_is_missing_leaves_the_sentences_of_the_critic() -> None:
    (candidate,) = propose(None, request(points=("Count the letters.",))).candidates
    assert candidate.instructions["self"].endswith("Count the letters.")


def ended(source: str, gain: float, *, accepted: bool = True) -> StepRecord:
    """Return a step whose only candidate is of a source."""
    candidate = Candidate({"self": f"{source} {gain}"}, source=source)
    trial = Trial(candidate.id, "incumbent", (gain,), 1, Threshold(), accepted)
    return StepRecord(0, "incumbent", (), 0.5, candidates=(candidate,), race=(gain,), trial=trial)


class Other(Fixed):
    """Another source."""


@pytest.mark.parametrize(
    ("history", "order"),
    [
        ([], ["Fixed", "Other"]),
        ([ended("Fixed", 0.5)], ["Fixed", "Other"]),
        ([ended("Fixed", -0.5, accepted=False)], ["Other", "Fixed"]),
        ([ended("Fixed", -0.1)], ["Other", "Fixed"]),
        ([ended("Fixed", 0.0)], ["Other", "Fixed"]),
        ([ended("Fixed", 0.5), ended("Other", 0.5), ended("Fixed", -0.5, accepted=False)], ["Other", "Fixed"]),
    ],
    ids=["given order", "one gained", "one was refused", "one was only let pass", "one was no worse", "shares count"],
)
def test_source_whose_candidates_were_ahead_most_often_is_asked_first(
    history: list[StepRecord], order: list[str]
) -> None:
    asked = request()
    fallback = HalfStep()
    sources = [fallback, Fixed(asked, []), Other(asked, [])]
    assert [source.name for source in in_order(sources, history)] == [*order, "HalfStep"]


def test_candidate_that_was_tried_before_is_not_proposed_again() -> None:
    asked = request()
    source = Fixed(asked, [Edit("delete", at) for at in range(3)])
    first, *others = proposed([source], asked, 3).candidates
    again = proposed([source], asked, 3, tried={first.id}).candidates
    assert [each.id for each in again] == [each.id for each in others]


@given(st.integers(1, 4), st.integers(0, 6), st.integers(0, 6))
def test_candidates_of_a_step_are_different_and_keep_the_cap(cap: int, num_proposed: int, num_criticised: int) -> None:
    reply = "\n".join(f'ADD "Model {letter} is there."' for letter in string.ascii_letters[:num_proposed])
    points = tuple(f"Critic {letter} was there." for letter in string.ascii_letters[:num_criticised])
    candidates = propose(reply, request(points=points, max_edits=cap)).candidates
    assert len({candidate.id for candidate in candidates}) == len(candidates) <= 3
    assert all(1 <= len(candidate.edits["self"]) <= cap for candidate in candidates)
    assert bool(candidates) == bool(num_proposed or num_criticised)


def test_half_of_the_first_candidate_comes_after_the_others() -> None:
    points = ("Count the letters.", "Count the words.", "Count the lines.", "Count the pages.")
    first, second, third = propose('ADD "Be brief."', request(points=points)).candidates
    assert [edit.text for edit in third.edits["self"]] == [edit.text for edit in first.edits["self"]][:2]
    assert second.instructions["self"].endswith("Be brief.")


def test_candidate_that_runs_beside_the_others_takes_no_place_of_theirs() -> None:
    asked = request()
    beside = Other(asked, [Edit("delete", 0)])
    beside.beside = True
    others = [Edit("delete", 1), Edit("delete", 2), Edit("add", 2, "Be brief.")]
    first, *rest = proposed([beside, Fixed(asked, others)], asked, 2).candidates
    assert first.source == "Other"
    assert [each.edits["self"] for each in rest] == [(edit,) for edit in others[:2]]


def test_fallback_is_asked_only_where_the_others_bring_no_candidate() -> None:
    asked = request()
    fallback = Fixed(asked, [Edit("delete", 0)])
    fallback.stage = 2
    (candidate,) = proposed([Fixed(asked, [Edit("delete", 1)]), fallback], asked, 2).candidates
    assert candidate.edits["self"] == (Edit("delete", 1),)
    (candidate,) = proposed([Fixed(asked, [Edit("delete", 9)]), fallback], asked, 2).candidates
    assert candidate.edits["self"] == (Edit("delete", 0),)


# Adversarial proposers: whatever the model writes, every rule holds.
# HYPOTHESIS_PROFILE=thorough gives 2,000 cases a rule instead of 200.

KEPT = "<keep>Never name a price.\n  Not even in jokes.</keep>"
TEXTS = {
    "empty": "",
    "one sentence": "One sentence only",
    "prose": "".join(SENTENCES),
    "markdown": "# Head\n- a\n- b\n\n```\nx. y\n```\nEnd.",
    "protected": f"Read the question. Think about it.\n{KEPT}\n- Answer in one word.\n- Be brief.",
}
LINES = st.one_of(
    st.text(max_size=60),
    st.builds(lambda number, text: f"REPLACE {number} WITH {text}", st.integers(0, 8), st.text(max_size=40)),
    st.builds(lambda number: f"DELETE {number}", st.integers(0, 8)),
    st.builds(lambda number, text: f'ADD AFTER {number} "{text}"', st.integers(0, 8), st.text(max_size=80)),
    st.sampled_from(
        [
            "Lies die Frage. Denk nach. Antworte mit einem Wort.",
            "Answer in ONE word. Think about it. Read the question.",
            "ADD <keep>Mine.",
            "REPLACE 3 WITH </keep> Name a price.",
            "<keep>Always name a price.</keep>",
            "word " * 10_000,
            "Sentence. " * 5_000,
        ]
    ),
)
REPLIES = st.lists(LINES, max_size=6).map("\n".join)
INSTRUCTIONS = st.sampled_from(sorted(TEXTS.values()))


@given(INSTRUCTIONS, REPLIES, st.integers(1, 3))
def test_no_reply_breaks_the_bound_on_edits(text: str, reply: str, cap: int) -> None:
    asked = request(text, max_edits=cap)
    for candidate in propose(reply, asked).candidates:
        units, _ = protection(text).split("self", candidate.instructions["self"])
        assert count_edits(asked.sentences, units) <= cap


@given(INSTRUCTIONS, REPLIES, st.sets(st.integers(0, 5)))
def test_no_reply_changes_or_reorders_a_frozen_sentence(text: str, reply: str, drawn: set[int]) -> None:
    asked = request(text)
    asked = asked.narrowed(frozen=frozenset(drawn & set(range(len(asked.sentences)))))
    for candidate in propose(reply, asked).candidates:
        position = 0
        for index in sorted(asked.frozen):
            sentence = asked.sentences[index].strip()
            position = candidate.instructions["self"].index(sentence, position) + len(sentence)


@given(REPLIES)
def test_no_reply_changes_protected_text(reply: str) -> None:
    text = TEXTS["protected"]
    asked = request(text, protect=("in one word",))
    for candidate in propose(reply, asked, protect=("in one word",)).candidates:
        assert KEPT in candidate.instructions["self"]
        assert "- Answer in one word." in candidate.instructions["self"]


@given(INSTRUCTIONS, REPLIES, st.integers(1, 40))
def test_no_reply_makes_an_instruction_longer_than_allowed(text: str, reply: str, max_tokens: int) -> None:
    for candidate in propose(reply, request(text, max_tokens=max_tokens)).candidates:
        assert count_tokens(candidate.instructions["self"]) <= max_tokens


@given(INSTRUCTIONS, REPLIES)
def test_no_reply_makes_an_instruction_empty(text: str, reply: str) -> None:
    for candidate in propose(reply, request(text)).candidates:
        assert candidate.instructions["self"].strip()


def test_edits_of_any_source_become_candidates_within_the_same_limits() -> None:
    asked = request(frozen=frozenset({0}))
    source = Fixed(asked, [Edit("delete", at) for at in range(3)])
    first, second = proposed([source], asked, 3).candidates
    assert first.instructions["self"] == "Read the question. Answer in one word."
    assert second.instructions["self"] == "Read the question. Think about it."
    assert len(proposed([source], asked, 1).candidates) == 1


def test_edits_that_fit_survive_one_that_does_not() -> None:
    long = "word " * 60
    proposals = propose(f'ADD "{long}." \nADD "Be brief."\nDELETE 2', request(max_tokens=30), 1)
    (candidate,) = proposals.candidates
    assert candidate.instructions["self"] == "Read the question. Answer in one word.\nBe brief."
    assert rules_of(proposals.refusals) == {"breaks a limit together with the others": 1}


def test_deleting_every_sentence_is_no_candidate() -> None:
    assert propose("DELETE 1", request("Be kind."), 1).candidates == ()


def test_every_limit_is_told_to_the_proposer() -> None:
    contrast = Contrast(("Be brief.",), ("Be long.",), 0.25)
    words = "\n".join(
        limits(
            request(max_edits=1, max_tokens=50, frozen=frozenset({0, 2}), contrasts=(contrast,), directives=("Hm.",))
        )
    )
    for limit in ("At most 1 edit.", "Leave as they are: 1, 3.", "at most 50 tokens", "Hm."):
        assert limit in words
    assert "Helped before (0.25): Be brief.\nDid harm before (0.25): Be long." in words


def test_sentences_are_numbered_from_one() -> None:
    assert numbered(SENTENCES) == "1. Read the question.\n2. Think about it.\n3. Answer in one word."
    assert numbered(()) == "(empty)"


def change(predictor: str, blame: float, *texts: str) -> Change:
    asked = UpdateRequest(predictor, SENTENCES, TextualGradient(predictor, (), blame=blame))
    return Change(asked, tuple(Edit("add", 0, text) for text in texts))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([change("a", 0.2, "1"), change("b", 0.8, "3")], [["a", "b"], ["b"], ["a"]]),
        ([change("a", 0.2, "1"), change("b", 0.8)], [["a"]]),
        ([change("a", 0.2, "1")], [["a"]]),
        ([], []),
    ],
    ids=["two predictors", "one has no edit", "one predictor", "none"],
)
def test_changes_of_all_predictors_go_together_then_alone_the_most_blamed_first(
    changes: list[Change], expected: list[list[str]]
) -> None:
    assert [[each.request.predictor for each in proposal] for proposal in combined(changes)] == expected
