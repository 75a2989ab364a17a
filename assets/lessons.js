// What the lessons are made of, and the first four: one row a call, masks, drafts, the check. Each lesson
// is given its step of space_core/views/walk.py and says when its task is done. Follows dom.js, call.js.

// `{name}` in a sentence becomes what `names` holds for it, as text.
function fill(sentence, names) {
  return sentence.replace(/\{(\w+)\}/g, (all, name) => (name in names ? names[name] : all));
}

function act(id, text, press) {
  const node = make("button", "act", text);
  node.type = "button";
  node.id = id;
  node.addEventListener("click", press);
  return node;
}

// A token as a tile; `note` stands below it, small.
function tile(piece, note, className = "") {
  const node = make("span", `tile ${className}`);
  const text = make("code", "", shown(piece));
  text.title = quoted(piece);
  node.append(text);
  if (note) node.append(make("small", "", note));
  return node;
}

// The text so far: its last lines, long ones from their end.
function snippet(text) {
  const lines = text.split("\n");
  const last = lines.slice(-5).join("\n");
  const box = make("div", "snippet tail");
  box.tabIndex = 0;
  box.setAttribute("role", "group");
  box.setAttribute("aria-label", "The text so far");
  const before = make("span", "before-text", lines.length > 5 ? `…\n${last}` : last);
  const out = make("span", "out");
  box.append(before, out);
  requestAnimationFrame(() => toEnd(box));
  return { box, out };
}

function toEnd(box) {
  box.scrollTop = box.scrollHeight;
}

// Radio buttons that look like one row of keys. `options`: [value, words].
function choice(name, legend, options, change) {
  const set = make("fieldset", "choice");
  set.append(make("legend", "", legend));
  const radios = options.map(([value, words]) => {
    const label = make("label");
    const radio = make("input");
    radio.type = "radio";
    radio.name = name;
    radio.value = value;
    radio.addEventListener("change", () => change(value));
    label.append(radio, make("span", "", words));
    set.append(label);
    return radio;
  });
  return { set, radios };
}

// A question, what answers it, and what is said of the answer.
class Task {
  constructor(words) {
    this.root = make("section", "task");
    const ask = make("p", "ask");
    ask.append(make("span", "turn", "Your turn"), make("span", "", words));
    this.body = make("div", "task-body");
    this.keys = make("div", "task-keys");
    this.said = make("p", "said");
    this.said.setAttribute("role", "status");
    this.root.append(ask, this.body, this.keys, this.said);
  }

  say(text, tone = "") {
    this.said.dataset.tone = tone;
    this.said.textContent = text;
  }
}

class Lesson {
  constructor(step, done) {
    this.step = step;
    this.done = done;
    this.root = make("div", `lesson lesson-${step.id}`);
    this.build();
  }
}

// ---------------------------------------------------------------- 1: one row a call

class RowsLesson extends Lesson {
  build() {
    const { step } = this;
    this.calls = 0;
    const left = make("div", "pane");
    const { box, out } = snippet(step.prompt);
    this.out = out;
    this.box = box;
    this.counts = make("p", "counts");
    this.counts.setAttribute("role", "status");
    this.go = act("rows-call", "Make a call", () => this.call(1));
    const keys = make("div", "task-keys");
    keys.append(this.go, act("rows-ten", "Ten more", () => this.call(10)));
    left.append(make("p", "say", step.press), box, keys, this.room(), this.counts);
    this.count();
    this.root.classList.add("two");
    this.root.append(left);
    if (step.machine) this.root.append(this.question());
    else this.go.addEventListener("click", () => this.done());
  }

  // The rows that a call might have had; one is in use.
  room() {
    const room = make("div", "room");
    room.setAttribute("aria-hidden", "true");
    for (let row = 0; row < (this.step.asked ?? 36); row += 1) room.append(make("i"));
    this.used = room.firstChild;
    return room;
  }

  call(times) {
    const { plain } = this.step;
    for (let i = 0; i < times && this.calls < plain.length; i += 1) {
      const token = make("span", "tok");
      spell(token, plain[this.calls]);
      this.out.append(token);
      this.calls += 1;
    }
    this.used.classList.remove("flash");
    void this.used.offsetWidth; // the animation starts anew
    this.used.classList.add("flash");
    toEnd(this.box);
    this.count();
  }

  count() {
    const over = this.calls === this.step.plain.length ? ", the end of this recording" : "";
    const empty = (this.step.asked ?? 36) - 1;
    const made = `${counted(this.calls, "call")}, ${counted(this.calls, "token")}${over}`;
    this.counts.textContent = `${made}. Each call: 1 row in use, room for ${empty} more.`;
  }

