// A line of what was seen, two minutes at most, without axes: the figure beside it says what it is.

import { s } from "./dom.js";

const LENGTH = 120;

export class Sparkline {
  constructor() {
    this.values = [];
    this.line = s("path", { fill: "none", stroke: "currentColor", "stroke-width": 1.5, "vector-effect": "non-scaling-stroke" });
    this.area = s("path", { fill: "currentColor", "fill-opacity": 0.12, stroke: "none" });
    this.element = s("svg", { viewBox: `0 0 ${LENGTH} 30`, preserveAspectRatio: "none", "aria-hidden": "true" }, this.area, this.line);
  }

  push(value) {
    if (value === null || value === undefined) return;
    this.values.push(value);
    if (this.values.length > LENGTH) this.values.shift();
    const top = Math.max(...this.values, 1e-9);
    const step = LENGTH / Math.max(this.values.length - 1, 1);
    const points = this.values.map((each, place) => `${(step * place).toFixed(2)} ${(28 - (26 * each) / top).toFixed(1)}`);
    this.line.setAttribute("d", points.length > 1 ? `M${points.join("L")}` : "");
    this.area.setAttribute("d", points.length > 1 ? `M0 30L${points.join("L")}L${LENGTH} 30Z` : "");
  }
}
