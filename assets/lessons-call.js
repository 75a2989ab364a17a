// The later lessons: the whole call, who sees whom, accept and correct, training and limits. Follows
// lessons.js.

// ---------------------------------------------------------------- 5: both in one call

// The call's grid while it is built: cards in a tray, and behind each token a place for one.
class GridPuzzle extends CallGrid {
  look() {
    return "";
  }

  line(at) {
    const line = super.line(at);
    const group = line.querySelector(".group");
    group.classList.remove("chosen");
    const slot = make("button", "slot", "put a card here");
    slot.type = "button";
    slot.setAttribute("aria-label", `Behind ${this.call.structure.rows[at].name}: empty`);
    const cell = make("div", "slot-cell");
    cell.setAttribute("role", "cell");
    cell.append(slot);
    group.replaceWith(cell);
    this.places ??= [];
    this.places[at] = { group, slot, cell, card: null };
    return line;
  }

  // What was taken shows when the reader has said it.
  mask(group, slot) {
    const place = super.mask(group, slot);
    place.classList.remove("taken");
    return place;
  }

  take(right) {
    this.places.forEach(({ group }, at) => {
      const taken = right && at === this.call.group;
      group.classList.toggle("chosen", taken);
      for (const place of group.querySelectorAll("[data-row]"))
        place.classList.toggle("taken", taken && this.call.chosen.includes(Number(place.dataset.row)));
    });
  }

  heading() {
    const head = super.heading();
    head.firstChild.textContent = "token, and what follows it";
    return head;
  }
}

class GridLesson extends Lesson {
  build() {
    const { step } = this;
    this.task = new Task(step.task);
    this.grid = new GridPuzzle(step.opened, step.k, () => {});
    this.grid.root.classList.add("unjudged", "brief");
    this.tray = make("div", "tray");
    this.tray.setAttribute("role", "group");
    this.tray.setAttribute("aria-label", "Cards, one for each mask group");
    this.held = null;
    this.cards = step.cards.map((group, at) => this.card(group, at));
    this.grid.places.forEach((place, at) => place.slot.addEventListener("click", () => this.put(at)));
    this.tray.append(...this.cards.map((card) => card.node));
    this.task.body.append(this.tray, this.grid.root);
    this.root.append(this.task.root);
  }

  card(group, at) {
    const { structure, before } = this.step.opened;
    const places = structure.rows.filter((row) => row.slot && row.at === group).map((row) => before + row.offset);
    const node = make("button", "card");
    node.type = "button";
    const name = String.fromCharCode(65 + at);
    const words = `[M] at pos ${places.join(", ")}`;
    node.append(make("b", "", name), make("span", "", words));
    node.setAttribute("aria-pressed", "false");
    const card = { group, node, name, words };
    node.addEventListener("click", () => this.hold(this.held === card ? null : card));
    return card;
  }

  hold(card) {
    this.held = card;
    for (const each of this.cards) each.node.setAttribute("aria-pressed", String(each === card));
    this.grid.root.classList.toggle("ready", Boolean(card));
  }

  put(at) {
    const place = this.grid.places[at];
    if (place.card) this.back(place, at);
    else if (this.held) {
      place.card = this.held;
      place.slot.textContent = `${this.held.name}: ${this.held.words}`;
      place.slot.classList.add("filled");
      place.slot.setAttribute("aria-label", `Behind ${this.name(at)}: card ${this.held.name}. Press to take it back`);
      this.held.node.hidden = true;
      this.hold(null);
      this.task.say("");
      const rest = this.cards.filter((card) => !card.node.hidden);
      if (rest.length) rest[0].node.focus({ preventScroll: true });
      else this.check();
    } else this.task.say("Choose a card first.", "note");
  }

  name(at) {
    return this.step.opened.structure.rows[at].name;
  }

  back(place, at) {
    place.card.node.hidden = false;
    place.card = null;
    place.slot.textContent = "put a card here";
    place.slot.classList.remove("filled");
    place.slot.setAttribute("aria-label", `Behind ${this.name(at)}: empty`);
  }

  check() {
    const wrong = this.grid.places.filter((place, at) => place.card.group !== at);
    if (wrong.length) {
      for (const place of wrong) this.back(place, this.grid.places.indexOf(place));
      this.task.say(this.step.wrong, "wrong");
      this.cards.find((card) => !card.node.hidden).node.focus({ preventScroll: true });
      return;
    }
    for (const { cell, group } of this.grid.places) cell.replaceWith(group);
    this.tray.hidden = true;
    this.task.say(this.step.built, "right");
    if (this.step.opened.group === null) return this.done();
    this.second();
  }

