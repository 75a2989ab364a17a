// A benchmark as it runs, and its table. Follows dom.js. `props.value` is a message of
// space_core/views/watching.py as JSON text.
/* global element, props, watch */

const VIEW = "space-bench-view/1";
const LEFT = new Set(["method"]);

class Panel {
  constructor(root) {
    this.root = root;
    root.setAttribute("aria-label", "Benchmark on this machine");
    this.bar = make("div", "bar");
    this.bar.setAttribute("role", "progressbar");
    this.bar.setAttribute("aria-label", "Prompts done");
    this.bar.setAttribute("aria-valuemin", "0");
    this.bar.setAttribute("aria-valuemax", "100");
    this.fill = make("div", "bar-fill");
    this.bar.append(this.fill);
    this.words = make("p", "bench-words");
    this.words.id = "bench-words";
    this.spoken = make("p", "unseen");
    this.spoken.setAttribute("role", "status");
    this.scroll = make("div", "bench-scroll");
    this.scroll.tabIndex = 0;
    this.scroll.setAttribute("role", "region");
    this.scroll.setAttribute("aria-label", "Results of the benchmark");
    this.keys = make("div", "share-keys");
    this.keys.append(this.key("csv", "text/csv"), this.key("json", "application/json"));
    root.append(this.bar, this.words, this.spoken, this.scroll, this.keys);
  }

  key(kind, type) {
    const key = make("button", "wide key", `Download ${kind.toUpperCase()}`);
    key.type = "button";
    key.id = `bench-${kind}`;
    key.addEventListener("click", () => save(`space-benchmark.${kind}`, type, this.view[kind]));
    return key;
  }

  take(view) {
    if (view?.format !== VIEW) return;
    this.view = view;
    this.root.hidden = false;
    doing(this.root, view.state, "bench");
    this.words.textContent = view.words;
    this.spoken.textContent = view.state === "running" ? "" : view.words;
    this.fill.style.transform = `scaleX(${view.share})`;
    this.bar.setAttribute("aria-valuenow", String(Math.round(100 * view.share)));
    this.bar.hidden = view.state === "failed";
    this.scroll.hidden = this.keys.hidden = !view.table;
    this.scroll.replaceChildren(...(view.table ? [this.table(view.table)] : []));
  }

  table([head, ...lines]) {
    const table = make("table", "bench-table");
    const top = make("tr");
    for (const name of head) {
      const cell = make("th", LEFT.has(name) ? "" : "number", name);
      cell.scope = "col";
      top.append(cell);
    }
    table.append(make("thead"), make("tbody"));
    table.tHead.append(top);
    for (const line of lines) {
      const row = make("tr");
      line.forEach((text, at) => {
        const cell = make(at ? "td" : "th", at ? "number" : "", text);
        if (!at) cell.scope = "row";
        row.append(cell);
      });
      table.tBodies[0].append(row);
    }
    return table;
  }
}

const panel = new Panel(element.querySelector(".bench"));
panel.take(read(props.value));
watch("value", () => panel.take(read(props.value)));
