"""A whole run in seconds, without a model: the quickstart's task with a simulated clerk, critic and proposer.

It lies here because the simulated model does: `local` knows only real ones.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path

from dspy_dlpo.benchmarks.simulation.scripted import field, fields, play, simulated_lm
from dspy_dlpo.local.quickstart import FORM, NOTES, tune
from dspy_dlpo.views.report import save_report
from dspy_dlpo.views.result import DLPOResult

_LATENCY = 0.1  # Seconds, so that one sees the run go on.
_SLIPS = 0.1  # How often the clerk gets a part wrong although it was told how to write it.
_UNDERSTANDS = 0.5  # How often the critic finds a rule in a complaint.
_SAID = "Every reply in this run is SIMULATED: a script of a few rules, no language model. It takes about 10 seconds.\n"
_NUMBERS = {
    "two": 2,
    "three": 3,
    "four": 4,
    "five": 5,
    "six": 6,
    "seven": 7,
    "eight": 8,
    "nine": 9,
    "ten": 10,
    "dozen": 12,
}
_PLURALS = {"scarves": "scarf", "jerseys": "jersey"}
_ARTICLES = ["shirts", "belts", "jerseys", "helmets", "jackets", "vests", "aprons", "raincoats", "socks"]
_ARTICLES += ["scarves", "caps", "gloves"]
_SIZES = {"small": "S", "medium": "M", "large": "L"}
_COLOURS = ["white", "black", "green", "yellow", "blue", "grey", "orange", "red"]


def demo(log_dir: str | Path = "runs/demo", *, seed: int = 0, say: Callable[[str], None] = print) -> DLPOResult:
    """Tune the quickstart's program on a simulated model, and write the report of the run.

    Args:
        log_dir: Folder of the run.
        seed: Of the run.
        say: Gets each line.

    Returns:
        The result of the run.
    """
    say(_SAID)
    lm = simulated_lm(play(clerk, critic), latency=_LATENCY)
    result = tune(lm, lm, seed=seed, log_dir=log_dir, free_because="no model was asked", say=say)
    path = save_report(result, Path(log_dir) / "report.html")
    say(f"The report of this simulated run: {path}")
    say("The same on a real model, on this machine: dspy-dlpo quickstart")
    return result


def clerk(system: str, user: str) -> str:
    """Write a part of the order in the warehouse's notation if the instruction says how, else in the order's words."""
    message = field(user, "message")
    words = re.findall(r"[a-z]+", message.lower())
    quantity = next((word for word in words if word in _NUMBERS), "some")
    article = next((word for word in words if word in _ARTICLES), "goods")
    size = next((word for word in words if word in _SIZES), "usual")
    colour = next((word for word in words if word in _COLOURS), "plain")
    written = {
        "qty": f"qty={_NUMBERS.get(quantity)}",
        "item": f"item={_PLURALS.get(article, article.removesuffix('s'))}",
        "size": f"size={_SIZES.get(size)}",
        "col": f"col={colour}",
    }
    plain = {"qty": quantity, "item": article, "size": size, "col": colour}
    luck = random.Random(system + message)
    told = {name for name in NOTES if NOTES[name] in system and luck.random() >= _SLIPS}
    parts = [written[name] if name in told else plain[name] for name in NOTES]
    return fields(line=("; " if FORM in system else " ").join(parts))


def critic(system: str, user: str) -> str:
    """Ask for one of the rules that the complaint names, if for any: a weak model does not see everything at once."""
    complaint, luck = field(user, "complaint"), random.Random(user)
    missing = [rule for rule in (*NOTES.values(), FORM) if rule in complaint]
    understood = missing and luck.random() < _UNDERSTANDS
    return fields(requirements=luck.choice(missing) if understood else "nothing")
