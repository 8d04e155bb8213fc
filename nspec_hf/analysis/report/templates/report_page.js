"use strict";
// The page itself: theme, table sorting, start.
function setTheme(name) {
  document.documentElement.dataset.theme = name;
  const button = byId("theme"), dark = name === "dark";
  button.textContent = dark ? "Light" : "Dark";
  button.setAttribute("aria-pressed", String(dark));
}

function redraw() {
  drawMap();
  drawField();
  drawOwners();
  drawProgression();
  drawDensity();
  drawTree();
}

function startTheme() {
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  let chosen = false;
  setTheme(system.matches ? "dark" : "light");
  byId("theme").addEventListener("click", () => {
    chosen = true;
    setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
    redraw();
  });
  system.addEventListener("change", () => { if (!chosen) { setTheme(system.matches ? "dark" : "light"); redraw(); } });
}

function startSorting(table) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const falling = head.getAttribute("aria-sort") === "ascending";
    const value = (row) => row.cells[column].dataset.value;
    const numeric = [...body.rows].every((row) => value(row) === "" || Number.isFinite(Number(value(row))));
    const compare = numeric ? (a, b) => Number(value(a)) - Number(value(b)) : (a, b) => value(a).localeCompare(value(b));
    body.append(...[...body.rows].sort((a, b) => (falling ? compare(b, a) : compare(a, b))));
    heads.forEach((other) => other.setAttribute("aria-sort", "none"));
    head.setAttribute("aria-sort", falling ? "descending" : "ascending");
  }));
}

function startGains() {
  const table = byId("gain-table"), choice = byId("gain-choice");
  if (!table) return;
  startSorting(table);
  if (!choice) return;
  const show = () => { for (const row of table.tBodies[0].rows) row.hidden = row.dataset.choice !== choice.value; };
  choice.addEventListener("change", show);
  show();
}

startTheme();
startMap();
startCharts();
startNeurons();
startGains();
let width = window.innerWidth;
window.addEventListener("resize", () => { if (window.innerWidth !== width) { width = window.innerWidth; redraw(); } });
document.documentElement.dataset.ready = "true";
