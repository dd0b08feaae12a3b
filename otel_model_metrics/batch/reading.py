"""
Files of predictions as columns: a file is divided into Parts, and each Part is read as Pieces, one after the other.

A Part can be read by any process, and depends on nothing but its file. Memory is bounded by a Piece, not by the file.
What is wrong with one row costs that row, what is wrong with one file the rest of the Part; both are told, and
everything else is read. What the columns mean is not known here.
"""

from __future__ import annotations

import codecs
import csv
import json
import re
import urllib.parse
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from json.scanner import make_scanner
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from otel_model_metrics import files
from otel_model_metrics.files import ColumnError, FileError

JSONL = (*files.JSONL, ".ndjson", ".ndjson.gz")
ARROW = (".arrow", ".arrows", ".feather", ".ipc")
ENDINGS = (*files.PARQUET, *files.CSV, *JSONL, *ARROW)

# With half of it Parquet is a tenth slower, with twice as much CSV is a third slower, for the caches of a processor.
PIECE_ROWS = 131_072
PART_ROWS = 1_000_000

_CSV_BLOCK = 1 << 22  # bytes; a quarter of it is as fast, and saves 30 of 150 MB
_LONGEST_ROW = files.LONGEST_LINE
_JSONL_BLOCK = 1 << 16
_HEADER_BLOCK = 1 << 16
_LONGEST_HEADER = 1 << 20
_IN_EVERY_ROW = ("prediction", "score", "time", "id")  # of JSONL; labels and segments may come later, or never

_UNREADABLE = "unreadable_row"
_LAST_ROW = "\x03"  # put after the last row of CSV: if it is not read as a row, a quote before it was never closed
_NOT_UTF8 = b"\x1a"  # the control character "substitute", for bytes of CSV that are no UTF-8
_KEY = re.compile(r"([^=]+)=(.*)", re.DOTALL)

