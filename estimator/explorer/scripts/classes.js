/** Every algorithm's class beside the source paper's, as `ceg classify` has them, and why the two part. */
"use strict";

ceg.classes = (() => {
  const { make, table, short, shares } = ceg.parts;
  const { words } = ceg;
  const plain = (name) => name.replaceAll("_", " ");

  /** Three probabilities as a bar, with the same in words below it. */
  function probabilities(found) {
    return make("div", {}, shares(found).bar, make("small", {}, Object.values(found).map(words.share).join(" / ")));
  }

  function grown({ growth_factor_per_decade: median, growth_factor_per_decade_interval: ends }) {
    return median === null ? null : `${median.toFixed(2)}x (${ends.map((end) => `${end.toFixed(2)}x`).join(" to ")})`;
  }

  /** @param {object} end an answer at one budget @returns {?string} the interval alone where it is far from evidence */
  function gain(end) {
    if (!end.predictive) return null;
    if (end.predictive[0] === end.predictive[1]) return "1 exactly";
    const wide = words.span(end.predictive);
    return end.status === "far_extrapolation" ? `${wide} (far)` : `${words.number(end.median)}x (${wide})`;
  }

  function classTable(rows) {
    const [{ low, high }] = rows;
    const columns = [short("Algorithm"), short("Our class"), short("The paper’s class"), short("Verdict"),
      { name: "Dependent / independent / fading", text: probabilities, order: (p) => p.dependent },
      short("Growth per tenfold"), ...[low, high].map((end) => short(`Gain at ${words.budget(end.flops)}`))];
    const cells = rows.map((r) => [plain(r.algorithm), r.class, r.paper_class === "not_studied" ? null : r.paper_class,
      r.verdict, r.class_probabilities, grown(r), gain(r.low), gain(r.high)]);
    return table(columns, cells, "Classes of all algorithms, ours and the source paper’s");
  }

  /** @param {HTMLElement} body of the section @param {object} sections of the document @returns {Function} to redraw */
  function show(body, { classes }) {
    const rows = classes.algorithms;
    const studied = rows.filter((r) => r.paper_class !== "not_studied");
    const count = (verdict) => studied.filter((r) => r.verdict === verdict && !r.by_construction).length;
    const given = studied.filter((r) => r.by_construction).length;
    const rest = count("no answer") ? `, ${count("no answer")} without an answer of ours` : "";
    const said = `A class is read off how the gain in FLOP grows with compute. The source paper (${classes.paper}) `
      + `classes ${studied.length} algorithms. ${given} had nothing to find out: they unlock, or gain 1 by construction. `
      + `Of the others ${count("same")} the same here, ${count("differs")} differ, ${count("open")} open, since no `
      + `probability reaches ${classes.undetermined_below} or runs span under two decades of 1e18 to 1e26 FLOP${rest}. `
      + "In brackets: 90%; far: far from the evidence, read the interval. Probabilities and growth are of the average "
      + "setting, gains of a new study.";
    body.append(make("p", {}, said), classTable(rows));
    const apart = studied.filter((r) => r.why.length && r.verdict !== "same");
    if (apart.length) {
      body.append(make("h3", {}, "Where the paper and we part, and why"), make("dl", { className: "reasons" },
        ...apart.flatMap((r) => [make("dt", {}, `${plain(r.algorithm)}: ${r.verdict}`),
          make("dd", {}, `${words.capital(r.why.join("; "))}.`)])));
    }
    return () => {};
  }

  return { show };
})();
