from __future__ import annotations

from typing import Any

import dspy

from dspy_dlpo.descent.sources import SOURCES
from dspy_dlpo.descent.sources.memory import refused_before
from tests.scripted import SECRETS, Oracle, examples, field, fields, metric, replying, role_of, scripted_lm, world

WHOLE = "Answer the question.\n\n" + "\n".join(f"- When the topic is {t}, answer {s}." for t, s in SECRETS.items())

OTHERS = [name for name in SOURCES if name != "SharedFeedback"]  # Which would solve some of it first.


def rewriting(new: str) -> Any:
    """A model whose critic says nothing, and which writes a whole new instruction when it is asked for one."""

    def script(system: str, user: str) -> str:
        if role_of(system) == "critic":
            return replying()(system, user)
        return fields(new_instruction=new) if role_of(system) == "rewriter" else world()(system, user)

    return scripted_lm(script)


def test_rewrite_solves_what_a_silent_critic_leaves(make: Any) -> None:
    with dspy.context(lm=rewriting(WHOLE)):
        optimized = make(num_steps=4, sources=OTHERS).compile(dspy.Predict(Oracle), trainset=examples(40))
    assert optimized.detailed_results.best.source == "Rewrite"
    assert optimized.detailed_results.gain.mean == 1
    assert all(edit.must_help for edit in optimized.detailed_results.best.edits["self"])


def test_rewrite_that_is_no_better_is_refused_whatever_annealing_lets_pass(make: Any) -> None:
    with dspy.context(lm=rewriting("Do as you please.")):
        result = make(num_steps=4, sources=OTHERS).compile(dspy.Predict(Oracle), trainset=examples(40)).detailed_results
    tried = [record for record in result.history if record.trial]
    assert tried
    assert not any(record.accepted for record in tried)


def test_rewrite_keeps_the_cap_on_edits_and_protected_text(make: Any) -> None:
    from dspy_dlpo import TextualLearningRate

    student = dspy.Predict(Oracle.with_instructions("<keep>Answer the question.</keep> Be brief."))
    with dspy.context(lm=rewriting(WHOLE)):
        optimizer = make(num_steps=1, sources=OTHERS, policies=[TextualLearningRate(2)])
        result = optimizer.compile(student, trainset=examples(40)).detailed_results
    candidates = [each for each in result.history[0].candidates if each.source == "Rewrite"]
    assert candidates
    for candidate in candidates:
        assert "<keep>Answer the question.</keep>" in candidate.instructions["self"]
        assert len(candidate.edits["self"]) <= 2


def test_rewriter_sees_all_failures_what_went_right_and_what_was_refused(make: Any) -> None:
    lm = rewriting("Do as you please.")
    known = "\n".join(f"When the topic is {topic}, answer {SECRETS[topic]}." for topic in ("alpha", "beta", "gamma"))
    student = dspy.Predict(Oracle.with_instructions(known))
    with dspy.context(lm=lm):
        result = (
            make(num_steps=2, sources=OTHERS, batch_size=10).compile(student, trainset=examples(40)).detailed_results
        )
    first, second = [user for system, user in lm.engine.log if role_of(system) == "rewriter"][:2]
    failures = result.history[0].failures
    assert field(first, "wrong").count("What was wrong:") == min(len(failures), 8) > 1
    assert "answer: " in field(first, "right")
    assert "refused" not in field(first, "limits")
    assert "Tried before and refused (" in field(second, "limits")
    assert "Do as you please." in field(second, "limits")
    assert refused_before(result.history[:1], "self")[0].endswith("Do as you please.")


def test_own_proposer_is_asked_for_edits_alone(make: Any) -> None:
    lm = rewriting(WHOLE)
    with dspy.context(lm=lm):
        optimizer = make(num_steps=3, sources=OTHERS, proposer=lambda **given: {"edits": "NOTHING"})
        optimizer.compile(dspy.Predict(Oracle), trainset=examples(40))
    assert lm.engine.count("rewriter") == 0


def test_refused_edit_is_not_paid_for_again(make: Any) -> None:
    lm = scripted_lm(world(critic=lambda system, user: fields(requirements="- Be rude to everybody.")))
    student = dspy.Predict(Oracle.with_instructions(WHOLE.replace("55", "54")))
    with dspy.context(lm=lm):
        result = make(num_steps=6, sources=OTHERS, policies="none").compile(
            student, trainset=examples(40), valset=examples(5, 90)
        )
    tried = [record.trial.candidate for record in result.detailed_results.history if record.trial]
    assert len(tried) == len(set(tried))
    assert metric(examples(1)[0], dspy.Prediction(answer="11")).score == 1


def test_without_passing_examples_no_prompt_shows_any(make: Any) -> None:
    lm = rewriting("Do as you please.")
    known = "\n".join(f"When the topic is {topic}, answer {SECRETS[topic]}." for topic in ("alpha", "beta", "gamma"))
    with dspy.context(lm=lm):
        optimizer = make(num_steps=1, sources=OTHERS, batch_size=10, max_passing=0)
        optimizer.compile(dspy.Predict(Oracle.with_instructions(known)), trainset=examples(40))
    (asked,) = [user for system, user in lm.engine.log if role_of(system) == "rewriter"]
    assert "answer: " not in field(asked, "right")


def test_proposer_that_writes_nothing_usable_is_asked_less_and_less_often(make: Any) -> None:
    lm = rewriting("NOTHING")
    with dspy.context(lm=lm):
        result = make(num_steps=8, sources=OTHERS).compile(dspy.Predict(Oracle), trainset=examples(40)).detailed_results
    assert len(result.history) == 8
    assert lm.engine.count("rewriter") == 3  # In the first, the third and the seventh step.
