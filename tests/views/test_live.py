from __future__ import annotations

import io
import logging
import os
import pty
import re
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import dspy
import pytest
from rich.cells import cell_len
from rich.console import Console, RenderableType

from dspy_dlpo.benchmarks.simulation.scripted import fields
from dspy_dlpo.core.edits import Edit
from dspy_dlpo.core.records import Candidate, Spending, UpdateRequest
from dspy_dlpo.core.records import TextualGradient as Gradient
from dspy_dlpo.core.steps import Outcome, RunInfo, StepRecord, Threshold, Trial
from dspy_dlpo.descent.listeners import Listener
from dspy_dlpo.runtime.budget import Budget, Limits
from dspy_dlpo.views.lines import Lines
from dspy_dlpo.views.live import LiveView
from dspy_dlpo.views.progress import progress
from tests.scripted import Oracle, examples, scripted_lm, world

STUDENT = Candidate({"answer": "Be brief. Be kind.", "search": "Search."})
RUN = RunInfo(STUDENT, {"score_range": (0.0, 1.0), "batch_size": 8}, {}, {}, "QA", 40, 20, "given", num_steps=5)


def make_step(*edits: Edit, accepted: bool = True, **changes: Any) -> StepRecord:
    """Return a step that tried some edits of the first predictor."""
    winner = Candidate({"answer": "new", "search": "Search."}, STUDENT.id, {"answer": edits})
    trial = Trial(winner.id, STUDENT.id, (1.0, 0.0) * 8, 32, Threshold(0.0, {"temperature": 0.0321}), accepted)
    request = UpdateRequest("answer", ("Be brief. ", "Be kind."), Gradient("answer", ()), max_edits=3)
    settings = {
        "best": STUDENT.id,
        "best_score": 0.25,
        "student_score": 0.125,
        "best_examples": 8,
        "trial": trial,
        "requests": (request,),
        **changes,
    }
    return StepRecord(0, STUDENT.id, ("train:0", "train:1"), 0.5, candidates=(winner,), **settings)


def drawn(*records: StepRecord, width: int = 100, budget: Budget | None = None, run: RunInfo = RUN) -> str:
    """Return what a terminal of some width shows after the steps, without colours."""
    console = Console(file=io.StringIO(), force_terminal=True, width=width, height=60)
    view = LiveView(console)
    view.on_run_start(run, budget or Budget())
    for record in records:
        view.on_step_end(record)
    view.on_run_error(KeyboardInterrupt())
    assert isinstance(console.file, io.StringIO)
    frame = console.file.getvalue().rpartition("╭")[2]
    return re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", frame)


def test_panel_shows_scores_history_schedules_and_the_change_with_its_reason() -> None:
    add = Edit("add", 1, "Name the year.", reason="years were missing")
    lines = drawn(
        make_step(add), make_step(Edit("delete", 0), accepted=False), make_step(trial=None, skipped=Outcome.NO_GRADIENT)
    )
    for expected in (
        "valset        best 0.250 (8 of 20), student 0.125 there",
        "incumbent     0.500 on the minibatch (2 examples)",
        "history       +-.  1 accepted, 1 refused, 1 skipped",
        "temperature   0.0321",
        "edits         at most 3",
        "steps         ━━━━━━━━━━━━────────  3 of 5, 2 left",
        "change of step 1, refused",
        "- Be brief.",
    ):
        assert expected in lines
    lines = drawn(make_step(add))
    assert re.search(r"last step     accepted, \+0\.500 \(95 % interval [+-]0\.\d+ to \+0\.\d+, 16 examples\)", lines)
    assert re.search(r"\+ Name the year\. +│\n│   because years were missing", lines)


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (Edit("add", -1, "New."), ["+ New."]),
        (Edit("replace", 1, "New."), ["- Be kind.", "+ New."]),
        (Edit("delete", 1), ["- Be kind."]),
        (Edit("move", 1, to=-1), ["~ Be kind."]),
    ],
    ids=lambda value: value.op if isinstance(value, Edit) else "",
)
def test_each_kind_of_edit_is_shown_by_sentence(edit: Edit, expected: list[str]) -> None:
    change = drawn(make_step(edit)).partition("change of step")[2]
    assert re.findall(r"│ ([-+~] .*?) +│", change) == expected
    assert "│ answer" in change  # The program has several predictors.


