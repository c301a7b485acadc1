/**
 * Model shape -> parameters, FLOP and bytes, in the browser: what `estimator/speed/step_time.py` asks of
 * `estimator/shapes/architecture.py`, with the parts of `kernels/costs.py` and `kernels/patterns.py` behind it, in
 * their order and under their names (camelCase for functions and locals; fields of shapes as in Python). `data` is
 * always `steps.document()` of `estimator/explorer/steps.py`, from which every named constant comes; numbers inside a
 * formula are the Python formula's.
 *
 * Left out, because no question of the page reaches it:
 * - the conventions `executed`, `full` and `6nd_non_embedding`; bytes of operations but the LSTM's; checks of costs;
 * - the `fixed` and `full` patterns, global tokens, and more keys than queries: no algorithm's arm has them;
 * - problems of a shape that no arm of the registry and sound sequence length can have. Two are left: a group of query
 *   heads that does not divide them, and a budget too small for its vocabulary;
 * - budgets that are not positive and finite.
 * Python's integers are exact and these are doubles, so that counts above 2^53 differ in the last digit.
 */
globalThis.ceg ??= {};

ceg.architecture = (() => {
  "use strict";

  /** A bad shape: rule, value, remedy. */
  class ValueError extends Error {}

  // ---- kernels/costs: FLOP of one operation, forward; training is 3 x that ----

  const linear = (tokens, dIn, dOut) => 2 * tokens * dIn * dOut;

  /** FLOP and bytes of one LSTM layer, forward, as an unfused loop over time steps. */
  function lstmLayer(batch, seqLen, dIn, dHidden) {
    const bytes = (rows, from, to) => 2 * (rows * from + from * to + rows * to);
    return {
      flops: seqLen * (linear(batch, dIn, 4 * dHidden) + linear(batch, dHidden, 4 * dHidden)),
      bytes: seqLen * (bytes(batch, dIn, 4 * dHidden) + bytes(batch, dHidden, 4 * dHidden)),
    };
  }

  const feedForwardMatmuls = (activation) => (activation === "swiglu" ? 3 : 2);

  const experts = (rows, dModel, dFf, activation) => feedForwardMatmuls(activation) * linear(rows, dModel, dFf);

  /** FLOP of the matrix products of one Muon step, for one weight. */
  function muonStep(rows, columns, steps) {
    const n = Math.min(rows, columns), m = Math.max(rows, columns);
    return steps * (4 * n * n * m + 2 * n ** 3);
  }

  // ---- kernels/patterns: [pattern of a head, heads that have it] ----

  const defaultStride = (seqKv) => 2 ** Math.max(0, Math.ceil(Math.log2(Math.max(1, seqKv)) / 2));

  /** Patterns of a layer's heads, each with how many heads have it: [[{kind, window or stride}, copies], ...]. */
  function headPatterns(shape) {
    const n = shape.n_heads;
    const window = shape.window ?? Math.floor((shape.seq_len + 1) / 2);
    const stride = shape.stride ?? defaultStride(shape.seq_len);
    if (shape.pattern === "causal") return [[{ kind: "causal" }, n]];
    if (shape.pattern === "window") return [[{ kind: "window", window }, n]];
    if (shape.pattern === "strided") {
      const nLocal = Math.floor((n + 1) / 2);
      return [[{ kind: "window", window: stride }, nLocal], [{ kind: "column", stride }, n - nLocal]];
    }
    throw new Error(`pattern ${shape.pattern} is not in this model; port it from kernels/patterns.py`);
  }

  /** Unmasked query-key pairs of one sequence, summed over heads. */
  const usefulScores = (heads, seqLen) =>
    heads.reduce((total, [head, copies]) => total + copies * pairsBefore(head, seqLen), 0);

  /** Query-key pairs in all tiles of [block, block] that hold an unmasked pair, summed over heads. */
  function visitedScores(heads, seqLen, block) {
    let total = 0;
    for (const [head, copies] of heads) {
      let blocks = 0;
      if (head.kind === "column") {
        for (const part of residueClasses(head.stride, seqLen)) {
          blocks += part.residues * visitedBlocks({ kind: "causal" }, part.keys, block);
        }
      } else {
        blocks = visitedBlocks(head, seqLen, block);
      }
      total += copies * block * block * blocks;
    }
    return total;
  }

  /** The sequence reshaped to (seqLen / stride, stride): residues that have equally many keys. */
  function residueClasses(stride, seqLen) {
    const longer = seqLen % stride, whole = Math.floor(seqLen / stride);
    return [
      { residues: longer, keys: whole + 1 },
      { residues: Math.min(stride, seqLen) - longer, keys: whole },
    ].filter((part) => part.residues > 0);
  }

  function pairsBefore(head, n) {
    if (head.kind === "causal") return (n * (n + 1)) / 2;
    if (head.kind === "window") {
      const growing = Math.min(n, head.window);
      return (growing * (growing + 1)) / 2 + (n - growing) * head.window;
    }
    const whole = Math.floor(n / head.stride), rest = n % head.stride;
    return (head.stride * whole * (whole + 1)) / 2 + rest * (whole + 1);
  }

  /** Key blocks with an unmasked pair, summed over blocks of queries. */
  function visitedBlocks(head, seqLen, block) {
    let total = 0;
    for (let row = 0; row < seqLen; row += block) {
      const last = Math.min(row + block, seqLen) - 1;
      const oldest = head.kind === "window" ? Math.floor(Math.max(row - head.window + 1, 0) / block) : 0;
      total += Math.floor(last / block) + 1 - oldest;
    }
    return total;
  }

  // ---- architecture: shape -> parameters and FLOP ----

  /**
   * A shape from the fields of `architecture.ModelShape`, with its derived widths and its parameter counts beside them;
   * not to be changed once made. `modelShape({...shape, n_layers: 2})` derives all of them again.
   */
  function modelShape(fields) {
    const { d_model, n_heads, gqa_group, heads, feed_forward, top_k, n_shared_experts } = fields;
    if (fields.kind !== "lstm" && heads === "gqa" && n_heads % gqa_group) {
      throw new ValueError(
        "ModelShape has 1 problem(s):\n" +
          `- gqa_group must divide n_heads, got gqa_group=${gqa_group}, n_heads=${n_heads}; ` +
          `use ${nearestDivisor(n_heads, gqa_group)}`,
      );
    }
    const activation = feed_forward === "moe" ? fields.expert_activation : feed_forward;
    const dense = activation === "swiglu" ? multipleOf8(8 * d_model, 3) : 4 * d_model;
    const feed_forward_width = fields.d_ff ?? dense;
    const shape = {
      ...fields,
      width_per_head: fields.head_dim ?? Math.floor(d_model / n_heads),
      n_kv_heads: { mha: n_heads, gqa: Math.floor(n_heads / gqa_group), mqa: 1 }[heads],
      activation,
      feed_forward_width,
      expert_width: fields.d_expert ?? multipleOf8(feed_forward_width, top_k + n_shared_experts),
      parameters: null,
    };
    shape.parameters = parameters(shape);
    return shape;
  }

  /** Weight matrices of one block: how many it has, and how many of them one token uses. */
  function blockMatrices(shape) {
    const d = shape.d_model, biases = Number(shape.biases);
    const matrix = (d_out, d_in, copies = 1, active = copies, own = biases) =>
      ({ d_out, d_in, copies, active, biases: own });
    if (shape.kind === "lstm") return [matrix(4 * d, d, 2)];
    const q = shape.n_heads * shape.width_per_head, kv = shape.n_kv_heads * shape.width_per_head;
    const attention = [matrix(q, d), matrix(kv, d, 2), matrix(d, q)];
    const into = feedForwardMatmuls(shape.activation) - 1;
    if (shape.feed_forward !== "moe") {
      const width = shape.feed_forward_width;
      return [...attention, matrix(width, d, into), matrix(d, width)];
    }
    const all = shape.n_experts + shape.n_shared_experts, active = shape.top_k + shape.n_shared_experts;
    const width = shape.expert_width;
    return [
      ...attention,
      matrix(shape.n_experts, d, 1, 1, 0),
      matrix(width, d, into * all, into * active),
      matrix(d, width, all, active),
    ];
  }

  /** Exact parameter counts. */
  function parameters(shape) {
    const d = shape.d_model;
    const perNorm = { none: 0, rms: d, layer: d * (1 + Number(shape.biases)) }[shape.norm];
    const transformer = shape.kind === "transformer";
    let perBlock = perNorm * (transformer ? 2 : 1);
    if (transformer && shape.qk_norm) perBlock += 2 * shape.width_per_head;
    let idle = 0;
    for (const matrix of blockMatrices(shape)) {
      const size = matrix.d_out * (matrix.d_in + matrix.biases);
      perBlock += matrix.copies * size;
      idle += shape.n_layers * (matrix.copies - matrix.active) * size;
    }
    let embedding = shape.vocab_size * d * (shape.tied_head ? 1 : 2);
    if (transformer && shape.positions === "learned") embedding += shape.seq_len * d;
    const total = embedding + shape.n_layers * perBlock + perNorm;
    return { active: total - idle, total, embedding };
  }

  /** Useful FLOP per token of training, with the optimizer's spread over the tokens of a step. */
  function flopsPerToken(data, shape, batchTokens) {
    const tokens = shape.seq_len, d = shape.d_model, layers = shape.n_layers;
    let forward = 0;
    if (shape.kind === "lstm") {
      forward = layers * lstmLayer(1, tokens, d, d).flops;
    } else {
      const q = shape.n_heads * shape.width_per_head, kv = shape.n_kv_heads * shape.width_per_head;
      forward = layers * (linear(tokens, d, q + 2 * kv) + linear(tokens, q, d) + feedForward(shape));
    }
    const found = 3 * (forward + linear(tokens, d, shape.vocab_size)) + scoreFlops(data, shape, true);
    return found / tokens + optimizerFlops(data, shape) / batchTokens;
  }

  /** Useful FLOP of the scores of one sequence in all layers. */
  function scoreFlops(data, shape, training) {
    if (shape.kind === "lstm") return 0;
    const perMatmul = 2 * shape.width_per_head * usefulScores(headPatterns(shape), shape.seq_len);
    return shape.n_layers * (2 + (training ? data.costs.ATTENTION_BACKWARD_MATMULS : 0)) * perMatmul;
  }

  function optimizerFlops(data, shape) {
    if (shape.optimizer === "adamw") return 0;
    const steps = data.costs.NEWTON_SCHULZ_STEPS;
    const each = blockMatrices(shape).map((m) => m.copies * muonStep(m.d_out, m.d_in, steps));
    return shape.n_layers * sum(each);
  }

  /** Bytes that one sequence keeps between decoding steps after so many tokens. */
  function kvCacheBytes(shape, tokens, bytesPerElement) {
    if (shape.kind === "lstm") return 2 * shape.n_layers * shape.d_model * bytesPerElement;
    const kept = shape.pattern === "window" ? Math.min(tokens, headPatterns(shape)[0][0].window) : tokens;
    return 2 * shape.n_layers * shape.n_kv_heads * shape.width_per_head * kept * bytesPerElement;
  }

  /** Parameters that minimise the loss of a dense Transformer at C = 6ND. */
  function computeOptimal(data, flops) {
    const c = data.architecture;
    const exponents = c.CHINCHILLA_ALPHA + c.CHINCHILLA_BETA;
    const g = ((c.CHINCHILLA_ALPHA * c.CHINCHILLA_A) / (c.CHINCHILLA_BETA * c.CHINCHILLA_B)) ** (1 / exponents);
    return g * (flops / 6) ** (c.CHINCHILLA_BETA / exponents);
  }

  function computeOptimalShape(data, flops, fields) {
    const n = computeOptimal(data, flops);
    const stack = { ...data.shape, ...data.architecture.STACKS[data.two_models.STACK] };
    const { vocab_size = stack.vocab_size, seq_len = stack.seq_len } = fields;
    const probe = modelShape({ ...stack, vocab_size, seq_len });
    const width = widthFor(data, n, probe.parameters.embedding / probe.d_model);
    const headDim = width >= 2048 ? 128 : 64;
    const step = width >= 4 * headDim ? 4 * headDim : headDim;
    const d_model = step * Math.max(1, round(width / step)), n_heads = Math.floor(d_model / headDim);
    const one = modelShape({ ...probe, n_layers: 1, d_model, n_heads });
    const perLayer = modelShape({ ...one, n_layers: 2 }).parameters.total - one.parameters.total;
    const n_layers = 1 + round((n - one.parameters.total) / perLayer);
    if (n_layers < 1) {
      throw new ValueError(
        `a compute-optimal model must have room for its vocabulary, got ${general(n, 3)} parameters at ` +
          `${general(flops, 3)} FLOP for vocab_size=${probe.vocab_size}; use more FLOP or a smaller vocabulary`,
      );
    }
    return modelShape({ ...stack, n_layers, d_model, n_heads, ...fields });
  }

  /** d_model at which 12 d_model^3 / ASPECT_RATIO + tableRows * d_model is nParams, by bisection. */
  function widthFor(data, nParams, tableRows) {
    const ratio = data.architecture.ASPECT_RATIO;
    let low = 0, high = Math.cbrt((nParams * ratio) / 12);
    for (let i = 0; i < 60; i++) {
      const middle = (low + high) / 2;
      if ((12 * middle * middle * middle) / ratio + tableRows * middle < nParams) low = middle;
      else high = middle;
    }
    return high;
  }

  /** FLOP of the feed-forward layer of one sequence, forward. */
  function feedForward(shape) {
    const tokens = shape.seq_len, d = shape.d_model;
    if (shape.feed_forward !== "moe") return experts(tokens, d, shape.feed_forward_width, shape.activation);
    const each = (rows) => experts(rows, d, shape.expert_width, shape.activation);
    return linear(tokens, d, shape.n_experts) + each(tokens * shape.top_k) + shape.n_shared_experts * each(tokens);
  }

  /** The quotient, rounded up to a multiple of 8. */
  const multipleOf8 = (numerator, denominator) => 8 * Math.ceil(numerator / (8 * denominator));

  function nearestDivisor(number, wanted) {
    let best = 1;
    for (let i = 2; i <= number; i++) {
      if (number % i === 0 && Math.abs(i - wanted) < Math.abs(best - wanted)) best = i;
    }
    return best;
  }

  // ---- Python's arithmetic and formats ----

  const sum = (values) => values.reduce((before, value) => before + value, 0);

  /** Python's `round`: halves to the even neighbour. */
  function round(x) {
    const low = Math.floor(x), rest = x - low;
    return rest > 0.5 || (rest === 0.5 && low % 2 !== 0) ? low + 1 : low;
  }

  /** Python's `format(x, ".{digits}g")`, for positive numbers. */
  function general(x, digits = 6) {
    const [mantissa, exponent] = x.toExponential(digits - 1).split("e");
    const bare = (text) => (text.includes(".") ? text.replace(/\.?0+$/, "") : text);
    const power = Number(exponent);
    if (power >= -4 && power < digits) return bare(x.toFixed(digits - 1 - power));
    return `${bare(mantissa)}e${exponent[0]}${exponent.slice(1).padStart(2, "0")}`;
  }

  return {
    ValueError,
    blockMatrices,
    computeOptimalShape,
    feedForwardMatmuls,
    flopsPerToken,
    general,
    headPatterns,
    kvCacheBytes,
    lstmLayer,
    modelShape,
    optimizerFlops,
    scoreFlops,
    sum,
    visitedScores,
  };
})();
