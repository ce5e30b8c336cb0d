"use strict";
// Charts from the page's data, buttons that hide a variant everywhere, tables that sort.

const page = JSON.parse(document.getElementById("data").textContent);
const hidden = new Set();
let charts = [];

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

const forms = {
  plain: (value) => String(Number(value.toPrecision(4))),
  multiple: (value) => Number(value.toPrecision(4)) + "x",
  flops: (value) => value.toExponential(2).replace(/\.?0*e\+?/, "e"),
  si: (value) => {
    for (const [scale, prefix] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]])
      if (value >= scale) return Number((value / scale).toPrecision(3)) + prefix;
    return String(Number(value.toPrecision(3)));
  },
};

// Beside a layer under comparison the others recede, all but the baseline.
const muted = (variant) =>
  page.highlight && ![null, page.highlight, page.baseline].includes(variant) ? page.muted : 1;

// A variant's colour mixed with the paper. The baseline has the colour of text, to show on light
// and dark alike.
function tint(variant, strength, alpha = 1) {
  strength *= muted(variant);
  const own = variant === null || variant === page.baseline ? css("--ink") : page.colours[variant];
  const parts = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  const paper = parts(css("--paper"));
  const mixed = parts(own).map((part, i) => Math.round(strength * part + (1 - strength) * paper[i]));
  return `rgba(${mixed.join(",")},${alpha})`;
}

// Chart.js data sets of one series: a band is two lines with the space between filled, whiskers
// are a line with gaps.
function dataSets(series) {
  const { variant, strength = 1, x } = series;
  const colour = tint(variant, strength);
  const strong = variant === page.highlight;
  const weight = strong ? page.weight : 1;
  const base = {
    variant, borderColor: colour, backgroundColor: colour, pointRadius: 0,
    borderWidth: 1.5 * weight, pointHoverRadius: 0, pointHitRadius: 0, showLine: true,
    hidden: hidden.has(variant), order: strong ? -1 : 0, // the lowest is drawn last
  };
  const along = (y) => x.map((value, i) => ({ x: value, y: y[i] }));
  if (series.kind === "line")
    return [{ ...base, data: along(series.y), borderDash: series.dashed ? [5, 4] : [] }];
  if (series.kind === "band") {
    const edge = { ...base, borderWidth: 0, backgroundColor: tint(variant, strength, 0.15) };
    return [{ ...edge, data: along(series.low) }, { ...edge, data: along(series.high), fill: "-1" }];
  }
  const diamond = series.marker === "diamond";
  const points = {
    ...base, showLine: false, texts: series.text,
    data: along(series.y),
    pointStyle: diamond ? "rectRot" : "circle", pointRadius: weight * (diamond ? 7 : 4),
    pointHoverRadius: weight * (diamond ? 9 : 6), pointHitRadius: 8,
    borderColor: diamond && !series.hollow ? css("--paper") : colour,
    backgroundColor: series.hollow ? "transparent" : colour,
  };
  if (!series.low) return [points];
  const gaps = x.flatMap((value, i) => [
    { x: value, y: series.low[i] }, { x: value, y: series.high[i] }, { x: value, y: NaN },
  ]);
  return [{ ...base, data: gaps }, points];
}

function scale(axis) {
  const form = forms[axis.form];
  return {
    type: axis.log ? "logarithmic" : "linear",
    min: axis.min,
    max: axis.max,
    title: { display: true, text: axis.title, color: css("--ink") },
    afterBuildTicks: (built) => { built.ticks = axis.ticks.map((value) => ({ value })); },
    ticks: { callback: (value) => form(value), color: css("--soft"), maxRotation: 0 },
    grid: {
      color: (context) => (context.tick?.value === axis.rule ? css("--soft") : css("--line")),
    },
    border: { color: css("--soft") },
  };
}

function draw(spec) {
  const canvas = document.getElementById(spec.id);
  return new Chart(canvas, {
    type: "scatter",
    data: { datasets: spec.series.flatMap(dataSets) },
    options: {
      animation: false,
      maintainAspectRatio: false,
      interaction: { mode: "nearest", intersect: true },
      scales: { x: scale(spec.x), y: scale(spec.y) },
      plugins: {
        legend: { display: false },
        tooltip: {
          displayColors: false,
          filter: (item, index) => index === 0,
          callbacks: { label: (item) => item.dataset.texts[item.dataIndex] },
        },
      },
    },
  });
}

function drawAll() {
  charts.forEach((chart) => chart.destroy());
  Chart.defaults.font.family = getComputedStyle(document.body).fontFamily;
  charts = Object.values(page.charts).map(draw);
}

// Arrow keys on a chart step through its points and say what they are.
function step(chart, by) {
  const points = chart.data.datasets.flatMap((set, datasetIndex) =>
    set.texts && !set.hidden ? set.data.map((_, index) => ({ datasetIndex, index })) : []);
  if (!points.length) return;
  const [active] = chart.tooltip.getActiveElements();
  const at = active
    ? points.findIndex((p) => p.datasetIndex === active.datasetIndex && p.index === active.index)
    : by > 0 ? -1 : 0;
  const next = points[(at + by + points.length) % points.length];
  const { x, y } = chart.getDatasetMeta(next.datasetIndex).data[next.index];
  chart.setActiveElements([next]);
  chart.tooltip.setActiveElements([next], { x, y });
  chart.update();
  document.getElementById("spoken").textContent =
    chart.data.datasets[next.datasetIndex].texts[next.index].join(", ");
}

function sort(button) {
  const header = button.closest("th");
  const table = header.closest("table");
  const ascending = header.getAttribute("aria-sort") !== "ascending";
  const column = [...header.parentNode.children].indexOf(header);
  const value = (body) => body.rows[0].children[column].dataset.value;
  const order = (a, b) => {
    if (value(a) === "" || value(b) === "") return (value(a) === "") - (value(b) === "");
    const numbers = Number(value(a)) - Number(value(b));
    const compared = Number.isNaN(numbers) ? value(a).localeCompare(value(b)) : numbers;
    return ascending ? compared : -compared;
  };
  table.querySelectorAll("th[aria-sort]").forEach((other) => other.removeAttribute("aria-sort"));
  header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  table.append(...[...table.tBodies].sort(order));
}

function toggle(button) {
  const { variant } = button.dataset;
  if (!hidden.delete(variant)) hidden.add(variant);
  button.setAttribute("aria-pressed", String(!hidden.has(variant)));
  for (const chart of charts) {
    for (const set of chart.data.datasets) set.hidden = hidden.has(set.variant);
    chart.update();
  }
}

document.addEventListener("click", ({ target }) => {
  const button = target.closest("button");
  if (button?.dataset.variant !== undefined) toggle(button);
  else if (button?.closest(".sortable")) sort(button);
});
document.addEventListener("keydown", (event) => {
  const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (!by || event.target.tagName !== "CANVAS") return;
  event.preventDefault();
  step(Chart.getChart(event.target), by);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
for (const [event, printing] of [["beforeprint", true], ["afterprint", false]])
  addEventListener(event, () => {
    document.documentElement.classList.toggle("printing", printing);
    drawAll();
  });
drawAll();
