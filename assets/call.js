// Drawings of one call, for the inspector and the lessons: its rows as a grid, and who sees whom. A call
// is what space_core/views/inspect.py tells of it. Follows dom.js.

const FATES = {
  newest: "",
  accepted: "stands",
  rejected: "falls",
  unreached: "not reached",
  cut: "behind the end",
};
const LOOK = {
  grid: "Down the left the newest token and its drafts; ✓ says that the row above predicts the same token. On each line a group of masks, empty places that guess what follows if this draft is the last to stand: the outlined ones were used.",
  unused:
    "Down the left the newest token and its drafts; ✓ says that the row above predicts the same token. The next call took no guess of masks from here, so none is outlined.",
  undrafted: "The newest token alone: no draft was there to be checked.",
  pruned: "Hatched places of the full grid were not fed: the planner found them not worth their time here, or the budget ends before them.",
  bare: "So no mask was fed here. To look into whole grids, race with the paper’s grid (More settings).",
  first: "The masks behind the prompt’s last token ask what stands one place further on, two places, and so on. What they guess are drafts: the next call checks them.",
  plain: "With every call all weights of the model travel through the machine, here for a single row.",
  cells: "Point at a cell, or walk with the arrow keys: it says why its row may or may not see its column.",
  checked: "A lane of transformers: its drafts came from elsewhere and are checked as SPACE checks its own. There are no masks, so this call guesses nothing for the next one.",
  chain: "The triangle of plain decoding: each draft sees all that stands before it, and nothing behind. So checking gives what plain decoding gives.",
  alone: "Plain decoding has one row, which sees all that stands before it.",
  map: "The blocks on the diagonal are the groups: no group sees another, and no real row sees a mask. So checking gives what plain decoding gives.",
};

// ---------------------------------------------------------------- the rows

// The chain of real rows down the left, and behind each the masks that assume it is the last to stand.
class CallGrid {
  constructor(call, k, onRow) {
    this.call = call;
    this.k = call.structure.masks.reduce((most, masks) => Math.max(most, masks), k);
    this.root = make("figure", "call-grid");
    const { rows } = call.structure;
    const grid = call.cached && k ? `, of the full grid’s ${(k + 1) ** 2}` : "";
    const caption = make("figcaption", "", `The ${counted(rows.length, "row")} of this call${grid}`);
    const table = make("div", "grid-table");
    table.setAttribute("role", "table");
    table.setAttribute("aria-label", "Rows of the call");
    table.style.setProperty("--k", this.k || 1);
    table.append(this.heading());
    const first = !call.cached || !this.k; // SPACE's first call has no drafts by its nature
    const lines = Math.max(first ? 1 : this.k + 1, call.chain.length);
    for (let at = 0; at < lines; at += 1) table.append(this.line(at));
    table.addEventListener("pointerover", (event) => {
      const place = event.target.closest("[data-row]");
      onRow(place ? Number(place.dataset.row) : null);
    });
    table.addEventListener("pointerleave", () => onRow(null));
    const scroll = make("div", "scroll");
    scroll.tabIndex = 0;
    scroll.setAttribute("role", "group");
    scroll.setAttribute("aria-label", "Rows of the call, scrolls sideways");
    scroll.append(table);
    this.root.append(caption, scroll, make("p", "look", this.look()));
  }

  look() {
    if (!this.k) return this.call.chain.length > 1 ? LOOK.checked : LOOK.plain;
    if (!this.call.cached) return LOOK.first;
    const { chain, next, structure } = this.call;
    const words = [next === "masks" ? LOOK.grid : chain.length > 1 ? LOOK.unused : LOOK.undrafted];
    if (structure.rows.length < (this.k + 1) ** 2) words.push(LOOK.pruned);
    if (!structure.masks.some(Boolean)) words.push(LOOK.bare);
    return words.join(" ");
  }

  heading() {
    const head = make("div", "grid-line grid-head");
    head.setAttribute("role", "row");
    head.append(this.headed("token, and what follows it"));
    const masks = make("div", "group");
    masks.setAttribute("role", "presentation");
    for (let slot = 1; slot <= this.k; slot += 1) masks.append(this.headed(`mask ${slot}`));
    head.append(masks);
    return head;
  }

  headed(text) {
    const cell = make("span", "", text);
    cell.setAttribute("role", "columnheader");
    return cell;
  }

