/** Numbers and answers in words, as estimator/gain/answer.py says them. */
"use strict";

ceg.words = (() => {
  const MONEY = { flop: "FLOP", time: "device time", usd: "US$", decode: "decoding time" };

  const BEYOND = 25; // digits: more than a double has, so that an exact half shows as 5 and zeros
  const HALF = new RegExp(`50{${BEYOND - 1}}$`);
  const ODD = /[13579]$/;

  /**
   * A number in digits, an exact half to the even one as Python rounds it; JavaScript takes the larger.
   * @param {number} value of at least 0, and for toFixed below 1e21
   * @param {"toFixed" | "toExponential" | "toPrecision"} way @param {number} digits as that takes them
   */
  function rounded(value, way, digits) {
    const larger = value[way](digits);
    const shown = (text) => text.split("e")[0].replace(".", "");
    const isHalf = ODD.test(shown(larger)) && HALF.test(shown(value[way](digits + BEYOND)));
    return isHalf ? (value * (1 - Number.EPSILON))[way](digits) : larger;
  }

  /** @param {number} value @param {number} digits @returns {string} as Python's format(value, ".{digits}g") */
  function general(value, digits) {
    const [mantissa, power] = rounded(value, "toExponential", digits - 1).split("e");
    const exponent = Number(power);
    if (exponent >= -4 && exponent < digits) return String(Number(rounded(value, "toPrecision", digits)));
    return `${Number(mantissa)}e${exponent}`;
  }

  /** A gain or a budget with two digits that matter: 5.8, 12, 0.93, 1.4e24. @param {number} value */
  function number(value) {
    if (value === 0 || !Number.isFinite(value)) return String(value);
    if (value >= 0.095 && value < 1) return rounded(value, "toFixed", 2);
    if (value >= 1 && value < 9.95) return rounded(value, "toFixed", value >= 2 ? 1 : 2);
    if (value >= 9.95 && value < 1e4) return Number(rounded(value, "toPrecision", 2)).toFixed(0);
    return general(value, 2);
  }

  /** An interval: 1.4x to 24x. @param {number[]} ends @param {string} unit */
  const span = (ends, unit = "x") => `${number(ends[0])}${unit} to ${number(ends[1])}${unit}`;

  /** A budget as people write it, with three digits: 1e25, 2.5e24. @param {number} flops FLOP */
  function budget(flops) {
    const [mantissa, power] = rounded(flops, "toExponential", 2).split("e");
    return `${Number(mantissa)}e${Number(power)}`;
  }

  /** A probability in whole percent, never rounded to certainty. @param {number} probability */
  function share(probability) {
    const p = Number(rounded(Math.max(0, probability), "toFixed", 12));
    if (p > 0 && p < 0.01) return "<1%";
    if (p > 0.99 && p < 1) return ">99%";
    return `${rounded(100 * p, "toFixed", 0)}%`;
  }

  /** @param {string[]} parts @returns {string} a, b and c */
  function listed(parts) {
    return parts.length < 2 ? parts.join("") : `${parts.slice(0, -1).join(", ")} and ${parts.at(-1)}`;
  }

  /** A sentence as parts, so that the page can set the answer in it in bold: every second part is of the answer. */
  function flopSentence(answer, what) {
    const worth = (gain) => number(gain * answer.flops);
    const ends = answer.ceg_predictive_interval_90.map((gain) => gain * answer.flops);
    const head = `A run of ${budget(answer.flops)} FLOP with ${what} is worth `;
    if (answer.status === "far_extrapolation") {
      return [head, `${span(ends, "")} FLOP`,
        ` without it (90%; median ${worth(answer.ceg_median)} FLOP, ${number(answer.ceg_median)}x).`];
    }
    return [head, `${worth(answer.ceg_median)} FLOP`, " without it: ", `${number(answer.ceg_median)}x`,
      ` the compute (90%: ${span(answer.ceg_predictive_interval_90)}).`];
  }

  function ratioSentence(answer, what, currency, where) {
    const [head, tail] = {
      time: [`With ${budget(answer.flops)} FLOP spent on ${what}, the same loss takes `, " the device time without it"],
      usd: [`With ${budget(answer.flops)} FLOP spent on ${what}, the same loss costs `, " as much without it"],
      decode: [`In models of ${budget(answer.flops)} FLOP with ${what}, a generated token takes `,
        " the device time without it, at equal shape"],
    }[currency];
    const [wide, median] = [span(answer.ceg_predictive_interval_90), `${number(answer.ceg_median)}x`];
    return answer.status === "far_extrapolation" ? [head, wide, `${tail}${where} (90%; median ${median}).`]
      : [head, median, `${tail}${where} (90%: ${wide}).`];
  }

  /**
   * The answer in one sentence: interval first where it is far from the evidence, a refusal where there is none.
   * @param {object} answer one entry of `estimates` (docs/json.md)
   * @param {{titles: string[], currency: string, device: string, baselineDevice: string, seqLen: number}} asked
   * @returns {string[]} its parts in order; the second, the fourth, ... are the answer in it
   */
  function sentence(answer, asked) {
    const what = listed(asked.titles);
    if (answer.status === "no_evidence") return ["", `No answer for ${what} in ${MONEY[asked.currency]}.`];
    if (asked.currency === "flop") return flopSentence(answer, what);
    const other = asked.baselineDevice && asked.baselineDevice !== asked.device ? ` (${asked.baselineDevice})` : "";
    const where = answer.setting ? `${other}, on ${asked.device} at ${asked.seqLen} tokens a sequence` : "";
    return ratioSentence(answer, what, asked.currency, where);
  }

  /**
   * How far the answer is from the evidence, or what is missing for one; "" where the reason of its status says that.
   * @param {object} answer one entry of `estimates` (docs/json.md)
   * @param {{currency: string, joined: boolean, farDecades: number}} asked joined: measured gains of its currency take part
   */
  function distance(answer, asked) {
    const decades = answer.extrapolation_decades;
    if (answer.status === "no_evidence") return `${capital(answer.reason)}.`;
    if (asked.currency === "decode" && answer.setting) {
      return asked.joined ? "Modelled, then joined with published gains." : "Modelled: no published gain takes part.";
    }
    if (decades === null || decades > asked.farDecades) return "";
    if (decades < 0.05) return "At the nearest run of its evidence.";
    return `${decades.toFixed(1)} decades of compute away from the nearest run.`;
  }

  /** @param {string} text @returns {string} */
  const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

  return { MONEY, number, span, budget, share, listed, sentence, distance, capital };
})();
