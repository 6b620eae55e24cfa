from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import dspy
import pytest

from dspy_dlpo.core.records import Call, Candidate, Refusal, Rollout, TextualGradient
from dspy_dlpo.descent.backward import Backward
from dspy_dlpo.descent.critic import Form
from dspy_dlpo.descent.screening import LEFT_OUT
from dspy_dlpo.runtime.asking import Question
from dspy_dlpo.runtime.data import prepare
from tests.scripted import examples

Reply = dict[str, str] | None
NOTHING = {"requirements": "NOTHING", "input_complaint": "NOTHING"}


class Critic:
    """Stands for the model of the backward pass: answers by function and keeps what it was asked."""

    unparsed = 0

    def __init__(self, answer: Callable[[Question], Reply]) -> None:
        self.answer = answer
        self.rounds: list[list[str]] = []
        self.asked: dict[str, list[Question]] = {}

    def __call__(self, questions: Sequence[Question]) -> list[Reply]:
        names = [question.name.split("/")[2] for question in questions]
        self.rounds += [names] if names else []
        for name, question in zip(names, questions, strict=True):
            self.asked.setdefault(name, []).append(question)
        return [self.answer(question) for question in questions]

    def complaints(self, name: str) -> list[str]:
        return [question.inputs["complaint"].split("\n")[1] for question in self.asked.get(name, [])]


def call(predictor: str | None, returned: bool = False, error: str = "", **sources: tuple[int, ...] | None) -> Call:
    """A call whose inputs are the names of `sources`, made by the calls with these indices, or by the example."""
    inputs = {name: f"value of {name}" for name in sources}
    outputs = {} if error else {"out": f"by {predictor}"}
    made = {name: makers for name, makers in sources.items() if makers}
    return Call(predictor, inputs, outputs, error=error, sources=made, returned=returned)


def rollout(*calls: Call, example: int = 0, **more: Any) -> Rollout:
    settings = {"score": 0.0, "feedback": "Wrong.", "num_calls": len(calls), **more}
    return Rollout("student", f"train:{example}", calls=calls, **settings)


CHAIN = (call("a", question=None), call("b", text=(0,)), call("c", text=(1,)))


def go_back(
    rollouts: Sequence[Rollout],
    answer: Callable[[Question], Reply] = lambda question: NOTHING,
    predictors: str = "abcd",
    **settings: Any,
) -> tuple[Critic, dict[str, TextualGradient], dict[str, int]]:
    """Return the critic that was asked, the gradients by predictor, and the remarks."""
    critic = Critic(answer)
    num_silent = settings.pop("num_silent", 0)
    settings = {"show_gold": False, "top_score": 1.0, "form": Form(settings.pop("chunk_size", 1)), **settings}
    backward = Backward(critic, prepare(examples(10), None, seed=0), **settings)
    student = Candidate({name: f"Be {name}." for name in predictors})
    gradients, remarks, _ = backward(student, rollouts, step=0, num_silent=num_silent)
    return critic, {gradient.predictor: gradient for gradient in gradients}, dict(remarks)


def of(name: str, **replies: str) -> Callable[[Question], Reply]:
    """A critic that has something to say about one predictor alone."""
    return lambda question: {**NOTHING, **(replies if f"/{name}/" in question.name else {})}


# The chain.


def test_critic_goes_from_the_last_predictor_to_the_first_and_hands_the_complaint_on() -> None:
    replies = {"c": ("nothing", "Too long."), "b": ("nothing", "Too vague."), "a": ("Name the year.", "")}

    def answer(question: Question) -> Reply:
        requirements, about_input = replies[question.name.split("/")[2]]
        return {"requirements": requirements, "input_complaint": about_input}

    critic, gradients, remarks = go_back([rollout(*CHAIN)], answer)
    assert critic.rounds == [["c"], ["b"], ["a"]]
    assert [critic.complaints(name) for name in "cba"] == [["Wrong."], ["Too long."], ["Too vague."]]
    assert list(gradients) == ["a"]
    assert gradients["a"].points[0].text == "Name the year."
    assert remarks == {"predictors that never ran": 1}


