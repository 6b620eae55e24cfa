"""The report as a text; tests/test_report_browser.py has it in a browser."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_dlpo.core.edits import Edit, apply
from dspy_dlpo.core.records import (
    Call,
    Candidate,
    Demo,
    Point,
    Refusal,
    Rollout,
    Spending,
    TextualGradient,
    UpdateRequest,
)
from dspy_dlpo.core.sentences import split
from dspy_dlpo.core.steps import Outcome, RunInfo, Session, StepRecord, Threshold, Trial
from dspy_dlpo.descent.outcome import NOT_ENDED
from dspy_dlpo.descent.statistics import Gain
from dspy_dlpo.views.report import render, save_report
from dspy_dlpo.views.report.charts import schedules, score_chart
from dspy_dlpo.views.report.view import CandidateView, diff, step_views, val_examples, visits
from dspy_dlpo.views.report.words import headline
from dspy_dlpo.views.result import DLPOResult
from dspy_dlpo.views.runs import load_result
from tests.runtime.test_programs import blaming, two_steps, wrong
from tests.scripted import Oracle, examples, scripted_lm, world

HOSTILE = (
    '</script><script>window.hacked = 1</script><!-- <img src=x onerror="window.hacked = 1"> \'"`${window.hacked = 1}` '
    "]]> </title></textarea></style></template> {{ 7 * 7 }} &lt;b&gt; javascript:window.hacked=1 "
    "\u2028\u2029 \u202eesrever\u2066 \x00\x1b[31m " + "x" * 300
)


def said(text: str) -> str:
    return text


def made_up(num_steps: int = 12, say: Callable[[str], str] = said) -> DLPOResult:
    """Return a run of two predictors with steps of every outcome, in which `say` words what model and data said."""
    names = [say("find"), say("write")]
    student = incumbent = Candidate({name: f"Read the question. Answer as {name} does. Be exact." for name in names})
    candidates, scores, history, spent = [student], [0.5], [], Spending()
    for step in range(num_steps):
        name = names[step % 2]
        sentences = tuple(split(incumbent.instructions[name]))
        spent += Spending(20, 45, 30_000 + 100 * step, 2_000, 12.5, 0.0125)
        failures = tuple(
            Rollout(
                incumbent.id,
                f"train:{4 * step + number}",
                0.0,
                say(f"The month is missing in answer {number}."),
                calls=tuple(
                    Call(each, {"question": say("What happened? " * 20)}, {"answer": say(f"It rained {step}.")})
                    for each in names
                ),
                num_calls=2,
            )
            for number in range(4)
        )
        points = tuple(
            Point(say(f"Name month {step} in the answer."), tuple(each.example for each in failures[start:end]), 0.5)
            for start, end in ((0, 3), (3, 4))
        )
        gradient = TextualGradient(name, points, 0.75)
        edits = (
            Edit(
                "replace", len(sentences) - 1, say(f"Name month {step} in each answer."), say("The month is missing.")
            ),
            Edit("add", 0, f"Mind rule {step}.", "It was missed.")
            if len(sentences) < 6
            else Edit("delete", 1, reason="It has no effect."),
        )
        made = tuple(
            Candidate({**incumbent.instructions, name: apply(sentences, some)}, incumbent.id, {name: some})
            for some in (edits, edits[:1])
        )
        accepted, perfect = step % 5 == 1, step % 5 == 4
        differences = (0.0, 1.0, 0.0, 1.0) if accepted else (0.0, -1.0, 0.0, 0.0)
        threshold = Threshold(-0.02, {"temperature": 0.05 * 0.99**step, "draw": 0.67}, -0.3)
        record = StepRecord(
            step,
            incumbent.id,
            tuple(f"train:{4 * step + number}" for number in range(8)),
            0.0 if perfect else round(0.5 / (1 + step / 10), 3),
            best=candidates[-1].id,
            best_score=scores[-1],
            spent=spent,
        )
        if perfect:
            record = replace(record, skipped=Outcome.PERFECT_MINIBATCH)
        else:
            record = replace(
                record,
                failures=failures,
                gradients=(gradient,),
                remarks={say("replies that praise everything"): 2},
                requests=(UpdateRequest(name, sentences, gradient, max_edits=4),),
                candidates=made,
                refusals=(Refusal("copies an example", say("What of topic alpha?"), name, 2),),
                race=(0.25, 0.0),
                trial=Trial(made[0].id, incumbent.id, differences, 40, threshold, accepted),
            )
        if accepted:
            incumbent = made[0]
            candidates.append(incumbent)
            scores.append(1 - 0.5 / len(candidates))
            record = replace(record, best=incumbent.id, best_score=scores[-1])
        history.append(record)
    run = RunInfo(
        student,
        {"metric": say("exact_match"), "seed": 0, "policies": [say("TextualLearningRate(max_edits=4)")]},
        {"dspy_dlpo": "0.1.0"},
        {},
        say("Notes"),
        100,
        20,
        "given",
        num_steps,
    )
    return DLPOResult(
        tuple(candidates),
        tuple(scores),
        (20,) * len(candidates),
        len(candidates) - 1,
        Gain(scores[-1] - 0.5, 0.05, 0.6, 20, len(candidates) - 1),
        tuple(history),
        spent,
        say(f"{num_steps} steps are done"),
        None,
        0,
        (0.0, 1.0),
        0.0,
        run,
    )


class Page(HTMLParser):
    """What a page holds: its tags with attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_report_of_a_run_shows_its_course(lm: dspy.LM, make: Any, tmp_path: Path) -> None:
    result = make().compile(dspy.Predict(Oracle), trainset=examples(40)).detailed_results
    path = result.save_report(tmp_path / "new" / "report.html")
    page = Page(path.read_text(encoding="utf-8"))
    assert path == tmp_path / "new" / "report.html"
    assert [f"Step {record.step + 1}" in page.text for record in result.history] == [True] * len(result.history)
    assert all(sentence.strip() in page.text for sentence in split(result.best_candidate["self"]))
    assert all(str(point.text) in page.text for each in result.history[0].gradients for point in each.points)
    assert result.stopped in page.text
    assert "A real gain" in page.text


