"""The HTML report in a real browser, opened from the file system: what one sees, on a desktop and on a phone."""

from __future__ import annotations

import io
import shutil

import cv2
import numpy as np
import pytest
from PIL import Image
from support.pictures import Memory
from support.results import results, row

from basicsr.report.html import write_report
from basicsr.report.plots import cost_figure, figure_svg
from basicsr.report.tables import ScaleResults, cost_table, quality_table

api = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")

RED, BLUE, WHITE, BLACK = (0, 0, 255), (255, 0, 0), (255, 255, 255), (0, 0, 0)  # B, G, R
NAME = """<script>document.title = "taken"</script> & "quotes' </script>"""
TIMES = "\N{MULTIPLICATION SIGN}"
WIDTH, HEIGHT = 64, 48
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def stripes(light, dark) -> np.ndarray:
    """Rows of pixels that alternate: every pixel's upper and lower edge is to be seen."""
    image = np.empty((HEIGHT, WIDTH, 3), np.uint8)
    image[0::2], image[1::2] = light, dark
    return image


def plain(colour) -> np.ndarray:
    return np.full((HEIGHT, WIDTH, 3), colour, np.uint8)


def report(path) -> None:
    rows = (
        row("bicubic", 0, {"Set5": (33.7, 0.93), "Set14": (30.2, 0.9)}),
        row(NAME, 2_000_000, {"Set5": (35.5, 0.92), "Set14": (31.0, 0.91)}, multiply_adds=10**9, seconds=0.5),
        row("student", 1_000_000, {"Set5": (34.5, 0.94), "Set14": (31.5, 0.92)}, multiply_adds=10**10, seconds=0.2),
    )
    lr = np.zeros((HEIGHT // 2, WIDTH // 2, 3), np.uint8)
    lr[0::2] = 255
    one = {
        "hr": stripes(WHITE, BLACK),
        "lr": lr,
        "bicubic": plain(RED),
        NAME: stripes(RED, WHITE),
        "student": plain(BLUE),
    }
    images = Memory({(dataset, image): one for dataset in ("Set5", "Set14") for image in "ab"})
    found = results(ScaleResults(2, rows, ("Urban100: there is no such folder",)), ScaleResults(4, rows))
    picture = cv2.imencode(".png", np.full((300, 1500, 3), 200, np.uint8))[1].tobytes()
    plots = {
        f"{dataset}, x2": figure_svg(cost_figure(found, found.scales[0], dataset)) for dataset in ("Set5", "Set14")
    }
    write_report(
        path,
        found,
        {2: images},
        images_per_dataset=20,
        tables=[quality_table(found, published="EDSR"), cost_table(found)],
        plots=plots,
        comparisons={2: picture},
    )


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("report") / "report.html"
    report(path)
    return path.as_uri()


@pytest.fixture(scope="module")
def browser():
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("there is no chromium on the PATH")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(ARGUMENTS))
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, address):
    """Opens the report; at the end nothing was logged, thrown, or asked of a network."""
    contexts, complaints, requests = [], [], []

    def open_page(width: int = 1280, height: int = 800, **options):
        contexts.append(browser.new_context(viewport={"width": width, "height": height}, **options))
        page = contexts[-1].new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not complaints
    assert requests and all(url.startswith(("file:", "data:", "blob:")) for url in requests)


def card(page, number: int = 0):
    """A card that is in sight and drawn."""
    found = page.locator(".card").nth(number)
    found.scroll_into_view_if_needed()
    page.evaluate("card => card.scrollIntoView({block: 'center', behavior: 'instant'})", found.element_handle())
    settled(page, found)
    return found


def settled(page, found) -> None:
    """Waits until both chosen images are on the canvas."""
    chosen = " ".join(found.locator(f".side.{side} select").input_value() for side in ("left", "right"))
    canvas = found.locator("canvas").element_handle()
    page.wait_for_function("([canvas, chosen]) => canvas.dataset.painted === chosen", arg=[canvas, chosen])
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def seen(page, found) -> np.ndarray:
    """What is on the screen of a card's stage, without the divider: (H, W, 3) BGR."""
    settled(page, found)
    found.locator(".handle").evaluate("handle => { handle.style.visibility = 'hidden' }")
    content = found.locator(".stage").screenshot()
    # A stage between two of the screen's pixels leaves a row of its neighbour in the picture.
    picture = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))[1:-1, 1:-1, ::-1]
    found.locator(".handle").evaluate("handle => { handle.style.visibility = '' }")
    return picture


