"""The page of results: it is made of what is stored, leaves out the rest, and takes summaries without their paths."""

import json

import pytest
from claim_cases import arms, sizes, systems

from sidgym.benchmarks.results_page import RESULTS, contests_in, made_by, page, read_results, take


def stored():
    return {
        "variants": arms("variants", {"grpo": 0.02, "gbpo": 0.0}),
        "sampling_scientific": arms("sampling", {"beam": 0.02, "sample": 0.0}) | {"data": ["amazon-scientific"]},
        "sizes": sizes((3.0, 2.6, 2.3, 2.1)),
        "transfer": systems("transfer", {"untrained": 0.1, "rl_only": 0.2, "sft": 0.3})[0],
        "scaling": {"benchmark": "scaling", "command": "python benchmarks/scaling.py", "seeds": [0]},
        "baselines_table": {
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


def summary_of(tmp_path, path, command, more="", benchmark="variants"):
    """A contest's summary.json on the log in ``path``."""
    config = f'out = "/home/me/out"\n[data]\nname = "amazon"\npath = {json.dumps(path)}\n{more}'
    told = stored()["variants"] | {"benchmark": benchmark, "command": command, "config": config}
    source = tmp_path / "summary.json"
    source.write_text(json.dumps(told))
    return source


def test_a_summary_is_taken_without_the_paths_of_its_data(tmp_path):
    path = "/home/mé/data/amazon-scientific"
    source = summary_of(tmp_path, path, f"sidgym bench variants --data.path {path} --seeds 3", '[policy]\npath = ""\n')
    kept = json.loads(take("variants_scientific", source, tmp_path).read_text())
    assert kept["command"] == "sidgym bench variants --data.path DATA --seeds 3"
    assert 'path = "DATA"' in kept["config"]
    assert "/home" not in json.dumps(kept)
    assert kept["objectives"] == json.loads(json.dumps(stored()["variants"]["objectives"]))
    assert kept["data"] == ["amazon-scientific"]
    assert set(contests_in(read_results(tmp_path))) == {"summary", "variants_scientific"}
    assert "## variants: Amazon Industrial & Scientific" in page({"variants_scientific": kept})


@pytest.mark.parametrize("given", ["--data.path {0} --second-path {1}", "--second-path={1} --data.path {0}"])
@pytest.mark.parametrize("folders", [("amazon-beauty", "amazon-sports"), ("all", "all/amazon-beauty")])
def test_the_first_catalogue_is_the_first_whatever_paths_look_like(tmp_path, given, folders):
    paths = [f"/d/{folder}" for folder in folders]
    source = summary_of(tmp_path, paths[0], f"sidgym bench transfer {given.format(*paths)}", benchmark="transfer")
    kept = json.loads(take("transfer_beauty", source, tmp_path).read_text())
    assert kept["command"] == f"sidgym bench transfer {given.format('DATA', 'DATA2')}"
    assert kept["data"] == [folder.rpartition("/")[2] for folder in folders]


@pytest.mark.parametrize(
    ("name", "folder"),
    [("sizes", "amazon-scientific"), ("sizes_beauty", "amazon-scientific"), ("sizes_scientific", "Amazon_Beauty"),
     ("sizes_scientific", "industrial")],
)  # fmt: skip
def test_a_name_that_says_other_data_is_refused(tmp_path, name, folder):
    source = summary_of(tmp_path, f"/d/{folder}", "sidgym bench scaling")
    with pytest.raises(ValueError, match=f"is of {folder}, which '{name}' does not say"):
        take(name, source, tmp_path)


def test_a_log_without_a_known_name_is_called_as_its_folder(tmp_path):
    source = summary_of(tmp_path, "/d/industrial", "sidgym bench variants")
    kept = json.loads(take("variants_industrial", source, tmp_path).read_text())
    text = page({"variants_industrial": kept})
    assert "## variants: industrial" in text
    assert "simulated store" not in text
    (tmp_path / "summary.json").write_text(
        json.dumps(stored()["variants"] | {"config": '[data]\nname = "simulator"\n'})
    )
    with pytest.raises(ValueError, match=r"take a name such as variants$"):
        take("variants_beauty", tmp_path / "summary.json", tmp_path)


def test_what_is_no_summary_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"there is no file .*; give the summary.json"):
        take("rewards", tmp_path / "summary.json", tmp_path)
    (tmp_path / "summary.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"expected the summary\.json of 'sidgym bench'"):
        take("rewards", tmp_path / "summary.json", tmp_path)


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


@pytest.mark.skipif(not (RESULTS.parent / "RESULTS.md").exists(), reason="only in a checkout")
def test_the_stored_page_is_that_of_the_stored_results():
    assert (RESULTS.parent / "RESULTS.md").read_text(encoding="utf-8") == page(read_results())


def test_the_table_of_baselines_says_sizes_rules_and_where_settings_come_from():
    means = {metric: {"mean": 0.04} for metric in ("r@5", "r@10", "n@5", "n@10")}
    near = {"figures": dict.fromkeys(means, 0.0401), "matches": ["left_out"], "within_10_percent": True}
    row = means | {
        "repeats": False,
        "allowed": {"n@10": 0.0333},
        "parameters": 2_263_632,
        "settings_from": "scientific",
    }
    far = {"figures": dict.fromkeys(means, 0.09), "matches": [], "within_10_percent": False}
    row |= {"published": {"A, table 1": near, "B": far}, "differs": "smaller"}
    result = {"command": "x", "stores": {"beauty": {"tiger": row}}, "devices": ["NVIDIA H200", "cpu"]}
    text = page({"baselines_table": result})
    assert "| tiger | 0.0400 | 0.0400 | 0.0400 | 0.0400 | 0.0333 | 2,263,632 |" in text
    assert "A, table 1 0.0401 0.0401 0.0401 0.0401 (within 10 %, history left out); B 0.0900" in text
    assert (
        "items of the history are left out of all lists. Settings are those that validated best on scientific." in text
    )
    assert "Trained on NVIDIA H200, cpu." in text
    row |= {"repeats": True, "settings_from": "beauty"}
    text = page({"baselines_table": result | {"devices": ["cpu"]}})
    assert "lists may hold items of the history" in text
    assert "validated best on" not in text
    assert "Trained on" not in text
