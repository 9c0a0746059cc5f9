// The way of packets through the graph, drawn by the daemon every second, and what was dropped, where and why.

import { getJson, getText } from "./api.js";
import { h, picture, say } from "./dom.js";
import { short } from "./format.js";
import { Table } from "./table.js";

export class Path {
  constructor() {
    this.frame = h("div", { class: "panel picture graph", id: "graph-picture", tabindex: 0, role: "region", "aria-label": "Diagram of the packet path" });
    this.outcomes = new Table("Outcomes", [
      { head: "Outcome", text: (row) => row.name },
      { head: "Packets/s", number: true, text: (row) => short(row.per_s) },
      { head: "Packets", number: true, text: (row) => row.count.toLocaleString("en") },
    ], (row) => row.name);
    this.drops = new Table("Drops by reason", [
      { head: "Node", text: (row) => row.node },
      { head: "Reason", text: (row) => row.text },
      { head: "Per second", number: true, cell: (cell, row) => { say(cell, short(row.per_s)); cell.classList.toggle("bad", row.per_s > 0); } },
      { head: "Packets", number: true, text: (row) => row.count.toLocaleString("en") },
    ], (row) => `${row.node} ${row.reason}`);
    this.none = h("p", { class: "notice" }, "Nothing was dropped.");
    this.element = h("div", {}, h("h1", {}, "Packet path"),
      h("p", { class: "notice" }, "Nodes show packets per second and in all, ✕ what they dropped. Lines are as thick as the traffic on them; dashed: the counters leave it open."),
      this.frame, h("h2", {}, "What became of the packets"), this.outcomes.element, h("h2", {}, "Drops by reason"), this.none, this.drops.element);
  }

  async refresh(signal) {
    const [overview, svg] = await Promise.all([getJson("/v1/overview", {}, signal), getText("/v1/graph.svg", {}, signal)]);
    this.frame.replaceChildren(picture(svg));
    this.outcomes.update(["transmit", "pass", "drop", "held"].map((name) => ({
      name, count: overview.outcomes[name], per_s: overview.outcomes_per_s ? overview.outcomes_per_s[name] : null,
    })));
    this.drops.update(overview.drops);
    this.none.hidden = overview.drops.length > 0;
    return overview;
  }
}
