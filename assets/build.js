// How a checkpoint was made, and one that is being made. Follows dom.js. `props.value` is a message of
// space_core/views/building.py as JSON text.
/* global element, props, watch */

const BUILD = "space-build/1";
const WIDTH = 320;
const HEIGHT = 96;

class Builder {
  constructor(root) {
    this.root = root;
    root.setAttribute("aria-label", "Training");
    this.words = make("p", "build-words");
    this.words.id = root.dataset.words;
    this.spoken = make("p", "unseen");
    this.spoken.setAttribute("role", "status");
    this.facts = make("dl", "facts");
    this.curves = make("div", "curves");
    root.append(this.words, this.spoken, this.facts, this.curves);
  }

  take(told) {
    if (told?.format !== BUILD) return;
    this.root.hidden = false;
    doing(this.root, told.state, this.root.dataset.words);
    this.words.textContent = told.words;
    if (!["running", "shown"].includes(told.state)) this.spoken.textContent = told.words;
    const facts = told.facts ?? [];
    this.facts.hidden = !facts.length;
    this.facts.replaceChildren(
      ...facts.map(([name, value]) => {
        const pair = make("div");
        pair.append(make("dt", "", name), make("dd", "", value));
        return pair;
      }),
    );
    const series = told.series ?? [];
    this.curves.hidden = !series.length;
    this.curves.replaceChildren(...series.map((each) => this.curve(each)));
  }

  // A small curve with its last value: a look at it must cost the training nothing.
  curve({ name, points }) {
    const figure = make("figure", "curve");
    const [, last] = points[points.length - 1];
    const caption = make("figcaption");
    caption.append(make("span", "", name), make("strong", "", last.toFixed(2)));
    const svg = draw("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", preserveAspectRatio: "none" });
    svg.setAttribute("aria-label", `${name}, now ${last.toFixed(2)}`);
    const [xs, ys] = [0, 1].map((axis) => points.map((point) => point[axis]));
    const scale = (values, value) => {
      const low = Math.min(...values);
      return (value - low) / (Math.max(...values) - low || 1);
    };
    const place = ([x, y]) =>
      `${(scale(xs, x) * WIDTH).toFixed(1)},${(HEIGHT - 4 - scale(ys, y) * (HEIGHT - 8)).toFixed(1)}`;
    svg.append(draw("polyline", { points: points.map(place).join(" ") }));
    figure.append(caption, svg);
    return figure;
  }
}

const builder = new Builder(element.querySelector(".build"));
builder.take(read(props.value));
watch("value", () => builder.take(read(props.value)));
