"""The page in headless Chromium, with real mouse and keyboard events, judged by the files that are saved."""

import json
import shutil
import threading
from io import BytesIO

import numpy as np
import pytest
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from skimage import io
from small_review import GEOMETRY, running, volume_arrays, write_case, write_pictures, write_volumes

from nnunetv2_deferral.commands.worklist import write_worklist
from nnunetv2_deferral.fusion import fuse_masks
from nnunetv2_deferral.predictions import PredictionFolder
from nnunetv2_deferral.raters import ExpertMasks
from nnunetv2_deferral.readings import ReadingRules
from nnunetv2_deferral.review.study import Study

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install playwright)")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
ARGUMENTS = (
    "--no-sandbox",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WITH_WEBGL = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader")  # without a graphics card, and slow
WITHOUT_WEBGL = ("--disable-gpu",)


@pytest.fixture(scope="module")
def started():
    with playwright.sync_playwright() as started:
        yield started


@pytest.fixture(scope="module")
def chromium(started):
    browser = started.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS + WITHOUT_WEBGL)
    yield browser
    browser.close()


class Desk:
    """One person at a browser of their own."""

    def __init__(self, browser, link, width=1400, height=860):
        self.context = browser.new_context(viewport={"width": width, "height": height})
        self.page = self.context.new_page()
        self.requests, self.errors = [], []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        self.page.goto(link)
        self.page.wait_for_selector("canvas.slice")
        self.page.wait_for_timeout(300)

    def show_region(self, number=1):
        self.page.locator(".region-name", has_text=f"Region {number}").click()
        self.page.wait_for_timeout(80)

    def point(self, du=0, dv=0):
        """The middle of the main view, `du` and `dv` pixels aside; a region that is visited lies there."""
        box = self.page.locator(".grid > .cell canvas").first.bounding_box()
        return box["x"] + box["width"] / 2 + du, box["y"] + box["height"] / 2 + dv

    def drag(self, start, end):
        self.page.mouse.move(*self.point(*start))
        self.page.mouse.down()
        self.page.mouse.move(*self.point(*end), steps=8)
        self.page.mouse.up()

    def wait_saved(self):
        playwright.expect(self.page.locator(".save-state")).to_have_text("Saved", timeout=8000)

    def press(self, *keys):
        for key in keys:
            self.page.keyboard.press(key)

    def submit(self):
        self.page.get_by_role("button", name="Submit case").click()
        self.page.get_by_role("button", name="Submit", exact=True).click()
        playwright.expect(self.page.locator(".toast")).to_contain_text("is submitted")


@pytest.fixture
def sit_down(chromium):
    desks = []

    def sit(link, *size):
        desks.append(Desk(chromium, link, *size))
        return desks[-1]

    yield sit
    for desk in desks:
        assert desk.errors == []
        desk.context.close()


@pytest.fixture
def sit_down_with_webgl(started):
    browser = started.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS + WITH_WEBGL)
    desk = None

    def sit(link):
        nonlocal desk
        desk = Desk(browser, link)
        return desk

    yield sit
    assert desk.errors == []
    browser.close()


def masks_of(folders):
    predictions = PredictionFolder.open(folders.predictions)
    files = predictions.files
    masks = ExpertMasks(
        folder=folders.reviews,
        experts=predictions.experts,
        file_ending=files.file_ending,
        reader=files.reader,
        label_values=files.label_values,
    )
    return predictions, masks


def changes_of(predictions, masks, expert, case):
    """Where an expert's mask differs from the model's: inside of the own regions, and outside."""
    predicted = predictions.case(case)
    model, properties = predicted.model, predicted.properties
    differs = masks.read(expert, case, properties) != model
    own = predictions.case(case).route == predictions.experts.index(expert) + 1
    return int((differs & own).sum()), int((differs & ~own).sum())


