"""Whatever the form of a program: its predictors are tuned, or it is said why not, before much is spent."""

from __future__ import annotations

import asyncio
import copy
import logging
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import dspy
import pytest
from dspy.primitives.code_interpreter import FinalOutput
from dspy.utils.syncify import syncify

from dspy_dlpo.benchmarks.simulation.scripted import Script, add_criticism, fields, play
from dspy_dlpo.core.records import Candidate
from dspy_dlpo.runtime.program import Student
from tests.scripted import Oracle, Program, examples, metric, scripted_lm

TASK = "question -> answer"
NOTE = dspy.Signature("question -> note", "Take a note.")


def answering(system: str, user: str) -> str:
    """Fill each field asked for: the answer as far as the instruction tells it, of agents the call of their tool."""
    asked = re.findall(r"^\d+\. `(\w+)`", system.partition("Your output fields are:")[2], re.MULTILINE)
    topic = re.search(r"topic (\w+)", user)
    known = topic and re.search(rf"When the topic is {topic.group(1)}, answer (\d+)", system)
    answer = known.group(1) if known else "unknown"
    values = {
        "answer": answer,
        "next_thought": "I look it up.",
        "next_tool_name": "finish" if "Observation" in user or "observation" in user else "look_up",
        "next_tool_args": "{}"
        if "bservation" in user
        else f'{{"question": "Topic {topic.group(1)}"}}'
        if topic
        else "{}",
        "tool_calls": f'{{"tool_calls": [{{"name": "submit", "args": {{"answer": "{answer}"}}}}]}}',
        "reasoning": "So it is.",
        "rationale": "So it is.",
        "code": f"SUBMIT({answer!r})",
        "advice": "{}",
        "discussion": "None.",
        "note": topic.group(0) if topic else "note",
    }
    return fields(**{name: values.get(name, name) for name in asked})


def critic(system: str, user: str) -> str:
    said = re.findall(r"When the topic is \w+, answer \d+\.", user)
    extra = {"input_complaint": "\n".join(said) or "nothing"} if "input_complaint" in system else {}
    return fields(requirements="\n".join(said) or "nothing", **extra)


SCRIPT: Script = play(answering, critic, add_criticism)


class Uncopyable:
    """A client, say."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("a client cannot be copied")


class Routes(dspy.Module):
    """Reaches its predictor by a bound method, beside what cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.client, self.lock = Uncopyable(), threading.Lock()
        self.qa = dspy.Predict(Oracle)
        self.routes = {"qa": self.answer}

    def answer(self, question: str) -> Any:
        return self.qa(question=question)

    def forward(self, question: str) -> Any:
        return self.routes["qa"](question)


