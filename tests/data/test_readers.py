"Files as people deliver them: every separator, encoding and accident."
import csv
import gzip
import io
import json
import sys

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.memory import peak_mib

from mlops_nb.core.errors import UserError
from mlops_nb.data.csv_reader import read_csv_batches
from mlops_nb.data.readers import detect_source, read_source
from mlops_nb.data.sources import ReadOptions, find_files, find_sources


def put(path, content, encoding="utf-8"):
    data = content if isinstance(content, bytes) else content.encode(encoding)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def read(path, rows=131_072, **how):
    return pl.concat(read_source(*find_sources(path, ReadOptions(**how)), batch_rows=rows))


# ---- CSV: separators, encodings, quirks

TABLE = [["name", "city", "note"], ["Müller", "Köln", 'says "hi"; leaves'], ["José", "Málaga", "a,b\tc|d"],
         ["Zoë", "Orléans", "two\nlines"]]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "cp1252", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("name", ["x.csv", "x.gz"])
@pytest.mark.parametrize("end", ["\r\n", "\n"])
def test_separator_and_encoding_are_detected(tmp_path, separator, encoding, name, end):
    text = io.StringIO()
    csv.writer(text, delimiter=separator, lineterminator=end).writerows(TABLE)
    frame = read(put(tmp_path / name, text.getvalue(), encoding))
    assert [frame.columns, *map(list, frame.rows())] == TABLE


@pytest.mark.parametrize("encoding, words", [
    ("cp1250", ["Łódź", "Gdańsk", "Wałbrzych", "Częstochowa"]), ("cp1251", ["Москва", "Новосибирск", "Екатеринбург"]),
    ("shift_jis", ["東京都", "大阪府", "名古屋市"]), ("gb18030", ["北京市", "上海市", "广州市", "深圳市"]),
    ("euc_kr", ["서울특별시", "부산광역시", "대구"])])
def test_other_scripts(tmp_path, encoding, words):
    path = put(tmp_path / "x.csv", "city,id\n" + "".join(f"{w},{i}\n" for i, w in enumerate(words)), encoding)
    assert read(path)["city"].to_list() == words


def test_a_rare_byte_late_in_a_long_file(tmp_path):
    text = "id,city\n" + "1,Paris\n" * 300_000 + "2,Besançon\n"
    assert read(put(tmp_path / "x.csv", text, "latin-1"))["city"][-1] == "Besançon"


def test_encoding_given(tmp_path):
    path = put(tmp_path / "x.csv", "a,b\n1,é\n2,ü\n", "cp850")
    assert read(path, encoding="cp850")["b"].to_list() == ["é", "ü"]
    with pytest.raises(UserError, match="x.csv is not utf-8: byte 6 does not decode"): read(path, encoding="utf-8")
    with pytest.raises(UserError, match="encoding 'klingon' is unknown"): read(path, encoding="klingon")


def test_byte_offset_is_right_far_into_a_file(tmp_path):
    data = b"a,b\n" + b"1,x\n" * 700_000 + b"2,\xff\n"
    with pytest.raises(UserError, match=f"byte {data.index(0xff)} "):
        read(put(tmp_path / "x.csv", data), encoding="utf-8")
    cut = b"a,b\n1,x\n2," + "é".encode()[:1]
    with pytest.raises(UserError, match=f"byte {len(cut) - 1} "): read(put(tmp_path / "y.csv", cut), encoding="utf-8")


@pytest.mark.parametrize("separator", ["^", ":", " "])
def test_any_separator_can_be_given(tmp_path, separator):
    path = put(tmp_path / "x.csv", f"a{separator}b\n1{separator}2\n")
    assert read(path, separator=separator).to_dict(as_series=False) == {"a": ["1"], "b": ["2"]}


def test_separator_words(tmp_path):
    path = put(tmp_path / "x.csv", "a\tb,c\n1\t2\n")
    for word in ("tab", "\\t", "\t"): assert read(path, separator=word).columns == ["a", "b,c"]
    for bad in ("||", "é"):
        with pytest.raises(UserError, match="not one ASCII character"): read(path, separator=bad)


def test_one_column(tmp_path):
    assert read(put(tmp_path / "x.csv", "word\nhello world\nfoo; bar\n"))["word"].to_list() == ["hello world",
                                                                                                "foo; bar"]


def test_quirks(tmp_path):
    text = '\n "a name" , "b;x" ,, c\n 1 , " x " ,,\n\n2,y,,\n   \n,,,\n\n\n'
    frame = read(put(tmp_path / "x.csv", text))
    assert frame.to_dict(as_series=False) == {"a name": ["1", "2", None], "b;x": ["x", "y", None],
                                              "column_3": [None] * 3,
                                              "c": [None] * 3}


