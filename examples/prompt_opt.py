"""The command line of the DLPO authors' script, on our machinery: the paper's protocol for one task.

    export OPENAI_API_KEY=...  # and OPENAI_BASE_URL, if it is not OpenAI's own
    python examples/prompt_opt.py --task BIG_GSM --annealing 1 --tsa_tem 64 --tsa_tem_decay 1.75 --momentum 1
    python examples/prompt_opt.py --task BBH_object_counting --lr 5 --data-dir DATA --log-dir runs/counting

The flags have their script's names and defaults. Models, batches of 5, one epoch and the splits are the paper's. Each
flag becomes a policy:

* `--lr 5`: `TextualLearningRate(5)`. Held in code; their script only asks for it.
* `--dropout 0.3`: `TextualDropout(0.3)`. Real sentences, kept verbatim; their script cuts text at every full stop.
* `--annealing 1 --tsa_tem 64 --tsa_tem_decay 2`: `TextualSimulatedAnnealing(exponential(64, 1 / 2), max_drop=0.3)`. It
  starts from the student's real score and cools at every step; theirs starts from 0 and cools after an acceptance. 64
  accepts nearly everything on scores from 0 to 1; try 1, or `--policies paper`.
* `--dy_lr 5`: `TextualLearningRateDecay(linear(5, 1, 4))`, the same `max(5 - step, 1)`, held in code. Their README
  calls it TRegu; in their code, and here, it is TLRD.
* `--momentum 1`: `TextualMomentum()`. Weights by age, and merging, in place of the last three gradients; with
  `--momentum 0` it is really off, where theirs stays on.
* `--train_acc_contras 1`: `TextualContrastiveLearning()`. A margin that the data support in place of 0.15; distinct
  pairs; sampled.
* `--weight_decay 1`: `TextualRegularization(price=1e-4, growth=2)`. A price per token, pruning, and a wish to simplify
  what has grown; theirs waits for 16 duplicates.

Other departures:

* They score the whole training set twice a step. Here a comparison ends as soon as it is decided.
* Their scorers accept any of the last numbers of an answer; here the answer must be the number.
* The start is this project's plain instruction, not theirs.
* The paper gives no splits of MGSM. Their code takes 50 train and 100 validation rows of all languages mixed; here 50
  train and 50 validation problems are taken, each with its translations, so that no problem is in two splits.
  `--sizes 5 9 25` comes near their number of rows.
"""

import argparse
import math
import os
from collections.abc import Sequence

import dspy

from dspy_dlpo import (
    PRESETS,
    DLPOOptimizer,
    Policy,
    TextualContrastiveLearning,
    TextualDropout,
    TextualLearningRate,
    TextualLearningRateDecay,
    TextualMomentum,
    TextualRegularization,
    TextualSimulatedAnnealing,
)
from dspy_dlpo.benchmarks.tasks.registry import load_task
from dspy_dlpo.core.settings import Tuning
from dspy_dlpo.policies.schedules import exponential, linear

TASKS = {"BIG_GSM": "biggsm", "GSM8K_DSPy": "gsm8k", "MATH": "math", "MGSM": "mgsm"}


