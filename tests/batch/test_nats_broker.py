"NATS JetStream as a broker: a subject of its own for each result."
from mlops_nb.batch.nats_broker import result_subject


def test_ids_never_share_a_subject():
    ids = ["a", "A", "a.b", "a b", "~", "~YQ", "YQ", "", "ä", "*", ">", "x" * 300, "a-b", "a_b"]
    subjects = [result_subject("t", i) for i in ids]
    assert len(set(subjects)) == len(ids)
    for s in subjects: assert s.count(".") == 1 and not set(s[2:]) & set(" *>.") and s != "t."
