"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const at = (name) => document.getElementById(name);
  const words = (status) => status.replaceAll("_", " ");
  const dialog = at("cell");
  const chosen = { group: at("group"), dtype: at("dtype"), words: at("words"), statuses: all("#filters [name=status]") };
  const targets = all(".matrix thead th").slice(1).map((head) =>
    [...head.childNodes].filter((node) => node.nodeName !== "SMALL").map((node) => node.textContent).join("").trim());

  /** By td a cell: its place, and what became of it, as a whole and by dtype. */
  const cells = new Map();
  const rows = all(".matrix tbody tr:not(.group)");

  // the page leaves these cells empty, because most cells of many targets are such
  for (const td of all(".matrix td:empty")) {
    td.className = "not_run";
    td.append(Object.assign(document.createElement("b"), { textContent: "not run" }));
  }
  for (const row of rows) {
    all("td", row).forEach((td, column) => {
      const link = td.querySelector("a");
      const button = document.createElement("button");
      button.type = "button";
      button.setAttribute("aria-haspopup", "dialog");
      button.append(...(link ?? td).childNodes);
      td.replaceChildren(button);
      const packed = td.dataset.d ? td.dataset.d.split(";").map((text) => text.split(" ")) : [];
      const ratio = button.querySelector("i")?.textContent ?? "–";
      cells.set(td, {
        row, column, button,
        whole: { look: td.className, status: td.className.split(" ")[0], ratio },
        dtypes: new Map(packed.map(([dtype, status, worst, cases]) => [dtype, { look: status, status, ratio: worst, cases }])),
        full: link?.hash.slice(1),
        message: td.title,
      });
      td.removeAttribute("title");
    });
  }
  const members = (row) => all("td", row).map((td) => cells.get(td));

  /** What a cell shows for the chosen dtype. */
  function seen(cell) {
    const dtype = chosen.dtype.value;
    if (!dtype || cell.dtypes.size === 0) return cell.whole;
    const none = { look: "no_trial", status: "no_trial", ratio: "–" };
    const one = cell.dtypes.get(dtype) ?? none;
    return one.status === cell.whole.status ? { ...one, look: cell.whole.look } : one;
  }

  function name(cell) {
    const { status, ratio } = seen(cell);
    const clause = cell.row.querySelector("code").textContent;
    return `${clause} on ${targets[cell.column]}: ${words(status)}` + (ratio === "–" ? "" : `, worst ${ratio}`);
  }

  function draw() {
    for (const [td, cell] of cells) {
      const { look, status, ratio } = seen(cell);
      const word = document.createElement("b");
      const number = document.createElement("i");
      word.textContent = words(status);
      number.textContent = ratio === "–" ? "" : ` ${ratio}`;
      td.className = look;
      cell.button.replaceChildren(word, number);
      cell.button.setAttribute("aria-label", name(cell));
    }
    for (const body of all(".matrix tbody")) {
      const inside = all("tr:not(.group)", body).map(members);
      all(".group td", body).forEach((td, column) => sum(td, inside.map((row) => seen(row[column]))));
    }
  }

  /** Count a group's cells on one target; a group without any that is judged keeps what it says. */
  function sum(td, cells) {
    const judged = cells.filter(({ status }) => !["not_claimed", "unsupported", "not_run", "no_trial"].includes(status));
    td.dataset.whole ??= `${td.className}|${td.textContent}`;
    if (judged.length === 0) {
      const [look, text] = td.dataset.whole.split("|");
      const some = cells.some(({ status }) => status === "no_trial");
      [td.className, td.textContent] = some ? ["no_trial", "no trial"] : [look, text];
      return;
    }
    const passed = judged.filter(({ status }) => status === "pass").length;
    const bad = judged.some(({ look }) => ["fail", "crashed", "inconclusive"].includes(look));
    td.className = bad ? "fail" : passed === judged.length ? "pass" : "deviation";
    td.textContent = `${passed} of ${judged.length}`;
  }

  function filter() {
    const wanted = new Set(chosen.statuses.filter((box) => box.checked).map((box) => box.value));
    const looked = chosen.words.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const inRow = members(row);
      const text = row.querySelector("th").textContent.toLowerCase();
      row.hidden = (chosen.group.value && row.parentNode.dataset.group !== chosen.group.value) ||
        !looked.every((word) => text.includes(word)) ||
        !inRow.some((cell) => wanted.has(seen(cell).status)) ||
        (chosen.dtype.value && !inRow.some((cell) => cell.dtypes.has(chosen.dtype.value)));
      shown += !row.hidden;
    }
    for (const body of all(".matrix tbody")) body.hidden = !all("tr:not(.group)", body).some((row) => !row.hidden);
    at("shown").textContent = `${shown} of ${rows.length} clauses shown`;
  }

  function open(cell) {
    const { status, ratio } = seen(cell);
    const head = cell.row.querySelector("th");
    at("what").textContent = `${head.querySelector("code").textContent} on ${targets[cell.column]}`;
    at("sentence").textContent = head.querySelector("small").textContent;
    const state = document.createElement("b");
    state.className = `mark ${status}`;
    state.textContent = words(status);
    const more = (ratio === "–" ? "" : `, worst error ÷ budget ${ratio}`) +
      (chosen.dtype.value && cell.dtypes.size ? ` in ${chosen.dtype.value}` : "") + (cell.message ? `: ${cell.message}` : "");
    at("state").replaceChildren(state, more);
    at("by").hidden = cell.dtypes.size === 0;
    at("by").tBodies[0].replaceChildren(...[...cell.dtypes].map(([dtype, one]) => {
      const line = document.createElement("tr");
      for (const text of [dtype, words(one.status), one.ratio, one.cases]) line.insertCell().textContent = text;
      return line;
    }));
    const full = cell.full && at(cell.full).querySelector(".body").cloneNode(true);
    at("body").replaceChildren(...(full ? [full] : []));
    all("pre.copy", at("body")).forEach(copyable);
    dialog.showModal();
    dialog.scrollTop = 0;
  }

  function copyable(pre) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "copier";
    button.textContent = "Copy";
    button.addEventListener("click", () => navigator.clipboard.writeText(pre.textContent).then(
      () => { button.textContent = "Copied"; }, () => { button.textContent = "Cannot copy: select the text"; }));
    pre.after(button);
  }

  /** Arrow keys go from cell to cell, over what is shown. */
  function step(td, key) {
    const { row, column } = cells.get(td);
    if (key === "ArrowLeft") return td.previousElementSibling;
    if (key === "ArrowRight") return td.nextElementSibling;
    const visible = rows.filter((tr) => !tr.hidden);
    const next = visible[visible.indexOf(row) + (key === "ArrowDown" ? 1 : -1)];
    return next && all("td", next)[column];
  }

  at("grid").addEventListener("click", (event) => {
    const td = event.target.closest("td");
    if (cells.has(td)) open(cells.get(td));
  });
  at("grid").addEventListener("keydown", (event) => {
    const td = event.target.closest("td");
    if (!cells.has(td) || !["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"].includes(event.key)) return;
    event.preventDefault();
    const next = step(td, event.key);
    if (cells.has(next)) cells.get(next).button.focus();
  });
  at("close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  chosen.dtype.addEventListener("change", () => { draw(); filter(); });
  chosen.group.addEventListener("change", filter);
  chosen.words.addEventListener("input", filter);
  chosen.statuses.forEach((box) => box.addEventListener("change", filter));
  at("reset").addEventListener("click", () => {
    chosen.group.value = chosen.dtype.value = chosen.words.value = "";
    chosen.statuses.forEach((box) => { box.checked = true; });
    draw();
    filter();
  });
  at("filters").hidden = false;
  draw();
  filter();
})();
