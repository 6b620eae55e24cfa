"""How many calls a step takes, against the authors' code, and whether the decisions are the same.

The authors' script makes 3B + 2 + 2T + V calls a step: 407 with minibatches of 5, 190 train and 10 validation examples.
The same setting on a simulated task: of 12 cases each has a rule, and an answer is usually right only if the
instruction holds the rule of its case. 30 % of the questions are answered anew whenever a word of the instruction
changes, so that a useless sentence turns some answers too. In 60 % of its replies the simulated critic infers the rule
from a complaint; in the others it writes something useless, or something that does harm. The simulated models work from
their prompts alone.

Run `python -m examples.benchmarks.calls`.
"""

from __future__ import annotations

import argparse
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import dspy

from dspy_dlpo.benchmarks.simulation.scripted import field, fields, play, simulated_lm
from dspy_dlpo.core.records import Candidate
from dspy_dlpo.core.settings import Tuning
from dspy_dlpo.core.steps import StepRecord
from dspy_dlpo.optimizer.teleprompter import DLPOOptimizer
from dspy_dlpo.runtime.program import with_instructions

BATCH_SIZE, TRAIN, VAL, TEST = 5, 190, 10, 300
FORMULA = 3 * BATCH_SIZE + 2 + 2 * TRAIN + VAL
CAPS: Mapping[str, tuple[int | None, int]] = {
    "no cap": (None, 1),
    "cap of 32": (32, 1),
    "cap of 8": (8, 1),
    "cap of 8, 5 x the steps": (8, 5),
}
"""Most examples of a decision, and how many times as many steps are taken: the last makes as many calls as no cap."""
_NUM_CASES = 12
_FIRM = 0.7


@dataclass(frozen=True)
class Run:
    """What a run showed.

    Attributes:
        calls: LM calls of each step, the student's first validation apart.
        same: For each decision, whether all train examples give the same one.
        before: Test accuracy of the student.
        after: Test accuracy of the result.
    """

    calls: float
    same: tuple[bool, ...]
    before: float
    after: float


def run(cap: int | None, num_steps: int, seed: int) -> Run:
    """Compile with a cap on the examples of a decision, and decide again with all examples."""
    rows = [
        dspy.Example(question=f"{seed}/{index}: case {index % _NUM_CASES}", case=index % _NUM_CASES).with_inputs(
            "question"
        )
        for index in range(TRAIN + VAL + TEST)
    ]
    trainset, valset, testset = rows[:TRAIN], rows[TRAIN : TRAIN + VAL], rows[-TEST:]
    student = dspy.Predict(dspy.Signature("question -> answer", "Answer the question."))
    optimizer = DLPOOptimizer(
        metric=_metric,
        num_steps=num_steps,
        tuning=Tuning(batch_size=BATCH_SIZE, max_trial_examples=cap),
        seed=seed,
        num_threads=1,
        verbose=False,
    )
    with dspy.context(lm=simulated_lm(script)):
        result = optimizer.compile(student, trainset=trainset, valset=valset).detailed_results
        known = {each.id: each for record in result.history for each in record.candidates}
        known |= {each.id: each for each in result.candidates}

        def scores(candidate: str | Candidate, examples: Sequence[dspy.Example]) -> list[float]:
            program = with_instructions(student, known[candidate] if isinstance(candidate, str) else candidate)
            return [_metric(row, program(**row.inputs())).score for row in examples]

        same = tuple(_same(record, trainset, scores) for record in result.history if record.trial)
        before, after = (fmean(scores(result.candidates[place], testset)) for place in (0, result.best_idx))
    calls = (result.spent.lm_calls - VAL) / len(result.history)
    return Run(calls, same, before, after)


def _same(record: StepRecord, trainset: Sequence[dspy.Example], scores: Any) -> bool:
    trial = record.trial
    assert trial is not None
    others = [row for index, row in enumerate(trainset) if f"train:{index}" not in record.minibatch]
    gain = fmean(scores(trial.candidate, others)) - fmean(scores(trial.incumbent, others))
    return (gain > trial.threshold.level) == trial.accepted


def _metric(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> dspy.Prediction:
    right = prediction.answer == f"answer {example.case}"
    return dspy.Prediction(score=float(right), feedback="" if right else f"case {example.case} has a rule of its own.")


def _chance(*texts: str) -> float:
    return int(hashlib.sha256("".join(texts).encode()).hexdigest()[:8], 16) / 0x100000000


def _task(system: str, user: str) -> str:
    case = re.findall(r"case (\d+)", field(user, "question"))[0]
    skill = 0.85 if f"Keep the rule of case {case}." in system else 0.2
    skill -= 0.1 * len(re.findall(r"Hurry in round \d+\.", system))
    luck = _chance(user) if _chance("firm", user) < _FIRM else _chance(system, user)
    return fields(answer=f"answer {case}" if luck < skill else "a guess")


def _critic(system: str, user: str) -> str:
    case, chance = re.findall(r"case (\d+) has", user)[0], _chance(user)
    if chance < 0.6:
        sentence = f"Keep the rule of case {case}."
    elif chance < 0.8:
        sentence = f"Mind that remark {user.count('e')} is of no use."
    else:
        sentence = f"Hurry in round {int(1000 * chance)}."
    return fields(requirements=sentence)


script = play(_task, _critic)
"""Answers as the simulated models do."""


def main() -> None:
    """Print calls a step against the formula, agreement of the decisions, and the accuracy reached."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=12)
    arguments = parser.parse_args()
    print(f"Simulated. {arguments.steps} steps, {arguments.seeds} seeds; 3B + 2 + 2T + V is {FORMULA} calls a step.")
    print(f"{'':<24}{'calls a step':>14}{'share':>8}{'same decisions':>20}{'test accuracy':>22}")
    for name, (cap, times) in CAPS.items():
        found = [run(cap, times * arguments.steps, seed) for seed in range(arguments.seeds)]
        calls, same = fmean(each.calls for each in found), [each for one in found for each in one.same]
        before, after = fmean(each.before for each in found), fmean(each.after for each in found)
        agreement = f"{sum(same)} of {len(same)}"
        print(
            f"{name:<24}{calls:>14.1f}{calls / FORMULA:>8.2f}{agreement:>20}{before:>14.2f} -> {after:.2f}", flush=True
        )


if __name__ == "__main__":
    main()