@pytest.mark.parametrize(
    ("write", "case"), [(write_volumes, "case_a"), pytest.param(write_pictures, "photo", marks=pytest.mark.slow)]
)
def test_two_experts_review_a_case_and_it_is_fused_by_the_rule_of_fuse(tmp_path, sit_down, write, case):
    folders = write(tmp_path)
    with running(folders) as links:
        ann, bob = sit_down(links["ann"]), sit_down(links["bob"])
        ann.show_region(1)
        ann.press("]", "]", "]", "1")
        ann.drag((-60, -10), (60, 10))
        ann.press("Enter")
        ann.wait_saved()
        bob.show_region(1)
        bob.press("e")
        bob.drag((-30, -30), (30, 30))
        bob.press("Enter")
        bob.wait_saved()
        for _ in range(ann.page.locator(".region:not(.done)").count()):
            ann.press("m")
        ann.wait_saved()
        ann.submit()
        bob.submit()
        chief = sit_down(links["coordinator"])
        chief.page.locator("a.case", has_text=case).click()
        chief.page.get_by_role("link", name="Fusion").click()
        chief.page.wait_for_selector("text=Dice with the reference")
        hosts = {
            url.split("/")[2] for desk in (ann, bob, chief) for url in desk.requests if not url.startswith("blob:")
        }
        assert hosts == {links["ann"].split("/")[2]}
        with chief.page.expect_download() as download:
            chief.page.get_by_role("link", name="Fused mask").click()
        predictions, masks = masks_of(folders)
        target = tmp_path / f"fused{predictions.files.file_ending}"
        download.value.save_as(target)
    for expert in ("ann", "bob"):
        inside, outside = changes_of(predictions, masks, expert, case)
        assert inside > 0
        assert outside == 0
    predicted = predictions.case(case)
    model, properties = predicted.model, predicted.properties
    expected = fuse_masks(model, masks.answers(case, model.shape, properties), predictions.case(case).route)
    assert np.array_equal(predictions.files.read(target)[0], expected)
    record = json.loads((folders.reviews / "review.json").read_text())["cases"][case]
    assert set(record) == {"ann", "bob"}
    assert record["ann"]["minutes"] > 0


def test_a_stroke_outside_of_the_regions_is_visibly_blocked_and_changes_nothing(tmp_path, sit_down):
    folders = write_pictures(tmp_path)
    with running(folders) as links:
        ann = sit_down(links["ann"])
        ann.show_region(1)
        before = ann.page.locator(".grid > .cell canvas").first.screenshot()
        ann.drag((300, 220), (340, 220))
        playwright.expect(ann.page.locator(".toast.warning")).to_contain_text("Outside your regions")
        assert ann.page.locator(".grid > .cell canvas").first.screenshot() != before
        ann.page.wait_for_timeout(1800)
        assert not list(folders.reviews.rglob("*.npz"))


@pytest.mark.slow
def test_what_was_painted_is_there_again_after_the_page_is_loaded_anew(tmp_path, sit_down):
    folders = write_volumes(tmp_path)
    with running(folders) as links:
        ann = sit_down(links["ann"])
        ann.show_region(1)
        ann.drag((-80, 0), (80, 0))
        ann.press("Enter")
        ann.wait_saved()
        again = sit_down(links["ann"])
        playwright.expect(again.page.locator(".figure")).to_contain_text("1 of 2")
        assert again.page.locator(".region.done").count() == 1
        again.page.locator(".region-name", has_text="Region 1").click()
        again.page.wait_for_timeout(200)
        shots = []
        for desk in (ann, again):
            desk.show_region(1)
            desk.page.mouse.move(5, 5)
            desk.page.wait_for_timeout(300)
            shots.append(desk.page.locator(".side canvas").first.screenshot())
        assert shots[0] == shots[1]