def of_colour(picture: np.ndarray, colour) -> np.ndarray:
    return (picture == np.array(colour, np.uint8)).all(-1)


def show(found, left: str, right: str) -> None:
    for side, name in (("left", left), ("right", right)):
        options = found.locator(f".side.{side} option").all_text_contents()
        found.locator(f".side.{side} select").select_option(
            index=[text.partition("· ")[2] for text in options].index(name)
        )


def enlarge(page, found) -> None:
    """To 16 pixels of the screen for each one of the image, the most there is."""
    found.get_by_role("slider").focus()
    for _ in range(8):
        page.keyboard.press("+")
    settled(page, found)


def drag(page, start: tuple[float, float], end: tuple[float, float]) -> None:
    page.mouse.move(*start)
    page.mouse.down()
    page.mouse.move((start[0] + end[0]) / 2, (start[1] + end[1]) / 2)
    page.mouse.move(*end)
    page.mouse.up()


@pytest.mark.parametrize("share", [0.25, 0.75])
def test_dragging_the_divider_moves_the_seam_between_both_images(open_page, share):
    page = open_page()
    found = card(page)
    box = found.locator(".stage").bounding_box()
    middle = box["y"] + box["height"] / 2
    drag(page, (box["x"] + box["width"] / 2, middle), (box["x"] + share * box["width"], middle))
    picture = seen(page, found)
    left, right = of_colour(picture, RED)[200], of_colour(picture, BLUE)[200]
    seam = round(share * box["width"])
    assert abs(int(np.flatnonzero(left).max()) + 1 - seam) <= 1 and abs(int(np.flatnonzero(right).min()) - seam) <= 1
    assert (left | right).sum() > 0.9 * box["width"]
    assert abs(float(found.get_by_role("slider").get_attribute("aria-valuenow")) - 100 * share) <= 1


def test_the_divider_obeys_the_keyboard_and_tells_where_it_is(open_page):
    page = open_page()
    found = card(page)
    slider = found.get_by_role("slider")
    slider.focus()
    for key, value in (("ArrowRight", 52), ("ArrowLeft", 50), ("PageDown", 40), ("End", 100), ("Home", 0)):
        page.keyboard.press(key)
        assert slider.get_attribute("aria-valuenow") == str(value)
    picture = seen(page, found)
    assert of_colour(picture, BLUE).any() and not of_colour(picture, RED).any()


def test_enlarged_pixels_are_squares_of_one_colour_at_the_same_height_on_both_sides(open_page):
    page = open_page()
    found = card(page)
    show(found, "HR", NAME)
    enlarge(page, found)
    assert found.locator("output").text_content() == f"16{TIMES}"
    picture = seen(page, found)
    third = picture.shape[1] // 3
    left, right = of_colour(picture[:, :third], BLACK), of_colour(picture[:, -third:], WHITE)
    assert (left | of_colour(picture[:, :third], WHITE)).all() and (right | of_colour(picture[:, -third:], RED)).all()
    np.testing.assert_array_equal(left[:, 0], right[:, 0])
    edges = np.flatnonzero(np.diff(left[:, 0].astype(int)))
    assert len(edges) > 10 and set(np.diff(edges)) == {16}


def test_dragging_moves_an_enlarged_image_on_both_sides_alike(open_page):
    page = open_page()
    found = card(page)
    show(found, "HR", NAME)
    found.locator(".stage").dblclick(position={"x": 100, "y": 100})
    enlarge(page, found)
    before = seen(page, found)
    box = found.locator(".stage").bounding_box()
    drag(page, (box["x"] + 300, box["y"] + 200), (box["x"] + 290, box["y"] + 193))
    after = seen(page, found)
    np.testing.assert_array_equal(after[20:-20], before[27 : before.shape[0] - 13])
    found.get_by_label("Whole image").click()
    settled(page, found)
    assert found.get_by_label("Zoom out").is_disabled()


