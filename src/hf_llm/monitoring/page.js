// Draws what the server reads from the runs' files. Names and texts are only ever set as text.
"use strict";

const find = (id) => document.getElementById(id);
const element = (name, properties = {}, ...children) => {
  const created = Object.assign(document.createElement(name), properties);
  created.append(...children);
  return created;
};

// What evaluation/metrics.py says: charts as { title, from_zero, marks_alerts, hidden_by, lines: [[legend, key]] },
// numbers at the top as { key, title, format, in_table_of_runs }, how the title of a chart of validation values ends,
// and the keys that are never smoothed: schedules, sums so far and maxima.
const { charts: CHARTS, tiles: TILES, validation: VALIDATION, unsmoothed: UNSMOOTHED } = JSON.parse(document.querySelector('meta[name="metrics"]').content);
const CHARTED_KEYS = new Set(CHARTS.flatMap((chart) => chart.lines.map(([, key]) => key)));
const KEYS_WITHOUT_CURVE = new Set(["step", "time", "total_flos", "train_loss"]);
const COLOURS = [1, 2, 3, 4, 5, 0]; // of several runs in one chart
const MAX_POINTS = 900; // of one line: what a wide screen can tell apart
const MAX_DOTS = 40; // a line of no more points has a dot at each: two points or one are hard to see as a line
const POLL_SECONDS = 2;

const CONTROLS = ["smoothing", "log", "x"];
const STEPS = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -Infinity, End: Infinity };

const files = {}; // key: { generation, rows }
const figures = new Map();
let state = { now: 0, runs: [] }, chosen = null, drawn = "";

// ---- what is new

async function fetchNews() {
  const known = Object.fromEntries(Object.entries(files).map(([key, file]) => [key, [file.generation, file.rows.length]]));
  const answer = await fetch(`api/state?known=${encodeURIComponent(JSON.stringify(known))}`);
  if (!answer.ok) throw new Error((await answer.json()).problem);
  state = await answer.json();
  for (const run of state.runs)
    for (const training of run.trainings)
      for (const { key, generation, from, rows } of Object.values(training.news)) {
        const file = (files[key] ||= { generation, rows: [] });
        if (generation !== file.generation || from < file.rows.length) file.rows.length = from;
        file.generation = generation;
        for (const row of rows) file.rows.push(row);
      }
}

async function follow() {
  try {
    await fetchNews();
    show();
  } catch (error) {
    find("pulse").className = "pulse lost";
    find("connection").textContent = error instanceof TypeError ? "the server that reads the runs does not answer" : error.message;
  }
  setTimeout(follow, 1000 * POLL_SECONDS);
}

const rows = (training, kind) => files[training.news[kind].key].rows;
const entries = (training) => rows(training, "metrics").filter((row) => "step" in row);
const facts = (training) => rows(training, "metrics")[0]?.training || {};
const lastEntry = (training, key) => entries(training).findLast((row) => typeof row[key] === "number");

// ---- numbers, as core/format.py writes them

function short(value) {
  const size = Math.abs(value);
  if (size >= 1e4)
    for (const [limit, letter] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]])
      if (size >= limit) return Number((value / limit).toPrecision(3)) + letter;
  if (value === 0) return "0";
  if (size < 1e-3) return value.toExponential(2).replace(/\.?0*e/, "e").replace("e+", "e");
  return Number(value.toPrecision(size >= 100 ? 5 : 3)).toLocaleString("en");
}

function duration(seconds) {
  if (seconds < 99.5) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 100) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${String(minutes % 60).padStart(2, "0")} min` : `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

function score(value) {
  return Math.abs(value) >= 0.1 || value === 0 ? value.toFixed(3) : String(Number(value.toPrecision(3)));
}

function count(value) {
  for (const [limit, letter] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]])
    if (value >= limit) return (value / limit).toFixed(value < 100 * limit ? 1 : 0).replace(/\.0$/, "") + letter;
  return value.toFixed(0);
}

const STYLES = {
  score, short, count, duration,
  "learning rate": (value) => short(Number(value.toPrecision(2))),
  dollars: (value) => "$" + value.toLocaleString("en", { minimumFractionDigits: 2, maximumFractionDigits: 2 }),
};

