"use strict";
const traces = [...document.querySelectorAll("details.trace")];
const state = document.getElementById("state");
const search = document.getElementById("search");
const shown = document.getElementById("shown");
const texts = new Map();

function textOf(trace) {
  if (!texts.has(trace)) texts.set(trace, trace.textContent.toLowerCase());
  return texts.get(trace);
}

function filter() {
  const wanted = search.value.trim().toLowerCase();
  let count = 0;
  for (const trace of traces) {
    const fits = (!state.value || trace.dataset.state === state.value) &&
      (!wanted || textOf(trace).includes(wanted));
    trace.hidden = !fits;
    count += fits;
  }
  shown.textContent = count + " of " + traces.length + " traces";
}

if (search) {
  let later;
  state.addEventListener("change", filter);
  search.addEventListener("input", () => {
    clearTimeout(later);
    later = setTimeout(filter, 150);
  });
  filter();
}