@pytest.mark.slow
def test_undo_redo_eraser_fill_polygon_and_keys_do_what_they_say(tmp_path, sit_down):
    folders = write_volumes(tmp_path)
    with running(folders) as links:
        ann = sit_down(links["ann"])
        page = ann.page
        ann.show_region(1)

        def saved():
            """How many of the expert's voxels have label 1 in the saved draft."""
            page.wait_for_timeout(200)
            ann.wait_saved()
            with np.load(folders.reviews / ".review" / "drafts" / "ann" / "case_a.npz") as draft:
                return int((draft["labels"] == 1).sum())

        predictions = PredictionFolder.open(folders.predictions)
        model = int((predictions.case("case_a").model[predictions.case("case_a").route == 1] == 1).sum())
        ann.drag((0, 0), (60, 0))
        painted = saved()
        assert painted > model
        ann.press("Control+z")
        assert saved() == model
        ann.press("Control+Shift+z")
        assert saved() == painted
        ann.press("0", "f")
        page.mouse.click(*ann.point())
        filled = saved()
        assert filled < painted
        ann.press("1", "p")
        for corner in ((-70, -70), (70, -70), (70, 70), (-70, 70)):
            page.mouse.click(*ann.point(*corner))
        ann.press("Enter")
        assert saved() > filled
        ann.press("e")
        erased = saved()
        ann.drag((0, 0), (60, 0))
        assert saved() < erased
        page.keyboard.press("Tab")
        page.get_by_role("button", name="Next open region").focus()
        ann.press("Enter")  # presses the button, and answers nothing
        assert page.locator(".region.done").count() == 0
        ann.show_region(1)
        ann.press("m")
        assert saved() == model
        assert page.locator(".region.done").count() == 1
        ann.press("[")
        size = page.locator(".slider .value").inner_text()
        ann.press("]")
        assert page.locator(".slider .value").inner_text() != size
        ann.press("v")
        assert page.locator("input[title^=Opacity]").input_value() == "0"
        ann.press("d")
        ann.drag((-60, 0), (60, 0))
        assert saved() == model
        ann.press("j")
        ann.press("h")
        assert not page.get_by_label("Your mask").is_checked()
        ann.press("c")
        playwright.expect(page.locator("button.on", has_text="Coronal")).to_be_visible()
        ann.press("?")
        playwright.expect(page.locator("dialog.keys")).to_be_visible()
        ann.press("Escape")
        playwright.expect(page.locator("dialog.keys")).to_have_count(0)


@pytest.mark.slow
def test_a_region_is_filled_between_two_slices_that_were_drawn(tmp_path, sit_down):
    folders = write_volumes(tmp_path)
    with running(folders) as links:
        bob = sit_down(links["bob"])

        def saved():
            """The voxels of label 1 in each slice of bob's region, a box, in the saved draft."""
            bob.page.wait_for_timeout(200)
            bob.wait_saved()
            with np.load(folders.reviews / ".review" / "drafts" / "bob" / "case_a.npz") as draft:
                return (draft["labels"].reshape(4, 6, 4) == 1).sum((1, 2))

        bob.show_region(1)
        bob.press("z")
        playwright.expect(bob.page.locator(".toast")).to_contain_text("Draw this region in two slices")
        bob.press("ArrowUp")
        bob.drag((-20, 0), (20, 0))
        first = saved()
        bob.press("ArrowUp", "ArrowUp")
        bob.drag((-20, 0), (20, 0))
        drawn = saved()
        bob.press("z")
        filled = saved()
        (last,), (between,) = np.flatnonzero(drawn != first), np.flatnonzero(filled != drawn)
        assert abs(last - between) == 1
        assert filled[between] == filled[last] > drawn[between]
        bob.press("Control+z")
        assert (saved() == drawn).all()


def test_a_case_of_one_region_is_answered_and_submitted_with_three_keys_and_the_next_one_follows(tmp_path, sit_down):
    folders = write_volumes(tmp_path)
    with running(folders) as links:
        bob = sit_down(links["bob"])
        page = bob.page
        bob.press("Control+Enter")
        playwright.expect(page.locator(".toast")).to_have_text("1 region without an answer.")
        page.wait_for_timeout(300)
        ahead = [url for url in bob.requests if "case_b/volumes" in url]
        assert [url.rsplit("/", 1)[1] for url in ahead] == ["image0"]  # while the first case is being answered
        page.get_by_role("button", name="The model is right here").click()  # the first key, by mouse
        page.get_by_role("button", name="Submit case").click()
        page.wait_for_selector("dialog[open]")
        bob.press("Escape")
        bob.press("Control+Enter")
        page.wait_for_selector("dialog[open]")
        bob.press("Enter")
        playwright.expect(page.locator(".toast")).to_have_text("case_a is submitted. Next case: case_b.")
        page.wait_for_selector(".figure:has-text('0 of 1')")
        assert len([url for url in bob.requests if url.endswith("case_b/volumes/image0")]) == 1
        bob.press("m", "Control+Enter")
        page.wait_for_selector("dialog[open]")
        bob.press("Enter")
        playwright.expect(page.locator(".toast")).to_have_text("case_b is submitted. This was the last case.")
        page.wait_for_selector("h2:text('Changes')")
        assert len(list(folders.reviews.glob("bob/*.nii.gz"))) == 2


