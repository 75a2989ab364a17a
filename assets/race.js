// The arena: the lanes, their counters, the live chart and the verdict, painted from frames.
//
// This file is the body of a function that Gradio calls once with (element, trigger, props, server,
// upload, watch). `props.value` is one frame of space_core/views/frames.py as JSON text. Whatever a
// model wrote is hostile here: it reaches the page through textContent and attributes only.
/* global element, props, trigger, watch */

const FORMAT = "space-frames/1";
const SVG = "http://www.w3.org/2000/svg";
const LANES = {
  space: {
    name: "SPACE",
    how: "a call checks its guesses and makes new ones",
    empty: "Guesses stand here dashed until the next call checks them. Those the model agrees with come for free.",
  },
  vanilla: {
    name: "Vanilla",
    how: "a call writes one token",
    empty: "Plain decoding of the same model: as many calls as tokens.",
  },
  generate: { name: "Generate", how: "plain decoding by transformers" },
  "prompt-lookup": { name: "Prompt lookup", how: "guesses copied from the text, by transformers" },
  assisted: { name: "Assisted", how: "a smaller model guesses, by transformers", source: "from the draft model" },
};
const MAIN = ["space", "vanilla"];
const STOPS = {
  eos: "end of text",
  max_new_tokens: "budget reached",
  context: "context full",
  cancelled: "stopped",
  deadline: "deadline",
};
const NOTES = {
  idle: "Press Race: one model continues your prompt twice, plainly and with SPACE.",
  waiting: "Waiting for the model to load. The race starts by itself.",
  running: "Racing on one fair clock: a lane pays for the seconds of its own calls only.",
  stopped: "Stopped before the first call.",
};
const LEGEND = [
  ["accepted", "accepted", "a guess that stood"],
  ["corrected", "corrected", "the model’s own token where a guess was wrong"],
  ["bonus", "bonus", "one more, when all guesses stood"],
  ["draft", "draft", "a guess the next call will check"],
];
const COUNTERS = [
  ["calls", "calls", 0],
  ["tokens", "tokens", 0],
  ["tokens_per_call", "tokens/call", 2],
  ["tokens_per_second", "tokens/s", 0],
];

// ---------------------------------------------------------------- small helpers

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

// ---------------------------------------------------------------- one lane

class Lane {
  constructor(id, onGap) {
    this.id = id;
    this.calls = [];
    this.painted = 0;
    this.onGap = onGap;
    const words = { name: id, how: "", empty: "", source: "copied from the text so far", ...LANES[id] };
    this.source = words.source;

    this.root = make("section", `lane lane-${id}`);
    this.root.setAttribute("aria-label", `${words.name} lane`);
    const head = make("header", "lane-head");
    const how = make("span", "lane-how", words.how);
    how.title = words.how;
    head.append(make("h3", "lane-name", words.name), how);
    this.clock = make("span", "lane-clock", "0.00 s");
    this.flag = make("span", "lane-flag");
    head.append(this.flag, this.clock);

    this.bar = make("div", "bar");
    this.bar.setAttribute("role", "progressbar");
    this.bar.setAttribute("aria-label", `${words.name}: tokens of the budget`);
    this.bar.setAttribute("aria-valuemin", "0");
    this.fill = make("div", "bar-fill");
    this.bar.append(this.fill);

    this.box = make("div", "lane-text");
    this.box.id = `text-${id}`;
    this.box.setAttribute("role", "log");
    this.box.setAttribute("aria-live", "off");
    this.box.setAttribute("aria-label", `Text of the ${words.name} lane`);
    this.box.tabIndex = 0;
    this.prompt = make("span", "prompt-text");
    this.out = make("span", "out");
    this.rest = make("span", "rest");
    this.cursor = make("span", "cursor");
    this.cursor.setAttribute("aria-hidden", "true");
    this.pending = make("span", "pending");
    this.empty = make("p", "empty", words.empty);
    this.box.append(this.empty, this.prompt, this.out, this.rest, this.cursor, this.pending);
    this.box.addEventListener("pointerover", (event) => this.explain(event.target));

    const counters = make("dl", "counters");
    this.counters = {};
    for (const [key, label] of COUNTERS) {
      const cell = make("div");
      this.counters[key] = make("dd", "", "0");
      this.counters[key].dataset.counter = key;
      cell.append(make("dt", "", label), this.counters[key]);
      counters.append(cell);
    }
    this.root.append(head, this.bar, this.box, counters);
  }

  reset(about) {
    this.calls = [];
    this.painted = 0;
    this.budget = about?.budget ?? 0;
    this.prompt.textContent = about?.prompt ?? "";
    this.empty.hidden = Boolean(about);
    this.out.replaceChildren();
    this.pending.replaceChildren();
    this.rest.textContent = "";
    this.flag.textContent = "";
    this.root.classList.remove("over");
    this.tally({ calls: 0, tokens: 0, seconds: 0, tokens_per_second: 0, tokens_per_call: 0, stop: null });
    this.box.scrollTop = this.box.scrollHeight;
  }

  keep(call) {
    this.calls[call.n - 1] ??= call;
  }

