"""
Labels in other files: read once, sorted by the digests of their ids into files of a temporary folder, and looked up
there for each piece of the predictions.

Memory is bounded whatever the number of labels: while they are read, by a piece; while they are sorted, by a bucket;
and when they are looked up, the operating system decides how much of the sorted files stays in memory.
"""

from __future__ import annotations

import mmap
import pickle
import shutil
import struct
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from otel_model_metrics.batch.ids import Words, expected, ids_of
from otel_model_metrics.batch.job import Job
from otel_model_metrics.batch.reading import ENDINGS, Piece, Progress, parts_of, pieces
from otel_model_metrics.batch.rows import Joined, column_of, is_nothing
from otel_model_metrics.columns import Coded, Column
from otel_model_metrics.files import FileError, InputError, find_files
from otel_model_metrics.ground_truth.outcomes import LabelOutcome

# Labels sorted at a time, some 100 bytes each.
BUCKET_ROWS = 1 << 19
# Different labels up to which a row's label is found by its number; then a million rows take a hundredth of a second.
FEW_VALUES = 1024
UNLABELLED = "unlabelled"

_BITS, _MORE_BITS = 6, 4  # of a digest, which decide the bucket: 64 open files are allowed everywhere
_LAST_SPLIT = 54  # when so many bits are the same, it is one id
_REMEMBERED, _REMEMBERED_LENGTH = 1 << 16, 256  # stored values that are not stored again
_LOOKED_UP = 2048  # rows whose labels are looked up at a time
_ROW_BITS = 40  # of the number that says in which file and row a label is

# A label is a word: the bits of a float; or, where these would mean NaN, what kind of value it is and 48 bits of it.
_KIND_BITS = np.uint64(48)
_STORED, _WHOLE, _TRUTH = 0xFFF8, 0xFFF9, 0xFFFA
_BOXED = np.uint64(_STORED << 48)
_PAYLOAD = (1 << 48) - 1
_MOST_WHOLE = 1 << 47
_MISSING = (1 << 64) - 1
_TOO_DEEP = _MISSING - 1

_FIRST, _SECOND, _LABEL, _SOURCE = range(4)  # columns of a record
_NAMES = ("first", "second", "labels", "sources")


