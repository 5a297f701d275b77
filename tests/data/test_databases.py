"Ingesting from a real SQLite file and a real PostgreSQL server."
import sqlite3
from contextlib import closing

import polars as pl
import pytest

from mlops_nb.core.errors import UserError
from mlops_nb.data.ingest import ingest, read_data_manifest, read_raw_batches, scan_data
from mlops_nb.data.readers import ReadOptions, find_sources, read_source


@pytest.fixture
def shop(tmp_path):
    path = tmp_path / "shop.db"
    with closing(sqlite3.connect(path)) as db:
        db.executescript("""
            create table orders (id integer primary key, at text, zip text, amount, note text);
            insert into orders values (1, '2024-01-31 10:00:00', '01067', 3, ' hello '),
                                      (2, '2024-02-01 11:30:00', '80331', 2.5, ''),
                                      (3, null, '99084', null, x'00ff');
            create table empty (a int);
            create table "odd ""name" ("select" int);
            insert into "odd ""name" values (1)""")
    return path


def read(url, **how): return pl.concat(read_source(*find_sources(url, ReadOptions(**how))))


def test_sqlite_types(shop):
    frame = read(f"sqlite:///{shop}", table="orders")
    assert frame.to_dict(as_series=False) == {
        "id": ["1", "2", "3"], "at": ["2024-01-31 10:00:00", "2024-02-01 11:30:00", None],
        "zip": ["01067", "80331", "99084"],
        "amount": ["3", "2.5", None], "note": ["hello", None, "00ff"]}


def test_sqlite_floats_and_large_integers_are_exact(tmp_path):
    values = [0.1 + 0.2, 1e-300, 1 / 3, -2.0**70]
    with closing(sqlite3.connect(tmp_path / "x.db")) as db:
        db.execute("create table t (x real, i integer)")
        db.executemany("insert into t values (?, ?)", [(v, 2**62 + i) for i, v in enumerate(values)])
        db.commit()
    frame = read(f"sqlite:///{tmp_path}/x.db", table="t")
    assert frame["x"].cast(pl.Float64).to_list() == values
    assert frame["i"].cast(pl.Int64).to_list() == [2**62 + i for i in range(4)]


def test_sqlite_odd_names(shop):
    assert read(f"sqlite:///{shop}", table='odd "name').to_dict(as_series=False) == {"select": ["1"]}


@pytest.mark.parametrize("how, sentence", [
    (dict(table="order"), "no such table"),
    (dict(query="select"), "check the file, and the table"),
    (dict(query="select a.*, b.* from orders a, orders b"), "'id' 2 times"),
    (dict(query="drop table orders"), "readonly"),
    (dict(), "either a table or a query"), (dict(table="a", query="b"), "either a table or a query")])
def test_sqlite_mistakes(shop, how, sentence):
    with pytest.raises(UserError, match=sentence): read(f"sqlite:///{shop}", **how)


def test_sqlite_names_with_dots_and_paths_with_signs(tmp_path):
    path = tmp_path / "my [shop] #1 100% ?x"
    with closing(sqlite3.connect(path)) as db:
        db.executescript('create table "v1.2" as select 1 a; create table "main.t" as select 2 a; '
                         "create table t as select 3 a;"
                         "create table empty (a, b);")
    url = f"sqlite:///{path}"
    assert read(url, table="v1.2")["a"].to_list() == ["1"] and read(url, table="main.t")["a"].to_list() == ["2"]
    assert read(url, table="main.v1.2")["a"].to_list() == ["1"] and read(url, table="t")["a"].to_list() == ["3"]
    assert read(url, table="empty").shape == (0, 2)
    for sign, code in [("%", "%25"), (" ", "%20"), ("[", "%5B"), ("#", "%23"), ("?", "%3F")]: url = url.replace(sign,
                                                                                                                code)
    assert read(url, table="t")["a"].to_list() == ["3"], "a URL that a program encoded"


def test_a_missing_database_is_not_created(tmp_path):
    with pytest.raises(UserError, match="does not exist"): read(f"sqlite:///{tmp_path}/none.db", table="t")
    assert not (tmp_path / "none.db").exists()


def test_not_a_database(tmp_path):
    (tmp_path / "x.db").write_text("a,b\n1,2\n" * 1000)
    with pytest.raises(UserError, match="cannot be read"): read(f"sqlite:///{tmp_path}/x.db", table="t")


@pytest.mark.parametrize("url, sentence", [("oracle://u@h/d", "oracle://"), ("postgresql://u:secret@h/d", "PGPASSWORD"),
                                           ("postgresql://u@h/d?password=secret", "PGPASSWORD")])
def test_urls_that_are_refused_do_not_repeat_the_password(url, sentence):
    with pytest.raises(UserError, match=sentence) as e: find_sources(url, ReadOptions(table="t"))
    assert "secret" not in str(e.value)


def test_sqlite_ingest_is_idempotent(shop, tmp_path):
    root, url = tmp_path / "project", f"sqlite:///{shop}"
    report = ingest(url, root, options=ReadOptions(table="orders"), time_column="at")
    assert (report.rows, report.partitions) == (3, 2)
    before = (root / "data/manifest.json").read_bytes()
    assert ingest(url, root, options=ReadOptions(table="orders"), time_column="at").skipped == ["shop.orders"]
    assert (root / "data/manifest.json").read_bytes() == before
    with closing(sqlite3.connect(shop)) as db:
        db.execute("insert into orders values (4, '2024-03-01 10:00:00', '01067', 1, 'new')")
        db.commit()
    with pytest.raises(UserError, match="--replace"):
        ingest(url, root, options=ReadOptions(table="orders"), time_column="at")
    assert ingest(url, root, options=ReadOptions(table="orders"), time_column="at", replace=True).rows == 4
    assert sorted(scan_data(root).collect()["id"]) == ["1", "2", "3", "4"]


