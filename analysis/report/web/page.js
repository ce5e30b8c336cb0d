"use strict";
// Charts from the page's data, buttons that hide a variant everywhere, tables that sort.

const page = JSON.parse(document.getElementById("data").textContent);
let hidden = new Set(page.hidden);
let charts = [];

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

const lookOf = (variant) => page.looks[variant] ?? page.neutral;

// A colour mixed with the paper. The baseline has the colour of text, to show on light and dark.
function tint(variant, strength, alpha = 1) {
  const look = lookOf(variant);
  strength *= look.strength;
  const parts = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  const paper = parts(css("--paper"));
  const mixed = parts(variant === page.baseline ? css("--ink") : look.colour)
    .map((part, i) => Math.round(strength * part + (1 - strength) * paper[i]));
  return `rgba(${mixed.join(",")},${alpha})`;
}

// The markers of figures, as Chart.js names them: shape, size over the usual, degrees turned.
const markers = {
  "o": ["circle", 1, 0], "s": ["rect", 1.1, 0], "^": ["triangle", 1.2, 0],
  "v": ["triangle", 1.2, 180], ">": ["triangle", 1.2, 90], "<": ["triangle", 1.2, 270],
  "diamond": ["rectRot", 1.6, 0], "dot": ["circle", 0.6, 0], "dash": ["line", 1, 0],
};

// Chart.js data sets of one series: a band is two lines with the space between filled, whiskers
// are lines with gaps. Later series are drawn over earlier ones.
function dataSets(series, place) {
  const { kind, variant, x, y, low, high, x_low, x_high, strength = 1, dashed, hollow } = series;
  const colour = tint(variant, strength);
  const { weight, marker } = lookOf(variant);
  const base = {
    variant, borderColor: colour, backgroundColor: colour, borderWidth: 1.5 * weight,
    pointRadius: 0, pointHoverRadius: 0, pointHitRadius: 0, showLine: true,
    hidden: hidden.has(variant), order: -place,
  };
  const along = (xs, ys) => xs.map((value, i) => ({ x: value, y: ys[i] }));
  if (kind === "line") {
    return [{ ...base, data: along(x, y), borderDash: dashed ? [5, 4] : [], text: series.label }];
  }
  if (kind === "band") {
    const edge = { ...base, borderWidth: 0, backgroundColor: tint(variant, strength, 0.15) };
    return [{ ...edge, data: along(x, low) }, { ...edge, data: along(x, high), fill: "-1" }];
  }
  const gap = { x: NaN, y: NaN };
  const whiskers = [
    ...(low ? x.flatMap((at, i) => [{ x: at, y: low[i] }, { x: at, y: high[i] }, gap]) : []),
    ...(x_low ? y.flatMap((at, i) => [{ x: x_low[i], y: at }, { x: x_high[i], y: at }, gap]) : []),
  ];
  const [pointStyle, size, pointRotation] = markers[series.marker ?? marker];
  const pointRadius = 4 * weight * size;
  const points = {
    ...base, showLine: false, texts: series.text, data: along(x, y), pointStyle, pointRotation,
    borderWidth: series.marker === "dot" ? 0 : base.borderWidth, pointRadius,
    pointHoverRadius: series.text ? pointRadius + 2 : pointRadius,
    pointHitRadius: series.text ? 8 : 0,
    borderColor: series.marker === "diamond" && !hollow ? css("--paper") : colour,
    backgroundColor: hollow ? "transparent" : colour,
  };
  return whiskers.length ? [{ ...base, borderWidth: weight, data: whiskers }, points] : [points];
}

// Of labels across a narrow panel, those that would touch the one before go; their lines stay.
const GAP = 6;
function part(scale) {
  const { ctx } = scale.chart;
  ctx.save();
  ctx.font = `${Chart.defaults.font.size}px ${Chart.defaults.font.family}`;
  let end = -Infinity;
  scale.ticks.forEach((tick, i) => {
    const at = scale.getPixelForTick(i);
    const half = ctx.measureText(tick.label).width / 2;
    if (at - half < end + GAP) tick.label = "";
    else end = at + half;
  });
  ctx.restore();
}

