"""The order of the work: fit, choose on validation proteins, predict all, judge the test proteins."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from plm import stage
from plm.errors import UserError
from plm.jobs.contacts.bands import CLOSEST, pairs_of, unseen_pairs
from plm.jobs.contacts.contact_baselines import BASELINES, ContactBaselines, residue_codes
from plm.jobs.contacts.contact_heads import TITLES, ContactHead, Method, published_regression
from plm.jobs.contacts.fitting import FEWEST_CONTACTS, LearningProtein, fit_pair_head, fit_regression, gather
from plm.jobs.contacts.inputs import ContactInputs
from plm.jobs.contacts.parts import SPARE, TEST, TRAIN, VALID, ContactParts, TooFewFamilies, divide, usable_records
from plm.jobs.contacts.precision import CELLS, CHOICE, MeanPrecision, precisions, summarise
from plm.jobs.contacts.reading import Bands, ContactReader
from plm.jobs.contacts.stored_head import StoredContactHead, fingerprint
from plm.model.capacity import capacity
from plm.model.loaded import LoadedModel
from plm.scoring.comparison import Comparison, compare
from plm.wording import counted

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
SEEN = "seen in training"
_SHARE_OF_ROOM = 2
"""What the fit's features may take: one part in so many of the memory that is free."""
HEADLINE = CELLS.index((12, "L/5"))
"""TAPE's measure, which the report begins with."""


@dataclass(frozen=True)
class ContactSettings:
    """What a job does.

    Attributes:
        methods: Heads to try: ``regression``, ``published``, ``pair``.
        penalty: L1 penalty of the regression.
        train_proteins: At most so many proteins train.
        identity: From which proteins are relatives, 0-1.
        window: Residues of a window; 0: what the memory holds.
        top: Pairs that the table lists, as a multiple of the protein's length.
        resamples: Draws for intervals.
        seed: Of parts, samples, weights and draws.
        max_memory: MiB that the job may use; None: what there is.
    """

    methods: tuple[str, ...] = ("regression", "published")
    penalty: float = 0.15
    train_proteins: int = 20
    identity: float = 0.3
    window: int = 0
    top: float = 1.0
    resamples: int = 1000
    seed: int = 42
    max_memory: int | None = None


@dataclass(frozen=True)
class TopPairs:
    """The likeliest pairs of one protein, the likeliest first, 0-based.

    Attributes:
        rows: First residues; ``columns`` the other ones.
        columns: Behind the first in the sequence.
        probabilities: Of contact.
    """

    rows: Ints
    columns: Ints
    probabilities: Floats


@dataclass(frozen=True)
class ContactPrediction:
    """What came of one protein.

    Attributes:
        record: Number of the record.
        top: Its likeliest pairs by the chosen method.
        precisions: ``(9,)`` by method; empty where no contacts are known.
        windows: Windows that it went in.
        unseen: Pairs at least six apart that no window saw together.
        contacts: Known contacts at least 6, 12 and 24 apart; zeros where none are known.
    """

    record: int
    top: TopPairs
    precisions: dict[str, Floats]
    windows: int
    unseen: int
    contacts: tuple[int, int, int] = (0, 0, 0)

    def without_pairs(self) -> ContactPrediction:
        """The same for keeping, when the pairs are written."""
        nothing = np.empty(0, np.int64)
        return replace(self, top=TopPairs(nothing, nothing, np.empty(0)))


@dataclass
class ContactOutcome:
    """What a job came to.

    Attributes:
        heads: By title, in the order of trial.
        chosen: Title of the method that answers.
        parts: None without known contacts.
        precisions: ``(9,)`` by record and method.
        test: Means over the test proteins by method; empty without.
        valid: Likewise over the validation proteins.
        comparison: Of the chosen method with the baseline that is best on validation proteins, by TAPE's measure; None
            without test proteins.
        seen: Test records left out because the given head learned from them.
        fitted_pairs: Pairs that the heads learned from.
    """

    heads: dict[str, ContactHead]
    chosen: str
    parts: ContactParts | None
    precisions: dict[int, dict[str, Floats]] = field(default_factory=dict)
    test: dict[str, MeanPrecision] = field(default_factory=dict)
    valid: dict[str, MeanPrecision] = field(default_factory=dict)
    comparison: Comparison | None = None
    seen: int = 0
    fitted_pairs: int = 0


