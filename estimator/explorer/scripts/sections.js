/** Everything below the answer: the evidence here, the other sections when they come into view. */
"use strict";

ceg.sections = (() => {
  const { make, byId, table, short } = ceg.parts;
  const { words } = ceg;
  const USES = { level: "fixes the level", growth: "tells of growth only", check: "shows the noise only", unused: "not used",
    combination: "tells of the interaction" };
  let doc, chosenNames = [], currency = "flop";
  const redraws = new Map(); // by section that has been shown

  /**
   * The rows that fix the level against the default baseline, for the picture.
   * @param {string} name algorithm @param {string} counted currency
   * @returns {object[]} as they were given, with conversion and with ceg, low, high in that currency (flops null: not stated)
   */
  function points(data, name, counted) {
    const { rows, questions } = data.sections.evidence;
    return questions.find((q) => q.algorithm === name && q.currency === counted).rows.filter((r) => r.use === "level")
      .map(({ row, ceg, low, high, conversion }) => ({ ...rows[row], ceg, low, high, conversion }));
  }

  /** Every row as it was given, in the columns of a table that `--evidence` reads. @returns {unknown[][]} */
  function evidenceTable(data) {
    const { rows } = data.sections.evidence;
    const columns = data.page.evidence_columns;
    return [columns, ...rows.map((row) => columns.map((name) => row[name]))];
  }

  // --- the table of evidence ---

  function evidenceRows(all) {
    const { rows, questions, combinations } = doc.sections.evidence;
    const use = new Map();
    for (const q of questions.filter((q) => q.currency === currency)) for (const r of q.rows) use.set(r.row, r);
    for (const c of combinations.filter((c) => c.currency === currency)) {
      use.set(c.row, { ...c, use: c.used ? "combination" : "unused", why: "", weight: null });
    }
    const parts = new Set(chosenNames);
    const fits = (row) => row.algorithm.split("+").some((name) => parts.has(name));
    return rows.flatMap((row, i) => {
      if (!all && !fits(row)) return [];
      const told = use.get(i) ?? { use: "unused", why: "not in this currency", ceg: null, weight: null };
      const used = USES[told.use] + (told.why ? `: ${told.why}` : "");
      const interval = row.low === null ? null : words.span([row.low, row.high]);
      return [[row.algorithm, `${row.treatment} against ${row.baseline}`, row.study, row.kind, row.flops, row.ceg, interval,
        row.currency, told.ceg, used, told.weight, row.source, row.note]];
    });
  }

  function drawEvidence(place, all, text) {
    const gain = { number: true, text: (v) => `${words.number(v)}x` };
    const columns = [{ name: "Algorithm" }, { name: "Contrast", long: true }, short("Study"), short("Kind"),
      { name: "Budget (FLOP)", number: true, text: words.budget }, { name: "Published", ...gain }, short("Interval"),
      short("Counted in"), { name: `In ${words.MONEY[currency]}`, ...gain }, { name: "Use" },
      { name: "Weight", number: true, text: (v) => v.toPrecision(2) }, { name: "Source", long: true }, { name: "Note", long: true }];
    const asked = text.trim().toLowerCase();
    const rows = evidenceRows(all).filter((row) => !asked || row.some((cell) => String(cell ?? "").toLowerCase().includes(asked)));
    const count = make("p", { className: "hint", role: "status" }, `${rows.length} of ${doc.sections.evidence.rows.length} rows`);
    place.replaceChildren(count, table(columns, rows, "Evidence"));
  }

  function showEvidence(body) {
    const draw = () => drawEvidence(place, everyone.checked, filter.value);
    const filter = make("input", { type: "search", placeholder: "study, source, …", oninput: draw });
    const everyone = make("input", { type: "checkbox", onchange: draw });
    const place = make("div");
    body.append(make("div", { className: "filter" }, make("label", {}, "Filter ", filter),
      make("label", { className: "choice" }, everyone, "all algorithms, not only the chosen")), place);
    draw();
    return draw;
  }

  // --- when ---

  const SHOW = {
    depend: (body) => ceg.classes.show(body, doc.sections),
    trust: (body) => ceg.trust.show(body, doc.sections),
    ladders: (body) => ceg.ladders.show(body, doc.sections),
    kernels: (body) => ceg.kernels.show(body, doc.sections),
    evidence: showEvidence,
  };

  function reveal(id) {
    if (!redraws.has(id)) redraws.set(id, SHOW[id](byId(id).querySelector(".body")));
  }

  /** Show all sections at once; none before `start`. */
  function revealAll() {
    if (doc) Object.keys(SHOW).forEach(reveal);
  }

  /** Tell which algorithms and currency are chosen, for the table of evidence. */
  function chosen(names, counted) {
    [chosenNames, currency] = [names, counted];
    redraws.get("evidence")?.();
  }

  /** Draw again what has been shown, in the page's present colours and width. */
  function redraw() {
    for (const draw of redraws.values()) draw();
  }

  /** Show each section once it comes near the view, or is printed. @param {object} data the document */
  function start(data) {
    doc = data;
    const watch = new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries) {
        if (!isIntersecting) continue;
        watch.unobserve(target);
        reveal(target.id);
      }
    }, { rootMargin: "400px" });
    for (const id of Object.keys(SHOW)) watch.observe(byId(id));
    addEventListener("beforeprint", revealAll);
  }

  return { points, evidenceTable, chosen, redraw, revealAll, start };
})();
