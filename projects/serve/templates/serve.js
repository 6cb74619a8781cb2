"use strict";
{
  const byId = id => document.getElementById(id);
  const settings = JSON.parse(byId("main").dataset.settings);
  const slider = byId("score");
  const status = byId("status");
  // Images are sent one after the other.
  let queue = Promise.resolve();
  let waiting = 0;

  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };

  // <bdi>: writing-direction marks in a file name do not affect the rest.
  const showMessage = (target, name, message) => target.replaceChildren(make("bdi", {}, name), message);

  const fail = (name, message) => {
    const line = make("p");
    showMessage(line, name, message);
    byId("errors").append(line);
  };

  const send = async (path, file) => {
    let response;
    try {
      const headers = {"Content-Type": "application/octet-stream"};
      response = await fetch(path, {method: "POST", headers, body: file});
    } catch {
      throw new Error("it could not be sent; check that it is a file and that the server is running");
    }
    const content = await response.json().catch(() => ({}));
    if (response.ok) return content;
    throw new Error(content.error ?? `the server failed (${response.status}); see its terminal`);
  };

  // Black or white, by contrast (WCAG's relative luminance).
  const textColour = colour => {
    const parts = colour.match(/\d+/g).map(part => part / 255);
    const linear = parts.map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    const light = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
    return (light + 0.05) ** 2 > 1.05 * 0.05 ? "#000" : "#fff";
  };

  const drawBox = (detection, answer) => {
    const [left, top, right, bottom] = detection.box;
    const colour = settings.colours[detection.class];
    const text = make("span", {}, `${detection.class} ${detection.score.toFixed(2)}`);
    Object.assign(text.style, {background: colour, color: textColour(colour)});
    const percent = (length, whole) => `${100 * length / whole}%`;
    const label = make("div", {className: "label"}, text);
    label.style.setProperty("--left", percent(left, answer.width));
    label.style.setProperty("--top", percent(top, answer.height));
    const box = make("div", {className: "box"});
    Object.assign(box.style, {
      left: percent(left, answer.width), width: percent(right - left, answer.width),
      top: percent(top, answer.height), height: percent(bottom - top, answer.height), borderColor: colour,
    });
    return make("div", {}, box, label);
  };

  const drawTable = (boxes, name) => {
    const columns = ["class", "score", "left", "top", "right", "bottom"];
    const head = make("tr", {}, ...columns.map(text => make("th", {scope: "col"}, text)));
    const rows = boxes.map(({class: kind, score, box}) => make(
      "tr", {}, make("th", {scope: "row"}, kind), make("td", {}, score.toFixed(3)),
      ...box.map(place => make("td", {}, place.toFixed(1))),
    ));
    const caption = make("caption", {}, `Detections of ${name}, in pixels`);
    const table = make("table", {}, caption, make("thead", {}, head), make("tbody", {}, ...rows));
    return {rows, details: make("details", {}, make("summary", {}, "As a table"), table)};
  };

  const gatesButton = (number, file, map) => {
    const {name} = settings.runs[number];
    const button = make("button", {type: "button"}, `Effect of the gates of ${name}`);
    button.addEventListener("click", async () => {
      // Not `disabled`, which would remove the focus.
      if (button.ariaDisabled) return;
      button.ariaDisabled = "true";
      map.textContent = `Computing the effect of the gates of ${name} …`;
      try {
        const {image: drawing, images} = await send(`/gates/${number}`, file);
        const text = `Where ${name}’s gates make features stronger (red) or weaker (blue) than their mean over ${images} images`;
        // The text above describes it.
        const image = make("img", {src: drawing, alt: ""});
        map.replaceChildren(text, make("div", {className: "wide", tabIndex: 0, role: "region", ariaLabel: `Gates of ${name}`}, image));
        const focused = [button, document.body].includes(document.activeElement);
        button.remove();
        // The focus moves only if it has not moved elsewhere.
        if (focused) map.focus({preventScroll: true});
      } catch (error) {
        button.ariaDisabled = null;
        map.textContent = error.message;
      }
    });
    return button;
  };

  const drawRun = (answer, number, file) => {
    const {boxes, seconds} = answer.runs[number];
    const {name, gates} = settings.runs[number];
    const image = make("img", {src: answer.image, width: answer.width, height: answer.height, alt: ""});
    // The highest-scoring box is drawn last, above the others.
    const drawn = boxes.map(detection => drawBox(detection, answer));
    const frame = make("div", {className: "frame"}, image, ...drawn.toReversed());
    frame.style.setProperty("--shape", answer.width / answer.height);
    const title = make("strong", {}, name);
    const count = make("ul", {className: "count"});
    const table = drawTable(boxes, name);
    const map = make("div", {className: "map", role: "status", tabIndex: -1});
    const below = make("div", {}, ...gates ? [gatesButton(number, file, map)] : [], table.details);
    const caption = make("figcaption", {}, title, `, ${(1000 * seconds).toFixed(0)} ms`, count);
    const figure = make("figure", {}, caption, frame, below);
    figure.map = map;
    figure.show = least => {
      const counts = new Map();
      boxes.forEach((detection, place) => {
        const hidden = detection.score < least;
        drawn[place].hidden = table.rows[place].hidden = hidden;
        if (!hidden) counts.set(detection.class, (counts.get(detection.class) ?? 0) + 1);
      });
      const items = [...counts].sort().map(([kind, many]) => {
        const swatch = make("span", {className: "swatch"});
        swatch.style.background = settings.colours[kind];
        return make("li", {}, swatch, `${kind} ${many}`);
      });
      const total = boxes.filter(detection => detection.score >= least).length;
      count.replaceChildren(make("li", {className: "total"}, total === 1 ? "1 box" : `${total} boxes`), ...items);
      image.alt = `${file.name} with ${count.firstChild.textContent} of ${name}`;
      return total;
    };
    return figure;
  };

  const show = () => {
    const least = Number(slider.value);
    byId("least").value = least.toFixed(2);
    for (const figure of document.querySelectorAll(".runs > figure")) figure.show(least);
  };

  const addImage = (answer, file) => {
    const figures = answer.runs.map((_, number) => drawRun(answer, number, file));
    const remove = make("button", {type: "button", ariaLabel: `Remove ${file.name}`}, "Remove");
    const size = make("span", {}, `${answer.width} × ${answer.height}`);
    const top = make("div", {className: "top"}, make("h2", {}, make("bdi", {}, file.name), " ", size), remove);
    const runs = make("div", {className: figures.length > 1 ? "runs two" : "runs"}, ...figures);
    const section = make("section", {className: "image", ariaLabel: file.name}, top, runs, ...figures.map(figure => figure.map));
    remove.addEventListener("click", () => {
      const next = section.nextElementSibling ?? section.previousElementSibling;
      section.remove();
      (next?.querySelector("button") ?? byId("files")).focus();
      showMessage(status, file.name, " was removed.");
    });
    byId("images").prepend(section);
    const totals = figures.map(figure => figure.show(Number(slider.value)));
    const found = totals.map((total, number) => `${settings.runs[number].name} found ${total}`);
    showMessage(status, file.name, `: ${found.join(", ")}.`);
  };

  const detect = async file => {
    showMessage(status, file.name, waiting > 1 ? ` is being processed, ${waiting - 1} more waiting …` : " is being processed …");
    try {
      if (file.size > settings.mebibytes * 2 ** 20) {
        throw new Error(`the file is larger than ${settings.mebibytes} MiB; send a smaller one`);
      }
      addImage(await send("/detect", file), file);
    } catch (error) {
      showMessage(status, file.name, " was skipped.");
      fail(file.name, `: ${error.message}`);
    }
    waiting -= 1;
  };

  const add = files => {
    byId("errors").replaceChildren();
    const room = settings.max_images - waiting - byId("images").children.length;
    const taken = [...files].slice(0, Math.max(room, 0));
    const left = files.length - taken.length;
    if (left) fail(`${left} skipped`, `: the page has room for ${settings.max_images} images; remove some first`);
    waiting += taken.length;
    for (const file of taken) queue = queue.then(() => detect(file));
  };

  slider.addEventListener("input", show);
  // The browser may restore the slider after a reload.
  show();
  byId("files").addEventListener("change", event => {
    add(event.target.files);
    event.target.value = "";
  });
  const over = on => document.querySelector(".drop").classList.toggle("over", on);
  document.addEventListener("dragover", event => { event.preventDefault(); over(true); });
  document.addEventListener("dragleave", () => over(false));
  document.addEventListener("drop", event => {
    event.preventDefault();
    over(false);
    add(event.dataTransfer.files);
  });
}
