/** The main picture in the page: the curve of a question, its evidence, and the legend. */
"use strict";

ceg.plot = (() => {
  const THUMB = 16; // px: the slider's, whose middle stands at the budget
  const { chart } = ceg;
  const { make, byId } = ceg.parts;
  let shown, drawn;

  /** Draw the picture of a question. @param {object} data the document @param {object} answers the page's */
  function show(data, answers, asked) {
    const { algorithms: names, currency } = asked;
    const curve = names.length ? answers.curve(asked).filter((a) => a.median !== null) : [];
    const points = names.length === 1 ? ceg.sections.points(data, names[0], currency) : [];
    shown = { curve, points, page: data.page, currency, everything: byId("everything").checked, together: names.length > 1 };
    redraw();
  }

  /** Draw it again for its present size and colours. */
  function redraw() {
    const target = byId("chart");
    drawn = chart.figure(shown, target.clientWidth);
    Plotly.react(target, drawn.data, drawn.layout, { displayModeBar: false, displaylogo: false, responsive: false });
    const axis = target._fullLayout.xaxis;
    const [low, high] = shown.page.flops_range.map((flops) => axis._offset + axis.l2p(Math.log10(flops)));
    byId("slider").style.left = `${low - THUMB / 2}px`;
    byId("slider").style.width = `${high - low + THUMB}px`;
    const ink = chart.colours();
    byId("legend").replaceChildren(...lines(ink), ...symbols(ink));
    showHidden();
  }

  /** An entry of the legend: a path in a box 12 high. */
  function entry(text, width, attributes) {
    const [box, path] = ["svg", "path"].map((tag) => document.createElementNS("http://www.w3.org/2000/svg", tag));
    const size = { width, height: 12, viewBox: `0 0 ${width} 12`, "aria-hidden": "true" };
    for (const [name, value] of Object.entries(size)) box.setAttribute(name, value);
    for (const [name, value] of Object.entries(attributes)) path.setAttribute(name, value);
    box.append(path);
    return make("li", {}, box, text);
  }

  /** The stretches of the curve, from near to far. */
  function lines(ink) {
    const told = drawn.data.filter((t) => t.showlegend === true).sort((a, b) => a.legendrank - b.legendrank);
    return told.map(({ name, line }) => entry(name, 34, { d: "M0 6H34", stroke: ink.accent, "stroke-width": line.width,
      "stroke-dasharray": line.dash === "solid" ? "0" : line.dash.replaceAll("px", "") }));
  }

  function symbols(ink) {
    const kinds = Object.entries(chart.KINDS).filter(([, look]) => drawn.data.some((t) => t.name === look.label));
    return kinds.map(([kind, { symbol, path, label }]) => {
      const { color, line } = chart.marker(kind, ink);
      return entry(label, 12, { d: path, fill: symbol.endsWith("-open") ? "none" : color, stroke: line.color,
        "stroke-width": line.width });
    });
  }

  /** Say which rows are not in the picture. */
  function showHidden() {
    const { points, page, together } = shown;
    const left = points.length - drawn.data.reduce((n, t) => n + (t.mode === "markers" ? t.x.length : 0), 0);
    byId("reach").hidden = !points.some((p) => p.flops !== null && p.flops < page.flops_range[0]);
    byId("hidden").textContent = together
      ? "Of a combination no rows are drawn: those of its parts are in the table below."
      : left ? `${left} of ${points.length} rows are not in the picture: no compute stated, or out of range.` : "";
  }

  /** What is drawn: the answers along the curve, and Plotly's data and layout. */
  const held = () => ({ curve: shown.curve, ...drawn });

  return { show, redraw, held };
})();
