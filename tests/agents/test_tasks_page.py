"""The page that shows every task is what its command writes."""

from pathlib import Path

import pytest
import tokenizers

from sidgym.agents.tasks import TASKS
from sidgym.agents.tasks_page import page

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tasks.md"
WRITTEN_WITH = "0.23"
"""Version of tokenizers: another one may learn another vocabulary from the same texts, with other counts of tokens."""


@pytest.mark.skipif(not PAGE.exists(), reason="the documentation is not beside the installed package")
def test_the_page_is_what_its_command_writes():
    text = page()
    if tokenizers.__version__.startswith(f"{WRITTEN_WITH}."):
        assert text == PAGE.read_text(encoding="utf-8"), "run python -m sidgym.agents.tasks_page docs/tasks.md"
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        f"## {name}{' (RL)' if name in ('retrieval', 'titles_to_sid', 'title_to_sid', 'description_to_sid') else ''}"
        for name in TASKS
    ] + ["## Items merged"]
