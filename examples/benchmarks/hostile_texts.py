"""How long each function that reads foreign text takes, over hostile texts of growing length.

    python -m examples.benchmarks.hostile_texts

Foreign text is what a model, a metric or the data may hold. Each function is called on each text at 2, 8, 32 and 100
thousand characters; the table shows, for each function, the text on which it is slowest at 100 thousand, and whether
any call takes longer than 0.2 s of processor time.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import dspy

from dspy_dlpo.core.edits import Edit, align, apply
from dspy_dlpo.core.likeness import normalised, tokens
from dspy_dlpo.core.protection import Protection
from dspy_dlpo.core.records import TextualGradient, UpdateRequest
from dspy_dlpo.core.sentences import split
from dspy_dlpo.descent.critic import read_points
from dspy_dlpo.descent.examples import Examples
from dspy_dlpo.descent.replies import read_edits, read_requirements, read_rewrite
from dspy_dlpo.descent.screening import screen
from dspy_dlpo.descent.wording import fenced
from dspy_dlpo.runtime.data import prepare

LENGTHS = (2_000, 8_000, 32_000, 100_000)
MOST_SECONDS = 0.2
PIECES: Mapping[str, str] = {
    "spaces": " ",
    "line ends": "\n",
    "one letter": "x",
    "only only only": "The instruction only only only ",
    "short sentences": "A b. ",
    "short Chinese sentences": "文。",
    "Thai": "ไม่มี",
    "ADD lines": 'ADD "Be brief."\n',
    "ADD that stays open": 'ADD "Be brief\n',
    "quotes": '"',
    "bullets": "- a b\n",
    "empty bullets": "- \n",
    "numbers": "1. a\n",
    "digits": "9",
    "brackets": "[",
    "lines of brackets": "[\n",
    "closed brackets": "[[]]\n",
    "objects": '{"a":',
    "objects in lines": '{"a": 1} x\n',
    "fences": "```\n",
    "tags": "<a>",
    "closing tags": "</a> ",
    "thoughts": "<think>",
    "thoughts that end": "<think></think>",
    "keep tags": "<keep>",
    "data tags": "< / ",
    "data tag and spaces": "<" + " " * 500,
    "field marks": "[ [ # ",
    "chat marks": "<|im_start ",
    "entities": "&amp;",
    "entities that never end": "&amp;amp;amp;lt",
    "invisible": "<\u200b",
    "accents": "\u0301\u0316",
    "surrogates": "\ud83d",
    "call numbers": "[1, 2] ",
    "spaces and a letter": " " * 999 + "x",
    "CRLF": "a b.\r\n",
    "escapes": '\\"',
    "apostrophes": "['",
}
OLD = tuple(f"Rule number {number} holds for every input. " for number in range(40))


def text_of(piece: str, length: int, end: str = " x") -> str:
    """Return the piece again and again, with an end that a pattern may stumble over."""
    return (piece * (length // len(piece) + 1))[: length - len(end)] + end


def functions() -> dict[str, Callable[[str], object]]:
    """Return the functions that read foreign text, by name."""
    trainset = [dspy.Example(question=f"Input number {n} is here. " * 40, answer=f"the answer {n}") for n in range(20)]
    data = prepare([each.with_inputs("question") for each in trainset], None, 0)
    examples = Examples(data, ["Answer the question."], [dspy.Signature("question -> answer")])
    request = UpdateRequest("self", OLD, TextualGradient("self", ()), max_edits=8)
    protection = Protection(["Rule number 1 holds"], {}, {"self": "".join(OLD)})
    return {
        "split": split,
        "normalised": normalised,
        "tokens": tokens,
        "align": lambda text: align(OLD, split(text)),
        "apply": lambda text: apply(OLD, [Edit("add", 3, text), Edit("replace", 4, text)]),
        "Protection.split": lambda text: protection.split("self", text),
        "read_requirements": read_requirements,
        "read_points": lambda text: read_points(text, ["train:0", "train:1"], Counter()),
        "read_edits": lambda text: read_edits(text, OLD),
        "read_rewrite": lambda text: read_rewrite(text, OLD),
        "screen": lambda text: screen([Edit("add", 3, text)], request, examples),
        "screen a reply": lambda text: screen(read_edits(text, OLD), request, examples),
        "Examples.quoted": lambda text: examples.quoted(text[:4000]),
        "fenced": fenced,
    }


def measure(lengths: Sequence[int] = LENGTHS) -> dict[tuple[str, str], list[float]]:
    """Return the seconds of each function on each text, by length."""
    seconds: dict[tuple[str, str], list[float]] = {}
    for name, function in functions().items():
        function(text_of("warm up ", 100))
        for kind, piece in PIECES.items():
            for length in lengths:
                text = text_of(piece, length)
                begin = time.thread_time()
                function(text)
                seconds.setdefault((name, kind), []).append(time.thread_time() - begin)
    return seconds


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    seconds = measure()
    print(f"{len(PIECES)} texts. Seconds on the text that takes longest at {LENGTHS[-1]:,} characters.\n")
    print(f"| function | {' | '.join(f'{length:,}' for length in LENGTHS)} | text |")
    print(f"| --- |{' ---: |' * len(LENGTHS)} --- |")
    for name in dict.fromkeys(name for name, _ in seconds):
        kind = max((kind for of, kind in seconds if of == name), key=lambda kind: seconds[name, kind][-1])
        print(f"| {name} | {' | '.join(f'{each:.3f}' for each in seconds[name, kind])} | {kind} |")
    slow = [(name, kind, max(each)) for (name, kind), each in seconds.items() if max(each) > MOST_SECONDS]
    print(f"\n{len(slow)} of {len(seconds)} took longer than {MOST_SECONDS} s of processor time.")
    for name, kind, most in slow:
        print(f"  {name}, {kind}: {most:.2f} s")
    sys.exit(bool(slow))


if __name__ == "__main__":
    main()
