"User errors are one sentence: what was found, where, and what to do."
import errno
import os

import pytest

from mlops_nb.core.errors import describe_os_error, did_you_mean


def test_did_you_mean():
    assert did_you_mean("learning_rat", ["learning_rate"]) == "; did you mean 'learning_rate'?"
    assert did_you_mean("zzz", ["a", "b"]) == "; known are a, b."
    assert did_you_mean("zzz", []) == "; there are none."
    assert "and 38 more" in did_you_mean("zzz", [f"column{i}" for i in range(50)])


@pytest.mark.parametrize("code, says", [(errno.ENOSPC, "disk is full"), (errno.EACCES, "permission"),
                                        (errno.EROFS, "read-only"),
                                        (errno.ENOENT, "no such file")])
def test_os_sentence_says_what_and_where(code, says):
    sentence = describe_os_error(OSError(code, os.strerror(code), "data/x.parquet"))
    assert says in sentence and sentence.startswith("data/x.parquet: ") and "\n" not in sentence
