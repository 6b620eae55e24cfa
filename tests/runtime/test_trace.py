from __future__ import annotations

import datetime
import enum
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import dspy
import pydantic
import pytest
from dspy.adapters.utils import format_field_value
from dspy.utils.exceptions import AdapterParseError
from pydantic.fields import FieldInfo

from dspy_dlpo.core.records import Call
from dspy_dlpo.runtime.inherit import threads_inherit_context
from dspy_dlpo.runtime.trace import Recorder, in_prompt, predictor_names
from tests.scripted import Program, Script, field, fields, replying, scripted_lm

QUESTION = "What of topic alpha?"
NOTE = "It was in alpha."
ENDLESS: list[Any] = ["A list."]
ENDLESS.append(ENDLESS)


def traced(program: dspy.Module, script: Script | None = None, **inputs: Any) -> tuple[Call, ...]:
    """Run a program and return its calls; what each field holds is `replying()` unless a script says otherwise."""
    recorder = Recorder(program, predictor_names(program), inputs, max_chars=2000)
    with dspy.context(lm=scripted_lm(script or replying()), callbacks=[recorder]):
        return recorder.calls(program(**inputs))


def sources(calls: tuple[Call, ...], predictor: str) -> dict[str, list[str | None]]:
    """Return for each input of a predictor's last call who made it."""
    (*_, call) = [call for call in calls if call.predictor == predictor]
    return {name: [calls[maker].predictor for maker in makers] for name, makers in call.sources.items()}


# Which output went into which input.


@pytest.mark.parametrize(
    ("text", "maker"),
    [
        (lambda question, note: note, ["first"]),
        (lambda question, note: " ".join(note.split()), ["first"]),
        (lambda question, note: f"A note: {note} That is all.", ["first"]),
        (lambda question, note: [question, {"note": note}], ["first"]),
        (lambda question, note: note.upper(), ["first"]),
        (lambda question, note: ENDLESS, ["first"]),
        (lambda question, note: question, None),
        (lambda question, note: " ".join(question.split()), None),
        (lambda question, note: f"Think about: {question}", None),
        (lambda question, note: None, None),
    ],
    ids=[
        "same object",
        "equal text",
        "text that holds the output",
        "list that holds it",
        "transformed, so the call before",
        "list that holds itself",
        "the example's own",
        "equal to the example's own",
        "text that holds the example's own",
        "nothing",
    ],
)
def test_input_is_credited_to_the_call_that_made_it(text: Callable[[str, str], Any], maker: list[str] | None) -> None:
    def run(self: Any, question: str) -> Any:
        return self.second(text=text(question, self.first(question=question).note))

    program = Program(run, first="question -> note", second="text: Any -> answer")
    calls = traced(program, replying(note=NOTE), question=QUESTION)
    assert sources(calls, "second").get("text") == maker


@pytest.mark.parametrize(
    ("outputs", "text", "makers"),
    [
        ({"one": "blue", "two": "blue"}, lambda one, two: two, ["b"]),
        ({"one": "blue", "two": "dark blue"}, lambda one, two: " ".join(two.split()), ["b"]),
        ({"one": "blue", "two": "dark blue"}, lambda one, two: f"It is {two}.", ["b"]),
        ({"one": "blue", "two": "dark blue"}, lambda one, two: f"It is {two}. No: {one}.", ["b", "a"]),
        ({"one": "no", "two": "two words"}, lambda one, two: f"I know nothing, in {two}.", ["b"]),
        ({"one": "a", "two": "two words"}, lambda one, two: f"a cat, in {two}.", ["b"]),
        ({"one": "alpha", "two": "two words"}, lambda one, two: f"{QUESTION} In {two}.", ["b"]),
        ({"one": "alpha", "two": "two words"}, lambda one, two: f"{QUESTION} It is {one}.", ["a"]),
    ],
    ids=[
        "identity before equality",
        "equality before containment",
        "longest text first",
        "two outputs in one text",
        "short text inside a word",
        "single letter",
        "text that stands in the example's own",
        "text that stands behind the example's own",
    ],
)
def test_surest_sign_decides_where_several_calls_could_have_made_an_input(
    outputs: dict[str, str], text: Callable[[str, str], str], makers: list[str]
) -> None:
    def run(self: Any, question: str) -> Any:
        one, two = self.a(question=question).one, self.b(question=question).two
        return self.c(text=text(one, two))

    program = Program(run, a="question -> one", b="question -> two", c="text -> answer")
    assert sorted(sources(traced(program, replying(**outputs), question=QUESTION), "c")["text"]) == sorted(makers)


