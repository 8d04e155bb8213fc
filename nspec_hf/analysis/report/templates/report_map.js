"use strict";
// The heat map of overlaps: side, layer, rows and order by the controls; pointer and arrow keys read cells.
const heatMap = { row: 0, column: 1, view: null, left: 0, cell: 0 };

const sitesOf = (side) => report.sites.filter((site) => site.side === side);
const chosenSide = () => document.querySelector("input[name=map-side]:checked").value;
const chosenSite = () => sitesOf(chosenSide())[Number(byId("map-layer").value)];

function mapRows(site) {
  const kind = byId("map-rows").value;
  if (kind === "languages") return overlapOfLanguages(site);
  const shown = report.pairs.map((_, i) => i).filter((i) => kind === "pairs" || report.pairs[i].group === kind);
  const matrix = overlapOfPairs(site);
  return {
    names: shown.map((i) => report.pairs[i].name),
    languages: shown.map((i) => keyLanguage(site, report.pairs[i])),
    values: shown.map((i) => shown.map((j) => matrix[i][j])),
  };
}

function mapOrder(site, rows) {
  const order = rows.names.map((_, i) => i);
  const wanted = byId("map-order").value;
  const leaves = report.trees[site.name] ? report.trees[site.name].leaves : [];
  const place = (code) => (leaves.includes(code) ? leaves.indexOf(code) : leaves.length);
  const family = (code) => familyOf(code) || "~";
  if (wanted === "tree") order.sort((a, b) => place(rows.languages[a]) - place(rows.languages[b]) || a - b);
  if (wanted === "family")
    order.sort((a, b) => family(rows.languages[a]).localeCompare(family(rows.languages[b])) || rows.names[a].localeCompare(rows.names[b]));
  return order;
}

function couplesOf(rows) {
  const found = { within: [], across: [] };
  rows.values.forEach((line, a) => line.forEach((value, b) => {
    if (b <= a || value === null || !familyOf(rows.languages[a]) || !familyOf(rows.languages[b])) return;
    found[familyOf(rows.languages[a]) === familyOf(rows.languages[b]) ? "within" : "across"].push(value);
  }));
  return found;
}

function mapRange(rowsOfSites) {
  let low = 1, high = 0;
  for (const rows of rowsOfSites) rows.values.forEach((line, a) => line.forEach((value, b) => {
    if (a !== b && value !== null) { low = Math.min(low, value); high = Math.max(high, value); }
  }));
  return low <= high ? [low, high] : [0, 1];
}

function drawMap() {
  const site = chosenSite(), canvas = byId("map");
  const rows = mapRows(site), order = mapOrder(site, rows), count = order.length;
  const [low, high] = mapRange(byId("map-shared").checked ? report.sites.map(mapRows) : [rows]);
  heatMap.view = { site, rows, order };
  heatMap.row = Math.min(heatMap.row, count - 1);
  heatMap.column = Math.min(heatMap.column, count - 1);
  const room = Math.min(canvas.parentElement.clientWidth, window.innerWidth > 820 ? canvas.parentElement.clientWidth - 320 : 9999, 820);
  const ruler = canvas.getContext("2d");
  ruler.font = "12px system-ui, sans-serif";
  let left = Math.min(110, 14 + Math.ceil(Math.max(...rows.names.map((name) => ruler.measureText(name).width))));
  if ((room - left) / count < 9) left = 12;
  const cell = Math.max(2, Math.min(34, Math.floor((room - left) / count)));
  Object.assign(heatMap, { left, cell });
  const size = left + cell * count, context = sharpen(canvas, size + 2, size + 2);
  context.fillStyle = themeColour("gap");
  context.fillRect(left, left, cell * count, cell * count);
  order.forEach((a, y) => order.forEach((b, x) => {
    const value = rows.values[a][b];
    if (a === b || value === null) return;
    context.fillStyle = shade(high > low ? (value - low) / (high - low) : 0.5);
    context.fillRect(left + x * cell, left + y * cell, cell - (cell > 8 ? 1 : 0), cell - (cell > 8 ? 1 : 0));
  }));
  drawMapMargins(context, rows, order, left, cell);
  context.strokeStyle = themeColour("ink");
  context.lineWidth = 2;
  context.strokeRect(left + heatMap.column * cell - 1, left + heatMap.row * cell - 1, cell + 1, cell + 1);
  describeMap(site, rows, low, high);
  readCell();
}

