from __future__ import annotations

import dspy
import pytest

from dspy_dlpo.runtime.context import room_for_a_field
from tests.scripted import scripted_lm


@pytest.mark.parametrize(
    ("model", "room"),
    [
        ("openai/gpt-4o-mini", 96_000),
        ("openai/gpt-4", 6_144),
        ("openai/nobody-knows-me", 12_000),
        ("local/small", 6_000),
    ],
)
def test_field_has_a_quarter_of_the_context(model: str, room: int) -> None:
    assert room_for_a_field(dspy.LM(model)) == room


def test_model_without_a_known_name_has_the_default() -> None:
    assert room_for_a_field(scripted_lm()) == room_for_a_field(None) == 12_000
