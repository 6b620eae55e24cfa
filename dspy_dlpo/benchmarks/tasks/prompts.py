"""Careful instructions by a person, one for each task: what an optimiser has to measure up to."""

from __future__ import annotations

from collections.abc import Mapping

from dspy_dlpo.benchmarks.tasks.scorers import BRACKETS, NUMBER, OPTION, TRUE_FALSE, VALID, WORDS, YES_NO, Scorer

WORD_PROBLEM = (
    "Solve the problem step by step. First note what is asked and in which unit. Write each calculation on a line of "
    "its own and check it once; with large numbers, multiply digit by digit. Use every fact that matters, and none "
    "that does not. Give as the answer one number in digits, without unit, separators or words."
)
WORLD_WORD_PROBLEM = f"Read the problem in its own language. {WORD_PROBLEM} Use the digits 0 to 9."
MATH = (
    "Solve the problem step by step, and check the result by another way if there is one. Heed the form that the "
    "problem asks for: a common fraction, a base, a degree, an interval or an ordered pair. Give the exact answer, "
    r"simplified, and no decimal approximation. Write it as LaTeX in one \boxed{}, without units."
)
REASONING_GYM = (
    "Read the whole task, its examples and the form that it asks for. Work through it step by step and check the "
    "result against every rule of the task. Give as the answer only the result, in exactly the form asked for, without "
    "any explanation, quotes or extra words."
)

_ORDER = "Write down the order position by position, and use every clue. Then test each option against that order."
_SWAPS = "Note who has what. Update both parties after each swap, in the order told. Find what is asked at the end."
_BBH: Mapping[str, tuple[Scorer, str]] = {
    "boolean_expressions": (TRUE_FALSE, "Evaluate brackets first, then not, then and, then or."),
    "causal_judgement": (
        YES_NO,
        "Say what most people would say about cause and intent. A cause need not be the only one. Whoever breaks a "
        "norm is seen as the cause rather than whoever keeps it; a known and accepted harm counts as intended, a lucky "
        "accident does not.",
    ),
    "date_understanding": (
        OPTION,
        "Find the date of today first, then count from it. Mind leap years. Dates are MM/DD/YYYY.",
    ),
    "disambiguation_qa": (
        OPTION,
        "Put each person in the place of the pronoun. If only one reading makes sense, choose it; if both do, choose "
        "ambiguous.",
    ),
    "dyck_languages": (
        BRACKETS,
        "Go through the input and keep a stack of the brackets that are open. Close what is left, the last one first.",
    ),
    "formal_fallacies": (
        VALID,
        "Use the premises only. The argument is valid only if the conclusion is true whenever they all are. Mind "
        "reversed conditionals, and the difference between necessary and sufficient.",
    ),
    "geometric_shapes": (
        OPTION,
        "Count the distinct line segments of the path; M only moves. Arcs make circles, ellipses and sectors. Tell "
        "quadrangles apart by their sides and angles.",
    ),
    "hyperbaton": (
        OPTION,
        "Adjectives stand in this order: opinion, size, age, shape, colour, origin, material, purpose, then the noun.",
    ),
    "logical_deduction_five_objects": (OPTION, _ORDER),
    "logical_deduction_seven_objects": (OPTION, _ORDER),
    "logical_deduction_three_objects": (OPTION, _ORDER),
    "movie_recommendation": (
        OPTION,
        "Think what the films have in common: genre, time, audience, fame. Choose what the same people liked.",
    ),
    "multistep_arithmetic_two": (NUMBER, "Innermost brackets first, then products, then sums. Mind the signs."),
    "navigate": (
        YES_NO,
        "Keep position and direction. Without 'always face forward', a turn changes the direction of the steps after "
        "it. Say Yes only if the end is the start.",
    ),
    "object_counting": (
        NUMBER,
        "Take only the things of the kind that is asked for. Write their numbers ('a' and 'an' are 1) and add them up.",
    ),
    "penguins_in_a_table": (
        OPTION,
        "Apply every addition and removal to the table first. Read the columns by their header.",
    ),
    "reasoning_about_colored_objects": (
        OPTION,
        "List the things with their number, colour and place. Do what is told, in its order, then count or look.",
    ),
    "ruin_names": (OPTION, "Find the small change of the name that makes a joke with a meaning, not one without."),
    "salient_translation_error_detection": (
        OPTION,
        "Compare source and translation piece by piece: names, numbers, modifiers, negation, facts, omissions.",
    ),
    "snarks": (OPTION, "The sarcastic statement praises what nobody would praise, or means the reverse of its words."),
    "sports_understanding": (YES_NO, "Say Yes if the person's sport and the action, place or event go together."),
    "temporal_sequences": (OPTION, "List the times that are taken, within the opening hours. Choose the gap."),
    "tracking_shuffled_objects_five_objects": (OPTION, _SWAPS),
    "tracking_shuffled_objects_seven_objects": (OPTION, _SWAPS),
    "tracking_shuffled_objects_three_objects": (OPTION, _SWAPS),
    "web_of_lies": (YES_NO, "Go from person to person: who says of a liar that he lies tells the truth."),
    "word_sorting": (WORDS, "Compare the words letter by letter, from the first. A shorter beginning comes first."),
}
BBH: Mapping[str, tuple[Scorer, str]] = {
    subtask: (scorer, f"Answer the question. {hint} Give as the answer {scorer.form}.")
    for subtask, (scorer, hint) in _BBH.items()
}
"""Scorer and prompt of each subtask."""
