"""How pages of a report are divided when they are printed.

In a browser, columns stand for the sheets: they are divided by the same rules, and the page can be asked where things
are.
"""

import shutil

import pytest

from nnunetv2_deferral.report.page import Commands, Definitions, Page, Section, SideBySide, Table, render_page

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")

WIDTH, HEIGHT = 680, 960  # of A4 without its margins, in pixels
SHEETS = f"body {{ width: {WIDTH}px; height: {HEIGHT}px; columns: {WIDTH}px; column-gap: 0; column-fill: auto; }}"
# The sheet on which each heading, caption, head and row begins, by table.
DIVIDED = f"""() => {{
  const sheet = (element) => Math.floor(element.getClientRects()[0].left / {WIDTH});
  const rows = [...document.querySelectorAll("table")].map((table) =>
    [table.caption, ...table.rows].map(sheet));
  return [[...document.querySelectorAll("h2")].map(sheet), rows];
}}"""
LONG = "nnUNetTrainerDeferral3Experts_OvA_noLB_frozen_nnUNetTrainerDA5Segord0"


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def show(chromium):
    page = chromium.new_page(viewport={"width": WIDTH, "height": HEIGHT})
    page.emulate_media(media="print")

    def shown(*parts, before=0, sheets=True):
        """The page of some parts, with so many lines above them."""
        sections = (Section(heading="Before", parts=["line"] * before), Section(heading="Parts", parts=parts))
        page.set_content(render_page(Page(title="T", sections=sections)))
        if sheets:
            page.add_style_tag(content=SHEETS)
        return page

    yield shown
    page.close()


def make_table(rows):
    head = ("trainer", "Dice")
    return Table(caption="Dice, class blob", head=head, rows=[(f"row {n}", "0.9\n[0.8, 1.0]") for n in range(rows)])


@pytest.mark.parametrize("together", [False, True])
def test_no_heading_head_or_single_row_of_a_table_stands_alone_on_a_sheet(show, together):
    divided = 0
    for lines in range(10, 32):
        tables = [make_table(12), make_table(7)]
        parts = [SideBySide(tables)] if together else tables
        (_, heading), tables = show(*parts, before=lines).evaluate(DIVIDED)
        assert heading == tables[0][0], lines
        for caption, head, *rows in tables:
            assert caption == head == rows[0] == rows[1], lines
            assert rows[-2] == rows[-1], lines
            divided += rows[0] != rows[-1]
    assert divided > 10


def test_long_names_and_commands_stay_within_the_sheet_and_over_nothing(show):
    page = show(Definitions([(LONG, "Its mask is better.")]), Commands(f"nnUNetv2_train -tr {LONG * 3}"), sheets=False)
    assert page.evaluate("document.documentElement.scrollWidth") <= WIDTH
    term, meaning, over = page.evaluate("""() => {
      const range = document.createRange();
      range.selectNodeContents(document.querySelector("dt"));
      const [dd, pre] = ["dd", "pre"].map((tag) => document.querySelector(tag));
      return [range.getBoundingClientRect().right, dd.getBoundingClientRect().left, pre.scrollWidth > pre.clientWidth];
    }""")
    assert term <= meaning
    assert not over