def test_report_of_several_predictors_names_each(make: Any) -> None:
    with dspy.context(lm=scripted_lm(blaming("Find"))):
        optimizer = make(metric=wrong, num_steps=2, batch_size=2, max_trial_examples=2)
        result = optimizer.compile(two_steps(), trainset=examples(9), valset=examples(1, 100)).detailed_results
    assert [each.predictors for each in step_views(result)] == [("find",), ("find",)]
    page = Page(render(result))
    assert {"find", "say"} <= {*re.findall(r"\w+", page.text)}
    assert [attributes["data-prompt"] for _, attributes in page.tags if "data-prompt" in attributes] == ["0", "1"]


def test_report_of_a_run_that_was_killed_is_as_long_as_the_run(make: Any, tmp_path: Path) -> None:
    asked = []

    def killing(system: str, user: str) -> str:
        asked.append(user)
        if len(asked) == 80:
            raise KeyboardInterrupt
        return world()(system, user)

    with dspy.context(lm=scripted_lm(killing)), pytest.raises(KeyboardInterrupt):
        make(log_dir=tmp_path, num_threads=1).compile(dspy.Predict(Oracle), trainset=examples(40))
    result = load_result(tmp_path)
    page = render(result)
    assert page.count('class="step"') == len(result.history) > 0
    assert "the run did not come to its end" in page


@pytest.mark.parametrize("num_steps", [0, 1])
def test_report_of_a_run_without_a_course_is_written(num_steps: int) -> None:
    result = replace(
        made_up(num_steps), candidates=made_up(0).candidates, best_idx=0, val_aggregate_scores=(float("nan"),)
    )
    assert "the program was left as it was" in render(result)


