"""Search for the settings of the feed-forward network: optuna's TPE, resumable, steered by validation rows alone.

The trials are kept in optuna's journal file: lines of JSON that are appended one by one, so that a killed job loses at
most the trial under way. Each trial's sampler is seeded by its number, so that a resumed search makes the proposals of
one that was never interrupted.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from plm import __version__
from plm.errors import UserError
from plm.received.documents import one_line
from plm.received.journals import check_journal
from plm.training import classifiers
from plm.training.classifiers import HeadRows, NetworkSettings, ValidationRows

PARAMETERS = ("learning_rate", "width", "depth", "dropout", "batch", "weight_decay")
WIDTHS = (32, 64, 128, 256, 512, 1024)
BATCHES = (32, 64, 128, 256, 512)
STARTUP = 8
"""Random trials before TPE proposes."""


@dataclass(frozen=True)
class Searched:
    """What a search found.

    Attributes:
        settings: Settings of the best trial.
        best: Main metric of these settings on the validation rows.
        trials: One row a trial: fold, trial, state, value, best so far, epoch and the parameters.
        importance: Share of the differences between trials that each parameter explains; empty if too few finished.
    """

    settings: NetworkSettings
    best: float
    trials: list[dict[str, Any]]
    importance: Mapping[str, float]


class TrialJournal:
    """Where searches keep their trials.

    Args:
        path: The journal file; searches that it holds are gone on with.
        key: What decides the trials besides their number: of other data or settings it must differ.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key

    def search(
        self, rows: HeadRows, judge: ValidationRows, base: NetworkSettings, metric: str, trials: int, seed: int,
        fold: int | None, log: logging.Logger,
    ) -> Searched:
        """Runs the trials that are left; the first one has the settings ``base``.

        Args:
            rows: Rows to learn from.
            judge: Rows that judge a trial.
            base: Settings to start from; epochs, patience, balance and selection stay as they are.
            metric: The main metric, which is searched for.
            trials: Number of trials in all, those of the journal among them.
            seed: Seed of the proposals and of every training.
            fold: Fold whose rows these are, or None.
            log: Gets a line a trial.

        Raises:
            UserError: The journal is of other data or settings, or damaged.
        """
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        sign = classifiers.better(metric)
        name = "search" if fold is None else f"search of fold {fold}"
        study = self._study(name, "maximize" if sign > 0 else "minimize", base)
        finished = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
        done = len(study.get_trials(deepcopy=False, states=finished))
        if done:
            log.info("Going on with the %s: %d of %d trials are done", name, min(done, trials), trials)

        def objective(trial: Any) -> float:
            settings = _proposed(trial, base)

            def stop(epoch: int, reached: float) -> bool:
                trial.report(reached, epoch)
                return bool(trial.should_prune())

            fitted = classifiers.feedforward(rows, judge, settings, metric, seed, stop=stop)
            kept = next(entry for entry in fitted.history if entry["kept"])
            trial.set_user_attr("epoch", kept["epoch"])
            return float(kept[f"valid_{metric}"])

        for number in range(done, trials):
            study.sampler = optuna.samplers.TPESampler(seed=seed + number, n_startup_trials=STARTUP)
            if number == 0:
                study.enqueue_trial({key: getattr(base, key) for key in PARAMETERS}, skip_if_exists=True)
            study.optimize(objective, n_trials=1)
            last = study.trials[-1]
            told = ", ".join(f"{key} {value:g}" for key, value in last.params.items())
            value = "no score" if last.value is None else f"{metric} {last.value:.4f}"
            log.info("Trial %d of %d: %s (%s)", number + 1, trials, value, told)
        return self._searched(study, base, metric, fold, finished, trials)

    def _study(self, name: str, direction: str, base: NetworkSettings) -> Any:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        again = "Give the study of the same data and settings, or none"
        if self.path.exists():
            check_journal(self.path, "--resume-study")
        try:
            storage = JournalStorage(JournalFileBackend(str(self.path)))
            study = optuna.create_study(
                storage=storage, study_name=name, direction=direction, load_if_exists=True,
                pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP, n_warmup_steps=4),
            )
            key, trials = study.user_attrs.get("key"), study.trials
        except (ValueError, LookupError, TypeError, AttributeError, AssertionError, ArithmeticError) as error:
            reason = one_line(str(error), 120) or type(error).__name__
            raise UserError(f"The study cannot be read ({reason})", where="--resume-study", fix=again) from error
        if key is None and not trials:
            study.set_user_attr("key", self.key)
        elif key != self.key:
            raise UserError("The study is of other data or settings", where="--resume-study", fix=again)
        asked = _distributions(base)
        for trial in trials:
            done = trial.state in (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
            other = any(
                asked.get(one) != kind or (one not in ("width", "batch") and not kind.low <= value <= kind.high)
                for (one, kind), value in zip(trial.distributions.items(), trial.params.values(), strict=True)
            )
            if other or (done and set(trial.params) != set(asked)):
                raise UserError(
                    f"Trial {trial.number + 1} of the study has other parameters than this search",
                    where="--resume-study", fix=again,
                )
        return study

    def _searched(
        self, study: Any, base: NetworkSettings, metric: str, fold: int | None, finished: Any, trials: int
    ) -> Searched:
        import optuna

        sign = classifiers.better(metric)
        table: list[dict[str, Any]] = []
        best = float("-inf")
        kept = study.get_trials(deepcopy=False, states=finished)[:trials]
        for number, trial in enumerate(kept, start=1):
            value = float("nan") if trial.value is None else float(trial.value)
            if sign * value > best:
                best = sign * value
            row = {
                "fold": "" if fold is None else fold,
                "trial": number,
                "state": trial.state.name.lower(),
                metric: value,
                "best_so_far": sign * best,
                "epoch": trial.user_attrs.get("epoch", ""),
            }
            table.append({**row, **{key: trial.params.get(key, "") for key in PARAMETERS}})
        usable = [trial for trial in kept if trial.value is not None and trial.value == trial.value]
        if not usable:
            raise UserError("No trial of the search gave a score", where="--search-trials", fix="Check the labels")
        winner = max(usable, key=lambda trial: sign * trial.value)
        importance: dict[str, float] = {}
        if len({trial.value for trial in usable}) > 1 and len(usable) >= 4:
            evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
            importance = dict(optuna.importance.get_param_importances(study, evaluator=evaluator))
        return Searched(_settings(winner.params, base), float(winner.value), table, importance)


def search_key(settings: NetworkSettings, standardise: bool, metric: str, seed: int, data_sha256: str) -> str:
    """What decides a search's trials besides their number, as one text of 64 letters."""
    told = json.dumps([__version__, asdict(settings), standardise, metric, seed, data_sha256], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()


def _distributions(base: NetworkSettings) -> dict[str, Any]:
    """What each parameter is drawn from, in the order in which a trial asks for them."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    return {
        "learning_rate": FloatDistribution(1e-4, 1e-2, log=True),
        "width": CategoricalDistribution(sorted({*WIDTHS, base.width})),
        "depth": IntDistribution(1, max(4, base.depth)),
        "dropout": FloatDistribution(0.0, 0.6),
        "batch": CategoricalDistribution(sorted({*BATCHES, base.batch})),
        "weight_decay": FloatDistribution(1e-6, 1e-1, log=True),
    }


def _proposed(trial: Any, base: NetworkSettings) -> NetworkSettings:
    distributions = _distributions(base)
    proposal: dict[str, Any] = {
        "learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True),
        "width": trial.suggest_categorical("width", distributions["width"].choices),
        "depth": trial.suggest_int("depth", 1, distributions["depth"].high),
        "dropout": trial.suggest_float("dropout", 0.0, 0.6),
        "batch": trial.suggest_categorical("batch", distributions["batch"].choices),
        "weight_decay": trial.suggest_float("weight_decay", 1e-6, 1e-1, log=True),
    }
    return _settings(proposal, base)


def _settings(proposal: Mapping[str, Any], base: NetworkSettings) -> NetworkSettings:
    return replace(
        base, learning_rate=float(proposal["learning_rate"]), width=int(proposal["width"]),
        depth=int(proposal["depth"]), dropout=float(proposal["dropout"]), batch=int(proposal["batch"]),
        weight_decay=float(proposal["weight_decay"]),
    )