// By a name in STYLES, or by a format specification of Python's: `.3f`, `.0%`.
function formatValue(value, style) {
  if (style in STYLES) return STYLES[style](value);
  const [, digits, kind] = style.match(/^\.(\d)([f%])$/);
  const text = (kind === "%" ? 100 * value : value).toFixed(digits).replace(/^-(?=[0.]+$)/, ""); // no -0.00
  return kind === "%" ? text + "%" : text;
}

function tileText(tile, training) {
  if (tile.key === "eta_seconds" && training.state !== "running") return null;
  const entry = lastEntry(training, tile.key);
  if (!entry) return null;
  const [limit, name] = tile.limit || [Infinity, ""], value = entry[tile.key];
  return formatValue(value, tile.format) + (value > limit ? ` (above ${name})` : "");
}

function position(training) {
  const maxSteps = facts(training).max_steps;
  const words = [`step ${training.step.toLocaleString("en")}` + (maxSteps ? ` of ${maxSteps.toLocaleString("en")}` : "")];
  const entry = lastEntry(training, "epoch");
  if (entry) words.push(`epoch ${entry.epoch.toFixed(2)}`);
  const stage = lastEntry(training, "curriculum_stage");
  if (stage) words.push(`curriculum stage ${stage.curriculum_stage}`);
  return words.join(", ");
}

function describeStatus(training) {
  const { device, processes } = facts(training);
  const words = [training.title, position(training)];
  if (device) words.push(`${processes} × ${device}`);
  if (training.state !== "finished") words.push(`${training.state}, last sign of life ${duration(Math.max(0, state.now - training.seen))} ago`);
  else words.push("finished" + (training.headline ? `: ${training.headline}` : ""));
  if (training.error) words.push(training.error.split("\n")[0]);
  return words.join("  ·  ");
}

// ---- what was chosen, kept in the address: a reload shows the same

function readChoices() {
  const choices = new URLSearchParams(location.hash.slice(1));
  chosen = choices.get("stage");
  find("smoothing").value = choices.get("smoothing") || 0;
  find("log").checked = choices.get("scale") === "log";
  if ([...find("x").options].some((option) => option.value === choices.get("x"))) find("x").value = choices.get("x");
  find("more").open = choices.has("all");
}

function keepChoices() {
  const choices = new URLSearchParams();
  if (chosen) choices.set("stage", chosen);
  if (Number(find("smoothing").value)) choices.set("smoothing", find("smoothing").value);
  if (find("log").checked) choices.set("scale", "log");
  if (find("x").value !== "step") choices.set("x", find("x").value);
  if (find("more").open) choices.set("all", "1");
  history.replaceState(null, "", String(choices) ? `#${choices}` : location.pathname + location.search);
}

// The stage to open on: one that all runs have, and of these the one that a run is at, or else the last.
function openingStage(names) {
  const has = (run, name) => run.trainings.some((training) => training.name === name);
  const common = names.filter((name) => state.runs.every((run) => has(run, name)));
  const current = state.runs.map((run) => run.current).filter(Boolean);
  return current.find((name) => common.includes(name)) || common[common.length - 1] || current[0];
}

// ---- the page

function show() {
  if (!state.runs.length) return; // nothing was read yet
  const names = [...new Set(state.runs.flatMap((run) => run.trainings.map((training) => training.name)))];
  const name = names.includes(chosen) ? chosen : openingStage(names);
  const shown = state.runs.map((run, i) => ({ run, i, training: run.trainings.find((t) => t.name === name) })).filter((s) => s.training);
  document.title = state.runs.map((run) => run.name).join(", ");
  find("title").textContent = document.title;
  find("connection").textContent = shown.length ? [...new Set(shown.map((s) => s.training.state))].join(", ") : "waiting";
  find("pulse").className = `pulse ${shown[0]?.training.state || ""}`;
  find("status").textContent = !shown.length ? "Nothing has been trained yet. A training appears here once it starts."
    : state.runs.length === 1 ? describeStatus(shown[0].training) : describeRuns(shown);
  showTabs(names, name);
  showNumbers(shown);
  const key = JSON.stringify([name, find("smoothing").value, find("log").checked, find("x").value, find("more").open,
    shown.map(({ training }) => Object.values(training.news).map((news) => [news.key, news.generation, files[news.key].rows.length]))]);
  if (key === drawn) return;
  drawn = key;
  showAlerts(shown);
  showCharts(shown);
  showSamples(shown);
}

