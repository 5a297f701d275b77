"A DuckDB file and a real MariaDB server; what is said where BigQuery and Snowflake cannot be reached."
import datetime as dt
import getpass
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest

from mlops_nb.core.errors import UserError
from mlops_nb.data.ingest import ingest, read_raw_batches
from mlops_nb.data.readers import read_source
from mlops_nb.data.sources import ReadOptions, find_sources


def read(url, rows=131_072, **how):
    return pl.concat(read_source(*find_sources(url, ReadOptions(**how)), batch_rows=rows))


# ---- DuckDB

DUCKDB = """
create type mood as enum ('sad', 'ok');
create table bills as select i::int id, (i * 1.25)::decimal(10, 2) amount, date '2024-01-01' + (i % 100)::int as day,
    timestamp '2024-01-01' + interval (i) hour as at, i % 2 = 0 as paid, '01067' zip, uuid() key,
    'ok'::mood mood, [i, 2] tags, (i * 10000000000)::hugeint big,
    i::ubigint u, interval 1 day pause, i / 3.0::double score, null::int gap
    from range(1, 2001) r(i);
create table "v1.2" as select 1 a; create schema sales; create table sales."order" as select 2 a;
create table nothing (a int, b varchar); create table "odd ""name" as select 3 "sel,ect";
"""


@pytest.fixture
def duck(tmp_path):
    duckdb = pytest.importorskip("duckdb")
    path = tmp_path / "my [shop] #1 100%.db"
    with duckdb.connect(path) as db: db.execute(DUCKDB)
    return f"duckdb:///{path}"


@pytest.mark.parametrize("rows", [300, 131_072])
def test_duckdb_types_and_order(duck, rows):
    frame = read(duck, rows=rows, table="bills")
    assert frame.schema == dict(
        id=pl.Int32, amount=pl.Float64, day=pl.Date, at=pl.Datetime("us"), paid=pl.Boolean, zip=pl.String,
                                key=pl.String,
        mood=pl.String, tags=pl.String, big=pl.String, u=pl.UInt64, pause=pl.String, score=pl.Float64, gap=pl.Int32)
    assert frame["id"].to_list() == list(range(1, 2001)) and frame["amount"].sum() == 1.25 * sum(range(2001))
    assert frame.row(2, named=True) | dict(key="") == dict(
        id=3, amount=3.75, day=dt.date(2024, 1, 4), at=dt.datetime(2024, 1, 1, 3), paid=False, zip="01067", key="",
                                                           mood="ok",
        tags="[3, 2]", big="30000000000", u=3, pause="1 day", score=1.0, gap=None)


def test_duckdb_names_and_queries(duck):
    assert read(duck, table="v1.2")["a"].to_list() == [1] and read(duck, table="sales.order")["a"].to_list() == [2]
    assert read(duck, table='odd "name').to_dict(as_series=False) == {"sel,ect": [3]}
    assert read(duck,
                query="select zip, sum(amount) t from bills where id < 10 group by zip;").rows() == [("01067", 56.25)]
    assert read(duck, table="nothing").shape == (0, 2)


@pytest.mark.parametrize("how, sentence", [
    (dict(table="bils"), "bils"), (dict(query="selec 1"), "syntax error"),
                                           (dict(query="select 1 a, 2 a"), "'a' 2 times"),
    (dict(query="drop table bills"), "check the file"), (dict(query="delete from bills"), "check the file"),
    (dict(query="select * from read_csv('/etc/passwd')"), "check the file"), (dict(), "either a table or a query")])
def test_duckdb_mistakes(duck, how, sentence):
    with pytest.raises(UserError, match=sentence) as e: read(duck, **how)
    assert "\n" not in str(e.value)
    assert len(read(duck, table="bills")) == 2000


def test_duckdb_files_that_are_none(tmp_path, duck):
    with pytest.raises(UserError, match="does not exist"): read(f"duckdb:///{tmp_path}/none.db", table="t")
    assert not (tmp_path / "none.db").exists()
    (tmp_path / "x.db").write_text("a,b\n1,2\n" * 1000)
    with pytest.raises(UserError, match="cannot be read"): read(f"duckdb:///{tmp_path}/x.db", table="t")
    with pytest.raises(UserError,
                       match=r"give it as duckdb:///"): list(read_source(*find_sources(duck[len("duckdb:///"):])))
    encoded = duck.replace(" ", "%20").replace("#", "%23").replace("[", "%5B").replace("100%", "100%25")
    assert read(encoded, table="v1.2").height == 1