def test_the_card_of_the_first_visit_is_closed_by_a_key_and_does_not_come_back(tmp_path, sit_down):
    with running(write_volumes(tmp_path)) as links:
        bob = sit_down(links["bob"])
        playwright.expect(bob.page.locator(".card")).to_contain_text(
            "White: this one; orange: open; dashed green: answered"
        )
        playwright.expect(bob.page.locator(".card")).to_contain_text("What is asked of you")
        bob.press("Escape")
        playwright.expect(bob.page.locator(".card")).to_have_count(0)
        bob.page.locator(".case", has_text="case_b").click()
        bob.page.wait_for_selector(".case.on:has-text('case_b')")
        bob.page.wait_for_selector(".figure:has-text('0 of 1')")
        playwright.expect(bob.page.locator(".card")).to_have_count(0)


def test_long_names_of_experts_cut_no_numbers_on_a_small_screen(tmp_path, sit_down, monkeypatch):
    names = ("dr_anna_mueller_schmidt_of_radiology", "bob")
    monkeypatch.setattr("small_review.EXPERTS", names)
    folders = write_pictures(tmp_path)
    with running(folders) as links:
        chief = sit_down(links["coordinator"], 1024, 768)
        for step in ("Assignment", "Fusion"):
            chief.page.get_by_text(step).click()
            chief.page.wait_for_selector(f".steps .on:has-text('{step}')")
            chief.page.wait_for_selector("aside.panel table")
            playwright.expect(chief.page.locator("aside.panel td.name").first).to_have_attribute("title", names[0])
            for column in (".cases", "aside.panel"):
                place = chief.page.locator(column).bounding_box()
                numbers = chief.page.locator(f"{column} .number:visible").all()
                ends = [box["x"] + box["width"] for box in (each.bounding_box() for each in numbers)]
                assert ends
                assert max(ends) <= place["x"] + place["width"], (step, column)


@pytest.mark.parametrize(("width", "height"), [(1024, 768), (1280, 720), (2560, 1440)])
def test_with_two_channels_and_long_names_nothing_is_cut(tmp_path, sit_down, monkeypatch, width, height):
    names = ("dr_anna_mueller_of_munich", "dr_anna_mueller_of_vienna")
    start = "study_of_the_university_hospital_patient"
    monkeypatch.setattr("small_review.EXPERTS", names)
    folders = write_volumes(tmp_path, cases=[f"{start}_{number}_portal_venous" for number in ("0001", "0002")])
    for file in folders.images.iterdir():
        shutil.copy(file, file.with_name(file.name.replace("_0000.nii", "_0001.nii")))
    content = json.loads((folders.predictions / "dataset.json").read_text())
    content["channel_names"] = {"0": "CT of the arterial phase", "1": "CT of the venous phase"}
    (folders.predictions / "dataset.json").write_text(json.dumps(content))

    def inside(outer, inner):
        """Whether some elements lie within another one."""
        place, ends = outer.bounding_box(), [each.bounding_box() for each in inner.all()]
        return ends and max(each["x"] + each["width"] for each in ends) <= place["x"] + place["width"] + 0.5

    with running(folders) as links:
        for name in (names[0], "coordinator"):
            page = sit_down(links[name], width, height).page
            assert inside(page.locator(".viewer-bar"), page.locator(".viewer-bar > *"))
            assert page.locator(".readout").evaluate("each => each.scrollWidth <= each.clientWidth")
            for number, telling in enumerate(("1_portal_venous", "2_portal_venous")):
                case = page.locator(".case-name").nth(number)
                playwright.expect(case.locator("span").last).to_have_text(telling)
                assert inside(page.locator(".cases"), case.locator("span").last)
            page.get_by_role("button", name="Coronal").click()
            playwright.expect(page.locator(".segmented .on").first).to_have_attribute("aria-label", "Coronal")
        experts = page.locator("aside.panel td.name")
        for number, telling in enumerate(("f_munich", "f_vienna")):
            playwright.expect(experts.nth(number).locator("span").last).to_have_text(telling)
            assert inside(experts.nth(number), experts.nth(number).locator("span").last)


def test_a_box_and_a_slider_that_were_reached_with_the_tab_key_keep_their_keys(tmp_path, sit_down):
    with running(write_volumes(tmp_path, cases=("case_a",))) as links:
        page = sit_down(links["ann"]).page
        page.keyboard.press("Escape")
        ball, size = page.get_by_label("Through slices, as a ball"), page.get_by_title("Brush size ([ and ])")
        shown = page.locator(".region.current").inner_text()
        ball.focus()
        page.keyboard.press("Space")
        playwright.expect(ball).to_be_checked()
        assert page.locator(".region.current").inner_text() == shown
        before = size.input_value()
        size.focus()
        page.keyboard.press("ArrowUp")
        assert int(size.input_value()) == int(before) + 1
        ball.click()  # after a click keys refer to the image again
        playwright.expect(ball).not_to_be_checked()
        page.keyboard.press("Space")
        playwright.expect(ball).not_to_be_checked()
        playwright.expect(page.locator(".region.current")).not_to_have_text(shown)


