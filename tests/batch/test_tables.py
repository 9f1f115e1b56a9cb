"""Lists and tables as editors and spreadsheets write them: read, or refused with one sentence."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dajax.batch.items import find_items
from dajax.errors import ConfigError, JobRefusedError

# Python's own codecs are the independent writers of these encodings.
MARKED = ("utf-8", "utf-8-sig", "utf-16", "utf-32")
WANTED = ["a b.jpg", "c;d.jpg", "\u00e9.jpg"]


def keys(source, **options):
    return [item.key for item in find_items(source, **options).items]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["lf", "crlf", "cr"])
@pytest.mark.parametrize("encoding", MARKED)
def test_lists_of_all_encodings_and_line_ends(tmp_path, encoding, end):
    path = tmp_path / "list.txt"
    path.write_bytes(end.join([*WANTED, "", ""]).encode(encoding))
    assert keys(path) == WANTED
    path.write_bytes(end.join(WANTED).encode(encoding))  # no end behind the last line
    assert keys(path) == WANTED


@pytest.mark.parametrize("separator", [",", ";", "\t"], ids=["comma", "semicolon", "tab"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["lf", "crlf", "cr"])
@pytest.mark.parametrize("encoding", MARKED)
def test_tables_of_all_encodings_line_ends_and_separators(tmp_path, encoding, end, separator):
    path = tmp_path / "table.csv"
    lines = [separator.join(("id", "file")), *(f'{number}{separator}"{name}"' for number, name in enumerate(WANTED))]
    path.write_bytes(end.join([*lines, ""]).encode(encoding))
    assert keys(path, column="file") == WANTED
    path.rename(tmp_path / "table.tsv")
    assert keys(tmp_path / "table.tsv", column="file") == WANTED


@pytest.mark.parametrize("name", ["list.txt", "table.csv"])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_a_mark_is_refused(tmp_path, name, encoding):
    (tmp_path / name).write_bytes("file\na.jpg\n".encode(encoding))
    with pytest.raises(JobRefusedError, match=r"no text in UTF-8.*Save it as UTF-8$"):
        find_items(tmp_path / name)


def test_text_that_is_not_what_its_mark_says(tmp_path):
    (tmp_path / "list.txt").write_bytes("a.jpg\n".encode("utf-16")[:-1])
    with pytest.raises(JobRefusedError, match="say that it is text in UTF-16, and it is not"):
        find_items(tmp_path / "list.txt")


def test_blanks_and_quotation_marks_around_lines(tmp_path):
    path = tmp_path / "list.txt"
    path.write_bytes(b'a.jpg  \n\t b c.jpg\t\r\n"d e.jpg"\n"\n   \n')  # Explorer copies a path with quotation marks
    assert keys(path) == ['"', "a.jpg", "b c.jpg", "d e.jpg"]
    table = tmp_path / "table.csv"
    table.write_bytes(b'\n id ; file \n1; a,b.jpg \n2;" c.jpg"\n')
    assert keys(table, column="file") == ["a,b.jpg", "c.jpg"]


def test_what_spreadsheets_put_first(tmp_path):
    path = tmp_path / "table.csv"
    path.write_bytes(b"sep=;\r\nid;file\r\n1;a,b.jpg\r\n")
    assert keys(path, column="file") == ["a,b.jpg"]
    path.write_bytes(b"file,\r\na.jpg,\r\n")
    assert keys(path) == ["a.jpg"]


def test_rows_without_an_entry_are_counted(tmp_path):
    path = tmp_path / "table.csv"
    path.write_bytes(b"id,file\n1,a.jpg\n2,\n3\n\n4, \n")
    found = find_items(path, column="file")
    assert ([item.key for item in found.items], found.passed_over) == (["a.jpg"], {"rows without an entry": 3})
    pq.write_table(pa.table({"file": ["a.jpg", None, " ", ""]}), tmp_path / "table.parquet")
    assert find_items(tmp_path / "table.parquet").passed_over == {"rows without an entry": 3}


@pytest.mark.parametrize(
    ("content", "column", "error", "said"),
    [
        (b"a.jpg\nb.jpg\n", None, JobRefusedError, r"first line has an image \('a.jpg'\)"),
        (b"a.jpg,1\nb.jpg,2\n", "file", JobRefusedError, "first line has an image"),
        (b"file\na, b.jpg\n", None, JobRefusedError, "line 2: has 2 columns, and the first line has 1"),
        # The quotation mark is not closed: the second image would be a part of the first one's name.
        (b'file\n"a.jpg\nb.jpg\n', None, JobRefusedError, "line 3: is no CSV"),
        (b"", None, JobRefusedError, "is empty"),
        (b"id;file\n1;a.jpg\n", None, ConfigError, "say which column has the paths; there are id, file"),
        (b"id;file\n1;a.jpg\n", "path", ConfigError, "no column 'path'; there are id, file"),
        (b"file\na.jpg\nb\0.jpg\n", None, JobRefusedError, "bytes of value 0"),
    ],
)
def test_tables_that_are_refused(tmp_path, content, column, error, said):
    (tmp_path / "table.csv").write_bytes(content)
    with pytest.raises(error, match=said):
        find_items(tmp_path / "table.csv", column=column)


def test_a_folder_with_the_suffix_of_a_list(tmp_path):
    (tmp_path / "images.txt").mkdir()
    (tmp_path / "images.txt" / "a.jpg").touch()
    assert keys(tmp_path / "images.txt") == ["a.jpg"]
