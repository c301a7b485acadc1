/** The question: what is chosen, its form in the address, its controls. Budgets are in FLOP. */
"use strict";

ceg.question = (() => {
  const SLIDER_STEP = 0.05; // decades
  const ADDRESS_MS = 150; // browsers refuse more than a few addresses a second
  const { words } = ceg;
  const { make, button, options, byId } = ceg.parts;
  let page, answers, changed, state, address = "", addressTimer = 0;

  const chosen = () => [...state.algorithms].sort();

  /** The question as `ceg.answers` takes it; of other algorithms, if they are given. */
  function asked(algorithms = chosen()) {
    const { flops, currency, device, baselineDevice, seqLen } = state;
    if (currency === "flop") return { algorithms, flops, currency };
    return { algorithms, flops, currency, device, baselineDevice: baselineDevice || device, seqLen };
  }

  /** Take over changes, and tell of them; `curve` unless only the budget moved. */
  function change(changes, curve = true) {
    Object.assign(state, changes);
    changed(curve);
  }

  /** @param {number} log log10 FLOP */
  const moveTo = (log) => change({ flops: Number((10 ** log).toPrecision(3)) }, false);

  // --- in the address ---

  /** @param {string} text a number of FLOP @returns {number | null} within the slider's ends */
  function budgetOf(text) {
    const [low, high] = page.flops_range;
    const value = Number(text);
    return text.trim() && value >= low && value <= high ? value : null;
  }

  function fromAddress() {
    const { start } = page;
    address = location.hash;
    const given = new URLSearchParams(address.slice(1));
    const oneOf = (name, known, otherwise) => (known.includes(given.get(name)) ? given.get(name) : otherwise);
    const names = given.get("algo")?.split(",").filter((n) => page.algorithms.some((a) => a.name === n));
    return {
      algorithms: new Set(names ?? start.algorithms),
      // The + of 1e+24 reads as a space in an address.
      flops: budgetOf((given.get("flops") ?? "").replace(" ", "+")) ?? start.flops,
      currency: oneOf("currency", page.currencies, "flop"),
      device: oneOf("device", page.devices, start.device),
      baselineDevice: oneOf("baseline-device", page.devices, ""),
      seqLen: Number(oneOf("seq-len", page.seq_lens.map(String), start.seq_len)),
    };
  }

  function toAddress() {
    if (location.hash !== address) return; // another address was typed, and is about to be read
    const { flops, currency, device, baselineDevice, seqLen } = state;
    const said = words.budget(flops);
    const parts = { algo: chosen().join(","), flops: Number(said) === flops ? said : String(flops).replace("+", "") };
    if (currency !== "flop") {
      Object.assign(parts, { currency, device, "seq-len": seqLen });
      if (baselineDevice) parts["baseline-device"] = baselineDevice;
    }
    address = `#${Object.entries(parts).map(([name, value]) => `${name}=${value}`).join("&")}`;
    history.replaceState(null, "", address);
  }

  /** Write the question into the address, once it stands still. */
  function remember() {
    clearTimeout(addressTimer);
    addressTimer = setTimeout(toAddress, ADDRESS_MS);
  }

  function followed() {
    if (location.hash.includes("=")) {
      change(fromAddress());
      return;
    }
    // A link to a place in the page: the question stays, and is written over the place once that is reached.
    address = location.hash;
    change({}, false);
    ceg.sections.revealAll(); // those above it would push it away while it is scrolled to
    byId(address.slice(1))?.scrollIntoView();
  }

  // --- controls ---

  function controls() {
    byId("presets").append(...page.presets.map(({ name, algorithms }) =>
      button(name, algorithms.join(" + "), () => change({ algorithms: new Set(algorithms) }))));
    byId("offered").append(...page.algorithms.map(choice));
    const devices = page.devices.map((name) => [name, name]);
    list("currency", page.currencies.map((c) => [c, words.capital(words.MONEY[c])]), (currency) => change({ currency }));
    list("device", devices, (device) => change({ device }));
    list("baseline-device", [["", "the same"], ...devices], (baselineDevice) => change({ baselineDevice }));
    list("seq-len", page.seq_lens.map((n) => [n, n]), (text) => change({ seqLen: Number(text) }));
    byId("question").addEventListener("submit", (e) => e.preventDefault());
    budgetControls();
  }

  function list(id, offered, take) {
    byId(id).append(...options(offered));
    byId(id).addEventListener("change", (e) => take(e.target.value));
  }

  function choice(a) {
    const take = ({ target }) => {
      const algorithms = new Set(state.algorithms);
      if (target.checked) algorithms.add(a.name);
      else algorithms.delete(a.name);
      change({ algorithms });
    };
    return make("label", { className: "choice", title: `${a.summary} (against ${a.baseline.replaceAll("_", " ")})` },
      make("input", { type: "checkbox", value: a.name, id: `algo-${a.name}`, onchange: take }),
      make("span", {}, a.title, make("small", { hidden: true })));
  }

  function budgetControls() {
    const [low, high] = page.flops_range.map(Math.log10);
    Object.assign(byId("slider"), { min: low, max: high, step: SLIDER_STEP });
    byId("slider").addEventListener("input", (e) => moveTo(Number(e.target.value)));
    const field = byId("flops");
    [field.min, field.max] = page.flops_range;
    field.addEventListener("input", () => {
      const flops = budgetOf(field.value);
      field.setCustomValidity(flops === null ? `From ${page.flops_range.map(words.budget).join(" to ")} FLOP.` : "");
      field.setAttribute("aria-invalid", String(flops === null));
      if (flops !== null) change({ flops }, false);
    });
    field.addEventListener("change", () => field.reportValidity());
    field.addEventListener("keydown", (e) => {
      if (e.key !== "ArrowUp" && e.key !== "ArrowDown") return;
      e.preventDefault(); // a step of 1 FLOP, which the browser would take, is none
      const steps = Math.round(Math.log10(state.flops) / SLIDER_STEP) + (e.key === "ArrowUp" ? 1 : -1);
      moveTo(Math.min(high, Math.max(low, steps * SLIDER_STEP)));
    });
    for (const { name, flops } of [...page.runs, ...page.thresholds].sort((a, b) => a.flops - b.flops)) {
      byId("marks").append(make("option", { value: Math.log10(flops), label: name }));
      byId("jumps").append(button(name, `${words.budget(flops)} FLOP`, () => change({ flops }, false)));
    }
    byId("stage").addEventListener("click", (e) => {
      const axis = byId("chart")._fullLayout?.xaxis;
      if (!axis) return;
      const log = axis.p2l(e.clientX - byId("chart").getBoundingClientRect().left - axis._offset);
      if (log >= low && log <= high) moveTo(log);
    });
  }

  // --- what the controls show ---

  function show() {
    const { algorithms, currency, device, baselineDevice, seqLen } = state;
    const flop = currency === "flop";
    const values = { currency, device, "baseline-device": baselineDevice === device ? "" : baselineDevice, "seq-len": seqLen };
    for (const [id, value] of Object.entries(values)) {
      byId(id).value = value;
      byId(id).disabled = flop && id !== "currency";
    }
    byId("why").textContent = flop ? "A gain in FLOP depends on no device and no sequence length." : "";
    for (const [i, preset] of page.presets.entries()) {
      const same = [...preset.algorithms].sort().join() === chosen().join();
      byId("presets").children[i].setAttribute("aria-pressed", String(same));
    }
    const refused = page.algorithms.filter((a) => showChoice(byId(`algo-${a.name}`), answers.answer(asked([a.name])))).length;
    byId("silent").hidden = refused === 0;
    byId("silent").querySelector("summary").textContent = `${refused} without an answer in ${words.MONEY[currency]}`;
  }

  /** @param {object} alone the answer for this choice alone @returns {boolean} whether there is none */
  function showChoice(box, alone) {
    const silent = alone.status === "no_evidence";
    box.checked = state.algorithms.has(box.value);
    box.disabled = silent && !box.checked;
    const why = box.parentElement.querySelector("small");
    why.textContent = silent ? `${words.capital(alone.reason)}.` : "";
    why.hidden = !silent;
    const home = byId(silent ? "refused" : "offered");
    // Only a choice that changes sides moves, so that the keyboard's place in the list is kept.
    if (box.parentElement.parentElement !== home) home.append(box.parentElement);
    return silent;
  }

  function showBudget() {
    const [slider, field] = [byId("slider"), byId("flops")];
    slider.value = Math.log10(state.flops);
    slider.setAttribute("aria-valuetext", `${words.budget(state.flops)} FLOP`);
    if (document.activeElement === field && Number(field.value) === state.flops) return; // as it is being typed
    field.value = words.budget(state.flops);
    field.setAttribute("aria-invalid", "false");
  }

  /**
   * Fill the controls and read the address.
   * @param {object} known the document's `page` @param {object} held the page's answers
   * @param {(curve: boolean) => void} tell called after each change, with whether more than the budget moved
   */
  function start(known, held, tell) {
    [page, answers, changed] = [known, held, tell];
    state = fromAddress();
    controls();
    addEventListener("hashchange", followed);
  }

  return { start, asked, show, showBudget, remember };
})();
