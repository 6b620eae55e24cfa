"""How long the report of a run of 500 steps takes to open: python -m tests.time_report."""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import median

from dspy_dlpo.views.report import save_report
from tests.views.test_report import made_up
from tests.views.test_report_browser import start

NUM_STEPS, REPEATS = 500, 5
# From the click on a step in the middle until the frame after the one that shows it.
CLICK = """
const done = arguments[0], begin = performance.now();
document.querySelector("#step-250 > summary").click();
requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - begin)));
"""


def main() -> None:
    """Open the page in new browsers, and print medians."""
    times = []
    with tempfile.TemporaryDirectory() as folder:
        page = save_report(made_up(NUM_STEPS), Path(folder) / "report.html")
        for number in range(REPEATS):
            browser = start(Path(folder) / str(number))
            browser.get(page.as_uri())
            load = browser.execute_script("return performance.getEntriesByType('navigation')[0].loadEventEnd")
            times.append((load, browser.execute_async_script(CLICK)))
            browser.quit()
        load, click = (median(each) / 1000 for each in zip(*times, strict=True))
        size = page.stat().st_size / 1e6
        print(f"{NUM_STEPS} steps, {size:.1f} MB: loaded in {load:.2f} s, a step opens in {click:.2f} s")


if __name__ == "__main__":
    main()