def read_arguments(line: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--task", default="BIG_GSM", help=f"{', '.join(TASKS)}, BBH_SUBTASK, or a name of our own such as bbh/navigate")
    add("--evaluation_engine", default=os.environ.get("EVALUATION_ENGINE", "gpt-4o"), help="criticises and proposes")
    add("--test_engine", default=os.environ.get("TEST_ENGINE", "gpt-4o-mini"), help="the task model")
    add("--api_key", help="default: from the environment, such as OPENAI_API_KEY")
    add("--api_base", default=os.environ.get("OPENAI_BASE_URL"), help="default: OPENAI_BASE_URL")
    add("--batch_size", type=int, default=5)
    add("--max_epochs", type=int, default=1)
    add("--seed", type=int, default=1001)
    add("--num_threads", type=int, default=60)
    add("--lr", type=int, default=0, help="TLR: edits a step; 0 for off")
    add("--dropout", type=float, default=0.0, help="TDO: share of sentences kept; 0 for off")
    add("--annealing", type=int, default=1, help="TSA: 0 for off")
    add("--tsa_tem", type=float, default=64, help="TSA: the first temperature, on the scale of the score")
    add("--tsa_tem_decay", type=float, default=2, help="TSA: what it is divided by at each step")
    add("--dy_lr", type=int, default=0, help="TLRD: edits of the first step, one less at each; 0 for off")
    add("--momentum", type=int, default=0, help="TMnt: 0 for off")
    add("--train_acc_contras", type=int, default=0, help="TCL: 0 for off")
    add("--weight_decay", type=float, default=0, help="TRegu: 0 for off")
    for name in ("run_validation", "do_not_run_larger_model"):
        add(f"--{name}", action="store_true", help="without effect: the valset always chooses the result")
    add("--wandb", type=int, default=0, help="without effect here")
    add("--policies", choices=sorted(PRESETS), help="a preset, in place of the strategies' flags")
    add("--sizes", type=int, nargs=3, metavar=("TRAIN", "VAL", "TEST"), help="default: the paper's")
    add("--data-dir", help="a folder of JSON lines; default: the Hugging Face hub")
    add("--log-dir", help="keeps the run, so that the same command goes on where it stopped")
    arguments = parser.parse_args(line)
    for name, least in {
        "tsa_tem_decay": 1,
        "tsa_tem": 0,
        "dy_lr": 0,
        "lr": 0,
        "batch_size": 1,
        "max_epochs": 1,
    }.items():
        if (value := getattr(arguments, name)) < least:
            parser.error(f"--{name} must be at least {least}, but got {value}")
    return arguments


def policies_of(arguments: argparse.Namespace) -> list[Policy]:
    """Return what the flags switch on."""
    cooling = exponential(arguments.tsa_tem, 1 / arguments.tsa_tem_decay)
    shrinking = linear(arguments.dy_lr, 1, max(arguments.dy_lr - 1, 1))
    chosen = {
        "lr": lambda: TextualLearningRate(arguments.lr),
        "dropout": lambda: TextualDropout(arguments.dropout),
        "annealing": lambda: TextualSimulatedAnnealing(cooling, max_drop=0.3),
        "dy_lr": lambda: TextualLearningRateDecay(shrinking),
        "momentum": TextualMomentum,
        "train_acc_contras": TextualContrastiveLearning,
        "weight_decay": lambda: TextualRegularization(price=1e-4, growth=2),
    }
    return [make() for flag, make in chosen.items() if getattr(arguments, flag)]


def task_name(name: str) -> str:
    return f"bbh/{name.removeprefix('BBH_')}" if name.startswith("BBH_") else TASKS.get(name, name)


def language_model(name: str, arguments: argparse.Namespace) -> dspy.LM:
    given = {"api_key": arguments.api_key, "api_base": arguments.api_base}
    name = name if "/" in name else f"openai/{name}"
    return dspy.LM(name, **{key: value for key, value in given.items() if value})


def main(line: Sequence[str] | None = None) -> None:
    arguments = read_arguments(line)
    sizes = tuple(arguments.sizes) if arguments.sizes else None
    task = load_task(task_name(arguments.task), data_dir=arguments.data_dir, seed=arguments.seed, sizes=sizes)
    model = language_model(arguments.test_engine, arguments)
    critic = language_model(arguments.evaluation_engine, arguments)
    optimizer = DLPOOptimizer(
        metric=task.metric,
        prompt_model=critic,
        tuning=Tuning(critic_model=critic, batch_size=arguments.batch_size, max_trial_examples=None),
        policies=arguments.policies or policies_of(arguments),
        num_steps=arguments.max_epochs * math.ceil(len(task.trainset) / arguments.batch_size),
        num_threads=arguments.num_threads,
        seed=arguments.seed,
        log_dir=arguments.log_dir,
    )
    print(f"{task.name}: {len(task.trainset)} train, {len(task.valset)} val and {len(task.testset)} test examples")
    with dspy.context(lm=model):
        optimized = optimizer.compile(task.program, trainset=task.trainset, valset=task.valset)
        result = optimized.detailed_results
        tested = result.evaluate(task.program, task.testset, metric=task.metric, num_threads=arguments.num_threads)
    for path, predictor in optimized.named_predictors():
        print(f"\nInstruction of {path}:\n{predictor.signature.instructions}")
    gain = tested.gain
    print(f"\nTest score before: {100 * tested.before:.1f}")
    print(f"Test score after:  {100 * tested.after:.1f}")
    print(f"Gain: {100 * gain.mean:+.1f} points (95 % interval {100 * gain.low:+.1f} to {100 * gain.high:+.1f})")
    for what, spent in (("Optimising", result.spent), ("Testing both", tested.spent)):
        cost = "an unknown number of dollars" if spent.cost is None else f"{spent.cost:.2f} dollars"
        print(
            f"{what} took {spent.metric_calls} metric calls, {spent.lm_calls} LM calls, {spent.tokens} tokens", end=" "
        )
        print(f"and {cost}.")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, ImportError, dspy.LMError) as error:
        raise SystemExit(f"prompt_opt.py: {error}") from None
