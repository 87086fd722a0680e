"""``sidgym sid inspect``: figures of a run, a table and an index, in the terminal, as JSON and as a page."""

import json
import re

import numpy as np
import pytest

from sidgym.envs.datasets import DataSet
from sidgym.envs.records import Catalogue, Interactions
from sidgym.launch import sid_page
from sidgym.launch.cli import main
from sidgym.launch.sid_inspect import inspected, remarks
from sidgym.launch.sid_source import load_source
from sidgym.sid.collisions import resolve_collisions
from sidgym.sid.rq_kmeans import RQKMeans
from sidgym.sid.table import SidTable

HOSTILE = "</script><script>alert('1')</script> & \"co\""
ITEMS = 48


def make_run(folder, collisions="keep", tokenizer=True):
    """A run's folder with data, embeddings in eight clusters that are also the categories, and users true to one."""
    rng = np.random.default_rng(0)
    kind = np.arange(ITEMS) % 8
    ids = np.array([f"i{row:02d}" for row in range(ITEMS)])
    titles = (HOSTILE, *(f"title {row}" for row in range(1, ITEMS)))
    paths = tuple(("shop", f"kind {k}", f"shelf {row % 2}") for row, k in enumerate(kind))
    user = np.repeat(np.arange(40), 4)
    item = np.concatenate([rng.permutation(np.flatnonzero(kind == u % 8))[:4] for u in range(40)])
    log = Interactions(user, item, np.tile(np.arange(4), 40))
    DataSet("toy", Catalogue(ids, titles, ("",) * ITEMS, paths), log).save(folder / "data")
    x = (np.eye(8)[kind] * 5 + rng.normal(0, 0.1, (ITEMS, 8))).astype(np.float32)
    quantiser = RQKMeans(2, 8, 0).fit(x)
    codes, sizes, report = resolve_collisions(quantiser.encode(x), quantiser.sizes, collisions)
    table = SidTable(codes, sizes, ids, {"tokenizer": "rq_kmeans", "collisions": report})
    table.save(folder / "sid")
    np.save(folder / "sid" / "embeddings.npy", x)
    if tokenizer:
        quantiser.save(folder / "sid" / "tokenizer")
    return table


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inspect") / "toy"
    make_run(folder)
    return folder


def printed(capsys, *arguments):
    main(["sid", "inspect", *map(str, arguments)])
    return capsys.readouterr().out


def refused(capsys, *arguments):
    """The one line that the command ends with."""
    with pytest.raises(SystemExit) as stop:
        main([*map(str, arguments)])
    assert stop.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("sidgym: ")
    return lines[0]


def test_the_figures_of_a_run(run, capsys, tmp_path):
    out = printed(capsys, run, "--json", tmp_path / "figures.json")
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["items"] == ITEMS
    assert figures["categories"]["broad"][0]["share"] == 1.0  # the first code is the cluster, the cluster the category
    assert figures["categories"]["broad"][0]["chance"] == pytest.approx(5 / 47)
    assert figures["together"][0]["share"] == 1.0
    assert figures["popularity"]["events"] == 160
    errors = [row["error"] for row in figures["reconstruction"]]
    assert errors[0] > errors[1] > 0
    for words in (
        "Levels",
        "perplexity",
        "Branching by depth",
        "share the broad category?",
        "come together",
        "left over",
    ):
        assert words in out
    assert f"{figures['collisions']['colliding_items']} of 48 items share their SID" in out
    assert "i00" in out  # the items of a collision are named


def test_without_a_terminal_the_report_is_plain(run, capsys):
    out = printed(capsys, run)
    assert "\x1b" not in out
    assert not re.search("[─━│┃╭]", out)


