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
  const query = search.value.trim().toLowerCase();
  let count = 0;
  for (const trace of traces) {
    const matches = (!state.value || trace.dataset.state === state.value) &&
      (!query || textOf(trace).includes(query));
    trace.hidden = !matches;
    count += matches;
  }
  shown.textContent = count + " of " + traces.length + " traces";
}

if (search) {
  let timer;
  state.addEventListener("change", filter);
  search.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(filter, 150);
  });
  filter();
}