  line(at) {
    const { chain, group, structure } = this.call;
    const line = make("div", "grid-line");
    line.setAttribute("role", "row");
    line.append(at < chain.length ? this.real(at) : this.pruned(`draft ${at} was not fed`));
    const masks = make("div", "group");
    masks.setAttribute("role", "presentation");
    masks.dataset.group = at;
    if (group === at) masks.classList.add("chosen");
    for (let slot = 1; slot <= this.k; slot += 1) {
      const fed = slot <= (structure.masks[at] ?? 0);
      masks.append(fed ? this.mask(at, slot) : this.pruned(`mask ${slot} of group ${at} was not fed`));
    }
    line.classList.toggle("bare", at >= chain.length);
    line.append(masks);
    return line;
  }

  // A real row: its token, whether it stands, and what the model would write behind it.
  real(at) {
    const { chain, fates } = this.call;
    const place = this.place(at, `real ${fates[at]}`);
    const kind = { accepted: "b", newest: "b", rejected: "s" }[fates[at]] ?? "span"; // struck out if looked at
    const token = make(kind, "row-token", shown(chain[at]));
    token.title = quoted(chain[at]);
    place.prepend(token);
    token.after(make("span", "fate", FATES[fates[at]]));
    return place;
  }

  mask(group, slot) {
    const row = this.call.structure.rows.findIndex((each) => each.at === group && each.slot === slot);
    return this.place(row, this.call.chosen.includes(row) ? "mask taken" : "mask");
  }

  // What all fed rows have: position, and the likeliest tokens behind it.
  place(row, className) {
    const { name, offset } = this.call.structure.rows[row];
    const place = make("div", `place ${className}`);
    place.setAttribute("role", "cell");
    place.dataset.row = row;
    const { slot, at } = this.call.structure.rows[row];
    const group = slot === 1 ? `g${at} · ` : "";
    const position = make("span", "position", `${group}pos ${this.call.before + offset}`);
    position.title = `${name}, position ${this.call.before + offset}`;
    place.append(position, this.guesses(row));
    return place;
  }

  guesses(row) {
    const list = make("ol", "guesses");
    list.setAttribute("aria-label", `${this.call.structure.rows[row].name} predicts`);
    for (const [piece, probability] of this.call.guesses[row]) {
      const item = make("li");
      item.style.setProperty("--p", probability);
      const text = make("code", "", shown(piece));
      text.title = `${quoted(piece)}, probability ${probability}`;
      item.append(text, make("span", "chance", percent(probability)));
      list.append(item);
    }
    return list;
  }

  pruned(words) {
    const place = make("div", "place pruned");
    place.setAttribute("role", "cell");
    place.setAttribute("aria-label", words);
    place.title = words;
    return place;
  }
}

function shown(piece) {
  return visible(piece) || "◌";
}

function percent(probability) {
  return probability < 0.005 ? "<1%" : `${Math.round(probability * 100)}%`;
}

// ---------------------------------------------------------------- who sees whom

// A row for each row of the call, a column for all that stands before it, and one for each row.
class SightMap {
  constructor(call, reasons, id = "why") {
    this.call = call;
    this.reasons = reasons;
    this.rows = call.structure.rows;
    this.masked = this.rows.some((row) => row.slot);
    this.root = make("figure", "sight");
    const pairs = this.rows.length * (this.rows.length + 1);
    const rows = counted(this.rows.length, "row");
    const words = `Who sees whom: ${rows} × (${this.before()} and ${rows})`;
    this.grid = this.table();
    this.sentence = make("p", "why");
    this.sentence.id = id;
    this.sentence.setAttribute("role", "status");
    this.rest();
    const scroll = make("div", "scroll");
    scroll.append(this.grid);
    const look = make("p", "look", this.look());
    this.root.append(make("figcaption", "", words), scroll, this.sentence, this.key(), look);
    this.root.dataset.cells = pairs;
  }

  look() {
    if (this.rows.length === 1) return LOOK.alone;
    return this.masked ? LOOK.map : LOOK.chain;
  }

  before() {
    const { before, cached } = this.call;
    const tokens = before === 1 ? "the 1 token" : `the ${before} tokens`;
    return cached ? `${tokens} in the cache` : `${tokens} of the prompt before it`;
  }

  table() {
    const grid = make("div", "map");
    grid.setAttribute("role", "grid");
    grid.setAttribute("aria-label", "Attention mask of the call");
    const size = this.rows.length > 50 ? 8 : this.rows.length > 24 ? 11 : this.rows.length > 12 ? 15 : 20;
    grid.style.setProperty("--cell", `${size}px`);
    grid.style.setProperty("--columns", this.rows.length);
    grid.append(this.names());
    this.cells = this.rows.map((row, r) => this.line(grid, row, r));
    this.cells[0][0].tabIndex = 0;
    grid.addEventListener("pointerover", (event) => this.point(event.target.closest(".cell")));
    grid.addEventListener("pointerleave", () => this.point(null));
    grid.addEventListener("focusin", (event) => this.point(event.target.closest(".cell")));
    grid.addEventListener("keydown", (event) => this.walk(event));
    return grid;
  }

