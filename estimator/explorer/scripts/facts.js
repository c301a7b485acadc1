/** The answer in numbers: intervals, class, interaction, the two models of a gain in time, notes. */
"use strict";

ceg.facts = (() => {
  const { words } = ceg;
  const { make, byId, shares } = ceg.parts;
  const PLACES = ["figures", "classes", "interaction", "models", "notes"];

  /** @param {string} name @param {string} value @param {string} [more] smaller, behind it */
  function figure(name, value, more = "") {
    const behind = more ? [" ", make("small", { className: "hint" }, more)] : [];
    return make("div", {}, make("dt", {}, name), make("dd", {}, value, ...behind));
  }

  function figures(answer) {
    if (answer.ceg_median === null) return [];
    const far = answer.status === "far_extrapolation";
    const wide = words.span(answer.ceg_predictive_interval_90);
    const median = `${words.number(answer.ceg_median)}x`;
    const list = [
      figure("One new study", far ? wide : median, far ? `90%; median ${median}` : `90%: ${wide}`),
      figure("One new study, 50%", words.span(answer.ceg_predictive_interval_50)),
      figure("Average over studies", `${words.number(answer.ceg_mean_median)}x`,
        `90%: ${words.span(answer.ceg_mean_interval)}`),
    ];
    if (answer.growth_factor_per_decade !== null) {
      list.push(figure("Growth per tenfold compute", `${words.number(answer.growth_factor_per_decade)}x`,
        `90%: ${words.span(answer.growth_factor_per_decade_interval)}`));
    }
    for (const [flops, share] of answer.share_above_threshold_flops ?? []) {
      list.push(figure(`Worth more than ${words.budget(flops)} FLOP`, words.share(share), "probability"));
    }
    return list;
  }

  /** The three probabilities as a bar; shading and order tell them apart, and the labels below say them. */
  function classes(answer, asked) {
    if (!answer.class) return [];
    const head = `Does the gain depend on compute? ${words.capital(answer.class)}`;
    const lacks = answer.class_lacks ? [make("p", { className: "hint" }, `No label: ${answer.class_lacks}.`)] : [];
    if (!answer.class_probabilities) {
      return [make("h3", {}, head), ...lacks, make("p", { className: "hint" }, "Far from all runs no probability is given.")];
    }
    const { bar, keys } = shares(answer.class_probabilities);
    const paper = asked.paperClasses.length ? `The source paper: ${words.listed(asked.paperClasses)}.` : "";
    return [make("h3", {}, head), bar, keys, ...lacks, ...(paper ? [make("p", { className: "hint" }, paper)] : [])];
  }

  function interaction(answer) {
    const found = answer.interaction;
    if (!found) return [];
    const gain = `${words.number(found.stack_over_product_median)}x`;
    const said = [make("h3", {}, "Together, against the product of the parts"), make("p", {}, make("strong", {}, gain),
      ` (90%: ${words.span(found.stack_over_product_interval)}); it is in the gain above.`)];
    if (found.measured.length) {
      said.push(make("details", {}, make("summary", {}, `Learnt from ${found.measured.length} measured combinations`),
        make("ul", {}, ...found.measured.map((m) => make("li", {},
          `${m.what} against its parts: ${words.number(m.over_product_of_parts)}x`
          + `${m.flops === null ? "" : ` at ${words.budget(m.flops)} FLOP`}, ${m.study}`)))));
    }
    const pairs = found.pairs_never_measured_together.map((pair) => pair.join(" + "));
    if (pairs.length) said.push(make("p", { className: "hint" }, `No study measured together and apart: ${pairs.join(", ")}.`));
    return said;
  }

  function models(answer, asked) {
    const found = answer.setting;
    if (!found) return [];
    const speed = words.number(found.factor);
    const sd = found.ln_factor_sd.toFixed(2);
    const head = asked.currency === "decode" ? `Modelled: ${speed}x (sd of ln ${sd}).`
      : `Gain in FLOP ${words.number(found.gain_in_flop_median)}x, times achieved FLOP/s ${speed}x (modelled, sd of ln ${sd}).`;
    const rows = [
      ["Layers × width", (side) => `${side.layers} × ${side.width}`],
      ["Parameters, active / total", (side) => `${words.number(side.params_active)} / ${words.number(side.params_total)}`],
      ["Runs on", (side) => `${side.devices} × ${side.device}`],
      [asked.currency === "decode" ? "Seconds per token" : "Seconds per step", (side) => words.number(side.seconds)],
      ["Longest part", (side) => `${side.longest.replaceAll("_", " ")}, ${words.share(side.share)}`],
    ];
    const table = make("table", { className: "sides" }, make("thead", {}, make("tr", {}, make("th", {}, ""),
      make("th", { scope: "col" }, "with it"), make("th", { scope: "col" }, "without"))));
    table.append(make("tbody", {}, ...rows.map(([name, of]) => make("tr", {}, make("th", { scope: "row" }, name),
      make("td", { className: "short" }, of(found.with)), make("td", { className: "short" }, of(found.without))))));
    const which = make("p", { className: "hint" }, `Models of ${words.budget(found.flops)} FLOP. Speeds are averages over `
      + "models of neighbouring sizes.");
    return [make("h3", {}, "The two models that are timed"), make("p", {}, head), table, which];
  }

  /**
   * Show an answer below the picture, in `PLACES`.
   * @param {object} answer one entry of `estimates` (docs/json.md)
   * @param {object} asked the question, with `paperClasses`, what the source paper calls its algorithms
   */
  function show(answer, asked) {
    byId("figures").replaceChildren(...figures(answer));
    byId("classes").replaceChildren(...classes(answer, asked));
    const wasOpen = byId("interaction").querySelector("details")?.open ?? false;
    byId("interaction").replaceChildren(...interaction(answer));
    const learnt = byId("interaction").querySelector("details");
    if (learnt) learnt.open = wasOpen;
    byId("models").replaceChildren(...models(answer, asked));
    const notes = answer.notes.map((note) => make("li", {}, `${words.capital(note)}.`));
    byId("notes").replaceChildren(...(notes.length ? [make("h3", {}, "Notes"), make("ul", {}, ...notes)] : []));
  }

  return { PLACES, show };
})();
