"CSV as people save it: titles, comments, row names, stray quotation marks, long fields."
import csv
import io
import random
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_nb.core.errors import UserError
from mlops_nb.data.csv_reader import _pair_marks, _walk_marks, read_csv_batches
from mlops_nb.data.readers import detect_source
from mlops_nb.data.sources import ReadOptions, find_sources


def put(path, text, encoding="utf-8"):
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return path


def read(path, batch_bytes=1 << 21, **how):
    return pl.concat(read_csv_batches(detect_source(*find_sources(path, ReadOptions(**how))), batch_bytes))


# ---- lines before and between the rows


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16", "utf-16-le"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("line, separator",
                         [("sep=;", ";"), ('"sep=|"', "|"), ("sep=\t", "\t"), ("SEP=,", ","), ("sep=^", "^")])
def test_the_line_in_which_excel_writes_the_separator(tmp_path, encoding, end, line, separator):
    rows = [line, separator.join(["Größe für Männer", "b,c;d" if separator == "|" else "b"]), separator.join("12"),
            separator.join("34")]
    frame = read(put(tmp_path / "x.csv", end.join(rows) + end, encoding))
    assert frame.rows() == [("1", "2"), ("3", "4")] and frame.columns[0] == "Größe für Männer"


def test_what_looks_like_a_separator_line_and_is_a_header(tmp_path):
    assert read(put(tmp_path / "x.csv", "sep=x,b\n1,2\n")).columns == ["sep=x", "b"]
    assert read(put(tmp_path / "y.csv", "sep\n1\n")).columns == ["sep"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_title_and_comment_lines(tmp_path, encoding, end):
    lines = ["Umsätze, \"2024\" und mehr", "", "id;note", "# checked; by me", "1;a", " # twice", '2;"two', '# lines"',
             "3;#x"]
    path = put(tmp_path / "x.csv", end.join(lines) + end, encoding)
    frame = read(path, skip=2, comment="#")
    assert frame["id"].to_list() == ["1", "2", "3"]
    assert [n.replace("\r\n", "\n").replace("\r", "\n") for n in frame["note"]] == ["a", "two\n# lines", "#x"]
    with pytest.raises(UserError, match="line 10: 3 fields where the header has 2"):
        read(put(path, end.join([*lines, "4;5;6"]), encoding), skip=2, comment="#")


@pytest.mark.parametrize("text, sentence", [
    ("Report\nid;a;b\n1;2;3\n4;5;6\n", "line 1 has 1 fields and line 2, like most after it, 3 .*give --skip 1"),
    ("Report, May\n\nid;a;b\n1;2;3\n4;5;6\n", "give --skip 1"),
    ("Umsätze;DE12\nvon, bis;1,5\n\na;b;c;d\n1,5;2,5;3;4\n1,5;2,5;3;5\n",
     "line 4, .* 4 with the separator ';'.*--skip 2"),
                                            ("# by me, you\n# twice\nid,a,b\n1,2,3\n4,5,6\n", "give --skip 2")])
def test_a_title_is_named_and_not_taken_for_the_header(tmp_path, text, sentence):
    path = put(tmp_path / "x.csv", text)
    with pytest.raises(UserError, match=sentence): read(path)
    if ";" in text:
        with pytest.raises(UserError, match="give --skip"): read(path, separator=";")


def test_wrong_options_are_sentences():
    with pytest.raises(UserError, match="--skip -1"): ReadOptions(skip=-1)
    with pytest.raises(UserError, match="--comment is empty"): ReadOptions(comment=" ")


# ---- R


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_the_header_of_r_is_one_name_short(tmp_path, separator):
    rows = ['"mpg","cyl"', '"Mazda RX4",21,6', '"Datsun 710",22.8,4', '"Valiant",NA,6']
    frame = read(put(tmp_path / "x.csv", "\n".join(rows).replace(",", separator)))
    assert frame.columns == ["row_names", "mpg", "cyl"] and frame["row_names"].to_list() == ["Mazda RX4", "Datsun 710",
                                                                                             "Valiant"]
    assert frame["cyl"].to_list() == ["6", "4", "6"]


@pytest.mark.parametrize("text",
                         ["a,b\n1,2,\n3,4,\n", "a,b\n1,2,3\n1,4,5\n", "a,b\n1,2,3\n2,4\n",
                          "a,b\nx,y,z\n1,2,3\n4,5,6\n"])
def test_a_row_with_one_field_too_many_is_not_taken_for_r(tmp_path, text):
    with pytest.raises(UserError, match="fields"): read(put(tmp_path / "x.csv", text))


# ---- quotation marks


def test_two_stray_marks_swallow_150_rows_without_a_word(tmp_path):
    lines = ["text,stars,useful", *[f"phone {i % 7},{i % 5 + 1},no" for i in range(400)]]
    lines[101], lines[251] = '"Best phone ever,3,yes', '"Best phone ever,1,yes'
    with pytest.raises(UserError, match=r"x.csv, line 102: a quotation mark is opened and never closed"):
        read(put(tmp_path / "x.csv", "\n".join(lines)))
    assert len(read(put(tmp_path / "x.csv", "\n".join(lines).replace('"', "")))) == 400


def reviews(first, last):
    lines = ["text,stars,useful", *[f"phone {i},{i % 5},no" for i in range(40)]]
    lines[5], lines[30] = first, last
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("first, last", [
    ('"Best phone,3,yes', '"Worst phone,3,no'), ('"Best phone,3,yes', 'Worst phone",3,no'), ('a,"3,yes', 'b,"4,no'),
    ('"Best" phone,3,yes', "Worst phone,3,no"), ('"Best phone,3,yes', "Worst phone,3,no"), ('x,1,"', '",2,y')])
def test_a_mark_opened_in_line_6_is_found_there(tmp_path, first, last):
    for encoding in ("utf-8-sig", "utf-16", "cp1252"):
        with pytest.raises(UserError, match="line 6: a quotation mark"):
            read(put(tmp_path / "x.csv", reviews(first, last), encoding))


@pytest.mark.parametrize("first, value", [
    ('12" vinyl,3,yes', '12" vinyl'), ('"say ""hi"", twice",3,yes', 'say "hi", twice'),
                                          ('"two\nlines, ""and\n more",3,yes', 'two\nlines, "and\n more'),
    ('"",3,yes', None), ('"""",3,yes', '"'), ('"a" ,3,yes', "a"), ('a "b" c,3,yes', 'a "b" c'),
    ('"' + "one, two\n" * 20 + '",3,yes', ("one, two\n" * 20).strip())])
def test_marks_as_they_should_be(tmp_path, first, value):
    frame = read(put(tmp_path / "x.csv", reviews(first, 'so,"1",no')))
    assert len(frame) == 40 and frame["text"][4] == value and frame["text"][29] == "so"


@settings(deadline=None, max_examples=200)
@given(st.lists(st.lists(st.sampled_from(['"', ",", "\n", "a", " ", '""', "b\n", ";"]), max_size=6).map("".join),
                min_size=3, max_size=9))
def test_the_quick_way_is_never_surer_than_going_through_the_marks(fields):
    "On any text, whether a CSV writer made it or not."
    import numpy as np
    written = io.StringIO()
    csv.writer(written, lineterminator="\n").writerows([fields[i:i + 3] for i in range(0, len(fields), 3)])
    for text in (written.getvalue().encode(), "".join(fields).encode()):
        marks = np.flatnonzero(np.frombuffer(text, np.uint8) == 34)
        if not len(marks) or (quick := _pair_marks(text, marks, ord(","))) is None: continue
        pairs, opened = _walk_marks(text, marks.tolist(), ord(","))
        assert (quick[1] is None) == (opened is None)
        joined = []
        for start, end in quick[0].tolist():  # doubled marks come out as two pairs
            if joined and joined[-1][1] == start - 1: joined[-1][1] = end
            else: joined.append([start, end])
        if opened is None: assert joined == [list(p) for p in pairs]


def test_marks_across_the_borders_of_pieces(tmp_path, monkeypatch):
    "The same answer however the file falls into pieces."
    rng = random.Random(3)
    rows = [[f"{i}", "x" * rng.randrange(60) + rng.choice(["", ' "q" ', "\nline, ", '"']),
             f"{i / 7}"] for i in range(3000)]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([["a", "b", "c"], *rows])
    path = put(tmp_path / "x.csv", text.getvalue())
    real, sizes = io.BufferedReader.read, iter(range(10**9))
    def short(self, n=-1): return real(self, min(n, 700 + next(sizes) % 900) if n > 100 else n)
    class Reader(io.BufferedReader):
        read = short
    monkeypatch.setattr("mlops_nb.data.text_encoding.open", lambda p, mode: Reader(io.FileIO(p)), raising=False)
    source = detect_source(*find_sources(path))
    monkeypatch.undo()
    assert source == detect_source(*find_sources(path))
    assert [list(r) for r in pl.concat(read_csv_batches(source, 1 << 14)).rows()] == [[a, b.strip() or None, c] for a,
                                                                                      b, c in rows]
    cut = text.getvalue().splitlines()
    broken = put(tmp_path / "y.csv", "\n".join([*cut[:2000], '1,"never,2', *[f"{i},b,c" for i in range(100_000)]]))
    with pytest.raises(UserError, match="line 2001: a quotation mark is opened and never closed"): read(broken)


# ---- long fields


@pytest.mark.parametrize("quoted", [True, False])
@pytest.mark.parametrize("size", [160_000, 3_000_000, 9_000_000])
def test_a_long_field(tmp_path, size, quoted):
    text = "POLYGON " + "1 2;" * (size // 4)
    rows = [["id", "outline", "x"], ["1", "short", "2"], ["2", text + ("\n" if quoted else ""), "3"],
            ["3", "short", "4"]]
    with open(tmp_path / "x.csv", "w", newline="") as f: csv.writer(f).writerows(rows)
    frame = read(tmp_path / "x.csv", batch_bytes=1 << 16)
    assert frame["outline"].str.len_bytes().to_list() == [5, len(text), 5]
    assert len(read(tmp_path / "x.csv", skip=0, comment="%")) == 3


@pytest.mark.parametrize("name, kept", [("*", "column *"), ("^x$", "column ^x$"), ("^(a|b)$", "column ^(a|b)$"),
                                        ("^", "^")])
def test_names_that_polars_takes_for_patterns(tmp_path, name, kept):
    frame = read(put(tmp_path / "x.csv", f"x,{name},y\n1, 2,3\n4,5,\n"))
    assert frame.to_dict(as_series=False) == {"x": ["1", "4"], kept: ["2", "5"], "y": ["3", None]}
    with pytest.raises(UserError, match="2 times"): read(put(tmp_path / "x.csv", f"{name},{kept}\n1,2\n"))


def test_names_with_commas_and_quotation_marks(tmp_path):
    names = ["a,b", 'say "hi"', "c[0]", "d:e", "{f}", "über #1 50%", "g.h"]
    with open(tmp_path / "x.csv", "w", newline="") as f: csv.writer(f).writerows([names, range(7)])
    assert read(tmp_path / "x.csv").columns == names


def test_a_long_file_is_read_in_parts(tmp_path):
    "With comments as well, which take another way."
    Path(tmp_path / "x.csv").write_text("id,v\n" + "".join(f"{i},{i * 3}\n# {i}\n" for i in range(200_000)))
    batches = list(read_csv_batches(detect_source(*find_sources(tmp_path / "x.csv", ReadOptions(comment="#"))),
                                    1 << 18))
    assert len(batches) > 5 and sum(map(len, batches)) == 200_000
    assert pl.concat(batches)["v"].cast(int).sum() == 3 * sum(range(200_000))