// Whose numbers are shown, where the page has several runs.
function describeRuns(shown) {
  const lacking = state.runs.filter((run) => !shown.some((one) => one.run === run)).map((run) => run.name);
  const words = [`${shown[0].training.title} of ${shown.map(({ run }) => run.name).join(", ")}`];
  if (lacking.length) words.push(`${lacking.join(", ")}: none`);
  if (shown.length === 1) words.push(describeStatus(shown[0].training));
  return words.join("  ·  ");
}

function showTabs(names, name) {
  const place = find("stages");
  if (place.dataset.names !== names.join()) {
    place.dataset.names = names.join();
    place.replaceChildren(...names.map((own) => element("button", { type: "button", textContent: own, onclick: () => { chosen = own; keepChoices(); show(); } })));
  }
  for (const button of place.children) button.setAttribute("aria-pressed", String(button.textContent === name));
}

function showNumbers(shown) {
  const one = shown.length === 1 && state.runs.length === 1;
  find("numbers").hidden = !one;
  find("runs").hidden = one || !shown.length;
  const maxSteps = one ? facts(shown[0].training).max_steps : 0;
  const percent = maxSteps ? (100 * shown[0].training.step) / maxSteps : 0;
  find("progress").hidden = !maxSteps;
  find("progress").setAttribute("aria-valuenow", Math.round(percent));
  find("progress").firstElementChild.style.width = `${percent}%`;
  if (one) showTiles(shown[0].training);
  else showTable(shown);
  markScrolling();
}

function showTiles(training) {
  const numbers = TILES.map((tile) => ({ title: tile.title, text: tileText(tile, training) })).filter(({ text }) => text);
  find("numbers").replaceChildren(...numbers.map(({ title, text }) =>
    element("div", {}, element("dt", { textContent: title }), element("dd", { textContent: text }))));
}

function showTable(shown) {
  const columns = TILES.filter((tile) => tile.in_table_of_runs && shown.some(({ training }) => tileText(tile, training)));
  const titles = ["run", "state", "step", ...columns.map((tile) => tile.title)];
  const header = element("tr", {}, ...titles.map((title, i) => element("th", { textContent: title, className: i > 1 ? "n" : "" })));
  find("runs").replaceChildren(header, ...shown.map(({ run, i, training }) => {
    const cells = [run.name, training.state, training.step.toLocaleString("en"), ...columns.map((tile) => tileText(tile, training) || "")];
    const row = element("tr", {}, ...cells.map((text, column) => element("td", { textContent: text, className: column > 1 ? "n" : "" })));
    row.style.setProperty("--own", `var(--line-${COLOURS[i % COLOURS.length]})`);
    return row;
  }));
}

// A table that is wider than the screen says that it scrolls.
function markScrolling() {
  const box = find("runs").parentElement;
  find("scrolls").hidden = find("runs").hidden || box.scrollWidth <= box.clientWidth + 1;
}

function showAlerts(shown) {
  const all = shown.flatMap(({ run, training }) => rows(training, "alerts").map((alert) => ({ ...alert, run: run.name })));
  all.sort((a, b) => b.time - a.time);
  find("alerts").replaceChildren(...all.slice(0, 5).map((alert) => element("li", {},
    element("b", { textContent: (shown.length > 1 ? `${alert.run}, ` : "") + `step ${alert.step.toLocaleString("en")}` }), element("span", { textContent: alert.text }))));
}