def test_constant_beside_an_input_with_a_maker_has_none() -> None:
    def run(self: Any, question: str) -> Any:
        return self.second(note=self.first(question=question).note, style="brief")

    calls = traced(Program(run, first="question -> note", second="note, style -> answer"), question=QUESTION)
    assert sources(calls, "second") == {"note": ["first"]}


def test_transformed_value_is_not_credited_to_a_call_that_failed() -> None:
    def run(self: Any, question: str) -> Any:
        note = self.first(question=question).note
        with pytest.raises(AdapterParseError):
            self.broken(question=question)
        return self.second(text=note.upper())

    def script(system: str, user: str) -> str:
        return "Hm." if "`odd`" in system else replying()(system, user)

    program = Program(run, first="question -> note", broken="question -> odd", second="text -> answer")
    with dspy.context(adapter=dspy.ChatAdapter(use_json_adapter_fallback=False)):
        calls = traced(program, script, question=QUESTION)
    assert sources(calls, "second") == {"text": ["first"]}
    assert calls[1].outputs == {}
    assert calls[1].error == "The reply did not hold the fields `odd` in the asked form. It was: Hm."


def test_calls_whose_output_the_program_returned_are_marked() -> None:
    def run(self: Any, question: str) -> Any:
        note = self.first(question=question).note
        answer = self.second(note=note).answer
        self.aside(note=note)
        return {"answer": [f"So: {answer}."]}

    program = Program(run, first="question -> note", second="note -> answer", aside="note -> remark")
    calls = traced(program, replying(answer="it is blue"), question=QUESTION)
    assert [call.predictor for call in calls if call.returned] == ["second"]


# Every kind of program and value.


class Step(pydantic.BaseModel):
    title: str
    text: str


class Plan(dspy.Signature):
    """Plan."""

    question: str = dspy.InputField()
    steps: list[Step] = dspy.OutputField()


class Judge(dspy.Signature):
    """Judge."""

    text: str = dspy.InputField()
    picture: dspy.Image = dspy.InputField()
    history: dspy.History = dspy.InputField()
    verdict: Literal["good", "bad"] = dspy.OutputField()


def test_typed_fields_are_followed_into_their_parts_and_shown_without_raw_data() -> None:
    def run(self: Any, question: str, picture: dspy.Image) -> Any:
        (step,) = self.plan(question=question).steps
        remark = self.look(text=step.text).remark
        history = dspy.History(messages=[{"question": question, "answer": remark}])
        verdict = self.judge(text=f"{step.title}!", picture=picture, history=history).verdict
        return self.say(verdict=verdict)

    steps = json.dumps([{"title": "Look up the river", "text": "Find out where the river ends."}])
    program = Program(run, plan=Plan, look="text -> remark", judge=Judge, say="verdict -> answer")
    script = replying(steps=steps, remark="The river ends in a lake.", verdict="good")
    calls = traced(program, script, question=QUESTION, picture=dspy.Image("data:image/png;base64,AAAABBBB"))
    assert sources(calls, "look") == {"text": ["plan"]}
    assert sources(calls, "judge") == {"text": ["plan"], "history": ["look"]}
    assert sources(calls, "say") == {"verdict": ["judge"]}
    assert "The river ends in a lake." in calls[2].inputs["history"]
    assert "IMAGE_BASE_64_ENCODED(8)" in calls[2].inputs["picture"]
    assert "AAAABBBB" not in str(calls)


def test_inputs_are_kept_as_they_were_when_the_call_began() -> None:
    def run(self: Any, question: str) -> Any:
        notes: list[str] = []
        for _ in range(2):
            notes.append(self.first(notes=notes).note)
        return self.second(notes=notes)

    calls = traced(Program(run, first="notes: list -> note", second="notes: list -> answer"), question=QUESTION)
    assert [call.inputs["notes"] for call in calls] == ["[]", '["note"]', '["note", "note"]']


