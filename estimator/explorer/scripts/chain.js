"use strict";

/* One algorithm's curve through its studies: ln CEG at any budget, exactly. Mirrors estimator/gain/chain.py, which
   explains the model and its names. The studies' messages come with the document. x is log10 FLOP - X0; a state is
   (f, w, b); symmetric 3 x 3 matrices are {ff, fw, fb, ww, wb, bb}, and vectors {f, w, b}. */

globalThis.ceg ??= {};

ceg.chain = (() => {
  const clip = (value, low, high) => Math.min(Math.max(value, low), high);

  /**
   * Posterior of f, ln CEG in the average setting, at x in each of k scenarios.
   * @param {object} chain low, high [g]: span of each group of studies; precision [k * g * 3] (upper triangles) and
   *   score [k * g * 2] of (level, slope); core [2]; slope_mean and slope_sds [k] of the slope's prior; constants.
   * @param {number} x where.
   * @returns {{means: number[], sds: number[]}} [k] each.
   */
  function level(chain, x) {
    const start = clip(x, chain.core[0], chain.core[1]);
    const side = x < start ? -1 : 1;
    const end = Math.abs(x - start);
    const at = chain.low.map((low, group) => clip(x, low, chain.high[group]));
    const near = [...at.keys()].filter((group) => at[group] === start);
    const behind = route(chain, 0, places(chain, start, at, -side), start, -side);
    const ahead = places(chain, start, at, side);
    const passed = ahead.filter((place) => end > 0 && place.t < end);
    const outer = route(chain, end, ahead.slice(passed.length), start, side);
    const way = [0, ...passed.map((place) => place.t), end];
    const steps = way.slice(1).map((t, i) => step(chain, way[i], t, start, side));

    const means = [], sds = [];
    for (let k = 0; k < chain.slope_sds.length; k++) {
      const state = atCore(chain, k, start, near, end > 0 ? [behind] : [behind, outer]);
      if (end > 0) {
        steps.forEach((moved, i) => {
          carry(state, moved);
          if (i < passed.length) update(state, message(chain, k, passed[i]));
        });
        if (outer.length) update(state, pull(chain, k, outer));
      }
      means.push(state.mean.f);
      sds.push(Math.sqrt(state.covariance.ff));
    }
    return { means, sds };
  }

  /** Decades that the core still reaches on one side of a point in it. */
  const coreLeft = (chain, start, side) => (side > 0 ? chain.core[1] - start : start - chain.core[0]);

  /** Where groups speak on one side of a point of the core, t > 0 decades from it, ascending. */
  function places(chain, start, at, side) {
    const found = new Map();
    at.forEach((x, group) => {
      if (side * (x - start) <= 0) return;
      if (!found.has(x)) found.set(x, []);
      found.get(x).push(group);
    });
    return [...found]
      .map(([x, groups]) => {
        const t = side * (x - start);
        const rho = Math.exp(-chain.constants.fading * Math.max(0, t - coreLeft(chain, start, side)));
        return { t, x, groups, rho };
      })
      .sort((a, b) => a.t - b.t);
  }

  /** Places with the step that leads to each from the one before; the first from `to`. */
  const route = (chain, to, found, start, side) =>
    found.map((place, i) => ({ place, step: step(chain, i ? found[i - 1].t : to, place.t, start, side) }));

  /** Decades of growth that a slope still gives when the evidence has been left for `decades`. */
  const carried = (chain, decades) => -Math.expm1(-chain.constants.fading * decades) / chain.constants.fading;

  /** Transition outwards, f += fw w + fb b and w *= ww, and the covariance (qff, qfw, qww) of (f, w) that is added. */
  function step(chain, from, to, start, side) {
    const { fading, wander_sd } = chain.constants;
    const length = coreLeft(chain, start, side);
    const growth = (t) => Math.min(t, length) + carried(chain, Math.max(0, t - length)); // integral of rho
    const h = fading * (to - from);
    const c = carried(chain, to - from);
    const free = (2 * (h + Math.expm1(-h))) / fading ** 2;
    const variance = wander_sd ** 2;
    return {
      fw: side * c,
      fb: side * (growth(to) - growth(from)),
      ww: Math.exp(-h),
      qff: variance * Math.max(0, free - c ** 2),
      qfw: variance * side * fading * c ** 2,
      qww: variance * -Math.expm1(-2 * h),
    };
  }

  /** What groups say together of (f, slope) of the line at x: {ff, fs, ss, f, s}. */
  function said(chain, k, groups, x) {
    let a = 0, b = 0, c = 0, f = 0, s = 0;
    for (const group of groups) {
      const i = k * chain.low.length + group;
      a += chain.precision[3 * i];
      b += chain.precision[3 * i + 1];
      c += chain.precision[3 * i + 2];
      f += chain.score[2 * i];
      s += chain.score[2 * i + 1];
    }
    return { ff: a, fs: b - x * a, ss: c - 2 * x * b + x * x * a, f, s: s - x * f };
  }

  /** The message of a place about (f, w, b) there, where the slope is w + rho b. */
  function message(chain, k, { groups, x, rho }) {
    const { ff, fs, ss, f, s } = said(chain, k, groups, x);
    return {
      precision: { ff, fw: fs, fb: rho * fs, ww: ss, wb: rho * ss, bb: rho * rho * ss },
      score: { f, w: s, b: rho * s },
    };
  }

  /** What the places of a route say together about the state where it starts. */
  function pull(chain, k, path) {
    let J = { ff: 0, fw: 0, fb: 0, ww: 0, wb: 0, bb: 0 };
    let j = { f: 0, w: 0, b: 0 };
    for (let i = path.length - 1; i >= 0; i--) {
      const here = message(chain, k, path[i].place);
      J = added(J, here.precision);
      j = { f: j.f + here.score.f, w: j.w + here.score.w, b: j.b + here.score.b };
      // Integrate out what w adds on the way: J -> J - J S J and j -> j - J S j, with S = Q (I + J Q)^-1, in 2 x 2.
      const { fw: p, fb: q, ww: r, qff, qfw, qww } = path[i].step;
      const b00 = 1 + J.ff * qff + J.fw * qfw, b01 = J.ff * qfw + J.fw * qww;
      const b10 = J.fw * qff + J.ww * qfw, b11 = 1 + J.fw * qfw + J.ww * qww;
      const determinant = b00 * b11 - b01 * b10;
      const sff = (qff * b11 - qfw * b10) / determinant;
      const sfw = (qfw * b00 - qff * b01) / determinant;
      const sww = (qww * b00 - qfw * b01) / determinant;
      const [f0, f1] = [J.ff * sff + J.fw * sfw, J.ff * sfw + J.fw * sww];
      const [w0, w1] = [J.fw * sff + J.ww * sfw, J.fw * sfw + J.ww * sww];
      const [c0, c1] = [J.fb * sff + J.wb * sfw, J.fb * sfw + J.wb * sww];
      const ff = J.ff - f0 * J.ff - f1 * J.fw, fw = J.fw - f0 * J.fw - f1 * J.ww, fb = J.fb - f0 * J.fb - f1 * J.wb;
      const ww = J.ww - w0 * J.fw - w1 * J.ww, wb = J.wb - w0 * J.fb - w1 * J.wb, bb = J.bb - c0 * J.fb - c1 * J.wb;
      const f = j.f - f0 * j.f - f1 * j.w, w = j.w - w0 * j.f - w1 * j.w, b = j.b - c0 * j.f - c1 * j.w;
      // Back along the transition A: J -> A' J A, j -> A' j.
      J = {
        ff,
        fw: p * ff + r * fw,
        fb: q * ff + fb,
        ww: p * p * ff + 2 * p * r * fw + r * r * ww,
        wb: p * (q * ff + fb) + r * (q * fw + wb),
        bb: q * q * ff + 2 * q * fb + bb,
      };
      j = { f, w: p * f + r * w, b: q * f + b };
    }
    return { precision: J, score: j };
  }

  /** Posterior state at a point of the core, from what is said there and along routes away from it; w is 0 there. */
  function atCore(chain, k, start, near, routes) {
    const { ff, fs, ss, f, s } = said(chain, k, near, start);
    const prior = chain.slope_sds[k] ** -2;
    let [a, b, c] = [ff + chain.constants.level_sd ** -2, fs, ss + prior];
    let [first, second] = [f, s + prior * chain.slope_mean];
    for (const path of routes) {
      const { precision, score } = pull(chain, k, path);
      a += precision.ff;
      b += precision.fb;
      c += precision.bb;
      first += score.f;
      second += score.b;
    }
    const determinant = a * c - b * b;
    return {
      mean: { f: (c * first - b * second) / determinant, w: 0, b: (a * second - b * first) / determinant },
      covariance: { ff: c / determinant, fw: 0, fb: -b / determinant, ww: 0, wb: 0, bb: a / determinant },
    };
  }

  /** Moves a state's moments further out. */
  function carry(state, { fw: p, fb: q, ww: r, qff, qfw, qww }) {
    const { mean, covariance: C } = state;
    state.mean = { f: mean.f + p * mean.w + q * mean.b, w: r * mean.w, b: mean.b };
    state.covariance = {
      ff: C.ff + p * p * C.ww + q * q * C.bb + 2 * (p * C.fw + q * C.fb + p * q * C.wb) + qff,
      fw: r * (C.fw + p * C.ww + q * C.wb) + qfw,
      fb: C.fb + p * C.wb + q * C.bb,
      ww: r * r * C.ww + qww,
      wb: r * C.wb,
      bb: C.bb,
    };
  }

  /** Moments after a message about the same state: C -> D = C (I + P C)^-1, mean -> mean + D (score - P mean). */
  function update(state, { precision: P, score }) {
    const { mean, covariance: C } = state;
    const b00 = 1 + P.ff * C.ff + P.fw * C.fw + P.fb * C.fb;
    const b01 = P.ff * C.fw + P.fw * C.ww + P.fb * C.wb;
    const b02 = P.ff * C.fb + P.fw * C.wb + P.fb * C.bb;
    const b10 = P.fw * C.ff + P.ww * C.fw + P.wb * C.fb;
    const b11 = 1 + P.fw * C.fw + P.ww * C.ww + P.wb * C.wb;
    const b12 = P.fw * C.fb + P.ww * C.wb + P.wb * C.bb;
    const b20 = P.fb * C.ff + P.wb * C.fw + P.bb * C.fb;
    const b21 = P.fb * C.fw + P.wb * C.ww + P.bb * C.wb;
    const b22 = 1 + P.fb * C.fb + P.wb * C.wb + P.bb * C.bb;
    // Cofactors; D is symmetric, so its upper triangle is enough.
    const i00 = b11 * b22 - b12 * b21, i01 = b02 * b21 - b01 * b22, i02 = b01 * b12 - b02 * b11;
    const i10 = b12 * b20 - b10 * b22, i11 = b00 * b22 - b02 * b20, i12 = b02 * b10 - b00 * b12;
    const i20 = b10 * b21 - b11 * b20, i21 = b01 * b20 - b00 * b21, i22 = b00 * b11 - b01 * b10;
    const determinant = b00 * i00 + b01 * i10 + b02 * i20;
    const D = {
      ff: (C.ff * i00 + C.fw * i10 + C.fb * i20) / determinant,
      fw: (C.ff * i01 + C.fw * i11 + C.fb * i21) / determinant,
      fb: (C.ff * i02 + C.fw * i12 + C.fb * i22) / determinant,
      ww: (C.fw * i01 + C.ww * i11 + C.wb * i21) / determinant,
      wb: (C.fw * i02 + C.ww * i12 + C.wb * i22) / determinant,
      bb: (C.fb * i02 + C.wb * i12 + C.bb * i22) / determinant,
    };
    const f = score.f - (P.ff * mean.f + P.fw * mean.w + P.fb * mean.b);
    const w = score.w - (P.fw * mean.f + P.ww * mean.w + P.wb * mean.b);
    const b = score.b - (P.fb * mean.f + P.wb * mean.w + P.bb * mean.b);
    state.mean = {
      f: mean.f + D.ff * f + D.fw * w + D.fb * b,
      w: mean.w + D.fw * f + D.ww * w + D.wb * b,
      b: mean.b + D.fb * f + D.wb * w + D.bb * b,
    };
    state.covariance = D;
  }

  const added = (A, B) => ({
    ff: A.ff + B.ff, fw: A.fw + B.fw, fb: A.fb + B.fb, ww: A.ww + B.ww, wb: A.wb + B.wb, bb: A.bb + B.bb,
  });

  return { level };
})();
