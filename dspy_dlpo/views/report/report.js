"use strict";

const all = (selector, root = document) => [...root.querySelectorAll(selector)];

// A link to a step, or to one of its examples, opens what it is in.
function openTarget() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!target) return;
  for (let place = target; place; place = place.parentElement) {
    if (place.tagName === "DETAILS") place.open = true;
    place.hidden = false;
  }
  target.scrollIntoView();
  if (target.tagName === "DETAILS") target.firstElementChild.focus({ preventScroll: true });
}
addEventListener("hashchange", openTarget);
document.addEventListener("click", (event) => {
  // A second click on the same link changes no hash.
  if (event.target.closest("a")?.hash === location.hash) openTarget();
});

// Charts: their numbers are in the table of steps.
const rows = all(".numbers tbody tr");
const heads = all(".numbers thead th");
for (const plot of all(".plot")) {
  const tip = document.createElement("div");
  tip.className = "tip";
  const cursor = document.createElement("div");
  cursor.className = "cursor";
  plot.append(cursor, tip);
  let step = 0;
  const show = (index) => {
    step = Math.max(0, Math.min(rows.length - 1, index));
    const cells = plot.dataset.columns.split(" ").map((key) => rows[step].querySelector(`[data-key=${key}]`));
    const lines = cells.map((cell) => `${heads[cell.cellIndex].textContent.toLowerCase()} ${cell.textContent}`);
    tip.replaceChildren(...[rows[step].dataset.label, ...lines].map((line) => {
      const paragraph = document.createElement("p");
      paragraph.textContent = line;
      return paragraph;
    }));
    const share = rows.length > 1 ? step / (rows.length - 1) : 0;
    cursor.style.left = `${100 * share}%`;
    tip.style.left = `${100 * share}%`;
    tip.style.translate = `${-100 * share}%`;
    plot.setAttribute("aria-valuenow", step + 1);
    plot.setAttribute("aria-valuetext", `${rows[step].dataset.label}: ${lines.join(", ")}`);
    plot.classList.add("shown");
  };
  const hide = () => plot.classList.remove("shown");
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    show(Math.round(((event.clientX - box.left) / box.width) * (rows.length - 1)));
  });
  plot.addEventListener("pointerleave", hide);
  plot.addEventListener("blur", hide);
  plot.addEventListener("focus", () => show(step));
  const open = () => { location.hash = rows[step].querySelector("a")?.hash ?? "numbers"; };
  plot.addEventListener("click", open);
  plot.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: step - 1, ArrowDown: step - 1, ArrowRight: step + 1, ArrowUp: step + 1,
      PageDown: step - 10, PageUp: step + 10, Home: 0, End: rows.length - 1 };
    if (event.key === "Enter") open();
    else if (event.key === "Escape") hide();
    else if (event.key in moves) show(moves[event.key]);
    else return;
    event.preventDefault();
  });
}

// Filters.
const form = document.getElementById("filters");
const steps = all(".step").map((element) => ({
  element,
  outcome: element.dataset.outcome,
  predictors: element.dataset.predictors.split(" "),
}));
function filter() {
  const wanted = new FormData(form);
  const outcomes = wanted.getAll("outcome");
  const predictor = wanted.get("predictor");
  const text = wanted.get("text").trim().toLowerCase();
  let shown = 0;
  for (const step of steps) {
    if (text) step.text ??= step.element.textContent.toLowerCase();
    const fits = outcomes.includes(step.outcome) && (!predictor || step.predictors.includes(predictor)) &&
      (!text || step.text.includes(text));
    step.element.hidden = !fits;
    shown += fits;
  }
  form.querySelector("output").textContent = `${shown} of ${steps.length} steps`;
}
form.addEventListener("input", filter);
form.addEventListener("submit", (event) => event.preventDefault());
filter();

const toggle = document.getElementById("toggle");
toggle.addEventListener("click", () => {
  const open = toggle.textContent === "Open all";
  for (const { element } of steps) if (!element.hidden) element.open = open;
  toggle.textContent = open ? "Close all" : "Open all";
});

// Copying: the texts to the letter, which the page shows without their control characters.
const prompts = JSON.parse(document.getElementById("prompts").textContent);
for (const button of all(".copy")) {
  button.addEventListener("click", async () => {
    const status = button.nextElementSibling;
    try {
      await navigator.clipboard.writeText(prompts[button.dataset.prompt]);
      status.textContent = "Copied";
    } catch {
      status.textContent = "The browser does not allow copying here";
    }
  });
}

openTarget();
