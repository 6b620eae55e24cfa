"""A small task that several examples share: which team of a shop answers a customer's message?"""

import random

import dspy

TEAMS = {
    "parcel": "Dock",
    "refund": "Till",
    "password": "Gate",
    "screen": "Bench",
    "invoice": "Ledger",
    "question": "Support",
}
MESSAGES = [
    "Where is my {}?",
    "Hello, I am writing about my {}.",
    "I have been waiting for news of my {}.",
    "Nobody told me what is happening with my {}.",
    "Please look at my {} again.",
    "Something is wrong with my {}.",
    "This is the second time that I ask about my {}!",
    "Could somebody help me with my {} today?",
    "Last week I wrote to you about my {}.",
]


class Route(dspy.Signature):
    """Name the team that answers the message."""

    message: str = dspy.InputField()
    team: str = dspy.OutputField()


def review(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> dspy.Prediction:
    """Score 1 for the right team, else 0 and a note with the rule of the house."""
    right = prediction.team == example.team
    feedback = "" if right else f"Send messages about the {example.topic} to {example.team}."
    return dspy.Prediction(score=float(right), feedback=feedback)


def load_tickets() -> tuple[list[dspy.Example], list[dspy.Example], list[dspy.Example]]:
    """Return train, validation and test examples: 24, 12 and 18, worded differently."""
    splits = []
    for wordings in (MESSAGES[:4], MESSAGES[4:6], MESSAGES[6:]):
        split = [
            dspy.Example(message=wording.format(topic), topic=topic, team=team).with_inputs("message")
            for wording in wordings
            for topic, team in TEAMS.items()
        ]
        random.Random(0).shuffle(split)
        splits.append(split)
    return tuple(splits)
