"Text stays what was delivered, but for blanks around it; names of columns that cannot be kept are refused."
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_nb.core.errors import UserError
from mlops_nb.data.text_columns import RESERVED_COLUMNS, align_columns, check_column_names, strip_text


def texts(*values): return pl.DataFrame({"x": values}, schema={"x": pl.String})


def test_blanks_are_stripped_and_nothing_is_null():
    got = strip_text(texts(" a ", "", "  ", "\t", None, "b c", "\u00a0d\n"))
    assert got["x"].to_list() == ["a", None, None, None, None, "b c", "d"]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from(["256.10", "54E4", "007", "1,250", "True", "03/04/2024", "NULL", "9" * 30]),
                max_size=8))
def test_no_value_is_read_as_anything(values): assert strip_text(texts(*values))["x"].to_list() == values


def test_all_batches_have_the_columns_of_all():
    passes = []
    def read():
        passes.append(0)
        return iter([pl.DataFrame({"a": ["1"], "b": ["x"]}), pl.DataFrame({"a": ["2.5"], "c": ["true"]})])
    first, second = align_columns(read)
    assert len(passes) == 2 and first.schema == second.schema == dict.fromkeys("abc", pl.String())
    assert second.to_dict(as_series=False) == {"a": ["2.5"], "b": [None], "c": ["true"]}


@pytest.mark.parametrize("name", RESERVED_COLUMNS)
def test_reserved_names_are_refused(name):
    with pytest.raises(UserError, match=f"x.csv has a column '{name}', which is reserved; rename it"):
        check_column_names(["a", name], "x.csv")


def test_a_name_may_come_once_and_its_case_counts():
    check_column_names(["a", "A", "a ", "_sources"], "x.csv")
    with pytest.raises(UserError, match="x.csv names the column 'a' 3 times"):
        check_column_names(["a", "b", "a", "a"], "x.csv")
