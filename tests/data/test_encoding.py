"""Text of other encodings: none may pass for Latin-1, which gives every byte a letter."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from vlm_plugin.data import Problem, open_split
from vlm_plugin.data.captions import read_captions
from vlm_plugin.data.encoding import AS_LATIN_1, decode

CHINESE = "一个红色的圆盘"
ENGLISH = "a small red bird with a white belly\n" * 200
FOREIGN = {
    "gbk": CHINESE,
    "gb18030": "蓝色的鸟，白色的背景",
    "big5": "一個紅色的圓盤",
    "shift_jis": "レッドディスク",
    "euc_jp": "赤い円盤",
    "iso2022_jp": "赤い円盤",
    "euc_kr": "파란 새가 나무 위에 있다",
    "cp1251": "красный круг",
    "koi8_r": "красный круг",
    "cp866": "красный круг",
    "cp1253": "κόκκινος δίσκος",
    "cp1255": "עיגול אדום",
    "cp1256": "قرص أحمر",
    "cp874": "แผ่นสีแดง",
    "cp1250": "żółty ptak siedzi na gałęzi",
    "iso8859_2": "příliš žluťoučký kůň",
    "cp1254": "küçük sarı kuş ağacın üstünde oturuyor ve şarkı söylüyor, çok güzel bir gün ışığı altında",
    "utf-16-le": CHINESE,
    "utf-16-be": "a red bird",
}
LATIN_1 = {
    "english": ENGLISH + "a caf\xe9",
    "french": "bébé âgé, rouge-gorge perché sur une branche élancée à côté de l'été",
    "german": "ein rötlicher Vogel, größer als üblich, über einem Übergrößenträger",
    "spanish": "¿qué pingüino pequeño? ¡el niño! «sí» 20°C, 1º",
    "icelandic": "það er lítill gulur fugl sem situr á grein og syngur um þig",
    "finnish": "punainen lintu istuu oksalla ja äiti näkee sen; työöljy, yöääni",
    "catalan": "col·legi",
    "one word": "été",
}


def written(root: Path, captions: list[bytes], table: bool) -> Path:
    root.mkdir()
    rows = [b"file_name,text"]
    for number, caption in enumerate(captions):
        Image.new("RGB", (40, 40), (number, 9, 9)).save(root / f"{number}.png")
        rows.append(b'%d.png,"%b"' % (number, caption))
        if not table:
            (root / f"{number}.txt").write_bytes(caption)
    if table:
        (root / "metadata.csv").write_bytes(b"\n".join(rows))
    return root


@pytest.mark.parametrize("encoding", FOREIGN)
@pytest.mark.parametrize("around", ["", ENGLISH], ids=["alone", "among English"])
def test_text_of_another_encoding_is_refused(encoding: str, around: str) -> None:
    content = (around + FOREIGN[encoding] + "\n" + around).encode(encoding)
    text, problem = decode(content)
    assert text is None
    assert "as UTF-8" in problem
    if around and "code page" in problem:
        assert f"in line {ENGLISH.count(chr(10)) + 1}:" in problem


@pytest.mark.parametrize("text", LATIN_1.values(), ids=LATIN_1)
def test_a_few_accents_are_latin_1(text: str) -> None:
    found, problem = decode(text.encode("latin-1"))
    assert found == text
    assert problem.endswith(AS_LATIN_1)


def test_marks_of_windows_are_read_as_before() -> None:
    content = "the bird’s “red” wing – nice… un cœur".encode("cp1252")
    assert decode(content).text == content.decode("latin-1")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_what_a_byte_order_mark_says(encoding: str) -> None:
    assert decode(f"{CHINESE}\r\na caf\xe9".encode(encoding)) == (f"{CHINESE}\r\na caf\xe9", None)


def test_a_mark_that_lies() -> None:
    assert decode(b"\xff\xfea").problem == "got UTF-16 that is damaged: save the file as UTF-8"


def test_utf8_that_is_damaged_is_not_latin_1() -> None:
    content = CHINESE.encode()
    problem = decode(content[:-1] + b"\n").problem
    assert problem == "expected UTF-8, got UTF-8 that is damaged (byte 0xe7 at position 18): save the file as UTF-8"
    # One quotation mark of UTF-8 beside an accent of Latin-1: as it always was.
    assert decode("a bird’s ".encode() + b"caf\xe9").problem.endswith(AS_LATIN_1)


@pytest.mark.parametrize("table", [False, True], ids=["txt", "csv"])
@pytest.mark.parametrize(
    ("encoding", "captions"),
    [
        ("gbk", [CHINESE, "蓝色的鸟"]),
        ("gbk", ["红", "蓝", "绿", "黄", "白"]),  # a file with one character alone could be anything
        ("cp1250", ["są", "żółty", "biała", "mała"]),
        ("cp1254", ["kırmızı", "sarı", "yeşil", "kuş", "ağaç", "ışık", "açık", "şarkı"]),
    ],
)
def test_a_set_of_short_captions(tmp_path: Path, table: bool, encoding: str, captions: list[str]) -> None:
    root = written(tmp_path / "data", [caption.encode(encoding) for caption in captions], table)
    with pytest.raises(ValueError, match="as UTF-8"):
        open_split(root, "train")
    for number, caption in enumerate(captions):
        if not table:
            (root / f"{number}.txt").write_text(caption, encoding="utf-8")
    if table:
        (root / "metadata.csv").write_bytes((root / "metadata.csv").read_bytes().decode(encoding).encode())
    assert len(open_split(root, "train")) + len(open_split(root, "test")) == len(captions)


@pytest.mark.parametrize("table", [False, True], ids=["txt", "csv"])
def test_a_set_with_a_few_accents(tmp_path: Path, table: bool) -> None:
    captions = ["un été", "bébé", "a bird", "café", "rosé", "naïve"]
    root = written(tmp_path / "data", [caption.encode("latin-1") for caption in captions], table)
    found: list[Problem] = []
    read = [*open_split(root, "train", found.append), *open_split(root, "test", found.append)]
    assert sorted(record.captions[0] for record in read) == sorted(captions)
    assert not any(problem.fatal for problem in found)


def test_captions_that_are_scored(tmp_path: Path) -> None:
    root = written(tmp_path / "pictures", [b"", b""], table=False)
    for name, content in {"c.txt": f"{CHINESE}\n红", "c.csv": f"file_name,text\n0.png,{CHINESE}\n1.png,红"}.items():
        (tmp_path / name).write_bytes(content.encode("gbk"))
        with pytest.raises(ValueError, match=f"{name}: .*save the file as UTF-8"):
            read_captions(tmp_path / name, root)
        (tmp_path / name).write_bytes(content.encode("utf-16"))
        assert read_captions(tmp_path / name, root) == {"0.png": CHINESE, "1.png": "红"}