def test_blanks_before_quotation_marks_anywhere(tmp_path):
    frame = read(put(tmp_path / "x.csv", "a,b\n" + "1,x\n" * 300_000 + '2, "y, z"\n'))
    assert frame["b"][-1] == "y, z" and frame["b"][0] == "x" and len(frame) == 300_001
    with pytest.raises(UserError, match="line 3: 3 fields"): read(put(tmp_path / "y.csv", 'a,b\n1, "x"\n2,3,4\n'))


def test_carriage_returns_alone(tmp_path):
    assert read(put(tmp_path / "x.csv", "a,b\r1,2\r3,4\r")).rows() == [("1", "2"), ("3", "4")]


@pytest.mark.parametrize("text, sentence", [
    ("", "is empty"), ("\n\n  \n", "only blank lines"),
    ("a,b,a\n1,2,3\n", "the column 'a' 2 times"), ("a, a\n1,2\n", "the column 'a' 2 times"),
    ("a,_row\n1,2\n", "reserved"),
    ("1,2.5\n3,4\n", "no header"), ("a,b\n1,2\n3\n", "line 3: 1 fields where the header has 2"),
    ("a,b\n1,2\n\n\n3,4,5\n6,7\n", "line 5: 3 fields where the header has 2"),
    ('a,b\n1,"x\ny"\n2\n', "line 4: 1 fields"),
    ('a,b\n1,2\n3,"abc\n', "line 3: a quotation mark is opened and never closed"),
    ('a,b\n1,2\n3,"abc\n' + "4,5\n" * 50_000, "line 3: a quotation mark is opened and never closed"),
    ('a,b\n1,2\n3,"abc\n' + "4,5\n" * 3_000_000, "line 3: a quotation mark is opened and never closed"),
    ("PK\x03\x04", "zip archive"), ("%PDF-1.7", "PDF"), ("a\0b\0\x01", "not text"),
    ("<!DOCTYPE html><title>Sign in</title>", "a web page"), ('\n<?xml version="1.0"?>', "XML"),
    (b"7z\xbc\xaf\x27\x1c\0", "a 7z archive"), (b"\xd0\xcf\x11\xe0\xa1\xb1", "save it as .xlsx"),
    (b"\x28\xb5\x2f\xfd\0", "packed with zstd"), (b"ORC\0\1", "an ORC file"), (b"\x89HDF\r\n\x1a", "HDF5"),
    (b"\0" * 8 + b"DUCK" + b"\0" * 8, "a DuckDB database; give it as duckdb:///")])
def test_broken_csv(tmp_path, text, sentence):
    path = put(tmp_path / "x.csv", text)
    with pytest.raises(UserError, match=sentence) as e: read(path, rows=4096)
    assert "x.csv" in str(e.value) and "\n" not in str(e.value)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_a_csv_cut_anywhere_is_refused_or_whole_rows(tmp_path_factory, data):
    """A cut may go unseen only inside the last field of a row: no reader can know. It never leaves a row with missing
    fields."""
    row = st.tuples(st.integers(-10**9, 10**9), st.sampled_from(["x", 'a "b"', "c,d", "e\nf"]), st.floats(0, 1))
    rows = data.draw(st.lists(row, min_size=1, max_size=6))
    text = io.StringIO()
    csv.writer(text).writerows([("i", "s", "x"), *rows])
    whole = text.getvalue().encode()
    path = put(tmp_path_factory.mktemp("cut") / "x.csv", whole[:data.draw(st.integers(0, len(whole)))])
    try: frame = read(path)
    except UserError: return
    for got, row in zip(frame.rows(), rows, strict=False): assert (int(got[0]), got[1]) == row[:2]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=8), min_size=3,
                         max_size=3),
                min_size=1, max_size=8), st.sampled_from([",", ";", "\t", "|"]))
def test_any_text_survives_a_csv_file(tmp_path_factory, rows, separator):
    text = io.StringIO()
    csv.writer(text, delimiter=separator, quoting=csv.QUOTE_ALL).writerows([("a", "b", "c"), *rows])
    path = put(tmp_path_factory.mktemp("any") / "x.csv", text.getvalue())
    frame = pl.concat(read_csv_batches(detect_source(*find_sources(path, ReadOptions(separator=separator))), 1 << 16))
    assert [list(r) for r in frame.rows()] == [[pl.Series([v]).str.strip_chars().item() or None for v in row]
                                               for row in rows]


# ---- JSON lines and Parquet

