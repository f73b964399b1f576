"use strict";
const byId = id => document.getElementById(id);

// --- the tables: sort by a column, show what a row is made of, filter

const tables = [...document.querySelectorAll(".results")];
const bodies = tables.flatMap(table => [...table.tBodies]);

// Words by the alphabet, numbers among them by their value: keep_ratio 0.25 before keep_ratio 0.5, p_logit -2 before -1.
const NUMBER = /(-?\d+(?:\.\d+)?(?:e[-+]?\d+)?)/i;

function compare(a, b) {
  if (a === "" || b === "") return (a === "") - (b === "");
  const [left, right] = [a.split(NUMBER), b.split(NUMBER)];
  for (let index = 0; index < Math.min(left.length, right.length); index++) {
    const [one, other] = [left[index], right[index]];
    const order = index % 2 ? Number(one) - Number(other) : one.localeCompare(other);
    if (order) return order;
  }
  return left.length - right.length;
}

tables.forEach(table => {
  const heads = [...table.tHead.rows[0].cells].filter(head => head.querySelector("button"));
  heads.forEach((head, index) => head.firstChild.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    heads.forEach(each => each.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = body => body.rows[0].cells[index].dataset.key;
    // Empty cells stay last in both directions.
    const sign = (a, b) => (down && a !== "" && b !== "" ? -1 : 1);
    [...table.tBodies].sort((a, b) => sign(key(a), key(b)) * compare(key(a), key(b))).forEach(body => table.append(body));
  }));
});

bodies.forEach(body => {
  const button = body.querySelector("button");
  button.addEventListener("click", () => {
    const hidden = body.rows[1].hidden = !body.rows[1].hidden;
    button.textContent = hidden ? "show" : "hide";
    button.setAttribute("aria-expanded", String(!hidden));
  });
});

function filter() {
  const words = byId("filter").value.toLowerCase().split(/\s+/);
  bodies.forEach(body => {
    const text = body.rows[0].textContent.toLowerCase();
    body.hidden = !words.every(word => text.includes(word));
  });
  const shown = bodies.filter(body => !body.hidden).length;
  byId("count").textContent = `${shown} of ${bodies.length} shown`;
  drawCharts();
}

// --- the charts: scores against a cost, with what the table says of a point under the pointer

const charts = JSON.parse(byId("charts").textContent);
const AREA = {left: 60, right: 880, top: 15, bottom: 330};

function element(name, attributes, parent, text = "") {
  const made = document.createElementNS(parent.namespaceURI, name);
  Object.entries(attributes).forEach(([key, value]) => made.setAttribute(key, value));
  made.textContent = text;
  parent.append(made);
  return made;
}

// About five round numbers from low to high.
function ticks(low, high) {
  const rough = (high - low) / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find(factor => factor * power >= rough);
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({length: Math.floor(high / step + 1e-9) - first + 1}, (_, index) => Number(((first + index) * step).toPrecision(6)));
}

// The better half of the points, which lie close together where some are far below.
function heap(points) {
  const scores = points.map(point => point.score).sort((a, b) => a - b);
  return points.filter(point => point.score >= scores[Math.floor(scores.length / 2)]);
}

