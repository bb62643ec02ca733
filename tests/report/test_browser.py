"""In a browser the page runs without an error, asks for nothing, and shows voxels in place."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from tripq.tasks.lesions.listing import find_candidates
from tripq.tasks.lesions.pages.subject import write_subject_report

pytestmark = pytest.mark.browser

PATIENCE = 60  # s, for a viewer without a graphics card


@dataclass(frozen=True, eq=False)
class Reader:
    """Someone with the page of a subject before them."""

    browser: Any

    def run(self, program: str, *arguments: object) -> Any:
        return self.browser.execute_script(program, *arguments)

    def find(self, selector: str) -> Any:
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def errors(self) -> list[str]:
        return [entry["message"] for entry in self.browser.get_log("browser")]

    def column(self, number: int) -> list[str]:
        selector = f"#candidate-table tbody tr > :nth-child({number})"
        cells = self.browser.find_elements(By.CSS_SELECTOR, selector)
        return [cell.text for cell in cells]

    def set(self, name: str, value: object) -> None:
        """Move a slider, choose from a list or tick a box."""
        self.run(
            "const input = document.querySelector(`[name=${arguments[0]}]`);"
            "input[input.type === 'checkbox' ? 'checked' : 'value'] = arguments[1];"
            "input.dispatchEvent(new Event('input', { bubbles: true }));",
            name,
            value,
        )

    def canvas(self) -> NDArray[np.float64]:
        """What the viewer shows, as red, green and blue from 0 to 255."""
        # A change is on the screen two frames later: one to draw it, one to show it.
        canvas = self.find("#viewer-canvas")
        self.browser.execute_async_script(
            "const [canvas, done] = arguments;"
            "canvas.scrollIntoView({ block: 'end' });"
            "requestAnimationFrame(() => requestAnimationFrame(done));",
            canvas,
        )
        picture = Image.open(io.BytesIO(canvas.screenshot_as_png))
        return np.asarray(picture.convert("RGB"), dtype=float)

    def coloured(self) -> NDArray[np.intp]:
        """Rows and columns of the pixels that are not grey, (n, 2)."""
        pixels = self.canvas()
        return np.argwhere(np.ptp(pixels, axis=2) > 60)


def open_page(browser: Any, path: Path) -> Reader:
    browser.get(path.as_uri())
    WebDriverWait(browser, PATIENCE).until(
        lambda _: browser.execute_script("return document.body.dataset.viewer") == "ready"
    )
    return Reader(browser)


@pytest.fixture(scope="module")
def reader(browser: Any, case: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    path = tmp_path_factory.mktemp("browser") / "page.html"
    write_subject_report(path, case.dwi, case.probability, threshold=0.5, settings={})
    yield open_page(browser, path)
    browser.get("about:blank")


def test_the_page_loads_without_an_error_and_without_a_request(reader: Reader) -> None:
    assert reader.errors() == []
    loaded = reader.run("return performance.getEntriesByType('resource').map((e) => e.name)")
    assert [name for name in loaded if not name.startswith(("data:", "blob:"))] == []
    assert reader.browser.title == "sub-01 <script>alert(1) – Lesion report – tripq"
    assert not reader.find("#viewer-status").is_displayed()


def test_the_policy_keeps_programs_from_asking_and_strangers_from_running(reader: Reader) -> None:
    refused = reader.browser.execute_async_script(
        "const done = arguments[0];"
        "document.addEventListener('securitypolicyviolation', (e) => done(e.effectiveDirective),"
        "  { once: true });"
        "fetch('https://example.org/').catch(() => {});"
    )
    assert refused == "connect-src"
    reader.run(
        "const script = document.createElement('script');"
        "script.textContent = 'document.body.dataset.stranger = 1';"
        "document.body.append(script);"
    )
    assert reader.run("return document.body.dataset.stranger") is None
    assert len(reader.errors()) >= 2  # the browser tells both


def test_the_viewer_draws_the_scan_and_the_lesions(reader: Reader) -> None:
    reader.set("crosshair", False)
    pixels = reader.canvas()
    assert np.mean(pixels.max(axis=2) > 30) > 0.1
    assert len(reader.coloured()) > 100
    reader.set("from", 0.95)  # above all of them
    assert len(reader.coloured()) == 0
    reader.set("from", 0.5)
    reader.set("opacity", 0)
    assert len(reader.coloured()) == 0
    reader.set("opacity", 0.7)


def test_the_crosshair_is_seen_in_three_planes(reader: Reader) -> None:
    size = reader.browser.get_window_size()
    reader.browser.set_window_size(size["width"], 600)  # a millimetre is about a pixel
    reader.set("crosshair", False)
    without = reader.canvas().astype(int)
    reader.set("crosshair", True)
    changed = np.abs(reader.canvas() - without).max(axis=2) > 10
    reader.set("crosshair", False)
    reader.browser.set_window_size(size["width"], size["height"])
    for lines in (changed, changed.T):
        places = np.flatnonzero(lines.mean(axis=1) > 0.1)
        first, second = np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)
        # the first runs through two planes
        assert lines[first].sum(axis=1).max() > 1.3 * lines[second].sum(axis=1).max()


def test_a_lesion_on_the_right_is_seen_on_the_left(reader: Reader, case: Any) -> None:
    candidates = find_candidates(case.dwi, case.probability, 0.5)
    assert [candidate.side for candidate in candidates] == ["right", "left", "left"]
    reader.set("crosshair", False)
    reader.set("view", "axial")
    middle = reader.canvas().shape[1] / 2
    for number, side in ((1, -1), (2, 1)):
        reader.find(f"#candidate-table tbody tr:nth-child({number}) button").click()
        columns = reader.coloured()[:, 1]
        assert len(columns) > 50
        assert np.sign(columns - middle).mean() == side
    reader.set("view", "multiplanar")


def test_the_button_of_a_lesion_goes_to_its_peak(reader: Reader, case: Any) -> None:
    candidates = find_candidates(case.dwi, case.probability, 0.5)
    for row, candidate in enumerate(candidates, start=1):
        reader.find(f"#candidate-table tbody tr:nth-child({row}) button").click()
        x, y, z = (f"{np.round(c):.0f}".replace("-0", "0") for c in candidate.peak_mm)
        expected = f"x {x}, y {y}, z {z} mm: probability {candidate.highest_probability:.2f}"
        assert reader.find("#viewer-location").text == expected.replace("-", "−")


def test_the_background_can_be_changed(reader: Reader) -> None:
    before = reader.canvas()
    reader.set("background", "b0")
    assert np.abs(reader.canvas() - before).mean() > 1
    reader.set("background", "weighted")
    np.testing.assert_allclose(reader.canvas(), before, atol=1)


def test_a_click_on_a_column_sorts_by_it(reader: Reader) -> None:
    assert reader.column(1) == ["1", "2", "3"]
    volume = reader.find("#candidate-table th:nth-child(2)")
    volume.find_element(By.TAG_NAME, "button").click()
    assert volume.get_attribute("aria-sort") == "ascending"
    assert reader.column(2) == ["0.125", "1.000", "3.375"]
    volume.find_element(By.TAG_NAME, "button").click()
    assert volume.get_attribute("aria-sort") == "descending"
    assert reader.column(2) == ["3.375", "1.000", "0.125"]
    reader.find("#candidate-table th:nth-child(4) button").click()
    assert reader.column(4) == ["left", "left", "right"]
    assert volume.get_attribute("aria-sort") is None
    reader.find("#candidate-table th:nth-child(1) button").click()


def test_arrow_keys_turn_the_spheres(reader: Reader) -> None:
    def place() -> list[float]:
        point = reader.find(".sphere:last-child .direction")
        return [float(point.get_attribute(name)) for name in ("cx", "cy")]

    start = place()
    sphere = reader.find(".sphere svg")
    sphere.send_keys("\ue014")  # right
    assert np.abs(np.subtract(place(), start)).max() > 1e-3
    sphere.send_keys("\ue012")  # left
    np.testing.assert_allclose(place(), start, atol=1e-4)  # the page holds four digits


@pytest.fixture
def tab(browser: Any) -> Iterator[Any]:
    """Another tab, so that the page of `reader` stays open."""
    first = browser.current_window_handle
    browser.switch_to.new_window("tab")
    yield browser
    browser.close()
    browser.switch_to.window(first)


def test_a_voxel_at_the_threshold_is_drawn(tab: Any, case: Any, tmp_path: Path) -> None:
    threshold = 0.6001  # 153.03 steps of 1/255: the volume in the page holds less
    probability = np.where(case.probability > 0.5, threshold, 0)
    path = tmp_path / "page.html"
    write_subject_report(path, case.dwi, probability, threshold=threshold, settings={})
    reader = open_page(tab, path)
    reader.set("crosshair", False)
    assert len(reader.coloured()) > 100


def test_where_there_is_no_webgl_the_page_says_so(tab: Any, case: Any, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    write_subject_report(path, case.dwi, case.probability, threshold=0.5, settings={})
    without = "HTMLCanvasElement.prototype.getContext = () => null;"
    tab.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": without})
    tab.get(path.as_uri())
    status = tab.find_element(By.ID, "viewer-status")
    assert status.text.startswith("The interactive view needs WebGL 2")
    assert not tab.find_element(By.ID, "viewer").is_displayed()
    assert len(tab.find_elements(By.CSS_SELECTOR, "#candidate-table tbody tr")) == 3
    assert tab.get_log("browser") == []
