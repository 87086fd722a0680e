"""Parts of a benchmark: done once, kept, and refused where they were made with other settings."""

from pathlib import Path

import pytest

from sidgym.benchmarks.parts import Aside, fingerprint, in_parts


def judge(setting: dict, folder: Path) -> dict:
    """Counts how often it was asked in ``folder``."""
    with (folder / "asked").open("a") as file:
        file.write("x")
    return {"value": setting["value"]}


def test_what_is_kept_is_not_done_again_and_not_taken_for_another_setting(tmp_path):
    def run(value: int) -> dict:
        return dict(in_parts(judge, {"one": ({"value": value}, tmp_path)}, 1, tmp_path / "parts"))

    assert run(1) == run(1) == {"one": {"value": 1}}
    assert (tmp_path / "asked").read_text() == "x"
    with pytest.raises(ValueError, match=r"one\.json was made with other settings"):
        run(2)


def test_where_files_stand_does_not_count():
    assert fingerprint([1, Path("a")]) == fingerprint([1, Path("b")])
    assert fingerprint([1, Aside("cpu")]) == fingerprint([1, Aside("cuda")])
    assert fingerprint([1]) != fingerprint([2])
