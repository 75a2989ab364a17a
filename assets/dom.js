// Small helpers of the arena and the inspector. app.py puts these files, one behind the other, into
// the body of a function that Gradio calls once with (element, trigger, props, server, upload, watch).
// Whatever a model wrote is hostile here: it reaches the page through textContent and attributes only.

const SVG = "http://www.w3.org/2000/svg";

function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function draw(tag, attributes) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

function button(id, label, text, act) {
  const node = make("button", "key", text);
  node.type = "button";
  node.id = id;
  node.title = label;
  node.setAttribute("aria-label", label);
  node.addEventListener("click", act);
  return node;
}

// What a part of the page is doing. What holds all tabs is told too, for the keys that look different meanwhile:
// a `:has` on it made the browser restyle the page at every token.
function doing(part, state, name) {
  if (part.dataset.state === state) return;
  part.dataset.state = state;
  document.getElementById("tabs")?.setAttribute(`data-${name}`, state);
}

// A node's text, written only where it is another: the same text, too, would be laid out anew.
function put(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function counted(number, noun) {
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}

// A piece of text on one line, its breaks and the blanks at its ends to be seen.
function visible(piece) {
  const blanks = (run) => (run.length > 3 ? `␣×${run.length}` : "␣".repeat(run.length));
  return piece.replaceAll("\n", "↵").replaceAll("\t", "⇥").replace(/^ +| +$/g, blanks);
}

function quoted(piece) {
  return `“${piece.replaceAll("\n", "↵").replaceAll("\t", "⇥")}”`;
}

// Write a token's text. Before each line break stands an empty element that CSS shows as a sign,
// so that a marked break can be seen; it adds nothing to the text.
function spell(token, piece) {
  piece.split(/(?=\n)/).forEach((part) => {
    if (part.startsWith("\n")) token.append(make("i", "break"));
    token.append(part);
  });
}

function read(value) {
  try {
    return value ? JSON.parse(value) : null;
  } catch {
    return null;
  }
}

// Have the browser keep a text (or a Blob) as a file.
function save(name, type, content) {
  const url = URL.createObjectURL(new Blob([content], { type }));
  const link = make("a");
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
