from __future__ import annotations

from typing import Any

import dspy
import pytest
from dspy.lm15 import Message, Request, Response, Usage

from dspy_dlpo.runtime.asking import without_end
from tests.scripted import Oracle, SimulatedEngine, examples, fields, role_of, world

HALF = "The answer must be in the format item=rain"


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("- One rule.\n- Another rule.\n- A third ru", "- One rule.\n- Another rule."),
        ("- One rule.\n- Another rule.\n", "- One rule."),
        ("One rule. Another ru", "One rule. "),
        ("一つ目の規則。二つ目の規", "一つ目の規則。"),
        ("# Task\n\nSort the words.\n\n1. Read th", "# Task\n\nSort the words.\n"),
        ("Half a ru", ""),
        ("", ""),
    ],
)
def test_text_that_was_cut_off_loses_its_last_line_or_sentence(text: str, whole: str) -> None:
    assert without_end(text) == whole


class CuttingCritic(SimulatedEngine):
    """Every reply of the critic ends in the middle of a rule, for its limit of length."""

    def complete(self, request: Request) -> Response:
        reply = super().complete(request)
        is_critic = role_of(self.log[-1][0]) == "critic"
        message = Message.assistant(reply.text or "")
        reason = "length" if is_critic else "stop"
        return Response(id=None, model=request.model, message=message, finish_reason=reason, usage=Usage())


@pytest.mark.parametrize("is_cut", [True, False])
def test_last_rule_of_a_critic_that_was_cut_off_enters_no_prompt(make: Any, is_cut: bool) -> None:
    def critic(system: str, user: str) -> str:
        return fields(requirements=f"- When the topic is alpha, answer 11.\n- {HALF}")

    engine = (CuttingCritic if is_cut else SimulatedEngine)(world(critic))
    lm = dspy.LM("scripted/model", engine=engine, cache=False, num_retries=0)
    with dspy.context(lm=lm):
        tuned = make(num_steps=1, num_threads=1).compile(dspy.Predict(Oracle), trainset=examples(40))
    (record,) = tuned.detailed_results.history
    said = record.candidates[0].instructions["self"]
    assert "When the topic is alpha, answer 11." in said
    assert (HALF in said) != is_cut