class ContactJob:
    """Contacts of some proteins by one model.

    Args:
        inputs: Proteins and what is known of them.
        loaded: The model.
        settings: What to do.
        stored: A head that was fitted before; None: fit or take what came with the model.
        splits: Table of parts; None: families are dealt out.
        log: Told plan and course.
    """

    def __init__(
        self, inputs: ContactInputs, loaded: LoadedModel, settings: ContactSettings, stored: StoredContactHead | None,
        splits: Path | None, log: logging.Logger,
    ) -> None:
        self.inputs, self.loaded, self.settings, self.stored, self._log = inputs, loaded, settings, stored, log
        room = capacity(loaded, settings.max_memory)
        self.reader = ContactReader(loaded, room, log, settings.window)
        self._room = room.room // _SHARE_OF_ROOM
        self._baselines: ContactBaselines | None = None
        published = published_regression(loaded)
        usable = usable_records(inputs)
        fits = stored is None and bool(usable) and bool({"regression", "pair"} & set(settings.methods))
        heads: dict[str, ContactHead] = {}
        if stored is not None:
            heads[TITLES[stored.head.method]] = stored.head
        elif published is not None and "published" in settings.methods:
            heads[TITLES["published"]] = published
        if not heads and not fits:
            raise UserError(
                "Nothing says how this model's attention tells of contacts: there are no known contacts to learn from, "
                "no head (--head), and the checkpoint has no contact regression of its own",
                where=loaded.files.id,
                fix="Give structures or a list of contacts, or a head of plm_contacts for this model",
            )
        parts = None
        if usable:
            divided = partial(
                divide, inputs, usable, splits if fits else None, train_proteins=settings.train_proteins,
                identity=settings.identity, threads=stage.threads(), seed=settings.seed,
            )
            try:
                parts = divided(fits=fits)
            except TooFewFamilies as error:
                if not heads:
                    raise
                log.warning("Nothing is fitted, and all proteins judge %s: %s", next(iter(heads)), error.what)
                fits, parts = False, divided(fits=False)
        self.outcome = ContactOutcome(heads, next(iter(heads), ""), parts)
        if stored is not None and parts is not None:
            self._leave_out_seen(stored, parts)
        self._fits = fits

    def _leave_out_seen(self, stored: StoredContactHead, parts: ContactParts) -> None:
        """Proteins that the given head learned from do not judge it."""
        seen = [
            record for record in parts.of(TEST) if fingerprint(self.inputs.sequence(record)) in stored.learned_from
        ]
        for record in seen:
            self.inputs.remark(record, "the given head learned from this protein: it does not judge")
        kept = {record: SEEN if record in set(seen) else part for record, part in parts.part.items()}
        self.outcome.parts = ContactParts(kept, parts.cluster, parts.told)
        self.outcome.seen = len(seen)

    # ------------------------------------------------------------------------------------------------------------- fit

    def fit(self) -> None:
        """Fits the heads that are wanted and chooses on validation proteins."""
        self._announce()
        parts = self.outcome.parts
        if not self._fits or parts is None:
            return
        train, valid = parts.of(TRAIN), parts.of(VALID)
        learned = self._gather(train, self.settings.seed)
        contacts = int(sum(protein.touches.sum() for protein in learned))
        self.outcome.fitted_pairs = sum(len(protein.touches) for protein in learned)
        if contacts < FEWEST_CONTACTS:
            raise UserError(
                f"The training proteins have {counted(contacts, 'contact')} at least {CLOSEST} residues apart",
                where=self.inputs.proteins.name, fix="Give more proteins with known contacts",
            )
        self._log.info(
            "Learning from %s of %s, %s of them contacts", counted(self.outcome.fitted_pairs, "pair"),
            counted(len(train), "protein"), f"{contacts:,}",
        )
        pairs = [self._known_pairs(record) for record in train]
        self._baselines = ContactBaselines(
            [columns - rows for rows, columns, _ in pairs], [touches for _, _, touches in pairs],
            [self._kinds(record, rows, columns) for record, (rows, columns, _) in zip(train, pairs, strict=True)],
        )
        heads = self.outcome.heads
        if "regression" in self.settings.methods:
            regression = fit_regression(self.reader, learned, self.settings.penalty, self.settings.seed)
            used = int((regression.weights != 0).sum())
            self._log.info("Regression: %d of %d attention heads count", used, regression.weights.numel())
            heads[TITLES["regression"]] = regression
        if "pair" in self.settings.methods:
            judged = self._gather(valid, self.settings.seed + 1)
            heads[TITLES["pair"]], _ = fit_pair_head(self.reader, learned, judged, self.settings.seed, self._log)
        self._choose(valid, parts)

    def _gather(self, records: Sequence[int], seed: int) -> list[LearningProtein]:
        sequences = [self.inputs.sequence(record) for record in records]
        known = [self.inputs.known[record] for record in records]
        return gather(self.reader, sequences, known, self._room, seed)

    def _choose(self, valid: Sequence[int], parts: ContactParts) -> None:
        made = {record: self.judge(record, bands) for record, bands in self._bands(valid)}
        names = [*self.outcome.heads, *BASELINES]
        for name in names:
            self.outcome.valid[name] = self._mean(name, [made[record][name] for record in valid], valid, parts)
        order: tuple[Method, ...] = ("published", "regression", "pair")
        titles = [TITLES[method] for method in order if TITLES[method] in self.outcome.heads]
        self.outcome.chosen = max(titles, key=lambda title: np.nan_to_num(self.outcome.valid[title].mean[CHOICE]))
        told = ", ".join(f"{title} {self.outcome.valid[title].mean[CHOICE]:.3f}" for title in titles)
        self._log.info("Precision at L on %s: %s", counted(len(valid), "validation protein"), told)

    def _mean(self, name: str, values: Sequence[Floats], records: Sequence[int], parts: ContactParts) -> MeanPrecision:
        groups = [parts.cluster[record] for record in records]
        return summarise(
            name, np.array(values), groups, resamples=self.settings.resamples, seed=self.settings.seed
        )

    # --------------------------------------------------------------------------------------------------------- predict

    def predict(self) -> Iterator[ContactPrediction]:
        """Every record that can be used, in the order of the input; the outcome is complete when all were taken."""
        records = [record for record, _ in self.inputs.proteins.embedded()]
        parts = self.outcome.parts
        total = sum(len(self.inputs.sequence(record)) for record in records)
        progress = stage.Progress(self._log, total, "residues", every=20.0)
        for record, bands in self._bands(records):
            judged = self.judge(record, bands) if parts is not None and record in parts.part else {}
            if judged:
                self.outcome.precisions[record] = judged
            sequence = self.inputs.sequence(record)
            windows = self.reader.windows(len(sequence))
            top, unseen = self.top(bands[self.outcome.chosen]), unseen_pairs(len(sequence), windows)
            contacts = self._contacts(record) if judged else (0, 0, 0)
            yield ContactPrediction(record, top, judged, len(windows), unseen, contacts)
            progress.advance(len(sequence))
        self._finish()

    def _bands(self, records: Sequence[int]) -> Iterator[tuple[int, Bands]]:
        sequences = [self.inputs.sequence(record) for record in records]
        yield from zip(records, self.reader.bands(sequences, self.outcome.heads), strict=True)

    def bands_of(self, record: int) -> NDArray[np.float32]:
        """The band of one record by the chosen method, again."""
        heads = {self.outcome.chosen: self.outcome.heads[self.outcome.chosen]}
        return next(iter(self.reader.bands([self.inputs.sequence(record)], heads)))[self.outcome.chosen]

    def top(self, band: NDArray[np.float32]) -> TopPairs:
        """The likeliest pairs at least six apart; equal ones in the order of the sequence."""
        rows, columns = pairs_of(*band.shape)
        values = band[rows, columns - rows].astype(np.float64)
        seen = np.isfinite(values)
        rows, columns, values = rows[seen], columns[seen], values[seen]
        count = min(len(values), max(1, round(self.settings.top * len(band))))
        if count < len(values):
            best = np.sort(np.argpartition(-values, count)[:count])
            rows, columns, values = rows[best], columns[best], values[best]
        order = np.argsort(-values, kind="stable")
        return TopPairs(rows[order], columns[order], values[order])

    def _known_pairs(self, record: int) -> tuple[Ints, Ints, NDArray[np.bool_]]:
        """Rows, columns and contacts of all pairs at least six apart whose contact is known."""
        length, known = len(self.inputs.sequence(record)), self.inputs.known[record]
        rows, columns = pairs_of(length, length)
        usable = known.known(rows, columns)
        rows, columns = rows[usable], columns[usable]
        return rows, columns, known.touch(rows, columns)

    def _kinds(self, record: int, rows: Ints, columns: Ints) -> Ints:
        codes = residue_codes(self.inputs.sequence(record))
        return np.stack([codes[rows], codes[columns]], axis=1)

    def judge(self, record: int, bands: Bands) -> dict[str, Floats]:
        """Precisions ``(9,)`` of every head and baseline on a protein with known contacts."""
        rows, columns, touches = self._known_pairs(record)
        separation, length = columns - rows, len(self.inputs.sequence(record))
        judged = {}
        for name, band in bands.items():
            inside = separation < band.shape[1]
            values = np.full(len(rows), np.nan)
            values[inside] = band[rows[inside], separation[inside]]
            judged[name] = precisions(values, touches, separation, length)
        kinds = self._kinds(record, rows, columns)
        for name in BASELINES:
            if self._baselines is not None:
                values = self._baselines.score(name, separation, kinds)
            elif name == BASELINES[0]:
                values = np.zeros(len(rows))
            elif name == BASELINES[1]:
                values = -separation.astype(np.float64)  # nothing was learned: near residues touch more often
            else:
                continue
            judged[name] = precisions(values, touches, separation, length)
        return judged

    def _contacts(self, record: int) -> tuple[int, int, int]:
        rows, columns, touches = self._known_pairs(record)
        far = (columns - rows)[touches]
        return int((far >= 6).sum()), int((far >= 12).sum()), int((far >= 24).sum())

    def _finish(self) -> None:
        """Means over the test proteins and the comparison with the better baseline."""
        outcome, parts = self.outcome, self.outcome.parts
        judged = [] if parts is None else [record for record in parts.of(TEST) if record in outcome.precisions]
        if parts is None or not judged:
            return
        for name in outcome.precisions[judged[0]]:
            values = [outcome.precisions[record][name] for record in judged]
            outcome.test[name] = self._mean(name, values, judged, parts)
        chosen = outcome.test[outcome.chosen]
        rivals = [name for name in BASELINES if name in outcome.test]
        known = outcome.valid or outcome.test  # validation chooses, where there is any
        best = outcome.test[max(rivals, key=lambda name: np.nan_to_num(known[name].mean[HEADLINE]))]
        drawn = None
        if len(chosen.resampled) and len(best.resampled):
            drawn = (chosen.resampled[:, HEADLINE], best.resampled[:, HEADLINE])
        means = (float(chosen.mean[HEADLINE]), float(best.mean[HEADLINE]))
        outcome.comparison = compare((chosen.method, best.method), "precision", means, drawn)

    def _announce(self) -> None:
        proteins, parts = self.inputs.proteins, self.outcome.parts
        lengths = proteins.lengths
        long = int((lengths > self.reader.whole).sum())
        known = "no contacts known" if parts is None else ", ".join(
            f"{len(parts.of(part))} {part}" for part in (TRAIN, VALID, TEST, SPARE, SEEN) if parts.of(part)
        )
        self._log.info(
            "Plan: %s (%s), longest %d, %s; %d maps of %d layers and %d heads, one layer of one window at a time",
            counted(len(proteins.accepted), "protein"), known, int(lengths.max()),
            f"{long} in windows of {self.reader.whole} residues" if long else "all whole", self.reader.features,
            self.loaded.layers, self.reader.features // self.loaded.layers,
        )
