"""An eighth strategy: freeze what has stood the test of time, as one freezes the layers of a network.

python examples/06_your_own_policy.py
python examples/06_your_own_policy.py --model openai/gpt-4o-mini
"""

import dspy
from offline import helpdesk, model_argument, simulated
from tickets import Route, load_tickets, review

from dspy_dlpo import DLPOOptimizer, Policy, TextualLearningRate


class TextualFreezing(Policy):
    """Freeze sentences that have stood in the instruction for `age` updates.

    Args:
        age: Updates a sentence must have survived, at least 1.
    """

    def __init__(self, age: int = 3):
        if age < 1:
            raise ValueError(f"`age` must be at least 1, but got age={age}.")
        self.age = age

    def narrow(self, request, state, ctx):
        ages = state.get(request.predictor, {})
        old = [index for index, each in enumerate(request.sentences) if ages.get(each.strip(), 0) >= self.age]
        return request.narrowed(frozen=frozenset(old))

    def learn(self, record, state):
        ages = {
            request.predictor: {
                each.strip(): state.get(request.predictor, {}).get(each.strip(), 0) + 1 for each in request.sentences
            }
            for request in record.requests
        }
        return {**state, **ages}


def main(model=None):
    dspy.configure(lm=dspy.LM(model) if model else simulated(helpdesk))
    trainset, valset, testset = load_tickets()
    program = dspy.Predict(Route)
    optimizer = DLPOOptimizer(
        metric=review,
        policies=[TextualLearningRate(2), TextualFreezing(age=1)],
        num_steps=4,
        num_threads=4,
        verbose=False,
    )
    optimized = optimizer.compile(program, trainset=trainset, valset=valset)
    result = optimized.detailed_results
    for record in result.history:
        for request in record.requests:
            print(f"step {record.step + 1}: frozen", [request.sentences[index].strip() for index in request.frozen])
    print(f"--- instruction ---\n{optimized.signature.instructions}")
    test = result.evaluate(program, testset, metric=review)
    print(f"Test score {test.before:.2f} -> {test.after:.2f}, gain {test.gain}")


if __name__ == "__main__":
    main(model_argument(__doc__))
