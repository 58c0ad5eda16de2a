"""Tables as spreadsheets, pandas and hands write them."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from PIL import Image

from vlm_plugin.data import Problem, open_split
from vlm_plugin.data.captions import read_captions, table_captions
from vlm_plugin.data.tables import captions_in, csv_rows

TWO = [["a bird", "it's a bird"]] * 2
LISTS = {
    "pandas": """['a bird', "it's a bird"]""",
    "JSON": """["a bird", "it's a bird"]""",
    "numpy": """['a bird' "it's a bird"]""",
    "numpy, long": """['a bird'\n "it's a bird"\n]""",
    "Python 2": """[u'a bird', u"it's a bird"]""",
    "escaped": r"""['a bird', 'it\'s a bird']""",
    "tuple": """ ('a bird', "it's a bird",) """,
}


@pytest.mark.parametrize("cell", LISTS.values(), ids=LISTS)
def test_a_list_in_a_cell_is_several_captions(tmp_path: Path, cell: str) -> None:
    assert captions_in(cell) == ["a bird", "it's a bird"]
    for name in "ab":
        Image.new("RGB", (40, 40)).save(tmp_path / f"{name}.png")
    quoted = cell.replace('"', '""')
    table = f'file_name,text\na.png,"{quoted}"\nb.png,"{quoted}"\n'
    (tmp_path / "metadata.csv").write_text(table, encoding="utf-8", newline="")
    read = [*open_split(tmp_path, "train"), *open_split(tmp_path, "test")]
    assert [record.captions for record in read] == [("a bird", "it's a bird")] * 2
    with pytest.raises(ValueError, match=r"metadata\.csv, line 2: expected one caption, got a list"):
        read_captions(tmp_path / "metadata.csv", tmp_path)


@pytest.mark.parametrize(
    "cell",
    ["a bird", "[a red bird]", "(a bird)", "[V] dog", "{}", "a ['quoted'] bird", "('a' bird)", "['a']", "[ 'a' ]"],
)
def test_brackets_make_no_list(cell: str) -> None:
    assert captions_in(cell) == (["a"] if "'a']" in cell.replace(" ", "") and cell[0] == "[" else [cell])


@pytest.mark.parametrize("cell", ["['a', ...]", "['a', nan]", "[1, 2]", "['a', 'b", "[['a'], ['b']]", r"['\x', 'b']"])
def test_a_broken_list_is_a_bad_row(tmp_path: Path, cell: str) -> None:
    assert captions_in(cell) is None
    for name in "abc":
        Image.new("RGB", (40, 40)).save(tmp_path / f"{name}.png")
    (tmp_path / "metadata.csv").write_text(f'file_name,text\na.png,"{cell}"\nb.png,a bird\nc.png,a cat\n')
    found: list[Problem] = []
    assert len(open_split(tmp_path, "train", found.append)) == 1
    assert [(p.where, p.picture, p.fatal) for p in found] == [(f"{tmp_path / 'metadata.csv'}, line 2", True, True)]


def test_no_cell_takes_long() -> None:
    begun = time.monotonic()
    for cell in ("['" + "a' 'b" * 20000, "['a'" + " " * 30000 + "x]", "['" + "\\'" * 30000 + "]", "[" * 100000):
        captions_in(cell)
    assert time.monotonic() - begun < 2


def test_blanks_behind_commas_and_what_spreadsheets_leave() -> None:
    text = '\ufefffile_name, text ,,\n0.png, "a disk, indeed"\n,,\n  \n1.png,x,,\n,,,\n2.png,\n3.png,a,b,\n'.lstrip(
        "\ufeff"
    )
    assert list(csv_rows(text)) == [
        (1, ["file_name", "text"]),
        (2, ["0.png", "a disk, indeed"]),
        (5, ["1.png", "x"]),
        (7, ["2.png", ""]),
        (8, ["3.png", "a", "b"]),
    ]
    assert list(csv_rows("a\t b\n\t\nx\t y z\t\n", "\t")) == [(1, ["a", "b"]), (3, ["x", " y z"])]


@pytest.mark.parametrize(
    "table",
    [
        'file_name,text\n0.png, "a disk, indeed"\n1.png, "a \\"\n',
        "\ufefffile_name, text\n0.png, a disk\n1.png, a ring\n",
        'file_name , "text"\n0.png, a disk \n1.png, a ring\n',
        "file_name,text,,\n0.png,a disk,,\n1.png,a ring\n,,\n,,,\n",
    ],
)
def test_a_table_with_blanks_and_empty_cells(tmp_path: Path, table: str) -> None:
    for number in range(2):
        Image.new("RGB", (40, 40), (number, 0, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "metadata.csv").write_text(table, encoding="utf-8")
    read = [*open_split(tmp_path, "train"), *open_split(tmp_path, "test")]
    assert sorted(record.image.name for record in read) == ["0.png", "1.png"]
    assert list(read_captions(tmp_path / "metadata.csv", tmp_path)) == ["0.png", "1.png"]
    assert [caption[:3] for caption in table_captions(tmp_path / "metadata.csv")] == [
        "a d",
        "a r" if "ring" in table else "a \\",
    ]
