"JSON arrays, ARFF, Excel workbooks, Arrow, Avro and zip archives, in parts and damaged."
import datetime as dt
import gzip
import json
import zipfile

import polars as pl
import pyarrow as pa
import pytest

from mlops_nb.core.errors import UserError
from mlops_nb.data.readers import detect_source, read_source
from mlops_nb.data.sources import ReadOptions, find_sources


def read(path, rows=131_072, **how):
    return pl.concat(read_source(*find_sources(path, ReadOptions(**how)), batch_rows=rows), how="vertical")


def put(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# ---- JSON arrays

OBJECTS = [{"id": 1, "city": "a [b], {c} \"d\"\n", "x": 1.25}, {"id": 2, "tags": [1, {"k": None}]},
           {"city": "Köln ]}", "x": None}]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("name, encoding",
                         [("x.json", "utf-8"), ("x.json", "utf-8-sig"), ("x.json.gz", "utf-8"), ("x.json", "utf-16")])
@pytest.mark.parametrize("rows", [1, 1000])
def test_a_json_array_is_read_like_json_lines(tmp_path, indent, name, encoding, rows):
    data = ("\n " + json.dumps(OBJECTS, indent=indent, ensure_ascii=False) + "\n").encode(encoding)
    put(tmp_path / name, gzip.compress(data) if name.endswith("gz") else data)
    put(tmp_path / "x.jsonl", "\n".join(json.dumps(o) for o in OBJECTS))
    got, lines = read(tmp_path / name, rows=rows), read(tmp_path / "x.jsonl")
    assert got.select(lines.columns).equals(lines) and len(got) == 3


def test_a_long_array_comes_in_parts(tmp_path):
    put(tmp_path / "x.json", json.dumps([{"id": i, "text": "x" * 50 + "]},{"} for i in range(30_000)]))  # 2 MB
    batches = list(read_source(*find_sources(tmp_path / "x.json"), batch_rows=1000))
    assert len(batches) == 30 and pl.concat(batches)["id"].to_list() == [str(i) for i in range(30_000)]


@pytest.mark.parametrize("text, sentence", [
    ('[{"a": 1}, {"a": 2}', "object 3: not a whole JSON object"),
                                            ('[{"a": 1}, {"a": ', "object 2: not a whole JSON object"),
    ('[{"a": 1}, 2]', "object 2: '2]' is no JSON object"),
                                            ("[[1, 2], [3, 4]]", "is no JSON object; a table is an array of objects"),
    ('[{"a": NaN}]', "object 1: not a JSON object"), ("[]", "holds no rows"), ('[{"_row": 1}]', "reserved")])
def test_broken_arrays(tmp_path, text, sentence):
    with pytest.raises(UserError, match=sentence): read(put(tmp_path / "x.json", text))


# ---- ARFF

WEATHER = r"""% from the weather service
% twice
@RELATION weather

@attribute 'wind speed' numeric
@ATTRIBUTE outlook {sunny, 'rather rainy', "it's\" odd"}
@attribute at	date "yyyy-MM-dd"
@data
3.5, sunny, 2021-03-01
?,'rather rainy','2021-03-02'

% a comment
-1e3,"it's\" odd", ?
7,'?',''
"""


@pytest.mark.parametrize("rows", [1, 2, 1000])
def test_arff(tmp_path, rows):
    frame = read(put(tmp_path / "weather.arff", WEATHER), rows=rows)
    assert frame.columns == ["wind speed", "outlook", "at"]
    assert frame.rows() == [("3.5", "sunny", "2021-03-01"), (None, "rather rainy", "2021-03-02"),
                            ("-1e3", "it's\" odd", None),
                            ("7", "?", None)]


@pytest.mark.parametrize("row, sentence",
                         [("1,2", "line 15: 2 fields where 3 attributes"), ("{1 x}", "line 15: a sparse row")])
def test_broken_arff(tmp_path, row, sentence):
    with pytest.raises(UserError, match=sentence): read(put(tmp_path / "x.arff", WEATHER + row + "\n"))


# ---- Excel

def workbook(path, **sheets):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows: sheet.append(row)
    book.save(path)
    return path


BILLS = [["id", "zip", "at", "day", "share", "paid"],
         [1, "01067", dt.datetime(2021, 3, 1, 12, 30), dt.date(2021, 3, 1), 1 / 3, True],
         [2**53, "1067", dt.datetime(2021, 3, 1), dt.date(2021, 12, 31), 1e-7, False], [],
         [3, None, None, None, 256.1, None]]


@pytest.mark.parametrize("rows", [1, 1000])
def test_a_workbook(tmp_path, rows):
    frame = read(workbook(tmp_path / "x.xlsx", Notes=[], Bills=BILLS, Empty=[[None, " "]]), rows=rows)
    assert frame.columns == BILLS[0]
    assert frame["id"].to_list() == ["1", str(2**53), "3"] and frame["zip"].to_list() == ["01067", "1067", None]
    assert frame["at"].to_list() == ["2021-03-01 12:30:00", "2021-03-01 00:00:00", None]
    assert frame["day"].to_list() == ["2021-03-01", "2021-12-31", None]
    assert [float(x) for x in frame["share"]] == [1 / 3, 1e-7, 256.1] and frame["paid"].to_list() == ["True", "False",
                                                                                                      None]


def test_sheets_titles_and_notes_beside_the_table(tmp_path):
    path = workbook(tmp_path / "x.xlsx", Bills=[["Bills"], [], *BILLS], Notes=[["who"], ["me"]])
    with pytest.raises(UserError, match="2 sheets that hold something; name one of Bills, Notes as --table"): read(path)
    with pytest.raises(UserError, match="has no sheet 'Bill'; give one of Bills, Notes"): read(path, table="Bill")
    with pytest.raises(UserError, match="row 3: 6 cells where the header has 1; give --skip"): read(path, table="Bills")
    assert read(path, table="Bills", skip=2)["zip"].to_list() == ["01067", "1067", None]
    with pytest.raises(UserError, match="no sheet that holds anything"): read(workbook(tmp_path / "y.xlsx", A=[]))
    assert read(workbook(tmp_path / "z.xlsx", A=[["a", "b"]])).shape == (0, 2)


def test_a_damaged_workbook_and_one_without_a_reader(tmp_path, monkeypatch):
    whole = workbook(tmp_path / "x.xlsx", A=BILLS).read_bytes()
    with pytest.raises(UserError, match="damaged zip archive"): read(put(tmp_path / "y.xlsx", whole[:-30]))
    monkeypatch.setitem(__import__("sys").modules, "openpyxl", None)
    with pytest.raises(UserError, match=r"install mlops-nb\[excel\], or save it as CSV"): read(tmp_path / "x.xlsx")


# ---- Arrow and Avro

TYPED = pl.DataFrame({"i": [1, 2, None], "s": ["x", None, "ä"], "c": pl.Series(["a", "b", "a"], dtype=pl.Categorical),
                      "t": [dt.datetime(2021, 1, 1)] * 3, "f": [.5, 1.0, None], "b": [True, False, None]})


def write_arrow_stream(frame, path):
    table = frame.to_arrow()
    with pa.ipc.new_stream(path, table.schema) as out: out.write_table(table, max_chunksize=2)


WRITERS = {"feather": lambda f, p: f.write_ipc(p), "lz4": lambda f, p: f.write_ipc(p, compression="lz4"),
           "stream": write_arrow_stream,
           "avro": lambda f, p: f.cast({"c": pl.String}).write_avro(p),
           "deflate": lambda f, p: f.cast({"c": pl.String}).write_avro(p, compression="deflate")}


@pytest.mark.parametrize("kind", WRITERS)
def test_formats_with_types_keep_them(tmp_path, kind):
    WRITERS[kind](TYPED, tmp_path / "x [1]#%.dat")
    for rows in (1, 2, 1000):
        got = read(tmp_path / "x [1]#%.dat", rows=rows)
        assert got.equals(TYPED.cast({"c": pl.String}), null_equal=True) and got.schema["c"] == pl.String
    WRITERS[kind](TYPED.clear(), tmp_path / "empty.dat")
    assert read(tmp_path / "empty.dat").shape == (0, 6)


@pytest.mark.parametrize("kind", WRITERS)
def test_a_typed_file_cut_anywhere(tmp_path, kind):
    WRITERS[kind](pl.concat([TYPED.with_columns(n=i) for i in range(200)]), tmp_path / "x.dat")
    whole = (tmp_path / "x.dat").read_bytes()
    for n in [8, 12, 100, len(whole) // 2, len(whole) - 20, len(whole) - 5]:
        try: frame = read(put(tmp_path / "y.dat", whole[:n]))
        except UserError as e: assert "damaged A" in str(e) and "\n" not in str(e)
        else: assert kind == "stream" and len(frame) == 600, "a stream may end without its last mark"


def test_an_avro_file_comes_in_parts(tmp_path):
    big = pl.concat([TYPED.drop("c").with_columns(n=i) for i in range(1000)], rechunk=True)
    big.write_avro(tmp_path / "one.avro")
    header, blocks = split_avro((tmp_path / "one.avro").read_bytes())
    put(tmp_path / "many.avro", header + blocks * 5)
    batches = list(read_source(*find_sources(tmp_path / "many.avro"), batch_rows=3000))
    assert [len(b) for b in batches] == [3000] * 5 and pl.concat(batches).equals(pl.concat([big] * 5), null_equal=True)


def split_avro(data):
    "The header, and the blocks after it: its last 16 bytes are the first of the end of each block."
    mark = data[-16:]
    end = data.index(mark) + 16
    return data[:end], data[end:]


# ---- zip

def zipped(path, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items(): archive.writestr(name.replace("__", "/").replace("_", "."), content)
    return path


def test_a_zip_archive_with_one_table(tmp_path):
    text = "a;b\n" + "".join(f"{i};Größe für Männer\n" for i in range(100_000))
    path = zipped(tmp_path / "x.zip", export__x_csv=text.encode("cp1252"), MACOSX__x_csv=b"\0")
    with zipfile.ZipFile(path, "a") as archive: archive.writestr("__MACOSX/._x.csv", b"\0\1")
    with pytest.raises(UserError, match="a zip archive of 2 files, and one is expected; unpack it"): read(path)
    path = zipped(tmp_path / "y.zip", export__x_csv=text.encode("cp1252"))
    assert read(path).shape == (100_000, 2) and read(path)["b"].unique().to_list() == ["Größe für Männer"]
    assert str(detect_source(find_sources(path)[0])) == "csv, separator ';', encoding cp1252"
    with pytest.raises(UserError, match="damaged zip archive"): read(put(tmp_path / "z.zip", path.read_bytes()[:-40]))


def test_what_is_packed_and_is_no_text(tmp_path):
    TYPED.write_parquet(tmp_path / "x.parquet")
    data = (tmp_path / "x.parquet").read_bytes()
    for path in (zipped(tmp_path / "x.zip", x_parquet=data), put(tmp_path / "x.parquet.gz", gzip.compress(data))):
        with pytest.raises(UserError, match="a packed parquet file; unpack it"): read(path)
    with pytest.raises(UserError, match="a zip archive of 0 files"): read(zipped(tmp_path / "none.zip"))
