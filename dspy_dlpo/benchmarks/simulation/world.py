"""The simulated task: orders of items, each with a code that follows a hidden rule, and a model that writes the codes.

Every order names some items. Most orders name items of which the code follows a *hidden rule*: the task model gets it
right if the instruction holds the rule, and else by luck alone. The other items are plain: it gets them right unless
the instruction holds a *harmful* sentence about them. It slips now and then, and obeys the less, the longer the
instruction is. Nothing but (seed, instruction, order, sample) decides an answer, and what the instruction says of other
items changes none but by its length and by the slips.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from statistics import fmean

import dspy

from dspy_dlpo.core.sentences import split

INSTRUCTION = "Write the code of each item of the order."
CUE = re.compile(r"The code for ([a-z ]+) is wrong: ([a-z ]+)\.")
"""One complaint of the metric: an item, and what is wrong with its code."""

_ORDER = re.compile(r"Order \d+: [a-z, ]*[a-z]")
_WORDS = re.compile(r"\w+")
_VOCABULARY = """
copper paper wooden glass silver woollen rubber marble velvet leather golden plastic linen granite bamboo cotton bronze
ceramic silken iron amber wicker pewter crystal

valves lamps crates bowls spoons scarves hoses tiles curtains saddles rings buckets sheets slabs stools shirts bells
mugs ribbons hinges beads baskets plates vases

seal hull lining batch margin crown ledger spindle rim collar bracket tariff socket grain hinge label cradle gauge
flange weave bracelet mantle thread keel

count name measure list compare weigh trace check

