/** The answer: its sentence and status, the cursor in the picture, or what the page does not hold. */
"use strict";

ceg.answer = (() => {
  const STATUS = { ok: "Status: ok.", far_extrapolation: "Status: far extrapolation.",
    no_evidence: "Status: no evidence." };
  const { words } = ceg;
  const { make, byId } = ceg.parts;

  /** @param {object} page the document's @param {object} answers the page's @param {object} asked the question */
  function show(page, answers, asked) {
    if (!asked.algorithms.length) {
      sayNothing("Choose at least one algorithm.", "");
      return;
    }
    const answer = answers.answer(asked);
    if (answer.status === "elsewhere") {
      sayElsewhere(answer, asked);
      return;
    }
    const entries = asked.algorithms.map((name) => page.algorithms.find((a) => a.name === name));
    const parts = words.sentence(answer, { ...asked, titles: entries.map((a) => a.title) });
    byId("sentence").replaceChildren(...parts.map((text, i) => (i % 2 ? make("strong", {}, text) : text)));
    const far = answer.status === "far_extrapolation";
    byId("status").textContent = STATUS[answer.status] + (far ? ` ${words.capital(answer.reason)}.` : "");
    byId("distance").textContent = words.distance(answer, { ...asked, farDecades: page.far_decades, joined: answer.joined });
    Object.assign(byId("answer").dataset, exact(answer));
    cursor(answer);
    const paperClasses = new Set(entries.map((a) => a.paper_class).filter((c) => c !== "not_studied"));
    ceg.facts.show(answer, { ...asked, paperClasses: [...paperClasses] });
  }

  /** A sentence in place of an answer. */
  function sayNothing(sentence, status) {
    byId("sentence").textContent = sentence;
    for (const id of ["status", "distance", ...ceg.facts.PLACES]) byId(id).replaceChildren();
    byId("cursor").hidden = true;
    const { dataset } = byId("answer");
    for (const name of Object.keys(dataset)) dataset[name] = "";
    dataset.status = status;
  }

  /** What this page does not hold, and the commands that answer it. */
  function sayElsewhere(answer, { algorithms }) {
    sayNothing("This page does not hold that answer.", answer.status);
    const holds = "It holds single algorithms, pairs and a few larger combinations, timed on one device for both models, "
      + "and pairs on fewer devices and lengths. This command answers:";
    byId("notes").append(make("p", {}, holds), make("pre", {}, answer.command));
    if (algorithms.length < 2) return;
    byId("notes").append(make("p", {}, "And this one makes a page that holds the combination:"),
      make("pre", {}, `ceg report -o ceg.html --with ${algorithms.join("+")}`));
  }

  /** The answer's numbers in full, for whoever reads the page by program. */
  function exact(answer) {
    const [low, high] = answer.ceg_predictive_interval_90 ?? [];
    const [low50, high50] = answer.ceg_predictive_interval_50 ?? [];
    const [meanLow, meanHigh] = answer.ceg_mean_interval ?? [];
    const parts = { flops: answer.flops, status: answer.status, median: answer.ceg_median, low, high, low50, high50,
      mean: answer.ceg_mean_median, meanLow, meanHigh, decades: answer.extrapolation_decades };
    return Object.fromEntries(Object.entries(parts).map(([name, value]) => [name, String(value ?? "")]));
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
    dot.style.top = label.style.top = `${yaxis.l2p(Math.log10(answer.ceg_median))}px`;
    label.textContent = `${words.number(answer.ceg_median)}x`;
  }

  return { show };
})();