def test_hostile_text_adds_no_kind_of_element_and_no_attribute() -> None:
    harmless, hostile = Page(render(made_up())), Page(render(made_up(say=lambda text: text + HOSTILE)))
    kinds = [{(tag, *sorted(attributes)) for tag, attributes in page.tags} for page in (harmless, hostile)]
    assert kinds[1] <= kinds[0]
    assert [tag for tag, _ in hostile.tags].count("script") == 2
    assert "window.hacked = 1" in hostile.text


def test_unseen_characters_are_written_out() -> None:
    page = render(replace(made_up(say=lambda text: text + HOSTILE), stopped="half a \ud83d"))
    assert not re.search("[\x00\x1b\u202e\u2066\ud83d]", page)
    assert r"half a \ud83d" in page
    assert r"\u202eesrever\u2066 \x00\x1b" in page


def test_texts_to_copy_are_exact_and_cannot_end_their_block() -> None:
    result = made_up(say=lambda text: text + HOSTILE)
    (block,) = re.findall(r'<script type="application/json" id="prompts">(.*?)</script>', render(result))
    assert json.loads(block) == list(result.best_candidate.values())
    assert not re.search("[<>&\u2028\u2029]", block)


def test_policy_of_the_page_lets_only_its_own_style_and_script_run() -> None:
    page = render(made_up())
    (policy,) = (each["content"] for tag, each in Page(page).tags if each.get("http-equiv"))
    for tag in ("style", "script"):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in str(policy)
    assert str(policy).startswith("default-src 'none'")
    assert "unsafe" not in str(policy)


def test_page_names_nothing_outside_itself() -> None:
    for _, attributes in Page(render(made_up())).tags:
        assert not {"src", "srcset", "style"} & attributes.keys()
        assert str(attributes.get("href", "#")).startswith("#")


def test_every_link_has_its_target() -> None:
    tags = Page(render(made_up())).tags
    targets = {attributes["id"] for _, attributes in tags if "id" in attributes}
    links = {str(attributes["href"])[1:] for _, attributes in tags if "href" in attributes}
    assert links <= targets


@pytest.mark.parametrize(
    ("change", "tone", "words"),
    [
        ({}, "sure", r"A real gain: .* between \+0\.050 and \+0\.600, with 95 % confidence"),
        (
            {"gain": Gain(0.1, -0.2, 0.4, 20)},
            "unsure",
            r"Not sure: the gain may be chance.* between −0\.200 and \+0\.400",
        ),
        ({"best_idx": 0, "gain": Gain(num_examples=20)}, "nothing", "left as it was"),
        ({"gain": Gain()}, "nothing", "was not measured"),
    ],
    ids=["sure", "not sure", "student", "not ended"],
)
def test_headline_says_whether_to_believe_the_gain(change: dict[str, Any], tone: str, words: str) -> None:
    said = headline(replace(made_up(), **change))
    assert said.tone == tone
    assert re.search(words, said.verdict)


def test_headline_warns_of_a_choice_made_on_the_trainset() -> None:
    result = made_up()
    result = replace(result, run=replace(result.run, held_out="the trainset itself"))
    assert "looks too good" in " ".join(headline(result).cautions)


def test_diff_shows_each_change_with_its_neighbours_and_folds_the_rest() -> None:
    sentences = [f"{number}." for number in range(9)]
    edits = [Edit("replace", 2, "Two.", "clearer"), Edit("delete", 3, reason="no use"), Edit("move", 8, to=-1)]
    assert [(line.kind, line.text, line.reason) for line in diff(sentences, edits)] == [
        ("added", "8.", "moved"),
        ("kept", "0.", ""),
        ("kept", "1.", ""),
        ("removed", "2.", ""),
        ("added", "Two.", "clearer"),
        ("removed", "3.", "no use"),
        ("kept", "4.", ""),
        ("folded", "2 unchanged", ""),
        ("kept", "7.", ""),
        ("removed", "8.", ""),
    ]


