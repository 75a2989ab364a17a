// Tokens of each SPACE call: a bar for every call there is, those ahead of the position faint.

class Chart {
  static left = 34;
  static right = 92;
  static top = 8;
  static height = 96;
  static widest = 16;

  constructor(onOpen) {
    this.root = make("figure", "chart");
    const caption = make("figcaption", "chart-title", "Tokens of each SPACE call");
    this.svg = draw("svg", { role: "img", height: Chart.height + Chart.top + 4 });
    this.svg.setAttribute("aria-label", "Tokens per call, one bar for each SPACE call");
    this.grid = draw("g", { class: "grid" });
    this.bars = draw("g", { class: "bars" });
    this.mean = draw("polyline", { class: "mean" });
    this.notes = draw("g", { class: "notes" });
    this.svg.append(this.grid, this.bars, this.mean, this.notes);
    this.root.append(caption, this.svg);
    this.bars.addEventListener("click", (event) => {
      const bar = event.target.closest(".call");
      if (bar) onOpen("space", Number(bar.dataset.call));
    });
    this.k = 5;
    this.width = 0;
    this.reset();
    // Asked for here alone: in the midst of writing it would make the browser lay the page out.
    new ResizeObserver(() => {
      this.width = this.root.clientWidth;
      this.layout();
    }).observe(this.root);
  }

  reset(k) {
    this.counts = [];
    this.shown = 0;
    this.k = k ?? this.k;
    this.bars.replaceChildren();
    this.layout();
  }

  // Bars for all `calls`, of which the first `shown` have been made.
  show(calls, shown) {
    if (shown === this.shown && calls.length === this.counts.length) return;
    for (let i = this.counts.length; i < calls.length; i += 1) this.add(calls[i]);
    for (let i = Math.min(shown, this.shown); i < calls.length; i += 1) {
      this.bars.children[i].classList.toggle("ahead", i >= shown);
      this.bars.children[i].classList.toggle("now", i === shown - 1);
    }
    if (this.shown && this.shown !== shown) this.bars.children[this.shown - 1].classList.remove("now");
    if (shown) this.bars.children[shown - 1].classList.add("now");
    this.shown = shown;
    this.layout();
  }

  // The bar of the call that stands open below, if any.
  open(call) {
    for (const bar of this.bars.querySelectorAll(".open")) bar.classList.remove("open");
    this.bars.children[call - 1]?.classList.add("open");
  }

  y(tokens) {
    return Chart.top + Chart.height * (1 - tokens / (this.k + 1.25));
  }

  // One bar for a call: its tokens stacked, the accepted drafts first; all of its column is clicked.
  add(call) {
    this.counts.push(call.tokens.length);
    const bar = draw("g", { class: "call", "data-call": call.n });
    const title = draw("title", {});
    title.textContent = `call ${call.n}: ${counted(call.tokens.length, "token")} of ${counted(call.rows, "row")}`;
    const height = Chart.top + Chart.height;
    bar.append(title, draw("rect", { class: "column", x: call.n - 1, width: 1, y: 0, height }));
    let from = 0;
    for (let i = 1; i <= call.tokens.length; i += 1) {
      if (i < call.tokens.length && call.tokens[i][1] === call.tokens[from][1]) continue;
      const height = this.y(from) - this.y(i);
      bar.append(
        draw("rect", {
          class: markOf(call, call.tokens[from][1]),
          x: call.n - 1 + 0.1,
          width: 0.8,
          y: this.y(i),
          height,
        }),
      );
      from = i;
    }
    this.bars.append(bar);
  }

  layout() {
    const { width } = this;
    if (!width) return;
    const room = width - Chart.left - Chart.right;
    const step = Math.min(Chart.widest, room / Math.max(1, this.counts.length));
    const x = (call) => Chart.left + call * step;
    this.bars.setAttribute("transform", `translate(${Chart.left} 0) scale(${step} 1)`);

    if (this.ruled !== `${width} ${this.k}`) this.ruleAll(width);
    let sum = 0;
    const points = this.counts.slice(0, this.shown).map((count, index) => {
      sum += count;
      return `${x(index + 0.5)},${this.y(sum / (index + 1))}`;
    });
    this.mean.setAttribute("points", points.join(" "));
    const mean = sum / this.shown;
    this.meanNote.textContent = this.shown ? `mean ${mean.toFixed(2)}` : "";
    // Where the ceiling's note is near, the mean makes room.
    if (this.shown) this.meanNote.setAttribute("y", Math.max(this.y(mean) + 4, this.y(this.k + 1) + 18));
  }

  // What stays while calls come: rules, their labels, the places of the notes.
  ruleAll(width) {
    this.ruled = `${width} ${this.k}`;
    this.svg.setAttribute("width", width);
    this.grid.replaceChildren();
    this.notes.replaceChildren();
    const ceiling = this.k + 1;
    const every = Math.ceil(ceiling / 4);
    for (let tokens = 0; tokens <= ceiling; tokens += every) this.tick(tokens, width);
    this.rule(ceiling, width);
    this.meanNote = this.note("mean-note", width - Chart.right + 8, 0, "");
  }

  tick(tokens, width) {
    const y = this.y(tokens);
    this.grid.append(draw("line", { x1: Chart.left, x2: width - Chart.right, y1: y, y2: y }));
    const label = draw("text", { x: Chart.left - 10, y: y + 4, "text-anchor": "end" });
    label.textContent = tokens;
    this.grid.append(label);
  }

  rule(ceiling, width) {
    const y = this.y(ceiling);
    this.grid.append(
      draw("line", { class: "ceiling", x1: Chart.left, x2: width - Chart.right, y1: y, y2: y }),
    );
    this.note("ceiling-note", width - Chart.right + 8, y + 4, `k + 1 = ${ceiling}`);
  }

  note(className, x, y, text) {
    const node = draw("text", { class: className, x, y });
    node.textContent = text;
    this.notes.append(node);
    return node;
  }
}