@dataclass(frozen=True)
class Labels:
    """
    Where the labels of a job are; can be sent to other processes of the machine.

    Attributes:
        folder: The temporary folder with the sorted labels.
        rows: How many there are, one for each id.
        files: The files they are from.
        outcomes: Rows of the label files that gave no label of their own, by what became of them: ``duplicate`` and
            ``corrected`` as in `LabelOutcome`, ``unlabelled`` (there is no label yet), ``rejected`` (the row cannot be
            read, or has no usable id).
        first: Where the first one rejected is, and what is wrong with it.
        problems: What is wrong with files that could not be read, or not to the end.
    """

    folder: Path
    rows: int
    files: tuple[Path, ...]
    outcomes: Mapping[str, int]
    first: str
    problems: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain data fit for JSON."""
        values: dict[str, Any] = {**vars(self), "outcomes": dict(self.outcomes), "folder": str(self.folder)}
        return {**values, "files": [str(file) for file in self.files]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Labels:
        """What `to_dict` was called of."""
        files = tuple(Path(file) for file in values["files"])
        return cls(
            **{**values, "folder": Path(values["folder"]), "files": files, "problems": tuple(values["problems"])}
        )

    def counts(self, used: NDArray[np.uint8] | None) -> dict[str, int]:
        """
        What became of all labels.

        Args:
            used: A bit for each label that has a prediction, as `LabelTable.used`; None if none has.
        """
        bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, np.newaxis], axis=1).sum(axis=1)
        matched = 0 if used is None else int(np.bincount(used, minlength=256) @ bits)
        first = {LabelOutcome.MATCHED.value: matched, LabelOutcome.UNMATCHED.value: self.rows - matched}
        return {**first, **self.outcomes}


@contextmanager
def sorted_labels(
    files: str | Path | Sequence[str | Path] | None, job: Job, progress: Progress | None = None
) -> Iterator[Labels | None]:
    """
    Read the labels of a job and sort them, for as long as the block lasts.

    Args:
        files: One or several files, folders or patterns; none if the labels are beside the predictions.
        job: Its `id` and `label` name the columns.
        progress: As for `pieces`.

    Raises:
        InputError: If there is no such file or column, the job has no `id`, or there is no room for the labels.

    Of several labels for one id, the last in the order of files and rows counts.

    Cost: about 0.5 seconds for a million rows, and 64 bytes of disk for each (32 when they are sorted).
    """
    named = [] if files is None else [files] if isinstance(files, (str, Path)) else list(files)
    if not named:
        if job.id is not None:
            raise InputError(
                "id= (--id) joins labels in other files. Name these with labels= (--labels), or leave the id away."
            )
        yield None
        return
    if job.id is None:
        raise InputError("Labels in other files are joined by id. Name the column of the ids with id= (--id).")
    paths = find_files([str(one) for one in named], ENDINGS)
    with _told_lack_of_room():
        folder = Path(tempfile.mkdtemp(prefix="otel-model-metrics-"))
    try:
        yield _sorted(folder, paths, job, progress)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sorted(folder: Path, paths: Sequence[Path], job: Job, progress: Progress | None) -> Labels:
    with _Sorting(folder, job) as sorting:
        sorting.read(paths, progress)
        return sorting.finish()


@contextmanager
def _told_lack_of_room() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"The labels cannot be kept in temporary files: {error}. "
            "Name a folder with room for them in the environment variable TMPDIR."
        ) from error


class _Sorting:
    """Labels on their way to sorted files."""

    def __init__(self, folder: Path, job: Job) -> None:
        self._folder, self._job = folder, job
        self._outcomes = Counter[str]({outcome: 0 for outcome in ("duplicate", "corrected", UNLABELLED, "rejected")})
        self._first = ""
        self._problems: list[str] = []
        self._paths: dict[Path, int] = {}
        self._remembered: dict[str | bytes, int] = {}
        self._few: Words | None = np.zeros(0, np.uint64)
        self._rows = 0
        self._files = ExitStack()

    def __enter__(self) -> _Sorting:
        with _told_lack_of_room():
            self._heap: Any = self._files.enter_context((self._folder / "values").open("wb"))
            self._heap.write(b"\0")  # an empty file cannot be mapped into memory
            self._end = 1
        return self

    def __exit__(self, *error: object) -> None:
        self._files.close()

    # Reading

    def read(self, paths: Sequence[Path], progress: Progress | None) -> None:
        """Put all labels into buckets, in the order in which they are read."""
        wanted = self._job.wanted_of_labels
        parts = parts_of(paths, wanted)
        with ExitStack() as files, _told_lack_of_room():
            buckets = [files.enter_context(self._path("", at).open("wb")) for at in range(1 << _BITS)]
            for part in parts:
                reading = pieces(part, wanted, self._refuse, progress)
                while True:
                    try:
                        piece = next(reading, None)
                        if piece is None:
                            break
                        records = self._records(piece)
                    except FileError as error:
                        self._problems.append(str(error))
                        break
                    _divide(records, 0, buckets)

    def _refuse(self, reason: str, count: int, where: str) -> None:
        self._outcomes["rejected"] += count
        self._first = self._first or where

    def _records(self, piece: Piece) -> NDArray[np.uint64]:
        """Digest, label and source of each row that has them, shape ``(4, n)``."""
        raw = piece.columns[self._job.id_of_labels]
        ids = ids_of(raw, piece.text, f"{piece.path}: column {self._job.id_of_labels!r}")
        words = self._words(column_of(piece, self._job.label))
        too_deep = words == _TOO_DEEP
        rejected = ~ids.usable | too_deep
        if rejected.any():
            row = int(np.argmax(rejected))
            why = "a label that is nested too deeply." if too_deep[row] else expected_id(raw, row, ids.missing[row])
            where = f"{piece.path}, row {piece.row(row)}: {why}"
            self._refuse("", int(np.count_nonzero(rejected)), where)
        missing = (words == _MISSING) & ~rejected
        self._outcomes[UNLABELLED] += int(np.count_nonzero(missing))
        file = self._paths.setdefault(piece.path, len(self._paths)) << _ROW_BITS
        numbers = np.arange(piece.count) + piece.first_row if piece.numbers is None else piece.numbers
        records = np.stack([ids.first, ids.second, words, (numbers + file).astype(np.uint64)])
        return records if not (rejected | missing).any() else records[:, ~(rejected | missing)]

    def _words(self, column: Column) -> Words:
        if isinstance(column, Coded):
            return column.spread(self._words(list(column.values)))
        if isinstance(column, np.ndarray):
            if column.dtype.kind == "b":
                return column.astype(np.uint64) | np.uint64(_TRUTH << 48)
            if column.dtype.kind == "f":
                return np.where(np.isnan(column), np.uint64(_MISSING), column.astype(np.float64).view(np.uint64))
            if len(column) and int(column.min()) >= -_MOST_WHOLE and int(column.max()) < _MOST_WHOLE:
                return column.astype(np.int64).view(np.uint64) & np.uint64(_PAYLOAD) | np.uint64(_WHOLE << 48)
        values = column.tolist() if isinstance(column, np.ndarray) else column
        return np.array([self._word(value) for value in values], np.uint64)

    def _word(self, value: Any) -> int:
        if is_nothing(value):
            return _MISSING
        kind = type(value)
        if kind is bool:
            return _TRUTH << 48 | int(value)
        if kind is int and -_MOST_WHOLE <= value < _MOST_WHOLE:
            return _WHOLE << 48 | int(value) & _PAYLOAD
        if kind is float:
            return int(struct.unpack("<Q", struct.pack("<d", value))[0])
        place = self._remembered.get(value) if kind is str else None
        if place is None:
            try:
                data = pickle.dumps(value, 5)
            except RecursionError:
                return _TOO_DEEP
            key = value if kind is str else data
            place = self._remembered.get(key)
            if place is None:
                place = self._end
                self._heap.write(data)
                self._end += len(data)
                if len(key) <= _REMEMBERED_LENGTH and len(self._remembered) < _REMEMBERED:
                    self._remembered[key] = place
        return _STORED << 48 | place

    # Sorting

    def finish(self) -> Labels:
        """Sort what was read."""
        with _told_lack_of_room():
            self._files.close()
            self._remembered.clear()
            with ExitStack() as files:
                sorted_files = [files.enter_context((self._folder / name).open("wb")) for name in _NAMES]
                self._values = _values(self._folder)
                for at in range(1 << _BITS):
                    self._sort(self._path("", at), _BITS, sorted_files)
            np.save(self._folder / "few.npy", np.zeros(0, np.uint64) if self._few is None else self._few)
        paths = tuple(self._paths)
        return Labels(self._folder, self._rows, paths, dict(self._outcomes), self._first, tuple(self._problems))

    def _path(self, before: str, at: int) -> Path:
        return self._folder / f"{before}{at:02x}.bucket"

    def _sort(self, path: Path, bits: int, files: Sequence[Any]) -> None:
        """Append the labels of a bucket to the sorted files, or those of smaller buckets if it has too many of them."""
        kept = np.zeros((4, 0), np.uint64)
        with path.open("rb") as file:
            left = path.stat().st_size // 32  # rows
            while left:
                records = _read(file, left)
                left -= records.shape[1]
                kept = self._last_of_each(np.concatenate([kept, records], axis=1))
                if left and kept.shape[1] > BUCKET_ROWS and bits < _LAST_SPLIT:
                    break
            paths: list[Path] = []
            if left:
                paths = [self._path(path.stem, at) for at in range(1 << _MORE_BITS)]
                with ExitStack() as smaller:
                    buckets = [smaller.enter_context(one.open("wb")) for one in paths]
                    _divide(kept, bits, buckets)
                    while left:
                        records = _read(file, left)
                        left -= records.shape[1]
                        _divide(records, bits, buckets)
        path.unlink()
        for one in paths:
            self._sort(one, bits + _MORE_BITS, files)
        if paths:
            return
        self._rows += kept.shape[1]
        self._note(kept[_LABEL])
        for column, target in zip(kept, files, strict=True):
            np.ascontiguousarray(column).tofile(target)

    def _last_of_each(self, records: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """The records in the order of their digests, of each one the last; the others are counted."""
        records = records[:, np.argsort(records[_FIRST], kind="stable")]
        again = records[_FIRST, 1:] == records[_FIRST, :-1]
        if not again.any():
            return records
        if (records[_SECOND, 1:] != records[_SECOND, :-1])[again].any():  # half of a digest is the same by chance
            records = records[:, np.lexsort((records[_SECOND], records[_FIRST]))]
            again = records[_FIRST, 1:] == records[_FIRST, :-1]
        again &= records[_SECOND, 1:] == records[_SECOND, :-1]
        before, after = records[_LABEL, :-1][again], records[_LABEL, 1:][again]
        same = len(before) - self._different(before, after)
        self._outcomes["duplicate"] += same
        self._outcomes["corrected"] += len(before) - same
        return records[:, ~np.append(again, False)]

    def _different(self, before: Words, after: Words) -> int:
        """How many labels differ from those before them; 1, 1.0 and True do not."""
        differ = before != after
        before, after = before[differ], after[differ]
        floats = (before < _BOXED) & (after < _BOXED)
        count = int(np.count_nonzero(before[floats].view(np.float64) != after[floats].view(np.float64)))
        pairs, times = np.unique(np.stack([before, after])[:, ~floats], axis=1, return_counts=True)
        for one, other, often in zip(*pairs.tolist(), times.tolist(), strict=True):
            if _value(one, self._values) != _value(other, self._values):
                count += often
        return count

    def _note(self, words: Words) -> None:
        """Note which labels there are, while they are few."""
        if self._few is None:
            return
        for some in (words[:FEW_VALUES], words):
            at = np.minimum(np.searchsorted(self._few, some), max(len(self._few) - 1, 0))
            new = np.unique(some[self._few[at] != some] if len(self._few) else some)
            self._few = np.sort(np.concatenate([self._few, new]))
            if len(self._few) > FEW_VALUES:
                self._few = None
                return


def expected_id(raw: Any, row: int, missing: Any) -> str:
    """What is wrong with the id in a row of a column, as a piece has it."""
    if missing:
        return "there is no id."
    value = raw[row]
    return expected(value if isinstance(raw, list) else value.as_py())


def _read(file: Any, rows: int) -> NDArray[np.uint64]:
    """The next records of a bucket, at most so many, shape ``(4, n)``."""
    return np.fromfile(file, np.uint64, 4 * min(rows, BUCKET_ROWS)).reshape(-1, 4).T


def _divide(records: NDArray[np.uint64], bits: int, buckets: Sequence[Any]) -> None:
    """Append records to the buckets that the bits of their digests after the first `bits` tell."""
    more = len(buckets).bit_length() - 1
    of = (records[_FIRST] << np.uint64(bits) >> np.uint64(64 - more)).astype(np.uint8)
    rows = np.ascontiguousarray(records.T[np.argsort(of, kind="stable")])
    end = 0
    for at, count in enumerate(np.bincount(of, minlength=len(buckets)).tolist()):
        if count:
            buckets[at].write(rows[end : end + count].data.cast("B"))
            end += count


# Looking up


class LabelTable:
    """
    Sorted labels, opened to be looked up by one process.

    Args:
        labels: Where they are.
        job: Its `id` names the column of the ids.

    Raises:
        InputError: If this machine does not have them.

    Attributes:
        labels: The same.
        used: A bit for each label, set if it was found; shape ``(ceil(labels.rows / 8),)``.
        without_id: Rows of the predictions that have no id.

    Cost: about 0.3 microseconds a row.
    """

    def __init__(self, labels: Labels, job: Job) -> None:
        self.labels = labels
        self._job = job
        try:
            self._columns = [_mapped(labels.folder / name, labels.rows) for name in _NAMES]
            few = np.load(labels.folder / "few.npy")
            self._values = _values(labels.folder)
        except OSError as error:
            raise InputError(
                f"The sorted labels in {labels.folder} cannot be read here: {error}. If other machines take part, "
                "name a folder that all of them share in the environment variable TMPDIR."
            ) from error
        self._few: Words | None = None
        if len(few):
            self._few = np.append(few, np.uint64(_MISSING))
            self._of_few = [_value(word, self._values) for word in self._few.tolist()]
        self.used = np.zeros(-(-labels.rows // 8), np.uint8)
        self.without_id = 0

    def __enter__(self) -> LabelTable:
        return self

    def __exit__(self, *error: object) -> None:
        """Let go of the files, so that they can be removed everywhere."""
        self._columns.clear()
        self._values = memoryview(b"")

    def join(self, piece: Piece) -> Joined:
        """
        The labels of the rows of a piece; rows with the same id all get it.

        Raises:
            FileError: If its column cannot hold ids.
        """
        assert self._job.id is not None
        raw = piece.columns[self._job.id]
        ids = ids_of(raw, piece.text, f"{piece.path}: column {self._job.id!r}")
        self.without_id += int(np.count_nonzero(ids.missing))
        places = self._places(ids.first, ids.second)
        places[~ids.usable] = -1
        found = places >= 0
        words = np.full(piece.count, _MISSING, np.uint64)
        if found.any():
            hits = places[found]
            words[found] = self._columns[_LABEL][hits]
            np.bitwise_or.at(self.used, hits >> 3, np.left_shift(1, hits & 7).astype(np.uint8))
        return Joined(
            self._column(words),
            ids.unusable,
            lambda row: expected_id(raw, row, False),
            lambda row: self._source(int(places[row])),
        )

    def _places(self, first: Words, second: Words) -> NDArray[np.int64]:
        """Which label each digest has; -1 for none."""
        rows = self.labels.rows
        if not rows:
            return np.full(len(first), -1)
        # In order, so that neighbours in memory, or on disk, are looked at one after the other.
        order = np.argsort(first)
        wanted, other = first[order], second[order]
        of_first, of_second = self._columns[_FIRST], self._columns[_SECOND]
        at = _found(of_first, wanted)
        at[at == rows] = 0
        same = of_first[at] == wanted
        agrees = of_second[at] == other
        for row in np.flatnonzero(same & ~agrees).tolist():  # half of a digest is the same by chance
            while at[row] + 1 < rows and of_first[at[row] + 1] == wanted[row] and not agrees[row]:
                at[row] += 1
                agrees[row] = of_second[at[row]] == other[row]
        places = np.empty(len(first), np.int64)
        places[order] = np.where(same & agrees, at, -1)
        return places

    def _column(self, words: Words) -> Column:
        """Labels as they would be in a column of the file."""
        if self._few is not None:
            codes = np.searchsorted(self._few, words)
            return _by_appearance(self._of_few, codes)
        kinds = words >> _KIND_BITS
        whole, missing = kinds == _WHOLE, words == _MISSING
        if whole.all():
            return _whole(words)
        if (whole | missing | (words < _BOXED)).all():
            floats = words.view(np.float64).copy()  # a missing one is NaN
            floats[whole] = _whole(words[whole])
            return floats
        distinct, codes = np.unique(words, return_inverse=True)
        return _by_appearance([_value(word, self._values) for word in distinct.tolist()], codes)

    def _source(self, place: int) -> str:
        source = int(self._columns[_SOURCE][place])
        return f"{self.labels.files[source >> _ROW_BITS]}, row {source & (1 << _ROW_BITS) - 1}"


def _found(keys: Words, wanted: Words) -> NDArray[np.int64]:
    """`np.searchsorted` of what is in order itself: a few at a time, whose keys stay in the caches of a processor."""
    at = np.empty(len(wanted), np.int64)
    begins = np.arange(0, len(wanted), _LOOKED_UP)
    low = np.searchsorted(keys, wanted[begins])
    high = np.append(low, len(keys))[1:]
    for begin, first, last in zip(begins.tolist(), low.tolist(), high.tolist(), strict=True):
        rows = slice(begin, begin + _LOOKED_UP)
        at[rows] = np.searchsorted(keys[first:last], wanted[rows]) + first
    return at


def _mapped(path: Path, rows: int) -> NDArray[np.uint64]:
    # As a plain array, for memmap itself is slow to index. The file is closed when nobody has the array any more.
    return np.asarray(np.memmap(path, np.uint64, "r", shape=(rows,))) if rows else np.zeros(0, np.uint64)


def _values(folder: Path) -> memoryview:
    """The stored values; closed likewise."""
    with (folder / "values").open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _value(word: int, values: memoryview) -> Any:
    kind, payload = word >> 48, word & _PAYLOAD
    if word == _MISSING:
        return None
    if kind == _STORED:
        return pickle.loads(values[payload:])  # of our own writing, in a folder that is ours alone
    if kind == _WHOLE:
        return payload - (payload >> 47 << 48)
    return bool(payload) if kind == _TRUTH else struct.unpack("<d", struct.pack("<Q", word))[0]


def _whole(words: Words) -> NDArray[np.int64]:
    return (words << np.uint64(16)).view(np.int64) >> 16  # the 48th bit is the sign


def _by_appearance(values: Sequence[Any], codes: NDArray[np.integer]) -> Coded:
    """Only values that are there, in the order in which they are met, as a file would have them."""
    first = np.full(len(values), len(codes))
    first[codes[::-1]] = np.arange(len(codes))[::-1]
    met = np.argsort(first, kind="stable")[: np.count_nonzero(first < len(codes))]
    places = np.zeros(len(values), np.int64)
    places[met] = np.arange(len(met))
    return Coded([values[at] for at in met.tolist()], places[codes])
