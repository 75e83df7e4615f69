"""The page in headless Chromium: no console error, every figure drawn, filters that filter, numbers as in the CSV."""

import shutil
import time

import pandas as pd
import pytest
from selenium.webdriver.support.ui import WebDriverWait

from reporting.load import collect
from reporting.making import write_report
from tests.browser import chromium
from tests.report_rows import merge_rows, write_merge_run, write_outputs, write_train_run

FIGURES = ("pairs", "methods", "tasks", "ranks", "cost", "refinement", "advisor", "examples", "alone", "curves")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Folder of a report of 1,000 merge rows and 36 training runs."""
    folder = tmp_path_factory.mktemp("report")
    outputs = write_outputs(folder / "outputs", 1000)
    broken = write_train_run(outputs, "galaxy", 8, schema_version=0, hash="f" * 10)
    assert broken.is_dir()
    write_report(collect([outputs]), folder / "all", ["html", "csv"], ["<outputs>"])
    return folder / "all"


@pytest.fixture(scope="module")
def window(report, tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("chromium") / "profile") as opened:
        yield opened


@pytest.fixture
def page(report, window):
    window.get("about:blank")
    window.get((report / "report.html").as_uri())
    return window


def own(table):
    """The rows that figures take by default; here all of them are in each task's own metric."""
    return table.assign(
        label=[m if r == "none" else f"{m} + {r}" for m, r in zip(table.method, table.realign, strict=True)]
    )


def choose(page, name, value):
    """Leaves one value of a filter."""
    box = f"#filters details[data-filter={name}]"
    page.execute_script(
        f"document.querySelector('{box}').open = true; document.querySelectorAll('{box} button')[1].click()"
    )
    page.execute_script(f"document.querySelector('{box} input[value=\"{value}\"]').click()")


def cells(page, figure):
    """(row, column) -> value of a figure's cells, the last panel's where there are several."""
    script = (
        "return [...document.querySelectorAll(arguments[0])]"
        ".map(c => [c.dataset.row, c.dataset.column, c.dataset.value])"
    )
    return {(a, b): float(v) for a, b, v in page.execute_script(script, f"#figure-{figure} [data-value]")}


def test_is_small_whole_and_silent(page, report):
    assert (report / "report.html").stat().st_size < 5_000_000
    assert [entry["message"] for entry in page.get_log("browser")] == []
    fetched = page.execute_script("return performance.getEntriesByType('resource').map(r => r.name)")
    assert [name for name in fetched if not name.startswith("data:")] == []
    assert "http" not in page.find_element("tag name", "head").get_attribute("innerHTML").replace("http-equiv", "")


@pytest.mark.parametrize("figure", FIGURES)
def test_every_figure_is_drawn(page, figure):
    marks = page.execute_script(
        "const f = document.getElementById(arguments[0]);"
        "return [f.querySelectorAll('.mark, img').length, f.querySelectorAll('.none').length]",
        f"figure-{figure}",
    )
    assert marks[0] > 1
    assert marks[1] == 0


def test_figures_show_the_csvs_numbers(page, report):
    table = own(pd.read_csv(report / "merges.csv"))
    shown = cells(page, "methods")
    wanted = table.groupby(["label", "task"]).retention.mean()
    assert len(shown) == len(wanted) + table.label.nunique()
    for (label, task), value in wanted.items():
        assert shown[(label, task)] == pytest.approx(value, abs=1e-6)
    series = page.execute_script(
        "return [...document.querySelectorAll('#figure-tasks [data-series]')]"
        ".map(g => [g.dataset.series, [...g.querySelectorAll('[data-value]')]"
        ".map(m => [m.dataset.x, m.dataset.value])])"
    )
    sizes = table.assign(size=table.set.str.count(r"\+") + 1).groupby(["label", "size"]).retention.mean()
    drawn = {(name, int(x)): float(y) for name, points in series for x, y in points}
    assert drawn == pytest.approx(sizes.to_dict(), abs=1e-6)


def test_the_table_holds_the_csvs_rows(page, report):
    table = pd.read_csv(report / "merges.csv")
    page.execute_script("document.getElementById('all-rows').click()")
    shown = page.execute_script(
        "return [...document.querySelectorAll('#row-table tbody tr')].map(r => [r.dataset.index,"
        " r.querySelector('[data-column=score]').textContent, r.querySelector('[data-column=set]').textContent])"
    )
    assert len(shown) == len(table) == 1000
    for index, score, members in shown:
        assert (float(score), members) == (pytest.approx(table.score[int(index)], abs=5e-5), table.set[int(index)])