function showSamples(shown) {
  const prompts = new Map();
  for (const { run, training } of shown)
    for (const row of rows(training, "samples")) {
      const heading = shown.length > 1 ? `${run.name}: ${row.prompt}` : row.prompt;
      prompts.set(heading, [...(prompts.get(heading) || []), row]);
    }
  find("samples").hidden = !prompts.size;
  find("samples").lastElementChild.replaceChildren(...[...prompts].flatMap(([prompt, samples]) => {
    const firstAndLast = samples.filter((_, i) => i === 0 || i > samples.length - 6).reverse();
    const lines = firstAndLast.flatMap((row) => [element("div", { className: "step", textContent: row.step.toLocaleString("en") }),
      element("p", { className: "said", textContent: row.text.trim() || "(nothing)" })]);
    return [element("h3", { textContent: `${prompt} …` }), element("div", { className: "samples" }, ...lines)];
  }));
}

// ---- curves

function showCharts(shown) {
  const drawnTitles = new Set();
  for (const chart of CHARTS) {
    if (drawnTitles.has(chart.hidden_by)) continue;
    if (showChart(find("charts"), chart, shown)) drawnTitles.add(chart.title);
  }

  // A number that is logged and in no chart has one of its own, by its key.
  const otherKeys = new Set();
  for (const { training } of shown)
    for (const row of entries(training))
      for (const key in row)
        if (typeof row[key] === "number" && !CHARTED_KEYS.has(key) && !KEYS_WITHOUT_CURVE.has(key)) otherKeys.add(key);
  const more = find("more");
  more.hidden = !otherKeys.size;
  if (more.open)
    for (const key of [...otherKeys].sort()) {
      const chart = { title: key, from_zero: false, marks_alerts: false, lines: [["", key]] };
      if (showChart(more.querySelector(".charts"), chart, shown)) drawnTitles.add(key);
    }
  for (const [title, figure] of figures) if (!drawnTitles.has(title)) figure.root.remove();
}

function showChart(place, { title, note, lines, from_zero: fromZero, marks_alerts: marksAlerts }, shown) {
  const series = [], several = state.runs.length > 1;
  if (several && lines.length > 2) return false; // a colour is a run then
  for (const { run, i, training } of shown)
    lines.forEach(([name, key], n) => {
      const points = curve(training, key);
      if (!points.length) return;
      const colour = several ? COLOURS[i % COLOURS.length] : lines.length > 1 ? n : 1;
      const legend = several ? (lines.length > 1 ? `${run.name} ${name}` : run.name) : lines.length > 1 ? name : "";
      series.push({ name: legend, colour, dashed: several && n > 0, smooth: canSmooth(key, points), points });
    });
  if (!series.length) return false;
  const figure = figures.get(title) || createFigure(title);
  figure.name = title.endsWith(VALIDATION) ? `${title.slice(0, -VALIDATION.length)} on ${evaluatedOn(shown)}` : title;
  figure.heading.textContent = figure.name;
  figure.direction.textContent = note || "";
  place.append(figure.root);
  draw(figure, series, fromZero, marksAlerts ? shown : []);
  return true;
}

const evaluatedOn = (shown) => shown[0].training.evaluated_on || "the validation split";

// Validation values are few; a schedule, a sum so far or a maximum is not noise. Of keys that the table of metrics does
// not have, a sum or a maximum is known by never falling.
function canSmooth(key, points) {
  if (key.startsWith("eval_") || UNSMOOTHED.includes(key) || /(^|[/_])(lr|learning_rate|epoch|stage|max|min)([/_]|$)/.test(key)) return false;
  const values = points.map(([, y]) => y).filter(Number.isFinite);
  return CHARTED_KEYS.has(key) || values.some((y, i) => i && y < values[i - 1]);
}

function curve(training, key) {
  const over = find("x").value, points = [];
  let place = 0;
  for (const row of entries(training)) {
    if (over === "step") place = row.step;
    else if (over === "hours") place = row.device_hours === undefined ? place : row.device_hours / (facts(training).processes || 1);
    else place = row[over] ?? place;
    if (key in row) points.push([place, typeof row[key] === "number" ? row[key] : NaN, row.step]);
  }
  return points.some(([, y]) => Number.isFinite(y)) ? points : [];
}

