// Services: what happens at a glance, then every VIP with its rates, and the pods of those that are opened.

import { getJson, quietly } from "./api.js";
import { Sparkline } from "./chart.js";
import { h, keyed, say } from "./dom.js";
import { endpoint, percent, short } from "./format.js";
import { Table } from "./table.js";
import { vipQuery } from "./ring.js";

const PAGE = 50;
const COLUMNS = [
  { head: "Service", by: "name" },
  { head: "Packets/s", by: "packets", number: true },
  { head: "Bit/s", by: "bits", number: true },
  { head: "New flows/s", by: "new_flows", number: true, wide: true },
  { head: "Flows", by: "flows", number: true },
  { head: "Pods", by: "pods", number: true, wide: true },
];

function rateOf(row, ...names) {
  return row.rates === null ? null : names.reduce((sum, name) => sum + row.rates[name], 0);
}

const packets = (row) => short(rateOf(row, "to_pod_packets", "from_pod_packets"));
const bits = (row) => short(rateOf(row, "to_pod_bits", "from_pod_bits"));
const newFlows = (row) => short(rateOf(row, "new_flows"));

class Cards {
  constructor() {
    this.cards = {};
    this.element = h("dl", { class: "cards" });
    for (const [name, title] of [["received", "packets/s received"], ["transmitted", "packets/s forwarded"],
      ["dropped", "packets/s dropped"], ["new_flows", "new flows/s"], ["flows", "flows"]]) {
      const chart = new Sparkline();
      const figure = h("dd", {}, "–");
      this.cards[name] = { chart, figure };
      this.element.append(h("div", { class: name === "dropped" ? "card drops" : "card" }, h("dt", {}, title), figure, chart.element));
    }
  }

  update(overview) {
    const outcomes = overview.outcomes_per_s;
    this.#set("received", overview.received_per_s);
    this.#set("transmitted", outcomes && outcomes.transmit);
    this.#set("dropped", outcomes && outcomes.drop);
    this.#set("new_flows", overview.new_flows_per_s);
    this.#set("flows", overview.flows);
  }

  #set(name, value) {
    say(this.cards[name].figure, short(value));
    this.cards[name].chart.push(value);
  }
}

export class Services {
  constructor(parameters, navigate) {
    this.find = parameters.get("find") ?? "";
    this.by = parameters.get("by") ?? "packets";
    this.skip = Number(parameters.get("skip") ?? 0);
    this.navigate = navigate;
    this.open = new Set();
    this.turn = 0;
    this.cards = new Cards();
    this.workers = new Table("Workers", [
      { head: "Worker", text: (row) => row.index },
      { head: "Packets/s", number: true, text: (row) => short(row.received_per_s) },
      { head: "Packets per vector", number: true, wide: true, text: (row) => (row.vector_size === null ? "–" : row.vector_size.toFixed(1)) },
      { head: "Idle", number: true, text: (row) => percent(row.idle_share) },
      { head: "Flows", number: true, text: (row) => `${short(row.flows)} of ${short(row.capacity)}` },
      { head: "Lost before it", number: true, cell: (cell, row) => { say(cell, short(row.ring_drops)); cell.classList.toggle("bad", row.ring_drops_per_s > 0); } },
    ], (row) => row.index);
    this.#build();
  }

