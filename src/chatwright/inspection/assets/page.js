"use strict";
(() => {
  const facts = JSON.parse(document.getElementById("facts").textContent);
  const tip = document.getElementById("tip");
  const root = document.documentElement;
  const MOST_LOSS = 5, MOST_CHANGE = 3;
  const groups = [...document.querySelectorAll(".tokens")].map((box) => ({ box, cells: [...box.querySelectorAll("i,u")], at: -1 }));
  const place = new Map();
  groups.forEach((group, number) => group.cells.forEach((cell, at) => place.set(cell, [number, at])));

  const spanOf = (number, at) => {
    const { starts, ids } = facts.examples[number];
    return [starts[at], at + 1 < starts.length ? starts[at + 1] : ids.length];
  };
  const meanLoss = (number, at, which) => {
    const losses = facts.examples[number][which];
    if (!losses) return null;
    const [start, end] = spanOf(number, at);
    let sum = 0, count = 0;
    for (let i = start; i < end; i++) if (i in losses) { sum += losses[i]; count++; }
    return count ? sum / count : null;
  };

  // What the colours show
  const paint = (view) => {
    root.dataset.view = view;
    for (const name of ["mask", "loss", "change"]) {
      const wanted = view === "mask" ? "mask" : view === "change" ? "change" : "loss";
      document.getElementById("legend-" + name).hidden = name !== wanted;
    }
    if (view === "mask") return;
    groups.forEach((group, number) => group.cells.forEach((cell, at) => {
      if (cell.tagName !== "U") return;
      cell.classList.remove("fell", "rose");
      const before = meanLoss(number, at, "before"), after = meanLoss(number, at, "after");
      if (view === "change") {
        const change = before === null || after === null ? 0 : after - before;
        cell.style.setProperty("--v", Math.min(1, Math.abs(change) / MOST_CHANGE).toFixed(3));
        cell.style.setProperty("--tone", change < 0 ? "var(--fell)" : "var(--rose)");
        if (Math.abs(change) >= 0.1) cell.classList.add(change < 0 ? "fell" : "rose");
      } else {
        const loss = view === "before" ? before : after;
        cell.style.setProperty("--v", Math.min(1, (loss ?? 0) / MOST_LOSS).toFixed(3));
      }
    }));
  };
  for (const input of document.querySelectorAll("input[name=view]")) input.addEventListener("change", () => paint(input.value));

  // What a token is
  const line = (table, words) => {
    const row = table.insertRow();
    for (const word of words) row.insertCell().textContent = word;
  };
  const probability = (loss) => {
    const percent = Math.exp(-loss) * 100;
    return percent >= 0.1 ? percent.toFixed(percent >= 99.95 ? 0 : 1) + " %" : Number(percent.toPrecision(1)) + " %";
  };
  const tell = (cell) => {
    const [number, at] = place.get(cell);
    const example = facts.examples[number];
    const [start, end] = spanOf(number, at);
    tip.textContent = "";
    const head = tip.appendChild(document.createElement("div"));
    head.appendChild(document.createElement("b")).textContent = JSON.stringify(cell.textContent.replace(/↵\n/g, "\n"));
    const kind = (cell.classList.contains("c") ? "control token, " : "") + (cell.tagName === "U" ? "trained" : "given");
    head.append(" · " + kind + (end - start > 1 ? " · " + (end - start) + " tokens make one character" : ""));
    const table = tip.appendChild(document.createElement("table"));
    for (let i = start; i < end; i++) {
      const weight = cell.tagName === "U" ? example.weights[start] ?? 1 : 0;
      line(table, ["position " + i.toLocaleString("en"), "id " + example.ids[i], "weight " + weight]);
      const before = example.before?.[i], after = example.after?.[i];
      if (before !== undefined && after !== undefined) {
        line(table, ["loss before " + before.toFixed(3), "p = " + probability(before), ""]);
        line(table, ["loss after " + after.toFixed(3), "p = " + probability(after), (after < before ? "▼ " : "▲ ") + Math.abs(after - before).toFixed(3)]);
      }
    }
    tip.hidden = false;
    const box = cell.getClientRects()[0] ?? cell.getBoundingClientRect();
    const width = tip.offsetWidth, height = tip.offsetHeight;
    tip.style.left = Math.max(6, Math.min(box.left, innerWidth - width - 6)) + "px";
    tip.style.top = (box.bottom + height + 10 < innerHeight ? box.bottom + 7 : Math.max(6, box.top - height - 7)) + "px";
  };
  const hide = () => { tip.hidden = true; };

  const choose = (group, at) => {
    group.cells[group.at]?.classList.remove("at");
    group.at = Math.max(0, Math.min(at, group.cells.length - 1));
    const cell = group.cells[group.at];
    if (!cell) return;
    cell.classList.add("at");
    cell.scrollIntoView({ block: "nearest" });
    tell(cell);
  };
  const leave = (group) => { group.cells[group.at]?.classList.remove("at"); group.at = -1; hide(); };
  groups.forEach((group) => {
    group.box.addEventListener("pointerover", (event) => { if (place.has(event.target)) tell(event.target); });
    group.box.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") hide(); });
    group.box.addEventListener("click", (event) => { if (place.has(event.target)) choose(group, place.get(event.target)[1]); });
    group.box.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 10, ArrowLeft: -1, ArrowUp: -10 }[event.key];
      if (event.key === "Home" || event.key === "End") choose(group, event.key === "Home" ? 0 : group.cells.length - 1);
      else if (step) choose(group, group.at < 0 ? 0 : group.at + step);
      else if (event.key === "Escape") leave(group);
      else return;
      event.preventDefault();
    });
    group.box.addEventListener("blur", () => leave(group));
  });
  addEventListener("scroll", () => { if (!document.activeElement?.classList.contains("tokens")) hide(); }, { passive: true });

  // One source alone
  document.getElementById("source")?.addEventListener("change", (event) => {
    for (const example of document.querySelectorAll(".example")) example.hidden = event.target.value !== "" && example.dataset.source !== event.target.value;
  });
  // A link to a row that the filter hides shows it
  addEventListener("hashchange", () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (target?.hidden) { target.hidden = false; target.scrollIntoView(); }
  });
  document.getElementById("theme").addEventListener("click", () => {
    const dark = root.style.colorScheme ? root.style.colorScheme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.style.colorScheme = dark ? "light" : "dark";
  });
})();
