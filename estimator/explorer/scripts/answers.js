/** Answers that estimator/explorer/grids.py computed, looked up. Budgets in FLOP, gains as factors. */
"use strict";
globalThis.ceg = {}; // what the page's scripts, of which this is the first, give to each other

ceg.answers = (() => {
  const POINTS_PER_DECADE = 10; // of a curve that is drawn

  /** Running sums of the differences that travel; null where there is no value. */
  function summed(steps, perUnit) {
    let last = 0;
    return steps.map((step) => (step === null ? null : (last += step) / perUnit));
  }

  /** The natural cubic spline through points, as a function. @param {number[]} x rising @param {number[]} y */
  function spline(x, y) {
    const n = x.length;
    const bend = new Float64Array(n), carried = new Float64Array(n); // second derivatives, by elimination
    for (let i = 1; i < n - 1; i++) {
      const share = (x[i] - x[i - 1]) / (x[i + 1] - x[i - 1]);
      const pivot = share * bend[i - 1] + 2;
      const turn = (y[i + 1] - y[i]) / (x[i + 1] - x[i]) - (y[i] - y[i - 1]) / (x[i] - x[i - 1]);
      bend[i] = (share - 1) / pivot;
      carried[i] = ((6 * turn) / (x[i + 1] - x[i - 1]) - share * carried[i - 1]) / pivot;
    }
    if (n) bend[n - 1] = 0;
    for (let i = n - 2; i >= 0; i--) bend[i] = bend[i] * bend[i + 1] + carried[i];
    return (at) => {
      let i = x.findIndex((place) => place >= at);
      if (i < 0) i = n - 1;
      if (i === 0) return y[0];
      const h = x[i] - x[i - 1], a = (x[i] - at) / h, b = 1 - a;
      return a * y[i - 1] + b * y[i] + ((a ** 3 - a) * bend[i - 1] + (b ** 3 - b) * bend[i]) * (h * h) / 6;
    };
  }

  /** One stack's answers in one currency at one setting. */
  class Curve {
    constructor(data, doc) {
      this.data = data;
      this.doc = doc;
      this.x = summed(data.x, doc.steps.x);
      this.splines = new Map();
    }

    /** Whether budgets i and j are answered alike: both by models, both by rows, or both not. */
    alike(i, j) {
      const { status, timed } = this.data;
      return timed[i] === timed[j] && (this.doc.statuses[status[i]] === "no_evidence") === (this.doc.statuses[status[j]] === "no_evidence");
    }

    /** {nearest, low, high}: of log10 FLOP the nearest budget, and the ends of the run of budgets answered like it. */
    around(at) {
      const { x } = this;
      let after = x.findIndex((place) => place >= at);
      if (after < 0) after = x.length - 1;
      const before = Math.max(0, x[after] === at ? after : after - 1);
      const nearest = at - x[before] <= x[after] - at ? before : after;
      let [low, high] = [nearest, nearest];
      while (low > 0 && this.alike(low - 1, nearest)) low--;
      while (high < x.length - 1 && this.alike(high + 1, nearest)) high++;
      return { nearest, low, high };
    }

    /** A list of the data between its budgets: by a spline, or `straight`. */
    between(name, steps, perUnit, at, { low, high }, straight = false) {
      const key = `${name} ${low}`;
      if (!this.splines.has(key)) {
        const values = summed(steps, perUnit);
        const kept = this.x.map((_, i) => i).filter((i) => i >= low && i <= high && values[i] !== null);
        const [x, y] = [kept.map((i) => this.x[i]), kept.map((i) => values[i])];
        this.splines.set(key, kept.length ? (straight ? straightThrough(x, y) : spline(x, y)) : () => null);
      }
      return this.splines.get(key)(at);
    }

    gain(name, at, run) {
      const { gains } = this.data;
      const value = gains?.[name] ? this.between(name, gains[name], this.doc.steps.ln, at, run) : null;
      return value === null ? null : Math.exp(value);
    }

    ends(name, at, run) {
      const found = [this.gain(`low${name}`, at, run), this.gain(`high${name}`, at, run)];
      return found[0] === null ? null : found;
    }
  }

  function straightThrough(x, y) {
    return (at) => {
      const i = x.findIndex((place) => place >= at);
      if (i <= 0) return i === 0 ? y[0] : y.at(-1);
      return y[i - 1] + ((y[i] - y[i - 1]) * (at - x[i - 1])) / (x[i] - x[i - 1]);
    };
  }

  /** The models of the budget nearest to a place that were timed, named as in docs/json.md. */
  function setting({ data, x }, nearest, asked) {
    if (data.timed[nearest] !== "1") return null;
    const timed = data.models.flatMap((models, i) => (models ? [i] : []));
    const i = timed.reduce((a, b) => (Math.abs(x[b] - x[nearest]) < Math.abs(x[a] - x[nearest]) ? b : a));
    const [gain, factor, sd, ...sides] = data.models[i];
    const [treatment, baseline] = sides.map(([layers, width, active, total, devices, seconds, longest, share]) => ({
      layers, width, params_active: active, params_total: total, devices, device: asked.device, seconds, longest, share }));
    return { flops: 10 ** x[i], gain_in_flop_median: gain, factor, ln_factor_sd: sd, with: treatment, without: baseline };
  }

  function interaction(curve, at, run) {
    const median = curve.gain("interaction", at, run);
    if (median === null) return null;
    const measured = curve.data.measured.map(([what, study, flops, ratio]) => ({ what, study, flops, over_product_of_parts: ratio }));
    return { stack_over_product_median: median, stack_over_product_interval: curve.ends("_interaction", at, run),
      measured, pairs_never_measured_together: curve.data.unmeasured };
  }

  /** The command that answers a question. */
  function command({ algorithms, flops, currency, device, baselineDevice, seqLen }) {
    const parts = ["ceg-estimate", "--algo", algorithms.join(","), "--flops", ceg.words.budget(flops)];
    if (currency !== "flop") {
      parts.push("--currency", currency, "--device", device, "--seq-len", seqLen);
      if (baselineDevice !== device) parts.push("--baseline-device", baselineDevice);
    }
    return parts.join(" ");
  }

  /** The page's answers. @param {object} doc what grids.answers gave */
  function make(doc) {
    const curves = new Map();

    /** @returns {?Curve} null where this page does not hold the question */
    function curveOf({ algorithms, currency, device, baselineDevice, seqLen }) {
      const stack = doc.stacks[[...algorithms].sort().join("+")];
      if (!stack || (currency !== "flop" && baselineDevice !== device)) return null;
      const place = `${device} ${seqLen}`;
      const held = currency === "flop" ? stack.flop : stack[currency][place];
      if (!held) return null;
      if (!curves.has(held)) curves.set(held, new Curve(held.same ? { ...stack[held.same][place], ...held } : held, doc));
      return curves.get(held);
    }

    /**
     * One entry of `estimates` in `ceg-estimate --json` (docs/json.md), or {status: "elsewhere", command}.
     * @param {{algorithms: string[], flops: number, currency: string, device?: string, baselineDevice?: string,
     *   seqLen?: number}} asked canonical names; the last three in time, usd and decode
     */
    function answer(asked) {
      const curve = curveOf(asked);
      if (!curve) return { flops: asked.flops, status: "elsewhere", command: command(asked), ceg_median: null };
      const at = Math.log10(asked.flops);
      const run = curve.around(at);
      const { data } = curve;
      const median = curve.gain("median", at, run);
      const grown = median !== null && data.timed[run.nearest] === "0" ? data.growth ?? null : null;
      const sure = doc.statuses[data.status[run.nearest]] === "ok"; // else the interval is the answer
      const above = (data.above ?? []).map((steps, i) => [doc.thresholds[i], curve.between(`above ${i}`, steps, doc.steps.share, at, run, true)]);
      return {
        flops: asked.flops,
        status: doc.statuses[data.status[run.nearest]],
        reason: doc.texts[data.reasons[run.nearest]],
        ceg_median: median,
        ceg_predictive_interval_90: curve.ends("90", at, run),
        ceg_predictive_interval_50: curve.ends("50", at, run),
        ceg_mean_median: curve.gain("mean", at, run),
        ceg_mean_interval: curve.ends("_mean", at, run),
        growth_factor_per_decade: grown?.[0] ?? null,
        growth_factor_per_decade_interval: grown?.slice(1) ?? null,
        class: grown ? data.class : null,
        class_lacks: grown ? data.lacks : "",
        class_probabilities: grown && sure ? data.classes : null,
        share_above_threshold_flops: above.length && median !== null && sure ? above : null,
        extrapolation_decades: median === null ? null : curve.between("decades", data.decades, doc.steps.decades, at, run, true),
        interaction: interaction(curve, at, run),
        setting: setting(curve, run.nearest, asked),
        joined: Boolean(data.joined) && data.timed[run.nearest] === "1",
        notes: data.notes[run.nearest].map((place) => doc.texts[place]),
      };
    }

    /**
     * What a picture needs at rising budgets; the question as in `answer`, its budget left out.
     * @returns {object[]} {flops, status, median, low50, high50, low90, high90, decades, modelled} of each
     */
    function curve(asked) {
      const [first, last] = doc.ends;
      const places = Array.from({ length: Math.round((last - first) * POINTS_PER_DECADE) + 1 }, (_, i) => first + i / POINTS_PER_DECADE);
      return places.map((x) => {
        const found = answer({ ...asked, flops: 10 ** x });
        const [low50, high50] = found.ceg_predictive_interval_50 ?? [null, null];
        const [low90, high90] = found.ceg_predictive_interval_90 ?? [null, null];
        return { flops: found.flops, status: found.status, median: found.ceg_median, low50, high50, low90, high90,
          decades: found.extrapolation_decades ?? null, modelled: asked.currency === "decode" && Boolean(found.setting) };
      });
    }

    return { answer, curve };
  }

  /** The answers in a page. @param {string} text base64 of compressed JSON @returns {Promise<object>} */
  async function open(text) {
    const bytes = Uint8Array.from(atob(text.trim()), (letter) => letter.charCodeAt(0));
    const plain = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return make(JSON.parse(await new Response(plain).text()));
  }

  return { open, make };
})();
