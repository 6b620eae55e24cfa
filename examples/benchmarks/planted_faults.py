"""Does the backward pass find the predictor that is at fault? Simulated programs of which one instruction is wrong.

Every predictor has to give one item of the answer, the value of which only it can read from its input, and passes on
the items it is given. One instruction does not tell it to. The simulated models work from their prompts alone:

* The task model gives the items it is told to give. One whose value its input does not have, it invents.
* The critic reads in the complaint which item is missing. Where the input of the call has its value, the instruction is
  to blame. Where it has not, the input is to blame; if the critic is not asked about the input, it blames the
  instruction, since the prompt says that something is missing there. In `NOISE` of its replies it does so in any case.
  Where the instruction asks for an item whose value the input does not have, it says not to give it.
* The proposer adds the critic's sentences.

So an instruction that is blamed wrongly does harm: the predictor invents an item. "Without the chain" is the same loop
with `chain=False`: each predictor is shown the complaint about the whole answer, as optimisers with one feedback for a
whole program do.

Run `python -m examples.benchmarks.planted_faults`.
"""

from __future__ import annotations

import argparse
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import dspy

from dspy_dlpo.benchmarks.simulation.scripted import field, fields, play, simulated_lm
from dspy_dlpo.core.settings import Tuning
from dspy_dlpo.core.steps import StepRecord
from dspy_dlpo.optimizer.teleprompter import DLPOOptimizer

NOISE = 0.1
"""Share of its replies in which the simulated critic blames the instruction without looking."""

MODES: Mapping[str, Mapping[str, Any]] = {
    "chain": {},
    "no chain": {"tuning": Tuning(chain=False, batch_size=5)},
    "no chain, round robin": {"tuning": Tuning(chain=False, component_selector="round_robin", batch_size=5)},
    "chain, no annealing": {"policies": "none"},
    "no chain, no annealing": {"tuning": Tuning(chain=False, batch_size=5), "policies": "none"},
}
_MAX_STEPS = 12


class Chain(dspy.Module):  # type: ignore[misc]  # DSPy is untyped.
    """Three predictors in a row."""

    stages = ("first", "second", "third")

    def __init__(self) -> None:
        super().__init__()
        self.first = dspy.Predict("first_source -> first_out")
        self.second = dspy.Predict("second_source, first_out -> second_out")
        self.third = dspy.Predict("third_source, second_out -> answer")

    def forward(self, first: str, second: str, third: str) -> dspy.Prediction:
        """Pass the items along."""
        one = self.first(first_source=first).first_out
        two = self.second(second_source=second, first_out=one).second_out
        return self.third(third_source=third, second_out=two)


class Branches(dspy.Module):  # type: ignore[misc]  # DSPy is untyped.
    """Three predictors side by side, and one that merges what they give."""

    stages = ("left", "middle", "right", "merge")

    def __init__(self) -> None:
        super().__init__()
        self.left = dspy.Predict("left_source -> left_out")
        self.middle = dspy.Predict("middle_source -> middle_out")
        self.right = dspy.Predict("right_source -> right_out")
        self.merge = dspy.Predict("merge_source, left_out, middle_out, right_out -> answer")

    def forward(self, left: str, middle: str, right: str, merge: str) -> dspy.Prediction:
        """Merge the branches."""
        return self.merge(
            merge_source=merge,
            left_out=self.left(left_source=left).left_out,
            middle_out=self.middle(middle_source=middle).middle_out,
            right_out=self.right(right_source=right).right_out,
        )


class Cycle(dspy.Module):  # type: ignore[misc]  # DSPy is untyped.
    """A plan, and a draft that is reviewed and drafted again."""

    stages = ("plan", "draft", "review")

    def __init__(self) -> None:
        super().__init__()
        self.plan = dspy.Predict("plan_source -> plan_out")
        self.draft = dspy.Predict("draft_source, plan_out, review_out -> answer")
        self.review = dspy.Predict("review_source, answer -> review_out")

    def forward(self, plan: str, draft: str, review: str) -> dspy.Prediction:
        """Draft three times, with two reviews between."""
        made, notes = self.plan(plan_source=plan).plan_out, "none yet"
        for _ in range(2):
            answer = self.draft(draft_source=draft, plan_out=made, review_out=notes).answer
            notes = self.review(review_source=review, answer=answer).review_out
        return self.draft(draft_source=draft, plan_out=made, review_out=notes)


PROGRAMS = (Chain, Branches, Cycle)


@dataclass(frozen=True)
class Run:
    """What one run showed.

    Attributes:
        landed: Of the minibatches before the repair, the share in which the predictor at fault was blamed most.
        alone: The share in which it alone was blamed.
        steps: Steps until the program was right on the valset; the most there were, plus one, if it never was.
    """

    landed: float
    alone: float
    steps: int