SQL = """
create type mood as enum ('sad', 'ok');
create table bills (id int, part smallint, amount numeric(10, 2), day date, at timestamp, seen timestamptz, paid bool,
                    zip varchar(5), key uuid, extra jsonb, mood mood, big bigint, ratio real, score float8,
                    "odd ""name" text, pause interval,
                    primary key (part, id));
insert into bills select g, g % 3, g * 1.25, '2024-01-01'::date + g % 100, '2024-01-01'::timestamp + g * interval '1h',
    '2024-01-01 00:00+02', g % 2 = 0, '01067', '00000000-0000-0000-0000-000000000001', '{"a": 1}', 'ok',
    g * 10000000000, 0.5, g / 3.0, 'x', interval '1 day'
    from generate_series(2000, 1, -1) g;
insert into bills (id, part) values (5000, 0);
create table "nothing" (a int);
"""


@pytest.fixture
def bills(postgres, monkeypatch):
    "The URL of a server that has the table `bills`."
    import adbc_driver_postgresql.dbapi as driver
    monkeypatch.setenv("PGPASSWORD", postgres.password)
    with driver.connect(postgres.url) as connection, connection.cursor() as cursor:
        for statement in ["drop table if exists bills, nothing", "drop type if exists mood", *SQL.split(";\n")[:-1]]:
            cursor.execute(statement)
        connection.commit()
    return postgres.url


def test_postgres_types_and_order(bills):
    frame = read(bills, table="bills")
    assert frame.schema == dict(
        id=pl.Int32, part=pl.Int16, amount=pl.Float64, day=pl.Date, at=pl.Datetime("us"), seen=pl.Datetime("us", "UTC"),
        paid=pl.Boolean, zip=pl.String, key=pl.String, extra=pl.String, mood=pl.String, big=pl.Int64, ratio=pl.Float32,
        score=pl.Float64,
        **{'odd "name': pl.String}, pause=pl.String)
    assert len(frame) == 2001
    keys = frame.select("part", "id").rows()
    assert keys == sorted(keys) # the primary key's order, not the order of insertion
    row = frame.row(by_predicate=pl.col("id") == 3, named=True)
    assert (row["amount"], row["zip"], row["score"], row["extra"], row["pause"]) == (3.75, "01067", 1.0, '{"a": 1}',
                                                                                     "1 day")
    assert frame.filter(pl.col("id") == 5000)["amount"].to_list() == [None]


def test_postgres_query_and_schema_name(bills):
    frame = read(bills,
                 query="select day, sum(amount) as total from bills where id < 10 group by day order by day desc;")
    assert frame.columns == ["day", "total"] and frame["day"].is_sorted(descending=True)
    assert frame["total"].sum() == 1.25 * 45
    assert len(read(bills, table="public.bills")) == 2001
    import adbc_driver_postgresql.dbapi as driver
    with driver.connect(bills) as connection, connection.cursor() as cursor:
        cursor.execute('drop table if exists "v1.2", "public.x", x, "a.b.c"')
        for name, value in [("v1.2", 1), ("public.x", 2),
                            ("x", 3)]: cursor.execute(f'create table "{name}" as select {value} a')
        connection.commit()
    assert read(bills, table="v1.2")["a"].to_list() == [1] and read(bills, table="public.x")["a"].to_list() == [2]
    assert read(bills, table="public.v1.2")["a"].to_list() == [1] and read(bills, table="x")["a"].to_list() == [3]
    assert read(bills, table="nothing").shape == (0, 1)


def test_postgres_ingest_is_idempotent(bills, postgres, tmp_path):
    ingest(bills, tmp_path, options=ReadOptions(table="bills"), time_column="at")
    before = (tmp_path / "data/manifest.json").read_bytes()
    assert ingest(bills, tmp_path, options=ReadOptions(table="bills"), time_column="at").skipped == ["postgres.bills"]
    assert (tmp_path / "data/manifest.json").read_bytes() == before
    assert sum(len(b) for _, b in read_raw_batches(tmp_path)) == 2001
    assert {p.period for p in read_data_manifest(tmp_path).partitions} == {"2024", "unknown"}
    assert postgres.password.encode() not in before and b"127.0.0.1" not in before


@pytest.mark.parametrize("how, sentence", [
    (dict(table="bils"), "bils"), (dict(query="selec 1"), "syntax error"),
    (dict(query="select 1 as a, 2 as a"), "'a' 2 times"), (dict(query="drop table bills"), "syntax error"),
    (dict(query="select 1 / (id - 5000) from bills order by id"), "division by zero")])
def test_postgres_mistakes(bills, how, sentence):
    with pytest.raises(UserError, match=sentence): read(bills, **how)
    assert len(read(bills, table="bills")) == 2001


def test_postgres_cannot_be_written_to(bills):
    import adbc_driver_postgresql.dbapi as driver
    with driver.connect(bills) as connection, connection.cursor() as cursor:
        cursor.execute("create function wipe() returns int language sql as 'delete from bills returning 1'")
        connection.commit()
    with pytest.raises(UserError, match="read-only"): read(bills, query="select wipe()")


def test_postgres_wrong_password(bills, monkeypatch):
    monkeypatch.setenv("PGPASSWORD", "wrong-one")
    with pytest.raises(UserError, match="PGPASSWORD") as e: read(bills, table="bills")
    assert "wrong-one" not in str(e.value)
