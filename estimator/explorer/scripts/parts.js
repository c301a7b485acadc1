/** What several sections of the page are built from: elements, tables that sort, small pictures. */
"use strict";

ceg.parts = (() => {
  // Lines of a small picture differ in colour (Okabe & Ito), dash and symbol.
  const LOOKS = [
    ["#0072B2", "solid", "circle"], ["#D55E00", "6px,3px", "square-open"], ["#009E73", "2px,3px", "diamond-open"],
    ["#CC79A7", "8px,3px,2px,3px", "triangle-up-open"], ["#E69F00", "10px,4px", "triangle-down-open"],
    ["#56B4E9", "4px,4px", "star"],
  ];
  const MAX_DECADES = 9; // on an axis: beyond, not every decade has its ticks
  const MANY = 20; // rows: a longer table scrolls in a box of its own

  /** An element with properties (`onclick` and its like too) and children; text only ever goes in as text. */
  function make(tag, properties = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (name in element && name !== "list") element[name] = value;
      else element.setAttribute(name, value);
    }
    element.append(...children);
    return element;
  }

  const byId = (id) => document.getElementById(id);

  const button = (text, title, onclick) => make("button", { type: "button", title, onclick }, text);

  /** @param {[string, string][]} offered value and text @returns {HTMLElement[]} */
  const options = (offered) => offered.map(([value, text]) => make("option", { value }, text));

  /** @param {string} name the label @param {[string, string][]} offered value and text @param {Function} changed */
  function select(name, offered, changed) {
    const field = make("select", { onchange: () => changed(field.value) }, ...options(offered));
    return [make("label", {}, `${name} `, field), field];
  }

  /**
   * Show one of a list, chosen by what it is `named` where there are several, or say `none`.
   * @param {Function} show puts an item into an element, returns how to redraw it @returns {Function} to redraw what is shown
   */
  function oneOf(body, list, none, label, named, show) {
    if (!list.length) {
      body.append(make("p", {}, none));
      return () => {};
    }
    const place = make("div");
    let draw;
    const take = (i) => { draw = show(place, list[i]); };
    if (list.length > 1) {
      const [field] = select(label, list.map((item, i) => [i, named(item)]), take);
      body.append(make("div", { className: "filter" }, field));
    }
    body.append(place);
    take(0);
    return () => draw();
  }

  /** A column of short cells. @param {string} name */
  const short = (name) => ({ name, short: true });

  /**
   * A table whose heads sort it. Numbers sort as numbers, empty cells come last.
   * @param {{name: string, number?: boolean, short?: boolean, long?: boolean, text?: Function,
   *   order?: Function}[]} columns
   * @param {unknown[][]} rows one value per column; `text` says it, as text or as an element; `order` is what it sorts by
   * @param {string} caption for those who do not see the heading
   */
  function table(columns, rows, caption) {
    const body = make("tbody");
    const kind = (column) => ["number", "short", "long"].find((name) => column[name]) ?? "";
    const said = (column, value) => (value === null || value === undefined ? "" : (column.text ?? String)(value));
    const fill = (list) => body.replaceChildren(...list.map((row) => make("tr", {}, ...columns.map(
      (column, i) => make("td", { className: kind(column) }, said(column, row[i]))))));
    const heads = columns.map((column, i) => {
      const sorted = () => {
        const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
        const of = (value) => (column.order && value ? column.order(value) : value);
        fill([...rows].sort((a, b) => compared(of(a[i]), of(b[i]), sign)));
      };
      const head = make("th", { scope: "col", className: kind(column) },
        make("button", { type: "button", onclick: sorted }, column.name));
      return head;
    });
    fill(rows);
    const whole = make("table", {}, make("thead", {}, make("tr", {}, ...heads)), body);
    return scrolled(whole, caption, rows.length > MANY);
  }

  /** A table in a box of its own, which says where more of it is while its end is out of sight. */
  function scrolled(whole, caption, tall) {
    const box = make("div", { className: tall ? "scroll tall" : "scroll", tabIndex: 0, role: "region", "aria-label": caption }, whole);
    const hint = make("p", { className: "hint more", "aria-hidden": "true" });
    const outside = make("div", { className: "table" }, box, hint);
    const look = () => {
      const right = box.scrollWidth - box.clientWidth - box.scrollLeft > 1;
      const down = box.scrollHeight - box.clientHeight - box.scrollTop > 1;
      outside.classList.toggle("right", right);
      outside.classList.toggle("down", down);
      // A space keeps the line's height: what stands below does not jump at the table's end.
      hint.textContent = right || down ? `Scroll the table for more ${right ? "\u2192" : ""}${down ? "\u2193" : ""}` : "\u00a0";
      hint.hidden = box.scrollWidth <= box.clientWidth + 1 && box.scrollHeight <= box.clientHeight + 1;
    };
    box.addEventListener("scroll", look, { passive: true });
    const watch = new ResizeObserver(look);
    watch.observe(box);
    watch.observe(whole);
    return outside;
  }

  function compared(a, b, sign) {
    const empty = (value) => value === null || value === undefined || value === "";
    if (empty(a) || empty(b)) return Number(empty(a)) - Number(empty(b));
    return sign * (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
  }

  /** Probabilities of the classes as a bar, and as a list that says them. @param {Object<string, number>} probabilities */
  function shares(probabilities) {
    const named = Object.entries(probabilities).map(([name, share]) => [name, `${name} ${ceg.words.share(share)}`]);
    const parts = Object.keys(probabilities).map((name) => make("span", { className: name }));
    for (const part of parts) part.style.width = `${100 * probabilities[part.className]}%`;
    const said = named.map(([, text]) => text).join(", ");
    const keys = named.map(([name, text]) => make("li", {}, make("i", { className: name }), text));
    return { bar: make("div", { className: "bar", role: "img", "aria-label": said }, ...parts),
      keys: make("ul", { className: "keys" }, ...keys) };
  }

  /** Values of an axis in its logarithm, as many ticks as a decade's width asks for. @param {number[]} values above 0 */
  function logAxis(values, title, unit = "", text = (t) => (t < 1e4 ? String(Number(t.toPrecision(6))) : ceg.words.number(t))) {
    const [low, high] = [Math.min(...values) / 1.25, Math.max(...values) * 1.25];
    const span = Math.log10(high / low);
    const steps = span > 4 ? [1] : span > 2 ? [1, 3] : span > 1.3 ? [1, 2, 5] : span > 0.8 ? [1, 1.5, 2, 3, 5, 7]
      : [1, 1.5, 2, 3, 4, 5, 6, 7, 8];
    const ticks = ceg.chart.ticks([low, high], steps, MAX_DECADES);
    return { type: "log", range: [Math.log10(low), Math.log10(high)], tickvals: ticks,
      ticktext: ticks.map((t) => `${text(t)}${unit}`), title: { text: title, standoff: 8 } };
  }

  /** Draw a small picture. @param {HTMLElement} target @param {object[]} traces Plotly's @param {object} layout */
  function picture(target, traces, layout) {
    const ink = ceg.chart.colours();
    const axis = { fixedrange: true, gridcolor: ink.rule, zeroline: false, linecolor: ink.quiet, automargin: true };
    Plotly.react(target, traces, {
      margin: { l: 56, r: 12, t: 8, b: 44 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: "system-ui, sans-serif", size: 12, color: ink.quiet }, hovermode: "closest", dragmode: false,
      hoverlabel: { align: "left", bgcolor: ink.paper, bordercolor: ink.quiet, font: { color: ink.ink } },
      legend: { orientation: "h", y: -0.18, yanchor: "top", x: 0, itemclick: false, itemdoubleclick: false },
      ...layout, xaxis: { ...axis, ...layout.xaxis }, yaxis: { ...axis, ...layout.yaxis },
    }, { displayModeBar: false, displaylogo: false });
  }

  /** Look of the i-th line of a picture. @param {number} i */
  function look(i, width = 2) {
    const [color, dash, symbol] = LOOKS[i % LOOKS.length];
    return { mode: "lines+markers", line: { color, dash, width }, marker: { color, symbol, size: 8, line: { width: 1.5, color } } };
  }

  return { make, byId, button, options, select, oneOf, table, short, shares, logAxis, picture, look };
})();
