"""DLPO for DSPy: tune a program's instructions by textual gradient descent.

The map, from the lowest folder to the highest. A module imports only from its own folder and from those before it.

* `core`: plain data and text; no model, no disk. `records.py` has what flows through a step, `steps.py` what came of
  it, `settings.py` the numbers of a run.
* `policies`: what bounds and directs an update; one file a strategy, `base.py` says what a policy is.
* `runtime`: what costs money or touches the disk. `program.py` knows the user's program, `rollout.py` runs it once on
  one example, `executor.py` says where, `forward.py` keeps the books, `asking.py` asks critic and proposer, `ledger.py`
  saves.
* `descent`: the algorithm. `loop.py` is one page; `backward.py` and `critic.py` make gradients, `sources/` makes
  candidates (one file a source), `screening.py` keeps copies of examples out, `trial.py` decides what is accepted,
  `choice.py` what is returned.
* `views`: what people see: progress, `result.py`, plots, trackers, the report (`report/`), the commands that read runs.
* `optimizer`: `DLPOOptimizer` (`teleprompter.py`), its arguments, and the parts of a run put together (`assembly.py`).
* `local`: a language model on this machine, and the quickstart.
* `benchmarks`: comparisons of optimisers, the simulated models, the demo, and the command `dspy-dlpo` as a whole.

Everything that users import is here, but for `dspy_dlpo.local.local_lm` and `dspy_dlpo.benchmarks.compare`.
"""

from importlib.metadata import version

from dspy_dlpo.core.settings import Tuning
from dspy_dlpo.descent.critic import Critique, CritiqueWithInput
from dspy_dlpo.descent.listeners import Listener
from dspy_dlpo.descent.sources.proposer_edits import ProposeEdits, ProposeEditsKeeping
from dspy_dlpo.descent.statistics import Gain, paired_interval
from dspy_dlpo.optimizer.diagnose import Diagnosis
from dspy_dlpo.optimizer.estimate import Estimate
from dspy_dlpo.optimizer.teleprompter import DLPOOptimizer
from dspy_dlpo.policies import (
    PRESETS,
    Policy,
    TextualContrastiveLearning,
    TextualDropout,
    TextualLearningRate,
    TextualLearningRateDecay,
    TextualMomentum,
    TextualRegularization,
    TextualSimulatedAnnealing,
    schedules,
)
from dspy_dlpo.runtime.cluster import RayExecutor
from dspy_dlpo.runtime.metric import MetricError
from dspy_dlpo.views.result import DLPOResult
from dspy_dlpo.views.runs import load_result
from dspy_dlpo.views.trackers import MLflowListener, WandbListener

__all__ = [
    "PRESETS",
    "Critique",
    "CritiqueWithInput",
    "DLPOOptimizer",
    "DLPOResult",
    "Diagnosis",
    "Estimate",
    "Gain",
    "Listener",
    "MLflowListener",
    "MetricError",
    "Policy",
    "ProposeEdits",
    "ProposeEditsKeeping",
    "RayExecutor",
    "TextualContrastiveLearning",
    "TextualDropout",
    "TextualLearningRate",
    "TextualLearningRateDecay",
    "TextualMomentum",
    "TextualRegularization",
    "TextualSimulatedAnnealing",
    "Tuning",
    "WandbListener",
    "load_result",
    "paired_interval",
    "schedules",
]

__version__ = version("dspy-dlpo")
