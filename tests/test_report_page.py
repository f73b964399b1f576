"""The page in a real browser: charts, table and gallery do what they say, without a network and without errors."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait

from browser import NEEDS_BROWSER, start_browser
from sttabt.report.build import make_report
from sttabt.report.chart import pareto_front
from test_report import GRID, LAYERS, make_gallery, make_row, make_sweep, write_rows
from test_report_texts import SENTENCES, make_text_gallery, make_text_row

pytestmark = NEEDS_BROWSER


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits with galleries of images, sentences with one of words; one row was not timed."""
    folder = tmp_path_factory.mktemp("page")
    rows = [row for row in make_sweep() if row.seed == 0]
    write_rows(
        folder / "images", [*rows, make_row("tome", 0.6, time=None), make_row("forward_topk", 0.8)], galleries=True
    )
    text = make_text_row("concrete", 0.4)
    write_rows(folder / "texts", [text, make_text_row("dense")])
    make_text_gallery(text.occupancy).write(folder / "texts" / "job-0" / "tokens.npz")
    return make_report([folder / "images", folder / "texts"], folder / "out").page


@pytest.fixture(scope="module")
def started(page: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    with start_browser(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture
def browser(started: webdriver.Chrome, page: Path) -> Iterator[webdriver.Chrome]:
    """The page as it opens; a test that leaves an error in the console fails."""
    started.get(page.as_uri())
    WebDriverWait(started, 30).until(lambda driver: driver.find_elements(By.CSS_SELECTOR, "#tiles figure"))
    yield started
    assert started.get_log("browser") == []


def find(browser: webdriver.Chrome, selector: str) -> list[WebElement]:
    return browser.find_elements(By.CSS_SELECTOR, selector)


def column(browser: webdriver.Chrome, number: int) -> list[str]:
    """The cells of a column of the first table, of the rows that are shown."""
    bodies = [body for body in find(browser, ".results")[0].find_elements(By.TAG_NAME, "tbody") if body.is_displayed()]
    return [body.find_element(By.CSS_SELECTOR, f"tr:first-child td:nth-child({number})").text for body in bodies]


def test_nothing_comes_from_elsewhere(browser):
    names = browser.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert all(name.startswith("data:") for name in names)


def test_the_table_sorts_both_ways_and_empty_cells_stay_last(browser):
    heads = [head.text.replace("\n", " ") for head in find(browser, ".results:first-of-type thead th")]
    place = next(index for index, head in enumerate(heads, 1) if head.startswith("share of dense time"))
    button = find(browser, f".results:first-of-type thead th:nth-child({place}) button")[0]
    for order in ("ascending", "descending"):
        button.click()
        cells = column(browser, place)
        times = [float(cell.split()[0]) for cell in cells if cell != "-"]
        assert times == sorted(times, reverse=order == "descending") and len(times) > 5
        assert cells[-2:] == ["-", "-"], "dense and the row without timing"
        assert button.find_element(By.XPATH, "..").get_attribute("aria-sort") == order


def test_settings_sort_by_their_name_and_then_by_their_number(browser):
    button = find(browser, ".results:first-of-type thead th:nth-child(2) button")[0]
    for sign in (1, -1):
        button.click()
        cells = [cell for cell in column(browser, 2) if cell != "-"]
        found = [(name, float(number)) for name, _, number in (cell.rpartition(" ") for cell in cells)]
        assert found == sorted(found)[::sign] and len({name for name, _ in found}) > 1
        assert min(number for _, number in found) < -1, "numbers below 0 are among them"
        assert column(browser, 2)[-1] == "-", "what has no setting stays last"


def test_the_chart_zooms_to_the_better_half_and_back(browser):
    marks = {mark.get_attribute("data-row"): float(mark.get_attribute("cy")) for mark in find(browser, ".chart circle")}
    svg = find(browser, ".chart")[0]
    whole = svg.find_elements(By.TAG_NAME, "circle")
    kept = sorted(whole, key=lambda mark: marks[mark.get_attribute("data-row")])
    names = [mark.get_attribute("data-row") for mark in kept]
    find(browser, "#zoom")[0].click()
    near = {
        mark.get_attribute("data-row"): float(mark.get_attribute("cy"))
        for mark in svg.find_elements("tag name", "circle")
    }
    assert len(names) / 2 <= len(near) < len(names) and set(near) == set(names[: len(near)])
    spread = [max(places) - min(places) for places in (near.values(), [marks[name] for name in near])]
    assert spread[0] > 1.5 * spread[1], "they are further apart than before"
    find(browser, "#zoom")[0].click()
    assert len(svg.find_elements(By.TAG_NAME, "circle")) == len(whole)


def test_a_table_that_is_wider_than_the_page_says_so_and_scrolls(browser):
    size = browser.get_window_size()
    hints = "return [...document.querySelectorAll('.wide')].map(wide => [wide.scrollWidth > wide.clientWidth + 1,"
    hints += " !wide.previousElementSibling.hidden, wide.tabIndex])"
    try:
        browser.set_window_size(3000, 900)
        assert all(said == wide and (tab == 0) == wide for wide, said, tab in browser.execute_script(hints))
        browser.set_window_size(520, 900)
        WebDriverWait(browser, 10).until(lambda driver: driver.execute_script(hints)[0] == [True, True, 0])
        wide = find(browser, ".wide")[0]
        first = wide.find_element(By.CSS_SELECTOR, "tbody td")
        before = first.location["x"]
        browser.execute_script("arguments[0].scrollLeft = 200", wide)
        assert first.location["x"] == before, "the methods stay in sight"
    finally:
        browser.set_window_size(size["width"], size["height"])


def test_what_is_dropped_is_explained_beside_the_pictures(browser):
    key = find(browser, ".key")[0].text
    assert "a patch that is faded to this is dropped" in key and "a word is the darker, the more layers read it" in key


def test_the_filter_hides_rows_and_marks(browser):
    total = len(find(browser, ".results > tbody"))
    assert find(browser, "#count")[0].text == f"{total} of {total} shown"
    find(browser, "#filter")[0].send_keys("back-tracking actual")
    assert set(column(browser, 1)) == {"back-tracking (actual attention)"} and len(column(browser, 1)) == 2
    assert find(browser, "#count")[0].text == f"2 of {total} shown"
    assert [len(svg.find_elements(By.TAG_NAME, "circle")) for svg in find(browser, ".chart")] == [2, 0]
    assert "nothing to show" in find(browser, ".chart")[1].text
    find(browser, "#filter")[0].send_keys(Keys.CONTROL, "a", Keys.DELETE)
    assert len(find(browser, ".results > tbody:not([hidden])")) == total


def test_a_row_shows_its_command(browser):
    body = find(browser, ".results > tbody")[1]
    assert not body.find_element(By.TAG_NAME, "code").is_displayed()
    body.find_element(By.CSS_SELECTOR, "td button").click()
    assert "sttabt sparsity=" in body.find_element(By.TAG_NAME, "code").text


def test_the_chart_tells_of_the_point_under_the_pointer(browser):
    marks = {mark.get_attribute("data-row"): mark for mark in find(browser, ".chart circle")}
    body = next(body for body in find(browser, ".results > tbody") if "keep_ratio 0.8" in body.text)
    assert not find(browser, "#hint")[0].is_displayed()
    ActionChains(browser).move_to_element(marks[body.get_attribute("id")]).perform()
    hint = find(browser, "#hint")[0].text.splitlines()
    assert hint[0] == "forward top-k, keep_ratio 0.8"
    assert "accuracy %: 94.20" in hint and "share of dense MACs: 0.753" in hint
    assert "share of dense time (quartiles): 0.840 (0.820 to 0.870)" in hint
    assert body.get_attribute("class") == "highlighted"
    ActionChains(browser).move_to_element(find(browser, "h1")[0]).perform()
    assert not find(browser, "#hint")[0].is_displayed() and body.get_attribute("class") == ""


def test_the_chart_changes_its_cost_and_shows_the_front(browser):
    svg = find(browser, ".chart")[0]
    shares = {}
    for cost in ("occupancy", "time_ratio"):
        Select(find(browser, "#cost")[0]).select_by_value(cost)
        marks = svg.find_elements(By.TAG_NAME, "circle")
        places = [(float(mark.get_attribute("cx")), -float(mark.get_attribute("cy"))) for mark in marks]
        front = svg.find_element(By.CSS_SELECTOR, ".front").get_attribute("points").split()
        expected = pareto_front([x for x, _ in places], [y for _, y in places])
        found = [tuple(float(part) for part in point.split(",")) for point in front]
        assert found == [(places[index][0], -places[index][1]) for index in expected] and len(found) > 2
        shares[cost] = len(marks)
    assert shares["occupancy"] == shares["time_ratio"] + 1, "one row was not timed"


def drag(browser: webdriver.Chrome, steps: int) -> str:
    """Moves the slider by arrow keys; returns what stands beside it."""
    find(browser, "#layer")[0].send_keys((Keys.ARROW_RIGHT if steps > 0 else Keys.ARROW_LEFT) * abs(steps))
    return find(browser, "#place")[0].text


def faded(browser: webdriver.Chrome) -> float:
    """The share of the first picture, a grey one, that is blue, as dropped patches are."""
    address = browser.execute_script("return document.querySelector('#tiles canvas').toDataURL()")
    with Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    return float((pixels[..., 2] > pixels[..., 0] + 10).mean())


def test_patches_disappear_as_the_slider_goes_through_the_layers(browser):
    names = [option.text for option in Select(find(browser, "#model")[0]).options]
    Select(find(browser, "#model")[0]).select_by_visible_text(
        next(name for name in names if name.endswith("p_logit -1"))
    )
    alive = make_gallery(make_row(share=0.5).occupancy).patches_alive[0]
    assert drag(browser, -1) == "all tokens" and faded(browser) == 0
    for layer in range(1, LAYERS + 1):
        assert drag(browser, 1) == f"read by layer {layer} of {LAYERS}"
        caption = find(browser, "#tiles figcaption")[0].text
        assert f"{alive[layer - 1].sum()} of {GRID[0] * GRID[1]} patches" in caption
        assert faded(browser) == pytest.approx(1 - alive[layer - 1].mean(), abs=0.01)
    assert drag(browser, 1) == "read by the classifier after the last layer"


def test_words_fade_as_the_slider_goes_through_the_layers(browser):
    select = Select(find(browser, "#model")[0])
    select.select_by_visible_text(next(option.text for option in select.options if "glue_sst2" in option.text))
    alive = make_text_gallery(make_text_row("concrete", 0.4).occupancy).alive[0]
    texts = find(browser, "#tiles .words")
    assert len(texts) == len(SENTENCES)
    words = texts[0].find_elements(By.TAG_NAME, "span")
    assert texts[0].text.startswith("[CLS] a quietly moving , beautifully understated film")
    drag(browser, -5)
    for layer in range(1, LAYERS + 1):
        drag(browser, 1)
        expected = ["1" if kept else "0.25" for kept in alive[layer - 1, : len(words)]]
        WebDriverWait(browser, 10).until(
            lambda _, expected=expected: [word.value_of_css_property("opacity") for word in words] == expected
        )
    assert len(words) == len(SENTENCES[0].split())
    caption = find(browser, "#tiles figcaption")[0].text
    assert f"{alive[LAYERS - 1, : len(words)].sum()} of {len(words)} tokens" in caption
