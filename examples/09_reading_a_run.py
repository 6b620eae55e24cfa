"""Reading a run: while it goes on, after it, and later from its folder.

On a terminal a panel shows the run; elsewhere there is a line for each step. Afterwards `detailed_results` tells where
each sentence came from, which validation examples still fail, and what each step cost; the report shows all of it as
one HTML page. A run that was given a folder can be read later without the program, also by the command
`dspy-dlpo show FOLDER`.

    python examples/09_reading_a_run.py
    python examples/09_reading_a_run.py --model openai/gpt-4o-mini
"""

import logging
import tempfile
from pathlib import Path

import dspy
from offline import helpdesk, model_argument, simulated
from tickets import Route, load_tickets, review

from dspy_dlpo import DLPOOptimizer, load_result


def main(model=None):
    dspy.configure(lm=dspy.LM(model) if model else simulated(helpdesk))
    logging.getLogger("dspy_dlpo").setLevel(logging.INFO)  # Each step is logged, whatever is shown on the terminal.
    trainset, valset, testset = load_tickets()
    program = dspy.Predict(Route)
    folder = Path(tempfile.mkdtemp(prefix="reading-a-run-"))
    optimizer = DLPOOptimizer(metric=review, num_steps=4, num_threads=4, log_dir=folder)
    optimizer.compile(program, trainset=trainset, valset=valset)

    result = load_result(folder)  # The same as `program.detailed_results`, in this process or another.
    print(f"\nIn a line: {result}")
    print(f"\nWhere each sentence came from:\n{result.explain()}")
    before, after = result.val_subscores[0], result.val_subscores[result.best_idx]
    failing = [name for name, score in after.items() if score < result.score_range[1]]
    print(f"\nValidation examples that still fail: {len(failing)} of {len(after)} {failing}")
    print(f"Those that failed before: {sum(score < result.score_range[1] for score in before.values())}")
    for record in result.history:
        print(f"Step {record.step + 1}: {record.outcome}, {record.numbers()}")
    test = result.evaluate(program, testset, metric=review)
    print(f"\nTest score {test.before:.2f} -> {test.after:.2f}, gain {test.gain}")
    print(f"The report: {result.save_report(folder / 'report.html')}")


if __name__ == "__main__":
    main(model_argument(__doc__))
