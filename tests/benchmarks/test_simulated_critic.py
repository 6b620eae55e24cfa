"""The simulated critic and proposer: the same evidence teaches it the same, in whosever prompt it is shown."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import dspy
import pytest
from dspy.lm15 import Config, Message, Request
from dspy.propose.dataset_summary_generator import DatasetDescriptor, ObservationSummarizer
from dspy.propose.grounded_proposer import generate_instruction_class
from dspy.teleprompt.copro_optimizer import BasicGenerateInstruction, GenerateInstructionGivenAttempts
from dspy.teleprompt.gepa.instruction_proposal import InstructionProposer
from dspy.teleprompt.simba_utils import OfferFeedback
from gepa.strategies.instruction_proposal import InstructionProposalSignature

from dspy_dlpo.benchmarks.simulation.simulator import Simulation, simulation
from dspy_dlpo.benchmarks.simulation.world import CUE, INSTRUCTION, Rule
from dspy_dlpo.core.sentences import split
from dspy_dlpo.descent.critic import Critique
from dspy_dlpo.descent.replies import read_edits
from dspy_dlpo.descent.sources.proposer_edits import ProposeEdits
from dspy_dlpo.descent.wording import fenced, numbered

NUM_DRAWS = 400
PROPOSE = generate_instruction_class(use_instruct_history=False)
REFLECT = InstructionProposer()


@pytest.fixture(scope="module")
def sim() -> Simulation:
    return simulation("medium", seed=3)


def told(sim: Simulation, text: str) -> frozenset[Rule]:
    return sim.world.read(text).told


def with_rules(sim: Simulation, number: int) -> str:
    return "\n".join([INSTRUCTION, *(rule.sentence() for rule in [*sim.world.hidden.values()][:number])])


def close(count: int, number: int, rate: float) -> bool:
    """Whether a count of `number` draws is within four standard errors of the rate."""
    return abs(count / number - rate) <= 4 * math.sqrt(rate * (1 - rate) / number)


def failures(sim: Simulation) -> Iterator[tuple[dspy.Example, str, str]]:
    """Yield examples that go wrong for want of one rule, the answer, and the feedback."""
    for example in sim.task.trainset:
        with dspy.context(lm=sim.lm):
            prediction = sim.task.program(**example.inputs())
        feedback = sim.task.metric(example, prediction).feedback
        causes = [sim.world.causes.get(complaint) for complaint in CUE.findall(feedback)]
        if len(causes) == 1 and causes[0]:
            yield example, prediction.answer, feedback


def critic(example: dspy.Example, answer: str, feedback: str) -> str:
    reply = dspy.Predict(Critique)(
        instruction=INSTRUCTION,
        call=fenced(f"request: {example.request}\nanswer: {answer}"),
        complaint=fenced(f"{feedback}\nExpected answer: {example.answer}"),
    )
    return str(reply.requirements)


def simba(example: dspy.Example, answer: str, feedback: str) -> str:
    def run(text: str) -> str:
        return json.dumps(
            [{"module_name": "self", "inputs": {"request": example.request}, "outputs": {"answer": text}}]
        )

    reply = dspy.Predict(OfferFeedback)(
        program_code="dspy.Predict",
        modules_defn=f"Module self\n\tOriginal Instructions:\n\t\t{INSTRUCTION}",
        program_inputs=json.dumps({"request": example.request}),
        oracle_metadata=json.dumps({"answer": example.answer}),
        worse_program_trajectory=run(answer),
        worse_program_outputs=json.dumps({"answer": answer}),
        worse_reward_value=0.0,
        worse_reward_info=json.dumps({"feedback": feedback}),
        better_program_trajectory=run(example.answer),
        better_program_outputs=json.dumps({"answer": example.answer}),
        better_reward_value=1.0,
        better_reward_info=json.dumps({"feedback": "Every code is right."}),
        module_names=["self"],
    )
    return str(reply.module_advice.get("self", ""))


def _gepa_examples(example: dspy.Example, answer: str, feedback: str) -> list[dict[str, Any]]:
    return [
        {"Inputs": {"request": example.request}, "Generated Outputs": {"answer": answer}, "Feedback": feedback},
    ]


def gepa(example: dspy.Example, answer: str, feedback: str, instruction: str = INSTRUCTION) -> str:
    records = {"self": _gepa_examples(example, answer, feedback)}
    return REFLECT({"self": instruction}, records, ["self"])["self"]


def gepa_alone(example: dspy.Example, answer: str, feedback: str, instruction: str = INSTRUCTION) -> str:
    shown = {"current_instruction_doc": instruction, "dataset_with_feedback": _gepa_examples(example, answer, feedback)}
    (reply,) = dspy.settings.lm(InstructionProposalSignature.prompt_renderer(shown))
    return InstructionProposalSignature.output_extractor(reply)["new_instruction"]


def textgrad(example: dspy.Example, answer: str, feedback: str, instruction: str = INSTRUCTION) -> str:
    """Send the three prompts of a step as its package does, without its prose."""
    engine = "You are the gradient (feedback) engine."

    def ask(system: str, user: str) -> str:
        lm = dspy.settings.lm
        request = Request(lm.model, (Message.user(user),), system=system, config=Config(temperature=1.0))
        return str(lm(request).text)

    talk = f"<LM_SYSTEM_PROMPT> {instruction} </LM_SYSTEM_PROMPT>\n<LM_INPUT> {example.request} </LM_INPUT>\n"
    talk += f"<LM_OUTPUT> {answer} </LM_OUTPUT>"
    about_answer = ask(engine, f"<OUTPUT_OF_FUNCTION> {feedback} </OUTPUT_OF_FUNCTION><VARIABLE> {answer} </VARIABLE>")
    gradient = ask(engine, f"{talk}<OBJECTIVE_FUNCTION>{about_answer}</OBJECTIVE_FUNCTION>")
    update = f"<VARIABLE> {instruction[:20]} </VARIABLE>{talk}<FEEDBACK>{gradient}</FEEDBACK><IMPROVED_VARIABLE>"
    return ask("Improve the variable.", update).split("<IMPROVED_VARIABLE>")[1].split("</IMPROVED_VARIABLE>")[0]


def mipro(example: dspy.Example, answer: str, feedback: str) -> str:
    return str(dspy.Predict(DatasetDescriptor)(examples=repr([example])).observations)


def mipro_demos(example: dspy.Example, answer: str, feedback: str) -> str:
    return _mipro(INSTRUCTION, f"Request: {example.request}\nAnswer: {example.answer}")


def _mipro(instruction: str, demos: str = "No task demos provided.", summary: str = "Orders.") -> str:
    about = {"program_code": "Predict", "program_description": "It writes.", "module": "Predict", "tip": "Be brief."}
    return str(
        PROPOSE(
            dataset_description=summary,
            module_description="It writes.",
            task_demos=demos,
            basic_instruction=instruction,
            **about,
        ).proposed_instruction
    )


Ask = Callable[[dspy.Example, str, str], str]


def rules_found(sim: Simulation, ask: Ask, number: int = NUM_DRAWS) -> tuple[int, int, int]:
    """Ask about failures; return how often the missing rule came out, a harmful sentence, and a useless one."""
    cases = list(failures(sim))
    found = harmful = useless = 0
    with dspy.context(lm=sim.prompt_lm):
        for index in range(number):
            case = cases[index % len(cases)]
            (cause,) = (sim.world.causes[complaint] for complaint in CUE.findall(case[2]))
            reply = ask(*case)
            found += cause in told(sim, reply)
            harmful += any(rule.harmful for rule in told(sim, reply))
            useless += any(text in reply for text in sim.world.useless)
    return found, harmful, useless


@pytest.mark.parametrize("ask", [critic, simba, gepa, gepa_alone, textgrad])
def test_whoever_shows_feedback_gets_the_rule_at_the_stated_rate(sim: Simulation, ask: Ask) -> None:
    skills = sim.difficulty.skills
    found, harmful, useless = rules_found(sim, ask)
    assert close(found, NUM_DRAWS, skills.from_feedback)
    assert close(harmful, NUM_DRAWS, skills.invent_harmful)
    wordy = skills.wordy if ask in (gepa, gepa_alone, textgrad) else 0.0
    assert close(useless, NUM_DRAWS, 1 - (1 - skills.invent_useless) * (1 - wordy))


@pytest.mark.parametrize("ask", [critic, simba, mipro, mipro_demos])
def test_whoever_shows_labels_without_feedback_gets_a_rule_at_the_lower_rate(sim: Simulation, ask: Ask) -> None:
    number, cases = (
        600,
        [case for case in failures(sim) if len(sim.world.orders[case[0].request].codes.keys() & sim.world.hidden) == 1],
    )
    found = 0
    with dspy.context(lm=sim.prompt_lm):
        for index in range(number):
            example, answer, _ = cases[index % len(cases)]
            (topic,) = sim.world.orders[example.request].codes.keys() & sim.world.hidden
            found += sim.world.hidden[topic] in told(sim, ask(example, answer, "Score 0."))
    skills = sim.difficulty.skills
    guesses = skills.num_guesses * skills.guess / len(sim.world.hidden) if ask is mipro_demos else 0.0
    assert close(found, number, skills.from_example + guesses)


def copro(instruction: str) -> str:
    return str(dspy.Predict(BasicGenerateInstruction)(basic_instruction=instruction).proposed_instruction)


def copro_attempts(instruction: str) -> str:
    attempts = ["Instruction #1: Bad.", "Prefix #1: A:", "Resulting Score #1: 2.0"]
    attempts += [f"Instruction #2: {instruction}", "Prefix #2: A:", "Resulting Score #2: 80.0"]
    return str(dspy.Predict(GenerateInstructionGivenAttempts)(attempted_instructions=attempts).proposed_instruction)


def rewrite_of(ask: Any, sim: Simulation) -> Callable[[str], str]:
    example, answer, feedback = next(failures(sim))
    return lambda instruction: str(ask(example, answer, feedback, instruction))


@pytest.mark.parametrize("ask", [copro, copro_attempts, _mipro], ids=lambda ask: ask.__name__)
def test_who_shows_no_evidence_gets_guesses(sim: Simulation, ask: Callable[[str], str]) -> None:
    skills = sim.difficulty.skills
    with dspy.context(lm=sim.prompt_lm):
        replies = [ask(INSTRUCTION) for _ in range(NUM_DRAWS)]
    found = sum(len(told(sim, reply)) for reply in replies)
    assert close(found, skills.num_guesses * NUM_DRAWS, skills.guess)
    assert all(not rule.harmful for reply in replies for rule in told(sim, reply))


@pytest.mark.parametrize("name", ["copro", "copro_attempts", "mipro", "gepa", "gepa_alone", "textgrad", "paraphrase"])
def test_whoever_asks_for_a_whole_rewrite_loses_sentences_at_the_stated_rate(sim: Simulation, name: str) -> None:
    def paraphrase(instruction: str) -> str:
        return str(dspy.Predict("instruction -> variation")(instruction=instruction).variation)

    rewriters = {"copro": copro, "copro_attempts": copro_attempts, "mipro": _mipro, "paraphrase": paraphrase}
    rewriters |= {each.__name__: rewrite_of(each, sim) for each in (gepa, gepa_alone, textgrad)}
    kept_rules = [rule for rule in sim.world.hidden.values() if rule not in _causes_of_first(sim)][:6]
    instruction = "\n".join([INSTRUCTION, *(rule.sentence() for rule in kept_rules)])
    with dspy.context(lm=sim.prompt_lm):
        replies = [rewriters[name](instruction) for _ in range(NUM_DRAWS)]
    lost = sum(rule not in told(sim, reply) for reply in replies for rule in kept_rules)
    skills = sim.difficulty.skills
    guesses = skills.num_guesses * skills.guess / len(sim.world.hidden)  # One may bring back what was lost.
    again = guesses if name in ("copro", "copro_attempts", "mipro") else 0.0
    assert close(lost, NUM_DRAWS * len(kept_rules), skills.forget * (1 - again))


def _causes_of_first(sim: Simulation) -> list[Rule]:
    _, _, feedback = next(failures(sim))
    return [sim.world.causes[complaint] for complaint in CUE.findall(feedback)]


def edits(instruction: str, criticism: str, limits: str = "At most 4 edits.") -> list[Any]:
    sentences = split(instruction)
    reply = dspy.Predict(ProposeEdits)(
        instruction=numbered(sentences), criticism=fenced(criticism), limits=limits
    ).edits
    return read_edits(reply, sentences)


def test_whoever_asks_for_edits_loses_nothing(sim: Simulation) -> None:
    new = [*sim.world.hidden.values()][-1]
    with dspy.context(lm=sim.prompt_lm):
        replies = [edits(with_rules(sim, 5), f"- {new.sentence()}") for _ in range(100)]
    assert all(edit.op == "add" for reply in replies for edit in reply)
    assert all(reply[0].text == new.sentence() for reply in replies)
    wordy = sum(len(reply) > 1 for reply in replies)
    assert close(wordy, 100, sim.difficulty.skills.wordy)


def test_edits_put_first_what_is_said_most_often_and_keep_to_the_limits(sim: Simulation) -> None:
    rare, often, known = [*sim.world.hidden.values()][:3]
    lines = [rare.sentence(), often.sentence(0), often.sentence(1), known.sentence(1)]
    with dspy.context(lm=sim.prompt_lm):
        reply = edits(
            f"{INSTRUCTION}\n{known.sentence()}", "\n".join(f"- {line}" for line in lines), "At most 2 edits."
        )
        assert [edit.text for edit in reply] == [often.sentence(0), rare.sentence()]
        reply = edits(INSTRUCTION, f"- {rare.sentence()}\n- {often.sentence()} (2 times)", "At most 1 edit.")
    assert [edit.text for edit in reply] == [often.sentence()]


def test_edits_delete_what_is_known_to_do_harm_unless_it_is_frozen(sim: Simulation) -> None:
    harmful = next(iter(sim.world.harmful.values()))
    instruction = f"{INSTRUCTION}\n{harmful.sentence()}"
    with dspy.context(lm=sim.prompt_lm):
        for criticism, limits in (
            (f"- {harmful.warning()}", ""),
            ("", f"Did harm before (0.25): {harmful.sentence()}"),
        ):
            (first, *_) = edits(instruction, criticism, limits)
            assert (first.op, first.at) == ("delete", 1)
            frozen = edits(instruction, criticism, f"{limits}\nLeave as they are: 2")
            assert all(edit.op == "add" for edit in frozen)
        helped = edits(INSTRUCTION, "", f"Helped before (0.25): {with_rules(sim, 1).splitlines()[1]}")
        assert helped[0].text == with_rules(sim, 1).splitlines()[1]
        brief = edits(with_rules(sim, 3), "", "prefer to replace or delete sentences, and be brief")
        assert brief[0].op == "delete"


def test_harm_is_seen_through_at_the_rate_of_rules(sim: Simulation) -> None:
    harmful = next(iter(sim.world.harmful.values()))
    instruction = f"{INSTRUCTION}\n{harmful.sentence()}"
    example = next(each for each in sim.task.trainset if harmful.topic in sim.world.orders[each.request].codes)
    feedback = f"The code for {harmful.topic} is wrong: {harmful.symptom}."
    with dspy.context(lm=sim.prompt_lm):
        undone = sum(harmful not in told(sim, gepa(example, "?", feedback, instruction)) for _ in range(NUM_DRAWS))
        warned = sum(
            harmful.warning()
            in dspy.Predict(Critique)(instruction=instruction, call=example.request, complaint=feedback).requirements
            for _ in range(NUM_DRAWS)
        )
    skills = sim.difficulty.skills
    harm_again = skills.invent_harmful / len(sim.world.harmful)
    assert close(warned, NUM_DRAWS, skills.from_feedback)
    assert close(undone, NUM_DRAWS, 1 - (1 - skills.from_feedback) * (1 - skills.forget) - harm_again * skills.forget)


def test_a_summary_passes_on_what_was_observed_and_the_proposal_takes_it_up(sim: Simulation) -> None:
    rule = next(iter(sim.world.hidden.values()))
    with dspy.context(lm=sim.prompt_lm):
        summary = dspy.Predict(ObservationSummarizer)(observations=f"Orders. {rule.sentence()}").summary
        assert told(sim, summary) == {rule}
        assert rule in told(sim, _mipro(INSTRUCTION, summary=summary))


def test_copro_goes_on_from_its_best_attempt_and_takes_from_the_second(sim: Simulation) -> None:
    best, second, worst = (rule.sentence() for rule in [*sim.world.hidden.values()][:3])
    attempts = [
        line
        for number, (text, score) in enumerate(((worst, 20.0), (second, 40.0), (best, 60.0)), 1)
        for line in (
            f"Instruction #{number}: {INSTRUCTION}\n{text}",
            f"Prefix #{number}: Answer:",
            f"Resulting Score #{number}: {score}",
        )
    ]
    with dspy.context(lm=sim.prompt_lm):
        ask = dspy.Predict(GenerateInstructionGivenAttempts)
        replies = [ask(attempted_instructions=attempts).proposed_instruction for _ in range(NUM_DRAWS)]
    skills = sim.difficulty.skills
    assert close(sum(best in reply for reply in replies), NUM_DRAWS, 1 - skills.forget)
    assert close(sum(second in reply for reply in replies), NUM_DRAWS, skills.combine)
    assert sum(worst in reply for reply in replies) < NUM_DRAWS / 20
