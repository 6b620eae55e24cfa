from __future__ import annotations

import inspect
import re
from dataclasses import replace
from typing import Any

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_dlpo import DLPOResult, Gain, TextualRegularization
from dspy_dlpo.core.edits import Edit, apply
from dspy_dlpo.core.records import Candidate, Point, Spending, TextualGradient, UpdateRequest
from dspy_dlpo.core.sentences import split
from dspy_dlpo.core.steps import RunInfo, StepRecord, Threshold, Trial
from dspy_dlpo.descent.origins import Removal, provenance
from tests.scripted import Oracle, examples


def walk(text: str, *steps: Any, step_of_trial: int | None = None, differences: tuple[float, ...] = ()) -> DLPOResult:
    """Return a run in which every step is accepted: lists of edits, made to what the step before left."""
    student = Candidate({"self": text})
    at, history = student, []
    for step, edits in enumerate(steps):
        sentences = tuple(split(at.instructions["self"]))
        child = Candidate({"self": inspect.cleandoc(apply(sentences, edits))}, at.id, {"self": tuple(edits)})
        gradient = TextualGradient("self", (Point("Speak of other things.", ("train:1",)), *points_of(edits)))
        trial = Trial(child.id, at.id, differences if step == step_of_trial else (), 8, Threshold(), True)
        request = UpdateRequest("self", sentences, gradient)
        record = StepRecord(step, at.id, (), 0.0, gradients=(gradient,), requests=(request,), candidates=(child,))
        history.append(replace(record, trial=trial))
        at = child
    run = RunInfo(student, {}, {}, {}, "Oracle", 1, 1, "given")
    return DLPOResult(
        (student, at), (0.0, 1.0), (1, 1), 1, Gain(), tuple(history), Spending(), "", None, 0, (0.0, 1.0), 0.0, run
    )


def points_of(edits: Any) -> tuple[Point, ...]:
    return tuple(Point(f"It lacks: {edit.text}", ("train:2", "train:3")) for edit in edits if edit.text)


def add(text: str, at: int = 0) -> Edit:
    return Edit("add", at, text, "because")


# Runs of the optimiser.


def test_each_sentence_of_a_run_has_the_step_the_gradient_and_the_examples_that_brought_it(
    lm: dspy.LM, make: Any
) -> None:
    result = make(num_steps=8).compile(dspy.Predict(Oracle), trainset=examples(40)).detailed_results
    first, *rest = provenance(result, "self")
    assert (first.sentence, first.step, first.edit, first.points) == ("Answer the question.\n", None, None, ())
    assert len(rest) == 5
    for origin in rest:
        assert origin.edit is not None
        assert origin.step is not None
        assert origin.edit.text == origin.sentence.strip() == origin.points[0].text
        topic = re.findall(r"topic is (\w+)", origin.sentence)[0]
        failed = {rollout.example: rollout for rollout in result.history[origin.step].failures}
        assert origin.points[0].examples == origin.examples[: len(origin.points[0].examples)]
        assert all(f"topic {topic}" in failed[name].calls[0].inputs["question"] for name in origin.points[0].examples)


def test_sentences_of_every_candidate_joined_are_its_instruction(lm: dspy.LM, make: Any) -> None:
    program = dspy.Predict(Oracle.with_instructions("Answer <keep>it. Do</keep> so.\n\n- Be kind.\n- Be\tbrief."))
    result = make(num_steps=6, policies="paper").compile(program, trainset=examples(40)).detailed_results
    for candidate in result.candidates:
        found = provenance(result, "self", candidate.id)
        assert "".join(origin.sentence for origin in found) == candidate.instructions["self"]


def test_what_pruning_measured_is_told_of_the_sentence(lm: dspy.LM, make: Any) -> None:
    policies = [TextualRegularization()]
    result = (
        make(num_steps=12, policies=policies, batch_size=4)
        .compile(dspy.Predict(Oracle), trainset=examples(40))
        .detailed_results
    )
    removals = {origin.removal for origin in provenance(result, "self")} - {None}
    assert removals
    for removal in removals:
        trial = result.history[removal.step].trial
        assert (trial.gain, len(trial.differences)) == (removal.difference, removal.num_examples)
        assert removal.difference <= 0


# Walks of known steps.


