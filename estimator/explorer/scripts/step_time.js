/**
 * Seconds of a training step and of a decoded token, in the browser: what `estimator/speed/two_models.py: speeds`
 * computes, with the parts of `estimator/speed/step_work.py` and `estimator/speed/step_time.py` that it calls, in their
 * order and under their names (camelCase for functions and locals; fields of plans, devices and answers as in Python).
 * `data` is always `steps.document()` of `estimator/explorer/steps.py`, from which every named constant comes; numbers
 * inside a formula are the Python formula's.
 *
 * Left out, because no question of the page reaches it: plans other than `default_plan`'s (fp8, expert parallelism,
 * shardings but "full", gradient accumulation, named kernels, networks that are given) and their problems, of which too
 * little memory is the only one left; FLOP/s in the full-attention convention.
 */
globalThis.ceg ??= {};

ceg.stepTime = (() => {
  "use strict";

  const {
    ValueError, blockMatrices, computeOptimalShape, feedForwardMatmuls, flopsPerToken, general, headPatterns,
    kvCacheBytes, lstmLayer, modelShape, optimizerFlops, scoreFlops, sum, visitedScores,
  } = ceg.architecture;

  /** A contrast without two models to compare: one sentence with rule, value and remedy. */
  class NoShapeError extends Error {}

  // ---- step_work: what a step asks of one device ----

  /** How a shape is trained: every device holds its share of the model, and runs `micro_batch` sequences at once. */
  class Plan {
    constructor(device, devices, micro_batch, recompute) {
      this.device = device;
      this.devices = devices;
      this.micro_batch = micro_batch;
      this.recompute = recompute;
    }

    get on_node() {
      return Math.min(this.devices, this.device.node_devices);
    }

    get nodes() {
      return this.devices / this.on_node;
    }
  }

  const isMaterialised = (shape) => shape.attention === "materialised";

  /** One micro-batch on one device, forward, backward and what is computed again; fields as `step_work.Work`. */
  function work(data, shape, plan) {
    const { LAUNCHES, OPTIMIZER_TRAFFIC, SCORE_BYTES, TILE } = data.step_work;
    const { ATTENTION_BACKWARD_MATMULS, FLASH_BACKWARD_MATMULS } = data.costs;
    const n = plan.micro_batch * shape.seq_len, layers = shape.n_layers, again = Number(plan.recompute);
    const passes = 3 + again, lstm = shape.kind === "lstm";
    let recurrent = 0, recurrentMoved = 0, timeSteps = 0, scores = 0, scoresMoved = 0;
    let [routed, dense] = blockParameters(shape);
    if (lstm) {
      const forward = lstmLayer(plan.micro_batch, shape.seq_len, shape.d_model, shape.d_model);
      recurrent = passes * layers * forward.flops;
      recurrentMoved = (passes * layers * forward.bytes * plan.device.value_bytes) / 2;
      timeSteps = passes * layers * shape.seq_len;
      dense = 0;
    } else {
      const materialised = isMaterialised(shape);
      const pairs = shape.n_heads * shape.seq_len ** 2;
      const visited = materialised ? pairs : visitedScores(headPatterns(shape), shape.seq_len, TILE);
      const products = 2 + (materialised ? ATTENTION_BACKWARD_MATMULS : FLASH_BACKWARD_MATMULS) + 2 * again;
      scores = plan.micro_batch * layers * visited * 2 * shape.width_per_head * products;
      if (materialised) {
        const size = plan.device.value_bytes;
        const moved = SCORE_BYTES.forward[size] * (1 + again) + SCORE_BYTES.backward[size];
        scoresMoved = plan.micro_batch * layers * pairs * moved;
      }
    }
    const [inside, across, hops] = collectives(data, shape, plan);
    return {
      layers: 2 * n * layers * dense * passes,
      experts: 2 * n * layers * routed * passes,
      vocabulary: 3 * 2 * n * shape.d_model * shape.vocab_size,
      scores,
      score_width: lstm ? 1 : shape.width_per_head,
      scores_moved: scoresMoved,
      elements: n * layers * blockElements(shape) * passes,
      logits: n * shape.vocab_size,
      recurrent,
      recurrent_moved: recurrentMoved,
      time_steps: timeSteps,
      inside,
      across,
      hops,
      launches: layers * (LAUNCHES.forward * (1 + again) + LAUNCHES.backward),
      optimizer_bytes: (OPTIMIZER_TRAFFIC * shape.parameters.total) / plan.devices,
      optimizer_flops: optimizerFlops(data, shape) / plan.devices,
    };
  }

  /** Values that the operations of one block read and write per token, forward. */
  function blockElements(shape) {
    const d = shape.d_model;
    const norm = shape.norm === "none" ? 0 : 2 * d, residual = 3 * d;
    if (shape.kind === "lstm") return norm + residual + 12 * d;
    const q = shape.n_heads * shape.width_per_head, kv = 2 * shape.n_kv_heads * shape.width_per_head;
    const rotated = 2 * (q + kv / 2);
    const turned = (shape.positions === "rope" ? rotated : 0) + (shape.qk_norm ? rotated : 0);
    const attention = d + q + kv + turned + (q + kv + q) + (q + d);
    const into = feedForwardMatmuls(shape.activation) - 1, moe = shape.feed_forward === "moe";
    const width = moe ? (shape.top_k + shape.n_shared_experts) * shape.expert_width : shape.feed_forward_width;
    const moved = moe ? 2 * shape.top_k * d + (shape.top_k + 1) * d : 0;
    return 2 * norm + 2 * residual + attention + (d + into * width) + (into * width + width) + (width + d) + moved;
  }

  /** Weights that one token uses in a block: of its routed experts, of everything else. */
  function blockParameters(shape) {
    const active = sum(blockMatrices(shape).map((m) => m.active * m.d_out * m.d_in));
    if (shape.feed_forward !== "moe" || shape.kind === "lstm") return [0, active];
    const routed = feedForwardMatmuls(shape.activation) * shape.top_k * shape.expert_width * shape.d_model;
    return [routed, active - routed];
  }

  /** Bytes inside a server (per device), bytes of a server on the network, and ring steps, of one micro-batch. */
  function collectives(data, shape, plan) {
    if (plan.devices === 1) return [0, 0, 0];
    const n = shape.parameters.total, g = plan.on_node, nodes = plan.nodes;
    const moved = 2 * plan.device.value_bytes + data.step_work.GRADIENT_BYTES;
    return [((g - 1) / g) * n * moved, ((nodes - 1) / nodes) * n * moved, (shape.n_layers + 1) * 3 * plan.devices];
  }

  /** Bytes that a device holds at the fullest moment. */
  function memory(data, shape, plan) {
    const n = plan.micro_batch * shape.seq_len, d = shape.d_model, value = plan.device.value_bytes;
    const { total, embedding } = shape.parameters;
    const states = total * (data.step_work.PARAMETER_BYTES / plan.devices);
    const gathered = value * ((total - embedding) / shape.n_layers) * 2;
    const perBlock = n * keptValues(shape) * value;
    const blocks = plan.recompute ? shape.n_layers * n * d * value + perBlock : shape.n_layers * perBlock;
    return states + gathered + blocks + n * shape.vocab_size * (value + 4);
  }

  /** Values that a block keeps per token for its backward pass. */
  function keptValues(shape) {
    const d = shape.d_model;
    if (shape.kind === "lstm") return 8 * d;
    const q = shape.n_heads * shape.width_per_head, kv = 2 * shape.n_kv_heads * shape.width_per_head;
    const into = feedForwardMatmuls(shape.activation) - 1, moe = shape.feed_forward === "moe";
    const width = moe ? (shape.top_k + shape.n_shared_experts) * shape.expert_width : shape.feed_forward_width;
    const kept = 2 * d * (shape.norm === "none" ? 1 : 2) + 2 * q + kv + (into + 1) * width;
    return isMaterialised(shape) ? kept + shape.n_heads * shape.seq_len : kept;
  }

  /** Whether a default plan has no problem: `step_work.problems`, of which memory is the only one it can have. */
  const fits = (data, shape, plan) => memory(data, shape, plan) <= data.step_work.MEMORY_SLACK * plan.device.memory;

  /** A plan for a shape: few devices, or as many as it takes; `fixed` may set {devices, recompute}. */
  function defaultPlan(data, shape, device, fixed = null) {
    const { FIRST_DEVICES, MOST_DEVICES, TOKENS_PER_DEVICE } = data.step_work;
    let devices = fixed ? fixed.devices : Math.min(FIRST_DEVICES, device.node_devices);
    const wanted = Math.max(1, Math.floor(TOKENS_PER_DEVICE / shape.seq_len));
    for (;;) {
      let trial = null;
      for (const recompute of fixed ? [fixed.recompute] : [false, true]) {
        const enough = recompute || fixed ? 1 : wanted / 4;
        for (let batch = wanted; batch >= 1; batch = Math.floor(batch / 2)) {
          trial = new Plan(device, devices, batch, recompute);
          if (memory(data, shape, trial) <= device.memory && batch >= enough) return trial;
        }
      }
      if (fixed || devices >= MOST_DEVICES) return trial;
      devices *= 2;
    }
  }

  // ---- step_time: seconds ----

  /** Time of one optimizer step, of plans that do not fit too; fields as `step_time.StepTime`. */
  function trainingStep(data, shape, plan) {
    const count = work(data, shape, plan);
    const parts = partsOf(data, count, shape, plan, data.calibration.constants);
    const seconds = sumOf(parts);
    const [gradient, own_variance] = sensitivity(data, count, shape, plan, parts);
    const tokens = plan.micro_batch * plan.devices * shape.seq_len;
    const achieved_flops = flopsPerToken(data, shape, tokens) * (tokens / seconds / plan.devices);
    return { shape, plan, seconds, parts, achieved_flops, gradient, own_variance };
  }

  /** Variance of ln(first.seconds / second.seconds): constants that both share cancel as far as they do. */
  function logVarianceOfRatio(data, first, second) {
    const same = (one, other, names) => names.every((name) => one[name] === other[name]);
    const sameDevice = first.plan.device.name === second.plan.device.name;
    const samePlan = sameDevice && same(first.plan, second.plan, ["devices", "micro_batch", "recompute"]);
    if (samePlan && same(first.shape, second.shape, Object.keys(data.shape))) return 0;
    const difference = first.gradient.map((slope, i) => slope - second.gradient[i]);
    let own = first.own_variance + second.own_variance;
    if (sameDevice) own -= 2 * first.plan.device.ceiling_sd ** 2;
    return quadratic(difference, data.calibration.covariance) + own;
  }

  /** Seconds by part of one optimizer step. */
  function partsOf(data, count, shape, plan, c) {
    const { EXPERT_SPEED, KERNEL_SPEED, LAUNCH, SPARSE_SPEED } = data.step_time;
    const device = plan.device, cpu = device.generation === "cpu";
    const rate = c.matmul * device.matmul[device.precision];
    const parts = {
      layers: count.layers / rate,
      experts: count.experts / (rate * (device.expert_speed ?? EXPERT_SPEED[0])),
      vocabulary: count.vocabulary / rate,
      elementwise: (c.elementwise * device.value_bytes * count.elements) / device.copy_rate,
      cross_entropy: (((c.cross_entropy * device.value_bytes) / 2) * count.logits) / device.copy_rate,
      recurrence:
        Math.max(count.recurrent / rate, count.recurrent_moved / device.copy_rate) +
        (cpu ? 0 : 2 * LAUNCH * count.time_steps),
    };
    const sparse = isSparse(shape) ? SPARSE_SPEED[0] : 1;
    if (isMaterialised(shape)) {
      parts.attention = count.scores / rate + count.scores_moved / (device.score_rate ?? device.copy_rate);
    } else if (device.fused_attention !== null) {
      parts.attention = count.scores / (device.matmul[device.precision] * device.fused_attention * sparse);
    } else {
      const newer = ["hopper", "blackwell"].includes(device.generation) ? c.hopper_attention : 1;
      const kernel = c.attention * KERNEL_SPEED["flash-triton"][0];
      parts.attention = count.scores / (((rate * kernel) / (1 + c.softmax / count.score_width)) * newer * sparse);
    }
    let compute = sumOf(parts);
    parts.launches = Math.max(0, (cpu ? 0 : LAUNCH * count.launches) - compute);
    compute += parts.launches;
    const moving = Math.max(count.inside / device.link, count.across / device.network) / c.link + c.hop * count.hops;
    const micro = Math.max(compute, moving) + c.exposed * Math.min(compute, moving);
    parts.collectives = micro - compute;
    parts.stragglers = sumOf(parts) * c.jitter * data.largest_normal[plan.devices];
    parts.optimizer = count.optimizer_bytes / device.copy_rate + count.optimizer_flops / rate;
    return parts;
  }

  /** Bytes per stored value in decoding, the rate of its matrix products, and what caches and weights take. */
  function decodeNeeds(shape, device, context, batch) {
    const precision = device.precision !== "fp32" && "bf16" in device.matmul ? "bf16" : device.precision;
    const size = precision === "fp32" ? 4 : 2;
    const cache = batch * kvCacheBytes(shape, context, size);
    return { size, rate: device.matmul[precision], cache, held: size * shape.parameters.total + cache };
  }

  /** Time of one decoding step on `devices` that have room for it, in which each of `batch` sequences gets a token. */
  function decodedToken(data, shape, device, context, batch, devices) {
    const { DECODE_KERNELS, DECODE_LAUNCH, DECODE_SHARE } = data.step_time;
    const { constants, residual_sd } = data.calibration;
    const { size, rate, cache } = decodeNeeds(shape, device, context, batch), { active, total } = shape.parameters;
    const bandwidth = DECODE_SHARE[0] * device.bandwidth * devices;
    const read = active + (total - active) * metShare(shape, batch);
    const matmul = constants.matmul * rate * devices;
    const parts = {
      weights: Math.max((size * read) / bandwidth, (batch * 2 * active) / matmul),
      cache: cacheRead(data, shape, context, cache) / bandwidth,
      launches: device.generation === "cpu" ? 0 : DECODE_LAUNCH * DECODE_KERNELS * shape.n_layers,
      collectives: 2 * shape.n_layers * constants.hop * (devices - 1),
    };
    const seconds = sumOf(parts);
    const log_variance = DECODE_SHARE[1] ** 2 + residual_sd ** 2 + device.ceiling_sd ** 2;
    const seconds_per_token = (seconds * devices) / batch;
    return { shape, device, devices, batch, context, seconds, parts, log_variance, seconds_per_token };
  }

  /** Bytes of keys and values that one step reads, of those that are kept. */
  function cacheRead(data, shape, context, kept) {
    if (!isSparse(shape)) return kept;
    const at = modelShape({ ...shape, seq_len: context }), dense = modelShape({ ...at, pattern: "causal" });
    return (kept * scoreFlops(data, at, false)) / scoreFlops(data, dense, false);
  }

  /** Share of the experts beyond one token's own that a batch of tokens reads, routed evenly. */
  function metShare(shape, batch) {
    if (shape.kind === "lstm" || shape.feed_forward !== "moe" || shape.n_experts === shape.top_k) return 0;
    const met = shape.n_experts * (1 - (1 - shape.top_k / shape.n_experts) ** batch);
    return (met - shape.top_k) / (shape.n_experts - shape.top_k);
  }

  /** d ln(seconds) / d ln(constant), by central differences, and the variance that is not the constants'. */
  function sensitivity(data, count, shape, plan, parts) {
    const step = 1e-4, { constants, residual_sd } = data.calibration;
    const changed = { ...constants };
    const slopes = Object.entries(constants).map(([name, value]) => {
      const [more, less] = [1, -1].map((sign) => {
        changed[name] = value * Math.exp(sign * step);
        return sumOf(partsOf(data, count, shape, plan, changed));
      });
      changed[name] = value;
      return Math.log(more / less) / (2 * step);
    });
    return [slopes, residual_sd ** 2 + ownVariance(data, shape, plan, parts)];
  }

  /** Variance of ln(seconds) from assumed speeds and from the device's ceilings. */
  function ownVariance(data, shape, plan, parts) {
    const { EXPERT_SPEED, KERNEL_SPEED, MATERIALISED_SD, OTHER_SHAPE_SD, RECURRENT_SD, SPARSE_SPEED } = data.step_time;
    const device = plan.device, seconds = sumOf(parts);
    const fused = device.fused_attention !== null ? OTHER_SHAPE_SD : KERNEL_SPEED["flash-triton"][1];
    let attention = isMaterialised(shape) ? MATERIALISED_SD : fused;
    if (isSparse(shape) && !isMaterialised(shape)) attention = Math.hypot(attention, SPARSE_SPEED[1]);
    const expertsSd = device.expert_speed === null ? EXPERT_SPEED[1] : OTHER_SHAPE_SD;
    const shares = { attention, experts: expertsSd, recurrence: RECURRENT_SD };
    const own = sum(Object.entries(shares).map(([part, sd]) => ((sd * parts[part]) / seconds) ** 2));
    return own + device.ceiling_sd ** 2;
  }

  const isSparse = (shape) => shape.kind === "transformer" && ["strided", "fixed"].includes(shape.pattern);

  const quadratic = (vector, matrix) => sum(vector.map((a, i) => a * sum(vector.map((b, j) => b * matrix[i][j]))));

  // ---- two_models: the two models of a question ----

  /** See `make`. */
  function speeds(data, names, baselines, currency, flops, inFlop, setting) {
    const [withIt, withoutIt] = fieldsOf(data, names, baselines);
    const devices = [setting.device, setting.baselineDevice].map((name) => data.devices[name]);
    if (currency === "decode") return decode(data, withIt, withoutIt, flops, devices, setting.seqLen);
    const budgets = [flops, flops * inFlop];
    const shapes = [withIt, withoutIt].map((fields, i) => shapeOf(data, budgets[i], fields, setting.seqLen));
    const first = shapes.map((shape, i) => defaultPlan(data, shape, devices[i]));
    const fit = shapes.map((shape, i) => fits(data, shape, first[i]));
    // As many devices for both, and both run blocks again where one of them must: an algorithm's gain is not that it
    // fits by a hair. A model that fits nowhere is timed as if it did on the devices of the other.
    const ready = fit.includes(true) ? first.filter((_, i) => fit[i]) : first;
    const shared = {
      devices: Math.max(...ready.map((plan) => plan.devices)),
      recompute: ready.some((plan) => plan.recompute),
    };
    const steps = shapes.map((shape, i) => trainingStep(data, shape, defaultPlan(data, shape, devices[i], shared)));
    const speed = Math.log(steps[0].achieved_flops / steps[1].achieved_flops);
    const [own, other] = devices.map((device) => device.price.usd_per_hour);
    const price = currency === "usd" ? Math.log(other / own) : 0;
    const [treatment, baseline] = steps.map((time, i) => trainingSide(budgets[i], time, fit[i]));
    return { lnFactor: speed + price, variance: logVarianceOfRatio(data, ...steps), price, treatment, baseline };
  }

  function decode(data, withIt, withoutIt, flops, devices, seqLen) {
    const shapes = [withIt, withoutIt].map((fields) => shapeOf(data, flops, fields, seqLen));
    const tokens = shapes.map((shape, i) => token(data, shape, devices[i], seqLen));
    let variances = tokens.map((one) => one.log_variance);
    if (devices[0].name === devices[1].name) {
      // The same machine: what remains is how differently it reads caches and weights.
      const shares = tokens.map((one) => one.parts.cache / one.seconds);
      const apart = data.step_time.DECODE_SHARE[1] * (shares[0] - shares[1]);
      variances = [2 * data.calibration.residual_sd ** 2, apart ** 2];
    }
    const lnFactor = Math.log(tokens[1].seconds_per_token / tokens[0].seconds_per_token);
    const [treatment, baseline] = tokens.map((time) => decodingSide(flops, time));
    return { lnFactor, variance: sum(variances), price: 0, treatment, baseline };
  }

  /** One decoding step, on as few devices (a power of two) as hold weights and caches. */
  function token(data, shape, device, context) {
    const batch = data.two_models.DECODE_BATCH, { held } = decodeNeeds(shape, device, context, batch);
    let devices = 1;
    while (held > devices * device.memory) {
      if (devices > data.step_work.MOST_DEVICES) {
        throw new NoShapeError(
          `no token can be timed there: weights and caches must fit into ${devices} x ${gigabytes(device.memory)} GB ` +
            `of ${device.title}, got ${gigabytes(held)} GB; use ${Math.ceil(held / device.memory)} devices, ` +
            "a smaller batch or a shorter context",
        );
      }
      devices *= 2;
    }
    return decodedToken(data, shape, device, context, batch, devices);
  }

  /** What a stack changes with all algorithms, and with none of them. */
  function fieldsOf(data, names, baselines) {
    const withIt = {}, withoutIt = {};
    const bare = { ...data.shape, ...data.architecture.STACKS.bare };
    const isEmpty = (fields) => Object.keys(fields).length === 0;
    names.forEach((name, i) => {
      const entry = data.algorithms[name], baseline = baselines[i];
      if (isEmpty(entry.arm) && isEmpty(entry.baseline_arm)) {
        throw new NoShapeError(`${name} cannot be timed: it is no change of a model's shape`);
      }
      if (baseline === name) return;
      let other = {};
      if (baseline === entry.replaces[0]) {
        // a mixture replaces a dense layer of the stack's own activation
        const left = entry.arm.feed_forward === "moe" ? [] : Object.keys(entry.arm);
        other = isEmpty(entry.baseline_arm) ? Object.fromEntries(left.map((f) => [f, bare[f]])) : entry.baseline_arm;
      } else if (baseline in data.algorithms && !isEmpty(data.algorithms[baseline].arm)) {
        other = data.algorithms[baseline].arm;
      } else {
        throw new NoShapeError(
          `${name} against ${baseline} cannot be timed: no model's shape is known for ${baseline}`,
        );
      }
      for (const [fields, more] of [[withIt, entry.arm], [withoutIt, other]]) {
        for (const [field, value] of Object.entries(more)) {
          if (field in fields && fields[field] !== value) {
            throw new NoShapeError(`${names.join(" and ")} cannot be timed together: they set ${field} differently`);
          }
          fields[field] = value;
        }
      }
    });
    return [withIt, withoutIt];
  }

  function shapeOf(data, flops, fields, seqLen) {
    const most = data.two_models.MOST_FLOPS;
    if (flops > most) {
      throw new NoShapeError(`no model of more than ${general(most)} FLOP is timed, got ${general(flops)}`);
    }
    try {
      return computeOptimalShape(data, flops, { seq_len: seqLen, ...fields });
    } catch (error) {
      if (!(error instanceof ValueError)) throw error;
      throw new NoShapeError(`no model can be timed there: ${error.message}`);
    }
  }

  /** `two_models.side_document`: one model, with the seconds of one step by part; `plan` is what it runs on. */
  function sideDocument(flops, time, fits, plan) {
    const { shape, seconds, parts } = time;
    return {
      flops,
      layers: shape.n_layers,
      width: shape.d_model,
      heads: shape.n_heads,
      params_active: shape.parameters.active,
      params_total: shape.parameters.total,
      seq_len: shape.seq_len,
      fits,
      seconds,
      parts_seconds: parts,
      ...plan,
    };
  }

  function trainingSide(flops, time, fits) {
    const { device, devices, micro_batch, recompute } = time.plan, achieved_flops_per_s = time.achieved_flops;
    return sideDocument(flops, time, fits, {
      device: device.name, devices, micro_batch, recompute, achieved_flops_per_s,
    });
  }

  function decodingSide(flops, time) {
    const { device, devices, batch } = time, device_seconds_per_token = time.seconds_per_token;
    return sideDocument(flops, time, true, { device: device.name, devices, batch, device_seconds_per_token });
  }

  /** Sum over an object's values. */
  function sumOf(parts) {
    let seconds = 0;
    for (const part in parts) seconds += parts[part];
    return seconds;
  }

  const gigabytes = (bytes) => (bytes / 1e9).toFixed(0);

  /**
   * A model of step times.
   * @param {object} steps `steps.document()`: the key `steps` of the report's document.
   * @returns {{speeds: function}} with `speeds(names, baselines, currency, flops, inFlop, setting)`: algorithms and
   *   what each replaces; "time", "usd" or "decode"; budget of the model with the algorithms (FLOP); CEG in FLOP, by
   *   which the other's budget is larger (no matter for decode); {device, baselineDevice, seqLen}, names of devices and
   *   tokens of a sequence (decode: in each cache). It gives {lnFactor, variance, price, treatment, baseline}: ln of
   *   what a gain in FLOP is multiplied by (decode: of the gain itself), the variance of that, the part of it due to
   *   prices, and both models as `two_models.side_document` has them. Throws NoShapeError where there are no two
   *   models to compare.
   */
  function make(steps) {
    return { speeds: (...question) => speeds(steps, ...question) };
  }

  return { NoShapeError, make };
})();