class TwoNames(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = dspy.Predict(Oracle)
        self.lock = threading.Lock()
        self.second = self.first
        self.by_name = {"qa": [self.first]}

    def forward(self, question: str) -> Any:
        return self.second(question=question)


class Async(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()
        self.qa = dspy.Predict(Oracle)

    async def aforward(self, question: str) -> Any:
        await asyncio.sleep(0)
        return await self.qa.acall(question=question)


class Stubborn(dspy.Predict):
    """Says no to being copied."""

    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("no copies")


class Own(dspy.Module):
    """Brings its own way of being copied, which forgets to copy."""

    def __init__(self) -> None:
        super().__init__()
        self.qa = dspy.Predict(Oracle)

    def forward(self, question: str) -> Any:
        return self.qa(question=question)

    def deepcopy(self) -> Any:
        return copy.copy(self)


class Holder:
    """A plain object that holds a predictor."""

    def __init__(self) -> None:
        self.qa = dspy.Predict(Oracle)


class Interpreter:
    def __init__(self) -> None:
        self.tools: dict[str, Any] = {}

    def start(self) -> None: ...

    def shutdown(self) -> None: ...

    def execute(self, code: str, variables: dict[str, Any] | None = None) -> Any:
        found = re.search(r"SUBMIT\('(\w+)'\)", code)
        return FinalOutput({"answer": found.group(1)}) if found else ""


GLOBAL = dspy.Predict(Oracle)


def asks(**parts: Any) -> Callable[[Callable[..., Any]], Program]:
    """Return a program of the given parts, from its `forward`."""
    return partial(Program, **parts)


def qa(**parts: Any) -> dict[str, Any]:
    return {"qa": dspy.Predict(Oracle), **parts}


def in_thread(self: Any, question: str) -> Any:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(self.qa(question=question)))
    thread.start()
    thread.join()
    return found[0]


def in_pool(self: Any, question: str) -> Any:
    with ThreadPoolExecutor(2) as pool:
        note = pool.submit(self.note, question=question)
        return next(pool.map(lambda text: self.qa(question=f"{text} {note.result().note}"), [question]))


def in_loop(self: Any, question: str) -> Any:
    async def both() -> Any:
        found = await asyncio.gather(self.note.acall(question=question), self.qa.acall(question=question))
        return found[1]

    return asyncio.run(both())


def to_thread(self: Any, question: str) -> Any:
    return asyncio.run(asyncio.to_thread(self.qa, question=question))


def parallel(self: Any, question: str) -> Any:
    items = [(self.note, {"question": question}), (self.qa, {"question": question})]
    return dspy.Parallel(num_threads=2, disable_progress_bar=True)(items)[1]


def lazily(self: Any, question: str) -> Iterator[Any]:
    yield self.qa(question=question)


def first_of(example: Any, prediction: Any, trace: Any = None) -> Any:
    return metric(example, next(prediction) if isinstance(prediction, Iterator) else prediction)


def always(args: Any, prediction: Any) -> float:
    return 1.0


def agent(make_tool: Callable[[dspy.Module], Any]) -> dspy.Module:
    """An agent whose tool asks another module, and an answer from what it saw."""
    helper = Program(lambda self, question: self.qa(question=question), **qa())
    return dspy.ReAct(Oracle, tools=[make_tool(helper)], max_iters=2)


def look_up(question: str) -> str:
    """Look it up."""
    return "nothing"


def react_with_helper() -> dspy.Module:
    class Agent(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.helper = dspy.Predict(Oracle)
            self.lock = threading.Lock()
            self.agent = dspy.ReAct(NOTE, tools=[self.look_up], max_iters=2)

        def look_up(self, question: str) -> str:
            """Look it up."""
            return str(self.helper(question=question).answer)

        def forward(self, question: str) -> Any:
            self.agent(question=question)
            return self.helper(question=question)

    return Agent()


def with_own_model() -> dspy.Module:
    program = Program(lambda self, question: self.qa(question=question), **qa())
    program.set_lm(scripted_lm(SCRIPT))
    return program


def compiled_before() -> dspy.Module:
    program = dspy.Predict(Oracle)
    program._compiled = True
    program.demos = [dspy.Example(question="Of what?", answer="of this").with_inputs("question")]
    return program


def frozen_part() -> dspy.Module:
    program = asks(**qa(note=dspy.Predict(NOTE)))(
        lambda self, question: (self.note(question=question), self.qa(question=question))[1]
    )
    program.note._compiled = True
    return program


def asks_list(stages: Any) -> dspy.Module:
    program = Program(lambda self, question: (self.stages[0](question=question), self.stages[1](question=question))[1])
    program.stages = stages
    return program


def compares_chains() -> dspy.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # DSPy's own, of its own fields.
        return asks(qa=dspy.MultiChainComparison(Oracle, M=1))(compare_chains)


def compare_chains(self: Any, question: str) -> Any:
    return self.qa([dspy.Prediction(rationale="Because.", answer="unknown")], question=question)


def in_xml(self: Any, question: str) -> Any:
    with dspy.context(adapter=dspy.ChatAdapter(use_json_adapter_fallback=False)):
        return self.qa(question=question)


TUNED: dict[str, Callable[[], dspy.Module]] = {
    "predictor": lambda: dspy.Predict(Oracle),
    "chain of thought": lambda: dspy.ChainOfThought(Oracle),
    "module in module": lambda: asks(inner=dspy.ChainOfThought(Oracle))(
        lambda self, question: self.inner(question=question)
    ),
    "list": lambda: asks_list([dspy.Predict(NOTE), dspy.Predict(Oracle)]),
    "dict": lambda: asks_list({0: dspy.Predict(NOTE), 1: dspy.Predict(Oracle)}),
    "shared predictor": TwoNames,
    "bound method beside a lock and a client": Routes,
    "uncopyable predictor": lambda: Program(lambda self, question: self.qa(question=question), qa=Stubborn(Oracle)),
    "syncify in place": lambda: syncify(Async()),
    "syncify by a wrapper": lambda: syncify(Async(), in_place=False),
    "aforward only": Async,
    "forward of a predictor": lambda: asks(**qa())(lambda self, question: self.qa.forward(question=question)),
    "aforward of a predictor": lambda: asks(**qa())(
        lambda self, question: asyncio.run(self.qa.aforward(question=question))
    ),
    "forward of a module": lambda: asks(qa=dspy.ChainOfThought(Oracle))(
        lambda self, question: self.qa.forward(question=question)
    ),
    "own thread": lambda: asks(**qa())(in_thread),
    "own thread pool": lambda: asks(**qa(note=NOTE))(in_pool),
    "own event loop": lambda: asks(**qa(note=NOTE))(in_loop),
    "asyncio.to_thread": lambda: asks(**qa())(to_thread),
    "dspy.Parallel": lambda: asks(**qa(note=NOTE))(parallel),
    "ReAct": lambda: dspy.ReAct(Oracle, tools=[look_up], max_iters=2),
    "ReActV2": lambda: dspy.ReActV2(Oracle, tools=[look_up], max_iters=2),
    "RLM": lambda: dspy.RLM(Oracle, interpreter_factory=Interpreter),
    "agent whose tool is a method": react_with_helper,
    "Refine": lambda: dspy.Refine(module=dspy.Predict(Oracle), N=2, reward_fn=always, threshold=1.0),
    "BestOfN": lambda: dspy.BestOfN(module=dspy.ChainOfThought(Oracle), N=2, reward_fn=always, threshold=1.0),
    "MultiChainComparison": compares_chains,
    "compiled before": compiled_before,
    "frozen part": frozen_part,
    "own model": with_own_model,
    "own adapter": lambda: asks(**qa())(in_xml),
}


def tune(student: dspy.Module, make: Any, **arguments: Any) -> dspy.Module:
    given = {"num_steps": 3, "batch_size": 5, "max_trial_examples": 5, **arguments}
    return make(**given).compile(student, trainset=examples(20), valset=examples(5, 100))


@pytest.mark.parametrize("shape", TUNED)
def test_program_of_this_shape_is_tuned(make: Any, shape: str, caplog: pytest.LogCaptureFixture) -> None:
    lm = scripted_lm(SCRIPT)
    student = TUNED[shape]()
    before = {name: each.signature.instructions for name, each in student.named_predictors()}
    with dspy.context(lm=lm):
        optimized = tune(student, make)
        result = optimized.detailed_results
        assert result.val_aggregate_scores[result.best_idx] > result.val_aggregate_scores[0]
        optimized.set_lm(lm)  # Threads of its own do not inherit DSPy's settings outside of a run.
        right = [metric(each, _run(optimized, each)).score for each in examples(5, 100)]
        assert sum(right) / 5 == result.val_aggregate_scores[result.best_idx]
    assert {name: each.signature.instructions for name, each in student.named_predictors()} == before
    assert not [record for record in caplog.records if "none of the program's" in record.message]
    assert not [record for record in caplog.records if "stood in no prompt" in record.message]


def _run(program: dspy.Module, example: dspy.Example) -> Any:
    inputs = example.inputs()
    return program(**inputs) if hasattr(program, "forward") else asyncio.run(program.acall(**inputs))


def nested_list() -> dspy.Module:
    program = Program(lambda self, question: self.stages[0][0](question=question), note=NOTE)
    program.stages = [[dspy.Predict(Oracle)]]
    return program


def plain_object() -> dspy.Module:
    program = Program(lambda self, question: self.holder.qa(question=question), note=NOTE)
    program.holder = Holder()
    return program


def closure() -> dspy.Module:
    class Closing(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qa = dspy.Predict(Oracle)
            self.tool = lambda question: self.qa(question=question)

        def forward(self, question: str) -> Any:
            return self.tool(question)

    return Closing()


def replaced(self: Any, question: str) -> Any:
    return self.qa(question=question, signature=Oracle)


REFUSED: dict[str, tuple[Callable[[], dspy.Module], str]] = {
    "nested list": (nested_list, r"No predictor of the program ran.*`question -> answer`.*Keep each predictor in an"),
    "plain object": (plain_object, "No predictor of the program ran.*`question -> answer`"),
    "global": (lambda: asks(note=NOTE)(lambda self, question: GLOBAL(question=question)), "`question -> answer`"),
    "made in forward": (
        lambda: asks(note=NOTE)(lambda self, question: dspy.Predict("question -> answer")(question=question)),
        "No predictor of the program ran",
    ),
    "closure": (closure, r"qa \(reached by a closure or a global: the original, not the copy\)"),
    "lazy generator": (lambda: asks(**qa())(lazily), "only after the program has returned: return a list"),
    "no predictor": (lambda: Program(lambda self, question: dspy.Prediction(answer="1")), "No predictor to optimise"),
    "copies that are none": (Own, "cannot be copied, so that it cannot be tuned.*`deepcopy` return a true copy"),
}


@pytest.mark.parametrize("shape", REFUSED)
def test_program_of_this_shape_is_refused_after_the_first_minibatch(make: Any, shape: str) -> None:
    student, reason = REFUSED[shape]
    lm = scripted_lm(SCRIPT)
    with dspy.context(lm=lm), pytest.raises((RuntimeError, ValueError), match=reason):
        tune(student(), make, metric=first_of)
    assert lm.engine.count("critic") == lm.engine.count("proposer") == 0
    assert lm.engine.count("program") <= 5


WARNED: dict[str, tuple[Callable[[], dspy.Module], str]] = {
    "a predictor that never runs": (
        lambda: asks(**qa(spare=NOTE))(lambda self, question: self.qa(question=question)),
        "Predictor spare did not run on any of the 5 examples",
    ),
    "a call of a predictor made in forward": (
        lambda: asks(**qa())(
            lambda self, question: (dspy.Predict("question -> remark")(question=question), self.qa(question=question))[
                1
            ]
        ),
        "not tuned: `question -> remark` on 5 of 5 examples",
    ),
    "a signature of its own at the call": (
        lambda: asks(**qa())(lambda self, question: self.qa(question=question, signature=dspy.Signature(TASK, "Say."))),
        "The instruction of predictor qa stood in no prompt on 5 of 5 examples",
    ),
}


@pytest.mark.parametrize("shape", WARNED)
def test_what_cannot_be_tuned_is_named_once(make: Any, shape: str, caplog: pytest.LogCaptureFixture) -> None:
    student, message = WARNED[shape]
    with caplog.at_level(logging.WARNING, "dspy_dlpo"), dspy.context(lm=scripted_lm(SCRIPT)):
        tune(student(), make, num_steps=1)
    assert len([record for record in caplog.records if message in record.getMessage()]) == 1


# Copies.


def test_copy_shares_what_cannot_be_copied_and_nothing_else() -> None:
    program = Routes()
    new = Student(program).program(Candidate({"qa": "New."}))
    assert new.client is program.client
    assert new.qa is not program.qa
    assert new.routes["qa"].__self__ is new
    assert (new.qa.signature.instructions, program.qa.signature.instructions) == ("New.", "Answer the question.")


def test_copies_of_a_program_with_a_cycle_and_slots_are_whole() -> None:
    class Slotted:
        __slots__ = ("back", "lock")

    class Cyclic(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qa = dspy.Predict(Oracle)
            self.part = Slotted()
            self.part.back, self.part.lock = self, threading.Lock()

    program = Cyclic()
    new = Student(program).program(Candidate({}))
    assert new.part is not program.part
    assert new.part.back is new
    assert new.part.lock is program.part.lock
    assert new.qa is not program.qa


def test_copy_that_runs_is_made_once_for_many_threads(lm: dspy.LM) -> None:
    student, candidate = Student(dspy.Predict(Oracle)), Candidate({"self": "Say it."})
    copies: list[Any] = []
    threads = [threading.Thread(target=lambda: copies.append(student.copy(candidate))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(each) for each in copies}) == 1