def test_predictors_of_modules_inside_modules_have_their_whole_path() -> None:
    inner = Program(lambda self, question: self.think(question=question), think=dspy.ChainOfThought("question -> note"))

    def run(self: Any, question: str) -> Any:
        return self.say(note=self.inner(question=question).note)

    calls = traced(Program(run, inner=inner, say="note -> answer"), question=QUESTION)
    assert [call.predictor for call in calls] == ["inner.think.predict", "say"]
    assert sources(calls, "say") == {"note": ["inner.think.predict"]}


def test_predictors_may_have_their_own_language_models_and_adapters() -> None:
    def run(self: Any, question: str) -> Any:
        with dspy.context(adapter=dspy.JSONAdapter()):
            note = self.first(question=question).note
        with dspy.context(adapter=dspy.XMLAdapter()):
            return self.second(note=note)

    program = Program(run, first="question -> note", second="note -> answer")
    program.first.lm = scripted_lm(replying(note=NOTE))
    calls = traced(program, question=QUESTION)
    assert [call.outputs for call in calls] == [{"note": NOTE}, {"answer": "answer"}]
    assert sources(calls, "second") == {"note": ["first"]}


def test_predictor_made_on_the_fly_has_no_name_but_is_followed() -> None:
    def run(self: Any, question: str) -> Any:
        return self.say(note=dspy.Predict("question -> note")(question=question).note)

    calls = traced(Program(run, say="note -> answer"), question=QUESTION)
    assert sources(calls, "say") == {"note": [None]}


def test_streamed_call_inside_a_program_is_recorded() -> None:
    def run(self: Any, question: str) -> Any:
        (*_, streamed) = dspy.streamify(self.first, async_streaming=False)(question=question)
        return self.second(note=streamed.note)

    calls = traced(Program(run, first="question -> note", second="note -> answer"), question=QUESTION)
    assert [call.predictor for call in calls] == ["first", "second"]
    assert sources(calls, "second") == {"note": ["first"]}


def test_predictors_that_the_metric_asks_are_not_part_of_the_trace() -> None:
    program = Program(lambda self, question: self.first(question=question), first="question -> note")
    recorder = Recorder(program, predictor_names(program), {"question": QUESTION}, max_chars=2000)
    with dspy.context(lm=scripted_lm(replying()), callbacks=[recorder]):
        prediction = program(question=QUESTION)
        dspy.Predict("note -> verdict")(note=prediction.note)
    assert [call.predictor for call in recorder.calls(prediction)] == ["first"]
    assert recorder.num_calls == 1


# Order and size.


class Item(dspy.Module):
    def __init__(self, changed: Callable[[str], str]) -> None:
        super().__init__()
        self.changed = changed
        self.find = dspy.Predict("item -> found")
        self.rate = dspy.Predict("text -> rating")

    def forward(self, item: str) -> dspy.Prediction:
        return self.rate(text=self.changed(self.find(item=item).found))


@pytest.mark.parametrize("slowest", ["w", "z"])
@pytest.mark.parametrize("changed", [str.upper, lambda text: " ".join(text.split())], ids=["transformed", "equal"])
def test_calls_in_parallel_have_an_order_and_makers_that_do_not_depend_on_who_is_first(
    changed: Callable[[str], str], slowest: str
) -> None:
    def run(self: Any, question: str) -> Any:
        items = [(self.item, {"item": f"item {letter}"}) for letter in "wxyz"]
        rated = dspy.Parallel(num_threads=4, disable_progress_bar=True)(items)
        merged = self.merge(ratings=" ".join(each.rating.upper() for each in rated)).summary
        return self.polish(text=merged.upper())

    def found(user: str) -> str:
        time.sleep(0.02 * (3 - abs(ord(field(user, "item")[-1]) - ord(slowest))))
        return "found it"

    program = Program(run, item=Item(changed), merge="ratings -> summary", polish="text -> answer")
    calls = traced(program, replying(found=found), question=QUESTION)
    assert [call.predictor for call in calls] == ["item.find", "item.rate"] * 4 + ["merge", "polish"]
    assert [call.inputs["item"] for call in calls[:8:2]] == ["item w", "item x", "item y", "item z"]
    assert [call.sources for call in calls[1:8:2]] == [{"text": (0,)}, {"text": (2,)}, {"text": (4,)}, {"text": (6,)}]
    assert [call.sources for call in calls[8:]] == [{"ratings": (1, 3, 5, 7)}, {"text": (8,)}]


