// The arena: lanes, replay controls, chart and verdict. Everything on it is painted from the calls it
// holds and a position in them, whether they come live, were recorded, or are replayed.
//
// `props.value` is one frame of space_core/views/frames.py, `props.recording` a recorded race of
// space_core/views/recording.py, both as JSON text.
/* global element, props, trigger, watch */

const FORMAT = "space-frames/1";
const RECORDING = "space-race/1";
const MAIN = ["space", "vanilla"];
const NOTES = {
  idle: "Press Race: one model continues your prompt twice, plainly and with SPACE.",
  waiting: "Waiting for the model to load. The race starts by itself.",
  running: "Racing on one fair clock: a lane pays for the seconds of its own calls only.",
  stopped: "Stopped before the first call.",
  recorded: "A recorded race: play it, click a token to look inside, or press Race.",
};
const LEGEND = [
  ["accepted", "accepted", "a guess that stood"],
  ["copied", "copied", "one found in the text"],
  ["corrected", "corrected", "in place of a wrong guess"],
  ["bonus", "bonus", "one more, when all stood"],
  ["own", "own", "no guess was tried"],
  ["draft", "draft", "the next call checks it"],
];

class Arena {
  constructor(root) {
    this.root = root;
    this.race = null;
    this.recording = null;
    this.over = false;
    this.asked = 0;
    this.later = 0; // the painting that waits for the browser's next picture
    this.goal = null; // the call that a link asks for, and of which prompt
    this.sight = null; // who waits for the figures' place
    this.lanes = new Map();
    this.chart = new Chart((lane, call) => this.open(lane, call));
    this.replay = new Replay(() => this.paint());
    this.row = make("div", "lanes");
    this.show(MAIN);

    const foot = make("div", "foot");
    foot.append(this.judgement(), this.chart.root);
    this.notice = make("p", "notice");
    this.notice.id = "notice";
    this.notice.setAttribute("role", "status");
    this.notice.hidden = true;
    root.replaceChildren(this.notice, this.legend(), this.row, this.replay.root, foot);
    root.addEventListener("keydown", (event) => this.key(event));
    document.addEventListener("space:opened", (event) => this.opened(event.detail));
    this.idle("idle");
  }

  legend() {
    const legend = make("ul", "legend");
    legend.setAttribute("aria-label", "What the marks mean");
    for (const [mark, name, meaning] of LEGEND) {
      const item = make("li");
      item.append(this.filter(mark, name), make("span", "meaning", meaning));
      legend.append(item);
    }
    return legend;
  }

  // A mark of the legend shows or hides its like in lanes and chart.
  filter(mark, name) {
    const key = make("button", `tok ${mark}`, name);
    key.type = "button";
    key.title = `Show or hide the mark “${name}”`;
    key.setAttribute("aria-pressed", "true");
    key.addEventListener("click", () => {
      const hidden = this.root.classList.toggle(`without-${mark}`);
      key.setAttribute("aria-pressed", String(!hidden));
    });
    return key;
  }

  judgement() {
    this.verdict = make("div", "verdict");
    this.note = make("p", "note");
    this.headline = make("strong", "headline");
    // The arena's only live region: silent while tokens stream, one sentence when the race is over.
    this.sentence = make("p", "sentence");
    this.sentence.id = "verdict";
    this.sentence.setAttribute("role", "status");
    this.sentence.setAttribute("aria-live", "polite");
    this.recorded = make("p", "sentence");
    this.recorded.id = "recorded-verdict";
    this.badge = make("span", "badge");
    this.badge.id = "badge";
    this.verdict.append(this.note, this.headline, this.badge, this.sentence, this.recorded);
    return this.verdict;
  }

  // Have these lanes on the page, in this order; a lane that stays keeps its element.
  show(ids) {
    const kept = this.lanes;
    const fresh = (id) => new Lane(id, (lane, call) => this.open(lane, call));
    this.lanes = new Map(ids.map((id) => [id, kept.get(id) ?? fresh(id)]));
    if ([...kept.keys()].join() === ids.join()) return;
    this.row.dataset.lanes = String(ids.length);
    this.row.replaceChildren(...[...this.lanes.values()].map((lane) => lane.root));
  }

  idle(state) {
    doing(this.root, state, "arena");
    this.resting = NOTES[state] ?? "";
    this.note.textContent = this.resting;
    this.headline.textContent = "";
    this.badge.textContent = "";
    this.badge.hidden = true;
    this.verdict.dataset.tone = "even";
    this.sentence.textContent = "";
    this.recorded.textContent = "";
    delete this.verdict.dataset.mid;
  }