Refuse = Callable[[str, int, str], None]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Wanted:
    """
    Which columns are read.

    Args:
        options: Options of the command, without their dashes, each with the columns that it names.
        coded: Columns with few different values, such as predictions and segments; text in them is read as a
            dictionary.
        delimiter: What separates the cells of CSV.
    """

    options: Mapping[str, tuple[str, ...]]
    coded: frozenset[str] = frozenset()
    delimiter: str = ","

    def __post_init__(self) -> None:
        if len(self.delimiter) != 1 or self.delimiter in '"\r\n':
            raise ValueError(f"The delimiter of CSV must be one character such as ; or a tab, got {self.delimiter!r}.")

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Each column once, with the first option that names it."""
        first: dict[str, str] = {}
        for option, names in self.options.items():
            for name in names:
                first.setdefault(name, option)
        return [(option, name) for name, option in first.items()]

    @property
    def names(self) -> list[str]:
        """Each column once."""
        return [name for _, name in self.pairs]


@dataclass(frozen=True)
class Part:
    """
    A piece of a file that can be read on its own.

    Attributes:
        path: The file.
        size: Bytes of the file that it stands for.
        first_row: Number of its first row in the file; the first one is 1, a header does not count.
        rows: How many it has; None if nobody knows before they are read.
        groups: First and last (exclusive) of the row groups of Parquet, or record batches of Arrow; None for all.
    """

    path: Path
    size: int
    first_row: int = 1
    rows: int | None = None
    groups: tuple[int, int] | None = None

    def __str__(self) -> str:
        if self.rows is None:
            return str(self.path)
        return f"{self.path}, rows {self.first_row:,} to {self.first_row + self.rows - 1:,}"


@dataclass(frozen=True)
class Piece:
    """
    Some rows of a file, as columns.

    Attributes:
        path: The file.
        first_row: Number of the first row in the file.
        count: How many rows.
        columns: By name, each wanted one: a pyarrow Array, or a list for JSONL.
        text: Whether cells are text as it was written, with None for empty ones; otherwise they have the types of
            the file.
        numbers: Number of each row in the file, if rows between them were refused.
        keys: Columns that are not in the file but in its path, and so are text even if others have types.
    """

    path: Path
    first_row: int
    count: int
    columns: dict[str, Any]
    text: bool = False
    numbers: np.ndarray[Any, np.dtype[np.int64]] | None = field(default=None, repr=False)
    keys: frozenset[str] = frozenset()

    def row(self, index: int) -> int:
        """Number in the file of the row at an index, for messages."""
        return self.first_row + index if self.numbers is None else int(self.numbers[index])


def parts_of(paths: Iterable[Path], wanted: Wanted) -> list[Part]:
    """
    Divide files into parts, by their metadata only.

    The parts depend on nothing but the files, so that whoever merges results in their order gets the same result with
    any number of workers. A file that cannot be read is no error here: reading its part says so.

    Raises:
        ColumnError: If a file has no such column, or more than one of that name.
    """
    parts: list[Part] = []
    for path in paths:
        try:
            with files.told_faults(path):
                parts += _divided(path, wanted)
        except FileError:
            parts.append(Part(path, path.stat().st_size if path.exists() else 0))
    return parts


def pieces(part: Part, wanted: Wanted, refuse: Refuse, progress: Progress | None = None) -> Iterator[Piece]:
    """
    Read a part, some ten thousand rows at a time.

    Args:
        part: What to read.
        wanted: Its columns. One that the file does not have may be a key in its path, such as country=DE.
        refuse: Called with a reason, the number of rows and where they are, for rows that cannot be read.
        progress: Called now and then with the bytes of the file and the rows that were read since the last time.

    Raises:
        FileError: If it cannot be read, or no further; all pieces before came.
    """
    told = rows = refused = 0

    def refuse_and_count(reason: str, count: int, where: str) -> None:
        nonlocal refused
        refused += count
        refuse(reason, count, where)

    try:
        with files.told_faults(part.path):
            if not part.path.stat().st_size:
                raise FileError(f"{part.path} is empty.")
            for piece, position in _reader_of(part.path)(part, wanted, refuse_and_count):
                rows += piece.count
                yield piece
                if progress is not None:
                    position = max(min(position, part.size), told)
                    progress(position - told, piece.count)
                    told = position
        if not rows and not refused:
            raise FileError(f"{part.path} has no rows.")
    except ColumnError as error:  # it could not be read before, or is another file now
        raise FileError(str(error)) from error
    except FileError as error:
        if not part.rows:
            raise
        first, last = part.first_row + rows + refused, part.first_row + part.rows - 1
        raise FileError(f"{error} Its rows {first:,} to {last:,} are left out.") from error
    finally:
        if progress is not None and told < part.size:
            progress(part.size - told, 0)


def pieces_of_table(table: Any, wanted: Wanted, refuse: Refuse, name: str = "table") -> Iterator[Piece]:
    """
    The rows of a table in memory, as those of a file of Parquet would come.

    Args:
        table: A `pandas.DataFrame`, `pyarrow.Table` or `pyarrow.RecordBatch`, or another object that has Arrow's
            ``__arrow_c_stream__``.
        wanted: Its columns.
        refuse: As for `pieces`.
        name: Stands for the file in messages.

    Raises:
        ColumnError: If a column is missing, or there more than once.
        TypeError: If it is no table.
    """
    import pyarrow  # type: ignore[import-untyped]

    part = Part(Path(name), 0)
    listed: dict[str, list[Any]] = {}
    if isinstance(table, pyarrow.RecordBatch):
        table = pyarrow.Table.from_batches([table])
    if isinstance(table, pyarrow.Table):
        table = table.select(_columns_in(part.path, table.column_names, wanted))
    elif hasattr(table, "iloc") and hasattr(table, "columns"):
        names, columns = [str(one) for one in table.columns], {}
        for column in _columns_in(part.path, names, wanted):
            series = table.iloc[:, names.index(column)]
            try:
                columns[column] = pyarrow.Array.from_pandas(series)
            except (pyarrow.ArrowException, UnicodeEncodeError, OverflowError):  # values of several types, as in JSONL
                listed[column] = series.tolist()
                columns[column] = pyarrow.nulls(len(series))
        table = pyarrow.table(columns)
    elif hasattr(table, "__arrow_c_stream__"):
        yield from pieces_of_table(pyarrow.table(table), wanted, refuse, name)
        return
    else:
        raise TypeError(f"A table must be a pandas.DataFrame, a pyarrow.Table or similar, got {type(table).__name__}.")
    for piece, _ in _counted(part, wanted, table.to_batches(), refuse, lambda: 0):
        for column, values in listed.items():
            start = piece.first_row - part.first_row
            piece.columns[column] = values[start : start + piece.count]
        yield piece


def _divided(path: Path, wanted: Wanted) -> list[Part]:
    """The parts of a file that has the columns."""
    size = path.stat().st_size
    if size and files.has_ending(path, files.PARQUET):
        with files.parquet_file(path) as parquet:
            _columns_in(path, parquet.schema_arrow.names, wanted)
            metadata = parquet.metadata
            return _runs(path, [metadata.row_group(at).num_rows for at in range(metadata.num_row_groups)])
    if size and files.has_ending(path, ARROW):
        with _arrow(path, wanted, smallest=True) as (reader, _):
            if hasattr(reader, "num_record_batches"):  # the footer does not say how many rows each of them has
                return _runs(path, [reader.get_batch(at).num_rows for at in range(reader.num_record_batches)])
    elif size:
        with files.CountedFile(path) as raw, files.unpacked(raw) as stream:
            source = _Bytes(stream)
            if files.has_ending(path, files.CSV):
                _columns_in(path, source.header(path, wanted.delimiter), wanted)
            else:
                blocks = iter(lambda: source.read(_JSONL_BLOCK).decode(errors="replace"), "")
                names = files.json_columns(line for block in blocks for line in block.split("\n"))
                missing = set(wanted.names) - set(names) - _keys(path).keys()
                for option, name in wanted.pairs:
                    if names and name in missing and option in _IN_EVERY_ROW:
                        raise files.missing_column(path, names, option, name)
    return [Part(path, size)]


def _runs(path: Path, counts: Sequence[int]) -> list[Part]:
    """Neighbouring groups of rows, together until they are enough for a part."""
    size, total = path.stat().st_size, sum(counts)
    parts: list[Part] = []
    first = before = rows = 0
    for at, count in enumerate(counts):
        rows += count
        if rows >= PART_ROWS or (rows and at == len(counts) - 1):
            share = size * (before + rows) // total - size * before // total
            parts.append(Part(path, share, before + 1, rows, (first, at + 1)))
            first, before, rows = at + 1, before + rows, 0
    return parts or [Part(path, size, rows=0)]


def _columns_in(path: Path, names: Sequence[str], wanted: Wanted) -> list[str]:
    """The wanted columns that are in a file; each of the others is a key in its path, or missing."""
    keys = _keys(path)
    pairs = [(option, name) for option, name in wanted.pairs if name in names or name not in keys]
    separator = wanted.delimiter if files.has_ending(path, files.CSV) else None
    files.need_columns(path, names, pairs, separator, "delimiter")
    return [name for _, name in pairs]


def _keys(path: Path) -> dict[str, str | None]:
    """
    What folders say of the rows in them, as Hive and Spark name them.

    >>> _keys(Path("out/country=DE/channel=a%20b/part-0.parquet"))
    {'country': 'DE', 'channel': 'a b'}
    """
    matches = (_KEY.fullmatch(part) for part in path.parent.parts)
    keys = {match[1]: urllib.parse.unquote(match[2]) for match in matches if match}
    return {key: None if value == "__HIVE_DEFAULT_PARTITION__" else value for key, value in keys.items()}


# From record batches of Arrow to pieces


_Positioned = Iterator[tuple[Piece, int]]  # with how far one is in the part, in bytes


def _reader_of(path: Path) -> Callable[[Part, Wanted, Refuse], _Positioned]:
    kinds = {files.PARQUET: _parquet_pieces, ARROW: _arrow_pieces, files.CSV: _csv_pieces, JSONL: _jsonl_pieces}
    return next(reader for endings, reader in kinds.items() if files.has_ending(path, endings))


def _piece(
    part: Part, wanted: Wanted, batch: Any, numbers: Any, refuse: Refuse, text: bool = False, marked: bool = False
) -> Piece:
    """A piece of those rows of a batch whose text is UTF-8, with what the path says of them."""
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    bad: dict[int, str] = {}
    suspect = marked
    for name, column in columns.items():
        if marked:
            bad.update((index, name) for index in _marked_in(column))
        elif not _is_valid(column):
            suspect = True
            bad.update((index, name) for index in range(len(column)) if not _is_text(column[index]))
    if suspect:
        for index in sorted(bad):
            where = f"{part.path}, row {numbers[index]}"
            refuse(_UNREADABLE, 1, f"{where}: the text in column {bad[index]!r} is not UTF-8")
        kept = np.delete(np.arange(batch.num_rows), list(bad))
        columns = {name: _taken(column, kept) for name, column in columns.items()}
        numbers = np.asarray(numbers)[kept]
    count, keys = len(numbers), _keys(part.path)
    given: dict[str, Any] = {}
    for name in wanted.names:
        column = columns[name] if name in columns else _constant(keys[name], count)
        given[name] = _coded(column) if name in wanted.coded else column
    first = int(numbers[0]) if count else 0
    gaps = not isinstance(numbers, range) and count > 0 and int(numbers[-1]) - first != count - 1
    of_path = frozenset(given) - columns.keys()
    return Piece(part.path, first, count, given, text, np.asarray(numbers) if gaps else None, of_path)


def _is_valid(column: Any) -> bool:
    """Whether all text is UTF-8; some writers do not look, and nor do readers."""
    import pyarrow

    try:
        column.validate(full=True)
    except pyarrow.ArrowInvalid as error:
        if "UTF8" not in str(error):
            raise
        return False
    return True


def _marked_in(column: Any) -> list[int]:
    import pyarrow.compute  # type: ignore[import-untyped]

    found = pyarrow.compute.match_substring(column.cast(pyarrow.string()), _NOT_UTF8.decode())
    return [int(index) for index in np.flatnonzero(found.fill_null(False).to_numpy(zero_copy_only=False))]


def _is_text(value: Any) -> bool:
    try:
        value.as_py()
    except UnicodeDecodeError:
        return False
    return True


def _taken(column: Any, indices: Any) -> Any:
    """Some values of a column; a dictionary then has no others."""
    import pyarrow

    if not pyarrow.types.is_dictionary(column.type):
        return column.take(pyarrow.array(indices))
    return column.dictionary_decode().take(pyarrow.array(indices)).dictionary_encode()


def _coded(column: Any) -> Any:
    from pyarrow import types

    textual = types.is_string(column.type) or types.is_large_string(column.type)
    return column.dictionary_encode() if textual else column


def _constant(value: str | None, count: int) -> Any:
    import pyarrow

    codes = pyarrow.nulls(count, pyarrow.int32()) if value is None else np.zeros(count, np.int32)
    return pyarrow.DictionaryArray.from_arrays(codes, pyarrow.array([value], pyarrow.string()))


def _sized(batches: Iterable[Any]) -> Iterator[Any]:
    """Batches of the size of a piece: larger ones are cut, small ones joined; what came before a fault comes too."""
    import pyarrow

    held: list[Any] = []
    rows = 0
    fault: Exception | None = None
    source = iter(batches)
    while True:
        try:
            batch = next(source, None)
        except Exception as error:
            batch, fault = None, error
        if held and (batch is None or rows + batch.num_rows > PIECE_ROWS):
            if len(held) > 1:
                yield from pyarrow.Table.from_batches(held).combine_chunks().to_batches()
            else:
                yield held[0]
            held, rows = [], 0
        if batch is None:
            break
        for start in range(0, batch.num_rows, PIECE_ROWS):
            cut = batch.slice(start, PIECE_ROWS)
            if cut.num_rows == PIECE_ROWS:
                yield cut
            else:
                held.append(cut)
                rows += cut.num_rows
    if fault is not None:
        raise fault


def _counted(part: Part, wanted: Wanted, batches: Iterable[Any], refuse: Refuse, position: Any = None) -> _Positioned:
    """Batches without gaps, as pieces."""
    at = part.first_row
    for batch in _sized(batches):
        piece = _piece(part, wanted, batch, range(at, at + batch.num_rows), refuse)
        at += batch.num_rows
        done = (at - part.first_row) * part.size // part.rows if part.rows else position()
        if piece.count:
            yield piece, done


# Parquet


def _parquet_pieces(part: Part, wanted: Wanted, refuse: Refuse) -> _Positioned:
    from pyarrow import types

    with files.parquet_file(part.path) as parquet:
        schema, metadata = parquet.schema_arrow, parquet.metadata
        names = _columns_in(part.path, schema.names, wanted)
    textual = (types.is_string, types.is_large_string)
    coded = [name for name in names if name in wanted.coded and any(of(schema.field(name).type) for of in textual)]
    with files.parquet_file(
        part.path, metadata=metadata, read_dictionary=coded, page_checksum_verification=True
    ) as parquet:
        groups = range(*(part.groups or (0, metadata.num_row_groups)))
        batches = parquet.iter_batches(PIECE_ROWS, row_groups=groups, columns=names, use_threads=False)
        yield from _counted(part, wanted, batches, refuse, lambda: 0)


# Arrow


def _arrow_pieces(part: Part, wanted: Wanted, refuse: Refuse) -> _Positioned:
    with _arrow(part.path, wanted) as (reader, position):
        if hasattr(reader, "num_record_batches"):
            groups = range(*(part.groups or (0, reader.num_record_batches)))
            batches = (reader.get_batch(at) for at in groups)
        else:
            batches = iter(reader)
        yield from _counted(part, wanted, batches, refuse, position)


@contextmanager
def _arrow(path: Path, wanted: Wanted, smallest: bool = False) -> Iterator[tuple[Any, Callable[[], int]]]:
    """A reader of the wanted columns, or the smallest of them, and how far it is."""
    import pyarrow
    import pyarrow.ipc  # type: ignore[import-untyped]

    with files.told_arrow_faults(path, "Arrow"), pyarrow.memory_map(str(path)) as source:
        # By content, not by name: files and streams are found under all of the endings.
        magic = source.read(6)
        if magic.startswith(b"FEA1"):
            raise FileError(f"{path} is Feather of version 1, which is no longer read. Save it as Parquet.")
        fault: Exception | None = None

        def opened(fields: list[int]) -> Any:
            nonlocal fault
            options = pyarrow.ipc.IpcReadOptions(included_fields=fields, use_threads=False)
            source.seek(0)
            if magic == b"ARROW1":
                try:
                    return pyarrow.ipc.open_file(source, options=options)
                except pyarrow.ArrowInvalid as error:
                    fault = error
                    source.seek(8)  # without its end, a file is a stream
            return pyarrow.ipc.open_stream(source, options=options)

        schema = opened([]).schema
        names = _columns_in(path, schema.names, wanted)
        if smallest:
            names = sorted(names, key=lambda name: _width(schema.field(name).type))[:1]
        yield opened([schema.names.index(name) for name in names]), source.tell
        if fault is not None:
            raise fault


def _width(kind: Any) -> int:
    try:
        return int(kind.bit_width)
    except ValueError:  # of no fixed width
        return 1 << 16


# CSV


class _Bytes:
    """
    Text of a file, up to where it can be read.

    Attributes:
        fault: Why that is before its end.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream: Any = stream
        self._held = b""
        self._over = self._first = False
        self.fault: Exception | None = None

    def read(self, count: int) -> bytes:
        """At most so many bytes: whole lines, unless a single one is longer."""
        data = [self._held]
        some = len(self._held)
        while not self._over and some <= count:
            try:
                data.append(self._stream.read1(count))
            except (EOFError, OSError, zlib.error) as error:
                self.fault = error
                data.append(b"")
            some += len(data[-1])
            self._over = not data[-1]
        whole = b"".join(data)
        if not self._first:
            whole, self._first = whole.removeprefix(codecs.BOM_UTF8), True
        if self.fault is not None:
            whole = whole[: whole.rfind(b"\n") + 1]  # the rest of the last row is gone, and so is the row
        if self._over and len(whole) <= count:
            end = len(whole)
        else:
            end = whole.rfind(b"\n", 0, count) + 1 or whole.rfind(b"\r", 0, count) + 1 or count
        self._held = whole[end:]
        return whole[:end]

    def header(self, path: Path, delimiter: str) -> list[str]:
        """Take the first row that is not blank."""
        data = more = self.read(_HEADER_BLOCK)
        while True:
            left = iter(data.splitlines(keepends=True))
            # For messages only; wanted columns are UTF-8.
            texts = (line.decode(errors="backslashreplace") for line in left)
            header: list[str] | None = None
            try:
                header = files.csv_header(path, csv.reader(texts, delimiter=delimiter, strict=True))
            except FileError:
                if not more:
                    raise
            rest = b"".join(left)
            if header is not None and (rest or not more):
                self._held = rest + self._held
                return header
            if len(data) > _LONGEST_HEADER:
                raise FileError(f"{path} has no usable header in its first {_LONGEST_HEADER:,} bytes.")
            more = self.read(_HEADER_BLOCK)
            data += more