  #build() {
    const search = h("input", { type: "search", name: "find", value: this.find, placeholder: "name or address", maxlength: 64, autocomplete: "off", spellcheck: "false" });
    let pause;
    search.addEventListener("input", () => {
      clearTimeout(pause);
      pause = setTimeout(() => this.#go({ find: search.value, skip: 0 }), 250);
    });
    this.heads = COLUMNS.map((column) => h("th", { scope: "col", class: [column.number && "number", column.wide && "wide"].filter(Boolean).join(" ") || null },
      h("button", { type: "button", onclick: () => this.#go({ by: column.by, skip: 0 }) }, column.head)));
    this.body = h("tbody");
    this.none = h("p", { class: "notice", hidden: true });
    this.panel = h("div", { class: "panel" }, h("table", { id: "vip-table", "aria-label": "Services" }, h("thead", {}, h("tr", {}, ...this.heads)), this.body));
    this.before = h("button", { type: "button", class: "plain", onclick: () => this.#go({ skip: Math.max(0, this.skip - PAGE) }) }, "Previous");
    this.after = h("button", { type: "button", class: "plain", onclick: () => this.#go({ skip: this.skip + PAGE }) }, "Next");
    this.count = h("span");
    this.pager = h("div", { class: "pager" }, this.before, this.count, this.after);
    this.element = h("div", {}, h("h1", {}, "Services"), this.cards.element,
      h("form", { role: "search", onsubmit: (event) => event.preventDefault() }, h("label", {}, "Find", search)),
      this.none, this.panel, this.pager, h("h2", {}, "Workers"), this.workers.element);
    this.#mark();
  }

  #mark() {
    COLUMNS.forEach((column, place) => {
      if (column.by === this.by) this.heads[place].setAttribute("aria-sort", column.by === "name" ? "ascending" : "descending");
      else this.heads[place].removeAttribute("aria-sort");
    });
  }

  #go(changes) {
    Object.assign(this, changes);
    this.#mark();
    this.navigate({ find: this.find, by: this.by === "packets" ? "" : this.by, skip: this.skip || "" });
    quietly(this.refresh());
  }

  async refresh(signal) {
    this.turn += 1;
    const turn = this.turn;
    const [overview, page] = await Promise.all([
      getJson("/v1/overview", {}, signal),
      getJson("/v1/rates", { find: this.find, by: this.by, limit: PAGE, skip: this.skip }, signal),
    ]);
    const pods = new Map();
    await Promise.all(page.vips.filter((row) => this.open.has(row.index)).map(async (row) => {
      pods.set(row.index, await getJson("/v1/rates/pods", vipQuery(row), signal));
    }));
    if (turn !== this.turn) return overview; // a later question has been asked, and its answer is what counts
    this.cards.update(overview);
    this.workers.update(overview.workers);
    this.#rows(page, pods);
    return overview;
  }

  #rows(page, pods) {
    const lines = page.vips.flatMap((row) => (pods.has(row.index) ? [row, { ...row, inner: pods.get(row.index).pods }] : [row]));
    keyed(this.body, lines, (row) => (row.inner ? `pods ${row.index}` : row.index),
      (row) => (row.inner ? this.#innerLine(row) : this.#line(row)),
      (line, row) => (row.inner ? line.table.update(row.inner) : this.#fillLine(line, row)));
    const empty = page.total === 0;
    this.panel.hidden = empty;
    this.none.hidden = !empty;
    say(this.none, this.find ? `No service or VIP contains “${this.find}”.` : "There are no services yet. `ku vip …`, a manifest, or a cluster brings them.");
    this.pager.hidden = page.total <= PAGE;
    say(this.count, `${page.total ? this.skip + 1 : 0} to ${this.skip + page.vips.length} of ${page.total}`);
    this.before.disabled = this.skip === 0;
    this.after.disabled = page.next === null;
  }

  #line(row) {
    const toggle = h("button", { type: "button", class: "open", "aria-expanded": "false", onclick: () => this.#toggle(row.index, toggle) }, row.vip);
    const owner = row.owner === "ku" ? null : h("div", { class: "faint" }, row.owner);
    const line = h("tr", { class: "row" }, h("td", { class: "vip" }, toggle, h("span", { class: "tag wide" }, row.type), h("span", { class: "tag bad", hidden: true }, "no pods"), owner));
    for (const column of COLUMNS.slice(1)) line.append(h("td", { class: column.wide ? "number wide" : "number" }));
    return line;
  }

  #fillLine(line, row) {
    line.querySelector(".tag.bad").hidden = row.pods > 0;
    line.querySelector("button").setAttribute("aria-expanded", String(this.open.has(row.index)));
    const draining = row.draining ? ` +${row.draining} draining` : "";
    [packets(row), bits(row), newFlows(row), short(row.flows), `${row.pods}${draining}`].forEach((text, place) => say(line.children[place + 1], text));
  }

  #toggle(index, button) {
    if (!this.open.delete(index)) this.open.add(index);
    button.setAttribute("aria-expanded", String(this.open.has(index)));
    quietly(this.refresh());
  }

  #innerLine(row) {
    const table = new Table(`Pods of ${row.vip}`, [
      { head: "Pod", class: "address", cell: (cell, pod) => say(cell, endpoint(pod.address, pod.port) + (pod.draining ? " (draining)" : "")) },
      { head: "Packets/s", number: true, text: packets },
      { head: "Bit/s", number: true, text: bits },
      { head: "New flows/s", number: true, wide: true, text: newFlows },
      { head: "Flows", number: true, text: (pod) => short(pod.flows) },
      { head: "Slots", number: true, wide: true, text: (pod) => pod.slots },
      { head: "Weight", number: true, wide: true, text: (pod) => pod.weight },
    ], (pod) => `${pod.address} ${pod.port} ${pod.draining}`);
    const query = new URLSearchParams(vipQuery(row));
    const links = h("p", {}, h("a", { href: `#ring?${query}` }, "Ring"), " · ", h("a", { href: `#flows?${new URLSearchParams({ vip: row.prefix })}` }, "Flows"));
    const line = h("tr", {}, h("td", { class: "inner", colspan: COLUMNS.length }, table.element, links));
    line.table = table;
    return line;
  }
}
