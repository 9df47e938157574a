"""Sequence members fitted for a bundle, and their answers to rows that they did not learn from.

Members learn from training and validation rows. What they would say of these without having seen them comes from
cross-fitting within groups; where rows are very many, from members fitted on the training rows alone, to the validation
rows. Both are what the combination is chosen by.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plm.data.task import LIKELIEST, Task, Threshold
from plm.model.bundles.predictor import Explained, Predictor
from plm.model.combination import LANGUAGE_MODEL
from plm.model.members import features
from plm.model.members.fitted import FittedMember, Floats, ask
from plm.model.members.kinds import Neighbours, kinds_for
from plm.model.members.stored import MemberRows, SequenceMembers
from plm.scoring import intervals
from plm.scoring.calibration import threshold_for
from plm.scoring.combining import Choice, Combined, Heard, Quality, combine
from plm.scoring.comparison import compare
from plm.scoring.cross_fitting import LabelledTexts, choose_setting, folds_for
from plm.scoring.metrics import ALL, LOWER_IS_BETTER, Scored, score
from plm.scoring.quiet_threads import one_thread

CROSS_FITTED_ROWS = 4000
"""Rows up to which members are cross-fitted on all; of more a sample chooses their settings."""
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class MemberExamples:
    """Rows that sequence members learn from and are heard on.

    Attributes:
        rows: Texts, targets and groups.
        ids: (N,) names of the rows for explanations.
        labels: (N,) labels as the user wrote them.
        model: (N, K) answers of the language model to rows that it did not learn from; NaN elsewhere.
        width: Residues of the windows; 0: whole sequences.
        task: Task with mean and deviation of the training numbers.
    """

    rows: LabelledTexts
    ids: Sequence[str]
    labels: Sequence[str]
    model: Floats
    width: int
    task: Task

    @property
    def known(self) -> Ints:
        """Rows of which the language model's answer is known."""
        return np.flatnonzero(np.isfinite(self.model).all(axis=1))


@dataclass(frozen=True)
class FittedPredictor:
    """Members and their combination with the language model.

    Attributes:
        members: Fitted on all rows, or (``direct``) on those that the language model learned from.
        combined: Choice of the combination, with its cross-fitted answers to the rows ``judged``.
        heard: What members said of rows that they had not learned from.
        places: Of each judged row its number among those heard.
        judged: Numbers of the rows that the combination was judged on, among those given.
        direct: Members did not learn from rows of which the language model's answer is known, so that they may be
            asked about these.
        scores: Main metric of each member by cross-fitting; NaN where there was none.
        metric: Main metric.
        thresholds: What calls of each member are made by, from the same answers.
        left_out: Members that could not be fitted, in sentences.
        lengths: Residues of the shortest and the longest whole sequence; None for windows.
    """

    members: SequenceMembers
    combined: Combined
    heard: Heard
    places: Ints
    judged: Ints
    direct: bool
    metric: str
    scores: dict[str, float]
    thresholds: dict[str, Threshold]
    left_out: tuple[str, ...]
    lengths: tuple[int, int] | None = None

    @property
    def predictor(self) -> Predictor:
        """For a bundle."""
        return Predictor(self.combined.combination, self.members, self.heard.task)

    @property
    def groups(self) -> NDArray[np.str_]:
        """(J,) groups of the judged rows."""
        return self.heard.groups[self.places]

    @property
    def truth(self) -> NDArray[Any]:
        """(J,) class numbers or numbers of the judged rows."""
        return self.heard.truth[self.places]

    @property
    def sequence_names(self) -> tuple[str, ...]:
        """The members that answer together without the language model."""
        return self.combined.sequence.chosen.combination.names

    def together(self, told: Explained) -> Floats:
        """(N, K) answers of the sequence members together, without the language model."""
        return self.combined.sequence.chosen.combination.combine(told.members, told.similarity, self.heard.task)

    def described(self) -> dict[str, Any]:
        """For the manifest: candidates with their losses, scores of members, what was left out."""
        def listed(choice: Choice) -> list[dict[str, Any]]:
            return [
                {"name": one.name, "loss": round(one.loss, 6), "behind": round(one.behind, 6),
                 "error": round(one.error, 6) if np.isfinite(one.error) else None, "taken": one is choice.chosen}
                for one in choice.candidates
            ]

        return {
            "sequence_candidates": listed(self.combined.sequence), "candidates": listed(self.combined.whole),
            "member_scores": {name: value if np.isfinite(value) else None for name, value in self.scores.items()},
            "left_out": list(self.left_out), **self._range(),
        }

    def _range(self) -> dict[str, Any]:
        """How like training the judged rows are (5 %, 50 % and 95 %), and how long whole sequences were."""
        near = self.heard.similarity[self.places]
        near = near[np.isfinite(near)]
        told: dict[str, Any] = {}
        if len(near):
            told["likeness"] = [round(float(value), 4) for value in np.quantile(near, (0.05, 0.5, 0.95))]
        if self.lengths is not None:
            told["lengths"] = list(self.lengths)
        return told

    @property
    def threshold(self) -> Threshold:
        """What calls are made by, from the cross-fitted answers to the judged rows."""
        return self._threshold(self.combined.answers)

    @property
    def together_threshold(self) -> Threshold:
        """The same of the sequence members together, without the language model."""
        return self._threshold(self.unseen_together())

    def _threshold(self, answers: Floats) -> Threshold:
        task = self.heard.task
        if task.target == "number":
            return LIKELIEST
        return threshold_for(
            answers, self.truth, positive=task.positive_index if task.binary else None, metric=self.metric
        )

    def unseen_together(self) -> Floats:
        """(J, K) as :meth:`together`, cross-fitted, of the judged rows."""
        return self.combined.sequence.chosen.answers[self.places]

    def unseen(self, model: Floats) -> Explained:
        """What was said of the judged rows by members that had not learned from them.

        Args:
            model: (J, K) the language model's answers to these rows.
        """
        members = {name: values[self.places] for name, values in self.heard.answers.items()}
        nowhere = np.full(len(self.places), -1, np.int64)
        told = {LANGUAGE_MODEL: model, **members}
        return Explained(self.combined.answers, told, self.heard.similarity[self.places], nowhere)


