"""
Files of predictions as columns: what can be read is read, what cannot is told with file and row, in bounded memory.
"""

from __future__ import annotations

import gzip
import json
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from otel_model_metrics.batch import reading
from otel_model_metrics.batch.reading import Part, Piece, Wanted, parts_of
from otel_model_metrics.files import ColumnError, FileError, find_files

WANTED = Wanted({"prediction": ("p",), "label": ("l",)}, coded=frozenset({"p"}))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """Files are named as somebody in their folder would name them."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Read:
    """Everything that reading some files gives."""

    def __init__(self, *names: str, wanted: Wanted = WANTED) -> None:
        self.pieces: list[Piece] = []
        self.refused: list[tuple[str, int, str]] = []
        self.problems: list[str] = []
        self.progress: list[tuple[int, int]] = []
        self.parts = parts_of([Path(name) for name in names], wanted)
        for part in self.parts:
            try:
                self.pieces.extend(
                    reading.pieces(
                        part, wanted, lambda *told: self.refused.append(told), lambda *told: self.progress.append(told)
                    )
                )
            except FileError as error:
                self.problems.append(str(error))

    @property
    def rows(self) -> list[tuple[Any, ...]]:
        """Number of each row, and its cells."""
        rows = []
        for piece in self.pieces:
            columns = [column if isinstance(column, list) else column.to_pylist() for column in piece.columns.values()]
            assert {piece.count} == {len(column) for column in columns}
            rows += zip(map(piece.row, range(piece.count)), *columns, strict=True)
        return rows


def write(name: str, content: str | bytes) -> str:
    content = content.encode() if isinstance(content, str) else content
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return name


def jsonl(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def table(rows: int = 10) -> pa.Table:
    cells = [f"c{at % 3}" for at in range(rows)]
    return pa.table({"other": [0.5] * rows, "p": cells, "l": pa.array(range(rows), pa.int64())})


def save(name: str, content: pa.Table, rows: int = 4, **options: Any) -> str:
    """In row groups, or record batches, of so many rows."""
    if name.endswith(".parquet"):
        pq.write_table(content, name, row_group_size=rows, **options)
    else:
        make = pa.ipc.new_stream if name.endswith(".arrows") else pa.ipc.new_file
        with make(name, content.schema, **options) as writer:
            writer.write_table(content, rows)
    return name


# --- What a file says ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "A.CSV"])
def test_cells_of_csv_are_text_as_it_was_written(name):
    """
    None where they are empty; text between quotes may have commas and line ends in it.
    """
    write(name, 'l,x,x,p\n1,,,"a, ""b""\nc"\n007,,,true\n,,,""\n')

    read = Read(name)

    assert [(1, 'a, "b"\nc', "1"), (2, "true", "007"), (3, None, None)] == read.rows
    assert ([], [], True) == (read.refused, read.problems, read.pieces[0].text)


def test_few_different_cells_of_csv_are_a_dictionary():
    """
    So that each is looked at once.
    """
    columns = Read(write("a.csv", "p,l\nx,1\ny,2\nx,3\n")).pieces[0].columns

    assert (["x", "y"], [0, 1, 0]) == (columns["p"].dictionary.to_pylist(), columns["p"].indices.to_pylist())
    assert pa.string() == columns["l"].type


@pytest.mark.parametrize(
    "content",
    [b"\xef\xbb\xbfp,l\n1,2\n3,4\n", b"\r\np,l\r\n1,2\r\n\r\n3,4", b"p,l\r1,2\r3,4\r", b'\n"p",l\n1,2\n\n\n3,4\n\n'],
    ids=["byte order mark", "CRLF", "CR", "blank lines"],
)
def test_every_way_to_end_lines_is_known(content):
    """
    Blank lines are no rows, and a byte order mark belongs to no column.
    """
    assert [(1, "1", "2"), (2, "3", "4")] == Read(write("a.csv", content)).rows


def test_cells_of_csv_can_be_separated_otherwise():
    """
    If one says so.
    """
    write("a.csv", "p;l\n1,5;2\n")

    assert [(1, "1,5", "2")] == Read("a.csv", wanted=Wanted(WANTED.options, delimiter=";")).rows
    with pytest.raises(ColumnError) as told:
        Read("a.csv")
    message = "a.csv has only one column, 'p;l'. Columns must be separated by commas, not by semicolons."
    assert f"{message} Say so with --delimiter ';'." == str(told.value)
    with pytest.raises(ColumnError) as told:
        Read(write("b.csv", "p\tl\n1\t2\n"))
    assert str(told.value).endswith("not by tabs. Say so with --delimiter $'\\t'.")
    message = "The delimiter of CSV must be one character such as ; or a tab, got ';;'."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Wanted({}, delimiter=";;")


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.ndjson"])
def test_values_of_jsonl_are_taken_as_they_are(name):
    """
    Whatever they are; an absent key is None, and so is null.
    """
    values = [True, 3, 0.5, "7", "", ["a", "b"], {"a": 3.0}, None]
    read = Read(write(name, "\ufeff" + jsonl(*({"x": 1, "p": value, "l": 1} for value in values)) + '\n {"p": 1} \r\n'))

    assert [*((number, value, 1) for number, value in enumerate(values, 1)), (9, 1, None)] == read.rows
    assert ([], [], False) == (read.refused, read.problems, read.pieces[0].text)


@pytest.mark.parametrize("ending", ["parquet", "arrow", "arrows", "feather", "ipc"])
@pytest.mark.parametrize(
    "kind",
    [
        *(pa.bool_(), pa.int8(), pa.float32(), pa.timestamp("us", "UTC"), pa.list_(pa.string())),
        *(pa.map_(pa.string(), pa.float64()), pa.struct({"a": pa.float64()})),
    ],
    ids=str,
)
def test_columns_with_types_come_as_they_are(ending, kind):
    """
    Nested ones too, and also if they are coded, for only text is read as a dictionary.
    """
    nested = {"list": [["a"], []], "map": [{"a": 1.0}, {}], "struct": [{"a": 1.0}, {"a": None}]}
    values = nested.get(str(kind).partition("<")[0], [False, True] if kind == pa.bool_() else [0, 1])
    column = pa.array([*values, None], kind)
    read = Read(save(f"a.{ending}", pa.table({"x": [1, 2, 3], "l": ["a", "b", None], "p": column})))

    assert ([], [column], [1, 2, 3]) == (
        read.problems,
        [one.columns["p"] for one in read.pieces],
        [r[0] for r in read.rows],
    )
    assert ["a", "b", None] == [row[2] for row in read.rows]
    assert pa.string() == read.pieces[0].columns["l"].type


@pytest.mark.parametrize("ending", ["parquet", "arrow", "arrows"])
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())], ids=str)
def test_coded_text_is_a_dictionary(ending, kind):
    """
    Over all row groups, each of which has a dictionary of its own.
    """
    text = pa.array(["a", "b", "a", "c", "c", None, "d"]).cast(kind)
    read = Read(save(f"a.{ending}", pa.table({"p": text, "l": range(7)}), rows=2))

    assert pa.types.is_dictionary(read.pieces[0].columns["p"].type)
    assert text.to_pylist() == [row[1] for row in read.rows]
    assert 1 == len(read.pieces)


@pytest.mark.parametrize("name", ["country=DE/channel=a%20b/a", "data/country=DE/channel=a%20b/sub/a"])
@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet", ".arrow"])
def test_keys_in_the_path_are_columns(name, ending):
    """
    As Hive and Spark write them, unless the file has such a column.
    """
    name += ending
    Path(name).parent.mkdir(parents=True)
    if ending == ".csv":
        write(name, "p,country\n1,FR\n")
    elif ending == ".jsonl":
        write(name, jsonl({"p": "1", "country": "FR"}))
    else:
        save(name, pa.table({"p": ["1"], "country": ["FR"]}))
    wanted = Wanted({"prediction": ("p",), "segment": ("channel", "country")}, frozenset({"channel"}))

    assert [(1, "1", "a b", "FR")] == Read(name, wanted=wanted).rows


def test_the_name_of_no_partition_is_no_value():
    """
    Hive writes it for null.
    """
    write("p=__HIVE_DEFAULT_PARTITION__/a.csv", "l\n1\n")

    assert [(1, None, "1")] == Read("p=__HIVE_DEFAULT_PARTITION__/a.csv").rows


def test_a_column_that_two_options_name_is_read_once():
    """
    Such as a prediction that is a segment too.
    """
    wanted = Wanted({"prediction": ("p",), "segment": ("p", "l")})

    assert [("prediction", "p"), ("segment", "l")] == wanted.pairs
    assert [(1, "1", "2")] == Read(write("a.csv", "p,l\n1,2\n"), wanted=wanted).rows


# --- Parts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_a_large_file_is_divided_into_parts(monkeypatch, ending):
    """
    Runs of row groups or record batches that are large enough together; no row is in none or two of them.
    """
    monkeypatch.setattr(reading, "PART_ROWS", 5)
    name = save(f"a.{ending}", table(18))
    size = Path(name).stat().st_size

    read = Read(name)

    runs = [(part.first_row, part.rows, part.groups) for part in read.parts]
    assert [(1, 8, (0, 2)), (9, 8, (2, 4)), (17, 2, (4, 5))] == runs
    assert size == sum(part.size for part in read.parts)
    assert [(number, f"c{(number - 1) % 3}", number - 1) for number in range(1, 19)] == read.rows
    assert (size, 18) == tuple(map(sum, zip(*read.progress, strict=True)))


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.jsonl", "a.arrows"])
def test_other_files_are_one_part(name):
    """
    Whose rows nobody knows before they are read.
    """
    if name == "a.arrows":
        save(name, table(10))
    else:
        write(name, "p,l\n" + "1,2\n" * 10 if "csv" in name else jsonl(*[{"p": 1, "l": 2}] * 10))
    size = Path(name).stat().st_size

    read = Read(name)

    assert [Part(Path(name), size)] == read.parts
    assert (size, 10) == tuple(map(sum, zip(*read.progress, strict=True)))


def test_parts_go_to_other_processes():
    """
    And can be keys.
    """
    part = parts_of([Path(save("a.parquet", table()))], WANTED)[0]

    assert {part} == {pickle.loads(pickle.dumps(part))}
    assert WANTED == pickle.loads(pickle.dumps(WANTED))


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet", "arrow", "arrows"])
def test_pieces_are_neither_large_nor_small(monkeypatch, ending):
    """
    Whatever the file is made of; their rows have the numbers of the file.
    """
    monkeypatch.setattr(reading, "PIECE_ROWS", 100)
    monkeypatch.setattr(reading, "_CSV_BLOCK", 1 << 10)
    monkeypatch.setattr(reading, "_JSONL_BLOCK", 1 << 8)
    name = f"a.{ending}"
    if ending == "csv":
        write(name, "p,l\n" + "".join(f"c{at % 3},{at}\n" for at in range(1050)))
    elif ending == "jsonl":
        write(name, jsonl(*table(1050).to_pylist()))
    for rows in [7, 250] if ending[0] in "ap" else [0]:
        if rows:
            save(name, table(1050), rows=rows)

        read = Read(name)

        assert [(at + 1, f"c{at % 3}", at) for at in range(1050)] == [(n, p, int(at)) for n, p, at in read.rows]
        assert all(piece.count <= 100 for piece in read.pieces)
        assert all(40 <= piece.count for piece in read.pieces[:-1])


# --- Bad rows --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "row", "why"),
    [
        ("a.csv", b"3", "1 cell where the header has 2"),
        ("a.csv", b"3,4,5", "3 cells where the header has 2"),
        ("a.csv", b"\xff", "1 cell where the header has 2"),
        ("a.csv", b"3,\xe4", "the text in column 'l' is not UTF-8"),
        ("a.csv", b"\xe4\xc3\xa4,4", "the text in column 'p' is not UTF-8"),
        ("a.jsonl", b'{"p": 3, ', "broken JSON, or no object"),
        ("a.jsonl", b"[1]", "broken JSON, or no object"),
        ("a.jsonl", b'{"p": 3}{"p": 4}', "broken JSON, or no object"),
        ("a.jsonl", b'{"p": "\xe4"}', "text that is not UTF-8"),
        ("a.jsonl", b"[" * 100_000, "broken JSON, or no object"),
    ],
)
def test_a_bad_row_costs_itself_only(name, row, why):
    """
    Told with file and row; the rows after it keep their numbers.
    """
    good = [b'{"p": "1", "l": "2"}', '{"p": "5", "l": "ä"}'.encode()] if name == "a.jsonl" else [b"1,2", "5,ä".encode()]
    header = b"" if name == "a.jsonl" else b"p,l\n"
    write(name, header + b"\n".join([good[0], row, row, good[1], row]))

    read = Read(name)

    assert [("unreadable_row", 1, f"{name}, row {at}: {why}") for at in (2, 3, 5)] == read.refused
    assert [(1, "1", "2"), (4, "5", "ä")] == read.rows
    assert [] == read.problems


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
@pytest.mark.parametrize("nested", [False, True])
def test_text_that_is_not_utf_8_costs_its_row(name, nested):
    """
    Some writers do not look. The rest has no trace of it, though they share a dictionary.
    """
    bad = pa.array([b"x", b"\xe4", None, b"y"]).view(pa.string())
    other = pa.ListArray.from_arrays([0, 1, 2, 3, 4], bad) if nested else bad
    save(name, pa.table({"p": bad if not nested else ["x", "x", None, "y"], "l": other}))

    read = Read(name)

    column = "l" if nested else "p"
    assert [1, 3, 4] == [row[0] for row in read.rows]
    assert "x" == read.pieces[0].columns["p"].dictionary.to_pylist()[0]
    where = f"{name}, row 2: the text in column {column!r} is not UTF-8"
    assert [("unreadable_row", 1, where)] == [
        (*told[:2], told[2].replace("'l'", repr(column))) for told in read.refused
    ]


def test_bad_rows_between_pieces_do_not_shift_numbers(monkeypatch):
    """
    Wherever blocks and pieces end.
    """
    monkeypatch.setattr(reading, "PIECE_ROWS", 50)
    monkeypatch.setattr(reading, "_CSV_BLOCK", 1 << 9)
    bad = {1, 50, 51, 52, 100, *range(300, 420), 999, 1000}
    write("a.csv", "p,l\n" + "".join(f"{at}\n" if at in bad else f"{at},x\n" for at in range(1, 1001)))

    read = Read("a.csv")

    good = [at for at in range(1, 1001) if at not in bad]
    assert [(at, str(at), "x") for at in good] == read.rows
    assert sorted(bad) == [int(told[2].partition("row ")[2].partition(":")[0]) for told in read.refused]


# --- Files that are not as expected ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        *((f"a.{ending}", "", f"a.{ending} is empty.") for ending in ("csv", "jsonl", "parquet", "arrow", "arrows")),
        ("a.csv.gz", "", "a.csv.gz is empty."),
        ("a.csv", "\n\n", "a.csv is empty."),
        ("a.csv", "p,l\n", "a.csv has no rows."),
        ("a.jsonl", "\n\n", "a.jsonl has no rows."),
        ("a.csv", "p,l\n1,x\n".encode("utf-16"), "a.csv is UTF-16. Save it as UTF-8."),
        ("a.feather", b"FEA1" * 9, "a.feather is Feather of version 1, which is no longer read. Save it as Parquet."),
    ],
)
def test_a_file_without_rows_says_why_and_others_are_read(name, content, problem):
    """
    Only when it is read.
    """
    write("0.csv", "p,l\n1,2\n")
    write("z.csv", "p,l\n3,4\n")

    read = Read("0.csv", write(name, content), "z.csv")

    assert [problem] == read.problems
    assert [(1, "1", "2"), (1, "3", "4")] == read.rows


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.arrows"])
def test_a_table_without_rows_says_so(name):
    """
    Though it has all columns.
    """
    assert [f"{name} has no rows."] == Read(save(name, table(0))).problems


def test_a_file_that_is_gone_is_told_when_it_is_read():
    """
    Other files are read.
    """
    read = Read("none.csv", write("a.csv", "p,l\n1,2\n"))

    assert [(1, "1", "2")] == read.rows
    assert ["none.csv cannot be read: [Errno 2] No such file or directory: 'none.csv'."] == read.problems


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.arrows"])
def test_something_else_under_the_name_is_told(name):
    """
    By name, and with what to do.
    """
    (problem,) = Read(write(name, "p,l\n" + "1,2\n" * 20)).problems

    assert problem.startswith(f"{name} is cut off, damaged or no {'Parquet' if 'parquet' in name else 'Arrow'} file: ")
    assert problem.endswith(". Fetch or write it again.")


def test_a_parquet_file_that_is_cut_off_is_told():
    """
    Without its end nothing of it can be read.
    """
    content = Path(save("a.parquet", table(1000))).read_bytes()

    read = Read(write("a.parquet", content[: len(content) // 2]), save("b.parquet", table(3)))

    assert 3 == len(read.rows)
    assert read.problems[0].startswith(
        "a.parquet is cut off, damaged or no Parquet file: Parquet magic bytes not found"
    )


@pytest.mark.parametrize("checksum", [False, True])
def test_what_is_before_a_damaged_page_is_read(monkeypatch, checksum):
    """
    And other parts of the file are; a checksum finds what would otherwise be other values. Rows that were refused are
    not left out once more.
    """
    monkeypatch.setattr(reading, "PIECE_ROWS", 100)
    monkeypatch.setattr(reading, "PART_ROWS", 500)
    options = {
        "write_page_checksum": checksum,
        "compression": "none" if checksum else "snappy",
        "use_dictionary": False,
    }
    cells = pa.array([b"\xe4" if at == 500 else b"c" for at in range(1500)]).view(pa.string())
    rows = pa.table({"l": range(1500), "p": cells})
    content = bytearray(Path(save("a.parquet", rows, rows=250, **options)).read_bytes())
    column = pq.ParquetFile("a.parquet").metadata.row_group(3).column(1)
    end = column.data_page_offset + column.total_compressed_size
    content[end - 20 : end] = b"\x00" * 20 if checksum else b"\xff" * 20

    read = Read(write("a.parquet", bytes(content)))

    assert [*range(1, 501), *range(502, 701), *range(1001, 1501)] == [row[0] for row in read.rows]
    assert (1, len(content)) == (len(read.refused), sum(size for size, _ in read.progress))
    (problem,) = read.problems
    assert problem.startswith("a.parquet is cut off, damaged or no Parquet file: ")
    assert problem.endswith(". Fetch or write it again. Its rows 701 to 1,000 are left out.")


def test_an_arrow_file_without_its_end_is_told():
    """
    Though all of its rows can be read, nobody knows that.
    """
    content = Path(save("a.arrow", table(10))).read_bytes()

    read = Read(write("a.arrow", content[:-10]))

    message = "a.arrow is cut off, damaged or no Arrow file: Not an Arrow file. Fetch or write it again."
    assert (10, [message]) == (len(read.rows), read.problems)


@pytest.mark.parametrize("name", ["a.arrow", "a.arrows"])
def test_of_an_arrow_file_that_is_cut_off_the_first_part_is_read(name):
    """
    Also of those that have their contents at the end.
    """
    content = Path(save(name, table(1000), rows=100)).read_bytes()

    read = Read(write(name, content[: len(content) // 2]))

    assert 300 <= len(read.rows) < 600
    assert [(at + 1, f"c{at % 3}", at) for at in range(len(read.rows))] == read.rows
    assert read.problems[0].startswith(f"{name} is cut off, damaged or no Arrow file: ")


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_of_a_truncated_gzip_file_the_first_part_is_read(monkeypatch, kind):
    """
    Each whole row of it, and no broken one.
    """
    monkeypatch.setattr(reading, "_CSV_BLOCK", 1 << 16)
    cells = [(str(at), f"label-{at * 7919 % 100_003}") for at in range(30_000)]
    rows = (
        jsonl(*({"p": p, "l": at} for p, at in cells))
        if kind == "jsonl"
        else "p,l\n" + "".join(f"{p},{at}\n" for p, at in cells)
    )
    whole = gzip.compress(rows.encode())
    Path(write(f"a.{kind}", whole[: len(whole) // 2])).rename(f"a.{kind}.gz")

    read = Read(f"a.{kind}.gz")

    (problem,) = read.problems
    assert problem.startswith(f"a.{kind}.gz is cut off or damaged, as its compression tells: ")
    assert len(read.rows) > 5_000
    assert [(at, *cells[at - 1]) for at in range(1, len(read.rows) + 1)] == read.rows
    assert ([], Path(f"a.{kind}.gz").stat().st_size) == (read.refused, sum(size for size, _ in read.progress))


@pytest.mark.parametrize("rest", ["", ",", ",x"])
def test_a_quote_that_is_never_closed_is_told(rest):
    """
    What is before it is read, and what follows it is not taken for one cell.
    """
    read = Read(write("a.csv", f'p,l,m{rest}\n1,2,{rest}\n3\n5,6,"7{rest}\n7,8,{rest}\n9,10,{rest}\n'), wanted=WANTED)

    assert [(1, "1", "2")] == read.rows
    message = "a.csv, row 3: a quote is never closed, so this row and what follows it cannot be read."
    assert [message] == read.problems
    assert 1 == len(read.refused)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (
            '3,"' + "x\n" * 5000,
            "a.csv, row 601: a quote is not closed within 4,000 bytes, so this row and what follows ",
        ),
        ("3," + "x" * 5000, "a.csv, row 601 has more than 4,000 bytes."),
    ],
)
def test_a_row_that_is_too_long_is_told(monkeypatch, row, problem):
    """
    What is before it is read.
    """
    monkeypatch.setattr(reading, "_CSV_BLOCK", 1 << 10)
    monkeypatch.setattr(reading, "_LONGEST_ROW", 4_000)

    read = Read(write("a.csv", "p,l\n" + "1,2\n" * 600 + row + "\n5,6\n"))

    assert (600, [problem]) == (len(read.rows), [told[: len(problem)] for told in read.problems])


@pytest.mark.parametrize("quotes", ['"', '"5"" pipe'])
def test_line_ends_between_quotes_are_never_the_end_of_a_row(monkeypatch, quotes):
    """
    Wherever blocks end, also where quotes are as they should not be: a block is then as long as it must be.
    """
    monkeypatch.setattr(reading, "_CSV_BLOCK", 50)
    text = "\n".join(["a,b", "c,d\n", "e"])
    write("a.csv", "p,l\n" + "".join(f'{at},{quotes}{text * (1 + at % 9)}"\n5" {at},x\n' for at in range(100)))

    read = Read("a.csv")

    before = quotes[1:].replace('""', '"')
    rows = [row for at in range(100) for row in [(str(at), before + text * (1 + at % 9)), (f'5" {at}', "x")]]
    assert [(at, *row) for at, row in enumerate(rows, 1)] == read.rows
    assert ([], []) == (read.refused, read.problems)


def test_reading_can_be_given_up_at_any_time():
    """
    Also by ending the program.
    """
    write("a.csv", "p,l\n" + "1,2\n" * 1_000_000)
    code = (
        "from pathlib import Path; from otel_model_metrics.batch import reading; "
        'wanted = reading.Wanted({"prediction": ("p",)}); part = reading.parts_of([Path("a.csv")], wanted)[0]; '
        "pieces = reading.pieces(part, wanted, print); print(next(pieces).count)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)

    assert (0, "", "131072\n") == (done.returncode, done.stderr, done.stdout)


def test_a_line_of_jsonl_without_an_end_is_not_read_into_memory(monkeypatch):
    """
    What is before it is read.
    """
    monkeypatch.setattr(reading.files, "LONGEST_LINE", 100_000)
    read = Read(write("a.jsonl", jsonl({"p": 1, "l": 2}) + '{"p": "' + "x" * 300_000))

    assert ([(1, 1, 2)], ["a.jsonl has a line of more than 100,000 bytes."]) == (read.rows, read.problems)


def test_a_long_line_of_jsonl_is_a_row(monkeypatch):
    """
    Also if it is longer than what is read at once.
    """
    text = "x" * 300_000

    assert [(1, text, 1), (2, "y", 2)] == Read(write("a.jsonl", jsonl({"p": text, "l": 1}, {"p": "y", "l": 2}))).rows


@pytest.mark.parametrize("name", ["a.csv", "b.csv"])
def test_a_long_header_is_read_in_steps(monkeypatch, name):
    """
    Up to a bound, for it may be a file without line ends.
    """
    monkeypatch.setattr(reading, "_HEADER_BLOCK", 10)
    monkeypatch.setattr(reading, "_LONGEST_HEADER", 100)
    write("a.csv", f'"{"x" * 40}\n",p,l\n1,2,3\n4,5,6')
    write("b.csv", f'"{"x" * 140}",p,l\n1,2,3\n')

    read = Read(name)

    if name == "a.csv":
        assert ([(1, "2", "3"), (2, "5", "6")], []) == (read.rows, read.problems)
    else:
        assert ([], ["b.csv has no usable header in its first 100 bytes."]) == (read.rows, read.problems)


# --- Wrong usage -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "columns", "message"),
    [
        ("a.csv", ["p", "L"], "a.csv has no column 'l'; did you mean 'L'? Name it with --label. There are: p, L."),
        ("a.csv", ["l", "pred"], "a.csv has no column 'p'. Name it with --prediction. There are: l, pred."),
        ("a.csv", ["p", "l", "l"], "a.csv has more than one column 'l'."),
        (
            "a.parquet",
            ["p", "L"],
            "a.parquet has no column 'l'; did you mean 'L'? Name it with --label. There are: p, L.",
        ),
        ("a.parquet", ["p", "l", "l"], "a.parquet has more than one column 'l'."),
        ("a.arrow", ["p", "L"], "a.arrow has no column 'l'; did you mean 'L'? Name it with --label. There are: p, L."),
        (
            "a.arrows",
            ["p", "L"],
            "a.arrows has no column 'l'; did you mean 'L'? Name it with --label. There are: p, L.",
        ),
        (
            "a.jsonl",
            ["P", "l"],
            "a.jsonl has no column 'p'; did you mean 'P'? Name it with --prediction. There are: P, l.",
        ),
    ],
)
def test_a_missing_column_is_told_before_anything_is_read(name, columns, message):
    """
    With the option that asked for it, the columns there are and the nearest of them.
    """
    if name == "a.csv":
        write(name, ",".join(columns) + "\n" + ",".join("1" for _ in columns) + "\n")
    elif name == "a.jsonl":
        write(name, jsonl(dict.fromkeys(columns, 1)))
    else:
        save(name, pa.Table.from_arrays([pa.array(["1"])] * len(columns), columns))

    with pytest.raises(ColumnError) as told:
        parts_of([Path(name)], WANTED)

    assert message == str(told.value)


def test_a_label_that_no_row_of_jsonl_has_is_told_in_the_end():
    """
    For it may come later; the rows are read.
    """
    read = Read(write("a.jsonl", jsonl({"p": 1, "lable": 1})))

    message = "a.jsonl has no column 'l'. Name it with --label. There are: p, lable."
    assert ([(1, 1, None)], [message]) == (read.rows, read.problems)


def test_all_kinds_of_files_are_found_in_a_folder():
    """
    Those that can be read, and no others.
    """
    names = sorted(f"out/a{ending}" for ending in reading.ENDINGS)
    for name in [*names, "out/a.txt", "out/_a.csv"]:
        write(name, "")

    assert names == [str(path) for path in find_files(["out"], reading.ENDINGS)]


# --- Size ------------------------------------------------------------------------------------------


# In a process of its own that never stops tracing: when tracemalloc is stopped, CPython crashes if another thread
# begins to use it just then, and pyarrow gives buffers back to Python in threads.
PEAKS = """
import os, sys, tracemalloc
import pyarrow
from pathlib import Path
from otel_model_metrics.batch import reading

