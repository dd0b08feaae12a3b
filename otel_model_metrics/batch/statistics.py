"""
Statistics: what is kept of any number of rows, by window and segment. Those of two parts add up to those of both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from otel_model_metrics import catalog
from otel_model_metrics.batch.container import packed, unpacked
from otel_model_metrics.batch.job import Job
from otel_model_metrics.batch.labels import Labels, LabelTable
from otel_model_metrics.batch.reading import Piece, pieces_of_table
from otel_model_metrics.batch.rows import MOST_VALUES, RowReader, Rows
from otel_model_metrics.encoding import UNKNOWN_CLASS
from otel_model_metrics.files import FileError, InputError
from otel_model_metrics.statistics.summaries import Summary
from otel_model_metrics.vocabulary import OTHER

Segment = tuple[str, str]
Sums = dict[str, NDArray[Any]]

# More windows than this are a mistake in the length of a window, or in a column of times.
MOST_WINDOWS = 20_000
# Rows kept in all, as a multiple of those kept for one window.
_MOST_KEPT = 40
_NEVER = np.iinfo(np.int64).max


@dataclass
class Kept:
    """
    Rows for metrics that need rows, while they are few; a summary of them from then on.

    Attributes:
        pieces: The rows, as `catalog.rows_of` gives them.
        rows: How many they are.
        summary: Of the rows, if they were too many to keep.
    """

    pieces: list[Sums] = field(default_factory=list)
    rows: int = 0
    summary: Summary | None = None

    def columns(self) -> Sums:
        """The rows that are kept, as one."""
        if len(self.pieces) > 1:
            names = self.pieces[0]
            self.pieces = [{name: np.concatenate([piece[name] for piece in self.pieces]) for name in names}]
        return self.pieces[0] if self.pieces else {}

    def summarised(self, task: catalog.Task) -> Summary:
        """A summary of the rows, kept or not."""
        return self.summary if self.summary is not None else catalog.SUMMARIES[task].of(**self.columns())

    def merge(self, other: Kept, task: catalog.Task, most: int) -> Kept:
        """The rows of both, which stay as they are."""
        total = self.rows + other.rows
        if self.summary is None and other.summary is None and total <= most:
            return Kept([*self.pieces, *other.pieces], total)
        parts = [one.summarised(task) for one in (self, other) if one.rows]
        return Kept([], total, parts[0].merge(parts[1]) if len(parts) > 1 else parts[0])


class Statistics:
    """
    Additive statistics of some rows of a job.

    Args:
        job: What is evaluated.

    Attributes:
        windows: Number of each window that has rows, in the order in which they were met: it begins at this many
            times the job's length of a window since 1970. Always 0 without a column of times.
        segments: Name and value of each group; None for group 0, the whole.
        classes: Names of the classes, in the order of their codes; none for a task without.
        sums: The encoder's statistics, each of shape ``(W, G, ...)``; ``unlabelled`` of shape ``(W, G, C)``.
        oldest: Microseconds since 1970 of the oldest labelled row of each window, shape ``(W,)``.
        kept: By window and group, the rows for metrics that need rows.
        rejected: Rows that could not be used, by reason.
        first: For each reason where the first one is, and what is wrong with it.
        problems: What is wrong with files that could not be read, or not to the end.
        rows: All rows read, with those rejected.
        crowded: Names of segments of which more values were met than can be told apart.
        labels: Where labels are, if they are in other files.
        used: A bit for each of these that has a prediction; None if none has.
        without_id: Rows that have no id, and so no label.

    Cost: memory for windows x groups x statistics, and for `Job.exact_rows` rows of a window where metrics need rows.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.windows: list[int] = []
        self.segments: list[Segment | None] = [None]
        self.classes: list[str] = []
        self.sums: Sums = {}
        self.oldest: NDArray[np.int64] = np.zeros(0, np.int64)
        self.kept: dict[tuple[int, Segment | None], Kept] = {}
        self.rejected: Counter[str] = Counter()
        self.first: dict[str, str] = {}
        self.problems: list[str] = []
        self.rows = 0
        self.crowded: set[str] = set()
        self.labels: Labels | None = None
        self.used: NDArray[np.uint8] | None = None
        self.without_id = 0

    @classmethod
    def of(cls, job: Job, pieces: Iterable[Piece], labels: Labels | None = None) -> Statistics:
        """
        The statistics of some pieces of a file, one after the other.

        Args:
            job: What is evaluated.
            pieces: The rows.
            labels: Where labels are, for a job with an `id`.

        Raises:
            InputError: If a job with an `id` has no labels, or this machine does not have them.
        """
        if labels is None and job.id is not None:
            raise InputError(f"Labels are joined by {job.id!r}, so there must be labels=; or leave out id=.")
        statistics = cls(job)
        statistics.labels = labels
        with nullcontext() if labels is None else LabelTable(labels, job) as table:
            reader = RowReader(job, statistics.refuse, table)
            for piece in pieces:
                statistics.add(piece, reader)
            statistics.finish(reader)
            if table is not None:
                statistics.used, statistics.without_id = table.used, table.without_id
        return statistics

    @classmethod
    def of_table(cls, job: Job, table: Any, name: str = "table") -> Statistics:
        """
        The statistics of a table in memory: those of a file of Parquet that has the same rows in one part.

        Args:
            job: What is evaluated. Labels must be beside the predictions.
            table: A `pandas.DataFrame`, `pyarrow.Table` or `pyarrow.RecordBatch`, or another object that pyarrow can
                make a table of (polars, DuckDB). Other columns than the job's may be in it.
            name: Stands for the file in what is said of rows that cannot be used.

        Raises:
            InputError: If a column is missing, or cannot be understood at all. A ValueError.
            TypeError: If it is no table.

        Cost: about 0.1 seconds for a million rows with two segments.
        """
        try:
            unreadable: list[tuple[str, int, str]] = []
            statistics = cls.of(job, pieces_of_table(table, job.wanted, lambda *one: unreadable.append(one), name))
        except FileError as error:
            raise InputError(str(error)) from error
        for refused in unreadable:
            statistics.refuse(*refused)
            statistics.rows += refused[1]
        return statistics

    def to_bytes(self) -> bytes:
        """
        All of it as bytes that `from_bytes` understands, also on another machine and with another version of Python.

        Cost: as for `container.packed`; a few kB for windows x segments, and at most 16 bytes for each row kept.
        """
        arrays = {f"sums {name}": values for name, values in self.sums.items()}
        arrays["oldest"] = self.oldest
        if self.used is not None:
            arrays["used"] = self.used
        kept = []
        for number, ((window, segment), one) in enumerate(self.kept.items()):
            kept.append([window, self.segments.index(segment), one.rows, one.summary is not None])
            columns = one.columns() if one.summary is None else one.summary.state()
            arrays.update({f"kept {number} {name}": values for name, values in columns.items()})
        header = {
            "job": self.job.fingerprint,
            "windows": self.windows,
            "segments": self.segments,
            "classes": self.classes,
            "kept": kept,
            "rejected": self.rejected,
            "first": self.first,
            "problems": self.problems,
            "rows": self.rows,
            "crowded": sorted(self.crowded),
            "labels": None if self.labels is None else self.labels.to_dict(),
            "without_id": self.without_id,
        }
        return packed(header, arrays)

    @classmethod
    def from_bytes(cls, job: Job, data: bytes | bytearray | memoryview) -> Statistics:
        """
        What `to_bytes` was called of.

        Args:
            job: The job that it was, which is not in the bytes.
            data: The bytes; nothing in them is run, so they may come from anywhere.

        Raises:
            ValueError: If they are cut, damaged or something else, or of another job.
        """
        header, arrays = unpacked(data)
        job.need_same(header["job"])
        statistics = cls(job)
        statistics.windows = header["windows"]
        statistics.segments = [None if one is None else (one[0], one[1]) for one in header["segments"]]
        statistics.classes = header["classes"]
        statistics.oldest = arrays["oldest"]
        statistics.used = arrays.get("used")
        by_owner: dict[str, Sums] = {}
        for name, values in arrays.items():
            owner, _, column = name.rpartition(" ")
            by_owner.setdefault(owner, {})[column] = values
        statistics.sums = by_owner.get("sums", {})
        for number, (window, segment, rows, is_summary) in enumerate(header["kept"]):
            columns = by_owner[f"kept {number}"]
            summary = catalog.SUMMARIES[job.task].from_state(columns) if is_summary else None
            key = window, statistics.segments[segment]
            statistics.kept[key] = Kept([] if is_summary else [columns], rows, summary)
        statistics.rejected.update(header["rejected"])
        statistics.first = header["first"]
        statistics.problems = header["problems"]
        statistics.rows = header["rows"]
        statistics.crowded = set(header["crowded"])
        statistics.labels = None if header["labels"] is None else Labels.from_dict(header["labels"])
        statistics.without_id = header["without_id"]
        return statistics

    def refuse(self, reason: str, count: int, where: str) -> None:
        """Count rows that cannot be used."""
        self.rejected[reason] += count
        self.first.setdefault(reason, where)

    def add(self, piece: Piece, reader: RowReader) -> None:
        """Add the rows of a piece. All pieces of one object go through the same reader."""
        self.rows += piece.count
        self._add_rows(reader.read(piece), reader)

    def finish(self, reader: RowReader) -> None:
        """Note what is only known at the end of a part."""
        self.crowded |= {one[0] for one in reader.segments.groups if one is not None and one[1] == OTHER}

    def merge(self, other: Statistics) -> Statistics:
        """
        The statistics of the rows of both, which stay as they are.

        Counts are the same in whatever order parts are merged; sums of numbers differ in rounding, and the order of
        segments and classes is that in which they are met.

        Raises:
            ValueError: If the other ones are of another job, or joined with other labels.
        """
        if self.job is not other.job:
            self.job.need_same(other.job.fingerprint)
        merged = Statistics(self.job)
        merged.crowded = self.crowded | other.crowded
        if self.labels is not None and other.labels is not None and self.labels != other.labels:
            raise ValueError(
                f"Statistics joined with different labels cannot be added up: those sorted in {self.labels.folder} "
                f"and in {other.labels.folder}."
            )
        merged.labels = self.labels or other.labels
        used = [one.used for one in (self, other) if one.used is not None]
        merged.used = used[0] | used[1] if len(used) > 1 else used[0] if used else None
        merged.without_id = self.without_id + other.without_id
        for one in (self, other):
            classes = merged._class_places(one)
            groups = merged._group_places(one, self, other)
            windows = merged._window_places(one.windows)
            merged._place(one.sums, windows, groups, classes)
            np.minimum.at(merged.oldest, windows, one.oldest)
            for (window, segment), kept in one.kept.items():
                key = window, merged.segments[groups[one.segments.index(segment)]]
                before = merged.kept.get(key)
                merged.kept[key] = kept if before is None else before.merge(kept, self.job.task, self.job.exact_rows)
            merged.rejected.update(one.rejected)
            for reason, where in one.first.items():
                merged.first.setdefault(reason, where)
            merged.problems += one.problems
            merged.rows += one.rows
        merged._keep_no_more_than()
        return merged

    def with_segments_within(self, most: int) -> Statistics:
        """
        The same with at most so many values of each segment name: those with the most rows. The rest is ``__other__``.
        """
        rows = self.predictions().sum(axis=0)
        groups = list(range(len(self.segments)))
        kept: set[Segment | None] = {None}
        for name in {segment[0]: None for segment in self.segments if segment is not None}:
            values = [at for at, one in enumerate(self.segments) if one is not None and one[0] == name]
            values = [at for at in values if self.segments[at] != (name, OTHER)]
            values.sort(key=lambda at: (-rows[at], str(self.segments[at])))
            kept |= {self.segments[at] for at in values[:most]}
        if all(one in kept or (one is not None and one[1] == OTHER) for one in self.segments):
            return self
        result = Statistics(self.job)
        result.segments += [one for one in self.segments if one is not None and one in kept]
        for at in groups:
            segment = self.segments[at]
            if segment is not None and segment not in kept:
                segment = segment[0], OTHER
            if segment not in result.segments:
                result.segments.append(segment)
            groups[at] = result.segments.index(segment)
        windows = result._window_places(self.windows)
        result.classes = self.classes
        result._place(self.sums, windows, np.array(groups), np.arange(len(self.classes)))
        result.oldest = self.oldest
        for (window, segment), rows_kept in self.kept.items():
            key = window, result.segments[groups[self.segments.index(segment)]]
            before = result.kept.get(key)
            result.kept[key] = (
                rows_kept if before is None else before.merge(rows_kept, self.job.task, self.job.exact_rows)
            )
        for name in ("rejected", "first", "problems", "rows", "crowded", "labels", "used", "without_id"):
            setattr(result, name, getattr(self, name))
        return result

    def labelled(self) -> NDArray[np.int64]:
        """Labelled rows of each window and group, shape ``(W, G)``."""
        if not self.sums:
            return np.zeros((0, len(self.segments)), np.int64)
        if "matrix" in self.sums:
            return np.asarray(self.sums["matrix"].sum(axis=(2, 3)))
        return np.asarray(self.sums["n"])

    def predictions(self) -> NDArray[np.int64]:
        """All usable rows of each window and group, shape ``(W, G)``."""
        return self.labelled() + (self.sums["unlabelled"].sum(axis=2) if self.sums else 0)

    # Adding rows

    def _add_rows(self, rows: Rows, reader: RowReader) -> None:
        predicted, sets, windows = rows.unlabelled
        met, local = np.unique(np.concatenate([rows.windows, windows]), return_inverse=True)
        of_labelled, of_others = np.split(local, [len(rows.windows)])
        table, count = reader.segments, len(met)
        self.segments = list(table.groups)
        self.classes = reader.encoder.classes()
        places = self._window_places(met.tolist())
        if not count:
            return
        groups = table.groups_of(rows.sets).in_windows(of_labelled, count)
        sums = reader.encoder.sums(rows.columns, groups, len(self.classes))
        others = table.groups_of(sets).in_windows(of_others, count)
        sums["unlabelled"] = reader.encoder.unlabelled(predicted, others)
        shaped = {name: values.reshape(count, len(self.segments), *values.shape[1:]) for name, values in sums.items()}
        self._place(shaped, places, np.arange(len(self.segments)), np.arange(len(self.classes)))
        oldest = np.full(count, _NEVER)
        np.minimum.at(oldest, of_labelled, rows.micros)
        self.oldest[places] = np.minimum(self.oldest[places], oldest)
        self._keep(rows, of_labelled, met, reader)

    def _keep(self, rows: Rows, local: NDArray[np.int64], met: NDArray[np.int64], reader: RowReader) -> None:
        """Rows for metrics that need them, of the whole of each window, and of segments if they have such metrics."""
        selection, task = self.job.selection, self.job.task
        needing = [metric for metric in selection.metrics if metric.needs_rows(task)]
        if not needing or not len(local):
            return
        given, used = catalog.rows_of(task, rows.columns)
        windows, sets = (local, rows.sets) if used is None else (local[used], rows.sets[used])
        groups = reader.segments.groups_of(sets)
        in_segments = any(metric.name in selection.in_segments for metric in needing)
        for at, window in enumerate(met.tolist()):
            inside = windows == at if len(met) > 1 else np.ones(len(windows), np.bool_)
            for group in range(groups.count if in_segments else 1):
                chosen = inside & groups.members(group) if group else inside
                count = int(np.count_nonzero(chosen))
                if not count:
                    continue
                key = window, reader.segments.groups[group]
                more = Kept([{name: column[chosen] for name, column in given.items()}], count)
                self.kept[key] = self.kept.get(key, Kept()).merge(more, task, self.job.exact_rows)
        self._keep_no_more_than()

    def _keep_no_more_than(self) -> None:
        if sum(one.rows for one in self.kept.values() if one.summary is None) > _MOST_KEPT * self.job.exact_rows:
            task = self.job.task
            self.kept = {key: Kept([], one.rows, one.summarised(task)) for key, one in self.kept.items()}

    # Places of windows, groups and classes

    def _window_places(self, windows: Sequence[int]) -> NDArray[np.int64]:
        known = {window: at for at, window in enumerate(self.windows)}
        places = [known.setdefault(window, len(known)) for window in windows]
        if len(known) > MOST_WINDOWS:
            raise InputError(
                f"There are more than {MOST_WINDOWS:,} windows of {self.job.every}. Choose a longer one with --every, "
                f"or look at the column of times, {self.job.time!r}."
            )
        self.windows = list(known)
        grown = np.full(len(known), _NEVER)
        grown[: len(self.oldest)] = self.oldest
        self.oldest = grown
        return np.array(places, np.int64)

    def _class_places(self, one: Statistics) -> NDArray[np.int64]:
        """Where classes of other statistics are in these; -1 for those beyond the bound, whose rows are rejected."""
        known = {name: at for at, name in enumerate(self.classes)}
        places = []
        for name in one.classes:
            if name not in known and (len(known) < self.job.max_classes or self.job.classes is not None):
                known[name] = len(known)
            places.append(known.get(name, -1))
        self.classes = list(known)
        gone = np.flatnonzero(np.array(places, np.int64) < 0)
        if len(gone):
            matrix = one.sums["matrix"][:, 0].sum(axis=0)
            inside = np.delete(np.delete(matrix, gone, axis=0), gone, axis=1).sum()
            count = int(matrix.sum() - inside + one.sums["unlabelled"][:, 0][:, gone].sum())
            self.refuse(
                UNKNOWN_CLASS,
                count,
                f"{one.classes[gone[0]]!r} is one class more than {self.job.max_classes}. Raise --max-classes, or "
                "group rare classes before.",
            )
        return np.array(places, np.int64)

    def _group_places(self, one: Statistics, *both: Statistics) -> NDArray[np.int64]:
        """
        Where groups of other statistics are in these.

        A part that met too many values of a name does not know which of its ``__other__`` rows have a value that the
        other part knows. So of such a name only those are told apart that both know; every one of them is exact.
        """

        def place(segment: Segment | None) -> int:
            if segment is not None and segment[0] in self.crowded:
                for statistics in both:
                    if segment[0] in statistics.crowded and segment not in statistics.segments:
                        segment = segment[0], OTHER
            if segment not in known:
                name = None if segment is None else segment[0]
                if segment is not None and segment[1] != OTHER and counts[name] >= MOST_VALUES:
                    self.crowded.add(segment[0])
                    return place((segment[0], OTHER))
                counts[name] += 1
                known[segment] = len(known)
            return known[segment]

        known = {segment: at for at, segment in enumerate(self.segments)}
        counts = Counter(None if segment is None else segment[0] for segment in self.segments)
        places = [place(segment) for segment in one.segments]
        self.segments = list(known)
        return np.array(places, np.int64)

    def _place(
        self, sums: Sums, windows: NDArray[np.int64], groups: NDArray[np.int64], classes: NDArray[np.int64]
    ) -> None:
        """Add statistics whose windows, groups and classes have these places here."""
        shape = len(self.windows), len(self.segments)
        has_classes = bool(self.classes)
        kept = np.flatnonzero(classes >= 0)
        distinct = len(np.unique(groups)) == len(groups)
        for name, values in sums.items():
            of_classes = {"matrix": 2, "unlabelled": 1}.get(name, 0) if has_classes else 0
            for axis in range(2, 2 + of_classes):
                values = values.take(kept, axis=axis)
            further = (len(self.classes),) * of_classes + values.shape[2 + of_classes :]
            total = _grown(self.sums.get(name), (*shape, *further), values.dtype)
            where = np.ix_(windows, groups, *[classes[kept]] * of_classes)
            if distinct:
                total[where] += values
            else:
                np.add.at(total, where, values)
            self.sums[name] = total


def _grown(values: NDArray[Any] | None, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    if values is not None and values.shape == shape:
        return values
    grown = np.zeros(shape, dtype)
    if values is not None:
        grown[tuple(slice(size) for size in values.shape)] = values
    return grown
