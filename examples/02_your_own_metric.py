"""Metrics with written feedback: what the optimiser learns from.

A helpdesk of two predictors names the team that answers a message, and writes a first reply. Two metrics give the same
scores. `about_the_whole` says in one text what is wrong; the critic finds out which predictor that is about.
`about_each_predictor` has GEPA's five arguments and is asked about each predictor by name.

    python examples/02_your_own_metric.py
    python examples/02_your_own_metric.py --model openai/gpt-4o-mini
"""

import dspy
from offline import helpdesk, model_argument, simulated
from tickets import Route, load_tickets

from dspy_dlpo import DLPOOptimizer


class Helpdesk(dspy.Module):
    def __init__(self):
        super().__init__()
        self.route = dspy.Predict(Route)
        self.reply = dspy.Predict(dspy.Signature("message, team -> reply", "Write a short reply to the message."))

    def forward(self, message):
        team = self.route(message=message).team
        return dspy.Prediction(team=team, reply=self.reply(message=message, team=team).reply)


def on_route(example, prediction):
    right = prediction.team == example.team
    return "" if right else f"The team is wrong: Send messages about the {example.topic} to {example.team}."


def on_reply(example, prediction):
    signed = prediction.reply.rstrip(".").endswith(prediction.team)
    return "" if signed else "Sign with the name of the team."


def about_the_whole(example, prediction, trace=None):
    """DSPy's form, with a text beside the number: half for the team, half for the signature."""
    notes = [note for note in (on_route(example, prediction), on_reply(example, prediction)) if note]
    return dspy.Prediction(score=1 - len(notes) / 2, feedback=" ".join(notes))


def about_each_predictor(gold, pred, trace=None, pred_name=None, pred_trace=None):
    """GEPA's form: asked without a name it judges the whole, with a name that predictor."""
    whole = about_the_whole(gold, pred)
    if pred_name is None:
        return whole
    on = {"route": on_route, "reply": on_reply}
    return dspy.Prediction(score=whole.score, feedback=on[pred_name](gold, pred))


def main(model=None):
    dspy.configure(lm=dspy.LM(model) if model else simulated(helpdesk))
    trainset, valset, testset = load_tickets()
    program = Helpdesk()
    for metric in (about_the_whole, about_each_predictor):
        optimizer = DLPOOptimizer(metric=metric, num_steps=4, num_threads=4, verbose=False)
        optimized = optimizer.compile(program, trainset=trainset, valset=valset)
        test = optimized.detailed_results.evaluate(program, testset, metric=metric)
        print(f"{metric.__name__}: test score {test.before:.2f} -> {test.after:.2f}, gain {test.gain}")
        for name, predictor in optimized.named_predictors():
            print(f"--- {name} ---\n{predictor.signature.instructions}")
        print()


if __name__ == "__main__":
    main(model_argument(__doc__))
