"""The page of results: it is made of what is stored, leaves out the rest, and takes summaries without their paths."""

import json

import pytest
from claim_cases import arms, sizes, systems

from sidgym.benchmarks.results_page import RESULTS, contests_in, made_by, page, read_results, take


def stored():
    return {
        "variants": arms("variants", {"grpo": 0.02, "gbpo": 0.0}),
        "sampling_scientific": arms("sampling", {"beam": 0.02, "sample": 0.0}),
        "sizes": sizes((3.0, 2.6, 2.3, 2.1)),
        "transfer": systems("transfer", {"untrained": 0.1, "rl_only": 0.2, "sft": 0.3})[0],
        "scaling": {"benchmark": "scaling", "command": "python benchmarks/scaling.py", "seeds": [0]},
        "baselines": {
            "command": "python -m sidgym.benchmarks.baselines_table",
            "seeds": [0, 1],
            "stores": {
                "beauty": {"sasrec": {"n@10": {"mean": 0.04, "low": 0.03, "high": 0.05}, "differs": "other loss"}}
            },
        },
    }


def test_a_section_a_result_with_command_seeds_machine_and_commit():
    text = page(stored())
    for head in (
        "variants: the simulated store",
        "sampling: Amazon Industrial & Scientific",
        "transfer: ",
        "Baselines",
    ):
        assert f"## {head}" in text
    assert "`sidgym bench something`; seeds 0, 1, 2, 3, 4; 300 test users; 2 CPU cores (x86_64)" in text
    assert "commit abc123" in text
    assert "0.0400 [0.0300, 0.0500]" in text
    assert "| `scaling.json` | `python benchmarks/scaling.py`; seeds 0 |" in text
    for line in (line for line in text.splitlines() if line.startswith("|")):
        assert line.endswith("|")


def test_what_is_not_stored_is_left_out():
    text = page({"variants": stored()["variants"]})
    assert "## variants" in text
    for head in ("## sampling", "## transfer", "## Baselines", "`scaling.json`"):
        assert head not in text
    assert "not testable here" in text  # claims without a result are told


def test_the_same_results_make_the_same_page():
    assert page(stored()) == page(json.loads(json.dumps(stored())))


def test_a_result_without_machine_or_commit_says_what_it_has():
    assert made_by({"command": "x", "seeds": 3}) == "`x`; 3 seeds."


def test_a_summary_is_taken_without_the_paths_of_its_data(tmp_path):
    summary = stored()["variants"] | {
        "command": "sidgym bench variants --data.path /home/me/data/amazon --seeds 3",
        "config": 'name = "x"\n[data]\npath = "/home/me/data/amazon"\n[policy]\npath = ""\n',
    }
    source = tmp_path / "summary.json"
    source.write_text(json.dumps(summary))
    kept = json.loads(take("variants_scientific", source, tmp_path).read_text())
    assert kept["command"] == "sidgym bench variants --data.path DATA --seeds 3"
    assert "/home/me" not in json.dumps(kept)
    assert kept["objectives"] == json.loads(json.dumps(summary["objectives"]))
    assert set(contests_in(read_results(tmp_path))) == {"summary", "variants_scientific"}


def test_no_other_result_is_written_over(tmp_path):
    (tmp_path / "scaling.json").write_text(json.dumps(stored()["scaling"]))
    (tmp_path / "summary.json").write_text(json.dumps(stored()["sizes"]))
    with pytest.raises(ValueError, match="another benchmark's result"):
        take("scaling", tmp_path / "summary.json", tmp_path)
    with pytest.raises(ValueError, match=r"expected the summary\.json of 'sidgym bench'"):
        take("sizes", tmp_path / "scaling.json", tmp_path)
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match="holds no JSON"):
        read_results(tmp_path)


def test_the_stored_page_is_that_of_the_stored_results():
    assert (RESULTS.parent / "RESULTS.md").read_text(encoding="utf-8") == page(read_results())
