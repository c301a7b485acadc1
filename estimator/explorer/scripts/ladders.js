/** Our own ladders of training runs: losses by budget, and the gains read off them. Budgets in FLOP. */
"use strict";

ceg.ladders = (() => {
  const { make, select, oneOf, table, short, picture, logAxis, look } = ceg.parts;
  const { words } = ceg;

  function drawLosses(target, ladder, gain) {
    const arms = ladder.arms.filter((a) => a.arm === gain.treatment || a.arm === gain.baseline);
    const traces = arms.map((a, i) => ({
      ...look(i), name: ceg.chart.plain(a.arm), x: a.rungs.map((r) => r.rung_flops),
      y: a.rungs.map((r) => r.loss_nats_per_token), hoverinfo: "text",
      text: a.rungs.map((r) => `${r.loss_nats_per_token.toFixed(4)} nats, ${r.seeds} seeds`),
      error_y: { type: "data", array: a.rungs.map((r) => r.loss_half_width_90 ?? 0), width: 3, thickness: 1 },
    }));
    const flops = arms.flatMap((a) => a.rungs.map((r) => r.rung_flops));
    picture(target, traces, { xaxis: logAxis(flops, "training compute (FLOP)", "", words.budget),
      yaxis: { title: { text: "loss (nats per token)", standoff: 8 } } });
  }

  function drawGains(target, gain) {
    const read = gain.rungs.filter((r) => r.ceg_interval_90);
    const trace = {
      ...look(0), name: ceg.chart.plain(gain.algorithm), x: read.map((r) => r.rung_flops), y: read.map((r) => r.ceg),
      text: read.map(gained), hoverinfo: "text",
      error_y: { type: "data", symmetric: false, array: read.map((r) => r.ceg_interval_90[1] - r.ceg),
        arrayminus: read.map((r) => r.ceg - r.ceg_interval_90[0]), width: 3, thickness: 1.2 },
    };
    const budgets = gain.rungs.map((r) => r.rung_flops);
    picture(target, [trace], {
      xaxis: logAxis(budgets, "training compute spent with it (FLOP)", "", words.budget),
      yaxis: logAxis([0.7, 1.4, ...read.flatMap((r) => r.ceg_interval_90)], "gain in FLOP, 90%", "x"),
      shapes: [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: 1, y1: 1, line: { color: ceg.chart.colours().quiet, width: 1 } }],
    });
  }

  const gained = (r) => `${words.number(r.ceg)}x (${words.span(r.ceg_interval_90)})`;
  const said = (r) => (r?.ceg_interval_90 ? gained(r) : r?.why || null);

  function gainTable(ladder) {
    const told = ladder.gains.flatMap((g) => g.rungs.filter(said).map((r) => r.rung_flops));
    const budgets = [...new Set(told)].sort((a, b) => a - b);
    const columns = [short("Arm"), short("Against"), ...budgets.map((flops) => ({ name: words.budget(flops) }))];
    const rows = ladder.gains.map((g) => [g.algorithm, g.baseline,
      ...budgets.map((flops) => said(g.rungs.find((r) => r.rung_flops === flops)))]);
    return table(columns, rows, "Gains read off our ladders, with 90% intervals");
  }

  function excessTable(ladder) {
    const rows = ladder.gains.flatMap((g) => g.rungs.filter((r) => r.over_parts).map(({ rung_flops: flops, over_parts: over }) => (
      [g.algorithm, flops, over.ratio, words.span(over.ratio_interval_90)])));
    if (!rows.length) return [];
    const columns = [short("Combination"), { name: "Budget (FLOP)", number: true, text: words.budget },
      { name: "Gain / product of its parts", number: true, text: (v) => `${words.number(v)}x` }, short("90%")];
    return [make("h3", {}, "Combinations against the product of their parts"),
      table(columns, rows, "Combinations against the product of their parts")];
  }

  /** @param {HTMLElement} body of the section @param {object} sections of the document @returns {Function} to redraw */
  function show(body, { ladders }) {
    const none = "No runs of our own are in this installation.";
    return oneOf(body, ladders, none, "Stack", (ladder) => ladder.stack, showOne);
  }

  function showOne(place, ladder) {
    const [losses, gains] = [make("div", { className: "plot" }), make("div", { className: "plot" })];
    let index = 0;
    const draw = () => {
      drawLosses(losses, ladder, ladder.gains[index]);
      drawGains(gains, ladder.gains[index]);
    };
    const options = ladder.gains.map((g, i) => [String(i), `${g.algorithm} against ${g.baseline}`]);
    const [label] = select("Arm", options, (value) => {
      index = Number(value);
      draw();
    });
    const intro = `A small GPT, one algorithm switched at a time, same FLOP in every arm of a rung, several seeds; stack `
      + `“${ladder.stack}”. Bars: 90%, by the scatter between seeds.`;
    place.replaceChildren(make("p", {}, intro), make("div", { className: "filter" }, label),
      make("div", { className: "pair" }, losses, gains), make("h3", {}, "Gains by budget"), gainTable(ladder), ...excessTable(ladder));
    draw();
    return draw;
  }

  return { show };
})();