def test_what_is_reached_with_the_tab_key_is_not_under_the_button_that_submits(tmp_path, sit_down):
    with running(write_volumes(tmp_path, cases=("case_a",))) as links:
        page = sit_down(links["ann"], 1024, 768).page
        page.keyboard.press("Escape")
        bar = page.locator(".submit").bounding_box()
        page.get_by_title("Brush size ([ and ])").focus()
        for _ in range(5):
            page.keyboard.press("Tab")
            box = page.locator("aside.panel :focus").bounding_box()
            assert box["y"] + box["height"] <= bar["y"]


def test_what_was_overlooked_is_flagged_where_it_is_and_a_region_may_stay_without_an_answer(tmp_path, sit_down):
    folders = write_volumes(tmp_path, cases=("case_a",))
    with running(folders) as links:
        ann = sit_down(links["ann"])
        page = ann.page
        ann.press("l", "l", "l", "Enter", "x")
        page.mouse.click(*ann.point(60, 0))
        playwright.expect(page.locator("dialog input")).to_be_focused()
        page.keyboard.type("second lesion")
        ann.press("Enter")
        playwright.expect(page.locator(".flags .comment")).to_have_text("second lesion")
        ann.press("t")
        ann.wait_saved()
        assert page.locator(".region .state").all_inner_texts() == ["✓", "?"]
        chief = sit_down(links["coordinator"])
        playwright.expect(chief.page.locator(".case-rate")).to_contain_text(
            '1 flag · 1 marked "cannot tell" · 1 with low confidence'
        )
        canvas = chief.page.locator(".grid > .cell canvas").first
        chief.page.locator(".flags .region-name").click()
        playwright.expect(chief.page.locator(".flags .comment")).to_have_text("ann: second lesion")
        chief.page.wait_for_timeout(200)
        assert_marked(canvas.screenshot())
        ann.show_region(2)
        ann.drag((-80, 0), (80, 0))  # an answer after all
        ann.wait_saved()
        assert page.locator(".region .state").all_inner_texts() == ["✓", "✓"]
        ann.submit()
    record = json.loads((folders.reviews / "review.json").read_text())["cases"]["case_a"]["ann"]
    assert record["confidence"] == {"1": "low"}
    assert [flag["comment"] for flag in record["flags"]] == ["second lesion"]
    assert record["cannot_tell_voxels"] == 0


def assert_marked(picture):
    """There is a mark of the colour of flags."""
    rgb = io.imread(BytesIO(picture))[..., :3].astype(int)
    assert ((rgb[..., 0] > 200) & (rgb[..., 1] < 130) & (rgb[..., 2] > 200)).sum() > 20


@pytest.mark.slow
def test_enter_goes_to_the_most_useful_open_region_and_not_to_the_nearest(tmp_path, sit_down):
    folders = write_volumes(tmp_path, cases=("case_b",), gains={"case_b": (0.001, 0.0001, 0.001)})
    image, model, route, reference = volume_arrays()
    route[:] = 0
    gain = np.zeros(route.shape)
    for columns, each in ((slice(2, 5), 0.005), (slice(10, 13), 0.001), (slice(20, 23), 0.003)):
        route[2, 4:8, columns], gain[2, 4:8, columns] = 1, each
    write_case(
        folders, "case_a", image=image, model=model, route=route, reference=reference, gain=gain,
        ending=".nii.gz", writer=SimpleITKIO(), properties=GEOMETRY,
    )  # fmt: skip
    with running(folders) as links:
        page = sit_down(links["ann"]).page
        cases = page.locator(".case-name")
        assert cases.all_inner_texts() == ["case_a", "case_b"]
        current = page.locator(".expected")
        for place, gains in ((1, "0.06"), (2, "0.036"), (3, "0.012")):
            playwright.expect(current).to_have_text(f"Region {place}: 12 voxels, high priority.")
            playwright.expect(current).to_have_attribute(
                "title", f"Your answer to region {place} is ranked by a score of {gains}"
            )
            if place < 3:
                page.keyboard.press("n")
                page.keyboard.press(",")
            page.keyboard.press("Enter")
        playwright.expect(page.locator(".figure")).to_contain_text("3 of 3")
        page.get_by_role("link", name="case_b").click()
        playwright.expect(current).to_contain_text("Region 1: 32 voxels")


