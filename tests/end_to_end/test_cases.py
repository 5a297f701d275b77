"Small files as people have them: what is inferred of the first batch, and what becomes of the second."
import polars as pl
import pytest

from mlops_nb.config.schema import write_schema
from mlops_nb.config.schema_inference import infer_schema
from mlops_nb.core.errors import UserError
from mlops_nb.data.column_checks import validate_batch
from mlops_nb.data.ingest import ingest, read_raw_batches, scan_data


@pytest.fixture
def batches(real_data, tmp_path):
    "A function that takes files in, the first of which gives the schema; gives the proposal and accepted rows by file."
    cases = real_data("../cases")
    def take(target, *names, time=None):
        (tmp_path / "in").mkdir()
        ingest(cases / names[0], tmp_path)
        found = infer_schema(scan_data(tmp_path), "t", target, time=time)
        write_schema(found.schema, tmp_path / "schema.yaml", found.comments)
        for name in names[1:]: ingest(cases / name, tmp_path, time_column=time)
        split = [validate_batch(frame, found.schema) for _, frame in read_raw_batches(tmp_path)]
        assert sum(s.quarantined.height for s in split) == 0
        return found, pl.concat(s.accepted for s in split).partition_by("_source", as_dict=True, include_key=False)
    return take


def test_none_is_a_class_and_a_missing_number(batches):
    found, rows = batches("disorder", "sleep.csv")
    assert found.schema.classes == ["Apnea", "Insomnia", "None"] and rows["sleep.csv",].height == 300
    assert found.schema.columns["pulse"].type == "integer" and found.profiles["pulse"].missing == 1


def test_codes_of_a_second_year_stay_as_written(batches):
    _, rows = batches("back", "adm_2021.csv", "adm_2022.csv")
    assert {"256.10", "258.00", "240.40"} <= {*rows["adm_2022.csv",]["dx"]}


def test_the_first_week_of_march_is_read_days_first(batches):
    _, rows = batches("y", "jan.csv", "mar_first_week.csv", time="date")
    days = rows["mar_first_week.csv",]["date"]
    assert len(days) == 60 and days.dt.month().unique().to_list() == [3] and days.dt.day().max() == 8


def test_a_number_with_words_for_missing(batches):
    found, _ = batches("y", "nulls.csv")
    assert found.schema.columns["minutes"].type == "number" and found.profiles["minutes"].missing == 25


def test_long_numbers_are_text_and_an_identifier(batches):
    found, rows = batches("churn", "iccid.csv")
    assert found.schema.columns["sim"].type == "text" and not found.schema.columns["sim"].feature
    assert "an identifier" in found.comments["sim"] and rows["iccid.csv",].height == 300


def test_a_quotation_mark_that_is_not_closed_is_named(real_data, tmp_path):
    path = real_data("../cases") / "reviews.csv"
    with pytest.raises(UserError, match="line (102|252): a quotation mark is opened and never closed"):
        ingest(path, tmp_path)
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    for i in (101, 251): lines[i] = lines[i].replace('"', "")
    (tmp_path / "mended.csv").write_text("".join(lines), encoding="utf-8")
    assert ingest(tmp_path / "mended.csv", tmp_path / "p").rows == 400


def test_a_saved_index_and_a_customer_are_no_features(batches, real_data, tmp_path):
    found, _ = batches("left", "customers_clean.csv")
    assert found.schema.feature_columns == ["age", "income"]
    visits = infer_schema(pl.scan_csv(real_data("../cases") / "visits.csv"), "t", "churn")
    assert visits.schema.entity == "customer_id" and "customer_id" not in visits.schema.feature_columns