  // Which group drafts for the next call.
  second() {
    this.after = new Task(this.step.then);
    const groups = this.grid.places.map((_, at) => [at, `group ${at}`]);
    const { set, radios } = choice("grid-group", this.step.stood, groups, (at) => {
      const right = at === this.step.opened.group;
      this.grid.take(right);
      this.after.say(right ? this.step.chosen : this.step.missed, right ? "right" : "wrong");
      if (right) this.done();
    });
    this.grid.root.classList.remove("unjudged");
    this.after.body.append(set);
    this.root.append(this.after.root);
    radios[0].focus({ preventScroll: true });
  }
}

// ---------------------------------------------------------------- 6: who sees whom

class SightLesson extends Lesson {
  build() {
    this.root.append(this.first());
  }

  first() {
    const { step } = this;
    this.task = new Task(step.task);
    const line = make("div", "fill-line");
    line.setAttribute("role", "group");
    line.setAttribute("aria-label", "What mask 2 of group 1 may see");
    this.cells = [this.toggle("the cache", "cache", 0)];
    const parts = new Map();
    step.structure.rows.forEach((row, at) => {
      const key = row.slot ? `group ${row.at}` : "real rows";
      if (!parts.has(key)) parts.set(key, make("div", "fill-part"));
      const short = row.slot ? `mask ${row.slot}` : row.at ? row.name : "newest";
      const cell = this.toggle(row.name, at === step.row ? `${short}, itself` : short, at + 1);
      this.cells.push(cell);
      parts.get(key).append(cell);
    });
    const cache = make("div", "fill-part");
    cache.append(this.cells[0]);
    line.append(this.part("settled", cache), ...[...parts].map(([name, part]) => this.part(name, part)));
    this.whys = make("ul", "why-list");
    this.task.body.append(line);
    this.task.keys.append(act("sight-check", "Check", () => this.check()));
    this.task.said.after(this.whys);
    return this.task.root;
  }

  part(name, cells) {
    const part = make("div", "fill-group");
    part.append(make("span", "fill-name", name), cells);
    return part;
  }

  toggle(name, text, column) {
    const node = make("button", "toggle", text);
    node.type = "button";
    node.dataset.column = column;
    node.setAttribute("aria-label", `sees ${name}`);
    node.setAttribute("aria-pressed", "false");
    node.addEventListener("click", () => {
      node.setAttribute("aria-pressed", String(node.getAttribute("aria-pressed") !== "true"));
      node.classList.remove("missed");
    });
    return node;
  }

  check() {
    const { step } = this;
    const map = this.map(step.structure.whys);
    const wrong = this.cells.filter((cell, at) => {
      const seen = step.reasons[step.structure.whys[step.row][at]][0];
      const missed = seen !== (cell.getAttribute("aria-pressed") === "true");
      cell.classList.toggle("missed", missed);
      return missed;
    });
    this.whys.replaceChildren(...wrong.map((cell) => make("li", "", map.words(step.row, Number(cell.dataset.column)))));
    this.task.say(wrong.length ? step.wrong : step.right, wrong.length ? "wrong" : "right");
    if (!wrong.length && !this.rules) this.root.append(this.second());
  }

  map(whys) {
    const { step } = this;
    const call = { before: step.before, cached: true, structure: { ...step.structure, whys } };
    return new SightMap(call, step.reasons, "learn-why");
  }

  second() {
    const { step } = this;
    this.rules = new Task(step.then);
    this.seen = new Set();
    const { set, radios } = choice(
      "sight-rule",
      "Mask rule",
      step.rules.map((rule, at) => [at, rule.name]),
      (at) => this.choose(at),
    );
    set.classList.add("rules");
    radios.forEach((radio, at) => radio.parentNode.append(make("small", "", step.rules[at].words)));
    this.sheet = make("div", "sheet");
    this.verdict = make("div", "task-keys predict");
    this.stays = act("sight-stays", "The text stays", () => this.predict(false));
    this.breaks = act("sight-breaks", "The text changes", () => this.predict(true));
    this.verdict.append(make("span", "say", "What does this rule do?"), this.stays, this.breaks);
    this.run = make("div", "runs");
    const left = make("div", "pane");
    left.append(set, this.verdict);
    const both = make("div", "two");
    both.append(left, this.sheet);
    this.rules.body.append(both);
    this.rules.said.after(this.run);
    radios[0].checked = true;
    this.choose(0);
    return this.rules.root;
  }

  choose(at) {
    this.at = at;
    this.sheet.replaceChildren(this.map(this.step.rules[at].whys).root);
    this.rules.say("");
    this.run.replaceChildren();
    for (const key of [this.stays, this.breaks]) key.disabled = false;
  }