@pytest.mark.slow
def test_with_a_worklist_the_page_has_its_regions_only_and_their_ranks(tmp_path, sit_down):
    gains = {"case_a": (0.001, 0.0001, 0.001), "case_b": (0.002, 0.003, 0.001), "case_c": (0.0001, 0.0001, 0.01)}
    folders = write_volumes(tmp_path, cases=gains, gains=gains)
    write_worklist(folders.predictions, tmp_path / "list", images=None, max_regions=5)
    with running(folders, worklist=tmp_path / "list") as links:
        ann = sit_down(links["ann"])
        cases = ann.page.locator(".case-name")
        assert cases.all_inner_texts() == ["case_b"]
        texts = ann.page.locator(".expected")
        playwright.expect(texts).to_contain_text("high priority, number 2 of the worklist")
        ann.press("m", "m")
        playwright.expect(ann.page.locator(".figure")).to_contain_text("2 of 2")
        ann.wait_saved()
        ann.submit()
        bob = sit_down(links["bob"])
        cases, order = bob.page.locator(".case-name"), bob.page.locator(".order")
        assert cases.all_inner_texts() == ["case_c", "case_a", "case_b"]
        order.click()
        assert cases.all_inner_texts() == ["case_a", "case_b", "case_c"]
        playwright.expect(order).to_contain_text("Sorted by name")
        chief = sit_down(links["coordinator"])
        playwright.expect(chief.page.locator(".panel")).to_contain_text("62 voxels not on the worklist")


@pytest.mark.slow
def test_the_second_tab_is_told_and_can_go_on_after_loading_anew(tmp_path, sit_down):
    folders = write_volumes(tmp_path)
    with running(folders) as links:
        first, second = sit_down(links["ann"]), sit_down(links["ann"])
        first.press("Enter")
        first.wait_saved()
        second.press("m")
        playwright.expect(second.page.locator(".banner")).to_contain_text("another tab or window", timeout=8000)
        assert second.page.get_by_role("button", name="Answered, next").is_disabled()
        second.page.get_by_role("button", name="Reload").click()
        second.page.wait_for_selector("canvas.slice")
        playwright.expect(second.page.locator(".figure")).to_contain_text("1 of 2")
        second.errors.clear()  # the browser itself reports the refused request


def test_while_the_server_is_away_the_page_keeps_the_work_and_saves_it_later(tmp_path, sit_down):
    folders = write_volumes(tmp_path)
    with running(folders) as links:
        ann = sit_down(links["ann"])
        ann.context.set_offline(True)
        ann.show_region(1)
        ann.drag((-80, 0), (80, 0))
        playwright.expect(ann.page.locator(".banner")).to_contain_text("not saved yet", timeout=8000)
        assert not list(folders.reviews.rglob("*.npz"))
        ann.context.set_offline(False)
        ann.wait_saved()
        playwright.expect(ann.page.locator(".banner")).to_be_hidden()
        ann.errors.clear()  # the browser itself reports the failed requests
        assert list(folders.reviews.rglob("*.npz"))


def test_a_mask_from_another_program_is_uploaded_or_refused_with_its_reason(tmp_path, sit_down):
    folders = write_volumes(tmp_path)
    with running(folders) as links:
        ann = sit_down(links["ann"])
        page = ann.page
        page.get_by_text("Work in ITK-SNAP").click()
        with page.expect_download() as download:
            page.get_by_role("link", name="Mask", exact=True).click()
        mask = tmp_path / "mask.nii.gz"
        download.value.save_as(mask)

        def upload(file):
            with page.expect_file_chooser() as chooser:
                page.get_by_role("button", name="Upload mask").click()
            chooser.value.set_files(file)
            page.get_by_role("button", name="Upload", exact=True).click()

        short = tmp_path / "short.nii.gz"
        short.write_bytes(mask.read_bytes()[:100])
        upload(short)
        playwright.expect(page.locator(".toast.error")).to_contain_text("is it complete?")
        ann.errors.clear()  # the browser itself reports the refused request
        assert not list(folders.reviews.rglob("*.npz"))
        upload(mask)
        playwright.expect(page.locator(".figure")).to_contain_text("2 of 2")
        ann.submit()
        predictions, masks = masks_of(folders)
        assert changes_of(predictions, masks, "ann", "case_a") == (0, 0)


