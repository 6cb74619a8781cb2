"""The page in a browser, with mouse, keyboard and phone."""

import base64
import re
from collections import Counter
from io import BytesIO
from threading import Event

import numpy as np
import pytest
from PIL import Image

from se_detection import UserError
from se_detection.inference.predictor import SEPredictor

from ..app import MAX_IMAGES, MEBIBYTES, TryPage
from .conftest import IMAGES, serving

HOSTILE = '<img src=x onerror="alert(1)">'
# With a mark that reverses the writing direction.
TURNED = f"{HOSTILE}\u202egnp.jpg"
REFUSED = r"Failed to load resource: .* 422 .*"
FOCUSED = "() => document.activeElement.id || document.activeElement.ariaLabel || document.activeElement.textContent"
DROP = """([target, files]) => {
  const transfer = new DataTransfer();
  for (const {name, text, bytes} of files) {
    const data = bytes ? new Uint8Array(bytes) : Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
    transfer.items.add(new File([data], name));
  }
  for (const kind of ['dragover', 'drop']) {
    const event = new DragEvent(kind, {dataTransfer: transfer, bubbles: true, cancelable: true});
    document.querySelector(target).dispatchEvent(event);
  }
}"""
# Rectangles relative to the image's upper left corner.
LAYOUT = """() => [...document.querySelectorAll('.image:first-child .frame')].map(frame => {
  const origin = frame.querySelector('img').getBoundingClientRect();
  const place = element => {
    const {left, top, right, bottom} = element.getBoundingClientRect();
    return [left - origin.left, top - origin.top, right - origin.left, bottom - origin.top];
  };
  const colours = element => [getComputedStyle(element).backgroundColor, getComputedStyle(element).color];
  return {
    image: [origin.width, origin.height], corner: [origin.left, origin.top],
    boxes: [...frame.querySelectorAll('.box')].map(place).reverse(),
    labels: [...frame.querySelectorAll('.label span')].map(span => ({
      place: place(span), text: span.textContent, size: parseFloat(getComputedStyle(span).fontSize),
      whole: span.scrollWidth <= span.clientWidth, colours: colours(span),
    })).reverse(),
  };
})"""
TARGETS = """() => [...document.querySelectorAll('button, summary, .drop, input[type=range]')]
  .map(element => element.getBoundingClientRect().height)"""


@pytest.fixture
def visit(chromium):
    """A function that opens an address; console messages, dialogs and foreign requests fail the test."""
    problems, contexts = [], []

    def visit(url, width=1280, scheme="light", **options):
        context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: problems.append(dialog.message))
        page.on("request", lambda request: None if is_own(request.url) else problems.append(request.url[:100]))

        def is_own(address):
            return address.startswith((f"{url}/", "data:image/"))

        page.goto(url)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert [problem for problem in problems if not re.fullmatch(REFUSED, problem)] == []


@pytest.fixture
def expect():
    return pytest.importorskip("playwright.sync_api").expect


@pytest.fixture(scope="module")
def predictors(plain_run, se_run):
    return [SEPredictor.from_run(run) for run in (plain_run, se_run)]


@pytest.fixture
def photo(tmp_path):
    """A landscape photo."""
    path = tmp_path / "photo.png"
    noise = np.random.default_rng(0).integers(0, 255, (12, 20, 3), dtype=np.uint8)
    Image.fromarray(noise.repeat(8, axis=0).repeat(8, axis=1)).save(path)
    return path


@pytest.fixture
def set_fake_boxes(fake):
    """A function that sets the boxes of the fake detectors (class, score, corners) in an image of 100x80 pixels."""

    def set_boxes(*boxes):
        file = BytesIO()
        Image.new("RGB", (100, 80), "teal").save(file, "png")
        image = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
        entries = [{"class": kind, "score": score, "box": box} for kind, score, box in boxes]
        run = {"seconds": 0.0426, "boxes": entries}
        answer = {"width": 100, "height": 80, "image": image, "runs": [run, run]}

        def detect(data):
            fake.sizes.append(len(data))
            fake.during()
            if data.startswith(b"no image"):
                raise UserError("this is not an image")
            return answer

        fake.colours = {kind: "rgb(20, 30, 200)" for kind, _, _ in boxes}
        fake.detect = detect
        return answer

    return set_boxes