  // Above the columns the names of what they belong to.
  names() {
    const line = make("div", "map-line map-head");
    line.setAttribute("aria-hidden", "true");
    const before = make("span", "cached-name", this.call.cached ? "cache" : "before");
    line.append(make("span", "map-name", ""), before);
    const real = this.rows.filter((row) => !row.slot).length;
    line.append(this.band(real > 2 ? "real" : "", real));
    this.call.structure.masks.forEach((masks, group) => {
      if (masks) line.append(this.band(`g${group}`, masks));
    });
    return line;
  }

  band(text, columns) {
    const band = make("span", "band", text);
    band.style.setProperty("--span", columns);
    return band;
  }

  line(grid, row, r) {
    const line = make("div", "map-line");
    line.setAttribute("role", "row");
    line.dataset.line = r;
    const label = make("span", "map-name", this.label(row));
    label.setAttribute("role", "rowheader");
    label.setAttribute("aria-label", row.name);
    line.append(label);
    const whys = this.call.structure.whys[r];
    const cells = [...whys].map((why, c) => this.cell(row, r, why, c));
    line.append(...cells);
    if (r && row.at !== this.rows[r - 1].at && row.slot) line.classList.add("begins");
    if (row.slot && !this.rows[r - 1].slot) line.classList.add("begins");
    grid.append(line);
    return cells;
  }

  // Short: a group's name stands at its first mask only.
  label(row) {
    if (row.slot) return row.slot === 1 ? `group ${row.at}` : "";
    return row.at ? `draft ${row.at}` : "newest";
  }

  cell(row, r, why, c) {
    const cell = make("span", "cell");
    cell.setAttribute("role", "gridcell");
    cell.setAttribute("aria-label", this.words(r, c));
    cell.tabIndex = -1;
    cell.dataset.row = r;
    cell.dataset.column = c;
    const column = this.rows[c - 1];
    if (this.reasons[why][0]) cell.classList.add("seen", c === 0 ? "cached" : column.slot ? "own" : "text");
    if (why === "!" || why === "?") cell.classList.add(why === "!" ? "leak" : "lost");
    if (c === 0) cell.classList.add("before");
    if (column && column.slot === 1) cell.classList.add("begins");
    return cell;
  }

  words(r, c) {
    const row = this.rows[r];
    const [, sentence] = this.reasons[this.call.structure.whys[r][c]];
    const column = c ? this.rows[c - 1].name : this.before();
    const names = { row: row.name, column, group: `group ${row.at}` };
    const text = sentence.replace(/\{(\w+)\}/g, (_, name) => names[name]);
    return `${text[0].toUpperCase()}${text.slice(1)}.`;
  }

  rest() {
    this.sentence.textContent = LOOK.cells;
  }

  point(cell) {
    this.light(null);
    if (!cell) return this.rest();
    const [r, c] = [Number(cell.dataset.row), Number(cell.dataset.column)];
    this.sentence.textContent = this.words(r, c);
    this.light(r, c);
  }

  // A line of the map, and a column of it, stand out.
  light(r, c) {
    for (const cell of this.grid.querySelectorAll(".lit, .pointed")) cell.classList.remove("lit", "pointed");
    if (r === null) return;
    for (const cell of this.cells[r]) cell.classList.add("lit");
    if (c === undefined) return;
    for (const line of this.cells) line[c].classList.add("lit");
    this.cells[r][c].classList.add("pointed");
  }

  walk(event) {
    const by = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    const from = event.target.closest(".cell");
    if (!by || !from) return;
    event.preventDefault();
    event.stopPropagation();
    const to = this.cells[Number(from.dataset.row) + by[0]]?.[Number(from.dataset.column) + by[1]];
    if (!to) return;
    from.tabIndex = -1;
    to.tabIndex = 0;
    to.focus();
  }

  key() {
    const key = make("ul", "map-key");
    const leaks = this.call.structure.whys.some((line) => line.includes("!"));
    for (const [mark, words] of [
      ["cached", this.call.cached ? "the cache" : "the prompt"],
      ["text", "a real row"],
      ...(this.masked ? [["own", "a mask of its own group"]] : []),
      ["", "not seen"],
      ...(leaks ? [["leak", "seen, against SPACE’s rule"]] : []),
    ]) {
      const item = make("li");
      item.append(make("span", mark ? `cell seen ${mark}` : "cell"), words);
      key.append(item);
    }
    return key;
  }
}
