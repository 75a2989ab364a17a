// The browser makes a picture where there is something new to see. Gradio 6's own "Loading…" is taken off the page
// before its clock is stopped, and that clock asks for each of sixty pictures a second for as long as the page is
// open: a tenth of a slow core, which a race has better use for. Clocks of its kind tick four times a second here;
// of a Gradio that has none nothing is known by its words, and nothing changes.

const CLOCK = /performance\.now\(\)\s*-.{1,24}\/\s*1e3/;
const TICK = 250;

function patient(ask, wait) {
  return (draws) => (CLOCK.test(String(draws)) ? wait(() => ask(draws), TICK) : ask(draws));
}

window.requestAnimationFrame = patient(window.requestAnimationFrame.bind(window), setTimeout);
