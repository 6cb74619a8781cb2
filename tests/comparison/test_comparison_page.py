import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from se_detection.comparison.compare_runs import compare_runs
from se_detection.comparison.comparison_page import write_html_report
from se_detection.comparison.disagreement_images import draw_disagreements
from se_detection.comparison.disagreements import find_disagreements
from se_detection.comparison.error_types import ERRORS
from se_detection.comparison.result import ROLES
from se_detection.comparison.side_by_side import confident
from se_detection.data.coco_files import load_annotations
from se_detection.runs.evaluated_run import read_run

from ..helpers import raises

HOSTILE = '<img src=x onerror="alert(1)"> & $x_1$'
METRICS = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]


class Reader(HTMLParser):
    """Reads a page: tables by caption, as rows of cells; tags with attributes; the text of the heading."""

    def __init__(self, html):
        super().__init__()
        self.tables, self.tags, self.heading = {}, [], ""
        self.caption, self.target, self.rows = "", None, []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag in ("caption", "h1"):
            self.target = tag
        elif tag == "table":
            self.rows = []
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td"):
            self.rows[-1].append({"text": "", "values": [], "shown": []})
            self.target = "cell"
        elif tag == "data":
            self.rows[-1][-1]["values"].append(float(dict(attributes)["value"])) if self.target == "cell" else None

    def handle_endtag(self, tag):
        if tag == "caption":
            self.tables[self.caption] = self.rows
            self.caption = ""
        if tag in ("caption", "h1", "th", "td"):
            self.target = None

    def handle_data(self, data):
        if self.target == "caption":
            self.caption += data
        elif self.target == "h1":
            self.heading += data
        elif self.target == "cell":
            self.rows[-1][-1]["text"] += " " + " ".join(data.split())

    def table(self, caption):
        """The rows, by their first cell, of the table whose caption starts with `caption`."""
        (rows,) = (rows for name, rows in self.tables.items() if name.startswith(caption))
        return {" ".join(row[0]["text"].split()): row[1:] for row in rows[1:]}


def shown(cell):
    """The visible numbers of a cell."""
    return [float(text.replace("−", "-").replace(",", "")) for text in re.findall(r"[+−]?\d[\d,]*\.?\d*", cell["text"])]


def spread_over_classes(runs, names):
    """Spreads the objects and detections of two runs over other classes."""
    annotations = runs[0].parents[1] / "val.json"
    content = json.loads(annotations.read_text())
    content["categories"] = [{"id": number, "name": name} for number, name in enumerate(names)]
    for number, item in enumerate(content["annotations"]):
        item["category_id"] = number % len(names)
    annotations.write_text(json.dumps(content))
    for run in runs:
        results = run / "inference" / "results.json"
        results.write_text(json.dumps({**json.loads(results.read_text()), "categories": names}))
        detections = run / "inference" / "coco_instances_results.json"
        found = json.loads(detections.read_text())
        for item in found:
            near = [other for other in content["annotations"] if other["image_id"] == item["image_id"]]
            best = min(near, key=lambda other: abs(np.subtract(other["bbox"], item["bbox"])).sum())
            item["category_id"] = best["category_id"]
        detections.write_text(json.dumps(found))


def write_page(runs, path, **options):
    """Writes a page, and returns its path and the content of comparison.json."""
    comparison = compare_runs(*runs, n_bootstrap=100, **options)
    write_html_report(comparison, path, options.get("annotations"), "se-det compare --html report.html")
    return path, json.loads(json.dumps(comparison.to_dict()))