def test_predictor_about_which_nobody_complains_is_not_asked_about_and_gets_no_gradient() -> None:
    critic, gradients, _ = go_back([rollout(*CHAIN)], of("c", requirements="Be brief."))
    assert critic.rounds == [["c"]]
    assert list(gradients) == ["c"]


def test_predictor_whose_inputs_nobody_made_is_not_asked_about_them() -> None:
    critic, *_ = go_back([rollout(*CHAIN)], of("c", input_complaint="Bad."))
    outputs = {name: list(asked[0].signature.output_fields) for name, asked in critic.asked.items()}
    assert outputs == {name: ["requirements", "input_complaint"] for name in "cb"}
    critic, *_ = go_back([rollout(CHAIN[0])])
    assert list(critic.asked["a"][0].signature.output_fields) == ["requirements"]


MERGE = (call("a", question=None), call("b", question=None), call("c", left=(0,), right=(1,)))


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        ("left: Too long.", {"a": "Too long."}),
        ("- **left**: Too long.\n- `right`: nothing", {"a": "Too long."}),
        ("left:\n  1. Too long.\nright: No date.", {"a": "Too long.", "b": "No date."}),
        ("Too long.", {"a": "Too long.", "b": "Too long."}),
        ("Note: too long.", {"a": "Note: too long.", "b": "Note: too long."}),
        ("NOTHING\nright: nothing", {}),
    ],
    ids=["one", "Markdown", "lines below their name", "no name", "other word with a colon", "nothing"],
)
def test_complaint_that_names_an_input_reaches_its_maker_alone(said: str, heard: dict[str, str]) -> None:
    critic, *_ = go_back([rollout(*MERGE)], of("c", input_complaint=said))
    assert {name: critic.complaints(name)[0] for name in critic.asked if name != "c"} == heard


def test_critic_is_told_to_name_the_input_only_where_there_are_several() -> None:
    critic, *_ = go_back([rollout(*MERGE)])
    assert "name of the input and a colon, one of left, right" in str(critic.asked["c"][0].signature)
    critic, *_ = go_back([rollout(*CHAIN)])
    assert "name of the input" not in str(critic.asked["c"][0].signature)


def test_predictors_that_do_not_feed_each_other_are_asked_about_at_once() -> None:
    critic, *_ = go_back([rollout(*MERGE)], of("c", input_complaint="Bad."))
    assert [sorted(names) for names in critic.rounds] == [["c"], ["a", "b"]]


def test_complaints_of_all_that_use_an_output_add_up() -> None:
    fan_out = (call("a", question=None), call("b", text=(0,)), call("c", text=(0,)))

    def answer(question: Question) -> Reply:
        return {"requirements": "nothing", "input_complaint": f"{question.name.split('/')[2]} says it is bad."}

    critic, *_ = go_back([rollout(*fan_out)], answer)
    assert {"b says it is bad.", "c says it is bad."} <= {*critic.asked["a"][0].inputs["complaint"].splitlines()}


def test_loop_is_entered_at_the_output_that_the_program_returned() -> None:
    loop = (
        call("a", question=None),
        call("b", plan=(0,)),
        call("c", draft=(1,)),
        call("b", plan=(0,), notes=(2,), returned=True),
        call("c", draft=(3,)),
    )
    reply = {"b": "notes: Too mild.\nplan: Too short.", "c": "Too late."}
    critic, _, remarks = go_back(
        [rollout(*loop)],
        lambda question: {"requirements": "nothing", "input_complaint": reply.get(question.name.split("/")[2], "")},
    )
    assert [sorted(names) for names in critic.rounds] == [["b"], ["a", "c"]]
    assert critic.complaints("c") == ["Too mild."]
    assert remarks["complaints that came too late in a loop"] == 1


def test_loop_beside_another_last_predictor_hears_the_complaint_too() -> None:
    loop = (call("a", notes=(1,), returned=True), call("b", text=(0,)), call("a", notes=(1,)), call("c", question=None))
    critic, *_ = go_back([rollout(*loop)])
    assert critic.rounds == [["c"], ["a"]]