@pytest.fixture
def fake_page(fake, set_fake_boxes, visit):
    """A function that opens the page of the fake detectors, by default with two cups; `gates` makes the map."""
    servers = []

    def open_page(*boxes, gates=None, **options):
        answer = set_fake_boxes(*boxes or [("cup", 0.9, [10, 20, 60, 70]), ("cup", 0.6, [0, 0, 5, 5])])
        fake.gate_map = gates or (lambda number, data: {"image": answer["image"], "images": 12})
        server = serving(TryPage(fake, "127.0.0.1"))
        servers.append(server)
        return visit(server.__enter__(), **options)

    yield open_page
    for server in servers:
        server.__exit__(None, None, None)


def files(*names, content=b"image"):
    return [{"name": name, "mimeType": "image/jpeg", "buffer": content} for name in names]


def dropped(page, *entries):
    page.evaluate(DROP, [".score", list(entries)])


def text_file(name, content=b"image"):
    return {"name": name, "text": base64.b64encode(content).decode()}


def contrast(first, second):
    def luminance(colour):
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    darker, lighter = sorted([luminance(first), luminance(second)])
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("width", [1280, 390])
def test_boxes_and_labels_are_in_the_right_places(url, visit, expect, predictors, photo, width) -> None:
    page = visit(url, width)
    page.set_input_files("#files", photo)
    expect(page.locator(".image")).to_have_count(1)
    page.locator("#score").press("Home")
    shown = page.evaluate(LAYOUT)
    assert len(shown) == len(predictors)
    for predictor, panel in zip(predictors, shown, strict=True):
        found = predictor(photo)
        scale = panel["image"][0] / 160
        assert panel["image"][1] == pytest.approx(96 * scale, abs=0.51)
        expected = scale * found.pred_boxes.tensor.numpy()
        assert len(expected) == 30
        np.testing.assert_allclose(panel["boxes"], expected, atol=1)
        names = [predictor.classes[number] for number in found.pred_classes]
        texts = [f"{name} {score:.2f}" for name, score in zip(names, found.scores.tolist(), strict=True)]
        assert [label["text"] for label in panel["labels"]] == texts
        for label in panel["labels"]:
            left, top, right, bottom = label["place"]
            assert min(left, top) >= -0.5
            assert right <= panel["image"][0] + 0.5
            assert bottom <= panel["image"][1] + 0.5
            assert label["whole"]
            assert label["size"] >= 12
            assert contrast(*label["colours"]) >= 4.5
    (left, top), (other_left, other_top) = (panel["corner"] for panel in shown)
    if width == 1280:
        assert top == other_top
        assert other_left >= left + shown[0]["image"][0]
    else:
        assert left == other_left
        assert other_top >= top + shown[0]["image"][1]