function drawMapMargins(context, rows, order, left, cell) {
  context.font = `${Math.min(12, cell)}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  context.textAlign = "right";
  order.forEach((row, place) => {
    context.fillStyle = colourOf(rows.languages[row]);
    context.fillRect(left - 6, left + place * cell, 4, cell);
    context.fillRect(left + place * cell, left - 6, cell, 4);
    if (left <= 12) return;
    context.fillStyle = themeColour("ink");
    context.fillText(rows.names[row], left - 10, left + (place + 0.5) * cell);
    context.save();
    context.translate(left + (place + 0.5) * cell, left - 10);
    context.rotate(Math.PI / 2);
    context.fillText(rows.names[row], 0, 0);
    context.restore();
  });
}

function describeMap(site, rows, low, high) {
  byId("map-layer-name").textContent = site.label;
  byId("map-layer").setAttribute("aria-valuetext", site.label);
  byId("map").setAttribute("aria-label", `Overlap at ${site.label}, ${rows.names.length} rows`);
  const bar = element("i");
  bar.style.background = `linear-gradient(90deg, ${CIVIDIS.map((_, i) => shade(i / (CIVIDIS.length - 1))).join(",")})`;
  byId("map-scale").replaceChildren(bar, element("div", {}, element("span", {}, fixed(low)), element("span", {}, "IoU"), element("span", {}, fixed(high))));
  const { within, across } = couplesOf(rows), mean = (list) => (list.length ? list.reduce((a, b) => a + b) / list.length : null);
  const facts = [["within families", fixed(mean(within))], ["across families", fixed(mean(across))]];
  const tested = report.agreement[site.name];
  if (byId("map-rows").value === "languages" && tested && tested.p_value !== null)
    facts.push(["permutation p", tested.p_value.toFixed(4)], ["relabelings", `${tested.relabelings} ${tested.exact ? "(all)" : "drawn"}`]);
  facts.push(["mean density", percent(site.sizes.reduce((a, b) => a + b, 0) / site.sizes.length / site.width)], ["neurons", String(site.width)]);
  byId("map-facts").replaceChildren(...facts.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
  if (byId("map-table").open) fillMapTable();
}

function readCell() {
  const { rows, order } = heatMap.view, a = order[heatMap.row], b = order[heatMap.column];
  const value = a === b ? "the same row" : rows.values[a][b] === null ? "undefined: neither keeps a neuron" : `IoU ${fixed(rows.values[a][b])}`;
  const families = [a, b].map((row) => familyOf(rows.languages[row])).filter(Boolean);
  const kin = families.length < 2 ? "" : families[0] === families[1] ? ` · both ${families[0]}` : ` · ${families.join(", ")}`;
  byId("map-readout").textContent = `${rows.names[a]} and ${rows.names[b]}: ${value}${a === b ? "" : kin}`;
}

function fillMapTable() {
  const { rows, order } = heatMap.view;
  const head = element("tr", {}, element("td"), ...order.map((i) => element("th", { scope: "col" }, rows.names[i])));
  const lines = order.map((i) => element("tr", {}, element("th", { scope: "row" }, rows.names[i]), ...order.map((j) => element("td", { class: "number" }, i === j ? "" : rows.values[i][j] === null ? "–" : rows.values[i][j].toFixed(2)))));
  byId("map-table").querySelector("div").replaceChildren(element("table", {}, element("thead", {}, head), element("tbody", {}, ...lines)));
}

function moveCell(row, column) {
  const last = heatMap.view.order.length - 1;
  heatMap.row = Math.min(Math.max(row, 0), last);
  heatMap.column = Math.min(Math.max(column, 0), last);
  drawMap();
}

function startMap() {
  const rows = byId("map-rows"), slider = byId("map-layer"), canvas = byId("map");
  const groups = [...new Set(report.pairs.map((pair) => pair.group))];
  rows.append(option("languages", "languages"), option("pairs", "all pairs"));
  if (groups.length > 1) groups.forEach((group) => rows.append(option(group, group + " pairs")));
  if (new Set(report.pairs.flatMap(languagesOf)).size < 4) rows.value = "pairs";
  const resize = () => { slider.max = sitesOf(chosenSide()).length - 1; };
  byId("map-side").addEventListener("change", () => { slider.value = 0; resize(); drawMap(); });
  slider.addEventListener("input", drawMap);
  for (const id of ["map-rows", "map-order", "map-shared"]) byId(id).addEventListener("change", drawMap);
  byId("map-table").addEventListener("toggle", () => { if (byId("map-table").open) fillMapTable(); });
  canvas.addEventListener("pointermove", (event) => {
    const place = (offset) => Math.floor((offset - heatMap.left) / heatMap.cell);
    const row = place(event.offsetY), column = place(event.offsetX);
    if (row >= 0 && column >= 0 && (row !== heatMap.row || column !== heatMap.column)) moveCell(row, column);
  });
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    moveCell(heatMap.row + step[0], heatMap.column + step[1]);
  });
  byId("families").replaceChildren(...Object.entries(report.colours).map(([name, colour]) => element("li", {}, swatch(colour), name)));
  resize();
  drawMap();
}
