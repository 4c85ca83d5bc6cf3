// Shows a chart's values at the pointer, under a finger, and with the arrow keys, and says which tables scroll.
"use strict";

function markScrolling() {
  for (const box of document.querySelectorAll(".wide")) {
    const note = box.previousElementSibling?.classList.contains("scrolls") ? box.previousElementSibling : null;
    const isWider = box.scrollWidth > box.clientWidth + 1;
    if (isWider && !note) {
      const text = "the table continues to the right: scroll it sideways \u2192";
      box.before(Object.assign(document.createElement("p"), { className: "note scrolls", textContent: text }));
    } else if (!isWider && note) {
      note.remove();
    }
  }
}
markScrolling();
addEventListener("resize", markScrolling);

const STEPS = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -Infinity, End: Infinity };

const formatNumber = (value) => {
  const size = Math.abs(value);
  if (size >= 1e9) return value.toExponential(2).replace("e+", "e");
  if (size >= 1e-3 || value === 0) return (+value.toPrecision(5)).toLocaleString("en", { maximumSignificantDigits: 12 });
  return value.toExponential(2);
};
const nearest = (points, at) => points.reduce((a, b) => (Math.abs(b[2] - at) < Math.abs(a[2] - at) ? b : a));

for (const figure of document.querySelectorAll(".chart")) {
  const plot = figure.querySelector(".plot");
  const cursor = plot.querySelector(".cursor");
  const tip = plot.querySelector(".tip");
  const { x: label, series } = JSON.parse(figure.dataset.chart);
  const lines = series.map((line, i) => ({ i, line })).filter(({ line }) => line.points.length);
  // Every x that has a value, in order: where the arrow keys stop. [x, place]
  const stops = [...new Map(lines.flatMap(({ line }) => line.points.map((point) => [point[2], point[0]])))]
    .map(([place, x]) => [x, place])
    .sort((a, b) => a[1] - b[1]);
  let stop = stops.length; // none yet; the first key shows the last value

  const hide = () => {
    cursor.hidden = tip.hidden = true;
    plot.querySelectorAll(".dot").forEach((dot) => dot.remove());
  };

  const show = (place) => {
    stop = stops.reduce((best, [, at], i) => (Math.abs(at - place) < Math.abs(stops[best][1] - place) ? i : best), 0);
    const [x, left] = stops[stop];
    hide();
    const words = [`${label} ${formatNumber(x)}`];
    for (const { i, line } of lines) {
      const point = nearest(line.points, left);
      if (Math.abs(point[2] - left) > 40) continue;
      const dot = plot.appendChild(document.createElement("i"));
      dot.className = "dot";
      dot.style.cssText = `left:${point[2] / 10}%;top:${point[3] / 10}%;background:var(--line-${series.length > 1 ? i : 1})`;
      words.push((series.length > 1 ? line.name + " " : "") + formatNumber(point[1]));
    }
    cursor.hidden = tip.hidden = false;
    cursor.style.left = `${left / 10}%`;
    tip.textContent = words.join(words.length > 3 ? "\n" : "  \u00b7  ");
    tip.style.left = "0";
    tip.style.left = `clamp(0px, ${left / 10}% - ${tip.offsetWidth / 2}px, 100% - ${tip.offsetWidth}px)`;
  };

  const showAt = (event) => {
    const box = plot.getBoundingClientRect();
    show(((event.clientX - box.left) / box.width) * 1000);
  };
  plot.addEventListener("pointerdown", showAt);
  plot.addEventListener("pointermove", showAt);
  // What a finger has shown stays until the next touch elsewhere.
  plot.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") hide(); });
  plot.addEventListener("blur", hide);
  document.addEventListener("pointerdown", (event) => { if (!plot.contains(event.target)) hide(); });
  plot.addEventListener("keydown", (event) => {
    if (event.key === "Escape") hide();
    if (!(event.key in STEPS)) return;
    event.preventDefault();
    const last = stops.length - 1;
    const next = stop > last ? last : stop + STEPS[event.key];
    show(stops[Math.min(last, Math.max(0, next))][1]);
  });
}