@pytest.mark.parametrize("where", ["sid", "rl", "index.json", "index.csv"])
def test_a_table_a_checkpoint_and_an_index_give_the_same_codes(run, where, capsys):
    from sidgym.sid.index_formats import write_index

    table = SidTable.load(run / "sid")
    path = run / where
    if where == "rl":
        table.save(run / "rl" / "sid")
    elif where != "sid":
        path = run.parent / where
        write_index(table, path)
    source = load_source(path)
    whole = inspected(load_source(run))
    assert inspected(source)["branching"] == whole["branching"]
    assert (source.titles == ()) == where.startswith("index")
    assert (source.quantised is None) == (where != "sid")
    if where.startswith("index"):
        assert any("--data" in note for note in source.notes)
        assert inspected(load_source(path, run))["together"] == whole["together"]


def test_items_in_another_order_keep_their_titles_and_events(run, tmp_path):
    table = SidTable.load(run / "sid")
    order = np.random.default_rng(3).permutation(ITEMS)[:40]
    SidTable(table.codes[order], table.sizes, table.item_ids[order], {}).save(tmp_path / "part")
    whole, part = load_source(run), load_source(tmp_path / "part", run)
    assert [part.title(row) for row in range(40)] == [whole.title(row) for row in order]
    assert part.popularity.tolist() == whole.popularity[order].tolist()
    assert [part.category_names[k] for k in part.broad] == [whole.category_names[k] for k in whole.broad[order]]


def test_codes_of_items_that_the_data_lacks(run, tmp_path):
    table = SidTable.load(run / "sid")
    names = np.array([*table.item_ids[1:], "new"])
    SidTable(table.codes, table.sizes, names, {}).save(tmp_path / "grown")
    source = load_source(tmp_path / "grown", run)
    missing, codeless = (text for sign, text in remarks(source, inspected(source))[:2] if sign < 0)
    assert missing.startswith("1 of 48 items are not in")
    assert codeless.startswith("1 of 48 items of")
    assert "have no SID in this table" in codeless
    assert not any("Row numbers" in text for text in source.warnings)
    assert load_source(run).warnings == ()
    assert (source.title(47), source.broad[47], source.popularity[47]) == ("new", -1, 0)


