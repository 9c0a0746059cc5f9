// Tables that are brought up to date in place.

import { h, keyed, say } from "./dom.js";

/** Columns: {head, text(row), number, wide, cell(td, row), class}. Rows keep their elements by `keyOf`. */
export class Table {
  constructor(caption, columns, keyOf) {
    this.columns = columns;
    this.keyOf = keyOf;
    this.heads = columns.map((column) =>
      h("th", { scope: "col", class: this.#classes(column) }, column.head));
    this.body = h("tbody");
    this.element = h("div", { class: "panel", tabindex: -1 },
      h("table", { "aria-label": caption }, h("thead", {}, h("tr", {}, ...this.heads)), this.body));
  }

  #classes(column) {
    return [column.number && "number", column.wide && "wide", column.class].filter(Boolean).join(" ") || null;
  }

  update(rows) {
    keyed(this.body, rows, this.keyOf,
      () => h("tr", { class: "row" }, ...this.columns.map((column) => h("td", { class: this.#classes(column) }))),
      (line, row) => this.columns.forEach((column, place) => {
        const cell = line.children[place];
        if (column.cell) column.cell(cell, row);
        else say(cell, column.text(row));
      }));
    this.element.hidden = rows.length === 0;
  }
}
