"use strict";
// Line charts over the layers and the tree, as SVG whose colours follow the theme by class.
function layerChart(holder, label, limits, draw) {
  const sides = ["encoder", "decoder"].filter((side) => sitesOf(side).length);
  const narrow = window.innerWidth < 600, width = narrow ? 380 : 520, height = 260, top = 24, bottom = 34, left = 42, gap = 16;
  const panel = (width - left - gap * (sides.length - 1) - 8) / sides.length;
  const y = (value) => height - bottom - ((value - limits[0]) / (limits[1] - limits[0])) * (height - top - bottom);
  const chart = drawing("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  for (let tick = 0; tick <= 4; tick++) {
    const value = limits[0] + (tick / 4) * (limits[1] - limits[0]);
    chart.append(drawing("line", { class: "axis", x1: left, x2: width - 8, y1: y(value), y2: y(value) }));
    chart.append(drawing("text", { class: "soft", x: left - 6, y: y(value) + 4, "text-anchor": "end" }, value.toFixed(2)));
  }
  sides.forEach((side, number) => {
    const start = left + number * (panel + gap), sites = sitesOf(side);
    const x = (place) => start + ((place + 0.5) / sites.length) * panel;
    chart.append(drawing("text", { x: start + panel / 2, y: 14, "text-anchor": "middle" }, side));
    const every = Math.ceil(sites.length / 12);
    sites.forEach((site, place) => {
      if (place % every === 0) chart.append(drawing("text", { class: "soft", x: x(place), y: height - bottom + 16, "text-anchor": "middle" }, String(site.layer)));
    });
    draw(chart, sites, x, y);
  });
  holder.replaceChildren(chart);
}

function addBand(chart, x, y, lows, highs) {
  const places = lows.map((_, i) => i).filter((i) => lows[i] !== null);
  const points = [...places.map((i) => `${x(i)},${y(highs[i])}`), ...places.reverse().map((i) => `${x(i)},${y(lows[i])}`)];
  chart.append(drawing("polygon", { class: "band", points: points.join(" ") }));
}

function addLine(chart, x, y, values, style) {
  const places = values.map((_, i) => i).filter((i) => values[i] !== null && Number.isFinite(values[i]));
  chart.append(drawing("polyline", { class: style, points: places.map((i) => `${x(i)},${y(values[i])}`).join(" ") }));
  for (const i of places) chart.append(drawing("circle", { class: style, cx: x(i), cy: y(values[i]), r: 4 }, drawing("title", {}, values[i].toFixed(3))));
}

function key(entries) {
  return element("ul", { class: "legend" }, ...entries.map(([colour, text]) => element("li", {}, swatch(`var(--${colour})`), text)));
}

function drawProgression() {
  const spread = new Map(report.sites.map((site) => {
    const rows = overlapOfLanguages(site), found = [];
    rows.values.forEach((line, a) => line.forEach((value, b) => { if (b > a && value !== null) found.push(value); }));
    return [site.name, found];
  }));
  const all = [...spread.values()].flat(), holder = byId("progression");
  if (!all.length) { holder.textContent = "Fewer than two languages to compare."; return; }
  const limits = [Math.floor(20 * Math.min(...all)) / 20, Math.min(1, Math.ceil(20 * Math.max(...all) + 1e-9) / 20)];
  layerChart(holder, "Overlap of languages over the layers", limits, (chart, sites, x, y) => {
    const end = (site, choose) => (spread.get(site.name).length ? choose(...spread.get(site.name)) : null);
    addBand(chart, x, y, sites.map((site) => end(site, Math.min)), sites.map((site) => end(site, Math.max)));
    addLine(chart, x, y, sites.map((site) => report.agreement[site.name].within), "one");
    addLine(chart, x, y, sites.map((site) => report.agreement[site.name].across), "two");
  });
  holder.append(key([["accent", "same family"], ["warm", "different families (dashed)"]]));
}

function drawDensity() {
  layerChart(byId("density"), "Density over the layers", [0, 1], (chart, sites, x, y) => {
    const shares = sites.map((site) => site.sizes.map((size) => size / site.width));
    addBand(chart, x, y, shares.map((list) => Math.min(...list)), shares.map((list) => Math.max(...list)));
    addLine(chart, x, y, shares.map((list) => list.reduce((a, b) => a + b, 0) / list.length), "one");
  });
}

// scipy's linkage: row i joins clusters a and b at a distance into cluster n + i.
function drawTree() {
  const tree = report.trees[byId("tree-site").value], holder = byId("tree-plot");
  if (!tree) { holder.textContent = "No tree: fewer than two languages to compare at this layer."; byId("tree-facts").textContent = ""; return; }
  const count = tree.languages.length, step = 22, narrow = window.innerWidth < 600, width = narrow ? 420 : 820, height = count * step + 46, right = 62;
  const top = Math.max(...tree.linkage.map((row) => row[2])) || 1;
  const x = (distance) => width - right - (distance / top) * (width - right - 24);
  const chart = drawing("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "Tree of languages: " + tree.leaves.join(", ") });
  chart.style.maxWidth = width + "px";
  const nodes = tree.languages.map((code) => ({ x: x(0), y: tree.leaves.indexOf(code) * step + 14 }));
  for (const [a, b, distance] of tree.linkage) {
    const [first, second] = [nodes[a], nodes[b]];
    chart.append(drawing("path", { class: "branch", d: `M${first.x},${first.y}H${x(distance)}V${second.y}H${second.x}` }));
    nodes.push({ x: x(distance), y: (first.y + second.y) / 2 });
  }
  tree.languages.forEach((code, i) => {
    chart.append(drawing("rect", { x: x(0) - 1, y: nodes[i].y - 6, width: 12, height: 12, rx: 2, fill: colourOf(code) }, drawing("title", {}, familyOf(code) || "no family known")));
    chart.append(drawing("text", { x: x(0) + 18, y: nodes[i].y + 4 }, code));
  });
  for (let tick = 0; tick <= 4; tick++) {
    const distance = (tick / 4) * top;
    chart.append(drawing("line", { class: "axis", x1: x(distance), x2: x(distance), y1: height - 30, y2: height - 24 }));
    chart.append(drawing("text", { class: "soft", x: x(distance), y: height - 10, "text-anchor": "middle" }, distance.toFixed(2)));
  }
  const families = element("ul", { class: "legend" }, ...Object.entries(report.colours).map(([name, colour]) => element("li", {}, swatch(colour), name)));
  holder.replaceChildren(chart, families);
  const left = tree.left_out.length ? ` Left out, since they keep no neuron here: ${tree.left_out.join(", ")}.` : "";
  byId("tree-facts").textContent = `Cophenetic correlation with the distances ${fixed(tree.cophenetic)}; with the families ${fixed(tree.with_families)}.${left}`;
}

function startCharts() {
  const select = byId("tree-site");
  report.sites.forEach((site) => select.append(option(site.name, site.label)));
  const first = report.sites.find((site) => site.side === "decoder") || report.sites[0];
  select.value = first.name;
  select.addEventListener("change", drawTree);
  drawProgression();
  drawDensity();
  drawTree();
}
