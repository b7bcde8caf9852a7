"""Takes the pictures of the review page in the documentation, and of a report.

    python docs/screenshots.py DATA              (make screenshots DATA=...)
    python docs/screenshots.py --report HTML     the first page of this report

DATA has two datasets in nnU-Net's raw layout with masks of raters in `expertsTr`: Dataset505_LIDCnodule3D (volumes) and
Dataset501_LIDCnodule2D (pictures), made from LIDC-IDRI. The masks of a model, its questions and their gains are made
from the masks of the raters. demo_overview.png is the overview.png of the demo. Requires Chromium and the extra [dev].
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from playwright.sync_api import Browser, Page, sync_playwright
from scipy import ndimage

from nnunetv2_deferral.dataset import DatasetFiles
from nnunetv2_deferral.decision.decide import RoutingMaps
from nnunetv2_deferral.maps import DeferralFolder, ModelIdentity
from nnunetv2_deferral.settings import resolve_settings

IMAGES = Path(__file__).parent / "images"
EXPERTS = ("rater1", "rater2")
OTHERS = ("rater3", "rater4")
SIZE = {"width": 1440, "height": 900}
SIZE_OF_REPORT = {"width": 1080, "height": 1540}
COMMAND = shutil.which("nnUNetv2_deferral_review", path=Path(sys.executable).parent)


def predict(dataset: Path, cases: int, output: Path) -> None:
    """Masks of two raters, and questions to the two others, with their answers, where any of the four disagree."""
    output.mkdir()
    shutil.copy(dataset / "dataset.json", output)
    ending = next((dataset / "labelsTr").iterdir()).name.partition(".")[2]
    chosen = sorted((dataset / "labelsTr").iterdir())[:cases]
    files = DatasetFiles.of(dataset / "dataset.json", chosen[0])
    deferral = DeferralFolder(
        folder=output,
        file_ending=f".{ending}",
        writer=files.reader,
        model=ModelIdentity(
            dataset=dataset.name, plans="nnUNetPlans", configuration="3d", trainer="nnUNetTrainer", experts=EXPERTS
        ),
        settings=resolve_settings({"experts": list(EXPERTS)}),
    )
    for file in chosen:
        reference, properties = files.read(file)
        masks = [files.read(dataset / "expertsTr" / name / file.name)[0] for name in (*EXPERTS, *OTHERS)]
        model = np.logical_or(masks[2], masks[3]).astype(np.uint8)
        share = np.mean(masks, axis=0)
        regions, _ = ndimage.label(ndimage.binary_dilation((share > 0) & (share < 1), iterations=2))
        route = np.where(regions > 0, 1 + (regions - 1) % len(EXPERTS), 0).astype(np.uint8)
        wrong = ndimage.gaussian_filter(np.abs(share - model), 1)
        gain = np.where(route > 0, wrong / (reference.sum() + model.sum() + 1), 0).astype(np.float32)
        files.reader.write_seg(model, str(output / file.name), properties)
        maps = RoutingMaps(route, wrong.astype(np.float32), np.maximum(route, 1), gain)
        deferral.write(file.name.removesuffix(f".{ending}"), maps, properties)
        for number, expert in enumerate(EXPERTS, start=1):
            answer = np.where(route == number, masks[number - 1], model).astype(np.uint8)
            (output.parent / "answers" / expert).mkdir(parents=True, exist_ok=True)
            files.reader.write_seg(answer, str(output.parent / "answers" / expert / file.name), properties)


@contextmanager
def review(dataset: Path, cases: int, root: Path, port: int) -> Iterator[dict[str, str]]:
    """A running review of a dataset; gives everyone's link."""
    predict(dataset, cases, root / "predictions")
    inputs = ["-i", root / "predictions", "-images", dataset / "imagesTr", "-ref", dataset / "labelsTr"]
    command = [str(COMMAND), *map(str, inputs), "-o", str(root / "reviews"), "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        links = {}
        for line in server.stdout or ():
            if found := re.match(r"^ +(\S+) +(http\S+)$", line):
                links[found[1]] = found[2]
            if "Ctrl+C" in line:
                break
        try:
            yield links
        finally:
            server.terminate()


def visit(browser: Browser, link: str) -> Page:
    """The page of a person who knows it already."""
    page = browser.new_context(viewport=SIZE).new_page()  # type: ignore[arg-type]
    page.goto(link)
    page.wait_for_selector("canvas.slice", timeout=120_000)
    page.wait_for_selector(".reading", state="detached", timeout=120_000)
    if page.get_by_text("Got it").count():
        page.get_by_text("Got it").click()
    return page


def take(page: Page, name: str) -> None:
    """Save a picture once everything is drawn."""
    page.wait_for_timeout(1000)
    page.screenshot(path=IMAGES / f"review_{name}.png")


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Chromium, with WebGL."""
    with sync_playwright() as started:
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        webgl = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
        browser = started.chromium.launch(executable_path=chromium, args=webgl)
        yield browser
        browser.close()


def take_report(report: Path) -> None:
    """Take the picture of a report."""
    with open_browser() as browser:
        page = browser.new_page(viewport=SIZE_OF_REPORT)  # type: ignore[arg-type]
        page.goto(report.resolve().as_uri())
        page.screenshot(path=IMAGES / "evaluation_report.png")


def main(data: Path) -> None:
    """Take all pictures of the review page."""
    with tempfile.TemporaryDirectory() as scratch, open_browser() as browser:
        root = Path(scratch)
        (root / "3d").mkdir()
        (root / "2d").mkdir()
        with review(data / "Dataset505_LIDCnodule3D", 5, root / "3d", 8901) as links:
            chief = visit(browser, links["coordinator"])
            take(chief, "assignment")
            chief.get_by_role("button", name="3D", exact=True).click()
            chief.wait_for_selector("dialog.volume .note:has-text('Drag in a plane')", timeout=120_000)
            take(chief, "3d")
            for name in EXPERTS:
                expert = visit(browser, links[name])
                if name == EXPERTS[0]:
                    take(expert, "annotation")
                submit(expert, root / "3d" / "answers" / name)
            chief = visit(browser, links["coordinator"])
            chief.locator("a.case:has(.done)").first.click()
            chief.get_by_role("link", name="Fusion").click()
            take(chief, "fusion")
        with review(data / "Dataset501_LIDCnodule2D", 12, root / "2d", 8902) as links:
            take(visit(browser, links[EXPERTS[0]]), "annotation_2d")


def submit(page: Page, answers: Path) -> None:
    """Upload the answer to the first case, and submit it."""
    case = page.locator("a.case.on .case-name").get_attribute("title")
    page.get_by_text("Work in ITK-SNAP").click()
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Upload mask").click()
    chooser.value.set_files(next(answers.glob(f"{case}.*")))
    page.get_by_role("button", name="Upload", exact=True).click()
    page.wait_for_selector(".toast:has-text('was uploaded')")
    page.wait_for_selector("canvas.slice")
    page.wait_for_timeout(1000)
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("dialog[open]")
    page.keyboard.press("Enter")
    page.wait_for_selector(".toast:has-text('is submitted')")


if __name__ == "__main__":
    if sys.argv[1] == "--report":
        take_report(Path(sys.argv[2]))
    else:
        main(Path(sys.argv[1]))
