from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_dlpo import load_result
from dspy_dlpo.core.records import Candidate, Demo
from dspy_dlpo.runtime.program import Student
from dspy_dlpo.views.runs import program_state
from tests.scripted import Oracle, Program, examples, fields, metric, replying, scripted_lm, world


def learning_from_demos(system: str, user: str) -> str:
    """Answer what a demo answers to a question about the same topic."""
    *shown, asked = re.findall(r"topic (\w+)\?", user)
    answers = re.findall(r"\[\[ ## answer ## \]\]\n(\d+)", user)
    return fields(answer=dict(zip(shown, answers, strict=False)).get(asked, "unknown"))


def silent_lm(program: Any = learning_from_demos) -> dspy.LM:
    """A model whose critic says nothing, so that only demos can help."""
    return scripted_lm(world(program=program, critic=replying()))


def test_demos_solve_what_no_instruction_tells(make: Any) -> None:
    with dspy.context(lm=silent_lm()):
        optimized = make(num_steps=6, max_demos=5).compile(dspy.Predict(Oracle), trainset=examples(40))
    result = optimized.detailed_results
    assert result.val_aggregate_scores[0] == 0
    assert result.val_aggregate_scores[result.best_idx] == 1
    assert 1 <= len(optimized.demos) <= 5
    assert optimized.signature.instructions == "Answer the question."
    assert result.best.source == "Demos"


def test_without_max_demos_no_demo_is_tried(make: Any) -> None:
    with dspy.context(lm=silent_lm()):
        optimized = make(num_steps=4).compile(dspy.Predict(Oracle), trainset=examples(40))
    assert optimized.demos == []
    assert all(not each.demos for record in optimized.detailed_results.history for each in record.candidates)


def test_demos_of_the_student_stay_first_and_count(make: Any) -> None:
    own = dspy.Example(question="0: What of topic none?", answer="0").with_inputs("question")
    student = dspy.Predict(Oracle)
    student.demos = [own]
    with dspy.context(lm=silent_lm()):
        result = make(num_steps=4, max_demos=3).compile(student, trainset=examples(40)).detailed_results
    sizes = {len(each.demos["self"]) for record in result.history for each in record.candidates}
    assert sizes == {2}
    program = Student(student).program(result.history[0].candidates[0])
    assert program.demos[0] == own
    assert len(program.demos) == 3
    assert student.demos == [own]


def test_call_that_went_right_makes_a_demo_with_all_its_fields(make: Any) -> None:
    class Reasoned(dspy.Signature):
        """Answer the question."""

        question: str = dspy.InputField()
        reasoning: str = dspy.OutputField()
        answer: str = dspy.OutputField()

    def half_right(system: str, user: str) -> str:
        return fields(reasoning="because", answer="11" if "alpha" in user.rpartition("topic")[2] else "?")

    with dspy.context(lm=silent_lm(half_right)):
        result = make(num_steps=3, max_demos=4).compile(dspy.Predict(Reasoned), trainset=examples(40)).detailed_results
    demos = [demo for record in result.history for each in record.candidates for demo in each.demos["self"]]
    assert {demo.augmented for demo in demos} == {True, False}
    for demo in demos:
        assert demo.example.startswith("train:")
        assert demo.fields.get("reasoning") == ("because" if demo.augmented else None)


def test_typed_fields_stay_typed_in_a_demo(make: Any) -> None:
    class Typed(dspy.Signature):
        """Count."""

        items: list[str] = dspy.InputField()
        number: int = dspy.OutputField()

    trainset = [dspy.Example(items=["a"] * size, number=size).with_inputs("items") for size in range(1, 25)]
    with dspy.context(lm=silent_lm(lambda system, user: fields(number="3"))):
        result = (
            make(num_steps=3, max_demos=3, metric=lambda example, pred: pred.number == example.number)
            .compile(dspy.Predict(Typed), trainset=trainset)
            .detailed_results
        )
    demos = [demo for record in result.history for each in record.candidates for demo in each.demos["self"]]
    assert any(demo.augmented for demo in demos)
    for demo in demos:
        assert demo.fields["items"] == ["a"] * int(demo.fields["number"])
        assert isinstance(demo.fields["number"], int)


