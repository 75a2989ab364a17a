// The chip that says which model is loaded, and where. Body of a function that Gradio calls once.
// `props.value` is app.py's status as JSON text; names are painted as text.
/* global element, props, watch */

const chip = element.querySelector(".chip");
const words = document.createElement("span");
const dot = document.createElement("span");
dot.className = "dot";
dot.setAttribute("aria-hidden", "true");
chip.setAttribute("role", "status");
chip.append(dot, words);

function paint() {
  let status = { state: "loading", text: "loading the model" };
  try {
    status = JSON.parse(props.value) ?? status;
  } catch {
    // nothing there yet
  }
  chip.dataset.state = status.state;
  words.textContent = status.text;
  chip.title = status.title ?? "";
}

paint();
watch("value", paint);
