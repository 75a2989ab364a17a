// Colours of Python in a lane's text. The tokens and the text itself stay as they are: within a token, letters
// of a coloured word stand in an element of their own, and a word that several tokens spell has one colour.
// Only the last word is read again when text is added. (Ranges that the browser paints over the text, CSS
// highlights, made it paint both lanes anew at every frame.)

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

class Ink {
  constructor() {
    this.begin("");
  }

  // Another text, whose prompt is read but not coloured.
  begin(prompt) {
    this.on = PYTHON.test(prompt);
    this.text = prompt;
    this.start = prompt.length;
    this.parts = []; // text nodes as they came: where each begins, its text, and the nodes that hold it now
    this.starts = []; // of all words
    this.marks = []; // coloured words: [where it begins, where it ends, kind]
    if (this.on) this.look(0);
  }

  // Elements with new text at the end.
  grow(elements) {
    if (!this.on) return;
    for (const element of elements) {
      for (const node of element.childNodes) {
        if (node.nodeType !== Node.TEXT_NODE || !node.length) continue;
        this.parts.push({ at: this.text.length, text: node.data, nodes: [node], runs: "" });
        this.text += node.data;
      }
    }
    this.look(this.starts.at(-1) ?? 0);
  }

  // So many characters stay behind the prompt.
  cut(length) {
    if (!this.on) return;
    this.text = this.text.slice(0, this.start + length);
    while (this.parts.length && this.parts.at(-1).at >= this.text.length) this.parts.pop();
    while (this.starts.length && this.starts.at(-1) >= this.text.length) this.starts.pop();
    this.look(this.starts.at(-1) ?? 0);
  }

  // Read the words from one of their beginnings on.
  look(from) {
    while (this.starts.length && this.starts.at(-1) >= from) this.starts.pop();
    while (this.marks.length && this.marks.at(-1)[0] >= from) this.marks.pop();
    let next = this.marks.length;
    WORD.lastIndex = from;
    for (let found; WORD.lastIndex < this.text.length && (found = WORD.exec(this.text)); ) {
      const [word, comment, string, number, name] = found;
      this.starts.push(found.index);
      const kind = comment ? "comment" : string || number ? "literal" : KEYWORDS.has(name) ? "keyword" : "";
      const end = found.index + word.length;
      if (kind && end > this.start) this.marks.push([found.index, end, kind]);
    }
    let first = this.parts.length;
    while (first && this.parts[first - 1].at + this.parts[first - 1].text.length > from) first -= 1;
    const begin = this.parts[first]?.at ?? from; // may be before `from`, with words that stay
    while (next && this.marks[next - 1][1] > begin) next -= 1;
    for (const part of this.parts.slice(first)) {
      while (next < this.marks.length && this.marks[next][1] <= part.at) next += 1;
      this.dress(part, next);
    }
  }

  // Give a part its colours: those of the words from `next` on that reach into it.
  dress(part, next) {
    const runs = [];
    for (let at = next; at < this.marks.length; at += 1) {
      const [from, to, kind] = this.marks[at];
      if (from >= part.at + part.text.length) break;
      runs.push([Math.max(0, from - part.at), Math.min(part.text.length, to - part.at), kind]);
    }
    const told = runs.join();
    if (part.runs === told) return;
    const nodes = [];
    let done = 0;
    for (const [from, to, kind] of runs) {
      if (from > done) nodes.push(document.createTextNode(part.text.slice(done, from)));
      const letters = document.createElement("span");
      letters.className = `code-${kind}`;
      letters.textContent = part.text.slice(from, to);
      nodes.push(letters);
      done = to;
    }
    if (done < part.text.length) nodes.push(document.createTextNode(part.text.slice(done)));
    part.nodes[0].before(...nodes);
    for (const node of part.nodes) node.remove();
    part.nodes = nodes;
    part.runs = told;
  }
}