def test_json_lines(tmp_path):
    rows = [{"a": 1, "b": "x"}, {"a": 2.5, "c": True}, {"b": " ä ", "d": {"k": [1, None]}}, {"a": None, "b": ""}]
    text = "\n".join(json.dumps(r, ensure_ascii=False) for r in rows) + "\n\n"
    for name, encoding in [("x.jsonl", "utf-8"), ("x.ndjson.gz", "utf-8-sig"), ("x.json", "utf-16")]:
        frame = read(put(tmp_path / name, text, encoding), rows=1) # one line a batch: columns appear later
        assert frame.select("a", "b", "c").to_dict(as_series=False) == {"a": ["1", "2.5", None, None],
                                                                        "b": ["x", None, "ä", None],
                                                                        "c": [None, "true", None, None]}
        assert frame["d"].null_count() == 3 and json.loads(frame["d"][2]) == rows[2]["d"]


@pytest.mark.parametrize("text, sentence", [('{"a": 1}\n\n{"a": 2\n', "line 3: not a JSON object"),
                                            ('{"a": 1}\n[1]\n', "line 2: not a JSON object"),
                                            ('{"a": NaN}\n', "line 1"), ('{"_source": 1}\n', "reserved"),
                                            ("{}\n{}\n", "no rows")])
def test_broken_json_lines(tmp_path, text, sentence):
    with pytest.raises(UserError, match=sentence): read(put(tmp_path / "x.jsonl", text))


def test_parquet_keeps_its_types(tmp_path):
    frame = pl.DataFrame({"a": pl.Series([1, 2], dtype=pl.Int16), "b": pl.Series(["x", "y"], dtype=pl.Categorical),
                          "n": [None, None],
                          "t": pl.Series([0, 1], dtype=pl.Datetime("ns", "UTC")), "inf": [float("inf"), float("nan")]})
    frame.write_parquet(tmp_path / "x [1]*.parquet")
    got = pl.concat(read_source(*find_sources(tmp_path / "x [1]*.parquet")))
    assert got.schema == {**frame.schema, "b": pl.String}
    assert got.equals(frame.cast({"b": pl.String}), null_equal=True)


