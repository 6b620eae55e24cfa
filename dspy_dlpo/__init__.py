"""DLPO for DSPy: tune a program's instructions by textual gradient descent."""

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
from dspy_dlpo.runtime.metric import MetricError
from dspy_dlpo.views.result import DLPOResult
from dspy_dlpo.views.runs import load_result

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
    "MetricError",
    "Policy",
    "ProposeEdits",
    "ProposeEditsKeeping",
    "TextualContrastiveLearning",
    "TextualDropout",
    "TextualLearningRate",
    "TextualLearningRateDecay",
    "TextualMomentum",
    "TextualRegularization",
    "TextualSimulatedAnnealing",
    "Tuning",
    "load_result",
    "paired_interval",
    "schedules",
]

__version__ = version("dspy-dlpo")
