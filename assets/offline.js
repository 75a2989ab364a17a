// A race in a file of its own: what Gradio hands to the arena on the page, handed to it here.
// space_core/views/offline.py puts the arena's files in the place that is marked.
(function () {
  const element = document.querySelector("main");
  const race = document.querySelector("#race").textContent;
  const props = { value: race, recording: "", offline: true };
  const trigger = () => {};
  const watch = () => {};
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const dress = () => document.documentElement.classList.toggle("dark", dark.matches);
  dark.addEventListener("change", dress);
  dress();
  /* arena */
})();
