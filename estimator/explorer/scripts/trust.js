/** How good such forecasts are: studies left out, and ladders whose top was hidden. Both were stored by commands. */
"use strict";

ceg.trust = (() => {
  const { make, table, short, picture, logAxis } = ceg.parts;
  const { words } = ceg;
  const METHODS = { forecast: "forecast", last: "last gain kept", frontier: "frontiers apart", chinchilla: "Chinchilla fits" };
  const NARROW = 560; // px: below, no room for both studies and algorithms
  const percent = words.share;

  function coverageWords(found) {
    const { all } = found.summary;
    const [low, high] = all.coverage_range;
    return make("p", {}, `Every study is left out in turn and predicted from the others. Of ${all.rows} gains in `
      + `${all.studies} studies, the ${percent(found.interval_probability)} intervals hold `,
    make("strong", {}, percent(all.coverage)), ` (a study is one vote; with so few studies ${percent(low)} to ${percent(high)} `
      + `is in doubt). The median interval spans a factor of ${words.number(all.median_width_factor)}; the rival, the `
      + `gain of the other studies with their own spread, holds ${percent(all.rival_coverage)} with a score of `
      + `${all.rival_interval_score.toFixed(2)} against ${all.interval_score.toFixed(2)} (lower is better).`);
  }

  function coverageTraces(studies, ink, narrow) {
    const of = (s) => (narrow ? "" : `  ${[...new Set(s.algorithms.map((a) => a.algorithm))].join(", ")}`);
    const label = (s) => ceg.chart.plain(s.study + of(s));
    const told = (s) => `${ceg.chart.plain(s.algorithms.map((a) => a.algorithm).join(", "))}: ${s.inside} of ${s.rows} rows inside`;
    const points = (name, list, marker) => ({ name, marker, mode: "markers", x: list.flatMap((s) => s.published),
      y: list.flatMap((s) => [label(s), label(s)]), text: list.flatMap((s) => [told(s), told(s)]), hoverinfo: "text" });
    const inside = (s) => s.inside === s.rows;
    return [
      { x: studies.flatMap((s) => [...s.predicted, null]), y: studies.flatMap((s) => [label(s), label(s), null]), mode: "lines",
        name: "predicted without it, 90%", line: { color: ink.accent, width: 7 }, opacity: 0.35, hoverinfo: "skip" },
      points("published, all inside", studies.filter(inside), { color: ink.ink, symbol: "circle", size: 8 }),
      points("published, some outside", studies.filter((s) => !inside(s)), { color: "#D55E00", symbol: "x", size: 9 }),
    ];
  }

  function drawCoverage(target, studies) {
    const shown = [...studies].sort((a, b) => b.predicted[0] - a.predicted[0]);
    const narrow = target.clientWidth < NARROW;
    const traces = coverageTraces(shown, ceg.chart.colours(), narrow);
    const values = shown.flatMap((s) => [...s.predicted, ...s.published]);
    target.style.height = `${110 + 22 * shown.length}px`;
    picture(target, traces, {
      xaxis: logAxis(values, narrow ? "gain" : "gain (lowest and highest published of a study; a bar joins the intervals of its rows)", "x"),
      yaxis: { type: "category", tickfont: { size: narrow ? 9.5 : 11 } },
      legend: { orientation: "h", y: -0.16, yanchor: "top", x: 0 },
    });
  }

  function backtestTable(entry, caption) {
    const sets = [...new Set(entry.summary.map((s) => `${s.set} ${s.cut}`))];
    const of = (key, method) => entry.summary.find((s) => `${s.set} ${s.cut}` === key && s.method === method);
    const methods = Object.keys(METHODS).filter((m) => entry.summary.some((s) => s.method === m));
    const columns = [short("Ladders"), short("Hidden above"), { name: "Points", number: true }, ...methods.flatMap((m) => [
      { name: `${METHODS[m]}: error`, number: true, text: (v) => `${v.toFixed(2)}x` },
      { name: "in 90%", number: true, text: percent }])];
    const rows = sets.map((key) => {
      const { set, cut, points } = of(key, "forecast");
      const cells = methods.flatMap((m) => [of(key, m)?.median_factor, of(key, m)?.coverage_90]);
      return [set.replaceAll("_", " "), cut === "all" ? "all cuts" : `top / ${cut}`, points, ...cells];
    });
    return table(columns, rows, caption);
  }

  /** @param {HTMLElement} body of the section @param {object} sections of the document @returns {Function} to redraw */
  function show(body, { coverage, backtest }) {
    const chart = make("div", { className: "plot" });
    body.append(make("h3", {}, "Studies left out"), coverageWords(coverage), chart);
    if (backtest.public.length || backtest.own) {
      body.append(make("h3", {}, "Ladders whose top was hidden"), make("p", {}, "The largest runs of a ladder are hidden, the gain "
        + "there is forecast, then compared. Error: the median factor by which a forecast misses. In 90%: how often the "
        + "gain lies in the 90% interval. Rivals: the last gain seen stays as it is; each arm’s frontier or "
        + "Chinchilla law is fitted apart. A rival that does better stands here too."));
    }
    for (const entry of backtest.public) body.append(backtestTable(entry, "Scores on public ladders"));
    if (backtest.own) body.append(make("h3", {}, "The same on our own ladder"), backtestTable(backtest.own, "Scores on our ladder"));
    const draw = () => drawCoverage(chart, coverage.studies);
    draw();
    return draw;
  }

  return { show };
})();
