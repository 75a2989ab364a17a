// One lane: its calls, and its text and counters at any point of them.

const LANES = {
  space: {
    name: "SPACE",
    how: "a call checks its guesses and makes new ones",
    empty: "Guesses stand here dashed until the next call checks them. Those the model agrees with come for free.",
  },
  vanilla: {
    name: "Vanilla",
    how: "a call writes one token",
    empty: "Plain decoding of the same model: as many calls as tokens.",
  },
  generate: { name: "Generate", how: "plain decoding by transformers" },
  "prompt-lookup": { name: "Prompt lookup", how: "guesses copied from the text, by transformers" },
  assisted: { name: "Assisted", how: "a smaller model guesses, by transformers", source: "from the draft model" },
};
const STOPS = {
  eos: "end of text",
  max_new_tokens: "budget reached",
  context: "context full",
  cancelled: "stopped",
  deadline: "deadline",
};
const COUNTERS = [
  ["calls", "calls", 0],
  ["tokens", "tokens", 0],
  ["tokens_per_call", "tokens/call", 2],
  ["tokens_per_second", "tokens/s", 0],
];
const NOTHING = { tokens: 0, seconds: 0 };
const COPIED = "copied from the text so far";

// What a token is marked as: a draft that stood may have been copied from the text so far.
function markOf(call, origin) {
  return call.copied && origin === "accepted" ? "accepted copied" : origin;
}

class Lane {
  constructor(id, onOpen) {
    this.id = id;
    const words = { name: id, how: "", empty: "", source: COPIED, ...LANES[id] };
    this.name = words.name;
    this.source = words.source;

    this.root = make("section", `lane lane-${id}`);
    this.root.setAttribute("aria-label", `${words.name} lane`);
    const head = make("header", "lane-head");
    const how = make("span", "lane-how", words.how);
    how.title = words.how;
    head.append(make("h2", "lane-name", words.name), how);
    this.clock = make("span", "lane-clock", "0.00 s");
    this.flag = make("span", "lane-flag");
    head.append(this.flag, this.clock);

    this.bar = make("div", "bar");
    this.bar.setAttribute("role", "progressbar");
    this.bar.setAttribute("aria-label", `${words.name}: tokens of the budget`);
    this.bar.setAttribute("aria-valuemin", "0");
    this.fill = make("div", "bar-fill");
    this.bar.append(this.fill);

    this.box = make("div", "lane-text");
    this.box.id = `text-${id}`;
    this.box.setAttribute("role", "log");
    this.box.setAttribute("aria-live", "off");
    this.box.setAttribute("aria-label", `Text of the ${words.name} lane`);
    const keys = "Left and right go by call, Enter looks inside the last one shown. Tab goes to the tokens.";
    this.box.setAttribute("aria-description", keys);
    this.box.tabIndex = 0;
    this.prompt = make("span", "prompt-text");
    this.out = make("span", "out");
    this.rest = make("span", "rest");
    this.cursor = make("span", "cursor");
    this.cursor.setAttribute("aria-hidden", "true");
    this.pending = make("span", "pending");
    this.empty = make("p", "empty", words.empty);
    this.box.append(this.empty, this.prompt, this.out, this.rest, this.cursor, this.pending);
    // Whether the end is in sight, and stays so: asked when somebody scrolls, never while tokens come.
    this.following = true;
    this.box.addEventListener("scroll", () => {
      this.following = this.box.scrollHeight - this.box.scrollTop - this.box.clientHeight < 24;
    });
    this.box.addEventListener("pointerover", (event) => this.explain(event.target.closest(".tok")));
    this.box.addEventListener("click", (event) => {
      const token = event.target.closest(".tok");
      if (token && getSelection().isCollapsed) onOpen(id, Number(token.dataset.call));
    });
    this.box.addEventListener("focusin", (event) => this.explain(event.target.closest(".tok")));
    this.box.addEventListener("keydown", (event) => {
      const token = event.target.closest(".tok");
      if (token ? this.walk(event, token) : event.key === "Enter" && this.shown) {
        if (event.key === "Enter") onOpen(id, token ? Number(token.dataset.call) : this.shown);
        event.preventDefault();
        event.stopPropagation(); // on a token the arrows are not the replay's
      }
    });
    this.ink = new Ink();

    const counters = make("dl", "counters");
    this.counters = {};
    for (const [key, label] of COUNTERS) {
      const cell = make("div");
      this.counters[key] = make("dd", "", "0");
      this.counters[key].dataset.counter = key;
      cell.append(make("dt", "", label), this.counters[key]);
      counters.append(cell);
    }
    this.root.append(head, this.bar, this.box, counters);
    this.reset(null);
  }

