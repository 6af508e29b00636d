"use strict";
const CONFIG = JSON.parse(document.getElementById("config").textContent);
const NARROW = matchMedia("(max-width: 600px)");
const AXES_OF_FACETS = 90;

function fitted(spec, width, narrow) {
  const copy = structuredClone(spec);
  if (narrow) relaxed(copy);
  for (const key of ["hconcat", "concat"]) {
    if (narrow && copy[key]) {
      copy.vconcat = copy[key];
      delete copy[key];
    }
  }
  for (const part of copy.vconcat ?? copy.hconcat ?? copy.concat ?? []) shrink(part, width - AXES_OF_FACETS);
  if (copy.spec) {
    if (narrow && copy.columns) copy.columns = 1;
    shrink(copy.spec, width - AXES_OF_FACETS);
  } else if (typeof copy.width === "number" && copy.width > width - AXES_OF_FACETS) {
    copy.width = "container";
  } else if (narrow && copy.width?.step) {
    copy.width = "container";
  }
  return copy;
}

function shrink(part, width) {
  if (typeof part.width === "number") part.width = Math.min(part.width, width);
  if (part.spec) shrink(part.spec, width);
}

function relaxed(tree) {
  if (tree === null || typeof tree !== "object") return;
  if (tree.legend?.columns) delete tree.legend.columns;
  if (tree.axis?.tickCount) delete tree.axis.tickCount;
  for (const [key, part] of Object.entries(tree)) if (key !== "data" && key !== "datasets") relaxed(part);
}

function config(narrow) {
  if (!narrow) return CONFIG;
  const axis = { ...CONFIG.axis, labelLimit: 150, tickCount: 4 };
  return { ...CONFIG, axis, legend: { ...CONFIG.legend, columns: 1, labelLimit: 300 } };
}

async function embed(box, spec, narrow) {
  box.view?.finalize();
  const options = { actions: false, config: config(NARROW.matches), mode: "vega-lite", renderer: "svg" };
  box.view = (await vegaEmbed(box, fitted(spec, box.clientWidth, narrow), options)).view;
}

async function draw(box) {
  const spec = JSON.parse(box.nextElementSibling.textContent);
  try {
    await embed(box, spec, NARROW.matches);
    const width = Number(box.querySelector("svg").getAttribute("width"));
    if (width > box.clientWidth && !NARROW.matches) await embed(box, spec, true);
  } catch (error) {
    box.innerHTML = "";
    const told = document.createElement("p");
    told.className = "failed";
    told.textContent = `This chart cannot be drawn (${error.message}); its picture is next to the page.`;
    box.append(told);
    console.error(error);
  }
}

async function drawAll() {
  for (const box of document.querySelectorAll(".chart")) await draw(box);
  document.documentElement.dataset.drawn = "true";
}

NARROW.addEventListener("change", drawAll);
drawAll();
