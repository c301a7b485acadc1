/** The page: its state, its controls, and what is drawn when. Budgets are in FLOP, gains are factors. */
"use strict";
globalThis.ceg ??= {};

ceg.page = (() => {
  const SLIDER_STEP = 0.05; // decades
  const ADDRESS_MS = 150; // browsers refuse more than a few addresses a second
  const STATUS = { ok: "Status: ok.", far_extrapolation: "Status: far extrapolation.",
    no_evidence: "Status: no evidence." };
  const { words, chart } = ceg;
  const { make } = ceg.parts;
  const byId = (id) => document.getElementById(id);
  let data, answers, state, shown, drawn;
  let frame = 0, draws = 0, address = "", addressTimer = 0;
  const stale = { curve: true };

  // --- state, and its form in the address ---

  function initial() {
    const { start } = data.page;
    return { algorithms: new Set(start.algorithms), flops: start.flops, currency: "flop", device: start.device,
      baselineDevice: "", seqLen: start.seq_len };
  }

  /** @param {string} text a number of FLOP @returns {number | null} within the slider's ends */
  function budgetOf(text) {
    const [low, high] = data.page.flops_range;
    const value = Number(text);
    return text.trim() && value >= low && value <= high ? value : null;
  }

  function fromAddress() {
    const found = initial();
    address = location.hash;
    const asked = new URLSearchParams(location.hash.slice(1));
    const oneOf = (name, known) => (known.includes(asked.get(name)) ? asked.get(name) : null);
    const names = (asked.get("algo") ?? "").split(",").filter((n) => data.page.algorithms.some((a) => a.name === n));
    if (asked.has("algo")) found.algorithms = new Set(names);
    // The + of 1e+24 reads as a space in an address.
    found.flops = budgetOf((asked.get("flops") ?? "").replace(" ", "+")) ?? found.flops;
    found.currency = oneOf("currency", data.page.currencies) ?? found.currency;
    found.device = oneOf("device", devices()) ?? found.device;
    found.baselineDevice = oneOf("baseline-device", devices()) ?? found.baselineDevice;
    found.seqLen = Number(oneOf("seq-len", data.page.seq_lens.map(String)) ?? found.seqLen);
    return found;
  }

  function toAddress() {
    const parts = { algo: [...state.algorithms].sort().join(","), flops: words.budget(state.flops) };
    if (Number(parts.flops) !== state.flops) parts.flops = String(state.flops).replace("+", "");
    if (state.currency !== "flop") {
      Object.assign(parts, { currency: state.currency, device: state.device, "seq-len": state.seqLen });
      if (state.baselineDevice) parts["baseline-device"] = state.baselineDevice;
    }
    const text = Object.entries(parts).map(([name, value]) => `${name}=${value}`).join("&");
    if (location.hash !== address) return; // another address was typed, and is about to be read
    address = `#${text}`;
    history.replaceState(null, "", address);
  }

  const devices = () => data.page.devices;
  const entry = (name) => data.page.algorithms.find((a) => a.name === name);

  function question(algorithms = [...state.algorithms].sort(), flops = state.flops) {
    const asked = { algorithms, flops, currency: state.currency };
    if (state.currency === "flop") return asked;
    return { ...asked, device: state.device, baselineDevice: state.baselineDevice || state.device,
      seqLen: state.seqLen };
  }

  /** Take over changes and draw in the next frame; `curve` unless only the budget moved. */
  function change(changes, curve = true) {
    Object.assign(state, changes);
    stale.curve ||= curve;
    frame ||= requestAnimationFrame(draw);
  }

  // --- controls ---

  function controls() {
    byId("presets").append(...data.page.presets.map((preset) => {
      const button = make("button", { type: "button", title: preset.algorithms.join(" + ") }, preset.name);
      button.addEventListener("click", () => change({ algorithms: new Set(preset.algorithms) }));
      return button;
    }));
    for (const a of data.page.algorithms) byId("offered").append(choice(a));
    const options = (list, of = String) => list.map((value) => make("option", { value: String(value) }, of(value)));
    byId("currency").append(...options(data.page.currencies, (c) => words.capital(words.MONEY[c])));
    byId("device").append(...options(devices()));
    byId("baseline-device").append(make("option", { value: "" }, "the same"), ...options(devices()));
    byId("seq-len").append(...options(data.page.seq_lens));
    byId("currency").addEventListener("change", (e) => change({ currency: e.target.value }));
    byId("device").addEventListener("change", (e) => change({ device: e.target.value }));
    byId("baseline-device").addEventListener("change", (e) => change({ baselineDevice: e.target.value }));
    byId("seq-len").addEventListener("change", (e) => change({ seqLen: Number(e.target.value) }));
    byId("question").addEventListener("submit", (e) => e.preventDefault());
    byId("everything").addEventListener("change", () => change({}));
    budgetControls();
    byId("save-curve").addEventListener("click", () => save("ceg_curve.csv", curveTable()));
    byId("save-evidence").addEventListener("click", () => save("ceg_evidence.csv", ceg.sections.evidenceTable(data)));
    byId("save-png").addEventListener("click", () => savePicture("png"));
    byId("save-svg").addEventListener("click", () => savePicture("svg"));
  }

  function choice(a) {
    const box = make("input", { type: "checkbox", value: a.name, id: `algo-${a.name}` });
    box.addEventListener("change", () => {
      const algorithms = new Set(state.algorithms);
      if (box.checked) algorithms.add(a.name);
      else algorithms.delete(a.name);
      change({ algorithms });
    });
    const text = make("span", {}, a.title, make("small", { hidden: true }));
    return make("label", { className: "choice", title: `${a.summary} (against ${a.baseline.replaceAll("_", " ")})` },
      box, text);
  }

  function budgetControls() {
    const [low, high] = data.page.flops_range.map(Math.log10);
    const slider = byId("slider");
    Object.assign(slider, { min: String(low), max: String(high), step: String(SLIDER_STEP) });
    slider.addEventListener("input", () => {
      change({ flops: Number((10 ** Number(slider.value)).toPrecision(3)) }, false);
    });
    const field = byId("flops");
    Object.assign(field, { min: data.page.flops_range[0], max: data.page.flops_range[1] });
    field.addEventListener("input", () => {
      const flops = budgetOf(field.value);
      field.setCustomValidity(flops === null ? `From ${data.page.flops_range.map(words.budget).join(" to ")} FLOP.` : "");
      field.setAttribute("aria-invalid", String(flops === null));
      if (flops !== null) change({ flops }, false);
    });
    field.addEventListener("change", () => field.reportValidity());
    field.addEventListener("keydown", (e) => {
      if (e.key !== "ArrowUp" && e.key !== "ArrowDown") return;
      e.preventDefault(); // a step of 1 FLOP, which the browser would take, is none
      const steps = Math.round(Math.log10(state.flops) / SLIDER_STEP) + (e.key === "ArrowUp" ? 1 : -1);
      const log = steps * SLIDER_STEP;
      change({ flops: Number((10 ** Math.min(high, Math.max(low, log))).toPrecision(3)) }, false);
    });
    const known = [...data.page.runs, ...data.page.thresholds].sort((a, b) => a.flops - b.flops);
    for (const mark of known) {
      byId("marks").append(make("option", { value: String(Math.log10(mark.flops)), label: mark.name }));
      const button = make("button", { type: "button", title: `${words.budget(mark.flops)} FLOP` }, mark.name);
      button.addEventListener("click", () => change({ flops: mark.flops }, false));
      byId("jumps").append(button);
    }
    byId("stage").addEventListener("click", (e) => {
      const axis = byId("chart")._fullLayout?.xaxis;
      if (!axis) return;
      const log = axis.p2l(e.clientX - byId("chart").getBoundingClientRect().left - axis._offset);
      if (log >= low && log <= high) change({ flops: Number((10 ** log).toPrecision(3)) }, false);
    });
  }

  function showControls() {
    const flop = state.currency === "flop";
    byId("currency").value = state.currency;
    byId("device").value = state.device;
    byId("baseline-device").value = state.baselineDevice === state.device ? "" : state.baselineDevice;
    byId("seq-len").value = String(state.seqLen);
    for (const id of ["device", "baseline-device", "seq-len"]) byId(id).disabled = flop;
    byId("why").textContent = flop ? "A gain in FLOP depends on no device and no sequence length." : "";
    for (const [i, button] of [...byId("presets").children].entries()) {
      const same = [...data.page.presets[i].algorithms].sort().join() === [...state.algorithms].sort().join();
      button.setAttribute("aria-pressed", String(same));
    }
    let refused = 0;
    for (const a of data.page.algorithms) {
      const box = byId(`algo-${a.name}`);
      const alone = answers.answer(question([a.name]));
      const silent = alone.status === "no_evidence";
      refused += Number(silent);
      box.checked = state.algorithms.has(a.name);
      box.disabled = silent && !box.checked;
      const why = box.parentElement.querySelector("small");
      why.textContent = silent ? `${words.capital(alone.reason)}.` : "";
      why.hidden = !silent;
      const home = byId(silent ? "refused" : "offered");
      // Only a choice that changes sides moves, so that the keyboard's place in the list is kept.
      if (box.parentElement.parentElement !== home) home.append(box.parentElement);
    }
    byId("silent").hidden = refused === 0;
    byId("silent").querySelector("summary").textContent = `${refused} without an answer in ${words.MONEY[state.currency]}`;
  }

  // --- drawing ---

  function draw() {
    frame = 0;
    const began = performance.now();
    const { curve } = stale;
    stale.curve = false;
    if (curve) {
      showControls();
      if (globalThis.Plotly) drawCurve();
    }
    drawAnswer();
    clearTimeout(addressTimer);
    addressTimer = setTimeout(toAddress, ADDRESS_MS);
    Object.assign(document.body.dataset, { draws: ++draws, drawMs: performance.now() - began });
  }

  function drawCurve() {
    const names = [...state.algorithms].sort();
    const curve = names.length ? answers.curve(question()) : [];
    const answered = curve.filter((a) => a.median !== null);
    const points = names.length === 1 ? ceg.sections.points(data, names[0], state.currency) : [];
    shown = { curve: answered, points, page: data.page, currency: state.currency, everything: byId("everything").checked };
    plot();
    for (const button of document.querySelectorAll("[id^=save-]")) button.disabled = !names.length;
    ceg.sections.chosen(names, state.currency);
  }

  /** Run plotly.js, which takes longest by far: the answer stands and can be asked before. */
  function loadPicture() {
    const began = performance.now();
    const script = make("script");
    script.textContent = byId("plotly").textContent; // the page's policy knows its hash
    document.head.append(script);
    document.body.dataset.library = performance.now() - began;
    drawCurve();
    drawAnswer();
    ceg.sections.start(data);
    const redraw = () => {
      plot();
      drawAnswer();
      ceg.sections.redraw();
    };
    let width = byId("stage").clientWidth;
    new ResizeObserver(() => {
      if (byId("stage").clientWidth === width) return;
      width = byId("stage").clientWidth;
      requestAnimationFrame(redraw);
    }).observe(byId("stage"));
    for (const query of ["(prefers-color-scheme: dark)", "print"]) matchMedia(query).addEventListener("change", redraw);
    document.body.dataset.picture = performance.now();
  }

  /** Draw the picture for its present size and colours. */
  function plot() {
    const target = byId("chart");
    const { data: traces, layout } = chart.figure(shown, target.clientWidth);
    drawn = { traces, layout };
    Plotly.react(target, traces, layout, { displayModeBar: false, displaylogo: false, responsive: false });
    const axis = target._fullLayout.xaxis;
    const slider = byId("slider");
    const [low, high] = data.page.flops_range.map((flops) => axis._offset + axis.l2p(Math.log10(flops)));
    const thumb = 16;
    slider.style.left = `${low - thumb / 2}px`;
    slider.style.width = `${high - low + thumb}px`;
    showLegend();
  }

  function showLegend() {
    const ink = chart.colours();
    const svg = (path, attributes) => {
      const box = document.createElementNS("http://www.w3.org/2000/svg", "svg");
      const line = document.createElementNS("http://www.w3.org/2000/svg", "path");
      const wide = attributes["stroke-dasharray"] !== undefined;
      const size = { width: wide ? 34 : 12, height: 12, viewBox: `0 0 ${wide ? 34 : 12} 12`, "aria-hidden": "true" };
      for (const [name, value] of Object.entries(size)) box.setAttribute(name, value);
      for (const [name, value] of Object.entries({ d: path, ...attributes })) line.setAttribute(name, value);
      box.append(line);
      return box;
    };
    const items = [];
    const near = (trace) => chart.STRETCHES.findIndex((s) => trace.name.endsWith(s.name));
    for (const trace of drawn.traces.filter((t) => t.showlegend === true).sort((a, b) => near(a) - near(b))) {
      const dash = trace.line.dash === "solid" ? "0" : trace.line.dash.replaceAll("px", "");
      items.push(make("li", {}, svg("M0 6H34", { stroke: ink.accent, "stroke-width": trace.line.width,
        "stroke-dasharray": dash }), trace.name));
    }
    const kinds = Object.entries(chart.KINDS).filter(([, look]) => drawn.traces.some((t) => t.name === look.label));
    for (const [kind, look] of kinds) {
      const colour = look.colour === "ink" ? ink.ink : look.colour;
      const filled = !look.symbol.endsWith("-open");
      items.push(make("li", {}, svg(look.path, { fill: filled ? colour : "none",
        stroke: kind === "own" ? ink.ink : colour, "stroke-width": kind === "own" ? 0.6 : 1.5 }), look.label));
    }
    byId("legend").replaceChildren(...items);
    const left = shown.points.length - drawn.traces.reduce((n, t) => n + (t.mode === "markers" ? t.x.length : 0), 0);
    byId("reach").hidden = !shown.points.some((p) => p.flops !== null && p.flops < data.page.flops_range[0]);
    byId("hidden").textContent = state.algorithms.size > 1
      ? "Of a combination no rows are drawn: those of its parts are in the table below."
      : left ? `${left} of ${shown.points.length} rows are not in the picture: no compute stated, or out of range.` : "";
  }

  function drawAnswer() {
    byId("slider").value = String(Math.log10(state.flops));
    byId("slider").setAttribute("aria-valuetext", `${words.budget(state.flops)} FLOP`);
    if (document.activeElement !== byId("flops") || Number(byId("flops").value) !== state.flops) {
      byId("flops").value = words.budget(state.flops);
      byId("flops").setAttribute("aria-invalid", "false");
    }
    const place = byId("answer");
    if (!state.algorithms.size) {
      sayNothing("Choose at least one algorithm.", "");
      return;
    }
    const asked = question();
    const answer = answers.answer(asked);
    if (answer.status === "elsewhere") {
      sayElsewhere(answer, asked);
      return;
    }
    const titles = asked.algorithms.map((name) => entry(name).title);
    byId("sentence").replaceChildren(...words.sentence(answer, { ...asked, titles }).map(
      ([text, strong]) => (strong ? make("strong", {}, text) : text)));
    const far = answer.status === "far_extrapolation";
    byId("status").textContent = far ? `${STATUS[answer.status]} ${words.capital(answer.reason)}.` : STATUS[answer.status];
    const { far_decades: farDecades } = data.page;
    byId("distance").textContent = words.distance(answer, { ...asked, farDecades, joined: answer.joined });
    Object.assign(place.dataset, exact(answer));
    cursor(answer);
    const paperClasses = [...new Set(asked.algorithms.map((name) => entry(name).paper_class))];
    ceg.facts.show(answer, { ...asked, paperClasses: paperClasses.filter((c) => c !== "not_studied") });
  }

  /** A sentence in place of an answer. */
  function sayNothing(sentence, status) {
    byId("sentence").textContent = sentence;
    for (const id of ["status", "distance"]) byId(id).textContent = "";
    for (const id of ["figures", "classes", "interaction", "models", "notes"]) byId(id).replaceChildren();
    byId("cursor").hidden = true;
    for (const name of Object.keys(byId("answer").dataset)) byId("answer").dataset[name] = "";
    byId("answer").dataset.status = status;
  }

  /** What this page does not hold, and the commands that answer it. */
  function sayElsewhere(answer, asked) {
    sayNothing("This page does not hold that answer.", answer.status);
    const page = `ceg report -o ceg.html --with ${asked.algorithms.join("+")}`;
    const holds = "It holds single algorithms, pairs and a few larger combinations, timed on one device for both models, "
      + "and pairs on fewer devices and lengths. This command answers:";
    byId("notes").replaceChildren(make("p", {}, holds), make("pre", {}, answer.command),
      ...(asked.algorithms.length > 1 ? [make("p", {}, "And this one makes a page that holds the combination:"), make("pre", {}, page)] : []));
  }

  /** The answer's numbers in full, for whoever reads the page by program. */
  function exact(answer) {
    const of = (value) => (value === null || value === undefined ? "" : String(value));
    const [low, high] = answer.ceg_predictive_interval_90 ?? [null, null];
    const [low50, high50] = answer.ceg_predictive_interval_50 ?? [null, null];
    const [meanLow, meanHigh] = answer.ceg_mean_interval ?? [null, null];
    const parts = { flops: answer.flops, status: answer.status, median: answer.ceg_median, low, high, low50, high50,
      mean: answer.ceg_mean_median, meanLow, meanHigh, decades: answer.extrapolation_decades };
    return Object.fromEntries(Object.entries(parts).map(([name, value]) => [name, of(value)]));
  }

  function cursor(answer) {
    const mark = byId("cursor");
    const layout = byId("chart")._fullLayout;
    mark.hidden = !layout;
    if (!layout) return;
    const { xaxis, yaxis } = layout;
    const x = xaxis._offset + xaxis.l2p(Math.log10(answer.flops));
    mark.style.transform = `translateX(${x}px)`;
    mark.style.top = `${yaxis._offset}px`;
    mark.style.height = `${yaxis._length}px`;
    mark.classList.toggle("left", x > xaxis._offset + 0.82 * xaxis._length);
    const [dot, label] = mark.children;
    dot.hidden = label.hidden = answer.ceg_median === null;
    if (dot.hidden) return;
    const y = yaxis.l2p(Math.log10(answer.ceg_median));
    dot.style.top = label.style.top = `${y}px`;
    label.textContent = `${words.number(answer.ceg_median)}x`;
  }

  // --- files ---

  const cell = (value) => {
    let text = value === null || value === undefined ? "" : String(value);
    // Spreadsheets would run such text as a formula; `--evidence` takes the apostrophe off again.
    if (typeof value === "string" && /^[=+\-@\t\r]/.test(text)) text = `'${text}`;
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };

  /** @param {unknown[][]} rows @returns {string} RFC 4180 */
  const csv = (rows) => rows.map((row) => `${row.map(cell).join(",")}\r\n`).join("");

  function curveTable() {
    const head = ["flops", "status", "ceg_median", "low_50", "high_50", "low_90", "high_90", "extrapolation_decades"];
    return [head, ...shown.curve.map((a) => [a.flops, a.status, a.median, a.low50, a.high50, a.low90, a.high90,
      a.decades])];
  }

  function download(name, address) {
    const link = make("a", { href: address, download: name });
    document.body.append(link);
    link.click();
    link.remove();
  }

  function save(name, rows) {
    const address = URL.createObjectURL(new Blob([csv(rows)], { type: "text/csv" }));
    download(name, address);
    setTimeout(() => URL.revokeObjectURL(address), 1000);
  }

  /** The picture with what the page says around it: the question, the budget, the legend. */
  async function savePicture(format) {
    const layout = structuredClone(drawn.layout);
    const ink = chart.colours();
    const said = document.getElementById("sentence").textContent;
    layout.shapes.push({ type: "line", xref: "x", yref: "paper", x0: state.flops, x1: state.flops, y0: 0, y1: 1,
      line: { color: ink.ink, width: 1.5 } });
    const source = `ceg ${data.about.version}, evidence ${data.about.evidence_sha256.slice(0, 8)}`;
    const lines = `${chart.folded(said, 110)}<br><span style="font-size:11px">${chart.plain(source)}</span>`;
    Object.assign(layout, { paper_bgcolor: ink.paper, plot_bgcolor: ink.paper, showlegend: true,
      legend: { orientation: "h", y: -0.14, x: 0 },
      title: { text: lines, x: 0.02, y: 0.97, yanchor: "top", xanchor: "left", font: { size: 15, color: ink.ink } } });
    layout.margin = { l: 70, r: 30, t: 190, b: 130 };
    layout.xaxis.title = { text: "training compute spent with it (FLOP)" };
    const size = { width: 1100, height: 760, scale: format === "png" ? 2 : 1 };
    const address = await Plotly.toImage({ data: drawn.traces, layout }, { format, ...size });
    download(`ceg.${format}`, address);
  }

  // --- start ---

  function fixedWords() {
    const { about, page } = data;
    byId("class-rule").textContent = `By the slope of ln CEG per tenfold compute: above ${page.class_slope} dependent, `
      + `below -${page.class_slope} fading, else independent. Three probabilities; undetermined where none reaches `
      + `${page.undetermined}.`;
    byId("far-rule").textContent = `The dashed part lies outside the compute of the evidence, the dotted part more than `
      + `${page.far_decades} decades: there the interval comes first.`;
    byId("threshold-rule").textContent = `Budgets at which training runs have to be reported: `
      + `${words.listed(page.thresholds.map((t) => `${words.budget(t.flops)} FLOP (${t.name})`))}.`;
    byId("run-sources").append(...page.runs.map(
      (run) => make("li", {}, `${run.name}: ${words.budget(run.flops)} FLOP. ${run.source}.`)));
    const own = about.evidence.length ? `, with ${words.listed(about.evidence)}` : "";
    const only = about.only_evidence ? " and nothing else" : "";
    byId("about").textContent = `ceg ${about.version} (${about.commit}), ${about.date}; method ${about.method}; evidence `
      + `${about.evidence_sha256.slice(0, 16)}${own}${only}. This file holds all it needs and asks no network.`;
  }

  async function start() {
    data = JSON.parse(byId("data").textContent);
    answers = await ceg.answers.open(byId("grids").textContent);
    state = fromAddress();
    controls();
    fixedWords();
    draw();
    addEventListener("hashchange", () => {
      if (location.hash.includes("=")) {
        change(fromAddress());
        return;
      }
      // A link to a place in the page: the question stays, and is written over the place once that is reached.
      address = location.hash;
      change({}, false);
      ceg.sections.revealAll(); // those above it would push it away while it is scrolled to
      document.getElementById(address.slice(1))?.scrollIntoView();
    });
    document.body.dataset.interactive = performance.now();
    requestAnimationFrame(() => setTimeout(loadPicture));
  }

  return { start };
})();

ceg.page.start();