def _csv_pieces(part: Part, wanted: Wanted, refuse: Refuse) -> _Positioned:
    with files.CountedFile(part.path) as raw, files.unpacked(raw) as stream:
        table = _Csv(part.path, wanted, _Bytes(stream), refuse)
        at = part.first_row
        for batch in _sized(table.batches()):
            gaps = 0
            while gaps < len(table.left_out) and table.left_out[gaps] < at + batch.num_rows + gaps:
                gaps += 1
            numbers: Any = range(at, at + batch.num_rows + gaps)
            at = numbers.stop
            if gaps:
                numbers = np.delete(np.asarray(numbers), np.asarray(table.left_out[:gaps]) - numbers.start)
                del table.left_out[:gaps]
            piece = _piece(part, wanted, batch, numbers, refuse, True, table.marked)
            if piece.count:
                yield piece, raw.taken


class _Csv:
    """
    Rows of CSV, whose cells are text.

    pyarrow could read the file by itself, but it would do so in a thread of its own, which stops Python from ending
    when reading was given up. So it is given rows in memory that is not of Python.

    Attributes:
        left_out: Numbers of the rows that do not have the right number of cells; who uses them takes them away.
        marked: Whether there was text that is no UTF-8; `_NOT_UTF8` is in its place.
    """

    def __init__(self, path: Path, wanted: Wanted, source: _Bytes, refuse: Refuse) -> None:
        import pyarrow

        header = source.header(path, wanted.delimiter)
        self._names = _columns_in(path, header, wanted)
        self._path, self._wanted, self._source, self._refuse = path, wanted, source, refuse
        self._width = len(header)
        plain, coded = pyarrow.string(), pyarrow.dictionary(pyarrow.int32(), pyarrow.string())
        # Under names of our own, because those in the header may come twice.
        self._types = {f"{header.index(name)}": coded if name in wanted.coded else plain for name in self._names}
        self._last = f"{_LAST_ROW}{wanted.delimiter}{_LAST_ROW}" if self._width == 1 else _LAST_ROW
        self._rows = 0
        self.left_out: list[int] = []
        self.marked = False

    def batches(self) -> Iterator[Any]:
        """All rows with the right number of cells, some MiB at a time."""
        data, over = b"", False
        while not over:
            more = self._source.read(_CSV_BLOCK)
            data, over = data + more, not more
            before: Any = None
            for end in [len(data)] if over else _ends_of_rows(data):
                batch, bad, closed = self._parsed(data[:end])
                if closed:
                    data = data[end:]
                    yield self._accepted(batch, bad)
                    break
                before = before or (batch, bad)
            else:
                if not over and len(data) <= _LONGEST_ROW:
                    continue
                if before is None:
                    raise FileError(f"{self._path}, row {self._rows + 1} has more than {_LONGEST_ROW:,} bytes.")
                yield self._accepted(*before)
                how = "is never closed" if over else f"is not closed within {_LONGEST_ROW:,} bytes"
                raise FileError(
                    f"{self._path}, row {self._rows + 1}: a quote {how}, "
                    "so this row and what follows it cannot be read."
                )
        if self._source.fault is not None:
            raise self._source.fault

    def _accepted(self, batch: Any, bad: list[tuple[int, int]]) -> Any:
        for number, cells in bad:
            self.left_out.append(self._rows + number)
            why = f"{cells} cell{'' if cells == 1 else 's'} where the header has {self._width}"
            self._refuse(_UNREADABLE, 1, f"{self._path}, row {self._rows + number}: {why}")
        self._rows += batch.num_rows + len(bad)
        return batch

    def _parsed(self, rows: bytes) -> tuple[Any, list[tuple[int, int]], bool]:
        """The good rows, number and cells of the others, and whether all quotes are closed; if not, the row is none."""
        import pyarrow
        import pyarrow.csv  # type: ignore[import-untyped]

        bad: list[tuple[int, int]] = []
        closed = seen = False

        def invalid(row: Any) -> str:
            nonlocal closed, seen
            closed = closed or row.text == self._last
            seen = row.text.rstrip("\n").endswith(self._last)
            if not seen:
                bad.append((row.number, row.actual_columns))
            return "skip"

        rows = self._utf8(rows) + f"\n{self._last}\n".encode()
        memory = pyarrow.allocate_buffer(len(rows))
        memoryview(memory).cast("B")[:] = rows
        table = pyarrow.csv.read_csv(
            pyarrow.BufferReader(memory),
            # Without threads, or else nobody knows the numbers of rows.
            pyarrow.csv.ReadOptions(
                use_threads=False, block_size=len(rows) + 1, column_names=[f"{at}" for at in range(self._width)]
            ),
            pyarrow.csv.ParseOptions(
                delimiter=self._wanted.delimiter, newlines_in_values=True, invalid_row_handler=invalid
            ),
            pyarrow.csv.ConvertOptions(
                check_utf8=False,  # done before
                column_types=self._types,
                include_columns=list(self._types),
                null_values=[""],
                strings_can_be_null=True,
            ),
        )
        columns = [column.combine_chunks() for column in table.columns]
        batch = pyarrow.RecordBatch.from_arrays(columns, self._names)
        return batch if seen else batch.slice(0, batch.num_rows - 1), bad, closed

    def _utf8(self, rows: bytes) -> bytes:
        # Marked, because pyarrow gives up if a row is no UTF-8 and has too few cells, too.
        try:
            if not rows.isascii():
                rows.decode()
        except UnicodeDecodeError:
            self.marked = True
            return re.sub(rb"[\x80-\xff]+", _marked, rows)
        return rows