def test_the_slider_hides_and_counts_boxes(url, visit, expect, predictors, photo, toy) -> None:
    page = visit(url)
    page.set_input_files("#files", photo)
    expect(page.locator(".image")).to_have_count(1)

    def check(path, least):
        assert page.locator("#least").text_content() == f"{least:.2f}"
        for number, predictor in enumerate(predictors):
            found = predictor(path)
            chosen = found.scores.double() >= least
            kinds = Counter(predictor.classes[place] for place in found.pred_classes[chosen])
            figure = page.locator(".image").first.locator("figure").nth(number)
            total = int(chosen.sum())
            items = ["1 box" if total == 1 else f"{total} boxes", *(f"{kind} {kinds[kind]}" for kind in sorted(kinds))]
            assert figure.locator(".count li").all_text_contents() == items
            assert figure.locator(".box:visible").count() == figure.locator(".label:visible").count() == total
            assert figure.locator("tbody tr:visible").count() == total
            assert f"with {items[0]} of" in figure.locator("img").get_attribute("alt")
            rows = figure.locator("tbody tr:visible").all_text_contents()
            scores = found.scores[chosen].tolist()
            assert all(f"{score:.3f}" in row for score, row in zip(scores, rows, strict=True))
        return total

    for summary in page.locator("summary").all():
        summary.click()
    check(photo, 0.5)
    slider = page.locator("#score")
    slider.press("Home")
    assert check(photo, 0) == 30
    scores = predictors[1](photo).scores.tolist()
    (steps, *_) = (steps for steps in range(101) if min(scores) < steps / 100 <= max(scores))
    for _ in range(steps):
        slider.press("ArrowRight")
    assert 0 < check(photo, steps / 100) < 30
    # With the mouse, to the end and back.
    box = slider.bounding_box()
    page.mouse.move(box["x"] + steps / 100 * box["width"], box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"], box["y"] + box["height"] / 2, steps=2)
    assert check(photo, 1) == 0
    page.mouse.move(box["x"] + steps / 100 * box["width"], box["y"] + box["height"] / 2, steps=2)
    page.mouse.up()
    least = float(slider.input_value())
    assert abs(least - steps / 100) < 0.03
    check(photo, least)
    other = sorted((toy / "val").iterdir())[0]
    page.set_input_files("#files", other)
    expect(page.locator(".image")).to_have_count(2)
    for summary in page.locator(".image").first.locator("summary").all():
        summary.click()
    check(other, least)


def test_files_can_be_dropped_and_bad_files_are_reported(url, visit, expect, photo) -> None:
    page = visit(url)
    image = photo.read_bytes()
    entries = [text_file("a.png", image), text_file("b.txt", b"no image"), text_file("c.png", image)]
    dropped(page, *entries, {"name": "huge.png", "bytes": (MEBIBYTES << 20) + 1})
    expect(page.locator("#errors p")).to_have_count(2)
    expect(page.locator(".image h2 bdi")).to_have_text(["c.png", "a.png"])
    unread, huge = page.locator("#errors p").all_text_contents()
    assert unread.startswith("b.txt: this file is not a readable image")
    assert huge.startswith(f"huge.png: the file is larger than {MEBIBYTES} MiB")
    assert page.locator("#errors").get_attribute("role") == "alert"
    # New files from the dialog clear the old errors.
    page.set_input_files("#files", [photo, photo])
    expect(page.locator(".image")).to_have_count(4)
    expect(page.locator("#errors p")).to_have_count(0)
    assert "over" not in page.locator(".drop").get_attribute("class")


def test_the_number_of_images_is_limited(fake, fake_page, expect) -> None:
    page = fake_page()
    page.set_input_files("#files", files(*(f"{number}.jpg" for number in range(MAX_IMAGES + 2))))
    expect(page.locator("#errors p")).to_have_text(re.compile(f"^2 skipped: .* room for {MAX_IMAGES} images"))
    expect(page.locator(".image")).to_have_count(MAX_IMAGES)
    assert len(fake.sizes) == MAX_IMAGES
    page.get_by_label("Remove 3.jpg").click()
    page.set_input_files("#files", files("new.jpg", "newer.jpg"))
    expect(page.locator("#errors p")).to_have_text(re.compile("^1 skipped: "))
    expect(page.locator(".image h2 bdi").first).to_have_text("new.jpg")
    assert page.locator(".image").count() == MAX_IMAGES
    # A bad file takes no room.
    page.get_by_label("Remove 4.jpg").click()
    for name in ("bad.jpg", "worse.jpg"):
        page.set_input_files("#files", files(name, content=b"no image"))
        expect(page.locator("#errors p")).to_have_text(f"{name}: this is not an image")


def test_waiting_images_count_towards_the_limit(fake, fake_page, expect) -> None:
    page = fake_page()
    go = Event()
    fake.during = lambda: go.wait(10)
    for many in (MAX_IMAGES - 2, 5):
        page.set_input_files("#files", files(*(f"{number}.jpg" for number in range(many))))
    expect(page.locator("#errors p")).to_have_text(re.compile("^3 skipped: "))
    go.set()
    expect(page.locator(".image")).to_have_count(MAX_IMAGES)


def test_progress_and_time_are_shown(fake, fake_page, expect) -> None:
    page = fake_page()
    expect(page.locator("#status")).to_have_text("No images yet.")
    go = Event()
    fake.during = lambda: go.wait(10)
    page.set_input_files("#files", files("a.jpg", "b.jpg"))
    expect(page.locator("#status")).to_have_text("a.jpg is being processed, 1 more waiting …")
    go.set()
    expect(page.locator("#status")).to_have_text("b.jpg: R found 2, " + fake.names[1] + " found 2.")
    assert page.locator("#status").get_attribute("role") == "status"
    assert "43 ms" in page.locator("figcaption").first.text_content()


def test_server_failures_are_reported(fake_page, expect) -> None:
    page = fake_page()
    # A response that is not JSON.
    page.route("**/detect", lambda route: route.fulfill(status=422, body="<html>"))
    page.set_input_files("#files", files("a.jpg"))
    expect(page.locator("#errors p")).to_have_text(re.compile(r"^a\.jpg: the server failed \(422\)"))
    page.evaluate("() => { window.fetch = () => Promise.reject(new TypeError()); }")
    page.set_input_files("#files", files("b.jpg"))
    expect(page.locator("#errors p")).to_have_text(re.compile(r"^b\.jpg: it could not be sent"))


def test_the_map_of_the_se_runs_gates(url, visit, expect, photo) -> None:
    page = visit(url, 390)
    page.set_input_files("#files", photo)
    button = page.get_by_role("button", name="Effect of the gates of")
    # The plain run has none.
    expect(button).to_have_text(["Effect of the gates of SE_R"])
    button.focus()
    page.keyboard.press("Enter")
    image = page.locator(".map img")
    expect(image).to_be_visible(timeout=20_000)
    expect(page.locator(".map").last).to_have_text(
        f"Where SE_R’s gates make features stronger (red) or weaker (blue) than their mean over {IMAGES} images"
    )
    # The text describes it; an alt text would be read twice.
    assert image.get_attribute("alt") == ""
    assert image.evaluate("async image => { await image.decode(); return image.naturalWidth; }") > 600
    # The map is wider than a phone, and scrolls in its own frame.
    assert image.bounding_box()["width"] >= 600
    assert page.evaluate("() => document.documentElement.scrollWidth") == 390
    assert page.evaluate("() => document.activeElement.className") == "map"


def test_a_map_that_fails_can_be_tried_again(fake_page, expect) -> None:
    message = "the map needs the mean gates"
    asked = []

    def fail(number, data):
        asked.append(number)
        raise UserError(message)

    page = fake_page(gates=fail)
    page.set_input_files("#files", files("a.jpg"))
    button = page.get_by_role("button", name="Effect of the gates of")
    for times in (1, 2):
        button.press("Enter")
        expect(page.locator(".map").nth(1)).to_have_text(message)
        expect(button).not_to_have_attribute("aria-disabled", "true")
        assert asked == [1] * times
        assert page.evaluate(FOCUSED).startswith("Effect of the gates")


def test_a_slow_map_is_requested_once(fake_page, expect) -> None:
    go = Event()
    asked = []

    def wait(number, data):
        asked.append(number)
        go.wait(10)
        raise UserError("late")

    page = fake_page(gates=wait)
    page.set_input_files("#files", files("a.jpg"))
    button = page.get_by_role("button", name="Effect of the gates of")
    button.press("Enter")
    expect(page.locator(".map").nth(1)).to_have_text('Computing the effect of the gates of <b>SE_R & "co"</b> …')
    button.press("Enter")
    # The focus does not return.
    page.locator("#score").focus()
    go.set()
    expect(page.locator(".map").nth(1)).to_have_text("late")
    assert page.evaluate(FOCUSED) == "score"
    assert asked == [1]


def test_a_map_that_arrives_does_not_scroll_the_page(fake, fake_page, expect) -> None:
    go = Event()
    asked = []

    def wait(number, data):
        asked.append(number)
        go.wait(10)
        return {"image": fake.detect(data)["image"], "images": 12}

    page = fake_page(gates=wait, width=390)
    page.set_input_files("#files", files("a.jpg", "b.jpg", "c.jpg"))
    expect(page.locator(".image")).to_have_count(3)
    page.get_by_role("button", name="Effect of the gates of").last.press("Enter")
    page.evaluate("() => { document.activeElement.blur(); window.scrollTo(0, 0); }")
    go.set()
    expect(page.locator(".map:focus img")).to_have_count(1)
    assert page.evaluate("() => document.documentElement.scrollHeight - innerHeight") > 900
    assert page.evaluate("() => scrollY") == 0
    assert asked == [1]


def test_on_a_phone_a_long_name_is_shortened_but_not_the_message(fake, fake_page, expect) -> None:
    page = fake_page(width=390, is_mobile=True)
    page.set_input_files("#files", files(f"{'x' * 200}.jpg"))
    message = ": R found 2, " + fake.names[1] + " found 2."
    expect(page.locator("#status")).to_have_text(re.compile(re.escape(message) + "$"))
    ends = page.evaluate("""() => {
      const range = document.createRange();
      const status = document.getElementById("status");
      range.selectNodeContents(status.lastChild);
      return [range.getBoundingClientRect().right, status.getBoundingClientRect().right, range.toString()];
    }""")
    assert ends[0] <= ends[1] + 0.5
    assert ends[2] == message
    assert page.locator("#status bdi").bounding_box()["width"] > 20


def test_the_page_works_with_the_keyboard(fake_page, expect) -> None:
    page = fake_page()
    page.set_input_files("#files", files("a.jpg", "b.jpg", "c.jpg"))
    expect(page.locator(".image")).to_have_count(3)
    page.evaluate("() => document.activeElement.blur()")
    order = []
    for _ in range(7):
        page.keyboard.press("Tab")
        order.append(page.evaluate(FOCUSED))
        target = page.locator(".drop") if order[-1] == "files" else page.locator(":focus")
        assert target.evaluate("element => getComputedStyle(element).outlineStyle") == "solid"
        assert target.evaluate("element => parseFloat(getComputedStyle(element).outlineWidth)") >= 2
    gates = 'Effect of the gates of <b>SE_R & "co"</b>'
    assert order == ["Skip to the content", "files", "score", "Remove c.jpg", "As a table", gates, "As a table"]
    with page.expect_file_chooser():
        page.locator("#files").focus()
        page.keyboard.press("Enter")
    page.locator("summary").first.press("Enter")
    assert page.locator("table").first.is_visible()
    page.get_by_role("button", name="Effect of the gates of").nth(1).press("Enter")
    expect(page.locator(".map:focus img")).to_have_count(1)
    # The focus moves to the next image, to the previous one after the last, and then to the file input.
    page.get_by_label("Remove b.jpg").press("Enter")
    assert page.evaluate(FOCUSED) == "Remove a.jpg"
    page.keyboard.press("Space")
    assert page.evaluate(FOCUSED) == "Remove c.jpg"
    box, bar = page.locator(":focus").bounding_box(), page.locator(".score").bounding_box()
    assert box["y"] >= bar["y"] + bar["height"]
    page.keyboard.press("Enter")
    assert page.evaluate(FOCUSED) == "files"
    expect(page.locator("#status")).to_have_text("c.jpg was removed.")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_reports_no_violations(fake_page, expect, scheme) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install axe-playwright-python")
    page = fake_page(scheme=scheme, width=390)

    def check():
        violations = axe.Axe().run(page).response["violations"]
        assert [(item["id"], [node["html"][:200] for node in item["nodes"]]) for item in violations] == []

    check()
    page.set_input_files("#files", [*files("a.jpg"), *files("b.jpg", content=b"no image")])
    expect(page.locator("#errors p")).to_have_count(1)
    page.get_by_role("button", name="Effect of the gates of").click()
    expect(page.locator(".map img")).to_have_count(1)
    for summary in page.locator("summary").all():
        summary.click()
    check()


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_elements_fit_the_width_and_are_large_enough(fake_page, expect, width) -> None:
    phone = width < 768
    page = fake_page(width=width, is_mobile=phone, has_touch=phone)
    name = "x" * 200
    page.set_input_files("#files", [*files(f"{name}.jpg", "a.jpg"), *files(f"{name}.txt", content=b"no image")])
    expect(page.locator("#errors p")).to_have_count(1)
    for summary in page.locator("summary").all():
        summary.click()
    page.get_by_role("button", name="Effect of the gates of").first.click()
    expect(page.locator(".map img")).to_have_count(1)
    assert page.evaluate("() => document.documentElement.scrollWidth") == width
    assert page.evaluate("() => document.body.scrollWidth") <= width
    assert min(page.evaluate(TARGETS)) >= (44 if phone else 24)
    for locator in page.locator("h2, button, figure, table, .score output").all():
        box = locator.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width


def test_on_a_phone_the_slider_works_by_touch_and_stays_visible(fake_page, expect) -> None:
    page = fake_page(width=390, is_mobile=True, has_touch=True, device_scale_factor=3)
    page.set_input_files("#files", files(*(f"{number}.jpg" for number in range(4))))
    expect(page.locator(".image")).to_have_count(4)
    page.locator(".image").last.scroll_into_view_if_needed()
    assert page.evaluate("() => scrollY") > 900
    slider = page.locator("#score")
    box = slider.bounding_box()
    assert 0 <= box["y"] < 60
    page.touchscreen.tap(box["x"] + 0.75 * box["width"], box["y"] + box["height"] / 2)
    assert 0.7 < float(slider.input_value()) < 0.8
    assert page.locator(".box:visible").count() == 2 * 4
    assert page.locator(".count").last.text_content() == "1 boxcup 1"
    # The bar is small.
    assert page.locator(".score").bounding_box()["height"] < 110


def test_hostile_names_are_shown_as_text(fake_page, expect) -> None:
    long = "w" * 200
    page = fake_page((HOSTILE, 0.9, [10, 20, 60, 70]), (long, 0.8, [80, 2, 99, 50]), ("__proto__", 0.7, [1, 1, 9, 9]))
    names = [TURNED, f"{long}.jpg"]
    page.set_input_files("#files", [*files(*names), *files(f"bad {TURNED}", content=b"no image")])
    expect(page.locator("#errors p")).to_have_text(f"bad {TURNED}: this is not an image")
    assert page.locator(".image h2 bdi").all_text_contents() == names[::-1]
    assert page.locator("[onerror], script:not([src]), b").count() == 0
    assert page.locator(".image img").count() == 4
    assert page.locator(".image").last.get_attribute("aria-label") == TURNED
    assert page.get_by_role("button", name=f"Remove {TURNED}", exact=True).count() == 1
    figure = page.locator("figure").first
    assert figure.locator(".count li").all_text_contents() == ["3 boxes", f"{HOSTILE} 1", "__proto__ 1", f"{long} 1"]
    assert figure.locator(".label").last.text_content() == f"{HOSTILE} 0.90"
    for panel in page.evaluate(LAYOUT):
        for label in panel["labels"]:
            assert label["place"][0] >= -0.5
            assert label["place"][2] <= panel["image"][0] + 0.5
    assert page.evaluate("() => document.documentElement.scrollWidth") == 1280