def test_what_is_run_in_parallel_twice_is_ordered_by_what_it_builds_on() -> None:
    def run(self: Any, question: str) -> Any:
        parallel = dspy.Parallel(num_threads=2, disable_progress_bar=True)
        notes = parallel([(self.second_name, {"item": item}) for item in "yz"])
        parallel([(self.first_name, {"note": each.note}) for each in notes])
        return "done"

    program = Program(run, second_name="item -> note", first_name="note -> answer")
    calls = traced(program, replying(note=lambda user: f"note on {field(user, 'item')}"), question=QUESTION)
    assert [call.predictor for call in calls] == ["second_name"] * 2 + ["first_name"] * 2


class Quick(dspy.Predict):
    def forward(self, **inputs: Any) -> dspy.Prediction:
        return dspy.Prediction(note=f"note {inputs['number']}")


def test_of_a_thousand_calls_the_first_and_last_hundred_are_kept_and_all_are_counted() -> None:
    def run(self: Any, question: str) -> Any:
        notes: list[str] = []
        for number in range(1000):
            notes.append(self.quick(number=f"number {number}", notes=notes).note)
        return {"notes": notes}

    program = Program(run, quick=Quick("number, notes: list -> note"))
    recorder = Recorder(program, predictor_names(program), {"question": QUESTION}, max_chars=2000)
    with dspy.context(callbacks=[recorder]):
        calls = recorder.calls(program(question=QUESTION))
    assert [call.inputs["number"] for call in calls] == [f"number {each}" for each in [*range(100), *range(900, 1000)]]
    assert recorder.num_calls == 1000
    assert calls[99].sources == {"notes": tuple(range(99))}


class Priority(enum.Enum):
    LOW = "P3"
    HIGH = "P1"


class Order(pydantic.BaseModel):
    size: int
    tags: list[str]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (Priority.LOW, "P3"),
        ([Priority.LOW, Priority.HIGH], '["P3", "P1"]'),
        (Order(size=3, tags=["é"]), '{"size": 3, "tags": ["é"]}'),
        ({"due": datetime.date(2026, 1, 2)}, '{"due": "2026-01-02"}'),
        (("a", 1), '["a", 1]'),
        (True, "True"),
        (None, "None"),
        ("as it is", "as it is"),
    ],
)
def test_values_are_shown_as_the_prompt_of_the_program_shows_them(value: Any, shown: str) -> None:
    assert in_prompt(value) == shown
    assert shown == format_field_value(FieldInfo(annotation=type(value)), value)


def test_image_in_a_list_is_shown_without_its_data() -> None:
    image = dspy.Image("data:image/png;base64," + "A" * 10_000)
    assert len(in_prompt([image, {"at": image}])) < 500


@pytest.mark.parametrize("first", [0, 1])
def test_items_that_run_side_by_side_are_no_sources_of_each_other_whichever_is_first(first: int) -> None:
    def script(system: str, user: str) -> str:
        if user.count("part") == 1:
            time.sleep(0.0 if f"part {first}" in user else 0.1)
        return fields(note="part 2")  # Which is what the third item is asked, and begins after the quick one.

    def forward(self: Any, question: str) -> Any:
        items = [(self.find, {"question": f"part {number}"}) for number in range(3)]
        dspy.Parallel(num_threads=2, disable_progress_bar=True)(items)
        with ThreadPoolExecutor(1) as pool:
            later = pool.submit(self.find, question="after all: part 2, part").result()
        return pool_of_one(self.find, f"{later.note}, part")

    program = Program(forward, find=dspy.Predict("question -> note"))
    recorder = Recorder(program, predictor_names(program), {"question": "Go."}, max_chars=2000)
    with dspy.context(lm=scripted_lm(script), callbacks=[recorder]), threads_inherit_context():
        prediction = program(question="Go.")
    sources = [dict(call.sources) for call in recorder.calls(prediction)]
    assert sources == [{}, {}, {}, {"question": (0, 1, 2)}, {"question": (0, 1, 2, 3)}]


def pool_of_one(predictor: dspy.Predict, note: str) -> Any:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(predictor(question=f"{note} is it")))
    thread.start()
    thread.join()
    return found[0]