  predict(breaks) {
    const rule = this.step.rules[this.at];
    const right = breaks === rule.breaks;
    for (const key of [this.stays, this.breaks]) key.disabled = true;
    this.rules.say(`${right ? "Right. " : "No. "}${rule.outcome}`, right ? "right" : "wrong");
    this.run.replaceChildren(
      this.text("Plain decoding", rule.plain, rule.split, "same"),
      this.text(rule.name, rule.text, rule.split, "other"),
    );
    this.seen.add(rule.breaks);
    const kinds = new Set(this.step.rules.map((each) => each.breaks));
    if (this.seen.size === kinds.size) this.done();
  }

  // A run's text; from `split` on it is another one.
  text(name, pieces, split, mark) {
    const figure = make("figure", "run");
    const box = make("div", "snippet");
    box.tabIndex = 0;
    box.setAttribute("role", "group");
    box.setAttribute("aria-label", `${name}: its text`);
    const from = split ?? pieces.length;
    const same = make("span", "same");
    for (const piece of pieces.slice(0, from)) spell(same, piece);
    box.append(same);
    if (split !== null) {
      const other = make("span", mark);
      for (const piece of pieces.slice(from)) spell(other, piece);
      box.append(make("span", "fork", `from token ${split + 1}`), other);
    }
    figure.append(make("figcaption", "", name), box);
    return figure;
  }
}

// ---------------------------------------------------------------- 7: accept and correct

class KeepLesson extends Lesson {
  build() {
    const { step } = this;
    this.task = new Task(step.task);
    const table = make("div", "keep");
    const { chain, fates, structure } = step.opened;
    table.style.setProperty("--k", Math.max(1, ...structure.masks));
    this.toggles = new Map();
    chain.forEach((piece, at) => {
      const line = make("div", "keep-line");
      line.append(this.toggle(at, shown(piece), fates[at]));
      structure.rows.forEach((row, r) => {
        if (row.slot && row.at === at) line.append(this.toggle(r, "[M]", "mask"));
      });
      table.append(line);
    });
    this.task.body.append(snippet(step.text).box, table);
    this.task.keys.append(act("keep-check", "Check", () => this.check()));
    this.root.append(this.task.root);
  }

  toggle(row, text, fate) {
    const { name } = this.step.opened.structure.rows[row];
    const node = make("button", `keep-row ${fate}`);
    node.type = "button";
    node.append(make("code", "", text));
    if (fate !== "mask") node.append(make("small", "", FATES[fate] || "newest"));
    node.setAttribute("aria-pressed", "false");
    node.setAttribute("aria-label", `keep ${name}${fate === "mask" ? "" : `, ${text}, ${FATES[fate] || "settled"}`}`);
    node.addEventListener("click", () => {
      node.setAttribute("aria-pressed", String(node.getAttribute("aria-pressed") !== "true"));
      node.classList.remove("missed");
    });
    this.toggles.set(row, node);
    return node;
  }

  check() {
    const { opened, right, wrong } = this.step;
    let missed = 0;
    for (const [row, node] of this.toggles) {
      const stays = ["newest", "accepted"].includes(opened.fates[row]);
      const bad = stays !== (node.getAttribute("aria-pressed") === "true");
      node.classList.toggle("missed", bad);
      missed += bad;
    }
    this.task.say(missed ? wrong : right, missed ? "wrong" : "right");
    if (!missed && !this.run) this.root.append(this.second(), make("p", "small", this.step.sampled));
  }

  // The whole run, call by call.
  second() {
    const { run, press } = this.step;
    this.run = new Task(press);
    this.calls = 0;
    const { box, out } = snippet(run.prompt);
    this.box = box;
    this.out = out;
    this.tally = make("div", "tally");
    this.tally.setAttribute("role", "status");
    this.run.body.append(this.legend(), box, this.tally);
    this.run.keys.append(
      act("keep-call", "Make a call", () => this.call(1)),
      act("keep-all", "All calls", () => this.call(run.calls.length)),
    );
    this.count();
    return this.run.root;
  }

  legend() {
    const legend = make("ul", "legend");
    legend.setAttribute("aria-label", "What the marks mean");
    for (const [mark, meaning] of [
      ["accepted", "a draft that stood"],
      ["corrected", "in place of the first that fell"],
      ["bonus", "one more, when all stood"],
    ]) {
      const item = make("li");
      item.append(make("span", `tok ${mark}`, mark), make("span", "meaning", meaning));
      legend.append(item);
    }
    return legend;
  }

