"""Job hashes: equal for equal work, another for anything that could change a result."""

import exltune.pipeline.common.jobs as jobs


def test_a_job_depends_on_its_parts_and_on_the_code(monkeypatch):
    first = jobs.job_hash("measure", {"a": 1, "b": 2.5})
    assert first == jobs.job_hash("measure", {"b": 2.5, "a": 1})
    assert first != jobs.job_hash("measure", {"a": 1, "b": 2.50001})
    monkeypatch.setattr(jobs, "code_sha256", lambda: "after an update")
    assert first != jobs.job_hash("measure", {"a": 1, "b": 2.5})


def test_the_code_hash_is_one_of_deciding_sources():
    assert jobs.code_sha256() == jobs.code_sha256.__wrapped__()
    assert len(jobs.code_sha256()) == 64
