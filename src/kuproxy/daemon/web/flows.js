// Flow search: what the workers remember, by client, VIP, pod and state, a page at a time.

import { getJson, quietly } from "./api.js";
import { h, say } from "./dom.js";
import { endpoint, protocol, seconds } from "./format.js";
import { Table } from "./table.js";

const PAGE = 100;
const STATES = ["tcp-half-open", "tcp-established", "tcp-closing", "udp", "sctp", "icmp", "other"];

export class Flows {
  constructor(parameters, navigate) {
    this.navigate = navigate;
    this.rows = [];
    this.next = null;
    this.asked = false;
    this.fields = {};
    for (const [name, label, hint] of [["client", "Client", "10.1.2.3"], ["vip", "VIP", "10.96.0.10/32"], ["pod", "Pod", "10.244.1.7"]]) {
      this.fields[name] = h("input", { name, placeholder: hint, value: parameters.get(name) ?? "", maxlength: 64, autocomplete: "off", spellcheck: "false" });
      this.fields[name].label = label;
    }
    this.fields.state = h("select", { name: "state" }, h("option", { value: "" }, "any"), ...STATES.map((state) => h("option", { value: state }, state)));
    this.fields.state.value = parameters.get("state") ?? "";
    this.fields.state.label = "State";
    this.message = h("p", { class: "notice", role: "status" });
    this.more = h("button", { type: "button", class: "plain", hidden: true, onclick: () => quietly(this.#search(false)) }, "More");
    this.table = new Table("Flows", [
      { head: "Proto", text: (row) => protocol(row.protocol) },
      { head: "Client", class: "address", text: (row) => endpoint(row.client, row.client_port) },
      { head: "Destination", class: "address", text: (row) => endpoint(row.destination, row.destination_port) },
      { head: "Pod", class: "address", text: (row) => endpoint(row.pod, row.pod_port) },
      { head: "State", wide: true, text: (row) => row.state },
      { head: "Age", number: true, wide: true, text: (row) => seconds(row.age_s) },
      { head: "Expires in", number: true, wide: true, text: (row) => seconds(row.expires_in_s) },
    ], (row) => `${row.worker}:${row.slot}`);
    this.table.element.id = "flow-table";
    const inputs = Object.values(this.fields).map((field) => h("label", {}, field.label, field));
    this.element = h("div", {}, h("h1", {}, "Flows"),
      h("form", { role: "search", onsubmit: (event) => { event.preventDefault(); quietly(this.#search(true)); } }, ...inputs, h("button", { class: "plain" }, "Search")),
      this.message, this.table.element, h("div", { class: "pager" }, this.more));
  }

  /** Not live: a table that moves under one's eyes is no use for searching. */
  async refresh(signal) {
    if (!this.asked) await this.#search(true);
    return getJson("/v1/overview", {}, signal);
  }

  async #search(afresh) {
    this.asked = true;
    const query = Object.fromEntries(Object.entries(this.fields).map(([name, field]) => [name, field.value.trim()]));
    if (afresh) {
      this.rows = [];
      this.next = null;
      this.navigate(query);
    }
    try {
      const page = await getJson("/v1/flows", { ...query, limit: PAGE, after: this.next ?? "" });
      this.rows.push(...page.flows);
      this.next = page.next;
      this.message.className = "notice";
      say(this.message, this.rows.length ? `${this.rows.length} flows${this.next ? ", and there are more" : ""}` : "No flow fits.");
    } catch (refusal) {
      if (refusal.status !== 422) throw refusal;
      this.message.className = "bad";
      say(this.message, refusal.message);
    }
    this.table.update(this.rows);
    this.more.hidden = this.next === null;
  }
}