def fit_predictor(
    examples: MemberExamples, metric: str, seed: int, *, compare: bool = True, residues: bool = False,
    forced: bool = False, by_metric: bool = False,
) -> FittedPredictor | None:
    """Fits sequence members and combines them with the language model.

    Args:
        examples: Training and validation rows, at most :data:`plm.model.members.stored.MOST_ROWS`.
        metric: Main metric, by which settings of members are chosen.
        seed: Seed of folds and samples.
        compare: Also members that keep training sequences.
        residues: Every residue is asked, so that members which compare would cost more than the language model.
        forced: The language model is not taken alone.
        by_metric: The language model is left out where it lowers the main metric, too.

    Returns:
        None if there is nothing to combine: no row of which the language model's answer is known, or no member.
    """
    known = examples.known
    if not len(known):
        return None
    classes = examples.task.classes
    count = len(examples.ids)
    inner = np.arange(count)
    if count > CROSS_FITTED_ROWS:
        inner = np.sort(np.random.default_rng(seed).permutation(count)[:CROSS_FITTED_ROWS])
    direct = len(inner) < count and len(known) < count
    learn = np.setdiff1d(np.arange(count), known) if direct else np.arange(count)
    heard_rows = known if direct else inner
    sample, whole = examples.rows.rows(inner), examples.rows.rows(learn)
    folds = folds_for(sample, len(classes), seed)
    left_out: list[str] = []
    fitted: list[FittedMember] = []
    answers: dict[str, Floats] = {}
    scores: dict[str, float] = {}
    thresholds: dict[str, Threshold] = {}
    similarity = np.full(len(heard_rows), np.nan)
    texts = [examples.rows.texts[row] for row in heard_rows]
    for kind in kinds_for(
        whole.texts, aligned=examples.rows.aligned, numbers=not classes, compare=compare and not residues
    ):
        with one_thread():
            seen = features.VIEWS[kind.view](sample.texts)
            try:
                best = choose_setting(kind, seen, sample, folds, classes, metric)
                member = kind.fit(features.VIEWS[kind.view](whole.texts), whole.target, best.setting, len(classes))
            except np.linalg.LinAlgError as error:
                left_out.append(f"{kind.name} could not be fitted ({error})")
                continue
            said = best.out_of_fold
            if direct:
                told = ask([member], texts, whole.texts if member.compares else (), {})
                said = told.answers[0]
                if kind.name == NEAREST:
                    similarity = told.similarity
            elif kind.name == NEAREST:
                similarity = _nearest_elsewhere(kind.view, seen, folds)
        if said is None:
            left_out.append(f"{kind.name}: all rows are of one group, so that nothing can judge it")
            continue
        answers[kind.name] = said.reshape(len(heard_rows), -1)
        scores[kind.name], thresholds[kind.name] = best.score, best.threshold
        fitted.append(member)
    if not fitted:
        return None
    heard = Heard(
        answers, similarity, (NEAREST,) if NEAREST in answers else (), examples.rows.target[heard_rows],
        examples.rows.groups[heard_rows], examples.task,
    )
    places = np.flatnonzero(np.isin(heard_rows, known))
    judged = heard_rows[places]
    task = examples.task
    quality = _quality_on(examples.rows.target[judged], task, metric) if by_metric else None
    several = _quality_on(heard.truth, task, metric) if task.kind == "multiclass" else None
    combined = combine(
        heard, examples.model[judged], places, seed, forced=forced, quality=quality, several=several
    )
    rows = MemberRows(
        [examples.ids[row] for row in learn], [examples.labels[row] for row in learn], whole.texts, whole.target
    )
    length = len(whole.texts[0]) if not examples.width and examples.rows.aligned else 0
    members = SequenceMembers(
        tuple(fitted), rows if any(one.compares for one in fitted) else None, examples.width, length
    )
    sizes = [len(text) for text in examples.rows.texts]
    lengths = None if examples.width else (min(sizes), max(sizes))
    return FittedPredictor(
        members, combined, heard, places, judged, direct, metric, scores, thresholds, tuple(left_out), lengths
    )


