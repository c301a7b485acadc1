"use strict";

/* Mixtures of normals: the distribution of ln CEG at one budget. Mirrors estimator/common/mixture.py. */

globalThis.ceg ??= {};

ceg.mixture = (() => {
  // Coefficients of erf and erfc, highest power first: ndtr.c of Cephes (S. L. Moshier 1989,
  // https://www.netlib.org/cephes/), after W. J. Cody 1969, doi:10.1090/S0025-5718-1969-0247736-4.
  const ERFC_P = [
    2.46196981473530512524e-10, 5.64189564831068821977e-1, 7.46321056442269912687, 4.86371970985681366614e1,
    1.96520832956077098242e2, 5.26445194995477358631e2, 9.34528527171957607540e2, 1.02755188689515710272e3,
    5.57535335369399327526e2,
  ];
  const ERFC_Q = [
    1, 1.32281951154744992508e1, 8.67072140885989742329e1, 3.54937778887819891062e2, 9.75708501743205489753e2,
    1.82390916687909736289e3, 2.24633760818710981792e3, 1.65666309194161350182e3, 5.57535340817727675546e2,
  ];
  const ERFC_R = [
    5.64189583547755073984e-1, 1.27536670759978104416, 5.01905042251180477414, 6.16021097993053585195,
    7.40974269950448939160, 2.97886665372100240670,
  ];
  const ERFC_S = [
    1, 2.26052863220117276590, 9.39603524938001434673, 1.20489539808096656605e1, 1.70814450747565897222e1,
    9.60896809063285878198, 3.36907645100081516050,
  ];
  const ERF_T = [
    9.60497373987051638749, 9.00260197203842689217e1, 2.23200534594684319226e3, 7.00332514112805075473e3,
    5.55923013010394962768e4,
  ];
  const ERF_U = [
    1, 3.35617141647503099647e1, 5.21357949780152679795e2, 4.59432382970980127987e3, 2.26290000613890934246e4,
    4.92673942608635921086e4,
  ];
  const ROOT_TWO_PI = Math.sqrt(2 * Math.PI);

  function polynomial(x, coefficients) {
    let sum = coefficients[0];
    for (let i = 1; i < coefficients.length; i++) sum = sum * x + coefficients[i];
    return sum;
  }

  /** P(Z <= z) of a standard normal; `bell`, exp(-z^2 / 2), for those who have it. */
  function ndtr(z, bell = Math.exp(-0.5 * z * z)) {
    const x = Math.abs(z) * Math.SQRT1_2;
    let tail;
    if (x < 1) tail = 0.5 - (0.5 * x * polynomial(x * x, ERF_T)) / polynomial(x * x, ERF_U);
    else if (x < 8) tail = (0.5 * bell * polynomial(x, ERFC_P)) / polynomial(x, ERFC_Q);
    else tail = (0.5 * bell * polynomial(x, ERFC_R)) / polynomial(x, ERFC_S);
    return z > 0 ? 1 - tail : tail;
  }

  /** The z below which a standard normal has `probability`, 1e-12 or more on either side. */
  function ndtri(probability) {
    if (probability > 0.5) return -ndtri(1 - probability);
    // ln P is concave in z, so Newton's steps from 0 pass the root once and then rise to it without leaving its side.
    let z = 0;
    for (let i = 0; i < 50; i++) {
      const p = ndtr(z);
      const step = (Math.log(p / probability) * p * ROOT_TWO_PI) / Math.exp(-0.5 * z * z);
      z -= step;
      if (Math.abs(step) < 1e-14 * Math.max(1, Math.abs(z))) break;
    }
    return z;
  }

  /** k normals: weights [k] (sum 1), means [k], sds [k] (0 allowed: a point). */
  class Mixture {
    constructor(weights, means, sds) {
      this.weights = weights;
      this.means = means;
      this.sds = sds;
    }

    /** Expectation. */
    mean() {
      let sum = 0;
      for (let i = 0; i < this.weights.length; i++) sum += this.weights[i] * this.means[i];
      return sum;
    }

    /** E X^2 - (E X)^2. */
    variance() {
      let sum = 0;
      for (let i = 0; i < this.weights.length; i++) {
        sum += this.weights[i] * (this.sds[i] ** 2 + this.means[i] ** 2);
      }
      return sum - this.mean() ** 2;
    }

    /** P(X <= value). */
    cdf(value) {
      let sum = 0;
      for (let i = 0; i < this.weights.length; i++) {
        const away = value - this.means[i];
        if (this.sds[i] > 0) sum += this.weights[i] * ndtr(away / this.sds[i]);
        else if (away >= 0) sum += this.weights[i];
      }
      return sum;
    }

    /** The value below which `probability` lies: Newton's steps, and bisection where one would leave the bracket. */
    quantile(probability) {
      const { weights, means, sds } = this;
      const z = ndtri(probability);
      let low = Infinity, high = -Infinity, x = 0;
      for (let i = 0; i < weights.length; i++) {
        const end = means[i] + z * sds[i];
        low = Math.min(low, end);
        high = Math.max(high, end);
        x += weights[i] * end;
      }
      const fine = 1e-12 * Math.max(1, Math.abs(low), Math.abs(high));
      while (high - low > fine) {
        if (!(x > low && x < high)) x = (low + high) / 2;
        let excess = -probability, density = 0;
        for (let i = 0; i < weights.length; i++) {
          const away = x - means[i];
          if (sds[i] > 0) {
            const bell = Math.exp(-0.5 * (away / sds[i]) ** 2);
            excess += weights[i] * ndtr(away / sds[i], bell);
            density += (weights[i] / sds[i]) * bell;
          } else if (away >= 0) excess += weights[i];
        }
        if (excess < 0) low = x;
        else high = x;
        const step = (excess * ROOT_TWO_PI) / density;
        x -= step;
        if (Math.abs(step) < fine) return x;
      }
      return (low + high) / 2;
    }

    /** The interval [low, high] that leaves (1 - content) / 2 on each side. */
    central(content) {
      return [this.quantile((1 - content) / 2), this.quantile((1 + content) / 2)];
    }

    /** The sum with an independent normal of mean 0; `sd` a number, or one for each component. */
    widened(sd) {
      const sds = this.sds.map((own, i) => Math.sqrt(own ** 2 + (typeof sd === "number" ? sd : sd[i]) ** 2));
      return new Mixture(this.weights, this.means, sds);
    }

    /** The sum with a constant. */
    shifted(by) {
      return new Mixture(this.weights, this.means.map((mean) => mean + by), this.sds);
    }
  }

  /** All probability on one value. */
  const point = (value) => new Mixture([1], [value], [0]);

  /** Two independent readings of one quantity, weighed by precision: a normal. A point wins over everything. */
  function joined(first, second) {
    const variances = [first.variance(), second.variance()];
    if (Math.min(...variances) <= 0) return variances[0] <= variances[1] ? first : second;
    const precision = 1 / variances[0] + 1 / variances[1];
    const mean = (first.mean() / variances[0] + second.mean() / variances[1]) / precision;
    return new Mixture([1], [mean], [precision ** -0.5]);
  }

  // Where sums are laid out, so that drawing a curve leaves no garbage. The most there can be: `most` components of a
  // sum with the scenarios of a part. `keys` are what is sorted: a width, with its index in place of its last bits.
  const MOST = 4096;
  const [weights, means, sds, keys] = [0, 1, 2, 3].map(() => new Float64Array(MOST));
  const words = new Uint32Array(keys.buffer);

  /** Distribution of a sum of independent mixtures, of at most `most` components (like widths are merged). */
  function total(parts, most) {
    return parts.reduce((sum, part) => {
      const n = sum.weights.length * part.weights.length;
      add(sum, part);
      if (n > most) return merged(n, most);
      return new Mixture(...[weights, means, sds].map((values) => Array.from(values.subarray(0, n))));
    }, point(0));
  }

  function add(first, second) {
    const n = second.weights.length;
    for (let i = 0; i < first.weights.length; i++) {
      for (let j = 0; j < n; j++) {
        weights[i * n + j] = first.weights[i] * second.weights[j];
        means[i * n + j] = first.means[i] + second.means[j];
        sds[i * n + j] = Math.sqrt(first.sds[i] ** 2 + second.sds[j] ** 2);
      }
    }
  }

  /** The n components in order of width, divided as numpy.array_split does: the first groups are longer by one. */
  function merged(n, most) {
    for (let i = 0; i < n; i++) {
      keys[i] = sds[i];
      words[2 * i] = (words[2 * i] & -MOST) | i; // widths that agree to 1e-12 stay in the order they have
    }
    keys.subarray(0, n).sort(); // several times as fast as with a function that compares
    const result = new Mixture([], [], []);
    let next = 0;
    for (let group = 0; group < most; group++) {
      const end = next + Math.floor(n / most) + (group < n % most ? 1 : 0);
      let weight = 0, mean = 0, second = 0;
      for (; next < end; next++) {
        const i = words[2 * next] & (MOST - 1);
        weight += weights[i];
        mean += weights[i] * means[i];
        second += weights[i] * (sds[i] ** 2 + means[i] ** 2);
      }
      mean /= weight;
      result.weights.push(weight);
      result.means.push(mean);
      result.sds.push(Math.sqrt(Math.max(second / weight - mean ** 2, 0)));
    }
    return result;
  }

  return { Mixture, joined, ndtr, ndtri, point, total };
})();
