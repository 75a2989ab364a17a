// Colours of Python in a lane's text, by ranges that the browser paints over text nodes: the tokens, their
// marks and the text itself stay as they are, and a word that several tokens spell has one colour. Only
// the last word is read again when text is added. Browsers without such ranges show the text plain.

const PYTHON = /^\s*(?:async def|def|class|import|from|if __name__|@\w|#)(?![^\s\w"'.(])|"""/m;
const KEYWORDS = new Set(
  (
    "False None True and as assert async await break class continue def del elif else except finally for " +
    "from global if import in is lambda nonlocal not or pass raise return self try while with yield"
  ).split(" "),
);
// In this order: comment, string (open ones to the end of their line, or of the text), number, name, rest.
const STRING = ['"""', "'''"]
  .map((quote) => `${quote}(?:\\\\[^]|(?!${quote})[^\\\\])*(?:${quote}|\\\\?$)`)
  .concat(['"', "'"].map((quote) => `${quote}(?:\\\\[^]|[^${quote}\\\\\\n])*(?:${quote}|\\\\$)?`))
  .join("|");
const WORD = new RegExp(
  `(#[^\\n]*)|((?:\\b[rRbBuUfF]{1,2})?(?:${STRING}))|(\\d[\\w.]*)|([\\p{L}_][\\p{L}\\p{N}_]*)|[^]`,
  "uy",
);
const KINDS = ["comment", "literal", "keyword"];

function shades() {
  if (typeof Highlight !== "function" || !globalThis.CSS?.highlights) return null;
  return Object.fromEntries(
    KINDS.map((kind) => {
      const name = `code-${kind}`;
      if (!CSS.highlights.has(name)) CSS.highlights.set(name, new Highlight());
      return [kind, CSS.highlights.get(name)];
    }),
  );
}

class Ink {
  constructor() {
    this.shades = shades();
    this.begin("");
  }

  // Another text, whose prompt is read but not coloured.
  begin(prompt) {
    this.clear();
    this.on = Boolean(this.shades) && PYTHON.test(prompt);
    this.text = prompt;
    this.start = prompt.length;
    this.nodes = []; // [where it begins, text node]
    this.starts = []; // of all words
    this.marks = []; // coloured words: [where it begins, kind, range]
    if (this.on) this.look(0);
  }

  clear() {
    for (const [, kind, range] of this.marks ?? []) this.shades[kind].delete(range);
    this.marks = [];
  }

  // Elements with new text at the end.
  grow(elements) {
    if (!this.on) return;
    for (const element of elements) {
      for (const node of element.childNodes) {
        if (node.nodeType !== Node.TEXT_NODE || !node.length) continue;
        this.nodes.push([this.text.length, node]);
        this.text += node.data;
      }
    }
    this.look(this.starts.at(-1) ?? 0);
  }

  // So many characters stay behind the prompt.
  cut(length) {
    if (!this.on) return;
    this.text = this.text.slice(0, this.start + length);
    while (this.nodes.length && this.nodes.at(-1)[0] >= this.text.length) this.nodes.pop();
    while (this.starts.length && this.starts.at(-1) >= this.text.length) this.starts.pop();
    this.look(this.starts.at(-1) ?? 0);
  }

  // Read the words from one of their beginnings on.
  look(from) {
    while (this.starts.length && this.starts.at(-1) >= from) this.starts.pop();
    while (this.marks.length && this.marks.at(-1)[0] >= from) {
      const [, kind, range] = this.marks.pop();
      this.shades[kind].delete(range);
    }
    WORD.lastIndex = from;
    for (let found; WORD.lastIndex < this.text.length && (found = WORD.exec(this.text)); ) {
      const [word, comment, string, number, name] = found;
      this.starts.push(found.index);
      const kind = comment ? "comment" : string || number ? "literal" : KEYWORDS.has(name) ? "keyword" : "";
      if (kind) this.mark(kind, found.index, found.index + word.length);
    }
  }

  mark(kind, from, to) {
    if (to <= this.start) return;
    const [startContainer, startOffset] = this.place(Math.max(from, this.start), 0);
    const [endContainer, endOffset] = this.place(to, 1);
    const range = new StaticRange({ startContainer, startOffset, endContainer, endOffset });
    this.marks.push([from, kind, range]);
    this.shades[kind].add(range);
  }

  // The text node of a place, and the offset in it; at a seam the node before it for an end.
  place(at, end) {
    let [low, high] = [0, this.nodes.length - 1];
    while (low < high) {
      const middle = Math.ceil((low + high) / 2);
      if (this.nodes[middle][0] + end <= at) low = middle;
      else high = middle - 1;
    }
    const [begin, node] = this.nodes[low];
    return [node, at - begin];
  }
}