def test_filters_filter_every_figure_and_are_kept_in_the_address(page, report):
    choose(page, "rank", 16)
    choose(page, "method", "cat")
    table = own(pd.read_csv(report / "merges.csv"))
    table = table[(table["rank"] == 16) & (table.method == "cat")]
    assert page.find_element("id", "count").text.startswith(f"{len(table)} merged")
    pair = table[table.set.str.count(r"\+") == 1]
    shown = cells(page, "pairs")
    for row in pair.itertuples():
        partner = next(name for name in row.set.split("+") if name != row.task)
        mean = pair[(pair.set == row.set) & (pair.task == row.task)].retention.mean()
        assert shown[(row.task, partner)] == pytest.approx(mean, abs=1e-6)
    assert {name for name, _ in cells(page, "methods")} == {"cat"}
    address = page.current_url
    assert "rank=16" in address
    page.get("about:blank")
    page.get(address)
    assert page.find_element("id", "count").text.startswith(f"{len(table)} merged")
    page.execute_script("document.querySelector('.skip').click()")
    assert page.current_url == address, "the way past the filters leaves them in the address"
    page.find_element("id", "reset").click()
    assert page.find_element("id", "count").text.startswith("1000 merged")
    page.execute_script("location.hash = arguments[0]", address.partition("#")[2])
    wait = WebDriverWait(page, 10)
    wait.until(lambda _: page.find_element("id", "count").text.startswith(f"{len(table)} merged"))
    page.find_element("id", "reset").click()


def test_figures_may_be_of_the_sets_of_one_size(page, report):
    choose(page, "tasks", 3)
    table = pd.read_csv(report / "merges.csv")
    triples = table[table.set.str.count(r"\+") == 2]
    assert page.find_element("id", "count").text.startswith(f"{len(triples)} merged")
    kept = triples[(triples.method == "cat") & (triples.task == "galaxy")].retention.mean()
    assert cells(page, "methods")[("cat", "galaxy")] == pytest.approx(kept, abs=1e-6)
    assert "tasks=3" in page.current_url
    assert page.find_elements("css selector", "#figure-pairs [data-value]") == []


def test_of_several_backbones_the_commonest_is_shown_at_first(window, tmp_path):
    rows = merge_rows(20)
    rows += [row | {"backbone": "other@98", "retention": 0.1} for row in rows[:4]]
    rows += [row | {"method": "frozen", "seconds": 0.001} for row in rows[:1]]
    rows += [row | {"rank": 64} for row in rows[:20]]
    rows += [row | {"set": "age_class+emotion+galaxy", "task": "galaxy", "retention": 0.2} for row in rows[:1]]
    write_merge_run(tmp_path / "outputs", rows)
    write_report(collect([tmp_path / "outputs"]), tmp_path / "all", ["html"], ["outputs"])
    window.get("about:blank")
    window.get((tmp_path / "all" / "report.html").as_uri())
    assert window.find_element("id", "count").text.startswith(f"{len(rows) - 4} merged")
    marks = """return [...document.querySelectorAll(`#figure-${arguments[0]} [data-series] [data-value]`)].map((m) =>
        [m.closest('[data-series]').dataset.series, m.tagName, m.getAttribute('fill'), Number(m.dataset.value)])"""
    (small, large) = window.execute_script(marks, "cost")  # not the control
    assert (small[0], large[0]) == ("cat, r=16", "cat, r=64")
    assert small[1] != large[1]
    assert small[2] == large[2]
    ranks = [value for name, _, _, value in window.execute_script(marks, "ranks") if name == "cat"]
    assert ranks[0] == ranks[1], "without the set that one rank has alone"
    all_of_it = "document.querySelector('#filters details[data-filter=backbone] button').click()"
    window.execute_script(all_of_it)
    assert window.find_element("id", "count").text.startswith(f"{len(rows)} merged")
    address = window.current_url
    window.get("about:blank")
    window.get(address)
    assert window.find_element("id", "count").text.startswith(f"{len(rows)} merged")


