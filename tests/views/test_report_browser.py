"""The report in a real browser."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dspy_dlpo.views.report import save_report
from tests.views.test_report import HOSTILE, made_up

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium, of the `test` extra")
Keys = webdriver.Keys
WebDriverWait = pytest.importorskip(
    "selenium.webdriver.support.ui", reason="needs selenium, of the `test` extra"
).WebDriverWait
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs a browser: apt-get install chromium chromium-driver"
)
OPEN_EVERYTHING = "document.querySelectorAll('details').forEach((each) => { each.open = true; })"


def start(profile: Path) -> Any:
    """Start the browser, with a new folder for its profile."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for name in (
        "headless",
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        f"user-data-dir={profile}",
    ):
        options.add_argument(f"--{name}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options, webdriver.ChromeService(DRIVER))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    driver = start(tmp_path_factory.mktemp("chromium"))
    yield driver
    driver.quit()


@pytest.fixture
def show(browser: Any, tmp_path: Path) -> Callable[..., Any]:
    """Show the report of a made-up run."""

    def loaded(*, width: int = 1200, scheme: str = "light", **run: Any) -> Any:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        browser.get("about:blank")
        browser.get_log("browser"), browser.get_log("performance")  # Those of earlier pages.
        browser.get(save_report(made_up(**run), tmp_path / "report.html").as_uri())
        return browser

    return loaded


def find(page: Any, selector: str) -> Any:
    return page.find_element("css selector", selector)


def press(page: Any, *keys: str) -> None:
    webdriver.ActionChains(page).send_keys(*keys).perform()


def focus(page: Any, selector: str) -> None:
    page.execute_script("document.querySelector(arguments[0]).focus()", selector)


def shown(page: Any) -> list[int]:
    steps = page.execute_script("return [...document.querySelectorAll('.step:not([hidden])')].map((each) => each.id)")
    return [int(each.removeprefix("step-")) for each in steps]


@pytest.mark.parametrize("say", [str, lambda text: text + HOSTILE], ids=["harmless", "hostile"])
def test_page_has_no_error_and_asks_for_nothing(show: Any, say: Callable[[str], str]) -> None:
    page = show(say=say)
    page.execute_script(OPEN_EVERYTHING)
    assert page.get_log("browser") == []
    events = [json.loads(each["message"])["message"] for each in page.get_log("performance")]
    asked = [each["params"]["request"]["url"] for each in events if each["method"] == "Network.requestWillBeSent"]
    assert asked == [page.current_url]


def test_hostile_text_does_nothing(show: Any) -> None:
    page = show(say=lambda text: text + HOSTILE)
    page.execute_script(OPEN_EVERYTHING)
    focus(page, ".plot")
    press(page, Keys.ARROW_RIGHT)
    find(page, ".copy").click()
    assert page.execute_script("return window.hacked") is None
    assert page.execute_script("return document.querySelectorAll('img, iframe, b b, h1 *').length") == 0
    assert page.execute_script("return document.scripts.length") == 2
    assert "<img src=x onerror=" in find(page, "h1").text
    assert page.title.startswith("Notes</script>")


def test_foreign_script_would_be_refused(show: Any) -> None:
    page = show()
    foreign = '<img src=x onerror="window.hacked = 1" style="color: red">'
    page.execute_script("document.body.insertAdjacentHTML('beforeend', arguments[0])", foreign)
    assert page.execute_script("return window.hacked") is None
    assert any("Content Security Policy" in each["message"] for each in page.get_log("browser"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("say", [str, lambda text: text + HOSTILE], ids=["harmless", "hostile"])
def test_nothing_is_wider_than_a_narrow_page(show: Any, say: Callable[[str], str], scheme: str) -> None:
    page = show(width=380, scheme=scheme, say=say)
    page.execute_script(OPEN_EVERYTHING)
    width, room = page.execute_script(
        "const root = document.documentElement; return [root.scrollWidth, root.clientWidth]"
    )
    assert width <= room <= 380


def test_dark_page_is_dark_and_light_page_is_light(show: Any) -> None:
    brightness = {}
    for scheme in ("light", "dark"):
        page = show(scheme=scheme)
        color = page.execute_script("return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
        brightness[scheme] = max(color)
    assert brightness["dark"] < 60 < 200 < brightness["light"]


def test_outcomes_are_filtered_by_keyboard(show: Any) -> None:
    page = show(num_steps=10)
    assert shown(page) == list(range(10))
    focus(page, "[value=refused]")
    press(page, Keys.SPACE)
    assert shown(page) == [1, 4, 6, 9]
    press(page, Keys.TAB, Keys.SPACE)
    assert shown(page) == [1, 6]
    assert find(page, "output").text == "2 of 10 steps"


def test_predictor_is_filtered_by_keyboard(show: Any) -> None:
    page = show(num_steps=10)
    focus(page, "select")
    press(page, "write")
    assert shown(page) == [1, 3, 5, 7]


def test_text_is_searched_in_what_is_closed(show: Any) -> None:
    page = show(num_steps=10)
    focus(page, "[type=search]")
    press(page, "IT RAINED 7.")
    assert shown(page) == [7]
    press(page, Keys.ENTER)
    assert page.current_url.endswith("report.html")


def test_step_is_opened_by_keyboard(show: Any) -> None:
    page = show()
    focus(page, "#step-3 > summary")
    press(page, Keys.ENTER)
    assert find(page, "#step-3 ins").is_displayed()


def test_chart_is_read_by_keyboard_and_leads_to_the_step(show: Any) -> None:
    page = show(num_steps=12)
    focus(page, ".plot")
    plot = find(page, ".plot")
    assert plot.get_attribute("aria-valuetext") == "Student: outcome –, score –, loss –, gain –, best 0.500"
    press(page, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert plot.get_attribute("aria-valuetext").startswith("Step 2: outcome accepted, score 0.545, loss 0.455")
    assert find(page, ".tip").text.splitlines()[:2] == ["Step 2", "outcome accepted"]
    press(page, Keys.END)
    assert (plot.get_attribute("aria-valuenow"), plot.get_attribute("aria-valuemax")) == ("14", "14")
    assert plot.get_attribute("aria-valuetext").startswith("Final choice: outcome final choice, score –")
    press(page, Keys.ARROW_LEFT, Keys.ENTER)
    assert find(page, "#step-11 .body").is_displayed()
    press(page, Keys.ENTER)
    assert not find(page, "#step-11 .body").is_displayed()  # The step's summary has the focus.


def test_chart_shows_the_step_under_the_pointer(show: Any) -> None:
    page = show(num_steps=11)
    webdriver.ActionChains(page).move_to_element(find(page, ".plot")).perform()
    assert find(page, ".tip").text.startswith("Step 6")


def test_sentence_leads_to_its_step_even_if_that_is_filtered_out(show: Any) -> None:
    page = show()
    find(page, "[value=accepted]").click()
    link = find(page, ".origin a")
    target = link.get_attribute("href").split("#")[1]
    assert not find(page, f"#{target}").is_displayed()
    link.click()
    assert find(page, f"#{target} .body").is_displayed()


def test_link_to_an_example_opens_it_each_time(show: Any) -> None:
    page = show()
    link = find(page, ".origin a[href*=train]")
    example = page.find_element("id", link.get_attribute("href").split("#")[1])
    for _ in range(2):
        link.click()
        assert example.find_element("tag name", "dl").is_displayed()
        page.execute_script("arguments[0].open = false", example)


def test_copy_button_copies_the_instruction_to_the_letter(show: Any) -> None:
    say = "{} <b>&amp; 'one'</b>\n".format
    page = show(say=say)
    page.execute_cdp_cmd("Browser.grantPermissions", {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]})
    find(page, "[data-prompt='1']").click()
    status = page.find_elements("css selector", ".copied")[1]
    WebDriverWait(page, 10).until(lambda _: status.text == "Copied")
    copied = page.execute_async_script("navigator.clipboard.readText().then(arguments[0])")
    assert copied == list(made_up(say=say).best_candidate.values())[1]


def test_page_of_500_steps_works(show: Any) -> None:
    page = show(num_steps=500)
    page.execute_script("location.hash = 'step-499'")
    assert find(page, "#step-499 .body").is_displayed()
    focus(page, "[type=search]")
    press(page, "rained 250.")
    assert shown(page) == [250]
    assert page.get_log("browser") == []