  question() {
    const { step } = this;
    this.task = new Task(step.task);
    const label = make("label", "slider");
    this.slider = make("input");
    Object.assign(this.slider, { type: "range", id: "rows-guess", min: 1, max: step.asked, step: 0.5 });
    this.slider.value = (1 + step.asked) / 2;
    const value = make("output", "value");
    const tell = () => {
      value.textContent = `${counted(Number(this.slider.value), "call")} of one row`;
      this.slider.style.setProperty("--done", (this.slider.value - 1) / (step.asked - 1));
    };
    this.slider.addEventListener("input", tell);
    tell();
    label.append(make("span", "", `One call of ${step.asked} rows takes as long as`), this.slider, value);
    this.task.body.append(label);
    this.task.keys.append(act("rows-reveal", "Show the measurement", () => this.reveal()));
    return this.task.root;
  }

  reveal() {
    const { step } = this;
    const guess = Number(this.slider.value);
    const close = Math.abs(guess - step.ratio) <= 0.25 * step.ratio;
    this.task.say(`${close ? "Close. " : ""}${step.measured}`, close ? "right" : "note");
    this.plot?.remove();
    this.plot = this.chart(guess);
    this.task.said.after(this.plot);
    this.done();
  }

  chart(guess) {
    const { asked, ratio, machine } = this.step;
    const [width, height, left, bottom] = [440, 250, 34, 34];
    const x = (rows) => left + ((width - left - 14) * rows) / asked;
    const y = (calls) => height - bottom - ((height - bottom - 28) * calls) / asked;
    const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, class: "curve", role: "img" });
    svg.setAttribute("aria-label", this.step.measured);
    for (let at = 0; at <= asked; at += asked / 4) {
      svg.append(draw("line", { class: "rule", x1: left, x2: width - 14, y1: y(at), y2: y(at) }));
      svg.append(label(left - 6, y(at) + 4, Math.round(at), "end"));
      svg.append(label(x(at), height - 14, Math.round(at), "middle"));
    }
    const line = machine.points.filter(([rows]) => rows <= asked).map(([rows, calls]) => `${x(rows)},${y(calls)}`);
    svg.append(
      draw("line", { class: "dear", x1: x(1), y1: y(1), x2: x(asked), y2: y(asked) }),
      label(x(asked * 0.6) - 10, y(asked * 0.6) - 6, "if each row were a call", "end"),
      draw("polyline", { class: "cheap", points: line.join(" ") }),
      draw("circle", { class: "found", cx: x(asked), cy: y(ratio), r: 5 }),
      label(x(asked) - 10, y(ratio) - 9, `measured: ${Number(ratio.toFixed(1))}`, "end", "strong"),
      draw("rect", {
        class: "guessed",
        x: x(asked) - 5,
        y: y(guess) - 5,
        width: 10,
        height: 10,
        transform: `rotate(45 ${x(asked)} ${y(guess)})`,
      }),
    );
    if (Math.abs(guess - ratio) > asked / 12) svg.append(label(x(asked) - 12, y(guess) + 4, `you: ${guess}`, "end"));
    svg.append(label(width - 14, height - 2, "rows of the call", "end"), label(2, 12, "takes as long as … calls of one row", "start"));
    return svg;
  }
}

function label(x, y, text, anchor, className = "") {
  const node = draw("text", { x, y, "text-anchor": anchor, class: className });
  node.textContent = text;
  return node;
}

// ---------------------------------------------------------------- 2: what a mask asks

class MaskLesson extends Lesson {
  build() {
    const { step } = this;
    this.task = new Task(step.task);
    const ribbon = make("div", "ribbon");
    ribbon.style.setProperty("--places", step.places.length);
    ribbon.append(this.corner("the text so far"), ...step.places.map((_, at) => this.place(at)));
    ribbon.append(this.asker(0), ...step.asked.map((_, at) => this.asker(at + 1)));
    this.places = [...ribbon.querySelectorAll(".new-place")];
    this.masks = [...ribbon.querySelectorAll("button.asker")];
    this.panel = make("div", "panel");
    this.panel.setAttribute("role", "status");
    this.task.body.append(snippet(step.text).box, ribbon);
    this.task.said.after(this.panel);
    this.root.append(this.task.root);
  }

  corner(text) {
    return make("span", "corner", text);
  }

