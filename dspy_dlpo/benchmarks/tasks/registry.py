"""The tasks: the paper's five sets and reasoning-gym, each with a seed program, a human prompt and a strict scorer."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dspy

from dspy_dlpo.benchmarks.extras import extra
from dspy_dlpo.benchmarks.tasks.loaders import Row, load_rows
from dspy_dlpo.benchmarks.tasks.prompts import BBH, MATH, REASONING_GYM, WORD_PROBLEM, WORLD_WORD_PROBLEM
from dspy_dlpo.benchmarks.tasks.scorers import LATEX, NUMBER, WORLD_NUMBER, ReasoningGymScorer, Scorer
from dspy_dlpo.benchmarks.tasks.task import Task

Sizes = tuple[int, int, int]
"""Numbers of train, validation and test problems."""

MGSM_LANGUAGES = ("bn", "de", "en", "es", "fr", "ja", "ru", "sw", "te", "th", "zh")

_GYM = "reasoning-gym"


@dataclass(frozen=True)
class _Plan:
    """How a set becomes a task.

    Attributes:
        module: The kind of the only predictor. Where the answer follows in a step or two it is `Predict`, so that a
            small model answers in seconds.
        sizes: The paper's splits.
        rest: Whether all that is left is for testing.
    """

    module: Callable[..., dspy.Module]
    sizes: Sizes
    rest: bool = False


_PLANS: Mapping[str, _Plan] = {
    "gsm8k": _Plan(dspy.ChainOfThought, (50, 100, 400)),
    "biggsm": _Plan(dspy.ChainOfThought, (190, 10, 410)),
    "bbh": _Plan(dspy.Predict, (50, 50, 25), rest=True),
    "math": _Plan(dspy.ChainOfThought, (100, 200, 300)),
    "mgsm": _Plan(dspy.ChainOfThought, (50, 50, 25), rest=True),
    _GYM: _Plan(dspy.Predict, (50, 50, 100)),
}


def load_task(
    name: str,
    *,
    data_dir: str | Path | None = None,
    subtask: str | None = None,
    seed: int = 0,
    sizes: Sizes | None = None,
) -> Task:
    """Return a benchmark task.

    The same seed gives the same splits. No question is in two splits. A question that a set holds twice is taken once,
    or left out if its answers conflict; so is a row whose own answer has not the form of its task. By default the
    splits (train/validation/test) are the paper's: GSM8K 50/100/400, BigGSM 190/10/410, MATH 100/200/300, BBH
    50/50/rest; MGSM, of which the paper says none, 50/50/rest; reasoning-gym 50/50/100. If a set is smaller than the
    sum (a rest counted as 25), each split shrinks in proportion. A set that comes in a training and a test part gives
    its training and validation examples from the one and its test examples from the other; one part gives all three.

    MGSM is split by problem: translations of one problem are all in one split, and `sizes` counts problems. Its
    problems are the first 250 of GSM8K's test part: do not tune on one of the two and report on the other.

    Args:
        name: `gsm8k`, `biggsm`, `bbh/SUBTASK`, `math`, `mgsm` (all languages), `mgsm/LANGUAGE` or `reasoning-gym/NAME`.
        data_dir: A folder of JSON lines, as in `dspy_dlpo.benchmarks.tasks.loaders.load_rows`. Default: from the hub.
            reasoning-gym makes its problems itself and needs neither.
        subtask: The subtask, if the name does not say it.
        seed: Decides the splits, and the problems of reasoning-gym.
        sizes: Train, validation and test problems, in place of the paper's.

    Returns:
        The task. Each example has `question`, `answer` and, out of the prompts' sight, `dspy_id`.

    Raises:
        ValueError: If there is no such task or subtask, `sizes` is larger than the set, or a line of a file is
            malformed.
        ImportError: If a package of the extra `bench` is missing.
        ConnectionError: If the hub cannot be reached and there is no `data_dir`.
        FileNotFoundError: If `data_dir` has no rows of the task.
    """
    name, subtask, subtasks = check_name(name if subtask is None or "/" in name else f"{name}/{subtask}")
    plan = _PLANS[name]
    if sizes is not None and (len(sizes) != 3 or min(sizes) < 1):
        raise ValueError(f"`sizes` must be three numbers of at least 1, but got sizes={sizes}.")
    metric: Scorer | ReasoningGymScorer
    if name == _GYM:
        pools, metric = _gym(subtask, seed, sum(sizes or plan.sizes))
        human = REASONING_GYM
    else:
        metric, human = {
            "gsm8k": (NUMBER, WORD_PROBLEM),
            "biggsm": (NUMBER, WORD_PROBLEM),
            "math": (LATEX, MATH),
            "mgsm": (WORLD_NUMBER, WORLD_WORD_PROBLEM),
            "bbh": BBH.get(subtask, (NUMBER, "")),
        }[name]
        if metric is LATEX:
            extra("math_verify")  # Else every answer in another spelling would be wrong.
        pools = _problems(load_rows(name, (subtask,) if subtask else subtasks, data_dir), metric)
    splits = _split(pools, sizes, plan, seed)
    program = plan.module(dspy.Signature("question -> answer", "Answer the question."))
    return Task(
        name=f"{name}/{subtask}" if subtask else name,
        program=program,
        human={path: human for path, _ in program.named_predictors()},
        metric=metric,
        trainset=splits[0],
        valset=splits[1],
        testset=splits[2],
    )


def check_name(name: str) -> tuple[str, str, Sequence[str]]:
    """Return the set and the subtask that a task's name says, and the subtasks of the set.

    Raises:
        ValueError: If there is no such task or subtask.
        ImportError: If reasoning-gym is missing.
    """
    name, _, subtask = name.partition("/")
    if name not in _PLANS:
        raise ValueError(f"`name` must be one of {_known(_PLANS)}, but got name={name!r}.")
    subtasks = _gym_names() if name == _GYM else {"bbh": tuple(BBH), "mgsm": MGSM_LANGUAGES}.get(name, ())
    if (subtask and subtask not in subtasks) or (not subtask and name in ("bbh", _GYM)):
        rule = f"`subtask` of {name} must be one of {_known(subtasks)}" if subtasks else f"{name} has no subtasks"
        raise ValueError(f"{rule}, but got subtask={subtask!r}.")
    return name, subtask, subtasks


def _known(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


_Problem = Sequence[Row]
"""A problem in one language, or in several."""


def _problems(parts: Mapping[str, Sequence[Row]], scorer: Scorer) -> list[Sequence[_Problem]]:
    """Return the problems of each part, each question once; see `load_task` for what is left out."""
    answers: dict[str, set[str]] = defaultdict(set)
    for row in (row for rows in parts.values() for row in rows):
        answers[_plain(row.question)].add(row.answer)
    pools: list[Sequence[_Problem]] = []
    seen: set[str] = set()
    for rows in parts.values():
        problems: dict[str, list[Row]] = defaultdict(list)
        for row in rows:
            question = _plain(row.question)
            if question in seen or len(answers[question]) > 1 or scorer.read(row.answer, row.question) is None:
                continue
            seen.add(question)
            problems[row.problem].append(row)
        pools.append(list(problems.values()))
    return pools


def _plain(question: str) -> str:
    return " ".join(question.casefold().split())


def _split(
    pools: Sequence[Sequence[_Problem]], sizes: Sizes | None, plan: _Plan, seed: int
) -> list[list[dspy.Example]]:
    shuffled = [random.Random(f"{seed}:{index}").sample(pool, len(pool)) for index, pool in enumerate(pools)]
    wanted = sizes or plan.sizes
    groups = [wanted] if len(pools) == 1 else [wanted[:2], wanted[2:]]
    splits: list[list[_Problem]] = []
    for pool, group in zip(shuffled, groups, strict=True):
        counts = list(group)
        if len(pool) < sum(group):
            if sizes or len(pool) < len(group):
                raise ValueError(
                    f"`sizes` must fit into the set, but got {tuple(group)} of {len(pool)} problems with a readable "
                    "answer."
                )
            counts = [max(len(pool) * size // sum(group), 1) for size in group]
            counts[-1] = len(pool) - sum(counts[:-1])
        elif plan.rest and not sizes:
            counts[-1] = len(pool) - sum(counts[:-1])
        for count in counts:
            splits.append(pool[:count])
            pool = pool[count:]
    return [_examples([row for problem in split for row in problem], seed) for split in splits]


def _examples(rows: Sequence[Row], seed: int) -> list[dspy.Example]:
    mixed = random.Random(seed).sample(rows, len(rows))  # The translations of a problem are not left side by side.
    fields = [{"question": row.question, "answer": row.answer, "dspy_id": row.id} for row in mixed]
    return [dspy.Example(**each).with_inputs("question") for each in fields]


def _gym_names() -> tuple[str, ...]:
    extra("reasoning_gym")
    return tuple(name for name in extra("reasoning_gym.factory").DATASETS if name != "composite")  # It has no default.


def _gym(name: str, seed: int, number: int) -> tuple[list[Sequence[_Problem]], ReasoningGymScorer]:
    """Return `number` distinct problems, or fewer if four times as many draws have no more."""
    far = random.Random(seed).randrange(2**31)  # Its seeds 0 and 1 share all problems but one.
    dataset: Any = extra("reasoning_gym").create_dataset(name, seed=far, size=4 * number)
    problems: dict[str, _Problem] = {}
    for index in range(4 * number):
        if len(problems) == number:
            break
        entry = dataset[index]
        row = Row(str(index), entry["question"], entry["answer"] or "", str(index))
        problems.setdefault(_plain(row.question), [row])
    return [list(problems.values())], ReasoningGymScorer(dataset)
