"""A synthetic task and a simulated language model, to study optimisers without paying for calls.

The task has hidden rules (`simulated_world`); the model answers its orders and, as critic or proposer, the prompts of
every optimiser (`simulated_critic`): ours, DSPy's COPRO, MIPROv2, SIMBA and GEPA, and TextGrad. It knows nothing but
its prompt, and its skills are the same whoever asks. Since the rules are known, the expected accuracy of any
instruction is computed, not sampled, and costs no call.

Everything it yields is simulated. It shows how optimisers differ in what they do with the same evidence from the same
model; it does not show how good that model is.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from textwrap import dedent

import dspy
from dspy.lm15 import Request

from dspy_dlpo.benchmarks.simulation.critic import Skills, Writer, output_fields
from dspy_dlpo.benchmarks.simulation.scripted import SimulatedEngine
from dspy_dlpo.benchmarks.simulation.world import INSTRUCTION, World, WorldSettings
from dspy_dlpo.benchmarks.tasks.task import Task
from dspy_dlpo.runtime.waiting import AsyncEngine

_REQUEST = "[[ ## request ## ]]\n"
_OBJECTIVE = re.compile(r"your objective is:\s*\n")
_SIZES = {"trainset": 100, "valset": 50, "testset": 200}


@dataclass(frozen=True)
class Difficulty:
    """How hard the task is, and how able the model.

    Attributes:
        name: Its name in tables.
        world: The task.
        skills: The model as critic and proposer.
    """

    name: str
    world: WorldSettings
    skills: Skills


DIFFICULTIES = {
    difficulty.name: difficulty
    for difficulty in (
        # A few common rules, and a critic that reads feedback well.
        Difficulty(
            "easy",
            WorldSettings(num_rules=4, frequency=0.5, skew=0.7, slip=0.03, dilution=0.002),
            Skills(
                from_feedback=0.6,
                from_example=0.06,
                guess=0.15,
                invent_useless=0.15,
                invent_harmful=0.03,
                forget=0.05,
                wordy=0.2,
            ),
        ),
        Difficulty("medium", WorldSettings(num_rules=8, frequency=0.45, skew=0.8), Skills()),
        # Many rules, most of them in less than one order of ten, and a critic that misreads most feedback.
        Difficulty(
            "hard",
            WorldSettings(num_rules=14, frequency=0.4, skew=0.9, slip=0.1, dilution=0.004),
            Skills(
                from_feedback=0.3,
                from_example=0.02,
                guess=0.06,
                invent_useless=0.25,
                invent_harmful=0.08,
                forget=0.1,
                wordy=0.4,
            ),
        ),
    )
}


class SimulatedModel(SimulatedEngine):
    """The engine: the task model for the program's prompts, the writer for all others.

    Asked the same at a temperature above 0, it gives an answer of its own each time.
    """

    def __init__(self, world: World, skills: Skills, latency: float = 0.0) -> None:
        super().__init__(lambda system, user: self._answer(system, user, 0), latency)
        self._world = world
        self._skills = skills
        self._writer = Writer(world, skills)
        self._instruction = lru_cache(maxsize=4096)(_instruction)
        self._asked: Counter[tuple[str, str]] = Counter()

    def __reduce__(self) -> tuple[type[SimulatedModel], tuple[World, Skills, float]]:
        return type(self), (self._world, self._skills, self.latency)

    def reply(self, system: str, user: str, request: Request) -> str:
        """Answer a request."""
        if not request.config.temperature:
            return self._answer(system, user, 0)
        with self._lock:
            self._asked[system, user] += 1
            sample = self._asked[system, user]
        return self._answer(system, user, sample)

    def _answer(self, system: str, user: str, sample: int) -> str:
        instruction = self._instruction(system)
        if instruction is None:
            return self._writer(system, user, sample)
        demos, _, asked = user.rpartition(_REQUEST)
        order = self._world.orders.get(asked.partition("\n")[0])
        if order is None:
            raise ValueError(f"The simulated task must be asked about one of its orders, but got {asked!r}.")
        answer = self._world.answer(instruction, order, self._world.orders_in(demos) if demos else (), sample)
        if "Outputs will be a JSON object" in system:
            return f'{{"answer": "{answer}"}}'
        return f"[[ ## answer ## ]]\n{answer}\n\n[[ ## completed ## ]]"


def _instruction(system: str) -> str | None:
    """Return the instruction of a prompt of the program, None if it is another's."""
    if output_fields(system) != ["answer"]:
        return None
    return dedent(_OBJECTIVE.split(system, maxsplit=1)[1]).strip()


@dataclass(frozen=True)
class Simulation:
    """A simulated task with its models.

    Attributes:
        task: The task, named `simulated (DIFFICULTY)`.
        lm: The program's model, at temperature 0 unless asked otherwise.
        prompt_lm: The same model as critic and proposer, at temperature 1.
        difficulty: Its settings.
        world: The rules.
    """

    task: Task
    lm: dspy.LM
    prompt_lm: dspy.LM
    difficulty: Difficulty
    world: World

    def accuracy(self, instruction: str, demos: Iterable[dspy.Example] = ()) -> float:
        """Return the expected accuracy of an instruction on the testset; no model is called."""
        shown = [self.world.orders[demo.request] for demo in demos]
        return self.world.accuracy(instruction, shown, (self.world.orders[each.request] for each in self.task.testset))

    def program_accuracy(self, program: dspy.Module) -> float:
        """Return the expected accuracy of a tuned copy of the task's program, with its demos."""
        predictor = program.predictors()[0]
        return self.accuracy(predictor.signature.instructions, predictor.demos)


def simulation(difficulty: str | Difficulty = "medium", seed: int = 0, latency: float = 0.0) -> Simulation:
    """Return a simulated task; each seed has its own rules, orders and luck.

    Args:
        difficulty: `"easy"`, `"medium"`, `"hard"`, or settings of one's own.
        seed: Decides everything, the answers of the models included.
        latency: Seconds until a model answers.

    Raises:
        ValueError: If there is no such difficulty, or `latency` is negative.
    """
    if isinstance(difficulty, str):
        if difficulty not in DIFFICULTIES:
            raise ValueError(f"`difficulty` must be one of {', '.join(DIFFICULTIES)}, but got {difficulty!r}.")
        difficulty = DIFFICULTIES[difficulty]
    if not latency >= 0:
        raise ValueError(f"`latency` must be at least 0 seconds, but got latency={latency}.")
    world = World(difficulty.world, seed, sum(_SIZES.values()))
    engine = SimulatedModel(world, difficulty.skills, latency)
    examples = iter(
        [
            dspy.Example(request=order.text, answer=order.answer).with_inputs("request")
            for order in world.orders.values()
        ]
    )
    sets = {name: [next(examples) for _ in range(size)] for name, size in _SIZES.items()}
    task = Task(
        name=f"simulated ({difficulty.name})",
        program=dspy.Predict(dspy.Signature("request -> answer", INSTRUCTION)),
        human={"self": "\n".join([INSTRUCTION, *(rule.sentence() for rule in world.hidden.values())])},
        metric=world.metric,
        **sets,
    )
    engines = {"engine": engine, "async_engine": AsyncEngine(engine)}
    lm = dspy.LM("simulated/task-model", **engines, cache=False, num_retries=0)
    prompt_lm = dspy.LM("simulated/prompt-model", **engines, cache=False, num_retries=0, temperature=1.0)
    return Simulation(task, lm, prompt_lm, difficulty, world)
