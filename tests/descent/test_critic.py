from __future__ import annotations

from collections import Counter
from typing import Any

import dspy
import pytest

from dspy_dlpo.core.records import Point
from dspy_dlpo.descent.critic import Form, read_causes
from tests.scripted import SECRETS, Oracle, examples, field, fields, role_of, scripted_lm, world

EXAMPLES = ("train:1", "train:2", "train:3")

FRONTIER = """Looking at these calls, I see two causes.

- **[1, 3] MISSING:** The task is to sort the words of a list.
  1. Lower-case every word.
  2. Compare letter by letter.
- [2] FORM is fine, so nothing here.
- [2] WRONG: Answer with the words alone, separated by single spaces.
- [1] SLIP: The instruction says to keep duplicates already.
- [3] LABEL: The expected answer lacks a word of the input.

Let me know if you need more."""


def test_causes_of_a_strong_critic_are_read_with_their_calls_and_lines() -> None:
    remarks: Counter[str] = Counter()
    read = read_causes(FRONTIER, EXAMPLES, remarks)
    assert read is not None
    points, ignored = read
    steps = "The task is to sort the words of a list.\n1. Lower-case every word.\n2. Compare letter by letter."
    assert [(" ".join(point.text.split()), point.examples) for point in points] == [
        (" ".join(steps.split()), ("train:1", "train:3")),
        ("Answer with the words alone, separated by single spaces.", ("train:2",)),
    ]
    assert remarks["slips of the model"] == remarks["labels that look wrong"] == 1
    assert "[2] FORM is fine, so nothing here." in ignored
    assert all("Let me know" not in point.text for point in points)


@pytest.mark.parametrize(
    ("reply", "points"),
    [
        ("[2] MISSING: Be brief.", [Point("Be brief.", ("train:2",))]),
        ("MISSING: Be brief.", [Point("Be brief.", EXAMPLES)]),
        ("* [calls 1, 2] missing - Sei kurz.", [Point("Sei kurz.", ("train:1", "train:2"))]),
        ("1. [1;3] WRONG：用中文回答。", [Point("用中文回答。", ("train:1", "train:3"))]),
        ('["[1] MISSING: Be brief.", "[2] SLIP: It was told."]', [Point("Be brief.", ("train:1",))]),
        ("- [9] MISSING: Be brief.", [Point("Be brief.", EXAMPLES)]),
        ("- [1] MISSING: NOTHING", []),
        ("NOTHING", []),
        ("", []),
    ],
)
def test_causes_are_read_in_the_forms_that_models_write(reply: str, points: list[Point]) -> None:
    read = read_causes(reply, EXAMPLES, Counter())
    assert read is not None
    assert read[0] == points


def test_cause_that_explains_most_calls_comes_first() -> None:
    read = read_causes("- [1] MISSING: Rare.\n- [1, 2, 3] MISSING: Frequent.", EXAMPLES, Counter())
    assert read is not None
    assert [point.text for point in read[0]] == ["Frequent.", "Rare."]


@pytest.mark.parametrize("reply", ["- Be brief.\n- Be kind.", "I cannot help with that.", "Be brief."])
def test_reply_in_another_form_is_no_list_of_causes(reply: str) -> None:
    assert read_causes(reply, EXAMPLES, Counter()) is None


def test_critic_that_does_not_keep_to_the_form_of_a_batch_is_asked_about_single_calls_from_then_on() -> None:
    form, remarks = Form(8, in_batches=True), Counter[str]()
    points, _ = form.read("- Be brief.", EXAMPLES, remarks)
    assert [point.text for point in points] == ["Be brief."]  # What it wrote is not lost.
    assert (form.chunk_size, form.in_batches) == (1, False)
    assert remarks["batches that were not answered in their form"] == 1


def batching(system: str, user: str) -> str:
    """Criticise like the world's critic, in the form of a batch."""
    reply = world()(system, user)
    if role_of(system) != "critic" or "Find what they share" not in system:
        return reply
    said = dict.fromkeys(line for line in reply.splitlines() if "When the topic is" in line)
    return fields(requirements="\n".join(f"- [1] MISSING: {line.lstrip('- ')}" for line in said) or "NOTHING")


@pytest.mark.parametrize(("is_strong", "calls_a_step"), [(True, 1), (False, 8)])
def test_critic_of_its_own_is_asked_once_a_step_and_the_programs_model_once_a_failure(
    make: Any, is_strong: bool, calls_a_step: int
) -> None:
    program = scripted_lm()
    critic = scripted_lm(batching)
    critic.model = "scripted/strong" if is_strong else program.model
    with dspy.context(lm=program):
        result = make(num_steps=1, prompt_model=critic).compile(dspy.Predict(Oracle), trainset=examples(40))
    assert critic.engine.count("critic") == calls_a_step
    assert result.detailed_results.history[0].accepted


def test_batch_shows_the_critic_what_went_right_too(make: Any) -> None:
    critic = scripted_lm(batching)
    critic.model = "scripted/strong"
    known = "\n".join(f"When the topic is {topic}, answer {SECRETS[topic]}." for topic in ("alpha", "beta", "gamma"))
    student = dspy.Predict(Oracle.with_instructions(known))
    with dspy.context(lm=scripted_lm()):
        make(num_steps=1, prompt_model=critic, batch_size=10).compile(student, trainset=examples(40))
    asked = next(user for system, user in critic.engine.log if role_of(system) == "critic")
    assert "answer: " in field(asked, "right")
    assert "unknown" not in field(asked, "right")