  // Append the calls that follow those already painted; a missing one is asked for again.
  paint(tally, over) {
    const follow = this.box.scrollHeight - this.box.scrollTop - this.box.clientHeight < 24;
    const fresh = document.createDocumentFragment();
    let last = null;
    while (this.calls[this.painted]) {
      last = this.calls[this.painted];
      this.painted += 1;
      last.tokens.forEach(([piece, origin], slot) => {
        const token = make("span", `tok ${origin}`);
        spell(token, piece);
        token.dataset.call = last.n;
        token.dataset.slot = slot;
        fresh.append(token);
      });
    }
    this.out.append(fresh);
    if (last) {
      this.pending.replaceChildren(
        ...(last.pending ?? []).map(([piece], slot) => {
          const token = make("span", "tok draft", piece.replaceAll("\n", "↵") || "·");
          token.dataset.call = last.n;
          token.dataset.slot = slot;
          return token;
        }),
      );
    }
    const ended = over || tally.stop !== null;
    if (ended) this.pending.replaceChildren();
    this.rest.textContent = tally.rest;
    this.root.classList.toggle("over", ended);
    this.flag.textContent = ended ? (STOPS[tally.stop] ?? "stopped") : "";
    this.tally(tally);
    if (follow) this.box.scrollTop = this.box.scrollHeight;
    if (this.painted < tally.calls) this.onGap();
  }

  tally(tally) {
    for (const [key, , digits] of COUNTERS) {
      this.counters[key].textContent = tally[key].toFixed(digits);
    }
    this.clock.textContent = `${tally.seconds.toFixed(2)} s`;
    this.fill.style.transform = `scaleX(${this.budget ? Math.min(1, tally.tokens / this.budget) : 0})`;
    this.bar.setAttribute("aria-valuemax", String(this.budget || 1));
    this.bar.setAttribute("aria-valuenow", String(tally.tokens));
  }

  // What a call verified: the guesses of the call before, unless it says otherwise.
  drafts(call) {
    return call.drafts ?? this.calls[call.n - 2]?.pending?.slice(0, call.verified ?? 0) ?? [];
  }

  // A guess without a probability is no mask's: it has another source.
  basis([, probability]) {
    return probability === null ? this.source : `probability ${probability.toFixed(2)}`;
  }

  explain(token) {
    const call = this.calls[token.dataset?.call - 1];
    if (!call || token.title) return;
    const slot = Number(token.dataset.slot);
    const drafts = this.drafts(call);
    const where = `call ${call.n}`;
    if (token.classList.contains("draft")) {
      const guess = call.pending[slot];
      token.title = `${quoted(guess[0])} · guess ${slot + 1} of ${call.pending.length} · ${this.basis(guess)} · the next call will check it`;
    } else if (token.classList.contains("accepted")) {
      token.title = `${where} · guess ${slot + 1} of ${drafts.length} · ${this.basis(drafts[slot])} · accepted`;
    } else if (token.classList.contains("corrected")) {
      const guess = drafts[call.accepted];
      token.title = `${where} · guess ${call.accepted + 1} of ${drafts.length}, ${quoted(guess[0])} (${this.basis(guess)}), was rejected · this is the model’s own token`;
    } else if (token.classList.contains("bonus")) {
      const all = ["the one guess", "both guesses"][drafts.length - 1] ?? `all ${drafts.length} guesses`;
      token.title = `${where} · ${all} stood · one more token of the model’s own`;
    } else {
      token.title = `${where} · the model’s own token`;
    }
  }
}

// ---------------------------------------------------------------- tokens per call, live

class Chart {
  static left = 34;
  static right = 92;
  static top = 8;
  static height = 96;
  static widest = 16;

  constructor() {
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
    this.counts = [];
    this.total = 0;
    this.k = 5;
    new ResizeObserver(() => this.layout()).observe(this.root);
  }

  reset(k) {
    this.counts = [];
    this.total = 0;
    this.k = k ?? this.k;
    this.bars.replaceChildren();
    this.layout();
  }

  y(tokens) {
    return Chart.top + Chart.height * (1 - tokens / (this.k + 1.25));
  }

  // One bar for a call: its tokens stacked, the accepted drafts first.
  add(call) {
    this.counts.push(call.tokens.length);
    this.total += call.tokens.length;
    const bar = draw("g", { class: "call", "data-call": call.n });
    let from = 0;
    for (let i = 1; i <= call.tokens.length; i += 1) {
      if (i < call.tokens.length && call.tokens[i][1] === call.tokens[from][1]) continue;
      bar.append(
        draw("rect", {
          class: call.tokens[from][1],
          x: call.n - 1 + 0.1,
          width: 0.8,
          y: this.y(i),
          height: this.y(from) - this.y(i),
        }),
      );
      from = i;
    }
    this.bars.append(bar);
  }