  call(times) {
    const { calls } = this.step.run;
    for (let i = 0; i < times && this.calls < calls.length; i += 1) {
      for (const [piece, origin] of calls[this.calls]) {
        const token = make("span", `tok ${origin}`);
        spell(token, piece);
        this.out.append(token);
      }
      this.calls += 1;
    }
    this.box.scrollTop = this.box.scrollHeight;
    this.count();
    if (this.calls < calls.length) return;
    this.run.say(this.step.end, "right");
    this.done();
  }

  count() {
    const tokens = this.step.run.calls.slice(0, this.calls).reduce((sum, call) => sum + call.length, 0);
    const most = this.step.run.plain.length || 1;
    this.tally.replaceChildren(
      amount("SPACE", this.calls, most, counted(this.calls, "call"), "ours"),
      amount("plain", tokens, most, counted(tokens, "call"), "theirs"),
    );
  }
}

// One bar with its name and value.
function amount(name, value, most, words, className) {
  const line = make("div", `bar-line ${className}`);
  const bar = make("span", "bar-track");
  bar.style.setProperty("--p", most ? Math.min(1, value / most) : 0);
  line.append(make("span", "bar-name", name), bar, make("span", "bar-value", words));
  return line;
}

// ---------------------------------------------------------------- 8: training, and limits

class TrainLesson extends Lesson {
  build() {
    this.root.append(this.first());
  }

  first() {
    const { step } = this;
    this.task = new Task(step.task);
    const text = make("div", "train-text");
    text.setAttribute("role", "group");
    text.setAttribute("aria-label", "A training text; arrow keys walk, Enter anchors a group");
    this.tokens = step.text.map((piece, at) => {
      const node = make("button", "train-token");
      node.type = "button";
      node.tabIndex = at ? -1 : 0;
      node.append(make("code", "", shown(piece)), make("small"));
      node.disabled = at + step.k + 1 >= step.text.length;
      node.addEventListener("click", () => this.anchor(at));
      return node;
    });
    text.addEventListener("keydown", (event) => this.walk(event));
    text.append(...this.tokens);
    this.task.body.append(text);
    return this.task.root;
  }

  walk(event) {
    const by = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
    const from = this.tokens.indexOf(event.target.closest(".train-token"));
    const to = this.tokens[from + by];
    if (!by || !to || to.disabled) return;
    event.preventDefault();
    this.tokens[from].tabIndex = -1;
    to.tabIndex = 0;
    to.focus();
  }

  anchor(at) {
    const { k, text, taught, learned } = this.step;
    this.tokens.forEach((node, i) => {
      const slot = i - at - 1; // mask `slot` must answer with this token
      const role = i === at ? "anchor" : slot >= 1 && slot <= k ? "target" : "";
      node.dataset.role = role;
      node.setAttribute("aria-pressed", String(i === at));
      node.lastChild.textContent = role === "target" ? `mask ${slot}` : role;
    });
    const targets = text.slice(at + 2, at + 2 + k).map((piece, i) => `mask ${i + 1} with “${shown(piece)}”`);
    this.task.say(fill(taught, { first: 1, anchor: shown(text[at]), targets: targets.join(", ") }), "right");
    if (this.more) return;
    this.more = true;
    this.root.append(make("p", "say", learned), this.second());
  }

  second() {
    const { step } = this;
    this.play = new Task(step.then);
    this.now = { place: 0, masks: "trained", heat: 0, k: Math.min(4, step.ks.length - 1) };
    const set = (name) => (value) => {
      this.now[name] = value;
      this.show();
    };
    const controls = make("div", "controls");
    const rows = [
      choice("train-masks", "Masks", [["trained", "trained"], ["untrained", "untrained"]], set("masks")),
      choice("train-heat", "Temperature", step.temperatures.map((t, i) => [i, String(t)]), set("heat")),
      choice("train-place", "Machine", step.places.map((place, i) => [i, place.name]), set("place")),
    ];
    for (const { set: field, radios } of rows) {
      radios[0].checked = true;
      controls.append(field);
    }
    controls.append(this.slider());
    this.scale = make("div", "scale");
    this.scale.setAttribute("role", "status");
    this.speeds = make("div", "speeds-by-k");
    this.goals = make("ul", "goals");
    this.marks = new Map(step.goals.map((goal) => [goal.id, make("li", "", goal.words)]));
    this.goals.append(...this.marks.values());
    const left = make("div", "pane");
    left.append(controls, this.goals);
    const right = make("div", "pane");
    right.append(this.scale, this.speeds);
    const both = make("div", "two");
    both.append(left, right);
    this.play.body.append(both);
    this.touched = false;
    this.show();
    this.touched = true;
    const notes = [step.heat, step.planner, step.basis].filter(Boolean);
    this.play.root.append(...notes.map((words) => make("p", "small", words)));
    return this.play.root;
  }