def test_complaint_passes_unchanged_through_a_frozen_predictor_and_one_made_on_the_fly() -> None:
    calls = (call("a", question=None), call("frozen", text=(0,)), call(None, text=(1,)), call("c", text=(2,)))
    critic, *_ = go_back([rollout(*calls)], of("c", input_complaint="Too vague."), predictors="ac")
    assert critic.rounds == [["c"], ["a"]]
    assert critic.complaints("a") == ["Too vague."]


def test_complaint_that_nobody_is_left_to_hear_is_counted() -> None:
    _, gradients, remarks = go_back([rollout(call("frozen", question=None))], predictors="a")
    assert gradients == {}
    assert remarks["complaints that ended at a frozen predictor"] == 1


def test_without_the_chain_every_predictor_is_shown_what_the_metric_said() -> None:
    critic, gradients, _ = go_back(
        [rollout(*CHAIN)], lambda question: {"requirements": "Be brief.", "input_complaint": "Bad."}, chain=False
    )
    assert sorted(critic.asked) == sorted(gradients) == ["a", "b", "c"]
    assert [critic.complaints(name) for name in "abc"] == [["Wrong."]] * 3
    assert all("input_complaint" not in asked[0].signature.output_fields for asked in critic.asked.values())


# What the complaint says.


def test_feedback_of_the_metric_goes_in_verbatim_and_labels_only_where_allowed() -> None:
    words = "Wrong:  it said <b>\n\tno</b>."
    for show_gold in (False, True):
        critic, *_ = go_back([rollout(*CHAIN, feedback=words)], show_gold=show_gold)
        (question,) = critic.asked["c"]
        label = "\nExpected answer: 11" if show_gold else ""
        assert question.inputs["complaint"] == f"<data>\n{words}{label}\n</data>"


def test_score_and_best_score_stand_for_a_feedback_that_is_missing() -> None:
    critic, *_ = go_back([rollout(*CHAIN, feedback="", score=0.25)], top_score=2)
    assert critic.complaints("c") == ["The result scored 0.25; the best possible score is 2."]


def test_image_in_a_label_is_shown_without_its_raw_data() -> None:
    trainset = [dspy.Example(question="?", answer=dspy.Image("data:image/png;base64,AAAABBBB")).with_inputs("question")]
    critic = Critic(lambda question: NOTHING)
    backward = Backward(critic, prepare(trainset, None, seed=0), show_gold=True, top_score=1.0)
    backward(Candidate({"c": "Be c."}), [rollout(*CHAIN)], step=0)
    assert "IMAGE_BASE_64_ENCODED" in critic.asked["c"][0].inputs["complaint"]
    assert "AAAABBBB" not in critic.asked["c"][0].inputs["complaint"]


def test_reply_of_the_wrong_form_is_a_complaint_about_its_predictor_alone() -> None:
    failed = call("b", text=(0,), error="The reply was: Hm.")
    ended = rollout(CHAIN[0], call("c", text=(0,)), failed, feedback="", error="AdapterParseError")
    critic, *_ = go_back([ended])
    assert critic.rounds == [["b"]]
    assert "The reply was: Hm." in critic.asked["b"][0].inputs["call"]


def test_wrong_form_that_the_program_survived_is_a_complaint_beside_that_of_the_metric() -> None:
    failed = call("b", text=(0,), error="The reply was: Hm.")
    critic, *_ = go_back([rollout(*CHAIN, failed)])
    assert critic.complaints("b") == ["The reply was: Hm."]
    assert critic.complaints("c") == ["Wrong."]


def test_feedback_on_one_predictor_goes_to_that_predictor() -> None:
    critic, *_ = go_back([rollout(*CHAIN, predictor_feedback={"a": "Name the year.", "gone": "Hm."})])
    assert critic.complaints("a") == ["Name the year."]
    assert critic.complaints("b") == []


# Chunks.


def seven(**more: Any) -> list[Rollout]:
    return [rollout(*CHAIN, example=number, feedback=f"Wrong {number}.", **more) for number in range(7)]


