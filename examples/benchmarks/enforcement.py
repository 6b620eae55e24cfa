"""How often a model breaks the limits it is told, and how often code mends what it wrote.

    python -m examples.benchmarks.enforcement

Each request has an instruction with a protected sentence, a criticism, and all limits at once: one or two edits, a
random half of the sentences frozen, a limit on tokens. The model is asked for edits, in the words that a run uses,
and for the whole instruction rewritten. What it wrote is applied as it is and checked; then as `Update` applies it.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Sequence

import dspy
from dspy.utils.exceptions import AdapterParseError

from dspy_dlpo.core.edits import Edit, apply, count_edits
from dspy_dlpo.core.protection import Protection
from dspy_dlpo.core.records import Point, TextualGradient, UpdateRequest
from dspy_dlpo.core.tokens import count_tokens
from dspy_dlpo.descent.examples import Examples
from dspy_dlpo.descent.replies import read_edits, read_rewrite
from dspy_dlpo.descent.screening import screen, up_to, within_limits
from dspy_dlpo.descent.sources.proposer_edits import ProposeEdits, limits
from dspy_dlpo.descent.wording import numbered
from dspy_dlpo.policies import StepContext, TextualDropout, TextualLearningRate, TextualRegularization

RULES = ("the bound on edits", "frozen sentences", "protected text", "`max_tokens`")
INSTRUCTIONS = (
    "Answer the question about the invoice. <keep>Never reveal account numbers.</keep>\nGive amounts in euros. "
    "Name the month. Be polite.",
    "Sort the letter into a tray. Read it twice.\n<keep>Letters from courts go to the red tray.</keep>\n"
    "Ignore greetings. Answer with the colour only.",
    "Write a title for the report.\n- Use at most eight words.\n- <keep>Do not mention clients by name.</keep>\n"
    "- Use the present tense.\n- End without a full stop.",
    "Turn the recipe into a shopping list. Use one line for each thing. <keep>Mark allergens with a star.</keep>\n"
    "Give weights in grams. Leave out water and salt.",
)
CRITICISM = (
    "Say which year is meant.",
    "Write numbers as digits.",
    "Do not repeat the question.",
    "Use plain words that a child understands.",
    "If something is unclear, say what is missing.",
    "Put the most important thing first.",
    "Leave out everything that was not asked for.",
    "Answer in English, whatever the language of the text.",
)


class RewriteInstruction(dspy.Signature):  # type: ignore[misc]  # DSPy is untyped.
    """Rewrite the instruction so that the criticism no longer applies. Keep to the limits."""

    instruction: str = dspy.InputField(desc="numbered sentences")
    criticism: str = dspy.InputField(desc="what the instruction does not say yet, the most frequent first")
    limits: str = dspy.InputField(desc="what the new instruction must keep to")
    rewritten: str = dspy.OutputField(desc="the whole new instruction, without numbers")


def make_request(number: int) -> tuple[UpdateRequest, Protection, frozenset[int]]:
    """Return the request of this number, what protects its text, and the sentences that protects."""
    rng = random.Random(number)
    text = INSTRUCTIONS[number % len(INSTRUCTIONS)]
    protection = Protection((), {}, {"self": text})
    sentences, protected = protection.split("self", text)
    points = tuple(Point(each, ("train:0",)) for each in rng.sample(CRITICISM, 3))
    request = UpdateRequest("self", sentences, TextualGradient("self", points), frozen=protected)
    policies = (
        TextualLearningRate(1 + number // len(INSTRUCTIONS) % 2),
        TextualDropout(0.5),
        TextualRegularization(max_tokens=count_tokens(text) + 12),
    )
    for policy in policies:
        request = policy.narrow(request, policy.init([request]), StepContext(number, 0))
    return request, protection, protected


def broken_rules(text: str, request: UpdateRequest, protection: Protection, protected: frozenset[int]) -> set[str]:
    """Return the rules that a text breaks."""
    units, _ = protection.split("self", text)
    broken = set()
    if request.max_edits is not None and count_edits(request.sentences, units) > request.max_edits:
        broken.add("the bound on edits")
    for rule, indices in (("frozen sentences", request.frozen - protected), ("protected text", protected)):
        if any(request.sentences[index].strip() not in text for index in indices):
            broken.add(rule)
    if request.max_tokens is not None and count_tokens(text) > request.max_tokens:
        broken.add("`max_tokens`")
    return broken


def enforced(edits: Sequence[Edit], request: UpdateRequest, protection: Protection) -> str | None:
    """Return the text that keeps every rule, as `Update` makes it; None if no edit is left."""
    kept = up_to(screen(edits, request, Examples(None)).kept, request.max_edits)
    kept = within_limits(kept, request, lambda text: (text, protection.split("self", text)[0])).kept
    return apply(request.sentences, kept) if kept else None


def measure(signature: type[dspy.Signature], num_requests: int) -> Counter[str]:
    """Ask for `num_requests` updates in one form; count replies that break each rule, before and after code mends."""
    counts: Counter[str] = Counter()
    for number in range(num_requests):
        request, protection, protected = make_request(number)
        inputs = {
            "instruction": numbered(request.sentences),
            "criticism": "\n".join(f"- {point.text}" for point in request.gradient.points),
            "limits": "\n".join(limits(request)),
        }
        try:
            reply = str(dspy.Predict(signature)(**inputs)[next(iter(signature.output_fields))])
        except AdapterParseError:
            counts["no reply"] += 1
            continue
        whole = signature is RewriteInstruction
        edits = (read_rewrite if whole else read_edits)(reply, request.sentences)
        valid = [edit for edit in edits if -1 <= edit.at < len(request.sentences)]
        broken = broken_rules(reply if whole else apply(request.sentences, valid), request, protection, protected)
        text = enforced(edits, request, protection)
        counts["replies"] += 1
        counts["usable"] += text is not None
        counts.update(broken)
        counts["broke a rule"] += bool(broken)
        counts["mended"] += bool(broken) and text is not None
        if text is not None:
            counts.update(f"{rule}, mended" for rule in broken_rules(text, request, protection, protected))
    return counts


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="as DSPy names it; default: the one on this machine")
    parser.add_argument("--num-requests", type=int, default=20)
    arguments = parser.parse_args()
    if arguments.model:
        lm = dspy.LM(arguments.model)
    else:
        from dspy_dlpo.local import local_lm

        lm = local_lm(max_tokens=200)
    with dspy.context(lm=lm):
        columns = {
            name: measure(signature, arguments.num_requests)
            for name, signature in (("edits", ProposeEdits), ("whole rewrite", RewriteInstruction))
        }
    print(f"Model: {lm.model}; {arguments.num_requests} requests in each form.\n")
    print(f"| replies that | {' | '.join(columns)} |\n| --- |{' ---: |' * len(columns)}")
    rows = [(f"broke {rule}", rule) for rule in RULES] + [("broke any rule", "broke a rule")]
    rows += [
        ("of these, mended in code", "mended"),
        ("left something usable", "usable"),
        ("could be parsed", "replies"),
    ]
    for label, key in rows:
        print(f"| {label} | {' | '.join(str(counts[key]) for counts in columns.values())} |")
    after = [sum(counts[f"{rule}, mended"] for rule in RULES) for counts in columns.values()]
    print(f"| broke a rule after mending | {' | '.join(map(str, after))} |")


if __name__ == "__main__":
    main()
