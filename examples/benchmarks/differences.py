"""Print how far DLPO is from the other optimisers, in points, over the test examples of all seeds of a comparison.

    python examples/benchmarks/differences.py examples/benchmarks/local

The intervals are those of the examples, for the prompts that were found: they do not say what other seeds would find.
The tables of `dspy-dlpo bench` have intervals over seeds, which are wide where seeds are few.
"""

from __future__ import annotations

import argparse

from dspy_dlpo import paired_interval
from dspy_dlpo.benchmarks.cells import read_cells


def main(folder: str) -> None:
    """Print a line for each other optimiser on each task, and on all together."""
    scores = {(cell.optimizer, cell.task, cell.seed): cell.scores for cell in read_cells(folder) if cell.scores}
    tasks = sorted({task for _, task, _ in scores})
    for other in dict.fromkeys(optimizer for optimizer, *_ in scores if optimizer != "dlpo"):
        for name, those in [("all tasks", tasks), *((task, [task]) for task in tasks)]:
            both = [run for who, *run in scores if who == other and run[0] in those and ("dlpo", *run) in scores]
            pairs = [
                (scores[other, *run][each], scores["dlpo", *run][each]) for run in both for each in scores[other, *run]
            ]
            if pairs:
                theirs, ours = zip(*pairs, strict=True)
                low, high = paired_interval(theirs, ours)
                mean = (sum(ours) - sum(theirs)) / len(pairs)
                print(f"{other:6} {name:24} {len(pairs):4} {mean * 100:+.1f} ({low * 100:+.1f} to {high * 100:+.1f})")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="the folder of a comparison, with its cells.jsonl")
    main(parser.parse_args().folder)
