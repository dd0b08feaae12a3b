"""
Files that users name: which ones are meant, how they are opened, and what is wrong with one, in words for users.

Knows nothing of what is in the rows: labels_files.py reads labels from them, batch/reading.py predictions.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import glob
import gzip
import io
import itertools
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

CSV = (".csv", ".csv.gz")
JSONL = (".jsonl", ".jsonl.gz")
PARQUET = (".parquet",)

BUFFER = 1 << 18
LONGEST_LINE = 1 << 24  # a file without line ends would otherwise be read into memory
PEEKED_ROWS = 1_000  # of a JSONL file, whose columns are nowhere but in its rows
SHOWN_COLUMNS = 20

_GZIP = b"\x1f\x8b"
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}


class InputError(ValueError):
    """What users named cannot be used; nothing but naming something else helps."""


class ColumnError(InputError):
    """A file has no such column. Nothing was read yet."""


class FileError(Exception):
    """A file cannot be read, or no further."""


def find_files(arguments: Sequence[str], endings: tuple[str, ...]) -> list[Path]:
    """
    The files that are meant, each once: files, patterns that no shell has expanded, and what is in folders.

    In folders and patterns other kinds of files are passed over, and so is what begins with ``.`` or ``_``.

    Raises:
        InputError: If an argument is no file with one of these endings, or has none in it.
    """
    found: dict[Path, Path] = {}
    for argument in arguments:
        path = Path(argument)
        if path.is_file():
            if not has_ending(path, endings):
                raise InputError(f"{argument}: expected a name that ends in {', '.join(endings)}.")
            files = [path]
        else:
            matched = [path] if path.is_dir() else [Path(name) for name in glob.glob(argument, recursive=True)]
            if not matched:
                raise InputError(f"{argument}: there is no such file, and none that matches it.")
            files = sorted({file for one in matched for file in _files_of(one, endings)})
            if not files:
                raise InputError(f"{argument}: there is no file in it that ends in {', '.join(endings)}.")
        for file in files:
            found.setdefault(file.resolve(), file)
    return list(found.values())


def has_ending(path: Path, endings: tuple[str, ...]) -> bool:
    """
    Whether a name says that a file is of this kind, in whatever case.
    """
    return path.name.lower().endswith(endings)


def _files_of(path: Path, endings: tuple[str, ...]) -> Iterator[Path]:
    # Only names below the folder count as hidden: the folder itself was asked for.
    for file in path.rglob("*") if path.is_dir() else [path]:
        hidden = any(part.startswith((".", "_")) for part in file.relative_to(path).parts)
        if not hidden and has_ending(file, endings) and file.is_file():
            yield file


# Columns


def need_columns(
    path: Path,
    names: Sequence[str],
    wanted: Iterable[tuple[str, str]],
    separator: str | None = None,
    option_of_separator: str = "",
) -> None:
    """
    See that columns are there, each once.

    Args:
        path: The file, for the message.
        names: Its columns.
        wanted: Pairs of an option of the command, without its dashes, and the column that it names.
        separator: What separates the cells; None if the file is not CSV.
        option_of_separator: The option that says so, without its dashes; empty if there is none.

    Raises:
        ColumnError: If one is not there, or more than once.
    """
    for option, name in wanted:
        if name not in names:
            raise missing_column(path, names, option, name, separator, option_of_separator)
        if names.count(name) > 1:
            raise ColumnError(f"{path} has more than one column {name!r}.")


def missing_column(
    path: Path,
    names: Sequence[str],
    option: str,
    name: str,
    separator: str | None = None,
    option_of_separator: str = "",
) -> ColumnError:
    """
    An error that says which column a file has instead of a missing one; arguments as for `need_columns`.
    """
    if separator is not None and len(names) == 1:
        other = next((one for one in _SEPARATORS if one in names[0] and one != separator), "")
        by = f", not by {_SEPARATORS[other]}" if other else ""
        shell = "$'\\t'" if other == "\t" else f"'{other}'"
        remedy = f" Say so with --{option_of_separator} {shell}." if other and option_of_separator else ""
        return ColumnError(
            f"{path} has only one column, {names[0][:80]!r}. "
            f"Columns must be separated by {_SEPARATORS.get(separator, repr(separator))}{by}.{remedy}"
        )
    lowered = {one.lower(): one for one in reversed(names)}
    near = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.5)
    hint = f"; did you mean {lowered[near[0]]!r}?" if near else "."
    more = f" and {len(names) - SHOWN_COLUMNS} more" if len(names) > SHOWN_COLUMNS else ""
    return ColumnError(
        f"{path} has no column {name!r}{hint} Name it with --{option}. "
        f"There are: {', '.join(names[:SHOWN_COLUMNS])}{more}."
    )


def csv_header(path: Path, rows: Iterator[list[str]]) -> list[str]:
    """
    The first row that is not blank, of a `csv.reader`.

    Raises:
        FileError: If there is none.
    """
    try:
        header = next((row for row in rows if row), None)
    except csv.Error as error:
        raise FileError(f"{path} has no usable header: {error}.") from error
    if header is None:
        raise FileError(f"{path} is empty.")
    return header


def json_columns(lines: Iterator[str]) -> list[str]:
    """
    The keys in the first rows of JSONL, in the order they came.
    """
    rows = (json_object(line) for line in itertools.islice(lines, PEEKED_ROWS))
    return list(dict.fromkeys(name for row in rows if row is not None for name in row))


def json_object(line: str) -> dict[str, Any] | None:
    """
    The object in a line of JSON; None if there is none.
    """
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


# Content


class CountedFile(io.FileIO):
    """
    A file that counts the bytes taken from it, which is how far one is in it even when it is compressed.

    Attributes:
        taken: The bytes.
    """

    taken = 0

    def readinto(self, buffer: Any) -> Any:
        """Read into a buffer, and count."""
        count = super().readinto(buffer)
        self.taken += count or 0
        return count


@contextmanager
def unpacked(file: CountedFile) -> Iterator[BinaryIO]:
    """
    The bytes of text in UTF-8 that a file holds, also if it is compressed with gzip.

    Raises:
        FileError: If it is UTF-16.
    """
    with io.BufferedReader(file, BUFFER) as plain:
        # Not by the name: a download may have been unpacked on its way, or not.
        stream: Any = gzip.GzipFile(fileobj=plain) if plain.peek(2)[:2] == _GZIP else plain
        if stream.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise FileError(f"{file.name} is UTF-16. Save it as UTF-8.")
        yield stream


@contextmanager
def told_faults(path: Path) -> Iterator[None]:
    """
    Whatever is raised about a file, as a FileError that names it.
    """
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise FileError(
            f"{path} is cut off or damaged, as its compression tells: {error}. Fetch or write it again."
        ) from error
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error}.") from error


@contextmanager
def told_arrow_faults(path: Path, kind: str) -> Iterator[None]:
    """
    Whatever pyarrow raises about a file, as a FileError that names it.
    """
    import pyarrow  # type: ignore[import-untyped]

    try:
        yield
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        first = (str(error).splitlines() or [""])[0].rstrip(".")
        raise FileError(f"{path} is cut off, damaged or no {kind} file: {first}. Fetch or write it again.") from error


@contextmanager
def parquet_file(path: Path, **options: Any) -> Iterator[Any]:
    """
    A `pyarrow.parquet.ParquetFile`; what it raises in the block becomes a FileError.
    """
    import pyarrow.parquet  # type: ignore[import-untyped]

    # Buffered, or else whole row groups are read into memory, and a file may be a single one.
    with (
        told_arrow_faults(path, "Parquet"),
        pyarrow.parquet.ParquetFile(path, buffer_size=BUFFER, pre_buffer=False, **options) as parquet,
    ):
        yield parquet