def _ends_of_rows(data: bytes) -> Iterator[int]:
    """Where the last rows in some text may end; the first guess is right if quotes are only where they should be."""
    end = data.rfind(b"\n") + 1 or data.rfind(b"\r") + 1
    quotes = data.count(b'"', 0, end)
    odd = quotes % 2
    for wanted in (odd, 1 - odd) if end else ():
        at, seen = end, 0
        while at and seen % 2 != wanted:
            before = data.rfind(b"\n", 0, at - 1) + 1
            seen += data.count(b'"', before, at)
            at = before
        if at:
            yield at


def _marked(match: re.Match[bytes]) -> bytes:
    try:
        match[0].decode()
    except UnicodeDecodeError:
        return _NOT_UTF8 * len(match[0])
    return match[0]


# JSONL


def _jsonl_pieces(part: Part, wanted: Wanted, refuse: Refuse) -> _Positioned:
    names = wanted.names
    keys = {name: value for name, value in _keys(part.path).items() if name in names}
    seen: set[str] = set()
    shown: list[str] = []
    columns: dict[str, list[Any]] = {name: [] for name in names}
    numbers: list[int] = []
    number = part.first_row

    def piece() -> Piece:
        gaps = numbers[-1] - numbers[0] != len(numbers) - 1
        given: dict[str, Any] = {
            name: [keys[name]] * len(numbers) if name in keys and name not in seen else column
            for name, column in columns.items()
        }
        of_path = frozenset(keys) - seen
        return Piece(part.path, numbers[0], len(numbers), given, False, np.array(numbers) if gaps else None, of_path)

    with files.CountedFile(part.path) as raw, files.unpacked(raw) as stream:
        source = _Bytes(stream)
        fault: Exception | None = None
        while fault is None and (block := source.read(_JSONL_BLOCK)):
            while not block.endswith(b"\n") and (more := source.read(_JSONL_BLOCK)):
                block += more
                if len(block) > files.LONGEST_LINE:
                    fault = FileError(f"{part.path} has a line of more than {files.LONGEST_LINE:,} bytes.")
                    block = b""
            rows: list[dict[str, Any]] = []
            for at, row in enumerate(_rows_in(block), number):
                if type(row) is dict:
                    rows.append(row)
                    numbers.append(at)
                else:
                    refuse(_UNREADABLE, 1, f"{part.path}, row {at}: {row}")
                number = at + 1
            shown = shown or list(dict.fromkeys(name for row in rows[: files.PEEKED_ROWS] for name in row))
            seen.update(name for name in names if name not in seen and any(name in row for row in rows))
            for name, column in columns.items():
                try:
                    column += map(itemgetter(name), rows)
                except KeyError:
                    del column[len(numbers) - len(rows) :]
                    column += [row.get(name) for row in rows]
            if len(numbers) >= PIECE_ROWS // 2:  # lists need more memory than arrays
                yield piece(), raw.taken
                columns, numbers = {name: [] for name in names}, []
        if numbers:
            yield piece(), raw.taken
    fault = fault or source.fault
    if fault is not None:
        raise fault
    for option, name in wanted.pairs:
        if shown and name not in seen and name not in keys:
            raise files.missing_column(part.path, shown, option, name)


def _rows_in(block: bytes) -> list[dict[str, Any] | str]:
    """The object in each line that is not blank, or what is wrong with the line."""
    lines: list[str | None]
    try:
        lines = [*block.decode().replace("\r\n", "\n").split("\n")]
    except UnicodeDecodeError:
        lines = [_text(line) for line in block.split(b"\n")]
    rows: list[dict[str, Any] | str] = []
    for line in lines:
        try:
            # As json.loads, without what it does for other kinds of arguments; that takes as long as the rest.
            row, end = _scan(line, 0)
        except (StopIteration, TypeError, ValueError, RecursionError):
            row, end = None, -1
        if line is None:
            rows.append("text that is not UTF-8")
        elif end == len(line) and type(row) is dict:
            rows.append(row)
        elif line and not line.isspace():
            slow = files.json_object(line)  # with blanks around it
            rows.append("broken JSON, or no object" if slow is None else slow)
    return rows


def _text(line: bytes) -> str | None:
    try:
        return line.decode()
    except UnicodeDecodeError:
        return None


_scan: Any = make_scanner(json.JSONDecoder())  # type: ignore[arg-type]
