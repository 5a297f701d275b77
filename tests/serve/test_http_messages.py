"Ids, deadlines and the defaults of a request."
import time

import pytest

from mlops_nb.serve.http_messages import REQUEST_HEADERS, HTTPException, Request, check_request_id, parse_deadline


@pytest.mark.parametrize("id", ["a", "~" * 128, "order-7/2026:!"])
def test_ids_that_are_taken(id): assert check_request_id(id) == id


@pytest.mark.parametrize("id", ["", "a b", "x" * 129, "a\n", "\u00e9", "a\x7f"])
def test_ids_that_are_not(id):
    with pytest.raises(HTTPException) as e: check_request_id(id)
    assert e.value.status_code == 400


def test_a_deadline_counts_from_now():
    assert 0 < parse_deadline("5000") - time.monotonic() <= 5
    assert parse_deadline("9" * 40) > time.monotonic()
    for bad in ("", "-1", "1.5", "soon", "\u0661"):
        with pytest.raises(HTTPException): parse_deadline(bad)


def test_headers_are_in_lower_case_and_described():
    assert all(n == h.name == n.lower() and h.description and h.json_schema for n, h in REQUEST_HEADERS.items())


def test_requests_share_nothing():
    one, two = Request(id="a"), Request(id="b")
    one.headers["x"] = "y"
    assert not two.headers and two.started >= one.started
