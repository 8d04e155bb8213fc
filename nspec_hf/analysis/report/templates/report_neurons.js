"use strict";
// The neuron browser: one square a neuron, coloured by how many pairs keep it, or by what it is to one pair.
const field = { order: [], columns: 1, cell: 8, chosen: 0 };
const neuronSite = () => report.sites.find((site) => site.name === byId("neuron-site").value);
const neuronPair = () => (byId("neuron-pair").value === "" ? null : Number(byId("neuron-pair").value));

function ownersList(site, neuron) {
  return report.pairs.map((_, i) => i).filter((i) => keeps(site, i, neuron));
}

function passes(site, neuron, pair) {
  const filter = byId("neuron-filter").value, owners = ownersOf(site)[neuron];
  if (pair !== null && filter !== "all" && filter !== "none" && !keeps(site, pair, neuron)) return false;
  if (filter === "general") return isGeneral(site, neuron);
  if (filter === "specific") return owners > 0 && !isGeneral(site, neuron);
  if (filter === "one") return owners === 1;
  if (filter === "none") return owners === 0;
  if (filter === "family") {
    const families = new Set(ownersList(site, neuron).map((i) => familyOf(keyLanguage(site, report.pairs[i]))));
    return families.size === 1 && !families.has("");
  }
  return true;
}

function neuronColour(site, neuron, pair) {
  if (pair === null) {
    const owners = ownersOf(site)[neuron];
    return owners ? shade(owners / report.pairs.length) : themeColour("off");
  }
  if (!keeps(site, pair, neuron)) return themeColour("off");
  return themeColour(isGeneral(site, neuron) ? "accent" : "warm");
}

function drawField() {
  const site = neuronSite(), pair = neuronPair(), canvas = byId("neuron-field"), owners = ownersOf(site);
  const shown = Array.from({ length: site.width }, (_, i) => i).filter((neuron) => passes(site, neuron, pair));
  if (byId("neuron-order").value === "owners") shown.sort((a, b) => owners[b] - owners[a] || a - b);
  const room = canvas.parentElement.clientWidth - 2 * parseFloat(getComputedStyle(canvas.parentElement).paddingLeft);
  const cell = room < 600 ? 7 : 9, columns = Math.max(1, Math.floor(room / cell));
  Object.assign(field, { order: shown, columns, cell });
  const context = sharpen(canvas, Math.min(columns, Math.max(shown.length, 1)) * cell + 2, Math.max(1, Math.ceil(shown.length / columns)) * cell + 2);
  const cache = new Map();
  shown.forEach((neuron, place) => {
    const kind = pair === null ? owners[neuron] : keeps(site, pair, neuron) ? 1 + isGeneral(site, neuron) : 0;
    if (!cache.has(kind)) cache.set(kind, neuronColour(site, neuron, pair));
    context.fillStyle = cache.get(kind);
    context.fillRect((place % columns) * cell + 1, Math.floor(place / columns) * cell + 1, cell - 1, cell - 1);
  });
  const place = shown.indexOf(field.chosen);
  if (place >= 0) {
    context.strokeStyle = themeColour("ink");
    context.lineWidth = 2;
    context.strokeRect((place % columns) * cell, Math.floor(place / columns) * cell, cell + 1, cell + 1);
  }
  byId("neuron-number").max = site.width - 1;
  byId("neuron-count").textContent = `${shown.length} of ${site.width} neurons (${percent(shown.length / site.width)})`;
  canvas.setAttribute("aria-label", `${shown.length} neurons of ${site.label}`);
  drawNeuronLegend(pair);
  describeNeuron(site);
}

function drawNeuronLegend(pair) {
  const count = report.pairs.length;
  const entries = pair === null
    ? [["var(--off)", "no pair"], [shade(1 / count), "few pairs"], [shade(0.5), "half of them"], [shade(1), "all " + count]]
    : [["var(--accent)", "general"], ["var(--warm)", "specific"], ["var(--off)", "not kept"]];
  byId("neuron-legend").replaceChildren(...entries.map(([colour, text]) => element("li", {}, swatch(colour), text)));
}

