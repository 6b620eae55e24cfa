"""The parts of a run, put together."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import dspy

from dspy_dlpo.core.protection import Protection
from dspy_dlpo.core.settings import Settings
from dspy_dlpo.descent.backward import Backward
from dspy_dlpo.descent.examples import Examples
from dspy_dlpo.descent.listeners import Listener
from dspy_dlpo.descent.loop import Loop
from dspy_dlpo.descent.requests import Requests
from dspy_dlpo.descent.sampling import Sampler
from dspy_dlpo.descent.selectors import SELECTORS
from dspy_dlpo.descent.sources.assembly import Sources
from dspy_dlpo.descent.sources.base import Source
from dspy_dlpo.descent.sources.critic_sentences import CriticSentences
from dspy_dlpo.descent.sources.demos import Demos
from dspy_dlpo.descent.sources.half_step import HalfStep
from dspy_dlpo.descent.sources.proposer_edits import ProposerEdits
from dspy_dlpo.descent.sources.pruning import Pruning
from dspy_dlpo.descent.sources.rewrite import Rewrite
from dspy_dlpo.descent.sources.shared_feedback import SharedFeedback
from dspy_dlpo.descent.stopping import Stopping
from dspy_dlpo.descent.trial import Race
from dspy_dlpo.optimizer.arguments import failure_score_of, form_of
from dspy_dlpo.policies import Chain, as_policies
from dspy_dlpo.runtime.asking import Asker
from dspy_dlpo.runtime.budget import Budget
from dspy_dlpo.runtime.context import room_for_a_field
from dspy_dlpo.runtime.data import Data
from dspy_dlpo.runtime.executor import Executor, opened
from dspy_dlpo.runtime.fingerprint import describe, fingerprint
from dspy_dlpo.runtime.forward import Forward
from dspy_dlpo.runtime.interrupt import ended_by_ctrl_c
from dspy_dlpo.runtime.ledger import Ledger
from dspy_dlpo.runtime.metric import Metric
from dspy_dlpo.runtime.program import Student
from dspy_dlpo.views.result import DLPOResult, result_of
from dspy_dlpo.views.runs import keep_end, keep_error, keep_start


@dataclass(frozen=True)
class Run:
    """One run of the optimiser.

    Args:
        program: The user's program.
        student: The same, as the run asks about it.
        data: The examples.
        arguments: The optimiser's arguments by name, those of its `Tuning` among them.
        settings: The numbers.
        budget: What may be spent.
        listener: Is called while the run goes on.
    """

    program: dspy.Module
    student: Student
    data: Data
    arguments: Mapping[str, Any]
    settings: Settings
    budget: Budget
    listener: Listener

    @property
    def prompt_model(self) -> dspy.BaseLM:
        """The model that writes candidates."""
        return self.arguments["prompt_model"] or self.student.model

    @property
    def critic_model(self) -> dspy.BaseLM:
        """The model that criticises."""
        return self.arguments["critic_model"] or self.prompt_model

    def __call__(self) -> DLPOResult:
        """Make the run, or go on with the one that its folder holds.

        Raises:
            The errors that `DLPOOptimizer.compile` names.
        """
        folder = self.arguments["log_dir"]
        with closing(Ledger(folder, self._fingerprint() if folder else {})) as ledger:
            run = describe(self.student, self._shown(), self.data)
            try:
                self.budget.charge(ledger.forgotten)
                with opened(self.arguments["executor"]) as executor:
                    loop = self._loop(ledger, executor)
                    run = keep_start(ledger, run)
                    self.listener.on_run_start(run, self.budget)
                    with ended_by_ctrl_c(self.budget):
                        walk = loop.run(self.student.start)
                result = result_of(
                    walk,
                    loop.forward,
                    self.data.valset,
                    run=run,
                    spent=self.budget.spent,
                    log_dir=None if folder is None else str(folder),
                    seed=self.settings.seed,
                    score_range=self.arguments["score_range"],
                    failure_score=failure_score_of(self.arguments),
                )
                result = keep_end(ledger, result)
            except BaseException as error:
                with suppress(OSError, ValueError):  # The ledger itself may be what failed.
                    keep_error(ledger, run, error)
                self.listener.on_run_error(error)
                raise
        return result

    def _loop(self, ledger: Ledger, executor: Executor | None) -> Loop:
        given, settings, budget = SimpleNamespace(**self.arguments), self.settings, self.budget
        room = min(room_for_a_field(self.critic_model), room_for_a_field(self.prompt_model))
        forward = Forward(
            self.student,
            Metric(given.metric, given.score_range),
            self.data,
            ledger=ledger,
            budget=budget,
            num_threads=budget.num_threads,
            failure_score=failure_score_of(self.arguments),
            num_repeats=given.num_repeats,
            timeout=given.timeout,
            max_lost_share=given.max_lost_share,
            executor=executor,
            max_chars=max(room // 4, 2000),
        )
        backward = Backward(
            Asker(self.critic_model, ledger, budget, budget.num_threads, given.critic, given.timeout),
            self.data,
            show_gold=given.show_gold,
            top_score=settings.score_range[1],
            form=form_of(self.arguments, self.critic_model, self.student),
            chain=given.chain,
            max_chars=room,
        )
        proposer = Asker(self.prompt_model, ledger, budget, budget.num_threads, given.proposer, given.timeout)
        policies = Chain(as_policies(given.policies))
        instructions = self.student.start.instructions
        protection = Protection(given.protect, self.student.protocols(), instructions)
        requests = Requests(protection, policies, settings.max_passing)
        sources: list[Source] = [
            SharedFeedback(requests, backward.first_complaints),
            CriticSentences(),
            ProposerEdits(proposer, always_passing=given.proposer is not None, max_chars=room),
            HalfStep(),
            Pruning(requests),
        ]
        if given.proposer is None:
            sources.append(Rewrite(proposer, requests, backward.complaint))
        if settings.max_demos:
            sources.append(Demos(self.student, self.data, forward, requests, max_demos=settings.max_demos))
        sampler = Sampler(settings)
        selector = given.component_selector
        return Loop(
            settings=settings,
            forward=forward,
            backward=backward,
            selector=selector if callable(selector) else SELECTORS[selector],
            requests=requests,
            sources=Sources(
                [each for each in sources if given.sources is None or each.name in given.sources],
                Examples(self.data, instructions.values(), [each.signature for each in self.student.all_predictors]),
                self.student.read_back,
                protection,
                num_candidates=settings.num_candidates,
            ),
            race=Race(forward, settings, frozenset(source.name for source in sources if source.beside)),
            policies=policies,
            sampler=sampler,
            stopping=Stopping(settings, budget, forward, sampler),
            budget=budget,
            ledger=ledger,
            listener=self.listener,
        )

    def _shown(self) -> dict[str, Any]:
        """Return the arguments as a report shows them, with the defaults that depend on the data resolved."""
        resolved = {name: getattr(self.settings, name) for name in ("num_steps", "batch_size")}
        resolved |= {"prompt_model": self.prompt_model, "critic_model": self.critic_model}
        return {**self.arguments, **resolved, "failure_score": failure_score_of(self.arguments)}

    def _fingerprint(self) -> dict[str, str]:
        """Return what decides the course of the run."""
        names = ("show_gold", "protect", "critic_chunk_size", "chain")
        kept = {**vars(self.settings), **{name: self.arguments[name] for name in names}}
        for name in ("trainset", "valset", "num_steps", "patience", "seed"):
            del kept[name]
        callables = ("metric", "critic", "proposer", "component_selector")
        return fingerprint(
            self.program,
            {name: self.arguments[name] for name in callables},
            as_policies(self.arguments["policies"]),
            [self.prompt_model, self.critic_model],
            self.data,
            settings={**kept, "failure_score": failure_score_of(self.arguments)},
            seed=self.settings.seed,
        )