def test_the_wheel_enlarges_with_ctrl_and_scrolls_the_page_without(open_page):
    page = open_page()
    found = card(page)
    box = found.locator(".stage").bounding_box()
    page.mouse.move(box["x"] + 50, box["y"] + 50)
    size = found.locator("output").text_content()
    place = page.evaluate("scrollY")
    page.mouse.wheel(0, 60)
    page.wait_for_function("place => scrollY !== place", arg=place)
    assert found.locator("output").text_content() == size
    card(page)
    box = found.locator(".stage").bounding_box()
    page.mouse.move(box["x"] + 50, box["y"] + 50)
    page.keyboard.down("Control")
    page.mouse.wheel(0, -120)
    page.keyboard.up("Control")
    page.wait_for_function("output => parseFloat(output.textContent) > 9", arg=found.locator("output").element_handle())


def test_drop_downs_and_digits_choose_what_is_shown_with_its_figures(open_page):
    page = open_page()
    found = card(page)
    texts = found.locator(".side.left option").all_text_contents()
    assert texts == ["1 · HR", "2 · LR, nearest", "3 · bicubic", f"4 · {NAME}", "5 · student"]
    assert found.locator(".side.left p").text_content() == "PSNR 32.70 · SSIM 0.9200"
    assert found.locator(".side.right p").text_content() == "PSNR 33.50 · SSIM 0.9300"
    found.locator(".side.left select").select_option(label="5 · student")
    assert of_colour(seen(page, found), BLUE).mean() > 0.9
    found.get_by_role("slider").focus()
    page.keyboard.press("3")
    page.keyboard.press("Shift+Digit3")
    assert of_colour(seen(page, found), RED).mean() > 0.9
    assert found.locator(".side.right p").text_content() == "PSNR 32.70 · SSIM 0.9200"


