// Pure functions of the page's scripts: node --test tests/js
// The scripts are bodies of functions, not modules: they are read, and what they declare is handed out.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import test from "node:test";

const root = new URL("../../assets/", import.meta.url);

function load(files, names) {
  const source = files.map((file) => readFileSync(new URL(file, root), "utf-8")).join("\n");
  return new Function(`${source}\nreturn { ${names.join(", ")} };`)();
}

const { counted, visible, quoted, read } = load(["dom.js"], ["counted", "visible", "quoted", "read"]);
const { percent, shown } = load(["dom.js", "call.js"], ["percent", "shown"]);
const { fill } = load(["dom.js", "call.js", "lessons.js"], ["fill"]);
const { Timeline } = load(["dom.js", "replay.js"], ["Timeline"]);

test("only a clock of Gradio's waits for its next picture", () => {
  globalThis.window = { requestAnimationFrame: () => 0 };
  const { patient } = load(["frames.js"], ["patient"]);
  delete globalThis.window;
  const asked = [];
  const waits = [];
  const ask = patient(
    (draws) => asked.push(draws),
    (later, wait) => waits.push([later, wait]),
  );
  const paints = () => 1e3;
  const [F, w, de, W, ze] = [() => 0, () => 0, 0, false, () => 0];
  const clock = () => {
    F((performance.now() - w(de)) / 1e3), W && ze();
  };
  ask(paints);
  assert.deepEqual(asked, [paints]);
  ask(clock);
  assert.deepEqual(asked, [paints]);
  assert.equal(waits[0][1], 250);
  waits[0][0]();
  assert.deepEqual(asked, [paints, clock]);
});

test("a count has its noun", () => {
  assert.equal(counted(1, "call"), "1 call");
  assert.equal(counted(0, "call"), "0 calls");
  assert.equal(counted(12, "token"), "12 tokens");
});

test("breaks, tabs and blanks at the ends of a piece can be seen", () => {
  assert.equal(visible("a b"), "a b");
  assert.equal(visible("  a "), "␣␣a␣");
  assert.equal(visible("        x"), "␣×8x");
  assert.equal(visible("\n\t"), "↵⇥");
  assert.equal(visible("\n    x"), "↵    x");
  assert.equal(quoted(" a\n"), "“ a↵”");
  assert.equal(shown(""), "◌");
  assert.equal(shown(" "), "␣");
});

test("markup in a piece stays letters", () => {
  const piece = "<img src=x onerror=alert(1)> ${1} {{x}}";
  assert.equal(visible(piece), piece);
  assert.equal(fill("{a}", { a: piece }), piece);
});

test("no JSON is null and no error", () => {
  assert.equal(read(""), null);
  assert.equal(read(undefined), null);
  assert.equal(read("{"), null);
  assert.deepEqual(read('{"a":1}'), { a: 1 });
});

test("a probability as a share", () => {
  assert.equal(percent(0), "<1%");
  assert.equal(percent(0.0049), "<1%");
  assert.equal(percent(0.005), "1%");
  assert.equal(percent(0.476), "48%");
  assert.equal(percent(1), "100%");
});

test("a sentence is filled once, and what has no name stays", () => {
  assert.equal(fill("{row} sees {column}", { row: "{column}", column: "x" }), "{column} sees x");
  assert.equal(fill("{row} {other}", { row: "a" }), "a {other}");
});

// A lane as the timeline sees it: what has been written, and when, after each call.
function lane(...seconds) {
  let time = 0;
  const sums = [{ tokens: 0, seconds: 0 }];
  for (const each of seconds) sums.push({ tokens: sums.length, seconds: (time += each) });
  const callsAt = (at) => sums.filter((sum) => sum.seconds <= at + 1e-9).length - 1;
  return { known: seconds.length, sums, callsAt };
}

const [space, vanilla] = [lane(2, 2), lane(1, 1, 1)];
const timeline = new Timeline([space, vanilla]);

test("a race is as long as its longest lane, by either clock", () => {
  assert.equal(timeline.length("calls"), 3);
  assert.equal(timeline.length("seconds"), 4);
  assert.equal(new Timeline([]).length("calls"), 0);
});

test("a place shows the calls that were over there", () => {
  assert.equal(timeline.shown(space, "seconds", 1.9), 0);
  assert.equal(timeline.shown(space, "seconds", 2), 1);
  assert.equal(timeline.shown(vanilla, "seconds", 9), 3);
  assert.equal(timeline.shown(space, "calls", 2.7), 2);
  assert.equal(timeline.shown(space, "calls", 3), 2, "its last call stays");
});

test("a lane's clock runs on inside a call and stands still behind the last", () => {
  assert.equal(timeline.clock(space, "seconds", 1.5), 1.5);
  assert.equal(timeline.clock(vanilla, "seconds", 3.5), 3);
  assert.equal(timeline.clock(space, "calls", 1), 2);
});

test("steps go from call to call, of any lane by seconds, and stay inside", () => {
  const walk = (unit, from, direction) => {
    const seen = [];
    for (let at = from, next; (next = timeline.step(unit, at, direction)) !== at; at = next) seen.push(next);
    return seen;
  };
  assert.deepEqual(walk("seconds", 0, 1), [1, 2, 3, 4]);
  assert.deepEqual(walk("seconds", 4, -1), [3, 2, 1, 0]);
  assert.deepEqual(walk("calls", 0, 1), [1, 2, 3]);
  assert.equal(timeline.step("calls", 1.5, -1), 1);
  assert.equal(timeline.step("calls", 1.5, 1), 2);
});

test("another clock keeps SPACE's place, and ends stay ends", () => {
  assert.equal(timeline.convert(1, "calls", "seconds"), 2);
  assert.equal(timeline.convert(2.5, "seconds", "calls"), 1);
  assert.equal(timeline.convert(4, "seconds", "calls"), 3);
  assert.equal(timeline.convert(3, "calls", "seconds"), 4);
  assert.equal(timeline.convert(1.25, "seconds", "seconds"), 1.25);
});
