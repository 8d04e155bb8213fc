"use strict";
// What the page knows: the packed masks, decoded, and what follows from them. Letters as in the package:
// P = pairs, F = neurons of a site. Neuron i is bit i % 8 of byte i / 8, the lowest first.
const report = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const languagesOf = (pair) => [pair.source, pair.target];
const familyOf = (code) => report.families[code] || "";
const colourOf = (code) => report.colours[familyOf(code)] || "#888888";
const percent = (share) => (Number.isFinite(share) ? (100 * share).toFixed(1) + " %" : "–");
const fixed = (value, digits = 3) => (value !== null && Number.isFinite(value) ? value.toFixed(digits) : "undefined");

const BITS_IN = new Uint8Array(256);
for (let byte = 1; byte < 256; byte++) BITS_IN[byte] = (byte & 1) + BITS_IN[byte >> 1];

for (const site of report.sites) {
  site.row = Math.ceil(site.width / 8);
  site.keep = Uint8Array.from(atob(site.bits), (sign) => sign.charCodeAt(0));
  site.general = Uint8Array.from(atob(site.general_bits), (sign) => sign.charCodeAt(0));
  delete site.bits;
  site.sizes = report.pairs.map((_, pair) => {
    let count = 0;
    for (let i = pair * site.row; i < (pair + 1) * site.row; i++) count += BITS_IN[site.keep[i]];
    return count;
  });
}

const bitAt = (bytes, start, neuron) => (bytes[start + (neuron >> 3)] >> (neuron & 7)) & 1;
const keeps = (site, pair, neuron) => bitAt(site.keep, pair * site.row, neuron) === 1;
const isGeneral = (site, neuron) => bitAt(site.general, 0, neuron) === 1;

// Pair × pair intersection over union of a site; null where both pairs keep nothing.
function overlapOfPairs(site) {
  if (site.overlap) return site.overlap;
  const count = report.pairs.length;
  site.overlap = Array.from({ length: count }, () => new Array(count).fill(null));
  for (let a = 0; a < count; a++) {
    for (let b = a; b < count; b++) {
      let both = 0;
      for (let i = 0; i < site.row; i++) both += BITS_IN[site.keep[a * site.row + i] & site.keep[b * site.row + i]];
      const either = site.sizes[a] + site.sizes[b] - both;
      site.overlap[a][b] = site.overlap[b][a] = either ? both / either : null;
    }
  }
  return site.overlap;
}

const keyLanguage = (site, pair) => (site.side === "encoder" ? pair.source : pair.target);

// Language × language: the mean over all couples of two different pairs, as `progression` in overlap.py.
function overlapOfLanguages(site) {
  if (site.byLanguage) return site.byLanguage;
  const names = [...new Set(report.pairs.map((pair) => keyLanguage(site, pair)))].filter((code) => code !== report.pivot).sort();
  const pairsOf = names.map((code) => report.pairs.map((_, i) => i).filter((i) => keyLanguage(site, report.pairs[i]) === code));
  const matrix = overlapOfPairs(site);
  const values = names.map((_, a) => names.map((_, b) => {
    const found = [];
    for (const p of pairsOf[a]) for (const q of pairsOf[b]) if (p !== q && matrix[p][q] !== null) found.push(matrix[p][q]);
    return found.length ? found.reduce((sum, value) => sum + value, 0) / found.length : null;
  }));
  site.byLanguage = { names, languages: names, values };
  return site.byLanguage;
}

function ownersOf(site) {
  if (!site.owners) {
    site.owners = new Uint16Array(site.width);
    for (let neuron = 0; neuron < site.width; neuron++)
      for (let pair = 0; pair < report.pairs.length; pair++) site.owners[neuron] += bitAt(site.keep, pair * site.row, neuron);
  }
  return site.owners;
}

// matplotlib's cividis at nine places: readable for colour-blind people and in grey.
const CIVIDIS = [[0, 34, 78], [18, 53, 112], [59, 73, 108], [87, 93, 109], [112, 113, 115], [138, 134, 120], [165, 156, 116], [195, 179, 105], [254, 232, 56]];
function shade(share) {
  const place = Math.min(Math.max(share, 0), 1) * (CIVIDIS.length - 1);
  const low = Math.min(Math.floor(place), CIVIDIS.length - 2);
  const mixed = CIVIDIS[low].map((value, i) => Math.round(value + (place - low) * (CIVIDIS[low + 1][i] - value)));
  return `rgb(${mixed.join(",")})`;
}
const themeColour = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}
function drawing(name, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}
function swatch(colour) {
  const square = element("i");
  square.style.background = colour;
  return square;
}
const option = (value, text) => element("option", { value }, text);

// A canvas with as many pixels as the screen has; returns its context in CSS pixels.
function sharpen(canvas, width, height) {
  const scale = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  canvas.style.width = width + "px";
  canvas.style.height = height + "px";
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  return context;
}
