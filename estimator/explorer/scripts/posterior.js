"use strict";

/* Answers in the browser, from the posterior that estimator/explorer/posterior.py wrote. Mirrors
   estimator/gain/method.py, chain.py, interaction.py, in_currency.py and answer.py. Budgets in FLOP, gains as factors,
   curves of ln CEG. */

globalThis.ceg ??= {};

ceg.posterior = (() => {
  const { Mixture, joined, point, total } = ceg.mixture;

  const MOST_KNOWN = 2000;

  /** Doubles of a string that `packed` made. The machines that browsers run on are little-endian, as it is. */
  function unpacked(text) {
    return new Float64Array(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer);
  }

  /** Distribution of ln CEG at any budget: chain.Curve. */
  class Curve {
    constructor(data, constants) {
      this.constants = constants;
      this.exact = data.exact;
      this.known = new Map(); // mean at each budget asked for
      if (this.exact) return;
      this.weights = data.weights;
      this.newStudySds = data.new_study_sds;
      this.reach = data.reach;
      this.slopes = new Mixture(data.weights, data.slope.means, data.slope.sds);
      const { precision, score } = data.chain;
      this.studies = { ...data.chain, precision: unpacked(precision), score: unpacked(score), constants };
    }

    /** Distance (decades of compute) from the evidence: 0 inside its range, NaN where its compute is unknown. */
    decades(flops) {
      if (this.exact) return 0;
      if (!this.reach.length) return NaN;
      const x = Math.log10(flops);
      return Math.max(0, x - this.reach[1], this.reach[0] - x);
    }

    /** ln CEG in the average setting. Pictures ask for the same budgets with every choice, so they are remembered. */
    mean(flops) {
      if (this.exact) return point(0);
      if (this.known.size >= MOST_KNOWN) this.known.clear();
      if (!this.known.has(flops)) this.known.set(flops, this.computed(flops));
      return this.known.get(flops);
    }

    computed(flops) {
      let x = Math.log10(flops) - this.constants.x0;
      if (!this.reach.length) { // rows of unknown compute may stand anywhere
        const away = x - this.studies.centre;
        const distance = Math.max(this.constants.unknown_decades, Math.abs(away));
        x = this.studies.centre + (away < 0 ? -distance : distance);
      }
      const { means, sds } = ceg.chain.level(this.studies, x);
      return new Mixture(this.weights, means, sds);
    }

    /** ln CEG that a new, independent study would find, from `mean` at the same budget. */
    predictive(mean) {
      return this.exact ? mean : mean.widened(this.newStudySds);
    }

    /** d ln CEG / d log10 C over the core of the evidence. */
    slope() {
      return this.exact ? point(0) : this.slopes;
    }
  }

  /** How the parts of a stack interact, at any budget: interaction.Joint. */
  class Joint {
    /** @param {object} data of one currency; members [[algorithm, baseline], ...], those that are not exact, sorted. */
    constructor(data, members, constants) {
      this.data = data;
      this.constants = constants;
      this.target = members.flatMap((a, i) => members.slice(i + 1).map((b) => [a, b]));
      const index = new Map(data.pairs.map((pair, i) => [JSON.stringify(pair), i]));
      const asked = new Set(this.target.map((pair) => index.get(JSON.stringify(pair))));
      const sum = (terms) => terms.reduce((a, b) => a + b, 0);
      this.cross = data.seen.map(({ pairs }) => sum(pairs.map(([pair, c]) => (asked.has(pair) ? c : 0))));
      this.seen = data.seen.filter((_, i) => this.cross[i] !== 0);
      const measured = new Set(data.seen.flatMap(({ pairs }) => pairs.filter(([, c]) => c).map(([pair]) => pair)));
      this.unmeasured = this.target.filter((pair) => !measured.has(index.get(JSON.stringify(pair))));
      this.rotation = unpacked(data.rotation);
      this.totals = this.rotated(data.seen.map(({ pairs }) => sum(pairs.map(([, c]) => c))));
      this.values = this.rotated(data.seen.map(({ value }) => value));
    }

    /** W times a vector, in which the observations are independent at every sd. */
    rotated(vector) {
      const n = vector.length;
      const result = new Float64Array(n);
      for (let j = 0; j < n; j++) {
        if (vector[j] === 0) continue;
        for (let i = 0; i < n; i++) result[i] += this.rotation[i * n + j] * vector[j];
      }
      return result;
    }

    /** {mean, predictive} of ln(stack / product of parts) at a budget. */
    at(flops) {
      if (!this.target.length) return { mean: point(0), predictive: point(0) };
      const { x0, fading, mean_sd, shares } = this.constants;
      const x = Math.log10(flops) - x0;
      const n = this.target.length; // every pair of a stack counts once
      const near = this.rotated(this.cross.map((c, i) => c * Math.exp(-fading * Math.abs(this.data.seen[i].x - x))));
      const means = [], sds = [], wider = [];
      for (const sd of this.data.sds) {
        let mean = 0;
        let variance = mean_sd ** 2 * n ** 2 + shares[0] * sd ** 2 * n;
        this.data.spread.forEach((spread, i) => {
          const k = mean_sd ** 2 * n * this.totals[i] + shares[0] * sd ** 2 * near[i];
          const precision = 1 / (1 + sd ** 2 * spread);
          mean += k * this.values[i] * precision;
          variance -= k * k * precision;
        });
        means.push(mean);
        sds.push(Math.sqrt(Math.max(variance, 0)));
        wider.push(Math.sqrt(Math.max(variance, 0) + (1 - shares[0]) * sd ** 2 * n));
      }
      const { weights } = this.data;
      return { mean: new Mixture(weights, means, sds), predictive: new Mixture(weights, means, wider) };
    }
  }

  /**
   * The page's estimator.
   * @param {object} doc what posterior.document gave.
   * @param {object} model ceg.stepTime's, for time, usd and decode.
   */
  function make(doc, model) {
    const { constants } = doc;
    const curves = new Map(); // of parts: fitted in Python, unpacked once
    const prepared = new Map(); // questions without their budget

    function curve(currency, name) {
      const { curve: data } = doc.parts[currency][name];
      if (!curves.has(data)) curves.set(data, new Curve(data, constants));
      return curves.get(data);
    }

    /** Everything about a question that does not depend on the budget: method.prepare. */
    function prepare(asked, currency) {
      const names = [...new Set(asked)].sort();
      if (!names.length) throw new RangeError("algorithms: at least one name is needed (found none)");
      const key = `${currency} ${names}`;
      if (prepared.has(key)) return prepared.get(key);
      const parts = names.map((name) => doc.parts[currency][name]);
      const missing = parts.map((part) => part.missing).filter(Boolean).join("; ");
      const all = missing ? [] : names.map((name) => curve(currency, name));
      const inexact = names.filter((_, i) => all.length && !all[i].exact);
      const members = inexact.map((name) => [name, doc.algorithms[name].baseline]);
      const found = {
        algorithms: names,
        baselines: names.map((name) => doc.algorithms[name].baseline),
        currency,
        curves: all,
        joint: new Joint(doc.interaction[currency], members, constants),
        missing,
        notes: [...doc.remarks, ...parts.flatMap((part) => part.notes)],
      };
      prepared.set(key, found);
      return found;
    }

    const sum = (parts) => total(parts, constants.max_components);

    /** ln CEG at a budget: {mean, predictive}, each computed when asked for. */
    function distributions({ curves: parts, joint }, flops) {
      const means = parts.map((part) => part.mean(flops));
      const together = joint.at(flops);
      return {
        mean: () => sum([...means, together.mean]),
        predictive: () => sum([...parts.map((part, i) => part.predictive(means[i])), together.predictive]),
      };
    }

    /** No answer, and why. */
    function refused({ notes }, reason, flops) {
      return {
        flops,
        status: "no_evidence",
        reason,
        ceg_median: null,
        ceg_predictive_interval: null,
        ceg_predictive_interval_50: null,
        ceg_predictive_interval_90: null,
        ceg_mean_median: null,
        ceg_mean_interval: null,
        equivalent_flops_median: null,
        growth_factor_per_decade: null,
        growth_factor_per_decade_interval: null,
        class: null,
        class_probabilities: null,
        share_above_threshold_flops: null,
        extrapolation_decades: null,
        interaction: null,
        setting: null,
        notes,
      };
    }

    /** Largest distance from the evidence; NaN if one is not known, 0 without curves. */
    function distance(parts, flops) {
      return Math.max(0, ...parts.map((part) => part.decades(flops)));
    }

    /** Why an answer is far from its evidence, or "". */
    function far(decades, [low90, high90]) {
      const { far_decades: most, far_width: widest } = constants;
      if (Number.isNaN(decades)) return "the compute of its evidence is not known";
      if (decades > most) return `${fixed(decades)} decades past the evidence (more than ${general(most, 6)})`;
      if (high90 - low90 <= Math.log(widest)) return "";
      const width = general(Math.exp(high90 - low90), 3);
      return `the 90% interval spans a factor of ${width} (more than ${general(widest, 6)})`;
    }

    /** The answer that two distributions of ln CEG give; without growth, class and thresholds. */
    function answered(question, flops, mean, predictive, interval) {
      const decades = distance(question.curves, flops);
      const ends90 = predictive.central(0.9);
      const reason = far(decades, ends90);
      const median = Math.exp(predictive.quantile(0.5));
      return {
        ...refused(question, reason, flops),
        status: reason ? "far_extrapolation" : "ok",
        ceg_median: median,
        ceg_predictive_interval: predictive.central(interval).map(Math.exp),
        ceg_predictive_interval_50: predictive.central(0.5).map(Math.exp),
        ceg_predictive_interval_90: ends90.map(Math.exp),
        ceg_mean_median: Math.exp(mean.quantile(0.5)),
        ceg_mean_interval: mean.central(interval).map(Math.exp),
        equivalent_flops_median: question.currency === "flop" ? flops * median : null,
        extrapolation_decades: Number.isNaN(decades) ? null : decades,
      };
    }

    /** Class by the slope's distribution: the label, and three probabilities. */
    function classify(slope) {
      const fading = slope.cdf(-constants.class_slope);
      const dependent = 1 - slope.cdf(constants.class_slope);
      const classes = { dependent, independent: Math.max(0, 1 - fading - dependent), fading };
      const best = Object.keys(classes).reduce((a, b) => (classes[b] > classes[a] ? b : a));
      return [classes[best] >= constants.undetermined ? best : "undetermined", classes];
    }

    /** Share of a distribution of ln CEG for which the run is worth more than each threshold. */
    function above(predictive, flops) {
      const shares = Object.entries(doc.thresholds).map(([name, threshold]) => {
        const share = 1 - predictive.cdf(Math.log(threshold / flops));
        return [name, Math.min(1, Math.max(0, share))];
      });
      return Object.fromEntries(shares);
    }

    /** A combination's interaction: factors, and what it is learnt from. */
    function interactionDocument(joint, flops, interval) {
      if (!joint.target.length) return null;
      const { mean, predictive } = joint.at(flops);
      return {
        stack_over_product_median: Math.exp(predictive.quantile(0.5)),
        stack_over_product_interval: predictive.central(interval).map(Math.exp),
        stack_over_product_mean_interval: mean.central(interval).map(Math.exp),
        measured: joint.seen.map(({ what, study, flops: at, value }) => ({
          what, study, flops: at, over_product_of_parts: Math.exp(value),
        })),
        pairs_never_measured_together: joint.unmeasured.map(([a, b]) => [a[0], b[0]]),
      };
    }

    /** Answer a prepared question at one budget from its rows: method.evaluate. */
    function evaluate(question, flops, interval) {
      if (question.missing) return refused(question, question.missing, flops);
      const { mean, predictive } = distributions(question, flops);
      const asNew = predictive();
      const slope = sum(question.curves.map((part) => part.slope()));
      const [label, classes] = classify(slope);
      return {
        ...answered(question, flops, mean(), asNew, interval),
        growth_factor_per_decade: Math.exp(slope.quantile(0.5)),
        growth_factor_per_decade_interval: slope.central(interval).map(Math.exp),
        class: label,
        class_probabilities: classes,
        share_above_threshold_flops: question.currency === "flop" ? above(asNew, flops) : null,
        interaction: interactionDocument(question.joint, flops, interval),
      };
    }

    /** Whether measured gains of a question's own currency are joined to what is modelled: gains on one device. */
    const takesPart = (rows, setting) => !rows.missing && setting.device === setting.baselineDevice;

    /**
     * What in_currency.answer models: {middle, speeds, mean, predictive, joins}, or {why} where it cannot.
     * `joins`: measured gains of this currency took part.
     */
    function modelled(inFlop, rows, flops, setting) {
      if (inFlop?.missing) return { why: inFlop.missing };
      const none = () => point(0);
      const ahead = inFlop ? distributions(inFlop, flops) : { mean: none, predictive: none };
      const middle = Math.exp(ahead.mean().quantile(0.5));
      let speeds;
      try {
        speeds = model.speeds(rows.algorithms, rows.baselines, rows.currency, flops, middle, setting);
      } catch (error) {
        if (error instanceof ceg.stepTime.NoShapeError) return { why: error.message };
        throw error;
      }
      const joins = takesPart(rows, setting);
      const seen = joins ? distributions(rows, flops) : null;
      const timed = (which) => {
        const part = ahead[which]().shifted(speeds.lnFactor).widened(Math.sqrt(speeds.variance));
        return seen ? joined(part, seen[which]().widened(constants.other_setting_sd)) : part;
      };
      return { middle, speeds, joins, mean: () => timed("mean"), predictive: () => timed("predictive") };
    }

    /** Answer a question in time, dollars or decode time: in_currency.answer. */
    function onDevice(inFlop, rows, flops, setting, interval) {
      const found = modelled(inFlop, rows, flops, setting);
      if (!found.speeds) {
        const unmodelled = `speeds are not modelled: ${found.why}`;
        return rows.missing
          ? refused(rows, `${rows.missing}; ${unmodelled}`, flops)
          : evaluate({ ...rows, notes: [...rows.notes, unmodelled] }, flops, interval);
      }
      const { middle, speeds, mean, predictive, joins } = found;
      const notes = (inFlop?.notes ?? []).map((note) => note.replace(/ \(see --currency time\)$/, ""));
      if (joins) notes.push(...rows.notes.filter((note) => !notes.includes(note)));
      for (const [side, what] of [[speeds.treatment, "with"], [speeds.baseline, "without"]]) {
        if (!side.fits) {
          notes.push(`the model ${what} it fits into no number of these devices; it is timed as if it did`);
        }
      }
      const question = { ...rows, curves: inFlop?.curves ?? [], notes };
      const answer = answered(question, flops, mean(), predictive(), interval);
      return {
        ...answer,
        extrapolation_decades: inFlop ? answer.extrapolation_decades : null,
        setting: {
          gain_in_flop_median: middle,
          factor: Math.exp(speeds.lnFactor),
          price_factor: Math.exp(speeds.price),
          ln_factor_sd: Math.sqrt(speeds.variance),
          with: speeds.treatment,
          without: speeds.baseline,
        },
      };
    }

    /** A question's parts: prepared in its currency, in FLOP where speeds are joined to that, and where models run. */
    function put({ algorithms, currency, device, baselineDevice, seqLen }) {
      const rows = prepare(algorithms, currency);
      const inFlop = currency === "time" || currency === "usd" ? prepare(algorithms, "flop") : null;
      return { rows, inFlop, setting: { device, baselineDevice: baselineDevice ?? device, seqLen } };
    }

    /**
     * One entry of `estimates` in `ceg-estimate --json` (docs/json.md), without `evidence` and `conversions`.
     * @param {{algorithms: string[], flops: number, currency: string, interval: number, device?: string,
     *   baselineDevice?: string, seqLen?: number}} question canonical names; the last three in time, usd and decode.
     */
    function answer(question) {
      const { flops, interval } = question;
      const { rows, inFlop, setting } = put(question);
      if (question.currency === "flop") return evaluate(rows, flops, interval);
      return onDevice(inFlop, rows, flops, setting, interval);
    }

    /** Whether `takesPart` holds of a question in time, usd or decode. @returns {boolean} */
    function joins(question) {
      const { rows, setting } = put(question);
      return takesPart(rows, setting);
    }

    /**
     * What a picture needs at each of the document's budgets; the question as in `answer`, its budget left out.
     * @returns {{flops: number, status: string, median: ?number, low50: ?number, high50: ?number, low90: ?number,
     *   high90: ?number, decades: ?number, modelled: boolean}[]} modelled: without evidence to be far from
     */
    function draw(question) {
      const { rows, inFlop, setting } = put(question);
      return doc.budgets.map((flops) => {
        const found = question.currency === "flop" ? null : modelled(inFlop, rows, flops, setting);
        const byModel = Boolean(found?.speeds);
        if (!byModel && rows.missing) {
          const nothing = { median: null, low50: null, high50: null, low90: null, high90: null, decades: null };
          return { flops, status: "no_evidence", ...nothing, modelled: false };
        }
        const predictive = (byModel ? found : distributions(rows, flops)).predictive();
        const decades = distance(byModel ? inFlop?.curves ?? [] : rows.curves, flops);
        const [ends50, ends90] = [predictive.central(0.5), predictive.central(0.9)];
        return {
          flops,
          status: far(decades, ends90) ? "far_extrapolation" : "ok",
          median: Math.exp(predictive.quantile(0.5)),
          low50: Math.exp(ends50[0]),
          high50: Math.exp(ends50[1]),
          low90: Math.exp(ends90[0]),
          high90: Math.exp(ends90[1]),
          decades: Number.isNaN(decades) || (byModel && !inFlop) ? null : decades,
          modelled: byModel && !inFlop,
        };
      });
    }

    return { answer, curve: draw, joins, budgets: doc.budgets };
  }

  /** With one decimal, as Python's ".1f": halves to even. */
  function fixed(value) {
    const tenths = value * 10;
    const whole = Math.floor(tenths);
    const isHalf = tenths - whole === 0.5 && value * 4 === Math.round(value * 4); // only quarters are exact halves
    return isHalf ? ((whole + (whole % 2)) / 10).toFixed(1) : value.toFixed(1);
  }

  /** As Python's ".<digits>g", for values of at least 1e-4. */
  function general(value, digits) {
    const [mantissa, exponent] = value.toExponential(digits - 1).split("e").map(Number);
    if (exponent < digits) return String(Number(value.toPrecision(digits)));
    return `${mantissa}e+${String(exponent).padStart(2, "0")}`;
  }

  return { make };
})();