def test_walk_goes_through_what_was_accepted_and_keeps_what_was_refused_there() -> None:
    result = made_up(8)
    walk = visits(result, step_views(result))
    assert [visit.candidate for visit in walk] == list(result.candidates)
    assert [[step.record.step for step, _ in visit.refused] for visit in walk] == [
        [0, 0, 1],
        [2, 2, 3, 3, 5, 5, 6],
        [7, 7],
    ]
    assert [visit.is_best for visit in walk] == [False, False, True]


def test_spending_of_the_steps_adds_up_to_that_of_the_run() -> None:
    result = made_up(7)
    total = sum((step.spent for step in step_views(result)), Spending())
    assert total.tokens == result.spent.tokens
    assert total.cost == pytest.approx(result.spent.cost)


def test_minibatch_that_was_lost_has_no_score() -> None:
    result = made_up(3)
    lost = replace(result.history[1], minibatch=(), loss=0.0, trial=None, skipped=Outcome.MINIBATCH_LOST)
    result = replace(result, history=(result.history[0], lost, result.history[2]))
    marks = score_chart(result, step_views(result)).marks
    assert [x for x, *_ in marks] == [25, 75, 100]
    assert "score –" in render(result)


def test_score_chart_goes_from_the_student_over_the_steps_to_the_final_choice() -> None:
    result = made_up(4)
    chart = score_chart(result, step_views(result))
    assert [mark for *_, mark in chart.marks] == ["refused", "accepted", "refused", "refused", "final"]
    assert [x for x, *_ in chart.marks] == [20, 40, 60, 80, 100]
    final = round(100 * (1 - result.val_aggregate_scores[-1]), 2)
    assert [y for _, y, _ in chart.marks] == [*(round(100 * record.loss, 2) for record in result.history), final]
    best = next(line for line in chart.lines if line.name == "best")
    assert best.path.startswith("M0 50 h0 H20 V50 H40 V25 ")
    assert best.path.endswith(f"H100 V{final:g}")


def test_score_chart_of_a_run_that_did_not_end_has_no_final_choice() -> None:
    result = replace(made_up(4), stopped=NOT_ENDED)
    marks = score_chart(result, step_views(result)).marks
    assert [(x, mark) for x, _, mark in marks][-1] == (100, "refused")
    assert 'data-label="Final choice"' not in render(result)
    assert 'data-label="Final choice"' in render(made_up(4))


def test_only_what_changes_in_the_course_of_a_run_has_a_chart() -> None:
    result = made_up(8)
    assert [chart.title for chart in schedules(result, step_views(result))] == ["Temperature"]
    capped = [
        replace(record, requests=tuple(replace(each, max_edits=record.step + 1) for each in record.requests))
        for record in result.history
    ]
    result = replace(result, history=tuple(capped))
    assert [chart.title for chart in schedules(result, step_views(result))] == ["Temperature", "Most edits a step"]


def test_each_changed_instruction_is_shown_whole_before_and_after() -> None:
    result = made_up(2)  # One of the two was changed.
    page = render(result)
    assert page.count('<div class="panes">') == 1
    panes = re.findall(r"<h4>(Before|After)</h4><p [^>]*>(.*?)</p>", page, re.DOTALL)
    name = next(name for name, text in result.best_candidate.items() if text != result.run.student.instructions[name])
    assert panes == [
        ("Before", result.run.student.instructions[name]),
        ("After", result.best_candidate[name].strip()),
    ]


def test_demos_of_the_run_are_shown_with_where_they_are_from() -> None:
    result = made_up(4)
    name = next(iter(result.best_candidate))
    demos = (
        Demo("train:3", {"question": "What <i>now</i>?", "answer": 7}, augmented=True),
        Demo("train:9", {"answer": "x"}),
    )
    best = replace(result.candidates[-1], demos={name: demos})
    step = result.history[1]
    assert step.trial is not None
    step = replace(
        step, candidates=(best, *step.candidates[1:]), trial=replace(step.trial, candidate=best.id), best=best.id
    )
    history = (result.history[0], step, *result.history[2:])
    page = render(replace(result, candidates=(*result.candidates[:-1], best), history=history))
    assert "2 demos of the run" in page
    assert "train 3, a call that went right" in page
    assert "train 9, the labels" in page
    assert "What &lt;i&gt;now&lt;/i&gt;?" in page
    assert CandidateView(best, "accepted", 0.5, None, {}).changes.endswith("2 demos")