def test_failing_examples_are_shown_in_chunks_the_worst_first() -> None:
    rollouts = seven()
    rollouts[6] = rollout(*CHAIN, example=6, feedback="Wrong 6.", score=-1.0)
    critic, *_ = go_back(rollouts, chunk_size=3, top_score=1)
    asked = [re.findall(r"Wrong \d", question.inputs["complaint"]) for question in critic.asked["c"]]
    assert asked == [["Wrong 6", "Wrong 0", "Wrong 1"], ["Wrong 2", "Wrong 3", "Wrong 4"], ["Wrong 5"]]
    assert critic.asked["c"][0].inputs["call"].count("Call 3:") == 1
    assert "numbers of its calls" in str(critic.asked["c"][0].signature)
    assert "numbers of its calls" not in str(critic.asked["c"][2].signature)


@pytest.mark.parametrize("chunk_size, expected", [(1, [7, 3, 1, 1, 1]), (3, [3] * 5)])
def test_critic_of_single_examples_is_asked_about_half_as_many_after_each_silent_step(
    chunk_size: int, expected: list[int]
) -> None:
    failing = [*seven(score=0.5)[:6], rollout(*CHAIN, example=8, feedback="The worst.", score=0.0)]
    critics = [go_back(failing, chunk_size=chunk_size, num_silent=number)[0] for number in range(5)]
    assert [len(critic.asked["c"]) for critic in critics] == expected
    assert all("The worst." in critic.asked["c"][0].inputs["complaint"] for critic in critics)


def test_chunk_is_closed_before_it_has_too_many_tokens() -> None:
    long = [rollout(*CHAIN, example=number, feedback="one two three " * 5000) for number in range(4)]
    critic, *_ = go_back(long, chunk_size=4, max_chars=20_000)
    assert len(critic.asked["c"]) == 4


@pytest.mark.parametrize(
    ("line", "text", "those"),
    [
        ("Name the year. [1, 3]", "Name the year.", {0, 2}),
        ("2. Name the year (calls 2 and 3).", "Name the year", {1, 2}),
        ("Name the year [Call 2]", "Name the year", {1}),
        ("Name the year (2002).", "Name the year (2002).", {0, 1, 2}),
        ("Name the year.", "Name the year.", {0, 1, 2}),
    ],
)
def test_sentence_with_numbers_in_brackets_is_about_these_examples(line: str, text: str, those: set[int]) -> None:
    _, gradients, _ = go_back(seven()[:3], of("c", requirements=line), chunk_size=3)
    (point,) = gradients["c"].points
    assert (point.text, {*point.examples}) == (text, {f"train:{number}" for number in those})
    assert gradients["c"].blame == pytest.approx(len(those) / 3)


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        ("2 text: Too long.", {1: "Too long."}),
        ("Call 2: Too long.\n3. text: No date.", {1: "Too long.", 2: "No date."}),
        ("Call 1:\n- nothing\n**Call 2**:\n- text: Too long.", {1: "Too long."}),
        ("2.5 pages are too long.", dict.fromkeys(range(3), "2.5 pages are too long.")),
        ("Too long.", dict.fromkeys(range(3), "Too long.")),
    ],
)
def test_complaint_that_names_a_call_goes_to_that_rollout(said: str, heard: dict[int, str]) -> None:
    critic, *_ = go_back(seven()[:3], lambda question: of("c", input_complaint=said)(question), chunk_size=3)
    (question,) = critic.asked["b"]
    lines = [line for line in question.inputs["complaint"].splitlines()[1:-1] if line and "Call" not in line]
    assert lines == list(heard.values())


# Bad replies and bad traces.


def test_sentences_count_only_where_no_reply_of_the_step_keeps_to_the_form() -> None:
    said = ["Sure, here is one:\n- Name the month.", "I'm sorry, but I can't help with that."]
    replies = iter(said * 2)
    _, gradients, _ = go_back(seven()[:2], lambda question: {**NOTHING, "requirements": next(replies)})
    assert [(point.text, point.is_loose) for point in gradients["c"].points] == [("Name the month.", False)]
    _, gradients, _ = go_back(seven()[:2], of("c", requirements="Name the month. Name the year."))
    assert [point.is_loose for point in gradients["c"].points] == [True, True]


