"""Arguments by the names that other optimisers give them, answered with the name they have here."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from dspy_dlpo.core.settings import Tuning

T = TypeVar("T")

_DEMOS = "Use `max_demos`"
_NO_DEMOS = "Leave it out; `max_demos` sets how many demos a predictor may have"
_NO_SAMPLING = "Set the temperature on the LM that you give as `prompt_model`"
_TRACKERS = "Give listeners=[dspy_dlpo.%s()]"
_LIMITS = "Give `auto`, `num_steps` or one of the limits: `max_metric_calls`, `max_lm_calls`, `max_tokens`, `max_cost`"

ELSEWHERE = {
    "reflection_lm": "Use `prompt_model`",
    "task_model": "Set the LM of the program itself: program.set_lm(lm), or dspy.configure(lm=lm)",
    "teacher_settings": "No teacher is used. The LM that writes candidates is `prompt_model`",
    "max_full_evals": _LIMITS,
    "num_trials": "Use `num_steps`",
    "max_steps": "Use `num_steps`",
    "max_rounds": "Use `num_steps`",
    "depth": "Use `num_steps`",
    "breadth": "Use tuning=Tuning(num_candidates=...)",
    "num_candidate_programs": "Use tuning=Tuning(num_candidates=...)",
    "bsize": "Use tuning=Tuning(batch_size=...)",
    "minibatch_size": "Use tuning=Tuning(batch_size=...)",
    "reflection_minibatch_size": "Use tuning=Tuning(batch_size=...)",
    "minibatch": "Steps always start from a minibatch: tuning=Tuning(batch_size=...)",
    "minibatch_full_eval_steps": "The result is always chosen on the whole valset. Leave it out",
    "max_bootstrapped_demos": _DEMOS,
    "max_labeled_demos": _DEMOS,
    "demo_input_field_maxlen": _NO_DEMOS,
    "fewshot_aware_proposer": _NO_DEMOS,
    "init_temperature": _NO_SAMPLING,
    "temperature_for_candidates": _NO_SAMPLING,
    "temperature_for_sampling": "Set the temperature on the program's LM",
    "perfect_score": "Use score_range=(lowest, highest)",
    "metric_threshold": "Use score_range=(lowest, highest); a score below the highest is a failure to learn from",
    "stop_at_score": "A run ends by itself once the program is perfect on the trainset; see `patience` for earlier",
    "skip_perfect_score": "What is perfect is never criticised. Leave it out",
    "add_format_failure_as_feedback": "Replies of the wrong form always reach the critic. Leave it out",
    "instruction_proposer": "Use tuning=Tuning(proposer=...)",
    "code_proposer": "No code is tuned. Leave it out",
    "candidate_selection_strategy": "Give `policies`, such as TextualSimulatedAnnealing; they decide what is accepted",
    "use_merge": "Candidates are not merged. Leave it out",
    "max_merge_invocations": "Candidates are not merged. Leave it out",
    "max_errors": "Use tuning=Tuning(max_lost_share=...)",
    "provide_traceback": "Set logging.getLogger('dspy_dlpo') to DEBUG: every error is there with its traceback",
    "track_stats": "The program always carries `detailed_results`. Leave it out",
    "track_best_outputs": "Scores by example are in `detailed_results.val_subscores`. Leave it out",
    "use_wandb": _TRACKERS % "WandbListener",
    "wandb_api_key": f"Log in with `wandb login`. {_TRACKERS % 'WandbListener'}",
    "wandb_init_kwargs": "Give listeners=[dspy_dlpo.WandbListener(project=..., name=...)]",
    "use_mlflow": _TRACKERS % "MLflowListener",
    "warn_on_score_mismatch": "Scores asked for single predictors never count. Leave it out",
    "gepa_kwargs": "Leave it out",
    "eval_kwargs": "Use `num_threads` of the optimiser",
    "requires_permission_to_run": "Nothing is asked before a run. Use `estimate` first, and `max_cost`. Leave it out",
    "restrict": "Leave it out",
    "labeled_sample": _NO_DEMOS,
    "program_aware_proposer": "Leave it out",
    "data_aware_proposer": "Leave it out",
    "view_data_batch_size": "Use tuning=Tuning(critic_chunk_size=...)",
    "tip_aware_proposer": "Leave it out",
    "lm": "Use `prompt_model`",
    "optimizer_lm": "Use `prompt_model`",
    "prompt_lm": "Use `prompt_model`",
    "num_epochs": "Use `num_steps`",
    "valset": "Give it to `compile`",
    "trainset": "Give it to `compile`",
}
"""What to do instead, by the name of an argument of GEPA, MIPROv2, COPRO, SIMBA or BootstrapFewShot."""


def answers_other_names(kind: type[T]) -> type[T]:
    """Let the constructor of a dataclass answer arguments that it does not have, before Python does."""
    init: Callable[..., None] = kind.__init__
    known = [name for name in inspect.signature(init).parameters if name != "self"]

    @functools.wraps(init)
    def checked(self: T, *arguments: Any, **named: Any) -> None:
        if len(arguments) > 1:
            raise TypeError(f"`{kind.__name__}` takes `{known[0]}` by position and everything else by name.")
        refuse_unknown(named, known, kind.__name__)
        init(self, *arguments, **named)

    type.__setattr__(kind, "__init__", checked)
    return kind


def refuse_unknown(given: Iterable[str], known: Iterable[str], where: str) -> None:
    """Refuse arguments that there are not, with the names they have here.

    Args:
        given: The names that were given.
        known: The names that there are.
        where: What was called.

    Raises:
        TypeError: If one is not known.
    """
    known = [*known]
    if unknown := [name for name in given if name not in known]:
        answers = ". ".join(dict.fromkeys(f"`{name}`: {_way_out(name, known, where)}" for name in unknown))
        raise TypeError(f"`{where}` has no argument {', '.join(f'`{name}`' for name in unknown)}. {answers}.")


def _way_out(name: str, known: list[str], where: str) -> str:
    if where == "compile" and name in ("seed", "num_threads", "metric", "auto", "num_candidates", "log_dir", "verbose"):
        return f"give it to `DLPOOptimizer({name}=...)`" if name != "num_candidates" else _tuning(name)
    if name in Tuning.__dataclass_fields__:
        return _tuning(name)
    if name in ELSEWHERE:
        answer = ELSEWHERE[name]
        return answer[0].lower() + answer[1:]
    near = difflib.get_close_matches(name, [*known, *Tuning.__dataclass_fields__], 1)
    if near and near[0] not in known:
        return f"did you mean {_tuning(near[0])}?"[:-1]
    return f"did you mean `{near[0]}`" if near else f"the arguments are {', '.join(known)}"


def _tuning(name: str) -> str:
    return f"use tuning=Tuning({name}=...)"
