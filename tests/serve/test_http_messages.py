"Ids, deadlines and the defaults of a request."
import resource
import time

import pytest

from mlops_nb.serve.http_messages import (
    CONTENT_CODINGS,
    MAX_REQUEST_ID_LENGTH,
    REQUEST_HEADERS,
    HTTPException,
    Request,
    check_request_id,
    check_trace,
    choose_coding,
    compress_body,
    decompress_body,
    new_decompressor,
    parse_deadline,
)


def max_rss(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10  # bytes


@pytest.mark.parametrize("id", ["a", "~" * 128, "order-7/2026:!"])
def test_headers_that_are_taken(id): assert check_trace(id) == id


@pytest.mark.parametrize("id", ["", "a b", "x" * 129, "a\n", "\u00e9", "a\x7f"])
def test_headers_that_are_not(id):
    with pytest.raises(HTTPException) as e: check_trace(id)
    assert e.value.status_code == 400


def test_an_id_is_any_text_up_to_a_length():
    for id in ("a b", "\u6771\u4eac", '"\\\n', "x" * MAX_REQUEST_ID_LENGTH): assert check_request_id(id) == id
    with pytest.raises(HTTPException, match="1048576 characters"): check_request_id("x" * 2**20)


@pytest.mark.parametrize("coding", CONTENT_CODINGS)
def test_a_body_is_unpacked_up_to_its_limit_and_no_further(coding):
    edge = bytes(1 << 20)
    assert decompress_body(compress_body(edge, coding), new_decompressor(coding), 1) == edge
    for body, status in ((compress_body(edge + b"x", coding), 413), (compress_body(edge, coding)[:-1], 400),
                         (compress_body(edge, coding) + b"x", 400), (b"x" * 99, 400), (b"", 400)):
        with pytest.raises(HTTPException) as e: decompress_body(body, new_decompressor(coding), 1)
        assert e.value.status_code == status, body[:9]


def test_a_bomb_takes_no_more_memory_than_the_limit():
    bombs = {c: compress_body(bytes(1 << 28), c) for c in CONTENT_CODINGS}
    before = max_rss()
    for coding, bomb in bombs.items():
        with pytest.raises(HTTPException, match="larger than 1 MiB"): decompress_body(bomb, new_decompressor(coding), 1)
    assert max_rss() - before < 16 << 20


@pytest.mark.parametrize("accepts, coding", [
    ("gzip, deflate, br, zstd", "zstd"), ("gzip, deflate", "gzip"), ("deflate;q=1, gzip;q=0.999", "deflate"),
    ("*", "zstd"), ("zstd;q=0, *;q=0.1", "gzip"), ("identity;q=0.5, gzip;q=0.4", None), ("gzip;q=0", None),
    ("gzip;q=nan", None), ("gzip;q=", None), (" GZIP ;\tq=0.5", "gzip"), ("", None), (",;,=", None), ("br", None),
    ("gzip;q=1.0;x=1", None), ("a" * 9999, None)])
def test_the_coding_that_a_client_prefers(accepts, coding): assert choose_coding(accepts) == coding


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
