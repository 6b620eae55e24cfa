"""What a person sees of a run on a terminal: a panel that is drawn anew while the run goes on."""

from __future__ import annotations

import logging
import sys
import threading
import time
from contextlib import ExitStack
from datetime import timedelta
from textwrap import fill
from typing import TextIO

import dspy
from rich.console import Console, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.segment import SegmentLines
from rich.text import Text

from dspy_dlpo.core.steps import RunInfo, StepRecord
from dspy_dlpo.core.visible import visible
from dspy_dlpo.descent.listeners import Listener
from dspy_dlpo.descent.outcome import RunResult
from dspy_dlpo.descent.statistics import Gain, looks, mean_interval
from dspy_dlpo.runtime.budget import Budget, amounts
from dspy_dlpo.runtime.prices import dollars
from dspy_dlpo.runtime.trace import shorten
from dspy_dlpo.views.lines import closing, opening
from dspy_dlpo.views.words import best_of, mishaps, resumed, scores_of

_PAUSE = 0.25  # Seconds from one drawing to the next.
_MAX_SHARE = 0.002  # Of the time, for drawing, while the run needs the processor itself.
_INDENT = 14
_ECHO = 4  # Columns for what a terminal echoes of Ctrl-C, twice: a line more would push the panel's top out of place.
_BAR = 20
_MAX_MARKS = 24
_MAX_EDITS = 4
_MAX_CHARS = 240
_UNITS = {
    "steps": "steps",
    "max_metric_calls": "metric calls",
    "max_lm_calls": "LM calls",
    "max_tokens": "tokens",
    "max_cost": "dollars",
    "max_seconds": "time",
}
_KINDS = {"+": ("green", "accepted"), "-": ("red", "refused"), ".": ("dim", "skipped")}


