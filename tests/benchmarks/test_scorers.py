from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_dlpo.benchmarks.tasks.equivalence import Equivalence
from dspy_dlpo.benchmarks.tasks.scorers import (
    BRACKETS,
    LATEX,
    NUMBER,
    OPTION,
    TRUE_FALSE,
    VALID,
    WORDS,
    WORLD_NUMBER,
    YES_NO,
    ReasoningGymScorer,
    Scorer,
)

DATA = Path(__file__).parents[3] / "shared" / "data"
OPTIONS = "Which animal barks?\nOptions:\n(A) a cat\n(B) a dog\n(C) a big dog"

ACCEPTED_NUMBERS = [
    ("18", "18"),
    ("18.", "18"),
    ("18.0", "18"),
    ("18.00", "18"),
    ("+18", "18"),
    ("$18", "18"),
    ("18$", "18"),
    (r"\$18.00", "18"),
    ("$ 18", "18"),
    ("18 dollars per day", "18"),
    ("18%", "18"),
    ("18 m²", "18"),
    ("18 m", "18"),
    ("18 cm^2", "18"),
    ("1,234", "1234"),
    ("1234", "1,234"),
    ("$1,234,567.50", "1234567.5"),
    ("1 234".replace(" ", "\u202f"), "1234"),
    (r"10{,}080", "10080"),
    (r"10,\!080", "10080"),
    ("**18**", "18"),
    ("`18`", "18"),
    ("'18'", "18"),
    ("$18$", "18"),
    (r"\boxed{18}", "18"),
    (r"9 eggs at 2 dollars make $\boxed{18\text{ dollars}}$.", "18"),
    ("#### 18", "18"),
    ("Answer: 18", "18"),
    ("She sells 9 eggs at $2. The answer is 18.", "18"),
    ("The final answer is: $18", "18"),
    ("Janet makes 18 dollars every day.", "18"),
    ("x = 18", "18"),
    ("9 * 2 = 18", "18"),
    ("(16 - 3 - 4) × $2 = $18", "18"),
    ("-7", "-7"),
    ("−7", "-7"),
    ("–7", "-7"),
    ("minus 7", "-7"),
    ("-$7", "-7"),
    ("$-7", "-7"),
    ("x = -7", "-7"),
    (".5", "0.5"),
    ("283604000000000001", "283604000000000001"),
    ("1" + "0" * 39 + "7", "1" + "0" * 39 + "7"),
]
REFUSED_NUMBERS = [
    ("", "18"),
    ("none", "18"),
    ("eighteen", "18"),
    ("81", "18"),
    ("180", "18"),
    ("1.8", "18"),
    ("18.01", "18"),
    ("-18", "18"),
    ("7", "-7"),
    ("18 or 19", "18"),
    ("17, 18", "18"),
    ("17 18", "18"),
    ("16, 3, 4 and 18", "18"),
    ("between 17 and 18", "18"),
    ("16 - 3 - 4 = 9 and 9 * 2 = 18 and 18 / 1", "18"),
    ("36/2", "18"),
    ("9 * 2", "18"),
    ("18 = 9 * 2", "18"),
    ("2 * 9 = 18 = 17", "18"),
    ("The answer is not 18", "18"),
    ("It isn't 18", "18"),
    ("about 18", "18"),
    ("≈ 18", "18"),
    ("less than 18", "18"),
    ("18 thousand", "18"),
    ("18 million dollars", "18"),
    ("18k", "18"),
    ("18M", "18"),
    ("18 dozen", "18"),
    ("18½", "18"),
    ("18 and a half", "18"),
    ("18²", "18"),
    ("18^2", "18"),
    ("18!", "18"),
    ("1.8e1", "18"),
    ("1.8 x 10^1", "18"),
    ("18:30", "18"),
    ("1,8", "18"),
    ("1,23", "123"),
    ("12,34,567", "1234567"),
    ("1.234", "1234"),
    ("1,234.5", "1234"),
    (r"\boxed{18} or \boxed{19}", "18"),
    ("The answer is 19, and not 18.", "18"),
    ("Answer: 19 because 20 - 2 = 18", "18"),
    ("The answer is 18. No, the answer is 19.", "18"),
    ("x != 18", "18"),
    *[(text, "18") for text in ("√18", "sqrt(18)", "18 squared", "18 minus one", "twice 18", "a third of 18")],
    *[(text, "18") for text in ("18 tenths", "18 lakh", "18 crore", "18 bn", "18th", "– 18", "over 18", "under $18")],
    *[(text, "18") for text in ("close to 18", "ca. 18", "maybe 18", "18?", "18+")],
    ("283604000000000002", "283604000000000001"),
    ("1" + "0" * 39 + "8", "1" + "0" * 39 + "7"),
]
ACCEPTED_WORLD_NUMBERS = [
    *[
        ("1234", text)
        for text in ("1234", "1,234", "1.234", "1 234", "1\u00a0234", "1\u202f234", "1'234", "১২৩৪", "१२३४")
    ],
    *[
        ("1234", text)
        for text in ("๑๒๓๔", "౧౨౩౪", "١٢٣٤", "１２３４", "１，２３４", "১,২৩৪", "1.234,00", "1,234.00", "1 234,0")
    ],
    *[
        ("18", text)
        for text in ("18 Dollar", "18 dólares al día", "18 долларов", "18 ডলার", "18ドル", "18美元", "18 ดอลลาร์")
    ],
    *[
        ("18", text)
        for text in ("১৮", "๑๘", "౧౮", "Die Antwort ist 18.", "La respuesta es 18", "Ответ: 18", "উত্তর হল ১৮।")
    ],
    *[
        ("18", text)
        for text in ("答案是18。", "答え：18", "คำตอบคือ 18", "Jibu ni 18", "సమాధానం 18", "18,00 €", "18.00", "US$18")
    ],
    *[("123456", text) for text in ("1,23,456", "১,২৩,৪৫৬", "123.456", "123 456")],
    ("1234567", "1.234.567"),
    ("-5", "−5"),
    ("-5", "-৫"),
    ("18", "18 pommes au total"),
    *[("-5", text) for text in ("минус 5", "menos 5", "负5", "マイナス5")],
]
REFUSED_WORLD_NUMBERS = [
    *[
        ("1234", text)
        for text in ("1.235", "12.34", "1,23.4", "1.2.3.4", "1 2 3 4", "1234 oder 1235", "১২৩৫", "123", "12,34")
    ],
    *[
        ("18", text)
        for text in ("18,5", "18.5", "1.8", "18.000", "18,000", "১৯", "81", "8 1", "achtzehn", "восемнадцать")
    ],
    *[
        ("18", text)
        for text in ("", "十八", "18万", "18千", "18½", "17 и 18", "9 × 2", "36/2", "-18", "≈18", "18²", "৯ + ৯")
    ],
    *[("123456", text) for text in ("1,2,3,456", "1.23.456", "12.3456", "1,23,45,6")],
    *[("18", text) for text in ("nicht 18", "не 18", "18 тысяч", "18 tausend", "18 mille", "18 Millionen", "18 लाख")],
    *[("18", text) for text in ("18 హజార్", "18 พัน", "18 elfu", "etwa 18", "около 18", "约18", "18 et demi", "18の半分")],
    *[("5", text) for text in ("минус 5", "menos 5", "负5", "マイナス5")],
    ("-5", "5"),
    ("-5", "৫"),
]
ACCEPTED_OPTIONS = [
    *["(B)", "B", "b", "(b)", "[B]", "B.", "B)", "(B).", "**(B)**", "`(B)`", "'B'", '"(B)"', " (B)\n", "Option B"],
    *["option (B)", "Choice B.", "Answer: B", "The answer is (B).", "The correct answer is B", "So the answer is: (B)"],
    *[
        r"\boxed{B}",
        r"\boxed{(B)}",
        r"$\boxed{\text{(B)}}$",
        r"\boxed{\textbf{(B)}}",
        "(B) a dog",
        "(B) A dog.",
        "B. a dog",
    ],
    *[
        "B: a dog",
        "(B): a dog",
        "(B) - a dog",
        "B) a dog",
        "**B.** a dog",
        "#### B",
        "A dog barks. The answer is (B) a dog",
    ],
]
REFUSED_OPTIONS = [
    *["", "A", "(A)", "(C)", "D", "(Z)", "AB", "BB", "(A) or (B)", "(A), (B)", "A/B", "(A) and (B)", "B, C", "neither"],
    *[
        "a dog",
        "A dog",
        "dog",
        "(B) a cat",
        "(A) a dog",
        "B. a big dog",
        "The answer is not (B)",
        "not B",
        "Option 2",
        "2",
    ],
    *[
        "(B) because dogs bark",
        "B is right, I think",
        "Be",
        "(B) (C)",
        r"\boxed{A}",
        r"\boxed{B} \boxed{C}",
        "(C) a big dog",
    ],
    *[
        "A: not a cat but (B)",
        "The answer is (B). No, the answer is (C).",
        "I choose neither (A) nor (B)",
        "<B>",
        "both",
    ],
]
# {0} is the right word, {1} the wrong one.
ACCEPTED_WORDS = [
    *[
        "{0}",
        "{0}.",
        "{0}!",
        " {0} ",
        "\n{0}\n",
        "**{0}**",
        "*{0}*",
        "_{0}_",
        "`{0}`",
        "'{0}'",
        '"{0}"',
        "“{0}”",
        "{0} .",
    ],
    *[
        "Answer: {0}",
        "Answer:{0}",
        "answer is {0}",
        "The answer is {0}.",
        "The final answer is: {0}",
        "the answer = {0}",
    ],
    *["So the answer is **{0}**.", r"\boxed{{{0}}}", r"$\boxed{{\text{{{0}}}}}$", r"\text{{{0}}}", "#### {0}", "«{0}»"],
    *["First not {1}.\nAnswer: {0}", "**Answer:** {0}", "Final answer: `{0}`.", "‘{0}’", "({0})"],
]
REFUSED_WORDS = [
    *[
        "",
        "{1}",
        "{1}.",
        "**{1}**",
        "{0} or {1}",
        "{0}/{1}",
        "{0}, {1}",
        "{0} {1}",
        "not {0}",
        "The answer is not {0}",
        "?",
    ],
    *[
        "{0}, because it follows",
        "{0} and {0}",
        "{0}{0}",
        "probably {0}",
        "maybe",
        "1",
        "0",
        "{1}. No: {0}",
        "x{0}",
        "{0}x",
    ],
    *[
        "Answer: {1}",
        "The answer is {0}. No, the answer is {1}.",
        r"\boxed{{{1}}}",
        r"\boxed{{{0}}} \boxed{{{1}}}",
        "(A)",
    ],
    *["{0}?", "un{0}", "It could be {0}", "- {0}\n- {1}", "if so {0}", "I think the opposite of {1}", "[{0}|{1}]"],
]
ACCEPTED_LISTS = [
    *[
        "ant bee cat",
        "ant, bee, cat",
        "ant,bee,cat",
        "ant; bee; cat",
        "ant\nbee\ncat",
        "1. ant\n2. bee\n3. cat",
        "Ant Bee Cat",
    ],
    *[
        "1) ant\n2) bee\n3) cat",
        "- ant\n- bee\n- cat",
        "* ant\n* bee\n* cat",
        "• ant\n• bee\n• cat",
        "['ant', 'bee', 'cat']",
    ],
    *[
        '["ant", "bee", "cat"]',
        "ant, bee, and cat",
        "ant, bee and cat",
        "ant  bee   cat",
        " ant bee cat ",
        "ant bee cat.",
    ],
    *[
        "Sorted: ant bee cat",
        "Sorted list: ant, bee, cat",
        "The sorted words are: ant bee cat",
        "ANT BEE CAT",
        "ant\tbee\tcat",
    ],
    *[
        "The answer is ant bee cat",
        "Answer: ant bee cat.",
        "**ant bee cat**",
        "`ant bee cat`",
        '"ant bee cat"',
        "ant,\nbee,\ncat",
    ],
    *[
        r"\boxed{ant bee cat}",
        r"\boxed{\text{ant bee cat}}",
        "'ant' 'bee' 'cat'",
        "(ant, bee, cat)",
        "In order: ant bee cat",
    ],
]
REFUSED_LISTS = [
    *[
        "",
        "ant",
        "ant bee",
        "bee cat",
        "cat bee ant",
        "ant cat bee",
        "bee ant cat",
        "ant bee cat dog",
        "ant ant bee cat",
        "1 2 3",
    ],
    *[
        "ant bee bee",
        "antbeecat",
        "ant-bee-cat",
        "ant bee cat cat",
        "ants bee cat",
        "an bee cat",
        "ant > bee > cat",
        "a b c",
    ],
    *[
        "the words are ant bee cat",
        "ant before bee before cat",
        "ant bee cat, as asked",
        "ant, bee, or cat",
        "none",
        "...",
    ],
    *[
        "The answer is not ant bee cat",
        "ant bee cat\n\nI sorted them.",
        "1. cat 2. bee 3. ant",
        "ant bee c",
        "ant bee cats",
    ],
    *[r"\boxed{ant bee}", "Answer: bee ant cat", "and ant bee cat", "ant=bee=cat", "ant bee 3 cat", "ant/bee/cat"],
]
ACCEPTED_BRACKETS = [
    *[
        "] ) }",
        "])}",
        " ] ) } ",
        "] )}",
        "]\n)\n}",
        "], ), }",
        "'] ) }'",
        '"] ) }"',
        "`] ) }`",
        "**] ) }**",
        "Answer: ] ) }",
    ],
    *[
        "The answer is ] ) }",
        "The answer is: ])}",
        "The answer is ] ) }.",
        "#### ] ) }",
        "“] ) }”",
        "`]` `)` `}`",
        "']', ')', '}'",
    ],
    *[
        "]  )  }",
        "]\t)\t}",
        "] ) }\n",
        "The final answer is `] ) }`",
        "Answer:\n] ) }",
        "*] ) }*",
        "$] ) }$",
        "] , ) , }",
    ],
    *["The missing part is closed. Answer: ] ) }", "] ) } .", "“]”, “)”, “}”", "answer = ] ) }", "'])}'", "_] ) }_"],
]
REFUSED_BRACKETS = [
    *[
        "",
        "]",
        "] )",
        ") }",
        "} ) ]",
        "] } )",
        "] ) } }",
        "] ] ) }",
        "[ ( {",
        "{ ( [",
        "] ) >",
        "( ) [ ]",
        "{ ( [ ] ) }",
        "] ) } ]",
    ],
    *[
        "close all three",
        "three",
        "] ) } and nothing else",
        "] then ) then }",
        "] ) } or ] ) >",
        "1. ] 2. ) 3. }",
        "<ans>] ) }</ans>",
    ],
    *[
        "not ] ) }",
        "] ) 3",
        "] ) ｝",
        "The answer is ] )",
        "Answer: } ) ]",
        "] ( }",
        ") ] }",
        "}",
        ">",
        "] ) } : done",
        "right: ] ) }",
    ],
]
ACCEPTED_LATEX = [
    (r"\frac{1}{2}", r"\frac{1}{2}"),
    (r"\frac{1}{2}", r"\boxed{\frac{1}{2}}"),
    (r"\frac{1}{2}", r"Hence the sum is $\boxed{\dfrac{1}{2}}$."),
    (r"\frac{1}{2}", "1/2"),
    (r"\frac{1}{2}", "$0.5$"),
    (r"\frac{1}{2}", r"\frac12"),
    (r"\frac{1}{2}", r"The answer is $\frac{1}{2}$."),
    (r"\frac43", r"\[\frac{4}{3}\]"),
    ("27", "27.0"),
    ("27", r"\(27\)"),
    ("27", "x = 27"),
    ("12", r"12\text{ cm}"),
    ("12", r"\boxed{12~\text{cm}}"),
    (r"10,\!080", "10080"),
    (r"10,\!080", "10,080"),
    (r"\$32,\!348", "$32,348"),
    (r"\$36", "36"),
    (r"145^\circ", "145"),
    (r"145^\circ", r"145^{\circ}"),
    (r"3\sqrt{13}", r"\sqrt{117}"),
    (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}"),
    (r"288 \pi", r"288\pi"),
    ("2k+2", "2(k+1)"),
    ("x^3+3x-6", "3x - 6 + x^3"),
    ("(a+5)(b+2)", "ab + 2a + 5b + 10"),
    ("6+9i", "9i + 6"),
    ("y = 2x + 3", "y=3+2x"),
    ("3, 5, 7", "7, 5, 3"),
    ("3, 5, 7", r"\{3,5,7\}"),
    (r"1 \pm \sqrt{19}", r"1+\sqrt{19}, 1-\sqrt{19}"),
    ("(-2,1)", r"\left(-2, 1\right)"),
    (r"(2,\infty)", r"(2, \infty)"),
    (r"(0,9) \cup (9,36)", r"(0,9)\cup(9,36)"),
    (r"\begin{pmatrix} 1/5 \\ -18/5 \end{pmatrix}", r"\begin{pmatrix} \frac15 \\ -\frac{18}{5} \end{pmatrix}"),
    (r"1\frac{4}{5}", r"\frac{9}{5}"),
    (".0000672", r"6.72 \times 10^{-5}"),
    ("52_8", "52_{8}"),
    (r"\text{Evelyn}", "Evelyn"),
    (r"\text{ellipse}", r"\boxed{\text{ellipse}}"),
    (r"\text{(B)}", "B"),
    (r"\text{even}", r"\textbf{Even}"),
]
REFUSED_LATEX = [
    ("27", ""),
    ("27", "28"),
    ("27", "-27"),
    ("27", "27x"),
    ("27", "x + 27"),
    ("27", "27!"),
    ("27", "27 or 28"),
    ("27", "27, 28"),
    ("27", r"\boxed{27} or \boxed{28}"),
    ("27", r"$26$ or $27$"),
    ("27", r"\approx 27"),
    ("27", "about 27"),
    ("27", "not 27"),
    ("27", r"27 \ne 28"),
    ("27", "I am sure that it is 27 or some more"),
    ("27", "twenty-seven"),
    ("27", "$x > 27$"),
    (r"\frac{1}{3}", "0.333"),
    (r"\frac{1}{3}", "0.3333333333"),
    (r"\frac{14}{3}", r"\frac{3}{14}"),
    (r"288 \pi", "904.78"),
    (r"\frac{20000}{\pi}", "6366.2"),
    (r"\sqrt{51}", "7.14"),
    (r"\sqrt{51}", "51"),
    ("(-2,1)", "(1,-2)"),
    ("(-2,1)", "-2, 1"),
    ("(-2,1)", "[-2,1]"),
    ("-2,1", "(-2,1)"),
    (r"(2,\infty)", r"[2,\infty)"),
    ("3, 5, 7", "3, 5"),
    ("3, 5, 7", "3, 5, 7, 9"),
    (r"1 \pm \sqrt{19}", r"1 + \sqrt{19}"),
    ("x^3+3x-6", "x^3+3x-7"),
    ("y = -2x", "x = -2y"),
    ("6+9i", "6-9i"),
    ("52_8", "52_7"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 2 \\ 1 \end{pmatrix}"),
    (r"\text{Evelyn}", "Angela"),
    (r"\text{even}", "neve"),
    (r"\text{(B)}", "A"),
    (r"\frac{1}{2}", r"\frac{1}{"),
]


def right(scorer: Scorer, gold: str, answer: str, question: str = OPTIONS) -> bool:
    example = dspy.Example(question=question, answer=gold).with_inputs("question")
    score = scorer(example, dspy.Prediction(answer=answer)).score
    assert score in (0.0, 1.0)
    return bool(score)


def swapped(rows: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(gold, answer) for answer, gold in rows]


KINDS = {
    "number": (NUMBER, swapped(ACCEPTED_NUMBERS), swapped(REFUSED_NUMBERS)),
    "world number": (WORLD_NUMBER, ACCEPTED_WORLD_NUMBERS, REFUSED_WORLD_NUMBERS),
    "option": (OPTION, [("(B)", text) for text in ACCEPTED_OPTIONS], [("(B)", text) for text in REFUSED_OPTIONS]),
    "words": (WORDS, [("ant bee cat", text) for text in ACCEPTED_LISTS], [("ant bee cat", t) for t in REFUSED_LISTS]),
    "brackets": (BRACKETS, [("] ) }", text) for text in ACCEPTED_BRACKETS], [("] ) }", t) for t in REFUSED_BRACKETS]),
    "latex": (LATEX, ACCEPTED_LATEX, REFUSED_LATEX),
    **{
        word: (
            scorer,
            [(word, text.format(word, other)) for text in ACCEPTED_WORDS],
            [(word, text.format(word, other)) for text in REFUSED_WORDS],
        )
        for scorer, word, other in [
            (YES_NO, "Yes", "No"),
            (YES_NO, "No", "Yes"),
            (TRUE_FALSE, "True", "False"),
            (TRUE_FALSE, "False", "True"),
            (VALID, "valid", "invalid"),
            (VALID, "invalid", "valid"),
        ]
    },
}


def table(side: int) -> list[Any]:
    return [
        pytest.param(parts[0], gold, answer, id=f"{kind}: {gold} <- {answer}")
        for kind, parts in KINDS.items()
        for gold, answer in parts[side]
    ]


@pytest.mark.parametrize(("scorer", "gold", "answer"), table(1))
def test_right_answer_in_another_spelling_is_accepted(scorer: Scorer, gold: str, answer: str) -> None:
    assert right(scorer, gold, answer)


@pytest.mark.parametrize(("scorer", "gold", "answer"), table(2))
def test_wrong_or_unclear_answer_is_refused(scorer: Scorer, gold: str, answer: str) -> None:
    assert not right(scorer, gold, answer)


def test_every_kind_of_answer_has_thirty_hard_ones_to_accept_and_to_refuse() -> None:
    assert {
        kind: min(len(parts[1]), len(parts[2])) for kind, parts in KINDS.items() if min(map(len, parts[1:])) < 30
    } == {}


@pytest.mark.parametrize(
    ("scorer", "gold", "answer", "feedback"),
    [
        pytest.param(NUMBER, "18", "18.", "The answer is right.", id="right"),
        pytest.param(
            NUMBER,
            "18",
            "eighteen",
            "The answer was 'eighteen'. The answer must be a single number in digits, such as 42, with nothing else "
            "but its unit. The right answer is '18'.",
            id="wrong form",
        ),
        pytest.param(
            NUMBER,
            "18",
            "19",
            "The answer was '19'. The form is right, the value is not. The right answer is '18'.",
            id="wrong value",
        ),
        pytest.param(
            OPTION,
            "(B)",
            "",
            "The answer was empty. The answer must be the letter of one option in brackets, such as (A). The right "
            "answer is '(B)'.",
            id="empty",
        ),
        pytest.param(
            WORDS,
            "ant bee cat",
            "ant cat cat",
            "The answer was 'ant cat cat'. The words are not those of the question; missing: bee; too many: cat. The "
            "right answer is 'ant bee cat'.",
            id="wrong words",
        ),
        pytest.param(
            WORDS,
            "ant bee cat",
            "ant cat bee",
            "The answer was 'ant cat bee'. The order is wrong: 'bee' must come where 'cat' stands. The right answer is "
            "'ant bee cat'.",
            id="wrong order",
        ),
        pytest.param(
            BRACKETS,
            ") }",
            "{ ( ) }",
            "The answer was '{ ( ) }'. Only the missing brackets are asked for, not what stands in the question. The "
            "right answer is ') }'.",
            id="whole sequence",
        ),
        pytest.param(
            LATEX,
            "52_8",
            "52_7",
            "The answer was '52_7'. The base is wrong. The right answer is '52_8'.",
            id="wrong base",
        ),
    ],
)
def test_feedback_tells_form_from_value_and_gives_the_right_answer(
    scorer: Scorer, gold: str, answer: str, feedback: str
) -> None:
    example = dspy.Example(question=OPTIONS, answer=gold).with_inputs("question")
    assert scorer(example, dspy.Prediction(answer=answer)).feedback == feedback


def test_feedback_shows_only_the_beginning_of_a_long_answer() -> None:
    example = dspy.Example(question="?", answer="18")
    assert len(NUMBER(example, dspy.Prediction(answer="word " * 1000)).feedback) < 400


@pytest.mark.parametrize("prediction", [dspy.Prediction(), dspy.Prediction(answer=None), dspy.Prediction(answer=18)])
def test_prediction_without_text_is_scored_too(prediction: dspy.Prediction) -> None:
    score = NUMBER(dspy.Example(question="?", answer="18"), prediction).score
    assert score == (prediction.get("answer") == 18)


def test_example_whose_own_answer_has_another_form_is_an_error() -> None:
    with pytest.raises(ValueError, match="`answer` of an example must be the letter of one option"):
        OPTION(dspy.Example(question=OPTIONS, answer="a dog"), dspy.Prediction(answer="(B)"))


def test_expressions_are_compared_in_threads_as_in_the_main_thread() -> None:
    rows = [(*row, True) for row in ACCEPTED_LATEX] + [(*row, False) for row in REFUSED_LATEX]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda row: right(LATEX, row[0], row[1]) == row[2], rows))
    assert all(found)