function scale(axis, titled, across) {
  const { rule = null } = axis;
  const labels = new Map(axis.ticks.map((value, i) => [value, axis.labels[i]]));
  return {
    type: axis.log ? "logarithmic" : "linear",
    min: axis.low,
    max: axis.high,
    title: { display: titled, text: axis.title, color: css("--ink") },
    afterBuildTicks: (built) => { built.ticks = axis.ticks.map((value) => ({ value })); },
    afterUpdate: across ? part : undefined,
    ticks: {
      callback: (value) => labels.get(value), color: css("--soft"), maxRotation: 0,
      autoSkip: !across,
    },
    grid: {
      color: (context) => (context.tick?.value === rule ? css("--soft") : css("--line")),
    },
    border: { color: css("--soft") },
  };
}

// The labels of lines beside the panel, each joined to the right end of its line; moved, in their
// order, as little as keeps them apart.
const LINE = 14;
const endLabels = {
  id: "endLabels",
  afterDatasetsDraw(chart) {
    const { ctx, chartArea: { right, bottom } } = chart;
    const ends = chart.data.datasets.flatMap((set, at) => {
      if (!set.text || set.hidden) return [];
      const { x, y } = chart.getDatasetMeta(at).data.reduce((a, b) => (b.x > a.x ? b : a));
      return [{ x, y, at: y, text: set.text, colour: set.borderColor }];
    });
    ends.sort((a, b) => a.y - b.y);
    ends.forEach((end, i) => { if (i) end.at = Math.max(end.at, ends[i - 1].at + LINE); });
    let limit = bottom;
    for (const end of ends.reverse()) {
      end.at = Math.min(end.at, limit);
      limit = end.at - LINE;
    }
    ctx.save();
    ctx.font = `11px ${Chart.defaults.font.family}`;
    ctx.textBaseline = "middle";
    ctx.lineWidth = 0.5;
    for (const { x, y, at, text, colour } of ends) {
      ctx.strokeStyle = ctx.fillStyle = colour;
      ctx.beginPath();
      ctx.moveTo(x, y);
      ctx.lineTo(right + 8, at);
      ctx.stroke();
      ctx.fillText(text, right + 10, at);
    }
    ctx.restore();
  },
};

function draw(canvas, x, panel) {
  const titled = !canvas.closest(".small");
  const context = canvas.getContext("2d");
  context.font = `11px ${Chart.defaults.font.family}`;
  const widths = panel.series.map(({ label }) => (label ? context.measureText(label).width : 0));
  const widest = Math.max(0, ...widths);
  return new Chart(canvas, {
    type: "scatter",
    data: { datasets: panel.series.flatMap(dataSets) },
    options: {
      animation: false,
      maintainAspectRatio: false,
      interaction: { mode: "nearest", intersect: true },
      layout: { padding: { right: widest ? widest + 12 : 0 } },
      scales: { x: scale(x, titled, true), y: scale(panel.y, titled, false) },
      plugins: {
        legend: { display: false },
        title: { display: "title" in panel, text: panel.title, color: css("--ink") },
        tooltip: {
          displayColors: false,
          filter: (item, index) => index === 0,
          callbacks: { label: (item) => item.dataset.texts[item.dataIndex] },
        },
      },
    },
    plugins: [endLabels],
  });
}

// Charts of what is not hidden: a panel of a hidden variant takes no place.
function drawAll() {
  charts.forEach((chart) => chart.destroy());
  Chart.defaults.font.family = getComputedStyle(document.body).fontFamily;
  charts = page.charts.flatMap(({ id, x, panels }) => panels.flatMap((panel, number) => {
    const canvas = document.getElementById(`${id}-${number}`);
    canvas.parentNode.hidden = hidden.has(panel.variant);
    return canvas.parentNode.hidden ? [] : [draw(canvas, x, panel)];
  }));
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

function show() {
  for (const button of document.querySelectorAll("[data-variant]"))
    button.setAttribute("aria-pressed", String(!hidden.has(button.dataset.variant)));
  drawAll();
}

function toggle({ variant }) {
  if (!hidden.delete(variant)) hidden.add(variant);
  show();
}

document.addEventListener("click", ({ target }) => {
  const button = target.closest("button");
  if (button?.dataset.variant !== undefined) toggle(button.dataset);
  else if (button?.dataset.hide !== undefined) {
    hidden = new Set(button.dataset.hide ? page.hidden : []);
    show();
  }
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
