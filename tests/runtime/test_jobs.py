"""What is remembered of commands whose client polls."""

from __future__ import annotations

import pytest
from skiff.runtime.backend import CommandOutput
from skiff.runtime.jobs import JOBS_KEPT, KEPT_BYTES, UNENDED, Job, Jobs, TooManyJobsError


def end(job: Job, stdout: bytes = b"") -> None:
    job.finish(
        CommandOutput(
            exit_code=0, stdout=stdout, stderr=b"", timed_out=False, truncated=False, seconds=0
        )
    )


def add(jobs: Jobs, stdout: bytes = b"", command: str = "true") -> Job:
    job = Job(command, "/", 1)
    jobs.add(job)
    end(job, stdout)
    jobs.trim()
    return job


def outputs(jobs: Jobs, command_id: str | None = None) -> list[str | None]:
    found = jobs.events(kind="BashOutput", command_id=command_id, after_order=None)
    return [event.infra_error for event in found if event.kind == "BashOutput"]


def test_unknown_command_is_a_failure_of_the_machinery() -> None:
    (reason,) = outputs(Jobs(), "unknown")
    assert reason is not None
    assert "restarted" in reason
    (event,) = Jobs().events(kind="BashOutput", command_id="unknown", after_order=None)
    assert event.kind == "BashOutput"
    assert event.exit_code == -1


def test_number_is_bounded() -> None:
    jobs = Jobs()
    first = add(jobs)
    kept = [add(jobs) for _ in range(JOBS_KEPT)]
    assert jobs.get(first.id) is None
    assert all(jobs.get(job.id) is job for job in kept)
    assert outputs(jobs, first.id) != [None]


@pytest.mark.parametrize("where", ["stdout", "command"])
def test_bytes_are_bounded(where: str) -> None:
    jobs = Jobs()
    text = "x" * (KEPT_BYTES // 8)
    every = [
        add(jobs, stdout=text.encode()) if where == "stdout" else add(jobs, command=text)
        for _ in range(20)
    ]
    left = [job for job in every if jobs.get(job.id) is not None]
    assert left == every[-len(left) :]
    assert sum(job.size() for job in left) <= KEPT_BYTES
    assert len(left) >= 6


def test_last_output_stays_whatever_its_size() -> None:
    jobs = Jobs()
    small = add(jobs)
    large = add(jobs, stdout=b"x" * (KEPT_BYTES + 1))
    assert jobs.get(small.id) is None
    assert outputs(jobs, large.id) == [None]


def test_unended_jobs_are_bounded_and_stay() -> None:
    jobs = Jobs()
    waiting = [Job("x" * KEPT_BYTES, "/", 1) for _ in range(3)]
    waiting += [Job("true", "/", 1) for _ in range(UNENDED - 3)]
    for job in waiting:
        jobs.add(job)
    with pytest.raises(TooManyJobsError):
        jobs.add(Job("true", "/", 1))
    assert all(jobs.get(job.id) is job for job in waiting)
    end(waiting[0])
    jobs.add(Job("true", "/", 1))


def test_command_that_is_no_text_can_be_told() -> None:
    event = Job("echo \udc80", "/", 1).command_event()
    assert event.command.encode() == b"echo ?"