function drawChart(svg, chart, cost) {
  svg.replaceChildren();
  const visible = chart.points.filter(point => !byId(point.row).hidden && cost in point.costs);
  if (!visible.length) {
    element("text", {x: 470, y: 180, "text-anchor": "middle"}, svg, "nothing to show: not measured, or filtered out");
    return;
  }
  const near = byId("zoom").checked ? heap(visible) : visible;
  const [scores, costs] = [near.map(point => point.score), near.map(point => point.costs[cost])];
  const [low, high] = [Math.min(...scores), Math.max(...scores)];
  const margin = 0.06 * (high - low) || 1;
  const space = 0.05 * (Math.max(...costs) - Math.min(...costs)) || 0.05;
  const [begin, widest] = [near === visible ? 0 : Math.max(0, Math.min(...costs) - space), Math.max(...costs) + space];
  const across = value => AREA.left + (value - begin) / (widest - begin) * (AREA.right - AREA.left);
  const up = value => AREA.bottom - (value - low + margin) / (high - low + 2 * margin) * (AREA.bottom - AREA.top);
  ticks(begin, widest).forEach(tick => {
    element("line", {x1: across(tick), x2: across(tick), y1: AREA.top, y2: AREA.bottom}, svg);
    element("text", {x: across(tick), y: AREA.bottom + 18, "text-anchor": "middle"}, svg, tick);
  });
  ticks(low - margin, high + margin).forEach(tick => {
    element("line", {x1: AREA.left, x2: AREA.right, y1: up(tick), y2: up(tick)}, svg);
    element("text", {x: AREA.left - 6, y: up(tick) + 4, "text-anchor": "end"}, svg, tick);
  });
  element("text", {x: 470, y: AREA.bottom + 42, "text-anchor": "middle"}, svg, byId("cost").selectedOptions[0].textContent);
  element("text", {x: 0, y: 0, transform: "translate(14 172) rotate(-90)", "text-anchor": "middle"}, svg, chart.metric);
  const path = points => points.map(point => `${across(point.costs[cost])},${up(point.score)}`).join(" ");
  const shown = element("svg", {x: AREA.left - 8, y: 0, width: AREA.right - AREA.left + 16, height: AREA.bottom + 8,
    viewBox: `${AREA.left - 8} 0 ${AREA.right - AREA.left + 16} ${AREA.bottom + 8}`}, svg);  // what lies outside is cut off
  const byCost = [...visible].sort((a, b) => a.costs[cost] - b.costs[cost]);
  chart.curves.forEach((curve, index) => {
    const own = byCost.filter(point => point.curve === index);
    element("polyline", {points: path(own), stroke: curve.colour, class: "curve"}, shown);
  });
  element("polyline", {points: path(byCost.filter(point => point.front.includes(cost))), class: "front"}, shown);
  near.forEach(point => {
    const colour = chart.curves[point.curve].colour;
    const [cx, cy] = [across(point.costs[cost]), up(point.score)];
    const mark = element("circle", {cx, cy, r: 6, fill: colour, tabindex: 0, "data-row": point.row}, shown);
    ["mouseenter", "focus"].forEach(kind => mark.addEventListener(kind, () => showHint(point, mark)));
    ["mouseleave", "blur"].forEach(kind => mark.addEventListener(kind, () => showHint(null)));
  });
}

// What the table says of a point, beside its mark, on the side that has room.
function showHint(point, mark) {
  bodies.forEach(body => body.classList.toggle("highlighted", Boolean(point) && body.id === point.row));
  const hint = byId("hint");
  hint.hidden = !point;
  if (!point) return;
  hint.replaceChildren(...point.lines.map((line, index) => {
    const made = document.createElement(index ? "div" : "strong");
    made.textContent = line;
    return made;
  }));
  const box = mark.getBoundingClientRect();
  const left = box.left > innerWidth / 2 ? box.left - hint.offsetWidth - 10 : box.right + 10;
  hint.style.left = `${left + scrollX}px`;
  hint.style.top = `${box.top + scrollY - 10}px`;
}

function drawCharts() {
  document.querySelectorAll(".chart").forEach((svg, index) => drawChart(svg, charts[index], byId("cost").value));
}

byId("cost").addEventListener("change", drawCharts);
byId("zoom").addEventListener("change", drawCharts);
byId("filter").addEventListener("input", filter);
filter();

// --- tables that are wider than the page say so, and scroll by the keyboard, too

function markWide() {
  document.querySelectorAll(".wide").forEach(wide => {
    const scrolls = wide.scrollWidth > wide.clientWidth + 1;
    wide.tabIndex = scrolls ? 0 : -1;
    wide.previousElementSibling.hidden = !scrolls;
  });
}

addEventListener("resize", markWide);
markWide();

// --- the gallery: tokens disappear as the slider goes through the layers