  // ------------------------------------------------------------ what comes in

  take(frame) {
    if (frame?.format !== FORMAT) return;
    if (frame.link) return this.follow(frame.link);
    if (!frame.race) return this.without(frame.state);
    const ended = frame.race === this.race && this.over;
    if (ended && frame.state === "running") return; // it was on its way when somebody pressed Stop
    if (frame.race !== this.race) {
      if (frame.kind !== "snapshot") return this.askAgain();
      this.recording = null;
      this.begin(frame, "live");
      this.notice.hidden = true;
    }
    const whole = this.fold(frame);
    doing(this.root, frame.state, "arena");
    if (frame.verdict) this.judge(frame.verdict, this.sentence);
    if (this.over && whole && this.replay.asleep) this.settle();
    else if (this.over) this.paint();
    else this.later ||= requestAnimationFrame(() => this.paint()); // frames that come at once are painted once
  }

  // A race is over, or came whole from a file: it can be replayed.
  settle() {
    this.illustrate();
    const { source, model, device, dtype, prompt } = this.about;
    if (source || props.offline) {
      this.wake(source ? "file" : "replay", `${model} on ${device}, ${dtype}`);
      if (!props.offline) this.replay.play.focus(); // the field that opened it is gone
      return;
    }
    this.wake("your race");
    if (this.goal?.prompt === prompt) this.replay.goToCall(this.goal.step);
    this.goal = null;
  }

  // Have the figures below follow: at once where there are some, for the first time when their place is in sight.
  // Before, the browser has to read plotly, for which it stands still a second or two on a slow core.
  illustrate() {
    const place = this.unsight();
    if (!place || props.offline) return;
    const ask = () => trigger("illustrate", {});
    if (place.querySelector(":scope > .block")) return ask(); // drawn anew, or hidden where there is nothing to draw
    if (!MAIN.every((id) => this.lanes.get(id).known)) return;
    place.dataset.due = "";
    this.sight = new IntersectionObserver(
      (seen) => {
        if (!seen.some((entry) => entry.isIntersecting)) return;
        this.sight.disconnect();
        ask();
      },
      { rootMargin: "0px 0px -64px" },
    );
    this.sight.observe(place);
  }

  // No figures are waited for any more; where they would stand.
  unsight() {
    this.sight?.disconnect();
    const place = document.getElementById("figures");
    if (place) delete place.dataset.due;
    return place;
  }

  // A link filled in the page's fields; where it names a call, the replay goes there after the race.
  follow({ note, step, prompt }) {
    this.notice.textContent = note;
    this.notice.hidden = !note;
    this.goal = step ? { step, prompt } : null;
  }

  // No race yet: what is there stays, and can be replayed meanwhile.
  without(state) {
    if (this.recording) {
      doing(this.root, state, "arena");
      this.resting = NOTES[state] ?? "";
      return this.paint();
    }
    this.show(MAIN);
    for (const lane of this.lanes.values()) lane.reset(null);
    this.chart.reset();
    this.race = null;
    this.over = false;
    this.replay.sleep();
    this.source("");
    this.idle(state);
    this.illustrate();
  }

  // A recorded race, at its end.
  record(recording) {
    if (recording?.format !== RECORDING || recording.frame?.format !== FORMAT) return;
    this.recording = recording;
    this.begin(recording.frame, "recorded");
    this.fold(recording.frame);
    this.idle("recorded");
    this.judge(recording.frame.verdict, this.recorded);
    this.resting = NOTES.recorded;
    const { model, device, date, processor } = recording.made;
    const style = { day: "numeric", month: "short", year: "numeric", timeZone: "UTC" };
    const when = new Date(`${date}T00:00:00Z`).toLocaleDateString("en-GB", style);
    const title = `Recorded with ${model} on ${processor || device}, ${when}`;
    this.wake("recording", `${model} on ${device}, ${when}`, title);
  }

  begin(frame, state) {
    this.race = frame.race;
    this.over = false;
    this.unsight();
    document.dispatchEvent(new CustomEvent("space:close"));
    this.replay.sleep();
    this.show(Object.keys(frame.lanes));
    for (const lane of this.lanes.values()) lane.reset(frame.about);
    this.chart.reset(frame.about.k);
    this.about = frame.about;
    this.idle("running");
    this.source(state);
    this.root.dataset.race = frame.race;
  }