  layout() {
    const width = this.root.clientWidth;
    if (!width) return;
    const room = width - Chart.left - Chart.right;
    const step = Math.min(Chart.widest, room / Math.max(1, this.counts.length));
    const x = (call) => Chart.left + call * step;
    this.svg.setAttribute("width", width);
    this.bars.setAttribute("transform", `translate(${Chart.left} 0) scale(${step} 1)`);

    this.grid.replaceChildren();
    this.notes.replaceChildren();
    const ceiling = this.k + 1;
    const every = Math.ceil(ceiling / 4);
    for (let tokens = 0; tokens <= ceiling; tokens += every) this.tick(tokens, width);
    this.rule(ceiling, width);

    let sum = 0;
    const points = this.counts.map((count, index) => {
      sum += count;
      return `${x(index + 0.5)},${this.y(sum / (index + 1))}`;
    });
    this.mean.setAttribute("points", points.join(" "));
    if (this.counts.length) {
      const mean = this.total / this.counts.length;
      this.note("mean-note", x(this.counts.length) + 8, this.y(mean) + 4, `mean ${mean.toFixed(2)}`);
    }
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
  }
}

// ---------------------------------------------------------------- the arena

class Arena {
  constructor(root) {
    this.root = root;
    this.race = null;
    this.asked = 0;
    this.lanes = new Map();
    this.chart = new Chart();
    this.row = make("div", "lanes");
    this.show(MAIN);

    const legend = make("ul", "legend");
    legend.setAttribute("aria-label", "What the marks mean");
    for (const [mark, name, meaning] of LEGEND) {
      const item = make("li");
      item.append(make("span", `tok ${mark}`, name), make("span", "meaning", meaning));
      legend.append(item);
    }

    this.verdict = make("div", "verdict");
    this.headline = make("strong", "headline");
    this.note = make("p", "note");
    // The only live region: silent while tokens stream, one sentence when the race is over.
    this.sentence = make("p", "sentence");
    this.sentence.id = "verdict";
    this.sentence.setAttribute("role", "status");
    this.sentence.setAttribute("aria-live", "polite");
    this.badge = make("span", "badge");
    this.badge.id = "badge";
    this.verdict.append(this.note, this.headline, this.badge, this.sentence);

    const foot = make("div", "foot");
    foot.append(this.verdict, this.chart.root);
    root.replaceChildren(legend, this.row, foot);
    this.idle("idle");
  }

  // Have these lanes on the page, in this order; a lane that stays keeps its element.
  show(ids) {
    const kept = this.lanes;
    this.lanes = new Map(ids.map((id) => [id, kept.get(id) ?? new Lane(id, () => this.askAgain())]));
    if ([...kept.keys()].join() === ids.join()) return;
    this.row.dataset.lanes = String(ids.length);
    this.row.replaceChildren(...[...this.lanes.values()].map((lane) => lane.root));
  }

  idle(state) {
    this.root.dataset.state = state;
    this.note.textContent = NOTES[state] ?? "";
    this.headline.textContent = "";
    this.badge.textContent = "";
    this.badge.hidden = true;
    this.verdict.dataset.tone = "even";
    this.sentence.textContent = "";
  }

  take(frame) {
    if (frame?.format !== FORMAT) return;
    if (!frame.race) {
      this.show(MAIN);
      for (const lane of this.lanes.values()) lane.reset(null);
      this.chart.reset();
      this.race = null;
      this.idle(frame.state);
      return;
    }
    if (frame.race !== this.race) {
      if (frame.kind !== "snapshot") return this.askAgain();
      this.begin(frame);
    }
    for (const call of frame.calls) this.lanes.get(call.lane)?.keep(call);
    this.paint(frame);
  }

  begin(frame) {
    this.race = frame.race;
    this.show(Object.keys(frame.lanes));
    for (const lane of this.lanes.values()) lane.reset(frame.about);
    this.chart.reset(frame.about.k);
    this.idle("running");
  }

  paint(frame) {
    const over = frame.state !== "running";
    for (const [id, lane] of this.lanes) {
      const tally = frame.lanes[id];
      if (tally) lane.paint(tally, over);
    }
    const space = this.lanes.get("space");
    for (let i = this.chart.counts.length; i < space.painted; i += 1) this.chart.add(space.calls[i]);
    this.chart.layout();
    this.root.dataset.state = frame.state;
    this.root.dataset.race = frame.race;
    if (frame.verdict) this.judge(frame.verdict);
  }

  judge(verdict) {
    this.note.textContent = "";
    this.verdict.dataset.tone = verdict.tone;
    this.headline.textContent = verdict.headline;
    this.badge.textContent = verdict.badge;
    this.badge.hidden = false;
    this.badge.dataset.identical = String(verdict.identical);
    if (this.sentence.textContent !== verdict.sentence) this.sentence.textContent = verdict.sentence;
  }

  // A frame went missing (frames may be merged on their way): have the whole race sent once more.
  askAgain() {
    const now = performance.now();
    if (now - this.asked < 500) return;
    this.asked = now;
    trigger("resend", {});
  }
}

function read(value) {
  try {
    return value ? JSON.parse(value) : null;
  } catch {
    return null;
  }
}

const arena = new Arena(element.querySelector(".arena"));
arena.take(read(props.value));
watch("value", () => arena.take(read(props.value)));