def test_duckdb_ingest_is_idempotent(duck, tmp_path):
    report = ingest(duck, tmp_path / "p", options=ReadOptions(table="bills"), time_column="at")
    assert report.rows == 2000 and sum(len(b) for _, b in read_raw_batches(tmp_path / "p")) == 2000
    again = ingest(duck, tmp_path / "p", options=ReadOptions(table="bills"), time_column="at")
    assert again.skipped == ["my [shop] #1 100%.bills"]


# ---- MySQL and MariaDB


@pytest.fixture(scope="module")
def mariadb():
    "A real MariaDB server on the loopback: `.url` and `.execute`."
    pymysql = pytest.importorskip("pymysql")
    server, install = shutil.which("mariadbd",
                                   path="/usr/sbin:/usr/bin:/usr/local/bin"), shutil.which("mariadb-install-db")
    if not server or not install: pytest.skip("mariadbd is not installed (Debian: apt-get install mariadb-server)")
    home = Path(tempfile.mkdtemp(prefix="mlops-nb-mariadb-"))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    user = f"--user={getpass.getuser()}"
    subprocess.run([install, "--no-defaults", f"--datadir={home}/db", user, "--auth-root-authentication-method=normal"],
                   check=True,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=120)
    process = subprocess.Popen(
        [server, "--no-defaults", f"--datadir={home}/db", f"--port={port}", "--bind-address=127.0.0.1", user,
         f"--socket={home}/s",
         f"--pid-file={home}/pid", "--innodb-buffer-pool-size=8M", "--innodb-flush-log-at-trx-commit=0"],
        stdout=subprocess.DEVNULL, stderr=open(home / "log", "wb"))

    def execute(*statements, **who):
        who = dict(user="root", host="127.0.0.1", port=port, autocommit=True) | who
        with pymysql.connect(**who) as c, c.cursor() as cursor:
            for statement in statements: cursor.execute(statement)
    try:
        for _ in range(1200):
            assert process.poll() is None, (home / "log").read_text()[-500:]
            try: execute("select 1"); break
            except pymysql.Error: time.sleep(.05)
        execute("create database shop", "create database other",
                "create user reader@localhost identified by 'geheim #1'",
                "grant select, execute on *.* to reader@localhost")
        yield SimpleNamespace(url=f"mysql://reader@127.0.0.1:{port}/shop", execute=execute)
    finally:
        process.kill()
        process.wait(20)
        shutil.rmtree(home, ignore_errors=True)


MARIADB = ["drop table if exists bills, `v1.2`, nothing, `odd ``name`, zeros, other.`order`", """
create table bills (id int, part tinyint, amount decimal(10, 2), day date, at datetime(6), seen timestamp null,
    paid bool, zip varchar(5), note text, raw blob, big bigint unsigned, ratio float, score double, took time,
    extra json, flag bit(2), y year,
    mood enum('sad', 'ok'), primary key (part, id)) default charset utf8mb4""", "set time_zone = '+02:00'", """
insert into bills select seq, seq % 3, seq * 1.25, '2024-01-01' + interval seq % 100 day,
    '2024-01-01' + interval seq hour, '2024-01-01 02:00:00', seq % 2 = 0,
    '01067', 'Köln 😀', unhex('00ff'), 18446744073709551615,
    0.5, seq / 3, '01:02:03', '{"a": 1}', b'10',
    2024, 'ok' from seq_2000_to_1""", "insert into bills (id, part) values (5000, 0)",
    "create table `v1.2` as select 1 a", "create table other.`order` as select 2 a",
           "create table nothing (a int, b varchar(9))",
    "create table `odd ``name` as select 3 as `sel,ect`", "set sql_mode = ''", "create table zeros (d date)",
    "insert into zeros values ('0000-00-00'), ('2024-01-01')"]


@pytest.fixture
def shop(mariadb, monkeypatch):
    monkeypatch.setenv("MYSQL_PWD", "geheim #1")
    mariadb.execute(*MARIADB, database="shop", charset="utf8mb4")
    return mariadb.url


