from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from dspy_dlpo.core.edits import Edit
from dspy_dlpo.core.records import Candidate, Demo, Point, TextualGradient, UpdateRequest
from dspy_dlpo.core.steps import Outcome, StepRecord, Threshold, Trial
from dspy_dlpo.core.tokens import count_tokens
from dspy_dlpo.policies import (
    PRESETS,
    Policy,
    StepContext,
    TextualContrastiveLearning,
    TextualDropout,
    TextualLearningRate,
    TextualLearningRateDecay,
    TextualMomentum,
    TextualRegularization,
    TextualSimulatedAnnealing,
    as_policies,
    schedules,
)

TABLE = {
    "learning_rate": lambda: TextualLearningRate(2),
    "learning_rate_schedule": lambda: TextualLearningRate(schedules.linear(4, 1, 3)),
    "dropout": lambda: TextualDropout(0.5),
    "annealing": TextualSimulatedAnnealing,
    "learning_rate_decay": TextualLearningRateDecay,
    "momentum": TextualMomentum,
    "contrastive": TextualContrastiveLearning,
    "regularization": lambda: TextualRegularization(max_tokens=100),
}
POLICIES = pytest.mark.parametrize("make_policy", TABLE.values(), ids=TABLE)


def gradient(*texts: str, examples: tuple[str, ...] = ("train:0",)) -> TextualGradient:
    return TextualGradient("self", tuple(Point(text, examples) for text in texts))


GRADIENT = gradient("Be brief.")
REQUEST = UpdateRequest("self", ("One. ", "Two. ", "Three."), GRADIENT)
INCUMBENT = Candidate({"self": "One. Two. Three."})
CANDIDATE = Candidate({"self": "One. Two. Three. Four."}, INCUMBENT.id, {"self": (Edit("add", 2, "Four."),)})


def record(gain: float = 0.5, size: int = 10, candidate: Candidate = CANDIDATE, **fields: Any) -> StepRecord:
    trial = Trial(candidate.id, INCUMBENT.id, (gain,) * size, size, Threshold(), gain > 0)
    fields = {"gradients": (GRADIENT,), "requests": (REQUEST,), "candidates": (candidate,), "trial": trial, **fields}
    return StepRecord(0, INCUMBENT.id, ("train:0",), 0.5, **fields)


RECORD = record()


def narrow(policy: Policy, state: Any = None, step: int = 0, request: UpdateRequest = REQUEST) -> UpdateRequest:
    return policy.narrow(request, policy.init() if state is None else state, StepContext(step, 0))


def walk(policy: Policy, seed: int) -> list[Any]:
    state, seen = policy.init([REQUEST]), []
    for step in range(5):
        ctx = StepContext(step, seed)
        seen.append(policy.narrow(REQUEST, state, ctx))
        seen.append(policy.threshold(CANDIDATE, INCUMBENT, state, ctx))
        seen.append(policy.propose(REQUEST, state, ctx))
        state = policy.learn(RECORD, state)
        seen.append(state)
    return seen


@POLICIES
def test_any_policy_state_survives_a_json_round_trip(make_policy: Any) -> None:
    policy = make_policy()
    state = policy.learn(RECORD, policy.init([REQUEST]))
    assert json.loads(json.dumps(state)) == state


@POLICIES
def test_any_policy_has_the_same_effect_with_the_same_seed(make_policy: Any) -> None:
    assert walk(make_policy(), seed=0) == walk(make_policy(), seed=0)


@POLICIES
def test_any_policy_keeps_nothing_of_a_run_on_itself(make_policy: Any) -> None:
    policy = make_policy()
    before = dict(vars(policy))
    assert walk(policy, seed=0) == walk(policy, seed=0)
    assert vars(policy) == before


@POLICIES
def test_any_policy_leaves_its_inputs_unchanged(make_policy: Any) -> None:
    before = repr((REQUEST, CANDIDATE, INCUMBENT, RECORD))
    walk(make_policy(), seed=3)
    assert repr((REQUEST, CANDIDATE, INCUMBENT, RECORD)) == before