@st.composite
def walks(draw: Any) -> DLPOResult:
    """Any edits of texts of prose and lists, in which each sentence names the step that wrote it."""
    forms = st.sampled_from(["Rule {} holds.", "- Keep to {}", "2. Mind {}!", "Is it {}?", "  Indent {} so."])
    gaps = st.sampled_from([" ", "\n", "\n\n", "\n\t"])
    number = iter(range(10_000))

    def sentence(step: str) -> str:
        return str(draw(forms)).format(f"{step}q{next(number)}")

    text = inspect.cleandoc("".join(sentence("S") + draw(gaps) for _ in range(draw(st.integers(1, 5)))))
    steps: list[list[Edit]] = []
    for _ in range(draw(st.integers(0, 5))):
        units = split(walk(text, *steps).candidates[-1].instructions["self"])
        edits, touched = [], set[int]()
        for _ in range(draw(st.integers(1, 3))):
            op, at = draw(st.sampled_from(["add", "replace", "delete", "move"])), draw(st.integers(0, len(units) - 1))
            if op != "add" and (at in touched or len(touched) == len(units) - 1):
                continue
            touched |= {at} - ({at} if op == "add" else set())
            new = sentence(f"T{len(steps)}") if op in ("add", "replace") else ""
            edits.append(Edit(op, at, new, "", draw(st.integers(-1, len(units) - 1))))
        if edits:
            steps.append(edits)
    return walk(text, *steps)


@given(walks())
def test_sentences_give_the_instruction_to_the_letter_and_have_the_step_that_wrote_them(result: DLPOResult) -> None:
    found = provenance(result, "self", result.candidates[-1].id)
    assert "".join(origin.sentence for origin in found) == result.candidates[-1].instructions["self"]
    for origin in found:
        writers = re.findall(r"(S|T\d)q\d+", origin.sentence)
        writer = "S" if origin.step is None else f"T{origin.step}"
        assert writer in writers or not writers  # "2." alone names nobody.


def test_replaced_sentence_keeps_what_stood_there_before() -> None:
    result = walk("One. Two.", [Edit("replace", 1, "Three.")], [add("Four.")], [Edit("replace", 2, "Five.")])
    assert [(each.sentence, each.step, each.earlier) for each in provenance(result, "self")] == [
        ("One. ", None, ()),
        ("Four. ", 1, ()),
        ("Five.", 2, ("Three.", "Two.")),
    ]


def test_point_that_a_sentence_answers_comes_first() -> None:
    (_, origin) = provenance(walk("One.", [add("Write the size in brackets.")]), "self")
    assert [point.text for point in origin.points] == [
        "It lacks: Write the size in brackets.",
        "Speak of other things.",
    ]
    assert origin.examples == ("train:2", "train:3", "train:1")


def test_moved_sentence_stays_the_students() -> None:
    (one, two) = provenance(walk("- One.\n- Two.", [Edit("move", 0, to=1)], [add("Three.")][:0]), "self")
    assert (one.sentence, one.step, two.sentence, two.step) == ("- Two.\n", None, "- One.", None)


def test_candidate_made_again_counts_as_that_of_the_first_step() -> None:
    result = walk("One.", [add("Two.")], [Edit("delete", 1)], [add("Two.")])
    assert result.history[2].candidates[0].id == result.history[0].candidates[0].id
    assert [origin.step for origin in provenance(result, "self")] == [None, 0]


def test_removal_of_one_sentence_that_was_tried_is_told() -> None:
    result = walk("One. Two.", [Edit("delete", 1)], [add("Two.")], step_of_trial=0, differences=(-1.0, 0.0))
    (one, two) = provenance(result, "self")
    assert (one.removal, two.removal) == (None, Removal(0, -0.5, 2))


def test_candidate_can_be_any_of_the_run() -> None:
    result = walk("One.", [add("Two.")], [add("Three.", 1)])
    first = result.history[0].candidates[0].id
    assert [origin.step for origin in provenance(result, "self", first)] == [None, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("judge",), r"`predictor` must be one of \['self'\]"), (("self", "abc"), "`candidate` must be the id")],
)
def test_what_the_run_does_not_have_is_refused(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        provenance(walk("One."), *arguments)


# What is told of it.


def test_explanation_tells_of_each_sentence_what_brought_it() -> None:
    replaced = [Edit("replace", 1, "Write the size in brackets.", "it was missing")]
    result = walk("One. Two.", replaced, [Edit("delete", 0)], step_of_trial=1, differences=(-1.0, 0.0))
    result = replace(result, candidates=(result.candidates[0], result.history[0].candidates[0]))
    assert str(result.explain()) == (
        "self:\n"
        "  One.\n"
        "    the student's\n"
        "    without it: -0.500 on 2 examples (step 2)\n"
        "  Write the size in brackets.\n"
        "    step 1, replace: it was missing\n"
        "    in place of: Two.\n"
        "    answers: It lacks: Write the size in brackets. (train:2, train:3)"
    )


def test_explanation_of_one_predictor_leaves_the_others_out() -> None:
    assert [*walk("One.").explain("self").origins] == ["self"]
    with pytest.raises(ValueError, match="`predictor` must be one of"):
        walk("One.").explain("other")