def test_only_limits_have_a_bar_and_say_what_is_left() -> None:
    budget = Budget(Limits(max_metric_calls=200, max_cost=2.0, max_seconds=3600.0))
    budget.charge(Spending(metric_calls=50, lm_calls=60, input_tokens=7000, output_tokens=1000, cost=0.5))
    lines = drawn(budget=budget)
    for expected in (
        r"metric calls  ━{5}─{15}  50 of 200, 150 left",
        r"LM calls +60 ",
        r"tokens +8,000 ",
        r"dollars       ━{5}─{15}  \$0\.50 of \$2\.00, \$1\.50 left",
        r"time          ─{20}  0:00:00 of 1:00:00, 1:00:00 left",
    ):
        assert re.search(expected, lines)


def test_spending_of_unknown_price_is_not_shown_as_nothing() -> None:
    budget = Budget()
    budget.charge(Spending(lm_calls=1, cost=None))
    assert re.search(r"dollars +unknown ", drawn(budget=budget))


@pytest.mark.parametrize("width", [30, 80, 120])
@pytest.mark.parametrize(
    "text",
    [
        "[bold red]markup[/bold red] [/] :smile:",
        "\x1b[2J\x1b[31mred\x1b]0;title\x07 \x9b2J",
        "two\nlines\r\tand\x00\x08 more",
        "\u202eright to left\u202c\u2066\u200f",
        "x" * 5000,
        "漢字" * 300,
    ],
    ids=["markup", "escapes", "controls", "bidi", "long", "wide"],
)
def test_text_of_a_model_cannot_leave_its_place(text: str, width: int) -> None:
    lines = drawn(make_step(Edit("add", 0, text, reason=text)), width=width).splitlines()
    panel = [line for line in lines if line.startswith(("│", "╰"))]
    assert len({cell_len(line) for line in panel}) == 1  # The right edge is straight.
    assert len(panel) < 60
    assert all(letter.isprintable() for line in panel for letter in line)
    if text.startswith("["):
        assert "[bold red]markup" in "".join(panel)


def test_terminal_is_given_back_and_prints_and_logs_go_above_the_panel(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    handler = logging.StreamHandler(terminal)
    logger = logging.getLogger("of the user")
    logger.addHandler(handler)
    try:
        view = LiveView()
        view.on_run_start(RUN, Budget())
        assert sys.stdout is not terminal
        print("printed [/bold]", flush=True)
        print("no line end [/bold]", end="", flush=True)
        logger.warning("logged")
        for line in ("printed [/bold]", "no line end [/bold]", "logged"):
            assert re.search(re.escape(line) + r"\s+╭", terminal.getvalue())  # The panel is drawn again below.
        view.on_run_error(ValueError())
    finally:
        logger.removeHandler(handler)
    assert sys.stdout is terminal
    assert sys.stderr is terminal
    assert handler.stream is terminal
    assert terminal.getvalue().endswith("\x1b[?25h")  # The cursor is shown.


def test_output_to_a_file_still_goes_there(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.setattr(sys, "stdout", file)
    view = LiveView(Console(file=io.StringIO(), force_terminal=True))
    view.on_run_start(RUN, Budget())
    print("a result")
    view.on_run_error(ValueError())
    assert file.getvalue() == "a result\n"


def test_view_that_fails_says_so_and_neither_breaks_a_print_nor_keeps_the_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(self: LiveView) -> None:
        raise ArithmeticError("broken")

    monkeypatch.setattr(LiveView, "_draw", fail)
    stderr = sys.stderr
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    view = LiveView(console)
    view.on_run_start(RUN, Budget())
    print("still fine", file=sys.stderr)
    view.on_run_error(KeyboardInterrupt())
    assert sys.stderr is stderr
    assert isinstance(console.file, io.StringIO)
    assert "still fine" in console.file.getvalue()
    assert "the live view failed, the run goes on: ArithmeticError('broken')" in console.file.getvalue()


def test_error_before_the_run_began_is_taken() -> None:
    LiveView(Console(file=io.StringIO())).on_run_error(ValueError())


def shown_by(views: list[Listener]) -> list[type[Listener]]:
    """Return the kinds of the views besides the log, which is always there."""
    assert type(views[0]) is Lines
    return [type(view) for view in views[1:]]


@pytest.mark.parametrize(("term", "kind"), [("xterm", LiveView), ("dumb", Lines)])
def test_dumb_terminal_gets_plain_lines(term: str, kind: type[Listener], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", term)
    assert shown_by(progress(verbose=True)) == [kind]
    assert shown_by(progress(verbose=False)) == []


def test_within_another_live_view_there_are_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    outer = LiveView(Console(file=io.StringIO(), force_terminal=True))
    outer.on_run_start(RUN, Budget())
    assert shown_by(progress(verbose=True)) == [Lines]
    outer.on_run_error(ValueError())


def test_panel_says_what_the_run_does_until_it_has_ended() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, height=60)
    view = LiveView(console)
    view.on_run_start(RUN, Budget())
    view.on_phase("asking the \x1b[31mcritic")
    assert "DLPO QA, step 1 of 5, asking the [31mcritic" in text_of(view._draw())
    view.on_run_error(KeyboardInterrupt())
    assert "DLPO QA, ended: KeyboardInterrupt ─" in text_of(view._draw())


def text_of(panel: RenderableType) -> str:
    console = Console(file=io.StringIO(), width=100)
    console.print(panel)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [24, 80, 200])
def test_what_a_terminal_echoes_of_ctrl_c_fits_beside_the_panel(width: int) -> None:
    assert {cell_len(line) for line in drawn(width=width).splitlines() if line[:1] in "│╰"} == {width - len("^C^C")}


def test_summary_is_broken_between_words_only() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=30)
    view = LiveView(console)
    view.on_run_start(replace(RUN, held_out="part of the trainset"), Budget())
    view.on_run_error(ValueError())
    assert isinstance(console.file, io.StringIO)
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    assert lines[:3] == ["DLPO: no valset given: the", "result is chosen on 20", "examples, part of the trainset"]