@POLICIES
def test_any_policy_is_silent_when_it_has_nothing_to_say(make_policy: Any) -> None:
    policy = make_policy()
    empty = UpdateRequest("self", (), TextualGradient("self", ()))
    narrowed = policy.narrow(empty, policy.init([empty]), StepContext(0, 0))
    assert (narrowed.sentences, narrowed.frozen, narrowed.memory, narrowed.contrasts) == ((), frozenset(), (), ())
    assert policy.propose(empty, policy.init([empty]), StepContext(0, 0)) == ()
    skipped = StepRecord(0, INCUMBENT.id, ("train:0",), 0.0, skipped=Outcome.PERFECT_MINIBATCH)
    policy.learn(skipped, policy.init([empty]))


def test_order_of_policies_does_not_matter() -> None:
    policies = [make() for make in TABLE.values()]

    def joint(order: list[Policy]) -> Any:
        states = {policy.name: policy.learn(RECORD, policy.init([REQUEST])) for policy in order}
        request, threshold = REQUEST, 0.0
        for policy in order:
            request = policy.narrow(request, states[policy.name], StepContext(1, 0))
            threshold += policy.threshold(CANDIDATE, INCUMBENT, states[policy.name], StepContext(1, 0)).value
        return request, pytest.approx(threshold)

    assert joint(policies) == joint(policies[::-1])


# The learning rate.


def test_smaller_of_two_caps_holds_in_any_order() -> None:
    caps = TextualLearningRate(3), TextualLearningRate(1), TextualLearningRate(2)
    for policies in (caps, caps[::-1]):
        request = REQUEST
        for policy in policies:
            request = policy.narrow(request, policy.init(), StepContext(0, 0))
        assert request.max_edits == 1


def test_learning_rate_may_follow_a_schedule_and_is_rounded_down() -> None:
    policy = TextualLearningRate(lambda step: 3.9 - step)
    assert [policy.narrow(REQUEST, {}, StepContext(step, 0)).max_edits for step in range(3)] == [3, 2, 1]


def test_learning_rate_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="`max_edits` must be at least 1, but got max_edits=0"):
        TextualLearningRate(0)
    late = TextualLearningRate(lambda step: 7 - step)
    with pytest.raises(ValueError, match="max_edits=0 at step 7"):
        late.narrow(REQUEST, {}, StepContext(7, 0))


# Annealing.


def threshold(policy: TextualSimulatedAnnealing, step: int, seed: int = 0) -> float:
    return policy.threshold(CANDIDATE, INCUMBENT, {}, StepContext(step, seed)).value


@pytest.mark.parametrize("temperature", [0.0, 0.01, 1.0, 64.0])
def test_annealing_accepts_every_improvement(temperature: float) -> None:
    policy = TextualSimulatedAnnealing(temperature)
    assert all(threshold(policy, step) <= 0 for step in range(200))


@pytest.mark.parametrize(("temperature", "drop"), [(1.0, 0.25), (1 / 16, 0.25), (0.05, 0.05)])
def test_annealing_accepts_a_drop_with_its_probability(temperature: float, drop: float) -> None:
    policy = TextualSimulatedAnnealing(temperature)
    accepted = sum(-drop > threshold(policy, 0, seed) for seed in range(4000)) / 4000
    assert accepted == pytest.approx(math.exp(-drop / temperature), abs=0.03)


def test_annealing_cools_at_every_step_and_refuses_large_drops_outright() -> None:
    policy = TextualSimulatedAnnealing(schedules.exponential(64, 0.5), max_drop=0.3)
    because = [policy.threshold(CANDIDATE, INCUMBENT, {}, StepContext(step, 0)).because for step in range(3)]
    assert [each["temperature"] for each in because] == [64, 32, 16]
    drawn = [policy.threshold(CANDIDATE, INCUMBENT, {}, StepContext(0, seed)) for seed in range(100)]
    assert min(each.level for each in drawn) == -0.3
    assert min((each + Threshold(-1.0)).level for each in drawn) == -0.3


