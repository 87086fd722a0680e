"""Stages: built once per hash, never half-written, resumed where they can be; and the progress lines of a log."""

import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidgym.launch.progress import progress
from sidgym.launch.schema import RunConfig
from sidgym.launch.stages import Stage, StageError, content_hash, environment_record, read_record, run_stage


def writer(text: str):
    """A build that writes one file."""

    def build(folder: Path) -> None:
        (folder / "result.txt").write_text(text)

    return build


def forbidden(folder: Path) -> None:
    raise AssertionError("this stage must not be built again")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("resumable", [False, True])
def test_same_hash_is_built_once(tmp_path, resumable):
    target = tmp_path / "deep" / "sid"
    assert run_stage(target, "sid", "h1", writer("one"), inputs={"codes": 3}, resumable=resumable) is True
    assert run_stage(target, "sid", "h1", forbidden, resumable=resumable) is False
    assert (target / "result.txt").read_text() == "one"
    assert names(target.parent) == {"sid"}
    record = read_record(target)
    assert (record["complete"], record["inputs_hash"], record["inputs"]) == (True, "h1", {"codes": 3})
    assert record["environment"] == environment_record()


@pytest.mark.parametrize("resumable", [False, True])
def test_changed_hash_replaces_the_whole_folder(tmp_path, resumable):
    target = tmp_path / "sid"
    run_stage(target, "sid", "h1", writer("one"))
    (target / "left_over.txt").write_text("of the old result")
    assert run_stage(target, "sid", "h2", writer("two"), resumable=resumable) is True
    assert names(target) == {"result.txt", "stage.json"}
    assert (target / "result.txt").read_text() == "two"
    assert names(tmp_path) == {"sid"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_failure_half_way_leaves_the_old_result_and_no_other(tmp_path, error):
    target = tmp_path / "sid"
    run_stage(target, "sid", "h1", writer("one"))

    def fail(folder: Path) -> None:
        (folder / "result.txt").write_text("half")
        raise error

    with pytest.raises(error):
        run_stage(target, "sid", "h2", fail)
    assert names(tmp_path) == {"sid"}
    assert (target / "result.txt").read_text() == "one"
    assert run_stage(target, "sid", "h1", forbidden) is False


def test_leftovers_of_a_kill_are_not_used(tmp_path):
    target, killed = tmp_path / "sid", tmp_path / "sid.building"
    killed.mkdir()
    (killed / "half.txt").write_text("half")
    run_stage(target, "sid", "h1", writer("one"))
    assert names(target) == {"result.txt", "stage.json"}
    assert names(tmp_path) == {"sid"}


def counting(stop_at: int):
    """A build that appends one line a step and fails before step ``stop_at``; it continues where it was."""

    def build(folder: Path) -> None:
        log = folder / "log.txt"
        done = log.read_text().count("\n") if log.exists() else 0
        for step in range(done, 4):
            if step == stop_at:
                raise InterruptedError(step)
            with log.open("a") as file:
                file.write(f"{step}\n")

    return build


def test_resumable_stage_continues_in_its_own_folder(tmp_path):
    target = tmp_path / "rl-0.1"
    with pytest.raises(InterruptedError):
        run_stage(target, "rl", "h1", counting(2), resumable=True)
    assert names(tmp_path) == {"rl-0.1.partial"}
    assert read_record(tmp_path / "rl-0.1.partial")["complete"] is False

    resumed: list[str] = []

    def build(folder: Path) -> None:
        resumed.append((folder / "log.txt").read_text())
        counting(-1)(folder)

    assert run_stage(target, "rl", "h1", build, resumable=True) is True
    assert resumed == ["0\n1\n"]
    assert (target / "log.txt").read_text() == "0\n1\n2\n3\n"
    assert names(tmp_path) == {"rl-0.1"}


def test_partial_of_another_hash_is_dropped(tmp_path):
    target = tmp_path / "rl"
    with pytest.raises(InterruptedError):
        run_stage(target, "rl", "h1", counting(2), resumable=True)
    with pytest.raises(InterruptedError):
        run_stage(target, "rl", "h2", counting(1), resumable=True)
    assert (tmp_path / "rl.partial" / "log.txt").read_text() == "0\n"


def test_kill_between_completion_and_rename(tmp_path):
    target = tmp_path / "rl"
    run_stage(target, "rl", "h1", writer("one"), resumable=True)
    target.rename(tmp_path / "rl.partial")
    assert run_stage(target, "rl", "h1", forbidden, resumable=True) is True
    assert (target / "result.txt").read_text() == "one"


def test_kill_between_the_two_renames(tmp_path):
    target = tmp_path / "sid"
    run_stage(target, "sid", "h1", writer("one"))
    target.rename(tmp_path / "sid.old")
    assert run_stage(target, "sid", "h2", writer("two")) is True
    assert run_stage(target, "sid", "h3", writer("three")) is True
    assert names(tmp_path) == {"sid"}


def test_folder_of_someone_else_is_not_replaced(tmp_path):
    target = tmp_path / "thesis"
    target.mkdir()
    assert run_stage(target, "sid", "h1", writer("into an empty folder")) is True
    (target / "stage.json").unlink()
    with pytest.raises(StageError, match=r"thesis exists and holds no readable stage\.json.*choose another"):
        run_stage(target, "sid", "h1", forbidden)
    assert (target / "result.txt").exists()


def test_record_that_cannot_be_read_does_not_count(tmp_path):
    target = tmp_path / "sid"
    run_stage(target, "sid", "h1", writer("one"))
    (target / "stage.json").write_text('{"complete": tr')
    assert read_record(target) == {}
    (target / "stage.json").write_text("[1]")
    assert read_record(target) == {}


def test_stage_hash_covers_name_and_inputs(tmp_path):
    config = RunConfig(name="x")
    first = Stage("sid", {"seed": 1, "config": config.sid}, tmp_path / "sid")
    assert not first.complete
    assert first.run(writer("one")) is True
    assert first.complete
    assert first.run(forbidden) is False
    assert json.loads((tmp_path / "sid" / "stage.json").read_text())["inputs"]["config"]["codes"] == config.sid.codes
    for other in (
        Stage("sft", first.inputs, first.directory),
        Stage("sid", {**first.inputs, "seed": 2}, first.directory),
    ):
        assert other.hash != first.hash
        assert not other.complete


@given(st.dictionaries(st.text(max_size=4), st.integers() | st.booleans() | st.text(max_size=4), max_size=5))
def test_hash_does_not_depend_on_the_order_of_keys(value):
    assert content_hash(dict(reversed(value.items()))) == content_hash(value)


def test_hash_refuses_what_json_cannot_hold():
    with pytest.raises(TypeError, match="got set"):
        content_hash({"x": {1}})
    with pytest.raises(ValueError):
        content_hash({"x": float("nan")})


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_log_gets_one_plain_line_a_finished_step():
    stream = io.StringIO()
    with progress("SFT", 3, stream) as advance:
        for done in range(3):
            advance(done + 1, 3, f"loss {done}")
            assert stream.getvalue() == ""
    line = stream.getvalue()
    assert line.startswith("SFT: done in ")
    assert line.endswith(" s: loss 2\n")
    assert line[:-1].isprintable()


def test_log_says_how_far_a_failed_step_came():
    stream = io.StringIO()

    def fail() -> None:
        with progress("RL", None, stream) as advance:
            advance(4, 10)
            raise ValueError

    with pytest.raises(ValueError):
        fail()
    assert stream.getvalue().startswith("RL: stopped after 4 of 10, ")


def test_terminal_shows_bars_within_bars_and_the_finished_lines():
    stream = Terminal()
    with progress("outer [x]", 2, stream) as outer:
        outer(1, 2, "half")
        with progress("inner", None, stream) as inner:
            inner(5)
    with progress("next", 1, stream):
        pass
    text = stream.getvalue()
    positions = [text.index(f"{name}: done in ") for name in ("inner", "outer [x]", "next")]
    assert positions == sorted(positions)


def test_two_processes_cannot_build_one_stage(tmp_path: Path) -> None:
    from sidgym.launch.stages import locked

    with locked(tmp_path / "a"), pytest.raises(StageError, match="another process"):
        run_stage(tmp_path / "a", "a", "1", lambda work: None)
    assert run_stage(tmp_path / "a", "a", "1", lambda work: None), "the lock goes with its holder"


def test_resumable_work_of_other_inputs_is_moved_aside(tmp_path: Path) -> None:
    def stop(work: Path) -> None:
        (work / "training/checkpoint-000002").mkdir(parents=True)
        (work / "training/checkpoint-000002/training.json").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage(tmp_path / "a", "a", "1", stop, resumable=True)
    run_stage(tmp_path / "a", "a", "2", lambda work: None, resumable=True)
    assert (tmp_path / "a.partial-1/training/checkpoint-000002/training.json").read_text() == "half"
    assert not (tmp_path / "a" / "training").exists()


def test_resumable_work_that_failed_before_it_began_is_cleaned_up(tmp_path: Path) -> None:
    def stop(work: Path) -> None:
        (work / "training/checkpoint-000000").mkdir(parents=True)
        (work / "training/checkpoint-000000/training.json").write_text("the policy it starts from")
        raise ValueError

    left = tmp_path / "a.partial-0"  # by an older version
    left.mkdir()
    for inputs in ("1", "2"):
        with pytest.raises(ValueError):
            run_stage(tmp_path / "a", "a", inputs, stop, resumable=True)
        assert names(tmp_path) == {"a.partial"}
    run_stage(tmp_path / "a", "a", "3", lambda work: None, resumable=True)
    assert names(tmp_path) == {"a"}