  reset(about) {
    this.calls = [];
    this.sums = [NOTHING];
    this.shown = 0;
    this.ended = null;
    this.opened = Infinity; // the call that stands open below, if it is one of these
    this.last = { stop: null, rest: "" };
    this.budget = about?.budget ?? 0;
    this.marked = {}; // tokens that have a class of one call, by its name
    this.tabbed = false; // whether its tokens can be walked
    this.stop = null; // the token that Tab goes to
    this.prompt.textContent = about?.prompt ?? "";
    this.ink.begin(about?.prompt ?? "");
    this.empty.hidden = Boolean(about);
    this.out.replaceChildren();
    this.pending.replaceChildren();
    this.rest.textContent = "";
    this.flag.textContent = "";
    this.root.classList.remove("over");
    this.count(0);
    this.following = true;
    this.follow();
  }

  keep(call) {
    this.calls[call.n - 1] ??= call;
    for (let next; (next = this.calls[this.known]); ) {
      const { tokens, seconds } = this.sums[this.known];
      next.copied = this.source === COPIED && this.drafts(next)[0]?.[1] === null;
      this.sums.push({ tokens: tokens + next.tokens.length, seconds: seconds + next.seconds });
    }
  }

  // Calls that are here without a gap.
  get known() {
    return this.sums.length - 1;
  }

  // How many calls were over when the lane's own clock stood at so many seconds.
  callsAt(seconds) {
    let calls = 0;
    while (calls < this.known && this.sums[calls + 1].seconds <= seconds + 1e-9) calls += 1;
    return calls;
  }

  // Show the lane as it stood after so many calls. `ended`: nothing follows them. The clock says
  // `seconds` where it has run on since.
  show(calls, ended, seconds) {
    if (calls !== this.shown || ended !== this.ended) this.write(calls, ended);
    this.count(calls, seconds);
  }

  write(calls, ended) {
    if (calls < this.shown) this.cut(calls);
    const fresh = this.calls.slice(this.shown, calls).flatMap((call) => this.spelled(call));
    this.out.append(...fresh);
    this.ink.grow(fresh);
    this.shown = calls;
    this.ended = ended;
    const guesses = ended ? [] : (this.calls[calls - 1]?.pending ?? []);
    this.pending.replaceChildren(...guesses.map((guess, slot) => this.guessed(guess, calls, slot)));
    put(this.rest, ended ? this.last.rest : "");
    this.root.classList.toggle("over", ended);
    put(this.flag, ended ? (STOPS[this.last.stop] ?? "stopped") : "");
    this.mark("now", calls);
    this.mark("open", this.opened);
    if (this.tabbed) this.rove(this.stop?.isConnected ? this.stop : null);
  }

  // Scroll to the end where it was in sight. Apart from `show`: it makes the browser lay the text out,
  // and once for all lanes is enough.
  follow() {
    if (this.following) this.box.scrollTop = this.box.scrollHeight;
  }

  spelled(call) {
    return call.tokens.map(([piece, origin], slot) => {
      const token = make("span", `tok ${markOf(call, origin)}`);
      spell(token, piece);
      token.dataset.call = call.n;
      token.dataset.slot = slot;
      return token;
    });
  }

  guessed([piece], calls, slot) {
    const token = make("span", "tok draft", piece.replaceAll("\n", "↵") || "·");
    token.dataset.call = calls;
    token.dataset.slot = slot;
    return token;
  }

  cut(calls) {
    const inside = this.box !== document.activeElement && this.box.contains(document.activeElement);
    for (let token; (token = this.out.lastChild) && Number(token.dataset.call) > calls; ) token.remove();
    this.ink.cut(this.out.textContent.length);
    if (inside && !this.box.contains(document.activeElement)) this.box.focus({ preventScroll: true });
  }

  // The race is over: Tab goes to one token, the last one at first, and the arrows walk on from there.
  reach() {
    this.tabbed = true;
    this.rove(null);
  }