def test_annealing_follows_the_score_range_unless_told_a_temperature() -> None:
    percent = StepContext(0, 0, width=100.0)
    default, told = (TextualSimulatedAnnealing(t).threshold(CANDIDATE, INCUMBENT, {}, percent) for t in (None, 0.1))
    assert default.because["temperature"] == 5.0
    assert told.because["temperature"] == 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": -1.0}, "`temperature` must be at least 0, but got temperature=-1.0"),
        ({"temperature": float("nan")}, "`temperature` must be at least 0"),
        ({"max_drop": -0.1}, "`max_drop` must be at least 0"),
    ],
)
def test_annealing_refuses_settings_out_of_range(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextualSimulatedAnnealing(**arguments)


# Dropout.


def test_dropout_freezes_its_share_anew_at_each_step() -> None:
    request = UpdateRequest("self", tuple(f"Sentence {index}. " for index in range(1000)), GRADIENT)
    drawn = [narrow(TextualDropout(0.3), step=step, request=request).frozen for step in range(2)]
    assert all(len(each) == pytest.approx(300, abs=50) for each in drawn)
    assert drawn[0] != drawn[1]
    assert narrow(TextualDropout(0.0), request=request).frozen == frozenset()


@pytest.mark.parametrize("rate", [1.0, -0.1, float("nan")])
def test_dropout_refuses_a_rate_out_of_range(rate: float) -> None:
    with pytest.raises(ValueError, match=r"`rate` must be in \[0, 1\), but got rate="):
        TextualDropout(rate)


# Decay.


def test_decay_is_that_of_the_paper_unless_told_otherwise() -> None:
    assert [narrow(TextualLearningRateDecay(), step=step).max_edits for step in range(7)] == [5, 4, 3, 2, 1, 1, 1]
    with pytest.raises(TypeError, match="`schedule` must be a function of the step, but got 3"):
        TextualLearningRateDecay(3)  # type: ignore[arg-type]  # Wrong on purpose.


def test_decay_never_falls_below_one_edit_and_is_not_fooled_by_rounding() -> None:
    for schedule in (schedules.exponential(5, 0.5), schedules.step(5, 0.5, 2), schedules.linear(3, 0, 5)):
        assert narrow(TextualLearningRateDecay(schedule), step=9).max_edits == 1
    straight = TextualLearningRateDecay(schedules.linear(26, 1, 25))
    assert [narrow(straight, step=step).max_edits for step in range(26)] == list(range(26, 0, -1))
    with pytest.raises(ValueError, match="`schedule` must return at least 0, but returned nan at step 7"):
        narrow(TextualLearningRateDecay(lambda step: float("nan") if step == 7 else 3), step=7)


# Momentum.


def test_momentum_adds_a_recurring_complaint_to_the_one_of_this_step() -> None:
    policy = TextualMomentum()
    past = record(gradients=(gradient("Give the size as one letter.", examples=("train:1", "train:2")),))
    request = UpdateRequest("self", ("One.",), gradient("Give the size as one letter!", "Be kind."))
    assert narrow(policy, request=request) == request
    narrowed = narrow(policy, policy.learn(past, policy.init()), request=request)
    assert [(point.text, point.weight) for point in narrowed.gradient.points] == [
        ("Give the size as one letter!", 3),
        ("Be kind.", 1),
    ]
    assert narrowed.memory == ()
    state: Any = {}
    for _ in range(5):  # The same example, over and over.
        state = policy.learn(record(gradients=(gradient("Give the size as one letter."),)), state)
    assert narrow(policy, state, request=request).gradient.points[0].weight == 3


def test_momentum_forgets_with_age_and_shows_the_heaviest_first() -> None:
    policy, state = TextualMomentum(decay=0.5), {}
    for text, number in (("Old and heavy complaint.", 8), ("New one here.", 2), ("Light word.", 1)):
        names = tuple(f"train:{index}" for index in range(number))
        state = policy.learn(record(gradients=(gradient(text, examples=names),)), state)
    texts = [point.text for point in narrow(policy, state).memory]
    assert texts == ["Old and heavy complaint.", "New one here.", "Light word."]
    for _ in range(20):
        state = policy.learn(record(gradients=()), state)
    assert narrow(policy, state).memory == ()


def test_momentum_leaves_out_what_the_instruction_says_by_now() -> None:
    policy = TextualMomentum()
    state = policy.learn(record(gradients=(gradient("Give the size as one letter."),)), policy.init())
    request = UpdateRequest("self", ("One. ", "Give the size as one letter."), TextualGradient("self", ()))
    assert narrow(policy, state, request=request).memory == ()


def test_momentum_stays_bounded_whatever_the_number_of_steps() -> None:
    policy, state = TextualMomentum(decay=0.99, max_points=4), {}
    for step in range(300):
        state = policy.learn(record(gradients=(gradient(f"{step} new {step} words {step * 7}"),)), state)
    assert len(narrow(policy, state).memory) == 4
    assert len(json.dumps(state)) < 1000


# Contrast.


def test_contrast_shows_what_helped_and_what_did_harm_once_each() -> None:
    policy, state = TextualContrastiveLearning(num_pairs=5), {}
    worse = Candidate({"self": "One. Three."}, INCUMBENT.id, {"self": (Edit("delete", 1),)})
    for each in (record(0.5), record(0.5), record(-0.3, candidate=worse)):
        state = policy.learn(each, state)
    shown = narrow(policy, state).contrasts
    assert [(contrast.better, contrast.worse, contrast.gain) for contrast in shown] == [
        (("Four.",), (), 0.5),
        (("Two.",), (), pytest.approx(0.3)),
    ]


def test_contrast_ignores_differences_that_the_data_do_not_support() -> None:
    policy = TextualContrastiveLearning()
    assert policy.learn(record(0.0), {}) == {}
    assert policy.learn(record(0.1, size=1), {}) == {}
    assert policy.learn(record(0.1, size=100), {}) != {}


def test_contrast_draws_clearer_pairs_more_often_but_not_always() -> None:
    policy = TextualContrastiveLearning(num_pairs=1)
    state = {"self": [[[f"Sentence {rank}."], [], 1.0 - rank / 10] for rank in range(5)]}
    drawn = [narrow(policy, state, step=step).contrasts[0].better[0] for step in range(500)]
    counts = [drawn.count(f"Sentence {rank}.") for rank in range(5)]
    assert counts == sorted(counts, reverse=True)
    assert counts[4] > 0


# Regularization.


def test_regularization_charges_for_the_tokens_a_candidate_adds() -> None:
    policy = TextualRegularization(price=0.01)
    there = policy.threshold(CANDIDATE, INCUMBENT, {}, StepContext(0, 0))
    back = policy.threshold(INCUMBENT, CANDIDATE, {}, StepContext(0, 0))
    assert there.value == pytest.approx(0.01 * there.because["added_tokens"])
    assert there.value > 0
    assert back.value == -there.value


def test_tokens_of_demos_have_the_same_price_as_those_of_sentences() -> None:
    policy = TextualRegularization(price=0.01)
    demo = Demo("train:0", {"question": "How many legs has a cat?", "answer": "four"})
    shown = replace(INCUMBENT, demos=dict.fromkeys(INCUMBENT.instructions, (demo,)))
    threshold = policy.threshold(shown, INCUMBENT, policy.init([]), StepContext(0, 0))
    num_tokens = count_tokens("How many legs has a cat?") + count_tokens("four")
    assert threshold.because["added_tokens"] == num_tokens * len(INCUMBENT.instructions)
    assert policy.threshold(INCUMBENT, shown, policy.init([]), StepContext(0, 0)).value == -threshold.value


@pytest.mark.parametrize("price", [0.0, 0.01])
def test_sentence_goes_if_its_removal_does_not_lower_the_score(price: float) -> None:
    policy, state = added("Be kind.")
    removal = policy.propose(replace(REQUEST, sentences=("One. ", "Be kind.")), state, StepContext(0, 0))[0]
    texts = {"self": "One."}, {"self": "One. Be kind."}
    asked = [
        TextualRegularization(price).threshold(
            Candidate(texts[0], "", edits), Candidate(texts[1]), {}, StepContext(0, 0)
        )
        for edits in ({"self": removal}, {})
    ]
    assert -0.001 < asked[0].value - asked[1].value < 0


def test_regularization_asks_to_simplify_what_has_grown() -> None:
    policy = TextualRegularization(growth=2)
    state = policy.init([REQUEST])
    assert narrow(policy, state).directives == ()
    long = UpdateRequest("self", REQUEST.sentences * 3, GRADIENT)
    assert "prefer to replace or delete" in narrow(policy, state, request=long).directives[0]


def added(*texts: str, gain: float = 0.1) -> tuple[TextualRegularization, Any]:
    """Return a policy, and its state when sentences were added to `REQUEST`."""
    policy = TextualRegularization()
    edits = tuple(Edit("add", 2, text) for text in texts)
    candidate = Candidate({"self": "One. Two. Three. " + " ".join(texts)}, INCUMBENT.id, {"self": edits})
    return policy, policy.learn(accepted(gain, candidate), policy.init([REQUEST]))


def accepted(gain: float, candidate: Candidate) -> StepRecord:
    return record(candidate=candidate, trial=Trial(candidate.id, INCUMBENT.id, (gain,), 10, Threshold(-1.0), True))


def left_out(policy: Policy, request: UpdateRequest, state: Any) -> list[int]:
    return [edit.at for edits in policy.propose(request, state, StepContext(1, 0)) for edit in edits]


def test_pruning_leaves_out_what_was_added_until_it_turns_out_to_be_needed() -> None:
    policy, state = added("Be kind", "Be brief.")
    request = replace(REQUEST, sentences=(*REQUEST.sentences, "- Be kind.", "- Be brief."))
    assert left_out(policy, request, state) == [3, 4]
    proposed = policy.propose(request, state, StepContext(1, 0))
    pruned = tuple(Candidate({"self": str(edits)}, INCUMBENT.id, {"self": edits}) for edits in proposed)
    fields = {"requests": (request,), "candidates": pruned}
    for race, gain, untried in [((-0.1, 0.0), 0.0, [4]), ((0.0, 0.0), -0.1, [4]), ((0.0,), -0.1, [4])]:
        tried = policy.learn(record(gain, candidate=pruned[0], race=race, **fields), state)
        assert left_out(policy, request, tried) == untried
    unmeasured = policy.learn(record(0.0, size=0, candidate=pruned[0], race=(0.0, 0.0), **fields), state)
    assert left_out(policy, request, unmeasured) == [3, 4]
    assert left_out(policy, request, policy.learn(record(0.1), tried)) == [3, 4]


def groups_left_out(policy: Policy, request: UpdateRequest, state: Any) -> list[list[int]]:
    return [[edit.at for edit in edits] for edits in policy.propose(request, state, StepContext(1, 0))]


def test_what_came_with_no_gain_is_left_out_together_before_it_is_left_out_alone() -> None:
    policy, state = added("Be kind.", "Be brief.", gain=0.0)
    proven = Candidate({"self": "Sort."}, INCUMBENT.id, {"self": (Edit("add", 5, "Sort."),)})
    state = policy.learn(accepted(0.1, proven), state)
    request = replace(REQUEST, sentences=("One. ", "Be kind. ", "Sort. ", "Be brief."))
    assert groups_left_out(policy, request, state) == [[1, 3], [1], [2], [3]]
    assert groups_left_out(policy, replace(request, frozen=frozenset({1})), state) == [[2], [3]]
    assert groups_left_out(policy, replace(request, sentences=("One. ", "Be kind.")), state) == [[1]]
    last = policy.propose(request, state, StepContext(9, 0, is_last=True))
    assert [[edit.at for edit in edits] for edits in last] == [[1, 3]]
    assert json.loads(json.dumps(state)) == state


def test_group_that_is_missed_says_nothing_of_its_sentences_and_one_that_is_missed_alone_leaves_the_group() -> None:
    policy, state = added("Be kind.", "Be brief.", "Sort.", gain=-0.01)
    request = replace(REQUEST, sentences=("One. ", "Be kind. ", "Be brief. ", "Sort."))
    together, first, *_ = (
        Candidate({"self": str(edits)}, INCUMBENT.id, {"self": edits})
        for edits in policy.propose(request, state, StepContext(1, 0))
    )
    after = policy.learn(record(-0.1, candidate=together, requests=(request,)), state)
    assert groups_left_out(policy, request, after) == [[1, 2, 3], [1], [2], [3]]
    after = policy.learn(record(-0.1, candidate=first, requests=(request,)), after)
    assert groups_left_out(policy, request, after) == [[2, 3], [2], [3]]
    later = policy.learn(accepted(0.1, CANDIDATE), after)
    assert groups_left_out(policy, request, later) == [[2, 3], [1], [2], [3]]


def test_pruning_leaves_alone_what_the_student_has_and_what_is_glued_to_it() -> None:
    policy, state = added("Be kind.")
    for sentences in [("One. ", "Two. ", "Three."), ("One. ", "Three\nBe kind."), ("One, rewritten. ", "Two. ")]:
        assert left_out(policy, replace(REQUEST, sentences=sentences), state) == []
    whole = replace(REQUEST, sentences=("One. ", "Be kind."))
    assert left_out(policy, replace(whole, predictor="other"), state) == []
    assert left_out(policy, replace(whole, frozen=frozenset({1})), state) == []
    assert left_out(TextualRegularization(prune=False), whole, state) == []
    assert left_out(policy, whole, state) == [1]


def test_limit_below_the_instruction_or_its_protected_text_is_refused_when_the_run_begins() -> None:
    policy = TextualRegularization(max_tokens=3)
    with pytest.raises(ValueError, match=r"`max_tokens` must be at least \d+, the length of the instruction of self"):
        policy.init([REQUEST])
    protected = UpdateRequest("self", ("One. " * 9, "Two."), GRADIENT, frozen=frozenset({0}))
    with pytest.raises(ValueError, match="the length of the protected text of self, but got max_tokens=3"):
        policy.init([protected])


@pytest.mark.parametrize(
    ("make_policy", "message"),
    [
        (lambda: TextualMomentum(decay=1.0), r"`decay` must be in \[0, 1\), but got decay=1.0"),
        (lambda: TextualMomentum(max_points=0), "`max_points` must be at least 1"),
        (lambda: TextualContrastiveLearning(num_pairs=0), "`num_pairs` must be at least 1, but got num_pairs=0"),
        (lambda: TextualContrastiveLearning(margin=-1), "`margin` must be at least 0"),
        (lambda: TextualRegularization(price=-1), "`price` must be at least 0, but got price=-1"),
        (lambda: TextualRegularization(max_tokens=0), "`max_tokens` must be at least 1"),
    ],
)
def test_policy_refuses_settings_out_of_range(make_policy: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_policy()


# Presets and schedules.


@pytest.mark.parametrize("preset", PRESETS)
def test_every_call_of_a_preset_makes_a_list_and_policies_of_its_own(preset: str) -> None:
    first, second, third = PRESETS[preset](), PRESETS[preset](), as_policies(preset)
    policies = [*first, *second, *third]
    assert len({*map(id, policies)}) == len(policies)  # None is shared.
    assert [*map(type, first)] == [*map(type, second)] == [*map(type, third)]
    assert all(isinstance(policy, Policy) for policy in policies)
    first.append(TextualMomentum())
    assert len(PRESETS[preset]()) == len(second) == len(first) - 1


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        (schedules.constant(2), [2, 2, 2, 2, 2]),
        (schedules.linear(4, 1, 3), [4, 3, 2, 1, 1]),
        (schedules.cosine(4, 0, 4), [4, 3.4142, 2, 0.5858, 0]),
        (schedules.exponential(8, 0.5, end=2), [8, 4, 2, 2, 2]),
        (schedules.step(8, 0.5, every=2), [8, 8, 4, 4, 2]),
        (schedules.warm_up(schedules.constant(3), 2), [1, 2, 3, 3, 3]),
    ],
    ids=["constant", "linear", "cosine", "exponential", "step", "warm-up"],
)
def test_schedules_have_the_values_they_promise(schedule: Any, values: list[float]) -> None:
    assert [schedule(index) for index in range(5)] == pytest.approx(values, abs=1e-4)


@pytest.mark.parametrize(
    ("make_schedule", "message"),
    [
        (lambda: schedules.linear(1, 0, 0), "`num_steps` must be at least 1, but got num_steps=0"),
        (lambda: schedules.exponential(1, 1.5), r"`factor` must be in \(0, 1\], but got factor=1.5"),
        (lambda: schedules.step(1, 0.5, 0), "`every` must be at least 1"),
    ],
)
def test_schedule_with_wrong_settings_is_refused(make_schedule: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_schedule()