SCRIPT = """
    import sys, dspy
    from tests.scripted import Oracle, examples, metric, scripted_lm
    from dspy_dlpo import DLPOOptimizer
    dspy.configure(lm=scripted_lm())
    optimizer = DLPOOptimizer(metric=metric, num_steps=2, num_threads=2, verbose={verbose})
    optimizer.compile(dspy.Predict(Oracle), trainset=examples(40))
    print("rich.live" in sys.modules)
"""


@pytest.mark.parametrize(
    ("verbose", "terminal", "view"),
    [(True, True, "panel"), (True, False, "lines"), (0, True, "nothing"), (False, False, "nothing")],
)
def test_a_terminal_gets_the_panel_others_lines_and_nothing_is_imported_in_vain(
    verbose: bool, terminal: bool, view: str
) -> None:
    code = textwrap.dedent(SCRIPT.format(verbose=verbose))
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "40"}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=theirs if terminal else subprocess.PIPE,
        env=environment,
        cwd=Path(__file__).parents[2],
    )
    os.close(theirs)
    shown = _all_of(ours).decode()  # A terminal holds only so much, so it is read while the process runs.
    os.close(ours)
    out, lines = process.communicate()
    said = shown if terminal else lines.decode()
    assert process.returncode == 0
    assert out.decode().strip() == str(view == "panel")
    assert ("╭" in said, "step 1/2: incumbent" in said) == (view == "panel", view == "lines")
    if view == "nothing":
        assert "DLPO" not in said
    if view == "panel":
        assert "valset 0.000 (all 16) -> 1.000 (all 16)" in " ".join(said.split())
        assert said.count("\x1b[?25l") == said.count("\x1b[?25h") == 1  # The cursor is hidden and shown again.


def _all_of(descriptor: int) -> bytes:
    """Return what was written to a terminal that is closed on the other side."""
    read = b""
    try:
        while part := os.read(descriptor, 4096):
            read += part
    except OSError:  # Linux says so at its end.
        pass
    return read


def test_run_with_hostile_replies_is_watched_to_its_end(make: Any) -> None:
    def propose(system: str, user: str) -> str:
        return fields(edits='ADD "When the topic is alpha, answer 11. \x1b[2J[/]" BECAUSE \x1b[31m[bold]')

    console = Console(file=io.StringIO(), force_terminal=True, width=80, height=40)
    with dspy.context(lm=scripted_lm(world(proposer=propose))):
        program = make(listeners=[LiveView(console)]).compile(dspy.Predict(Oracle), trainset=examples(40))
    assert program.detailed_results.history
    assert isinstance(console.file, io.StringIO)
    assert "the live view failed" not in console.file.getvalue()
    assert "\x1b[2J" not in console.file.getvalue()


def test_handler_that_looks_the_stream_up_each_time_is_left_alone() -> None:
    handler = logging._StderrHandler()  # type: ignore[attr-defined]  # As Ray has it.
    logger = logging.getLogger("tests.follows")
    logger.addHandler(handler)
    try:
        drawn(make_step(Edit("delete", 0)))
    finally:
        logger.removeHandler(handler)
    assert handler.stream is sys.stderr
