// What can be taken away from a race, and a race from a file. Follows dom.js. `props.value` is the
// message of space_core/views/share.py as JSON text; what it holds is shown as text and saved as files.
/* global element, props, trigger, watch */

const SHARE = "space-share/1";

class Share {
  constructor(root) {
    this.root = root;
    root.setAttribute("aria-label", "Share this race");
    this.title = make("h2", "share-title", "Share");
    this.title.tabIndex = -1;
    const head = make("header", "inside-head");
    head.append(this.title, button("share-close", "Close (Escape)", "×", () => this.close()));
    this.note = make("p", "share-note");
    this.note.setAttribute("role", "status");
    const body = make("div", "share-body");
    const left = make("div", "share-side");
    left.append(this.linking(), this.opening(), this.saving());
    body.append(left, this.pasting());
    root.append(head, this.note, body);
    root.addEventListener("keydown", (event) => event.key === "Escape" && this.close());
    document.addEventListener("space:close", () => (this.root.hidden = true));
  }

  part(name, id) {
    const part = make("section", `share-part share-${id}`);
    part.append(make("h3", "", name));
    return part;
  }

  // ------------------------------------------------------------ link

  linking() {
    const part = this.part("Link", "link");
    this.link = make("input", "share-url");
    this.link.id = "share-link";
    this.link.readOnly = true;
    this.link.setAttribute("aria-label", "Link to this prompt and these settings");
    this.link.addEventListener("focus", () => this.link.select());
    this.linkNote = make("p", "hint");
    const line = make("div", "share-line");
    line.append(this.link, this.copier("share-link-copy", "Copy", () => this.link.value));
    part.append(line, this.linkNote);
    return part;
  }

  // The link tells the call at which the replay stands now.
  address(message) {
    if (!message.query) return "";
    const at = document.querySelector("#arena .arena")?.dataset.call;
    const step = message.raced && at && at !== "0" ? `&step=${at}` : "";
    return `${location.origin}${location.pathname}?${message.query}${step}`;
  }

  // Where this page's API is, as one quoted word of a shell.
  api() {
    return `${location.origin}${location.pathname}`.replace(/\/*$/, "/gradio_api/call").replaceAll("'", "%27");
  }

  copier(id, words, text) {
    const key = make("button", "wide key", words);
    key.type = "button";
    key.id = id;
    key.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(text());
        key.textContent = "Copied";
      } catch {
        key.textContent = "Select and copy by hand";
      }
      setTimeout(() => (key.textContent = words), 1600);
    });
    return key;
  }

  // ------------------------------------------------------------ files

  saving() {
    const part = this.part("Save", "save");
    const row = make("div", "share-keys");
    this.keys = [
      ["trace", "Trace (JSON)", () => this.save("json", "application/json", this.message.trace)],
      ["replay", "Replay (HTML)", () => this.save("html", "text/html", this.message.page)],
      ["svg", "Card (SVG)", () => this.save("svg", "image/svg+xml", this.message.card)],
      ["png", "Card (PNG)", () => this.raster()],
    ].map(([id, words, act]) => {
      const key = make("button", "wide key", words);
      key.type = "button";
      key.id = `save-${id}`;
      key.addEventListener("click", act);
      return key;
    });
    row.append(...this.keys);
    this.saveNote = make("p", "hint");
    this.card = make("img", "card");
    this.card.id = "card";
    part.append(row, this.saveNote, this.card);
    return part;
  }

  save(suffix, type, content) {
    save(`space-race.${suffix}`, type, content);
  }

  // The card as pixels: the browser draws the picture, in which nothing can run.
  async raster() {
    const picture = make("img"); // of its own: one that is painted anew meanwhile cannot be decoded
    picture.src = this.card.src;
    await picture.decode();
    const canvas = make("canvas");
    canvas.width = picture.naturalWidth;
    canvas.height = picture.naturalHeight;
    canvas.getContext("2d").drawImage(picture, 0, 0);
    canvas.toBlob((pixels) => pixels && this.save("png", "image/png", pixels), "image/png");
  }

  // ------------------------------------------------------------ a file comes in

  opening() {
    const part = this.part("Open a trace", "open");
    this.file = make("input", "share-file");
    this.file.type = "file";
    this.file.id = "open-trace";
    this.file.accept = ".json,application/json";
    this.file.setAttribute("aria-label", "Trace to open, a JSON file");
    this.file.setAttribute("aria-describedby", "open-error");
    this.error = make("p", "field-error");
    this.error.id = "open-error";
    this.error.setAttribute("role", "alert");
    this.file.addEventListener("change", () => this.read(this.file.files[0]));
    const hint = make("p", "hint", "A trace saved here, or printed by “generate --json”. It is shown as a replay.");
    part.append(this.file, this.error, hint);
    return part;
  }

  async read(file) {
    this.complain("");
    if (!file) return;
    const most = this.message?.most ?? 1_000_000;
    if (file.size > most) {
      const told = (number) => number.toLocaleString("en");
      return this.complain(`The file has ${told(file.size)} bytes, but at most ${told(most)} are read.`);
    }
    trigger("bring", { text: await file.text() });
  }

  complain(words) {
    this.error.textContent = words;
    this.file.setAttribute("aria-invalid", String(Boolean(words)));
    this.file.value = "";
  }

  // ------------------------------------------------------------ code

  pasting() {
    const part = this.part("Run it yourself", "pasting");
    for (const [id, words] of [
      ["python", "Python"],
      ["command", "Command line"],
      ["curl", "curl"],
    ]) {
      const head = make("div", "share-line");
      head.append(make("h4", "", words), this.copier(`copy-${id}`, "Copy", () => this[id].textContent));
      this[id] = make("pre", "share-code");
      this[id].id = `code-${id}`;
      this[id].tabIndex = 0;
      this[id].setAttribute("aria-label", words);
      part.append(head, this[id]);
    }
    this.codeNote = make("p", "hint");
    part.append(this.codeNote);
    return part;
  }

  // ------------------------------------------------------------ what is seen

  take(message) {
    if (message?.format !== SHARE) return;
    if ("error" in message) return this.complain(message.error);
    this.message = message;
    this.complain("");
    this.note.textContent = message.note;
    this.link.value = this.address(message);
    this.link.parentElement.hidden = !message.query;
    this.linkNote.textContent = message.link_note;
    for (const key of this.keys) key.disabled = !message.raced;
    if (!message.trace) this.keys[0].disabled = true;
    this.saveNote.textContent = message.save_note;
    this.card.hidden = !message.raced;
    this.card.alt = message.raced ? message.sentence : "";
    if (message.raced) this.card.src = `data:image/svg+xml,${encodeURIComponent(message.card)}`;
    else this.card.removeAttribute("src");
    this.python.textContent = message.python;
    this.command.textContent = message.command;
    this.curl.textContent = `url='${this.api()}'\n${message.curl}`;
    this.codeNote.textContent = message.code_note;
    this.open();
  }

  open() {
    this.root.hidden = false;
    this.title.focus({ preventScroll: true });
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.root.scrollIntoView({ block: "nearest", behavior: calm ? "auto" : "smooth" });
  }

  close() {
    this.root.hidden = true;
    document.querySelector("#share")?.focus({ preventScroll: true });
  }
}

const share = new Share(element.querySelector(".share"));
watch("value", () => share.take(read(props.value)));