def test_wheel_and_right_drag_change_slice_zoom_and_window(tmp_path, sit_down):
    with running(write_volumes(tmp_path)) as links:
        chief = sit_down(links["coordinator"])
        page = chief.page
        readout = page.locator(".readout")
        page.mouse.move(*chief.point())
        canvas = page.locator(".grid > .cell canvas").first
        before = (readout.inner_text(), canvas.screenshot())
        page.mouse.wheel(0, 100)
        page.wait_for_timeout(150)
        moved = canvas.screenshot()
        assert moved != before[1]
        page.mouse.down(button="right")
        page.mouse.move(*chief.point(90, 40), steps=4)
        page.mouse.up(button="right")
        page.wait_for_timeout(150)
        assert readout.inner_text().split("W")[1] != before[0].split("W")[1]
        windowed = canvas.screenshot()
        page.keyboard.press("+")
        page.wait_for_timeout(150)
        assert canvas.screenshot() != windowed


@pytest.mark.slow
def test_the_3d_view_is_loaded_when_it_is_opened_and_shows_the_volume(tmp_path, sit_down_with_webgl):
    with running(write_volumes(tmp_path)) as links:
        chief = sit_down_with_webgl(links["coordinator"])
        page = chief.page
        assert not any("vendor" in url for url in chief.requests)
        page.get_by_role("button", name="3D", exact=True).click()
        playwright.expect(page.locator("dialog.volume .note")).to_contain_text("Drag in a plane", timeout=30000)
        page.wait_for_timeout(500)
        decoded = io.imread(BytesIO(page.locator("dialog.volume canvas").screenshot()))[..., :3].astype(int)
        coloured = (decoded[..., 2] - decoded[..., 0]) > 40  # the mask is cyan
        grey = (np.ptp(decoded, axis=-1) < 12) & (decoded[..., 0] > 60)
        assert coloured.mean() > 0.005
        assert grey.mean() > 0.02
        assert any(url.endswith("/static/vendor/niivue.js") for url in chief.requests)
        assert {url.split("/")[2] for url in chief.requests if url.startswith("http")} == {links["ann"].split("/")[2]}
        page.keyboard.press("Escape")
        playwright.expect(page.locator("dialog.volume")).to_have_count(0)


@pytest.mark.slow
def test_the_name_of_the_window_is_that_of_what_is_shown_and_stays_for_the_next_case(tmp_path, sit_down):
    with running(write_volumes(tmp_path)) as links:
        ann = sit_down(links["ann"])
        page = ann.page
        name, readout = page.locator("select[title^=Window]"), page.locator(".readout")

        def shows(text, window):
            playwright.expect(name.locator("option:checked")).to_have_text(text)
            playwright.expect(readout).to_contain_text(window)

        playwright.expect(name.locator("option:checked")).to_have_text("Percentiles 0.5–99.5")
        ann.press("Shift+Digit1")
        shows("Lung", "W 1500  L -600")
        ann.press("1")  # a label
        name.select_option("Liver")
        shows("Liver", "W 160  L 60")
        ann.press("Shift+Digit2")  # goes to the image, not to the list
        shows("Mediastinum", "W 400  L 40")
        page.get_by_role("link", name="case_b").click()
        page.wait_for_selector("a.case.on:has-text('case_b')")
        shows("Mediastinum", "W 400  L 40")
        page.mouse.move(*ann.point())
        page.mouse.down(button="right")
        page.mouse.move(*ann.point(90, 40), steps=4)
        page.mouse.up(button="right")
        playwright.expect(name.locator("option:checked")).to_have_text("Set by hand")
        dragged = readout.inner_text().split("W")[1]
        page.get_by_role("link", name="case_a").click()
        page.wait_for_selector("a.case.on:has-text('case_a')")
        shows("Set by hand", f"W{dragged}")
        ann.press("r")
        playwright.expect(name.locator("option:checked")).to_have_text("Percentiles 0.5–99.5")


