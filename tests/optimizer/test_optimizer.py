from __future__ import annotations

import json
import math
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.lm15 import AuthError, TransportError
from dspy.utils.callback import BaseCallback

from dspy_dlpo import DLPOOptimizer, TextualLearningRate
from dspy_dlpo.descent.origins import provenance
from tests.scripted import SECRETS, CountingMetric, Oracle, examples, fields, metric, role_of, scripted_lm, world

SOLVED = {f"When the topic is {topic}, answer {secret}." for topic, secret in SECRETS.items()}


class TwoSteps(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.note = dspy.Predict("question -> remark")
        self.solve = dspy.Predict(Oracle)

    def forward(self, question: str) -> dspy.Prediction:
        remark = self.note(question=question).remark
        return self.solve(question=f"{question} {remark}")


def two_step_program(system: str, user: str) -> str:
    if "remark" in system:
        return fields(remark="no remark")
    return world()(system, user)


def test_compile_finds_the_instruction_that_solves_the_task(lm: dspy.LM, make: Any) -> None:
    optimized = make(num_steps=8).compile(dspy.Predict(Oracle), trainset=examples(40), valset=examples(15, 100))
    assert set(optimized.signature.instructions.splitlines()[1:]) == SOLVED
    assert optimized.detailed_results.val_aggregate_scores[0] == 0
    assert optimized.detailed_results.val_aggregate_scores[optimized.detailed_results.best_idx] == 1


def test_compile_keeps_student_demos_and_lm(make: Any) -> None:
    lm = scripted_lm()
    student = dspy.Predict(Oracle)
    student.demos = [dspy.Example(question="0: What of topic none?", answer="0").with_inputs("question")]
    student.set_lm(lm)
    optimized = make().compile(student, trainset=examples(40))
    assert student.signature.instructions == "Answer the question."
    assert student.lm is lm
    assert lm.history == []
    assert optimized.demos == student.demos
    assert optimized.lm.model == lm.model
    assert optimized is not student


def test_reported_metric_calls_equal_the_calls_the_metric_counted(lm: dspy.LM, make: Any) -> None:
    counting = CountingMetric()
    optimized = make(metric=counting).compile(dspy.Predict(Oracle), trainset=examples(40))
    assert optimized.detailed_results.total_metric_calls == counting.calls


def test_reported_lm_calls_and_tokens_equal_those_the_model_answered(lm: dspy.LM, make: Any) -> None:
    spent = make().compile(dspy.Predict(Oracle), trainset=examples(40)).detailed_results.spent
    assert spent.lm_calls == len(lm.engine.log)
    assert spent.input_tokens == sum(len(system + user) for system, user in lm.engine.log)


@pytest.mark.parametrize("limit", [62, 63, 75, 99])
def test_metric_calls_never_exceed_the_budget(lm: dspy.LM, make: Any, limit: int) -> None:
    counting = CountingMetric()
    optimizer = make(metric=counting, max_metric_calls=limit)
    result = optimizer.compile(dspy.Predict(Oracle), trainset=examples(40), valset=examples(15, 100)).detailed_results
    assert counting.calls <= limit
    assert result.stopped.startswith("max_metric_calls: ")
    assert [record.step for record in result.history] == list(range(len(result.history)))
    assert result.num_val_examples[0] == result.num_val_examples[result.best_idx] == 15


def test_same_seed_gives_the_same_run_whatever_the_threads(make: Any) -> None:
    runs = []
    for num_threads in (1, 8):
        with dspy.context(lm=scripted_lm()):
            optimizer = make(seed=0, num_threads=num_threads)
            result = optimizer.compile(dspy.Predict(Oracle), trainset=examples(40)).detailed_results.to_dict()
        runs.append(json.loads(json.dumps(result)))
    for run in runs:
        del run["run"]["settings"]["num_threads"], run["run"]["sessions"]
        for record in (run, *run["history"]):
            del record["spent"]["seconds"]
    assert runs[0] == runs[1]


def test_seed_zero_is_a_seed_and_another_seed_another_run(lm: dspy.LM, make: Any) -> None:
    def minibatches(seed: int) -> list[Any]:
        result = make(seed=seed).compile(dspy.Predict(Oracle), trainset=examples(40)).detailed_results
        return [record.minibatch for record in result.history]

    assert minibatches(0) == minibatches(0)
    assert minibatches(0) != minibatches(1)


def test_one_optimizer_compiles_twice_with_the_same_result_and_keeps_its_parameters(lm: dspy.LM, make: Any) -> None:
    optimizer = make()
    before = dict(optimizer.get_params())
    first, second = (optimizer.compile(dspy.Predict(Oracle), trainset=examples(40)) for _ in range(2))
    assert first.signature.instructions == second.signature.instructions
    assert optimizer.get_params() == before


def test_step_on_a_perfect_minibatch_costs_no_critic_and_no_proposer_call(make: Any) -> None:
    with dspy.context(lm=scripted_lm(lambda system, user: fields(answer="11"))) as _:
        lm = dspy.settings.lm
        perfect = [example for example in examples(100) if example.answer == "11"]
        result = make().compile(dspy.Predict(Oracle), trainset=perfect).detailed_results
    assert lm.engine.count("critic") == lm.engine.count("proposer") == 0
    assert {record.skipped for record in result.history} == {"perfect minibatch"}
    assert result.stopped == "the program is perfect on the whole trainset"


def test_every_failing_example_of_a_minibatch_reaches_the_critic(lm: dspy.LM, make: Any) -> None:
    result = make(num_steps=1, batch_size=7).compile(dspy.Predict(Oracle), trainset=examples(40)).detailed_results
    (record,) = result.history
    seen = [user for system, user in lm.engine.log if role_of(system) == "critic"]
    assert len(seen) == len(record.minibatch) == 7
    questions = [examples(40)[int(name.split(":")[1])].question for name in record.minibatch]
    assert all(any(question in user for user in seen) for question in questions)


def test_long_traces_are_shortened_for_critic_and_proposer(make: Any) -> None:
    lm = scripted_lm(world(program=lambda system, user: fields(answer="blah " * 100_000)))
    with dspy.context(lm=lm):
        make(num_steps=1).compile(dspy.Predict(Oracle), trainset=examples(40))
    sizes = [len(system + user) for system, user in lm.engine.log if role_of(system) != "program"]
    assert sizes
    assert max(sizes) < 30_000


def useless_critic(system: str, user: str) -> str:
    """Ask for what helps nobody, so that the proposer is asked too."""
    extra = {"input_complaint": "NOTHING"} if "input_complaint" in system else {}
    return fields(requirements="- The answer must be a number.", **extra)


def test_proposer_is_not_asked_where_the_sentences_of_the_critic_are_ahead(make: Any) -> None:
    lm = scripted_lm()
    with dspy.context(lm=lm):
        (record,) = make(num_steps=1).compile(dspy.Predict(Oracle), trainset=examples(40)).detailed_results.history
    assert record.accepted
    assert record.race[0] > 0
    assert lm.engine.count("proposer") == lm.engine.count("rewriter") == 0


def test_reply_that_cannot_be_parsed_is_asked_for_once_more_then_the_step_is_skipped(make: Any) -> None:
    lm = scripted_lm(world(useless_critic, lambda system, user: "I would rather not."))
    with dspy.context(lm=lm, adapter=dspy.ChatAdapter(use_json_adapter_fallback=False)):
        student = dspy.Predict(Oracle)
        (record,) = make(num_steps=1).compile(student, trainset=examples(40)).detailed_results.history
    assert lm.engine.count("proposer") == 2
    assert record.unparsed == 1
    assert all(edit.reason == "the critic's own sentence" for edit in record.candidates[0].edits["self"])


def test_step_is_skipped_where_critic_and_proposer_say_nothing_usable(make: Any) -> None:
    lm = scripted_lm(world(critic=lambda system, user: fields(requirements="nothing")))
    with dspy.context(lm=lm):
        result = make(num_steps=3).compile(dspy.Predict(Oracle), trainset=examples(40)).detailed_results
    assert [record.skipped for record in result.history] == ["no gradient"] * 3
    assert lm.engine.count("proposer") == 0


def test_program_that_raises_scores_failure_score_and_the_critic_reads_why(make: Any) -> None:
    class Brittle(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.predict = dspy.Predict(Oracle)

        def forward(self, question: str) -> dspy.Prediction:
            prediction = self.predict(question=question)
            if "beta" in question:
                raise KeyError("no beta today")
            return prediction

    lm = scripted_lm()
    with dspy.context(lm=lm):
        optimizer = make(num_steps=1, batch_size=10, score_range=(-1, 1), failure_score=-0.5)
        result = optimizer.compile(Brittle(), trainset=examples(40)).detailed_results
    critic = [user for system, user in lm.engine.log if role_of(system) == "critic"]
    assert any("no beta today" in user for user in critic)
    share = sum("beta" in examples(40)[int(name.split(":")[1])].question for name in result.history[0].minibatch) / 10
    assert result.history[0].loss == pytest.approx(1 - share * -0.5)


def test_reply_of_the_wrong_form_reaches_the_critic_with_the_raw_reply(make: Any) -> None:
    lm = scripted_lm(world(program=lambda system, user: "It depends, really."))
    with dspy.context(lm=lm, adapter=dspy.ChatAdapter(use_json_adapter_fallback=False)):
        make(num_steps=1).compile(dspy.Predict(Oracle), trainset=examples(40))
    critic = [user for system, user in lm.engine.log if role_of(system) == "critic"]
    assert critic
    assert all("did not hold the fields `answer`" in user and "It depends, really." in user for user in critic)


def test_wrong_key_stops_the_run_at_once_with_the_message_of_the_provider(make: Any) -> None:
    def refuse(system: str, user: str) -> str:
        raise AuthError("Incorrect API key provided")

    lm = scripted_lm(refuse)
    with dspy.context(lm=lm), pytest.raises(dspy.LMAuthError, match="Incorrect API key provided"):
        make(num_threads=1).compile(dspy.Predict(Oracle), trainset=examples(40))
    assert len(lm.engine.log) == 1


def test_wrong_key_of_the_critic_stops_the_run(lm: dspy.LM, make: Any) -> None:
    def refuse(system: str, user: str) -> str:
        raise AuthError("Incorrect API key provided")

    with pytest.raises(dspy.LMAuthError, match="Incorrect API key provided"):
        make(critic_model=scripted_lm(refuse)).compile(dspy.Predict(Oracle), trainset=examples(40))


def test_every_call_of_the_first_minibatch_failing_stops_the_run(make: Any) -> None:
    def refuse(system: str, user: str) -> str:
        raise TransportError("connection refused")

    with dspy.context(lm=scripted_lm(refuse)), pytest.raises(RuntimeError, match=r"all 8 .*connection refused"):
        make(num_steps=1).compile(dspy.Predict(Oracle), trainset=examples(40))


def test_one_dropped_connection_costs_one_example_not_the_run(make: Any) -> None:
    calls = []

    def flaky(system: str, user: str) -> str:
        calls.append(user)
        if len(calls) == 20:
            raise TransportError("connection reset")
        return world()(system, user)

    with dspy.context(lm=scripted_lm(flaky)):
        optimized = make(num_steps=8, num_threads=1).compile(dspy.Predict(Oracle), trainset=examples(40))
    assert optimized.detailed_results.val_aggregate_scores[optimized.detailed_results.best_idx] > 0.9


def test_without_valset_a_seeded_part_of_the_trainset_is_held_out_and_said(
    lm: dspy.LM, make: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    result = make(verbose=True).compile(dspy.Predict(Oracle), trainset=examples(40), valset=[]).detailed_results
    assert result.num_val_examples[0] == 16
    told = capsys.readouterr().err
    assert "no valset given: the result is chosen on 16 examples, part of the trainset" in told
    assert "step 1/4: incumbent 0.000" in told


def test_small_trainset_also_chooses_the_result(lm: dspy.LM, make: Any) -> None:
    result = make().compile(dspy.Predict(Oracle), trainset=examples(10)).detailed_results
    assert result.num_val_examples[0] == 10


def test_run_does_not_stop_as_perfect_while_one_example_fails(make: Any) -> None:
    trainset = [each for each in examples(100) if each.answer == "11"][:15]
    trainset.append(dspy.Example(question="What of topic none?", answer="?").with_inputs("question"))
    student = dspy.Predict(Oracle.with_instructions("When the topic is alpha, answer 11."))
    for seed in range(8):
        with dspy.context(lm=scripted_lm()):
            result = (
                make(seed=seed, num_steps=6).compile(student, trainset=trainset, valset=trainset[:3]).detailed_results
            )
        assert result.stopped == "6 steps are done"


def test_results_of_a_student_that_was_compiled_before_are_those_of_the_new_run(lm: dspy.LM, make: Any) -> None:
    first = make().compile(dspy.Predict(Oracle), trainset=examples(40))
    second = make().compile(first, trainset=examples(40))
    assert second.detailed_results.candidates[0].id == first.detailed_results.best.id
    assert not hasattr(second.candidate_programs[0]["program"], "candidate_programs")


def test_callbacks_of_the_user_see_every_call_of_a_language_model(lm: dspy.LM, make: Any) -> None:
    class Counting(BaseCallback):
        calls = 0

        def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
            self.calls += 1

    with dspy.context(callbacks=[counting := Counting()]):
        make(num_threads=1).compile(TwoSteps(), trainset=examples(10))
    assert counting.calls == len(lm.engine.log)


def test_copies_made_by_refine_count_as_their_predictor(make: Any) -> None:
    program = dspy.Refine(module=dspy.Predict(Oracle), N=1, reward_fn=lambda args, pred: 1.0, threshold=0.5)
    with dspy.context(lm=scripted_lm()):
        optimized = make(num_steps=8).compile(program, trainset=examples(40))
    assert optimized.detailed_results.history[0].accepted


def test_result_is_never_worse_than_the_student_on_the_valset(make: Any) -> None:
    lm = scripted_lm(world(critic=lambda system, user: fields(requirements="Always be brief and rude to everybody.")))
    with dspy.context(lm=lm):
        student = dspy.Predict(Oracle.with_instructions("Answer.\n" + "\n".join(sorted(SOLVED)[:3])))
        optimized = make(num_steps=6, sources=["CriticSentences"]).compile(student, trainset=examples(40))
    assert optimized.signature.instructions == student.signature.instructions


def worst(example: Any, pred: Any) -> bool:
    return bool(pred.answer == example.answer)


def with_trace(example: Any, pred: Any, trace: Any = None) -> float:
    assert trace is None
    return float(pred.answer == example.answer)


def of_gepa(gold: Any, pred: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None) -> Any:
    return metric(gold, pred)


def with_int(example: Any, pred: Any) -> int:
    return int(pred.answer == example.answer)


class ModuleMetric(dspy.Module):
    def forward(self, example: Any, pred: Any, trace: Any = None) -> dspy.Prediction:
        return metric(example, pred)


@pytest.mark.parametrize(
    "form",
    [worst, with_trace, of_gepa, with_int, ModuleMetric()],
    ids=["two arguments, bool", "three, float", "GEPA's five, feedback", "int", "module"],
)
def test_metric_may_have_any_of_the_forms_of_dspy(lm: dspy.LM, make: Any, form: Any) -> None:
    result = make(metric=form, num_steps=2).compile(dspy.Predict(Oracle), trainset=examples(40)).detailed_results
    assert result.history[0].loss == 1


def test_each_predictor_may_have_its_own_lm_and_critic_and_proposer_theirs(make: Any) -> None:
    note, solve = scripted_lm(two_step_program), scripted_lm(two_step_program)
    critic, proposer = scripted_lm(world(useless_critic)), scripted_lm()
    program = TwoSteps()
    program.note.lm, program.solve.lm = note, solve
    make(prompt_model=proposer, critic_model=critic).compile(program, trainset=examples(40))
    roles = {
        name: {role_of(system) for system, _ in lm.engine.log}
        for name, lm in {"note": note, "solve": solve, "critic": critic, "proposer": proposer}.items()
    }
    assert roles == {
        "note": {"program"},
        "solve": {"program"},
        "critic": {"critic"},
        "proposer": {"proposer", "rewriter"},
    }


def test_program_of_two_predictors_is_repaired_where_the_fault_is(make: Any) -> None:
    with dspy.context(lm=scripted_lm(two_step_program)):
        optimized = make(num_steps=8).compile(TwoSteps(), trainset=examples(40))
    assert set(optimized.solve.signature.instructions.splitlines()[1:]) == SOLVED
    assert optimized.note.signature.instructions == TwoSteps().note.signature.instructions


@pytest.mark.parametrize("nested", [False, True], ids=["predictor", "module"])
def test_frozen_predictors_are_skipped(make: Any, nested: bool) -> None:
    with dspy.context(lm=scripted_lm(two_step_program)):
        program = TwoSteps()
        if nested:
            program.solve = dspy.ChainOfThought(Oracle)
        program.solve._compiled = True
        result = make(num_steps=1).compile(program, trainset=examples(40)).detailed_results
    assert set(result.best_candidate) == {"note"}


def test_candidate_programs_and_results_do_not_turn_up_as_predictors(lm: dspy.LM, make: Any) -> None:
    optimized = make().compile(TwoSteps(), trainset=examples(10))
    assert [name for name, _ in optimized.named_predictors()] == ["note", "solve"]
    assert [name for name, _ in optimized.deepcopy().named_predictors()] == ["note", "solve"]


def test_candidate_programs_are_ranked_and_runnable(lm: dspy.LM, make: Any) -> None:
    optimized = make(num_steps=8).compile(dspy.Predict(Oracle), trainset=examples(40))
    scores = [entry["score"] for entry in optimized.candidate_programs]
    assert scores[0] == max(scores)
    assert scores[1:] == sorted(scores[1:], reverse=True)
    best = optimized.candidate_programs[0]
    assert best["program"].signature.instructions == optimized.signature.instructions
    assert best["program"](question="What of topic beta?").answer == "22"


def test_result_turns_into_json(lm: dspy.LM, make: Any) -> None:
    result = make().compile(dspy.Predict(Oracle), trainset=examples(40)).detailed_results
    plain = json.loads(json.dumps(result.to_dict()))
    assert plain["history"][0]["candidates"][0]["edits"]["self"][0]["op"] == "add"


def test_program_is_saved_and_loaded_by_dspy(lm: dspy.LM, make: Any, tmp_path: Path) -> None:
    optimized = make(num_steps=8).compile(TwoSteps(), trainset=examples(40))
    optimized.save(tmp_path / "program.json")
    loaded = TwoSteps()
    loaded.load(tmp_path / "program.json")
    assert loaded.solve.signature.instructions == optimized.solve.signature.instructions


SCRIPT = """
import dspy
from dspy_dlpo import DLPOOptimizer
program = dspy.Predict(Oracle)
{line}
optimized.save(path)
print(optimized(question="What of topic beta?").answer)
"""
LINES = {
    "COPRO": "optimized = dspy.COPRO(metric=m, breadth=2, depth=1).compile(program, trainset=train, eval_kwargs={})",
    "MIPROv2": "optimized = dspy.MIPROv2(metric=m, num_candidates=3, auto=None).compile(program, trainset=train, "
    "valset=val, num_trials=2, max_bootstrapped_demos=0, max_labeled_demos=0, minibatch=False)",
    "GEPA": "optimized = dspy.GEPA(metric=m, max_metric_calls=40, reflection_lm=dspy.settings.lm).compile(program, "
    "trainset=train, valset=val)",
    "DLPO": "optimized = DLPOOptimizer(metric=m, max_metric_calls=80).compile(program, trainset=train, valset=val)",
}


def any_signature(system: str, user: str) -> str:
    """Fill the output fields of whatever is asked; the prompts of the rivals are not those of the world."""
    if role_of(system) != "program" or "Answer the question." in system.split("objective is:")[-1]:
        return world()(system, user)
    asked = system.partition("Your output fields are:")[2].partition("All interactions")[0]
    names = re.findall(r"`(\w+)`", asked)
    return fields(**dict.fromkeys(names, "Answer the question. Be kind.")) if names else "```\nAnswer.\n```"


@pytest.mark.parametrize("optimizer", LINES)
@pytest.mark.filterwarnings("ignore")  # Those of the rivals.
def test_swapping_a_teleprompter_takes_one_changed_line(optimizer: str, tmp_path: Path) -> None:
    scope = {"Oracle": Oracle, "m": of_gepa, "train": examples(20), "val": examples(10, 100)}
    with dspy.context(lm=scripted_lm(any_signature, temperature=1.0), num_threads=1):
        exec(SCRIPT.format(line=LINES[optimizer]), {**scope, "path": tmp_path / "program.json"})
    assert (tmp_path / "program.json").is_file()


def test_better_together_takes_it_as_one_of_its_optimizers() -> None:
    lm = scripted_lm()
    with dspy.context(lm=lm):
        student = dspy.Predict(Oracle)
        student.set_lm(lm)
        together = dspy.BetterTogether(metric=metric, p=DLPOOptimizer(metric=metric, num_steps=4, verbose=False))
        optimized = together.compile(student, trainset=examples(40), valset_ratio=0.2, strategy="p")
    assert optimized.candidate_programs[0]["score"] > optimized.candidate_programs[-1]["score"]


def test_result_can_be_the_student_of_bootstrap_few_shot(lm: dspy.LM, make: Any) -> None:
    optimized = make(num_steps=8).compile(dspy.Predict(Oracle), trainset=examples(40))
    bootstrapped = dspy.BootstrapFewShot(metric=worst, max_bootstrapped_demos=1).compile(
        optimized, trainset=examples(5)
    )
    assert bootstrapped.demos


def test_accepted_candidates_keep_the_learning_rate(lm: dspy.LM, make: Any) -> None:
    optimizer = make(policies=[TextualLearningRate(1)], num_steps=10)
    result = optimizer.compile(dspy.Predict(Oracle), trainset=examples(40)).detailed_results
    edits = [len(edits) for record in result.history for each in record.candidates for edits in each.edits.values()]
    assert edits
    assert max(edits) == 1


def test_paper_preset_with_all_seven_policies_solves_the_task_and_records_what_each_did(lm: dspy.LM, make: Any) -> None:
    optimized = make(policies="paper", num_steps=12).compile(dspy.Predict(Oracle), trainset=examples(40))
    result = optimized.detailed_results
    assert result.val_aggregate_scores[result.best_idx] == 1
    tried = [record for record in result.history if record.trial]
    assert next(record.requests[0].max_edits for record in tried if record.requests) == 5
    assert all({"temperature", "draw", "added_tokens"} <= record.trial.threshold.because.keys() for record in tried)
    assert any(request.contrasts for record in result.history for request in record.requests)


def test_sentence_without_effect_goes_when_nothing_fails_any_more_and_needed_ones_stay(make: Any) -> None:
    def critic(system: str, user: str) -> str:
        said = re.findall(r"When the topic is \w+, answer \d+\.", user)
        return fields(requirements="\n".join([*said, "The moon is made of cheese."]))

    lm = scripted_lm(world(critic=critic))
    optimizer = make(prompt_model=lm, num_steps=30, batch_size=4, max_trial_examples=4)
    with dspy.context(lm=lm):
        result = optimizer.compile(
            dspy.Predict(Oracle), trainset=examples(40), valset=examples(5, 100)
        ).detailed_results
    assert any("moon" in each.instructions["self"] for record in result.history for each in record.candidates[:1])
    last = {each.id: each for each in result.candidates}[result.history[-1].incumbent].instructions["self"]
    assert "moon" not in last
    assert all(sentence in last for sentence in SOLVED)
    assert last.startswith("Answer the question.")
    assert result.stopped == "the program is perfect on the whole trainset"


def test_student_without_a_full_stop_is_not_pruned_with_what_was_added_behind_it(make: Any) -> None:
    lm = scripted_lm(world(critic=lambda system, user: fields(requirements="The moon is made of cheese.")))
    student = dspy.Predict(Oracle.with_instructions("Answer the question"))
    with dspy.context(lm=lm):
        result = make(prompt_model=lm, num_steps=6).compile(student, trainset=examples(40)).detailed_results
    tried = [each.instructions["self"] for record in result.history for each in record.candidates]
    assert any("moon" in text for text in tried)
    assert all(text.startswith("Answer the question") for text in tried)


def test_rule_that_one_example_needs_is_never_pruned(lm: dspy.LM, make: Any) -> None:
    *others, rare = sorted(examples(60), key=lambda example: "omega" in example.question)[:49]
    optimizer = make(num_steps=40, max_trial_examples=2, batch_size=2)
    compiled = optimizer.compile(dspy.Predict(Oracle), trainset=[*others, rare], valset=examples(5, 100))
    result = compiled.detailed_results
    known = {each.id: each.instructions["self"] for record in result.history for each in record.candidates}
    walked = [known.get(record.incumbent, "") for record in result.history]
    (origin,) = (each for each in provenance(result, "self", result.history[-1].incumbent) if "omega" in each.sentence)
    raced = [each for record in result.history[origin.step + 1 :] for each in record.candidates[: len(record.race)]]
    assert any("omega" not in each.instructions["self"] for each in raced), "leaving it out was tried"
    assert all("omega" in text for text in walked[origin.step + 1 :])


# What bad input gets.


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"metric": None}, TypeError, "`metric` must be callable"),
        ({"metric": lambda example: 1}, TypeError, r"`metric` must take .* takes \(example\)"),
        ({"metric": lambda a, b, c, d, e, f, g: 1}, TypeError, "`metric` must take"),
        ({"auto": "light", "num_steps": 3}, ValueError, "`auto` sets the limits itself"),
        ({"auto": "huge"}, ValueError, "`auto` must be one of .* auto='huge'"),
        ({"policies": "fancy"}, ValueError, "must be a list or one of .* 'fancy'"),
        ({"policies": [TextualLearningRate]}, TypeError, "forget the parentheses"),
        ({"batch_size": 0}, ValueError, "`batch_size` must be an integer of at least 1, but got batch_size=0"),
        ({"num_steps": 2.5}, ValueError, "`num_steps` must be an integer"),
        ({"policies": TextualLearningRate()}, TypeError, "must be a list of policies or the name of a preset"),
        ({"policies": None}, TypeError, "must be a list of policies or the name of a preset"),
        ({"score_range": (1, 0)}, ValueError, "`score_range` must be"),
        ({"score_range": 5}, ValueError, "`score_range` must be"),
        ({"score_range": (0, math.inf)}, ValueError, "`score_range` must be"),
        ({"sources": ["Typo"]}, ValueError, "`sources` must be among SharedFeedback, .* but got 'Typo'"),
        ({"critic_chunk_size": 0}, ValueError, "`critic_chunk_size` must be an integer of at least 1"),
        ({"timeout": "5"}, ValueError, "`timeout` must be seconds above 0"),
        ({"max_lost_share": None}, ValueError, r"`max_lost_share` must be in \(0, 1]"),
        ({"confidence": "0.95"}, ValueError, r"`confidence` must be in \(0.5, 1\)"),
        ({"log_dir": ""}, ValueError, "`log_dir` must be a folder"),
        ({"seed": "x"}, TypeError, "`seed` must be an integer"),
        ({"failure_score": -1}, ValueError, "`failure_score` must be in"),
        ({"confidence": 95}, ValueError, r"`confidence` must be in \(0.5, 1\), but got confidence=95"),
        ({"prompt_model": "gpt-4o"}, TypeError, r"Use prompt_model=dspy.LM"),
    ],
)
def test_wrong_argument_is_refused_at_construction(
    make: Any, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make(**arguments)


@pytest.mark.parametrize(
    ("student", "trainset", "arguments", "error", "message"),
    [
        (dspy.Predict(Oracle), [], {}, ValueError, "`trainset` must hold at least one example"),
        (dspy.Predict(Oracle), [dspy.Example(question="?")], {}, ValueError, r"trainset\[0\] has no inputs"),
        (dspy.Predict(Oracle), [{"question": "?"}], {}, TypeError, r"trainset\[0\] must be a dspy.Example"),
        (dspy.Predict(Oracle), examples(9), {"batch_size": 10}, ValueError, "`batch_size` must be at most 9"),
        (dspy.Predict(Oracle), examples(40), {"max_metric_calls": 20}, ValueError, "must be at least 64 here"),
        (dspy.Module(), examples(9), {}, ValueError, "No predictor to optimise in Module"),
        ("program", examples(9), {}, TypeError, "`student` must be a dspy.Module"),
    ],
)
def test_wrong_input_is_refused_before_the_first_lm_call(
    lm: dspy.LM, make: Any, student: Any, trainset: Any, arguments: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make(**arguments).compile(student, trainset=trainset)
    assert lm.engine.log == []


def test_no_language_model_anywhere_is_refused(make: Any) -> None:
    with dspy.context(lm=None), pytest.raises(ValueError, match="No language model for predictor self"):
        make().compile(dspy.Predict(Oracle), trainset=examples(9))


@pytest.mark.parametrize("method", ["compile", "estimate", "diagnose"])
def test_examples_are_checked_before_the_language_model(make: Any, method: str) -> None:
    with dspy.context(lm=None), pytest.raises(ValueError, match="`trainset`"):
        getattr(make(), method)(dspy.Predict(Oracle), trainset=[])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, r"returned None for trainset.\d+.; it must return a number"),
        ("good", "returned 'good'"),
        (float("nan"), "returned nan .*outside score_range"),
        (37, r"returned 37.0 .*outside score_range=\(0.0, 1.0\)"),
    ],
)
def test_metric_that_returns_no_score_ends_the_run(lm: dspy.LM, make: Any, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(metric=lambda example, pred: value, num_threads=1).compile(
            dspy.Predict(Oracle), trainset=examples(9), valset=examples(3)
        )
    assert len(lm.engine.log) == 1


# The ledger on disk.


def test_interrupted_run_goes_on_where_it_stopped_and_ends_the_same(make: Any, tmp_path: Path) -> None:
    def run(lm: dspy.LM, **arguments: Any) -> Any:
        with dspy.context(lm=lm):
            return make(num_threads=1, **arguments).compile(dspy.Predict(Oracle), trainset=examples(40))

    whole = scripted_lm()
    expected = run(whole).detailed_results.to_dict()
    for moment in (3, 20, 30, 40, 60):
        log: list[tuple[str, str]] = []

        def dying(system: str, user: str, moment: int = moment, log: Any = log) -> str:
            log.append((system, user))
            if len(log) == moment:
                raise KeyboardInterrupt
            return world()(system, user)

        folder = tmp_path / str(moment)
        with pytest.raises(KeyboardInterrupt):
            run(scripted_lm(dying), log_dir=folder)
        second = scripted_lm()
        result = run(second, log_dir=folder).detailed_results.to_dict()
        assert log[:-1] + second.engine.log == whole.engine.log
        assert [record["trial"] for record in result["history"]] == [record["trial"] for record in expected["history"]]
        assert result["candidates"] == expected["candidates"]
        assert result["spent"]["lm_calls"] == expected["spent"]["lm_calls"]


@pytest.mark.parametrize("policies", ["default", "paper"])
def test_finished_run_that_is_run_again_is_the_same_and_free(make: Any, tmp_path: Path, policies: str) -> None:
    runs = []
    for lm in (scripted_lm(), scripted_lm()):
        with dspy.context(lm=lm):
            optimizer = make(policies=policies, max_metric_calls=120, batch_size=4, seed=1, log_dir=tmp_path)
            student = dspy.Predict(Oracle)
            runs.append(optimizer.compile(student, trainset=examples(30), valset=examples(20, 100)).detailed_results)
    assert runs[0] == runs[1]
    assert lm.engine.log == []


def test_outage_is_not_remembered_once_it_is_over(make: Any, tmp_path: Path) -> None:
    def refuse(system: str, user: str) -> str:
        raise TransportError("connection refused")

    for down in (
        refuse,
        lambda system, user: refuse(system, user) if role_of(system) == "critic" else world()(system, user),
    ):
        with (
            dspy.context(lm=scripted_lm(down)),
            pytest.raises((RuntimeError, dspy.LMError), match="connection refused"),
        ):
            make(log_dir=tmp_path).compile(dspy.Predict(Oracle), trainset=examples(40))
    with dspy.context(lm=scripted_lm()):
        result = (
            make(log_dir=tmp_path, num_steps=8).compile(dspy.Predict(Oracle), trainset=examples(40)).detailed_results
        )
    assert result.val_aggregate_scores[result.best_idx] == 1
    assert result.history[-1].unparsed == 0


def test_finished_run_can_be_extended(make: Any, tmp_path: Path) -> None:
    first, second, whole = scripted_lm(), scripted_lm(), scripted_lm()
    for lm, arguments in (
        (first, {"num_steps": 1, "log_dir": tmp_path}),
        (second, {"num_steps": 4, "log_dir": tmp_path, "num_threads": 7}),
        (whole, {"num_steps": 4}),
    ):
        with dspy.context(lm=lm):
            optimized = make(**arguments).compile(dspy.Predict(Oracle), trainset=examples(40))
        if lm is second:
            extended = optimized.signature.instructions
    assert extended == optimized.signature.instructions
    assert len(first.engine.log) + len(second.engine.log) <= len(whole.engine.log) + 16


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ({"seed": 1}, "seed: 0 then, 1 now"),
        ({"policies": [TextualLearningRate(2)]}, "policies: "),
        ({"metric": worst}, "metric"),
        ({"batch_size": 5}, "batch_size: 8 then, 5 now"),
        ({"trainset": examples(41)}, "data"),
        ({"prompt_model": scripted_lm(temperature=0.3)}, "settings of the models"),
    ],
)
def test_run_folder_of_other_settings_is_refused(
    lm: dspy.LM, make: Any, tmp_path: Path, change: dict[str, Any], differs: str
) -> None:
    make(num_steps=1, log_dir=tmp_path).compile(dspy.Predict(Oracle), trainset=examples(40))
    trainset = change.pop("trainset", None) or examples(40)
    with pytest.raises(ValueError, match=rf"was made with other settings: .*{differs}.*Use a new `log_dir`"):
        make(num_steps=1, log_dir=tmp_path, **change).compile(dspy.Predict(Oracle), trainset=trainset)


