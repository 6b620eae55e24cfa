"""The simulated language models of the examples: they follow a script, so that each runs without an account.

A script sees the prompt and nothing else. The task model keeps a rule only if the instruction says it, in so many
words; the critic repeats the rules that the complaint names; the proposer adds them. `--model` puts a real model in
their place.
"""

from __future__ import annotations

import argparse
import json
import re

import dspy

from dspy_dlpo.benchmarks.simulation.scripted import Script, SimulatedEngine, field, fields, play

SIMULATED = "Every reply in this run is SIMULATED: no language model is asked. Name one with --model.\n"


def model_argument(description: str | None) -> str | None:
    """Return what the command line names with `--model`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="as DSPy names it, such as openai/gpt-4o-mini; default: simulated, offline")
    return parser.parse_args().model


def simulated(program: Script) -> dspy.LM:
    """Return a model whose replies as the program's are scripted here, and say so on the terminal."""
    print(SIMULATED)
    return dspy.LM("simulated/model", engine=ScriptEngine(program.__name__), cache=False, num_retries=0)


class ScriptEngine(SimulatedEngine):
    """Follows a script of this file, as critic and proposer too. DSPy can save it with a program."""

    def __init__(self, name: str) -> None:
        super().__init__(play(globals()[name], critic))
        self.name = name

    def dump_state(self) -> dict[str, str]:
        return {"name": self.name}

    @classmethod
    def load_state(cls, state: dict[str, str]) -> ScriptEngine:
        return cls(**state)


def critic(system: str, user: str) -> str:
    """Repeat the rules of the complaint: `RULE.` is for this instruction, `The INPUT ...: RULE.` for INPUT's maker."""
    sentences, about_inputs = [], []
    for line in re.findall(r"[^\n.]+\.", field(user, "complaint")):
        blame, _, rule = line.strip().rpartition(": ")
        source = re.match(r"The (\w+)", blame)
        if source and re.search(rf"^{source[1]}: ", field(user, "call"), re.MULTILINE) and "input_complaint" in system:
            about_inputs.append(f"{source[1]}: {rule}")
        else:
            sentences.append(rule)
    reply = {"requirements": "\n".join(sentences) or "nothing"}
    if "input_complaint" in system:
        reply["input_complaint"] = "\n".join(about_inputs) or "nothing"
    return fields(**reply)


def _last(user: str, name: str) -> str:
    """Return an input of the question itself, which follows the demos."""
    return field(user[user.rfind(f"[[ ## {name} ## ]]") :], name)


def _asked(system: str) -> str:
    """Return the last output field the prompt asks for."""
    return re.findall(r"\[\[ ## (\w+) ## \]\]", system.partition("[[ ## completed ## ]]")[0])[-1]


def helpdesk(system: str, user: str) -> str:
    """Name a team by the rules of the instruction, else as in a demo, else guess; sign a reply if told to."""
    message = _last(user, "message")
    if _asked(system) == "reply":
        signed = f" Your team {_last(user, 'team')}" if "Sign with the name of the team." in system else ""
        return fields(reply=f"Thank you, we look into it.{signed}")
    demos = re.findall(r"my (\w+)[^\[]*\[\[ ## team ## \]\]\n(\w+)", user)
    rules = re.findall(r"Send messages about the (\w+) to (\w+)\.", system)
    told = (team for topic, team in [*rules, *demos] if f"my {topic}" in message)
    return fields(team=next(told, "Support"))


def manuals(system: str, user: str) -> str:
    """Search for the words of the question, renamed as told; answer with the first passage, quoted as told."""
    if _asked(system) == "query":
        query = field(user, "question")
        for name, code in re.findall(r"Search for the (\w+) as (\w+)\.", system):
            query = query.replace(name, code)
        return fields(query=query)
    number, _, passage = json.loads(field(user, "context"))[0].partition(": ")
    source = f" ({number})" if "End with the number of the passage in brackets." in system else ""
    return fields(answer=passage + source)


def agent(system: str, user: str) -> str:
    """Look up the list price and whatever else the instruction says; answer with the price seen last."""
    if _asked(system) == "answer":
        euros = re.findall(r"(\d+) euros", user)[-1]
        answer = f"{euros}00 cents" if "Write prices in cents." in system else f"{euros} euros"
        return fields(reasoning="It is the price seen last.", answer=answer)
    article = re.findall(r"price of the (\w+)", user)[-1]
    tools = ["list_price", *re.findall(r"Ask the tool (\w+) before you finish\.", system)]
    left = [tool for tool in tools if not re.search(rf"tool_name_\d+ ## \]\]\n{tool}\b", user)]
    tool, arguments = (left[0], {"article": article}) if left else ("finish", {})
    return fields(next_thought="I look it up.", next_tool_name=tool, next_tool_args=json.dumps(arguments))
