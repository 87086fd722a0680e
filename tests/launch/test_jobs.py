"""Stages side by side: results, failures with their reason, and no orphan after a kill."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sidgym.launch.jobs import Job, JobError, run_jobs


def write(path: str, text: str, on_progress=None) -> None:
    on_progress(1, 2, text)
    Path(path).write_text(f"{os.getpid()} {text}")


def refuse(text: str, on_progress=None) -> None:
    raise LookupError(text)


def sleep(path: str, on_progress=None) -> None:
    Path(path).write_text(str(os.getpid()))
    time.sleep(120)


@pytest.mark.parametrize("workers", [1, 2])
def test_every_job_is_done_and_the_rest_goes_on_after_a_failure(tmp_path, workers, capfd):
    files = [str(tmp_path / name) for name in "ab"]
    jobs = [Job(f"Writing {path}", write, (path, "done")) for path in files]
    run_jobs(jobs, workers)
    owners = {Path(path).read_text().split()[0] for path in files}
    assert (str(os.getpid()) in owners) == (workers == 1)
    assert f"Writing {files[0]}" in capfd.readouterr().err


def test_a_failure_elsewhere_brings_its_reason(tmp_path):
    jobs = [Job("Refusing", refuse, ("for a reason",)), Job("Writing", write, (str(tmp_path / "a"), "done"))]
    with pytest.raises(JobError, match="for a reason"):
        run_jobs(jobs, 2)
    assert (tmp_path / "a").exists(), "what ran beside it was finished"


def test_with_one_worker_too_the_rest_goes_on(tmp_path):
    jobs = [Job("Refusing", refuse, ("at first",)), Job("Writing", write, (str(tmp_path / "a"), "done"))]
    jobs.append(Job("Refusing again", refuse, ("at last",)))
    with pytest.raises(LookupError, match="at first") as failed:
        run_jobs(jobs, 1)
    assert (tmp_path / "a").exists()
    assert failed.value.__notes__ == ["Refusing again failed, too: LookupError: at last"]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children_of(parent: int) -> set[int]:
    """Processes that a process started and that are alive."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent and fields[0] != "Z":
            found.add(int(stat.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_killed_run_leaves_no_orphan(tmp_path):
    files = [tmp_path / name for name in "ab"]
    code = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_jobs import sleep
from sidgym.launch.jobs import Job, run_jobs
if __name__ == "__main__":
    run_jobs([Job("Sleeping", sleep, (path,)) for path in {[str(f) for f in files]!r}], 2)
"""
    script = tmp_path / "parent.py"
    script.write_text(code)
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    deadline = time.monotonic() + 60
    while not all(f.exists() and f.read_text() for f in files):
        assert time.monotonic() < deadline, "the jobs did not start"
        time.sleep(0.1)
    children = children_of(parent.pid)  # the jobs' processes, and that of the queue they report through
    assert {int(f.read_text()) for f in files} < children
    assert all(alive(pid) for pid in children)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    while any(alive(pid) for pid in children):
        assert time.monotonic() < deadline + 30, "a job outlived the run that started it"
        time.sleep(0.1)