@pytest.fixture(scope="module")
def standard(tmp_path_factory, make_runs, make_annotations):
    """The page of two runs with logs and excitations, and the content of comparison.json; not to be changed."""
    folder = tmp_path_factory.mktemp("standard")
    runs = make_runs(folder, make_annotations())
    for shift, run in enumerate(runs):
        lines = [{"iteration": 20 * n + 19, "total_loss": 2 / (n + 1) + 0.1 * shift} for n in range(10)]
        lines += [{"iteration": 100 * n, "bbox/AP": 20.0 * n + shift} for n in (1, 2)]
        (run / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
        record = run / "run.json"
        command = f"tools/train_net.py --config-file faster_rcnn_{run.name}.yaml SOLVER.STEPS '(4, 5)'"
        added = {"command": command, "device": "cpu"}
        if shift:
            added["resumed"] = [{"iteration": 75, "command": f"{command} SOLVER.MAX_ITER 40000", "processes": 1}]
        record.write_text(json.dumps({**json.loads(record.read_text()), **added}))
    plots = runs[1] / "excitations" / "plots"
    plots.mkdir(parents=True)
    Image.new("RGB", (30, 20), (200, 0, 0)).save(plots / "SE_5_1.png")
    (plots / "blocks.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 90 50"/>')
    (plots.parent / "excitations.json").write_text("{}")
    return write_page(runs, folder / "report.html")


def numbers(*cells):
    return [cell["values"][0] for cell in cells]


@pytest.mark.slow
def test_the_page_has_the_numbers_of_the_json(standard) -> None:
    path, content = standard
    page = Reader(path.read_text())
    assert " ".join(page.heading.split()) == content["verdict"]

    scores = page.table("COCO's metrics")
    assert list(scores) == ["AP@0.5" if name == "AP50" else name for name in METRICS]
    for name, cells in zip(METRICS, scores.values(), strict=True):
        difference = [content["difference"][name][key] for key in ("value", "low", "high")]
        assert numbers(*cells[:2]) == [content[role][name] for role in ROLES]
        assert cells[2]["values"] == [value for value in difference if value is not None]
        for cell in cells:
            assert shown(cell) == [pytest.approx(value, abs=0.00501) for value in cell["values"]]

    cards = path.read_text().split('<dl class="key-figures">')[1].split("</dl>")[0].split("<dt>")[1:3]
    for card, name in zip(cards, ("AP", "AP50"), strict=True):
        values = [float(value) for value in re.findall(r'<data value="([^"]+)"', card)]
        assert values == [*(content[role][name] for role in ROLES), *content["difference"][name].values()]

    classes = page.table("AP of each class")
    assert {name.split(" in ")[0] for name in classes} == set(content["per_class"])
    for name, cells in classes.items():
        item = content["per_class"][name.split(" in ")[0]]
        assert name.endswith(f"in {item['images']} images")
        assert cells[0]["values"] == [item[role] for role in ROLES if item[role] is not None]
        assert cells[1]["values"] == [value for value in item["difference"].values() if value is not None]

    details = content["details"]
    for caption, curve in (("AP by IoU", details["ap_by_iou"]), ("AP by the square", details["ap_by_size"])):
        for place, cells in enumerate(page.table(caption).values()):
            assert numbers(*cells) == [*(curve[role][place] for role in ROLES), curve["difference"][place]["value"]]
    errors = page.table("Gain in AP@0.5")
    for name in ERRORS:
        types = [details["error_types"][role][name] for role in ROLES]
        assert numbers(*errors[name]) == [item[key] for key in ("dap", "count") for item in types]
    curves = details["precision_recall"]
    assert numbers(*page.table("Precision at every tenth")["50"]) == [
        curves[iou][role][50] for iou in ("0.50", "0.75") for role in ROLES
    ]
    both = [details["calibration"][role] for role in ROLES]
    assert numbers(*page.table("Precision at IoU 0.5")["0.9–1.0"]) == [
        item[key][9] for key in ("precision", "count") for item in both
    ]


def test_the_recipe_and_the_commands_are_shown(standard) -> None:
    text = standard[0].read_text()
    page = Reader(text)
    differs = page.table("Differences between the configs: backbone and weights")
    assert [cell["text"].strip() for cell in differs["MODEL.BACKBONE.NAME"]] == [
        "build_resnet_fpn_backbone",
        "build_se_resnet_fpn_backbone",
    ]
    recipe = page.table("The recipe")
    assert [cell["text"].strip() for cell in recipe["iterations"]] == ["40000", "40000"]
    assert [cell["text"].strip() for cell in recipe["training data"]] == ["train_cups", "train_cups"]
    assert [cell["text"].strip() for cell in recipe["evaluated checkpoint"]] == [
        "model_final.pth (iteration 39999)"
    ] * 2
    for name in ("plain", "se"):
        assert f"--config-file faster_rcnn_{name}.yaml SOLVER.STEPS &#39;(4, 5)&#39;" in text
    captions = re.findall("<figcaption>(Run .*)</figcaption>", text)
    assert captions == ["Run plain, started", "Run se, started", "Run se, resumed at iteration 75"]
    assert "SOLVER.STEPS &#39;(4, 5)&#39; SOLVER.MAX_ITER 40000" in text


def decoded(tags):
    """The photographs and plots of a page, with the attributes of their tags."""
    found = []
    for tag, attributes in tags:
        if tag == "img" and attributes["src"].startswith("data:image/webp;base64,"):
            content = base64.b64decode(attributes["src"].split(",")[1], validate=True)
            found.append((Image.open(io.BytesIO(content)).convert("RGB"), attributes))
    return found


def test_images_are_embedded_with_boxes_and_counts(standard) -> None:
    tags = Reader(standard[0].read_text()).tags
    *images, plot = decoded(tags)
    assert len(images) == 3 * 6
    for image, attributes in images:
        assert image.size == (int(attributes["width"]), int(attributes["height"])) == (640, 480)
        # Boxes on an image of one colour.
        assert np.asarray(image).std() > 5
    assert all(re.fullmatch(r"\d+\.png, ground truth: .*\d (cup|plate).*\.", a["alt"]) for _, a in images[::3])
    counts = [re.findall(r"(\d+) correct, (\d+) false, (\d+) missed", attributes["alt"]) for _, attributes in images]
    mistakes = [[int(false) + int(missed) for _, false, missed in found] for found in counts]
    leads = [first[0] - second[0] for first, second in zip(mistakes[1::3], mistakes[2::3], strict=True)]
    # The candidate is much better: its largest lead comes first, and there is no image without a lead.
    assert leads[0] == max(leads) > 0
    assert 0 not in leads
    # The plots of the excitations come last.
    last = [attributes for tag, attributes in tags if tag == "img"][-2:]
    assert [attributes["alt"] for attributes in last] == ["se: blocks", "se: SE_5_1"]
    assert last[0]["src"].startswith("data:image/svg+xml")
    assert plot[0].getpixel((5, 5)) == (200, 0, 0)


@pytest.mark.slow
@pytest.mark.usefixtures("few_charts")
def test_results_files_have_a_page_with_fewer_sections(runs, tmp_path) -> None:
    files = []
    for run in runs:
        files.append(tmp_path / f"{run.name}.json")
        shutil.copy(run / "inference" / "coco_instances_results.json", files[-1])
    text = write_page(files, tmp_path / "report.html", annotations=tmp_path / "val.json")[0].read_text()
    for absent in ("Recipe", "Excitations", "<h3>Training", "GFLOPs", "Parameters", "<img"):
        assert absent not in text
    assert "the image folder is not available" in text
    # The comparison's note becomes a warning.
    assert "Without a saved config, the recipe was not checked: plain, se" in text
    # With a run folder, its annotations are used.
    assert "<img" in write_page((files[0], runs[1]), tmp_path / "report.html")[0].read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("few_charts")
def test_each_of_several_runs_is_shown(seeds, tmp_path) -> None:
    path, content = write_page(seeds, tmp_path / "report.html")
    spreads = [content["runs"][role]["AP"] for role in ROLES]
    assert numbers(*Reader(path.read_text()).table("Each run")["AP"]) == [
        *(value for spread in spreads for value in spread["values"]),
        *(spread["std"] for spread in spreads),
    ]
    assert "means of 2 runs of the baseline and 2 of the candidate" in path.read_text()


@pytest.mark.slow
def test_a_comparison_without_objects_makes_a_page(runs, tmp_path) -> None:
    for run in runs:
        (run / "inference" / "coco_instances_results.json").write_text("[]")
    annotations = tmp_path / "val.json"
    annotations.write_text(json.dumps({**json.loads(annotations.read_text()), "annotations": []}))
    path, content = write_page(runs, tmp_path / "report.html")
    page = Reader(path.read_text())
    assert " ".join(page.heading.split()) == content["verdict"]
    texts = {cell["text"].strip() for cells in page.table("COCO's metrics").values() for cell in cells}
    assert texts == {"–", "–  no interval"}


def test_images_outside_the_image_folder_are_refused(runs, tmp_path, annotations) -> None:
    Image.new("RGB", (80, 60)).save(tmp_path / "secret.png")
    pair = [read_run(run) for run in runs]
    for name in ("../secret.png", str(tmp_path / "secret.png"), "sub/../../secret.png", "a\0.png"):
        coco = load_annotations({**annotations, "images": [{**i, "file_name": name} for i in annotations["images"]]})
        disagreements = find_disagreements(coco, *(confident(run, coco) for run in pair))
        with raises("data.bad_entry", "file_name"):
            draw_disagreements(disagreements, coco, pair)


# In a browser.


@pytest.fixture
def visit(chromium):
    """A function that opens a file, and `troubles`: a list of messages, errors and requests of the pages."""
    troubles = []
    contexts = []

    def visit(path, width=1280, scheme="light"):
        context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("dialog", lambda dialog: troubles.append(dialog.message))
        page.on("request", lambda request: troubles.append(request.url[:100]) if is_fetched(request, path) else None)
        page.goto(path.as_uri())
        return page

    def is_fetched(request, path):
        return request.url.split("#")[0] != path.as_uri() and not request.url.startswith("data:")

    visit.troubles = troubles
    yield visit
    for context in contexts:
        context.close()


TEXT_SIZES = """() => {
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.data.trim() || !element.checkVisibility() || element.closest('.visually-hidden')) continue;
    const scale = element.ownerSVGElement ? element.getScreenCTM().a || element.getScreenCTM().b : 1;
    found.push([parseFloat(getComputedStyle(element).fontSize) * Math.abs(scale), node.data.trim()]);
  }
  return found;
}"""
OUTSIDE = """() => [...document.querySelectorAll('img, svg, table, pre')].filter(element => {
  if (!element.checkVisibility() || element.closest('.wide')) return false;
  const own = element.getBoundingClientRect(), parent = element.parentElement.getBoundingClientRect();
  return own.width < 8 || own.left < parent.left - 1 || own.right > parent.right + 1;
}).map(element => element.outerHTML.slice(0, 200))"""
SHIFT = """() => new Promise(resolve => {
  new PerformanceObserver(list => resolve(list.getEntries().reduce((sum, entry) => sum + entry.value, 0)))
    .observe({type: 'layout-shift', buffered: true});
  setTimeout(() => resolve(0), 300);
})"""
OPEN_ALL = "() => document.querySelectorAll('details').forEach(item => { item.open = true; })"


@pytest.mark.slow
def test_many_classes_fit_phones_and_screens_in_light_and_dark(runs, tmp_path, visit) -> None:
    spread_over_classes(runs, [f"class {number}" for number in range(40)])
    path = write_page(runs, tmp_path / "report.html")[0]
    grounds = set()
    for scheme, width in (("light", 390), ("dark", 1280)):
        page = visit(path, width, scheme)
        # "Good" in https://web.dev/articles/cls: a slow machine draws a table before its last rows arrive.
        assert page.evaluate(SHIFT) < 0.1
        for fold in (None, OPEN_ALL):
            if fold:
                page.evaluate(fold)
            assert page.evaluate("() => document.documentElement.scrollWidth") == width
            assert page.evaluate(OUTSIDE) == []
            sizes = page.evaluate(TEXT_SIZES)
            assert len(sizes) > 200
            assert min(sizes)[0] >= 11.99, min(sizes)
        assert page.evaluate("() => [...document.images].every(image => image.complete && image.naturalWidth > 0)")
        grounds.add(page.evaluate("() => getComputedStyle(document.body).backgroundColor"))
    assert len(grounds) == 2
    assert page.locator("table:has(td.bars) tbody tr").count() == 40
    # All but twenty are folded.
    assert page.locator("details table:has(td.bars) tbody tr").count() == 20
    assert visit.troubles == []


@pytest.mark.slow
def test_the_page_is_usable_by_keyboard_and_in_print(standard, visit) -> None:
    path, content = standard
    box = visit(path, 390).locator("h1").bounding_box()
    assert box["y"] + box["height"] < 450
    page = visit(path, scheme="dark")
    assert page.locator("h1").text_content().split() == content["verdict"].split()
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.className") == "skip"
    assert page.locator(".skip").bounding_box()["x"] >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("() => document.activeElement.id") == "main"
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.hash") == "#scores"
    assert page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.locator("summary").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("details[open] table").first.is_visible()
    # In light colours.
    page.emulate_media(media="print", color_scheme="dark")
    ink = page.evaluate("() => getComputedStyle(document.body).color")
    assert sum(map(int, re.findall(r"\d+", ink))) < 200
    assert visit.troubles == []


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(standard, visit, scheme) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install axe-playwright-python")
    page = visit(standard[0], scheme=scheme)
    page.evaluate(OPEN_ALL)
    violations = axe.Axe().run(page).response["violations"]
    assert [(item["id"], [node["html"][:200] for node in item["nodes"]]) for item in violations] == []


@pytest.mark.slow
def test_hostile_names_are_escaped(runs, tmp_path, visit) -> None:
    spread_over_classes(runs, [HOSTILE, "</style><script>alert(2)</script>", "plate"])
    annotations = tmp_path / "val.json"
    content = json.loads(annotations.read_text())
    for image in content["images"]:
        name = f'"><script>alert({image["id"]})<&script>.png'
        (tmp_path / "images" / image["file_name"]).rename(tmp_path / "images" / name)
        image["file_name"] = name
    annotations.write_text(json.dumps(content))
    renamed = [run.rename(run.with_name(f"{run.name} <b onclick=alert(3)>&amp;")) for run in runs]
    page = visit(write_page(renamed, tmp_path / "report.html")[0])
    assert page.locator("script, b, [onerror], [onclick]").count() == 0
    assert page.locator("img").count() == 18
    assert page.get_by_text(HOSTILE, exact=False).count() >= 1
    assert page.get_by_text("plain <b onclick=alert(3)>&amp;", exact=False).count() >= 1
    assert '"><script>alert(' in page.locator("img").first.get_attribute("alt")
    assert visit.troubles == []