@pytest.mark.parametrize("answer", ["9^{9^{9^9}}", "((9!)!)!", r"2^{99999999999}", "(10^{999999})^{999999}"])
def test_answer_that_cannot_be_computed_costs_little_and_the_next_is_compared(answer: str) -> None:
    compare = Equivalence(seconds=1)
    assert compare("2", answer) is not True
    assert compare("2", "4/2") is True
    compare.close()


@pytest.mark.parametrize("name", ["chain_sum", "letter_counting", "spell_backward", "number_sorting", "gcd"])
@pytest.mark.parametrize(
    ("form", "accepted"),
    [
        ("{}", True),
        (" {}\n", True),
        ("{} or 3", False),
        ("{}{}", False),
        ("", False),
        ("foo", False),
        ("not {}", False),
    ],
)
def test_reasoning_gym_answers_are_judged_by_its_own_checker(name: str, form: str, accepted: bool) -> None:
    dataset = pytest.importorskip("reasoning_gym", reason="needs reasoning_gym, of the `test` extra").create_dataset(
        name, seed=0, size=3
    )
    for index, entry in enumerate(dataset):
        example = dspy.Example(question=entry["question"], answer=entry["answer"], dspy_id=str(index))
        answer = form.format(entry["answer"], entry["answer"])
        assert ReasoningGymScorer(dataset)(example, dspy.Prediction(answer=answer)).score == accepted


def test_reasoning_gym_answer_that_its_checker_cannot_read_is_wrong_and_said_to_be() -> None:
    dataset = pytest.importorskip("reasoning_gym", reason="needs reasoning_gym, of the `test` extra").create_dataset(
        "prime_factorization", seed=0, size=1
    )
    example = dspy.Example(question="?", answer=dataset[0]["answer"], dspy_id="0")
    verdict = ReasoningGymScorer(dataset)(example, dspy.Prediction(answer="I do not know"))
    assert verdict.score == 0
    assert "not the form" in verdict.feedback