  slider() {
    const label = make("label", "slider");
    const { ks } = this.step;
    this.k = make("input");
    Object.assign(this.k, { type: "range", id: "train-k", min: 1, max: ks.length, step: 1 });
    this.k.value = this.now.k + 1;
    this.kWords = make("output", "value");
    this.k.addEventListener("input", () => {
      this.now.k = Number(this.k.value) - 1;
      this.show();
    });
    label.append(make("span", "", "Guesses per call"), this.k, this.kWords);
    return label;
  }

  speed(k) {
    const { place, masks, heat } = this.now;
    return this.step.gains[masks][heat][k] / this.step.places[place].costs[k];
  }

  show() {
    const { step } = this;
    const { place, masks, heat, k } = this.now;
    const gain = step.gains[masks][heat][k];
    const price = step.places[place].costs[k];
    const speed = gain / price;
    const rows = (step.ks[k] + 1) ** 2;
    this.kWords.textContent = `k = ${step.ks[k]}, ${rows} rows`;
    this.k.style.setProperty("--done", k / Math.max(1, step.ks.length - 1));
    const most = Math.max(...step.places.flatMap((each) => each.costs), ...Object.values(step.gains).flat(2));
    const big = make("strong", "big", this.words(speed));
    this.scale.replaceChildren(
      big,
      amount("writes", gain, most, `${gain.toFixed(2)} tokens`, "ours"),
      amount("costs", price, most, `${price.toFixed(2)} plain calls`, "theirs"),
    );
    this.scale.dataset.tone = Math.abs(speed - 1) <= 0.03 ? "even" : speed > 1 ? "good" : "bad";
    this.speeds.replaceChildren(
      make("p", "small", "Speed by k under these settings; the dashed line is plain decoding."),
      this.columns(),
    );
    if (this.touched) this.reach(speed);
  }

  words(speed) {
    if (Math.abs(speed - 1) <= 0.03) return "as fast as plain decoding";
    return speed > 1 ? `${speed.toFixed(2)}× as fast` : `${(1 / speed).toFixed(2)}× slower`;
  }

  // Speed by k under these settings; the line is plain decoding.
  columns() {
    const { ks } = this.step;
    const speeds = ks.map((_, k) => this.speed(k));
    const [width, height, left, bottom] = [420, 170, 8, 22];
    const top = Math.max(1.25, ...speeds) * 1.12;
    const y = (value) => height - bottom - ((height - bottom - 8) * value) / top;
    const step = (width - left) / ks.length;
    const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, class: "columns", role: "img" });
    const numbers = [];
    svg.setAttribute("aria-label", `Speed by k: ${ks.map((k, i) => `${k}: ${speeds[i].toFixed(2)}`).join(", ")}`);
    ks.forEach((k, i) => {
      const x = left + i * step + 6;
      const kind = speeds[i] > 1.03 ? "good" : speeds[i] < 0.97 ? "bad" : "even";
      svg.append(
        draw("rect", {
          class: `${kind}${i === this.now.k ? " now" : ""}`,
          x,
          y: y(speeds[i]),
          width: step - 12,
          height: y(0) - y(speeds[i]),
          rx: 3,
        }),
        label(x + (step - 12) / 2, height - 6, k, "middle"),
      );
      const strong = i === this.now.k ? " strong" : "";
      numbers.push(label(x + (step - 12) / 2, y(0) - 7, speeds[i].toFixed(2), "middle", `number${strong}`));
    });
    svg.append(draw("line", { class: "plain-line", x1: left, x2: width, y1: y(1), y2: y(1) }), ...numbers);
    return svg;
  }

  reach(speed) {
    const { place, masks, heat, k } = this.now;
    const first = place === 0;
    const all = this.step.ks.map((_, i) => this.speed(i));
    if (first && speed > 1.03) this.tick("faster");
    if (speed < 0.97) this.tick("slower");
    if (first && masks === "trained" && heat === 0 && all[k] === Math.max(...all)) this.tick("best");
    if ([...this.marks.values()].every((mark) => mark.classList.contains("reached"))) {
      this.play.say("All found.", "right");
      this.done();
    }
  }

  tick(id) {
    const mark = this.marks.get(id);
    if (!mark || mark.classList.contains("reached")) return;
    mark.classList.add("reached");
    mark.append(make("span", "unseen", " found"));
  }
}