def test_no_key_is_written_to_disk(make: Any, tmp_path: Path) -> None:
    lm = dspy.LM("openai/gpt-4o", api_key="sk-very-secret", num_retries=0)
    with dspy.context(lm=scripted_lm()):
        student = dspy.Predict(Oracle)
        make(num_steps=1, log_dir=tmp_path, prompt_model=scripted_lm(), critic_model=scripted_lm()).compile(
            student, trainset=examples(40)
        )
        optimizer = make(num_steps=1, log_dir=tmp_path / "b", prompt_model=lm, critic_model=scripted_lm())
        optimizer.compile(student, trainset=examples(40))  # The critic's sentences do without the proposer.
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"gpt-4o" in written
    assert b"sk-very-secret" not in written


INTERRUPTED = """
import signal, sys, time
import dspy
from dspy_dlpo import DLPOOptimizer
from tests.scripted import Oracle, examples, metric, scripted_lm, world

signal.signal(signal.SIGINT, signal.default_int_handler)  # In the background it would be ignored.
calls = []
def hanging(system, user):
    calls.append(user)
    if len(calls) > 20:
        print("hanging", flush=True)
        time.sleep(600)
    return world()(system, user)

dspy.configure(lm=scripted_lm(hanging))
optimizer = DLPOOptimizer(metric=metric, num_steps=4, num_threads=2, log_dir=sys.argv[1])
optimizer.compile(dspy.Predict(Oracle), trainset=examples(40))
"""