class LiveView(Listener):
    """A panel on the terminal: scores, what the run does, what is spent and left of each limit, the last change.

    A thread draws it four times a second, less often while the run computes rather than waits for models. What others
    print or log meanwhile goes above it.

    Args:
        console: Where to draw. Default: standard error.
    """

    def __init__(self, console: Console | None = None) -> None:
        # Without markup and the like: what the user's program prints passes through this console while it is drawn on.
        self._console = console or Console(stderr=True, markup=False, emoji=False, highlight=False)
        self._records: list[StepRecord] = []
        self._screen = ExitStack()
        self._stopped = self._phase = ""
        self._result: RunResult | None = None
        self._lines: RenderableType | None = None

    def on_run_start(self, run: RunInfo, budget: Budget) -> None:
        """Take the bottom of the terminal."""
        self._run, self._budget, self._start = run, budget, time.monotonic()
        for line in opening(run):
            self._print(line)
        names = {sys.stdout: "stdout", sys.stderr: "stderr"}
        logs = [(handler, handler.stream) for handler in _handlers_on(*names)]
        with ExitStack() as screen:
            live = Live(
                get_renderable=self._panel,
                console=self._console,
                auto_refresh=False,
                redirect_stdout=sys.stdout.isatty(),  # Else it would not reach the file that it is meant for.
            )
            screen.callback(live.stop)
            screen.callback(setattr, self, "_lines", None)  # So that the last drawing, on stopping, is anew.
            live.start()
            for handler, stream in logs:
                handler.setStream(getattr(sys, names[stream]))
                screen.callback(handler.setStream, stream)
            done = threading.Event()
            thread = threading.Thread(target=self._keep_drawing, args=(live, done), daemon=True)
            thread.start()
            screen.callback(thread.join)
            screen.callback(done.set)
            self._screen = screen.pop_all()

    def on_phase(self, phase: str) -> None:
        """Take in what the run does; the next drawing shows it."""
        self._phase = phase

    def on_step_end(self, record: StepRecord) -> None:
        """Take the step in; the next drawing shows it."""
        self._records.append(record)

    def on_run_end(self, result: RunResult, program: dspy.Module) -> None:
        """Leave the last state on the terminal, and print how the run ended below it."""
        self._result = result
        self._close(result.stopped)
        self._print(closing(result))

    def on_run_error(self, error: BaseException) -> None:
        """Give the terminal back."""
        self._close(type(error).__name__)

    def _print(self, line: str) -> None:
        """Print a line, broken between words."""
        self._console.print(Text(f"DLPO: {visible(line)}"))

    def _close(self, stopped: str) -> None:
        self._stopped = stopped
        self._screen.close()

    def _keep_drawing(self, live: Live, done: threading.Event) -> None:
        pause = 0.0
        while not done.wait(pause):
            began, wall, cpu = time.thread_time(), time.monotonic(), time.process_time()
            self._lines = None
            live.refresh()
            cost = time.thread_time() - began
            done.wait(_PAUSE)
            busy = time.process_time() - cpu > (time.monotonic() - wall) / 2  # It computes, and waits for no model.
            pause = cost / _MAX_SHARE - _PAUSE if busy else 0.0

    def _panel(self) -> RenderableType:
        """Return the panel as it was last drawn: rich asks for it at every print of the user's program, too."""
        lines = self._lines
        if lines is None:
            try:
                lines = SegmentLines(self._console.render_lines(self._draw(), pad=False), new_lines=True)
            except Exception as error:  # noqa: BLE001 - it would come out of the user's print.
                lines = Text(f"DLPO: the live view failed, the run goes on: {error!r}")
            self._lines = lines
        return lines

    def _draw(self) -> Panel:
        """Return the panel, of a single text: the tables of rich took three times as long."""
        lines = Text(no_wrap=True, overflow="crop")
        if self._records:
            self._tell_state(lines)
        self._tell_spending(lines)
        if tried := [record for record in self._records if record.trial is not None]:
            self._tell_change(lines, tried[-1])
        lines.rstrip()
        steps = "" if self._run.num_steps is None else f" of {self._run.num_steps}"
        now = f"ended: {_clean(self._stopped)}" if self._stopped else f"step {len(self._records) + 1}{steps}"
        if self._phase and not self._stopped:
            now += f", {_clean(self._phase)}"
        title = Text(f"DLPO {_clean(self._run.program_name)}, {now}")
        title.truncate(self._width - 6, overflow="ellipsis")  # Else rich makes the panel as wide as its title.
        return Panel(lines, title=title, title_align="left", width=self._width)

    @property
    def _width(self) -> int:
        return max(self._console.width - _ECHO, 1)

    def _tell_state(self, lines: Text) -> None:
        """Add scores, history and schedules."""
        record = self._records[-1]
        if self._result is None:
            said = f"best {best_of(record, self._run)}, student {record.student_score:.3f} there"
        else:
            said = "student {}, final choice {}".format(*scores_of(self._result))
        self._tell(lines, "valset", said)
        if before := resumed(self._run).removeprefix("resumed "):
            self._tell(lines, "resumed", before)
        if record.minibatch:
            self._tell(lines, "incumbent", f"{record.score:.3f} on the minibatch ({len(record.minibatch)} examples)")
        self._tell(lines, "last step", _outcome(record, self._run))
        if wrong := mishaps(self._result or record):
            self._tell(lines, "mind", "; ".join(wrong))
        marks = ["." if each.trial is None else "+" if each.accepted else "-" for each in self._records]
        lines.append(f"{'history':<{_INDENT}}", "dim")
        for mark in marks[-_MAX_MARKS:]:
            lines.append(mark, _KINDS[mark][0])
        counts = (f"{marks.count(mark)} {word}" for mark, (_, word) in _KINDS.items() if mark in marks)
        lines.append(f"  {', '.join(counts)}\n")
        temperatures = [each.temperature for each in self._records if each.temperature is not None]
        if temperatures:
            self._tell(lines, "temperature", f"{temperatures[-1]:.3g}")
        caps = [each.max_edits for each in self._records if each.max_edits is not None]
        if caps:
            self._tell(lines, "edits", f"at most {caps[-1]}")
        lines.append("\n")

    def _tell_spending(self, lines: Text) -> None:
        """Add what is spent, and of each limit a bar and what is left."""
        spent, limits = self._budget.spent, dict(self._budget.limits.given)
        used = {"steps": float(len(self._records)), **amounts(spent, time.monotonic() - self._start)}
        if self._run.num_steps is not None:
            limits["steps"] = self._run.num_steps
        for name, unit in _UNITS.items():
            limit = limits.get(name)
            said = "unknown" if name == "max_cost" and spent.cost is None else _amount(name, used[name])
            lines.append(f"{unit:<{_INDENT}}", "dim")
            if limit is not None:
                full = round(_BAR * min(used[name] / limit, 1))
                lines.append("━" * full, "cyan").append("─" * (_BAR - full), "bright_black").append("  ")
                said += f" of {_amount(name, limit)}, {_amount(name, max(limit - used[name], 0))} left"
            elif limits:
                lines.append(" " * (_BAR + 2))
            lines.append(f"{said}\n")

    def _tell_change(self, lines: Text, record: StepRecord) -> None:
        """Add the edits that a step tried, sentence by sentence, with their reasons."""
        assert record.trial is not None
        word, style = ("accepted", "green") if record.accepted else ("refused", "red")
        lines.append(f"\nchange of step {record.step + 1}, ").append(f"{word}\n", style)
        found = next(each for each in record.candidates if each.id == record.trial.candidate)
        sentences = {request.predictor: request.sentences for request in record.requests}
        edits = [(name, edit) for name, each in found.edits.items() for edit in each]
        for name, edit in edits[:_MAX_EDITS]:
            if len(self._run.student.instructions) > 1:
                self._tell(lines, "", name, "bold")
            if edit.op == "move":
                self._tell(lines, "~ ", sentences[name][edit.at], "yellow")
            elif edit.op != "add":
                self._tell(lines, "- ", sentences[name][edit.at], "red")
            if edit.text:
                self._tell(lines, "+ ", edit.text, "green")
            if edit.reason:
                self._tell(lines, "  ", f"because {edit.reason}", "dim")
        if len(edits) > _MAX_EDITS:
            self._tell(lines, "  ", f"and {len(edits) - _MAX_EDITS} more")

    def _tell(self, lines: Text, label: str, text: str, style: str = "") -> None:
        """Add a text behind a label; what goes on further lines is indented as far."""
        mark = label if style else f"{label:<{_INDENT}}"
        room = max(self._width - 4, 2 * _INDENT)
        filled = fill(_clean(text), room, initial_indent=mark, subsequent_indent=" " * len(mark))
        lines.append(filled[: len(mark)], style or "dim").append(f"{filled[len(mark) :]}\n", style)