function createFigure(title) {
  const plot = element("div", { className: "plot" }), legend = element("span", { className: "legend" });
  plot.setAttribute("role", "group");
  plot.tabIndex = 0;
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 1000 1000");
  svg.setAttribute("preserveAspectRatio", "none");
  const cursor = element("i", { className: "cursor", hidden: true }), tip = element("output", { className: "tip", hidden: true });
  plot.append(svg, cursor, tip);
  const heading = element("b"), direction = element("span", { className: "direction" });
  const root = element("figure", { className: "chart" }, element("figcaption", {}, heading, direction, legend), plot);
  const figure = { title, root, plot, svg, heading, direction, legend, cursor, tip, series: [], stop: null };
  const showAt = (event) => {
    const box = plot.getBoundingClientRect();
    showTip(figure, ((event.clientX - box.left) / box.width) * 1000);
  };
  plot.addEventListener("pointerdown", showAt);
  plot.addEventListener("pointermove", showAt);
  // What a finger has shown stays until the next touch elsewhere.
  plot.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") hideTip(figure); });
  plot.addEventListener("blur", () => hideTip(figure));
  plot.addEventListener("keydown", (event) => moveTip(figure, event));
  figures.set(title, figure);
  return figure;
}

// A line through the neighbours of each point, which weigh less the further they are, on both sides (a local linear
// fit with the weights smoothing^distance): unlike a running mean it does not lag behind a curve that falls.
function smooth(points) {
  const weight = Number(find("smoothing").value);
  const finite = points.filter(([, y]) => Number.isFinite(y));
  if (!weight || finite.length < 5) return points;
  const before = weighNeighbours(finite, weight), after = weighNeighbours([...finite].reverse(), weight).reverse();
  let i = 0;
  return points.map(([x, y, step]) => {
    if (!Number.isFinite(y)) return [x, y, step];
    const b = before[i], a = after[i];
    i += 1;
    // Sums over all neighbours at the distance d, which is negative before the point: of 1, d, d², y and dy.
    const sum = b[0] + a[0] - 1, d = a[1] - b[1], dd = a[2] + b[2], all = b[3] + a[3] - y, dy = a[4] - b[4];
    const determinant = sum * dd - d * d;
    return [x, determinant > 1e-12 ? (dd * all - d * dy) / determinant : all / sum, step];
  });
}

// At each point the weighted sums of 1, d, d², y and d·y over it and those before it, d steps back.
function weighNeighbours(points, weight) {
  let [one, d, dd, sum, dy] = [0, 0, 0, 0, 0];
  return points.map(([, y]) => {
    dy = weight * (dy + sum);
    dd = weight * (dd + 2 * d + one);
    d = weight * (d + one);
    one = weight * one + 1;
    sum = weight * sum + y;
    return [one, d, dd, sum, dy];
  });
}

