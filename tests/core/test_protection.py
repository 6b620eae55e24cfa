from __future__ import annotations

import re
from typing import Any

import dspy
import pytest

from dspy_dlpo import TextualRegularization
from dspy_dlpo.core.protection import Protection
from dspy_dlpo.runtime.program import Student
from tests.scripted import Oracle, examples, scripted_lm, world


def frozen(student: dspy.Module, *protect: Any) -> dict[str, list[str]]:
    instructions = {name: each.signature.instructions for name, each in student.named_predictors()}
    protection = Protection(protect, Student(student).protocols(), instructions)
    found = {}
    for name, text in instructions.items():
        units, indices = protection.split(name, text)
        assert "".join(units) == text
        found[name] = [units[index].strip() for index in sorted(indices)]
    return found


def predict(text: str) -> dspy.Predict:
    return dspy.Predict(Oracle.with_instructions(text))


def search(query: str) -> str:
    """Search the web. Returns a text."""
    return query


def test_strings_patterns_and_keep_tags_freeze_the_sentences_they_touch() -> None:
    student = predict("Be kind. Answer in JSON. Use {style} words.\n<keep>Never lie. Never guess.</keep>\nBe brief.")
    assert frozen(student) == {"self": ["<keep>Never lie. Never guess.</keep>"]}
    assert frozen(student, "in JSON", re.compile(r"\{\w+\}"))["self"] == [
        "Answer in JSON.",
        "Use {style} words.",
        "<keep>Never lie. Never guess.</keep>",
    ]


def test_tool_protocol_of_react_is_protected_without_being_asked() -> None:
    student = dspy.ReAct(Oracle, tools=[search])
    instruction = student.react.signature.instructions
    (protocol,) = frozen(student)["react"]
    assert instruction == "Answer the question.\n\n" + protocol
    assert protocol.startswith("You are an Agent.")
    assert frozen(student)["extract.predict"] == []


def test_protocol_is_found_in_a_subclass_and_after_the_task_was_changed() -> None:
    class MyReAct(dspy.ReAct):
        pass

    for kind in (dspy.ReAct, MyReAct):
        student = kind(Oracle, tools=[search])
        text = student.react.signature.instructions.replace("Answer the question.", "Answer well. Be kind.")
        student.react.signature = student.react.signature.with_instructions(text)
        (protocol,) = frozen(student)["react"]
        assert text == "Answer well. Be kind.\n\n" + protocol


def test_protocol_of_rlm_is_protected_too() -> None:
    found = frozen(dspy.RLM("question -> answer"))
    assert all(parts for parts in found.values())


def test_module_of_ones_own_and_chain_of_thought_have_no_protocol() -> None:
    assert frozen(dspy.ChainOfThought(Oracle)) == {"predict": []}


@pytest.mark.parametrize("missing", ["in XML", re.compile("X+ML")])
def test_text_to_protect_that_is_in_no_instruction_is_refused(missing: Any) -> None:
    with pytest.raises(ValueError, match=r"`protect` holds .*ML.*, which is in no instruction of the program"):
        frozen(predict("Be kind."), missing)


def test_keep_tag_that_is_not_closed_is_refused() -> None:
    with pytest.raises(ValueError, match="The instruction of self has a <keep> without </keep>"):
        frozen(predict("<keep>Be kind."))


@pytest.mark.parametrize("protect", ["Be kind.", [""], [3]])
def test_protect_takes_a_list_of_strings_and_patterns(make: Any, protect: Any) -> None:
    with pytest.raises(TypeError, match="`protect` must be a list of strings and compiled patterns"):
        make(protect=protect)


def test_protected_text_stays_through_a_whole_run(make: Any) -> None:
    rules = "Never name a price. Answer in one word."
    destroy = world(
        proposer=lambda system, user: "[[ ## edits ## ]]\nREPLACE 1 WITH Lie.\nDELETE 2\nDELETE 3\nADD Shout."
    )
    with dspy.context(lm=scripted_lm(destroy)):
        student = predict(f"Answer the question. {rules}")
        optimizer = make(protect=["Never name a price.", "Answer in one word."], num_steps=6)
        result = optimizer.compile(student, trainset=examples(40)).detailed_results
    texts = [each.instructions["self"] for record in result.history for each in record.candidates]
    assert texts
    assert all(rules in text for text in texts)


def test_limit_on_tokens_below_the_student_is_refused_before_the_first_lm_call(lm: dspy.LM, make: Any) -> None:
    with pytest.raises(ValueError, match="`max_tokens` must be at least 4"):
        make(policies=[TextualRegularization(max_tokens=2)]).compile(predict("Answer it well."), trainset=examples(9))
    assert lm.engine.log == []
