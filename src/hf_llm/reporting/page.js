for (const figure of document.querySelectorAll(".chart")) {
  const plot = figure.querySelector(".plot"), cursor = plot.querySelector(".cursor"), tip = plot.querySelector(".tip");
  const { x: label, series } = JSON.parse(figure.dataset.chart);
  const number = value => Math.abs(value) >= 1e-3 || value === 0 ? +value.toPrecision(5) : value.toExponential(2);
  const nearest = (points, at) => points.reduce((a, b) => Math.abs(b[2] - at) < Math.abs(a[2] - at) ? b : a);
  const leave = () => { cursor.hidden = tip.hidden = true; plot.querySelectorAll(".dot").forEach(dot => dot.remove()); };
  plot.addEventListener("pointerleave", leave);
  plot.addEventListener("pointermove", event => {
    const box = plot.getBoundingClientRect(), at = (event.clientX - box.left) / box.width * 1000;
    const lines = series.map((line, i) => ({ i, line })).filter(({ line }) => line.points.length);
    const [step, , left] = nearest(lines.map(({ line }) => nearest(line.points, at)), at);
    leave();
    const words = [`${label} ${step.toLocaleString("en")}`];
    for (const { i, line } of lines) {
      const point = nearest(line.points, left);
      if (Math.abs(point[2] - left) > 40) continue;
      const dot = plot.appendChild(document.createElement("i"));
      dot.className = "dot";
      dot.style.cssText = `left:${point[2] / 10}%;top:${point[3] / 10}%;background:var(--line-${series.length > 1 ? i : 1})`;
      words.push((series.length > 1 ? line.name + " " : "") + number(point[1]).toLocaleString("en", { maximumSignificantDigits: 5 }));
    }
    cursor.hidden = tip.hidden = false;
    cursor.style.left = `${left / 10}%`;
    tip.textContent = words.join("  ·  ");
    tip.style.left = `clamp(0px, ${left / 10}% - ${tip.offsetWidth / 2}px, 100% - ${tip.offsetWidth}px)`;
  });
}