reading.PIECE_ROWS, reading._CSV_BLOCK, reading._JSONL_BLOCK, reading._HEADER_BLOCK = 500, 1 << 13, 1 << 13, 1 << 13
wanted = reading.Wanted({"prediction": ("p",), "label": ("l",)}, frozenset({"p"}))
tracemalloc.start()
for name in sys.argv[1:]:
    rows = arrow = 0
    tracemalloc.reset_peak()
    before, arrow_before = tracemalloc.get_traced_memory()[0], pyarrow.total_allocated_bytes()
    for part in reading.parts_of([Path(name)], wanted):
        for piece in reading.pieces(part, wanted, print):
            rows += piece.count
            arrow = max(arrow, pyarrow.total_allocated_bytes() - arrow_before)
    print(rows, tracemalloc.get_traced_memory()[1] - before, arrow, flush=True)
os._exit(0)
"""


def test_memory_does_not_grow_with_the_file():
    """
    Ten times the rows need no more than half as much again, in Python and in Arrow.
    """
    kinds = ["csv", "csv.gz", "jsonl", "parquet", "arrow", "arrows"]
    sizes = [4_000, 4_000, 40_000]  # the first for imports and caches
    for rows in set(sizes):
        content = pa.table({"p": ["x"] * rows, "l": [f"label-{at}" for at in range(rows)]})
        text = "p,l\n" + "".join(f"x,label-{at}\n" for at in range(rows))
        write(f"{rows}.csv", text)
        write(f"{rows}.csv.gz", text)
        write(f"{rows}.jsonl", jsonl(*content.to_pylist()))
        for kind in kinds[3:]:
            save(f"{rows}.{kind}", content, rows=rows // 2)

    names = [f"{rows}.{kind}" for kind in kinds for rows in sizes]
    done = subprocess.run([sys.executable, "-c", PEAKS, *names], capture_output=True, text=True, timeout=60)
    assert ("", len(names)) == (done.stderr, len(done.stdout.splitlines()))

    peaks = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert sizes * len(kinds) == [rows for rows, *_ in peaks]
    for at, kind in enumerate(kinds):
        (_, small, small_arrow), (_, large, large_arrow) = peaks[3 * at + 1 : 3 * at + 3]
        assert large < 1.5 * small + 20_000, (kind, small, large)
        assert large_arrow < 1.5 * small_arrow + 1_000_000, (kind, small_arrow, large_arrow)
