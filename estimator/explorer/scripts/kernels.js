/** Kernel times by family of operations, and all of a session under its roofline. Seconds, FLOP/s, FLOP per byte. */
"use strict";

ceg.kernels = (() => {
  const { make, options, select, oneOf, table, short, picture, logAxis, look } = ceg.parts;
  const { words } = ceg;
  const { plain, colours } = ceg.chart;

  /** Seconds as people read them: 4.2 ms. @param {number} seconds */
  function duration(seconds) {
    const [unit, name] = seconds >= 1 ? [1, "s"] : seconds >= 1e-3 ? [1e-3, "ms"] : [1e-6, "µs"];
    return `${Number((seconds / unit).toPrecision(3))} ${name}`;
  }

  /** What implementations are called in a legend, each with its rows. @returns {[string, object[]][]} */
  function implementations(rows) {
    const names = [...new Set(rows.map((r) => r.implementation))].sort();
    const mine = (name) => rows.filter((r) => r.implementation === name);
    return names.map((name) => [plain(mine(name)[0].ours ? `${name} (ours)` : name), mine(name)]);
  }

  function drawTimes(target, session, family, panel) {
    const { x, x_title: title } = session.families[family];
    const rows = session.rows.filter((r) => r.family === family && r.panel === panel);
    const traces = implementations(rows.sort((a, b) => a[x] - b[x])).map(([name, mine], i) => ({
      ...look(i, mine[0].ours ? 3.5 : 1.6), name, hoverinfo: "text", x: mine.map((r) => r[x]), y: mine.map((r) => r.median_s),
      text: mine.map((r) => `${plain(r.implementation)}: ${duration(r.median_s)}<br>${words.number(r.flops_per_s)} FLOP/s`),
      error_y: { type: "data", symmetric: false, array: mine.map((r) => r.p80_s - r.median_s),
        arrayminus: mine.map((r) => r.median_s - r.p20_s), width: 0, thickness: 1.2 },
    }));
    const sizes = [...new Set(rows.map((r) => r[x]))].sort((a, b) => a - b);
    picture(target, traces, {
      xaxis: { ...logAxis(sizes, title), tickvals: sizes, ticktext: sizes.map(String) },
      yaxis: logAxis(rows.flatMap((r) => [r.p20_s, r.p80_s]), "time, median and p20 to p80", "", duration),
    });
  }

  /** A session's operations under its ceilings: those of a family by implementation, the others pale behind them. */
  function drawRoofline(target, session, family) {
    const { ceilings } = session;
    const rows = session.rows.filter((r) => r.flops_per_s > 0);
    const reach = rows.map((r) => r.flop_per_byte);
    const ends = [Math.min(...reach) / 1.25, Math.max(...reach) * 1.25];
    const told = (r) => `${plain(`${r.implementation}, ${r.op} ${r.pass} ${r.pattern}`)}<br>${duration(r.median_s)}, `
      + `${words.number(r.flops_per_s)} FLOP/s`;
    const points = (list) => ({ mode: "markers", hoverinfo: "text", x: list.map((r) => r.flop_per_byte),
      y: list.map((r) => r.flops_per_s), text: list.map(told) });
    const chosen = rows.filter((r) => r.family === family);
    const traces = implementations(chosen).map(([name, mine], i) => ({ ...look(i), name, ...points(mine) }));
    const others = rows.filter((r) => r.family !== family);
    const quiet = { color: colours().quiet, symbol: "circle", size: 4, opacity: 0.5 };
    if (others.length) traces.unshift({ name: "other operations", marker: quiet, ...points(others) });
    const seen = rows.map((r) => r.flops_per_s);
    if (ceilings) {
      const bend = ceilings.flops_per_s / ceilings.bytes_per_s;
      const x = [ends[0], Math.min(Math.max(bend, ends[0]), ends[1]), ends[1]];
      const y = x.map((intensity) => Math.min(ceilings.flops_per_s, intensity * ceilings.bytes_per_s));
      seen.push(...y);
      traces.unshift({ x, y, mode: "lines", name: "roofline", hoverinfo: "skip", line: { color: colours().ink, width: 2.5 } });
    }
    picture(target, traces, { xaxis: logAxis(reach, "useful FLOP per byte moved"), yaxis: logAxis(seen, "useful FLOP/s") });
  }

  function timesTable(session) {
    const number = (name, text) => ({ name, number: true, text });
    const columns = [{ name: "Operation" }, short("Implementation"), short("Pass"), short("Pattern"), number("Query tokens"),
      ...["Median", "p20", "p80"].map((name) => number(name, duration)),
      ...["FLOP/s", "FLOP/byte"].map((name) => number(name, words.number))];
    const rows = session.rows.map((r) => [r.panel ?? r.op, r.implementation, r.pass, r.pattern, r.seq_q, r.median_s, r.p20_s,
      r.p80_s, r.flops_per_s, r.flop_per_byte]);
    return make("details", {}, make("summary", {}, `All ${rows.length} times as a table`), table(columns, rows, "Kernel times"));
  }

  /** @param {HTMLElement} body of the section @param {object} sections of the document @returns {Function} to redraw */
  function show(body, { kernels }) {
    const named = (s) => `${s.device}, ${s.date.slice(0, 10)}`;
    return oneOf(body, kernels, "No kernel times are in this installation.", "Session", named, showSession);
  }

  function showSession(place, session) {
    const [times, roofline] = [make("div", { className: "plot" }), make("div", { className: "plot" })];
    let [family] = Object.keys(session.families), panel;
    const panels = () => [...new Set(session.rows.filter((r) => r.family === family).map((r) => r.panel))];
    const [panelLabel, panelField] = select("Case", [], (value) => {
      panel = value;
      drawTimes(times, session, family, panel);
    });
    const fillPanels = () => {
      panelField.replaceChildren(...options(panels().map((name) => [name, name])));
      [panel] = panels();
    };
    const families = Object.entries(session.families).map(([name, f]) => [name, f.title]);
    const [familyLabel] = select("Operation", families, (value) => {
      family = value;
      fillPanels();
      draw();
    });
    const versions = [`torch ${session.torch}`, session.triton && `triton ${session.triton}`].filter(Boolean).join(", ");
    place.replaceChildren(make("p", {}, `Measured on ${session.device} (${versions}). Bars: p20 to p80 of repeats. Roofline: the `
      + "fastest matrix product and copy of the same session."), make("div", { className: "filter" }, familyLabel, panelLabel),
    make("div", { className: "pair" }, times, roofline), timesTable(session));
    const draw = () => {
      if (family) drawTimes(times, session, family, panel);
      drawRoofline(roofline, session, family);
    };
    if (family) fillPanels();
    draw();
    return draw;
  }

  return { show };
})();