def run(program: type[Any], fault: str, mode: str, seed: int) -> Run:
    """Plant a fault in one predictor of a program and let the optimiser repair it."""
    student = program()
    for name, predictor in student.named_predictors():
        told = "Pass on the items you are given." + ("" if name == fault else f" Give {name}.")
        predictor.signature = predictor.signature.with_instructions(told)
    optimizer = DLPOOptimizer(
        metric=_metric,
        num_steps=_MAX_STEPS,
        seed=seed,
        num_threads=4,
        verbose=False,
        **{"tuning": Tuning(batch_size=5), **MODES[mode]},
    )
    with dspy.context(lm=simulated_lm(script)):
        optimized = optimizer.compile(
            student, trainset=_examples(program, 20, seed), valset=_examples(program, 10, seed + 1000)
        )
    failing = [record for record in optimized.detailed_results.history if record.loss]
    repaired = next((record.step + 1 for record in failing if record.best_score == 1.0), _MAX_STEPS + 1)
    before = [record for record in failing if record.step < repaired]
    return Run(
        landed=fmean(_most_blamed(record) == [fault] for record in before),
        alone=fmean([gradient.predictor for gradient in record.gradients] == [fault] for record in before),
        steps=repaired,
    )


def runs(mode: str, seeds: Sequence[int], programs: Sequence[type[Any]] = PROGRAMS) -> Iterator[Run]:
    """Run every fault of every program with every seed."""
    for program in programs:
        for fault in program.stages:
            yield from (run(program, fault, mode, seed) for seed in seeds)


def _most_blamed(record: StepRecord) -> list[str]:
    most = max((gradient.blame for gradient in record.gradients), default=0.0)
    return [gradient.predictor for gradient in record.gradients if gradient.blame == most]


def _examples(program: type[Any], number: int, seed: int) -> list[dspy.Example]:
    names = program.stages
    rows = [
        {name: f"{name}: {seed * 100 + place}{index}" for place, name in enumerate(names)} for index in range(number)
    ]
    return [
        dspy.Example(**row, wanted="; ".join(sorted(text.replace(": ", "=") for text in row.values()))).with_inputs(
            *names
        )
        for row in rows
    ]


def _metric(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> dspy.Prediction:
    given, wanted = set(prediction.answer.split("; ")), set(example.wanted.split("; "))
    complaints = [f"{item.split('=')[0]} is missing." for item in sorted(wanted - given)]
    complaints += [f"{item.split('=')[0]} is invented." for item in sorted(given - wanted)]
    return dspy.Prediction(score=float(given == wanted), feedback=" ".join(complaints))


def _task(system: str, user: str) -> str:
    readable = dict(re.findall(r"^(\w+): (\d+)$", user, re.MULTILINE))
    told = {*re.findall(r"Give (\w+)\.", system)} - {*re.findall(r"Do not give (\w+)\.", system)}
    items = {*re.findall(r"\w+=[\d?]+", user), *(f"{name}={readable.get(name, '?')}" for name in told)}
    output = re.findall(r"\[\[ ## (\w+) ## \]\]", system.split("[[ ## completed ## ]]")[0])[-1]
    return fields(**{output: "; ".join(sorted(items)) or "none"})


def _critic(system: str, user: str) -> str:
    call, instruction = field(user, "call"), field(user, "instruction")
    blind = int(hashlib.sha256(user.encode()).hexdigest(), 16) % 1000 < 1000 * NOISE
    sentences: list[str] = []
    about_inputs: list[str] = []
    for name, complaint in dict.fromkeys(re.findall(r"(\w+) is (missing|invented)", field(user, "complaint"))):
        readable = re.search(rf"\b{name}: \d", call)
        if complaint == "invented" and f"Give {name}." in instruction and not readable:
            sentences.append(f"Do not give {name}.")
        elif complaint == "missing" and (readable or blind or "input_complaint" not in system):
            sentences.append(f"Give {name}.")
        else:
            source = re.search(rf"^(\w*{name}\w*): ", call, re.MULTILINE)
            about_inputs.append((f"{source[1]}: " if source else "") + f"{name} is {complaint}.")
    reply = {"requirements": "\n".join(sentences) or "nothing"}
    if "input_complaint" in system:
        reply["input_complaint"] = "\n".join(about_inputs) or "nothing"
    return fields(**reply)


script = play(_task, _critic)
"""Answers as the simulated models do."""


def main() -> None:
    """Print, with and without the chain, where the gradients land and how many steps the repair takes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    seeds = range(parser.parse_args().seeds)
    print("Simulated. Share of failing minibatches, before the repair, in which the predictor at fault")
    print(f"{'mode':<24}{'is blamed most':>16}{'alone':>8}{'steps to repair':>18}{'never repaired':>17}")
    for mode in MODES:
        found = list(runs(mode, seeds))
        steps, never = fmean(each.steps for each in found), sum(each.steps > _MAX_STEPS for each in found)
        landed, alone = (fmean(values) for values in zip(*((each.landed, each.alone) for each in found), strict=True))
        print(f"{mode:<24}{landed:>16.1%}{alone:>8.1%}{steps:>18.2f}{never:>10} of {len(found)}")


if __name__ == "__main__":
    main()
