from __future__ import annotations

from typing import Any

import dspy
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dspy_dlpo import DLPOOptimizer, TextualSimulatedAnnealing
from dspy_dlpo.core.edits import Edit
from dspy_dlpo.core.likeness import normalised
from dspy_dlpo.core.records import Candidate, TextualGradient, UpdateRequest
from dspy_dlpo.core.sentences import split
from dspy_dlpo.core.steps import Threshold
from dspy_dlpo.descent.replies import read_rewrite
from dspy_dlpo.descent.rights import first_rights, must_help, touches_users_text
from tests.scripted import Oracle, examples, metric, scripted_lm, world

STUDENT = Candidate({"self": "Answer the question.\n- Never lie.\n- Be kind."})
SENTENCES = (*split(STUDENT.instructions["self"]), "Added later.")
REQUESTS = {"self": UpdateRequest("self", SENTENCES, TextualGradient("self", ()))}


@pytest.mark.parametrize(
    ("edit", "touches"),
    [
        (Edit("delete", 0), True),
        (Edit("replace", 1, "- Lie."), True),
        (Edit("delete", 3), False),
        (Edit("replace", 3, "Added now."), False),
        (Edit("add", 0, "Be brief."), False),
        (Edit("move", 1, to=0), False),
        (Edit("delete", 9), False),
    ],
)
def test_deleting_or_replacing_a_sentence_of_the_students_touches_the_users_text(edit: Edit, touches: bool) -> None:
    assert touches_users_text([edit], SENTENCES, STUDENT.instructions["self"]) is touches
    candidate = Candidate({"self": "x"}, "parent", {"self": (edit,)})
    assert must_help(candidate, REQUESTS, STUDENT) is touches


def test_candidate_that_must_help_is_not_accepted_as_no_worse_whatever_the_policies_let_pass() -> None:
    lenient = Threshold(-0.2, {"temperature": 0.1})
    plain = Candidate({"self": "x"}, "parent", {"self": (Edit("add", 0, "Be brief."),)})
    deleting = Candidate({"self": "y"}, "parent", {"self": (Edit("delete", 0),)})
    rewritten = Candidate({"self": "z"}, "parent", {"self": tuple(read_rewrite("Answer. Be brief.", SENTENCES))})
    for candidate, low in ((plain, -0.2), (deleting, 0.0), (rewritten, 0.0)):
        total = lenient + first_rights(candidate, REQUESTS, STUDENT, 1.0)
        assert total.level == pytest.approx(low, abs=1e-6)
    assert (lenient + first_rights(deleting, REQUESTS, STUDENT, 1.0)).level > 0


TASK = "Answer the question. Never name a price.\n- Be kind.\n- Be brief, please."
LINES = st.one_of(
    st.sampled_from(
        [
            "No edits are needed.",
            "None",
            "I'm sorry, but I can't help with that request.",
            "很抱歉，我无法协助完成此请求。",
            "Answer. Be quick.",
            '["DELETE 1", "DELETE 2"]',
            "[[",
        ]
    ),
    st.builds(lambda at: f"DELETE {at} BECAUSE it is old", st.integers(1, 5)),
    st.builds(lambda at, text: f'REPLACE {at} WITH "{text}"', st.integers(1, 5), st.sampled_from(["Lie.", "Say so."])),
    st.builds(lambda text: f'ADD "{text}"', st.sampled_from(["Guess well.", "When the topic is alpha, answer 11."])),
    st.text(max_size=40),
)


@settings(
    max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None
)
@given(st.lists(LINES, min_size=1, max_size=4).map("\n".join), st.lists(LINES, max_size=3).map("\n".join))
def test_the_users_sentences_stay_unless_an_edit_that_helped_removed_them(proposed: str, criticised: str) -> None:
    from dspy_dlpo.benchmarks.simulation.scripted import fields

    def critic(system: str, user: str) -> str:
        return fields(requirements=criticised, input_complaint="NOTHING")

    def proposer(system: str, user: str) -> str:
        return fields(edits=proposed)

    optimizer = DLPOOptimizer(
        metric=metric, num_steps=3, policies=[TextualSimulatedAnnealing(0.3)], verbose=False, num_threads=1
    )
    student = dspy.Predict(Oracle.with_instructions(TASK))
    with dspy.context(lm=scripted_lm(world(critic=critic, proposer=proposer))):
        result: Any = optimizer.compile(student, trainset=examples(20)).detailed_results
    own = {normalised(sentence): sentence for sentence in split(TASK)}
    gone: set[str] = set()
    for record in result.history:
        if not record.accepted:
            continue
        candidate = next(each for each in record.candidates if each.id == record.trial.candidate)
        sentences = next(each.sentences for each in record.requests if each.predictor == "self")
        removed = {
            normalised(sentences[edit.at]) for edit in candidate.edits["self"] if edit.op in ("delete", "replace")
        } & own.keys()
        assert not removed or record.trial.gain > 0
        gone |= removed
        left = {normalised(sentence) for sentence in split(candidate.instructions["self"])}
        assert own.keys() - gone <= left