function describeNeuron(site) {
  const neuron = field.chosen, owners = ownersList(site, neuron), kind = isGeneral(site, neuron) ? "general" : owners.length ? "specific" : "kept by nobody";
  const head = element("p", {}, element("strong", {}, `Neuron ${neuron}`), ` of ${site.label}: ${kind}, kept by ${owners.length} of ${report.pairs.length} pairs.`);
  const groups = new Map();
  for (const i of owners) {
    const name = familyOf(keyLanguage(site, report.pairs[i])) || "no family known";
    groups.set(name, [...(groups.get(name) || []), i]);
  }
  const everyone = owners.length === report.pairs.length;
  const lines = everyone ? [] : [...groups].sort((a, b) => b[1].length - a[1].length).map(([name, list]) =>
    element("p", {}, `${name}: `, ...list.map((i) => element("span", { class: "chip" }, swatch(colourOf(keyLanguage(site, report.pairs[i]))), report.pairs[i].name))));
  byId("neuron-readout").replaceChildren(head, ...lines);
}

function drawOwners() {
  const site = neuronSite(), owners = ownersOf(site), count = report.pairs.length, bins = Math.min(count + 1, 31);
  const heights = new Array(bins).fill(0);
  for (const number of owners) heights[Math.min(bins - 1, Math.floor((number / (count + 1)) * bins))]++;
  const width = window.innerWidth < 600 ? 380 : 760, height = 170, base = height - 30, top = Math.max(...heights), slot = (width - 60) / bins;
  const chart = drawing("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Neurons of ${site.label} by the number of pairs that keep them` });
  heights.forEach((value, i) => {
    const tall = (value / top) * (base - 22), first = Math.ceil((i * (count + 1)) / bins), last = Math.ceil(((i + 1) * (count + 1)) / bins) - 1;
    const label = first >= last ? String(first) : `${first}–${last}`;
    chart.append(drawing("rect", { class: "bars", x: 40 + i * slot + 1, y: base - tall, width: slot - 2, height: tall }, drawing("title", {}, `${label} pairs: ${value} neurons`)));
    if (i === 0 || i === bins - 1 || (i % Math.ceil(bins / (width < 600 ? 4 : 8)) === 0 && i < bins - 2)) chart.append(drawing("text", { class: "soft", x: 40 + (i + 0.5) * slot, y: base + 18, "text-anchor": "middle" }, label));
  });
  chart.append(drawing("text", { class: "soft", x: 34, y: 26, "text-anchor": "end" }, String(top)), drawing("text", { class: "soft", x: 34, y: base, "text-anchor": "end" }, "0"));
  byId("owners").replaceChildren(chart);
}

function chooseNeuron(neuron) {
  field.chosen = Math.min(Math.max(Math.round(neuron) || 0, 0), neuronSite().width - 1);
  byId("neuron-number").value = field.chosen;
  drawField();
}

function startNeurons() {
  const select = byId("neuron-site"), canvas = byId("neuron-field");
  report.sites.forEach((site) => select.append(option(site.name, site.label)));
  report.pairs.forEach((pair, i) => byId("neuron-pair").append(option(i, pair.name)));
  select.addEventListener("change", () => { chooseNeuron(field.chosen); drawOwners(); });
  for (const id of ["neuron-pair", "neuron-filter", "neuron-order"]) byId(id).addEventListener("change", drawField);
  byId("neuron-number").addEventListener("change", (event) => chooseNeuron(Number(event.target.value)));
  canvas.addEventListener("click", (event) => {
    const place = Math.floor(event.offsetY / field.cell) * field.columns + Math.floor(event.offsetX / field.cell);
    if (place < field.order.length) chooseNeuron(field.order[place]);
  });
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowUp: -field.columns, ArrowDown: field.columns, ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step || !field.order.length) return;
    event.preventDefault();
    const place = Math.min(Math.max(field.order.indexOf(field.chosen) + step, 0), field.order.length - 1);
    chooseNeuron(field.order[place]);
  });
  drawField();
  drawOwners();
}
