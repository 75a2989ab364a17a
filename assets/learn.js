// The walk through the lessons: which step is open, which are done, and the questions at the end. What
// the steps say is space_core/views/walk.py's, as JSON text in `props.walk`. Follows lessons-call.js.
/* global element, props */

const WALK = "space-walk/1";
const LESSONS = {
  rows: RowsLesson,
  mask: MaskLesson,
  guess: GuessLesson,
  verify: VerifyLesson,
  grid: GridLesson,
  sight: SightLesson,
  keep: KeepLesson,
  train: TrainLesson,
};

class Walk {
  constructor(root, walk) {
    this.root = root;
    this.walk = walk;
    this.built = new Map();
    this.finished = new Set();
    root.setAttribute("aria-label", "How SPACE works, step by step");
    this.stage = make("div", "stage");
    root.replaceChildren(this.rail(), this.stage);
    this.open(0, false);
  }

  rail() {
    const nav = make("nav", "rail");
    nav.setAttribute("aria-label", "Steps");
    const list = make("ol");
    this.keys = this.walk.steps.map((step, at) => {
      const item = make("li");
      const key = make("button", "rail-step");
      key.type = "button";
      key.id = `step-${step.id}`;
      key.append(make("span", "rail-number", String(at + 1)), make("span", "rail-name", step.short));
      key.addEventListener("click", () => this.open(at));
      item.append(key);
      list.append(item);
      return key;
    });
    nav.append(list, make("p", "rail-note", this.walk.made));
    return nav;
  }

  open(at, focus = true) {
    this.at = at;
    if (!this.built.has(at)) this.built.set(at, this.page(at));
    this.stage.replaceChildren(this.built.get(at));
    for (const box of this.stage.querySelectorAll(".snippet.tail")) toEnd(box);
    this.root.dataset.step = this.walk.steps[at].id;
    this.keys.forEach((key, i) => {
      if (i === at) key.setAttribute("aria-current", "step");
      else key.removeAttribute("aria-current");
    });
    if (!focus) return;
    const title = this.stage.querySelector("h2");
    title.focus({ preventScroll: true });
    if (this.root.getBoundingClientRect().top < 0) this.root.scrollIntoView({ block: "start" });
  }

  page(at) {
    const step = this.walk.steps[at];
    const page = make("article", "step");
    const title = make("h2", "step-title", step.title);
    title.tabIndex = -1;
    title.addEventListener("keydown", (event) => this.arrows(event));
    page.append(make("p", "eyebrow", `Step ${at + 1} of ${this.walk.steps.length}`), title);
    for (const words of step.lead) page.append(make("p", "lead", words));
    page.append(new LESSONS[step.id](step, () => this.finish(at)).root);
    if (at === this.walk.steps.length - 1) page.append(this.questions());
    page.append(this.foot(at));
    return page;
  }

  foot(at) {
    const foot = make("footer", "step-foot");
    if (at) foot.append(act(`back-${at}`, "Back", () => this.open(at - 1)));
    const following = this.walk.steps[at + 1];
    if (following) {
      const next = act(`next-${at}`, `Next: ${following.short}`, () => this.open(at + 1));
      next.classList.add("primary");
      foot.append(next);
    }
    return foot;
  }

  arrows(event) {
    const at = this.at + ({ ArrowLeft: -1, ArrowRight: 1 }[event.key] ?? 0);
    if (at === this.at || !this.walk.steps[at]) return;
    event.preventDefault();
    this.open(at);
  }

  finish(at) {
    if (this.finished.has(at)) return;
    this.finished.add(at);
    this.keys[at].classList.add("finished");
    this.keys[at].append(make("span", "unseen", ", done"));
    this.root.dataset.done = this.finished.size;
  }

  // What a reader can answer by now: think first, then open.
  questions() {
    const box = make("section", "questions");
    box.append(make("h3", "", "Can you answer these? Think first, then open."));
    for (const { question, answer } of this.walk.questions) {
      const one = make("details");
      one.append(make("summary", "", question), make("p", "", answer));
      box.append(one);
    }
    return box;
  }
}

const walk = read(props.walk);
const learn = element.querySelector(".learn");
if (walk?.format === WALK) new Walk(learn, walk);
else {
  const missing = "No lessons were recorded: python -m space_core.views.lessons makes them.";
  learn.replaceChildren(make("p", "lead", missing));
}