def test_remarks_say_what_is_wrong_with_codes(run, tmp_path):
    assert any(
        sign < 0 and "share their SID" in text for sign, text in remarks(load_source(run), inspected(load_source(run)))
    )
    codes = np.array([[0, i // 5, i % 5] for i in range(40)])
    SidTable(codes, (32, 8, 5), np.arange(40).astype(str), {}).save(tmp_path / "flat")
    flat = load_source(tmp_path / "flat")
    said = dict((text, sign) for sign, text in remarks(flat, inspected(flat)))
    assert any(sign < 0 and "uses 1 of 32 codes" in text for text, sign in said.items())
    assert any(sign > 0 and "Every SID is one item" in text for text, sign in said.items())


def test_a_level_that_counts_collisions_is_not_called_uneven(tmp_path):
    make_run(tmp_path / "run", "extra_level", tokenizer=False)
    source = load_source(tmp_path / "run")
    assert not any("Level c" in text for _, text in remarks(source, inspected(source)))
    assert any("No fitted tokeniser" in note for note in source.notes)


# The page ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(run):
    pytest.importorskip("plotly")
    path = run.parent / "page.html"
    main(["sid", "inspect", str(run), "--html", str(path)])
    return path.read_text()


def own_part(page):
    """The page without plotly's own code."""
    return re.sub(r"<script[^>]*>/\*\*\s*\* plotly\.js.*?</script>", "", page, flags=re.S)


def trace(page):
    """The sunburst's data as the page holds it."""
    text = page[page.index("Plotly.newPlot(") :]
    return json.JSONDecoder().raw_decode(text, text.index("["))[0][0]


def test_the_page_asks_nothing_of_the_network(page):
    assert "default-src 'none'" in page
    assert "connect-src" not in page
    assert len(own_part(page)) < 0.2 * len(page)  # plotly's code stands in it
    for outside in ("src=", "<link", "@import", "https://cdn"):
        assert outside not in own_part(page)


def test_nothing_on_the_page_is_left_unescaped(page):
    assert "alert('1')" not in page.replace("alert(&#x27;1&#x27;)", "")
    assert "</script><script>" not in page


def test_titles_stand_at_the_leaves_and_angles_add_up(page, run):
    drawn = trace(page)
    assert {f"title {row}" for row in range(1, ITEMS)} < set(drawn["labels"])
    assert drawn["values"][0] == ITEMS
    assert sum(v for v, p in zip(drawn["values"], drawn["parents"]) if p == "0") == ITEMS
    assert "All 48 items are drawn." in page
    place = drawn["labels"].index("title 1")
    sid = "".join(
        SidTable.load(run / "sid").tokens()[level][code]
        for level, code in enumerate(SidTable.load(run / "sid").codes[1])
    )
    assert drawn["customdata"][place][0] == sid.replace("<", "&lt;").replace(">", "&gt;")
    assert "100% kind" in json.dumps(drawn["customdata"])


def test_the_page_has_charts_and_tables(page):
    charts = ("How often each code is used", "Reconstruction error", "Branches of a prefix")
    for part in (*charts, "Neighbours that share its broad category", "Most popular first codes", "How it was made"):
        assert part in page
    assert page.count('<svg class="chart"') == 6
    ids = re.findall(r'\bid="([^"]+)"', own_part(page))
    assert len(ids) == len(set(ids))


def test_the_drawing_has_a_text_and_points_to_the_tables(page, run):
    counts = np.bincount(SidTable.load(run / "sid").codes[:, 0])
    (told,) = re.findall(r'<div role="img" aria-label="(Sunburst[^"]*)">', page)
    assert told.startswith("Sunburst of a trie of 48 items; the fullest branches of the first ring hold, in items: ")
    assert f"&lt;a_{counts.argmax()}&gt; {counts.max()}" in told
    assert "<noscript><p>The drawing needs JavaScript." in page
    assert page.index('href="#tables"') < page.index("<noscript>") < page.index('<section id="tables">')


def test_the_sunburst_of_one_prefix(run, tmp_path, capsys):
    pytest.importorskip("plotly")
    table = SidTable.load(run / "sid")
    printed(capsys, run, "--html", tmp_path / "part.html", "--below", f"<a_{table.codes[0, 0]}>")
    drawn = trace((tmp_path / "part.html").read_text())
    assert drawn["values"][0] == (table.codes[:, 0] == table.codes[0, 0]).sum()


def test_what_is_cut_is_said(run, monkeypatch):
    pytest.importorskip("plotly")
    source = load_source(run)
    drawing, said = sid_page.sunburst_html(source, most=20)
    assert "Not everything is drawn" in said
    assert re.search(r'"\d+ more"', drawing)
    drawn = trace(drawing)
    assert sum(v for v, p in zip(drawn["values"], drawn["parents"]) if p == "0") == ITEMS


# Bad input -----------------------------------------------------------------------------------------------------------


def test_what_is_no_table_is_refused(run, tmp_path, capsys, monkeypatch):
    (tmp_path / "seed-0").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.index.json").write_text('{"1": ["<a_1>"')
    inspect = ("sid", "inspect")
    assert "does not exist" in refused(capsys, *inspect, tmp_path / "nothing")
    assert "no item-code table" in refused(capsys, *inspect, tmp_path / "empty")
    assert "the runs of 1 seed; give" in refused(capsys, *inspect, tmp_path)
    assert "truncated" in refused(capsys, *inspect, tmp_path / "bad.index.json")
    assert "--data" in refused(capsys, *inspect, run, "--data", tmp_path / "empty")
    assert "folder that exists" in refused(capsys, *inspect, run, "--html", tmp_path / "no" / "page.html")
    assert "--html" in refused(capsys, *inspect, run, "--below", "<a_1>")
    for below in ("<a_1", "<b_1>", "<a_99>", "<a_1><b_1><c_1>", "a"):
        assert "--below" in refused(capsys, *inspect, run, "--html", tmp_path / "p.html", "--below", below)
    monkeypatch.setitem(__import__("sys").modules, "plotly", None)
    monkeypatch.setitem(__import__("sys").modules, "plotly.graph_objects", None)
    assert "pip install plotly" in refused(capsys, *inspect, run, "--html", tmp_path / "p.html")


def test_a_catalogue_of_other_items_is_refused(run, tmp_path, capsys):
    SidTable(np.array([[0], [1]]), (2,), np.array(["x", "y"]), {}).save(tmp_path / "other")
    assert "another catalogue" in refused(capsys, "sid", "inspect", tmp_path / "other", "--data", run)


def test_items_that_were_added_later_may_be_many(run, tmp_path):
    table = SidTable.load(run / "sid")
    more = np.array([f"new{row}" for row in range(3 * ITEMS)])
    table.extend(more, np.repeat(table.codes, 3, axis=0), collisions="keep").save(tmp_path / "grown")
    (warning,) = load_source(tmp_path / "grown", run).warnings
    assert warning.startswith("144 of 192 items are not in")


def test_the_file_of_a_table_names_its_folder(run):
    assert inspected(load_source(run / "sid" / "table.json")) == inspected(load_source(run))


def test_one_file_for_both_outputs_is_refused(run, tmp_path, capsys):
    inspect = ("sid", "inspect", run, "--html", tmp_path / "x", "--json")
    assert "one would overwrite the other" in refused(capsys, *inspect, tmp_path / "x")
    (tmp_path / "folder").mkdir()
    assert "one would overwrite the other" in refused(capsys, *inspect, tmp_path / "folder" / ".." / "x")
    assert not (tmp_path / "x").exists()


def test_colliding_items_are_recorded_by_their_ids(run, tmp_path, capsys):
    printed(capsys, run, "--json", tmp_path / "figures.json")
    groups = json.loads((tmp_path / "figures.json").read_text())["collisions"]["groups"]
    table = SidTable.load(run / "sid")
    by_sid = {}
    for name, row in zip(table.item_ids.tolist(), map(tuple, table.codes.tolist())):
        by_sid.setdefault(row, []).append(name)
    shared = [names for names in by_sid.values() if len(names) > 1]
    assert len(groups) == min(len(shared), 20)
    assert all(group in shared for group in groups)


def test_a_tokeniser_that_cannot_be_loaded_is_said(tmp_path, capsys):
    make_run(tmp_path / "run")
    (tmp_path / "run/sid/tokenizer/tokenizer.json").write_text('{"schema_version": 1, "tokenizer": "nowhere:Gone"}')
    assert "No reconstruction error" in printed(capsys, tmp_path / "run")


def test_damaged_files_are_refused(tmp_path, capsys):
    make_run(tmp_path / "run")
    (tmp_path / "run/sid/embeddings.npy").write_bytes(b"\x93NUMPY")
    assert "embeddings.npy" in refused(capsys, "sid", "inspect", tmp_path / "run")
    (tmp_path / "run/sid/table.json").write_text("{")
    assert "not valid JSON" in refused(capsys, "sid", "inspect", tmp_path / "run")


def test_sid_still_builds_the_stage_and_names_its_tools(capsys):
    assert "cannot read x" in refused(capsys, "sid", "--help", "x")  # x would be a configuration
    with pytest.raises(SystemExit) as stop:
        main(["sid", "--help"])
    assert stop.value.code == 0
    assert "usage: sidgym sid" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main(["sid"])
    assert stop.value.code == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "usage: sidgym sid" in told
    for tool in ("inspect", "add", "export", "import"):
        assert f"sidgym sid {tool}" in told


@pytest.mark.parametrize("tool", ["inspect", "add", "export", "import"])
def test_every_tool_has_its_help(tool, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["sid", tool, "--help"])
    assert stop.value.code == 0
    assert f"usage: sidgym sid {tool}" in capsys.readouterr().out


def test_export_and_import_go_through_the_command_line(run, tmp_path, capsys):
    main(["sid", "export", str(run), str(tmp_path / "codes.csv")])
    main(["sid", "import", str(tmp_path / "codes.csv"), str(tmp_path / "table")])
    again, table = SidTable.load(tmp_path / "table"), SidTable.load(run / "sid")
    assert (again.codes == table.codes).all()
    assert (again.item_ids == table.item_ids).all()
