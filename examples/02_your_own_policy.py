"""An eighth strategy: freeze what has stood the test of time, as one freezes the layers of a network.

python examples/02_your_own_policy.py
python examples/02_your_own_policy.py --model openai/gpt-4o-mini
"""

import argparse

import dspy

from dspy_dlpo import DLPOOptimizer, Policy, TextualLearningRate, quickstart


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="as DSPy names it; default: the one on this machine")
    arguments = parser.parse_args()
    if arguments.model:
        lm = dspy.LM(arguments.model)
    else:
        from dspy_dlpo.local import local_lm

        lm = local_lm(max_tokens=120, stop=["[[ ## completed"])
    dspy.configure(lm=lm)
    trainset, valset, _ = quickstart.load_orders()
    optimizer = DLPOOptimizer(
        metric=quickstart.review,
        policies=[TextualLearningRate(2), TextualFreezing(age=1)],
        num_steps=3,
        batch_size=4,
        max_trial_examples=8,
        num_threads=1,
    )
    optimized = optimizer.compile(dspy.Predict(quickstart.OrderLine), trainset=trainset, valset=valset[:8])
    for record in optimized.detailed_results.history:
        for request in record.requests:
            print(f"step {record.step + 1}: frozen", [request.sentences[index].strip() for index in request.frozen])
    print(optimized.signature.instructions)


if __name__ == "__main__":
    main()