def _quality_on(truth: NDArray[Any], task: Task, metric: str) -> Quality:
    """The main metric of answers to rows of which the truth is known, higher is better."""
    sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
    return lambda answers: sign * score(scored(answers, truth, task, metric))[metric, ALL]


NEAREST = Neighbours.name
"""Name of the member whose weight may depend on the similarity to the nearest training row."""


def _nearest_elsewhere(view: str, seen: Any, folds: list[tuple[Ints, Ints]]) -> Floats:
    """(N,) similarity of each row to the nearest row of the other folds."""
    nearest = np.full(seen.shape[0], np.nan)
    for learn, judge in folds:
        compare = features.comparer(view, seen[learn])
        for start in range(0, len(judge), 500):
            part = judge[start : start + 500]
            nearest[part] = compare(seen[part]).max(axis=1)
    return nearest


@dataclass(frozen=True)
class PartScores:
    """Scores on the judged rows, of the main metric, with 95 % intervals over groups; NaN where there are none.

    Attributes:
        metric: Name of the metric.
        rows: Number of rows.
        groups: Number of groups.
        scores: Value, low and high of the predictor, of the language model alone, and of the sequence members together.
        added: Difference, low and high of the predictor against the sequence members together.
        gained: The same against the language model alone.
    """

    metric: str
    rows: int
    groups: int
    scores: dict[str, tuple[float, float, float]]
    added: tuple[float, float, float]
    gained: tuple[float, float, float]

    def to_json(self) -> dict[str, Any]:
        def plain(values: Sequence[float]) -> list[float | None]:
            return [float(value) if np.isfinite(value) else None for value in values]

        return {
            "metric": self.metric, "rows": self.rows, "groups": self.groups,
            "scores": {name: plain(values) for name, values in self.scores.items()}, "added": plain(self.added),
            "gained": plain(self.gained),
        }


PREDICTOR, MODEL, TOGETHER = "predictor", "language model", "sequence members"


def judge(fitted: FittedPredictor, model: Floats, metric: str, seed: int, resamples: int = 1000) -> PartScores:
    """How good the predictor is on rows that its members had not learned from, and what its parts bring.

    Args:
        fitted: Members and their combination.
        model: (J, K) answers of the language model to the judged rows.
        metric: Main metric.
        seed: Seed of the bootstrap.
        resamples: Bootstrap resamples over groups.
    """
    task = fitted.heard.task
    answers = {PREDICTOR: fitted.combined.answers, MODEL: model, TOGETHER: fitted.unseen_together()}
    index, groups = intervals.group_index(list(fitted.groups))
    draws = intervals.draw_groups(groups, resamples, seed) if groups >= intervals.FEWEST_GROUPS else None
    values: dict[str, float] = {}
    drawn: dict[str, Floats] = {}
    scores: dict[str, tuple[float, float, float]] = {}
    for name, answer in answers.items():
        part = scored(answer, fitted.truth, task, metric)
        values[name] = score(part)[metric, ALL]
        low = high = float("nan")
        if draws is not None:
            drawn[name] = intervals.bootstrap(part, index, draws)[metric, ALL]
            low, high = intervals.interval(drawn[name])
        scores[name] = (values[name], low, high)
    differences = []
    for other in (TOGETHER, MODEL):
        both = (drawn[PREDICTOR], drawn[other]) if drawn else None
        one = compare((PREDICTOR, other), metric, (values[PREDICTOR], values[other]), both)
        differences.append((one.difference, one.low, one.high))
    return PartScores(metric, len(fitted.truth), groups, scores, *differences)


def scored(answers: Floats, truth: NDArray[Any], task: Task, metric: str) -> Scored:
    """Answers in the form that metrics take: the positive one of two classes comes last.

    Several classes are called by the thresholds that the main metric chooses on these very rows.
    """
    if task.target == "number":
        return Scored("number", truth, answers[:, 0], np.zeros(len(truth), np.int64))
    order = np.arange(len(task.classes))
    if task.binary and task.positive_index == 0:
        order = order[::-1]
    values, index = answers[:, order], np.argsort(order)[truth.astype(np.int64)]
    names = tuple(task.classes[number] for number in order)
    calls = values.argmax(axis=1)
    if not task.binary:
        calls = task.called(values, threshold_for(values, index, positive=None, metric=metric))
    return Scored(task.kind, index, values, calls, names)