def test_a_filter_that_leaves_nothing_says_so(page):
    page.execute_script(
        "const box = document.querySelector('#filters details[data-filter=rank]');"
        "box.querySelectorAll('button')[1].click()"
    )
    assert page.find_element("id", "count").text == "0 merged, 0 alone"
    assert "Nothing under these filters." in page.find_element("id", "figure-methods").text
    assert [entry["message"] for entry in page.get_log("browser")] == []


def test_a_number_opens_its_source(page):
    cell = page.execute_script("return document.querySelector('#figure-pairs [data-value]')")
    page.execute_script("arguments[0].dispatchEvent(new MouseEvent('click', {bubbles: true}))", cell)
    text = page.find_element("id", "details-body").text
    for part in ("merge-pairs-0123456789", "0123456789", "c0ffee", "result.json"):
        assert part in text
    page.find_element("id", "close").click()
    button = page.execute_script("return document.querySelector('#table-I td.ours button')")
    page.execute_script("arguments[0].click()", button)
    body = page.find_element("id", "details-body")
    page.execute_script("arguments[0].querySelectorAll('details').forEach(d => { d.open = true; })", body)
    for part in ("d" * 64, "optimizer.lr: 0.0005", "lora.rank: 16", "c0ffee"):
        assert part in body.text


def test_filters_reach_the_examples(window, tmp_path):
    rows = [row for row in merge_rows(300) if row["task"] in ("galaxy", "landmarks")]
    write_merge_run(tmp_path / "outputs", [row for row in rows if row["rank"] == 16])
    run = write_train_run(tmp_path / "outputs", "galaxy", 64)
    head = write_train_run(tmp_path / "outputs", "galaxy", 0, features="deep")
    for folder in (run, head):
        shutil.copytree(next((tmp_path / "outputs/runs").glob("merge-*")) / "examples", folder / "examples")
        (folder / "examples/examples.json").write_text('[{"task": "galaxy", "image": "0.png", "target": "spiral"}]')
    write_report(collect([tmp_path / "outputs"]), tmp_path / "all", ["html"], ["outputs"])
    window.get((tmp_path / "all" / "report.html").as_uri())
    shown = "return [...document.querySelectorAll('#figure-examples figcaption b')].map(b => b.textContent)"
    assert window.execute_script(shown) == ["galaxy", "landmarks", "galaxy", "galaxy"]
    choose(window, "rank", 64)
    assert window.execute_script(shown) == ["galaxy"]
    choose(window, "data", "drawn_landmarks")
    assert window.execute_script(shown) == []
    assert window.find_element("css selector", "#figure-examples .none").text == "Nothing under these filters."


def test_left_out_and_hostile_names_are_shown_as_text(report, page):
    assert "old schema 0" in page.find_element("id", "left-out").text
    assert "from <outputs>" in page.find_element("css selector", ".made").text


def test_sorting(page):
    page.execute_script(
        "[...document.querySelectorAll('#row-table th button')].find(b => b.textContent === 'retention').click()"
    )
    script = (
        "return [...document.querySelectorAll('#row-table [data-column=retention]')].map(c => Number(c.textContent))"
    )
    values = page.execute_script(script)
    assert values == sorted(values)
    assert len(set(values)) > 5


def test_no_width_scrolls_sideways_and_the_dark_one_is_dark(report, tmp_path):
    with chromium(tmp_path / "phone", width=380, height=800, dark=True) as phone:
        phone.get((report / "report.html").as_uri())
        wide, back = phone.execute_script(
            "return [document.documentElement.scrollWidth, getComputedStyle(document.body).backgroundColor]"
        )
        assert wide == 380
        red, green, blue = map(int, back.removeprefix("rgb(").removesuffix(")").split(","))
        assert max(red, green, blue) < 60
        assert [entry["message"] for entry in phone.get_log("browser")] == []
        phone.find_element("id", "theme").click()
        assert phone.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_an_empty_page_has_no_error(window, tmp_path):
    write_report(collect([tmp_path]), tmp_path / "all", ["html"], ["outputs"])
    window.get((tmp_path / "all" / "report.html").as_uri())
    assert [entry["message"] for entry in window.get_log("browser")] == []
    assert "Nothing was merged yet" in window.find_element("id", "figure-pairs").text


