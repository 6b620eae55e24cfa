"""What came of one run of an optimiser, and the file that keeps such results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

CELLS = "cells.jsonl"
SETTINGS = "settings.json"


@dataclass(frozen=True)
class Cell:
    """One run, and what came of it.

    Attributes:
        task: Name of the task.
        optimizer: Name of the optimiser.
        max_metric_calls: Its budget.
        seed: Decides the splits and the optimiser's random choices.
        skipped: Why it was not run; empty if it was.
        failed: The error that ended it; empty if none did. A failed cell is run again.
        score: Test score of the result, from 0 to 1; None if the cell was skipped or failed.
        scores: Score on each test example, by its id in the set, else by its index; empty where the setting knows the
            score without running it.
        curve: Best so far, by the optimiser's own record: metric calls made, and test score of what it would have
            returned then. Starts with the student, ends with the result; empty if only the result was tested.
        metric_calls: How often a program was scored, as counted by the metric.
        lm_calls: Calls of all language models, testing apart; one that asks for several completions counts once.
        input_tokens: Tokens sent.
        output_tokens: Tokens received.
        cost: Dollars; None if a price is unknown.
        seconds: Wall time, testing apart.
        prompt_tokens: Length of the resulting instructions and demos, all predictors together.
        instructions: The resulting instructions, by predictor.
        demos: Train examples that the resulting demos are, by predictor, named like those of `scores`; empty for a
            demo that is none.
        plan: The parameters the budget was turned into; of ours also how many texts each rule of screening refused, and
            how many candidates of each source were accepted.
        versions: Of the packages that took part.
    """

    task: str
    optimizer: str
    max_metric_calls: int
    seed: int
    skipped: str = ""
    failed: str = ""
    score: float | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    curve: Sequence[tuple[int, float]] = ()
    metric_calls: int = 0
    lm_calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float | None = None
    seconds: float = 0.0
    prompt_tokens: int = 0
    instructions: Mapping[str, str] = field(default_factory=dict)
    demos: Mapping[str, Sequence[str]] = field(default_factory=dict)
    plan: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, int, int]:
        """What sets it apart from other cells."""
        return self.task, self.optimizer, self.max_metric_calls, self.seed

    @property
    def tokens(self) -> int:
        """Tokens sent and received."""
        return self.input_tokens + self.output_tokens


def keep_settings(folder: str | Path, settings: Mapping[str, Mapping[str, Any]]) -> None:
    """Keep what tasks are run with in the folder of a comparison, by the task's name.

    Raises:
        ValueError: If the folder has results of a task with other settings.
    """
    path = Path(folder, SETTINGS)
    ran = {cell.task for cell in read_cells(folder) if not cell.failed}
    kept = json.loads(path.read_text()) if path.exists() else {}
    kept = {task: own for task, own in kept.items() if task in ran}
    for task, own in settings.items():
        if kept.setdefault(task, {**own}) != own:
            raise ValueError(f"{folder} has results of {task} with {kept[task]}, not {own}. Give another `folder`.")
    if settings:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(kept, indent=1) + "\n")


def add_cell(folder: str | Path, cell: Cell) -> None:
    """Add a cell to those of a folder, which is made if need be."""
    path = Path(folder, CELLS)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(asdict(cell)) + "\n")


def read_cells(folder: str | Path) -> list[Cell]:
    """Return the cells of a folder, the latest of each key; none if there are none.

    A last line that is torn, since the process was killed while writing it, is cut off.

    Raises:
        ValueError: If another line is no cell.
    """
    path = Path(folder, CELLS)
    if not path.exists():
        return []
    text = path.read_text()
    if not text.endswith("\n"):
        text = text[: text.rfind("\n") + 1]
        path.write_text(text)
    cells: dict[tuple[str, str, int, int], Cell] = {}
    for number, line in enumerate(text.splitlines(), 1):
        try:
            cell = Cell(**json.loads(line))
        except (TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path}:{number} is no result of a comparison ({error}). Take a new `folder`.") from error
        cells[cell.key] = replace(cell, curve=[(calls, score) for calls, score in cell.curve])
    return [*cells.values()]
