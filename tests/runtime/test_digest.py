from __future__ import annotations

import datetime
import decimal
import enum
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dspy
import numpy as np
import pandas as pd
import pytest
from pydantic import BaseModel

from dspy_dlpo.runtime.digest import digest


class Level(enum.Enum):
    LOW, HIGH = 1, 2


class Answer(BaseModel):
    text: str
    tags: list[str] = []


@dataclass
class Point:
    x: float
    y: Any = None


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


def array(middle: float) -> Any:
    """Return one that NumPy prints without its middle."""
    values = np.zeros(5000)
    values[2500] = middle
    return values


def image(letter: str) -> dspy.Image:
    return dspy.Image(url=f"data:image/png;base64,{'a' * 9}{letter}")


DIFFERENT = {
    "text": lambda one: f"text {one}",
    "surrogate": lambda one: f"{one}\ud83d",
    "number": lambda one: 1.5 + one,
    "bool and int": lambda one: True if one else 1,
    "bytes": lambda one: bytes([255, one]),
    "nested": lambda one: {"a": [{"b": (1, {2, one + 3})}]},
    "array": array,
    "array of shape": lambda one: np.zeros((2, 3) if one else (3, 2)),
    "number of NumPy": lambda one: np.float32(one),
    "table": lambda one: pd.DataFrame({"a": [1, one, 3], "b": ["x", "y", "z"]}),
    "image": lambda one: image("ab"[one]),
    "enum": lambda one: [*Level][one],
    "date": lambda one: datetime.datetime(2020, 1, 1 + one),
    "decimal": lambda one: decimal.Decimal(f"1.{one}"),
    "model": lambda one: Answer(text="x", tags=[str(one)]),
    "dataclass": lambda one: Point(1.0, [one]),
    "slots": lambda one: Slotted(one),
    "example": lambda one: dspy.Example(question="?", answer=one).with_inputs("question"),
}


@pytest.mark.parametrize("make", DIFFERENT.values(), ids=DIFFERENT)
def test_equal_values_have_equal_digests_and_others_do_not(make: Any) -> None:
    assert digest(make(0)) == digest(make(0))
    assert digest(make(0)) != digest(make(1))


def test_order_of_mappings_and_sets_does_not_matter_and_that_of_lists_does() -> None:
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest([1, 2]) != digest([2, 1])


def test_what_cannot_be_copied_or_holds_itself_has_a_digest() -> None:
    loop: list[Any] = []
    loop.append(loop)
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for value in (threading.Lock(), (each for each in ()), loop, deep, print, Answer, lambda: 1):
        assert digest(value) == digest(value)


def test_digest_is_the_same_in_every_process() -> None:
    code = """
import numpy as np
from dspy_dlpo.runtime.digest import digest
class Plain:
    def __init__(self): self.size, self.names = 3, {"one", "two", "three"}
print(digest({"words": {"one", "two", "three"}, "thing": Plain(), "code": print, "array": np.arange(3)}))
"""
    root = str(Path(__file__).parents[2])
    said = {
        subprocess.check_output(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed, "PATH": "", "PYTHONPATH": root}, text=True
        )
        for seed in ("1", "2")
    }
    assert len(said) == 1