@pytest.mark.parametrize("rows", [300, 131_072])
def test_mariadb_types_and_order(shop, rows):
    frame = read(shop, rows=rows, table="bills")
    assert frame.schema == dict(
        id=pl.Int64, part=pl.Int64, amount=pl.Float64, day=pl.Date, at=pl.Datetime("us"), seen=pl.Datetime("us"),
                                paid=pl.Int64,
        zip=pl.String, note=pl.String, raw=pl.String, big=pl.UInt64, ratio=pl.Float64, score=pl.Float64, took=pl.String,
        extra=pl.String, flag=pl.String, y=pl.Int64, mood=pl.String)
    keys = frame.select("part", "id").rows()
    assert len(frame) == 2001 and keys == sorted(keys)  # the primary key's order, not the order of insertion
    assert frame.row(by_predicate=pl.col("id") == 3, named=True) == dict(
        id=3, part=0, amount=3.75, day=dt.date(2024, 1, 4), at=dt.datetime(2024, 1, 1, 3), seen=dt.datetime(2024, 1, 1),
                                                                         paid=0,
        zip="01067", note="Köln 😀", raw="00ff", big=2**64 - 1, ratio=.5, score=1.0, took="1:02:03", extra='{"a": 1}',
                                                                         flag="02",
        y=2024, mood="ok")
    assert frame.filter(pl.col("id") == 5000)["amount"].to_list() == [None]


def test_mariadb_names_and_queries(shop):
    assert read(shop, table="v1.2")["a"].to_list() == [1] and read(shop, table="other.order")["a"].to_list() == [2]
    assert read(shop.replace("mysql", "mariadb"), table="odd `name").to_dict(as_series=False) == {"sel,ect": [3]}
    total = read(shop, query="select zip, sum(amount) t from bills where id < 10 and zip like '%67' group by zip")
    assert total.rows() == [("01067", 56.25)] and read(shop, table="nothing").shape == (0, 2)
    assert read(shop, table="zeros")["d"].to_list() == [None, dt.date(2024, 1, 1)]


@pytest.mark.parametrize("how, sentence", [
    (dict(table="bils"), "bils"), (dict(query="selec 1"), "SQL syntax"), (dict(query="select 1 a, 2 a"), "'a' 2 times"),
    (dict(query="set @a = 1"), "write a SELECT"), (dict(query="select 1; select 2"), "SQL syntax")])
def test_mariadb_mistakes(shop, how, sentence):
    with pytest.raises(UserError, match=sentence) as e: read(shop, **how)
    assert "\n" not in str(e.value) and "geheim" not in str(e.value)


def test_mariadb_cannot_be_written_to(shop, mariadb, monkeypatch):
    wipe = "create or replace function wipe() returns int modifies sql data begin delete from bills; return 1; end"
    mariadb.execute(wipe, database="shop")
    for query in ("select wipe()", "delete from bills", "drop table bills"):
        with pytest.raises(UserError, match="READ ONLY|denied|[Rr]ead"): read(shop, query=query)
    assert len(read(shop, table="bills")) == 2001
    monkeypatch.setenv("MYSQL_PWD", "wrong-one")
    with pytest.raises(UserError, match="MYSQL_PWD") as e: read(shop, table="bills")
    assert "wrong-one" not in str(e.value)


def test_mariadb_ingest_is_idempotent(shop, tmp_path):
    assert ingest(shop, tmp_path, options=ReadOptions(table="bills"), time_column="at").rows == 2001
    assert ingest(shop, tmp_path, options=ReadOptions(table="bills"), time_column="at").skipped == ["shop.bills"]
    assert b"127.0.0.1" not in (tmp_path / "data/manifest.json").read_bytes()


# ---- what is not installed, and what nobody can test here


@pytest.mark.parametrize("url, module, sentence", [
    ("duckdb:///x.db", "duckdb", r"needs duckdb, which is not installed; install mlops-nb\[duckdb\]"),
    ("mysql://u@127.0.0.1:1/d", "pymysql", r"install mlops-nb\[mysql\]"),
    ("bigquery://project/data", "adbc_driver_bigquery.dbapi", r"install mlops-nb\[bigquery\]"),
    ("snowflake://u@account/db/schema", "adbc_driver_snowflake.dbapi", r"install mlops-nb\[snowflake\]")])
def test_a_driver_that_is_not_installed_is_named(monkeypatch, url, module, sentence):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=sentence): read(url, table="t")


@pytest.mark.parametrize("url, variable", [
    ("mysql://u:secret@h/d", "MYSQL_PWD"), ("snowflake://u:secret@a/d/s", "SNOWFLAKE_PASSWORD"),
    ("snowflake://u@a/d/s?adbc.snowflake.sql.client_option.jwt_private_key_pkcs8_password=secret",
     "SNOWFLAKE_PASSWORD"),
    ("bigquery://p/d?adbc.bigquery.sql.auth_credentials=secret", "GOOGLE_APPLICATION_CREDENTIALS")])
def test_a_password_in_a_url_is_refused_and_not_repeated(url, variable):
    with pytest.raises(UserError, match=f"set {variable} instead") as e: find_sources(url, ReadOptions(table="t"))
    assert "secret" not in str(e.value)
