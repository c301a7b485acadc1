"use strict";

/* One algorithm's curve through its studies: ln CEG at any budget, exactly. Mirrors estimator/chain.py, which explains
   the model and its names. The studies' messages come with the document. x is log10 FLOP - X0; a state is (f, w, b);
   symmetric 3 x 3 matrices are {ff, fw, fb, ww, wb, bb}, and vectors {f, w, b}. */

globalThis.ceg ??= {};

ceg.chain = (() => {
  const clip = (value, low, high) => Math.min(Math.max(value, low), high);

  /**
   * Posterior of f, ln CEG in the average setting, at x in each of k scenarios.
   * @param {object} chain low, high [g]: span of each group of studies; precision [k * g * 3] (upper triangles) and
   *   score [k * g * 2] of (level, slope); core [2]; slope_mean and slope_sds [k] of the slope's prior; constants.
   * @param {number} x where.
   * @returns {{means: Float64Array, sds: Float64Array}} [k] each.
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

    const means = new Float64Array(chain.slope_sds.length), sds = means.slice();
    for (let k = 0; k < means.length; k++) {
      const state = atCore(chain, k, start, near, end > 0 ? [behind] : [behind, outer]);
      if (end > 0) {
        steps.forEach((moved, i) => {
          carry(state, moved);
          if (i < passed.length) update(state, message(chain, k, passed[i]));
        });
        if (outer.length) update(state, pull(chain, k, outer));
      }
      means[k] = state.mean.f;
      sds[k] = Math.sqrt(state.covariance.ff);
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

  /** Moments after a message about the same state: C -> C (I + P C)^-1, m -> m + C (score - P m). */
  function update(state, { precision, score }) {
    const P = rows(precision), C = rows(state.covariance);
    const B = product(P, C);
    for (let i = 0; i < 3; i++) B[i][i] += 1;
    const D = product(C, inverse(B));
    const covariance = {
      ff: D[0][0], fw: (D[0][1] + D[1][0]) / 2, fb: (D[0][2] + D[2][0]) / 2,
      ww: D[1][1], wb: (D[1][2] + D[2][1]) / 2, bb: D[2][2],
    };
    const old = applied(precision, state.mean);
    const moved = applied(covariance, { f: score.f - old.f, w: score.w - old.w, b: score.b - old.b });
    state.mean = { f: state.mean.f + moved.f, w: state.mean.w + moved.w, b: state.mean.b + moved.b };
    state.covariance = covariance;
  }

  const added = (A, B) => ({
    ff: A.ff + B.ff, fw: A.fw + B.fw, fb: A.fb + B.fb, ww: A.ww + B.ww, wb: A.wb + B.wb, bb: A.bb + B.bb,
  });

  const applied = (A, { f, w, b }) => ({
    f: A.ff * f + A.fw * w + A.fb * b, w: A.fw * f + A.ww * w + A.wb * b, b: A.fb * f + A.wb * w + A.bb * b,
  });

  const rows = (A) => [[A.ff, A.fw, A.fb], [A.fw, A.ww, A.wb], [A.fb, A.wb, A.bb]];

  const product = (A, B) => A.map((row) => [0, 1, 2].map((j) => row[0] * B[0][j] + row[1] * B[1][j] + row[2] * B[2][j]));

  /** Of a 3 x 3 matrix, by its cofactors. */
  function inverse([[a, b, c], [d, e, f], [g, h, i]]) {
    const [A, B, C] = [e * i - f * h, f * g - d * i, d * h - e * g];
    const determinant = a * A + b * B + c * C;
    return [
      [A, c * h - b * i, b * f - c * e],
      [B, a * i - c * g, c * d - a * f],
      [C, b * g - a * h, a * e - b * d],
    ].map((row) => row.map((value) => value / determinant));
  }

  return { level };
})();
