// Where a race stands, and how to move in it: a position is a number of calls, the same for all
// lanes, or seconds on the fair clock. Everything here happens in the browser.

const STRETCH = 10; // seconds
const SPEEDS = [
  { id: "calls", label: "1 call/s", unit: "calls", rate: 1, title: "Every lane makes one call a second" },
  { id: "stretched", label: `in ${STRETCH} s`, unit: "seconds", title: `The whole race in ${STRETCH} seconds` },
  { id: "quarter", label: "×¼", unit: "seconds", rate: 1 / 4, title: "A quarter of the true speed" },
  { id: "half", label: "×½", unit: "seconds", rate: 1 / 2, title: "Half the true speed" },
  { id: "true", label: "×1", unit: "seconds", rate: 1, title: "True speed, each lane by its own clock" },
  { id: "double", label: "×2", unit: "seconds", rate: 2, title: "Twice the true speed" },
];
const ICONS = {
  play: "M4 2.5 13 8l-9 5.5z",
  pause: "M3.5 3h3v10h-3zM9.5 3h3v10h-3z",
  back: "M12 3v10L5 8zM3 3h1.6v10H3z",
  forth: "M4 3v10l7-5zM11.4 3H13v10h-1.6z",
};
const LONG_ENOUGH = 4; // seconds that a race must last to be replayed at true speed at first

function icon(name) {
  const picture = draw("svg", { viewBox: "0 0 16 16", width: 14, height: 14, "aria-hidden": "true" });
  picture.append(draw("path", { d: ICONS[name] }));
  return picture;
}

// The lanes' calls as a way to go along; positions are plain numbers in one of two units.
class Timeline {
  constructor(lanes) {
    this.lanes = [...lanes];
    this.calls = Math.max(0, ...this.lanes.map((lane) => lane.known));
    this.seconds = Math.max(0, ...this.lanes.map((lane) => lane.sums[lane.known].seconds));
  }

  length(unit) {
    return unit === "calls" ? this.calls : this.seconds;
  }

  shown(lane, unit, at) {
    return unit === "calls" ? Math.min(Math.floor(at), lane.known) : lane.callsAt(at);
  }

  // What the clock of a lane says: it runs on inside a call, and stands still behind the last one.
  clock(lane, unit, at) {
    if (unit === "calls") return lane.sums[this.shown(lane, unit, at)].seconds;
    return Math.min(at, lane.sums[lane.known].seconds);
  }

  // The next moment at which a call of any lane is over; back: the last one before.
  step(unit, at, direction) {
    if (unit === "calls") {
      const calls = direction > 0 ? Math.floor(at) + 1 : Math.ceil(at) - 1;
      return Math.max(0, Math.min(this.calls, calls));
    }
    const moments = this.lanes.flatMap((lane) => lane.sums.map((sum) => sum.seconds));
    const beyond = moments.filter((moment) => (direction > 0 ? moment > at + 1e-9 : moment < at - 1e-9));
    if (!beyond.length) return direction > 0 ? this.seconds : 0;
    return direction > 0 ? Math.min(...beyond) : Math.max(...beyond);
  }

  // The same place in the other unit, as SPACE's lane sees it; both ends stay ends.
  convert(at, from, to) {
    if (from === to) return at;
    if (at >= this.length(from)) return this.length(to);
    const [space] = this.lanes;
    const calls = this.shown(space, from, at);
    return to === "calls" ? calls : space.sums[calls].seconds;
  }
}

// The controls. `onMove` paints the position that `at` and `unit` tell.
class Replay {
  constructor(onMove) {
    this.onMove = onMove;
    this.timeline = null;
    this.at = 0;
    this.speed = SPEEDS[0];
    this.chosen = false;
    this.playing = false;
    this.frame = 0;
    this.root = make("div", "replay");
    this.root.setAttribute("role", "group");
    this.root.setAttribute("aria-label", "Replay");
    this.source = make("p", "source");
    this.source.id = "source";
    this.play = button("replay-play", "Play (space)", "", () => this.toggle());
    this.back = button("replay-back", "One call back (left arrow)", "", () => this.step(-1));
    this.forth = button("replay-forth", "One call on (right arrow)", "", () => this.step(1));
    this.back.append(icon("back"));
    this.forth.append(icon("forth"));
    this.keys = make("div", "keys");
    this.keys.append(this.back, this.play, this.forth);
    this.scrubber = make("input", "scrubber");
    this.scrubber.type = "range";
    this.scrubber.id = "scrubber";
    this.scrubber.min = 0;
    this.scrubber.setAttribute("aria-label", "Position in the race");
    this.scrubber.addEventListener("input", () => this.go(Number(this.scrubber.value)));
    this.root.append(this.source, this.keys, this.scrubber, this.speeds());
    this.sleep();
  }