def _outcome(record: StepRecord, run: RunInfo) -> str:
    """Return what came of a step in words, with an interval that allows for the race and for an early end."""
    trial = record.trial
    if trial is None:
        return record.outcome
    if not trial.differences:
        return "refused, all examples were lost"
    low, high = run.settings["score_range"]
    early = len(trial.differences) < trial.population
    chances = max(len(record.race), 1) * (len(looks(trial.population, run.settings["batch_size"])) if early else 1)
    ends = mean_interval(trial.differences, low - high, high - low, 1 - (1 - Gain.confidence) / chances)
    return f"{record.outcome}, {Gain(trial.gain, *ends, len(trial.differences))}"


def _amount(name: str, amount: float) -> str:
    if name == "max_cost":
        return dollars(amount)
    return str(timedelta(seconds=round(amount))) if name == "max_seconds" else f"{amount:,.0f}"


def _clean(text: str) -> str:
    """Return a text of a model's on one line, without what could steer a terminal, and not too long."""
    return shorten("".join(each for each in " ".join(text.split()) if each.isprintable()), _MAX_CHARS)


def _handlers_on(*streams: TextIO) -> list[logging.StreamHandler[TextIO]]:
    """Return the handlers that log to one of the streams and hold on to it.

    One that looks `sys.stderr` up each time, as Ray's does, follows by itself, and its stream cannot be set.
    """
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    return [
        handler
        for logger in loggers
        if isinstance(logger, logging.Logger)
        for handler in logger.handlers
        if isinstance(handler, logging.StreamHandler) and vars(handler).get("stream") in streams
    ]
