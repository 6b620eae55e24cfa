"""The simulated task: its rules, its metric, and the model that answers it."""

from __future__ import annotations

from statistics import fmean

import dspy
import pytest

from dspy_dlpo.benchmarks.simulation.critic import Skills
from dspy_dlpo.benchmarks.simulation.simulator import DIFFICULTIES, Difficulty, Simulation, simulation
from dspy_dlpo.benchmarks.simulation.world import CUE, INSTRUCTION, Rule, WorldSettings
from dspy_dlpo.core.sentences import split
from dspy_dlpo.descent.examples import Examples
from dspy_dlpo.runtime.data import prepare


@pytest.fixture(scope="module")
def sim() -> Simulation:
    return simulation("medium", seed=3)


def told(sim: Simulation, text: str) -> frozenset[Rule]:
    return sim.world.read(text).told


def with_rules(sim: Simulation, number: int) -> str:
    return "\n".join([INSTRUCTION, *(rule.sentence() for rule in [*sim.world.hidden.values()][:number])])


def test_a_seed_decides_rules_orders_and_answers() -> None:
    one, same, other = simulation("hard", 1), simulation("hard", 1), simulation("hard", 2)
    assert one.task.trainset == same.task.trainset != other.task.trainset
    assert one.task.human == same.task.human != other.task.human
    with dspy.context(lm=one.lm):
        answers = [one.task.program(**each.inputs()).answer for each in one.task.testset[:20]]
    with dspy.context(lm=same.lm):
        assert [same.task.program(**each.inputs()).answer for each in same.task.testset[:20]] == answers


def test_no_example_is_in_two_sets(sim: Simulation) -> None:
    requests = [each.request for each in (*sim.task.trainset, *sim.task.valset, *sim.task.testset)]
    assert len(requests) == len(set(requests)) == 350


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_expected_accuracy_is_the_mean_of_the_answers(difficulty: str) -> None:
    sim = simulation(difficulty, seed=5)
    world, orders = sim.world, [sim.world.orders[each.request] for each in sim.task.testset]
    harmful = "\n".join([sim.task.human["self"], *(rule.sentence() for rule in world.harmful.values())])
    demos = sim.task.trainset[:8]
    shown = [world.orders[demo.request] for demo in demos]
    for text, given in ((INSTRUCTION, []), (sim.task.human["self"], []), (harmful, []), (INSTRUCTION, shown)):
        rates = []
        for sample in range(40):  # Which rules a demo shows is drawn once for each seed.
            world.seed = sample if given else sim.world.seed
            rates.append(fmean(world.answer(text, order, given, sample) == order.answer for order in orders))
        assert fmean(rates) == pytest.approx(sim.accuracy(text, demos if given else ()), abs=0.03)


def test_what_an_instruction_says_of_other_items_does_not_change_an_answer_but_for_slips() -> None:
    world = simulation(Difficulty("calm", WorldSettings(4, 0.5, 0.7, slip=0.0, dilution=0.0), Skills())).world
    first, *others = world.hidden.values()
    orders = [order for order in world.orders.values() if first.topic not in order.codes]
    text = "\n".join([INSTRUCTION, *(rule.sentence() for rule in others)])
    assert all(world.answer(text, each) == world.answer(f"{text}\n{first.sentence()}", each) for each in orders)


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_rules_help_and_harmful_and_useless_sentences_do_not(difficulty: str) -> None:
    sim = simulation(difficulty, seed=1)
    human = sim.task.human["self"]
    curve = [sim.accuracy(with_rules(sim, number)) for number in range(len(sim.world.hidden) + 1)]
    assert curve == sorted(curve) and curve[-1] == sim.accuracy(human)
    harmful = next(rule for rule in sim.world.harmful.values())
    assert sim.accuracy(f"{human}\n{harmful.sentence()}") < sim.accuracy(human) - 0.05
    assert sim.accuracy(f"{human}\n{sim.world.useless[0]}") < sim.accuracy(human)


@pytest.mark.parametrize(
    "form",
    ["{}", "- {}", "3. {}", "**{}**", "## Rules\n\n* {}", "{}\n", "> {}", "<rules>\n{}\n</rules>", "| {} |"],
)
def test_a_rule_is_recognised_in_any_formatting(sim: Simulation, form: str) -> None:
    for rule in sim.world.rules:
        for wording in range(3):
            for text in (rule.sentence(wording), rule.sentence(wording).upper(), rule.sentence().replace(" ", "\n", 3)):
                assert told(sim, f"{INSTRUCTION}\n{form.format(text)}") == {rule}


def test_a_warning_takes_a_rule_back(sim: Simulation) -> None:
    harmful = next(iter(sim.world.harmful.values()))
    text = f"{INSTRUCTION}\n{harmful.sentence()}"
    assert told(sim, text) == {harmful}
    assert not told(sim, f"{text}\n{harmful.warning()}")


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_every_sentence_of_the_model_is_one_sentence_and_no_copy_of_an_example(difficulty: str) -> None:
    for seed in range(5):
        sim = simulation(difficulty, seed)
        of = Examples(prepare(sim.task.trainset, sim.task.valset, 0), [INSTRUCTION])
        sentences = [text for rule in sim.world.rules for text in (*map(rule.sentence, range(3)), rule.warning())]
        for sentence in [*sentences, *sim.world.useless]:
            assert len(split(sentence)) == 1
            assert not (of.quoted(sentence) or of.is_sentence(sentence) or of.answer_in(sentence))
        assert len({rule.deed for rule in sim.world.rules}) == len(sim.world.rules)


def test_feedback_names_what_is_wrong_without_giving_the_rule_away(sim: Simulation) -> None:
    for example in sim.task.trainset:
        with dspy.context(lm=sim.lm):
            judged = sim.task.metric(example, sim.task.program(**example.inputs()))
        assert bool(CUE.findall(judged.feedback)) == (judged.score == 0)
        assert not any(rule.deed in judged.feedback for rule in sim.world.rules)


@pytest.mark.parametrize("prediction", [None, dspy.Prediction(), dspy.Prediction(answer="who knows")])
def test_an_answer_of_the_wrong_form_scores_nothing(sim: Simulation, prediction: dspy.Prediction | None) -> None:
    example = sim.task.trainset[0]
    judged = sim.task.metric(example, prediction)
    assert judged.score == 0 and len(CUE.findall(judged.feedback)) == len(sim.world.orders[example.request].codes)


def test_answers_at_temperature_0_repeat_and_others_vary(sim: Simulation) -> None:
    request = next(
        each.request for each in sim.task.trainset if sim.world.hidden.keys() & sim.world.orders[each.request].codes
    )

    def answers(lm: dspy.LM) -> set[str]:
        with dspy.context(lm=lm):
            return {sim.task.program(request=request).answer for _ in range(30)}

    assert len(answers(sim.lm)) == 1
    assert len(answers(sim.lm.copy(temperature=1.0, rollout_id=1))) > 1


def test_a_demo_may_show_a_rule() -> None:
    sim = simulation("easy", seed=0)
    assert sim.accuracy(INSTRUCTION, sim.task.trainset[:16]) > sim.accuracy(INSTRUCTION) + 0.05
