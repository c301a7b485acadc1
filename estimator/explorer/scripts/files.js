/** What can be saved: the curve and the evidence as tables, and the picture. */
"use strict";

ceg.files = (() => {
  const { make, byId } = ceg.parts;
  const { chart } = ceg;

  const cell = (value) => {
    let text = String(value ?? "");
    // Spreadsheets would run such text as a formula; `--evidence` takes the apostrophe off again.
    if (typeof value === "string" && /^[=+\-@\t\r]/.test(text)) text = `'${text}`;
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };

  /** @param {unknown[][]} rows @returns {string} RFC 4180 */
  const csv = (rows) => rows.map((row) => `${row.map(cell).join(",")}\r\n`).join("");

  function curveTable() {
    const head = ["flops", "status", "ceg_median", "low_50", "high_50", "low_90", "high_90", "extrapolation_decades"];
    return [head, ...ceg.plot.held().curve.map((a) => [a.flops, a.status, a.median, a.low50, a.high50, a.low90, a.high90,
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
  async function savePicture(format, about) {
    const drawn = ceg.plot.held();
    const layout = structuredClone(drawn.layout);
    const ink = chart.colours();
    const { flops } = ceg.question.asked();
    layout.shapes.push({ type: "line", xref: "x", yref: "paper", x0: flops, x1: flops, y0: 0, y1: 1,
      line: { color: ink.ink, width: 1.5 } });
    const source = `ceg ${about.version}, evidence ${about.evidence_sha256.slice(0, 8)}`;
    const said = chart.folded(byId("sentence").textContent, 110);
    const lines = `${said}<br><span style="font-size:11px">${chart.plain(source)}</span>`;
    Object.assign(layout, { paper_bgcolor: ink.paper, plot_bgcolor: ink.paper, showlegend: true,
      legend: { orientation: "h", y: -0.14, x: 0 }, margin: { l: 70, r: 30, t: 190, b: 130 },
      title: { text: lines, x: 0.02, y: 0.97, yanchor: "top", xanchor: "left", font: { size: 15, color: ink.ink } } });
    layout.xaxis.title = { text: "training compute spent with it (FLOP)" };
    const size = { width: 1100, height: 760, scale: format === "png" ? 2 : 1 };
    download(`ceg.${format}`, await Plotly.toImage({ data: drawn.data, layout }, { format, ...size }));
  }

  /** Let files be saved, or not. @param {boolean} any whether there is anything to save */
  function offer(any) {
    for (const button of document.querySelectorAll("[id^=save-]")) button.disabled = !any;
  }

  /** @param {object} data the document */
  function start(data) {
    const on = (id, action) => byId(id).addEventListener("click", action);
    on("save-curve", () => save("ceg_curve.csv", curveTable()));
    on("save-evidence", () => save("ceg_evidence.csv", ceg.sections.evidenceTable(data)));
    on("save-png", () => savePicture("png", data.about));
    on("save-svg", () => savePicture("svg", data.about));
  }

  return { start, offer };
})();