def test_long_names_stay_inside_and_of_many_methods_the_first_are_drawn(window, tmp_path):
    methods = {f"ladder(keep=0.9{number},rungs=#783702,steps={number})": 0.01 * number for number in range(10, 40)}
    write_merge_run(tmp_path / "outputs", merge_rows(None, methods))
    write_report(collect([tmp_path / "outputs"]), tmp_path / "all", ["html"], ["outputs"])
    window.get((tmp_path / "all" / "report.html").as_uri())
    outside = """return [...document.querySelectorAll('#figure-methods text.label')].filter((text) =>
        text.getBoundingClientRect().left < text.ownerSVGElement.getBoundingClientRect().left).length"""
    assert window.execute_script(outside) == 0
    first = window.execute_script("return document.querySelector('#figure-methods text.label title').textContent")
    assert first in methods
    series = "return document.querySelectorAll('#figure-tasks [data-series]').length"
    assert window.execute_script(series) == 12
    window.execute_script("document.querySelector('#figure-tasks button[data-all]').click()")
    assert window.execute_script(series) == len(methods)
    cost = "return [...document.querySelectorAll('#figure-cost [data-series]')].map(g => g.dataset.series)"
    named = window.execute_script(cost)  # more methods than looks: those that something beats are alike
    assert named[0] == "others"
    assert {name.rpartition(", r=")[0] for name in named[1:]} < set(methods)
    captions = "return [...document.querySelectorAll('#figure-cost .caption')].map(p => p.textContent).join()"
    told = window.execute_script(captions).partition("nothing is both cheaper and better than: ")[2]
    assert all(name in told for name in named[1:])


def test_adapters_trained_otherwise_have_a_line_of_their_own(window, tmp_path):
    for seed, score in ((0, 0.8), (1, 0.9)):
        write_train_run(tmp_path / "outputs", "galaxy", 16, seed, score=score)
    capped = {"rank": 16, "max_norm": 0.05}
    write_train_run(tmp_path / "outputs", "galaxy", 16, score=0.5, lora=capped, hash="7" * 10)
    write_report(collect([tmp_path / "outputs"]), tmp_path / "all", ["html"], ["outputs"])
    window.get((tmp_path / "all" / "report.html").as_uri())
    drawn = window.execute_script(
        "return [...document.querySelectorAll('#figure-alone [data-series]')]"
        ".map(g => [g.dataset.series, Number(g.querySelector('[data-value]').dataset.value)])"
    )
    place = "drawn_galaxy, vit_tiny_patch16_224@112"
    assert dict(drawn) == {place: pytest.approx(0.85), f"{place} (max_norm=0.05)": pytest.approx(0.5)}
    widths = "return ['.panel', '.panel svg'].map(n => document.querySelector(`#figure-alone ${n}`).clientWidth)"
    panel, plot = window.execute_script(widths)
    assert panel == plot, "a long name makes no panel wider"
    mark = "#figure-alone [data-series$='(max_norm=0.05)'] [data-value]"
    window.execute_script("document.querySelector(arguments[0]).dispatchEvent(new MouseEvent('click'))", mark)
    assert "max_norm=0.05" in window.find_element("css selector", "#details-body table").text


def test_settings_of_one_seed_are_a_range_and_not_averaged(window, tmp_path):
    for number, score in enumerate((0.6, 0.7, 0.9)):  # as of a learning rate
        write_train_run(tmp_path / "outputs", "galaxy", 16, score=score, hash=str(number) * 10)
    write_report(collect([tmp_path / "outputs"]), tmp_path / "all", ["html"], ["outputs"])
    window.get((tmp_path / "all" / "report.html").as_uri())
    mark = window.execute_script(
        "return document.querySelector('#figure-alone [data-value]').getAttribute('aria-label')"
    )
    assert mark.endswith("\n0.6000 to 0.9000, 3 settings")


def test_names_cannot_leave_the_json(window, tmp_path):
    rows = merge_rows(2)
    for row in rows:
        row["data"] = "</script><script>document.title = 'broken'</script>"
    write_merge_run(tmp_path / "outputs", rows)
    write_report(collect([tmp_path / "outputs"]), tmp_path / "all", ["html"], ["outputs"])
    window.get((tmp_path / "all" / "report.html").as_uri())
    time.sleep(0.1)
    assert window.title == "lora-alloy: results"
    assert [entry["message"] for entry in window.get_log("browser")] == []


def test_a_missing_browser_fails_with_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="apt-get install -y chromium chromium-driver"), chromium(tmp_path / "p"):
        pass
