"""The simulated model as critic and proposer: it works from its prompt alone, with the same skills for every optimiser.

`Writer.learn` is the one place where it is decided what the evidence in a prompt teaches. What differs between
optimisers is what they show and what they ask for: sentences, edits, or a whole instruction.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dspy_dlpo.benchmarks.simulation.scripted import field, fields
from dspy_dlpo.benchmarks.simulation.world import CUE, INSTRUCTION, Rule, World
from dspy_dlpo.core.sentences import split

_ASKED = re.compile(r"^\d+\. `(\w+)`", re.MULTILINE)
_CRITICISM = re.compile(r"^- (.*?)(?: \((\d+) times\))?$", re.MULTILINE)
_NUMBERED = re.compile(r"^(\d+)\. (.*)$", re.MULTILINE)
_MOST_EDITS = re.compile(r"At most (\d+) edit")
_FROZEN = re.compile(r"Leave as they are: ([\d, ]+)")
_HELPED = re.compile(r"^Helped before \([\d.]+\): (.*)$", re.MULTILINE)
_HARMED = re.compile(r"^Did harm before \([\d.]+\): (.*)$", re.MULTILINE)
_ATTEMPT = re.compile(r"Instruction #(\d+): (.*?)»", re.DOTALL)
_SCORE = re.compile(r"Resulting Score #(\d+): ([\d.]+)")
_FENCED = re.compile(r"```\n(.*?)\n```", re.DOTALL)
_SYSTEM_PROMPT = re.compile(r"<LM_SYSTEM_PROMPT>(.*?)</LM_SYSTEM_PROMPT>", re.DOTALL)
_VARIABLE = re.compile(r"<VARIABLE>(.*?)</VARIABLE>", re.DOTALL)
_FEEDBACK = re.compile(r"<FEEDBACK>(.*?)</FEEDBACK>", re.DOTALL)
_NOTHING_NEW = "The orders name items, and each item has a code."


@dataclass(frozen=True)
class Skills:
    """How well the simulated model criticises and writes. Probabilities are in [0, 1].

    Attributes:
        from_feedback: That one complaint of the metric teaches it the rule behind it.
        from_example: That an order with its right answer, and no complaint, teaches it one of the rules.
        guess: That a sentence written without any complaint in the prompt is a rule.
        num_guesses: Such sentences in a new instruction.
        invent_useless: That it writes a useless sentence about a complaint that it does not understand.
        invent_harmful: That it writes a harmful one.
        forget: That a whole new instruction lacks a given sentence of the old one.
        wordy: That a reply that edits or rewrites has a useless sentence more.
        combine: That it takes a given sentence of the second best attempt into the best.
    """

    from_feedback: float = 0.45  # From written notes, a 1.5B model gets most of a careful prompt's gain in three steps.
    from_example: float = 0.04  # A label says what is right, not how one gets there.
    guess: float = 0.1  # COPRO, which has nothing else, gets a quarter of a careful prompt's gain from a 1.5B model.
    num_guesses: int = 3  # Proposals without evidence are a few sentences of good advice.
    invent_useless: float = 0.2  # "Be careful" is what models say when they do not know.
    invent_harmful: float = 0.05  # Rarer than empty advice: a wrong rule drawn from one case.
    forget: float = 0.07  # Small models lose far more (they rewrite from one example), strong ones less.
    wordy: float = 0.3  # Rewritten prompts grow.
    combine: float = 0.5  # Half of what another good attempt said.


class Writer:
    """Answers the prompts of optimisers.

    Args:
        world: What there is to know.
        skills: How much of it the model understands.
    """

    def __init__(self, world: World, skills: Skills) -> None:
        self.world = world
        self.skills = skills

    def __call__(self, system: str, user: str, sample: int) -> str:
        """Return the reply to a prompt; `sample` sets replies to the same prompt apart.

        Raises:
            ValueError: If the prompt asks for something that no known optimiser asks for.
        """
        rng = random.Random(f"{self.world.seed}/{sample}/{system}/{user}")
        asked = output_fields(system)
        if not asked:
            return self._plain(system, user, rng)
        values: dict[str, str] = {}
        for name in asked:
            if name not in _ROLES:
                raise ValueError(
                    f"The simulated model cannot write the output fields {', '.join(asked)}: `{name}` must be one of "
                    f"{', '.join(_ROLES)}. Add what it means to `simulated_critic`."
                )
            values[name] = _ROLES[name](self, user, rng)
        return json.dumps(values) if "Outputs will be a JSON object" in system else fields(**values)

    def learn(self, user: str, rng: random.Random) -> tuple[list[str], set[Rule]]:
        """Return the sentences that the evidence in a prompt makes the model write, and the harm it has seen through.

        Each complaint teaches the rule behind it with probability `from_feedback`; so does each order shown with its
        right answer, about which there is no complaint, with `from_example`. What the prompt says already is not said
        again.
        """
        skills, world, said = self.skills, self.world, self.world.read(user)
        sentences: list[str] = []
        found: list[Rule] = []
        complaints = CUE.findall(user)
        for complaint in complaints:
            luck, cause = rng.random(), world.causes.get(complaint)
            if luck < skills.from_feedback:
                found += [cause] if cause else []
            elif luck < skills.from_feedback + skills.invent_harmful:
                sentences.append(rng.choice([*world.harmful.values()]).sentence(rng.randrange(3)))
            elif luck < skills.from_feedback + skills.invent_harmful + skills.invent_useless:
                sentences.append(rng.choice(world.useless))
        blamed = {topic for topic, _ in complaints}
        for order in world.orders_in(user):
            rules = [world.hidden[topic] for topic in order.codes if topic in world.hidden]
            if rules and order.answer in user and not blamed & order.codes.keys():
                found += [rng.choice(rules)] if rng.random() < skills.from_example else []
        rules = [rule for rule in dict.fromkeys(found) if not rule.harmful and rule not in said.told]
        sentences += [rule.sentence(rng.randrange(3)) for rule in rules]
        return list(dict.fromkeys(sentences)), {rule for rule in found if rule.harmful and rule in said.told}

    def criticise(self, user: str, rng: random.Random) -> str:
        """Write sentences to add, one per line."""
        return "\n".join(self._said(user, rng)) or "nothing"

    def require(self, user: str, rng: random.Random) -> str:
        """Write requirements in the form in which our critic is asked for them."""
        return "\n".join(f"- {sentence}" for sentence in self._said(user, rng)) or "NOTHING"

    def _said(self, user: str, rng: random.Random) -> list[str]:
        sentences, harm = self.learn(user, rng)
        return [*sentences, *(rule.warning() for rule in sorted(harm, key=str))]

    def advise(self, user: str, rng: random.Random) -> str:
        """Write sentences to add to the first module, as SIMBA wants them."""
        sentences = self.criticise(user, rng)
        modules = json.loads(field(user, "module_names"))
        return json.dumps({modules[0]: sentences} if sentences != "nothing" else {})

    def describe(self, user: str, rng: random.Random) -> str:
        """Describe a task, with what its examples teach, and pass on up to three sentences of earlier descriptions."""
        learnt, _ = self.learn(user, rng)
        return " ".join([_NOTHING_NEW, *learnt, *self._advice(user)[:3]])

    def rewrite(self, user: str, rng: random.Random) -> str:
        """Write a whole new instruction from the old one, the advice and the evidence of a prompt."""
        attempts = _attempts(user)
        old = attempts[0] if attempts else _first(user, *_OLD)
        other = attempts[1] if len(attempts) > 1 else ""
        taken = [unit for unit in _units(other) if rng.random() < self.skills.combine]
        advice = [text for name in _ADVICE for text in self._advice(field(user, name))]
        return self._written(old, [*taken, *advice], user, rng)

    def edit(self, user: str, rng: random.Random) -> str:
        """Write line edits: what the criticism asks for, the most frequent first, and what the limits suggest."""
        limits, read = field(user, "limits"), self.world.read
        sentences = {int(number): text for number, text in _NUMBERED.findall(field(user, "instruction"))}
        frozen = {int(number) for each in _FROZEN.findall(limits) for number in re.findall(r"\d+", each)}
        helped, harmed = (
            [unit for each in form.findall(limits) for unit in _units(each)] for form in (_HELPED, _HARMED)
        )
        wanted: Counter[str] = Counter()
        wordings: dict[frozenset[Rule] | str, str] = {}
        for text, times in [*_CRITICISM.findall(field(user, "criticism")), *((text, "1") for text in helped)]:
            wanted[wordings.setdefault(read(text).told or text, text)] += int(times or 1)
        warned = {rule for text in wanted for rule in read(text).warned}
        deleted = [number for number, text in sentences.items() if read(text).told & warned or text in harmed]
        deletable = [number for number in sentences if number not in frozen]
        if "prefer to replace or delete" in limits and deletable:
            deleted.append(rng.choice(deletable))
        said = read("\n".join(sentences.values())).told
        added = [
            text
            for text, _ in wanted.most_common()
            if not read(text).warned
            and text not in sentences.values()
            and not (read(text).told and read(text).told <= said)
        ]
        edits = [f"DELETE {number} BECAUSE it does harm" for number in dict.fromkeys(deleted) if number not in frozen]
        edits += [f'ADD "{text}" BECAUSE it was missing' for text in [*added, *self._wordy(rng)]]
        most = _MOST_EDITS.search(limits)
        return "\n".join(edits[: int(most[1])] if most else edits)

    def paraphrase(self, user: str, rng: random.Random) -> str:
        """Write the instruction in other words."""
        kept = self._kept(_first(user, *_OLD), rng)
        reworded = [
            rules[0].sentence(rng.randrange(3)) if len(rules := [*self.world.read(unit).told]) == 1 else unit
            for unit in kept
        ]
        return "\n".join([*reworded, *self._wordy(rng)]) or INSTRUCTION

    def _written(self, old: str, advice: Sequence[str], user: str, rng: random.Random) -> str:
        learnt, harm = self.learn(user, rng)
        kept = [unit for unit in self._kept(old, rng) if not self.world.read(unit).told & harm]
        evidence = CUE.search(user) or "<FEEDBACK>" in user
        guessed = [] if evidence else [self._guess(rng) for _ in range(self.skills.num_guesses)]
        told = set(self.world.read("\n".join(kept)).told)
        for sentence in [*advice, *learnt, *guessed, *self._wordy(rng)]:
            reading = self.world.read(sentence)
            if sentence not in kept and not (reading.told and reading.told <= told):
                kept.append(sentence)
                told |= reading.told
        return "\n".join(kept) or INSTRUCTION

    def _kept(self, old: str, rng: random.Random) -> list[str]:
        """Return the sentences of an instruction that a rewrite does not forget; it never forgets the task itself."""
        return [unit for unit in _units(old) if unit == INSTRUCTION or rng.random() >= self.skills.forget]

    def _guess(self, rng: random.Random) -> str:
        if rng.random() < self.skills.guess:
            return rng.choice([*self.world.hidden.values()]).sentence(rng.randrange(3))
        return rng.choice(self.world.useless)

    def _wordy(self, rng: random.Random) -> list[str]:
        return [rng.choice(self.world.useless)] if rng.random() < self.skills.wordy else []

    def _advice(self, text: str) -> list[str]:
        """Return the sentences of a text that tell somebody what to do, each once."""
        readings = ((unit, self.world.read(unit)) for unit in dict.fromkeys(_units(text)))
        return [unit for unit, reading in readings if reading.told or reading.warned or unit in self.world.useless]

    def _plain(self, system: str, user: str, rng: random.Random) -> str:
        """Answer a prompt without fields: GEPA's own, or one of TextGrad's."""
        if user.startswith("I provided an assistant with the following instructions"):
            old = _FENCED.search(user)
            return f"```\n{self._written(old[1] if old else '', (), user, rng)}\n```"
        if "<IMPROVED_VARIABLE>" in user:
            shown = _SYSTEM_PROMPT.search(user) or _VARIABLE.search(user)  # TextGrad shortens the variable.
            advice = [unit for each in _FEEDBACK.findall(user) for unit in self._advice(each)]
            written = self._written(shown[1].strip() if shown else "", advice, user, rng)
            return f"<IMPROVED_VARIABLE>{written}</IMPROVED_VARIABLE>"
        if "gradient (feedback) engine" in system:  # First about the answer, then about the instruction.
            if "<LM_SYSTEM_PROMPT>" in user:
                return self.criticise(user, rng)
            return " ".join(each[0] for each in CUE.finditer(user)) or "nothing"
        raise ValueError(f"The simulated model does not know the prompt {(system or user)[:200]!r}.")


_OLD = ("current_instruction", "basic_instruction", "instruction")
_ADVICE = ("dataset_description", "module_description")
_ROLES: dict[str, Callable[[Writer, str, random.Random], str]] = {
    "requirements": Writer.require,
    "input_complaint": lambda *_: "NOTHING",
    "edits": Writer.edit,
    "new_instruction": Writer.rewrite,
    "proposed_instruction": Writer.rewrite,
    "proposed_prefix_for_output_field": lambda *_: "Answer:",
    "variation": Writer.paraphrase,
    "discussion": lambda *_: "The worse run has wrong codes.",
    "module_advice": Writer.advise,
    "observations": Writer.describe,
    "summary": Writer.describe,
    "program_description": Writer.describe,
    "module_description": Writer.describe,
}


def output_fields(system: str) -> list[str]:
    """Return the names of the output fields that a prompt of DSPy's adapters asks for."""
    return _ASKED.findall(system.partition("Your output fields are:")[2].partition("All interactions")[0])


def _units(text: str) -> list[str]:
    return [unit.strip() for unit in split(text) if unit.strip()]


def _first(user: str, *names: str) -> str:
    return next((value for name in names if (value := field(user, name))), "")


def _attempts(user: str) -> Sequence[str]:
    """Return the instructions that COPRO has tried, the best first."""
    shown = field(user, "attempted_instructions")
    scores = {number: float(score) for number, score in _SCORE.findall(shown)}
    texts = {number: "\n".join(map(str.strip, text.splitlines())) for number, text in _ATTEMPT.findall(shown)}
    return [texts[number].strip() for number in sorted(texts, key=lambda number: (-scores[number], -int(number)))]