def test_cap_on_edits_bounds_the_demos_that_a_step_changes(make: Any) -> None:
    from dspy_dlpo import TextualLearningRate

    with dspy.context(lm=silent_lm(lambda system, user: fields(answer="?"))):
        optimizer = make(num_steps=3, max_demos=8, policies=[TextualLearningRate(2)])
        result = optimizer.compile(dspy.Predict(Oracle), trainset=examples(40)).detailed_results
    assert {len(each.demos["self"]) for each in result.history[0].candidates} == {2}


def test_every_predictor_gets_demos_of_its_own_calls(make: Any) -> None:
    def run(program: Any, question: str) -> Any:
        return program.solve(question=question, note=program.note(question=question).note)

    program = Program(run, note="question -> note", solve="question, note -> answer")

    def answers(system: str, user: str) -> str:
        return fields(answer="11") if "`answer`" in system.partition("output fields are:")[2] else fields(note="n")

    with dspy.context(lm=silent_lm(answers)):
        result = make(num_steps=3, max_demos=2).compile(program, trainset=examples(40)).detailed_results
    found = {name: each for record in result.history for c in record.candidates for name, each in c.demos.items()}
    assert {*found["solve"][0].fields} == {"question", "note", "answer"}


def test_saved_program_and_exported_state_hold_the_demos(make: Any, tmp_path: Path) -> None:
    with dspy.context(lm=silent_lm()):
        optimizer = make(num_steps=6, max_demos=5, log_dir=tmp_path / "run")
        optimized = optimizer.compile(dspy.Predict(Oracle), trainset=examples(40))
        optimized.save(str(tmp_path / "saved.json"))
        state = program_state(load_result(tmp_path / "run"))
        (tmp_path / "exported.json").write_text(json.dumps(state))
        for name in ("saved", "exported"):
            loaded = dspy.Predict(Oracle)
            loaded.load(str(tmp_path / f"{name}.json"))
            answers = [metric(each, loaded(**each.inputs())).score for each in examples(10, 500)]
            assert answers == [1.0] * 10, name


def test_evaluation_of_an_optimized_program_does_not_add_its_demos_twice(make: Any) -> None:
    with dspy.context(lm=silent_lm()):
        optimized = make(num_steps=6, max_demos=5).compile(dspy.Predict(Oracle), trainset=examples(40))
        result = optimized.detailed_results
        found = result.evaluate(optimized, examples(10, 500), metric=metric)
    assert (found.before, found.after) == (0.0, 1.0)


def test_run_with_demos_resumes_for_free(make: Any, tmp_path: Path) -> None:
    runs = []
    for _ in range(2):
        lm = silent_lm()
        with dspy.context(lm=lm):
            optimizer = make(num_steps=5, max_demos=4, log_dir=tmp_path)
            runs.append(optimizer.compile(dspy.Predict(Oracle), trainset=examples(40)).detailed_results.best)
    assert runs[0] == runs[1]
    assert lm.engine.log == []


def test_candidates_with_other_demos_are_other_candidates() -> None:
    demo = Demo("train:0", {"question": "q", "answer": "a"})
    plain, shown = Candidate({"self": "x"}), Candidate({"self": "x"}, demos={"self": (demo,)})
    assert plain.id != shown.id
    assert Candidate({"self": "x"}, demos={"self": ()}).id == plain.id


@pytest.mark.parametrize("value", [-1, 1.5, True])
def test_wrong_number_of_demos_is_refused(make: Any, value: Any) -> None:
    with pytest.raises(ValueError, match="`max_demos` must be an integer of at least 0"):
        make(max_demos=value)