  fold(frame) {
    for (const call of frame.calls) this.lanes.get(call.lane)?.keep(call);
    this.over = frame.state !== "running";
    let whole = true;
    for (const [id, lane] of this.lanes) {
      lane.last = frame.lanes[id] ?? lane.last;
      whole &&= lane.known >= lane.last.calls;
    }
    if (!whole) this.askAgain();
    return whole;
  }

  wake(kind, words, title) {
    this.source(kind, words, title);
    this.replay.wake(this.lanes.values());
    for (const lane of this.lanes.values()) lane.reach();
  }

  source(kind, words = "", title = "") {
    this.replay.source.replaceChildren();
    if (kind) this.replay.source.append(make("span", "tag", kind), make("span", "made", words));
    this.replay.source.dataset.kind = kind;
    this.replay.source.title = title;
  }

  // ------------------------------------------------------------ what is seen

  // The arena at its position: that of the replay, or while a race runs, all there is.
  paint() {
    cancelAnimationFrame(this.later);
    this.later = 0;
    const { timeline, unit, at, ended } = this.replay;
    for (const lane of this.lanes.values()) {
      const calls = timeline ? timeline.shown(lane, unit, at) : lane.known;
      const last = calls === lane.known && (this.over || lane.last.stop !== null);
      lane.show(calls, last, timeline ? timeline.clock(lane, unit, at) : undefined);
    }
    const space = this.lanes.get("space");
    this.chart.show(space.calls.slice(0, space.known), space.shown);
    this.root.dataset.call = this.over && !ended ? space.shown : "";
    const mid = Boolean(timeline) && !ended;
    this.verdict.toggleAttribute("data-mid", mid);
    put(this.note, mid ? this.midway() : this.resting);
    if (timeline) this.replay.say(mid ? this.midway() : "the end of the race");
    for (const lane of this.lanes.values()) lane.follow(); // at last: it makes the browser lay out what was written
  }

  // How the race stands in the middle of a replay.
  midway() {
    const [space, vanilla] = MAIN.map((id) => this.lanes.get(id));
    const tell = (lane) => {
      const { tokens } = lane.sums[lane.shown];
      const name = lane.id === "space" ? lane.name : lane.name.toLowerCase();
      return `${name} ${counted(tokens, "token")} in ${counted(lane.shown, "call")}`;
    };
    const ahead = space.sums[space.shown].tokens - vanilla.sums[vanilla.shown].tokens;
    const lead = ahead ? `${counted(Math.abs(ahead), "token")} ${ahead > 0 ? "ahead" : "behind"}` : "level";
    return `${tell(space)}, ${tell(vanilla)}: ${lead}.`;
  }

  judge(verdict, place) {
    this.resting = "";
    this.verdict.dataset.tone = verdict.tone;
    this.headline.textContent = verdict.headline;
    this.badge.textContent = verdict.badge;
    this.badge.hidden = false;
    this.badge.dataset.identical = String(verdict.identical);
    if (place.textContent !== verdict.sentence) place.textContent = verdict.sentence;
  }

  // ------------------------------------------------------------ what the visitor does

  key(event) {
    const here = event.key === "Enter" && event.target === this.replay.scrubber;
    if (here) this.open("space", this.lanes.get("space").shown);
    else if (!this.replay.key(event)) return;
    event.preventDefault();
  }

  // Have a call opened below the lanes, once the race is over.
  open(lane, call) {
    if (!this.over || !call || props.offline) return;
    const detail = {
      race: this.race,
      lane,
      name: this.lanes.get(lane).name,
      call,
      calls: this.lanes.get(lane).known,
      k: this.about.k,
      recording: this.recording,
    };
    document.dispatchEvent(new CustomEvent("space:open", { detail }));
  }

  opened({ lane, call }) {
    for (const [id, each] of this.lanes) {
      each.opened = id === lane ? call : Infinity;
      each.mark("open", each.opened);
    }
    this.chart.open(lane === "space" ? call : 0);
  }

  // A frame went missing (frames may be merged on their way): have the whole race sent once more.
  askAgain() {
    const now = performance.now();
    if (now - this.asked < 500) return;
    this.asked = now;
    trigger("resend", {});
  }
}

const arena = new Arena(element.querySelector(".arena"));
arena.record(read(props.recording));
arena.take(read(props.value));
watch("value", () => arena.take(read(props.value)));
