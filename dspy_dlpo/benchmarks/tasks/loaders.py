"""Rows of the public sets: from their homes on the Hugging Face hub, or from a folder of JSON lines."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dspy_dlpo.benchmarks.extras import extra


@dataclass(frozen=True)
class Row:
    """One example of a set.

    Attributes:
        id: Unique in its set.
        question: The problem.
        answer: The final answer.
        problem: What it has in common with its translations.
    """

    id: str
    question: str
    answer: str
    problem: str


@dataclass(frozen=True)
class Source:
    """Where a set comes from.

    Attributes:
        hub: Its name on the hub.
        parts: Its parts in a folder (`train`, `test`, `all`: the names of the files), and the split of each on the hub.
        read: From a row on the hub to question and answer.
        config: The hub's configuration, if it has no subtasks.
        translated: Whether its subtasks are translations of the same problems, in the same order.
    """

    hub: str
    parts: Mapping[str, str]
    read: Callable[[Mapping[str, Any]], tuple[str, str]]
    config: str = "default"
    translated: bool = False


def _after_hashes(row: Mapping[str, Any]) -> tuple[str, str]:
    return row["question"], row["answer"].rpartition("####")[2].strip().rstrip(".").replace(",", "")


SOURCES: Mapping[str, Source] = {
    "gsm8k": Source("openai/gsm8k", {"train": "train", "test": "test"}, _after_hashes, "main"),
    "biggsm": Source("LightChen2333/BigGSM", {"all": "test"}, _after_hashes),
    "bbh": Source("lukaemon/bbh", {"test": "test"}, lambda row: (row["input"], row["target"])),
    "math": Source(
        "nlile/hendrycks-MATH-benchmark",
        {"train": "train", "test": "test"},
        lambda row: (row["problem"], row["answer"]),
    ),
    # Its training part, eight exemplars for prompts, is not used.
    "mgsm": Source(
        "juletxara/mgsm",
        {"test": "test"},
        lambda row: (row["question"], str(row["answer_number"])),
        translated=True,
    ),
}


def load_rows(name: str, subtasks: Sequence[str] = (), data_dir: str | Path | None = None) -> dict[str, list[Row]]:
    """Return the rows of a set by its parts.

    Args:
        name: One of `SOURCES`.
        subtasks: Those of its subtasks that are wanted, if it has any.
        data_dir: A folder with a file `NAME/PART.jsonl` for each part, or for some. Each line is a JSON object with the
            strings `id`, `question` and `answer`, and `subtask` if the set has subtasks. The `id` of a translation ends
            in the number of its problem. Default: from the hub.

    Raises:
        ImportError: If the rows are on the hub and `datasets` is not installed.
        ConnectionError: If the hub does not give them.
        FileNotFoundError: If the folder has no file of the set, or none with a row of these subtasks.
        ValueError: If a line of a file is malformed.
    """
    source = SOURCES[name]
    if data_dir is None:
        return {part: _from_hub(name, source, subtasks, part) for part in source.parts}
    paths = {part: Path(data_dir) / name / f"{part}.jsonl" for part in source.parts}
    found = {part: _from_file(path, source, subtasks) for part, path in paths.items() if path.exists()}
    if not any(found.values()):
        wanted = " or ".join(map(str, paths.values()))
        raise FileNotFoundError(
            f"`data_dir` must have rows of {'/'.join([name, *subtasks])} in {wanted}, but got data_dir='{data_dir}'. "
            "Leave it out to load the set from the Hugging Face hub."
        )
    return found


def _from_hub(name: str, source: Source, subtasks: Sequence[str], part: str) -> list[Row]:
    datasets, split = extra("datasets"), source.parts[part]
    rows = []
    for config in subtasks or [source.config]:
        try:
            found = datasets.load_dataset(source.hub, config, split=split)
        except Exception as error:  # Of many kinds; from each there are the same ways out.
            raise ConnectionError(
                f"{name} could not be loaded from {source.hub} on the Hugging Face hub ({error}). Connect to the "
                f"network, or give `data_dir` (--data-dir), a folder with {name}/{part}.jsonl: one JSON object a line, "
                "with id, question and answer."
            ) from error
        for index, row in enumerate(found):
            id = f"{name}-{config}-{part}-{index:04d}"
            question, answer = source.read(row)
            rows.append(Row(id, question.strip(), answer.strip(), str(index) if source.translated else id))
    return rows


def _from_file(path: Path, source: Source, subtasks: Sequence[str]) -> list[Row]:
    keys = ("id", "question", "answer", *(["subtask"] if subtasks else []))
    rows, ids = [], set[str]()
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:  # No JSON, or no UTF-8; or nested without end.
            raise ValueError(f"{path}, line {number}, must be a JSON object, but: {error}.") from error
        if not isinstance(found, dict) or not all(isinstance(found.get(key), str) for key in keys):
            raise ValueError(f"{path}, line {number}, must be a JSON object with the strings {', '.join(keys)}.")
        if not found["question"].strip():
            raise ValueError(f"{path}, line {number}: `question` must not be empty.")
        problem = re.search(r"\d+$" if source.translated else ".*", id := found["id"])
        if not problem:
            raise ValueError(f"{path}, line {number}: `id` must end in the number of the problem, but got {id!r}.")
        if id in ids:
            raise ValueError(f"{path}, line {number}: `id` must be unique, but {id!r} is in an earlier line too.")
        ids.add(id)
        if not subtasks or found["subtask"] in subtasks:
            rows.append(Row(id, found["question"].strip(), found["answer"].strip(), problem.group()))
    return rows