def test_report_says_which_models_made_the_run_when_and_what_had_been_paid_before() -> None:
    sessions = (
        Session("2026-03-04T05:06:07+01:00", seconds=100.0),
        Session("2026-03-05T05:06:07+01:00", 3, Spending(20, 45, 1000, 500, cost=0.5), 20.0),
    )
    result = made_up()
    models = {"program": "openai/small", "proposer": "openai/large", "critic": "openai/large"}
    text = Page(render(replace(result, run=replace(result.run, models=models, sessions=sessions)))).text
    for said in (
        "openai/small, critic and proposer openai/large",
        "2026-03-04 05:06",
        "2 min",
        "with 3 steps done and 20 metric calls, 45 LM calls, 1,500 tokens, $0.50 paid",
    ):
        assert said in text


def test_validation_examples_are_listed_with_the_worst_first() -> None:
    result = made_up()
    scores = [{"val:0": 1.0, "val:1": 0.0, "val:2": 0.5}, {"val:2": 0.25, "val:1": 0.0, "val:0": 1.0}]
    others = [scores[0]] * (len(result.candidates) - 2)
    result = replace(result, val_subscores=(scores[0], *others, scores[1]))
    assert [(each.name, each.change) for each in val_examples(result)] == [("val:1", 0), ("val:2", -0.25), ("val:0", 0)]
    page = render(result)
    assert "2 of 3 still fall short of 1" in page
    assert '<th scope="row">valset[2]</th><td>0.500</td><td>0.250</td><td>−0.250</td>' in page
    assert "Validation examples" not in render(made_up())


def test_a_sentence_of_the_critics_own_is_not_shown_a_second_time_as_its_complaint(lm: dspy.LM, make: Any) -> None:
    result = make(num_steps=6).compile(dspy.Predict(Oracle), trainset=examples(40)).detailed_results
    origins = render(result).partition('<ol class="sentences">')[2].partition("</article>")[0]
    assert origins.count("When the topic is alpha, answer 11.") == 1
    assert "Critic:" not in origins


def test_report_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    for target in ("precious.txt", "absent.txt"):
        link = tmp_path / f"link to {target}"
        link.symlink_to(tmp_path / target)
        with pytest.raises(FileExistsError, match=r"`path` must be no link, but .* leads to"):
            save_report(made_up(1), link)
    assert (tmp_path / "precious.txt").read_text() == "mine"
    assert not (tmp_path / "absent.txt").exists()


def luminance(color: str) -> float:
    """Relative luminance, as the Web Content Accessibility Guidelines define it."""
    digits = color.strip("#") if len(color) == 7 else "".join(2 * digit for digit in color.strip("#"))
    parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize(
    "pair",
    [
        *((text, ground) for text in ("text", "soft", "link") for ground in ("page", "card", "wash")),
        *((text, ground) for text in ("text", "soft") for ground in ("good-wash", "bad-wash")),
        ("good", "good-wash"),
        ("bad", "bad-wash"),
        ("warn", "warn-wash"),
        ("page", "text"),
    ],
    ids=" on ".join,
)
def test_text_has_the_contrast_that_guidelines_ask_for(scheme: int, pair: tuple[str, str]) -> None:
    schemes = re.findall(r":root \{\s(.*?)\}", render(made_up(0)), re.DOTALL)
    colors = dict(re.findall(r"--([\w-]+): (#\w+);", schemes[scheme]))
    dark, light = sorted(luminance(colors[name]) for name in pair)
    assert (light + 0.05) / (dark + 0.05) >= 4.5