  speeds() {
    const set = make("fieldset", "speeds");
    set.append(make("legend", "unseen", "Speed"));
    this.radios = SPEEDS.map((speed) => {
      const label = make("label");
      const radio = make("input");
      radio.type = "radio";
      radio.name = "replay-speed";
      radio.value = speed.id;
      radio.addEventListener("change", () => this.choose(speed, true));
      label.title = speed.title;
      label.append(radio, make("span", "", speed.label));
      set.append(label);
      return radio;
    });
    return set;
  }

  get unit() {
    return this.speed.unit;
  }

  get asleep() {
    return this.timeline === null;
  }

  get ended() {
    return this.asleep || this.at >= this.timeline.length(this.unit);
  }

  // Nothing to replay, or a live race: the controls rest.
  sleep() {
    this.pause();
    this.timeline = null;
    this.enable(false);
  }

  enable(awake) {
    this.root.toggleAttribute("data-asleep", !awake);
    const controls = [this.play, this.back, this.forth, this.scrubber, ...this.radios];
    for (const control of controls) control.disabled = !awake;
  }

  // A finished race: wake at its end.
  wake(lanes) {
    this.timeline = new Timeline(lanes);
    this.enable(true);
    this.at = Infinity;
    this.choose(this.chosen ? this.speed : this.fitting(), false);
  }

  // True speed where that leaves time to look; call by call for those who want less motion.
  fitting() {
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    const id = calm ? "calls" : this.timeline.seconds < LONG_ENOUGH ? "stretched" : "true";
    return SPEEDS.find((speed) => speed.id === id);
  }

  // Units that pass in a second.
  get rate() {
    return this.speed.rate ?? this.timeline.seconds / STRETCH;
  }

  choose(speed, byHand) {
    const at = this.timeline.convert(this.at, this.unit, speed.unit);
    this.chosen ||= byHand;
    this.speed = speed;
    this.radios.forEach((radio) => (radio.checked = radio.value === speed.id));
    this.scrubber.step = speed.unit === "calls" ? 1 : "any";
    this.scrubber.max = this.timeline.length(speed.unit);
    this.go(at);
  }

  // Where so many calls of SPACE are over.
  goToCall(call) {
    this.go(this.timeline.convert(call, "calls", this.unit));
  }

  go(at) {
    this.at = Math.max(0, Math.min(at, this.timeline.length(this.unit)));
    this.scrubber.value = this.at;
    this.scrubber.style.setProperty("--done", this.at / (this.timeline.length(this.unit) || 1));
    this.onMove();
  }

  step(direction) {
    if (this.asleep) return;
    this.pause();
    this.go(this.timeline.step(this.unit, this.at, direction));
  }

  toggle() {
    if (this.asleep) return;
    if (this.playing) return this.pause();
    if (this.ended) this.go(0);
    this.playing = true;
    this.dress();
    this.before = performance.now();
    this.frame = requestAnimationFrame((now) => this.tick(now));
  }

  pause() {
    cancelAnimationFrame(this.frame);
    this.playing = false;
    this.dress();
  }

  dress() {
    this.play.replaceChildren(icon(this.playing ? "pause" : "play"));
    const label = this.playing ? "Pause (space)" : "Play (space)";
    this.play.title = label;
    this.play.setAttribute("aria-label", label);
  }

  tick(now) {
    const passed = Math.min(0.25, Math.max(0, now - this.before) / 1000); // a tab that slept does not jump
    this.before = now;
    this.go(this.at + passed * this.rate);
    if (this.ended) this.pause();
    else this.frame = requestAnimationFrame((next) => this.tick(next));
  }

  // Keys for the whole arena; true where one meant something here.
  key(event) {
    if (this.asleep || event.altKey || event.ctrlKey || event.metaKey) return false;
    const target = event.target;
    if (target.matches("input[type=radio]")) return false;
    const direction = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (direction) this.step(direction);
    else if (event.key === " " && !target.matches("button")) event.repeat || this.toggle();
    else if (event.key === "Home" || event.key === "End") {
      this.pause();
      this.go(event.key === "Home" ? 0 : this.timeline.length(this.unit));
    } else return false;
    return true;
  }

  say(words) {
    this.scrubber.setAttribute("aria-valuetext", words);
  }
}
