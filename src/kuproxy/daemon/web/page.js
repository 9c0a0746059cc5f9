// The page: which view, what it is asked, and a second between two looks. Views give `element` and `refresh(signal)`.

import { Refusal, setToken } from "./api.js";
import { h, say } from "./dom.js";
import { Flows } from "./flows.js";
import { Path } from "./path.js";
import { Ring } from "./ring.js";
import { Services } from "./services.js";

const VIEWS = { services: [Services, "Services"], ring: [Ring, "Ring"], path: [Path, "Packet path"], flows: [Flows, "Flows"] };
const PAUSE_MS = 1000;

const main = document.getElementById("main");
const status = document.getElementById("status");
let view = null;
let running = null; // the AbortController of the present view
let ours = ""; // the fragment that we have set ourselves

function place() {
  const [name, query = ""] = location.hash.slice(1).split("?");
  return [name in VIEWS ? name : "services", new URLSearchParams(query)];
}

/** Keep what a view is asked in the address, without a new entry in the history. */
function navigateIn(name) {
  return (query) => {
    const given = Object.entries(query).filter(([, value]) => value !== "" && value !== null);
    ours = given.length ? `#${name}?${new URLSearchParams(given)}` : `#${name}`;
    history.replaceState(null, "", ours);
  };
}

function tell(overview) {
  status.className = "";
  const behind = overview.adopted < overview.generation ? `, ${overview.generation - overview.adopted} changes not adopted yet` : "";
  say(status, `kuproxy ${overview.version} · ${overview.vips} VIPs · ${overview.workers.length} worker${overview.workers.length === 1 ? "" : "s"}${behind}`);
}

function askForToken(reason) {
  const field = h("input", { type: "password", name: "token", autocomplete: "off" });
  const form = h("form", { onsubmit: (event) => { event.preventDefault(); setToken(field.value.trim()); show(); } }, h("label", {}, "Token", field), h("button", { class: "plain" }, "Continue"));
  main.replaceChildren(h("h1", {}, "Token"), h("p", { class: "notice" }, reason), form);
  field.focus();
}

async function run(mine, stop) {
  while (!stop.signal.aborted) {
    if (!document.hidden) {
      try {
        tell(await mine.refresh(stop.signal));
      } catch (error) {
        if (error.name === "AbortError") return;
        if (!(error instanceof Refusal)) throw error;
        if (error.status === 401) return askForToken(error.message);
        status.className = "bad";
        say(status, error.message);
      }
    }
    await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
  }
}

function show() {
  running?.abort();
  const [name, parameters] = place();
  const [View, title] = VIEWS[name];
  document.title = `${title} – kuproxy`;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  running = new AbortController();
  view = new View(parameters, navigateIn(name));
  main.replaceChildren(view.element);
  run(view, running);
}

addEventListener("hashchange", () => {
  if (location.hash === "#main") return main.focus();
  if (location.hash !== ours) show();
});
show();