function draw(figure, series, fromZero, alerting) {
  const log = find("log").checked, height = (y) => (log ? Math.log10(y) : y);
  const usable = ([, y]) => Number.isFinite(y) && (!log || y > 0);
  figure.series = series.map((line) => ({ ...line, raw: line.points, points: line.smooth ? smooth(line.points) : line.points }));
  const all = figure.series.flatMap((line) => line.raw).filter(usable), xs = all.map(([x]) => x), ys = all.map(([, y]) => height(y));
  if (!all.length) return;
  const least = (values) => values.reduce((a, b) => Math.min(a, b)), greatest = (values) => values.reduce((a, b) => Math.max(a, b));
  const [left, right] = widen(Math.min(0, least(xs)), greatest(xs));
  const range = widen(fromZero && !log ? Math.min(0, least(ys)) : least(ys), greatest(ys));
  const yTicks = log ? powers(...range) : ticks(...range, 3, true);
  const bottom = yTicks[0], top = yTicks[yTicks.length - 1];
  const across = (x) => (1000 * (x - left)) / (right - left), down = (y) => 1000 - (1000 * (height(y) - bottom)) / (top - bottom);
  Object.assign(figure, { across, down, usable, left, right });
  const parts = yTicks.map((tick) => `<path class="grid" d="M0 ${(1000 - (1000 * (tick - bottom)) / (top - bottom)).toFixed(1)}H1000"/>`);
  for (const { training } of alerting)
    for (const alert of rows(training, "alerts")) {
      const point = figure.series[0].raw.find(([, , step]) => step >= alert.step);
      if (point) parts.push(`<path class="alert" d="M${across(point[0]).toFixed(1)} 0V1000"/>`);
    }
  for (const line of figure.series) {
    const isSmoothed = line.points !== line.raw, kind = (line.dashed ? " dashed" : "") + (isSmoothed ? " smoothed" : "");
    if (isSmoothed) parts.push(`<path class="line raw line-${line.colour}" d="${path(line.raw, figure)}"/>`);
    parts.push(`<path class="line line-${line.colour}${kind}" d="${path(line.points, figure)}"/>`);
    if (line.raw.length <= MAX_DOTS) parts.push(`<path class="dots line-${line.colour}" d="${dots(line.raw, figure)}"/>`);
  }
  figure.svg.innerHTML = parts.join(""); // numbers only
  label(figure, yTicks.map((tick) => [short(log ? 10 ** tick : tick), (1000 - (1000 * (tick - bottom)) / (top - bottom)) / 10]),
    ticks(left, right, 5).map((tick) => [short(tick), across(tick) / 10]));
}

function label(figure, vertical, horizontal) {
  for (const old of figure.plot.querySelectorAll("span")) old.remove();
  for (const [kind, side, texts] of [["y", "top", vertical], ["x", "left", horizontal]])
    for (const [text, place] of texts) {
      const span = element("span", { className: kind, textContent: text });
      span.style[side] = `${place}%`;
      figure.plot.append(span);
    }
  const over = find("x").options[find("x").selectedIndex].textContent;
  figure.plot.append(element("span", { className: "axis", textContent: over }));
  const named = figure.series.filter((line) => line.name);
  figure.legend.replaceChildren(...(named.length > 1 || state.runs.length > 1 ? named : []).map((line) => {
    const mark = element("i", { className: line.dashed ? "dashed" : "" });
    mark.style.borderColor = `var(--line-${line.colour})`;
    return element("span", {}, mark, line.name);
  }));
  const last = figure.series.map((line) => `${line.name} ${short(line.raw[line.raw.length - 1][1])}`).join("; ");
  figure.plot.setAttribute("aria-label", `${figure.name}, over ${over}. Last values: ${last}. The arrow keys read the values.`);
}

function path(points, { across, down, usable }) {
  let drawing = false, commands = "";
  const few = thin(points);
  few.forEach((point, i) => {
    if (!usable(point)) { drawing = false; return; }
    const alone = !drawing && (i + 1 === few.length || !usable(few[i + 1]));
    commands += `${drawing ? "L" : "M"}${across(point[0]).toFixed(1)} ${down(point[1]).toFixed(1)}${alone ? "h.01" : ""}`;
    drawing = true;
  });
  return commands;
}

// Lines too short to be seen, whose round ends are the dots.
const dots = (points, { across, down, usable }) =>
  points.filter(usable).map((point) => `M${across(point[0]).toFixed(1)} ${down(point[1]).toFixed(1)}h.01`).join("");

function thin(points) {
  if (points.length <= MAX_POINTS) return points;
  const width = Math.ceil((2 * points.length) / MAX_POINTS), kept = [];
  for (let start = 0; start < points.length; start += width) {
    const stretch = points.slice(start, start + width), finite = stretch.filter(([, y]) => Number.isFinite(y));
    const gap = stretch.filter(([, y]) => !Number.isFinite(y)).slice(0, 1);
    const ends = finite.length ? [finite.reduce((a, b) => (b[1] < a[1] ? b : a)), finite.reduce((a, b) => (b[1] > a[1] ? b : a))] : [];
    kept.push(...[...new Set([...gap, ...ends])].sort((a, b) => a[0] - b[0]));
  }
  return kept;
}