  place(at) {
    const node = make("button", "new-place");
    node.type = "button";
    node.append(make("small", "", `place ${at + 1}`), make("code", "", "?"));
    node.setAttribute("aria-label", `New place ${at + 1}`);
    node.addEventListener("click", () => this.answer(at));
    return node;
  }

  // Who answers, under the place where it stands; its arrow points one place further on.
  asker(slot) {
    const node = make(slot ? "button" : "span", "asker");
    node.dataset.slot = slot;
    const text = slot ? "[M]" : shown(this.step.anchor);
    node.append(make("code", "", text), make("small", "", slot ? `mask ${slot}` : "newest"));
    if (!slot) return node;
    node.type = "button";
    node.disabled = true;
    node.setAttribute("aria-label", `Mask ${slot}, at new place ${slot}`);
    node.addEventListener("click", () => this.open(slot));
    return node;
  }

  answer(at) {
    const { step } = this;
    for (const place of this.places) place.classList.remove("missed");
    if (at !== step.slot) {
      this.places[at].classList.add("missed");
      this.task.say(step.wrong, "wrong");
      return;
    }
    this.task.say(`${step.right} ${step.explore}`, "right");
    this.root.classList.add("answered");
    for (const mask of this.masks) mask.disabled = false;
    this.open(step.slot);
    this.done();
  }

  open(slot) {
    const { asked, places, hits } = this.step;
    const [guess] = asked[slot - 1];
    const written = places[slot];
    const right = written !== undefined && guess[0] === written;
    this.masks.forEach((mask, at) => mask.setAttribute("aria-pressed", at + 1 === slot));
    this.places.forEach((place, at) => {
      place.classList.toggle("aimed", at === slot);
      place.lastChild.textContent = at === slot || at < slot ? shown(places[at] ?? "") : "?";
    });
    const list = make("ol", "guesses wide");
    list.setAttribute("aria-label", `Mask ${slot} predicts`);
    for (const [piece, probability] of asked[slot - 1]) {
      const item = make("li");
      item.style.setProperty("--p", probability);
      item.append(make("code", "", shown(piece)), make("span", "chance", percent(probability)));
      list.append(item);
    }
    const verdict = make("p", `verdict-line ${right ? "good" : "bad"}`);
    const fact = ` there: the guess was ${right ? "right" : "wrong"}.`;
    verdict.append("Plain decoding wrote ", make("code", "", shown(written ?? "")), fact);
    const head = make("h4", "", `Mask ${slot} predicts, for place ${slot + 1}`);
    this.panel.replaceChildren(head, list, verdict, make("p", "small", hits));
  }
}

// ---------------------------------------------------------------- 3: drafts are guesses

class GuessLesson extends Lesson {
  build() {
    this.at = 0;
    this.exact = 0;
    this.seen = 0;
    this.task = new Task(this.step.task);
    this.score = make("p", "score");
    this.reveal = act("guess-reveal", "Reveal", () => this.judge());
    this.next = act("guess-next", "Another call", () => this.round((this.at + 1) % this.step.rounds.length));
    this.task.keys.append(this.reveal, this.next, this.score);
    this.trust = make("div", "trust");
    this.root.append(this.task.root, this.trust);
    if (this.step.rounds.length) this.round(0);
  }

  round(at) {
    this.at = at;
    this.chosen = null;
    const { text, drafts } = this.step.rounds[at];
    const set = make("fieldset", "drafts");
    set.append(make("legend", "unseen", "The last draft that stands"));
    this.options = [this.option(0, null), ...drafts.map((draft, i) => this.option(i + 1, draft))];
    set.append(...this.options);
    this.task.body.replaceChildren(snippet(text).box, set);
    this.reveal.disabled = true;
    this.next.hidden = true;
    this.task.say("");
  }

  option(number, draft) {
    const node = make("label", "draft-option");
    const radio = make("input");
    radio.type = "radio";
    radio.name = "guess-stand";
    radio.value = number;
    const name = draft && `Draft ${number} is the last to stand: ${shown(draft[0])}, ${percent(draft[1])}`;
    radio.setAttribute("aria-label", name || "No draft stands");
    radio.addEventListener("change", () => this.choose(number));
    node.append(radio);
    if (!draft) {
      node.classList.add("none");
      node.append(make("span", "none-words", "none stands"));
      return node;
    }
    const meter = make("span", "meter");
    meter.style.setProperty("--p", draft[1]);
    const chance = make("small", "chance", percent(draft[1]));
    node.append(tile(draft[0], `draft ${number}`), meter, chance, make("span", "mark"));
    return node;
  }

