from __future__ import annotations

import dspy
import pytest

from dspy_dlpo.descent.copies import CopyGuard
from dspy_dlpo.runtime.data import prepare

EXAMPLES = [
    dspy.Example(
        question="One two three four five six seven eight nine ten? Ann tells lies. Who lies?\n(A) Bob lied (B) none",
        answer=answer,
    ).with_inputs("question")
    for answer in ("not enough information given", "not enough information given", "48151", "The Red Fox", "no")
]


@pytest.mark.parametrize(
    ("sentence", "copied"),
    [
        ("If it says two three four, five six: seven EIGHT nine, say so.", True),
        ("If it says two three four five six seven eight, say so.", False),
        ("ANN tells lies!", True),
        ("question: Question: Ann tells lies.", True),
        ("If Ann tells lies, say so.", False),
        ("Note this: Ann tells lies.", False),
        ("Who lies?", True),
        ("Bob lied.", True),
        ("If Bob lied, say so.", False),
        ("The answer may be 48151.", True),
        ("Mention the  red fox.", True),
        ("Answer: not enough information given.", True),
        ("If in doubt, answer: not enough information given.", False),
        ("Do not guess; no is an answer.", False),
        ("The right answer is no, not a value.", True),
        ("Be brief.", False),
    ],
)
def test_spans_of_inputs_answers_alone_and_answers_of_one_example_are_copies(sentence: str, copied: bool) -> None:
    guard = CopyGuard(prepare(EXAMPLES, None, 0), ["Answer the question."])
    assert bool(guard(sentence)) is copied


@pytest.mark.parametrize(
    ("sentence", "copied"),
    [
        ("Eve says Fred lies.", True),
        ("Note: Eve says Fred lies!", True),
        ("Fred has 12 of them.", True),
        ("Everyone says Fred lies.", True),
        ("If Eve says Fred lies, believe her.", False),
        ("Nobody says that he lies.", False),
        ("Eve says Fred tells the truth.", False),
        ("George tells the truth.", True),
        ("George, tell the truth!", False),
        ("George is 12.", False),
        ("Ask George.", False),
        ("Answer with Yes or No.", False),
    ],
)
def test_a_sentence_of_an_input_with_other_names_or_numbers_is_a_copy(sentence: str, copied: bool) -> None:
    said = "Ann says Bob lies. Ian tells the truth. Cid has 3 of them. Jo is 12. Ask Dan. Speak with Yes or No."
    examples = [dspy.Example(puzzle=said, answer="no").with_inputs("puzzle"), *EXAMPLES]
    assert CopyGuard(prepare(examples, None, 0), ["Answer with True or False."])(sentence) == (
        "copies an example" if copied else ""
    )


def test_what_the_student_says_is_no_copy() -> None:
    assert not CopyGuard(prepare(EXAMPLES, None, 0), ["Beware of the red fox."])("The red fox is wily.")