def test_parquet_cut_anywhere(tmp_path):
    pl.DataFrame({"a": range(5000), "b": [str(i) for i in range(5000)]}).write_parquet(tmp_path / "x.parquet")
    whole = (tmp_path / "x.parquet").read_bytes()
    for n in [4, 5, 8, 12, 100, len(whole) // 2, len(whole) - 9, len(whole) - 8, len(whole) - 1]:
        with pytest.raises(UserError, match="x.parquet is a damaged Parquet file"):
            read(put(tmp_path / "x.parquet", whole[:n]))


@pytest.mark.parametrize("name", ["ORC", "RDX2", "Rar!", "BZh", "$FL2"])
def test_a_column_may_be_called_like_a_format(tmp_path, name):
    assert read(put(tmp_path / "x.csv", f"{name},b\n1,2\n")).columns == [name, "b"]


@pytest.mark.parametrize("name, content", [
    ("x.csv", b"a,b\n"), ("x.csv", b"a,b"), ("x.csv", b"a,b\n\n\n"), ("x.csv.gz", b"a;b\r\n"),
    ("x.csv", b"sep=;\na;b\n"), ("x.csv", b'"a", "b"\n')])
def test_a_file_with_only_its_header_has_columns_and_no_rows(tmp_path, name, content):
    frame = read(put(tmp_path / name, content))
    assert frame.columns == ["a", "b"] and len(frame) == 0


def test_gzip_cut_anywhere(tmp_path):
    whole = gzip.compress(("a,b\n" + "".join(f"{i},{i * 7919 % 1000}\n" for i in range(5000))).encode())
    for n in [3, 10, 20, len(whole) // 2, len(whole) - 8, len(whole) - 1]:
        (tmp_path / "x.csv.gz").write_bytes(whole[:n])
        with pytest.raises(UserError, match="damaged gzip"): read(tmp_path / "x.csv.gz")


# ---- which files

def test_folders_and_globs(tmp_path):
    for name in ["b/2.csv", "a/1.CSV", "a/notes.txt", ".hidden/3.csv", "a/.4.csv", "5.parquet.tmp", "a/~$book.xlsx",
                 "_delta_log/0.json", "b/_temporary/0/part.csv", "a/_SUCCESS", "package.json"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        put(tmp_path / name, "a\n1\n")
    assert list(find_files(tmp_path)) == ["a/1.CSV", "b/2.csv"]
    assert list(find_files(tmp_path / "*/[12].*")) == ["a/1.CSV", "b/2.csv"]
    assert list(find_files(tmp_path / "**/*.txt")) == ["a/notes.txt"]
    assert list(find_files(tmp_path / "*.json")) == ["package.json"]
    for nothing in ["*.xyz", ".hidden/none", "a/1.csx"]:
        with pytest.raises(UserError): find_files(tmp_path / nothing)


def test_folders_whose_names_look_like_patterns(tmp_path):
    folder = tmp_path / "in [1] #2 100%?"
    folder.mkdir()
    put(folder / "a[b]*.csv", "a\n1\n")
    for source in (folder, folder / "a[b]*.csv", folder / "*.csv"):
        assert list(find_files(source)) == ["a[b]*.csv"] and read(source)["a"].to_list() == ["1"]


def test_folders_that_name_columns(tmp_path):
    parts = {"country=AT/year=2021/x.csv": "id,v\n1,2\n",
             "country=__HIVE_DEFAULT_PARTITION__/year=2022/x.csv": "id,v\n3,4\n",
             "country=A%2FB c/year=2022/x.csv": "id,v,year\n5,6,1999\n"}
    for name, text in parts.items():
        (tmp_path / name).parent.mkdir(parents=True)
        put(tmp_path / name, text)
    read_all = {s.name: pl.concat(read_source(s)) for s in find_sources(tmp_path)}
    assert [f.columns for f in read_all.values()] == [["id", "v", "year", "country"]] + [["id", "v", "country",
                                                                                          "year"]] * 2
    countries = [f["country"].item() for f in read_all.values()]
    assert countries == ["A/B c", "AT", None]
    assert [int(f["year"].item()) for f in read_all.values()] == [1999, 2021, 2022], "the file itself goes first"
    pl.DataFrame({"v": [1.5]}).write_parquet(tmp_path / "country=AT/year=2021/y.parquet")
    frame = pl.concat(read_source(find_sources(tmp_path / "**/*.parquet")[0]))
    assert frame.to_dicts() == [{"v": 1.5, "country": "AT", "year": "2021"}]
    for bad, sentence in [("_row=1", "reserved"), ("a=1/a=2", "'a' 2 times")]:
        (tmp_path / "bad" / bad).mkdir(parents=True)
        put(tmp_path / "bad" / bad / "x.csv", "id\n1\n")
        with pytest.raises(UserError, match=sentence): find_sources(tmp_path / "bad")
        (tmp_path / "bad" / bad / "x.csv").unlink()


def test_a_table_of_a_path(tmp_path):
    with pytest.raises(UserError, match="belong to a database"):
        find_sources(put(tmp_path / "x.csv", "a\n1\n"), ReadOptions(table="t"))


# ---- larger than memory

COUNT = """
import sys
from mlops_nb.data.readers import find_sources, read_source
assert sum(len(b) for b in read_source(*find_sources(sys.argv[1]), batch_rows=65_536)) == int(sys.argv[2])
"""


def test_memory_does_not_grow_with_the_file(tmp_path):
    "Ten times the rows, each with a category of its own, in about the same memory."
    def write(path, rows):
        path.write_text("id,word,x\n" + "".join(f"{i},category-{i * 7919}-{'x' * 40},{i / 7}\n" for i in range(rows)))
    peaks = []
    for rows in (100_000, 1_000_000): # the second is 95 MB
        write(tmp_path / "in.csv", rows)
        peaks.append(peak_mib(sys.executable, "-c", COUNT, tmp_path / "in.csv", rows))
    assert peaks[1] < peaks[0] + 60, f"{peaks} MiB"


# ---- real files

@pytest.mark.realdata
def test_real_files(real_data):
    adult, bank = read(real_data("adult/adult.test")), read(real_data("bank_marketing/bank-additional-full.csv"))
    telco, bike = read(real_data("telco_churn/Telco-Customer-Churn.csv")), read(real_data("bike_sharing/hour.csv"))
    assert [len(f) for f in (adult, bank, telco, bike)] == [16_281, 41_188, 7_043, 17_379]
    assert set(adult["outcome"]) == {"<=50K.", ">50K."} and adult["workclass"].str.contains(r"^\s").sum() == 0
    assert (adult["workclass"] == "?").sum() > 0 and set(adult.dtypes) == {pl.String}
    assert bank.width == 21 and telco["TotalCharges"].null_count() == 11 and bike["dteday"][0] == "2011-01-01"


@pytest.mark.parametrize("name", ["_source", "_target", "_reasons", "_split"])
def test_a_name_that_the_pipeline_uses_itself_is_refused(tmp_path, name):
    (tmp_path / "x.csv").write_text(f"a,{name}\n1,2\n")
    with pytest.raises(UserError, match=f"'{name}', which is reserved"):
        list(read_source(detect_source(find_sources(str(tmp_path / "x.csv"))[0])))
