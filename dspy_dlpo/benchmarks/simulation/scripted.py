"""A language model that follows a script: for studying and testing optimisers without paying for calls."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from typing import Any

import dspy
from dspy.lm15 import Message, Request, Response, Usage

from dspy_dlpo.runtime.waiting import AsyncEngine

Script = Callable[[str, str], str]
"""`(system, user) -> reply`: a reply may depend on nothing but the prompt."""


class SimulatedEngine:
    """An engine for `dspy.LM` that answers with a script and logs every request as `(system, user)`.

    Args:
        script: What it answers.
        latency: Seconds until it answers.
    """

    def __init__(self, script: Script, latency: float = 0.0) -> None:
        self.script = script
        self.latency = latency
        self.log: list[tuple[str, str]] = []
        self._lock = threading.Lock()

    def complete(self, request: Request) -> Response:
        """Answer one request; a token is a character."""
        system = request.system if isinstance(request.system, str) else "".join(p.text for p in request.system or ())
        user = "\n".join(message.text or "" for message in request.messages)
        with self._lock:
            self.log.append((system, user))
        if self.latency:
            time.sleep(self.latency)
        text = self.reply(system, user, request)
        usage = Usage(input_tokens=len(system + user), output_tokens=len(text))
        message = Message.assistant(text)
        return Response(id=None, model=request.model, message=message, finish_reason="stop", usage=usage)

    def reply(self, system: str, user: str, request: Request) -> str:
        """Return the script's reply."""
        return self.script(system, user)

    def __deepcopy__(self, memo: dict[int, Any]) -> SimulatedEngine:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("log", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, log=[], _lock=threading.Lock())


def simulated_lm(script: Script, latency: float = 0.0) -> dspy.LM:
    """Return a DSPy LM that follows a script, without cache and retries."""
    engine = SimulatedEngine(script, latency)
    return dspy.LM("simulated/model", engine=engine, async_engine=AsyncEngine(engine), cache=False, num_retries=0)


def role_of(system: str) -> str:
    """Return whose prompt it is: the `critic`'s, the `proposer`'s (for edits), the `rewriter`'s or the `program`'s."""
    if "Write the requirements that the instruction lacks" in system or "Find what they share" in system:
        return "critic"
    if "Write the whole instruction anew" in system:
        return "rewriter"
    return "proposer" if "Edit the instruction so that" in system else "program"


def fields(**values: str) -> str:
    """Return a reply in the form of DSPy's ChatAdapter."""
    parts = [f"[[ ## {name} ## ]]\n{value}" for name, value in values.items()]
    return "\n\n".join([*parts, "[[ ## completed ## ]]"])


def field(user: str, name: str) -> str:
    """Return the value of an input field in a ChatAdapter message, empty if it is not there."""
    found = re.search(rf"\[\[ ## {name} ## \]\]\n(.*?)(?=\n\n\[\[ ## |\n\nRespond with|\Z)", user, re.DOTALL)
    return found.group(1) if found else ""


def add_criticism(system: str, user: str) -> str:
    """Propose to add every sentence of the criticism, in its order."""
    said = re.findall(r"^- (.*?)(?: \(\d+ times\))?$", field(user, "criticism"), re.MULTILINE)
    return fields(edits="\n".join(f'ADD "{sentence}" BECAUSE it was missing' for sentence in said))


def keep_instruction(system: str, user: str) -> str:
    """Rewrite nothing."""
    return fields(new_instruction="NOTHING")


def play(
    program: Script, critic: Script, proposer: Script = add_criticism, rewriter: Script = keep_instruction
) -> Script:
    """Return the script in which each prompt is answered by the script of its role."""
    scripts = {"program": program, "critic": critic, "proposer": proposer, "rewriter": rewriter}
    return lambda system, user: scripts[role_of(system)](system, user)
