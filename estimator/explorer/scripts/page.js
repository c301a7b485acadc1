/** The page: how it starts, and what is drawn when. */
"use strict";

ceg.page = (() => {
  const { words, question, plot } = ceg;
  const { make, byId } = ceg.parts;
  let data, answers, frame = 0, draws = 0, stale = true;

  /** Draw in the next frame. @param {boolean} curve the picture and the controls too, not only the answer */
  function redrawSoon(curve) {
    stale ||= curve;
    frame ||= requestAnimationFrame(draw);
  }

  function draw() {
    frame = 0;
    const began = performance.now();
    const curve = stale;
    stale = false;
    if (curve) {
      question.show();
      if (globalThis.Plotly) drawCurve();
    }
    drawAnswer();
    question.remember();
    Object.assign(document.body.dataset, { draws: ++draws, drawMs: performance.now() - began });
  }

  function drawCurve() {
    const asked = question.asked();
    plot.show(data, answers, asked);
    ceg.files.offer(asked.algorithms.length > 0);
    ceg.sections.chosen(asked.algorithms, asked.currency);
  }

  function drawAnswer() {
    question.showBudget();
    ceg.answer.show(data.page, answers, question.asked());
  }

  /** Run plotly.js, which takes longest by far: the answer stands and can be asked before. */
  function loadPicture() {
    const began = performance.now();
    document.head.append(make("script", { textContent: byId("plotly").textContent })); // the page's policy knows its hash
    document.body.dataset.library = performance.now() - began;
    drawCurve();
    drawAnswer();
    ceg.sections.start(data);
    const redraw = () => {
      plot.redraw();
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

  function fixedWords({ about, page }) {
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
    question.start(data.page, answers, redrawSoon);
    byId("everything").addEventListener("change", () => redrawSoon(true));
    ceg.files.start(data);
    fixedWords(data);
    draw();
    document.body.dataset.interactive = performance.now();
    requestAnimationFrame(() => setTimeout(loadPicture));
  }

  return { start };
})();

ceg.page.start();