@pytest.mark.slow
def test_with_a_blind_start_the_reader_paints_from_nothing_and_cannot_take_the_mask_of_the_model(tmp_path, sit_down):
    folders = write_pictures(tmp_path)
    with running(folders, blind_start=True) as links:
        bob = sit_down(links["bob"])
        page = bob.page
        playwright.expect(page.locator(".card")).to_contain_text("The model's mask is shown once the case is submitted")
        assert page.get_by_label("The model's outline").count() == 0
        assert not page.get_by_role("button", name="The model is right here").is_visible()
        bob.press("m")
        playwright.expect(page.locator(".figure")).to_contain_text("0 of 1")
        bob.press("]", "]", "]")
        bob.drag((-20, 0), (20, 0))
        bob.press("Enter")
        bob.submit()
    record = json.loads((folders.reviews / "review.json").read_text())["cases"]["photo"]["bob"]
    assert record["blind_start"] is True


@pytest.mark.slow
def test_the_page_waits_for_the_first_case_and_lists_others_as_they_are_read(tmp_path, chromium, monkeypatch):
    step, read = threading.Semaphore(0), Study.read

    def slowly(self, cases, **_):
        def wanted():
            return step.acquire(timeout=30)

        threading.Thread(target=lambda: read(self, list(cases), wanted=wanted), daemon=True).start()

    monkeypatch.setattr(Study, "read", slowly)
    with running(write_volumes(tmp_path)) as links:
        context = chromium.new_context()
        page = context.new_page()
        page.goto(links["ann"])
        playwright.expect(page.locator(".empty")).to_have_text("The cases are being read…")
        step.release()
        page.wait_for_selector("canvas.slice")
        playwright.expect(page.locator(".reading")).to_have_text("1 of 2 cases have been read")
        page.keyboard.press("m")
        step.release()
        playwright.expect(page.locator(".reading")).to_have_count(0)
        assert page.locator(".case-name").all_inner_texts() == ["case_a", "case_b"]
        page.keyboard.press("m")
        playwright.expect(page.locator("a.case.on .case-state")).to_have_text("2 of 2")
        context.close()


@pytest.mark.slow
def test_a_picture_has_no_3d_view(tmp_path, sit_down):
    with running(write_pictures(tmp_path)) as links:
        chief = sit_down(links["coordinator"])
        assert chief.page.get_by_role("button", name="3D", exact=True).count() == 0


@pytest.mark.slow
def test_an_adjudicator_decides_between_two_readings_and_the_coordinator_reopens_a_case(tmp_path, sit_down):
    folders = write_volumes(tmp_path, cases=("case_a",))
    with running(folders, rules=ReadingRules(adjudicator="eve")) as links:
        for name, keys in (("ann", "MMM"), ("bob", "MEM")):
            desk = sit_down(links[name])
            desk.page.get_by_role("button", name="Got it").click()
            for key in keys:
                if key == "E":  # erases in the second region and accepts what is left
                    desk.press("e")
                    desk.drag((-60, 0), (60, 0))
                    desk.press("Enter")
                else:
                    desk.press("m")
                desk.page.wait_for_timeout(80)
            desk.wait_saved()
            desk.submit()
        eve = sit_down(links["eve"])
        playwright.expect(eve.page.locator(".card")).to_contain_text("Two readers disagree")
        eve.page.get_by_role("button", name="Got it").click()
        playwright.expect(eve.page.locator(".figure")).to_contain_text("0 of 1")
        eve.page.screenshot(path=tmp_path / "eve.png")
        before = eve.page.locator(".grid > .cell canvas").first.screenshot()
        eve.press("u", "i")
        eve.page.wait_for_timeout(150)
        assert eve.page.locator(".grid > .cell canvas").first.screenshot() != before
        eve.press("q")
        eve.wait_saved()
        eve.submit()
        chief = sit_down(links["coordinator"])
        chief.page.get_by_role("link", name="Fusion").click()
        readings = chief.page.locator(".readings")
        playwright.expect(readings).to_contain_text("Adjudicated")
        chief.page.screenshot(path=tmp_path / "chief.png")
        chief.page.get_by_role("button", name="Reopen…").nth(1).click()
        chief.page.locator("dialog input").fill("the wrong lesion")
        chief.page.get_by_role("button", name="Reopen", exact=True).click()
        playwright.expect(chief.page.locator(".toast")).to_contain_text("open for bob again")
        playwright.expect(readings).to_contain_text("One reading")
        playwright.expect(chief.page.locator(".submissions")).to_contain_text("reopened 1×")
    assert not (folders.reviews / "bob" / "case_a.nii.gz").exists()
    assert not (folders.reviews / "eve" / "case_a.nii.gz").exists()
