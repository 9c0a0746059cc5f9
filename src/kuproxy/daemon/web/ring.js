// The Maglev ring of one VIP: the daemon's picture, beside each pod's share and what the last change moved.

import { getJson, getText, quietly } from "./api.js";
import { h, keyed, picture, s, say } from "./dom.js";
import { endpoint, percent } from "./format.js";
import { Table } from "./table.js";

/** What names a VIP in a request. */
export function vipQuery(row) {
  return { prefix: row.prefix, protocol: row.protocol, port: row.port };
}

function bar(share) {
  return s("svg", { class: "bar", viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" },
    s("rect", { width: 100, height: 8, fill: "currentColor", "fill-opacity": 0.12 }), s("rect", { class: "part", width: (100 * share).toFixed(2), height: 8, fill: "currentColor" }));
}

export class Ring {
  constructor(parameters, navigate) {
    this.query = parameters.get("prefix") ? { prefix: parameters.get("prefix"), protocol: parameters.get("protocol") ?? "any", port: parameters.get("port") ?? "0" } : null;
    this.find = "";
    this.navigate = navigate;
    this.shown = "";
    this.slots = 0;
    const search = h("input", { type: "search", placeholder: "name or address", maxlength: 64, autocomplete: "off", spellcheck: "false" });
    search.addEventListener("input", () => { this.find = search.value; quietly(this.refresh()); });
    this.choices = h("ul", { class: "choices", "aria-label": "VIPs" });
    this.title = h("h1", {}, "Ring");
    this.frame = h("div", { class: "panel picture ring", id: "ring-picture" });
    this.summary = h("p", { class: "notice" });
    this.caption = h("p", { class: "notice", id: "ring-caption" });
    this.table = new Table("Shares of the ring", [
      { head: "Pod", class: "address", cell: (cell, row) => this.#name(cell, row) },
      { head: "Slots", number: true, text: (row) => row.slots },
      { head: "Share", number: true, text: (row) => percent(this.slots ? row.slots / this.slots : 0) },
      { head: "", wide: true, cell: (cell, row) => this.#bar(cell, row) },
      { head: "Before", number: true, wide: true, text: (row) => (this.compared ? row.slots_before : "–") },
      { head: "Gained", number: true, text: (row) => (this.compared ? `+${row.gained}` : "–") },
      { head: "Lost", number: true, text: (row) => (this.compared ? `−${row.lost}` : "–") },
    ], (row) => endpoint(row.address, row.port));
    this.element = h("div", {}, this.title, h("form", { role: "search", onsubmit: (event) => event.preventDefault() }, h("label", {}, "Find a VIP", search)),
      this.choices, this.summary, this.frame, this.caption, this.table.element);
  }

  async refresh(signal) {
    const overview = await getJson("/v1/overview", {}, signal);
    const found = await getJson("/v1/rates", { find: this.find, by: "flows", limit: 12 }, signal);
    if (this.query === null && found.vips.length) {
      this.query = vipQuery(found.vips[0]);
      this.navigate(this.query);
    }
    this.#choose(found.vips);
    if (this.query === null) {
      say(this.summary, "There are no VIPs yet.");
      this.frame.hidden = true;
      say(this.caption, "");
      this.table.update([]);
      return overview;
    }
    let ring;
    try {
      ring = await getJson("/v1/ring", { ...this.query, limit: 0 }, signal);
    } catch (refusal) {
      if (refusal.status !== 422) throw refusal;
      say(this.summary, refusal.message);
      this.frame.hidden = true;
      say(this.caption, "");
      this.table.update([]);
      this.shown = "";
      return overview;
    }
    await this.#draw(ring, signal);
    return overview;
  }

  #choose(vips) {
    keyed(this.choices, vips, (row) => row.index,
      (row) => h("li", {}, h("a", { href: `#ring?${new URLSearchParams(vipQuery(row))}` }, row.vip)),
      (line, row) => {
        const link = line.firstChild;
        const ours = this.query !== null && row.prefix === this.query.prefix && row.protocol === this.query.protocol && String(row.port) === String(this.query.port);
        if (ours) link.setAttribute("aria-current", "true");
        else link.removeAttribute("aria-current");
      });
  }

  async #draw(ring, signal) {
    this.slots = ring.slots;
    this.compared = ring.moved !== null;
    say(this.title, `Ring of ${ring.vip}`);
    say(this.summary, this.compared
      ? `The last change moved ${ring.moved} of ${ring.slots} slots (${percent(ring.moved / ring.slots)}). Those slots stand out: the cell is the new owner’s, its core the former one’s.`
      : "One cell for each slot, in its owner’s colour. The ring has not changed since the daemon first made it.");
    const state = JSON.stringify(ring);
    if (state !== this.shown) {
      const drawn = picture(await getText("/v1/ring.svg", this.query, signal));
      const thinned = /one in \d+ is drawn/.exec(drawn.getAttribute("aria-label"));
      this.frame.replaceChildren(drawn);
      say(this.caption, thinned ? `Of ${ring.slots} slots, ${thinned[0]}.` : "");
      this.frame.hidden = false;
      this.shown = state;
    }
    this.table.update(ring.shares.map((share, place) => ({ ...share, place })));
  }

  #name(cell, row) {
    const path = this.frame.querySelector(`path[data-pod="${row.place}"], path[data-before="${row.place}"]`);
    const name = endpoint(row.address, row.port) + (row.slots ? "" : " (gone)");
    const stroke = path?.getAttribute("stroke") ?? "none";
    if (cell.dataset.shown === name + stroke) return;
    cell.dataset.shown = name + stroke;
    const button = h("button", { type: "button", class: "plain", title: "point out its slots", "aria-pressed": "false" },
      s("svg", { class: "swatch", viewBox: "0 0 1 1", "aria-hidden": "true" }, s("rect", { width: 1, height: 1, fill: stroke })), name);
    const point = () => this.#pick(row.place);
    const release = () => this.#pick(null);
    for (const [begin, end] of [["mouseenter", "mouseleave"], ["focus", "blur"]]) {
      button.addEventListener(begin, point);
      button.addEventListener(end, release);
    }
    cell.replaceChildren(button);
  }

  #pick(place) {
    this.frame.classList.toggle("picking", place !== null);
    for (const path of this.frame.querySelectorAll("path")) {
      path.classList.toggle("picked", place !== null && (path.dataset.pod === String(place) || path.dataset.before === String(place)));
    }
  }

  #bar(cell, row) {
    const share = this.slots ? row.slots / this.slots : 0;
    if (!cell.firstChild) cell.append(bar(share));
    cell.querySelector(".part").setAttribute("width", (100 * share).toFixed(2));
  }
}
