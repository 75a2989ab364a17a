// Inside a call: its rows as a grid, what each predicted, and who sees whom. Follows dom.js and call.js.
//
// The arena says which call to open ("space:open") and is told which one is ("space:opened"). What is
// in a call comes from space_core/views/inspect.py: with a recording all at once, for the visitor's
// own race by asking once for each call that is opened; `props.value` is the answer as JSON text.
/* global element, props, trigger, watch */

const CALL = "space-call/1";

class Inspector {
  constructor(root) {
    this.root = root;
    this.answers = new Map();
    this.asked = new Set();
    this.detail = null;
    root.setAttribute("aria-label", "Inside a call");
    root.append(this.head(), this.note(), (this.body = make("div", "inside")));
    root.addEventListener("keydown", (event) => this.key(event));
    document.addEventListener("space:open", (event) => this.open(event.detail));
    document.addEventListener("space:close", () => this.forget());
  }

  head() {
    const head = make("header", "inside-head");
    this.title = make("h2", "inside-title");
    this.title.tabIndex = -1;
    this.previous = button("call-back", "The call before", "‹", () => this.move(-1));
    this.next = button("call-forth", "The next call", "›", () => this.move(1));
    const close = button("call-close", "Close (Escape)", "×", () => this.close());
    head.append(this.title, this.previous, this.next, close);
    return head;
  }

  note() {
    this.story = make("p", "story");
    this.story.setAttribute("role", "status");
    return this.story;
  }

  // ------------------------------------------------------------ which call

  open(detail) {
    if (this.root.hidden) this.opener = document.activeElement;
    this.detail = detail;
    this.root.hidden = false;
    this.paint();
    this.title.focus({ preventScroll: true });
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.root.scrollIntoView({ block: "nearest", behavior: calm ? "auto" : "smooth" });
  }

  move(by) {
    const call = this.detail.call + by;
    if (call < 1 || call > this.detail.calls) return;
    this.detail = { ...this.detail, call };
    this.paint();
  }

  close() {
    this.root.hidden = true;
    this.tell(0);
    this.opener?.focus({ preventScroll: true });
  }

  // Another race: what was asked is no longer true.
  forget() {
    this.answers.clear();
    this.asked.clear();
    if (!this.root.hidden) {
      this.root.hidden = true;
      this.tell(0);
    }
  }

  tell(call) {
    const detail = { lane: this.detail.lane, call };
    document.dispatchEvent(new CustomEvent("space:opened", { detail }));
  }

  key(event) {
    if (event.key === "Escape") this.close();
    else if (event.target === this.title && event.key === "ArrowLeft") this.move(-1);
    else if (event.target === this.title && event.key === "ArrowRight") this.move(1);
    else return;
    event.preventDefault();
  }

  // ------------------------------------------------------------ what is in it

  take(answer) {
    if (answer?.format !== CALL) return;
    const { lane, n } = answer.call ?? answer;
    this.answers.set(`${answer.race} ${lane} ${n}`, answer);
    if (!this.root.hidden && this.detail) this.paint();
  }

  // The answer for the open call: recorded, had before, or null after having asked for it.
  answer() {
    const { race, lane, call, recording } = this.detail;
    if (recording) {
      const told = recording.opened[lane][call - 1];
      return { reasons: recording.reasons, call: { ...told, structure: recording.structures[told.layout] } };
    }
    const key = `${race} ${lane} ${call}`;
    if (!this.asked.has(key)) {
      this.asked.add(key);
      trigger("ask", { race, lane, call });
    }
    return this.answers.get(key) ?? null;
  }

  paint() {
    const { lane, name, call, calls, k } = this.detail;
    const answer = this.answer();
    this.title.textContent = `Inside call ${call} of ${calls}, ${lane === "space" ? name : name.toLowerCase()}`;
    this.previous.disabled = call <= 1;
    this.next.disabled = call >= calls;
    this.tell(call);
    this.root.dataset.call = call;
    this.root.toggleAttribute("data-waiting", !answer);
    if (!answer?.call) {
      this.story.textContent = answer?.error ?? "Asking the model for this call once more …";
      this.body.replaceChildren();
      return;
    }
    this.story.textContent = answer.call.story.join(" ");
    const map = new SightMap(answer.call, answer.reasons);
    const grid = new CallGrid(answer.call, lane === "space" ? k : 0, (row) => map.light(row));
    // Up to the grid of k = 5 both fit side by side.
    this.body.classList.toggle("stacked", answer.call.structure.rows.length > 36);
    this.body.replaceChildren(grid.root, map.root);
  }
}

const inspector = new Inspector(element.querySelector(".inspector"));
inspector.take(read(props.value));
watch("value", () => inspector.take(read(props.value)));