function startGallery(galleries) {
  const [tiles, layer, model] = [byId("tiles"), byId("layer"), byId("model")];
  const pictures = {};

  function tile(caption, index) {
    const set = galleries.sets[model.value];
    const figure = document.createElement("figure");
    const text = document.createElement("figcaption");
    const verdict = document.createElement("div");
    const both = `${caption.label}, predicted ${caption.prediction}`;
    verdict.textContent = caption.right === null ? both : caption.right ? `✓ ${caption.label}` : `✗ ${both}`;
    verdict.className = caption.right === false ? "wrong" : "";
    text.append(verdict, document.createElement("div"));
    figure.append(set.words ? sentence(set, index) : document.createElement("canvas"), text);
    tiles.append(figure);
  }

  // Parts of a word are written together; a lifetime counts the boundary after the last layer, too.
  function sentence(set, index) {
    const text = document.createElement("p");
    text.className = "words";
    set.words[index].forEach((word, place) => {
      const span = document.createElement("span");
      span.textContent = word;
      span.title = `read by ${Math.min(set.lifetimes[index][place], set.layers)} of ${set.layers} layers`;
      text.append(place && !set.continues[index][place] ? " " : "", span);
    });
    return text;
  }

  // Words: the darker, the more layers read them; those that this layer does not read fade.
  function drawText(figure, lifetimes, boundary, layers) {
    [...figure.firstChild.children].forEach((span, index) => {
      span.style.background = `rgba(var(--mark), ${(0.6 * lifetimes[index] / (layers + 1)).toFixed(3)})`;
      span.style.opacity = lifetimes[index] > boundary ? 1 : 0.25;
    });
    return `${lifetimes.filter(lifetime => lifetime > boundary).length} of ${lifetimes.length} tokens`;
  }

  function drawImage(figure, set, index, boundary) {
    const [rows, columns] = set.grid;
    const picture = pictures[set.images[index]];
    const canvas = figure.firstChild;
    const scale = Math.max(1, Math.round(256 / picture.width));
    canvas.width = picture.width * scale;
    canvas.height = picture.height * scale;
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = scale < 4;
    context.drawImage(picture, 0, 0, canvas.width, canvas.height);
    context.fillStyle = `rgba(${set.faded[index].join()})`;
    const edge = (part, parts, side) => Math.round(part * side / parts);
    set.lifetimes[index].forEach((lifetime, patch) => {
      if (lifetime > boundary) return;
      const [y, x] = [Math.floor(patch / columns), patch % columns];
      const [left, top] = [edge(x, columns, canvas.width), edge(y, rows, canvas.height)];
      context.fillRect(left, top, edge(x + 1, columns, canvas.width) - left, edge(y + 1, rows, canvas.height) - top);
    });
    return `${set.lifetimes[index].filter(lifetime => lifetime > boundary).length} of ${rows * columns} patches`;
  }

  function draw() {
    const set = galleries.sets[model.value];
    const boundary = Number(layer.value) - 1;
    byId("place").textContent = boundary < 0 ? "all tokens"
      : boundary < set.layers ? `read by layer ${boundary + 1} of ${set.layers}` : "read by the classifier after the last layer";
    [...tiles.children].forEach((figure, index) => {
      figure.lastChild.lastChild.textContent = set.words
        ? drawText(figure, set.lifetimes[index], boundary, set.layers) : drawImage(figure, set, index, boundary);
    });
  }

  function show() {
    const set = galleries.sets[model.value];
    layer.max = set.layers + 1;
    tiles.replaceChildren();
    tiles.style.gridTemplateColumns = set.words ? "1fr" : "";
    set.captions.forEach(tile);
    draw();
  }

  Promise.all(Object.entries(galleries.images).map(([key, address]) => {
    pictures[key] = new Image();
    pictures[key].src = address;
    return pictures[key].decode();
  })).then(() => {
    layer.addEventListener("input", draw);
    model.addEventListener("change", show);
    show();
  });
}

if (byId("galleries")) startGallery(JSON.parse(byId("galleries").textContent));