def test_the_lr_image_is_enlarged_without_smoothing(open_page):
    page = open_page()
    found = card(page)
    show(found, "LR, nearest", "LR, nearest")
    picture = seen(page, found)
    column = of_colour(picture[:, picture.shape[1] // 4], WHITE)
    assert (column | of_colour(picture[:, picture.shape[1] // 4], BLACK)).all()
    size = float(found.locator("output").text_content().rstrip(TIMES))
    edges = np.flatnonzero(np.diff(column.astype(int)))
    assert set(np.diff(edges)) == {2 * size}


def test_one_choice_can_hold_for_all_images(open_page):
    page = open_page()
    card(page)
    page.locator("[data-all=right]").select_option(label="HR")
    for found in page.locator(".card").all():
        assert found.locator(".side.right select").input_value() == "0"


def test_images_are_decoded_only_where_they_are_in_sight(open_page):
    page = open_page(390, 500)
    sizes = page.locator(".card canvas").evaluate_all("all => all.map(canvas => 'painted' in canvas.dataset)")
    assert sizes == [False] * 4
    card(page, 0)
    first, last = (page.locator(".card canvas").nth(number) for number in (0, 3))
    assert first.get_attribute("data-painted") and last.get_attribute("data-painted") is None
    card(page, 3)
    assert first.get_attribute("data-painted") is None and last.get_attribute("data-painted")


def methods(page, table: str, scale: int, published: bool = False) -> list[str]:
    body = f"#table-{table} tbody{'.published' if published else ':not(.published)'}[data-scale='{scale}']"
    return [text.split(" [")[0].strip() for text in page.locator(f"{body} th.method").all_text_contents()]


def test_a_heading_sorts_within_each_scale_best_first_then_the_other_way_then_not(open_page):
    page = open_page()
    heading = page.get_by_role("button", name="Set5 PSNR")
    given = methods(page, "quality", 2)
    heading.click()
    for scale in (2, 4):
        assert methods(page, "quality", scale) == [NAME, "student", "bicubic"]
    assert page.locator("#table-quality th[aria-sort]").get_attribute("aria-sort") == "descending"
    ours = page.locator("#table-quality tbody[data-scale='2']:not(.published) tr").first
    assert ours.locator("th.scale").text_content() == f"{TIMES}2"
    heading.press("Enter")
    assert methods(page, "quality", 2) == ["bicubic", "student", NAME]
    heading.press("Enter")
    assert methods(page, "quality", 2) == given
    page.get_by_role("button", name="Set5 SSIM").click()
    assert methods(page, "quality", 2) == ["student", "bicubic", NAME]
    page.get_by_role("button", name="Params (M)").click()
    assert methods(page, "cost", 2) == ["student", NAME, "bicubic"]  # what has no figure is last


def test_published_rows_stand_apart_and_can_be_hidden(open_page):
    page = open_page()
    assert "MCAD-KD" in methods(page, "quality", 2, published=True)
    page.get_by_label("Published rows").uncheck()
    assert not page.locator("#table-quality tbody.published").first.is_visible()
    assert page.locator("#table-quality tbody").first.is_visible()


def test_the_best_figure_is_bold_and_the_second_underlined(open_page):
    page = open_page()
    best = page.locator("#table-quality .best").first
    assert best.text_content() == "35.50"
    assert int(best.evaluate("element => getComputedStyle(element).fontWeight")) >= 600
    second = page.locator("#table-quality .second").first
    assert "underline" in second.evaluate("element => getComputedStyle(element).textDecorationLine")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_the_page_does_not_scroll_sideways(open_page, scheme):
    page = open_page(390, 844, color_scheme=scheme, device_scale_factor=2, is_mobile=True, has_touch=True)
    found = card(page)
    assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth && innerWidth === 390")
    box = found.locator(".stage").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 390
    assert page.locator("#quality .scroll").evaluate("box => box.scrollWidth > box.clientWidth")


def test_two_fingers_enlarge_and_one_moves_the_divider(open_page):
    page = open_page(390, 844, is_mobile=True, has_touch=True)
    found = card(page)
    touch = page.context.new_cdp_session(page)
    box = found.locator(".stage").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def fingers(kind: str, *places: tuple[float, float]) -> None:
        points = [{"x": place[0], "y": place[1], "id": number} for number, place in enumerate(places)]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    fingers("touchStart", (x, y))
    for step in range(1, 8):
        fingers("touchMove", (x + 10 * step, y))
    fingers("touchEnd")
    assert abs(int(found.get_by_role("slider").get_attribute("aria-valuenow")) - 50 - 7000 / box["width"]) <= 2
    size = float(found.locator("output").text_content().rstrip(TIMES))
    fingers("touchStart", (x - 60, y), (x - 100, y))
    for step in range(1, 5):
        fingers("touchMove", (x - 60 + 5 * step, y), (x - 100 - 5 * step, y))
    fingers("touchEnd")
    settled(page, found)
    assert float(found.locator("output").text_content().rstrip(TIMES)) == pytest.approx(2 * size, rel=0.05)


def test_names_are_text_and_nothing_that_runs(open_page):
    page = open_page()
    card(page)
    assert page.title() == "bench_1 · evaluation"
    assert NAME in page.locator(".facts").text_content()
    assert page.locator("#table-quality th.method", has_text="quotes").first.text_content().strip() == NAME


def test_drawings_keep_their_clip_paths_apart(open_page):
    page = open_page()
    ids = page.locator("svg [id]").evaluate_all("all => all.map(element => element.id)")
    assert ids and len(set(ids)) == len(ids)
    broken = page.evaluate(
        "() => [...document.querySelectorAll('svg [clip-path]')]"
        ".filter(e => !document.getElementById(e.getAttribute('clip-path').slice(5, -1))).length"
    )
    assert broken == 0


def test_without_javascript_tables_and_plots_are_there_and_a_sentence_on_the_rest(open_page):
    page = open_page(java_script_enabled=False)
    assert page.locator("#table-quality").is_visible() and page.locator("#plots svg").first.is_visible()
    assert page.get_by_text("Comparing images needs JavaScript").is_visible()
    assert not page.locator(".card").first.is_visible()