def test_second_ctrl_c_returns_the_terminal_at_once_and_leaves_what_was_paid_on_disk(make: Any, tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(tmp_path)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("hanging")
    time.sleep(0.2)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
    process.wait(timeout=60)
    process.stdout.close()
    with sqlite3.connect(tmp_path / "ledger.sqlite") as ledger:
        (paid,) = ledger.execute("SELECT (SELECT count(*) FROM rollouts) + (SELECT count(*) FROM replies)").fetchone()
    ledger.close()
    assert paid == 20
    logs = []
    for folder in (tmp_path, None):
        with dspy.context(lm=scripted_lm()) as _:
            make(log_dir=folder).compile(dspy.Predict(Oracle), trainset=examples(40))
            logs.append(len(dspy.settings.lm.engine.log))
    assert logs[0] == logs[1] - paid


# What a step takes from the trainset.


def test_candidates_are_not_tried_on_the_examples_they_were_made_from(lm: dspy.LM, make: Any) -> None:
    text = "Answer the question.\n" + "\n".join(sorted(SOLVED)[:4])  # Fails one in five.
    for student in (dspy.Predict(Oracle), dspy.Predict(Oracle.with_instructions(text))):
        optimizer = make(num_steps=12, policies="none", batch_size=8)
        result = optimizer.compile(student, trainset=examples(40), valset=examples(10, 100)).detailed_results
        tried = [(record, record.trial) for record in result.history if record.trial]
        assert tried
        for record, trial in tried:
            assert len(trial.examples) == len(trial.differences) > 0
            assert not {*trial.examples} & {*record.minibatch}
        assert all(len(record.minibatch) <= 32 for record in result.history)


def test_trial_names_the_example_of_each_difference(lm: dspy.LM, make: Any) -> None:
    rows = {f"train:{index}": example for index, example in enumerate(examples(40))}
    optimizer = make(policies=[TextualLearningRate(1)])
    result = optimizer.compile(dspy.Predict(Oracle), trainset=examples(40), valset=examples(10, 100)).detailed_results
    texts = {each.id: each.instructions["self"] for each in result.candidates}
    texts |= {each.id: each.instructions["self"] for record in result.history for each in record.candidates}

    def passes(candidate: str, name: str) -> bool:
        return f"answer {rows[name].answer}." in texts[candidate]

    trials = [record.trial for record in result.history if record.trial]
    assert any(0 < trial.gain < 1 for trial in trials)
    for trial in trials:
        gains = [passes(trial.candidate, name) - passes(trial.incumbent, name) for name in trial.examples]
        assert list(trial.differences) == gains


def test_what_an_incumbent_ran_on_in_its_trial_is_not_paid_again(make: Any) -> None:
    asked: list[tuple[str, str]] = []

    def program(system: str, user: str) -> str:
        asked.append((system, user))
        return world()(system, user)

    with dspy.context(lm=scripted_lm(program)):
        optimizer = make(num_steps=2, policies=[TextualLearningRate(1)], num_threads=1)
        compiled = optimizer.compile(dspy.Predict(Oracle), trainset=examples(60), valset=examples(10, 100))
    first, second = compiled.detailed_results.history
    assert first.trial and first.trial.accepted and second.trial
    assert {*first.trial.examples} & {each.example for each in second.failures}
    known = {(first.trial.candidate, name) for name in first.trial.examples}
    known |= {(first.incumbent, name) for name in (*first.minibatch, *first.trial.examples)}
    new = {(second.incumbent, name) for name in (*second.minibatch, *second.trial.examples)} - known
    raced = len(second.race) * min(8, len(second.trial.examples))
    beyond = len(second.trial.examples) - min(8, len(second.trial.examples))  # The winner alone goes on.
    paid = second.spent.metric_calls - first.spent.metric_calls
    met_on_valset = 8 if second.accepted else 0
    assert paid == len(new) + raced + beyond + met_on_valset
    assert len(new) < len(second.minibatch) + len(second.trial.examples)
    calls = [(system, user) for system, user in asked if role_of(system) == "program"]
    assert len(calls) == len({*calls}) == compiled.detailed_results.spent.metric_calls


def test_trial_smaller_than_the_batch_still_leaves_room_for_steps(lm: dspy.LM, make: Any) -> None:
    optimizer = make(max_metric_calls=150, batch_size=32, max_trial_examples=8, policies=[TextualLearningRate(1)])
    result = optimizer.compile(dspy.Predict(Oracle), trainset=examples(80), valset=examples(8, 100)).detailed_results
    assert len(result.history) > 1
