"""Take the pictures of the explorer and of a report for README and the tutorial; needs Chromium (or Chrome).

    make train && make train BACKBONE=item_knn && make train EIMF=1 ARGS="presets=named_interests"
    .venv/bin/python docs/make_pictures.py

The run folders are the newest of these three experiments in lightning_logs.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

PICTURES = Path(__file__).parent / "pictures"
EIMF = str(Path(sys.executable).with_name("eimf"))
LOGS = Path("lightning_logs")
PLAIN, KNN, NAMED = (LOGS / name for name in ("demo-comirec_sa", "demo-item_knn", "demo-comirec_sa-eimf"))


def explorer(page: Page, picture: str, height: int, *runs: Path, user: str = "") -> None:
    """The first screen of the explorer for some runs, with its first example or a user."""
    command = [EIMF, "explore", *map(str, runs), "--port", "8412"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            assert process.stdout is not None
            lines = iter(process.stdout.readline, "")
            address = next(found[0] for line in lines if (found := re.search(r"http://\S+", line)))
            page.set_viewport_size({"width": 1280, "height": height})
            page.goto(f"{address}?user={user}" if user else address)
            page.wait_for_selector("text=By interest")
            page.screenshot(path=PICTURES / picture)
        finally:
            process.terminate()


def groups(page: Page, picture: str, run: Path) -> None:
    """The part of a report about groups of users."""
    with tempfile.TemporaryDirectory() as folder:
        to = Path(folder) / "page.html"
        subprocess.run([EIMF, "report", str(run), "--to", str(to)], check=True)
        page.set_viewport_size({"width": 900, "height": 1000})
        page.goto(to.as_uri())
        page.locator("section", has=page.get_by_role("heading", name="Groups of users")).screenshot(
            path=PICTURES / picture
        )


if __name__ == "__main__":
    with sync_playwright() as playwright:
        program = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(color_scheme="light")
        explorer(page, "explorer.png", 1100, NAMED, user="u001015")
        explorer(page, "side_by_side.png", 880, PLAIN, KNN)
        groups(page, "report.png", PLAIN)
        browser.close()
