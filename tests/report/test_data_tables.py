"The words and tables of the data report on what it is rarely given."
from types import SimpleNamespace as Some

import polars as pl

from mlops_nb.data.leakage import LeakFinding
from mlops_nb.data.prepare import SplitSummary
from mlops_nb.data.validation import TypeConversion, ValidationReport
from mlops_nb.report.data_tables import (
    data_conclusion,
    describe_violation,
    drift_html,
    excluded_rows_html,
    leaks_table,
    splits_table,
    type_conversions_html,
    uneven_missing_table,
)


def test_a_rule_that_is_not_known_here_has_words_too():
    assert describe_violation("a:b:range") == ("a:b", "is out of its range")
    assert describe_violation("day:wrong_order") == ("day", "broke the rule “wrong order”")
    found = ValidationReport(10, 8, 2, {"day:wrong_order": 2})
    said = data_conclusion(found, Some(leaks=None))
    assert "2 rows (20.0 %) went to quarantine, most often because day broke the rule “wrong order”." in said
    assert "went to quarantine. " in data_conclusion(ValidationReport(10, 8, 2), Some(leaks=None))


def test_nearly_all_is_not_all():
    said = data_conclusion(ValidationReport(100_000, 1, 99_999, {"a:type": 99_999}), Some(leaks=None))
    assert "99,999 rows (above 99.9 %) went to quarantine" in said


def test_tables_of_thousands_of_columns_are_bounded():
    many = [f"c{i}" for i in range(2500)]
    found = ValidationReport(1, 1, 0, {f"{c}:type": 1 for c in many}, compared_source="x",
                             type_conversions=[TypeConversion("p", c, "String", "number") for c in many],
                             value_skew=[Some(column=c, message="moved") for c in many])
    leaks = [LeakFinding(c, "target copy", 1.0, "m", "a") for c in many]
    gaps = pl.DataFrame(dict(column=many * 2, rows=[10] * 5000, missing=[0] * 2500 + [9] * 2500))
    for page in (leaks_table(leaks), type_conversions_html(found), drift_html(found), uneven_missing_table(gaps),
                 excluded_rows_html(found, Some(excluded_rows={}))):
        assert page.text.count("<tr>") <= 41 and "of 2,500 are shown" in page.text


def test_a_split_without_time_has_no_empty_columns():
    part = SplitSummary(rows=5, sha256="", target={"no": 3, "yes": 2})
    check = Some(duplicate_rows=0, overlapping_groups=None, overlapping_times=None, overlapping_entities=0)
    dataset = Some(parts=dict(train=part), used=5, task="binary", classes=["no", "yes"], split_check=check,
                   split=Some(method="random", column=None))
    page = splits_table(dataset, Some(target="y", columns=["y"], entity=None)).text
    assert "From" not in page and "Split at random. Checked in this run: no row is in two splits." in page
    part.time = ("2021-01-01", "2021-02-03")
    assert "3 February 2021" in splits_table(dataset, Some(target="y", columns=["y"], entity=None)).text