const widen = (low, high) => (high > low ? [low, high] : [low - (Math.abs(low) || 1) / 2, high + (Math.abs(high) || 1) / 2]);

function ticks(low, high, about, around = false) {
  const rough = (high - low) / about, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((value) => value >= 0.7 * rough);
  const first = around ? Math.floor(low / step + 1e-9) : Math.ceil(low / step - 1e-9);
  const end = around ? Math.ceil(high / step - 1e-9) : Math.floor(high / step + 1e-9);
  return Array.from({ length: end - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

// Logarithms of round values around a range: powers of ten, with 2 and 5 times them where that leaves few.
function powers(low, high) {
  const factors = high - low > 3 ? [1] : high - low > 0.5 ? [1, 2, 5] : [1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8];
  const all = [];
  for (let power = Math.floor(low) - 1; power <= Math.ceil(high); power++) for (const factor of factors) all.push(power + Math.log10(factor));
  const first = all.findLastIndex((value) => value <= low + 1e-9), end = all.findIndex((value) => value >= high - 1e-9);
  return all.slice(first, Math.max(end, first + 1) + 1);
}

// ---- the values at a place: under the pointer, under a finger, or where the arrow keys are

function stopsOf(figure) {
  const places = figure.series.flatMap((line) => line.raw.filter(figure.usable).map(([x]) => figure.across(x)));
  return [...new Set(places)].sort((a, b) => a - b);
}

function moveTip(figure, event) {
  if (event.key === "Escape") hideTip(figure);
  if (!(event.key in STEPS)) return;
  const stops = stopsOf(figure), last = stops.length - 1;
  if (last < 0) return;
  event.preventDefault();
  const current = figure.stop === null ? last - STEPS[event.key] : stops.findIndex((place) => place >= figure.stop - 1e-6);
  showTip(figure, stops[Number.isFinite(STEPS[event.key]) ? Math.min(last, Math.max(0, current + STEPS[event.key])) : STEPS[event.key] < 0 ? 0 : last]);
}

function hideTip(figure) {
  figure.cursor.hidden = figure.tip.hidden = true;
  figure.stop = null;
}

function showTip(figure, at) {
  const nearest = (points, place) => points.reduce((a, b) => (Math.abs(figure.across(b[0]) - place) < Math.abs(figure.across(a[0]) - place) ? b : a));
  const lines = figure.series.map((line) => ({ line, points: line.raw.filter(figure.usable) })).filter(({ points }) => points.length);
  if (!lines.length) return;
  const chosenPoint = nearest(lines.map(({ points }) => nearest(points, at)), at), left = figure.across(chosenPoint[0]);
  const words = [`step ${chosenPoint[2].toLocaleString("en")}`], digits = (value) => Number(value.toPrecision(5));
  for (const { line, points } of lines) {
    const own = nearest(points, left);
    if (Math.abs(figure.across(own[0]) - left) >= 40) continue;
    // The value that was logged; the smoothed one is said to be that.
    const smoothed = line.points !== line.raw ? ` (smoothed ${digits(line.points[line.raw.indexOf(own)][1])})` : "";
    words.push(`${line.name ? line.name + " " : ""}${digits(own[1])}${smoothed}`);
  }
  figure.stop = left;
  figure.cursor.hidden = figure.tip.hidden = false;
  figure.cursor.style.left = `${left / 10}%`;
  figure.tip.textContent = words.join(words.length > 3 ? "\n" : "  ·  ");
  figure.tip.style.left = "0";
  figure.tip.style.left = `clamp(0px, ${left / 10}% - ${figure.tip.offsetWidth / 2}px, 100% - ${figure.tip.offsetWidth}px)`;
}

document.addEventListener("pointerdown", (event) => {
  for (const figure of figures.values()) if (!figure.plot.contains(event.target)) hideTip(figure);
});

readChoices();
find("connection").textContent = "connecting";
for (const name of CONTROLS) find(name).addEventListener("input", () => { keepChoices(); show(); });
find("more").addEventListener("toggle", () => { keepChoices(); show(); });
addEventListener("resize", markScrolling);
addEventListener("hashchange", () => { readChoices(); show(); });
follow();