def test_lines_that_are_no_requirement_are_kept_with_their_reason() -> None:
    critic = Critic(of("c", requirements="Here you are:\n- Name the month.\nGood luck!"))
    backward = Backward(critic, prepare(examples(10), None, seed=0), show_gold=False, top_score=1.0)
    _, _, refusals = backward(Candidate({"c": "Be c."}), [rollout(*CHAIN)], step=0)
    assert list(refusals) == [Refusal(LEFT_OUT, text, "c") for text in ("Here you are:", "Good luck!")]


def test_critic_sees_the_whole_instruction() -> None:
    critic = Critic(lambda question: NOTHING)
    backward = Backward(critic, prepare(examples(10), None, seed=0), show_gold=False, top_score=1.0)
    text = "".join(f"Rule {number} holds. " for number in range(2000))
    backward(Candidate({"c": text}), [rollout(*CHAIN)], step=0)
    assert critic.asked["c"][0].inputs["instruction"] == text


@pytest.mark.parametrize(
    ("requirements", "about_input", "remarks"),
    [
        ("nothing", "NOTHING.", {"nothing to change": 3}),
        ("", "", {"nothing to change": 3}),
        ("<nothing>", "", {"nothing to change": 3}),
        ("Be brief. [4]", "", {"sentence for a call that does not exist": 1}),
        ("Be brief.", "0 text: Bad.", {"complaint about a call that does not exist": 1}),
        ("Be brief.", "question: Bad.", {"complaint about an input that does not exist": 1}),
        ("\n".join(f"Mind rule {number}." for number in range(20)), "", {"points left out": 12}),
    ],
    ids=[
        "nothing",
        "empty",
        "nothing in brackets",
        "call of a sentence",
        "call of a complaint",
        "input",
        "too many points",
    ],
)
def test_useless_reply_is_counted(requirements: str, about_input: str, remarks: dict[str, int]) -> None:
    size = 1 if "nothing to change" in remarks else 3
    _, gradients, found = go_back(
        seven()[:3], of("c", requirements=requirements, input_complaint=about_input), "abc", chunk_size=size
    )
    assert remarks.items() <= found.items()
    assert bool(gradients) == ("nothing to change" not in remarks)


def test_complaint_about_an_input_that_no_predictor_made_is_counted() -> None:
    calls = (CHAIN[0], call("c", text=(0,), question=None))
    critic, _, remarks = go_back([rollout(*calls)], of("c", input_complaint="question: Too hard."))
    assert critic.rounds == [["c"]]
    assert remarks["complaint about an input that no predictor made"] == 1


def test_critic_without_a_reply_stops_the_complaint_there() -> None:
    critic, gradients, _ = go_back([rollout(*CHAIN)], lambda question: None)
    assert critic.rounds == [["c"]]
    assert gradients == {}


def test_empty_trace_and_predictors_that_never_ran_and_calls_left_out_are_counted() -> None:
    critic, gradients, remarks = go_back([rollout(), rollout(*CHAIN, example=1, num_calls=1000)])
    assert critic.rounds == [["c"]]
    assert gradients == {}
    assert remarks == {
        "rollouts without a predictor call": 1,
        "predictors that never ran": 1,
        "calls left out": 997,
        "nothing to change": 1,
    }


# Reduction.


def test_equal_points_become_one_with_their_examples_and_opposites_stay_apart() -> None:
    said = ["Always name the month.", "Never name the month.", "Be brief.", "Be brief!"]

    def answer(question: Question) -> Reply:
        return {**NOTHING, "requirements": said[int(question.name[-1])]}

    _, gradients, _ = go_back(seven()[:4], answer)
    points = {point.text: point.weight for point in gradients["c"].points}
    assert list(points.items()) == [("Be brief.", 2), ("Always name the month.", 1), ("Never name the month.", 1)]
    assert gradients["c"].blame == 1.0