careful precise patient thorough brief honest polite calm tidy prompt alert exact
"""
_LOOKS, _THINGS, _PARTS, _VERBS, _MANNERS = (words.split() for words in _VOCABULARY.split("\n\n"))
_RULE_FORMS = (
    "When the order names {topic}, {deed} first.",
    "For {topic}, always {deed}.",
    "Make sure to {deed} whenever {topic} are ordered.",
)


@dataclass(frozen=True)
class WorldSettings:
    """What makes the task hard. Probabilities are in [0, 1].

    Attributes:
        num_rules: Hidden rules.
        frequency: Share of the orders that need the most common rule.
        skew: The k-th rule (from 1) is needed by `frequency / k**skew` of the orders: few rules are common.
        luck: Probability that an item of which the rule is not obeyed is right all the same.
        slip: Probability that one item of an answer is wrong for no reason, drawn anew for each wording.
        dilution: Share of the obedience that each sentence costs: a rule among n sentences is obeyed with probability
            `(1 - dilution)**n`.
        harm: Probability that a harmful sentence spoils an item it is about.
        demo: Probability that a demo shows the model the rule of an item in it.
    """

    num_rules: int
    frequency: float
    skew: float
    luck: float = 0.2  # Most examples that need a rule fail without it, not all.
    slip: float = 0.05  # What a small model loses on tasks that it understands.
    dilution: float = 0.003  # 20 sentences cost 6 %; strong models lose less, small ones more.
    harm: float = 0.7  # Wrong advice is usually followed.
    demo: float = 0.1  # A code alone says little about how it was made.


@dataclass(frozen=True)
class Rule:
    """A sentence about an item: how its code is made, or, if harmful, how it is spoilt.

    Attributes:
        topic: The item.
        deed: The key phrase: an instruction that has these words holds the rule, whatever the form.
        symptom: What the metric says where the rule is missing, or, if harmful, where it is followed.
        harmful: Whether it does harm.
    """

    topic: str
    deed: str
    symptom: str
    harmful: bool = False

    def sentence(self, form: int = 0) -> str:
        """Return the rule in one of several wordings."""
        text = _RULE_FORMS[form % len(_RULE_FORMS)].format(topic=self.topic, deed=self.deed)
        return text[0].upper() + text[1:]

    def warning(self) -> str:
        """Return the sentence that takes the rule back."""
        return f"Never {self.deed}, not even for {self.topic}."


@dataclass(frozen=True)
class Reading:
    """What a text says.

    Attributes:
        told: Rules it holds, harmful ones too, and does not take back.
        warned: Rules it takes back.
        num_sentences: Its length.
    """

    told: frozenset[Rule]
    warned: frozenset[Rule]
    num_sentences: int


@dataclass(frozen=True)
class Order:
    """One example: its text, and the code of each item."""

    text: str
    codes: Mapping[str, str]

    @property
    def answer(self) -> str:
        """The right answer."""
        return write_codes(self.codes)


class World:
    """Rules, orders, metric and task model of one seed."""

    def __init__(self, settings: WorldSettings, seed: int, num_orders: int, num_plain: int = 5) -> None:
        self.settings = settings
        self.seed = seed
        self._arguments = settings, seed, num_orders, num_plain
        rng = random.Random(f"simulated world {seed}")
        number = settings.num_rules + num_plain
        looks, things, parts = (rng.sample(words, number) for words in (_LOOKS, _THINGS, _PARTS))
        topics = [f"{look} {thing}" for look, thing in zip(looks, things, strict=True)]
        self.plain = topics[settings.num_rules :]
        self.hidden: dict[str, Rule] = {}
        self.harmful: dict[str, Rule] = {}
        for topic, part in zip(topics, parts, strict=True):
            deed = f"{rng.choice(_VERBS)} the {part}"
            if topic in self.plain:
                self.harmful[topic] = Rule(topic, deed, f"it follows from the {part} which is beside the point", True)
            else:
                self.hidden[topic] = Rule(topic, deed, f"nobody seems to have thought of the {part}")
        self.rules = [*self.hidden.values(), *self.harmful.values()]
        self.causes = {(rule.topic, rule.symptom): rule for rule in self.rules}
        self.useless = [f"Always be {one} and {other}." for one in _MANNERS for other in _MANNERS if one < other]
        orders = [self._order(number, rng) for number in range(1, num_orders + 1)]
        self.orders = {order.text: order for order in orders}
        self.read = lru_cache(maxsize=4096)(self._read)

    def __reduce__(self) -> tuple[type[World], tuple[WorldSettings, int, int, int]]:
        return World, self._arguments  # They decide everything.

    def _order(self, number: int, rng: random.Random) -> Order:
        settings = self.settings
        topics = rng.sample(self.plain, rng.randint(1, 2))
        topics += [
            topic for k, topic in enumerate(self.hidden, 1) if rng.random() < settings.frequency / k**settings.skew
        ]
        rng.shuffle(topics)
        codes = {topic: f"{rng.choice('ABCDEFGH')}{rng.randint(10, 89)}" for topic in topics}
        return Order(f"Order {number}: {', '.join(topics)}", codes)

    def _read(self, text: str) -> Reading:
        words = " ".join(_WORDS.findall(text.lower()))
        warned = frozenset(rule for rule in self.rules if f"never {rule.deed}" in words)
        told = frozenset(rule for rule in self.rules if rule.deed in words) - warned
        return Reading(told, warned, sum(map(bool, map(_WORDS.search, split(text)))))

    def orders_in(self, text: str) -> list[Order]:
        """Return the orders that a text shows, each once."""
        found = (self.orders.get(each) for each in dict.fromkeys(_ORDER.findall(text)))
        return [order for order in found if order]

    def obedience(self, reading: Reading) -> float:
        """Return the probability that the model obeys a rule of the instruction."""
        return (1 - self.settings.dilution) ** reading.num_sentences

    def answer(self, instruction: str, order: Order, demos: Sequence[Order] = (), sample: int = 0) -> str:
        """Return the task model's answer; `sample` sets answers to the same prompt apart, if it is asked for several.

        Both draws of an item are the same for every instruction, so that two instructions differ where what they say
        of it differs.
        """
        reading, settings = self.read(instruction), self.settings
        obedience = self.obedience(reading)
        given = dict(order.codes)
        for topic, code in order.codes.items():
            rule, spoiler = self.hidden.get(topic), self.harmful.get(topic)
            if rule:
                known = rule in reading.told or any(self._shows(demo, topic) for demo in demos)
                obeyed = known and self.draw("obey", order.text, topic, sample) < obedience
                if not obeyed and self.draw("luck", order.text, topic, sample) >= settings.luck:
                    given[topic] = code[0] + "00"
            elif spoiler in reading.told and self.draw("harm", order.text, topic, sample) < settings.harm:
                given[topic] = code[0] + "99"
        if self.draw("slip", order.text, instruction, sample) < settings.slip:
            place = self.draw("place", order.text, instruction, sample)
            topic = list(given)[int(place * len(given))]
            given[topic] = order.codes[topic][0] + "00"
        return write_codes(given)

    def accuracy(self, instruction: str, demos: Iterable[Order], orders: Iterable[Order]) -> float:
        """Return the expected share of right answers, over all draws of `answer`."""
        reading, settings = self.read(instruction), self.settings
        obedience = self.obedience(reading)
        unseen = dict.fromkeys(self.hidden, 1.0)
        for demo in demos:
            for topic in unseen.keys() & demo.codes.keys():
                unseen[topic] *= 1 - settings.demo
        right = {topic: 1 - settings.harm * (rule in reading.told) for topic, rule in self.harmful.items()}
        for topic, rule in self.hidden.items():
            obeyed = obedience * (1.0 if rule in reading.told else 1 - unseen[topic])
            right[topic] = obeyed + (1 - obeyed) * settings.luck
        return (1 - settings.slip) * fmean(prod(right[topic] for topic in order.codes) for order in orders)

    def _shows(self, demo: Order, topic: str) -> bool:
        return topic in demo.codes and self.draw("demo", demo.text, topic) < self.settings.demo

    def draw(self, *key: object) -> float:
        """Return a number in [0, 1) that is a hash of the seed and the key."""
        content = "\0".join(map(str, (self.seed, *key))).encode()
        return int.from_bytes(hashlib.blake2b(content, digest_size=6).digest()) / 2**48

    def metric(self, example: dspy.Example, prediction: dspy.Prediction, *_: object) -> dspy.Prediction:
        """Score 1 if every code is right, else 0, and say for each wrong one what is wrong with it.

        It knows the answer and nothing of the instruction, so it blames a slip on the rule of the item.
        """
        given, complaints = read_codes(getattr(prediction, "answer", None) or ""), []
        for topic, code in read_codes(example.answer).items():
            if given.get(topic) != code:
                rule = self.hidden.get(topic)
                if given.get(topic, "").endswith("99"):
                    rule = self.harmful[topic]
                complaints.append(f"The code for {topic} is wrong: {rule.symptom if rule else 'it is another one'}.")
        feedback = " ".join(complaints) or "Every code is right."
        return dspy.Prediction(score=float(not complaints), feedback=feedback)


def write_codes(codes: Mapping[str, str]) -> str:
    """Return an answer."""
    return "; ".join(f"{topic} {code}" for topic, code in codes.items())


def read_codes(answer: str) -> dict[str, str]:
    """Return the codes of an answer by item."""
    pairs = (part.rpartition(" ") for part in answer.split("; "))
    return {topic.strip(): code for topic, _, code in pairs}
