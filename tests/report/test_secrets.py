"Secrets: which variables a report sees, and that none of their values is in what it leaves behind."
import json
from html import escape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_nb.report.secrets import MASK, is_secret_variable, mask_secrets, report_environment, secret_values


@pytest.mark.parametrize("name, secret", [
    ("AWS_SECRET_ACCESS_KEY", True), ("GITHUB_TOKEN", True), ("PGPASSWORD", True), ("MLOPS_NB_API_KEY", True),
    ("MLOPS_NB_ALERT_TEAM_URL", True), ("MLOPS_NB_ALERT_MAIL_PASSWORD", True), ("MLOPS_NB_STREAM_URL", False),
    ("PATH", False), ("TOKENIZERS_PARALLELISM", False), ("SSH_AUTH_SOCK", False), ("MLOPS_NB_RUN_THREADS", False)])
def test_the_name_of_a_variable_says_whether_it_is_secret(name, secret): assert is_secret_variable(name) is secret


def test_what_a_report_may_read_is_named():
    environ = dict(A_PASSWORD="one", B_PASSWORD="two", HOME="/h")
    assert report_environment(environ) == dict(HOME="/h")
    assert report_environment(environ, " B_PASSWORD , ") == dict(B_PASSWORD="two", HOME="/h")


def test_passwords_within_addresses_are_secret_also_where_they_are_quoted():
    found = secret_values(dict(URI="postgresql://me:p%40ss-word@db/x", OTHER="http://host:8080/a@b"))
    assert found == ["p%40ss-word", "p@ss-word"]


def test_short_values_are_not_searched_for_and_longer_ones_go_first():
    found = secret_values(dict(A_TOKEN="abc", B_TOKEN="abcdef", C_TOKEN="abcdefgh"))
    assert found == ["abcdefgh", "abcdef"]
    assert mask_secrets("abcdefgh abcdef abc", found) == f"{MASK} {MASK} abc"


@given(st.text(min_size=6, max_size=30), st.text(max_size=20), st.text(max_size=20))
def test_no_form_of_a_secret_is_left(secret, before, after):
    for form in (str, json.dumps, escape, lambda text: json.dumps(escape(text))):
        masked = mask_secrets(form(before + secret + after), [secret])
        assert secret not in masked