  rove(token) {
    for (const old of this.box.querySelectorAll("[tabindex]")) {
      old.removeAttribute("tabindex");
      old.removeAttribute("role");
    }
    this.stop = token ?? this.out.lastChild;
    if (!this.stop) return;
    this.stop.tabIndex = 0;
    this.stop.setAttribute("role", "button");
  }

  // Keys on a token: to the next one, to the next call, to an end; true where one meant something.
  walk(event, token) {
    if (event.altKey || event.ctrlKey || event.metaKey) return false;
    if (event.key === "Enter") return true;
    if (event.key === "Escape") {
      this.box.focus({ preventScroll: true });
      return true;
    }
    const tokens = [...this.box.querySelectorAll(".tok")];
    const at = tokens.indexOf(token);
    const call = Number(token.dataset.call);
    const first = (number) => tokens.findIndex((each) => Number(each.dataset.call) === number);
    const to = {
      ArrowLeft: at - 1,
      ArrowRight: at + 1,
      ArrowUp: first(call - 1),
      ArrowDown: first(call + 1),
      Home: 0,
      End: tokens.length - 1,
    }[event.key];
    if (to === undefined) return false;
    const next = tokens[to];
    if (next) {
      this.rove(next);
      next.focus();
    }
    return true;
  }

  // The tokens of one call, and no others, get a class.
  mark(name, call) {
    for (const token of this.marked[name] ?? []) token.classList.remove(name);
    this.marked[name] = [];
    for (let token = this.out.lastChild; token; token = token.previousSibling) {
      const its = Number(token.dataset.call);
      if (its < call) break;
      if (its !== call) continue;
      token.classList.add(name);
      this.marked[name].push(token);
    }
  }

  count(calls, clock) {
    const { tokens, seconds } = this.sums[calls];
    const tally = {
      calls,
      tokens,
      tokens_per_call: calls ? tokens / calls : 0,
      tokens_per_second: seconds ? tokens / seconds : 0,
    };
    for (const [key, , digits] of COUNTERS) {
      put(this.counters[key], tally[key].toFixed(digits));
    }
    put(this.clock, `${(clock ?? seconds).toFixed(this.sums[this.known].seconds < 1 ? 3 : 2)} s`);
    this.fill.style.transform = `scaleX(${this.budget ? Math.min(1, tokens / this.budget) : 0})`;
    this.bar.setAttribute("aria-valuemax", String(this.budget || 1));
    this.bar.setAttribute("aria-valuenow", String(tokens));
  }

  // What a call verified: the guesses of the call before, unless it says otherwise.
  drafts(call) {
    return call.drafts ?? this.calls[call.n - 2]?.pending?.slice(0, call.verified ?? 0) ?? [];
  }

  // A guess without a probability is no mask's: it has another source.
  basis([, probability]) {
    return probability === null ? this.source : `probability ${probability.toFixed(2)}`;
  }

  explain(token) {
    const call = this.calls[token?.dataset.call - 1];
    if (!call || token.title) return;
    const slot = Number(token.dataset.slot);
    const drafts = this.drafts(call);
    const where = `call ${call.n}`;
    if (token.classList.contains("draft")) {
      const guess = call.pending[slot];
      token.title = `${quoted(guess[0])} · guess ${slot + 1} of ${call.pending.length} · ${this.basis(guess)} · the next call will check it`;
    } else if (token.classList.contains("accepted")) {
      token.title = `${where} · guess ${slot + 1} of ${drafts.length} · ${this.basis(drafts[slot])} · accepted`;
    } else if (token.classList.contains("corrected")) {
      const guess = drafts[call.accepted];
      token.dataset.was = visible(guess[0]) || "◌"; // struck through above the token, by CSS
      token.title = `${where} · guess ${call.accepted + 1} of ${drafts.length}, ${quoted(guess[0])} (${this.basis(guess)}), was rejected · this is the model’s own token`;
    } else if (token.classList.contains("bonus")) {
      const all = ["the one guess", "both guesses"][drafts.length - 1] ?? `all ${drafts.length} guesses`;
      token.title = `${where} · ${all} stood · one more token of the model’s own`;
    } else {
      token.title = `${where} · the model’s own token`;
    }
  }
}
