"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("js");
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const tip = document.getElementById("tip");

  // Theme: as the system unless a reader chose one; files from disk may have no storage.
  const theme = document.getElementById("theme");
  const kept = () => { try { return localStorage.getItem("fedmlic-theme") || ""; } catch { return ""; } };
  const wear = (value) => { if (value) root.dataset.theme = value; else delete root.dataset.theme; };
  theme.value = kept();
  wear(theme.value);
  theme.addEventListener("change", () => {
    wear(theme.value);
    try { localStorage.setItem("fedmlic-theme", theme.value); } catch { /* not kept */ }
  });

  // Rows and labels that a reader shows or hides, in all figures at once.
  const hidden = new Set();
  const boxes = all(".key input");
  const apply = () => {
    for (const part of all("[data-k]")) part.classList.toggle("off", hidden.has(part.dataset.k));
    for (const box of boxes) box.checked = !hidden.has(box.value);
  };
  for (const box of boxes) {
    if (!box.checked) hidden.add(box.value);
    box.addEventListener("change", () => {
      if (box.checked) hidden.delete(box.value); else hidden.add(box.value);
      apply();
    });
  }
  for (const key of all("fieldset.key")) {
    if (key.querySelectorAll("input").length < 3) continue;
    for (const [words, on] of [["all", true], ["none", false]]) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = words;
      button.addEventListener("click", () => {
        for (const box of all("input", key)) { if (on) hidden.delete(box.value); else hidden.add(box.value); }
        apply();
      });
      key.append(button);
    }
  }
  apply();

  // Values under the pointer, or under the arrow keys.
  const format = (value) => (value === null ? "none" : Math.abs(value) >= 1000 ? value.toLocaleString("en", { maximumFractionDigits: 0 }) : String(Number(value.toPrecision(3))));
  const say = (words, x, y) => {
    if (!words) { tip.hidden = true; return; }
    tip.textContent = words;
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - box.width - 6))}px`;
    tip.style.top = `${y + 18 + box.height > innerHeight ? Math.max(4, y - box.height - 12) : y + 18}px`;
  };

  const nearest = (values, x) => {
    let best = 0;
    for (let i = 1; i < values.length; i += 1) if (Math.abs(values[i] - x) < Math.abs(values[best] - x)) best = i;
    return best;
  };
  const lines = (data, px) => {
    const [left, , right] = data.frame;
    const [x0, x1] = data.domain;
    const share = (px - left) / (right - left);
    if (share < -0.03 || share > 1.03) return "";
    const x = data.log[0] ? Math.exp(Math.log(x0) + share * (Math.log(x1) - Math.log(x0))) : x0 + share * (x1 - x0);
    const shown = data.series.filter((series) => series.x.length && !hidden.has(series.k));
    const found = shown.map((series) => ({ series, i: nearest(series.x, x) }));
    found.sort((a, b) => b.series.y[b.i] - a.series.y[a.i]);
    const said = found.slice(0, 12).map(({ series, i }) => {
      const band = series.lo && series.lo[i] !== series.hi[i] ? ` (${format(series.lo[i])} to ${format(series.hi[i])})` : "";
      const note = series.t ? `, ${series.t[i]}` : "";
      return `${series.n}: ${format(series.y[i])}${band} at ${format(series.x[i])}${note}`;
    });
    return said.length ? [data.x, ...said].join("\n") : "";
  };
  const cells = (data, px, py) => {
    const [left, top, wide, tall] = data.box;
    const column = Math.floor((px - left) / wide);
    const row = Math.floor((py - top) / tall);
    if (!data.rows[row] || data.cols[column] === undefined) return "";
    const value = data.v[row][column];
    const words = value === null ? "none" : data.percent ? `${format(100 * value)} ${data.unit}` : `${data.unit} ${format(value)}`;
    return `${data.rows[row]} / ${data.cols[column]}: ${words}`;
  };
  const points = (data, px, py) => {
    const near = data.points.filter((p) => !hidden.has(p[3]) && Math.abs(p[1] - py) < 9);
    near.sort((a, b) => Math.abs(a[0] - px) - Math.abs(b[0] - px));
    return near.map((p) => p[2]).slice(0, 10).join("\n");
  };
  const kinds = { lines, cells, points };

  for (const store of all('script[type="application/json"]')) {
    const svg = store.previousElementSibling;
    const data = JSON.parse(store.textContent);
    const [, , width, height] = svg.getAttribute("viewBox").split(" ").map(Number);
    const at = { x: width / 2, y: data.kind === "cells" ? data.box[1] + 4 : data.kind === "points" ? data.points[0]?.[1] ?? 0 : height / 2 };
    const show = (clientX, clientY) => {
      const box = svg.getBoundingClientRect();
      at.x = ((clientX - box.left) / box.width) * width;
      at.y = ((clientY - box.top) / box.height) * height;
      say(kinds[data.kind](data, at.x, at.y), clientX, clientY);
    };
    svg.addEventListener("pointermove", (event) => show(event.clientX, event.clientY));
    svg.addEventListener("pointerleave", () => say(""));
    svg.addEventListener("blur", () => say(""));
    svg.addEventListener("keydown", (event) => {
      const step = data.kind === "cells" ? [data.box[2], data.box[3]] : [width / 60, 17];
      const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
      if (event.key === "Escape") say("");
      if (!moves[event.key]) return;
      event.preventDefault();
      const box = svg.getBoundingClientRect();
      const x = Math.max(0, Math.min(width, at.x + moves[event.key][0] * step[0]));
      const y = Math.max(0, Math.min(height, at.y + moves[event.key][1] * step[1]));
      show(box.left + (x / width) * box.width, box.top + (y / height) * box.height);
    });
  }

  // Tables that sort by a column: numbers by value, names by letters; what does not exist comes last.
  const value = (cell) => {
    const held = cell.dataset.v ?? cell.querySelector("[data-v]")?.dataset.v;
    if (held !== undefined) return held === "" ? null : Number(held);
    const text = cell.textContent.trim();
    return text !== "" && !Number.isNaN(Number(text.replaceAll(",", ""))) ? Number(text.replaceAll(",", "")) : text;
  };
  const before = (a, b) => {
    if (a === null || b === null) return a === b ? 0 : a === null ? 1 : -1;
    return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
  };
  for (const table of all("table.sortable")) {
    const heads = all("thead th", table);
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "descending" ? false : head.getAttribute("aria-sort") === "ascending" || column > 0;
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const body = table.tBodies[0];
        const rows = [...body.rows].map((row) => [value(row.cells[column]), row]);
        rows.sort(([a], [b]) => (down && a !== null && b !== null ? before(b, a) : before(a, b)));
        body.append(...rows.map(([, row]) => row));
      });
    });
  }

  // On paper everything that belongs to a section is open; tables behind figures stay in their files.
  addEventListener("beforeprint", () => {
    for (const part of all("details")) {
      if (!part.closest("figcaption") && !part.open) { part.open = true; part.dataset.print = ""; }
    }
  });
  addEventListener("afterprint", () => {
    for (const part of all("details[data-print]")) { part.open = false; delete part.dataset.print; }
  });
})();
