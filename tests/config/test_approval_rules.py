"The line of settings.ini that says who must approve: what it means, and what it may not say."
import pytest

from mlops_nb.config.approval_rules import ApprovalRule, normalize_step, parse_approval_rules


def test_rules_are_read_in_order_and_steps_have_one_spelling():
    assert parse_approval_rules(" start : 1 of owners;25 %: 2 of on-duty ; 0.5:1 of owners;") == [
        ApprovalRule("start", 1, "owners"), ApprovalRule("25", 2, "on-duty"), ApprovalRule("0.5", 1, "owners")]
    assert parse_approval_rules("") == parse_approval_rules(" ; ") == []
    assert normalize_step(25.0) == normalize_step(" 25% ") == "25" and normalize_step(100) == "100"


@pytest.mark.parametrize("step", ["", "Start", "0", "-1", "100.5", "1e1", "nan", "inf", "25 % of it", "end"])
def test_what_is_no_step(step):
    with pytest.raises(ValueError, match="is no step; write start, or percent"): normalize_step(step)


@pytest.mark.parametrize("text", ["start", "start: owners", "start: 0 of owners", "start: -1 of owners",
                                  "start: 1 of", "start: 1 of a b", "start: 1 owners", "start 1 of owners",
                                  "start: 1.5 of owners", "start: 1 of owners, 25: 1 of owners"])
def test_what_is_no_rule(text):
    with pytest.raises(ValueError, match="is no rule of approve; write STEP: NUMBER of GROUP"):
        parse_approval_rules(text)