  choose(number) {
    this.chosen = number;
    this.reveal.disabled = false;
    this.options.forEach((option, at) => option.classList.toggle("trusted", at > 0 && at <= number));
  }

  judge() {
    const { accepted, drafts, own } = this.step.rounds[this.at];
    this.options.forEach((option, at) => {
      option.querySelector("input").disabled = true;
      if (!at) return;
      const fate = at <= accepted ? "stands" : at === accepted + 1 ? "falls" : "not reached";
      option.dataset.fate = fate;
      option.querySelector(".mark").textContent = fate;
    });
    const correct = this.options[accepted + 1];
    if (correct) correct.append(this.instead(own));
    const all = accepted === drafts.length;
    const stood = all ? `all ${accepted} stood, and the call adds one more` : `${accepted} stood`;
    const kind = this.chosen === accepted ? "exact" : this.chosen > accepted ? "high" : "low";
    this.seen += 1;
    this.exact += kind === "exact";
    this.task.say(fill(this.step[kind], { stood }), kind === "exact" ? "right" : "wrong");
    this.score.textContent = `${this.exact} of ${counted(this.seen, "call")} guessed exactly`;
    this.reveal.disabled = true;
    this.next.hidden = false;
    if (!this.trust.childElementCount) this.calibration();
    this.done();
  }

  instead(own) {
    const node = make("span", "instead");
    node.append("instead: ", make("code", "", shown(own)));
    return node;
  }

  // How often drafts of a probability stood, in all runs.
  calibration() {
    const figure = make("figure", "bars");
    figure.append(make("figcaption", "", "How often drafts stood, by the probability that their mask gave them"));
    for (const [from, to, judged, stood] of this.step.trust) {
      const line = make("div", "bar-line");
      const share = judged ? stood / judged : 0;
      const bar = make("span", "bar-track");
      bar.style.setProperty("--p", share);
      const words = judged ? `${percent(share)} of ${judged}` : "none";
      const name = `${Math.round(100 * from)}% to ${Math.round(100 * to)}%`;
      line.append(make("span", "bar-name", name), bar, make("span", "bar-value", words));
      figure.append(line);
    }
    this.trust.append(figure, make("p", "small", this.step.trusted));
  }
}

// ---------------------------------------------------------------- 4: check them at once

class VerifyLesson extends Lesson {
  build() {
    const { step } = this;
    this.task = new Task(step.task);
    const table = make("div", "chain");
    this.lines = step.chain.map((piece, at) => this.line(piece, at));
    this.more = this.last();
    table.append(...this.lines, this.more);
    this.task.body.append(snippet(step.text).box, table);
    this.task.keys.append(act("verify-check", "Check", () => this.check()));
    this.root.append(this.task.root);
    this.answers = step.chain.map(() => null);
  }

  line(piece, at) {
    const line = make("div", "chain-line");
    line.append(tile(piece, at ? `draft ${at}` : "newest token"));
    if (!at) return line;
    line.append(this.says(at - 1));
    const { set } = choice(
      `verify-${at}`,
      `Draft ${at}`,
      [
        ["accepted", "stands"],
        ["rejected", "falls"],
        ["unreached", "not asked"],
      ],
      (value) => {
        this.answers[at] = value;
        line.classList.remove("missed");
      },
    );
    set.firstChild.className = "unseen";
    line.append(set);
    return line;
  }

  // What the row of the newest token, or of a draft, predicts.
  says(row) {
    const says = make("span", "says");
    const [piece, probability] = this.step.says[row];
    says.append(make("span", "arrow", row ? `draft ${row} says` : "newest says"), tile(piece, percent(probability)));
    return says;
  }

  last() {
    const line = make("div", "chain-line last");
    line.append(make("small", "", "if all stand: one more"), this.says(this.step.chain.length - 1));
    return line;
  }

  check() {
    const { fates, right, wrong, behind } = this.step;
    const missed = fates.map((fate, at) => at > 0 && this.answers[at] !== (fate === "cut" ? "unreached" : fate));
    this.lines.forEach((line, at) => line.classList.toggle("missed", missed[at]));
    if (missed.some(Boolean)) {
      const late = missed.every((bad, at) => !bad || ["unreached", "cut"].includes(fates[at]));
      const words = late ? behind : wrong;
      this.task.say(this.answers.slice(1).includes(null) ? "Judge every draft first." : words, "wrong");
      return;
    }
    this.lines.forEach((line, at) => (line.dataset.fate = fates[at]));
    this.more.dataset.fate = fates.at(-1) === "accepted" ? "accepted" : "unreached";
    this.task.say(right, "right");
    this.done();
  }
}
