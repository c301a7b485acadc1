/** The main picture: CEG against scale as estimator/pictures/curves.py draws it, through Plotly. Gains are factors. */
"use strict";

ceg.chart = (() => {
  // Okabe & Ito's colours; the symbol says the same in black and white. `path` is for the legend, in a box of 12.
  const KINDS = {
    own: { symbol: "star", colour: "#56B4E9", label: "our own run",
      path: "M6 .5 7.6 4.3 11.7 4.6 8.6 7.3 9.6 11.3 6 9.1 2.4 11.3 3.4 7.3.3 4.6 4.4 4.3Z" },
    measured: { symbol: "circle", colour: "ink", label: "measured", path: "M6 2A4 4 0 1 1 6 10A4 4 0 1 1 6 2Z" },
    observational: { symbol: "square-open", colour: "#009E73", label: "observational", path: "M2.5 2.5H9.5V9.5H2.5Z" },
    derived: { symbol: "diamond-open", colour: "#CC79A7", label: "derived", path: "M6 1.5 10.5 6 6 10.5 1.5 6Z" },
    claimed: { symbol: "triangle-up-open", colour: "#E69F00", label: "claimed", path: "M6 1.5 10.5 10H1.5Z" },
    extrapolated: { symbol: "triangle-down-open", colour: "#D55E00", label: "extrapolated by its source",
      path: "M6 10.5 1.5 2H10.5Z" },
  };
  // How a stretch of the curve looks; from near to far.
  const STRETCHES = [
    { name: "modelled", dash: "solid", width: 3, pale: 0.2, dark: 0.28 },
    { name: "near a run", dash: "solid", width: 3, pale: 0.2, dark: 0.28 },
    { name: "extrapolated", dash: "8px,5px", width: 2.2, pale: 0.12, dark: 0.17 },
    { name: "far out", dash: "2px,4px", width: 2, pale: 0.06, dark: 0.08 },
  ];
  const MIN_SPAN = 4; // the axis of gains shows at least this factor: a flat line should look flat
  const MAX_DECADES = 10; // on the axis of gains: beyond, not every decade has its tick

  /** Text for Plotly, which reads some HTML: nothing in it is markup. @param {string} text */
  const plain = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

  /** Long text in lines, since a hover label does not fold. @param {string} text @param {number} width characters */
  function folded(text, width = 64) {
    const lines = [""];
    for (const word of text.split(/\s+/)) {
      if (lines.at(-1) && lines.at(-1).length + word.length >= width) lines.push("");
      lines[lines.length - 1] += (lines.at(-1) ? " " : "") + word;
    }
    return lines.map(plain).join("<br>");
  }

  /** Colours of the page as it is shown now, from its style sheet. */
  function colours() {
    const style = getComputedStyle(document.documentElement);
    const names = ["ink", "quiet", "rule", "accent", "paper"];
    return Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
  }

  /** @param {string} hex #rrggbb @param {number} alpha */
  function faded(hex, alpha) {
    const [r, g, b] = [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
    return `rgba(${r},${g},${b},${alpha})`;
  }

  const NEAR_DECADES = 0.5; // as cegain.common.verdict has it

  /** Runs of budgets that look alike, each reaching to the first budget of the next, so that no gap is left. */
  function stretches(curve, farDecades) {
    const look = (a) => (a.modelled ? "modelled" : a.decades === null || !(a.decades <= farDecades) ? "far out"
      : a.decades > NEAR_DECADES ? "extrapolated" : "near a run");
    const looks = curve.map((a) => STRETCHES.findIndex((s) => s.name === look(a)));
    const parts = [];
    for (let start = 0, i = 1; i <= looks.length; i++) {
      if (i < looks.length && looks[i] === looks[start]) continue;
      // Between two budgets the paler look holds: the evidence ends somewhere in between.
      const end = i === looks.length || looks[i] > looks[start] ? i : i + 1;
      const begin = start > 0 && looks[start] > looks[start - 1] ? start - 1 : start;
      parts.push({ look: looks[start], answers: curve.slice(begin, end) });
      start = i;
    }
    return parts;
  }

  function band(answers, low, high, colour) {
    const flops = answers.map((a) => a.flops);
    return {
      x: [...flops, ...flops.toReversed()],
      y: [...answers.map((a) => a[low]), ...answers.map((a) => a[high]).toReversed()],
      fill: "toself", fillcolor: colour, line: { width: 0 }, mode: "lines", hoverinfo: "skip", showlegend: false,
    };
  }

  function curveTraces(curve, farDecades, ink) {
    const parts = stretches(curve, farDecades);
    return parts.flatMap(({ look, answers }, i) => {
      const { name, dash, width, pale, dark } = STRETCHES[look];
      const median = { x: answers.map((a) => a.flops), y: answers.map((a) => a.median), mode: "lines", name: `median, ${name}`,
        line: { color: ink.accent, width, dash }, hoverinfo: "skip", legendrank: look,
        showlegend: parts.findIndex((part) => part.look === look) === i };
      return [band(answers, "low90", "high90", faded(ink.accent, pale)),
        band(answers, "low50", "high50", faded(ink.accent, dark)), median];
    });
  }

  /** @param {object} point evidence in the currency of the picture: flops (FLOP), ceg, low, high, kind and its words */
  function hover(point) {
    const interval = point.low === null ? "" : ` (${ceg.words.span([point.low, point.high])})`;
    const head = `<b>${ceg.words.number(point.ceg)}x</b>${interval} at ${ceg.words.budget(point.flops)} FLOP`;
    const lines = [head, `${plain(KINDS[point.kind].label)}: ${folded(point.study)}`, folded(point.source)];
    if (point.conversion) lines.push(folded(`converted: ${point.conversion}`));
    return lines.join("<br>");
  }

  /** Plotly's look of a kind of evidence. */
  function marker(kind, ink) {
    const { symbol, colour } = KINDS[kind];
    const [own, color] = [kind === "own", colour === "ink" ? ink.ink : colour];
    return { symbol, color, size: own ? 11 : 8, line: { color: own ? ink.ink : color, width: own ? 0.6 : 1.5 } };
  }

  function evidenceTraces(points, ink) {
    return Object.entries(KINDS).filter(([kind]) => points.some((p) => p.kind === kind)).map(([kind, look]) => {
      const shown = points.filter((p) => p.kind === kind);
      const reach = (p, end, sign) => (p[end] === null ? 0 : Math.max(0, sign * (p[end] - p.ceg)));
      return {
        x: shown.map((p) => p.flops), y: shown.map((p) => p.ceg), mode: "markers", name: look.label,
        text: shown.map(hover), hoverinfo: "text", marker: marker(kind, ink),
        error_y: { type: "data", symmetric: false, array: shown.map((p) => reach(p, "high", 1)),
          arrayminus: shown.map((p) => reach(p, "low", -1)), color: faded(ink.quiet, 0.65), thickness: 1, width: 0 },
      };
    });
  }

  /** Ends of the axis of gains (factors) for a curve and its points. */
  function gainRange(curve, points) {
    const seen = [1, ...curve.flatMap((a) => [a.low90, a.high90]), ...points.map((p) => p.ceg)];
    let [low, high] = [Math.min(...seen) / 1.1, Math.max(...seen) * 1.1];
    const widen = Math.max(1, Math.sqrt(MIN_SPAN / (high / low)));
    return [low / widen, high * widen];
  }

  /** Multiples `steps` of powers of ten between two ends; of more than `most` decades, not of every one. */
  function ticks([low, high], steps, most) {
    const every = Math.max(1, Math.ceil(Math.log10(high / low) / most));
    const found = [];
    for (let d = Math.floor(Math.log10(low)); d <= Math.log10(high); d++) {
      if (d % every === 0) found.push(...steps.map((s) => s * 10 ** d));
    }
    return found.filter((t) => t >= low && t <= high);
  }

  /** Round factors, as many as the span needs. @param {number[]} ends @returns {number[]} */
  function gainTicks([low, high]) {
    const span = Math.log10(high / low);
    return ticks([low, high], span > 4 ? [1] : span > 2 ? [1, 3] : span > 1 ? [1, 2, 5] : [1, 1.5, 2, 3, 5, 7], MAX_DECADES);
  }

  function marks(page, ink, narrow) {
    const line = (flops, top, style) => ({ type: "line", xref: "x", yref: "paper", x0: flops, x1: flops, ...top,
      layer: "below", line: style });
    const label = (flops, text, weight) => ({ x: Math.log10(flops), xref: "x", y: 1.012, yref: "paper", text,
      showarrow: false, xanchor: narrow ? "center" : "left", yanchor: "bottom", textangle: narrow ? -90 : -38,
      font: { size: narrow ? 9.5 : 11.5, color: weight ? ink.ink : ink.quiet } });
    const shapes = [
      { type: "line", xref: "paper", x0: 0, x1: 1, yref: "y", y0: 1, y1: 1, layer: "below", line: { color: ink.quiet, width: 1 } },
      ...page.thresholds.map((t) => line(t.flops, { y0: 0, y1: 1.01 }, { color: ink.quiet, width: 1.2, dash: "6px,3px" })),
      ...page.runs.map((run) => line(run.flops, { y0: 0.965, y1: 1.01 }, { color: ink.quiet, width: 1.2 }))];
    const annotations = [...page.thresholds.map((t) => (
      label(t.flops, `<b>${ceg.words.budget(t.flops)}</b>${narrow ? "" : ` ${plain(t.name)}`}`, true))),
    ...page.runs.map((run) => label(run.flops, plain(run.name), false))];
    return { shapes, annotations };
  }

  /**
   * Data and layout of the picture.
   * @param {{curve: object[], points: object[], page: object, currency: string, everything: boolean}} shown
   *   curve: answers-lite at rising budgets {flops, median, low50, high50, low90, high90, decades, modelled};
   *   points: see `hover`; everything: also show evidence below the slider's range
   * @param {number} width px
   */
  function figure(shown, width) {
    const ink = colours();
    const narrow = width < 560;
    const stated = shown.points.map((p) => p.flops).filter((flops) => flops !== null);
    const lowest = Math.min(shown.page.flops_range[0], ...(shown.everything ? stated : []));
    const ends = [lowest / (shown.everything ? 1.5 : 1), shown.page.flops_range[1]];
    const points = shown.points.filter((p) => p.flops !== null && p.flops >= ends[0] && p.flops <= ends[1]);
    const range = gainRange(shown.curve, points);
    const decades = Math.log10(ends[1] / ends[0]);
    const step = narrow ? (decades > 14 ? 4 : 3) : decades > 14 ? 2 : 1;
    const ticks = [];
    for (let d = Math.ceil(Math.log10(ends[0])); d <= Math.log10(ends[1]) + 1e-9; d += step) ticks.push(10 ** d);
    const axis = { type: "log", fixedrange: true, gridcolor: ink.rule, zeroline: false, linecolor: ink.quiet,
      tickcolor: ink.rule, ticks: "outside", ticklen: 4 };
    const yTicks = gainTicks(range);
    const layout = {
      ...marks(shown.page, ink, narrow),
      margin: { l: narrow ? 46 : 64, r: narrow ? 10 : 20, t: narrow ? 92 : 98, b: 34 },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, hovermode: "closest",
      dragmode: false, font: { family: "system-ui, sans-serif", size: narrow ? 11 : 12.5, color: ink.quiet },
      hoverlabel: { align: "left", bgcolor: ink.paper, bordercolor: ink.quiet, font: { color: ink.ink, size: 12 } },
      xaxis: { ...axis, range: ends.map(Math.log10), tickvals: ticks, ticktext: ticks.map((t) => ceg.words.budget(t)) },
      yaxis: { ...axis, range: range.map(Math.log10), tickvals: yTicks,
        ticktext: yTicks.map((t) => `${Number(t.toPrecision(6))}x`) },
    };
    layout.annotations.push({ x: 0, xref: "paper", y: 1.012, yref: "paper", xanchor: "left", yanchor: "bottom", showarrow: false,
      align: "left", text: `<b>Gain in ${ceg.words.MONEY[shown.currency]}</b>`, font: { color: ink.ink },
      xshift: narrow ? -40 : -56 });
    return { data: [...curveTraces(shown.curve, shown.page.far_decades, ink), ...evidenceTraces(points, ink)], layout };
  }

  return { KINDS, colours, figure, marker, plain, folded, ticks };
})();
